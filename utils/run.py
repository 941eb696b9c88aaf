"""A training run: its seed, its folder, where it starts, what it leaves behind."""

import argparse
import fcntl
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from utils import checkpoint
from utils.checkpoint import BEST, LAST
from utils.distributed import ONE_PROCESS, Ranks
from utils.errors import UserError
from utils.files import copy_atomically
from utils.logger import LOG, RunLog, read_rows
from utils.metrics import Metrics


class Run:
    """The folder of a training run: log.txt, TensorBoard events and checkpoints; only rank 0 writes.

    Nothing that the folder holds is touched before the first epoch is complete.

    Args:
        args: the command line.
        saved: the checkpoint that it continues, or nothing.
        fields: what every checkpoint of the run holds, beside the weights and what training has reached.
        ranks: the processes that train together.

    Raises:
        UserError: the run is finished, the folder holds another run, is in use, or cannot be written to.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        saved: Mapping[str, Any],
        fields: Mapping[str, Any],
        ranks: Ranks = ONE_PROCESS,
    ) -> None:
        self.start, self.best = start_of_training(args, saved)
        self.folder, self.fields = choose_folder(args), fields
        self.log: RunLog | None = None
        if not ranks.main:
            return
        self.lock = make_folder(self.folder)
        check_folder(args, saved)  # again: another run may have ended since the script looked
        self.replaced = (
            [] if continues(args, self.folder) else list(self.folder.glob("events.out.tfevents.*"))
        )
        self.best_before = Path(args.resume).parent / BEST if args.resume else None
        if saved:
            print(f"continuing {args.resume} after epoch {self.start}")
            if fields["seed"] != saved.get("seed", fields["seed"]):
                print(f"note: that run's seed is {saved['seed']}: order and augmentation will differ from it")
        print(f"seed {fields['seed']}, writing to {self.folder}/", flush=True)
        self.log = RunLog(self.folder, args.epochs, previous_rows(args, self.start), self.start)

    def finish_epoch(
        self,
        epoch: int,
        rate: float,
        trained: Metrics,
        validated: Metrics,
        images_per_second: float,
        state: Mapping[str, Any],
    ) -> None:
        """Log an epoch, counted from 0, and save ``state`` (``state_dict``, ``optimizer``, ...)."""
        is_best, self.best = validated.top1 > self.best, max(validated.top1, self.best)
        if self.log is None:
            return
        if epoch == self.start:
            self._take_over(is_best)
        self.log.epoch(epoch + 1, rate, trained, validated, images_per_second)
        reached = {"epoch": epoch + 1, "acc": validated.top1, "best_acc": self.best}
        checkpoint.save({**self.fields, **reached, **state}, self.folder, is_best)

    def _take_over(self, is_best: bool) -> None:
        """Clear away a replaced run; bring along the best so far from the folder of the resumed file."""
        for path in self.replaced:
            path.unlink(missing_ok=True)
        if is_best or self.best_before is None or self.best_before.parent.resolve() == self.folder.resolve():
            return
        if self.best_before.exists():
            copy_atomically(self.best_before, self.folder / BEST)
        else:
            (self.folder / BEST).unlink(missing_ok=True)

    def close(self) -> None:
        """Say what was reached."""
        if self.log is None:
            return
        self.log.close()
        self.lock.close()
        print(f"best top-1: {self.best:.2f} %")
        files = [name for name in (LOG, LAST, BEST) if (self.folder / name).exists()]
        print(f"wrote {self.folder}/: {', '.join(files)}, TensorBoard events")


def choose_folder(args: argparse.Namespace) -> Path:
    """``-c``, or the folder of ``--resume``, or ``checkpoint``."""
    return Path(args.checkpoint or (Path(args.resume).parent if args.resume else "checkpoint"))


def continues(args: argparse.Namespace, folder: Path) -> bool:
    """Whether the run goes on in ``folder`` where its last checkpoint left off."""
    return bool(args.resume) and Path(args.resume).resolve() == (folder / LAST).resolve()


def check_folder(args: argparse.Namespace, saved: Mapping[str, Any]) -> None:
    """Refuse a run that has nothing left to do, or would write over another one.

    Raises:
        UserError: so it is.
    """
    start_of_training(args, saved)
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
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"-c {folder}: another process is training into it; choose another folder") from None
    except OSError:  # a file system without locks
        pass
    return lock


def holds_run(folder: Path) -> bool:
    """Whether a folder has a checkpoint or a log.txt with epochs in it."""
    return (folder / LAST).exists() or (folder / BEST).exists() or bool(read_rows(folder / LOG))


def choose_seed(requested: int | None, resumed: int | None) -> int:
    """The run's seed: as requested, else the resumed run's, else a random one of 1 to 10,000."""
    if requested is not None:
        return requested
    return resumed if resumed is not None else random.SystemRandom().randint(1, 10_000)


def start_of_training(args: argparse.Namespace, saved: Mapping[str, Any]) -> tuple[int, float]:
    """The first epoch, from 0, and the best top-1 so far (-1 for none).

    Raises:
        UserError: the resumed run is finished.
    """
    start, best = int(saved.get("epoch", args.start_epoch)), float(saved.get("best_acc", -1.0))
    if start >= args.epochs:
        raise UserError(f"--resume {args.resume}: {start} epochs are done; give --epochs above that to go on")
    return start, best


def previous_rows(args: argparse.Namespace, start: int) -> list[str]:
    """log.txt rows of the epochs before ``start``, from beside the resumed file."""
    if not args.resume:
        return []
    rows = read_rows(Path(args.resume).parent / LOG)[:start]
    if len(rows) < start:
        print(f"note: {len(rows)} of {start} earlier epochs are in a log.txt beside {args.resume}")
    return rows
