"""Which sample is read at which step."""

from collections.abc import Iterator
from typing import NamedTuple

from torch.utils.data import Sampler

from utils.errors import UserError
from utils.randomness import permutation
from utils.text import plural


class SampleKey(NamedTuple):
    """What a data set needs to produce one sample: together with the seed it fixes every augmentation."""

    epoch: int
    sample: int


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
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration gives."""
        self.epoch = epoch

    @property
    def samples_per_step(self) -> int:
        """Over all parts and processes."""
        return self.batch * self.parts * self.processes

    def __len__(self) -> int:
        return self.size // self.samples_per_step * self.parts

    def __str__(self) -> str:
        few = f" (too few for --train-batch {self.wanted})" if self.batch < self.wanted else ""
        return f"{plural(self.size, 'training image')} in steps of {self.samples_per_step:,}{few}"

    def __iter__(self) -> Iterator[list[SampleKey]]:
        order = permutation(self.size, self.seed, "order", self.epoch)
        for position in range(len(self)):
            step, part = divmod(position, self.parts)
            start = step * self.samples_per_step + (self.rank * self.parts + part) * self.batch
            yield [SampleKey(self.epoch, index) for index in order[start : start + self.batch]]


class EvalBatches(Sampler[list[SampleKey]]):
    """One process's batches of an evaluation: over all processes every sample exactly once, in order.

    The last batch may be smaller, and a process may have none.
    """

    def __init__(self, size: int, batch: int, rank: int = 0, processes: int = 1) -> None:
        self.size, self.mine = size, range(rank, size, processes)
        self.batch = batch

    def set_epoch(self, epoch: int) -> None:
        """Evaluation is the same in every epoch."""

    def __str__(self) -> str:
        return plural(self.size, "validation image")

    def __len__(self) -> int:
        return -(-len(self.mine) // self.batch)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for start in range(0, len(self.mine), self.batch):
            yield [SampleKey(0, index) for index in self.mine[start : start + self.batch]]
