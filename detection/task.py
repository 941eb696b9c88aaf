"""What a detector learns, and what is logged of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from detection.evaluate import Scores
from utils.training.engine import Task
from utils.training.metrics import Column, Initial, LogFormat, Sums
from utils.training.precision import Precision

_LOSSES = ("loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg")  # as torchvision's
_NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_SHOWN = ("AP", "AP50")  # on the console
Batch = tuple[list[Tensor], list[dict[str, Tensor]]]


class Losses(NamedTuple):
    """Averages over the images of a pass: the total loss and its parts."""

    loss: float  # their sum
    parts: list[float]

    def __str__(self) -> str:
        return f"loss {self.loss:.4f}"


class LossMeter(Sums):
    """Running sums of the losses ``names`` over the images."""

    def __init__(self, names: Sequence[str], device: torch.device, sums: Initial = ()) -> None:
        super().__init__(device, 1 + len(names), sums)
        self.names = names

    def add(self, losses: Mapping[str, Tensor], images: int) -> None:
        """Add the losses of a batch, each the mean over its images."""
        parts = torch.stack([losses[name].detach().double() for name in self.names])
        self.sums += torch.cat([torch.ones_like(parts[:1]), parts]) * images

    def figures(self, values: Sequence[float]) -> Losses:
        images, *sums = values
        parts = [part / max(images, 1) for part in sums]
        return Losses(sum(parts), parts)


@dataclass
class Detection(Task[Batch]):
    """The sum of a detector's losses; with ``masks`` that of its masks too."""

    masks: bool

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the losses."""
        return (*_LOSSES, "loss_mask") if self.masks else _LOSSES

    def meter(self, device: torch.device, sums: Initial = ()) -> LossMeter:
        return LossMeter(self.names, device, sums)

    def prepare(self, images: list[Tensor], targets: list[dict[str, Tensor]], seed: int) -> Batch:
        return images, targets

    def loss(self, model: nn.Module, precision: Precision, batch: Batch, meter: LossMeter) -> Tensor:
        images, targets = batch
        with precision.autocast():
            losses: dict[str, Tensor] = model(images, targets)
        meter.add(losses, len(images))
        return torch.stack([losses[name].float() for name in self.names]).sum()

    @property
    def log_format(self) -> LogFormat:  # type: ignore[override]
        """The learning rate, the losses, COCO's numbers of boxes and, with ``masks``, of masks."""
        columns = [Column("Learning Rate", "learning_rate", "rate", 6)]
        columns += [Column("Train Loss", "loss/train", "train loss", 4)]
        columns += [Column(name, name.replace("_", "/", 1), None, 4) for name in self.names]
        for kind in ("box", "mask") if self.masks else ("box",):
            for name in _NUMBERS:
                title = name if kind == "box" else f"{kind} {name}"
                shown = title if name in _SHOWN else None
                columns.append(Column(title.replace("mask", "Mask"), f"{kind}/{name}", shown, 2))
        return LogFormat(columns, "AP")

    def row(self, learning_rate: float, trained: Losses, validated: Scores) -> tuple[float, ...]:
        numbers = [kind[name] for kind in (validated.box, validated.mask) if kind for name in _NUMBERS]
        return (learning_rate, trained.loss, *trained.parts, *numbers)

    def score(self, validated: Scores) -> float:
        """AP of the boxes, 0 where it is nan."""
        return validated.best
