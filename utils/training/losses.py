"""Training losses beyond cross-entropy: label smoothing and knowledge distillation."""

import math
from collections.abc import Callable

import torch
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
            raise UserError(
                f"--label-smoothing {smoothing:g} is too much for {plural(classes, 'class')}: give 0"
            )
        self.smoothing, self.classes = smoothing, classes

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of logits (B, K) and labels (B,)."""
        s, classes = self.smoothing, self.classes
        if s == 0:
            return F.cross_entropy(logits, labels)
        entropy = -(1 - s) * math.log(1 - s) - s * math.log(s / (classes - 1))
        return F.cross_entropy(logits, labels, label_smoothing=s * classes / (classes - 1)) - entropy


class Distillation:
    """Knowledge distillation: the student also learns from the softened prediction of a teacher.

    ``(1 - alpha) * loss + alpha * T^2 * KL(softmax(teacher / T) || softmax(student / T))``: Hinton et al.,
    arXiv 1503.02531; He et al., Bag of Tricks, arXiv 1812.01187, section 5.3 (T = 20).

    Args:
        teacher: maps images (B, 3, H, W) to logits (B, K).
        alpha: weight of the teacher, from 0 to 1.
        temperature: T, above 0.
    """

    def __init__(self, teacher: Callable[[Tensor], Tensor], alpha: float, temperature: float) -> None:
        self.teacher, self.alpha, self.temperature = teacher, alpha, temperature

    def __call__(self, loss: Tensor, logits: Tensor, images: Tensor) -> Tensor:
        """Blend the loss on the labels with the loss on the teacher; logits (B, K) are of ``images``."""
        with torch.no_grad():
            target = F.log_softmax(self.teacher(images) / self.temperature, dim=1)
        student = F.log_softmax(logits / self.temperature, dim=1)
        divergence = F.kl_div(student, target, reduction="batchmean", log_target=True)
        return (1 - self.alpha) * loss + self.alpha * self.temperature**2 * divergence
