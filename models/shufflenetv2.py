"""ShuffleNetV2, plain and weight-standardised: channel split, one separable branch, channel shuffle.

Ma, Zhang, Zheng, Sun, "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design",
arXiv 1807.11164 (Table 5, Fig. 3c and 3d).
Qiao, Wang, Liu, Shen, Yuille, "Micro-Batch Training with Batch-Channel Normalization and Weight
Standardization", arXiv 1903.10520.
All widths are the first paper's. The published code lists 224 channels instead of 244 for the second stage of
the 2x net, but gives no way to build that net, so no checkpoint has 224.

State-dict names (with their spelling "banch"), shapes and registration order are those of the published
checkpoints. No code was published with the ws_shufflenetv2 checkpoint; its names are assumed to be those of
the plain net.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "WSConv2d",
    "ShuffleUnit",
    "ShuffleNetV2",
    "shufflenetv2_05x",
    "shufflenetv2_1x",
    "shufflenetv2_15x",
    "shufflenetv2_2x",
    "ws_shufflenetv2",
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


class ShuffleUnit(nn.Module):
    """Two branches, concatenated and shuffled.

    With stride 2 both branches read the whole input; with stride 1 the first is the identity on half of the
    channels, and the second reads the other half.

    Args:
        inplanes: channels of the input; equal to ``planes`` with stride 1.
        planes: channels of the output, even.
        stride: 1 or 2, on the depthwise convolution.
        conv_layer: class of the convolutions.

    Shape: (B, inplanes, H, W) to (B, planes, H/stride, W/stride).
    """

    def __init__(
        self, inplanes: int, planes: int, stride: int, conv_layer: type[nn.Conv2d] = nn.Conv2d
    ) -> None:
        super().__init__()
        self.stride = stride
        half = planes // 2
        if stride == 2:
            self.banch1 = nn.Sequential(
                conv_layer(inplanes, inplanes, 3, stride, 1, groups=inplanes, bias=False),
                nn.BatchNorm2d(inplanes),
                conv_layer(inplanes, half, 1, bias=False),
                nn.BatchNorm2d(half),
                nn.ReLU(inplace=True),
            )
        self.banch2 = nn.Sequential(
            conv_layer(inplanes if stride == 2 else half, half, 1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(inplace=True),
            conv_layer(half, half, 3, stride, 1, groups=half, bias=False),
            nn.BatchNorm2d(half),
            conv_layer(half, half, 1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 2:
            first, second = self.banch1(x), self.banch2(x)
        else:
            first, second = x.chunk(2, 1)
            second = self.banch2(second)
        # Concatenation and shuffle in one copy: output channel 2i + g is channel i of branch g.
        return torch.stack((first, second), 2).flatten(1, 2)


class ShuffleNetV2(nn.Module):
    """ShuffleNetV2 for any input size.

    Args:
        widths: output channels of the three stages and of the last 1x1 convolution.
        num_classes: outputs of the classifier.
        conv_layer: class of the convolutions.
    """

    def __init__(
        self,
        widths: tuple[int, int, int, int],
        num_classes: int = 1000,
        conv_layer: type[nn.Conv2d] = nn.Conv2d,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(
            conv_layer(3, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU(inplace=True)
        )
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        units: list[nn.Module] = []
        inplanes = 24
        for planes, repeats in zip(widths, (4, 8, 4), strict=False):
            for index in range(repeats):
                units.append(ShuffleUnit(inplanes, planes, 2 if index == 0 else 1, conv_layer))
                inplanes = planes
        self.features = nn.Sequential(*units)
        self.conv_last = nn.Sequential(
            conv_layer(inplanes, widths[3], 1, bias=False), nn.BatchNorm2d(widths[3]), nn.ReLU(inplace=True)
        )
        self.globalpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Linear(widths[3], num_classes))

    def forward_stages(self, x: Tensor) -> tuple[Tensor, ...]:
        """Features at strides 4, 8, 16, 32: the stem, the first two stages, the last 1x1 convolution."""
        x = self.maxpool(self.conv1(x))
        stages = []
        for unit in self.features:
            if unit.stride == 2:
                stages.append(x)
            x = unit(x)
        return (*stages, self.conv_last(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """The last feature map before pooling, (B, widths[3], H/32, W/32)."""
        return self.conv_last(self.features(self.maxpool(self.conv1(x))))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.globalpool(self.forward_features(x)).flatten(1))


def shufflenetv2_05x(**kwargs: Any) -> ShuffleNetV2:
    return ShuffleNetV2((48, 96, 192, 1024), **kwargs)


def shufflenetv2_1x(**kwargs: Any) -> ShuffleNetV2:
    return ShuffleNetV2((116, 232, 464, 1024), **kwargs)


def shufflenetv2_15x(**kwargs: Any) -> ShuffleNetV2:
    return ShuffleNetV2((176, 352, 704, 1024), **kwargs)


def shufflenetv2_2x(**kwargs: Any) -> ShuffleNetV2:
    return ShuffleNetV2((244, 488, 976, 2048), **kwargs)


def ws_shufflenetv2(**kwargs: Any) -> ShuffleNetV2:
    return ShuffleNetV2((116, 232, 464, 1024), conv_layer=WSConv2d, **kwargs)
