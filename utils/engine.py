"""One epoch of training, one pass of evaluation."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from utils.data import DeviceLoader
from utils.distributed import ONE_PROCESS, Ranks
from utils.logger import Progress
from utils.losses import Distillation
from utils.metrics import Meter, Metrics
from utils.mixing import MixedBatch, Mixer
from utils.optim import EShiftedSGD, parameters, start_momentum
from utils.precision import Precision
from utils.randomness import derive_seed
from utils.schedule import Schedule, set_learning_rate

Criterion = Callable[[Tensor, Tensor], Tensor]


@dataclass
class Trainer:
    """Everything that a training step consists of; the defaults are a plain step in one process.

    Args:
        model: the network, in its wrappers.
        optimizer: of the network's parameters.
        criterion: mean loss of logits (B, K) and labels (B,).
        schedule: the rate of every step.
        seed: the run's seed.
        ranks: the processes that train together.
        precision: types and loss scale.
        mixer: mixup, CutMix, Cutout.
        accumulate: batches per step.
        clip: largest norm of the gradient, over all parameters.
        average: moving average of the weights, updated after every step.
        distillation: the teacher's part in the loss.
        print_every: batches between two lines of progress; None: ten seconds.
        print_filters: say the spread of the filters after every step (of :class:`EShiftedSGD`).
    """

    model: nn.Module
    optimizer: Optimizer
    criterion: Criterion
    schedule: Schedule
    seed: int
    ranks: Ranks = ONE_PROCESS
    precision: Precision = field(default_factory=Precision)
    mixer: Mixer = field(default_factory=Mixer)
    accumulate: int = 1
    clip: float | None = None
    average: AveragedModel | None = None
    distillation: Distillation | None = None
    print_every: int | None = None
    print_filters: bool = False

    def __post_init__(self) -> None:
        start_momentum(self.optimizer)
        self._buckets_settled = self.ranks.size <= 2

    @property
    def rate(self) -> float:
        """The rate of the last step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def epoch(self, loader: DeviceLoader, epoch: int) -> tuple[Metrics, float]:
        """Train on every batch of an epoch, counted from 0.

        Returns:
            Averages over the images as the network saw them (training mode, mixed), and images per second.
        """
        self.model.train()
        loader.set_epoch(epoch)
        meter = Meter(loader.device)
        progress = Progress(f"epoch {epoch + 1}", len(loader), self.ranks.size, self.print_every)
        steps = len(loader) // self.accumulate
        for position, (images, labels) in enumerate(loader):
            step, part = divmod(position, self.accumulate)
            set_learning_rate(self.optimizer, self.schedule(epoch, step, steps))
            place = (epoch, position, self.ranks.rank)
            batch = self.mixer(images, labels, derive_seed(self.seed, "mix", *place))
            if not self._buckets_settled:
                self._settle_buckets(batch)
            torch.manual_seed(derive_seed(self.seed, "step", *place))  # dropout and the like
            last = part == self.accumulate - 1
            with nullcontext() if last else self._without_exchange():
                logits = self.precision.forward(self.model, batch.images)
                loss = self._loss(logits, batch)
                self.precision.backward(loss / self.accumulate, self.optimizer)
            if last:
                self._update()
            meter.add(loss.detach(), logits.detach(), batch.labels, batch.partners, batch.weight)
            progress.step(meter, len(labels))
        loader.report(self.ranks)
        return meter.read(self.ranks), progress.close()

    def _settle_buckets(self, batch: MixedBatch) -> None:
        """Run a batch whose gradients are thrown away, at the start of a process of three or more.

        DistributedDataParallel regroups the gradients after its first step; the order in which three or more
        processes add them up depends on the groups. Without this a resumed run would differ from the
        uninterrupted one by rounding.
        """
        buffers = [buffer.clone() for buffer in self.model.buffers()]
        self._loss(self.precision.forward(self.model, batch.images), batch).backward()
        self.optimizer.zero_grad()
        for buffer, value in zip(self.model.buffers(), buffers, strict=True):
            buffer.copy_(value)
        self._buckets_settled = True

    def _without_exchange(self) -> AbstractContextManager[None]:
        """DistributedDataParallel averages the gradients in the last part of a step only."""
        return self.model.no_sync() if isinstance(self.model, DistributedDataParallel) else nullcontext()

    def _loss(self, logits: Tensor, batch: MixedBatch) -> Tensor:
        loss = self.criterion(logits, batch.labels)
        if batch.weight != 1:
            loss = batch.weight * loss + (1 - batch.weight) * self.criterion(logits, batch.partners)
        return self.distillation(loss, logits, batch.images) if self.distillation else loss

    def _update(self) -> None:
        self.precision.unscale(self.optimizer)
        if self.clip is not None:
            nn.utils.clip_grad_norm_(parameters(self.optimizer), self.clip)
        self.precision.step(self.optimizer)
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update_parameters(self.model)
        if self.print_filters and isinstance(self.optimizer, EShiftedSGD):
            stds = " ".join(f"{std:.3g}" for std in self.optimizer.filter_stds())
            tqdm.write(f"standard deviation of the filters: {stds}")


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: DeviceLoader,
    ranks: Ranks = ONE_PROCESS,
    precision: Precision | None = None,
    print_every: int | None = None,
) -> Metrics:
    """Cross-entropy and accuracy over every image, each once, whatever the batches and the processes."""
    precision = precision or Precision()
    model.eval()
    meter = Meter(loader.device)
    progress = Progress("evaluate", len(loader), ranks.size, print_every)
    for images, labels in loader:
        logits = precision.forward(model, images)
        meter.add(nn.functional.cross_entropy(logits, labels), logits, labels, labels, 1.0)
        progress.step(meter, len(labels))
    progress.close()
    loader.report(ranks)
    return meter.read(ranks)
