"""Which devices a process computes on, and how the network is spread over them."""

import torch
from torch import nn

from utils.errors import UserError


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
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cuda" and not count:
        raise UserError("--device cuda: no CUDA GPU is available here; use --device cpu")
    if device == "cpu" or not count:
        return torch.device("cpu"), []
    absent = [i for i in ids if not 0 <= i < count]
    if absent or len(set(ids)) != len(ids):
        raise UserError(f"--gpu-id {gpu_ids}: name each GPU at most once, from 0 to {count - 1} here")
    return torch.device("cuda", ids[0]), ids


def parallelize(model: nn.Module, gpu_ids: list[int]) -> nn.Module:
    """Wrap a network in DataParallel when there is more than one GPU."""
    return nn.DataParallel(model, device_ids=gpu_ids) if len(gpu_ids) > 1 else model


def unwrap(model: nn.Module) -> nn.Module:
    """The network inside its parallel wrapper."""
    return model.module if isinstance(model, nn.DataParallel) else model


def describe(device: torch.device, gpu_ids: list[int]) -> str:
    """The devices in words, for the first lines of a run."""
    if device.type == "cpu":
        return f"CPU ({torch.get_num_threads()} threads)"
    return f"{len(gpu_ids)} x {torch.cuda.get_device_name(device)}"
