"""A training run: where it starts and stops, what it leaves behind."""

import argparse
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch

from utils import checkpoint
from utils.checkpoint import BEST, LAST
from utils.distributed import ONE_PROCESS, Ranks
from utils.engine import Keeper
from utils.errors import UserError
from utils.files import remove_leftovers, write_atomically
from utils.folder import Predecessor, check_folder, choose_folder, continues, make_folder
from utils.logger import LOG, RunLog
from utils.metrics import Metrics
from utils.provenance import origin
from utils.resume import differences, previous_rows, start_of_training
from utils.sampling import Position, TrainBatches
from utils.signals import EXIT_CODES, Signals

BAD_BATCH = "not_finite.txt"  # the files of a batch whose loss is not finite


class Run(Keeper):
    """The folder of a training run: log.txt, TensorBoard events and checkpoints; only rank 0 writes.

    Nothing that the folder holds is touched before the first checkpoint. Within the block a signal that asks
    to stop ends the run after the step, saved.

    Args:
        args: the command line.
        saved: the checkpoint that it continues, or nothing.
        batches: of its training.
        fields: what every checkpoint of the run holds, beside what training has reached.
        state: gives what training has reached: ``state_dict``, ``optimizer``, ...
        ranks: the processes that train together.

    Raises:
        UserError: the run is finished, the folder holds another run, is in use, or cannot be written to.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        saved: Mapping[str, Any],
        batches: TrainBatches,
        fields: Mapping[str, Any],
        state: Callable[[], Mapping[str, Any]],
        ranks: Ranks = ONE_PROCESS,
    ) -> None:
        self.args, self.ranks, self.state = args, ranks, state
        self.folder = choose_folder(args)
        self.reached = start_of_training(args, saved, ranks)
        self.accuracy, self.best = float(saved.get("acc", 0.0)), float(saved.get("best_acc", -1.0))
        self.signals = Signals()
        self.log: RunLog | None = None
        if not ranks.main:
            return
        self.lock = make_folder(self.folder)
        check_folder(args)  # again: another run may have ended since the script looked
        self.fields = {
            **fields,
            "processes": ranks.size,
            "images_per_step": batches.samples_per_step,
            "training_images": batches.size,
            **origin(args),
        }
        self.best_epoch = int(saved.get("best_epoch", 0))
        rows = previous_rows(args, saved, self.reached.epoch)
        self.log = RunLog(self.folder, args.epochs, rows, self.reached.epoch)
        self.before: Predecessor | None = None
        if continues(args, self.folder):
            self._repair(self.log)
        else:
            self.before = Predecessor(args, self.folder)
        if saved:
            print(f"continuing {args.resume} {self.reached}")
        for note in differences(saved, self.fields, self.reached):
            print(f"note: {note}")
        print(f"seed {fields['seed']}, writing to {self.folder}/")
        self.log.header()

    def __enter__(self) -> "Run":
        self.signals.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.signals.__exit__(*error)
        if self.log is not None:
            self.log.close()
            self.lock.close()

    def epochs(self) -> Iterator[Position]:
        """Where each epoch begins: the first where the resumed run stopped, perhaps in its middle."""
        while self.reached.epoch < self.args.epochs:
            yield self.reached

    @property
    def signal(self) -> int:
        return self.signals.received

    def after_step(self, reached: Position, steps: int, signal: int) -> None:
        """Save every ``--save-every`` steps, and stop on a signal."""
        self.reached = reached
        if signal:
            self._stop(signal)
        if self.args.save_every and steps % self.args.save_every == 0:
            self._save()

    def between_batches(self) -> None:
        """Stop an evaluation on a signal; the resumed run evaluates anew."""
        (signal,) = self.ranks.largest([self.signal])
        if signal:
            self._stop(signal)

    def finish_epoch(
        self, epoch: int, rate: float, trained: Metrics, validated: Metrics, images_per_second: float
    ) -> None:
        """Log an epoch, counted from 0, and save."""
        self.accuracy, self.reached = validated.top1, Position(epoch + 1)
        if validated.top1 > self.best:
            self.best, self.best_epoch = validated.top1, epoch + 1
        if self.log is not None:
            self.log.add(rate, trained, validated)
        self._save()
        if self.log is not None:
            self.log.show(epoch + 1, rate, trained, validated, images_per_second)

    def give_up(self, reached: Position, why: str, files: Sequence[str]) -> NoReturn:
        """Save what was reached before the step that is to blame, and the names of its images."""
        self.reached = reached
        with self._writing():
            if self.ranks.main:
                names = "".join(f"{file}\n" for file in files).encode("utf-8", "surrogateescape")
                write_atomically(self.folder / BAD_BATCH, lambda file: file.write(names))
        self._save()
        self.ranks.refuse(
            f"{why}; all names are in {self.folder / BAD_BATCH}, the state before it is in "
            f"{self.folder / LAST}: go on with --resume and a lower --lr, or with --on-nan skip"
        )

    def finish(self) -> None:
        """Say what was reached."""
        if self.ranks.main:
            print(f"best top-1: {self.best:.2f} %")
            files = [name for name in (LOG, LAST, BEST) if (self.folder / name).exists()]
            print(f"wrote {self.folder}/: {', '.join(files)}, TensorBoard events")

    def _stop(self, number: int) -> NoReturn:
        self._save()
        name = signal.Signals(number).name
        print(f"stopped by {name}, {self.reached}: resume with --resume {self.folder / LAST}", flush=True)
        sys.exit(EXIT_CODES[signal.Signals(number)])

    def _save(self) -> None:
        """Write a checkpoint of what was reached, on rank 0; the others wait for it."""
        sums = self.ranks.gather([float(value) for value in self.reached.sums])
        with self._writing():
            if self.log is not None:
                self._write(self.log, {"sums": sums, **self.state()})

    def _write(self, log: RunLog, state: Mapping[str, Any]) -> None:
        """A crash between any two lines leaves what :meth:`_repair` completes."""
        for key, value in state["state_dict"].items():
            if not key.endswith(("running_mean", "running_var")) and not torch.isfinite(value).all():
                raise UserError(
                    f"{key} is not finite any more: not saved; go on from the last checkpoint in "
                    f"{self.folder} with a lower --lr"
                )
        reached = {"epoch": self.reached.epoch, "images": self.reached.images, "rows": log.rows}
        results = {"acc": self.accuracy, "best_acc": self.best, "best_epoch": self.best_epoch}
        path = checkpoint.save({**self.fields, **reached, **results, **state}, self.folder)
        if self.before is not None:
            self.before.clear_away(path)
            self.before = None
        log.write()
        checkpoint.publish(path, self._is_best, self.args.keep)

    @property
    def _is_best(self) -> bool:
        return self.best_epoch > 0 and self.reached.images == 0 and self.best_epoch == self.reached.epoch

    def _repair(self, log: RunLog) -> None:
        """Complete what a crash between the parts of a save has left undone in the run's own folder."""
        remove_leftovers(self.folder)
        path = Path(self.args.resume)
        if checkpoint.position_of(path) == (self.reached.epoch, self.reached.images):
            log.write()
            checkpoint.publish(path, self._is_best, self.args.keep)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """A failure to write, on rank 0, ends all processes with one line."""
        with self.ranks.agree():
            try:
                yield
            except OSError as error:
                reason = error.strerror or str(error)
                raise UserError(
                    f"cannot write to {self.folder} ({reason}); what it held before can still be resumed: "
                    "mend that and go on with --resume auto"
                ) from None
