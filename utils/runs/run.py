"""A training run: where it starts and stops, what it leaves behind."""

import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from utils.common.errors import UserError
from utils.common.files import write_atomically
from utils.common.signals import EXIT_CODES, Signals
from utils.data.sampling import Position, TrainBatches
from utils.runs.folder import BEST, LAST, RunFolder, position_of
from utils.runs.log import CURVES, LOG, RunLog
from utils.runs.resume import Resumed, differences
from utils.training.engine import Step, Trainer

BAD_BATCH = "not_finite.txt"  # the files of a batch whose loss is not finite


@dataclass
class Run:
    """A training run with its folder: log.txt, TensorBoard events and checkpoints; only rank 0 writes.

    Nothing that the folder holds is touched before the first checkpoint. Within the block SIGTERM, SIGINT and
    SIGUSR1 are noted, for the training loop to stop after the step.

    Args:
        resumed: what it goes on from.
        trainer: trains it.
        net: the trainer's network without wrappers.
        batches: those of training.
        fields: what every checkpoint of the run holds: ``arch``, ``classes``, its origin.
        start_epoch: the first, from 0, unless the checkpoint says it.
        save_every: steps between two checkpoints within an epoch; None: none there.
        keep: how many of the newest checkpoints stay.
        overwrite: whether the run may replace another one in its folder.

    Raises:
        UserError: the folder holds another run, is in use, or cannot be written to.
    """

    resumed: Resumed
    trainer: Trainer
    net: nn.Module
    batches: TrainBatches
    fields: Mapping[str, Any]
    start_epoch: int = 0
    save_every: int | None = None
    keep: int = 2
    overwrite: bool = False

    def __post_init__(self) -> None:
        self.task, self.ranks = self.trainer.task, self.trainer.ranks
        self.path, self.epochs = self.resumed.folder, self.trainer.schedule.epochs
        self.trainer.pause_every = self.save_every
        saved = self.resumed.saved
        self.accuracy, self.best = float(saved.get("acc", 0.0)), float(saved.get("best_acc", -1.0))
        self.best_epoch = int(saved.get("best_epoch", 0))
        self.signals = Signals()
        self.unsaved = True
        with self.ranks.agree():
            count = len(self.task.meter(torch.device("cpu")).sums)
            self.position = self.resumed.position(self.start_epoch, count, self.ranks)
            if self.ranks.main:
                self._open()

    def _open(self) -> None:
        """On rank 0: take the folder, begin the log."""
        resumed, batches, in_place = self.resumed, self.batches, self.resumed.in_place
        steps = {"images_per_step": batches.samples_per_step, "training_images": batches.size}
        self.fields = {**self.fields, "seed": self.trainer.seed, "processes": self.ranks.size, **steps}
        self.folder = RunFolder(self.path, in_place, self.overwrite, self.keep)
        resumed.check_unchanged()
        rows = resumed.previous_rows(self.position.epoch)
        first_step = self.position.epoch * batches.steps + self.position.images // batches.samples_per_step
        columns = self.task.log_format.columns
        self.log = RunLog(self.path, self.epochs, columns, rows, self.position.epoch, first_step)
        if not in_place:
            self.folder.best = resumed.best()
        elif resumed.file and position_of(Path(resumed.file)) == self.position[:2]:
            with _one_line(self.path):
                self.folder.repair(Path(resumed.file), self.log.rows, self._is_best)
        if resumed.file:
            print(f"continuing {resumed.file} {self.position}")
        for note in differences(resumed.saved, self.fields, self.position):
            print(f"note: {note}")
        print(f"seed {self.trainer.seed}, writing to {self.path}/")
        self.log.header()

    def __enter__(self) -> "Run":
        self.signals.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.signals.__exit__(*error)
        if self.ranks.main:
            self.folder.close()
            self.log.close()

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return self.position.epoch >= self.epochs

    def after_step(self, step: Step) -> None:
        """Log a step; save every ``save_every`` steps; end the run, saved, on an error or a signal.

        ``step`` need not be every one, but must be each after which a checkpoint is due.
        """
        self.position = step.position
        if step.point and self.ranks.main:
            self.log.point(*step.point, wait=self.unsaved and self.folder.replaces)
        if step.error:
            self._give_up(step)
        if step.signal:
            self._stop(step.signal)
        if self.save_every and step.number % self.save_every == 0:
            self._save()

    def stop_if_asked(self) -> None:
        """End the run, saved, on a signal to any process; the resumed run evaluates anew."""
        (number,) = self.ranks.largest([self.signals.received])
        if number:
            self._stop(number)

    def finish_epoch(self, validated: Any) -> None:
        """Log an epoch and save; ``validated`` is the result of its evaluation."""
        trainer = self.trainer
        epoch, score = self.position.epoch + 1, self.task.score(validated)
        values = self.task.row(trainer.learning_rate, trainer.trained, validated)
        self.accuracy, self.position = score, Position(epoch)
        if score > self.best:
            self.best, self.best_epoch = score, epoch
        if self.ranks.main:
            self.log.add(values)
        self._save(wait=self.finished)
        if self.ranks.main:
            self.log.show(epoch, values, trainer.images_per_second)

    def finish(self) -> None:
        """Draw the curves, and print what was reached."""
        if self.ranks.main:
            print(f"best {self.task.log_format.score}: {self.best:.2f} %", flush=True)
            if len(self.log.rows) > 2:  # one epoch is no curve
                self.log.draw()
            files = [name for name in (LOG, CURVES, LAST, BEST) if (self.path / name).exists()]
            print(f"wrote {self.path}/: {', '.join(files)}, TensorBoard events")

    def _give_up(self, step: Step) -> NoReturn:
        """Save what was reached before the step that is to blame, and the names of its images."""
        self._save(wait=True)
        with self._errors_in_one_line():
            if self.ranks.main:
                names = "".join(f"{file}\n" for file in step.files).encode("utf-8", "surrogateescape")
                write_atomically(self.path / BAD_BATCH, lambda file: file.write(names))
        left = f"all names are in {self.path / BAD_BATCH}, the state before it is in {self.path / LAST}"
        remedy = "go on with --resume and a lower --lr, or with --on-nan skip"
        self.ranks.refuse(f"{step.error}; {left}: {remedy}")

    def _stop(self, number: int) -> NoReturn:
        self._save(wait=True)
        name = signal.Signals(number).name
        print(f"stopped by {name}, {self.position}: resume with --resume {self.path / LAST}", flush=True)
        sys.exit(EXIT_CODES[signal.Signals(number)])

    def _save(self, wait: bool = False) -> None:
        """Begin to save what was reached, on rank 0; wait for the first checkpoint of the run in any case."""
        sums = self.ranks.gather([float(value) for value in self.position.sums])
        with self._errors_in_one_line():
            if self.ranks.main:
                state = self.trainer.state(self.net)
                _refuse_not_finite(state["state_dict"], self.path)
                reached = {"epoch": self.position.epoch, "images": self.position.images, "sums": sums}
                results = {"acc": self.accuracy, "best_acc": self.best, "best_epoch": self.best_epoch}
                content = {**self.fields, **reached, **results, "rows": self.log.rows, **state}
                self.folder.save(content, self._is_best)
        if wait or self.unsaved:
            with self._errors_in_one_line():
                if self.ranks.main:
                    self.folder.wait()
            self.unsaved = False

    @property
    def _is_best(self) -> bool:
        at = self.position
        return self.best_epoch > 0 and at.images == 0 and self.best_epoch == at.epoch

    @contextmanager
    def _errors_in_one_line(self) -> Iterator[None]:
        """Let a failure to write, on rank 0, end all processes with one line."""
        with self.ranks.agree(), _one_line(self.path):
            yield


@contextmanager
def _one_line(folder: Path) -> Iterator[None]:
    """Turn a failure to write into a line for the user."""
    try:
        yield
    except OSError as error:
        if not folder.is_dir():
            text = "was removed while the run wrote to it, and with it what the run could go on from"
            raise UserError(f"-c {folder} {text}: start again") from None
        remedy = "what it held before can still be resumed: mend that and go on with --resume auto"
        raise UserError(f"cannot write to {folder} ({error.strerror or error}); {remedy}") from None


def _refuse_not_finite(weights: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Check that weights are finite; statistics of batch norm may overflow in half precision.

    Raises:
        UserError: one is not.
    """
    for key, value in weights.items():
        if not key.endswith(("running_mean", "running_var")) and not torch.isfinite(value).all():
            remedy = f"go on from the last checkpoint in {folder} with a lower --lr"
            raise UserError(f"{key} is not finite any more: not saved; {remedy}")
