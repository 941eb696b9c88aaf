"""Which devices a process computes on, and the processes that train one network together."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from inspect import signature
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from utils.common.errors import UserError
from utils.common.rendezvous import fresh_store
from utils.common.text import plural

T = TypeVar("T")
TIMEOUT = timedelta(minutes=30)  # of a process that waits for another
SECONDS_TO_SPEAK = 10.0  # more than processes differ in the time of their start


@dataclass(frozen=True)
class Ranks:
    """The processes of a job, as one of them sees it. The default is a job of one process.

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
        """The sum of a tensor over all processes, the same on each."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def largest(self, values: Sequence[int]) -> list[int]:
        """The largest of each of some small numbers over all processes, exchanged between the CPUs."""
        if self.size == 1:
            return list(values)
        shared = torch.tensor(values)
        dist.all_reduce(shared, dist.ReduceOp.MAX)
        return shared.tolist()

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank."""
        values: list[Any] = [value]
        if self.size > 1:
            values = [None] * self.size
            dist.all_gather_object(values, value)
        return values

    def wrap(self, net: nn.Module) -> nn.Module:
        """A network whose gradients are averaged over the processes; all start with rank 0's weights.

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
    def agree(self) -> Iterator[None]:
        """A user's mistake in the block, on any process, ends all of them; rank 0 says it.

        The block must not communicate.
        """
        mistake = None
        try:
            yield
        except UserError as error:
            mistake = str(error)
        for rank, text in enumerate(self.gather(mistake)):
            if text:
                self.refuse(f"rank {rank}: {text}" if rank else text)

    def refuse(self, message: str) -> NoReturn:
        """End all processes, which have all come here, with one line."""
        if self.main:
            raise UserError(message)
        leave_quietly()

    def same(self, value: object, what: str) -> None:
        """Refuse to go on when a value differs between the processes."""
        values = self.gather(value)
        for rank, other in enumerate(values):
            if other != values[0]:
                self.refuse(f"{what} on rank {rank} differs from that on rank 0: {other} and {values[0]}")


ONE_PROCESS = Ranks()


def leave_quietly() -> NoReturn:
    """End a process for which another one speaks; it must not be the first to end, or nobody would."""
    time.sleep(SECONDS_TO_SPEAK)
    sys.exit(2)


def refuse_several_processes(script: str) -> None:
    """For a script that is one process, whatever the GPUs.

    Raises:
        UserError: a launcher has started several.
    """
    if _whole({"WORLD_SIZE": "1", **os.environ}, "WORLD_SIZE") == 1:
        return
    if not is_main_process():
        leave_quietly()
    raise UserError(f"{script} is one process for all GPUs: start it with python, or use imagenet_fast.py")


def is_main_process() -> bool:
    """Whether this is rank 0, or the only process, by its environment: before the processes have joined."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def launch_environment(environment: Mapping[str, str], local_rank: int | None) -> dict[str, str]:
    """RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, however the job was started.

    torchrun and torch.distributed.launch set them; under srun they follow from SLURM's variables; without a
    launcher there is one process.

    Args:
        environment: ``os.environ``.
        local_rank: what the launcher gave as ``--local-rank``, if it did.

    Raises:
        UserError: SLURM's host names cannot be read, or variables are missing or no numbers.
    """
    if "WORLD_SIZE" in environment and "RANK" in environment:
        if "LOCAL_RANK" not in environment and local_rank is None:
            raise UserError("RANK is set but LOCAL_RANK is not: start with torchrun, or give --local-rank")
        local = environment.get("LOCAL_RANK", str(local_rank))
        names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        missing = [name for name in names if name not in environment]
        if missing and environment["WORLD_SIZE"] != "1":
            raise UserError(f"WORLD_SIZE is set but {' and '.join(missing)} not: start with torchrun")
        return {name: environment[name] for name in names if name in environment} | {"LOCAL_RANK": local}
    slurm = {"SLURM_STEP_NUM_TASKS": "1", "SLURM_JOB_ID": "0", **environment}
    if _whole(slurm, "SLURM_STEP_NUM_TASKS") > 1:  # set by srun, not in the batch script itself
        return {
            "RANK": environment["SLURM_PROCID"],
            "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
            "LOCAL_RANK": environment["SLURM_LOCALID"],
            "MASTER_ADDR": environment.get("MASTER_ADDR") or _first_slurm_host(environment),
            "MASTER_PORT": environment.get("MASTER_PORT")
            or str(20000 + _whole(slurm, "SLURM_JOB_ID") % 20000),
        }
    return {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}


