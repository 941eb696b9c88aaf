"""MobileNetV1, plain and weight-standardised: depthwise-separable convolutions.

Howard, Zhu, Chen, Kalenichenko, Wang, Weyand, Andreetto, Adam, "MobileNets: Efficient Convolutional Neural
Networks for Mobile Vision Applications", arXiv 1704.04861 (Table 1, width multiplier 1).
Qiao, Wang, Liu, Shen, Yuille, "Micro-Batch Training with Batch-Channel Normalization and Weight
Standardization", arXiv 1903.10520.
Differs from the first paper's Table 1: the last depthwise convolution has stride 1, as its 7x7 map implies.

No code was published with the ws_mobilenetv1 checkpoint; the state-dict names model.{0..13}.{0,1,3,4} and fc
follow a widely copied PyTorch implementation.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["WSConv2d", "DepthwiseSeparable", "MobileNetV1", "mobilenetv1", "ws_mobilenetv1"]

# Input channels, output channels and stride of the thirteen depthwise-separable convolutions.
_PAIRS = (
    (32, 64, 1),
    (64, 128, 2),
    (128, 128, 1),
    (128, 256, 2),
    (256, 256, 1),
    (256, 512, 2),
    *((512, 512, 1),) * 5,
    (512, 1024, 2),
    (1024, 1024, 1),
)


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


class DepthwiseSeparable(nn.Sequential):
    """A 3x3 depthwise and a 1x1 convolution, each with batch norm and ReLU.

    Args:
        inplanes: channels of the input.
        planes: channels of the output.
        stride: of the depthwise convolution.
        conv_layer: class of the convolutions.

    Shape: (B, inplanes, H, W) to (B, planes, H/stride, W/stride).
    """

    def __init__(
        self, inplanes: int, planes: int, stride: int, conv_layer: type[nn.Conv2d] = nn.Conv2d
    ) -> None:
        super().__init__(
            conv_layer(inplanes, inplanes, 3, stride, 1, groups=inplanes, bias=False),
            nn.BatchNorm2d(inplanes),
            nn.ReLU(inplace=True),
            conv_layer(inplanes, planes, 1, bias=False),
            nn.BatchNorm2d(planes),
            nn.ReLU(inplace=True),
        )


class MobileNetV1(nn.Module):
    """MobileNetV1 for any input size.

    Args:
        num_classes: outputs of the classifier.
        conv_layer: class of the convolutions.
    """

    def __init__(self, num_classes: int = 1000, conv_layer: type[nn.Conv2d] = nn.Conv2d) -> None:
        super().__init__()
        stem = nn.Sequential(
            conv_layer(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(inplace=True)
        )
        self.model = nn.Sequential(stem, *(DepthwiseSeparable(*pair, conv_layer) for pair in _PAIRS))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(1024, num_classes)

    def forward_stages(self, x: Tensor) -> tuple[Tensor, ...]:
        """Features at strides 4, 8, 16, 32: the outputs of model.3, model.5, model.11 and model.13."""
        stages = []
        for index, layer in enumerate(self.model):
            x = layer(x)
            if index in (3, 5, 11, 13):
                stages.append(x)
        return tuple(stages)

    def forward_features(self, x: Tensor) -> Tensor:
        """The last feature map before pooling, (B, 1024, H/32, W/32)."""
        return self.model(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.avgpool(self.forward_features(x)).flatten(1))


def mobilenetv1(**kwargs: Any) -> MobileNetV1:
    return MobileNetV1(**kwargs)


def ws_mobilenetv1(**kwargs: Any) -> MobileNetV1:
    return MobileNetV1(conv_layer=WSConv2d, **kwargs)
