"""A training run: its seed, its folder, where it starts, what it leaves behind."""

import argparse
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils import checkpoint
from utils.checkpoint import BEST, LAST
from utils.distributed import ONE_PROCESS, Ranks
from utils.errors import UserError
from utils.logger import LOG, RunLog, read_rows
from utils.metrics import Metrics


class Run:
    """The folder of a training run: log.txt, TensorBoard events and checkpoints; only rank 0 writes.

    Args:
        args: the command line.
        saved: the checkpoint that it continues, or nothing.
        fields: what every checkpoint of the run holds, beside the weights and what training has reached.
        ranks: the processes that train together.

    Raises:
        UserError: the run is finished, the folder holds another run, or cannot be written to.
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
        if ranks.main:
            make_folder(args, self.folder)
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
        self.log.epoch(epoch + 1, rate, trained, validated, images_per_second)
        reached = {"epoch": epoch + 1, "acc": validated.top1, "best_acc": self.best}
        checkpoint.save({**self.fields, **reached, **state}, self.folder, is_best)

    def close(self) -> None:
        """Say what was reached."""
        if self.log is not None:
            self.log.close()
            print(f"best top-1: {self.best:.2f} %")
            print(f"wrote {self.folder}/: log.txt, {LAST}, {BEST}, TensorBoard events")


def choose_folder(args: argparse.Namespace) -> Path:
    """``-c``, or the folder of ``--resume``, or ``checkpoint``."""
    return Path(args.checkpoint or (Path(args.resume).parent if args.resume else "checkpoint"))


def make_folder(args: argparse.Namespace, folder: Path) -> None:
    """Make a run's folder if it is not there; with ``--overwrite`` the run in it is removed.

    Raises:
        UserError: it holds another run, or cannot be written to.
    """
    continued = bool(args.resume) and folder.resolve() == Path(args.resume).parent.resolve()
    if not continued and holds_run(folder):
        if not args.overwrite:
            raise UserError(
                f"-c {folder} holds a run already: go on with --resume {folder / LAST}, "
                "choose another folder, or give --overwrite"
            )
        for path in (folder / LAST, folder / BEST, *folder.glob("events.out.tfevents.*")):
            path.unlink(missing_ok=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"-c {folder}: cannot make this folder ({error.strerror})") from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"-c {folder}: no permission to write there")


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