def _first_slurm_host(environment: Mapping[str, str]) -> str:
    hosts = environment["SLURM_STEP_NODELIST"]
    if "[" not in hosts:
        return hosts.split(",")[0]
    try:
        expanded = subprocess.run(
            ["scontrol", "show", "hostnames", hosts], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        raise UserError(
            f"cannot expand SLURM's host list {hosts}: set MASTER_ADDR to its first host"
        ) from None
    return expanded.stdout.split()[0]


def _whole(environment: Mapping[str, str], name: str) -> int:
    try:
        return int(environment[name])
    except ValueError:
        raise UserError(f"{name}={environment[name]} in the environment is not a number") from None


@contextmanager
def start(device: str, local_rank: int | None) -> Iterator[Ranks]:
    """Join the job's processes for the block; on all but rank 0 standard output goes nowhere.

    Args:
        device: ``auto`` (CUDA when there is one), ``cpu`` or ``cuda``.
        local_rank: what the launcher gave as ``--local-rank``, if it did.

    Raises:
        UserError: this machine has no such device, or fewer GPUs than processes.
    """
    place = launch_environment(os.environ, local_rank)
    rank, size, local = (_whole(place, name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
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


def gpu_count() -> int:
    """GPUs that this process can use."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def process_device(device: str, local: int, under_slurm: bool) -> torch.device:
    """What one of a machine's processes computes on.

    Args:
        device: ``auto`` (CUDA when there is one), ``cpu`` or ``cuda``.
        local: the process among those of its machine, from 0.
        under_slurm: whether srun started it, which may show every process its own GPU only.

    Raises:
        UserError: there is no GPU for it.
    """
    gpus = gpu_count()
    if device == "cpu" or (device == "auto" and not gpus):
        return torch.device("cpu")
    index = 0 if under_slurm and gpus == 1 else local
    if index > gpus:  # the first process without a GPU speaks for those after it
        leave_quietly()
    if index == gpus:
        have = f"only {plural(gpus, 'GPU')} for process {local + 1}" if gpus else "no CUDA GPU is available"
        raise UserError(f"--device {device}: {have}; start fewer processes, or use --device cpu")
    return torch.device("cuda", index)


@contextmanager
def _losses_in_one_line(rank: int) -> Iterator[None]:
    """The end of another process is no error of this one."""
    try:
        yield
    except RuntimeError as error:
        signs = ("by peer", "Broken pipe", "Connection", "Timed out", "remote process")
        if not isinstance(error, dist.DistError) and not any(sign in str(error) for sign in signs):
            raise
        if "address already in use" in str(error).lower() or "EADDRINUSE" in str(error):
            port = os.environ.get("MASTER_PORT", "")
            raise UserError(f"port {port} is in use: set another MASTER_PORT, or --master_port") from None
        raise UserError(
            f"rank {rank}: another process has ended, perhaps with a message of its own, or hangs"
        ) from None


@contextmanager
def silence(wanted: bool) -> Iterator[None]:
    """Within the block ``print`` says nothing; errors are still heard."""
    if not wanted:
        yield
        return
    stdout = sys.stdout
    with Path(os.devnull).open("w") as sys.stdout:
        try:
            yield
        finally:
            sys.stdout = stdout


def select_devices(device: str, gpu_ids: str) -> tuple[torch.device, list[int]]:
    """The main device and the GPUs of a DataParallel run.

    Args:
        device: ``auto`` (CUDA when there is one), ``cpu`` or ``cuda``.
        gpu_ids: comma-separated indices such as ``0,1``; used on CUDA only.

    Returns:
        The device of inputs and outputs, and the GPU indices (empty on a CPU).

    Raises:
        UserError: CUDA was asked for and is absent, or an index names no GPU.
    """
    try:
        ids = [int(text) for text in gpu_ids.split(",")]
    except ValueError:
        raise UserError(f"--gpu-id takes indices such as 0 or 0,1, not '{gpu_ids}'") from None
    count = gpu_count()
    if device == "cuda" and not count:
        raise UserError("--device cuda: no CUDA GPU is available here; use --device cpu")
    if device == "cpu" or not count:
        return torch.device("cpu"), []
    absent = [i for i in ids if not 0 <= i < count]
    if absent or len(set(ids)) != len(ids):
        raise UserError(f"--gpu-id {gpu_ids}: name each GPU at most once, from 0 to {count - 1} here")
    torch.cuda.set_device(ids[0])
    return torch.device("cuda", ids[0]), ids


def parallelize(model: nn.Module, gpu_ids: list[int]) -> nn.Module:
    """Wrap a network in DataParallel when there is more than one GPU."""
    return nn.DataParallel(model, device_ids=gpu_ids) if len(gpu_ids) > 1 else model


def describe(device: torch.device, gpu_ids: list[int]) -> str:
    """The devices in words, for the first lines of a run."""
    if device.type == "cpu":
        return f"CPU ({plural(torch.get_num_threads(), 'thread')})"
    return f"{max(len(gpu_ids), 1)} x {torch.cuda.get_device_name(device)}"
