"""scripts/benchmark.py from outside: what it prints and writes, not how fast anything is."""

import importlib.util
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run, assert_one_line_error
from PIL import Image

from scripts.lib import benchmark_measure as measure
from scripts.lib import benchmark_scaling as scaling
from scripts.lib.benchmark_report import Result, Table
from scripts.lib.benchmark_scaling import Job

SCRIPT = "scripts/benchmark.py"
SMALL = ("--batch", 2, "--img-size", 32, "--rounds", 2, "--warmup", 0, "--device", "cpu")


@pytest.fixture
def bench(call: Run) -> Run:
    """Start the script with these arguments, within this process."""

    def start(*arguments: object) -> Any:
        return call(*arguments, script=SCRIPT)

    return start


def tables(bench: Run, tmp_path: Path, *arguments: object) -> list[dict[str, Any]]:
    """The tables of a command that succeeds, as its JSON has them."""
    result = bench(*arguments, "--json", tmp_path / "out.json")
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "out.json").read_text())
    assert {"cpu", "torch", "commit"} <= set(report["machine"])
    assert ", ".join(report["machine"].values()) in result.stdout
    for table in report["tables"]:
        assert table["title"] in result.stdout
        for row in table["results"]:
            assert row["name"] in result.stdout
            first, third = row["quartiles"]
            assert 0 <= first <= row["median"] <= third
    return report["tables"]


def test_a_process_of_its_own(run: Run) -> None:
    result = run("optimizer", "--arch", "mobilenetv1", "--rounds", 2, script=SCRIPT)
    assert result.returncode == 0, result.stderr
    machine, empty, title, head, *rows = result.stdout.splitlines()
    assert "1 thread, torch" in machine
    assert (empty, title) == ("", "optimizer step on mobilenetv1's parameters")
    assert head.split() == ["ms/step", "±", "ratio", "from", "to", "best"]
    names = ["SGD, fused", "SGD, default", "e-shifted SGD by layers", "e-shifted SGD together"]
    assert [row.split("  ")[0] for row in rows[:4]] == names
    assert rows[0].split()[-4:] == ["1.000"] * 4


@pytest.mark.parametrize(
    ("flags", "kept"),
    [((), True), (("--mode", "eval", "--precision", "bf16", "--channels-last"), False)],
)
def test_networks_side_by_side(bench: Run, tmp_path: Path, flags: tuple[str, ...], kept: bool) -> None:
    names = ("mobilenetv1", "shufflenetv2_05*", "torchvision:shufflenet_v2_x0_5", "mobilenetv1")
    command = ("model", *names, "--baseline", "shufflenetv2_05x", *SMALL, *flags)
    (table,) = tables(bench, tmp_path, *command)
    assert "batch 2, 32 px" in table["title"]
    rows = table["results"]
    assert [row["name"] for row in rows] == ["shufflenetv2_05x", "mobilenetv1", names[2]]
    assert [len(row["rounds"]) for row in rows] == [2] * 3
    assert set(rows[0]["ratio"].values()) == {1.0}
    ratio = rows[1]["ratio"]
    assert 0 < ratio["least"] <= ratio["median"] <= ratio["most"]
    for row in rows:
        assert ("kept MB" in row) == kept
        assert row["images/s"] == pytest.approx(2e3 / row["median"])
        assert row["GFLOP/s"] > 0
        assert row["GB/s"] > 0
    # Parameters: the published 4.23 million of MobileNet.
    assert rows[1]["M params"] == pytest.approx(4.23, abs=0.01)


def test_operations_and_bytes_of_a_product() -> None:
    left, right = torch.ones(30, 20), torch.ones(20, 10)
    with measure.Traffic() as traffic:
        (left @ right.view(20, 10)).t()
    assert traffic.bytes == 4 * (30 * 20 + 20 * 10 + 30 * 10)  # views move nothing


def test_memory_of_a_step() -> None:
    taken = measure.step_memory(lambda: torch.ones(2**24), torch.device("cpu"))  # 64 MiB
    if taken is not None:  # Linux
        assert 60 * 2**20 < taken < 90 * 2**20


def test_medians_quartiles_and_ratios() -> None:
    baseline, other = Result("a", [1, 2, 4, 3, 5]), Result("b", [2, 2, 8, 9, 5])
    assert (baseline.median, baseline.quartiles, baseline.spread) == (3, (2, 4), 1)
    table = Table("", "ms", [baseline, other])
    assert table.ratio(other) == (2, 1, 3, 2)
    assert Table("", "images/s", [baseline, other], best=max).ratio(other).best == 9 / 5


def installed() -> list[str]:
    """The decoders that can be measured here."""
    return ["pil", *(name for name in ("torchvision", "simplejpeg") if importlib.util.find_spec(name))]


@pytest.mark.parametrize("workers", [0, 1])
def test_loaders_side_by_side(bench: Run, tmp_path: Path, images: Path, workers: int) -> None:
    small = ("--batch", 8, "--images", 30, "--rounds", 1, "--img-size", 32)
    (table,) = tables(bench, tmp_path, "loader", images, "-j", workers, *small)
    assert f"30 images of {images}, {workers} workers" in table["title"]
    assert [row["name"] for row in table["results"]] == ["published", *installed()]
    assert all(row["cores used"] >= 0 for row in table["results"])


