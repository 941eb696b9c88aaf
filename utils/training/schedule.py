"""Learning rate as a pure function of the position in training, so that a resumed run continues it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from utils.common.text import plural


@dataclass(frozen=True)
class Schedule:
    """The learning rate of every step: linear warm-up, then step decay or a cosine.

    Args:
        base: learning rate after the warm-up.
        epochs: length of the run; the cosine ends there.
        warmup: epochs of linear warm-up.
        milestones: epochs, from 0, at whose start the learning rate is multiplied by ``gamma``; those
            inside the warm-up are ignored.
        gamma: factor of the step decay.
        cosine: a cosine instead of step decay. Per epoch, it runs over all epochs, so that the learning rate
            after the warm-up is below ``base``; per iteration, it begins after the warm-up and ends at
            exactly 0. Both forms are the published ones.
        per_iteration: update warm-up and cosine at every step rather than every epoch.
        warmup_steps: steps at the start of the run over which the learning rate is multiplied by a factor
            that rises linearly from ``warmup_from`` to 1 (detection's published warm-up).
        warmup_from: see ``warmup_steps``.
    """

    base: float
    epochs: int
    warmup: int = 0
    milestones: Sequence[int] = ()
    gamma: float = 0.1
    cosine: bool = False
    per_iteration: bool = False
    warmup_steps: int = 0
    warmup_from: float = 1 / 3

    def __call__(self, epoch: int, step: int, steps: int) -> float:
        """Return the learning rate of step ``step`` (from 0) of ``steps`` in epoch ``epoch`` (from 0)."""
        progress = min((epoch * steps + step) / self.warmup_steps, 1.0) if self.warmup_steps else 1.0
        factor = self.warmup_from + (1 - self.warmup_from) * progress
        return factor * self._without_warmup_steps(epoch, step, steps)

    def _without_warmup_steps(self, epoch: int, step: int, steps: int) -> float:
        """Return the learning rate before ``warmup_steps`` scales it."""
        done = (step + 1) / steps if self.per_iteration else 1.0  # share of the epoch, including this step
        if epoch < self.warmup:
            return self.base * (epoch + done) / self.warmup
        if not self.cosine:
            return self.base * self.gamma ** sum(self.warmup <= m <= epoch for m in self.milestones)
        if self.per_iteration:
            progress = (epoch - self.warmup + done) / (self.epochs - self.warmup)
        else:
            progress = epoch / self.epochs
        return self.base / 2 * (1 + math.cos(math.pi * progress))

    def __str__(self) -> str:
        name = "cosine" if self.cosine else f"times {self.gamma:g} at epochs {list(self.milestones)}"
        warmup = f"{plural(self.warmup, 'epoch')} of warm-up, " if self.warmup else ""
        if self.warmup_steps:
            warmup = f"{plural(self.warmup_steps, 'step')} of warm-up from {self.warmup_from:.2g} of it, "
        if self.warmup >= self.epochs:
            warmup = f"{plural(self.warmup, 'epoch')} of warm-up (the run ends within them), "
        line = f"learning rate {self.base:g}, {warmup}{name}, by {'step' if self.per_iteration else 'epoch'}"
        return f"{line}\n{self._note}" if self._note else line

    @property
    def _note(self) -> str:
        """A note if no milestone has an effect; otherwise empty."""
        counts = any(self.warmup <= milestone < self.epochs for milestone in self.milestones)
        if self.cosine or counts or self.warmup >= self.epochs:
            return ""
        listed = " ".join(map(str, self.milestones))
        where = f"between --warmup {self.warmup} and" if self.warmup else "within"
        where += f" --epochs {self.epochs}"
        return f"note: no epoch of --schedule {listed} lies {where}: the rate never drops"
