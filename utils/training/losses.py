"""The training loss beyond cross-entropy: label smoothing."""

import math

from torch import Tensor, nn
from torch.nn import functional as F

from utils.common.errors import UserError
from utils.common.text import plural


class LabelSmoothing(nn.Module):
    """KL divergence between smoothed labels and the prediction, the published training loss.

    The target is 1 - s on the class and s / (K - 1) on each of the other classes (torch's own smoothing
    spreads s over all K classes, so s here is s K / (K - 1) there). The target's entropy is subtracted, so
    that a perfect prediction has loss 0; the gradient is that of the smoothed cross-entropy.

    Szegedy et al., Rethinking the Inception Architecture, arXiv 1512.00567, section 7.

    Args:
        smoothing: s, at least 0 (plain cross-entropy) and less than (K - 1) / K.
        classes: K.

    Raises:
        UserError: s is too large for this number of classes.
    """

    def __init__(self, smoothing: float, classes: int) -> None:
        super().__init__()
        if smoothing and smoothing >= 1 - 1 / classes:
            number = plural(classes, "class")
            raise UserError(f"--label-smoothing {smoothing:g} is too much for {number}: give 0")
        self.smoothing, self.classes = smoothing, classes

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of logits (B, K) and labels (B,)."""
        s, classes = self.smoothing, self.classes
        if s == 0:
            return F.cross_entropy(logits, labels)
        entropy = -(1 - s) * math.log(1 - s) - s * math.log(s / (classes - 1))
        return F.cross_entropy(logits, labels, label_smoothing=s * classes / (classes - 1)) - entropy
