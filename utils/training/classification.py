"""The task of the three training scripts: a class for each image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from utils.training.distillation import Distillation
from utils.training.engine import Evaluation, Task
from utils.training.metrics import Column, LogFormat, Meter, Metrics
from utils.training.mixing import MixedBatch, Mixer
from utils.training.precision import Precision

# The first five columns of log.txt are as published.
LOG_FORMAT = LogFormat(
    (
        Column("Learning Rate", "learning_rate", "rate", 6),
        Column("Train Loss", "loss/train", "train loss", 4),
        Column("Valid Loss", "loss/valid", "valid loss", 4),
        Column("Train Acc.", "top1/train", "train top-1", 2),
        Column("Valid Acc.", "top1/valid", "valid top-1", 2),
        Column("Train Acc.5", "top5/train", None, 2),
        Column("Valid Acc.5", "top5/valid", "valid top-5", 2),
    ),
    "top-1",
)


@dataclass
class Classification(Task[MixedBatch]):
    """Cross-entropy or another loss of logits, on images that may be mixed.

    Args:
        criterion: mean loss of logits (B, K) and labels (B,).
        mixer: mixup, CutMix, Cutout.
        distillation: the teacher's part in the loss.
    """

    criterion: Callable[[Tensor, Tensor], Tensor]
    mixer: Mixer = field(default_factory=Mixer)
    distillation: Distillation | None = None
    log_format = LOG_FORMAT

    def meter(self, device: torch.device, sums: Tensor | Sequence[float] = ()) -> Meter:
        return Meter(device, sums)

    def prepare(self, images: Tensor, targets: Tensor, seed: int) -> MixedBatch:
        """Mix images (B, 3, H, W) and labels (B,)."""
        return self.mixer(images, targets, seed)

    def loss(self, model: nn.Module, precision: Precision, batch: MixedBatch, meter: Meter) -> Tensor:
        logits = precision.forward(model, batch.images)
        loss = self.criterion(logits, batch.labels)
        if batch.weight != 1:
            loss = batch.weight * loss + (1 - batch.weight) * self.criterion(logits, batch.partners)
        if self.distillation is not None:
            loss = self.distillation(loss, logits, batch.images)
        meter.add(loss.detach(), logits.detach(), batch.labels, batch.partners, batch.weight)
        return loss

    def row(self, learning_rate: float, trained: Metrics, validated: Metrics) -> tuple[float, ...]:
        losses, top1 = (trained.loss, validated.loss), (trained.top1, validated.top1)
        return (learning_rate, *losses, *top1, trained.top5, validated.top5)

    def score(self, validated: Metrics) -> float:
        return validated.top1


class ImageEvaluation(Evaluation):
    """Cross-entropy and accuracy over every image."""

    meter: Meter

    def begin(self) -> Meter:
        return Meter(self.loader.device)

    def count(self, images: Tensor, targets: Tensor) -> None:
        """Add images (B, 3, H, W) and labels (B,)."""
        if len(targets):
            self.add(self.precision.forward(self.model, images), targets)

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count logits (B, K) and labels (B,)."""
        loss = nn.functional.cross_entropy(logits, labels)
        self.meter.add(loss, logits, labels, labels, 1.0)

    def report(self) -> None:
        """Evaluate and print the result."""
        print(self.run().published())
