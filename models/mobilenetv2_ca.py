"""CA-MobileNetV2: coordinate attention in every inverted residual block that expands.

Hou, Zhou, Feng, "Coordinate Attention for Efficient Mobile Network Design", arXiv 2103.02907 (r = 32).
Sandler, Howard, Zhu, Zhmoginov, Chen, "MobileNetV2: Inverted Residuals and Linear Bottlenecks",
arXiv 1801.04381 (Table 2).
The gate stands after the depthwise convolution, its batch norm and ReLU6, before the projection. As in the
authors' code, the hidden width is at least 8, its non-linearity is h-swish, and dropout is 0.1.

State-dict names, shapes and registration order are those of the authors' checkpoint.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["CoordinateAttention", "InvertedResidual", "CAMobileNetV2", "ca_mobilenetv2"]

# Expansion, output channels, number of blocks and stride of the first one.
_BLOCKS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class CoordinateAttention(nn.Module):
    """Two gates for each channel, one along H and one along W: out = x * g_h * g_w.

    The means over W (B, C, H, 1) and over H (B, C, W, 1) are joined along their length, pass through
    h-swish(bn1(conv1(.))) and are split again; g_h = sigmoid(conv2(.)), g_w = sigmoid(conv3(.)).

    Args:
        channels: C of the input.
        reduction: ratio between C and the hidden width, which is at least 8.

    Shape: (B, C, H, W) to (B, C, H, W).

    Raises:
        ValueError: ``reduction`` is less than 1.
    """

    def __init__(self, channels: int, reduction: int = 32) -> None:
        super().__init__()
        if reduction < 1:
            raise ValueError(f"reduction must be at least 1, not {reduction}")
        hidden = max(8, channels // reduction)
        self.conv1 = nn.Conv2d(channels, hidden, 1)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.act = nn.Hardswish()
        self.conv2 = nn.Conv2d(hidden, channels, 1)
        self.conv3 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        height = x.shape[2]
        along_h = x.mean(3, keepdim=True)  # (B, C, H, 1)
        along_w = x.mean(2, keepdim=True).transpose(2, 3)  # (B, C, W, 1)
        hidden = self.act(self.bn1(self.conv1(torch.cat((along_h, along_w), 2))))  # (B, hidden, H + W, 1)
        gate_h = self.conv2(hidden[:, :, :height]).sigmoid()  # (B, C, H, 1)
        gate_w = self.conv3(hidden[:, :, height:]).sigmoid().transpose(2, 3)  # (B, C, 1, W)
        return x * gate_h * gate_w


def conv_norm_relu(inplanes: int, planes: int, kernel_size: int, stride: int = 1, groups: int = 1) -> Any:
    """A convolution without bias, its batch norm and ReLU6."""
    padding = kernel_size // 2
    return (
        nn.Conv2d(inplanes, planes, kernel_size, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(planes),
        nn.ReLU6(inplace=True),
    )


class InvertedResidual(nn.Module):
    """Expansion by a 1x1, depthwise 3x3 convolution, attention, projection by a 1x1 convolution.

    Args:
        inplanes: channels of the input.
        planes: channels of the output.
        stride: of the depthwise convolution.
        expansion: ratio of the depthwise convolution's channels to the input's; at 1 there is neither the
            first convolution nor attention.
        reduction: of the attention.

    Shape: (B, inplanes, H, W) to (B, planes, H/stride, W/stride).
    """

    def __init__(self, inplanes: int, planes: int, stride: int, expansion: int, reduction: int) -> None:
        super().__init__()
        hidden = inplanes * expansion
        self.residual = stride == 1 and inplanes == planes
        layers: list[nn.Module] = []
        if expansion > 1:
            layers += conv_norm_relu(inplanes, hidden, 1)
        layers += conv_norm_relu(hidden, hidden, 3, stride, groups=hidden)
        if expansion > 1:
            layers.append(CoordinateAttention(hidden, reduction))
        layers += [nn.Conv2d(hidden, planes, 1, bias=False), nn.BatchNorm2d(planes)]
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


def scaled(channels: int, width_mult: float) -> int:
    """The multiple of 8 nearest to ``channels * width_mult``, but not less than 0.9 times that."""
    wanted = channels * width_mult
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded


class CAMobileNetV2(nn.Module):
    """MobileNetV2 with :class:`CoordinateAttention`, for any input size.

    Initialised as in the authors' code: convolutions normal with variance 2 / (k k C_out), the classifier
    normal with standard deviation 0.01, biases 0.

    Args:
        num_classes: outputs of the classifier.
        width_mult: factor on the channels of all layers; the last convolution has at least 1280.
        dropout: probability before the classifier.
        reduction: of the attention.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        width_mult: float = 1.0,
        dropout: float = 0.1,
        reduction: int = 32,
    ) -> None:
        super().__init__()
        planes = scaled(32, width_mult)
        features: list[nn.Module] = [nn.Sequential(*conv_norm_relu(3, planes, 3, 2))]
        for expansion, channels, blocks, stride in _BLOCKS:
            for i in range(blocks):
                inplanes, planes = planes, scaled(channels, width_mult)
                features.append(
                    InvertedResidual(inplanes, planes, stride if i == 0 else 1, expansion, reduction)
                )
        self.features = nn.Sequential(*features)
        last = scaled(1280, max(1.0, width_mult))
        self.conv = nn.Sequential(*conv_norm_relu(planes, last, 1))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(last, num_classes))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw convolutions and classifier from normal distributions, and set their biases to 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = math.prod(module.kernel_size) * module.out_channels
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward_stages(self, x: Tensor) -> tuple[Tensor, ...]:
        """Features at strides 4, 8, 16, 32: of features.3, features.6, features.13 and of conv."""
        stages = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in (3, 6, 13):
                stages.append(x)
        return *stages, self.conv(x)

    def forward_features(self, x: Tensor) -> Tensor:
        """The last feature map before pooling, (B, 1280, H/32, W/32)."""
        return self.conv(self.features(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.forward_features(x)).flatten(1))


def ca_mobilenetv2(**kwargs: Any) -> CAMobileNetV2:
    return CAMobileNetV2(**kwargs)
