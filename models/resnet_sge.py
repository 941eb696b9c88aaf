"""SGE-ResNet: spatial group-wise enhancement on the residual branch of every block.

Li, Hu, Yang, "Spatial Group-wise Enhance: Improving Semantic Feature Learning in Convolutional Networks",
arXiv 1905.09646 (Eq. 1-5, G = 64 groups).
The block is torchvision's ResNet v1.5 block (stride on the 3x3 convolution); the gate follows its last batch
norm.

State-dict names, shapes and registration order are those of the published checkpoints.
"""

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


class SpatialGroupEnhance(nn.Module):
    """Spatial attention within each of G channel groups.

    The similarity of every position with the group's mean vector, normalised over the positions, is scaled
    and shifted per group and gates the group: out = x * sigmoid(weight * (s - mean(s)) / (std(s) + 1e-5) +
    bias). A 1x1 map has no spread: its gate is sigmoid(bias).

    Args:
        groups: G; must divide the channels of the input.

    Shape: (B, C, H, W) to (B, C, H, W).
    """

    def __init__(self, groups: int = 64) -> None:
        super().__init__()
        self.groups = groups
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.weight = nn.Parameter(torch.zeros(1, groups, 1, 1))
        self.bias = nn.Parameter(torch.ones(1, groups, 1, 1))

    def formula(self, x: Tensor) -> Tensor:
        """The same in plain steps, for compilers: they fuse these, but not the products of forward()."""
        grouped = x.unflatten(1, (self.groups, -1))  # (B, G, C/G, H, W)
        mean = self.avg_pool(x).unflatten(1, (self.groups, -1))  # (B, G, C/G, 1, 1)
        gate = self.gate((grouped * mean).sum(2))
        return (grouped * gate.unsqueeze(2)).flatten(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return self.formula(x)
        batch, _, height, width = x.shape
        grouped = x.reshape(batch * self.groups, -1, height * width)  # (B*G, C/G, H*W)
        mean = self.avg_pool(x).reshape(batch * self.groups, 1, -1)  # (B*G, 1, C/G)
        similarity = torch.bmm(mean, grouped)  # (B*G, 1, H*W), without materialising x * mean
        gate = self.gate(similarity.reshape(batch, self.groups, height, width))
        out = (grouped * gate.reshape(batch * self.groups, 1, -1)).reshape(x.shape)
        if x.is_contiguous(memory_format=torch.channels_last):
            out = out.contiguous(memory_format=torch.channels_last)  # spare the next layers the other layout
        return out

    def gate(self, similarity: Tensor) -> Tensor:
        """The gate in (0, 1), (B, G, H, W), of a similarity map of that shape."""
        s = similarity.float() if similarity.dtype in (torch.float16, torch.bfloat16) else similarity
        # The unbiased standard deviation, but 0 instead of 0/0 on a 1x1 map.
        std, mean = torch.std_mean(s, (2, 3), correction=min(1, s.shape[2] * s.shape[3] - 1), keepdim=True)
        return torch.sigmoid((s - mean) / (std + 1e-5) * self.weight + self.bias).to(similarity.dtype)


class SGEBasicBlock(BasicBlock):
    """Two 3x3 convolutions, the second followed by :class:`SpatialGroupEnhance`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sge = SpatialGroupEnhance(64)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)

        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out = self.sge(out)

        out += identity
        return self.relu(out)


class SGEBottleneck(Bottleneck):
    """1x1, 3x3, 1x1 convolutions, the last followed by :class:`SpatialGroupEnhance`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sge = SpatialGroupEnhance(64)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)

        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out = self.sge(out)

        out += identity
        return self.relu(out)


class SGEResNet(ResNet):
    """ResNet of SGE blocks; takes every keyword of :class:`torchvision.models.ResNet`."""

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
