"""Training and evaluation as loops: a trainer yields its steps, an evaluation its batches."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from utils.common.distributed import ONE_PROCESS, Ranks
from utils.common.errors import UserError
from utils.common.randomness import derive_seed
from utils.common.signals import Signals
from utils.common.text import plural
from utils.data.loading import DeviceLoader
from utils.data.sampling import EvalBatches, Position, TrainBatches
from utils.networks.optimizer_state import load_optimizer
from utils.training.ahead import RunAhead
from utils.training.ema import Average, weights
from utils.training.metrics import LogFormat, Recent, Sums
from utils.training.optim import EShiftedSGD, parameters, start_momentum
from utils.training.precision import Precision
from utils.training.progress import Progress
from utils.training.schedule import Schedule
from utils.training.snapshot import Snapshots

Batch = TypeVar("Batch")
SKIPPED_IN_A_ROW = 20  # steps whose loss is not finite; more will not come right by themselves


class Task(Protocol[Batch]):
    """What is learned: what a batch is made into, its loss, and what is logged of it."""

    log_format: LogFormat

    def meter(self, device: torch.device, sums: Tensor | Sequence[float] = ()) -> Any:
        """Return the :class:`Sums` of an epoch, to begin with those of an interrupted one."""

    def prepare(self, images: Any, targets: Any, seed: int) -> Batch:
        """Return what is learned from; all that is random in it follows from ``seed``."""

    def loss(self, model: nn.Module, precision: Precision, batch: Batch, meter: Any) -> Tensor:
        """Return the mean loss of a batch, a scalar, and count it in ``meter``."""

    def row(self, learning_rate: float, trained: Any, validated: Any) -> tuple[float, ...]:
        """Return the values of an epoch in the order of the columns of ``log_format``."""

    def score(self, validated: Any) -> float:
        """Return the score by which epochs are compared, in percent."""


class Step(NamedTuple):
    """Where training is after a step.

    After a step whose loss is not finite, ``error`` says why training cannot go on; the weights are those
    before the step, ``position`` is where it began, and ``files`` are the images that it was computed on.

    ``point`` is one of the training curves, where one is due: the steps since training began, the mean loss
    since the point before, the learning rate.
    """

    position: Position  # how far training is
    number: int  # steps of the epoch that are done
    signal: int = 0  # the signal that asked one of the processes to stop; 0: none
    point: tuple[int, float, float] | None = None
    error: str = ""
    files: Sequence[str] = ()


@dataclass
class Trainer:
    """Everything that a training step consists of; the defaults are a plain step in one process.

    Args:
        model: the network, in its wrappers.
        optimizer: of the network's parameters; a fused one, which heeds a flag on the device.
        task: what is learned.
        schedule: the learning rate of every step.
        seed: the run's seed.
        ranks: the processes that train together.
        precision: types and loss scale.
        accumulate: batches per step.
        clip: largest norm of the gradient, over all parameters.
        average: moving average of the weights (EMA), updated after every step.
        print_every: batches between two lines of progress; None: ten seconds.
        print_filters: print the spread of the filters after every step (of :class:`EShiftedSGD`).
        skip_nan: leave out a step whose loss is not finite, in place of ending the run.
        frozen: modules of the network that stay in evaluation mode, such as frozen batch norms.
        ahead: most steps that the host does not wait for; nothing that is learned depends on it.
        pause_every: steps of an epoch after which the caller saves.
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
    frozen: Sequence[nn.Module] = ()
    ahead: int = 16
    pause_every: int | None = None
    learning_rate: float = field(init=False, default=0.0)  # of the last step
    trained: Any = field(init=False, default=None)  # the metrics of the last epoch
    images_per_second: float = field(init=False, default=0.0)  # of the last epoch

    def __post_init__(self) -> None:
        start_momentum(self.optimizer)
        self._buckets_settled = self.ranks.size <= 2
        self._skipped = 0  # steps in a row

    def epoch(
        self, loader: DeviceLoader[TrainBatches], begin: Position, signals: Signals | None = None
    ) -> Iterator[Step]:
        """Train on every batch of an epoch, or what an interrupted run left of it.

        The host does not wait for every step. It looks at least every half second, or after each step if they
        take longer, and yields where training is then. If a loss was not finite, its step and those after it
        have changed nothing, and the loop goes back to it.

        At the end ``trained`` has the averages over the images as the network saw them (training mode,
        mixed), read from the task's meter, and ``images_per_second`` the speed.

        Args:
            loader: the batches.
            begin: where the epoch, counted from 0, begins.
            signals: those that may ask this process to stop.

        Raises:
            UserError: the loop goes on after a step with an error, or files are missing.
        """
        self._training_mode()
        batches = loader.batches
        batches.set_position(begin)
        steps, first = batches.steps, batches.first_step
        meter: Sums = self.task.meter(loader.device, begin.sums)
        recent = Recent(meter, begin.epoch * steps + first)
        label, parts = f"epoch {begin.epoch + 1}/{self.schedule.epochs}", self.accumulate
        progress = Progress(label, steps * parts, self.ranks.size, self.print_every, first * parts)
        runner, data, done = self._run_ahead(meter, signals), iter(loader), first
        while done < steps:
            for number in range(done, self._next_look(done, min(done + runner.stretch, steps))):
                self._set_learning_rate(begin.epoch, number, steps)
                self._step(data, meter, (begin.epoch, number), runner)
                if runner.asked_alone:
                    break
            good, undone, signal = runner.look()
            before, done = done, done + good
            self._skipped = 0 if good else self._skipped
            files, error = list[str](), ""
            if undone:
                files, error = self._leave_out(loader, begin.epoch, done, undone)
                done += 0 if error else 1
            elif self.print_filters:
                self._print_filters()
            reached = begin.images + (done - first) * batches.samples_per_step
            position = Position(begin.epoch, reached, meter.sums)
            if undone > 1 and not error:  # batches after it are needed again
                batches.set_position(position)
                data = iter(loader)
            images = (done - before) * batches.samples_per_step // self.ranks.size
            values = progress.step(meter, images, (done - before) * parts)
            figures = recent.figures(begin.epoch * steps + done, values) if values else None
            rate = self.schedule(begin.epoch, done - 1, steps)
            point = (recent.steps, figures.loss, rate) if figures else None
            yield Step(position, done, signal, point, error, files)
            if error:
                raise UserError(error)
        self._set_learning_rate(begin.epoch, max(steps, 1) - 1, max(steps, 1))
        loader.report(self.ranks)
        self.trained, self.images_per_second = meter.read(self.ranks), progress.close()

    def state(self, net: nn.Module) -> dict[str, Any]:
        """Return what training has reached, for a checkpoint; ``net`` is the network without wrappers."""
        reached = {"optimizer": self.optimizer.state_dict(), "precision": self.precision.state_dict()}
        return {**weights(net, self.average), **reached}

    def load_state(self, saved: Mapping[str, Any], net: nn.Module, path: str) -> None:
        """Load the momentum and the loss scale of a checkpoint.

        Raises:
            UserError: it does not hold them, or they do not fit the network ``net``.
        """
        load_optimizer(self.optimizer, saved.get("optimizer"), net, path)
        start_momentum(self.optimizer)
        self.precision.load_state_dict(saved.get("precision", {}))

    def _training_mode(self) -> None:
        self.model.train()
        for module in self.frozen:
            module.eval()

    def _set_learning_rate(self, epoch: int, step: int, steps: int) -> None:
        """Set that of the schedule, times the factor of those groups that have one (the gates')."""
        self.learning_rate = self.schedule(epoch, step, steps)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * group.get("lr_factor", 1.0)

    def _run_ahead(self, meter: Sums, signals: Signals | None) -> RunAhead:
        """Return what watches over the steps of an epoch."""
        small = [*self.model.buffers(), meter.sums, *self.precision.scale_tensors()]
        small += self.average.module.buffers() if self.average is not None else ()
        waits = self.print_filters or not self.precision.runs_ahead
        return RunAhead(small, meter.sums.device, self.ranks, signals, 1 if waits else self.ahead)

    def _next_look(self, done: int, end: int) -> int:
        """Return the first step after ``done``, at most ``end``, that is followed by a save or a line."""
        parts, lines, saves = self.accumulate, self.print_every, self.pause_every
        for number in range(done + 1, end):
            printed = lines and number * parts // lines > (number - 1) * parts // lines
            if printed or (saves and number % saves == 0):
                return number
        return end

    def _step(self, data: Iterator[Any], meter: Sums, place: tuple[int, int], runner: RunAhead) -> None:
        """Take a step, which the device leaves out if a loss is not finite; ``place``: epoch and step."""
        epoch, number = place
        runner.begin()
        for batch in range(number * self.accumulate, (number + 1) * self.accumulate):
            last = batch == (number + 1) * self.accumulate - 1
            runner.add(self._add_gradients(next(data), meter, (epoch, batch, self.ranks.rank), last))
        self._update(runner.end())

    def _add_gradients(
        self, batch: tuple[Any, Any], meter: Sums, place: tuple[int, int, int], last: bool
    ) -> Tensor:
        """Run a batch forward and backward.

        Args:
            batch: images and targets.
            meter: counts its loss.
            place: epoch, batch of the epoch, and rank, which fix what is random.
            last: whether it is the last of the step, after which the processes average their gradients.

        Returns:
            The loss, a scalar.
        """
        prepared = self.task.prepare(*batch, derive_seed(self.seed, "mix", *place))
        if not self._buckets_settled:
            self._settle_buckets(prepared, meter.sums.device)
        torch.manual_seed(derive_seed(self.seed, "step", *place))  # dropout and the like
        # DistributedDataParallel averages the gradients in the last part of a step only.
        with nullcontext() if last else getattr(self.model, "no_sync", nullcontext)():
            loss = self.task.loss(self.model, self.precision, prepared, meter)
            share = loss / self.accumulate if self.accumulate > 1 else loss
            self.precision.backward(share, self.optimizer)
        return loss.detach()

    def _settle_buckets(self, batch: Any, device: torch.device) -> None:
        """Run a batch whose gradients are thrown away, at the start of a job of three or more processes.

        DistributedDataParallel regroups the gradients after its first step; the order in which three or more
        processes add them up depends on the groups. Without this a resumed run would differ from the
        uninterrupted one by rounding.
        """
        before = Snapshots(list(self.model.buffers()))
        before.take()
        self.task.loss(self.model, self.precision, batch, self.task.meter(device)).backward()
        self.optimizer.zero_grad()
        before.restore()
        self._buckets_settled = True

    def _update(self, bad: Tensor) -> None:
        """Change the weights by their gradients, but not if the flag ``bad`` is 1 on the device."""
        self.precision.unscale(self.optimizer)
        if self.clip is not None:
            nn.utils.clip_grad_norm_(parameters(self.optimizer), self.clip)
        self.precision.step(self.optimizer, bad)
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update(self.model, bad)

    def _print_filters(self) -> None:
        if isinstance(self.optimizer, EShiftedSGD):
            stds = " ".join(f"{std:.3g}" for std in self.optimizer.filter_stds())
            tqdm.write(f"standard deviation of the filters: {stds}")

    def _leave_out(
        self, loader: DeviceLoader[TrainBatches], epoch: int, number: int, undone: int
    ) -> tuple[list[str], str]:
        """Account for a step whose loss is not finite, on all processes.

        Args:
            loader: of its images.
            epoch: in which it is.
            number: the step of the epoch, from 0.
            undone: steps that have changed nothing, this one and those after it.

        Returns:
            Its images, and why the run cannot go on; empty if the step is skipped.
        """
        steps = loader.batches.steps
        files = [file for of_rank in self.ranks.gather(loader.files(number)) for file in of_rank]
        self._set_learning_rate(epoch, number, steps)
        if self.average is not None:
            self.average.steps -= undone
        self._skipped += 1
        where = f"epoch {epoch + 1}, step {number + 1} of {steps}, at learning rate {self.learning_rate:g}"
        images = f"{plural(len(files), 'image')} ({', '.join(files[:2])}, ...)"
        what = f"the loss is not finite in {where}, on {images}"
        weights = torch.stack([weight.isfinite().all() for weight in parameters(self.optimizer)])
        if not weights.all():
            return files, f"{what}; the weights are not finite either"
        if not self.skip_nan or self._skipped > SKIPPED_IN_A_ROW:
            return files, what
        tqdm.write(f"note: {what}: the step is left out")
        return files, ""


