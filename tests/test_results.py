"""The tables of README.md and docs/results.md are what the code and the data give."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, Run, assert_one_line_error

from scripts.lib.results_study import read_recipe, with_error
from scripts.results import markdown, replaced
from utils.common.errors import UserError

SCRIPT = "scripts/results.py"
COMMAND = (
    "imagenet_fast.py -a {arch} -d digits --epochs {epochs} --lr 0.2 --manualSeed {seed} -c {net}-{seed}"
)
FACTS = {"classes": 10, "training_images": 1437, "commit": "0123456789" * 4, "versions": {"torch": "2.14.1"}}
HEAD = "\t".join(["Learning Rate", "Train Loss", "Valid Loss", "Train Acc.", "Valid Acc."])
EMPTY = "# Results\n\n<!-- results studies -->\n<!-- end studies -->\n\nand text\n"

Record = Callable[..., Path]


@pytest.fixture
def results(call: Run) -> Run:
    """Start the script within this process, where the sizes of the networks are counted once."""
    return lambda *arguments: call(*arguments, script=SCRIPT)


@pytest.fixture
def tables(results: Run, tmp_path: Path) -> Callable[[], str]:
    """The section of docs/results.md about the recorded logs."""
    page = tmp_path / "results.md"

    def write() -> str:
        page.write_text(EMPTY)
        result = results("--logs", tmp_path / "logs", "--results", page)
        assert result.returncode == 0, result.stderr
        return page.read_text().split("studies -->\n\n")[1].split("\n<!--")[0]

    (tmp_path / "logs").mkdir()
    return write


@pytest.fixture
def record(tmp_path: Path) -> Record:
    """Write a log and its .json as record_run.py does; ``top1`` are validation's by epoch."""

    def write(
        net: str,
        seed: int,
        *top1: float,
        study: str = "digits",
        arch: str = "mobilenetv1",
        flags: str = "",
        rate: float = 0.05,
        command: str = COMMAND,
        **facts: Any,
    ) -> Path:
        log = tmp_path / "logs" / study / f"{net}-{seed}.log.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        rows = [f"{rate / (i + 1)}\t2.0\t1.0\t{value - 10}\t{value}\t" for i, value in enumerate(top1)]
        log.write_text("\n".join([HEAD, *rows]) + "\n")
        line = f"{command.format(arch=arch, epochs=len(top1), seed=seed, net=net)} {flags}"
        written = {"arch": arch, "seed": seed, "command": line, **FACTS, **facts}
        log.with_name(f"{net}-{seed}.json").write_text(json.dumps(written))
        return log

    return write


def test_the_tables_are_up_to_date(results: Run) -> None:
    result = results("--check")
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout == "results.md: tables are up to date\nREADME.md: tables are up to date\n"


def test_a_stale_table_is_noticed_and_rewritten(results: Run, record: Record, tmp_path: Path) -> None:
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

    record("resnet18", 1, 50, 60)
    result = results("--check", *files, "--logs", tmp_path / "logs")
    assert result.returncode == 1
    assert result.stdout.startswith("results.md: tables are stale")


def test_bad_paths(results: Run, tmp_path: Path) -> None:
    assert_one_line_error(results("--readme", "nowhere"), "--readme nowhere: No such file")
    assert_one_line_error(results("--results", tmp_path), "--results", "Is a directory")
    assert_one_line_error(results("--logs", "nowhere"), "--logs nowhere: no such folder")
    (tmp_path / "latin").write_bytes(b"\xe9")
    assert_one_line_error(results("--results", "latin"), "--results latin: it is no text")
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


