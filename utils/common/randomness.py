"""Randomness as a pure function of (seed, position).

Sample order, every augmentation and every dropout mask are drawn from a generator seeded with the run's seed
and the position of the draw (epoch, sample index, step, ...). Nothing depends on how much generator state was
consumed before, so neither the number of workers nor a stop and resume changes the weights.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def configure_torch(deterministic: bool, seed: int, one_size: bool = True) -> None:
    """Seed the initial weights, and choose between fast and deterministic algorithms.

    Args:
        deterministic: use algorithms that always add in the same order.
        seed: the run's seed.
        one_size: whether all batches are of one size, for which the fastest convolutions are then searched.
    """
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = one_size and not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)


def derive_seed(seed: int, purpose: str, *position: int) -> int:
    """Return a 63-bit seed for one draw.

    Args:
        seed: the run's seed, non-negative.
        purpose: what is drawn; two purposes at the same position are independent.
        position: non-negative integers such as epoch and sample index.
    """
    text = repr((seed, purpose, *position)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def permutation(size: int, seed: int, purpose: str, *position: int) -> Tensor:
    """Return a random order of ``range(size)``: (size,), int64."""
    generator = torch.Generator().manual_seed(derive_seed(seed, purpose, *position))
    return torch.randperm(size, generator=generator)


@contextmanager
def seeded_cpu(seed: int) -> Iterator[None]:
    """Seed torch's CPU generator for the block, and restore its state afterwards.

    Leaves CUDA generators alone: a data worker must not touch them.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
