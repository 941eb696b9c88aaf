"""What flags put into a network in place of the architecture's own: a stem, and gates."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from models import put_small_stem, resolve
from models.stems import has_small_stem
from utils.common.errors import UserError
from utils.networks.gating import GATE_FIELDS, GateSpec, gate_fields, put_gates

STEMS = ("published", "small")
SMALL_STEM = " --stem small"


@dataclass(frozen=True, kw_only=True)
class PartSpec(GateSpec):
    """The stem and the gates that flags put into a network, as plain values.

    Args:
        stem: ``small``, see :mod:`models.stems`; or as ``published``, which None stands for.
    """

    stem: str | None = None

    @property
    def flags(self) -> str:
        """The flags, each after a blank, without those that say the default; empty for none."""
        return SMALL_STEM * (self.stem == "small") + GateSpec(**gate_fields(self)).flags

    def same_parts_as(self, other: "PartSpec") -> bool:
        """Whether two say the same stem and the same gates."""
        stems = {one.stem or "published" for one in (self, other)}
        return len(stems) == 1 and self.same_as(other)


PART_FIELDS = ("stem", *GATE_FIELDS)


def parts_said(saved: Mapping[str, Any]) -> PartSpec:
    """Return what a checkpoint says that flags have put into its network."""
    said = saved.get("arguments", {})
    return PartSpec(**{name: said.get(name) for name in PART_FIELDS})


def parts_in(saved: Mapping[str, Any], arch: str) -> PartSpec:
    """Return what a checkpoint says that flags have put into ``arch``; nothing if it is of another.

    The small stem is known by the weights, also in a file that says nothing.
    """
    said = parts_said(saved) if resolve(saved.get("arch", "")) == resolve(arch) else PartSpec()
    return replace(said, stem="small") if has_small_stem(saved.get("state_dict", {})) else said


def part_fields(spec: PartSpec) -> dict[str, Any]:
    """Return the fields of a specification that say its stem and gates."""
    return {name: getattr(spec, name) for name in PART_FIELDS}


def put_parts(net: nn.Module, spec: PartSpec, arch: str) -> None:
    """Put the gates and the stem of a specification into a network.

    The gates come first: they are made for the maps that 224 px leave behind the published stem, so that a
    gate by a flag and the same one by the architecture's name have the same weights with either stem.

    Args:
        net: the network, which is changed.
        spec: stem and gates.
        arch: its architecture, for messages.

    Raises:
        UserError: the network does not take them.
    """
    put_gates(net, GateSpec(**gate_fields(spec)), arch)
    if spec.stem == "small":
        try:
            put_small_stem(net)
        except ValueError as error:
            raise UserError(f"-a {arch} does not take{SMALL_STEM}: {error}") from None
