"""The processes that train one network together.

torchrun restarts processes that failed, but not the store through which they tell each other their addresses.
A restarted process may then find the address of one that was killed and fail to reach it (seen with torch
2.14, gloo). Therefore each attempt has a part of the store of its own.
"""

import os
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from datetime import timedelta
from errno import EHOSTDOWN, EHOSTUNREACH, ENETDOWN, ENETUNREACH, ETIMEDOUT
from inspect import signature
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from utils.common.devices import describe, process_device
from utils.common.errors import UserError
from utils.common.launch import SECONDS_TO_SPEAK, launch_environment, leave_quietly, whole_number
from utils.common.meeting import Told, disagreement, loopback_address, meet

T = TypeVar("T")
TIMEOUT = timedelta(minutes=10)  # of a process that waits for another, unless --timeout says another
PATIENCE = timedelta(minutes=1)  # with others, of a process that does not join them
_PAUSE = 0.02  # seconds between two looks into the store


@dataclass(frozen=True)
class Ranks:
    """The processes of a job, as one of them sees them; by default a job of one process.

    Args:
        rank: this process, from 0.
        size: how many there are.
        device: what this process computes on.
        local: this process among those of its machine, from 0; the first says what ends the job.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    local: int = 0

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
        """End all processes if a UserError is raised in the block on any of them, or if they differ.

        The block must not communicate. What it puts into the dict must be the same on all processes.
        """
        known: dict[str, str] = {}
        mistake = ""
        try:
            yield known
        except UserError as error:
            mistake = str(error)
        if verdict := disagreement(self.gather(Told(socket.gethostname(), known, mistake))):
            self.refuse(verdict)

    def refuse(self, message: str) -> NoReturn:
        """End all processes with one line on each machine; all must call this."""
        if self.main or self.local == 0:
            raise UserError(message)
        leave_quietly()


ONE_PROCESS = Ranks()


@contextmanager
def start(
    device: str,
    local_rank: int | None,
    shared: Callable[[], Mapping[str, str]] = dict,
    timeout: timedelta = TIMEOUT,
) -> Iterator[Ranks]:
    """Join the job's processes for the block; all but rank 0 print nothing.

    Args:
        device: ``auto`` (CUDA when there is one), ``cpu`` or ``cuda``.
        local_rank: what the launcher gave as ``--local-rank``, if it did.
        shared: returns what must be the same on all processes, by what the user calls it.
        timeout: how long a process waits for another.

    Raises:
        UserError: a process differs from rank 0, or its machine has no such device, or fewer GPUs than
            processes, or others cannot reach it.
    """
    place = launch_environment(os.environ, local_rank)
    rank, size, local = (whole_number(place, name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    under_slurm = "SLURM_LOCALID" in os.environ
    if size == 1:
        chosen = process_device(device, local, under_slurm)
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
        yield Ranks(device=chosen)
        return
    os.environ.update(place)
    with silence(rank > 0), _losses_in_one_line(rank, local, timeout):
        store, rank, size = fresh_store(timeout)
        facts, mistake, chosen = dict(shared()), "", torch.device("cpu")
        try:
            chosen = process_device(device, local, under_slurm)
            facts["--device"] = chosen.type
        except UserError as error:
            mistake = str(error)
        ranks = Ranks(rank, size, chosen, local)
        if verdict := meet(store, rank, size, Told(socket.gethostname(), facts, mistake, loopback_address())):
            ranks.refuse(verdict)
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
        backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
        yield ranks
    dist.destroy_process_group()  # not after an error: the others may be waiting, and are to be ended


def tell_mistake(text: str) -> None:
    """Tell the other processes of the job, if there are any, why this one does not join them.

    They may have been started otherwise, and be waiting. This process waits a minute at most for them.
    """
    try:
        place = launch_environment(os.environ, None)
        if place["WORLD_SIZE"] != "1":
            os.environ.update(place)
            store, rank, size = fresh_store(PATIENCE)
            meet(store, rank, size, Told(socket.gethostname(), {}, " ".join(text.split())))
    except (RuntimeError, ValueError, UserError):  # they do not come: each has its own time-out
        pass


# What torch and gloo say when a process is gone, or its machine, or the way there.
_LOST = (
    *("by peer", "Broken pipe", "Connection", "Timed out", "remote process", "gloo/transport"),
    *(os.strerror(number) for number in (EHOSTUNREACH, ENETUNREACH, ENETDOWN, EHOSTDOWN, ETIMEDOUT)),
)


@contextmanager
def _losses_in_one_line(rank: int, local: int, timeout: timedelta) -> Iterator[None]:
    """Turn the errors that follow from the loss of another process into one line on each machine.

    The first process of a machine says it at once, the others only if nothing ends them meanwhile.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if not isinstance(error, dist.DistError) and not any(sign in text for sign in _LOST):
            raise
        if "address already in use" in text.lower() or "EADDRINUSE" in text:
            port = os.environ.get("MASTER_PORT", "")
            raise UserError(f"port {port} is in use: set another MASTER_PORT, or --master_port") from None
        if local > 0:
            time.sleep(SECONDS_TO_SPEAK)
        what = "another process has ended, perhaps with a message of its own, or is out of reach"
        if "timed out" in text.lower() or "timeout" in text.lower():
            minutes = f"{timeout.total_seconds() / 60:g} minutes (--timeout)"
            what = f"another process has not answered for {minutes}: it hangs or is out of reach"
        raise UserError(f"rank {rank} ({socket.gethostname()}): {what}; --resume auto goes on") from None


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
