"""The README's commands and the recipes of scripts/, as typed but for paths, sizes and process counts."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, Run, start_process
from documented import of_page

from models import create_model

SMALLER = {"oct_resnet50": "oct_resnet26", "resnet101": "resnet18", "resnet50": "resnet18"}
SMALLER |= {"shufflenetv2_1x": "shufflenetv2_05x"}
SCRIPTS = ("imagenet.py", "imagenet_fast.py", "imagenet_mobile.py")
SMALL = ("--epochs", "2", "--img-size", "64", "-j", "0")


def readme_commands() -> list[list[str]]:
    """The words of the README's commands of the published kinds; test_docs.py has all the others."""
    commands = [command for command in of_page(REPOSITORY / "README.md") if command.script in SCRIPTS]
    others = ("--nnodes=2", "--nodes=2", "--finetune", "--pretrained")
    return [list(command.words) for command in commands if not set(others) & set(command.words)]


def published_checkpoint(path: Path, arch: str) -> None:
    """A file as the published scripts wrote it after one epoch."""
    net = create_model(arch, num_classes=3)
    optimizer = torch.optim.SGD(net.parameters(), np.float64(0.1), momentum=0.9)
    net(torch.randn(4, 3, 64, 64)).sum().backward()
    optimizer.step()
    weights = {f"module.{key}": value for key, value in net.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(
        {"epoch": 1, "state_dict": weights, "best_acc": 1.0, "optimizer": optimizer.state_dict()}, path
    )


def adapt(words: list[str], images: Path, folder: Path) -> list[str]:
    """Small networks, small images, two processes; evaluations by the launcher of the published README."""
    adapted = ["-m", "torch.distributed.run"] if words[0] == "torchrun" else []
    for word in words[1:]:
        for large, small in SMALLER.items():
            word = word.replace(large, small)
        if word.startswith("imagenet"):
            word = str(REPOSITORY / word)
        elif word.startswith("../pretrain/"):
            word = word.removeprefix("../")
        elif word == "--nproc_per_node=8":
            word = "--nproc_per_node=2"
        adapted.append(word.replace("/path/to/imagenet1k/", str(images)))
    if "--resume" in adapted and "auto" not in adapted:
        file, arch = (adapted[adapted.index(flag) + 1] for flag in ("--resume", "-a"))
        published_checkpoint(folder / file, arch)
    if "-e" in words and words[0] == "torchrun":
        adapted[1] = "torch.distributed.launch"
    return [*adapted, *SMALL]


def test_the_readme_has_the_published_commands() -> None:
    found = {
        (Path(next(w for w in words if "imagenet" in w)).name, "-e" in words) for words in readme_commands()
    }
    assert found == {(f"imagenet{kind}.py", e) for kind in ("", "_fast", "_mobile") for e in (False, True)}
    assert len(readme_commands()) == 9


@pytest.mark.parametrize("words", readme_commands(), ids=lambda words: " ".join(words)[:90])
def test_command_of_the_readme(words: list[str], images: Path, tmp_path: Path) -> None:
    command = adapt(words, images, tmp_path)
    before = set(tmp_path.rglob("*"))
    result = start_process(tmp_path, *command)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("processes, each on CPU") == (words[0] == "torchrun")
    written = {
        re.split(r"[.-]", path.name)[0] for path in set(tmp_path.rglob("*")) - before if path.is_file()
    }
    if "-e" in words:
        assert result.stdout.count(" Test Loss:  ") == 1
        assert not written
    else:
        assert result.stdout.count(" 2/2 ") == 1
        assert result.stdout.count("best top-1") == 1
        assert (
            written - {""} == {"log", "checkpoint", "model_best", "events", "curves"} or "--resume" in words
        )
        assert len(list(tmp_path.rglob("events.*"))) == 1


@pytest.mark.parametrize(
    ("recipe", "arguments"),
    [
        ("train_attention.sh", ("sge_resnet18",)),
        ("train_shufflenetv2.sh", ()),
        ("train_ws_large.sh", ("ws_resnet18", "1e-3")),
        ("train_ws_small.sh", ("ws_mobilenetv1", "1e-6")),
        ("train_bag_of_tricks.sh", ("-a", "resnet50")),
    ],
)
def test_recipe(recipe: str, arguments: tuple[str, ...], images: Path, tmp_path: Path) -> None:
    """One process; the flags behind a recipe's own win."""
    environment = {**os.environ, "PYTHON": sys.executable, "GPUS": "1"}
    small = ("--epochs", "1", "--img-size", "64", "-j", "0", "-c", str(tmp_path / "out"))
    command = ["bash", f"scripts/{recipe}", str(images), *arguments, *small]
    result = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out" / "checkpoint.pth.tar").exists()


def test_every_recipe_is_tested_and_says_what_it_needs() -> None:
    marks = test_recipe.pytestmark[0].args[1]  # type: ignore[attr-defined]
    recipes = {path.name for path in (REPOSITORY / "scripts").glob("train_*.sh")}
    assert {recipe for recipe, _ in marks} == recipes
    for name in recipes:
        text = (REPOSITORY / "scripts" / name).read_text()
        assert "Expected top-1" in text
        assert "Hardware: " in text


def test_a_recipe_without_arguments_says_how_it_is_called(run: Run) -> None:
    result = subprocess.run(
        ["bash", "scripts/train_ws_large.sh"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert result.returncode != 0
    assert "usage: bash scripts/train_ws_large.sh DATA ARCH E" in result.stderr
