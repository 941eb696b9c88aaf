"""SE-ResNet: squeeze-and-excitation on the residual branch of every block.

Hu, Shen, Albanie, Sun, Wu, "Squeeze-and-Excitation Networks", arXiv 1709.01507 (Eq. 2-4, reduction r = 16).
The block is torchvision's ResNet v1.5 block (stride on the 3x3 convolution); the gate follows its last batch
norm. Differs from the paper: the two fully connected layers have biases.

State-dict names, shapes and registration order are those of the published checkpoints.
"""

import functools
from typing import Any

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

__all__ = [
    "SELayer",
    "SEBasicBlock",
    "SEBottleneck",
    "SEResNet",
    "se_resnet18",
    "se_resnet34",
    "se_resnet50",
    "se_resnet101",
    "se_resnet152",
    "se_resnext50_32x4d",
    "se_resnext101_32x4d",
]


class SELayer(nn.Module):
    """Channel attention: out = x * sigmoid(W2 relu(W1 GAP(x) + b1) + b2).

    Args:
        channels: C of the input; at least ``reduction``.
        reduction: ratio between C and the hidden width.

    Shape: (B, C, H, W) to (B, C, H, W).

    Raises:
        ValueError: ``reduction`` is less than 1 or leaves no hidden channel.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        if not 1 <= reduction <= channels:
            raise ValueError(f"reduction must be between 1 and the {channels} channels, not {reduction}")
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(
            nn.Linear(channels, channels // reduction),
            nn.ReLU(inplace=True),
            nn.Linear(channels // reduction, channels),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        squeezed = self.avg_pool(x).flatten(1)  # (B, C)
        gate = self.fc(squeezed)[:, :, None, None]  # (B, C, 1, 1)
        return x * gate


class SEBasicBlock(BasicBlock):
    """Two 3x3 convolutions, the second followed by :class:`SELayer`."""

    def __init__(self, inplanes: int, planes: int, *args: Any, reduction: int = 16, **kwargs: Any) -> None:
        super().__init__(inplanes, planes, *args, **kwargs)
        self.se = SELayer(planes, reduction)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)

        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out = self.se(out)

        out += identity
        return self.relu(out)


class SEBottleneck(Bottleneck):
    """1x1, 3x3, 1x1 convolutions, the last followed by :class:`SELayer`."""

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        *args: Any,
        reduction: int = 16,
        **kwargs: Any,
    ) -> None:
        super().__init__(inplanes, planes, stride, None, *args, **kwargs)
        self.se = SELayer(planes * self.expansion, reduction)
        self.downsample = downsample  # registered last, as in the published checkpoints

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)

        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out = self.se(out)

        out += identity
        return self.relu(out)


class SEResNet(ResNet):
    """ResNet of SE blocks; takes every keyword of :class:`torchvision.models.ResNet`.

    Args:
        block: SEBasicBlock or SEBottleneck.
        layers: number of blocks of the four stages.
        reduction: of the gates; at most their number of channels.
    """

    def __init__(self, block: Any, layers: list[int], *args: Any, reduction: int = 16, **kwargs: Any) -> None:
        blocks: Any = functools.partial(block, reduction=reduction)
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


def se_resnet18(**kwargs: Any) -> SEResNet:
    return SEResNet(SEBasicBlock, [2, 2, 2, 2], **kwargs)


def se_resnet34(**kwargs: Any) -> SEResNet:
    return SEResNet(SEBasicBlock, [3, 4, 6, 3], **kwargs)


def se_resnet50(**kwargs: Any) -> SEResNet:
    return SEResNet(SEBottleneck, [3, 4, 6, 3], **kwargs)


def se_resnet101(**kwargs: Any) -> SEResNet:
    return SEResNet(SEBottleneck, [3, 4, 23, 3], **kwargs)


def se_resnet152(**kwargs: Any) -> SEResNet:
    return SEResNet(SEBottleneck, [3, 8, 36, 3], **kwargs)


def se_resnext50_32x4d(**kwargs: Any) -> SEResNet:
    return SEResNet(SEBottleneck, [3, 4, 6, 3], **{"groups": 32, "width_per_group": 4, **kwargs})


def se_resnext101_32x4d(**kwargs: Any) -> SEResNet:
    return SEResNet(SEBottleneck, [3, 4, 23, 3], **{"groups": 32, "width_per_group": 4, **kwargs})
