"""Learning rate as a pure function of the position in training, so that a resumed run cannot lose it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch.optim import Optimizer

from utils.common.text import plural


@dataclass(frozen=True)
class Schedule:
    """The rate of every step: linear warm-up, then step decay or a cosine.

    Args:
        base: rate after the warm-up.
        epochs: epochs in all; the cosine ends there.
        warmup: epochs of linear warm-up.
        milestones: epochs, from 0, at whose start the rate is multiplied by ``gamma``; those inside the
            warm-up do not count.
        gamma: the factor.
        cosine: a cosine in place of the steps. Changing by the epoch it runs over all epochs (the rate after
            the warm-up is below ``base``); changing by the iteration it begins after the warm-up and ends at
            exactly 0. Both are the published forms.
        per_iteration: warm-up and cosine change with every step, not with every epoch.
        warmup_steps: first steps of the run, over which the rate rises linearly from ``warmup_from`` of what
            it would be (detection's warm-up, as published).
        warmup_from: a share.
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
        """The rate of step ``step`` (from 0) of ``steps`` in epoch ``epoch`` (from 0)."""
        progress = min((epoch * steps + step) / self.warmup_steps, 1.0) if self.warmup_steps else 1.0
        return self._settled(epoch, step, steps) * (self.warmup_from + (1 - self.warmup_from) * progress)

    def _settled(self, epoch: int, step: int, steps: int) -> float:
        """Without the warm-up of the first steps."""
        done = (step + 1) / steps if self.per_iteration else 1.0  # share of the epoch, this step included
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
        return f"{line}\n{self._without_effect}" if self._without_effect else line

    @property
    def _without_effect(self) -> str:
        """A note on milestones of which none counts."""
        counts = any(self.warmup <= milestone < self.epochs for milestone in self.milestones)
        if self.cosine or counts or self.warmup >= self.epochs:
            return ""
        listed = " ".join(map(str, self.milestones))
        where = f"between --warmup {self.warmup} and" if self.warmup else "within"
        return (
            f"note: no epoch of --schedule {listed} lies {where} --epochs {self.epochs}: the rate never drops"
        )


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Give every parameter group the same rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
