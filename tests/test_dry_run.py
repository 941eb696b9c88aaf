"""--dry-run: says what would be, and does nothing."""

import re
import time
from pathlib import Path

import pytest
import torch
from conftest import Run, assert_one_line_error
from PIL import Image

from utils.training.dry_run import STEPS, curve, hours, seconds_each, sparkline
from utils.training.schedule import Schedule

SMALL = ("-a", "tiny", "--img-size", 32, "--manualSeed", 7, "-j", 0, "--train-batch", 2)


@pytest.mark.parametrize("script", ["imagenet.py", "imagenet_fast.py", "imagenet_mobile.py"])
def test_what_would_be(call: Run, images: Path, tmp_path: Path, script: str) -> None:
    result = call(
        *SMALL, "-a", "shufflenetv2_05x", "--data", images, "--epochs", 20, "--dry-run", script=script
    )
    assert result.returncode == 0, result.stderr
    assert "24 training images in steps of 2, 21 validation images" in result.stdout
    assert "0.34M parameters, 0.001 GFLOPs" in result.stdout
    assert "12 steps in each of 20 epochs" in result.stdout
    assert ("weight decay" in result.stdout) == (script != "imagenet.py")
    assert re.search(r"^learning rate [▁▂▃▄▅▆▇█]{60} \(0 to [0-9.e-]+\)$", result.stdout, re.MULTILINE)
    assert re.search(r"[0-9.,]+ images/s, [0-9.]+ s per step of 5 timed", result.stdout)
    assert re.search(r"expected: [0-9.]+ \w+ per epoch with .* evaluation, [0-9.]+ \w+ in all", result.stdout)
    assert "GiB at most" in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_an_epoch_of_one_step(call: Run, images: Path) -> None:
    result = call(*SMALL, "--data", images, "--epochs", 1, "--train-batch", 256, "--dry-run")
    assert result.returncode == 0, result.stderr
    assert "1 step in each of 1 epoch" in result.stdout


def test_the_rate_is_drawn_into_the_folder(call: Run, run: Run, images: Path, tmp_path: Path) -> None:
    """And the folder is still free for the run."""
    flags = (*SMALL, "--data", images, "--epochs", 1, "-c", "out")
    assert run(*flags, "--dry-run").returncode == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["learning_rate.png"]
    assert Image.open(tmp_path / "out" / "learning_rate.png").size == (900, 450)
    assert call(*flags).returncode == 0
    assert call(*flags, "--dry-run").returncode == 0
    assert_one_line_error(call(*flags, "--dry-run", "-e", "--resume", "x"), "--dry-run is of a training")


def test_two_processes(launch: Run, images: Path) -> None:
    result = launch("imagenet_fast.py", *SMALL, "--data", images, "--epochs", 2, "--dry-run")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("dry run: nothing was trained or saved") == 1
    assert "6 steps in each of 2 epochs" in result.stdout


@pytest.mark.parametrize(
    ("clock", "seconds"), [([0.0, 1.0, 2.0, 3.0, 7.0], 2.0), ([1.0, 4.0], 3.0), ([0.0, 9.0, 9.5], 0.5)]
)
def test_the_time_of_a_step_leaves_out_the_first(
    monkeypatch: pytest.MonkeyPatch, clock: list[float], seconds: float
) -> None:
    """Unless there is only one."""
    readings = iter(clock)
    monkeypatch.setattr(time, "perf_counter", lambda: next(readings))
    assert seconds_each(range(len(clock) - 1), torch.device("cpu")) == seconds


def test_only_some_steps_are_timed() -> None:
    steps = iter(range(100))
    seconds_each(steps, torch.device("cpu"))
    assert next(steps) == 1 + STEPS


def test_curve_and_words() -> None:
    assert sparkline(curve(Schedule(1.0, 4, milestones=[2]), 10)) == "█" * 31 + "▂" * 29
    assert sparkline([0.0, 1.0]) == "▁█"
    assert (hours(12.34), hours(600), hours(7200)) == ("12.3 s", "10.0 min", "2.0 h")
