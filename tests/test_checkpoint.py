"""Saving and loading below the scripts: what a crash leaves, what a file may hold."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models import create_model, list_models
from utils import checkpoint
from utils.errors import UserError


def state(epoch: int) -> dict[str, Any]:
    return {"epoch": epoch, "state_dict": {"w": torch.full((3,), float(epoch))}}


def test_best_is_kept_when_later_epochs_are_worse(tmp_path: Path) -> None:
    checkpoint.save(state(1), tmp_path, is_best=True)
    checkpoint.save(state(2), tmp_path, is_best=False)
    assert checkpoint.load(str(tmp_path / checkpoint.LAST))["epoch"] == 2
    assert checkpoint.load(str(tmp_path / checkpoint.BEST))["epoch"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [checkpoint.LAST, checkpoint.BEST]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failure_while_saving_keeps_the_previous(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    checkpoint.save(state(1), tmp_path, is_best=True)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(state(2), tmp_path, is_best=True)
    monkeypatch.undo()
    for name in (checkpoint.LAST, checkpoint.BEST):
        assert checkpoint.load(str(tmp_path / name))["epoch"] == 1
    assert len(list(tmp_path.iterdir())) == 2


class Attack:
    """Runs a command when unpickled by a careless loader."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_cannot_run_code(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "evil.pth.tar"
    torch.save({"state_dict": {}, "x": Attack(tmp_path / "ran")}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="not a checkpoint of tensors and numbers"):
        checkpoint.load(str(path))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("rate", [np.float64(0.1), np.float32(0.1)])
def test_numpy_scalars_of_published_files_load(tmp_path: Path, zipped: bool, rate: np.floating[Any]) -> None:
    path = tmp_path / "old.pth.tar"
    content = {**state(1), "optimizer": {"state": {}, "param_groups": [{"lr": rate}]}}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()
    if not zipped:  # numpy 1 had this module under another name, of another length: patch the plain pickle
        path.write_bytes(data.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
    loaded = checkpoint.load(str(path))
    assert loaded["optimizer"]["param_groups"][0]["lr"] == pytest.approx(0.1)


def test_wrapper_parts_of_keys_are_removed(tmp_path: Path) -> None:
    keys = ("module.w", "_orig_mod.x", "module._orig_mod.y", "features.module.0.z", "plain.v")
    torch.save({"state_dict": {key: torch.zeros(1) for key in keys}}, tmp_path / "x.pth")
    assert list(checkpoint.load(str(tmp_path / "x.pth"))["state_dict"]) == [
        "w",
        "x",
        "y",
        "features.0.z",
        "plain.v",
    ]


def test_no_registered_net_has_a_wrapper_part_in_its_keys() -> None:
    for name in (*list_models("*resnet50*"), "alexnet", "vgg11", "vit_b_16", "densenet121"):
        with torch.device("meta"):
            keys = create_model(name).state_dict()
        assert not [key for key in keys if {"module", "_orig_mod"} & set(key.split("."))]


@pytest.mark.parametrize(("name", "classes"), [("se_resnet50", 7), ("mobilenet_v2", 1000)])
def test_the_architecture_that_fits_is_found(name: str, classes: int) -> None:
    with torch.device("meta"):
        weights = create_model(name, num_classes=classes).state_dict()
    assert checkpoint.fitting_architectures(weights)[0].split()[0] == name


def test_other_names_of_a_fitting_architecture_are_left_out() -> None:
    with torch.device("meta"):
        weights = create_model("ws_resnext50_32x4d").state_dict()
    assert checkpoint.fitting_architectures(weights) == ["ws_resnext50"]


def test_momentum_follows_the_parameters_and_flags_stay() -> None:
    net = create_model("se_resnet18", num_classes=2)
    old = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9, weight_decay=0.1)
    net(torch.randn(2, 3, 64, 64)).sum().backward()
    old.step()
    new = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.8, weight_decay=0.2)
    checkpoint.load_optimizer(new, old.state_dict(), "x")
    group = new.param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.1, 0.8, 0.2)
    for parameter in net.parameters():
        assert torch.equal(new.state[parameter]["momentum_buffer"], old.state[parameter]["momentum_buffer"])


def test_momentum_takes_the_layout_of_the_parameters() -> None:
    net = create_model("mobilenetv1", num_classes=3)
    plain = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    net(torch.randn(2, 3, 32, 32)).sum().backward()
    plain.step()
    other = create_model("mobilenetv1", num_classes=3).to(memory_format=torch.channels_last)
    resumed = torch.optim.SGD(other.parameters(), 0.1, momentum=0.9, fused=True)
    checkpoint.load_optimizer(resumed, plain.state_dict(), "x")
    for ours, theirs in zip(other.parameters(), net.parameters(), strict=True):
        momentum = resumed.state[ours]["momentum_buffer"]
        assert torch.equal(momentum, plain.state[theirs]["momentum_buffer"])
        assert momentum.stride() == ours.stride()


def test_momentum_of_another_net_or_order_is_refused() -> None:
    def optimizer_of(*shapes: tuple[int, ...]) -> torch.optim.SGD:
        parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
        optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        return optimizer

    ours = optimizer_of((2,), (3,))
    for other in (optimizer_of((3,), (2,)), optimizer_of((2,))):
        with pytest.raises(UserError, match="--fresh-optimizer"):
            checkpoint.load_optimizer(ours, other.state_dict(), "x")
