"""The registry, and the promise that every model file works copied alone."""

import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY
from torch import nn

from models import create_model, is_own, list_models, resolve

MODEL_FILES = sorted(path for path in (REPOSITORY / "models").glob("*.py") if path.name != "__init__.py")

COPIED = """
import gc, os, sys, torch, torchvision

def check(name):
    sys.path.insert(0, name)
    file = __import__(name)
    assert set(file.__all__) <= set(dir(file))
    builders = [name for name in file.__all__ if name.islower()]
    assert builders
    net = getattr(file, builders[0])(num_classes=5)
    out = net(torch.rand(2, 3, 32, 32))
    assert out.shape == (2, 5)
    out.sum().backward()
    assert not [name for name in sys.modules if name.split(".")[0] in ("models", "utils")]

gc.freeze()  # or else a fork spends a second on copying what it looks through
for name in sys.argv[1:]:
    if not os.fork():
        check(name)
        print(name, flush=True)
        os._exit(0)
    os.wait()
"""


def test_a_file_copied_alone_builds_and_trains(tmp_path: Path) -> None:
    """Each in a folder and a process of its own."""
    names = [file.stem for file in MODEL_FILES]
    for file in MODEL_FILES:
        (tmp_path / file.stem).mkdir()
        (tmp_path / file.stem / file.name).write_text(file.read_text())
    result = subprocess.run(
        [sys.executable, "-c", COPIED, *names], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.stdout.split() == names, result.stderr


def test_every_builder_of_every_file_is_registered() -> None:
    for file in MODEL_FILES:
        module = __import__(f"models.{file.stem}", fromlist=["__all__"])
        for name in module.__all__:
            assert not name.islower() or is_own(name)


def test_list_models_matches_patterns() -> None:
    assert list_models("sge_resnet*") == [f"sge_resnet{depth}" for depth in (18, 34, 50, 101, 152)]
    assert {"se_resnet50", "old_resnet50", "resnet50", "mobilenet_v2"} <= set(list_models())
    assert "get_model" not in list_models()
    assert "fasterrcnn_resnet50_fpn" not in list_models()
    assert len(set(list_models())) == len(list_models())


def test_old_resnet_is_torchvisions() -> None:
    assert resolve("old_resnet50") == "resnet50"
    assert type(create_model("old_resnet18")) is type(create_model("resnet18"))


def test_unknown_name() -> None:
    with pytest.raises(KeyError):
        create_model("list_models")


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_nets_with_auxiliary_heads_train_on_one_output(name: str) -> None:
    assert isinstance(create_model(name, num_classes=3)(torch.rand(2, 3, 96, 96)), torch.Tensor)


def test_groups_make_resnext_variants() -> None:
    net = create_model("sge_resnet50", groups=32, width_per_group=4, num_classes=10)
    widths = {(conv.groups, conv.out_channels) for conv in net.modules() if isinstance(conv, nn.Conv2d)}
    assert (32, 128) in widths
    named = create_model("sge_resnext50_32x4d", num_classes=10)
    shapes = ({key: value.shape for key, value in twin.state_dict().items()} for twin in (net, named))
    assert next(shapes) == next(shapes)


def names_in_readme() -> set[str]:
    """The names of the README's table of architectures, with ``{18,34}`` spelled out."""
    readme = (REPOSITORY / "README.md").read_text()
    table = readme[readme.index("## Architectures") : readme.index("list_models(")]
    names: set[str] = set()
    for pattern in re.findall(r"`([a-z0-9_{},]+)`", table):
        parts = [part.split(",") for part in re.split(r"[{}]", pattern)]
        names.update("".join(choice) for choice in itertools.product(*parts))
    return names - {"models"}


def test_readme_lists_every_architecture() -> None:
    assert names_in_readme() == {name for name in list_models() if is_own(name)}


def test_aliases_lead_to_architectures() -> None:
    for alias in ("ws_resnext50_32x4d", "ws_shufflenetv2_1x", "shufflenetv1_1x_g3", "old_resnet152"):
        assert alias in list_models()
        assert resolve(alias) != alias
        assert resolve(alias) in list_models()
