"""Parameters and multiply-adds by the counting rules of the published tables.

Per image, one multiply-accumulate counts 1. Convolutions count their bias, linear layers do not; batch norm
counts 2 per input element (1 without affine); ReLU modules count their output, pooling modules their input.
Whatever is computed by functions instead of modules counts nothing (sigmoid, softmax, sums, products, weight
standardisation). A module called k times counts k times.
"""

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

_RELUS = (nn.ReLU, nn.PReLU, nn.ELU, nn.LeakyReLU, nn.ReLU6)
_POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


class Complexity(NamedTuple):
    """Size and cost of a network for one image."""

    parameters: int
    multiply_adds: int

    def __str__(self) -> str:
        return f"{self.parameters / 1e6:.2f}M parameters, {self.multiply_adds / 1e9:.3f} GFLOPs"


def _cost(module: nn.Module, x: Tensor, out: Tensor) -> int:
    """Multiply-adds of one call of a leaf module, for the whole batch."""
    if isinstance(module, nn.Conv2d):
        fan_in = module.in_channels // module.groups * math.prod(module.kernel_size)
        return out.numel() * (fan_in + (module.bias is not None))
    if isinstance(module, nn.Linear):
        return out.numel() * module.in_features
    if isinstance(module, nn.BatchNorm2d):
        return x.numel() * (2 if module.affine else 1)
    if isinstance(module, (*_RELUS, nn.Upsample)):
        return out.numel()
    if isinstance(module, _POOLS):
        return x.numel()
    return 0


def count(model: nn.Module, shape: tuple[int, ...], forward: str = "__call__") -> Complexity:
    """Count one forward pass in evaluation mode, without computing it.

    Args:
        model: the network; it is left as it is.
        shape: of one image, (3, H, W).
        forward: the method to count, such as ``forward_features``.
    """
    twin = copy.deepcopy(model).to("meta").eval()  # shapes without values cost no time
    total = 0

    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        total += _cost(module, inputs[0], output)

    for module in twin.modules():
        if not list(module.children()):
            module.register_forward_hook(add)
    with torch.no_grad():
        getattr(twin, forward)(torch.empty(1, *shape, device="meta", dtype=next(twin.parameters()).dtype))
    return Complexity(sum(p.numel() for p in model.parameters() if p.requires_grad), total)
