"""The gates by name: what creates them, and what they are called in a block."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from torch import nn

from models.mobilenetv2_ca import CoordinateAttention
from models.resnet_bam import BAM
from models.resnet_cbam import CBAM
from models.resnet_eca import ECALayer
from models.resnet_fca import FrequencyChannelAttention
from models.resnet_gc import GlobalContext
from models.resnet_se import SELayer
from models.resnet_sge import SpatialGroupEnhance
from models.resnet_simam import SimAM
from models.resnet_srm import SRMLayer
from models.resnet_triplet import TripletAttention


@dataclass(frozen=True)
class GateKind:
    """A kind of gate.

    Args:
        create: maps the number of channels and the paper's knobs to a module.
        module: its class.
        child: its name in a block, that of the published checkpoints.
        places: where its paper puts it, as in :func:`models.gates.add_gates`: the first that a block has.
    """

    create: Callable[..., nn.Module]
    module: type[nn.Module]
    child: str
    places: tuple[str, ...] = ("standard",)


def _sge(channels: int, groups: int = 64) -> SpatialGroupEnhance:
    gate = SpatialGroupEnhance(groups)
    if channels % groups:
        raise ValueError(f"{groups} groups do not divide {channels} channels")
    return gate


def _simam(channels: int, lam: float = 0.1) -> SimAM:
    return SimAM(lam)


def _triplet(channels: int, kernel_size: int = 7) -> TripletAttention:
    return TripletAttention(kernel_size)


def _fca(channels: int, size: int = 7, reduction: int = 16, frequencies: int = 16) -> nn.Module:
    return FrequencyChannelAttention(channels, size, reduction, frequencies)


_KINDS: Mapping[str, GateKind] = MappingProxyType(
    {
        "se": GateKind(SELayer, SELayer, "se"),
        "sge": GateKind(_sge, SpatialGroupEnhance, "sge"),
        "cbam": GateKind(CBAM, CBAM, "cbam"),
        "bam": GateKind(BAM, BAM, "bam", ("stage",)),
        "gc": GateKind(GlobalContext, GlobalContext, "gc"),
        "srm": GateKind(SRMLayer, SRMLayer, "rclb"),
        "eca": GateKind(ECALayer, ECALayer, "eca"),
        "simam": GateKind(_simam, SimAM, "simam", ("conv", "3x3")),
        "triplet": GateKind(_triplet, TripletAttention, "triplet_attention"),
        "fca": GateKind(_fca, FrequencyChannelAttention, "att"),
        "ca": GateKind(CoordinateAttention, CoordinateAttention, "ca", ("3x3",)),
    }
)
CLASSES = tuple(kind.module for kind in _KINDS.values())


def list_gates() -> list[str]:
    """List the names that :func:`create_gate` takes."""
    return list(_KINDS)


def kind_of(name: str) -> GateKind:
    """Return the kind of gate of this name.

    Raises:
        ValueError: there is none.
    """
    if name not in _KINDS:
        raise ValueError(f"unknown gate '{name}'; there are {', '.join(_KINDS)}")
    return _KINDS[name]


def knobs(name: str) -> dict[str, Any]:
    """Return what :func:`create_gate` takes for a gate besides the channels, with the defaults.

    Raises:
        ValueError: there is no gate of this name.
    """
    parameters = list(inspect.signature(kind_of(name).create).parameters.values())
    return {parameter.name: parameter.default for parameter in parameters[1:]}


def check_knobs(name: str, given: Mapping[str, Any]) -> None:
    """Refuse knobs that a gate does not have.

    Raises:
        ValueError: there is no gate of this name.
        TypeError: it has no such knob.
    """
    known = knobs(name)
    if unknown := [knob for knob in given if knob not in known]:
        takes = ", ".join(known) if known else "no arguments"
        raise TypeError(f"gate {name} takes {takes}, not {', '.join(unknown)}")


def create_gate(name: str, channels: int, **kwargs: Any) -> nn.Module:
    """Create a gate, a module that maps (B, C, H, W) to the same shape.

    Args:
        name: one of :func:`list_gates`.
        channels: C.
        **kwargs: the paper's knobs, as :func:`knobs` lists them.

    Raises:
        ValueError: there is no gate of this name, or it does not take this value or this number of channels.
        TypeError: it has no such knob.
    """
    check_knobs(name, kwargs)
    return kind_of(name).create(channels, **kwargs)


def gates_of(net: nn.Module) -> dict[str, nn.Module]:
    """Return the gates of a network by their names in it: those of its architecture and those added.

    A gate within another one is not listed.
    """
    found: dict[str, nn.Module] = {}
    for name, module in net.named_modules():
        if isinstance(module, CLASSES) or getattr(module, "is_gate", False):
            found[name] = module
        for child in getattr(module, "gate_at", {}).values():
            found[f"{name}.{child}".strip(".")] = module.get_submodule(child)
    return {
        name: gate for name, gate in found.items() if not any(name.startswith(f"{other}.") for other in found)
    }
