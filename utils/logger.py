"""What a run leaves behind (log.txt, TensorBoard events) and what it says on the way."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from utils.events import Events
from utils.files import write_atomically
from utils.metrics import Sums

LOG = "log.txt"
_PLAIN_SECONDS = 10.0  # between two progress lines where there is no terminal
_BAR_SECONDS = 0.5  # between two readings of the metrics on a terminal


class Column(NamedTuple):
    """A figure of every epoch."""

    name: str  # in log.txt
    tag: str  # in TensorBoard
    title: str | None  # on the console; None: not there
    decimals: int  # on the console


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
    """Rows of log.txt, TensorBoard events and the console table of one run; no file before its first epoch.

    log.txt is tab-separated, every field ends in a tab (the published format). It holds nothing that depends
    on the clock, so two identical runs write identical files.

    Args:
        folder: where log.txt and the events go.
        epochs: epochs in all.
        columns: what is logged.
        previous: log.txt rows of the epochs before this run.
        first_epoch: the first epoch of this run, from 0.
    """

    def __init__(
        self,
        folder: Path,
        epochs: int,
        columns: Sequence[Column],
        previous: Sequence[str],
        first_epoch: int,
    ) -> None:
        self.folder, self.columns = folder, columns
        self.epochs, self.first_epoch = epochs, first_epoch
        self.started = time.perf_counter()
        self.rows = ["".join(f"{name}\t" for name, *_ in columns), *previous]
        self.events: Events | None = None

    def header(self) -> None:
        """Begin the console table."""
        self._print("epoch", *(column.title or "" for column in self.columns), "images/s", "time", "ETA")

    def add(self, values: Sequence[float]) -> None:
        """Append an epoch's row."""
        self.rows.append("".join(f"{value:.6f}\t" for value in values))

    def show(self, epoch: int, values: Sequence[float], images_per_second: float) -> None:
        """Write an epoch, counted from 1, to TensorBoard and the console."""
        if self.events is None:
            # Events of epochs that a resumed run repeats are hidden.
            self.events = Events(self.folder, self.first_epoch + 1 if self.first_epoch else None)
        tags = (column.tag for column in self.columns)
        scalars = dict(zip(tags, values, strict=True))
        self.events.add({**scalars, "images_per_second": images_per_second}, epoch)

        elapsed = time.perf_counter() - self.started
        left = elapsed / (epoch - self.first_epoch) * (self.epochs - epoch)
        self._print(
            f"{epoch}/{self.epochs}",
            *(f"{value:.{column.decimals}f}" for column, value in zip(self.columns, values, strict=True)),
            speed_text(images_per_second),
            clock(elapsed),
            clock(left),
        )

    def _print(self, epoch: str, *cells: str) -> None:
        """A line of the console table; ``cells`` are of all columns, then speed, time and ETA."""
        titled = [
            f"{cell:>{max(len(column.title), column.decimals + 2) + 1}}"
            for column, cell in zip(self.columns, cells[:-3], strict=True)
            if column.title
        ]
        speed, *times = cells[-3:]
        print(f"{epoch:>7}", *titled, f"{speed:>9}", *(f"{time:>8}" for time in times), flush=True)

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


class Progress:
    """Progress through a pass: a bar on a terminal, otherwise a plain line every ten seconds.

    Args:
        label: what is running.
        steps: number of batches.
        processes: how many run alike; the speed is that of all.
        every: batches between two lines or two readings on the bar, in place of ten seconds.
        done: batches of an interrupted pass, done before.
    """

    def __init__(
        self, label: str, steps: int, processes: int = 1, every: int | None = None, done: int = 0
    ) -> None:
        self.label, self.steps, self.processes, self.every = label, steps, processes, every
        self.before, self.done, self.images = done, done, 0
        self.started = self.spoken = time.perf_counter()
        terminal = sys.stdout.isatty()
        self.bar = (
            tqdm(total=steps, initial=done, desc=label, leave=False, unit="batch", file=sys.stdout)
            if terminal
            else None
        )

    def step(self, meter: Sums, images: int) -> None:
        """Count a batch; the meter is read, which waits for the device, only when its figures are due."""
        self.done += 1
        self.images += images * self.processes
        if self.bar is not None:
            self.bar.update()
        if not self._due():
            return
        text = f"{meter.read()}, {speed_text(self.speed())} images/s"
        if self.bar is not None:
            self.bar.set_postfix_str(text)
        else:
            done = self.done - self.before
            left = clock((self.spoken - self.started) / done * (self.steps - self.done))
            print(f"{self.label}: batch {self.done}/{self.steps}, {text}, ETA {left}", flush=True)

    def _due(self) -> bool:
        now = time.perf_counter()
        waited = now - self.spoken >= (_PLAIN_SECONDS if self.bar is None else _BAR_SECONDS)
        due = self.done % self.every == 0 if self.every else waited
        self.spoken = now if due else self.spoken
        return due

    def speed(self) -> float:
        """Images per second since the start."""
        return self.images / max(time.perf_counter() - self.started, 1e-9)

    def close(self) -> float:
        """Remove the bar and return the images per second of the pass."""
        if self.bar is not None:
            self.bar.close()
        return self.speed()
