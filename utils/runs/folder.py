"""The folder of a run: its checkpoints and log.txt, and whatever an earlier run left there.

Each checkpoint is written under the name of its position, ``checkpoint-EPOCHS-IMAGES.pth.tar``. The newest
has the name ``checkpoint.pth.tar`` besides, the best ``model_best.pth.tar``.
"""

import fcntl
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from utils.common.errors import UserError
from utils.common.files import copy_atomically, remove_leftovers
from utils.common.text import plural, shown
from utils.networks import checkpoint
from utils.runs.log import CURVES, LOG, read_rows, write_log

LAST = "checkpoint.pth.tar"
BEST = "model_best.pth.tar"


def kept(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder that are named by their position, the newest first."""
    found = [(position_of(path), path) for path in folder.glob("checkpoint-*.pth.tar") if path.is_file()]
    return [path for _, path in sorted((at, path) for at, path in found if at is not None)][::-1]


def position_of(path: Path) -> tuple[int, int] | None:
    """Return the epochs completed and the images of the next one, by a checkpoint's name; None for others."""
    match = re.fullmatch(r"checkpoint-(\d+)-(\d+)\.pth\.tar", path.name)
    return (int(match[1]), int(match[2])) if match else None


def candidates(folder: Path) -> list[Path]:
    """Return all checkpoints of a folder, the newest first."""
    return [path for path in (*kept(folder), folder / LAST, folder / BEST) if path.exists()]


def newest(folder: Path) -> str | None:
    """Return the newest checkpoint of a folder that can be read; None in a folder without any.

    One that is damaged, or is not of the position that its name says, is named in a note, and the one before
    it is tried.

    Raises:
        UserError: there are some, and none can be read.
    """
    found = candidates(folder)
    for path in found:
        try:
            check_position(path)
            return str(path)
        except UserError as error:
            print(f"note: {shown(str(error))}; trying the one before it", flush=True)
    if found:
        text = f"none of the {len(found)} checkpoints in {folder} can be read"
        raise UserError(f"--resume auto: {text}; start anew in another folder with -c")
    return None


def check_position(path: Path) -> None:
    """Check that a checkpoint can be read, and is of the position that its name says, if it says one.

    Raises:
        UserError: it cannot, or is not: somebody has renamed or copied it.
    """
    flag = "--resume auto:"
    saved, named = checkpoint.load(str(path), flag), position_of(path)
    position = (saved.get("epoch"), saved.get("images", 0))
    if named not in (None, position):
        raise MisnamedError(
            f"{flag} {path}: its name is not that of what it holds, epochs and images {position}"
        )


class MisnamedError(UserError):
    """A checkpoint whose name says another position."""


def save(content: Mapping[str, Any], folder: Path) -> Path:
    """Write a checkpoint under the name of its position."""
    path = folder / f"checkpoint-{content['epoch']:04d}-{content['images']:07d}.pth.tar"
    checkpoint.write(content, path)
    return path


def publish(path: Path, is_best: bool, keep: int) -> None:
    """Give the newest checkpoint its plain names and remove the oldest of more than ``keep``.

    At any moment each name leads to a whole checkpoint, the previous or the new one. The best comes first:
    whoever continues from ``checkpoint.pth.tar`` then has the best of all epochs before it.
    """
    if is_best:
        copy_atomically(path, path.parent / BEST)
    copy_atomically(path, path.parent / LAST)
    for old in kept(path.parent)[keep:]:
        if old != path:
            old.unlink()


def holds_run(folder: Path) -> bool:
    """Return whether a folder has a checkpoint or a log.txt with epochs in it."""
    return bool(candidates(folder) or read_rows(folder / LOG))


def check_folder(folder: Path, goes_on: bool, overwrite: bool) -> None:
    """Check that a run may write into a folder, and can.

    Args:
        folder: the run's; it need not exist.
        goes_on: whether the run continues the one that the folder holds.
        overwrite: whether it may replace that one.

    Raises:
        UserError: it may not, or cannot.
    """
    try:
        if holds_run(folder) and not goes_on and not overwrite:
            raise UserError(f"-c {folder} holds {_what_is_there(folder)}")
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    except OSError as error:
        raise UserError(f"-c {folder}: {error.strerror}") from None
    if not existing.is_dir():
        raise UserError(f"-c {folder}: cannot make this folder ({existing} is a file)")
    if not os.access(existing, os.W_OK):
        raise UserError(f"-c {folder}: no permission to write there")


def _what_is_there(folder: Path) -> str:
    """Say what a folder holds of a run, and what to do."""
    remedy = "choose another folder with -c, or give --overwrite"
    if candidates(folder):
        return f"a run already: go on with --resume {folder / LAST}, {remedy}"
    epochs = plural(len(read_rows(folder / LOG)), "epoch")
    what = f"the {LOG} of a run of {epochs}, but no checkpoint to go on from"
    return f"{what}: {remedy} (without --resume auto) to replace it"


class RunFolder:
    """A run's folder while the run writes to it, locked against other processes.

    Checkpoints are written in a thread, one after the other; training waits for a copy in memory only. A
    crash at any moment leaves a folder from which ``--resume auto`` goes on. What the folder holds of another
    run stays until the first checkpoint of this one is written.

    Args:
        path: the folder; made if it is not there.
        goes_on: whether the run continues the one that the folder holds.
        overwrite: whether it may replace that one.
        keep: how many of the newest checkpoints stay.

    Raises:
        UserError: the folder holds another run, another process trains into it, or it cannot be made.
    """

    best: Path | None = None  # the best checkpoint of the run that is continued from another folder, to copy

    def __init__(self, path: Path, goes_on: bool, overwrite: bool, keep: int) -> None:
        self.path, self.keep = path, keep
        self._lock()
        check_folder(path, goes_on, overwrite)  # again: another run may have ended since the script looked
        self.old_checkpoints, self.old_files = ([], []) if goes_on else _files_of_a_run(path)
        self.replaces = bool(self.old_checkpoints or self.old_files)
        self.unsaved = not goes_on
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="saving")
        self.writing: Future[None] | None = None

    def _lock(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock = (self.path / ".lock").open("w")
        except OSError as error:
            raise UserError(f"-c {self.path}: cannot make this folder ({error.strerror})") from None
        try:
            # Not flock: data workers would inherit it, and outlive a killed run by some seconds.
            fcntl.lockf(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            text = "another process is training into it; choose another folder"
            raise UserError(f"-c {self.path}: {text}") from None
        except OSError:  # a file system without locks
            pass

    def save(self, content: Mapping[str, Any], is_best: bool) -> None:
        """Begin to write a checkpoint, and its ``rows`` to log.txt; ``content`` may change afterwards.

        Raises:
            OSError: the checkpoint before could not be written.
        """
        self.wait()
        self.writing = self.thread.submit(self._write, _on_cpu(content), is_best)

    def wait(self) -> None:
        """Wait until all is written.

        Raises:
            OSError: it could not be written.
        """
        writing, self.writing = self.writing, None
        if writing is not None:
            writing.result()

    def _write(self, content: Mapping[str, Any], is_best: bool) -> None:
        if self.unsaved:  # until the new one is written, checkpoint.pth.tar is the other run's
            remove_leftovers(self.path)
            for old in self.old_checkpoints:
                old.unlink(missing_ok=True)
        path = save(content, self.path)
        if self.unsaved:
            self._replace_old_run()
            self.unsaved = False
        write_log(self.path, content["rows"])
        publish(path, is_best, self.keep)

    def close(self) -> None:
        """Let the thread end and others use the folder, after an error too."""
        self.thread.shutdown()
        self.lock.close()

    def repair(self, path: Path, rows: Sequence[str], is_best: bool) -> None:
        """Complete what a crash has left undone after ``path``, the newest whole checkpoint, was written."""
        remove_leftovers(self.path)
        for newer in kept(self.path):
            if newer == path:
                break
            with suppress(MisnamedError):  # whole: not ours to remove
                _unlink_damaged(newer)
        write_log(self.path, rows)
        publish(path, is_best, self.keep)

    def _replace_old_run(self) -> None:
        """Copy the best checkpoint of the run that is continued, and remove what another run left here."""
        if self.best is not None and self.best.exists():
            copy_atomically(self.best, self.path / BEST)
            self.old_files = [path for path in self.old_files if path.name != BEST]
        for path in self.old_files:
            path.unlink(missing_ok=True)


def _unlink_damaged(path: Path) -> None:
    """Remove a damaged checkpoint, which would be kept in place of whole ones.

    Raises:
        MisnamedError: it is whole, but not of the position that its name says.
    """
    try:
        check_position(path)
    except MisnamedError:
        raise
    except UserError:
        path.unlink()


def _files_of_a_run(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the checkpoints that a folder keeps by position, and the other files of a run in it."""
    others = [folder / name for name in (LAST, BEST, LOG) if (folder / name).exists()]
    if holds_run(folder):
        others += [*folder.glob("events.out.tfevents.*"), *folder.glob(CURVES)]
    return kept(folder), others


def _on_cpu(value: Any) -> Any:
    """Copy nested dicts and lists, with all tensors, to the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: _on_cpu(item) for key, item in value.items()}
    return [_on_cpu(item) for item in value] if isinstance(value, list | tuple) else value
