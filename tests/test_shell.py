"""The set-up commands demo.sh and test.sh: what they start, within a copy of this code.

Where a test does not say otherwise, a stub stands for Python and prints the command lines.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

import imagenet

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
