"""The set-up commands demo.sh, test.sh and study.sh: what they start, within a copy of this code.

Where a test does not say otherwise, a stub stands for Python and prints the command lines.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

import imagenet
from models import list_models

THIS_PYTHON = f'exec "{sys.executable}" "$@"'


def shell(folder: Path, script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    command = ["bash", f"scripts/{script}", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """This code in a folder of its own, without logs; the Python of its .venv is the stub."""
    folder = tmp_path / "copy"
    for name in ("models", "utils", "scripts"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (*REPOSITORY.glob("*.py"), REPOSITORY / ".gitignore"):
        shutil.copy(path, folder)
    (folder / ".venv" / "bin").mkdir(parents=True)
    needed = (REPOSITORY / "requirements.txt").read_text()
    for name in ("requirements.txt", "requirements-dev.txt"):  # venv.sh keeps what it has installed
        shutil.copy(REPOSITORY / name, folder)
        (folder / ".venv" / f"installed-{name}").write_text(needed + (REPOSITORY / name).read_text())
    python(folder, 'echo "$@"')
    return folder


def python(folder: Path, line: str) -> None:
    """What the Python of the copy's .venv does."""
    path = folder / ".venv" / "bin" / "python"
    path.write_text(f"#!/usr/bin/env bash\n{line}\n")
    path.chmod(0o755)


def test_demo(copy: Path) -> None:
    """It trains and evaluates with flags that there are, in the folder that the README names."""
    result = shell(copy, "demo.sh")
    assert result.returncode == 0, result.stderr
    training, evaluation = (line.split() for line in result.stdout.splitlines() if "imagenet.py" in line)
    trained, evaluated = (imagenet.create_parser().parse_args(line[1:]) for line in (training, evaluation))
    assert trained.arch == evaluated.arch == "sge_resnet18"
    assert (trained.checkpoint, trained.epochs, trained.data) == ("checkpoints/demo", 10, "digits")
    assert (evaluated.evaluate, evaluated.resume) == (True, "checkpoints/demo/model_best.pth.tar")


@pytest.mark.slow
def test_the_demo_learns(copy: Path) -> None:
    python(copy, THIS_PYTHON)
    result = shell(copy, "demo.sh")
    assert result.returncode == 0, result.stdout + result.stderr
    best = re.search(r"best top-1: ([0-9.]+) %\nwrote checkpoints/demo/: ", result.stdout)
    assert best is not None
    assert float(best[1]) > 97


def test_lint_types_and_tests(copy: Path) -> None:
    processes = len(os.sched_getaffinity(0))
    steps = ["-m ruff check .", "-m ruff format --check .", "-m mypy"]
    steps += [f"-m pytest -n {processes} --dist worksteal"]
    assert shell(copy, "test.sh").stdout.splitlines() == steps
    slow = shell(copy, "test.sh", "--slow", "-k", "resume").stdout.splitlines()
    assert slow == [*steps[:3], f"{steps[3]} -m not gpu -k resume"]
    gpu = shell(copy, "test.sh", "--gpu").stdout.splitlines()
    assert gpu == [*steps[:3], f"{steps[3]} -m gpu -n 8"]
    python(copy, 'echo "$@"; [ "$2" != mypy ]')
    failed = shell(copy, "test.sh")
    assert (failed.returncode, failed.stdout.splitlines()) == (1, steps[:3])


def test_what_is_installed(copy: Path) -> None:
    """Nothing again; all of it once a requirement has changed; a failure is told and not forgotten."""
    with (copy / "requirements.txt").open("a") as file:
        file.write("new\n")
    python(copy, '[ "$2" != pip ] || { echo "no such package"; exit 1; }')
    for _ in range(2):
        failed = shell(copy, "demo.sh")
        assert failed.returncode == 1
        assert failed.stderr == "no such package\nerror: pip could not install requirements.txt; see above\n"
    python(copy, 'echo "$@" >>calls')
    assert shell(copy, "demo.sh").returncode == shell(copy, "demo.sh").returncode == 0
    calls = (copy / "calls").read_text().splitlines()
    assert [line for line in calls if " pip " in line] == [calls[0]]
    assert calls[0].endswith("install --disable-pip-version-check -q -r requirements.txt")


