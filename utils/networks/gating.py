"""The gates that flags put into a network, what a checkpoint says of them, and gates of a user's own file."""

import re
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import nn

from models import resolve
from models.gates import POSITIONS, add_gates, knobs, list_gates, start_as_identity
from models.gates.registry import kind_of
from utils.common.errors import UserError
from utils.common.text import shown

STARTS = ("published", "identity")
_KNOB = re.compile(r"([A-Za-z_]\w*)=([^,\s]+(?:,[^,\s]+)*)", re.ASCII)  # NAME=VALUE, a comma between stages
_WHOLE = re.compile(r"[+-]?\d{1,18}", re.ASCII)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_MEANING = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


@dataclass(frozen=True, kw_only=True)
class GateSpec:
    """The gates that flags put into a network, as plain values.

    Args:
        gate: one of :func:`models.gates.list_gates`; None: no gates, or those of ``gate_file``.
        gate_file: ``FILE:CLASS``, what makes the gates in place of ``gate``.
        gate_at: the place in a block; None: ``paper``.
        gate_stages: the stages that get gates, from 1; None: all that :func:`models.gates.add_gates` chooses.
        gate_args: the gate's knobs, each ``NAME=VALUE`` or ``NAME=VALUE,VALUE,...`` with one for each stage.
        gate_start: ``identity``, or as ``published``, which None stands for; also of an architecture's gates.
    """

    gate: str | None = None
    gate_file: str | None = None
    gate_at: str | None = None
    gate_stages: Sequence[int] | None = None
    gate_args: Sequence[str] | None = None
    gate_start: str | None = None

    @property
    def name(self) -> str | None:
        """The gate, or the class of the user's file; None: flags put in no gates."""
        return self.gate or (class_of(self.gate_file) if self.gate_file else None)

    @property
    def flags(self) -> str:
        """The flags, each after a blank, without those that say the default; empty for none."""
        said = {field: value for field, value in gate_fields(self).items() if value is not None}
        return "".join(f" {flag_of(*one)}" for one in said.items() if one[1] not in ("paper", "published"))

    def same_as(self, other: "GateSpec") -> bool:
        """Whether two say the same gates at the same places, with the same knobs and start."""
        return _meaning(self) == _meaning(other)


GATE_FIELDS = tuple(field.name for field in fields(GateSpec))


def gate_fields(spec: GateSpec) -> dict[str, Any]:
    """Return the fields of a specification that say its gates."""
    return {name: getattr(spec, name) for name in GATE_FIELDS}


def flag_of(name: str, value: object) -> str:
    """Return the flag of a field of a specification with its value: ``--gate-stages 3 4``."""
    text = " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return f"--{name.replace('_', '-')} {text}"


def class_of(gate_file: str) -> str:
    """Return CLASS of ``FILE:CLASS``."""
    return gate_file.rpartition(":")[2]


def gates_said(saved: Mapping[str, Any]) -> GateSpec:
    """Return the gates that a checkpoint says that flags have put into its network."""
    said = saved.get("arguments", {})
    return GateSpec(**{name: said.get(name) for name in GATE_FIELDS})


def plausible(arguments: Mapping[str, Any]) -> bool:
    """Whether what a checkpoint says of gates has the form of what flags say."""
    said = {name: arguments[name] for name in GATE_FIELDS if arguments.get(name) is not None}
    stages, knobs_said = said.get("gate_stages", []), said.get("gate_args", [])
    return (
        isinstance(name := said.get("gate", "se"), str)
        and name.isidentifier()
        and said.get("gate_at", "paper") in POSITIONS
        and said.get("gate_start", "published") in STARTS
        and isinstance(own := said.get("gate_file", ""), str)
        and own.isprintable()
        and isinstance(stages, list)
        and all(type(stage) is int and stage > 0 for stage in stages)
        and isinstance(knobs_said, list)
        and all(isinstance(text, str) and text.isprintable() and _KNOB.fullmatch(text) for text in knobs_said)
    )


def gates_in(saved: Mapping[str, Any], arch: str) -> GateSpec:
    """Return the gates that a checkpoint says that flags have put into ``arch``; none if it is of another."""
    return gates_said(saved) if resolve(saved.get("arch", "")) == resolve(arch) else GateSpec()


