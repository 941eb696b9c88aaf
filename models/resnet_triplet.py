"""Triplet-ResNet: triplet attention on the residual branch of every block.

Misra, Nalamada, Arasanipalai, Hou, "Rotate to Attend: Convolutional Triplet Attention Module",
arXiv 2010.03045 (kernel size 7).
The block is torchvision's ResNet v1.5 block (stride on the 3x3 convolution); the gates follow its last batch
norm. As in the authors' code, the batch norms of the gates have momentum 0.01, and the weight of the one over
the positions (``SpatialGate``) starts at 0.

State-dict names, shapes and registration order are those of the authors' checkpoints.
"""

import functools
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

__all__ = [
    "TripletAttention",
    "TripletBasicBlock",
    "TripletBottleneck",
    "TripletResNet",
    "triplet_resnet18",
    "triplet_resnet34",
    "triplet_resnet50",
    "triplet_resnet101",
]


class PlaneGate(nn.Module):
    """Gate sigmoid(bn(conv([maximum, mean]))), with maximum and mean over the first of three axes.

    Shape: (B, C, H, W) to (B, 1, H, W).
    """

    def __init__(self, kernel_size: int) -> None:
        super().__init__()
        conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.spatial = nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(1, momentum=0.01)))

    def forward(self, x: Tensor) -> Tensor:
        statistics = torch.cat((x.max(1, keepdim=True)[0], x.mean(1, keepdim=True)), 1)  # (B, 2, H, W)
        return torch.sigmoid(self.spatial(statistics))


class TripletAttention(nn.Module):
    """The mean of three gated maps, one gate for each pair of the axes C, H, W.

    A gate of (C, W) is computed from maximum and mean over H, one of (H, C) from those over W, one of (H, W)
    from those over C: out = (x * g(C, W) + x * g(H, C) + x * g(H, W)) / 3.

    Args:
        kernel_size: of the three convolutions, an odd number.

    Shape: (B, C, H, W) to (B, C, H, W).

    Raises:
        ValueError: ``kernel_size`` is even or less than 1.
    """

    def __init__(self, kernel_size: int = 7) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd and positive, not {kernel_size}")
        self.ChannelGateH = PlaneGate(kernel_size)
        self.ChannelGateW = PlaneGate(kernel_size)
        self.SpatialGate = PlaneGate(kernel_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as the authors do: He normal (fan out), and SpatialGate's batch norm with weight 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.constant_(module.weight, 0 if module is self.SpatialGate.spatial[-1] else 1)

    def forward(self, x: Tensor) -> Tensor:
        over_h = self.ChannelGateH(x.transpose(1, 2)).transpose(1, 2)  # (B, C, 1, W)
        over_w = self.ChannelGateW(x.transpose(1, 3)).transpose(1, 3)  # (B, C, H, 1)
        over_c = self.SpatialGate(x)  # (B, 1, H, W)
        return x * ((over_h + over_w + over_c) / 3)


class TripletBasicBlock(BasicBlock):
    """Two 3x3 convolutions, the second followed by :class:`TripletAttention`."""

    def __init__(self, *args: Any, kernel_size: int = 7, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.triplet_attention = TripletAttention(kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)

        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out = self.triplet_attention(out)

        out += identity
        return self.relu(out)


class TripletBottleneck(Bottleneck):
    """1x1, 3x3, 1x1 convolutions, the last followed by :class:`TripletAttention`."""

    def __init__(self, *args: Any, kernel_size: int = 7, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.triplet_attention = TripletAttention(kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)

        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out = self.triplet_attention(out)

        out += identity
        return self.relu(out)


class TripletResNet(ResNet):
    """ResNet of triplet-attention blocks; takes every keyword of :class:`torchvision.models.ResNet`.

    Initialised as in the authors' code: torch's default for the downsampling convolutions, He normal (fan in)
    and bias 0 for the classifier, He normal (fan out) for all other convolutions.

    Args:
        block: TripletBasicBlock or TripletBottleneck.
        layers: number of blocks of the four stages.
        kernel_size: of the gates' convolutions, an odd number.
    """

    def __init__(
        self, block: Any, layers: list[int], *args: Any, kernel_size: int = 7, **kwargs: Any
    ) -> None:
        blocks: Any = functools.partial(block, kernel_size=kernel_size)
        blocks.expansion = block.expansion  # the base class reads it
        super().__init__(blocks, layers, *args, **kwargs)
        nn.init.kaiming_normal_(self.fc.weight, mode="fan_in", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)
        for module in self.modules():
            if isinstance(module, TripletAttention):
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


def triplet_resnet18(**kwargs: Any) -> TripletResNet:
    return TripletResNet(TripletBasicBlock, [2, 2, 2, 2], **kwargs)


def triplet_resnet34(**kwargs: Any) -> TripletResNet:
    return TripletResNet(TripletBasicBlock, [3, 4, 6, 3], **kwargs)


def triplet_resnet50(**kwargs: Any) -> TripletResNet:
    return TripletResNet(TripletBottleneck, [3, 4, 6, 3], **kwargs)


def triplet_resnet101(**kwargs: Any) -> TripletResNet:
    return TripletResNet(TripletBottleneck, [3, 4, 23, 3], **kwargs)
