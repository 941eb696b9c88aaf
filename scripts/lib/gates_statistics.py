"""Statistics of a network's gates over many images, by class: mean, spread, saturation.

The values of an image are those that :mod:`scripts.lib.gates_record` reads: one for each channel, or maps of
the positions for each of some groups. A channel below is either of the two.
"""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from scripts.lib.gates_record import Gate

LOW, HIGH = 0.05, 0.95  # a gate from 0 to 1 is saturated below and above
ALL = "all"  # the name of all classes together
COLUMNS = (
    "module", "stage", "place", "gate", "class", "images", "mean", "spread of channels", "spread of images",
    "spread of positions", f"share below {LOW}", f"share above {HIGH}", "least", "most", "between classes",
)  # fmt: skip


class Summary(NamedTuple):
    """Of one gate and one class, or all."""

    images: int
    mean: float
    of_channels: float  # standard deviation over the channels of their means
    of_images: float  # standard deviation over the images of a channel's mean, averaged over the channels
    of_positions: float  # standard deviation within a map, averaged; 0 for gates of channels
    low: float | None  # share of the values below LOW; None: not a gate from 0 to 1
    high: float | None
    least: float
    most: float


@dataclass
class Statistics:
    """Sums over the images of one gate of one module, by class.

    Args:
        gate: as it was recorded first, without what it was of that image.
        classes: how many.
    """

    gate: Gate
    classes: int
    images: Tensor = field(init=False)  # (K,)
    sums: dict[str, Tensor] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        channels, kinds = self.gate.values.shape[1], self.classes
        self.images = torch.zeros(kinds, dtype=torch.int64)
        self.sums = {name: torch.zeros(kinds, channels, dtype=torch.float64) for name in ("sum", "square")}
        for name in ("position", "low", "high", "values"):
            self.sums[name] = torch.zeros(kinds, dtype=torch.float64)
        self.least = torch.full((kinds,), torch.inf, dtype=torch.float64)
        self.most = -self.least

    def add(self, values: Tensor, labels: Tensor) -> None:
        """Count images: their values (B, C) or (B, G, H, W), their classes (B,)."""
        maps = (
            values.detach().double().cpu().flatten(2)
            if values.dim() == 4
            else values.double().cpu()[..., None]
        )
        channels, deviation = maps.mean(2), maps.var(2, correction=0).mean(1).sqrt()
        flat = maps.flatten(1)
        self.images += torch.bincount(labels, minlength=self.classes)
        parts = {"sum": channels, "square": channels.square(), "position": deviation}
        parts |= {"low": (flat < LOW).double().sum(1), "high": (flat > HIGH).double().sum(1)}
        parts["values"] = torch.full_like(deviation, flat.shape[1])
        for name, part in parts.items():
            self.sums[name].index_add_(0, labels, part)
        self.least.scatter_reduce_(0, labels, flat.amin(1), "amin")
        self.most.scatter_reduce_(0, labels, flat.amax(1), "amax")

    def means(self, kind: int | None) -> Tensor:
        """Return the mean of each channel over the images of a class, or over all: (C,)."""
        chosen = slice(None) if kind is None else slice(kind, kind + 1)
        return self.sums["sum"][chosen].sum(0) / self.images[chosen].sum()

    def deviations(self, kind: int | None) -> Tensor:
        """Return the standard deviation of each channel over the images of a class, or over all: (C,)."""
        chosen = slice(None) if kind is None else slice(kind, kind + 1)
        squares = self.sums["square"][chosen].sum(0) / self.images[chosen].sum()
        return (squares - self.means(kind).square()).clamp(min=0).sqrt()

    def summary(self, kind: int | None = None) -> Summary:
        """Return the figures of a class, or of all."""
        chosen = slice(None) if kind is None else slice(kind, kind + 1)
        count = int(self.images[chosen].sum())
        total = {name: float(self.sums[name][chosen].sum()) for name in ("position", "low", "high", "values")}
        means = self.means(kind)
        bounded = self.gate.seen.bounded
        return Summary(
            count,
            float(means.mean()),
            float(means.std(correction=0)),
            float(self.deviations(kind).mean()),
            total["position"] / count,
            total["low"] / total["values"] if bounded else None,
            total["high"] / total["values"] if bounded else None,
            float(self.least[chosen].min()),
            float(self.most[chosen].max()),
        )

    def between_classes(self) -> float | None:
        """Return the share of the variance over images that lies between classes, corrected for chance.

        It is epsilon squared of an analysis of variance, with sums of squares over the channels: about 0 if
        the class says nothing of a channel's gate, 1 if it says all. None for one class, for gates that do
        not vary, or where no class has two images.
        """
        there = self.images > 0
        classes, count = int(there.sum()), int(self.images.sum())
        if classes < 2 or count <= classes:
            return None
        sums, images = self.sums["sum"][there], self.images[there][:, None]
        total = float((self.sums["square"].sum(0) - sums.sum(0).square() / count).sum())
        within = float((self.sums["square"][there].sum(0) - (sums.square() / images).sum(0)).sum())
        if total <= 1e-12 * count:
            return None
        return (total - within - (classes - 1) * within / (count - classes)) / total


class Collected:
    """The statistics of all gates of a network.

    Args:
        classes: the names of the classes, by label.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = classes
        self.gates: dict[tuple[str, str], Statistics] = {}

    def add(self, gates: Sequence[Gate], labels: Tensor) -> None:
        """Count a batch."""
        for gate in gates:
            key = (gate.module, gate.seen.title)
            if key not in self.gates:
                self.gates[key] = Statistics(gate, len(self.classes))
            self.gates[key].add(gate.values, labels.cpu())

    @property
    def labels(self) -> list[int]:
        """The classes that have images."""
        first = next(iter(self.gates.values()))
        return first.images.nonzero().flatten().tolist()

    def rows(self) -> Iterator[Mapping[str, object]]:
        """Yield a line of the CSV for each gate: of all images, and of each class."""
        for one in self.gates.values():
            gate = one.gate
            where = (gate.module, gate.stage, gate.place, gate.seen.title)
            between = one.between_classes()
            for kind in (None, *self.labels):
                figures = [_rounded(value) for value in one.summary(kind)]
                name = ALL if kind is None else self.classes[kind]
                cells = (*where, name, *figures, _rounded(between if kind is None else None))
                yield dict(zip(COLUMNS, cells, strict=True))

    def channels(self, kinds: Sequence[int]) -> Iterator[Mapping[str, object]]:
        """Yield a line for each channel of every gate: mean and deviation, of all images and of classes."""
        for one in self.gates.values():
            for kind in (None, *kinds):
                pairs = zip(one.means(kind).tolist(), one.deviations(kind).tolist(), strict=True)
                for channel, (mean, deviation) in enumerate(pairs):
                    yield {
                        "module": one.gate.module,
                        "gate": one.gate.seen.title,
                        "class": ALL if kind is None else self.classes[kind],
                        "channel": channel,
                        "mean": _rounded(mean),
                        "spread of images": _rounded(deviation),
                    }


def _rounded(value: float | None) -> object:
    """Return an int as it is, a number with six digits, and nothing for None."""
    if value is None or isinstance(value, int):
        return "" if value is None else value
    return f"{value:.6g}"


def as_csv(rows: Iterator[Mapping[str, object]]) -> str:
    """Return CSV with a head."""
    text = io.StringIO()
    writer: csv.DictWriter[str] | None = None
    for row in rows:
        if writer is None:
            writer = csv.DictWriter(text, list(row), lineterminator="\n")
            writer.writeheader()
        writer.writerow(row)
    return text.getvalue()