def gates_taken(given: Mapping[str, Any], saved: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return what of a checkpoint's gates holds where the command line is silent.

    Nothing does if the command line names another gate. A user's file never does: a checkpoint must not say
    which code runs.

    Args:
        given: the fields of :class:`GateSpec`, None where the command line is silent; some may be missing.
        saved: the checkpoint.
        source: what named it, and its path, for messages.

    Raises:
        UserError: its gates are of a user's file, and the command line does not name the file.
    """
    mine, said = GateSpec(**{name: given.get(name) for name in GATE_FIELDS}), gates_said(saved)
    if said.gate_file and not mine.name:
        remedy = f"give --gate-file FILE:{class_of(said.gate_file)}"
        raise UserError(f"{source}: its gates are of {shown(said.gate_file)}: {remedy}")
    if mine.name and (mine.name, bool(mine.gate)) != (said.name, bool(said.gate)):
        return {}
    return {name: value for name, value in gate_fields(said).items() if name != "gate_file"}


def _meaning(spec: GateSpec) -> tuple[object, ...]:
    """Return what two specifications of the same gates have in common."""
    known = spec.gate in list_gates()
    first = kind_of(str(spec.gate)).places[0] if known else "standard"
    at = spec.gate_at or "paper"
    at = first if at == "paper" and first in ("standard", "stage") else at  # places that every block has
    values = (knobs(str(spec.gate)) if known else {}) | knob_values(spec.gate_args or ())
    stages = None if spec.gate_stages is None else sorted(set(spec.gate_stages))
    placed = (at, stages, values) if spec.name else ()
    return spec.name, bool(spec.gate), *placed, spec.gate_start or "published"


def knob(text: str) -> tuple[str, Any]:
    """Read ``NAME=VALUE``: an int, a float, a bool or text; with commas a list, a value for each stage.

    Raises:
        ValueError: it has another form.
    """
    if not (found := _KNOB.fullmatch(text)):
        raise ValueError(f"must be NAME=VALUE or NAME=VALUE,VALUE,... (one for each stage), not '{text}'")
    values = [_value(word) for word in found[2].split(",")]
    return found[1], values if len(values) > 1 else values[0]


def _value(word: str) -> int | float | bool | str:
    if word.lower() in ("true", "false"):
        return word.lower() == "true"
    if _WHOLE.fullmatch(word):
        return int(word)
    return float(word) if _NUMBER.fullmatch(word) else word


def knob_values(texts: Sequence[str]) -> dict[str, Any]:
    """Read the knobs of ``gate_args``."""
    return dict(map(knob, texts))


def put_gates(net: nn.Module, spec: GateSpec, arch: str) -> None:
    """Put the gates of a specification into a network, and let its gates start as it says.

    FcaNet's frequencies are those for images of 224 pixels, whatever the images are: they are part of the
    weights, which must fit when the network is evaluated with another size.

    Args:
        net: the network, which is changed.
        spec: the gates.
        arch: its architecture, for messages.

    Raises:
        UserError: there is no such gate or knob, the network does not take it, or the user's file fails.
    """
    values = knob_values(spec.gate_args or ())
    try:
        if spec.gate:
            _check_values(spec.gate, values)
        made = spec.gate or (load_gate(spec.gate_file) if spec.gate_file else None)
        if made:
            add_gates(net, made, spec.gate_at or "paper", spec.gate_stages, **values)
        if spec.gate_start == "identity":
            start_as_identity(net)
    except UserError:
        raise
    except Exception as error:
        if not (spec.gate_file or isinstance(error, TypeError | ValueError | RuntimeError | ArithmeticError)):
            raise  # a user's file raises anything
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        why = str(error).partition("; name its modules")[0]  # which no flag does
        raise UserError(f"-a {arch} does not take{spec.flags}: {kind * bool(spec.gate_file)}{why}") from None


def _check_values(gate: str, values: Mapping[str, Any]) -> None:
    """Check that values are of the type of the knob's default."""
    for name, default in knobs(gate).items():
        wanted = type(default)
        given = values.get(name, default)
        for value in given if isinstance(given, list) else [given]:
            whole = wanted is float and type(value) is int
            if wanted in _MEANING and type(value) is not wanted and not whole:
                raise ValueError(f"{name} is {_MEANING[wanted]}, not '{value}'")


def load_gate(gate_file: str) -> Callable[..., nn.Module]:
    """Run a user's Python file and return what of it makes gates.

    Args:
        gate_file: ``FILE:CLASS``; a class or a function that maps a number of channels to a module.

    Raises:
        UserError: there is no such file or class, or running the file fails.
    """
    file, _, name = gate_file.rpartition(":")
    if not Path(file).is_file():
        raise UserError(f"--gate-file {gate_file}: there is no file {file}")
    module = types.ModuleType(f"gate_file_{Path(file).stem}")
    module.__file__ = file
    sys.modules[module.__name__] = module  # torch.compile looks there
    try:  # not by an import, which would write __pycache__ beside the file
        exec(compile(Path(file).read_bytes(), file, "exec"), vars(module))
    except (Exception, SystemExit) as error:
        raise UserError(f"--gate-file {gate_file}: {file} raises {type(error).__name__}: {error}") from None
    made = getattr(module, name, None)
    if not callable(made):
        there = [key for key, value in vars(module).items() if _is_of(value, module)]
        raise UserError(f"--gate-file {gate_file}: {file} has no {name}, but {', '.join(there) or 'nothing'}")
    return lambda channels, **values: _module(made(channels, **values), name)


def _is_of(value: object, module: types.ModuleType) -> bool:
    """Whether a class or function is defined in a module."""
    return callable(value) and getattr(value, "__module__", "") == module.__name__


def _module(made: object, name: str) -> nn.Module:
    if not isinstance(made, nn.Module):
        raise TypeError(f"{name} makes a {type(made).__name__}, no torch.nn.Module")
    return made