def test_an_unknown_net() -> None:
    result = shell(REPOSITORY, "study.sh", "digits", "resnet18", "resnet19")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: no net of the study is called 'resnet19'; there are bam_resnet18 ")
    assert result.stdout == ""


def test_what_a_study_starts(copy: Path) -> None:
    """Every net of the default order, for every seed."""
    result = shell(copy, "study.sh", SEEDS="3 5", EPOCHS="9")
    assert result.returncode == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    training = [line for line in lines if line[0] == "imagenet_fast.py"]
    records = [line for line in lines if line[0] == "scripts/record_run.py"]
    assert len(training) == len(records) == len({line[1] for line in records}) == 2 * 17
    assert {line[line.index("-a") + 1] for line in training} <= set(list_models())
    for line, recorded in zip(training, records, strict=True):
        seed = line[line.index("--manualSeed") + 1]
        run = line[line.index("-c") + 1]
        assert run.startswith("checkpoints/study/digits_small_stem/")
        assert run.endswith(f"-{seed}")
        assert line[line.index("--epochs") + 1] == "9"
        assert recorded[1:] == [run, "--study", "digits_small_stem"]
        own = ("shufflenet", "mobilenet")  # stems
        assert ("--stem" in line) is not line[line.index("-a") + 1].startswith(own)
    assert [line[line.index("--manualSeed") + 1] for line in training] == ["3"] * 17 + ["5"] * 17

    log = copy / "pretrain_log" / "photos_small_stem" / "resnet18-1.log.txt"
    log.parent.mkdir(parents=True)
    log.write_text("")
    result = shell(copy, "study.sh", "/data/photos/", "resnet18", "mobilenetv1", SEEDS="1")
    assert result.stdout.startswith(
        "photos_small_stem, resnet18, seed 1: is in pretrain_log/\nphotos_small_stem, mobilenetv1, seed 1:\n"
    )
    assert "-a mobilenetv1 --data /data/photos/ --img-size 64" in result.stdout
    assert "old_resnet18" not in result.stdout


@pytest.mark.slow
def test_a_study_of_one_net(copy: Path) -> None:
    """It trains, records, is not repeated, and becomes a table."""
    python(copy, THIS_PYTHON)
    if shutil.which("git") is None:
        pytest.skip("a run is recorded with its commit: without git there is none")
    person = ("-c", "user.name=a", "-c", "user.email=a@b")
    for words in (("init", "-q"), ("add", "."), (*person, "commit", "-q", "-m", "all")):
        subprocess.run(["git", *words], cwd=copy, check=True)
    result = shell(copy, "study.sh", "digits", "shufflenetv2_1x", EPOCHS="1", SEEDS="1")
    assert result.returncode == 0, result.stdout + result.stderr
    log = copy / "pretrain_log" / "digits_small_stem" / "shufflenetv2_1x-1.log.txt"
    assert len(log.read_text().splitlines()) == 2
    facts = json.loads(log.with_name("shufflenetv2_1x-1.json").read_text())
    assert (facts["arch"], facts["seed"], facts["training_images"]) == ("shufflenetv2_1x", 1, 1437)
    again = shell(copy, "study.sh", "digits", "shufflenetv2_1x", EPOCHS="1", SEEDS="1")
    assert again.stdout == "digits_small_stem, shufflenetv2_1x, seed 1: is in pretrain_log/\n"
    page = copy / "page.md"
    page.write_text("<!-- results studies -->\n<!-- end studies -->\n")
    files = ("--readme", REPOSITORY / "README.md", "--results", page, "--logs", copy / "pretrain_log")
    command = [sys.executable, *map(str, (REPOSITORY / "scripts" / "results.py", *files))]
    subprocess.run(command, check=True, capture_output=True)
    assert "| shufflenetv2_1x | shufflenetv2_1x | 1.26M | 1 | 1 | " in page.read_text()
