"""What a result can be traced back to: the command, the versions, the commit."""

import argparse
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy
import torch
import torchvision

# Arguments that say where and how a run is kept or run, not what it computes.
_ELSEWHERE = {
    "checkpoint", "data", "device", "evaluate", "gpu_id", "keep", "local_rank", "manualSeed", "max_bad",
    "on_nan", "overwrite", "print_always", "print_freq", "resume", "fresh_optimizer", "save_every", "workers",
    "finetune", "pretrained", "start_epoch", "test_batch", "auto", "seen", "cache", "dry_run", "backbone",
    "recipe", "detections", "class_list",
}  # fmt: skip

_FLAGS = MappingProxyType({"wdall": "wd-all"})  # where an argument has another name than its flag


def origin(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of a checkpoint that say where it comes from: plain strings, numbers and lists."""
    return {
        "command": shlex.join(sys.argv),
        "arguments": plain(vars(args)),
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "torchvision": str(torchvision.__version__),
            "numpy": numpy.__version__,
            "cuda": torch.version.cuda or "",
        },
        "commit": commit(),
    }


def plain(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments that decide what is computed, in types that a checkpoint may hold."""
    kept = {name: value for name, value in arguments.items() if name not in _ELSEWHERE}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in kept.items()}


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """``--lr 0.1 -> 0.2`` for every argument of both that differs."""
    return [
        f"--{_FLAGS.get(name, name).replace('_', '-')} {_text(before[name])} -> {_text(now[name])}"
        for name in sorted(set(before) & set(now))
        if before[name] != now[name]
    ]


def _text(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def commit() -> str:
    """The git commit of this code, with ``+`` after it where files differ from it; empty outside git."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return ""
    try:
        head = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head + ("+" if changed else "")


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()
