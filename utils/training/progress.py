"""Progress through a pass over the data, on a terminal or in a file."""

import sys
import time

from tqdm import tqdm

from utils.training.metrics import Sums

_LINE_SECONDS = 10.0  # between two progress lines where there is no terminal, and two points of the curves
_BAR_SECONDS = 0.5  # between two readings of the metrics on a terminal


def speed_text(images_per_second: float) -> str:
    """Return a speed as text; that of a detector may be below one image per second."""
    return f"{images_per_second:.{0 if images_per_second >= 10 else 1}f}"


def clock(seconds: float) -> str:
    """Return seconds as H:MM:SS."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


class Turn:
    """Tells whether something is due: every so many batches, or after so many seconds."""

    def __init__(self, now: float, every: int | None, seconds: float, done: int = 0) -> None:
        self.last, self.every, self.seconds, self.done = now, every, seconds, done

    def __call__(self, now: float, done: int) -> bool:
        """Return whether it is due now that ``done`` batches are done; a step may be several batches."""
        due = now - self.last >= self.seconds
        if self.every:
            due = done // self.every > self.done // self.every
        self.done, self.last = done, now if due else self.last
        return due


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
        self.line = Turn(self.started, every, _BAR_SECONDS if terminal else _LINE_SECONDS, done)
        self.point = Turn(self.started, every, _LINE_SECONDS, done)

    def step(self, meter: Sums, images: int, batches: int = 1) -> list[float] | None:
        """Count batches; the meter is read, which waits for the device, only when a line is due.

        Returns:
            The meter's values when a point of the curves is due.
        """
        self.done += batches
        self.images += images * self.processes
        if self.bar is not None:
            self.bar.update(batches)
        now = time.perf_counter()
        if not self.line(now, self.done):
            return None
        values = meter.values()
        self._show(f"{meter.figures(values)}, {speed_text(self.speed())} images/s", now)
        return values if self.point(now, self.done) else None

    def _show(self, text: str, now: float) -> None:
        if self.bar is not None:
            self.bar.set_postfix_str(text)
            return
        left = clock((now - self.started) / (self.done - self.before) * (self.steps - self.done))
        print(f"{self.label}: batch {self.done}/{self.steps}, {text}, ETA {left}", flush=True)

    def speed(self) -> float:
        """Return the images per second since the start."""
        return self.images / max(time.perf_counter() - self.started, 1e-9)

    def close(self) -> float:
        """Remove the bar and return the images per second of the pass."""
        if self.bar is not None:
            self.bar.close()
        return self.speed()
