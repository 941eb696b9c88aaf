"""The flags of the stem and the gates that are put into a network."""

import argparse
import difflib
from typing import Any

from models.gates import POSITIONS, list_gates
from utils.command_line.cli import Parser, count_of
from utils.networks.building import NETWORK_FIELDS
from utils.networks.gating import STARTS, knob
from utils.networks.parts import STEMS

Group = argparse._ArgumentGroup


def gate(name: str) -> str:
    """An argparse type: the name of a gate."""
    if name in list_gates():
        return name
    near = difflib.get_close_matches(name, list_gates(), n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise argparse.ArgumentTypeError(f"unknown gate '{name}', there are {', '.join(list_gates())}{hint}")


def knob_text(text: str) -> str:
    """An argparse type: ``NAME=VALUE``."""
    try:
        knob(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def file_and_class(text: str) -> str:
    """An argparse type: ``FILE:CLASS``."""
    file, colon, name = text.rpartition(":")
    if not (file and colon and name.isidentifier()):
        raise argparse.ArgumentTypeError(f"must be FILE:CLASS, such as my_gate.py:MyGate, not '{text}'")
    return text


def add_stem(group: Group | Parser) -> None:
    """Add which stem the network has."""
    text = "small: a 3x3 convolution of stride 1 without pooling in place of the 7x7 one of ResNets and "
    text += "DenseNets, for small images (default: published, or as the checkpoint)"
    group.add_argument("--stem", choices=STEMS, help=text)


def add_gate_arguments(group: Group | Parser) -> None:
    """Add which gates are put into the network."""
    text = f"put this gate into every residual block: {', '.join(list_gates())}"
    group.add_argument("--gate", type=gate, metavar="NAME", help=text)
    text = "or your own gate: a class or function that makes a module, which keeps the shape, for C channels"
    group.add_argument("--gate-file", type=file_and_class, metavar="FILE:CLASS", help=text)
    text = f"place in a block: {', '.join(POSITIONS)} (default: paper)"
    group.add_argument("--gate-at", choices=POSITIONS, metavar="PLACE", help=text)
    text = "stages that get gates, from 1 (default: all)"
    group.add_argument("--gate-stages", type=count_of, nargs="+", metavar="STAGE", help=text)
    text = "the gate's arguments, such as groups=32; with commas one for each stage: kernel_size=3,5,5,7"
    group.add_argument("--gate-args", type=knob_text, nargs="+", metavar="NAME=VALUE", help=text)
    text = "identity: the gates, also those of an architecture, start so that the network computes what it "
    text += "computes without them (default: published)"
    group.add_argument("--gate-start", choices=STARTS, help=text)


def add_part_arguments(parser: Parser, title: str) -> None:
    """Add a group of flags that say the stem and the gates of a network."""
    group = parser.add_argument_group(title)
    add_stem(group)
    add_gate_arguments(group)


def check_gates(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse combinations of the flags of gates that make no sense."""
    if args.gate and args.gate_file:
        parser.error("--gate and --gate-file are two different gates: give one of them")
    for name in ("gate_at", "gate_stages", "gate_args"):
        if getattr(args, name) is not None and not (args.gate or args.gate_file):
            parser.error(f"--{name.replace('_', '-')} goes with --gate or --gate-file")
    names = [knob(text)[0] for text in args.gate_args or ()]
    if twice := {name for name in names if names.count(name) > 1}:
        parser.error(f"--gate-args says {', '.join(sorted(twice))} twice")


def network_given(args: argparse.Namespace) -> dict[str, Any]:
    """Return what a command line says of the network, None where it is silent."""
    return {name: getattr(args, name, None) for name in NETWORK_FIELDS}