def test_a_study(tables: Callable[[], str], record: Record) -> None:
    """Means of the last epoch, not of the best; differences by seed, whatever the seeds have in common."""
    for seed, base, other in ((1, 60.0, 61.0), (2, 70.0, 74.0)):
        record("resnet18", seed, 90.0, base)
        record("better", seed, 10.0, other, arch="se_resnet18")
    record("better", 3, 10.0, 99.0, arch="se_resnet18")
    record("alone", 4, 1.0, 2.0, flags="--nowd-conv --el2 --mineps 1e-3 -j 4 --resume auto")
    assert tables() == (
        "### digits\n"
        "\n"
        "`imagenet_fast.py -d digits --epochs 2 --lr 0.2` with `-a`, the flags of the row and "
        "`--manualSeed`; "
        "1,437 training images, 10 classes; commit 0123456789; torch 2.14.1.\n"
        "\n"
        "| net | `-a` and flags | #P | epochs | seeds | valid top-1 % | train top-1 % "
        "| valid top-1, difference to resnet18 |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- |\n"
        "| resnet18 | mobilenetv1 | 3.22M | 2 | 2 | 65.00 ± 5.00 | 55.00 ± 5.00 | baseline |\n"
        "| alone | mobilenetv1 --nowd-conv --el2 --mineps 1e-3 | 3.22M | 2 | 1 | 2.00 | -8.00 | - |\n"
        "| better | se_resnet18 | 11.27M | 2 | 3 | 78.00 ± 11.15 | 68.00 ± 11.15 | +2.50 ± 1.50 (2 seeds) |\n"
    )


def test_a_study_without_its_baseline(tables: Callable[[], str], record: Record) -> None:
    record("b", 1, 50.0, study="one")
    record("a", 1, 60.0, study="one", commit="f" * 40)
    record("a", 1, 60.0, 70.0, study="two", training_images=7)
    one, two = tables().split("### two")
    assert "commit 0123456789, ffffffffff;" in one
    assert "| train top-1 % |\n" in one
    assert one.index("| a | ") < one.index("| b | mobilenetv1 | 3.22M | 1 | 1 | 50.00 | 40.00 |\n")
    assert "7 training images" in two  # other studies are others: nothing is compared


def test_a_small_stem_is_a_part_of_the_net(tables: Callable[[], str], record: Record) -> None:
    """It stands in the row and counts in its size; nets without it are in the same table."""
    record("resnet18", 1, 50.0, arch="resnet18", flags="--stem small")
    record("other", 1, 60.0)
    table = tables()
    assert "| resnet18 | resnet18 --stem small | 11.17M | 1 | 1 | 50.00 | 40.00 | baseline |\n" in table
    assert "| other | mobilenetv1 | 3.22M | 1 | 1 | 60.00 | 50.00 | +10.00 |\n" in table
    assert "--stem" not in table.partition("| net |")[0]


def test_no_study_yet(tables: Callable[[], str], tmp_path: Path) -> None:
    (tmp_path / "logs" / "published.csv").write_text("")
    (tmp_path / "logs" / "empty").mkdir()
    assert tables() == "No study has been recorded yet.\n"


def test_the_standard_error() -> None:
    assert with_error([]) == "-"
    assert with_error([2], "+") == "+2.00"
    assert with_error([-1, -2, -3], "+") == "-2.00 ± 0.58"  # 1 / sqrt(3)


def test_what_a_command_computes() -> None:
    here = read_recipe(
        "imagenet_fast.py -a x --scale 0.5 1 --data /a/digits --lr=0.2 --cos -c out --resume auto"
    )
    there = read_recipe("/b/imagenet_fast.py --scale 0.5 1 --data digits/ --lr 0.2 --cos -j 8 --manualSeed 3")
    expected = {
        "script": "imagenet_fast.py",
        "--scale": "0.5 1",
        "--data": "digits",
        "--lr": "0.2",
        "--cos": "",
    }
    assert here == there == expected


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "images": ({"training_images": 9}, "training images: 1437 in the one, 9 in the other"),
    "classes": ({"classes": 9}, "classes: 10 in the one, 9 in the other"),
    "data": (
        {"command": COMMAND.replace("digits", "letters")},
        "-d digits in the one, letters in the other",
    ),
    "recipe": ({"flags": "--lr 0.3"}, "--lr 0.2 in the one, 0.3 in the other"),
    "flag": ({"flags": "--mixup"}, "--mixup (none) in the one, (given) in the other"),
    "script": ({"command": COMMAND.replace("_fast", "")}, "script imagenet_fast.py in the one, imagenet.py"),
    "processes": ({"rate": 0.1}, "highest rate: 0.05 in the one, 0.1 in the other"),
}


