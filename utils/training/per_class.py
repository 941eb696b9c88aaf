"""The accuracy of each class, and what its images are taken for."""

import csv
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from utils.common.distributed import Ranks
from utils.training.metrics import best_five

COLUMNS = ("class", "images", "top-1", "top-5", "most_confused_with", "confused")


class Mistake(NamedTuple):
    """Images of a class that are taken for another."""

    label: int
    predicted: int
    images: int


class Confusion(NamedTuple):
    """How often the images of each class are taken for each class."""

    classes: Sequence[str]  # K names
    counts: NDArray[np.int64]  # (K, K): images by class and prediction
    top5: NDArray[np.int64]  # (K,): images whose class is among the five best

    @property
    def images(self) -> NDArray[np.int64]:
        """The images of each class, (K,)."""
        return self.counts.sum(axis=1)

    def mistakes(self, most: int) -> list[Mistake]:
        """Return the largest numbers of images of a class that are taken for one other class."""
        wrong = self.counts - np.diag(np.diag(self.counts))
        order = np.argsort(-wrong, axis=None, kind="stable")[:most]
        pairs = (divmod(place, len(wrong)) for place in order.tolist())
        return [Mistake(i, j, int(wrong[i, j])) for i, j in pairs if wrong[i, j]]


class ConfusionCounter:
    """Counts on the device, so that no batch waits for it.

    Args:
        classes: the name of each output.
        device: where logits and labels are.
    """

    def __init__(self, classes: Sequence[str], device: torch.device) -> None:
        self.classes = classes
        self.counts = torch.zeros(len(classes), len(classes), dtype=torch.int64, device=device)
        self.top5 = torch.zeros(len(classes), dtype=torch.int64, device=device)

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count logits (B, K) and labels (B,)."""
        best = best_five(logits)
        places = labels * len(self.classes) + best[:, 0]
        self.counts.view(-1).index_add_(0, places, torch.ones_like(places))
        self.top5.index_add_(0, labels, (best == labels[:, None]).any(dim=1).long())

    def read(self, ranks: Ranks) -> Confusion:
        """Return the counts over all ``ranks``, which are to call this together."""
        counts, top5 = (ranks.sum(part).cpu().numpy() for part in (self.counts, self.top5))
        return Confusion(self.classes, counts, top5)


def as_csv(confusion: Confusion) -> str:
    """Return a line for every class: images, accuracies in percent, and the class most often taken for it.

    A class without images has 0 images and no accuracies.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for label, (name, images) in enumerate(zip(confusion.classes, confusion.images.tolist(), strict=True)):
        hits = (confusion.counts[label, label], confusion.top5[label])
        shares = [f"{100 * int(count) / images:.4f}" if images else "" for count in hits]
        others = confusion.counts[label].copy()
        others[label] = 0
        most = int(others.argmax())
        taken_for = confusion.classes[most] if others[most] else ""
        writer.writerow((name, images, *shares, taken_for, others[most]))
    return text.getvalue()
