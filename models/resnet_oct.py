"""Octave ResNet and MobileNet: every map keeps part of its channels at half the resolution.

Chen, Fan, Xu, Yan, Kalantidis, Rohrbach, Yan, Feng, "Drop an Octave: Reducing Spatial Redundancy in
Convolutional Neural Networks with Octave Convolution", arXiv 1904.05049 (Eq. 2-5, Figure 2).
``alpha`` is the share of the channels at the low resolution; alpha = 0 gives the plain ResNet v1.5 and
MobileNetV1. The first stage's input and the last stage's output have only the high resolution.
Differs from the reference code: sides need not be multiples of 32. An odd side is halved with rounding up,
and the surplus row or column is cut off after upsampling.

State-dict names, shapes and registration order are those of d-li14/octconv.pytorch, which published weights
for alpha = 0.5.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import Bottleneck, ResNet

__all__ = [
    "OctaveConv",
    "OctaveConvNorm",
    "OctBottleneck",
    "OctResNet",
    "OctMobileNet",
    "oct_resnet26",
    "oct_resnet50",
    "oct_resnet101",
    "oct_resnet152",
    "oct_mobilenet",
]

# A feature map: (high,) or (high, low), where low has half the height and width of high.
Octaves = tuple[Tensor, ...]


class UpsampleTo(nn.Upsample):
    """Nearest-neighbour upsampling by 2, without the surplus row or column if the size is odd.

    Shape: (B, C, ceil(H/2), ceil(W/2)) and the size (H, W) to (B, C, H, W).
    """

    def forward(self, x: Tensor, size: torch.Size) -> Tensor:  # type: ignore[override]
        return F.interpolate(x, size, mode="nearest")


class OctaveConv(nn.Module):
    """Convolution without bias between pairs of maps, at high and at low resolution.

    high_out = h2h(high) + upsample(l2h(low)), low_out = l2l(low) + h2l(pool(high)); a depthwise convolution
    has no cross terms. A stride of 2 average-pools both inputs first, because a strided convolution would
    misalign the two maps.

    Args:
        in_channels, out_channels: channels of both resolutions together.
        kernel_size: odd; the padding keeps the size.
        alpha_in, alpha_out: share of the low resolution, in [0, 1); with 0 that map is absent.
        stride: 1 or 2.
        strided: use a strided convolution instead of pooling, for plain nets (alpha_in = alpha_out = 0).

    Shape: ((B, C_high, H, W)[, (B, C_low, ceil(H/2), ceil(W/2))]) to the same with the output's channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        alpha_in: float = 0.5,
        alpha_out: float = 0.5,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        strided: bool = False,
    ) -> None:
        super().__init__()
        if not (0 <= alpha_in < 1 and 0 <= alpha_out < 1):
            raise ValueError(f"alpha must be in [0, 1), got {alpha_in} and {alpha_out}")
        low_in, low_out = int(alpha_in * in_channels), int(alpha_out * out_channels)
        high_in, high_out = in_channels - low_in, out_channels - low_out
        depthwise = 1 < groups == in_channels

        def conv(inputs: int, outputs: int) -> nn.Conv2d:
            return nn.Conv2d(
                inputs,
                outputs,
                kernel_size,
                stride=stride if strided else 1,
                padding=dilation * (kernel_size // 2),
                dilation=dilation,
                groups=inputs if depthwise else groups,
                bias=False,
            )

        self.conv_l2l = conv(low_in, low_out) if low_in and low_out else None
        self.conv_l2h = conv(low_in, high_out) if low_in and not depthwise else None
        self.conv_h2l = conv(high_in, low_out) if low_out and not depthwise else None
        self.conv_h2h = conv(high_in, high_out)
        self.pools_input = stride == 2 and not strided
        self.pool = nn.AvgPool2d(2, ceil_mode=True)
        self.upsample = UpsampleTo()

    def forward(self, x: Octaves) -> Octaves:
        pooled = tuple(self.pool(y) for y in x) if self.pools_input else x
        high_out = self.conv_h2h(pooled[0])
        if self.conv_l2h is not None:
            to_high = self.conv_l2h(x[1])
            if not self.pools_input:  # else the low map already has the size of the pooled high map
                to_high = self.upsample(to_high, high_out.shape[2:])
            high_out += to_high
        if self.conv_h2l is None:
            return (high_out,) if self.conv_l2l is None else (high_out, self.conv_l2l(pooled[1]))
        low_out = self.conv_h2l(self.pool(pooled[0]))
        if self.conv_l2l is not None:
            low_out += self.conv_l2l(pooled[1])
        return high_out, low_out


class OctaveConvNorm(nn.Module):
    """:class:`OctaveConv`, a norm for each resolution, and a ReLU unless ``relu`` is false.

    Takes every keyword of :class:`OctaveConv` and has its shapes.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        alpha_in: float = 0.5,
        alpha_out: float = 0.5,
        relu: bool = True,
        norm_layer: Callable[..., nn.Module] = nn.BatchNorm2d,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        low_out = int(alpha_out * out_channels)
        self.conv = OctaveConv(in_channels, out_channels, kernel_size, alpha_in, alpha_out, **kwargs)
        self.bn_h = norm_layer(out_channels - low_out)
        self.bn_l = norm_layer(low_out) if low_out else nn.Identity()
        self.relu = nn.ReLU(inplace=True) if relu else nn.Identity()

    def forward(self, x: Octaves) -> Octaves:
        out = self.conv(x)
        return tuple(self.relu(norm(y)) for norm, y in zip((self.bn_h, self.bn_l), out, strict=False))


class OctBottleneck(nn.Module):
    """1x1, 3x3, 1x1 octave convolutions; the first changes alpha_in to alpha_out, the second has the stride.

    Shape: ((B, C_high, H, W)[, low]) to the same with 4 * planes channels in all.
    """

    expansion: int = 4

    def __init__(
        self,
        inplanes: int,
        planes: int,
        alpha_in: float = 0.5,
        alpha_out: float = 0.5,
        stride: int = 1,
        groups: int = 1,
        base_width: int = 64,
        dilation: int = 1,
        norm_layer: Callable[..., nn.Module] = nn.BatchNorm2d,
        strided: bool = False,
    ) -> None:
        super().__init__()
        width = int(planes * (base_width / 64)) * groups
        planes *= self.expansion
        conv = partial(OctaveConvNorm, alpha_out=alpha_out, norm_layer=norm_layer, strided=strided)
        self.conv1 = conv(inplanes, width, 1, alpha_in)
        self.conv2 = conv(width, width, 3, alpha_out, stride=stride, groups=groups, dilation=dilation)
        self.conv3 = conv(width, planes, 1, alpha_out, relu=False)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inplanes != planes or alpha_in != alpha_out:
            self.downsample = nn.Sequential(conv(inplanes, planes, 1, alpha_in, stride=stride, relu=False))

    def forward(self, x: Octaves) -> Octaves:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.conv3(self.conv2(self.conv1(x)))
        return tuple(self.relu(y.add_(shortcut)) for y, shortcut in zip(out, identity, strict=True))


class OctResNet(ResNet):
    """ResNet of octave bottlenecks; takes every keyword of :class:`torchvision.models.ResNet`.

    Args:
        layers: blocks of the four stages.
        alpha: share of the channels at the low resolution, in [0, 1).
    """

    def __init__(
        self, layers: list[int], alpha: float = 0.5, zero_init_residual: bool = False, **kwargs: Any
    ) -> None:
        self.alpha = alpha  # needed by the base class, which builds the stages
        super().__init__(Bottleneck, layers, **kwargs)
        if zero_init_residual:  # the base class only handles torchvision's own blocks
            for block in self.modules():
                if isinstance(block, OctBottleneck):
                    for norm in (block.conv3.bn_h, block.conv3.bn_l):
                        weight = getattr(norm, "weight", None)
                        if weight is not None:
                            nn.init.zeros_(weight)

    def _make_layer(
        self, block: Any, planes: int, blocks: int, stride: int = 1, dilate: bool = False
    ) -> nn.Sequential:
        """Build a stage of octave bottlenecks (``block`` is not used); see the base class."""
        dilation = self.dilation
        if dilate:
            self.dilation *= stride
            stride = 1
        inplanes, alpha_in = (
            (64, 0.0) if planes == 64 else (planes // 2 * OctBottleneck.expansion, self.alpha)
        )
        alpha_out = 0.0 if planes == 512 else self.alpha
        stage = nn.Sequential()
        for _ in range(blocks):
            stage.append(
                OctBottleneck(
                    inplanes,
                    planes,
                    alpha_in,
                    alpha_out,
                    stride,
                    self.groups,
                    self.base_width,
                    dilation,
                    self._norm_layer,
                    strided=self.alpha == 0,
                )
            )
            inplanes, alpha_in = planes * OctBottleneck.expansion, alpha_out
            stride, dilation = 1, self.dilation
        return stage

    def forward_octaves(self, x: Tensor) -> tuple[Octaves, ...]:
        """Maps (high, low) of each of the four stages; only (high,) in the last, and in all if alpha = 0."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        c2 = self.layer1((x,))
        c3 = self.layer2(c2)
        c4 = self.layer3(c3)
        return c2, c3, c4, self.layer4(c4)

    def forward_stages(self, x: Tensor) -> tuple[Tensor, ...]:
        """High maps c2, c3, c4, c5 of the four stages, at strides 4, 8, 16, 32.

        They have (1 - alpha) * (256, 512, 1024) and 2048 channels; for the low maps see
        :meth:`forward_octaves`.
        """
        return tuple(octaves[0] for octaves in self.forward_octaves(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """The last feature map before pooling, (B, 2048, H/32, W/32)."""
        return self.forward_stages(x)[-1]

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.avgpool(self.forward_features(x)).flatten(1))


class OctMobileNet(nn.Module):
    """MobileNetV1 of octave convolutions, at width 1.

    Args:
        alpha: share of the channels at the low resolution, in [0, 1).
        num_classes: width of the classifier.

    Shape: (B, 3, H, W) to (B, num_classes).
    """

    def __init__(self, alpha: float = 0.5, num_classes: int = 1000) -> None:
        super().__init__()
        widths = (32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
        stem = nn.Sequential(
            nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(inplace=True)
        )
        self.features = nn.Sequential(stem)
        alpha_in = 0.0
        for index in range(1, 14):
            inputs, outputs = widths[index - 1 : index + 1]
            stride = 2 if index in (2, 4, 6, 12) else 1
            alpha_out = alpha if index < 11 else 0.0
            conv = partial(OctaveConvNorm, alpha_in=alpha_in, strided=alpha == 0)
            self.features.append(
                nn.Sequential(
                    conv(inputs, inputs, 3, alpha_out=alpha_in, stride=stride, groups=inputs),
                    conv(inputs, outputs, 1, alpha_out=alpha_out),
                )
            )
            alpha_in = alpha_out
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(1024, num_classes)

    def forward_octaves(self, x: Tensor) -> tuple[Octaves, ...]:
        """Maps (high, low) of c2 and c3, only (high,) of c4 and c5, and of all if alpha = 0."""
        octaves: Octaves = (self.features[0](x),)
        stages = []
        for index in range(1, 14):
            octaves = self.features[index](octaves)
            if index in (3, 5, 11, 13):
                stages.append(octaves)
        return tuple(stages)

    def forward_stages(self, x: Tensor) -> tuple[Tensor, ...]:
        """High maps c2, c3, c4, c5, at strides 4, 8, 16, 32.

        They have (1 - alpha) * (128, 256), 512 and 1024 channels; for the low maps see
        :meth:`forward_octaves`.
        """
        return tuple(octaves[0] for octaves in self.forward_octaves(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """The last feature map before pooling, (B, 1024, H/32, W/32)."""
        return self.forward_stages(x)[-1]

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.avgpool(self.forward_features(x)).flatten(1))


def oct_resnet26(**kwargs: Any) -> OctResNet:
    return OctResNet([2, 2, 2, 2], **kwargs)


def oct_resnet50(**kwargs: Any) -> OctResNet:
    return OctResNet([3, 4, 6, 3], **kwargs)


def oct_resnet101(**kwargs: Any) -> OctResNet:
    return OctResNet([3, 4, 23, 3], **kwargs)


def oct_resnet152(**kwargs: Any) -> OctResNet:
    return OctResNet([3, 8, 36, 3], **kwargs)


def oct_mobilenet(**kwargs: Any) -> OctMobileNet:
    return OctMobileNet(**kwargs)