@pytest.mark.parametrize("net", ["resnet18", "other"])
@pytest.mark.parametrize("kind", OTHERS)
def test_runs_that_do_not_compare(results: Run, record: Record, net: str, kind: str, tmp_path: Path) -> None:
    """In a row and between rows."""
    changes, message = OTHERS[kind]
    first = record("resnet18", 1, 50)
    second = record(net, 2, 50, **changes)
    result = results("--check", "--logs", tmp_path / "logs")
    assert_one_line_error(result, f"{first} and {second} cannot be compared: {message}")


def test_epochs_and_nets_that_do_not_compare(results: Run, record: Record, tmp_path: Path) -> None:
    first, second = record("resnet18", 1, 50), record("other", 1, 50, 60)
    start = ("--check", "--logs", tmp_path / "logs")
    assert_one_line_error(results(*start), f"{first} and {second} cannot", "--epochs 1 in the one, 2 in the")
    short = COMMAND.replace("--epochs {epochs}", "")  # the script's default; the log then tells
    first, second = record("resnet18", 1, 50, command=short), record("other", 1, 50, 60, command=short)
    assert_one_line_error(results(*start), f"{first} and {second} cannot", "epochs: 1 in the one, 2 in the")

    record("other", 1, 50)
    first = record("resnet18", 1, 50)
    second = record("resnet18", 2, 50, arch="se_resnet18")
    assert_one_line_error(results(*start), f"{first} and {second} cannot", "-a mobilenetv1 in the one, se_")
    second = record("resnet18", 2, 50, flags="--el2")
    assert_one_line_error(results(*start), f"{first} and {second} cannot", "--el2 (none) in the one, (given)")


def spoilt(log: Path, **changes: object) -> None:
    path = log.with_name(log.name.replace(".log.txt", ".json"))
    facts = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in facts.items() if value is not None}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda log: log.with_name("net-1.json").unlink(), "net-1.log.txt: there is no net-1.json beside it"),
        (lambda log: log.unlink(), "net-1.json: there is no net-1.log.txt beside it"),
        (lambda log: log.with_name("net-1.json").write_text("{"), "net-1.json: cannot be read"),
        (lambda log: log.with_name("net-1.json").write_bytes(b"\xe9"), "net-1.json: cannot be read"),
        (lambda log: log.with_name("net-1.json").write_text("[]"), "net-1.json: it does not say its arch"),
        (lambda log: spoilt(log, training_images=None), "does not say its training_images"),
        (lambda log: spoilt(log, commit=""), "net-1.json: its commit '' names no code"),
        (lambda log: spoilt(log, commit=f"{'a' * 40}+"), "a+' names no code"),
        (lambda log: spoilt(log, arch="se_resnet19"), "'se_resnet19' is none of models/"),
        (lambda log: spoilt(log, command="imagenet.py '"), "its command is none of a shell"),
        (lambda log: spoilt(log, seed=2), "net-1.log.txt: it must be called NAME-2.log.txt"),
        (lambda log: spoilt(log, command="imagenet.py --epochs 3"), "1 epoch, where its command says 3"),
        (lambda log: log.write_text("text\n"), "no log.txt of a training run"),
        (
            lambda log: log.write_text("Learning Rate\tTrain Loss\tAP\n1\t1\t1\n"),
            "no log of a classification",
        ),
    ],
)
def test_a_run_that_cannot_be_traced_back(
    results: Run, record: Record, tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(record("net", 1, 50))
    assert_one_line_error(results("--logs", tmp_path / "logs", "--check"), message)
