"""torchvision's residual blocks, with the places where a gate can stand.

The places are those of Hu et al., arXiv 1709.01507, section 6.5. ``add_gates`` gives the blocks of a network
these classes. A block keeps its modules, so the keys of its state dict stay; without a gate it computes what
it did before.
"""

from collections.abc import Mapping
from types import MappingProxyType

from torch import Tensor, nn
from torchvision.models import convnext, efficientnet, mobilenetv2, mobilenetv3, regnet, resnet


class Gated:
    """A block with gates; ``gate_at`` maps a place to the name of the child that stands there."""

    gate_at: dict[str, str]

    def has(self, place: str) -> bool:
        """Whether the block has a place."""
        return place in ("standard", "pre", "post", "identity")

    def put(self, place: str, child: str, gate: nn.Module) -> None:
        """Put a gate at a place."""
        setattr(self, child, gate)
        self.gate_at[place] = child

    def gated(self, place: str, x: Tensor) -> Tensor:
        """Apply the gate that stands at a place, if there is one."""
        child = self.gate_at.get(place)
        return x if child is None else getattr(self, child)(x)


class GatedBasicBlock(Gated, resnet.BasicBlock):
    def has(self, place: str) -> bool:
        return place == "conv" or super().has(place)

    def forward(self, x: Tensor) -> Tensor:
        identity = self.gated("identity", x if self.downsample is None else self.downsample(x))

        out = self.gated("pre", x)
        out = self.relu(self.bn1(self.conv1(out)))
        out = self.bn2(self.gated("conv", self.conv2(out)))
        out = self.gated("standard", out)

        return self.gated("post", self.relu(out + identity))


class GatedBottleneck(Gated, resnet.Bottleneck):
    def has(self, place: str) -> bool:
        return place in ("3x3", "conv") or super().has(place)

    def forward(self, x: Tensor) -> Tensor:
        identity = self.gated("identity", x if self.downsample is None else self.downsample(x))

        out = self.gated("pre", x)
        out = self.relu(self.bn1(self.conv1(out)))
        out = self.relu(self.bn2(self.gated("conv", self.conv2(out))))
        out = self.gated("3x3", out)
        out = self.bn3(self.conv3(out))
        out = self.gated("standard", out)

        return self.gated("post", self.relu(out + identity))


class GatedSequence(Gated):
    """A block whose residual branch is a sequence of layers."""

    def spatial(self) -> int | None:
        """Return the index of the layer after which ``3x3`` is; None if the block does not have the place."""
        raise NotImplementedError

    def has(self, place: str) -> bool:
        if place == "3x3":
            return self.spatial() is not None
        return super().has(place) and (place != "identity" or getattr(self, "use_res_connect", True))

    def branch(self, layers: nn.Sequential, x: Tensor) -> Tensor:
        """The residual branch, with the gates in it."""
        out, spatial = self.gated("pre", x), self.spatial()
        for i, layer in enumerate(layers):
            out = layer(out)
            if i == spatial:
                out = self.gated("3x3", out)
        return self.gated("standard", out)


class GatedResBottleneckBlock(GatedSequence, regnet.ResBottleneckBlock):
    proj: nn.Module | None
    f: nn.Sequential

    def spatial(self) -> int:
        return 1  # after 1x1, 3x3, before squeeze-and-excitation and 1x1

    def forward(self, x: Tensor) -> Tensor:
        identity = self.gated("identity", x if self.proj is None else self.proj(x))
        return self.gated("post", self.activation(identity + self.branch(self.f, x)))


def _of_inverted(layers: nn.Sequential) -> int | None:
    """Return the index of the depthwise convolution, if it follows an expansion."""
    return 1 if layers.get_submodule("0.0").kernel_size == (1, 1) else None


class GatedInvertedResidualV2(GatedSequence, mobilenetv2.InvertedResidual):
    conv: nn.Sequential

    def spatial(self) -> int | None:
        return _of_inverted(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        out = self.branch(self.conv, x)
        if self.use_res_connect:
            out = self.gated("identity", x) + out
        return self.gated("post", out)


class GatedInvertedResidualV3(GatedSequence, mobilenetv3.InvertedResidual):
    block: nn.Sequential

    def spatial(self) -> int | None:
        return _of_inverted(self.block)

    def forward(self, x: Tensor) -> Tensor:
        out = self.branch(self.block, x)
        if self.use_res_connect:
            out = out + self.gated("identity", x)
        return self.gated("post", out)


class GatedMBConv(GatedSequence, efficientnet.MBConv):
    block: nn.Sequential

    def spatial(self) -> int | None:
        return _of_inverted(self.block)

    def forward(self, x: Tensor) -> Tensor:
        out = self.branch(self.block, x)
        if self.use_res_connect:
            out = self.stochastic_depth(out) + self.gated("identity", x)
        return self.gated("post", out)


class GatedFusedMBConv(GatedSequence, efficientnet.FusedMBConv):
    block: nn.Sequential

    def spatial(self) -> int | None:
        return 0 if len(self.block) > 1 else None  # a 3x3 convolution that expands

    def forward(self, x: Tensor) -> Tensor:
        out = self.branch(self.block, x)
        if self.use_res_connect:
            out = self.stochastic_depth(out) + self.gated("identity", x)
        return self.gated("post", out)


class GatedCNBlock(GatedSequence, convnext.CNBlock):
    block: nn.Sequential

    def spatial(self) -> int:
        return 0  # the depthwise 7x7 convolution

    def forward(self, x: Tensor) -> Tensor:
        out = self.stochastic_depth(self.layer_scale * self.branch(self.block, x))
        return self.gated("post", out + self.gated("identity", x))


GATED: Mapping[type[nn.Module], type[Gated]] = MappingProxyType(
    {
        resnet.BasicBlock: GatedBasicBlock,
        resnet.Bottleneck: GatedBottleneck,
        regnet.ResBottleneckBlock: GatedResBottleneckBlock,
        mobilenetv2.InvertedResidual: GatedInvertedResidualV2,
        mobilenetv3.InvertedResidual: GatedInvertedResidualV3,
        efficientnet.MBConv: GatedMBConv,
        efficientnet.FusedMBConv: GatedFusedMBConv,
        convnext.CNBlock: GatedCNBlock,
    }
)
