"""Signals that ask a run to stop."""

import multiprocessing
import signal
import time
from collections.abc import Callable
from types import FrameType, MappingProxyType

# SIGUSR1 is what a scheduler sends before a job's time is up (sbatch --signal): no failure.
EXIT_CODES = MappingProxyType({signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 0})
_PATIENCE = 2.0  # seconds; under torchrun one Ctrl-C arrives twice, from the terminal and from torchrun


class Signals:
    """Record SIGTERM, SIGINT and SIGUSR1 within the block instead of ending the process.

    A second Ctrl-C, two seconds after the first or later, ends it at once.
    """

    def __init__(self) -> None:
        self.received = 0  # the number of the first signal; 0: none
        self.at = 0.0
        self.previous: dict[signal.Signals, Callable[[int, FrameType | None], object] | int | None] = {}

    def __enter__(self) -> "Signals":
        self.previous = {number: signal.signal(number, self._note) for number in EXIT_CODES}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if not self.received:
            self.received, self.at = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self.at > _PATIENCE:
            raise KeyboardInterrupt


def ignore_signals(_: int = 0) -> None:
    """Ignore signals in a data worker: after a signal to the job, the current step still needs its images."""
    for number in EXIT_CODES:
        signal.signal(number, signal.SIG_IGN)


def end_workers() -> None:
    """Kill the data workers at exit: they ignore signals, and Python would wait for them for ever."""
    if workers := multiprocessing.active_children():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler takes their end for a failure
        for worker in workers:
            worker.kill()
