"""BAM-ResNet: an attention module after each of the first three stages.

Park, Woo, Lee, Kweon, "BAM: Bottleneck Attention Module", arXiv 1807.06514 (Eq. 1-4, r = 16, dilation 4).
The blocks are torchvision's ResNet v1.5 blocks.
Differs from the paper: the published networks multiply the channel and the spatial map before the sigmoid,
where the paper adds them (``combine="sum"``). Differs from the published code: takes images of any size and
shape.

State-dict names, shapes and registration order are those of the published checkpoints.
Training needs at least two images per process: the channel branch has a batch norm over one value per image.
"""

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

__all__ = [
    "BAM",
    "BAMResNet",
    "bam_resnet18",
    "bam_resnet34",
    "bam_resnet50",
    "bam_resnet101",
    "bam_resnet152",
]

Block = type[BasicBlock | Bottleneck]


class ChannelAttention(nn.Module):
    """Channel attention map before the sigmoid: W2 relu(bn(W1 GAP(x) + b1)) + b2.

    Shape: (B, C, H, W) to (B, C, 1, 1).
    """

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        hidden = channels // reduction
        layers = OrderedDict(
            gate_c_fc_0=nn.Linear(channels, hidden),
            gate_c_bn_1=nn.BatchNorm1d(hidden),
            gate_c_relu_1=nn.ReLU(inplace=True),
            gate_c_fc_final=nn.Linear(hidden, channels),
        )
        self.gate_c = nn.Sequential(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.gate_c(x.mean((2, 3)))[:, :, None, None]


class SpatialAttention(nn.Module):
    """Spatial attention map before the sigmoid: 1x1 to C/r channels, two dilated 3x3, 1x1 to one channel.

    Shape: (B, C, H, W) to (B, 1, H, W).
    """

    def __init__(self, channels: int, reduction: int, dilation: int) -> None:
        super().__init__()
        hidden = channels // reduction
        layers = OrderedDict(
            gate_s_conv_reduce0=nn.Conv2d(channels, hidden, 1),
            gate_s_bn_reduce0=nn.BatchNorm2d(hidden),
            gate_s_relu_reduce0=nn.ReLU(inplace=True),
            gate_s_conv_di_0=nn.Conv2d(hidden, hidden, 3, padding=dilation, dilation=dilation),
            gate_s_bn_di_0=nn.BatchNorm2d(hidden),
            gate_s_relu_di_0=nn.ReLU(inplace=True),
            gate_s_conv_di_1=nn.Conv2d(hidden, hidden, 3, padding=dilation, dilation=dilation),
            gate_s_bn_di_1=nn.BatchNorm2d(hidden),
            gate_s_relu_di_1=nn.ReLU(inplace=True),
            gate_s_conv_final=nn.Conv2d(hidden, 1, 1),
        )
        self.gate_s = nn.Sequential(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.gate_s(x)


class BAM(nn.Module):
    """Channel and spatial attention in parallel: out = x * (1 + sigmoid(Mc * Ms)).

    Args:
        channels: C of the input; at least ``reduction``.
        reduction: ratio between C and the hidden width of both branches.
        dilation: of the 3x3 convolutions of the spatial branch.
        combine: ``"product"`` of the two maps, as in the published networks, or ``"sum"``, as in the paper.

    Shape: (B, C, H, W) to (B, C, H, W).

    Raises:
        ValueError: ``combine`` is neither, ``dilation`` or ``reduction`` is less than 1, or ``reduction``
            leaves no hidden channel.
    """

    def __init__(
        self, channels: int, reduction: int = 16, dilation: int = 4, combine: str = "product"
    ) -> None:
        super().__init__()
        if combine not in ("product", "sum"):
            raise ValueError(f'combine is "product" or "sum", not {combine!r}')
        if not 1 <= reduction <= channels:
            raise ValueError(f"reduction must be between 1 and the {channels} channels, not {reduction}")
        if dilation < 1:
            raise ValueError(f"dilation must be at least 1, not {dilation}")
        self.combine = combine
        self.channel_att = ChannelAttention(channels, reduction)
        self.spatial_att = SpatialAttention(channels, reduction, dilation)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        channel = self.channel_att(x)  # (B, C, 1, 1)
        spatial = self.spatial_att(x)  # (B, 1, H, W)
        attention = channel * spatial if self.combine == "product" else channel + spatial
        return x * (1 + torch.sigmoid(attention))


class BAMResNet(ResNet):
    """ResNet with :class:`BAM` after its first three stages; takes every keyword of torchvision's ResNet.

    Initialised as in the published code: torch's default for the downsampling convolutions, He normal (fan
    in) and bias 0 for the classifier, He normal (fan out) for all other convolutions.

    Args:
        block: BasicBlock or Bottleneck.
        layers: number of blocks of the four stages.
        combine, reduction, dilation: of :class:`BAM`.
    """

    def __init__(
        self,
        block: Block,
        layers: list[int],
        combine: str = "product",
        reduction: int = 16,
        dilation: int = 4,
        **kwargs: Any,
    ) -> None:
        super().__init__(block, layers, **kwargs)
        self.bam1 = BAM(64 * block.expansion, reduction, dilation, combine)
        self.bam2 = BAM(128 * block.expansion, reduction, dilation, combine)
        self.bam3 = BAM(256 * block.expansion, reduction, dilation, combine)
        for name in ("layer1", "layer2", "layer3", "layer4", "avgpool", "fc"):
            setattr(self, name, self._modules.pop(name))  # after the attention, as in published checkpoints

        nn.init.kaiming_normal_(self.fc.weight, mode="fan_in", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)
        for module in self.modules():
            if isinstance(module, BasicBlock | Bottleneck) and module.downsample is not None:
                module.downsample[0].reset_parameters()

    def forward_stages(self, x: Tensor) -> tuple[Tensor, ...]:
        """Outputs c2, c3, c4, c5 of the four stages, attention included, at strides 4, 8, 16, 32."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        c2 = self.bam1(self.layer1(x))
        c3 = self.bam2(self.layer2(c2))
        c4 = self.bam3(self.layer3(c3))
        return c2, c3, c4, self.layer4(c4)

    def forward_features(self, x: Tensor) -> Tensor:
        """The last feature map before pooling, (B, C, H/32, W/32)."""
        return self.forward_stages(x)[-1]

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.avgpool(self.forward_features(x)).flatten(1))


def bam_resnet18(**kwargs: Any) -> BAMResNet:
    return BAMResNet(BasicBlock, [2, 2, 2, 2], **kwargs)


def bam_resnet34(**kwargs: Any) -> BAMResNet:
    return BAMResNet(BasicBlock, [3, 4, 6, 3], **kwargs)


def bam_resnet50(**kwargs: Any) -> BAMResNet:
    return BAMResNet(Bottleneck, [3, 4, 6, 3], **kwargs)


def bam_resnet101(**kwargs: Any) -> BAMResNet:
    return BAMResNet(Bottleneck, [3, 4, 23, 3], **kwargs)


def bam_resnet152(**kwargs: Any) -> BAMResNet:
    return BAMResNet(Bottleneck, [3, 8, 36, 3], **kwargs)
