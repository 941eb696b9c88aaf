"""What a result can be traced back to: the command, the versions, the commit."""

import hashlib
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy
import torch
import torchvision

from utils.common.text import shown

_ROOT = Path(__file__).parents[2]
_FLAGS = MappingProxyType({"wdall": "wd-all"})  # where an argument has another name than its flag


def origin(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a checkpoint that say where it comes from: plain strings, numbers and lists.

    Args:
        arguments: what the command line says of the computation, by the names of the arguments.
    """
    gate_file = (arguments.get("gate_file") or "").rpartition(":")[0]
    return {
        "command": shlex.join(sys.argv),
        "arguments": {k: list(v) if isinstance(v, tuple) else v for k, v in arguments.items()},
        "versions": {"python": platform.python_version(), **versions()},
        "commit": commit(),
        **({"gate_code": _digest(gate_file)} if gate_file else {}),
    }


def versions() -> dict[str, str]:
    """Return the versions of what computes."""
    packages = {of.__name__: str(of.__version__) for of in (torch, torchvision, numpy)}
    return {**packages, "cuda": torch.version.cuda or ""}


def sources() -> dict[str, str]:
    """Return a digest of each file of this code that the process runs, by its path; 8 digits each."""
    modules = (getattr(module, "__file__", None) for module in tuple(sys.modules.values()))
    files = {file for file in (*modules, os.path.realpath(sys.argv[0])) if isinstance(file, str)}
    root = f"{_ROOT}{os.sep}"
    own = sorted(file.removeprefix(root) for file in files if file.startswith(root))
    ours = [file for file in own if not file.startswith(".")]  # an environment may lie in this folder
    paths = {file: _ROOT / file for file in ours}
    digests = {file: hashlib.sha256(path.read_bytes()) for file, path in paths.items() if path.is_file()}
    return {file: digest.hexdigest()[:8] for file, digest in digests.items()}


def _digest(file: str) -> str:
    """Return the SHA-256 of a user's file, which no commit of this code says."""
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return ``--lr 0.1 -> 0.2`` for every argument of both that differs."""
    changed = [name for name in sorted(set(before) & set(now)) if before[name] != now[name]]
    flags = {name: f"--{_FLAGS.get(name, name).replace('_', '-')}" for name in changed}
    return [f"{flag} {_text(before[name])} -> {_text(now[name])}" for name, flag in flags.items()]


def _text(value: object) -> str:
    return shown(" ".join(map(str, value)) if isinstance(value, list) else str(value))


def commit() -> str:
    """Return the git commit of this code, with ``+`` after it where files differ; empty outside git."""
    words = ("git", "-C", str(_ROOT), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+")
    try:
        done = subprocess.run(words, capture_output=True, text=True)
    except OSError:  # no git
        return ""
    return done.stdout.strip() if (_ROOT / ".git").exists() else ""
