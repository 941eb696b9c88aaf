"""WS-ResNet and WS-ResNeXt (32x4d): every convolution standardises its weight.

Qiao, Wang, Liu, Shen, Yuille, "Micro-Batch Training with Batch-Channel Normalization and Weight
Standardization", arXiv 1903.10520.
The blocks are torchvision's ResNet v1.5 blocks (stride on the 3x3 convolution); the convolutions of the stem
and of the shortcuts are standardised too. Differs from the paper: the standard deviation is the unbiased one,
and 1e-5 is added to it rather than to the variance; batch norm everywhere.

State-dict names, shapes and registration order are those of the published checkpoints and of the plain nets.
The stored weights are not standardised. No code was published with the ResNeXt checkpoints.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

__all__ = [
    "WSConv2d",
    "WSResNet",
    "ws_resnet18",
    "ws_resnet34",
    "ws_resnet50",
    "ws_resnet101",
    "ws_resnet152",
    "ws_resnext50",
    "ws_resnext101",
]


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


class WSResNet(ResNet):
    """ResNet of standardised convolutions; takes every keyword of :class:`torchvision.models.ResNet`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                module.__class__ = WSConv2d  # only ``forward`` changes; parameters keep their names

    def forward_stages(self, x: Tensor) -> tuple[Tensor, ...]:
        """Outputs c2, c3, c4, c5 of the four stages, at strides 4, 8, 16, 32."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        c2 = self.layer1(x)
        c3 = self.layer2(c2)
        c4 = self.layer3(c3)
        return c2, c3, c4, self.layer4(c4)

    def forward_features(self, x: Tensor) -> Tensor:
        """The last feature map before pooling, (B, C, H/32, W/32)."""
        return self.forward_stages(x)[-1]


def ws_resnet18(**kwargs: Any) -> WSResNet:
    return WSResNet(BasicBlock, [2, 2, 2, 2], **kwargs)


def ws_resnet34(**kwargs: Any) -> WSResNet:
    return WSResNet(BasicBlock, [3, 4, 6, 3], **kwargs)


def ws_resnet50(**kwargs: Any) -> WSResNet:
    return WSResNet(Bottleneck, [3, 4, 6, 3], **kwargs)


def ws_resnet101(**kwargs: Any) -> WSResNet:
    return WSResNet(Bottleneck, [3, 4, 23, 3], **kwargs)


def ws_resnet152(**kwargs: Any) -> WSResNet:
    return WSResNet(Bottleneck, [3, 8, 36, 3], **kwargs)


def ws_resnext50(**kwargs: Any) -> WSResNet:
    return WSResNet(Bottleneck, [3, 4, 6, 3], **{"groups": 32, "width_per_group": 4, **kwargs})


def ws_resnext101(**kwargs: Any) -> WSResNet:
    return WSResNet(Bottleneck, [3, 4, 23, 3], **{"groups": 32, "width_per_group": 4, **kwargs})
