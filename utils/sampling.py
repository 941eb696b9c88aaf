"""Which sample is read at which step."""

from collections.abc import Iterator
from typing import NamedTuple

from torch.utils.data import Sampler

from utils.randomness import permutation


class SampleKey(NamedTuple):
    """What a data set needs to produce one sample: together with the seed it fixes every augmentation."""

    epoch: int
    sample: int


class TrainBatches(Sampler[list[SampleKey]]):
    """Batches of one epoch in an order that depends on (seed, epoch) only.

    The last, smaller batch is left out, as in the published scripts; a data set smaller than one batch gives
    one batch of all its samples.

    Args:
        size: number of samples.
        batch: samples per step.
        seed: the run's seed.
    """

    def __init__(self, size: int, batch: int, seed: int) -> None:
        self.size = size
        self.batch = min(batch, size)
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size // self.batch

    def __iter__(self) -> Iterator[list[SampleKey]]:
        order = permutation(self.size, self.seed, "order", self.epoch)
        for start in range(0, len(self) * self.batch, self.batch):
            yield [SampleKey(self.epoch, index) for index in order[start : start + self.batch]]


class EvalBatches(Sampler[list[SampleKey]]):
    """Every sample exactly once, in order; the last batch may be smaller."""

    def __init__(self, size: int, batch: int) -> None:
        self.size = size
        self.batch = batch

    def set_epoch(self, epoch: int) -> None:
        """Evaluation is the same in every epoch."""

    def __len__(self) -> int:
        return -(-self.size // self.batch)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for start in range(0, self.size, self.batch):
            yield [SampleKey(0, index) for index in range(start, min(start + self.batch, self.size))]
