"""The form of the published scripts' checkpoints: keys as DataParallel has them, momentum by number."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from utils.networks.optimizer_state import KINDS, grouping


def wrapped(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict with the keys of DataParallel and DistributedDataParallel."""
    return {f"module.{key}": value for key, value in weights.items()}


def optimizer_state(saved: Mapping[str, Any], parameters: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return SGD's state as the published script saves it with the same flags.

    The state in a published file is returned unchanged. A file without flags is assumed to be from
    imagenet.py, which has one group. If the file has no momentum, the state has none, and training starts
    with fresh momentum.

    Args:
        saved: the checkpoint.
        parameters: of the checkpoint's network, by name.
    """
    before: dict[str, Any] = saved.get("optimizer", {"state": {}, "param_groups": []})
    if any("param_names" not in group for group in before["param_groups"]):
        return before
    if "training_state_dict" in saved:  # the momentum belongs to these weights, not to their EMA
        before = {"state": {}, "param_groups": []}
    names = [name for group in before["param_groups"] for name in group["param_names"]]
    numbers = [number for group in before["param_groups"] for number in group["params"]]
    momentum = {name: before["state"].get(number) for name, number in zip(names, numbers, strict=True)}
    flags = saved.get("arguments", {})
    one = flags.get("wdall", True)  # imagenet.py has one group and no such flag
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
    """Return SGD's settings of every group; imagenet_mobile.py takes its base rate from ``initial_lr``."""
    flags = saved.get("arguments", {})
    base = flags.get("lr", 0.1) * (saved.get("images_per_step", 256) / 256 if "wdall" in flags else 1)
    groups = saved.get("optimizer", {}).get("param_groups", [])
    now = [group["lr"] / group.get("lr_factor", 1.0) for group in groups] or [base]
    momentum, nesterov = flags.get("momentum", 0.9), flags.get("nesterov", False)
    rates = {"lr": now[0], "initial_lr": base}
    return {**rates, "momentum": momentum, "dampening": 0, "nesterov": nesterov}
