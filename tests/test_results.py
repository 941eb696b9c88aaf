"""The tables of README.md and docs/results.md are what the code and the data give."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, Run, assert_one_line_error
from recorded import COMMIT, ROWS, spoil, write_record, write_study

from scripts.lib.study_records import read_recipe
from scripts.results import markdown, replaced
from utils.common.errors import UserError

SCRIPT = "scripts/results.py"
EMPTY = "# Results\n\n<!-- results studies -->\n<!-- end studies -->\n\nand text\n"


@pytest.fixture
def results(call: Run) -> Run:
    """Start the script within this process, where the sizes of the networks are counted once."""
    return lambda *arguments: call(*arguments, script=SCRIPT)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return write_study(tmp_path / "logs" / "digits.toml")


@pytest.fixture
def tables(results: Run, tmp_path: Path) -> Callable[[], str]:
    """The section of docs/results.md about the recorded logs."""
    page = tmp_path / "results.md"

    def write() -> str:
        page.write_text(EMPTY)
        result = results("--logs", tmp_path / "logs", "--results", page)
        assert result.returncode == 0, result.stderr
        return page.read_text().split("studies -->\n\n")[1].split("\n<!--")[0]

    return write


@pytest.mark.slow  # it counts 39 networks
def test_the_tables_are_up_to_date(results: Run) -> None:
    result = results("--check")
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout == "results.md: tables are up to date\nREADME.md: tables are up to date\n"


@pytest.mark.slow
def test_a_stale_table_is_noticed_and_rewritten(results: Run, study: Path, tmp_path: Path) -> None:
    readme, page = tmp_path / "README.md", tmp_path / "results.md"
    right = (REPOSITORY / "README.md").read_text()
    stale = right.replace("| 25.56M | 4.127 |", "| 25.56M | 4.128 |")
    assert stale != right
    readme.write_text(stale)
    shutil.copy(REPOSITORY / "docs" / "results.md", page)
    files = ("--readme", readme, "--results", page)
    result = results("--check", *files)
    assert result.returncode == 1
    assert result.stdout.endswith("README.md: tables are stale; python scripts/results.py rewrites them\n")
    assert readme.read_text() == stale
    assert results(*files).returncode == 0
    assert readme.read_text() == right

    write_record(study, "plain", 1, 50, 60)
    result = results("--check", *files, "--logs", tmp_path / "logs")
    assert result.returncode == 1
    assert result.stdout.startswith("results.md: tables are stale")


def test_bad_paths(results: Run, tmp_path: Path) -> None:
    assert_one_line_error(results("--readme", "nowhere"), "--readme nowhere: No such file")
    assert_one_line_error(results("--results", tmp_path), "--results", "Is a directory")
    assert_one_line_error(results("--logs", "nowhere"), "--logs nowhere: no such folder")
    (tmp_path / "latin").write_bytes(b"\xe9")
    assert_one_line_error(results("--results", "latin"), "--results latin: it is no text")
    (tmp_path / "page.md").write_text(EMPTY)
    refused = results("--results", "page.md", "--readme", "nowhere")
    assert_one_line_error(refused, "--readme nowhere: No such file")
    assert (tmp_path / "page.md").read_text() == EMPTY
    (tmp_path / "empty").write_text("")
    assert_one_line_error(results("--results", "empty"), "empty needs the lines '<!-- results studies -->'")


def test_tables_stand_between_their_markers() -> None:
    text = "before\n<!-- results x -->\nold\n<!-- end x -->\nafter\n"
    table = markdown(iter([("a", "b"), ("1", "2")]))
    expected = "before\n<!-- results x -->\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n\n<!-- end x -->\nafter\n"
    assert replaced(text, "x", table) == expected
    assert replaced(expected, "x", table) == expected
    with pytest.raises(UserError, match="<!-- end y -->"):
        replaced(text, "y", table)
    with pytest.raises(UserError, match="in this order"):
        replaced("<!-- end x -->\n<!-- results x -->\n", "x", table)


def test_a_study(tables: Callable[[], str], study: Path) -> None:
    """Means of the last epoch, not of the best; differences by seed; rows and seeds as the study says."""
    rows = {**ROWS, "none": "--gate eca"}
    write_study(study, rows, (1, 2, 3))
    for seed, base, other in ((1, 60.0, 61.0), (2, 70.0, 74.0)):
        write_record(study, "plain", seed, 90.0, base)
        write_record(study, "se", seed, 10.0, other, parameters=11_270_000)
    write_record(study, "se", 3, 10.0, 99.0, parameters=11_270_000)
    assert tables() == (
        "### digits\n"
        "\n"
        "`imagenet_fast.py --data digits --epochs 2 --lr 0.2` with the flags of the row and `--manualSeed`; "
        "1,437 training images, 10 classes; 1 process, O0; commit 0123456789; torch 2.14.1.\n"
        "\n"
        "p: two-sided paired t-test over the seeds, which takes their differences for independent and "
        "normally distributed; not corrected for 1 comparison. The differences of a typical row's seeds have "
        "a standard deviation of 3.15 points: with 2 seeds the test at 5 % finds a true difference of 36.3 "
        "points with a probability of 80 %.\n"
        "\n"
        "| net | flags | #P | GFLOPs | epochs | seeds | valid top-1 % | train top-1 % "
        "| valid top-1, difference to plain | p |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
        "| plain | - | 11.18M | 0.037 | 2 | 2 of 3 | 65.00 ± 5.00 | 55.00 ± 5.00 | baseline |  |\n"
        "| se | --gate se | 11.27M | 0.037 | 2 | 3 | 78.00 ± 11.15 | 68.00 ± 11.15 | +2.50 ± 1.50 (2 seeds) "
        "| 0.344 |\n"
        "| none | --gate eca | - | - | - | 0 of 3 | - | - | - | - |\n"
    )


def test_studies_without_runs_or_file(results: Run, tables: Callable[[], str], study: Path) -> None:
    study.with_name("published.csv").write_text("")
    assert tables() == "No study has been recorded yet.\n"
    log = write_record(study.with_name("other.toml"), "plain", 1, 50)
    result = results("--logs", study.parent)
    assert_one_line_error(result, f"{log.parent}: there is no other.toml beside it")


def test_what_a_command_computes() -> None:
    here = read_recipe(
        "imagenet_fast.py -a x --scale 0.5 1 --data /a/digits --lr=0.2 --cos -c out --resume auto"
    )
    there = read_recipe("/b/imagenet_fast.py --scale 0.5 1 -d digits/ --lr 0.2 --cos -j 8 --manualSeed 3")
    expected = {
        "script": "imagenet_fast.py",
        "--scale": "0.5 1",
        "--data": "digits",
        "--lr": "0.2",
        "--cos": "",
    }
    assert here == there == expected


EPOCH = "--data digits --epochs 1 --lr 0.2"
NOT_OF_THE_ROW: dict[str, tuple[dict[str, Any], str]] = {
    "data": ({"flags": "--data letters --epochs 1 --lr 0.2"}, "has --data letters, where row 'plain' of"),
    "recipe": ({"flags": "--data digits --epochs 1 --lr 0.3"}, "has --lr 0.3, where"),
    "flag": ({"flags": f"{EPOCH} --mixup"}, "has --mixup (given), where"),
    "arch": ({"arch": "se_resnet18"}, "has -a se_resnet18, where"),
    "processes": ({"processes": 8}, "has processes 8, where"),
}
NOT_ALIKE: dict[str, tuple[dict[str, Any], str]] = {
    "images": ({"training_images": 9}, "training images 1437 in the one, 9 in the other"),
    "classes": ({"classes": 9}, "classes 10 in the one, 9 in the other"),
    "code": ({"code": "d" * 40}, "code cccccccccc (commit 0123456789) in the one, dddddddddd (commit 01"),
    "precision": ({"opt_level": "O2"}, "opt level O0 in the one, O2 in the other"),
    "versions": ({"versions": {"python": "3.11.7", "torch": "2.15.0"}}, "torch 2.14.1 in the one, 2.15.0 in"),
    "size": ({"parameters": 7}, "parameters plain: 11180000 in the one, 7 in the other"),
}


@pytest.mark.parametrize("kind", NOT_OF_THE_ROW)
def test_a_run_that_is_not_what_its_row_says(results: Run, study: Path, kind: str) -> None:
    write_study(study, flags="--epochs 1 --lr 0.2")
    changes, message = NOT_OF_THE_ROW[kind]
    log = write_record(study, "plain", 1, 50, **changes)
    assert_one_line_error(results("--check", "--logs", study.parent), f"{log}: the run {message}")


@pytest.mark.parametrize("kind", NOT_ALIKE)
def test_runs_that_do_not_compare(results: Run, study: Path, kind: str) -> None:
    write_study(study, flags="--epochs 1 --lr 0.2")
    changes, message = NOT_ALIKE[kind]
    first, second = write_record(study, "plain", 1, 50), write_record(study, "plain", 2, 50, **changes)
    result = results("--check", "--logs", study.parent)
    assert_one_line_error(result, f"{first} and {second} cannot be compared: {message}")


def test_rows_seeds_and_gate_files_that_are_not_of_the_study(results: Run, study: Path) -> None:
    write_study(study, flags="--epochs 1 --lr 0.2")
    start = ("--check", "--logs", study.parent)
    log = write_record(study, "eca", 1, 50)
    assert_one_line_error(results(*start), f"{log}: {study} has no row 'eca'")
    log.unlink()
    log.with_name("eca-1.json").unlink()
    log = write_record(study, "plain", 7, 50)
    assert_one_line_error(results(*start), f"{log}: {study} has no seed 7")
    log.unlink()
    log.with_name("plain-7.json").unlink()
    rows = {"plain": "", "a": "--gate-file g.py:A", "b": "--gate-file g.py:B"}
    write_study(study, rows, flags="--epochs 1 --lr 0.2")
    for row, digest in (("a", "1"), ("b", "2")):
        write_record(study, row, 1, 50, flags=f"{EPOCH} {rows[row]}", gate_code=digest)
    assert_one_line_error(
        results(*start), "cannot be compared: content of g.py: 1 in the one, 2 in the other"
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda log: log.with_name("se-1.json").unlink(), "se-1.log.txt: there is no se-1.json beside it"),
        (lambda log: log.unlink(), "se-1.json: there is no se-1.log.txt beside it"),
        (lambda log: log.with_name("se-1.json").write_text("{"), "se-1.json: cannot be read"),
        (lambda log: log.with_name("se-1.json").write_bytes(b"\xe9"), "se-1.json: cannot be read"),
        (lambda log: log.with_name("se-1.json").write_text("[]"), "se-1.json: it does not say its arch"),
        (lambda log: spoil(log, training_images=None), "does not say its training_images"),
        (lambda log: spoil(log, commit=""), "se-1.json: its commit '' names no code"),
        (lambda log: spoil(log, commit=f"{COMMIT}+"), "+' names no code"),
        (lambda log: spoil(log, command="imagenet.py '"), "its command is none of a shell"),
        (lambda log: spoil(log, seed=2), "se-1.log.txt: it must be called NAME-2.log.txt"),
        (lambda log: spoil(log, command="imagenet.py --epochs 3"), "1 epoch, where its command says 3"),
        (lambda log: log.write_text("text\n"), "no log.txt of a training run"),
        (
            lambda log: log.write_text("Learning Rate\tTrain Loss\tAP\n1\t1\t1\n"),
            "no log of a classification",
        ),
    ],
)
def test_a_run_that_cannot_be_traced_back(
    results: Run, study: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(write_record(study, "se", 1, 50))
    assert_one_line_error(results("--logs", study.parent, "--check"), message)
