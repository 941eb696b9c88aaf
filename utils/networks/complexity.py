"""Parameters and multiply-adds by the counting rules of the published tables.

Per image, one multiply-accumulate counts 1. Convolutions count their bias, linear layers do not; batch norm
counts 2 per input element (1 without affine); ReLU modules count their output, pooling modules their input.
Functions count 0 (sigmoid, softmax, sums, products, weight standardisation). A module called k times counts k
times.
"""

import copy
import math
from functools import partial
from typing import Any, NamedTuple

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
    """Return the multiply-adds of one call of a leaf module, for the whole batch."""
    if isinstance(module, nn.Conv1d | nn.Conv2d):
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


class Call(NamedTuple):
    """One call of a module in a forward pass for one image."""

    name: str  # of the module within the network
    shape: tuple[int, ...]  # of the output (1, ...) or the first of several; empty if it is not a tensor
    multiply_adds: int  # 0 for a module with children, whose own calls count


def parts_of(module: nn.Module) -> list[str]:
    """Return the names of the children that a module consists of: all but gates on its input or output."""
    gates = getattr(module, "gate_at", {}).values()
    return [name for name, _ in module.named_children() if name not in gates]


def trace(model: nn.Module, shape: tuple[int, ...], forward: str = "__call__") -> list[Call]:
    """List the module calls of one forward pass in evaluation mode, in the order in which they return.

    Args:
        model: the network; it is copied to the meta device, where nothing is computed.
        shape: of one image, (3, H, W).
        forward: the method to follow, such as ``forward_features``.
    """
    copied = copy.deepcopy(model).to("meta").eval()
    calls: list[Call] = []

    def add(name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        cost = 0 if parts_of(module) else _cost(module, inputs[0], output)
        first = output[0] if isinstance(output, tuple) and output else output
        calls.append(Call(name, tuple(first.shape) if isinstance(first, Tensor) else (), cost))

    for name, module in copied.named_modules():
        module.register_forward_hook(partial(add, name))
    with torch.no_grad():
        dtype = next(copied.parameters()).dtype
        getattr(copied, forward)(torch.empty(1, *shape, device="meta", dtype=dtype))
    return calls


def count(model: nn.Module, shape: tuple[int, ...], forward: str = "__call__") -> Complexity:
    """Count the parameters and the multiply-adds of one forward pass; arguments as for :func:`trace`."""
    total = sum(call.multiply_adds for call in trace(model, shape, forward))
    return Complexity(sum(p.numel() for p in model.parameters() if p.requires_grad), total)
