"""The registry: every architecture by name, our own and torchvision's classification networks.

A new model file takes two lines here: its import and its place in ``_FILES``. Every lower-case name in a
file's ``__all__`` is a builder that takes keyword arguments (``num_classes``, ...) and returns an
``nn.Module``.
"""

import fnmatch
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torchvision
from torch import nn

from models import (
    densenet_ws,
    mobilenetv1,
    mobilenetv2_ca,
    resnet_bam,
    resnet_cbam,
    resnet_d,
    resnet_eca,
    resnet_fca,
    resnet_gc,
    resnet_oct,
    resnet_se,
    resnet_sge,
    resnet_simam,
    resnet_sk,
    resnet_srm,
    resnet_triplet,
    resnet_ws,
    shufflenetv1,
    shufflenetv2,
    sknet,
)
from models.gates import add_gates, create_gate, list_gates
from models.stems import put_small_stem

__all__ = [
    "add_gates",
    "create_gate",
    "create_model",
    "is_own",
    "list_gates",
    "list_models",
    "put_small_stem",
    "resolve",
]

_FILES = (
    resnet_se,
    resnet_sk,
    sknet,
    resnet_cbam,
    resnet_bam,
    resnet_gc,
    resnet_sge,
    resnet_srm,
    resnet_eca,
    resnet_simam,
    resnet_triplet,
    resnet_fca,
    resnet_oct,
    resnet_d,
    resnet_ws,
    densenet_ws,
    shufflenetv1,
    shufflenetv2,
    mobilenetv1,
    mobilenetv2_ca,
)

# Other names that the published tables, logs and checkpoints use.
_ALIASES = MappingProxyType(
    {
        **{f"old_resnet{depth}": f"resnet{depth}" for depth in (18, 34, 50, 101, 152)},
        "ws_resnext50_32x4d": "ws_resnext50",
        "ws_resnext101_32x4d": "ws_resnext101",
        "shufflenetv1_1x_g3": "shufflenetv1_1x",
        "ws_shufflenetv1_1x": "ws_shufflenetv1",
        "ws_shufflenetv1_1x_g3": "ws_shufflenetv1",
        "ws_shufflenetv2_1x": "ws_shufflenetv2",
    }
)


def _own_builders() -> Mapping[str, Callable[..., nn.Module]]:
    """Every builder of our model files, by name."""
    return MappingProxyType(
        {name: getattr(file, name) for file in _FILES for name in file.__all__ if name.islower()}
    )


_OWN = _own_builders()
_TORCHVISION = tuple(torchvision.models.list_models(module=torchvision.models))


def list_models(pattern: str = "*") -> list[str]:
    """List the names that :func:`create_model` takes and that match a shell pattern, our own first.

    Example: ``list_models("sge_*")``.
    """
    names = [*_OWN, *_ALIASES, *_TORCHVISION]
    return fnmatch.filter(names, pattern)


def is_own(name: str) -> bool:
    """Whether an architecture is defined in this package rather than in torchvision."""
    return name in _OWN


def resolve(name: str) -> str:
    """Return the name that an alias stands for; any other name is returned unchanged."""
    return _ALIASES.get(name, name)


def create_model(name: str, **kwargs: Any) -> nn.Module:
    """Build a network by name; keyword arguments go to its builder.

    Raises:
        KeyError: no network has that name.
        TypeError, ValueError: the builder does not take these arguments.
    """
    name = resolve(name)
    if name in _OWN:
        return _OWN[name](**kwargs)
    if name not in _TORCHVISION:
        raise KeyError(name)
    if name in ("googlenet", "inception_v3") and kwargs.get("weights") is None:
        kwargs = {"aux_logits": False, "init_weights": True, **kwargs}  # one output, like every other net
    return torchvision.models.get_model(name, **kwargs)
