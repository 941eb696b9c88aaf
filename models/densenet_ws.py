"""WS-DenseNet: every convolution standardises its weight.

Huang, Liu, van der Maaten, Weinberger, "Densely Connected Convolutional Networks", arXiv 1608.06993.
Qiao, Wang, Liu, Shen, Yuille, "Micro-Batch Training with Batch-Channel Normalization and Weight
Standardization", arXiv 1903.10520.
The net is torchvision's, with every convolution standardised. Differs from the second paper: the standard
deviation is the unbiased one, and 1e-5 is added to it rather than to the variance.

No code was published with the checkpoint: state-dict names, shapes and registration order are torchvision's.
The stored weights are not standardised.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.densenet import DenseNet

__all__ = ["WSConv2d", "WSDenseNet", "ws_densenet201"]


@torch.fx.wrap  # a leaf for torch.fx, which does not know data types while tracing
def standardise(weight: Tensor) -> Tensor:
    """Standardise each filter: (w - mean(w)) / (std(w) + 1e-5), with the unbiased std, in float32 or wider.

    Shape: (C_out, C_in/groups, k, k) to the same.
    """
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    centred = wide - wide.mean((1, 2, 3), keepdim=True)
    # The norm of the centred weight takes fewer passes than std(); max(..., 1) is for filters of one weight.
    norm = torch.linalg.vector_norm(centred, dim=(1, 2, 3), keepdim=True)  # (C_out, 1, 1, 1)
    std = norm / math.sqrt(max(weight[0].numel() - 1, 1))
    return (centred / (std + 1e-5)).to(weight.dtype)


class WSConv2d(nn.Conv2d):
    """Convolution with standardised filters; takes the arguments of :class:`torch.nn.Conv2d`.

    The stored weight is not standardised; a constant filter acts as zero.

    Shape: (B, C_in, H, W) to (B, C_out, H', W').
    """

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, standardise(self.weight), self.bias)


class WSDenseNet(DenseNet):
    """DenseNet of standardised convolutions; takes every keyword of :class:`torchvision.models.DenseNet`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                module.__class__ = WSConv2d  # only ``forward`` changes; parameters keep their names

    def forward_stages(self, x: Tensor) -> tuple[Tensor, ...]:
        """Outputs of the four dense blocks after batch norm and ReLU, at strides 4, 8, 16, 32.

        The net never uses a dense block's output without the batch norm that follows it.
        """
        stages = []
        for name, layer in self.features.named_children():
            if name.startswith("transition"):
                norm, relu, conv, pool = layer.children()
                stages.append(relu(norm(x)))
                x = pool(conv(stages[-1]))
            else:
                x = layer(x)
        return (*stages, F.relu(x, inplace=True))

    def forward_features(self, x: Tensor) -> Tensor:
        """The last feature map before pooling, (B, C, H/32, W/32)."""
        return F.relu(self.features(x), inplace=True)


def ws_densenet201(**kwargs: Any) -> WSDenseNet:
    return WSDenseNet(32, (6, 12, 48, 32), 64, **kwargs)
