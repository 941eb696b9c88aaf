"""Steps that the host does not wait for: the device sees for itself whether a loss is finite."""

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from utils.common.distributed import Ranks
from utils.common.signals import Signals
from utils.training.snapshot import Snapshots

LOOK_SECONDS = 0.5  # that steps may take between two looks of the host


class RunAhead:
    """What the host learns late of the last steps: whether their losses were finite, and signals.

    A step is ``begin()``, ``add(loss)`` for each of its batches, ``end()``. The flag that ``end`` returns is
    1 from the first step on whose loss was not finite in any process, until the host looks. What is large
    (weights, momentum, averages) must not change while it is 1; what is small is copied before every step.

    Args:
        small: tensors on the device that a step changes even if its loss is not finite.
        device: of the losses.
        ranks: the processes that train together.
        signals: those that may ask this process to stop.
        most: steps between two looks.

    Attributes:
        stretch: steps until the next look, if nothing else asks for one; the same in all processes.
    """

    def __init__(
        self, small: Sequence[Tensor], device: torch.device, ranks: Ranks, signals: Signals | None, most: int
    ) -> None:
        self.ranks, self.signals, self.most = ranks, signals, most
        self.steps, self.stretch, self.began = 0, 1, 0.0
        self.snapshots = Snapshots(small, most)
        self.zero = torch.zeros((), device=device)
        self.sum = torch.zeros((), device=device)  # of the losses times 0: nan from one on that is not finite
        self.flags = torch.zeros(most, device=device)  # of the steps
        self.answers = torch.zeros(most, pin_memory=device.type == "cuda")

    @property
    def asked(self) -> int:
        """The signal that this process has received; 0: none."""
        return self.signals.received if self.signals else 0

    @property
    def asked_alone(self) -> bool:
        """Whether there is a signal that no other process needs to hear of."""
        return self.ranks.size == 1 and self.asked > 0

    def begin(self) -> None:
        """Begin a step."""
        if self.steps == 0:
            self.began = time.perf_counter()
        self.snapshots.take(self.steps)

    def add(self, loss: Tensor) -> None:
        """Note the loss of a batch, a scalar."""
        self.sum.addcmul_(loss, self.zero)

    def end(self) -> Tensor:
        """End a step; return the flag, 0 or 1 in float32, as torch's fused optimizers take it."""
        flag = torch.ne(self.sum, 0, out=self.flags[self.steps])
        self.ranks.raise_flag(flag)
        self.steps += 1
        return flag

    def look(self) -> tuple[int, int, int]:
        """Wait for the device, and agree with the other processes.

        If a loss was not finite, what was copied before its step is restored: nothing is left of it, nor of
        the steps after it.

        Returns:
            How many of the steps since the last look were good, how many come after them, which have changed
            nothing, and the signal that asked one of the processes to stop (0: none).
        """
        self.answers.copy_(self.flags, non_blocking=True)
        if self.flags.is_cuda:
            torch.cuda.current_stream(self.flags.device).synchronize()
        good = int((self.answers.numpy()[: self.steps] == 0).sum())
        undone = self.steps - good
        if undone:
            self.snapshots.restore(good)
            self.sum.zero_()
        microseconds = int(1e6 * (time.perf_counter() - self.began) / self.steps)
        signal, slowest = self.ranks.largest([self.asked, microseconds])
        self.stretch = max(1, min(self.most, int(1e6 * LOOK_SECONDS / max(slowest, 1))))
        self.steps = 0
        return good, undone, signal
