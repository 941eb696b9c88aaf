"""The README's commands and the recipes of scripts/, as typed but for paths, sizes and process counts."""

import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, Run, start_process
from documented import of_page
from torch.distributed.run import get_args_parser

from models import create_model

SMALLER = {"oct_resnet50": "oct_resnet26", "resnet101": "resnet18", "resnet50": "resnet18"}
SMALLER |= {"shufflenetv2_1x": "shufflenetv2_05x"}
SCRIPTS = ("imagenet.py", "imagenet_fast.py", "imagenet_mobile.py")
SMALL = ("--epochs", "2", "--img-size", "32", "-j", "0")


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


def by_a_launcher() -> list[list[str]]:
    """The first training and the first evaluation of several processes."""
    several = [words for words in readme_commands() if words[0] == "torchrun"]
    return [next(words for words in several if ("-e" in words) == evaluate) for evaluate in (False, True)]


def test_the_readme_has_the_published_commands() -> None:
    found = {
        (Path(next(w for w in words if "imagenet" in w)).name, "-e" in words) for words in readme_commands()
    }
    assert found == {(f"imagenet{kind}.py", e) for kind in ("", "_fast", "_mobile") for e in (False, True)}


@pytest.mark.parametrize("words", readme_commands(), ids=lambda words: " ".join(words)[:90])
def test_command_of_the_readme(words: list[str], images: Path, tmp_path: Path, run: Run, launch: Run) -> None:
    """One by torchrun and one by the older launcher; of the others the launcher only reads its flags."""
    command = adapt(words, images, tmp_path)
    before = set(tmp_path.rglob("*"))
    if words in by_a_launcher():
        result = start_process(tmp_path, *command)
    elif words[0] == "torchrun":
        read = get_args_parser().parse_args(command[2:])
        result = launch(read.training_script, *read.training_script_args)
    else:
        result = run(*command[1:], script=command[0])
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
def test_recipe(recipe: str, arguments: tuple[str, ...], images: Path, tmp_path: Path, call: Run) -> None:
    """What it starts, in one process; the flags behind a recipe's own win."""
    says = tmp_path / "python"
    says.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    says.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(says), "GPUS": "1"}
    small = ("--epochs", "1", "--img-size", "32", "-j", "0", "-c", "out")
    command = ["bash", f"scripts/{recipe}", str(images), *arguments, *small]
    started = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    module, name, *words = started.stdout.splitlines()
    assert (module, name) == ("-m", "torch.distributed.run")
    read = get_args_parser().parse_args(words)
    assert read.nproc_per_node == "1"
    result = call(*read.training_script_args, script=read.training_script)
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
