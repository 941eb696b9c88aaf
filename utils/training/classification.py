"""What the three training scripts teach: a class for each image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from utils.common.distributed import ONE_PROCESS, Ranks
from utils.data.loading import DeviceLoader
from utils.data.sampling import EvalBatches
from utils.runs.log import Column, Form, Progress
from utils.training.engine import Keeper, Task
from utils.training.losses import Distillation
from utils.training.metrics import Meter, Metrics
from utils.training.mixing import MixedBatch, Mixer
from utils.training.precision import Precision

# The first five columns of log.txt are as published.
FORM = Form(
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


def row(rate: float, trained: Metrics, validated: Metrics) -> tuple[float, ...]:
    """In the order of ``FORM``."""
    losses, top1 = (trained.loss, validated.loss), (trained.top1, validated.top1)
    return (rate, *losses, *top1, trained.top5, validated.top5)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: DeviceLoader[EvalBatches],
    ranks: Ranks = ONE_PROCESS,
    precision: Precision | None = None,
    print_every: int | None = None,
    keeper: Keeper | None = None,
) -> Metrics:
    """Cross-entropy and accuracy over every image, each once, whatever the batches and the processes."""
    precision, keeper = precision or Precision(), keeper or Keeper()
    model.eval()
    meter = Meter(loader.device)
    progress = Progress("evaluate", len(loader), ranks.size, print_every)
    for images, labels in loader:
        if len(labels):
            logits = precision.forward(model, images)
            meter.add(nn.functional.cross_entropy(logits, labels), logits, labels, labels, 1.0)
        progress.step(meter, len(labels))
        keeper.between_batches()
    progress.close()
    loader.report(ranks)
    return meter.read(ranks)
