"""Restoring SGD's momentum from a checkpoint: by name, or by the published order of the parameters."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from utils.common.errors import UserError

KINDS = (("nowd_bn", 1), ("nowd_fc", 2), ("nowd_conv", 4))  # flag, and number of dimensions of its parameters


def load_optimizer(optimizer: Optimizer, saved: Mapping[str, Any] | None, net: nn.Module, path: str) -> None:
    """Restore the momentum; learning rate and weight decay stay those of the command line.

    Our files name the parameters. Published files number them, in one group or two; the numbers are matched
    to names by the published grouping whose groups have these sizes and shapes.

    Args:
        optimizer: made with ``named_parameters``.
        saved: its state dict in the checkpoint, if there is one.
        net: the network, whose trained parameters are all in the optimizer.
        path: of the checkpoint, for messages.

    Raises:
        UserError: there is no state, or its parameters cannot be identified.
    """
    remedy = "--fresh-optimizer continues with fresh momentum"
    if saved is None:
        raise UserError(f"--resume {path}: it holds no optimizer state; {remedy}")
    parameters = {name: value for name, value in net.named_parameters() if value.requires_grad}
    ours = [name for group in optimizer.param_groups for name in group["param_names"]]
    theirs = _order_of(saved, [group["param_names"] for group in optimizer.param_groups], parameters)
    if theirs is None:
        if other := _differ(saved["param_groups"], parameters):
            what = f"it trained {other} than this command: give its --freeze, or leave yours out"
            raise UserError(f"--resume {path}: {what}; {remedy}")
        sizes = [len(group["params"]) for group in saved["param_groups"]]
        what = f"it cannot be told to which of the {len(parameters)} parameters its optimizer state"
        raise UserError(f"--resume {path}: {what}, groups of {sizes}, belongs; {remedy}")
    state = {
        i: {"momentum_buffer": _laid_out_as(theirs[name]["momentum_buffer"], parameters[name])}
        for i, name in enumerate(ours)
        if theirs[name].get("momentum_buffer") is not None
    }
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _order_of(
    saved: Mapping[str, Any], own: list[list[str]], parameters: Mapping[str, Tensor]
) -> dict[str, Mapping[str, Any]] | None:
    """Return the saved state of every parameter, by name; None if no grouping fits, or several do."""
    groups, state = saved["param_groups"], saved["state"]
    keys = [key for group in groups for key in group["params"]]
    named = all("param_names" in group for group in groups)
    candidates = [[group["param_names"] for group in groups]] if named else [own, *groupings(parameters)]
    fitting: list[dict[str, Mapping[str, Any]]] = []
    for grouping in candidates:
        names = [name for group in grouping for name in group]
        sizes_fit = [len(group) for group in grouping] == [len(group["params"]) for group in groups]
        if not sizes_fit or sorted(names) != sorted(parameters):
            continue
        found = {name: state.get(key, {}) for name, key in zip(names, keys, strict=True)}
        if all(_shapes_fit(values, parameters[name]) for name, values in found.items()):
            if grouping is own:
                return found
            fitting += [found] if all(list(found) != list(other) for other in fitting) else []
    return fitting[0] if len(fitting) == 1 else None


def _differ(groups: Sequence[Mapping[str, Any]], parameters: Mapping[str, Tensor]) -> str:
    """Say whether named groups have more or fewer parameters than these; empty if they have others."""
    theirs = {name for group in groups for name in group.get("param_names", ())}
    if theirs < set(parameters):
        return "fewer parameters" if theirs else ""
    return "more parameters" if theirs > set(parameters) else ""


def _shapes_fit(values: Mapping[str, Any], parameter: Tensor) -> bool:
    """Whether the saved momentum, SGD's only state, has the parameter's shape, as kernels require."""
    momentum = values.get("momentum_buffer")
    return momentum is None or (isinstance(momentum, Tensor) and momentum.shape == parameter.shape)


def _laid_out_as(value: Tensor, parameter: Tensor) -> Tensor:
    """Copy a tensor to the parameter's memory format: fused optimizers match by memory, not by index."""
    return torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)


def groupings(parameters: Mapping[str, Tensor]) -> Iterator[list[list[str]]]:
    """Yield every grouping of the published scripts: one group, or two, without and with weight decay."""
    yield [list(parameters)]
    for switches in product((False, True), repeat=len(KINDS)):
        yield grouping(parameters, [dims for (_, dims), off in zip(KINDS, switches, strict=True) if off])


def grouping(parameters: Mapping[str, Tensor], undecayed: Collection[int]) -> list[list[str]]:
    """Return the names of the parameters without and with weight decay.

    The published scripts distinguish parameters by name (``bias``) and number of dimensions (norm 1, linear
    2, convolution 4).

    Args:
        parameters: by name.
        undecayed: numbers of dimensions of the parameters without weight decay.
    """
    groups: list[list[str]] = [[], []]
    for name, parameter in parameters.items():
        groups[0 if "bias" in name or parameter.dim() in undecayed else 1].append(name)
    return groups
