"""Which devices a process computes on."""

import torch
from torch import nn

from utils.common.errors import UserError
from utils.common.text import plural


def gpu_count() -> int:
    """Return the number of GPUs that this process can use."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def process_device(device: str, local: int, under_slurm: bool) -> torch.device:
    """Choose the device of one of a machine's processes.

    Args:
        device: ``auto`` (CUDA when there is one), ``cpu`` or ``cuda``.
        local: its number among the processes of this machine, from 0.
        under_slurm: whether srun started it, which may show every process its own GPU only.

    Raises:
        UserError: there is no GPU for it.
    """
    gpus = gpu_count()
    if device == "cpu" or (device == "auto" and not gpus):
        return torch.device("cpu")
    index = 0 if under_slurm and gpus == 1 else local
    if index >= gpus:
        have = f"only {plural(gpus, 'GPU')} for process {local + 1}" if gpus else "no CUDA GPU is available"
        raise UserError(f"--device {device}: {have}; start fewer processes, or use --device cpu")
    return torch.device("cuda", index)


def select_devices(device: str, gpu_ids: str) -> tuple[torch.device, list[int]]:
    """Choose the main device and the GPUs of a DataParallel run.

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
    """Describe the devices, for the first lines of a run."""
    if device.type == "cpu":
        return f"CPU ({plural(torch.get_num_threads(), 'thread')})"
    return f"{max(len(gpu_ids), 1)} x {torch.cuda.get_device_name(device)}"
