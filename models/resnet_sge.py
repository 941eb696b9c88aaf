"""SGE-ResNet: spatial group-wise enhancement on the residual branch of every block.

Li, Hu, Yang, "Spatial Group-wise Enhance: Improving Semantic Feature Learning in Convolutional Networks",
arXiv 1905.09646 (Eq. 1-5, G = 64 groups).
The block is torchvision's ResNet v1.5 block (stride on the 3x3 convolution); the gate follows its last batch
norm.

State-dict names, shapes and registration order are those of the published checkpoints.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

__all__ = [
    "SpatialGroupEnhance",
    "SGEBasicBlock",
    "SGEBottleneck",
    "SGEResNet",
    "sge_resnet18",
    "sge_resnet34",
    "sge_resnet50",
    "sge_resnet101",
    "sge_resnet152",
    "sge_resnext50_32x4d",
    "sge_resnext101_32x4d",
]


# These two functions are leaves for torch.fx, which does not know shapes and data types while tracing.


@torch.fx.wrap
def split_groups(x: Tensor, groups: int) -> Tensor:
    """Split the channels into groups: (B, C, H, W) to (B, G, C/G, H, W)."""
    if x.shape[1] % groups:
        raise ValueError(f"{groups} groups do not divide {x.shape[1]} channels")
    return x.unflatten(1, (groups, -1))


@torch.fx.wrap
def normalise(similarity: Tensor) -> Tensor:
    """Normalise over the positions: (s - mean(s)) / (std(s) + 1e-5), unbiased std, in float32 or wider.

    Shape: (B, G, H, W) to (B, G, H, W).
    """
    similarity = similarity.to(torch.promote_types(similarity.dtype, torch.float32))
    centred = similarity - similarity.mean((2, 3), keepdim=True)
    positions = similarity.shape[2] * similarity.shape[3]
    correction = min(1, positions - 1)  # 1: unbiased; 0 on a 1x1 map, so that its std is 0
    return centred / (centred.std((2, 3), correction=correction, keepdim=True) + 1e-5)


class SpatialGroupEnhance(nn.Module):
    """Spatial attention within each of G channel groups.

    s is the similarity of every position with its group's mean vector. Normalised over the positions, scaled
    and shifted per group, it gates the group: out = x * sigmoid(weight * (s - mean(s)) / (std(s) + 1e-5) +
    bias). On a 1x1 map the gate is sigmoid(bias).

    Args:
        groups: G; must divide the channels of the input.

    Shape: (B, C, H, W) to (B, C, H, W).

    Raises:
        ValueError: ``groups`` is less than 1, or, in the forward pass, does not divide the channels.
    """

    def __init__(self, groups: int = 64) -> None:
        super().__init__()
        if groups < 1:
            raise ValueError(f"groups must be at least 1, not {groups}")
        self.groups = groups
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.weight = nn.Parameter(torch.zeros(1, groups, 1, 1))
        self.bias = nn.Parameter(torch.ones(1, groups, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        grouped = split_groups(x, self.groups)  # (B, G, C/G, H, W)
        mean = split_groups(self.avg_pool(x), self.groups)  # (B, G, C/G, 1, 1)
        similarity = (grouped * mean).sum(2)  # (B, G, H, W)
        gate = torch.sigmoid(self.weight * normalise(similarity) + self.bias)  # (B, G, H, W)
        return x * gate.to(x.dtype).repeat_interleave(x.shape[1] // self.groups, 1)  # one gate per channel


class SGEBasicBlock(BasicBlock):
    """Two 3x3 convolutions, the second followed by :class:`SpatialGroupEnhance`."""

    def __init__(self, *args: Any, sge_groups: int = 64, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sge = SpatialGroupEnhance(sge_groups)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)

        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out = self.sge(out)

        out += identity
        return self.relu(out)


class SGEBottleneck(Bottleneck):
    """1x1, 3x3, 1x1 convolutions, the last followed by :class:`SpatialGroupEnhance`."""

    def __init__(self, *args: Any, sge_groups: int = 64, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sge = SpatialGroupEnhance(sge_groups)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)

        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out = self.sge(out)

        out += identity
        return self.relu(out)


class SGEResNet(ResNet):
    """ResNet of SGE blocks; takes every keyword of :class:`torchvision.models.ResNet`.

    Args:
        block: SGEBasicBlock or SGEBottleneck.
        layers: number of blocks of the four stages.
        sge_groups: groups of the gates, a divisor of their channels. ``groups`` is torchvision's keyword for
            the cardinality of the 3x3 convolutions.

    Raises:
        ValueError: ``sge_groups`` is less than 1 or does not divide the channels of stage 1.
    """

    def __init__(
        self, block: Any, layers: list[int], *args: Any, sge_groups: int = 64, **kwargs: Any
    ) -> None:
        channels = 64 * block.expansion  # of stage 1; those of the others are multiples
        if sge_groups < 1 or channels % sge_groups:
            raise ValueError(f"{sge_groups} groups do not divide {channels} channels")
        blocks: Any = functools.partial(block, sge_groups=sge_groups)
        blocks.expansion = block.expansion  # the base class reads it
        super().__init__(blocks, layers, *args, **kwargs)

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


def sge_resnet18(**kwargs: Any) -> SGEResNet:
    return SGEResNet(SGEBasicBlock, [2, 2, 2, 2], **kwargs)


def sge_resnet34(**kwargs: Any) -> SGEResNet:
    return SGEResNet(SGEBasicBlock, [3, 4, 6, 3], **kwargs)


def sge_resnet50(**kwargs: Any) -> SGEResNet:
    return SGEResNet(SGEBottleneck, [3, 4, 6, 3], **kwargs)


def sge_resnet101(**kwargs: Any) -> SGEResNet:
    return SGEResNet(SGEBottleneck, [3, 4, 23, 3], **kwargs)


def sge_resnet152(**kwargs: Any) -> SGEResNet:
    return SGEResNet(SGEBottleneck, [3, 8, 36, 3], **kwargs)


def sge_resnext50_32x4d(**kwargs: Any) -> SGEResNet:
    return SGEResNet(SGEBottleneck, [3, 4, 6, 3], **{"groups": 32, "width_per_group": 4, **kwargs})


def sge_resnext101_32x4d(**kwargs: Any) -> SGEResNet:
    return SGEResNet(SGEBottleneck, [3, 4, 23, 3], **{"groups": 32, "width_per_group": 4, **kwargs})
