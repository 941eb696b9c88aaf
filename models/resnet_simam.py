"""SimAM-ResNet: a gate without parameters on the 3x3 convolution of every block.

Yang, Zhang, Li, Xie, "SimAM: A Simple, Parameter-Free Attention Module for Convolutional Neural Networks",
International Conference on Machine Learning 2021, PMLR 139:11863.
The block is torchvision's ResNet v1.5 block (stride on the 3x3 convolution). As in the authors' code, the
gate stands between the 3x3 convolution (the second of a basic block) and its batch norm, and the nets have
lambda = 0.1. Differs from the authors' code: the variance of a 1x1 map counts as 0, where theirs gives NaN.

State-dict names, shapes and registration order are those of the authors' checkpoints.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

__all__ = [
    "SimAM",
    "SimAMBasicBlock",
    "SimAMBottleneck",
    "SimAMResNet",
    "simam_resnet18",
    "simam_resnet34",
    "simam_resnet50",
    "simam_resnet101",
    "simam_resnext50_32x4d",
]


@torch.fx.wrap  # a leaf for torch.fx, which does not know shapes and data types while tracing
def inverse_energy(x: Tensor, lam: float) -> Tensor:
    """How much each position differs from the others of its channel: d / (4 (v + lam)) + 1/2.

    d is the squared distance from the channel's mean, v the unbiased variance, in float32 or wider.

    Shape: (B, C, H, W) to (B, C, H, W).
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    distance = (wide - wide.mean((2, 3), keepdim=True)).square()
    divisor = max(x.shape[2] * x.shape[3] - 1, 1)  # 1 on a 1x1 map, whose variance is 0
    variance = distance.sum((2, 3), keepdim=True) / divisor
    return distance / (4 * (variance + lam)) + 0.5


class SimAM(nn.Module):
    """Attention for each value of the map, without parameters.

    With d = (x - mean(x))^2 and the unbiased variance v over the positions of a channel:
    out = x * sigmoid(d / (4 (v + lam)) + 1/2).

    Args:
        lam: lambda, which keeps the gate of a map without spread finite; greater than 0.

    Shape: (B, C, H, W) to (B, C, H, W).

    Raises:
        ValueError: ``lam`` is not greater than 0.
    """

    def __init__(self, lam: float = 1e-4) -> None:
        super().__init__()
        if not lam > 0:
            raise ValueError(f"lam must be greater than 0, not {lam}")
        self.lam = lam

    def extra_repr(self) -> str:
        return f"lam={self.lam:g}"

    def forward(self, x: Tensor) -> Tensor:
        gate = inverse_energy(x, self.lam).sigmoid()  # (B, C, H, W)
        return x * gate.to(x.dtype)


class SimAMBasicBlock(BasicBlock):
    """Two 3x3 convolutions, the second followed by :class:`SimAM`, then its batch norm."""

    def __init__(self, *args: Any, lam: float = 0.1, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conv2: nn.Module = nn.Sequential(self.conv2, SimAM(lam))

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)

        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))  # with the gate

        out += identity
        return self.relu(out)


class SimAMBottleneck(Bottleneck):
    """1x1, 3x3, 1x1 convolutions, the second followed by :class:`SimAM`, then its batch norm."""

    def __init__(self, *args: Any, lam: float = 0.1, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conv2: nn.Module = nn.Sequential(self.conv2, SimAM(lam))

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)

        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))  # with the gate
        out = self.bn3(self.conv3(out))

        out += identity
        return self.relu(out)


class SimAMResNet(ResNet):
    """ResNet of SimAM blocks; takes every keyword of :class:`torchvision.models.ResNet`.

    Args:
        block: SimAMBasicBlock or SimAMBottleneck.
        layers: number of blocks of the four stages.
        lam: lambda of the gates; greater than 0.
    """

    def __init__(self, block: Any, layers: list[int], *args: Any, lam: float = 0.1, **kwargs: Any) -> None:
        blocks: Any = functools.partial(block, lam=lam)
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


def simam_resnet18(**kwargs: Any) -> SimAMResNet:
    return SimAMResNet(SimAMBasicBlock, [2, 2, 2, 2], **kwargs)


def simam_resnet34(**kwargs: Any) -> SimAMResNet:
    return SimAMResNet(SimAMBasicBlock, [3, 4, 6, 3], **kwargs)


def simam_resnet50(**kwargs: Any) -> SimAMResNet:
    return SimAMResNet(SimAMBottleneck, [3, 4, 6, 3], **kwargs)


def simam_resnet101(**kwargs: Any) -> SimAMResNet:
    return SimAMResNet(SimAMBottleneck, [3, 4, 23, 3], **kwargs)


def simam_resnext50_32x4d(**kwargs: Any) -> SimAMResNet:
    return SimAMResNet(SimAMBottleneck, [3, 4, 6, 3], **{"groups": 32, "width_per_group": 4, **kwargs})