def test_decoders_side_by_side(bench: Run, tmp_path: Path) -> None:
    small = ("--images", 4, "--rounds", 1)
    (table,) = tables(bench, tmp_path, "decode", "--synthetic", *small)
    assert [row["name"] for row in table["results"]] == installed()
    assert table["unit"] == "images/s"


@pytest.mark.parametrize("data", [(), ("--data", "images", "-j", 0, "--accum-steps", 2, "--mixup", "--ema")])
def test_parts_of_a_step(bench: Run, tmp_path: Path, images: Path, data: tuple[object, ...]) -> None:
    small = (*SMALL, "--steps", 3)
    overhead, parts = tables(bench, tmp_path, "step", "shufflenetv2_05x", *small, *data)
    assert [row["name"] for row in overhead["results"]] == ["bare loop", "Trainer"]
    rows = parts["results"]
    assert [row["name"] for row in rows] == ["data", "forward", "backward", "optimizer", "rest"]
    assert sum(row["% of step"] for row in rows) == pytest.approx(100)
    assert all(row["median"] > 0 for row in rows[:4])


def test_growth_with_the_number_of_images(bench: Run, tmp_path: Path) -> None:
    small = ("--images", 20, 300, "--epochs", 2, "--read", 20, "-j", 1)
    (table,) = tables(bench, tmp_path, "growth", *small)
    assert [row["name"] for row in table["results"]] == ["20", "300"]
    assert all(row["worker MB"] > 0 for row in table["results"])


@pytest.mark.slow
def test_two_processes(bench: Run, tmp_path: Path) -> None:
    if scaling.cores() < 2:
        pytest.skip("two processes need two cores")
    small = (*SMALL[:4], "--rounds", 1, "--warmup", 0, "--steps", 2, "--device", "cpu")
    (table,) = tables(bench, tmp_path, "scaling", "shufflenetv2_05x", *small, "--processes", 2)
    assert [row["name"] for row in table["results"]] == ["2 processes"]


def test_efficiency() -> None:
    on_gpus = scaling.compare([Job(1, 8, True), Job(4, 2, True)], [[100], [300]])
    assert [row.further["efficiency"] for row in on_gpus] == [1, 0.75]
    on_cores = scaling.compare([Job(1, 8, False), Job(3, 2, False)], [[100], [60]])
    assert [row.further["efficiency"] for row in on_cores] == [1, 0.8]  # 3 x 2 of the 8 cores are in use


def test_the_chart(bench: Run, tmp_path: Path) -> None:
    if importlib.util.find_spec("matplotlib") is None:
        pytest.skip("without matplotlib")
    command = ("optimizer", "--arch", "shufflenetv2_05x", "--rounds", 2, "--device", "cpu")
    result = bench(*command, "--png", tmp_path / "out.png")
    assert result.returncode == 0, result.stderr
    with Image.open(tmp_path / "out.png") as chart:
        assert chart.format == "PNG"
        assert chart.width > chart.height > 100


@pytest.mark.parametrize(
    ("command", "fragments"),
    [
        ("model mobilenetv9", ("unknown architecture", "mobilenetv1")),
        ("model other:mobilenetv1", ("unknown prefix 'other:'",)),
        ("model mobilenetv1 --baseline sge_*", ("--baseline sge_*", "name one")),
        ("model inception_v3 --baseline inception_v3 --img-size 20", ("inception_v3 at --img-size 20",)),
        ("optimizer --json missing/out.json", ("--json missing/out.json", "no folder missing")),
        ("optimizer --png images", ("--png images: is a folder",)),
        ("loader", ("FOLDER", "--synthetic")),
        ("loader missing", ("missing: no such folder",)),
        ("decode images --synthetic", ("FOLDER", "--synthetic")),
        ("step resnet18 --cutmix_prob 0.5", ("--cutmix_prob goes with --cutmix",)),
        ("step resnet18 --steps 1", ("--steps", "at least 2")),
        ("scaling resnet18 --device cpu --processes 1 9999", ("--processes 9999",)),
    ],
)
def test_mistakes_end_in_one_line(bench: Run, images: Path, command: str, fragments: tuple[str, ...]) -> None:
    assert_one_line_error(bench(*command.split()), *fragments)


def test_a_mistake_that_the_processes_find(bench: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "Traceback of the launcher\nbenchmark.py: error: no room\nmore of it"
    ended = subprocess.CompletedProcess([], 1, "", said)
    monkeypatch.setattr("scripts.lib.benchmark_scaling.subprocess.run", lambda *_, **__: ended)
    assert_one_line_error(bench("scaling", "resnet18", "--processes", 1, "--device", "cpu"), "no room")


@pytest.mark.parametrize("missing", ["timm", "matplotlib"])
def test_what_is_not_installed(bench: Run, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    command = {"timm": ("model", "timm:resnet18"), "matplotlib": ("optimizer", "--png", "out.png")}[missing]
    assert_one_line_error(bench(*command), f"{missing} is not installed; pip install {missing}")


@pytest.mark.parametrize("kind", ["model", "loader", "decode", "growth", "optimizer", "step", "scaling"])
def test_help_has_an_example(bench: Run, kind: str) -> None:
    result = bench(kind, "--help")
    assert result.returncode == 0
    assert f"python scripts/benchmark.py {kind} " in result.stdout
