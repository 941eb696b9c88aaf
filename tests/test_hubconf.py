"""hubconf.py: every network of our own through torch.hub, with and without a checkpoint."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY
from small_checkpoint import ARCH, calibrated, write_checkpoint

from models import create_model, is_own, list_models
from models.gates import start_as_identity
from utils.common.errors import UserError


def load(name: str, **kwargs: Any) -> Any:
    return torch.hub.load(str(REPOSITORY), name, source="local", **kwargs)


@pytest.fixture
def as_if_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.hub.list and help know no ``source="local"``."""
    monkeypatch.setattr("torch.hub._get_cache_or_reload", lambda *_, **__: str(REPOSITORY))


def test_every_own_network_is_listed_and_nothing_else(as_if_downloaded: None) -> None:
    assert sorted(torch.hub.list("x/y")) == sorted(name for name in list_models() if is_own(name))


def test_help(as_if_downloaded: None) -> None:
    for name in torch.hub.list("x/y"):
        text = torch.hub.help("x/y", name)
        assert text.startswith(f"{name}, by models/")
        assert "checkpoint: file of weights" in text
    assert "models/resnet_sge.py: " in torch.hub.help("x/y", "sge_resnet50")


def test_keywords_reach_the_builder() -> None:
    torch.manual_seed(0)
    net = load("oct_mobilenet", num_classes=7, alpha=0.25)
    assert net(torch.randn(2, 3, 64, 64)).shape == (2, 7)
    with pytest.raises(TypeError):
        load(ARCH, no_such_keyword=1)


def test_a_checkpoint(tmp_path: Path) -> None:
    net, x = calibrated(), torch.randn(2, 3, 64, 64)
    path = write_checkpoint(tmp_path, net)
    with torch.inference_mode():
        assert torch.equal(load(ARCH, checkpoint=str(path)).eval()(x), net(x))
    with pytest.raises(UserError, match=f"does not fit sge_resnet18.*the file fits {ARCH}$"):
        load("sge_resnet18", checkpoint=str(path))
    with pytest.raises(UserError, match="checkpoint none: no such file"):
        load(ARCH, checkpoint="none")


@pytest.mark.parametrize("outputs", [2, 4])
def test_another_number_of_classes_gives_a_new_classifier(tmp_path: Path, outputs: int) -> None:
    """On the layers of the checkpoint, which must fit exactly."""
    net, x = calibrated(), torch.randn(2, 3, 64, 64)
    path = str(write_checkpoint(tmp_path, net))
    other = load(ARCH, checkpoint=path, num_classes=outputs).eval()
    with torch.inference_mode():
        assert torch.equal(other.forward_features(x), net.forward_features(x))  # type: ignore[operator]
        assert other(x).shape == (2, outputs)
    with pytest.raises(UserError, match=f"does not fit sge_resnet18.*the file fits {ARCH}$"):
        load("sge_resnet18", checkpoint=path, num_classes=outputs)


def test_gates_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    net = start_as_identity(create_model("se_resnet18", num_classes=3)).eval()
    said = {"arch": "se_resnet18", "arguments": {"gate_start": "identity"}}
    path, x = str(write_checkpoint(tmp_path, net, **said)), torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(load("se_resnet18", checkpoint=path).eval()(x), net(x))
    assert load("se_resnet18", checkpoint=path, num_classes=4).layer1[0].se.factor == 2
    path = str(write_checkpoint(tmp_path, net, arch="se_resnet18", arguments={"gate_file": "a.py:B"}))
    with pytest.raises(UserError, match=r"its gates are of a\.py:B, which is not run"):
        load("se_resnet18", checkpoint=path)


def test_from_another_folder(tmp_path: Path) -> None:
    """As users do: nothing of the repository on the path."""
    code = f"import torch; torch.hub.load({str(REPOSITORY)!r}, {ARCH!r}, source='local', num_classes=3)"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=100)
