"""SKNet: a ResNeXt whose 3x3 convolutions weight two receptive fields by attention, for each channel.

Li, Wang, Hu, Yang, "Selective Kernel Networks", arXiv 1903.06586 (Table 1: M = 2, G = 32, r = 16, L = 32).
The second branch is the paper's 5x5 kernel, made of a 3x3 with dilation 2. Stride on the middle convolution.
The published SK-ResNet results are of ``resnet_sk.py``, with other branches and other names.

No weights were published under these names.
Training needs at least two images per process: the attention has a batch norm over one value per image.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet

__all__ = ["SKConv", "SKNeXtBottleneck", "SKNet", "sknet50", "sknet101"]

Norm = Callable[[int], nn.Module]


class SKAttention(nn.Module):
    """Softmax weight of the first of two branches, for each channel.

    Shape: (B, C, 1, 1) to (B, C, 1, 1).
    """

    def __init__(self, channels: int, hidden: int, norm_layer: Norm) -> None:
        super().__init__()
        self.fc_reduce = nn.Conv2d(channels, hidden, 1, bias=False)
        self.bn = norm_layer(hidden)
        self.relu = nn.ReLU(inplace=True)
        self.fc_select = nn.Conv2d(hidden, 2 * channels, 1, bias=False)

    def forward(self, squeezed: Tensor) -> Tensor:
        squeezed = self.relu(self.bn(self.fc_reduce(squeezed)))  # (B, hidden, 1, 1)
        first, second = self.fc_select(squeezed).chunk(2, 1)  # logits of the branches, (B, C, 1, 1)
        return torch.sigmoid(first - second)


class SKConv(nn.Module):
    """Two grouped 3x3 convolutions, the second with twice the dilation, blended by attention.

    out = a * u1 + (1 - a) * u2 with the branches u = relu(bn(conv(x))); a, one weight per image and channel,
    is computed from GAP(u1 + u2).

    Args:
        in_channels: C of the input; ``groups`` must divide it.
        out_channels: C' of the output; ``groups`` must divide it too.
        stride: of both branches.
        groups: G of both branches.
        dilation: of the first branch; the second has twice that.
        reduction: r; the attention's hidden width is C'/r, but at least ``min_hidden`` (L).
        norm_layer: makes the norm of a number of channels.

    Shape: (B, C, H, W) to (B, C', H/stride, W/stride).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        groups: int = 32,
        dilation: int = 1,
        reduction: int = 16,
        min_hidden: int = 32,
        norm_layer: Norm = nn.BatchNorm2d,
    ) -> None:
        super().__init__()

        def path(dilation: int) -> nn.Sequential:
            conv = nn.Conv2d(in_channels, out_channels, 3, stride, dilation, dilation, groups, bias=False)
            return nn.Sequential(
                OrderedDict(conv=conv, bn=norm_layer(out_channels), relu=nn.ReLU(inplace=True))
            )

        self.paths = nn.ModuleList([path(dilation), path(2 * dilation)])
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.attn = SKAttention(out_channels, max(out_channels // reduction, min_hidden), norm_layer)

    def forward(self, x: Tensor) -> Tensor:
        near, far = (path(x) for path in self.paths)  # (B, C', H', W') each
        weight = self.attn(self.avg_pool(near + far)).to(near.dtype)  # (B, C', 1, 1)
        return torch.lerp(far, near, weight)  # weight * near + (1 - weight) * far


class SKNeXtBottleneck(Bottleneck):
    """1x1 convolution, :class:`SKConv`, 1x1 convolution."""

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        groups: int = 1,
        base_width: int = 64,
        dilation: int = 1,
        norm_layer: Norm | None = None,
    ) -> None:
        super().__init__(inplanes, planes, stride, downsample, groups, base_width, dilation, norm_layer)
        width = self.conv1.out_channels
        self.conv2 = SKConv(width, width, stride, groups, dilation, norm_layer=norm_layer or nn.BatchNorm2d)
        del self.bn2  # each branch has its own

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)

        out = self.relu(self.bn1(self.conv1(x)))
        out = self.conv2(out)
        out = self.bn3(self.conv3(out))

        out += identity
        return self.relu(out)


class SKNet(ResNet):
    """ResNet of SK units; takes every keyword of :class:`torchvision.models.ResNet`."""

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


def sknet50(**kwargs: Any) -> SKNet:
    return SKNet(SKNeXtBottleneck, [3, 4, 6, 3], **{"groups": 32, "width_per_group": 4, **kwargs})


def sknet101(**kwargs: Any) -> SKNet:
    return SKNet(SKNeXtBottleneck, [3, 4, 23, 3], **{"groups": 32, "width_per_group": 4, **kwargs})
