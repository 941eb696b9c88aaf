"""Undo a step whose loss turns out not to be finite, without waiting for the device at every step."""

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class Snapshot:
    """Copies of the tensors that a step changes, to undo the step if its loss is not finite."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        groups: dict[torch.dtype, list[Tensor]] = defaultdict(list)  # one kernel per type
        for tensor in tensors:
            groups[tensor.dtype].append(tensor)
        self.pairs = [(group, [torch.empty_like(tensor) for tensor in group]) for group in groups.values()]

    @torch.no_grad()
    def take(self) -> None:
        """Copy the current values."""
        for originals, copies in self.pairs:
            torch._foreach_copy_(copies, originals)

    @torch.no_grad()
    def restore(self) -> None:
        """Restore the copied values."""
        for originals, copies in self.pairs:
            torch._foreach_copy_(originals, copies)


def finite_later(loss: Tensor) -> Callable[[], bool]:
    """Return a function that says whether a loss is finite, and waits for the device only when it is called.

    Use it after the backward pass has been queued, so that the device is busy while the answer is copied.
    """
    finite = torch.isfinite(loss.detach())
    if finite.device.type != "cuda":
        return lambda: bool(finite)
    answer = torch.empty_like(finite, device="cpu", pin_memory=True).copy_(finite, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()

    def wait() -> bool:
        arrived.synchronize()
        return bool(answer)

    return wait
