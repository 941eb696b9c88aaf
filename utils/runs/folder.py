"""The folder of a run: which it is, whether a run may write there, what it held before."""

import argparse
import fcntl
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from utils.common.errors import UserError
from utils.common.files import copy_atomically, remove_leftovers
from utils.networks import checkpoint
from utils.networks.checkpoint import BEST, LAST
from utils.runs.curves import CURVES
from utils.runs.log import LOG, read_rows


def choose_folder(args: argparse.Namespace) -> Path:
    """``-c``, or the folder of ``--resume``, or ``checkpoint``."""
    return Path(args.checkpoint or (Path(args.resume).parent if args.resume else "checkpoint"))


def continues(args: argparse.Namespace, folder: Path) -> bool:
    """Whether the run goes on in ``folder`` where its last checkpoint left off."""
    if not args.resume or Path(args.resume).resolve().parent != folder.resolve():
        return False
    newest = next(iter(checkpoint.kept(folder)), None)
    return args.auto or Path(args.resume).name in (LAST, newest and newest.name)


def check_folder(args: argparse.Namespace) -> None:
    """Refuse a run that would write over another one, or cannot write.

    Raises:
        UserError: so it is.
    """
    try:
        _check(args, choose_folder(args))
    except OSError as error:
        raise UserError(f"-c {choose_folder(args)}: {error.strerror}") from None


def _check(args: argparse.Namespace, folder: Path) -> None:
    if holds_run(folder) and not continues(args, folder) and not args.overwrite:
        raise UserError(
            f"-c {folder} holds a run already: go on with --resume {folder / LAST}, "
            "choose another folder with -c, or give --overwrite"
        )
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise UserError(f"-c {folder}: cannot make this folder ({existing} is a file)")
    if not os.access(existing, os.W_OK):
        raise UserError(f"-c {folder}: no permission to write there")


def make_folder(folder: Path) -> IO[str]:
    """Make a run's folder if it is not there and lock it against other processes.

    Returns:
        The lock, held until it is closed or this process ends.

    Raises:
        UserError: another process trains into it, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise UserError(f"-c {folder}: cannot make this folder ({error.strerror})") from None
    try:
        # Not flock: data workers would inherit it, and outlive a killed run by some seconds.
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise UserError(f"-c {folder}: another process is training into it; choose another folder") from None
    except OSError:  # a file system without locks
        pass
    return lock


def holds_run(folder: Path) -> bool:
    """Whether a folder has a checkpoint or a log.txt with epochs in it."""
    names = (LAST, BEST)
    return (
        any((folder / name).exists() for name in names)
        or bool(checkpoint.kept(folder))
        or bool(read_rows(folder / LOG))
    )


class Predecessor:
    """What a folder holds of another run until one that does not continue it writes its first checkpoint.

    Args:
        args: the command line.
        saved: the checkpoint that the new run goes on from, or nothing.
        folder: the new run's.
    """

    def __init__(self, args: argparse.Namespace, saved: Mapping[str, Any], folder: Path) -> None:
        self.folder, self.kept = folder, checkpoint.kept(folder)
        self.others = [folder / name for name in (LAST, BEST, LOG) if (folder / name).exists()]
        if holds_run(folder):
            self.others += [*folder.glob("events.out.tfevents.*"), *folder.glob(CURVES)]
        self.best = best_of(saved, Path(args.resume)) if args.resume else None

    @property
    def there(self) -> bool:
        """Whether it holds anything."""
        return bool(self.kept or self.others)

    def step_back(self) -> None:
        """Before the first checkpoint: from then on it is the newest; until then LAST is the other run's."""
        remove_leftovers(self.folder)
        for path in self.kept:
            path.unlink(missing_ok=True)

    def leave(self) -> None:
        """After it: bring along the best of the run that is continued, and remove the rest."""
        if self.best is not None and self.best.exists():
            copy_atomically(self.best, self.folder / BEST)
            self.others = [path for path in self.others if path.name != BEST]
        for path in self.others:
            path.unlink(missing_ok=True)


def best_of(saved: Mapping[str, Any], path: Path) -> Path | None:
    """The file of the best epoch before the checkpoint ``path``: itself, or that beside it if it is it."""
    if saved.get("best_epoch") == saved.get("epoch") and not saved.get("images", 0):
        return path
    beside = path.parent / BEST
    if not beside.exists():
        return None
    try:
        found = checkpoint.load(str(beside))
    except UserError:
        found = {}
    wanted = {key: saved.get(key) for key in ("arch", "best_acc")} | {"epoch": saved.get("best_epoch")}
    if all(found.get(key) == value for key, value in wanted.items() if value is not None) and found:
        return beside
    print(f"note: {beside} is not the best before {path}: not brought along")
    return None