@dataclass
class Evaluation:
    """A pass over the validation images; each counts once, whatever the batches and the processes.

    To iterate is to evaluate batch by batch; afterwards :meth:`result` has the outcome.

    Args:
        model: gives what is evaluated.
        loader: the images.
        ranks: the processes that share them.
        precision: in which the model computes.
        print_every: batches between two lines of progress; None: ten seconds.
    """

    model: nn.Module
    loader: DeviceLoader[EvalBatches]
    ranks: Ranks = ONE_PROCESS
    precision: Precision = field(default_factory=Precision)
    print_every: int | None = None

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[int]:
        """Yield the number of batches that are done, after each."""
        self.model.eval()
        self.meter = self.begin()
        progress = Progress("evaluate", len(self.loader), self.ranks.size, self.print_every)
        for done, (images, targets) in enumerate(self.loader, 1):
            with torch.no_grad():
                self.count(images, targets)
            progress.step(self.meter, len(targets))
            yield done
        progress.close()
        self.loader.report(self.ranks)

    def run(self) -> Any:
        """Evaluate without a stop and return the result."""
        for _ in self:
            pass
        return self.result()

    def begin(self) -> Sums:
        """Begin anew; return what :meth:`count` is to add to as ``self.meter``."""
        raise NotImplementedError

    def count(self, images: Any, targets: Any) -> None:
        """Evaluate a batch, which may be empty, and add it to the meter."""
        raise NotImplementedError

    def result(self) -> Any:
        """Return the outcome over the images of all processes."""
        return self.meter.read(self.ranks)
