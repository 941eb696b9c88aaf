"""``--dry-run``: what a command would do, how fast and for how long, without doing it."""

import argparse
import io
import resource
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import torch

from utils.common.distributed import ONE_PROCESS, Ranks
from utils.common.errors import UserError
from utils.common.files import write_atomically
from utils.common.text import plural
from utils.data.loading import DeviceLoader
from utils.data.sampling import EvalBatches, Position, TrainBatches
from utils.training.engine import Keeper, Trainer
from utils.training.schedule import Schedule

STEPS = 5  # that are timed, after one that is not
PICTURE = "learning_rate.png"
_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 60  # characters of the curve


class EnoughError(Exception):
    """The steps to be timed are done."""


class Clock(Keeper):
    """Times the steps of an epoch, or the batches of an evaluation, after the first.

    Args:
        device: where they are computed; waited for after the first and the last of them only.
        steps: how many, with the first.
        begin: called when the first is done.
        stop: raise :class:`EnoughError` when all are done.
    """

    def __init__(
        self, device: torch.device, steps: int, begin: Callable[[], object] | None = None, stop: bool = False
    ) -> None:
        self.device, self.steps, self.begin, self.stop = device, steps, begin, stop
        self.began = time.perf_counter()
        self.times: list[float] = []

    def after_step(self, reached: Position, steps: int, signal: int) -> None:
        self.between_batches()

    def between_batches(self) -> None:
        done = len(self.times) + 1
        if self.device.type == "cuda" and done in (1, self.steps):
            torch.cuda.synchronize(self.device)
        if done == 1 and self.begin:
            self.begin()
        self.times.append(time.perf_counter())
        if self.stop and done == self.steps:
            raise EnoughError

    @property
    def seconds(self) -> float:
        """Of a step or batch after the first; of the first, which takes longer, if there was no other."""
        first, last = self.times[0], self.times[-1]
        return (last - first) / (len(self.times) - 1) if len(self.times) > 1 else last - self.began


def rehearse(
    args: argparse.Namespace,
    trainer: Trainer,
    train_loader: DeviceLoader[TrainBatches],
    val_loader: DeviceLoader[EvalBatches],
    check: Callable[[Keeper], object],
    ranks: Ranks = ONE_PROCESS,
) -> None:
    """Print the steps, the rate, the memory and the time of a run; the network that it has trained is no use.

    Args:
        args: the command line; with ``-c`` the curve of the rate is drawn into that folder too.
        trainer: of the run.
        train_loader: its batches.
        val_loader: those of its evaluation.
        check: evaluates.
        ranks: the processes that train together.

    Raises:
        UserError: the picture cannot be written.
    """
    batches = train_loader.batches
    print(f"{plural(batches.steps, 'step')} in each of {plural(args.epochs, 'epoch')}")
    rates = curve(trainer.schedule, args.epochs, batches.steps)
    print(f"rate {sparkline(rates)} (0 to {max(rates):g})")
    if args.checkpoint and ranks.main:
        fine = curve(trainer.schedule, args.epochs, batches.steps, points=2000)
        print(f"drawn in {draw(fine, args.epochs, Path(args.checkpoint))}")
    training = timed(
        train_loader.device, batches.steps, lambda clock: trainer.epoch(train_loader, Position(0), clock)
    )
    checking = timed(val_loader.device, len(val_loader), check)
    epoch = training * batches.steps + checking * len(val_loader)
    print(f"memory: {memory(train_loader.device)}")
    print(f"{batches.samples_per_step / training:,.1f} images/s, {training:.3f} s per step of {STEPS} timed")
    print(f"expected: {hours(epoch)} per epoch with its evaluation, {hours(epoch * args.epochs)} in all")
    print("dry run: nothing was trained or saved")


def timed(device: torch.device, steps: int, run: Callable[[Clock], object]) -> float:
    """Seconds of a step or batch of a run that has so many."""
    clock = Clock(device, min(STEPS + 1, steps), stop=True)
    with suppress(EnoughError):
        run(clock)
    return clock.seconds


def curve(schedule: Schedule, epochs: int, steps: int, points: int = _WIDTH) -> list[float]:
    """Rates of evenly spaced steps of a run."""
    total = epochs * steps
    places = [i * (total - 1) // (points - 1) for i in range(points)]
    return [schedule(place // steps, place % steps, steps) for place in places]


def sparkline(values: Sequence[float]) -> str:
    """A character for each value, its height in proportion."""
    most = max(values) or 1.0
    return "".join(_BARS[round(value / most * (len(_BARS) - 1))] for value in values)


def draw(rates: Sequence[float], epochs: int, folder: Path) -> Path:
    from matplotlib.figure import Figure  # slow to import, and this is its only use here

    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot([epochs * i / (len(rates) - 1) for i in range(len(rates))], rates)
    axes.set(xlabel="epoch", ylabel="learning rate", xlim=(0, epochs), ylim=(0, None))
    axes.grid(alpha=0.3)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=150)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / PICTURE, lambda file: file.write(picture.getvalue()))
    except OSError as error:
        raise UserError(f"-c {folder}: cannot write {PICTURE} ({error.strerror})") from None
    return folder / PICTURE


def memory(device: torch.device) -> str:
    """The most that was in use so far."""
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB at most on each GPU"
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB at most in each process"


def hours(seconds: float) -> str:
    """Seconds in the unit that reads best."""
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
