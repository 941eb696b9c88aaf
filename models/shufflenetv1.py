"""ShuffleNetV1, plain and weight-standardised: grouped 1x1 convolutions with a channel shuffle between them.

Zhang, Zhou, Lin, Sun, "ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices",
arXiv 1707.01083 (Table 1, Fig. 2).
Qiao, Wang, Liu, Shen, Yuille, "Micro-Batch Training with Batch-Channel Normalization and Weight
Standardization", arXiv 1903.10520.
Differs from the first paper: the shuffle follows the depthwise convolution instead of preceding it (the same
function, up to the order of channels), and the classifier has no bias.

State-dict names, shapes and registration order are those of the authors' later PyTorch release. Neither code
nor the number of groups was published with the ws_shufflenetv1 checkpoint; the default is 3.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["WSConv2d", "ShuffleUnit", "ShuffleNetV1", "shufflenetv1_1x", "ws_shufflenetv1"]

# Output channels of the three stages at width 1x, by number of groups.
_WIDTHS = {3: (240, 480, 960), 8: (384, 768, 1536)}


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
    """Grouped 1x1, depthwise 3x3 and grouped 1x1 convolutions beside a shortcut.

    With stride 1 the shortcut is the identity and is added; with stride 2 it is a 3x3 average pooling and is
    concatenated, before the branch's ``planes - inplanes`` channels.

    Args:
        inplanes: channels of the input; equal to ``planes`` with stride 1.
        planes: channels of the output.
        stride: 1 or 2, on the depthwise convolution.
        groups: of the second 1x1 convolution and of the shuffle.
        first_groups: of the first 1x1 convolution.
        conv_layer: class of the convolutions.

    Shape: (B, inplanes, H, W) to (B, planes, H/stride, W/stride).
    """

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int,
        groups: int,
        first_groups: int,
        conv_layer: type[nn.Conv2d] = nn.Conv2d,
    ) -> None:
        super().__init__()
        self.stride = stride
        self.groups = groups
        width = planes // 4
        outputs = planes - inplanes if stride == 2 else planes
        self.branch_main_1 = nn.Sequential(
            conv_layer(inplanes, width, 1, groups=first_groups, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            conv_layer(width, width, 3, stride, 1, groups=width, bias=False),
            nn.BatchNorm2d(width),
        )
        self.branch_main_2 = nn.Sequential(
            conv_layer(width, outputs, 1, groups=groups, bias=False), nn.BatchNorm2d(outputs)
        )
        if stride == 2:
            self.branch_proj = nn.AvgPool2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.branch_main_1(x)  # (B, planes/4, H', W')
        # Channel k * groups + j goes to j * (C / groups) + k, so that every group then reads from all groups.
        out = out.unflatten(1, (-1, self.groups)).transpose(1, 2).flatten(1, 2)
        out = self.branch_main_2(out)

        if self.stride == 2:
            return torch.cat((self.branch_proj(x), out.relu_()), 1)
        out += x
        return out.relu_()


class ShuffleNetV1(nn.Module):
    """ShuffleNetV1 for any input size.

    Args:
        groups: of the 1x1 convolutions, 3 or 8.
        num_classes: outputs of the classifier.
        conv_layer: class of the convolutions.
    """

    def __init__(
        self,
        groups: int = 3,
        num_classes: int = 1000,
        conv_layer: type[nn.Conv2d] = nn.Conv2d,
    ) -> None:
        super().__init__()
        if groups not in _WIDTHS:
            raise ValueError(f"groups must be one of {sorted(_WIDTHS)}, got {groups}")
        self.first_conv = nn.Sequential(
            conv_layer(3, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU(inplace=True)
        )
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        units: list[nn.Module] = []
        inplanes = 24
        for planes, repeats in zip(_WIDTHS[groups], (4, 8, 4), strict=True):
            for index in range(repeats):
                # The stem's 24 channels are too few to group.
                first_groups = groups if units else 1
                units.append(
                    ShuffleUnit(inplanes, planes, 2 if index == 0 else 1, groups, first_groups, conv_layer)
                )
                inplanes = planes
        self.features = nn.Sequential(*units)
        self.globalpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Linear(inplanes, num_classes, bias=False))
        self._initialize()

    def _initialize(self) -> None:
        """Normal weights: std 0.01 in stem and classifier, 1 / (channels per group) in other convolutions."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d):
                std = 0.01 if name.startswith("first_conv") else 1 / module.weight.shape[1]
                nn.init.normal_(module.weight, 0, std)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.constant_(module.bias, 1e-4)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)

    def forward_stages(self, x: Tensor) -> tuple[Tensor, ...]:
        """Features at strides 4, 8, 16, 32: the stem and the three stages."""
        x = self.maxpool(self.first_conv(x))
        stages = []
        for unit in self.features:
            if unit.stride == 2:
                stages.append(x)
            x = unit(x)
        return (*stages, x)

    def forward_features(self, x: Tensor) -> Tensor:
        """The last feature map before pooling, (B, C, H/32, W/32)."""
        return self.features(self.maxpool(self.first_conv(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.globalpool(self.forward_features(x)).flatten(1))


def shufflenetv1_1x(**kwargs: Any) -> ShuffleNetV1:
    return ShuffleNetV1(**kwargs)


def ws_shufflenetv1(**kwargs: Any) -> ShuffleNetV1:
    return ShuffleNetV1(conv_layer=WSConv2d, **kwargs)
