"""Curves of runs: read from any log.txt, grouped by seed, drawn beside it when a run ends."""

import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import Run, assert_one_line_error
from PIL import Image

from scripts.lib.curves import SEEDS, Group, draw, grouped, read_curves, spans_decades

SCRIPT = "scripts/plot_logs.py"
PUBLISHED = "Learning Rate\tTrain Loss\tValid Loss\tTrain Acc.\tValid Acc.\t\n"


def write_run(folder: Path, top1: list[float], loss: float = 2.0) -> Path:
    """A log.txt as published: five columns, a tab after each."""
    folder.mkdir(parents=True)
    rows = "".join(f"0.100000\t{loss:.6f}\t{loss + 1:.6f}\t50.000000\t{value:.6f}\t\n" for value in top1)
    (folder / "log.txt").write_text(PUBLISHED + rows)
    return folder


@pytest.fixture
def plot(call: Run) -> Run:
    """The script within this process."""
    return lambda *arguments: call(*arguments, script=SCRIPT)


def test_a_published_log_is_read_and_the_columns_go_by_their_names(tmp_path: Path) -> None:
    run = read_curves(write_run(tmp_path / "a", [10.0, 30.5, 20.0]) / "log.txt", "a")
    assert run.epochs == 3
    assert run.best == (30.5, 2)
    assert run.columns["Valid Loss"].tolist() == [3.0] * 3
    text = "Valid Acc.\tLearning Rate\tTrain Loss\tValid Loss\tTrain Acc.\n7\t1\t2\tnan\t4\n"
    (tmp_path / "log.txt").write_text(text)
    mixed = read_curves(tmp_path / "log.txt", "b")
    assert mixed.best == (7.0, 1)
    assert math.isnan(mixed.columns["Valid Loss"][0])


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["sge-1", "sge-2", "se-1"], {"sge": 2, "se-1": 1}),
        (["sge_seed3", "sge_seed12"], {"sge": 2}),
        (["sge_resnet50", "sge_resnet101"], {"sge_resnet50": 1, "sge_resnet101": 1}),
    ],
)
def test_runs_that_differ_by_a_seed_are_one(
    tmp_path: Path, names: list[str], expected: dict[str, int]
) -> None:
    runs = [read_curves(write_run(tmp_path / name, [1.0]) / "log.txt", name) for name in names]
    assert {group.name: len(group.runs) for group in grouped(runs, SEEDS)} == expected
    assert len(grouped(runs, "")) == len(names)


def test_the_mean_and_its_band(tmp_path: Path) -> None:
    tops = ([10.0, 20.0, 30.0], [14.0, 26.0], [12.0, 20.0, 0.0])
    runs = [
        read_curves(write_run(tmp_path / f"r-{i}", top) / "log.txt", f"r-{i}") for i, top in enumerate(tops)
    ]
    (group,) = grouped(runs, SEEDS)
    mean, lower, upper = group.curve("Valid Acc.")
    assert (mean.tolist(), lower.tolist(), upper.tolist()) == ([12, 22], [10, 20], [14, 26])
    assert "mean of 3 runs, shade: least to largest" in group.label
    (by_error,) = grouped(runs, SEEDS, "error")
    mean, lower, upper = by_error.curve("Valid Acc.")
    assert np.allclose(upper - mean, [2 / math.sqrt(3), math.sqrt(12) / math.sqrt(3)])
    assert np.allclose(mean - lower, upper - mean)
    assert "standard error" in by_error.label


def test_what_is_drawn(tmp_path: Path) -> None:
    """The lines hold the numbers of the log, the legend lies outside the axes and names every run."""
    runs = [
        read_curves(write_run(tmp_path / name, [1.0, 2.0], loss) / "log.txt", name)
        for name, loss in (("_a$x$", 1.0), ("b", 200.0))
    ]
    figure = draw([Group(run.name, [run]) for run in runs])
    figure.canvas.draw()
    loss, top1, rate = figure.axes
    assert (loss.get_yscale(), top1.get_yscale(), rate.get_yscale()) == ("log", "linear", "linear")
    assert [line.get_ydata().tolist() for line in top1.lines] == [[50, 50], [1, 2]] * 2
    (legend,) = figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == ["training (dashed)", "validation (solid)", "_a$x$", "b"]
    box = legend.get_window_extent()
    assert all(not box.overlaps(axes.get_window_extent()) for axes in figure.axes)
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1


def test_many_runs_can_be_told_apart(tmp_path: Path) -> None:
    log = write_run(tmp_path / "run", [1.0] * 45) / "log.txt"
    figure = draw([Group(str(number), [read_curves(log, str(number))]) for number in range(24)])
    _, top1, _ = figure.axes
    looks = {(line.get_color(), line.get_marker()) for line in top1.lines}
    assert len(looks) == 24
    assert {line.get_markevery() for line in top1.lines} == {2}
    (legend,) = figure.legends
    assert {(line.get_color(), line.get_marker()) for line in legend.get_lines()[2:]} == looks


def test_the_axis_of_one_epoch_has_whole_epochs(tmp_path: Path) -> None:
    figure = draw([Group("run", [read_curves(write_run(tmp_path / "run", [1.0]) / "log.txt", "run")])])
    figure.canvas.draw()
    low, high = figure.axes[1].get_xlim()
    ticks = [tick for tick in figure.axes[1].get_xticks() if low <= tick <= high]
    assert ticks == [1]


