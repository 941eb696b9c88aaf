"""CBAM-ResNet: a channel gate, then a spatial gate, on the residual branch of every block.

Woo, Park, Lee, Kweon, "CBAM: Convolutional Block Attention Module", arXiv 1807.06521 (Eq. 1-3, r = 16).
The block is torchvision's ResNet v1.5 block (stride on the 3x3 convolution); the gates follow its last batch
norm. Differs from the paper: the spatial gate stacks the maximum before the mean and has a batch norm, whose
weight is initialised to 0, so that the gate starts at 0.5.

State-dict names, shapes and registration order are those of the published checkpoints.
"""

import functools
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

__all__ = [
    "CBAM",
    "CBAMBasicBlock",
    "CBAMBottleneck",
    "CBAMResNet",
    "cbam_resnet18",
    "cbam_resnet34",
    "cbam_resnet50",
    "cbam_resnet101",
    "cbam_resnet152",
    "cbam_resnext50_32x4d",
    "cbam_resnext101_32x4d",
]


class GlobalMaxPool(nn.AdaptiveMaxPool2d):
    """Maximum over the positions. Unlike the base class, its gradient is deterministic on a GPU.

    Shape: (B, C, H, W) to (B, C, 1, 1).
    """

    def __init__(self) -> None:
        super().__init__(1)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).max(2)[0][:, :, None, None]


class ChannelGate(nn.Module):
    """Channel gate sigmoid(mlp(mean) + mlp(maximum)), with mean and maximum over the positions.

    Shape: (B, C, H, W) to (B, C, 1, 1).
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.max_pool = GlobalMaxPool()
        self.mlp = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels, channels // reduction),
            nn.ReLU(inplace=True),
            nn.Linear(channels // reduction, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        logits = self.mlp(self.avg_pool(x)) + self.mlp(self.max_pool(x))  # (B, C)
        return torch.sigmoid(logits)[:, :, None, None]


class SpatialGate(nn.Module):
    """Spatial gate sigmoid(bn(conv7x7([maximum, mean]))), with maximum and mean over the channels.

    Shape: (B, C, H, W) to (B, 1, H, W).
    """

    def __init__(self) -> None:
        super().__init__()
        conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.spatial = nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(1, momentum=0.01)))

    def forward(self, x: Tensor) -> Tensor:
        statistics = torch.cat((x.max(1, keepdim=True)[0], x.mean(1, keepdim=True)), 1)  # (B, 2, H, W)
        return torch.sigmoid(self.spatial(statistics))


class CBAM(nn.Module):
    """Channel, then spatial attention: out = x * Mc * Ms, where Ms sees x * Mc.

    Args:
        channels: C of the input; at least ``reduction``.
        reduction: ratio between C and the hidden width of the channel gate.

    Shape: (B, C, H, W) to (B, C, H, W).

    Raises:
        ValueError: ``reduction`` is less than 1 or leaves no hidden channel.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        if not 1 <= reduction <= channels:
            raise ValueError(f"reduction must be between 1 and the {channels} channels, not {reduction}")
        self.ChannelGate = ChannelGate(channels, reduction)
        self.SpatialGate = SpatialGate()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as published: biases and the batch norm's weight 0, the convolution He normal."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                module.reset_parameters()
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.zeros_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.ChannelGate(x)
        return x * self.SpatialGate(x)


class CBAMBasicBlock(BasicBlock):
    """Two 3x3 convolutions, the second followed by :class:`CBAM`."""

    def __init__(self, inplanes: int, planes: int, *args: Any, reduction: int = 16, **kwargs: Any) -> None:
        super().__init__(inplanes, planes, *args, **kwargs)
        self.cbam = CBAM(planes, reduction)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)

        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out = self.cbam(out)

        out += identity
        return self.relu(out)


class CBAMBottleneck(Bottleneck):
    """1x1, 3x3, 1x1 convolutions, the last followed by :class:`CBAM`."""

    def __init__(self, inplanes: int, planes: int, *args: Any, reduction: int = 16, **kwargs: Any) -> None:
        super().__init__(inplanes, planes, *args, **kwargs)
        self.cbam = CBAM(planes * self.expansion, reduction)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)

        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out = self.cbam(out)

        out += identity
        return self.relu(out)


class CBAMResNet(ResNet):
    """ResNet of CBAM blocks; takes every keyword of :class:`torchvision.models.ResNet`.

    Initialised as in the published code: torch's default for the downsampling convolutions, He normal (fan
    in) and bias 0 for the classifier, He normal (fan out) for all other convolutions.

    Args:
        block: CBAMBasicBlock or CBAMBottleneck.
        layers: number of blocks of the four stages.
        reduction: of the channel gates; at most their number of channels.
    """

    def __init__(self, block: Any, layers: list[int], *args: Any, reduction: int = 16, **kwargs: Any) -> None:
        blocks: Any = functools.partial(block, reduction=reduction)
        blocks.expansion = block.expansion  # the base class reads it
        super().__init__(blocks, layers, *args, **kwargs)
        nn.init.kaiming_normal_(self.fc.weight, mode="fan_in", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)
        for module in self.modules():
            if isinstance(module, CBAM):
                module.reset_parameters()  # the base class has set the weights of all batch norms to 1
            elif isinstance(module, BasicBlock | Bottleneck) and module.downsample is not None:
                module.downsample[0].reset_parameters()

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


def cbam_resnet18(**kwargs: Any) -> CBAMResNet:
    return CBAMResNet(CBAMBasicBlock, [2, 2, 2, 2], **kwargs)


def cbam_resnet34(**kwargs: Any) -> CBAMResNet:
    return CBAMResNet(CBAMBasicBlock, [3, 4, 6, 3], **kwargs)


def cbam_resnet50(**kwargs: Any) -> CBAMResNet:
    return CBAMResNet(CBAMBottleneck, [3, 4, 6, 3], **kwargs)


def cbam_resnet101(**kwargs: Any) -> CBAMResNet:
    return CBAMResNet(CBAMBottleneck, [3, 4, 23, 3], **kwargs)


def cbam_resnet152(**kwargs: Any) -> CBAMResNet:
    return CBAMResNet(CBAMBottleneck, [3, 8, 36, 3], **kwargs)


def cbam_resnext50_32x4d(**kwargs: Any) -> CBAMResNet:
    return CBAMResNet(CBAMBottleneck, [3, 4, 6, 3], **{"groups": 32, "width_per_group": 4, **kwargs})


def cbam_resnext101_32x4d(**kwargs: Any) -> CBAMResNet:
    return CBAMResNet(CBAMBottleneck, [3, 4, 23, 3], **{"groups": 32, "width_per_group": 4, **kwargs})
