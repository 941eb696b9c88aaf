"""Which sample is read at which step."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor
from torch.utils.data import Sampler

from utils.common.errors import UserError
from utils.common.randomness import permutation
from utils.common.text import plural


class SampleKey(NamedTuple):
    """What a data set needs to produce one sample: together with the seed it fixes every augmentation."""

    epoch: int
    sample: int


class Position(NamedTuple):
    """How far training is."""

    epoch: int  # epochs completed
    images: int = 0  # of the next one, over all processes
    sums: Tensor | Sequence[float] = ()  # this process's sums of the metrics over these images

    def __str__(self) -> str:
        if not self.images:
            return f"after epoch {self.epoch}"
        return f"in epoch {self.epoch + 1} after {plural(self.images, 'image')}"


class TrainBatches(Sampler[list[SampleKey]]):
    """One process's batches of one epoch, in an order that depends on (seed, epoch) only.

    A step takes the next ``batch * parts * processes`` samples of the order; a process takes its share of
    consecutive samples from them, in ``parts`` batches. So what a step learns from does not depend on how it
    is spread. What is left after the last whole step is left out, as in the published scripts; a data set
    smaller than one step gives one step of smaller batches.

    Args:
        size: number of samples.
        batch: samples per batch of a process.
        seed: the run's seed.
        parts: batches per step.
        rank: this process, from 0.
        processes: how many there are.

    Raises:
        UserError: fewer samples than one for each process and part.
    """

    def __init__(
        self, size: int, batch: int, seed: int, parts: int = 1, rank: int = 0, processes: int = 1
    ) -> None:
        if size < parts * processes:
            raise UserError(
                f"{plural(size, 'training image')} cannot fill {plural(parts, 'batch')} per step in "
                f"{plural(processes, 'process')}: start fewer, or lower --accum-steps"
            )
        self.size, self.seed, self.parts, self.wanted = size, seed, parts, batch
        self.batch = min(batch, size // (parts * processes))
        self.rank, self.processes = rank, processes
        self.epoch, self.images = 0, 0

    def set_position(self, position: Position) -> None:
        """Choose what the next iteration gives: the rest of an epoch. Nothing that it skips is read.

        The order is of images, not of steps: after a change of the number of processes or of the batch the
        rest of the epoch is still every image that is left, once.
        """
        self.epoch, self.images = position.epoch, position.images

    @property
    def samples_per_step(self) -> int:
        """Over all parts and processes."""
        return self.batch * self.parts * self.processes

    @property
    def first_step(self) -> int:
        """The step at which the next iteration begins, from 0."""
        return self.images // self.samples_per_step

    @property
    def steps(self) -> int:
        """Steps of the epoch, those before the next iteration included."""
        return self.first_step + max(self.size - self.images, 0) // self.samples_per_step

    def __len__(self) -> int:
        return (self.steps - self.first_step) * self.parts

    def __str__(self) -> str:
        few = f" (too few for --train-batch {self.wanted})" if self.batch < self.wanted else ""
        return f"{plural(self.size, 'training image')} in steps of {self.samples_per_step:,}{few}"

    def order(self) -> Tensor:
        """All samples in the order of the epoch: (size,), int64."""
        return permutation(self.size, self.seed, "order", self.epoch)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        order = self.order()
        for position in range(len(self)):
            step, part = divmod(position, self.parts)
            start = self.images + step * self.samples_per_step + (self.rank * self.parts + part) * self.batch
            yield [SampleKey(self.epoch, int(index)) for index in order[start : start + self.batch]]

    def of_step(self, step: int) -> list[int]:
        """The samples of this process in a step, counted from 0 in the epoch."""
        order = self.order()
        first = self.images + (step - self.first_step) * self.samples_per_step
        start = first + self.rank * self.parts * self.batch
        return order[start : start + self.parts * self.batch].tolist()


class EvalBatches(Sampler[list[SampleKey]]):
    """One process's batches of an evaluation: over all processes every sample exactly once, in order.

    Every process has as many batches; the last ones may be smaller or empty.
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
