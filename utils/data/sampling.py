"""The order of the samples: the batches of an epoch of training and of an evaluation."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor
from torch.utils.data import Sampler

from utils.common.errors import UserError
from utils.common.randomness import permutation
from utils.common.text import plural


class SampleKey(NamedTuple):
    """What a data set needs to produce one sample; with the seed it determines every augmentation."""

    epoch: int
    sample: int


class Position(NamedTuple):
    """How far training has come."""

    epoch: int  # epochs completed
    images: int = 0  # images done in the next epoch, over all processes
    sums: Tensor | Sequence[float] = ()  # this process's metric sums over these images

    def __str__(self) -> str:
        if not self.images:
            return f"after epoch {self.epoch}"
        return f"in epoch {self.epoch + 1} after {plural(self.images, 'image')}"


class TrainBatches(Sampler[list[SampleKey]]):
    """One process's batches of one epoch, in an order that depends on (seed, epoch) only.

    A step takes the next ``batch * parts * processes`` samples of the order; each process takes an equal
    share of consecutive samples, in ``parts`` batches. So the samples of a step do not depend on how they
    are split into parts and processes. Samples after the last full step are dropped, as in the published
    scripts; a data set smaller than one step gives one step of smaller batches.

    Args:
        size: number of samples.
        batch: samples per batch of a process.
        seed: the run's seed.
        parts: batches per step.
        rank: of this process, from 0.
        processes: number of processes.

    Raises:
        UserError: fewer than one sample for each process and part.
    """

    def __init__(
        self, size: int, batch: int, seed: int, parts: int = 1, rank: int = 0, processes: int = 1
    ) -> None:
        if size < parts * processes:
            steps = f"{plural(parts, 'batch')} per step in {plural(processes, 'process')}"
            what = f"{plural(size, 'training image')} cannot fill {steps}"
            raise UserError(f"{what}: start fewer processes, or lower --accum-steps")
        self.size, self.seed, self.parts, self.wanted = size, seed, parts, batch
        self.batch = min(batch, size // (parts * processes))
        self.samples_per_step = self.batch * parts * processes  # samples of a step, over all processes
        self.rank, self.epoch, self.images = rank, 0, 0

    def set_position(self, position: Position) -> None:
        """Start the next iteration at this position; skipped samples are not read.

        The order is one of images, not of steps: with another number of processes or another batch size the
        rest of the epoch is still every remaining image, once.
        """
        self.epoch, self.images = position.epoch, position.images

    @property
    def first_step(self) -> int:
        """The step of the epoch, from 0, at which the next iteration begins."""
        return self.images // self.samples_per_step

    @property
    def steps(self) -> int:
        """Steps of the epoch, including those before the next iteration."""
        return self.first_step + max(self.size - self.images, 0) // self.samples_per_step

    def __len__(self) -> int:
        return (self.steps - self.first_step) * self.parts

    def __str__(self) -> str:
        few = f" (too few for --train-batch {self.wanted})" if self.batch < self.wanted else ""
        return f"{plural(self.size, 'training image')} in steps of {self.samples_per_step:,}{few}"

    def order(self) -> Tensor:
        """Return all samples in the order of the epoch: (size,), int64."""
        return permutation(self.size, self.seed, "order", self.epoch)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        order = self.order()
        for step in range(self.first_step, self.steps):
            for samples in self._of_step(order, step).split(self.batch):
                yield [SampleKey(self.epoch, sample) for sample in samples.tolist()]

    def of_step(self, step: int) -> list[int]:
        """Return the samples of this process in a step of the epoch, counted from 0."""
        return self._of_step(self.order(), step).tolist()

    def _of_step(self, order: Tensor, step: int) -> Tensor:
        share = self.batch * self.parts
        start = self.images + (step - self.first_step) * self.samples_per_step + self.rank * share
        return order[start : start + share]


class EvalBatches(Sampler[list[SampleKey]]):
    """One process's batches of an evaluation; over all processes, every sample exactly once, in order.

    Every process has the same number of batches; the last ones may be smaller or empty.
    """

    def __init__(self, size: int, batch: int, rank: int = 0, processes: int = 1) -> None:
        self.size, self.mine = size, range(rank, size, processes)
        self.batch, self.processes = batch, processes

    def __str__(self) -> str:
        return plural(self.size, "validation image")

    def __len__(self) -> int:
        return -(-self.size // (self.processes * self.batch))

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for position in range(len(self)):
            start = position * self.batch
            yield [SampleKey(0, index) for index in self.mine[start : start + self.batch]]
