"""What a run leaves behind (log.txt, TensorBoard events) and what it says on the way."""

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from utils.common.files import write_atomically
from utils.runs.events import Events
from utils.training.metrics import Sums

LOG = "log.txt"
_LINE_SECONDS = 10.0  # between two progress lines where there is no terminal, and two points of the curves
_BAR_SECONDS = 0.5  # between two readings of the metrics on a terminal


class Column(NamedTuple):
    """A figure of every epoch."""

    name: str  # in log.txt
    tag: str  # in TensorBoard
    title: str | None  # on the console; None: not there
    decimals: int  # on the console

    @property
    def width(self) -> int:
        """Characters on the console."""
        return max(len(self.title or ""), self.decimals + 2, 6)

    def shown(self, value: float) -> str:
        """The figure on the console; one that is too large for its column has fewer digits."""
        text = f"{value:.{self.decimals}f}"
        return text if len(text) <= self.width else f"{value:.2g}"


class Form(NamedTuple):
    """What is logged of every epoch."""

    columns: Sequence[Column]
    score: str  # what makes an epoch the best, in percent


def read_rows(path: Path) -> list[str]:
    """The rows of a log.txt without its header; none when there is no such file."""
    return path.read_text(errors="replace").splitlines()[1:] if path.is_file() else []


def write_log(folder: Path, rows: Sequence[str]) -> None:
    """Write log.txt anew, header included."""
    text = "".join(f"{row}\n" for row in rows)
    write_atomically(folder / LOG, lambda file: file.write(text.encode()))


class RunLog:
    """Rows of log.txt, TensorBoard events and the console table of one run; no file before the first of them.

    log.txt is tab-separated, every field ends in a tab (the published format). It holds nothing that depends
    on the clock, so two identical runs write identical files.

    Events are of epochs, counted from 1, and under tags of their own of steps, counted from the beginning of
    training. What a resumed run repeats of the steps is hidden; an epoch that it repeats is written again.

    Args:
        folder: where log.txt and the events go.
        epochs: epochs in all.
        columns: what is logged.
        previous: log.txt rows of the epochs before this run.
        first_epoch: the first epoch of this run, from 0.
        first_step: its first step, counted from 0 at the beginning of training.
    """

    def __init__(
        self,
        folder: Path,
        epochs: int,
        columns: Sequence[Column],
        previous: Sequence[str],
        first_epoch: int,
        first_step: int,
    ) -> None:
        self.folder, self.columns = folder, columns
        self.epochs, self.first_epoch, self.first_step = epochs, first_epoch, first_step
        self.started = time.perf_counter()
        self.rows = ["".join(f"{name}\t" for name, *_ in columns), *previous]
        self.events: Events | None = None
        self.waiting: list[tuple[Mapping[str, float], int, float]] = []  # values, step, time

    def header(self) -> None:
        """Begin the console table."""
        self._print("epoch", *(column.title or "" for column in self.columns), "img/s", "time", "ETA")

    def add(self, values: Sequence[float]) -> None:
        """Append an epoch's row."""
        self.rows.append("".join(f"{value:.6f}\t" for value in values))

    def show(self, epoch: int, values: Sequence[float], images_per_second: float) -> None:
        """Write an epoch, counted from 1, to TensorBoard and the console."""
        tags = (column.tag for column in self.columns)
        scalars = dict(zip(tags, values, strict=True))
        self._draw({**scalars, "images_per_second": images_per_second}, epoch)

        elapsed = time.perf_counter() - self.started
        left = elapsed / (epoch - self.first_epoch) * (self.epochs - epoch)
        self._print(
            f"{epoch}/{self.epochs}",
            *(column.shown(value) for column, value in zip(self.columns, values, strict=True)),
            speed_text(images_per_second),
            clock(elapsed),
            clock(left),
        )

    def point(self, step: int, loss: float, rate: float, wait: bool = False) -> None:
        """Write a step's loss and rate to TensorBoard; ``wait``: with what is written next."""
        self._draw({"step/loss": loss, "step/learning_rate": rate}, step, wait)

    def _draw(self, values: Mapping[str, float], step: int, wait: bool = False) -> None:
        self.waiting.append((values, step, time.time()))
        if wait:
            return
        if self.events is None:
            self.events = Events(self.folder, self.first_step + 1)
        for event in self.waiting:
            self.events.add(*event)
        self.waiting.clear()

    def _print(self, epoch: str, *cells: str) -> None:
        """A line of the console table, of 100 characters at most; ``cells`` end in speed, time and ETA."""
        titled = [
            f"{cell:>{column.width}}"
            for column, cell in zip(self.columns, cells[:-3], strict=True)
            if column.title
        ]
        speed, *times = cells[-3:]
        print(f"{epoch:>7}", *titled, f"{speed:>5}", *(f"{time:>8}" for time in times), flush=True)

    def close(self) -> None:
        if self.events is not None:
            self.events.close()


def speed_text(images_per_second: float) -> str:
    """A detector's speed may be below one image per second."""
    return f"{images_per_second:.{0 if images_per_second >= 10 else 1}f}"


def clock(seconds: float) -> str:
    """Seconds as H:MM:SS."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


class Turn:
    """Says of batches which are the next to be told of: every so many, or after so many seconds."""

    def __init__(self, now: float, every: int | None, seconds: float) -> None:
        self.last, self.every, self.seconds = now, every, seconds

    def __call__(self, now: float, batches: int) -> bool:
        come = batches % self.every == 0 if self.every else now - self.last >= self.seconds
        self.last = now if come else self.last
        return come


class Progress:
    """Progress through a pass: a bar on a terminal, otherwise a plain line every ten seconds.

    Args:
        label: what is running.
        steps: number of batches.
        processes: how many run alike; the speed is that of all.
        every: batches between two lines, readings on the bar and points of curves, in place of ten seconds.
        done: batches of an interrupted pass, done before.
    """

    def __init__(
        self, label: str, steps: int, processes: int = 1, every: int | None = None, done: int = 0
    ) -> None:
        self.label, self.steps, self.processes = label, steps, processes
        self.before, self.done, self.images = done, done, 0
        self.started = time.perf_counter()
        terminal = sys.stdout.isatty()
        self.bar = (
            tqdm(total=steps, initial=done, desc=label, leave=False, unit="batch", file=sys.stdout)
            if terminal
            else None
        )
        self.line = Turn(self.started, every, _BAR_SECONDS if terminal else _LINE_SECONDS)
        self.point = Turn(self.started, every, _LINE_SECONDS)

    def step(self, meter: Sums, images: int) -> list[float] | None:
        """Count a batch; the meter is read, which waits for the device, only when a line is due.

        Returns:
            The meter's values when a point of the curves is due.
        """
        self.done += 1
        self.images += images * self.processes
        if self.bar is not None:
            self.bar.update()
        now = time.perf_counter()
        if not self.line(now, self.done):
            return None
        values = meter.values()
        self._speak(f"{meter.figures(values)}, {speed_text(self.speed())} images/s", now)
        return values if self.point(now, self.done) else None

    def _speak(self, text: str, now: float) -> None:
        if self.bar is not None:
            self.bar.set_postfix_str(text)
            return
        left = clock((now - self.started) / (self.done - self.before) * (self.steps - self.done))
        print(f"{self.label}: batch {self.done}/{self.steps}, {text}, ETA {left}", flush=True)

    def speed(self) -> float:
        """Images per second since the start."""
        return self.images / max(time.perf_counter() - self.started, 1e-9)

    def close(self) -> float:
        """Remove the bar and return the images per second of the pass."""
        if self.bar is not None:
            self.bar.close()
        return self.speed()