def test_the_legend_has_both_ends_of_a_long_name(tmp_path: Path) -> None:
    run = read_curves(write_run(tmp_path / "a", [1.0]) / "log.txt", f"first{'-' * 90}last")
    label = Group(run.name, [run]).label
    assert len(label) == 60
    assert (label[:5], label[-4:]) == ("first", "last")
    assert "..." in label


def test_which_values_are_for_a_logarithmic_axis() -> None:
    assert spans_decades(np.array([0.04, np.nan, 162]))
    assert not spans_decades(np.array([0.9, 6.9]))
    assert not spans_decades(np.array([0, 1e-9, 100]))
    assert not spans_decades(np.array([np.nan]))


def test_the_command(tmp_path: Path, plot: Run) -> None:
    for name in ("sge-1", "sge-2", "se"):
        write_run(tmp_path / name, [10.0, 20.0])
    result = plot("sge-1", "sge-2", "se/log.txt", "-o", "all.png")
    assert result.returncode == 0, result.stderr
    assert "wrote all.png: 2 curves" in result.stdout
    assert "best top-1 20.00 % (epoch 2)" in result.stdout
    with Image.open(tmp_path / "all.png") as image:
        assert image.width > 1000
    assert plot("se", "-o", "one.svg").returncode == 0
    assert "<svg" in (tmp_path / "one.svg").read_text()
    (tmp_path / "one.svg").write_text("mine")
    assert_one_line_error(plot("se", "-o", "one.svg"), "-o one.svg is there already", "--overwrite")
    assert (tmp_path / "one.svg").read_text() == "mine"
    assert plot("se", "-o", "one.svg", "--overwrite").returncode == 0
    assert "<svg" in (tmp_path / "one.svg").read_text()


def test_logs_that_have_names_of_their_own(tmp_path: Path, plot: Run) -> None:
    """As in pretrain_log/; in two folders of the same names they go by their paths."""
    for folder in ("digits", "photos"):
        for name in ("sge-1", "sge-2", "se-1"):
            made = write_run(tmp_path / f"{folder}-{name}", [10.0, 20.0])
            (tmp_path / folder).mkdir(exist_ok=True)
            (made / "log.txt").rename(tmp_path / folder / f"{name}.log.txt")
    result = plot("digits/sge-1.log.txt", "digits/sge-2.log.txt", "digits/se-1.log.txt", "-o", "a.png")
    assert "sge-2  2 epochs" in result.stdout
    assert "wrote a.png: 2 curves" in result.stdout
    logs = [f"{folder}/{name}.log.txt" for folder in ("digits", "photos") for name in ("sge-1", "sge-2")]
    result = plot(*logs, "-o", "b.png")
    assert "photos/sge-1  2 epochs" in result.stdout
    assert "wrote b.png: 2 curves" in result.stdout
    (tmp_path / "digits" / "se-1.log.txt").rename(tmp_path / "old.txt")
    assert plot("old.txt", "-o", "c.png").stdout.startswith("old  2 epochs")


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["nothing"], "nothing: No such file"),
        (["run", "run/log.txt"], "given twice"),
        (["run", "-o", "x.pdf"], ".png or .svg"),
        (["run", "-o", "none/x.png"], "make it first"),
        (["run", "--seeds", "["], "no regular expression"),
        (["other"], "no column 'Learning Rate'"),
        (["empty"], "no epoch yet"),
        (["torn"], "line 2: not a row of numbers"),
    ],
)
def test_bad_input(tmp_path: Path, plot: Run, arguments: list[str], fragment: str) -> None:
    write_run(tmp_path / "run", [1.0])
    for name, text in (("other", "a\tb\n"), ("empty", PUBLISHED), ("torn", f"{PUBLISHED}0.1\t2.0\t")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "log.txt").write_text(text)
    assert_one_line_error(plot(*arguments), fragment)


def test_a_name_that_is_no_text(tmp_path: Path, plot: Run) -> None:
    folder = tmp_path / os.fsdecode(b"a\xff\n")
    write_run(folder, [1.0])
    assert plot(folder, "-o", "a.svg").returncode == 0
    assert r"a\udcff\n" in (tmp_path / "a.svg").read_text()


def test_the_curves_of_a_run_that_is_replaced_do_not_stay(
    tmp_path: Path, images: Path, call: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    (write_run(tmp_path / "out", [1.0]) / "curves.png").write_text("of another run")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    arguments = ("-a", "tiny", "--data", images, "--img-size", "32", "-j", "0", "-c", "out")
    result = call(*arguments, "--train-batch", "8", "--epochs", "2", "--overwrite")
    assert result.returncode == 0, result.stderr
    assert "note: no curves.png: " in result.stdout
    assert not (tmp_path / "out" / "curves.png").exists()


@pytest.mark.parametrize("script", ["imagenet.py", "imagenet_fast.py"])
def test_a_run_ends_with_its_curves(tmp_path: Path, images: Path, run: Run, script: str) -> None:
    arguments = ("-a", "tiny", "--data", images, "--img-size", "32", "-j", "0", "-c", "out")
    result = run(*arguments, "--train-batch", "8", "--epochs", "2", script=script)
    assert result.returncode == 0, result.stderr
    assert "wrote out/: log.txt, curves.png, checkpoint.pth.tar" in result.stdout
    with Image.open(tmp_path / "out" / "curves.png") as image:
        assert image.format == "PNG"
