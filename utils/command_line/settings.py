"""Settings that a command line may leave open: with ``-e`` the checkpoint's, otherwise the defaults."""

import argparse
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

NETWORK: Mapping[str, Any] = MappingProxyType(
    {"arch": "resnet18", "img_size": 224, "cardinality": None, "base_width": None}
)


def fill(
    args: argparse.Namespace, defaults: Mapping[str, Any], said: Mapping[str, Any] = MappingProxyType({})
) -> str:
    """Set every argument that is None to what a checkpoint says, or else to its default.

    Args:
        args: the command line; changed.
        defaults: by the names of the arguments.
        said: the same, of the checkpoint; it may lack some.

    Returns:
        What the checkpoint gave, as flags: ``--arch sge_resnet18 --img-size 64``.
    """
    missing = [name for name in defaults if getattr(args, name) is None]
    given = {name: said[name] for name in missing if said.get(name) is not None}
    for name in missing:
        setattr(args, name, given.get(name, defaults[name]))
    return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in given.items())
