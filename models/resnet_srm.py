"""SRM-ResNet: a style-based recalibration module on the residual branch of every block.

Lee, Kim, Nam, "SRM: A Style-based Recalibration Module for Convolutional Neural Networks", arXiv 1903.10829
(Eq. 1-5).
The block is torchvision's ResNet v1.5 block (stride on the 3x3 convolution); the gate follows its last batch
norm. As in the authors' code, the standard deviation is sqrt(unbiased variance + 1e-5), and the channel-wise
fully connected layer starts at zero, so that every gate starts at 1/2.

State-dict names, shapes and registration order are those of the authors' code.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

__all__ = [
    "SRMLayer",
    "SRMBasicBlock",
    "SRMBottleneck",
    "SRMResNet",
    "srm_resnet18",
    "srm_resnet34",
    "srm_resnet50",
    "srm_resnet101",
    "srm_resnet152",
    "srm_resnext50_32x4d",
    "srm_resnext101_32x4d",
]


@torch.fx.wrap  # a leaf for torch.fx, which does not know data types while tracing
def style(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sqrt(unbiased variance + 1e-5) of each channel, in float32 or wider.

    Shape: (B, C, H, W) to (B, C) and (B, C).
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    mean = x.mean((2, 3), keepdim=True, dtype=wide)
    divisor = max(x.shape[2] * x.shape[3] - 1, 1)  # 1 on a 1x1 map, whose variance is 0
    variance = (x - mean.to(x.dtype)).square().sum((2, 3), dtype=wide) / divisor
    return mean.flatten(1), (variance + 1e-5).sqrt()


class SRMLayer(nn.Module):
    """Channel attention from the style of each channel, its mean and standard deviation over the positions.

    With z = cfc[:, 0] * mean + cfc[:, 1] * std: out = x * sigmoid(batch_norm(z)). In training the batch norm
    sees one value per sample and channel, so B must be at least 2. The variance of a 1x1 map counts as 0.

    Args:
        channels: C of the input.

    Shape: (B, C, H, W) to (B, C, H, W).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.cfc = nn.Parameter(torch.zeros(channels, 2))
        self.bn = nn.BatchNorm2d(channels)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that the authors train without weight decay."""
        return {"cfc", "bn.weight", "bn.bias"}

    def forward(self, x: Tensor) -> Tensor:
        mean, std = style(x)  # (B, C) each
        z = self.cfc[:, 0] * mean + self.cfc[:, 1] * std
        gate = self.bn(z[:, :, None, None].to(self.bn.weight.dtype)).sigmoid()  # (B, C, 1, 1)
        return x * gate.to(x.dtype)


class SRMBasicBlock(BasicBlock):
    """Two 3x3 convolutions, the second followed by :class:`SRMLayer`."""

    def __init__(self, inplanes: int, planes: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(inplanes, planes, *args, **kwargs)
        self.rclb = SRMLayer(planes)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)

        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out = self.rclb(out)

        out += identity
        return self.relu(out)


class SRMBottleneck(Bottleneck):
    """1x1, 3x3, 1x1 convolutions, the last followed by :class:`SRMLayer`."""

    def __init__(self, inplanes: int, planes: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(inplanes, planes, *args, **kwargs)
        self.rclb = SRMLayer(planes * self.expansion)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)

        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out = self.rclb(out)

        out += identity
        return self.relu(out)


class SRMResNet(ResNet):
    """ResNet of SRM blocks; takes every keyword of :class:`torchvision.models.ResNet`."""

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


def srm_resnet18(**kwargs: Any) -> SRMResNet:
    return SRMResNet(SRMBasicBlock, [2, 2, 2, 2], **kwargs)


def srm_resnet34(**kwargs: Any) -> SRMResNet:
    return SRMResNet(SRMBasicBlock, [3, 4, 6, 3], **kwargs)


def srm_resnet50(**kwargs: Any) -> SRMResNet:
    return SRMResNet(SRMBottleneck, [3, 4, 6, 3], **kwargs)


def srm_resnet101(**kwargs: Any) -> SRMResNet:
    return SRMResNet(SRMBottleneck, [3, 4, 23, 3], **kwargs)


def srm_resnet152(**kwargs: Any) -> SRMResNet:
    return SRMResNet(SRMBottleneck, [3, 8, 36, 3], **kwargs)


def srm_resnext50_32x4d(**kwargs: Any) -> SRMResNet:
    return SRMResNet(SRMBottleneck, [3, 4, 6, 3], **{"groups": 32, "width_per_group": 4, **kwargs})


def srm_resnext101_32x4d(**kwargs: Any) -> SRMResNet:
    return SRMResNet(SRMBottleneck, [3, 4, 23, 3], **{"groups": 32, "width_per_group": 4, **kwargs})
