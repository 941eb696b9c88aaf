"""Copies of tensors that steps change, to go back to before one of them."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Snapshots:
    """Copies of the same tensors from several moments, of which the latest are kept by number.

    Args:
        tensors: what is copied; they stay where they are in memory.
        count: how many copies of each there is room for.
    """

    def __init__(self, tensors: Sequence[Tensor], count: int = 1) -> None:
        groups: dict[torch.dtype, list[Tensor]] = {}  # one kernel per type
        for tensor in map(_as_int32, tensors):
            groups.setdefault(tensor.dtype, []).append(tensor)
        self.groups = [(group, _room_for(group, count)) for group in groups.values()]

    @torch.no_grad()
    def take(self, number: int = 0) -> None:
        """Copy the current values to the place ``number``, counted from 0."""
        for originals, copies in self.groups:
            torch._foreach_copy_(copies[number], originals)

    @torch.no_grad()
    def restore(self, number: int = 0) -> None:
        """Restore the values copied there."""
        for originals, copies in self.groups:
            torch._foreach_copy_(originals, copies[number])


def _as_int32(tensor: Tensor) -> Tensor:
    """Return a tensor's memory as int32, so that all types are copied together; a few stay what they are."""
    suits = tensor.is_contiguous() and tensor.element_size() % 4 == 0
    return tensor.detach().view(-1).view(torch.int32) if suits else tensor.detach()


def _room_for(tensors: Sequence[Tensor], count: int) -> list[list[Tensor]]:
    """Return memory for so many copies of tensors of one type."""
    sizes = [tensor.numel() for tensor in tensors]
    rows = torch.empty(count, sum(sizes), dtype=tensors[0].dtype, device=tensors[0].device)
    return [[part.view(of.shape) for part, of in zip(row.split(sizes), tensors, strict=True)] for row in rows]
