"""ECA-ResNet: efficient channel attention on the residual branch of every block.

Wang, Wu, Zhu, Li, Zuo, Hu, "ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks",
arXiv 1910.03151 (Eq. 9 and 12, gamma = 2, b = 1).
The block is torchvision's ResNet v1.5 block (stride on the 3x3 convolution); the gate follows its last batch
norm. Differs from the paper: the kernels of the four stages are those of the published checkpoints, which
Eq. 12 gives for none of the five nets (``kernel_size=None`` takes Eq. 12).

State-dict names, shapes and registration order are those of the authors' checkpoints.
"""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

__all__ = [
    "ECALayer",
    "ECABasicBlock",
    "ECABottleneck",
    "ECAResNet",
    "eca_resnet18",
    "eca_resnet34",
    "eca_resnet50",
    "eca_resnet101",
    "eca_resnet152",
]

KernelSize = int | Sequence[int] | None


class ECALayer(nn.Module):
    """Channel attention: out = x * sigmoid(conv1d(GAP(x))), a convolution over neighbouring channels.

    Args:
        channels: C of the input.
        kernel_size: k of the convolution, an odd number. None: the odd number nearest to (log2(C) + 1) / 2,
            the larger of two.

    Shape: (B, C, H, W) to (B, C, H, W).

    Raises:
        ValueError: ``kernel_size`` is even or less than 1.
    """

    def __init__(self, channels: int, kernel_size: int | None = None) -> None:
        super().__init__()
        if kernel_size is None:
            kernel_size = 2 * int((math.log2(channels) + 1) / 4) + 1
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd and positive, not {kernel_size}")
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.conv = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        squeezed = self.avg_pool(x).flatten(2).transpose(1, 2)  # (B, 1, C)
        gate = self.conv(squeezed).sigmoid().transpose(1, 2)[..., None]  # (B, C, 1, 1)
        return x * gate


class ECABasicBlock(BasicBlock):
    """Two 3x3 convolutions, the second followed by :class:`ECALayer`."""

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        *args: Any,
        kernel_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(inplanes, planes, stride, None, *args, **kwargs)
        self.eca = ECALayer(planes, kernel_size)
        self.downsample = downsample  # registered last, as in the authors' checkpoints

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)

        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out = self.eca(out)

        out += identity
        return self.relu(out)


class ECABottleneck(Bottleneck):
    """1x1, 3x3, 1x1 convolutions, the last followed by :class:`ECALayer`."""

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        *args: Any,
        kernel_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(inplanes, planes, stride, None, *args, **kwargs)
        self.eca = ECALayer(planes * self.expansion, kernel_size)
        self.downsample = downsample  # registered last, as in the authors' checkpoints

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)

        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out = self.eca(out)

        out += identity
        return self.relu(out)


class ECAResNet(ResNet):
    """ResNet of ECA blocks; takes every keyword of :class:`torchvision.models.ResNet`.

    Args:
        block: ECABasicBlock or ECABottleneck.
        layers: number of blocks of the four stages.
        kernel_size: of the gates: one for all stages, one for each of the four, or None, which follows from
            the number of channels.

    Raises:
        ValueError: ``kernel_size`` has another number of values, or one that is even or less than 1.
    """

    def __init__(
        self, block: Any, layers: list[int], *args: Any, kernel_size: KernelSize = None, **kwargs: Any
    ) -> None:
        sizes = [kernel_size] * 4 if kernel_size is None or isinstance(kernel_size, int) else [*kernel_size]
        if len(sizes) != 4:
            raise ValueError(f"kernel_size must be one number or one for each of 4 stages, not {kernel_size}")
        by_planes = dict(zip((64, 128, 256, 512), sizes, strict=True))

        def of_stage(inplanes: int, planes: int, *args: Any, **kwargs: Any) -> nn.Module:
            return block(inplanes, planes, *args, kernel_size=by_planes[planes], **kwargs)

        blocks: Any = of_stage
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


def eca_resnet18(*, kernel_size: KernelSize = (3, 5, 7, 7), **kwargs: Any) -> ECAResNet:
    return ECAResNet(ECABasicBlock, [2, 2, 2, 2], kernel_size=kernel_size, **kwargs)


def eca_resnet34(*, kernel_size: KernelSize = (3, 3, 5, 7), **kwargs: Any) -> ECAResNet:
    return ECAResNet(ECABasicBlock, [3, 4, 6, 3], kernel_size=kernel_size, **kwargs)


def eca_resnet50(*, kernel_size: KernelSize = (3, 5, 5, 7), **kwargs: Any) -> ECAResNet:
    return ECAResNet(ECABottleneck, [3, 4, 6, 3], kernel_size=kernel_size, **kwargs)


def eca_resnet101(*, kernel_size: KernelSize = (3, 3, 5, 7), **kwargs: Any) -> ECAResNet:
    return ECAResNet(ECABottleneck, [3, 4, 23, 3], kernel_size=kernel_size, **kwargs)


def eca_resnet152(*, kernel_size: KernelSize = (3, 3, 5, 7), **kwargs: Any) -> ECAResNet:
    return ECAResNet(ECABottleneck, [3, 8, 36, 3], kernel_size=kernel_size, **kwargs)
