"""gpu_check.sh: what it starts, that it goes on after a failure, and the tables of its results."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

from scripts import benchmark
from scripts.lib.benchmark_report import Result, Table
from scripts.lib.gpu_tables import markdown, read_results


def check(
    out: Path, python: str | Path, *arguments: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OUT": str(out), "PYTHON": str(python), **variables}
    command = ["bash", "scripts/gpu_check.sh", *arguments]
    return subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=600
    )


def stub(folder: Path, line: str) -> Path:
    path = folder / "python"
    path.write_text(f"#!/usr/bin/env bash\n{line}\n")
    path.chmod(0o755)
    return path


def test_it_goes_on_after_a_failure_and_names_it(tmp_path: Path) -> None:
    """Every command line is one of benchmark.py's; the end says what failed or was not reached."""
    result = check(tmp_path / "out", stub(tmp_path, 'echo "$@"; [ "$2" != optimizer ]'))
    lines = [line.split() for line in result.stdout.splitlines()]
    measured = [line[1:] for line in lines if line[0] == "scripts/benchmark.py"]
    parsed = [benchmark.create_parser().parse_args(line) for line in measured]
    assert {one.kind for one in parsed} == {"model", "step", "optimizer", "loader", "decode"}
    settings = {(one.batch, one.channels_last, one.compile) for one in parsed if one.kind == "model"}
    assert len(settings) == 8  # contiguous and channels_last, eager and compiled, small and large
    assert {(one.train_batch, one.opt_level) for one in parsed if one.kind == "step"} == {
        (batch, level) for batch in (32, 128) for level in ("O1", "O2")
    }
    assert "== optimizer failed (exit code 1)" in result.stdout
    assert (result.stdout.splitlines()[-1], result.returncode) == ("failed: optimizer", 1)
    late = check(tmp_path / "late", stub(tmp_path, "echo"), "optimizer", "decode", MINUTES="0")
    assert late.stdout.splitlines()[-1] == "not reached in 0 minutes: optimizer decode"
    assert late.returncode == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["optimiser"], "no part is called 'optimiser'; there are tests channels-last-128 "),
        (["--device"], "--device must be cuda or cpu, not ''"),
        (["--tine"], "no part is called '--tine'"),
    ],
)
def test_a_mistake_starts_nothing(tmp_path: Path, arguments: list[str], says: str) -> None:
    result = check(tmp_path / "out", "no-python", *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {says}")
    assert not (tmp_path / "out").exists()


def test_tables(tmp_path: Path) -> None:
    """Networks are rows, settings columns; a network that one setting lacks is a dash there."""
    machine = {"gpu": "GPU", "commit": "commit 1"}
    plain, se, sge = (
        Result("resnet50", [2.0, 4.0]),
        Result("se_resnet50", [3.0, 6.0]),
        Result("sge", [4.0, 8.0]),
    )
    parts = {
        "channels-last-32": ("model a b", Table("train", "ms/step", [plain, se])),
        "contiguous-32": ("model a b", Table("train", "ms/step", [plain, se, sge])),
        "decode": ("decode", Table("decoding", "images/s", [plain], best=max, ratios=False)),
    }
    for name, (kind, table) in parts.items():
        fields = {"command": f"benchmark.py {kind}", "machine": machine, "tables": [table.fields()]}
        (tmp_path / f"{name}.json").write_text(json.dumps(fields))
    assert markdown(read_results(tmp_path)) == (
        "GPU, commit 1\n\n- channels-last-32: train\n- contiguous-32: train\n\n"
        "| network | channels-last-32 | contiguous-32 |\n| --- | --- | --- |\n"
        "| first row | 3.00 ms/step | 3.00 ms/step |\n"
        "| resnet50 | 1.00 (1.00) | 1.00 (1.00) |\n"
        "| se_resnet50 | 1.50 (1.50) | 1.50 (1.50) |\n"
        "| sge | - | 2.00 (2.00) |\n\n"
        "decoding (`benchmark.py decode`)\n\n|  | images/s | ratio |\n| --- | --- | --- |\n"
        "| resnet50 | 3.00 | - |\n"
    )


@pytest.mark.slow
def test_the_rehearsal_on_a_cpu(tmp_path: Path) -> None:
    """All but the compiled networks, which take minutes on a CPU."""
    parts = ("tests", "channels-last-4", "step-O2-2", "optimizer", "loader", "decode")
    result = check(tmp_path / "out", sys.executable, "--device", "cpu", "--tiny", *parts)
    assert result.returncode == 0, result.stdout + result.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(results) == {*parts} - {"tests"}
    assert "| se_resnet18 |" in (tmp_path / "out" / "tables.md").read_text()
