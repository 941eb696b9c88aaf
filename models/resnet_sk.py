"""SK-ResNet: attention over two 3x3 convolutions in the middle of every bottleneck.

Li, Wang, Hu, Yang, "Selective Kernel Networks", arXiv 1903.06586 (Eq. 1-6, M = 2 branches, r = 16).
The block is torchvision's ResNet v1.5 bottleneck (stride on the 3x3 convolutions).
Differs from the paper, and from ``sknet.py``, which follows it: one branch is a dense 3x3 and the other a 3x3
of 32 groups, neither is dilated, and the hidden width C/r has no lower limit.

State-dict names, shapes and registration order are those of the published checkpoints.
Training needs at least two images per process: the attention has a batch norm over one value per image.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

__all__ = [
    "SKBottleneck",
    "SKResNet",
    "sk_resnet18",
    "sk_resnet34",
    "sk_resnet50",
    "sk_resnet101",
    "sk_resnet152",
]


class SKBottleneck(Bottleneck):
    """1x1 convolution, a dense and a grouped 3x3 convolution in parallel, 1x1 convolution.

    The branches d1 and d2 are blended as a * d1 + (1 - a) * d2; a, one weight per image and channel, is
    computed from GAP(d1 + d2). The block itself owns the attention layers, as in the published checkpoints.
    """

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        groups: int = 1,
        base_width: int = 64,
        dilation: int = 1,
        norm_layer: Any = None,
    ) -> None:
        super().__init__(inplanes, planes, stride, downsample, groups, base_width, dilation, norm_layer)
        norm_layer = norm_layer or nn.BatchNorm2d
        width = self.conv2.out_channels
        hidden = width // 16
        self.conv2g = nn.Conv2d(
            width, width, 3, stride=stride, padding=dilation, dilation=dilation, groups=32, bias=False
        )
        self.bn2g = norm_layer(width)
        for name in ("conv3", "bn3", "downsample"):
            module = getattr(self, name)
            delattr(self, name)
            setattr(self, name, module)  # after conv2g, as in the published checkpoints
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.conv_fc1 = nn.Conv2d(width, hidden, 1, bias=False)
        self.bn_fc1 = norm_layer(hidden)
        self.conv_fc2 = nn.Conv2d(hidden, 2 * width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)

        out = self.relu(self.bn1(self.conv1(x)))
        dense = self.relu(self.bn2(self.conv2(out)))
        grouped = self.relu(self.bn2g(self.conv2g(out)))

        squeezed = self.avg_pool(dense + grouped)  # (B, C, 1, 1)
        squeezed = torch.relu(self.bn_fc1(self.conv_fc1(squeezed)))
        first, second = self.conv_fc2(squeezed).chunk(2, 1)  # logits of the branches, (B, C, 1, 1)
        weight = torch.sigmoid(first - second).to(dense.dtype)  # the softmax over two branches
        out = torch.lerp(grouped, dense, weight)  # weight * dense + (1 - weight) * grouped

        out = self.bn3(self.conv3(out))
        out += identity
        return self.relu(out)


class SKResNet(ResNet):
    """ResNet of SK blocks; takes every keyword of :class:`torchvision.models.ResNet`."""

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


def sk_resnet18(**kwargs: Any) -> SKResNet:
    """Build a plain ResNet-18 without selective kernels, as published, so that such files load."""
    return SKResNet(BasicBlock, [2, 2, 2, 2], **kwargs)


def sk_resnet34(**kwargs: Any) -> SKResNet:
    """Build a plain ResNet-34 without selective kernels, as published, so that such files load."""
    return SKResNet(BasicBlock, [3, 4, 6, 3], **kwargs)


def sk_resnet50(**kwargs: Any) -> SKResNet:
    return SKResNet(SKBottleneck, [3, 4, 6, 3], **kwargs)


def sk_resnet101(**kwargs: Any) -> SKResNet:
    return SKResNet(SKBottleneck, [3, 4, 23, 3], **kwargs)


def sk_resnet152(**kwargs: Any) -> SKResNet:
    return SKResNet(SKBottleneck, [3, 8, 36, 3], **kwargs)
