"""ResNet-B, -C and -D: the tweaks of the ResNet architecture that cost almost nothing.

He, Zhang, Zhang, Zhang, Xie, Li, "Bag of Tricks for Image Classification with Convolutional Neural Networks",
arXiv 1812.01187 (Section 4.1, Figure 2). Each net has the tweaks of the one before it as well:

- B: the 3x3 convolution of a bottleneck has the stride. This is torchvision's ResNet v1.5, so
  ``resnet50_b`` is ``torchvision.models.resnet50`` and loads its weights.
- C: three 3x3 convolutions replace the 7x7 convolution of the stem.
- D: in a strided shortcut, average pooling before the 1x1 convolution replaces its stride.

State-dict names are torchvision's; those of the new layers (``conv1.0``, ``conv1.3``, ``conv1.6`` in C and D,
``downsample.1``, ``downsample.2`` in D) are timm's.
"""

from typing import Any

from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet

__all__ = [
    "ResNetB",
    "ResNetC",
    "ResNetD",
    "resnet50_b",
    "resnet101_b",
    "resnet152_b",
    "resnet50_c",
    "resnet101_c",
    "resnet152_c",
    "resnet50_d",
    "resnet101_d",
    "resnet152_d",
]


class ResNetB(ResNet):
    """torchvision's ResNet v1.5; takes every keyword of :class:`torchvision.models.ResNet`."""

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


class ResNetC(ResNetB):
    """:class:`ResNetB` with a stem of three 3x3 convolutions: widths 32, 32, 64, stride 2 on the first."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # The batch norm and ReLU after the last convolution are the base class's bn1 and relu.
        self.conv1 = nn.Sequential(
            nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False),
            self._norm_layer(32),
            nn.ReLU(inplace=True),
            nn.Conv2d(32, 32, 3, padding=1, bias=False),
            self._norm_layer(32),
            nn.ReLU(inplace=True),
            nn.Conv2d(32, 64, 3, padding=1, bias=False),
        )
        for module in self.conv1:
            if isinstance(module, nn.Conv2d):  # as the base class initialises every convolution
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class ResNetD(ResNetC):
    """:class:`ResNetC` whose strided shortcuts average 2x2 positions instead of skipping three of them."""

    def _make_layer(self, *args: Any, **kwargs: Any) -> nn.Sequential:
        stage = super()._make_layer(*args, **kwargs)
        if stage[0].downsample is not None:
            conv, norm = stage[0].downsample
            # ceil_mode: an odd size is halved to the size that the strided 3x3 convolution gives.
            pool = nn.Identity() if conv.stride == (1, 1) else nn.AvgPool2d(2, ceil_mode=True)
            conv.stride = (1, 1)
            stage[0].downsample = nn.Sequential(pool, conv, norm)
        return stage


def resnet50_b(**kwargs: Any) -> ResNetB:
    return ResNetB(Bottleneck, [3, 4, 6, 3], **kwargs)


def resnet101_b(**kwargs: Any) -> ResNetB:
    return ResNetB(Bottleneck, [3, 4, 23, 3], **kwargs)


def resnet152_b(**kwargs: Any) -> ResNetB:
    return ResNetB(Bottleneck, [3, 8, 36, 3], **kwargs)


def resnet50_c(**kwargs: Any) -> ResNetC:
    return ResNetC(Bottleneck, [3, 4, 6, 3], **kwargs)


def resnet101_c(**kwargs: Any) -> ResNetC:
    return ResNetC(Bottleneck, [3, 4, 23, 3], **kwargs)


def resnet152_c(**kwargs: Any) -> ResNetC:
    return ResNetC(Bottleneck, [3, 8, 36, 3], **kwargs)


def resnet50_d(**kwargs: Any) -> ResNetD:
    return ResNetD(Bottleneck, [3, 4, 6, 3], **kwargs)


def resnet101_d(**kwargs: Any) -> ResNetD:
    return ResNetD(Bottleneck, [3, 4, 23, 3], **kwargs)


def resnet152_d(**kwargs: Any) -> ResNetD:
    return ResNetD(Bottleneck, [3, 8, 36, 3], **kwargs)
