"""``--dry-run``: what a command would do, how fast and for how long, without doing it."""

import resource
import time
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

import torch

from utils.common.distributed import ONE_PROCESS, Ranks
from utils.common.errors import UserError
from utils.common.files import write_atomically
from utils.common.text import plural
from utils.data.loading import DeviceLoader
from utils.data.sampling import Position, TrainBatches
from utils.training.engine import Evaluation, Trainer
from utils.training.schedule import Schedule

STEPS = 5  # that are timed, after one that is not
PICTURE = "learning_rate.png"
_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 60  # characters of the curve


def dry_run(
    trainer: Trainer,
    loader: DeviceLoader[TrainBatches],
    evaluation: Evaluation,
    folder: str | None,
    ranks: Ranks = ONE_PROCESS,
) -> None:
    """Print the steps, the learning rate, the memory and the time of a run; some steps are trained for it.

    Args:
        trainer: the run's; of no use afterwards.
        loader: its batches.
        evaluation: its evaluation.
        folder: where the curve of the learning rate is drawn as a picture; None: nowhere.
        ranks: the processes that train together.

    Raises:
        UserError: the picture cannot be written.
    """
    batches, schedule = loader.batches, trainer.schedule
    epochs = schedule.epochs
    print(f"{plural(batches.steps, 'step')} in each of {plural(epochs, 'epoch')}")
    rates = curve(schedule, batches.steps)
    print(f"learning rate {sparkline(rates)} (0 to {max(rates):g})")
    if folder and ranks.main:
        print(f"drawn in {draw(curve(schedule, batches.steps, points=2000), epochs, Path(folder))}")
    trainer.ahead = 1  # so that it yields after every step
    training = seconds_each(trainer.epoch(loader, Position(0)), loader.device)
    checking = seconds_each(evaluation, loader.device)
    epoch = training * batches.steps + checking * len(evaluation)
    print(f"memory: {memory(loader.device)}")
    print(f"{batches.samples_per_step / training:,.1f} images/s, {training:.3f} s per step of {STEPS} timed")
    print(f"expected: {hours(epoch)} per epoch with its evaluation, {hours(epoch * epochs)} in all")
    print("dry run: nothing was trained or saved")


def seconds_each(steps: Iterable[object], device: torch.device) -> float:
    """Return the seconds of a step or batch, the mean of ``STEPS`` after the first.

    Where there is only one, return its time, which the start makes longer.
    """
    began = time.perf_counter()
    times: list[float] = []
    for _ in islice(steps, 1 + STEPS):
        if device.type == "cuda" and not times:
            torch.cuda.synchronize(device)
        times.append(time.perf_counter())
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        times[-1] = time.perf_counter()
    return (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else times[0] - began


def curve(schedule: Schedule, steps: int, points: int = _WIDTH) -> list[float]:
    """Return the learning rates of evenly spaced steps of a run with so many steps per epoch."""
    total = schedule.epochs * steps
    places = [i * (total - 1) // (points - 1) for i in range(points)]
    return [schedule(place // steps, place % steps, steps) for place in places]


def sparkline(values: Sequence[float]) -> str:
    """Return a character for each value, its height in proportion."""
    most = max(values) or 1.0
    return "".join(_BARS[round(value / most * (len(_BARS) - 1))] for value in values)


def draw(rates: Sequence[float], epochs: int, folder: Path) -> Path:
    """Draw the learning rates of a run into a folder; return the picture's path."""
    from matplotlib.figure import Figure  # slow to import, and this is its only use here

    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot([epochs * i / (len(rates) - 1) for i in range(len(rates))], rates)
    axes.set(xlabel="epoch", ylabel="learning rate", xlim=(0, epochs), ylim=(0, None))
    axes.grid(alpha=0.3)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / PICTURE, lambda file: figure.savefig(file, format="png", dpi=150))
    except OSError as error:
        raise UserError(f"-c {folder}: cannot write {PICTURE} ({error.strerror})") from None
    return folder / PICTURE


def memory(device: torch.device) -> str:
    """Return the most memory that was in use so far, as text."""
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB at most on each GPU"
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB at most in each process"


def hours(seconds: float) -> str:
    """Return seconds in the unit that reads best."""
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
