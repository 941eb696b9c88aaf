"""What a detector learns, and what is logged of it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from detection.evaluate import Scores
from utils.runs.log import Column, Form
from utils.training.engine import Task
from utils.training.metrics import Losses, LossMeter
from utils.training.precision import Precision

_LOSSES = ("loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg")  # as torchvision's
_NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_SHOWN = ("AP", "AP50")  # on the console
Batch = tuple[list[Tensor], list[dict[str, Tensor]]]


@dataclass
class Detection(Task[Batch]):
    """The sum of a detector's losses; with ``masks`` that of its masks too."""

    masks: bool

    @property
    def names(self) -> tuple[str, ...]:
        """Of the losses."""
        return (*_LOSSES, "loss_mask") if self.masks else _LOSSES

    def meter(self, device: torch.device, sums: Tensor | Sequence[float] = ()) -> LossMeter:
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
    def form(self) -> Form:
        """What is logged: the rate, the losses, COCO's numbers of boxes and, with ``masks``, of masks."""
        losses = [Column(name, name.replace("_", "/", 1), None, 4) for name in self.names]
        boxes = [Column(name, f"box/{name}", name if name in _SHOWN else None, 2) for name in _NUMBERS]
        masks = [
            Column(f"Mask {name}", f"mask/{name}", f"mask {name}" if name in _SHOWN else None, 2)
            for name in _NUMBERS
        ]
        rate = Column("Learning Rate", "learning_rate", "rate", 6)
        total = Column("Train Loss", "loss/train", "train loss", 4)
        return Form((rate, total, *losses, *boxes, *(masks if self.masks else ())), "AP")

    def row(self, rate: float, trained: Losses, scores: Scores) -> tuple[float, ...]:
        """In the order of :attr:`form`."""
        numbers = [kind[name] for kind in (scores.box, scores.mask) if kind for name in _NUMBERS]
        return (rate, trained.loss, *trained.parts, *numbers)
