"""One epoch of training, one pass of evaluation."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from utils.data import DeviceLoader
from utils.logger import Progress
from utils.metrics import Meter, Metrics
from utils.randomness import derive_seed

Criterion = Callable[[Tensor, Tensor], Tensor]


def train_epoch(
    model: nn.Module, loader: DeviceLoader, optimizer: Optimizer, criterion: Criterion, seed: int, epoch: int
) -> tuple[Metrics, float]:
    """Train on every batch of an epoch.

    Returns:
        Averages over the images as the network saw them (training mode), and images per second.
    """
    model.train()
    loader.set_epoch(epoch)
    meter = Meter(loader.device)
    progress = Progress(f"epoch {epoch + 1}", len(loader))
    for step, (images, labels) in enumerate(loader):
        torch.manual_seed(derive_seed(seed, "step", epoch, step))  # dropout and the like
        logits = model(images)
        loss = criterion(logits, labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        meter.add(loss.detach(), logits.detach(), labels)
        progress.step(meter)
    return meter.read(), progress.close()


@torch.no_grad()
def evaluate(model: nn.Module, loader: DeviceLoader, criterion: Criterion) -> Metrics:
    """Evaluate every image once; each counts the same, whatever the batch size."""
    model.eval()
    meter = Meter(loader.device)
    progress = Progress("evaluate", len(loader))
    for images, labels in loader:
        logits = model(images)
        meter.add(criterion(logits, labels), logits, labels)
        progress.step(meter)
    progress.close()
    return meter.read()
