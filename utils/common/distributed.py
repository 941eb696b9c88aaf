"""The processes that train one network together.

torchrun restarts processes that failed, but not the store through which they tell each other their addresses.
A restarted process may then find the address of one that was killed and fail to reach it (seen with torch
2.14, gloo). Therefore each attempt has a part of the store of its own.
"""

import os
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from datetime import timedelta
from inspect import signature
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from utils.common.devices import describe, process_device
from utils.common.errors import UserError
from utils.common.launch import launch_environment, leave_quietly, whole_number

T = TypeVar("T")
TIMEOUT = timedelta(minutes=30)  # of a process that waits for another
_PAUSE = 0.02  # seconds between two looks into the store


@dataclass(frozen=True)
class Ranks:
    """The processes of a job, as one of them sees them; by default a job of one process.

    Args:
        rank: this process, from 0.
        size: how many there are.
        device: what this process computes on.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def main(self) -> bool:
        """Whether this is the one process that prints and writes."""
        return self.rank == 0

    def __str__(self) -> str:
        processes = f"{self.size} processes, each on " if self.size > 1 else ""
        return processes + describe(self.device, [])

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def largest(self, values: Sequence[int]) -> list[int]:
        """Return the largest of each number over all processes; they are exchanged between the CPUs."""
        if self.size == 1:
            return list(values)
        shared = torch.tensor(values)
        dist.all_reduce(shared, dist.ReduceOp.MAX)
        return shared.tolist()

    def raise_flag(self, flag: Tensor) -> None:
        """Set a flag, 0 or 1, to the largest of all processes; on a GPU the host does not wait for it."""
        if self.size > 1:
            dist.all_reduce(flag, dist.ReduceOp.MAX)

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, by rank."""
        values: list[Any] = [value]
        if self.size > 1:
            values = [None] * self.size
            dist.all_gather_object(values, value)
        return values

    def wrap(self, net: nn.Module) -> nn.Module:
        """Wrap a network so that its gradients are averaged; all processes start with rank 0's weights.

        Batch-norm statistics stay each process's own until :meth:`share_buffers`.
        """
        if self.size == 1:
            return net
        devices = [self.device] if self.device.type == "cuda" else None
        renamed = "forward_sync_buffers" in signature(DistributedDataParallel).parameters  # torch 2.13
        apart: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
        return DistributedDataParallel(net, device_ids=devices, gradient_as_bucket_view=True, **apart)

    def share_buffers(self, net: nn.Module) -> None:
        """Give every process rank 0's buffers, those that a checkpoint holds."""
        if self.size > 1:
            for buffer in net.buffers():
                dist.broadcast(buffer, src=0)

    @contextmanager
    def agree(self) -> Iterator[dict[str, str]]:
        """End all processes if a UserError is raised in the block on any of them; rank 0 prints it.

        The block must not communicate. What it puts into the dict must be the same on all processes.
        """
        known: dict[str, str] = {}
        mistake = None
        try:
            yield known
        except UserError as error:
            mistake = str(error)
        found = self.gather((known, mistake))
        for what, ours in found[0][0].items():
            for rank, (values, _) in enumerate(found):
                if (theirs := values.get(what, ours)) != ours:
                    self.refuse(f"{what} on rank {rank} differs from that on rank 0: {theirs} and {ours}")
        for rank, (_, text) in enumerate(found):
            if text:
                self.refuse(f"rank {rank}: {text}" if rank else text)

    def refuse(self, message: str) -> NoReturn:
        """End all processes with one line; all must call this."""
        if self.main:
            raise UserError(message)
        leave_quietly()


ONE_PROCESS = Ranks()


@contextmanager
def start(device: str, local_rank: int | None) -> Iterator[Ranks]:
    """Join the job's processes for the block; all but rank 0 print nothing.

    Args:
        device: ``auto`` (CUDA when there is one), ``cpu`` or ``cuda``.
        local_rank: what the launcher gave as ``--local-rank``, if it did.

    Raises:
        UserError: this machine has no such device, or fewer GPUs than processes.
    """
    place = launch_environment(os.environ, local_rank)
    rank, size, local = (whole_number(place, name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    chosen = process_device(device, local, "SLURM_LOCALID" in os.environ)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if size == 1:
        yield Ranks(device=chosen)
        return
    os.environ.update(place)
    backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
    with silence(rank > 0), _losses_in_one_line(rank):
        store, rank, size = fresh_store(TIMEOUT)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
        yield Ranks(rank, size, chosen)
    dist.destroy_process_group()  # not after an error: the others may be waiting, and are to be ended


@contextmanager
def _losses_in_one_line(rank: int) -> Iterator[None]:
    """Turn the errors that follow from the end of another process into one line."""
    try:
        yield
    except RuntimeError as error:
        signs = ("by peer", "Broken pipe", "Connection", "Timed out", "remote process")
        if not isinstance(error, dist.DistError) and not any(sign in str(error) for sign in signs):
            raise
        text = f"rank {rank}: another process has ended, perhaps with a message of its own, or hangs"
        if "address already in use" in str(error).lower() or "EADDRINUSE" in str(error):
            port = os.environ.get("MASTER_PORT", "")
            text = f"port {port} is in use: set another MASTER_PORT, or --master_port"
        raise UserError(text) from None


@contextmanager
def silence(wanted: bool) -> Iterator[None]:
    """Discard what the block prints; standard error stays."""
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere if wanted else sys.stdout):
        yield


def fresh_store(timeout: timedelta) -> tuple[dist.Store, int, int]:
    """Return a store for the processes of this attempt only, this process's rank, and their number.

    Rank 0 names the attempt. Each other rank takes a name that no earlier process had, and rank 0 answers to
    the latest name of a rank until that rank confirms.

    Raises:
        RuntimeError: the others do not come within ``timeout``.
    """
    store, rank, size = next(dist.rendezvous("env://", timeout=timeout))
    deadline = time.monotonic() + timeout.total_seconds()
    name = attempt = uuid.uuid4().hex
    if rank > 0:
        store.set(f"name/{rank}", name)
        attempt = store.get(f"answer/{name}").decode()  # waits for it, as the next get does
        store.set(f"{attempt}/{rank}", "here")
    for other in range(1, size) if rank == 0 else ():
        while not store.check([f"{attempt}/{other}"]):
            store.set(f"answer/{store.get(f'name/{other}').decode()}", attempt)
            if time.monotonic() > deadline:
                raise RuntimeError(f"Timed out waiting for rank {other}")
            time.sleep(_PAUSE)
    return dist.PrefixStore(attempt, store), rank, size
