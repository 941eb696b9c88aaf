"""scripts/study.sh: which nets it trains, and that a study can be stopped and repeated."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

from models import list_models


def study(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **variables}
    command = ["bash", "scripts/study.sh", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """This code in a folder of its own, with a .venv that starts this Python; no logs."""
    folder = tmp_path / "copy"
    for name in ("models", "utils", "scripts"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (*REPOSITORY.glob("*.py"), REPOSITORY / "requirements.txt", REPOSITORY / ".gitignore"):
        shutil.copy(path, folder)
    (folder / ".venv" / "bin").mkdir(parents=True)
    requirements = (REPOSITORY / "requirements.txt").read_text()
    (folder / ".venv" / "installed-requirements.txt").write_text(requirements * 2)  # as venv.sh keeps it
    python(folder, f'exec "{sys.executable}" "$@"')
    return folder


def python(folder: Path, line: str) -> None:
    """What the Python of the copy's .venv does."""
    path = folder / ".venv" / "bin" / "python"
    path.write_text(f"#!/usr/bin/env bash\n{line}\n")
    path.chmod(0o755)


def test_an_unknown_net() -> None:
    result = study(REPOSITORY, "digits", "resnet18", "resnet19")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: no net of the study is called 'resnet19'; there are bam_resnet18 ")
    assert result.stdout == ""


def test_what_it_starts(copy: Path) -> None:
    """A stub in place of Python says the command lines: every net of the default order, for every seed."""
    python(copy, 'echo "$@"')
    result = study(copy, SEEDS="3 5", EPOCHS="9")
    assert result.returncode == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    training = [line for line in lines if line[0] == "imagenet_fast.py"]
    records = [line for line in lines if line[0] == "scripts/record_run.py"]
    assert len(training) == len(records) == len({line[1] for line in records}) == 2 * 17
    assert {line[line.index("-a") + 1] for line in training} <= set(list_models())
    for line, recorded in zip(training, records, strict=True):
        seed = line[line.index("--manualSeed") + 1]
        run = line[line.index("-c") + 1]
        assert run.startswith("checkpoints/study/digits/")
        assert run.endswith(f"-{seed}")
        assert line[line.index("--epochs") + 1] == "9"
        assert recorded[1:] == [run, "--study", "digits"]
    assert [line[line.index("--manualSeed") + 1] for line in training] == ["3"] * 17 + ["5"] * 17

    log = copy / "pretrain_log" / "photos" / "resnet18-1.log.txt"
    log.parent.mkdir(parents=True)
    log.write_text("")
    result = study(copy, "/data/photos/", "resnet18", "mobilenetv1", SEEDS="1")
    assert result.stdout.startswith(
        "photos, resnet18, seed 1: is in pretrain_log/\nphotos, mobilenetv1, seed 1:\n"
    )
    assert "-a mobilenetv1 --data /data/photos/ --img-size 64" in result.stdout
    assert "old_resnet18" not in result.stdout


@pytest.mark.slow
def test_a_study_of_one_net(copy: Path) -> None:
    """It trains, records, is not repeated, and becomes a table."""
    if shutil.which("git") is None:
        pytest.skip("a run is recorded with its commit: without git there is none")
    person = ("-c", "user.name=a", "-c", "user.email=a@b")
    for words in (("init", "-q"), ("add", "."), (*person, "commit", "-q", "-m", "all")):
        subprocess.run(["git", *words], cwd=copy, check=True)
    result = study(copy, "digits", "shufflenetv2_1x", EPOCHS="1", SEEDS="1")
    assert result.returncode == 0, result.stdout + result.stderr
    log = copy / "pretrain_log" / "digits" / "shufflenetv2_1x-1.log.txt"
    assert len(log.read_text().splitlines()) == 2
    facts = json.loads(log.with_name("shufflenetv2_1x-1.json").read_text())
    assert (facts["arch"], facts["seed"], facts["training_images"]) == ("shufflenetv2_1x", 1, 1437)
    again = study(copy, "digits", "shufflenetv2_1x", EPOCHS="1", SEEDS="1")
    assert again.stdout == "digits, shufflenetv2_1x, seed 1: is in pretrain_log/\n"
    page = copy / "page.md"
    page.write_text("<!-- results studies -->\n<!-- end studies -->\n")
    files = ("--readme", REPOSITORY / "README.md", "--results", page, "--logs", copy / "pretrain_log")
    command = [sys.executable, REPOSITORY / "scripts" / "results.py", *files]
    subprocess.run(command, check=True, capture_output=True)
    assert "| shufflenetv2_1x | shufflenetv2_1x | 1.26M | 1 | 1 | " in page.read_text()
