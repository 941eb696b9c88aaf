"""The form of the published scripts' checkpoints: keys as DataParallel has them, momentum by number."""

from collections.abc import Collection, Iterator, Mapping
from itertools import product
from typing import Any

from torch import Tensor

KINDS = (("nowd_bn", 1), ("nowd_fc", 2), ("nowd_conv", 4))  # flags, and the dimensions that they are about


def groupings(parameters: Mapping[str, Tensor]) -> Iterator[list[list[str]]]:
    """All ways in which the published scripts group parameters: all together, or without and with decay."""
    yield [list(parameters)]
    for chosen in product((False, True), repeat=len(KINDS)):
        yield grouping(parameters, [dims for (_, dims), off in zip(KINDS, chosen, strict=True) if off])


def grouping(parameters: Mapping[str, Tensor], undecayed: Collection[int]) -> list[list[str]]:
    """Names of the parameters without and with decay.

    The published scripts tell kinds apart by the name (``bias``) and the number of dimensions (norm 1, linear
    2, convolution 4).

    Args:
        parameters: by name.
        undecayed: numbers of dimensions that do not decay.
    """
    groups: list[list[str]] = [[], []]
    for name, parameter in parameters.items():
        groups[0 if "bias" in name or parameter.dim() in undecayed else 1].append(name)
    return groups


def wrapped(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with the names of DataParallel and DistributedDataParallel."""
    return {f"module.{key}": value for key, value in weights.items()}


def optimizer_state(saved: Mapping[str, Any], parameters: Mapping[str, Tensor]) -> dict[str, Any]:
    """SGD's state as the published script of the same flags has it; that of a published file as it is.

    A file that does not say its flags is taken for one of imagenet.py, which has one group. Without momentum
    in the file there is none in the state, and training starts with a new one.

    Args:
        saved: the checkpoint.
        parameters: of its network, by name.
    """
    before: dict[str, Any] = saved.get("optimizer", {"state": {}, "param_groups": []})
    if any("param_names" not in group for group in before["param_groups"]):
        return before
    if "training_state_dict" in saved:  # the momentum is that of these weights, not of their average
        before = {"state": {}, "param_groups": []}
    names = [name for group in before["param_groups"] for name in group["param_names"]]
    numbers = [number for group in before["param_groups"] for number in group["params"]]
    momentum = {name: before["state"].get(number) for name, number in zip(names, numbers, strict=True)}
    flags = saved.get("arguments", {})
    one = flags.get("wdall", True)  # imagenet.py has no such flag
    undecayed = [dims for flag, dims in KINDS if flags.get(flag)]
    groups = [list(parameters)] if one else grouping(parameters, undecayed)
    order = [name for group in groups for name in group]
    state = {number: momentum[name] for number, name in enumerate(order) if momentum.get(name)}
    settings, decay = _settings(saved), flags.get("weight_decay", 1e-4)
    return {
        "state": state,
        "param_groups": [
            {**settings, "weight_decay": decay, "params": [order.index(name) for name in group]}
            for group, decay in zip(groups, (decay,) if one else (0.0, decay), strict=True)
        ],
    }


def _settings(saved: Mapping[str, Any]) -> dict[str, Any]:
    """What SGD keeps of every group; imagenet_mobile.py computes the rate from ``initial_lr``."""
    flags = saved.get("arguments", {})
    base = flags.get("lr", 0.1) * (saved.get("images_per_step", 256) / 256 if "wdall" in flags else 1)
    now = [group["lr"] for group in saved.get("optimizer", {}).get("param_groups", [])] or [base]
    momentum, nesterov = flags.get("momentum", 0.9), flags.get("nesterov", False)
    rates = {"lr": now[0], "initial_lr": base}
    return {**rates, "momentum": momentum, "dampening": 0, "nesterov": nesterov}
