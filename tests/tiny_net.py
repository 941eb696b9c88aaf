"""Networks that take milliseconds a step, as ``-a tiny``, ``tiny_gated``, ``tiny_resnet`` and ``narrow``.

For what scripts do with any network, with one that has gates, and with residual ones. They are no part of
the package: :func:`conftest.call` and :func:`forks.play` put them into the registry of their processes.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

import models
from models.gates import add_gates


class TinyNet(nn.Module):
    """Four convolutions with batch norm and a classifier; its arguments are those of torchvision's ResNet."""

    def __init__(
        self,
        num_classes: int = 1000,
        groups: int = 1,
        width_per_group: int = 8,
        zero_init_residual: bool = False,
    ) -> None:
        super().__init__()
        width = groups * width_per_group
        self.stem = nn.Sequential(unit(3, 16, stride=4), unit(16, 16, stride=2, groups=16))
        self.branch = nn.Sequential(unit(16, width, groups=groups), unit(width, 16))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(16, num_classes)
        if zero_init_residual:
            nn.init.zeros_(self.branch.get_parameter("1.1.weight"))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.branch(x)
        return self.fc(self.avgpool(x).flatten(1))


def unit(inplanes: int, planes: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inplanes, planes, 3, stride, 1, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(planes), nn.ReLU())


def tiny_gated(**kwargs: Any) -> nn.Module:
    """A TinyNet with CBAM, whose gates have linear layers, a convolution and a batch norm."""
    return add_gates(TinyNet(**kwargs), "cbam", modules=["branch"], img_size=32, reduction=4)


class TinyResNet(nn.Module):
    """A ResNet with a block of torchvision in each stage, for gates."""

    def __init__(self, num_classes: int = 1000, zero_init_residual: bool = False) -> None:
        super().__init__()
        self.conv1 = unit(3, 16, stride=4)
        self.layer1 = nn.Sequential(BasicBlock(16, 16))
        self.layer2 = nn.Sequential(BasicBlock(16, 32, 2, half(16, 32)))
        self.layer3 = nn.Sequential(BasicBlock(32, 64, 2, half(32, 64)))
        self.layer4 = nn.Sequential(BasicBlock(64, 128, 2, half(64, 128)))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(128, num_classes)
        if zero_init_residual:
            for module in self.modules():
                if isinstance(module, BasicBlock):
                    nn.init.zeros_(module.bn2.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        return self.fc(self.avgpool(x).flatten(1))


def half(inplanes: int, planes: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inplanes, planes, 1, 2, bias=False), nn.BatchNorm2d(planes))


class Narrow(ResNet):
    """torchvision's ResNet with one block in each stage and an eighth of the channels, for its stem."""

    def __init__(self, num_classes: int = 1000, **kwargs: Any) -> None:
        super().__init__(BasicBlock, [1, 1, 1, 1], **kwargs)
        self.fc = nn.Linear(64, num_classes)

    def _make_layer(self, block: Any, planes: int, *args: Any, **kwargs: Any) -> nn.Sequential:
        return super()._make_layer(block, planes // 8, *args, **kwargs)


WITH_TINY: dict[str, Callable[..., nn.Module]] = {
    **models._OWN,
    "tiny": TinyNet,
    "tiny_gated": tiny_gated,
    "tiny_resnet": TinyResNet,
    "narrow": Narrow,
}
