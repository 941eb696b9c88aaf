"""Published peak performance of some GPUs, for dense matrices; from NVIDIA's data sheets."""

from types import MappingProxyType
from typing import NamedTuple

import torch


class Peak(NamedTuple):
    """What a GPU can do at most."""

    single: float  # TFLOP/s in float32 as torch convolves by default: TF32 on GPUs that have it
    half: float  # TFLOP/s in float16 accumulated in float32; the same in bfloat16 on GPUs that have it
    bandwidth: float  # GB/s


PEAKS = MappingProxyType(
    {
        "Tesla V100-SXM2-16GB": Peak(15.7, 125, 900),
        "Tesla V100-SXM2-32GB": Peak(15.7, 125, 900),
        "Tesla T4": Peak(8.1, 65, 320),
        "NVIDIA A100-SXM4-40GB": Peak(156, 312, 1555),
        "NVIDIA A100-SXM4-80GB": Peak(156, 312, 2039),
        "NVIDIA A100 80GB PCIe": Peak(156, 312, 1935),
        "NVIDIA H100 80GB HBM3": Peak(494.7, 989.4, 3350),
        "NVIDIA H100 PCIe": Peak(378, 756, 2000),
        "NVIDIA H200": Peak(494.7, 989.4, 4800),
        "NVIDIA L4": Peak(60, 121, 300),
        "NVIDIA GeForce RTX 3090": Peak(35.6, 71, 936),
        "NVIDIA GeForce RTX 4090": Peak(82.6, 165.2, 1008),
    }
)


def peak_of(device: torch.device) -> Peak | None:
    """Return the peaks of a device; None for a CPU and for a GPU that is not in the table."""
    return PEAKS.get(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
