"""Going back to before a step, without waiting for the device on the way."""

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class Snapshot:
    """Copies of tensors that a step changes before it is known whether the step counts."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        groups: dict[torch.dtype, list[Tensor]] = defaultdict(list)  # one kernel copies those of one type
        for tensor in tensors:
            groups[tensor.dtype].append(tensor)
        self.pairs = [(group, [torch.empty_like(tensor) for tensor in group]) for group in groups.values()]

    @torch.no_grad()
    def take(self) -> None:
        """Remember the values of now."""
        for originals, copies in self.pairs:
            torch._foreach_copy_(copies, originals)

    @torch.no_grad()
    def restore(self) -> None:
        """Put the remembered values back."""
        for originals, copies in self.pairs:
            torch._foreach_copy_(originals, copies)


def finite_later(loss: Tensor) -> Callable[[], bool]:
    """Ask whether a loss is finite; the call of the answer waits until the device has computed the loss.

    Asked for after the backward pass has been queued, the device has work while the answer is on its way.
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
