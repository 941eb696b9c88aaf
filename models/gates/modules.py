"""A gate on the input or the output of any module, and the places in the blocks of timm.

The module gets a class of the same behaviour that also applies the gates, which become its children: so its
own keys in the state dict stay.
"""

import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.gates.blocks import GATED, Gated


class _GatedModule(Gated):
    """A module with a gate on its first input (``pre``) or its output (``post``)."""

    kind: type[nn.Module]  # its class without gates

    def has(self, place: str) -> bool:
        return place in ("pre", "post")

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        out = super().forward(self.gated("pre", x), *args, **kwargs)  # type: ignore[misc]
        return self.gated("post", out)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copies and pickles are made by the class without gates, as this one has no name to be found by.

        torch's state leaves out the compiled call, which would run the original's weights.
        """
        return _new, (self.kind,), self.__getstate__()  # type: ignore[attr-defined]


class _GatedSequential(_GatedModule):
    """The same for a sequence, whose layers do not include the gates."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        out = self.gated("pre", x)
        for name, layer in self.__dict__["_modules"].items():
            if name not in self.gate_at.values():
                out = layer(out)
        return self.gated("post", out)


@functools.cache
def _class_of(kind: Any) -> Any:
    base = _GatedSequential if kind.forward is nn.Sequential.forward else _GatedModule
    return type(f"Gated{kind.__name__}", (base, kind), {"kind": kind, "__module__": __name__})


def _new(kind: Any) -> Any:
    made = _class_of(kind)
    return made.__new__(made)


def gated(module: Any) -> Gated:
    """Give a module the places of its kind where a gate can stand, and return it.

    Raises:
        ValueError: it is a batch norm.
    """
    if isinstance(module, Gated):
        return module
    if isinstance(module, _BatchNorm):
        raise ValueError("a gate on a batch norm would be lost where that becomes a SyncBatchNorm")
    kind: Any = type(module)
    module.__class__ = GATED[kind] if kind in GATED else _class_of(kind)
    module.gate_at = dict(getattr(module, "gate_at", {}))
    return module


# For each place in a block of timm: a child, and the side of it where the gate stands. "": the block itself.
_RESNET = {
    "pre": ("conv1", "pre"),
    "standard": ("se", "post"),
    "identity": ("downsample", "post"),
    "post": ("", "post"),
}
_INVERTED = {
    "pre": ("conv_pw", "pre"),
    "3x3": ("se", "pre"),
    "standard": ("drop_path", "pre"),
    "post": ("", "post"),
}
TIMM: Mapping[str, Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "timm.models.resnet.BasicBlock": _RESNET,
        "timm.models.resnet.Bottleneck": {**_RESNET, "3x3": ("act2", "post")},
        "timm.models.regnet.Bottleneck": {
            **_RESNET,
            "3x3": ("conv2", "post"),
            "standard": ("conv3", "post"),
        },
        "timm.models._efficientnet_blocks.DepthwiseSeparableConv": {
            "pre": ("conv_dw", "pre"),
            "standard": ("drop_path", "pre"),
            "post": ("", "post"),
        },
        "timm.models._efficientnet_blocks.InvertedResidual": _INVERTED,
        "timm.models._efficientnet_blocks.EdgeResidual": {**_INVERTED, "pre": ("conv_exp", "pre")},
        "timm.models.convnext.ConvNeXtBlock": {
            "pre": ("conv_dw", "pre"),
            "3x3": ("conv_dw", "post"),
            "standard": ("drop_path", "pre"),
            "identity": ("shortcut", "post"),
            "post": ("", "post"),
        },
    }
)


def places_of_timm(block: nn.Module) -> Mapping[str, tuple[str, str]]:
    """Return the places of a block of timm, a child and its side for each; empty for other modules."""
    kind: Any = getattr(block, "kind", type(block)) if isinstance(block, Gated) else type(block)
    known = TIMM.get(f"{kind.__module__}.{kind.__qualname__}", {})
    places = {place: at for place, at in known.items() if not at[0] or hasattr(block, at[0])}
    if places and not getattr(block, "has_skip", True):  # without a shortcut drop_path is not called
        places["standard"] = ("", "post")
    return places
