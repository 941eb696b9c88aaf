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
        self.label, self.steps, self.processes, self.every = label, steps, processes, every
        self.before, self.done, self.images = done, done, 0
        self.started = self.last_line = self.last_point = time.perf_counter()
        bar = {"desc": label, "leave": False, "unit": "batch", "file": sys.stdout}
        self.bar = tqdm(total=steps, initial=done, disable=not sys.stdout.isatty(), **bar)

    def step(self, meter: Sums, images: int, batches: int = 1) -> list[float] | None:
        """Count batches; the meter is read, which waits for the device, only when a line is due.

        Returns:
            The meter's values when a point of the curves is due.
        """
        before, self.done = self.done, self.done + batches
        self.images += images * self.processes
        self.bar.update(batches)
        now = time.perf_counter()
        due = now - self.last_line >= (_LINE_SECONDS if self.bar.disable else _BAR_SECONDS)
        if self.every:  # a step of several batches may pass over the one where a line is due
            due = self.done // self.every > before // self.every
        if not due:
            return None
        self.last_line = now
        values = meter.values()
        text = f"{meter.figures(values)}, {speed_text(self.speed())} images/s"
        self.bar.set_postfix_str(text)
        if self.bar.disable:
            left = clock((now - self.started) / (self.done - self.before) * (self.steps - self.done))
            print(f"{self.label}: batch {self.done}/{self.steps}, {text}, ETA {left}", flush=True)
        if not self.every and now - self.last_point < _LINE_SECONDS:
            return None
        self.last_point = now
        return values

    def speed(self) -> float:
        """Return the images per second since the start."""
        return self.images / max(time.perf_counter() - self.started, 1e-9)

    def close(self) -> float:
        """Remove the bar and return the images per second of the pass."""
        self.bar.close()
        return self.speed()
