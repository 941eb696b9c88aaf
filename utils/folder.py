"""The folder of a run: which it is, whether a run may write there, what it held before."""

import argparse
import fcntl
import os
from pathlib import Path
from typing import IO

from utils import checkpoint
from utils.checkpoint import BEST, LAST
from utils.errors import UserError
from utils.files import copy_atomically, remove_leftovers
from utils.logger import LOG, read_rows


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
    folder = choose_folder(args)
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
    """What a folder holds before a run that does not continue it writes its first checkpoint there."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.folder = folder
        self.files = [*checkpoint.kept(folder), *folder.glob("events.out.tfevents.*")]
        self.best_before = Path(args.resume).parent / BEST if args.resume else None

    def clear_away(self, newest: Path) -> None:
        """Remove it, now that ``newest`` is there; bring along the best of the resumed run."""
        remove_leftovers(self.folder)
        for path in self.files:
            if path != newest:
                path.unlink(missing_ok=True)
        if self.best_before is not None and self.best_before.exists():
            if self.best_before.resolve() != (self.folder / BEST).resolve():
                copy_atomically(self.best_before, self.folder / BEST)
        else:
            (self.folder / BEST).unlink(missing_ok=True)
