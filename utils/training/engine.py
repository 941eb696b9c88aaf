"""One epoch of training."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Generic, NoReturn, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from tqdm import tqdm

from utils.common.distributed import ONE_PROCESS, Ranks
from utils.common.errors import UserError
from utils.common.randomness import derive_seed
from utils.common.text import plural
from utils.data.loading import DeviceLoader
from utils.data.sampling import Position, TrainBatches
from utils.runs.log import Progress
from utils.training.ema import Average
from utils.training.metrics import Recent, Sums
from utils.training.optim import EShiftedSGD, parameters, start_momentum
from utils.training.precision import Precision
from utils.training.schedule import Schedule, set_learning_rate
from utils.training.snapshot import Snapshot, finite_later

Batch = TypeVar("Batch")
SKIPPED_IN_A_ROW = 20  # steps whose loss is not finite; more will not come right by themselves


class Keeper:
    """What happens between two steps: here nothing, in ``utils.runs.run.Run`` a run is saved and stopped."""

    @property
    def signal(self) -> int:
        """The number of the signal that asks this process to stop; 0: none."""
        return 0

    def after_step(self, reached: Position, steps: int, signal: int) -> None:
        """``steps`` of the epoch are done; some process got ``signal``, if it is not 0."""

    def record(self, steps: int, loss: float, rate: float) -> None:
        """Keep a point of the curves: steps since training began, mean loss since the last point, rate."""

    def between_batches(self) -> None:
        """In an evaluation."""

    def give_up(self, reached: Position, why: str, files: Sequence[str]) -> NoReturn:
        """End with one line; ``files`` are those of the batch that is to blame."""
        raise UserError(why)


class Task(Generic[Batch]):
    """What is learned: what a batch is made into, its loss, and what is counted of it."""

    def meter(self, device: torch.device, sums: Tensor | Sequence[float] = ()) -> Any:
        """The :class:`Sums` of an epoch, to begin with those of an interrupted one."""
        raise NotImplementedError

    def prepare(self, images: Any, targets: Any, seed: int) -> Batch:
        """What is learned from; all that is random in it follows from ``seed``."""
        raise NotImplementedError

    def loss(self, model: nn.Module, precision: Precision, batch: Batch, meter: Any) -> Tensor:
        """The mean loss of a batch, a scalar, which is counted in ``meter``."""
        raise NotImplementedError


@dataclass
class Trainer:
    """Everything that a training step consists of; the defaults are a plain step in one process.

    Args:
        model: the network, in its wrappers.
        optimizer: of the network's parameters.
        task: what is learned.
        schedule: the rate of every step.
        seed: the run's seed.
        ranks: the processes that train together.
        precision: types and loss scale.
        accumulate: batches per step.
        clip: largest norm of the gradient, over all parameters.
        average: moving average of the weights, updated after every step.
        print_every: batches between two lines of progress; None: ten seconds.
        print_filters: say the spread of the filters after every step (of :class:`EShiftedSGD`).
        skip_nan: leave out a step whose loss is not finite, in place of ending the run.
    """

    model: nn.Module
    optimizer: Optimizer
    task: Task[Any]
    schedule: Schedule
    seed: int
    ranks: Ranks = ONE_PROCESS
    precision: Precision = field(default_factory=Precision)
    accumulate: int = 1
    clip: float | None = None
    average: Average | None = None
    print_every: int | None = None
    print_filters: bool = False
    skip_nan: bool = False
    rate: float = field(init=False, default=0.0)  # of the last step

    def __post_init__(self) -> None:
        start_momentum(self.optimizer)
        self._buckets_settled = self.ranks.size <= 2
        self._skipped = 0  # steps in a row

    def epoch(
        self, loader: DeviceLoader[TrainBatches], begin: Position, keeper: Keeper | None = None
    ) -> tuple[Any, float]:
        """Train on every batch of an epoch, or what an interrupted run left of it.

        Args:
            loader: the batches.
            begin: where the epoch, counted from 0, begins.
            keeper: is called after every step.

        Returns:
            Averages over the images as the network saw them (training mode, mixed), as the task's meter
            reads them, and images per second.

        Raises:
            UserError: a loss is not finite (unless ``skip_nan``), or files are missing.
        """
        self.model.train()
        keeper, batches = keeper or Keeper(), loader.batches
        batches.set_position(begin)
        meter: Sums = self.task.meter(loader.device, begin.sums)
        before = Snapshot([*self.model.buffers(), meter.sums])
        steps, first = batches.steps, batches.first_step
        done, total = first * self.accumulate, steps * self.accumulate
        label = f"epoch {begin.epoch + 1}/{self.schedule.epochs}"
        progress = Progress(label, total, self.ranks.size, self.print_every, done)
        recent = Recent(meter, begin.epoch * steps + first)
        finite: list[Callable[[], bool]] = []
        for position, (images, targets) in enumerate(loader, done):
            step, part = divmod(position, self.accumulate)
            if part == 0:
                before.take()
                finite.clear()
                self._set_rate(begin.epoch, step, steps)
            place = (begin.epoch, position, self.ranks.rank)
            batch = self.task.prepare(images, targets, derive_seed(self.seed, "mix", *place))
            if not self._buckets_settled:
                self._settle_buckets(batch, loader.device)
            torch.manual_seed(derive_seed(self.seed, "step", *place))  # dropout and the like
            last = part == self.accumulate - 1
            with nullcontext() if last else self._without_exchange():
                loss = self.task.loss(self.model, self.precision, batch, meter)
                finite.append(finite_later(loss))
                self.precision.backward(loss / self.accumulate, self.optimizer)
            if last:
                images_before = begin.images + (step - first) * batches.samples_per_step
                bad, signal = self.ranks.largest([not all(answer() for answer in finite), keeper.signal])
                if bad:
                    before.restore()
                    reached = Position(begin.epoch, images_before, meter.sums)
                    recent.step_back()
                    self._leave_out(loader, reached, step, keeper)
                else:
                    self._update()
                images_after = images_before + batches.samples_per_step
                keeper.after_step(Position(begin.epoch, images_after, meter.sums), step + 1, signal)
            if values := progress.step(meter, len(targets)):
                whole = step + last  # steps that are done
                if figures := recent.figures(begin.epoch * steps + whole, values):
                    keeper.record(recent.steps, figures.loss, self.schedule(begin.epoch, whole - 1, steps))
        self._set_rate(begin.epoch, max(steps, 1) - 1, max(steps, 1))
        loader.report(self.ranks)
        return meter.read(self.ranks), progress.close()

    def _set_rate(self, epoch: int, step: int, steps: int) -> None:
        self.rate = self.schedule(epoch, step, steps)
        set_learning_rate(self.optimizer, self.rate)

    def _leave_out(
        self, loader: DeviceLoader[TrainBatches], reached: Position, step: int, keeper: Keeper
    ) -> None:
        """Forget a step whose loss is not finite, on all processes; end the run unless ``skip_nan``."""
        self.optimizer.zero_grad()
        self._skipped += 1
        files = [file for part in self.ranks.gather(loader.files(step)) for file in part]
        what = (
            f"the loss is not finite in epoch {reached.epoch + 1}, step {step + 1} of "
            f"{loader.batches.steps}, at learning rate {self.rate:g}, on "
            f"{plural(len(files), 'image')} ({', '.join(files[:2])}, ...)"
        )
        weights = torch.stack([weight.isfinite().all() for weight in parameters(self.optimizer)])
        if not weights.all():
            keeper.give_up(reached, f"{what}; the weights are not finite either", files)
        if not self.skip_nan or self._skipped > SKIPPED_IN_A_ROW:
            keeper.give_up(reached, what, files)
        tqdm.write(f"note: {what}: the step is left out")

    def _settle_buckets(self, batch: Any, device: torch.device) -> None:
        """Run a batch whose gradients are thrown away, at the start of a process of three or more.

        DistributedDataParallel regroups the gradients after its first step; the order in which three or more
        processes add them up depends on the groups. Without this a resumed run would differ from the
        uninterrupted one by rounding.
        """
        before = Snapshot(list(self.model.buffers()))
        before.take()
        self.task.loss(self.model, self.precision, batch, self.task.meter(device)).backward()
        self.optimizer.zero_grad()
        before.restore()
        self._buckets_settled = True

    def _without_exchange(self) -> AbstractContextManager[None]:
        """DistributedDataParallel averages the gradients in the last part of a step only."""
        return self.model.no_sync() if isinstance(self.model, DistributedDataParallel) else nullcontext()

    def _update(self) -> None:
        self.precision.unscale(self.optimizer)
        if self.clip is not None:
            nn.utils.clip_grad_norm_(parameters(self.optimizer), self.clip)
        self.precision.step(self.optimizer)
        self.optimizer.zero_grad()
        self._skipped = 0
        if self.average is not None:
            self.average.update(self.model)
        if self.print_filters and isinstance(self.optimizer, EShiftedSGD):
            stds = " ".join(f"{std:.3g}" for std in self.optimizer.filter_stds())
            tqdm.write(f"standard deviation of the filters: {stds}")
