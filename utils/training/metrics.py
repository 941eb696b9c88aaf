"""Averages over the images of a pass over the data: loss, top-1 and top-5, or several losses."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from utils.common.distributed import ONE_PROCESS, Ranks

Initial = Tensor | Sequence[float]  # sums of an interrupted pass; none of a new one


class Column(NamedTuple):
    """A column of the log: one number per epoch."""

    name: str  # in log.txt
    tag: str  # in TensorBoard
    title: str | None  # on the console; None: not there
    decimals: int  # on the console

    @property
    def width(self) -> int:
        """Characters on the console."""
        return max(len(self.title or ""), self.decimals + 2, 6)

    def shown(self, value: float) -> str:
        """Return a number as the console shows it; one too large for its column has fewer digits."""
        text = f"{value:.{self.decimals}f}"
        return text if len(text) <= self.width else f"{value:.2g}"


class LogFormat(NamedTuple):
    """The columns of log.txt and of the console table, and the score by which epochs are compared."""

    columns: Sequence[Column]
    score: str  # what makes an epoch the best, in percent


class Metrics(NamedTuple):
    """Averages over the images of a pass; accuracies in percent."""

    loss: float
    top1: float
    top5: float
    images: int

    def __str__(self) -> str:
        return f"loss {self.loss:.4f}, top-1 {self.top1:.2f} %"

    def published(self) -> str:
        """Return the line that an evaluation prints: the published one, with top-5 added."""
        return f" Test Loss:  {self.loss:.8f}, Test Acc:  {self.top1:.2f}, Top-5 Acc:  {self.top5:.2f}"


def best_five(logits: Tensor) -> Tensor:
    """Return the outputs of the largest logits (B, K), the largest first: (B, 5), or (B, K) if K is less."""
    return logits.topk(min(5, logits.shape[1]), dim=1).indices


class Sums:
    """Running sums over a pass, kept on the device so that no step waits for it.

    Args:
        device: of the sums.
        count: number of sums.
        sums: initial values, from an interrupted pass.
    """

    def __init__(self, device: torch.device, count: int, sums: Initial = ()) -> None:
        values = [float(value) for value in sums] or [0.0] * count
        self.sums = torch.tensor(values, dtype=torch.float64, device=device)

    def values(self, ranks: Ranks = ONE_PROCESS) -> list[float]:
        """Return the sums so far over all ``ranks``, the number of images first; waits for the device."""
        return ranks.sum(self.sums).tolist()

    def figures(self, values: Sequence[float]) -> Any:
        """Return the averages per image of sums, or of the difference between two readings, ``values``."""
        raise NotImplementedError

    def read(self, ranks: Ranks = ONE_PROCESS) -> Any:
        """Return the averages so far over all ``ranks``; waits for the device."""
        return self.figures(self.values(ranks))


class Recent:
    """The averages of a meter between two points of a curve, within an epoch.

    Args:
        meter: the sums that the steps add to.
        steps: steps done so far, since training began.
    """

    def __init__(self, meter: Sums, steps: int) -> None:
        self.meter, self.steps, self.values = meter, steps, meter.values()

    def figures(self, steps: int, values: Sequence[float]) -> Any:
        """Return the averages since the last point; ``values`` are the meter's sums now.

        None if no step has been done since, or if all were skipped.
        """
        if steps == self.steps or values[0] <= self.values[0]:
            return None
        since = [now - before for now, before in zip(values, self.values, strict=True)]
        self.steps, self.values = steps, list(values)
        return self.meter.figures(since)


class Meter(Sums):
    """Running sums of images, loss, top-1 and top-5 hits."""

    def __init__(self, device: torch.device, sums: Initial = ()) -> None:
        super().__init__(device, 4, sums)

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor, partners: Tensor, weight: float) -> None:
        """Add a batch: its mean loss, its logits (B, K), its labels (B,).

        A hit on the label counts ``weight``, a hit on the mixed-in partner's label (B,) the rest. With fewer
        than five classes top-5 is 100 %.
        """
        ranked = best_five(logits)
        hits = _hits(ranked, labels)
        if weight != 1:
            hits = weight * hits.double() + (1 - weight) * _hits(ranked, partners).double()
        self.sums[0].add_(len(labels))
        self.sums[1].add_(loss, alpha=len(labels))
        self.sums[2:].add_(hits)

    def figures(self, values: Sequence[float]) -> Metrics:
        images, loss, top1, top5 = values
        share = 1 / max(images, 1)
        return Metrics(loss * share, 100 * top1 * share, 100 * top5 * share, int(images))


def _hits(ranked: Tensor, wanted: Tensor) -> Tensor:
    """Return how many of ``wanted`` (B,) are the first, and how many any, of ``ranked`` (B, 5): (2,)."""
    of_rank = (ranked == wanted[:, None]).sum(dim=0)  # whole numbers: a GPU adds them up the same every time
    return of_rank.cumsum(dim=0)[:: max(len(of_rank) - 1, 1)]  # of one class (1,): both are the same
