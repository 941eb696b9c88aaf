"""The recipe behind the golden numbers of tests/goldens/*.json (version 1).

Every weight is a pure function of its key and shape, so any implementation of the same architecture, in any
framework, must give the recorded outputs. All goldens are float64.
"""

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

GOLDENS = Path(__file__).parent / "goldens"


def load_manifest(name: str) -> dict[str, Any]:
    """Keys, shapes and recorded outputs of one architecture."""
    return json.loads((GOLDENS / f"{name}.json").read_text())


def golden_value(key: str, shape: tuple[int, ...], scale: float) -> Tensor:
    """The value the recipe gives to one entry of a state dict."""
    leaf = key.rsplit(".", 1)[-1]
    if leaf == "num_batches_tracked":
        return torch.tensor(0)
    z = torch.from_numpy(np.random.default_rng(zlib.crc32(key.encode("ascii"))).standard_normal(shape))
    fan = math.prod(shape[1:])
    if leaf == "running_mean":
        value = 0.1 * z
    elif leaf == "running_var":
        value = 1 + 0.1 * z.abs()
    elif ".sge." in key:
        value = 0.5 * z
    elif fan > 1:
        value = z / math.sqrt(fan)
    elif leaf == "weight":
        value = 1 + 0.1 * z
    else:
        value = 0.1 * z
    return value * scale


def fill(model: nn.Module, manifest: dict[str, Any]) -> nn.Module:
    """Give a float64 model the recipe's weights, and switch dropout off.

    What is ``kept`` in the manifest stays as the constructor made it.
    """
    scale, kept = manifest["scale"], manifest.get("kept", {})
    state = {
        key: old if key in kept else golden_value(key, tuple(old.shape), scale.get(key, 1.0))
        for key, old in model.state_dict().items()
    }
    model.load_state_dict(state)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def golden_input(seed: int, batch: int) -> Tensor:
    """The recipe's images, (batch, 3, 224, 224) float64."""
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((batch, 3, 224, 224)))
