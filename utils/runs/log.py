"""The log of a run: log.txt, TensorBoard events, and the table on the console."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar
from tqdm import tqdm

from utils.common.files import write_atomically
from utils.training.metrics import Column
from utils.training.progress import clock, speed_text

LOG = "log.txt"
CURVES = "curves.png"


def read_rows(path: Path) -> list[str]:
    """Return the rows of a log.txt without its header; none when there is no such file."""
    return path.read_text(errors="replace").splitlines()[1:] if path.is_file() else []


def write_log(folder: Path, rows: Sequence[str]) -> None:
    """Write log.txt anew, header included."""
    text = "".join(f"{row}\n" for row in rows)
    write_atomically(folder / LOG, lambda file: file.write(text.encode()))


class Events:
    """Write scalars at once; if the disk fails, print a note and write no more.

    tensorboardX's ``SummaryWriter`` writes in a thread; were that to end with an error, the run would wait
    for it for ever.

    Args:
        folder: where the file goes.
        first: events of this step and later ones in older files are hidden.
    """

    def __init__(self, folder: Path, first: int) -> None:
        self.writer: EventsWriter | None = None
        with self._until_an_error():
            self.writer = EventsWriter(str(folder / "events"))
            self.writer.write_event(Event(step=first, session_log=SessionLog(status=SessionLog.START)))

    def add(self, values: Mapping[str, float], step: int, when: float) -> None:
        """Write the value of every tag, except where it is nan, as of sizes that no object has.

        ``when`` is in seconds, as of ``time.time()``.
        """
        if self.writer is not None:
            with self._until_an_error():
                for tag, value in values.items():
                    if not math.isnan(value):
                        self.writer.write_event(Event(wall_time=when, step=step, summary=scalar(tag, value)))
                self.writer.flush()

    def close(self) -> None:
        if self.writer is not None:
            with self._until_an_error():
                self.writer.close()

    @contextmanager
    def _until_an_error(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.writer = None
            tqdm.write(f"note: no more events for TensorBoard: {error.strerror or error}")


@dataclass
class RunLog:
    """The log of one run: rows of log.txt, TensorBoard events and the console table.

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

    folder: Path
    epochs: int
    columns: Sequence[Column]
    previous: Sequence[str]
    first_epoch: int
    first_step: int

    def __post_init__(self) -> None:
        self.started = time.perf_counter()
        self.rows = ["".join(f"{name}\t" for name, *_ in self.columns), *self.previous]
        self.events: Events | None = None
        self.waiting: list[tuple[Mapping[str, float], int, float]] = []  # values, step, time

    def header(self) -> None:
        """Print the header of the console table."""
        self._print("epoch", *(column.title or "" for column in self.columns), "img/s", "time", "ETA")

    def add(self, values: Sequence[float]) -> None:
        """Append an epoch's row."""
        self.rows.append("".join(f"{value:.6f}\t" for value in values))

    def show(self, epoch: int, values: Sequence[float], images_per_second: float) -> None:
        """Write an epoch, counted from 1, to TensorBoard and the console."""
        tags = (column.tag for column in self.columns)
        scalars = dict(zip(tags, values, strict=True))
        self._write_events({**scalars, "images_per_second": images_per_second}, epoch)

        elapsed = time.perf_counter() - self.started
        left = elapsed / (epoch - self.first_epoch) * (self.epochs - epoch)
        cells = [column.shown(value) for column, value in zip(self.columns, values, strict=True)]
        times = (speed_text(images_per_second), clock(elapsed), clock(left))
        self._print(f"{epoch}/{self.epochs}", *cells, *times)

    def point(self, step: int, loss: float, rate: float, wait: bool = False) -> None:
        """Write a step's loss and learning rate to TensorBoard; ``wait``: with what is written next."""
        self._write_events({"step/loss": loss, "step/learning_rate": rate}, step, wait)

    def _write_events(self, values: Mapping[str, float], step: int, wait: bool = False) -> None:
        self.waiting.append((values, step, time.time()))
        if not wait:
            self.events = self.events or Events(self.folder, self.first_step + 1)
            while self.waiting:
                self.events.add(*self.waiting.pop(0))

    def _print(self, epoch: str, *cells: str) -> None:
        """Print a line of the table, 100 characters at most; ``cells`` end in speed, time and ETA."""
        *figures, speed, elapsed, left = cells
        columns = zip(self.columns, figures, strict=True)
        titled = [f"{cell:>{column.width}}" for column, cell in columns if column.title]
        print(f"{epoch:>7}", *titled, f"{speed:>5} {elapsed:>8} {left:>8}", flush=True)

    def draw(self) -> None:
        """Draw the columns of the console over the epochs into ``curves.png``; print a note if that fails."""
        try:
            from matplotlib.figure import Figure  # takes a second, and only the end of a run needs it

            rows = [[float(cell) for cell in row.split("\t")[:-1]] for row in self.rows[1:]]
            panels: dict[str, list[tuple[str, Sequence[float]]]] = {}
            for column, values in zip(self.columns, zip(*rows, strict=False), strict=False):
                if column.title:
                    panels.setdefault(column.tag.split("/")[0], []).append((column.name, values))
            figure = Figure(figsize=(4.3 * len(panels), 4), layout="constrained")
            for axes, curves in zip(figure.subplots(1, len(panels)), panels.values(), strict=True):
                for name, numbers in curves:
                    axes.plot(range(1, 1 + len(numbers)), numbers, ".-", label=name)
                axes.set_xlabel("epoch")
                axes.locator_params(axis="x", integer=True)
                axes.legend()
            write_atomically(self.folder / CURVES, lambda file: figure.savefig(file, format="png", dpi=130))
        except Exception as error:  # a picture is not worth a run: matplotlib may be missing or broken
            print(f"note: no {CURVES}: {' '.join(str(error).split()) or type(error).__name__}")

    def close(self) -> None:
        if self.events is not None:
            self.events.close()
