"""GC-ResNet: a global context block on the residual branch of every block.

Cao, Xu, Lin, Wei, Hu, "GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond",
arXiv 1904.11492 (Eq. 5; attention pooling, fusion by addition, ratio 1/16).
The block is torchvision's ResNet v1.5 block (stride on the 3x3 convolution); the context follows its last
batch norm, in all four stages (the paper's detectors use stages c3 to c5). ``gc_resnet18`` and
``gc_resnet34`` are not in the paper.

State-dict names, shapes and registration order are those of the published detection backbone.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

__all__ = [
    "MaskConv",
    "GlobalContext",
    "GCBasicBlock",
    "GCBottleneck",
    "GCResNet",
    "gc_resnet18",
    "gc_resnet34",
    "gc_resnet50",
    "gc_resnet101",
    "gc_resnet152",
    "gc_resnext50_32x4d",
    "gc_resnext101_32x4d",
]


class MaskConv(nn.Conv2d):
    """1x1 convolution to one channel, (B, C, H, W) to (B, 1, H, W), as a matrix product.

    A convolution kernel would first copy the map to its own layout, which costs more than the product.
    """

    bias: nn.Parameter

    def __init__(self, channels: int) -> None:
        super().__init__(channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        weight = self.weight.flatten(1).expand(batch, 1, -1)
        logits = torch.bmm(weight, x.flatten(2)) + self.bias
        return logits.reshape(batch, 1, height, width)


class GlobalContext(nn.Module):
    """Adds to every position the same vector, a transform of the attention-weighted mean of all positions.

    With weights s = softmax over the positions of conv_mask(x): out = x + channel_add_conv(sum_p s(p) x(p)).
    It starts as the identity: the last convolution, bias included, is initialised to 0, as by the authors.

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
        hidden = channels // reduction
        self.conv_mask = MaskConv(channels)
        self.channel_add_conv = nn.Sequential(
            nn.Conv2d(channels, hidden, 1),
            nn.LayerNorm([hidden, 1, 1]),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, channels, 1),
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the mask's weight He normal (fan in), its bias and the last convolution to zero."""
        for parameter in (*self.conv_mask.parameters(), *self.channel_add_conv[-1].parameters()):
            nn.init.zeros_(parameter)
        nn.init.kaiming_normal_(self.conv_mask.weight, mode="fan_in", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        logits = self.conv_mask(x).flatten(2)  # (B, 1, H*W)
        # Half precision is too coarse for a softmax over thousands of positions.
        weights = logits.softmax(-1, dtype=torch.promote_types(x.dtype, torch.float32)).to(x.dtype)
        context = torch.bmm(x.flatten(2), weights.transpose(1, 2))  # (B, C, 1)
        return x + self.channel_add_conv(context[..., None])  # (B, C, 1, 1) added to every position


class GCBasicBlock(BasicBlock):
    """Two 3x3 convolutions, the second followed by :class:`GlobalContext`."""

    def __init__(self, inplanes: int, planes: int, *args: Any, reduction: int = 16, **kwargs: Any) -> None:
        super().__init__(inplanes, planes, *args, **kwargs)
        self.gc = GlobalContext(planes, reduction)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)

        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out = self.gc(out)

        out += identity
        return self.relu(out)


class GCBottleneck(Bottleneck):
    """1x1, 3x3, 1x1 convolutions, the last followed by :class:`GlobalContext`."""

    def __init__(self, inplanes: int, planes: int, *args: Any, reduction: int = 16, **kwargs: Any) -> None:
        super().__init__(inplanes, planes, *args, **kwargs)
        self.gc = GlobalContext(planes * self.expansion, reduction)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)

        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out = self.gc(out)

        out += identity
        return self.relu(out)


class GCResNet(ResNet):
    """ResNet of GC blocks; takes every keyword of :class:`torchvision.models.ResNet`.

    Args:
        block: GCBasicBlock or GCBottleneck.
        layers: number of blocks of the four stages.
        reduction: of the gates; at most their number of channels.
    """

    def __init__(self, block: Any, layers: list[int], *args: Any, reduction: int = 16, **kwargs: Any) -> None:
        blocks: Any = functools.partial(block, reduction=reduction)
        blocks.expansion = block.expansion  # the base class reads it
        super().__init__(blocks, layers, *args, **kwargs)
        # The base class has initialised every convolution in the same way.
        for module in self.modules():
            if isinstance(module, GlobalContext):
                module.reset_parameters()

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


def gc_resnet18(**kwargs: Any) -> GCResNet:
    return GCResNet(GCBasicBlock, [2, 2, 2, 2], **kwargs)


def gc_resnet34(**kwargs: Any) -> GCResNet:
    return GCResNet(GCBasicBlock, [3, 4, 6, 3], **kwargs)


def gc_resnet50(**kwargs: Any) -> GCResNet:
    return GCResNet(GCBottleneck, [3, 4, 6, 3], **kwargs)


def gc_resnet101(**kwargs: Any) -> GCResNet:
    return GCResNet(GCBottleneck, [3, 4, 23, 3], **kwargs)


def gc_resnet152(**kwargs: Any) -> GCResNet:
    return GCResNet(GCBottleneck, [3, 8, 36, 3], **kwargs)


def gc_resnext50_32x4d(**kwargs: Any) -> GCResNet:
    return GCResNet(GCBottleneck, [3, 4, 6, 3], **{"groups": 32, "width_per_group": 4, **kwargs})


def gc_resnext101_32x4d(**kwargs: Any) -> GCResNet:
    return GCResNet(GCBottleneck, [3, 4, 23, 3], **{"groups": 32, "width_per_group": 4, **kwargs})
