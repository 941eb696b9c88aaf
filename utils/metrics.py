"""Averages over the images of a pass: loss, top-1 and top-5."""

from typing import NamedTuple

import torch
from torch import Tensor


class Metrics(NamedTuple):
    """Averages over the images of a pass; accuracies in percent."""

    loss: float
    top1: float
    top5: float
    images: int

    def __str__(self) -> str:
        return f"loss {self.loss:.4f}, top-1 {self.top1:.2f} %"


class Meter:
    """Sums of loss and hits, kept on the device so that a step does not wait for it."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)
        self.images = 0

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Count a batch: its mean loss, its logits (B, K) and labels (B,).

        With fewer than five classes top-5 is 100 %.
        """
        ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices
        hits = (ranked == labels[:, None]).double()
        self.sums += torch.stack([loss.double() * len(labels), hits[:, 0].sum(), hits.sum()])
        self.images += len(labels)

    def read(self) -> Metrics:
        """The averages so far; waits for the device."""
        loss, top1, top5 = (self.sums / max(self.images, 1)).tolist()
        return Metrics(loss, 100 * top1, 100 * top5, self.images)
