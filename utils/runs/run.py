"""A training run: where it starts and stops, what it leaves behind."""

import argparse
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch

from utils.common.distributed import ONE_PROCESS, Ranks
from utils.common.errors import UserError
from utils.common.files import write_atomically
from utils.common.signals import EXIT_CODES, Signals
from utils.data.sampling import Position, TrainBatches
from utils.networks import checkpoint
from utils.networks.checkpoint import BEST, LAST
from utils.runs.curves import CURVES, write_curves
from utils.runs.folder import Predecessor, check_folder, choose_folder, continues, make_folder
from utils.runs.log import LOG, Form, RunLog
from utils.runs.provenance import origin
from utils.runs.resume import differences, previous_rows, start_of_training
from utils.runs.saving import Saver
from utils.training.engine import Keeper

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
        form: of its log.
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
        form: Form,
        ranks: Ranks = ONE_PROCESS,
    ) -> None:
        self.args, self.ranks, self.state, self.form = args, ranks, state, form
        self.folder = choose_folder(args)
        self.reached = start_of_training(args, saved, ranks)
        self.accuracy, self.best = float(saved.get("acc", 0.0)), float(saved.get("best_acc", -1.0))
        self.best_epoch = int(saved.get("best_epoch", 0))
        self.signals = Signals()
        self.unsaved = True
        if ranks.main:
            self._open(saved, batches, {**fields, **steps_of(batches, ranks), **origin(args)})

    def _open(self, saved: Mapping[str, Any], batches: TrainBatches, fields: dict[str, Any]) -> None:
        """On rank 0 only: take the folder, begin the log."""
        args, self.fields = self.args, fields
        self.lock = make_folder(self.folder)
        check_folder(args)  # again: another run may have ended since the script looked
        if args.auto and checkpoint.candidates(self.folder) != args.seen:
            raise UserError(f"-c {self.folder}: another process has trained into it meanwhile; start again")
        rows = previous_rows(args, saved, self.reached.epoch)
        steps = self.reached.epoch * batches.steps + self.reached.images // batches.samples_per_step
        self.log = RunLog(self.folder, args.epochs, self.form.columns, rows, self.reached.epoch, steps)
        goes_on = continues(args, self.folder)
        before = None if goes_on else Predecessor(args, saved, self.folder)
        self.in_the_way = before is not None and before.there
        self.saver = Saver(self.folder, args.keep, before)
        if goes_on and checkpoint.position_of(Path(args.resume)) == self.reached[:2]:
            with one_line(self.folder):
                self.saver.repair(Path(args.resume), self.log.rows, self._is_best)
        if saved:
            print(f"continuing {args.resume} {self.reached}")
        for note in differences(saved, fields, self.reached):
            print(f"note: {note}")
        print(f"seed {fields['seed']}, writing to {self.folder}/")
        self.log.header()

    def __enter__(self) -> "Run":
        self.signals.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.signals.__exit__(*error)
        if self.ranks.main:
            self.saver.close()
            self.log.close()
            self.lock.close()

    def epochs(self) -> Iterator[Position]:
        """Where each epoch begins: the first where the resumed run stopped, perhaps in its middle."""
        while self.reached.epoch < self.args.epochs:
            yield self.reached
        self._written()

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

    def record(self, steps: int, loss: float, rate: float) -> None:
        """Write a point to TensorBoard, but none beside the files of another run."""
        if self.ranks.main:
            self.log.point(steps, loss, rate, wait=self.unsaved and self.in_the_way)

    def between_batches(self) -> None:
        """Stop an evaluation on a signal; the resumed run evaluates anew."""
        (signal,) = self.ranks.largest([self.signal])
        if signal:
            self._stop(signal)

    def finish_epoch(
        self, epoch: int, values: Sequence[float], score: float, images_per_second: float
    ) -> None:
        """Log an epoch, counted from 0, and save.

        Args:
            epoch: that is done.
            values: of the columns.
            score: of the evaluation.
            images_per_second: of training.
        """
        self.accuracy, self.reached = score, Position(epoch + 1)
        if score > self.best:
            self.best, self.best_epoch = score, epoch + 1
        if self.ranks.main:
            self.log.add(values)
        self._save()
        if self.ranks.main:
            self.log.show(epoch + 1, values, images_per_second)

    def give_up(self, reached: Position, why: str, files: Sequence[str]) -> NoReturn:
        """Save what was reached before the step that is to blame, and the names of its images."""
        self.reached = reached
        self._save()
        self._written()
        with self._errors_in_one_line():
            if self.ranks.main:
                names = "".join(f"{file}\n" for file in files).encode("utf-8", "surrogateescape")
                write_atomically(self.folder / BAD_BATCH, lambda file: file.write(names))
        self.ranks.refuse(
            f"{why}; all names are in {self.folder / BAD_BATCH}, the state before it is in "
            f"{self.folder / LAST}: go on with --resume and a lower --lr, or with --on-nan skip"
        )

    def finish(self) -> None:
        """Draw the curves, and say what was reached."""
        if self.ranks.main:
            print(f"best {self.form.score}: {self.best:.2f} %", flush=True)
            if len(self.log.rows) > 2:  # one epoch is no curve
                write_curves(self.folder)
            files = [name for name in (LOG, CURVES, LAST, BEST) if (self.folder / name).exists()]
            print(f"wrote {self.folder}/: {', '.join(files)}, TensorBoard events")

    def _stop(self, number: int) -> NoReturn:
        self._save()
        self._written()
        name = signal.Signals(number).name
        print(f"stopped by {name}, {self.reached}: resume with --resume {self.folder / LAST}", flush=True)
        sys.exit(EXIT_CODES[signal.Signals(number)])

    def _save(self) -> None:
        """Begin to save what was reached, on rank 0; the first checkpoint of a run is waited for."""
        sums = self.ranks.gather([float(value) for value in self.reached.sums])
        with self._errors_in_one_line():
            if self.ranks.main:
                state = self.state()
                refuse_not_finite(state["state_dict"], self.folder)
                reached = {"epoch": self.reached.epoch, "images": self.reached.images, "sums": sums}
                results = {"acc": self.accuracy, "best_acc": self.best, "best_epoch": self.best_epoch}
                rows = {"rows": self.log.rows}
                self.saver.save({**self.fields, **reached, **results, **rows, **state}, self._is_best)
        if self.unsaved:
            self._written()
            self.unsaved = False

    def _written(self) -> None:
        """Wait until all is on the disk."""
        with self._errors_in_one_line():
            if self.ranks.main:
                self.saver.wait()

    @property
    def _is_best(self) -> bool:
        return self.best_epoch > 0 and self.reached.images == 0 and self.best_epoch == self.reached.epoch

    @contextmanager
    def _errors_in_one_line(self) -> Iterator[None]:
        """A failure to write, on rank 0, ends all processes with one line."""
        with self.ranks.agree(), one_line(self.folder):
            yield


@contextmanager
def one_line(folder: Path) -> Iterator[None]:
    """Turn a failure to write into a line for the user."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write to {folder} ({error.strerror or error}); what it held before can still be "
            "resumed: mend that and go on with --resume auto"
        ) from None


def steps_of(batches: TrainBatches, ranks: Ranks) -> dict[str, Any]:
    """What the steps of a run are made of."""
    sizes = {"images_per_step": batches.samples_per_step, "training_images": batches.size}
    return {"processes": ranks.size, **sizes}


def refuse_not_finite(weights: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Statistics of batch norm may overflow in half precision; nothing else may.

    Raises:
        UserError: a weight is not finite.
    """
    for key, value in weights.items():
        if not key.endswith(("running_mean", "running_var")) and not torch.isfinite(value).all():
            raise UserError(
                f"{key} is not finite any more: not saved; go on from the last checkpoint in {folder} with a "
                "lower --lr"
            )
