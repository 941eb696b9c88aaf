"""scripts/benchmark.py from outside: what it prints, not how fast anything is."""

import pytest
from conftest import Run, assert_one_line_error

SCRIPT = "scripts/benchmark.py"


@pytest.mark.parametrize(
    ("flags", "memory"),
    [((), True), (("--mode", "eval"), False), (("--dtype", "bfloat16", "--channels-last"), True)],
)
def test_networks_side_by_side(run: Run, flags: tuple[str, ...], memory: bool) -> None:
    small = ("--batch", 2, "--img-size", 32, "--rounds", 2, "--baseline", "shufflenetv2_05x")
    result = run("model", "mobilenetv1", *small, *flags, script=SCRIPT)
    assert result.returncode == 0, result.stderr
    what, head, *rows = result.stdout.splitlines()
    assert "batch 2, 32 px" in what
    assert "CPU, 1 threads, 2 rounds" in what
    assert ("kept MB" in head) == memory
    cells = [row.split() for row in rows]
    assert [row[0] for row in cells] == ["shufflenetv2_05x", "mobilenetv1"]
    assert cells[0][2:6] == ["1.000"] * 4
    least, middle, most = (float(cells[1][i]) for i in (3, 2, 4))
    assert 0 < least <= middle <= most
    if memory:
        assert float(cells[1][7]) > 0


def test_optimizers_side_by_side(run: Run) -> None:
    result = run("optimizer", "--arch", "mobilenetv1", "--rounds", 2, script=SCRIPT)
    assert result.returncode == 0, result.stderr
    rows = result.stdout.splitlines()[2:]
    assert [row.split("  ")[0] for row in map(str.strip, rows)] == [
        "SGD, fused",
        "SGD, default",
        "e-shifted SGD",
    ]


def test_a_network_that_is_not_there(run: Run) -> None:
    assert_one_line_error(run("model", "mobilenetv9", script=SCRIPT), "unknown architecture", "mobilenetv1")
