"""A checkpoint as a training run writes it, of a small network, for the tests of the tools."""

import copy
import functools
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models import create_model
from utils.runs.folder import save

ARCH = "shufflenetv2_05x"
CLASSES = ("cat", "dog", "owl")
SIZE = 64  # pixels


def calibrated(arch: str = ARCH, outputs: int = 3, seed: int = 0) -> nn.Module:
    """A net whose batch norms know the size of their inputs, as after some steps; in evaluation mode."""
    return copy.deepcopy(_calibrated(arch, outputs, seed))


@functools.cache
def _calibrated(arch: str, outputs: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    net = create_model(arch, num_classes=outputs)
    norms = [module for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for module in norms:
        module.momentum = None  # the average of all batches so far
    with torch.no_grad():
        net.train()(torch.randn(4, 3, SIZE, SIZE))
    return net.eval()


def fields(net: nn.Module) -> dict[str, Any]:
    """A checkpoint's content, with what a tool is to leave out."""
    momentum = {"state": {}, "param_groups": [{"params": [0], "lr": 0.1}]}
    return {
        "epoch": 3,
        "images": 0,
        "arch": ARCH,
        "classes": list(CLASSES),
        "acc": 71.5,
        "best_acc": 72.5,
        "seed": 7,
        "command": "imagenet.py -a shufflenetv2_05x",
        "arguments": {"img_size": SIZE, "cardinality": None},
        "versions": {"torch": "2.14.1"},
        "commit": "",
        "state_dict": net.state_dict(),
        "optimizer": momentum,
    }


def write_checkpoint(folder: Path, net: nn.Module | None = None, **changes: object) -> Path:
    """Write one into ``folder``; a field of None is left out."""
    content = {**fields(net or calibrated()), **changes}
    return save({key: value for key, value in content.items() if value is not None}, folder)
