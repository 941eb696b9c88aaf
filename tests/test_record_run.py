"""scripts/record_run.py: what is kept of a finished run, and which runs are not kept."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run, assert_one_line_error

from utils.networks import checkpoint
from utils.runs.folder import LAST

COMMIT = "0123456789" * 4
ROWS = ["Learning Rate\tTrain Loss\tValid Loss\tTrain Acc.\tValid Acc.\t", "0.1\t2\t1\t50\t60\t"]
FIELDS: dict[str, Any] = {
    "epoch": 1,
    "images": 0,
    "state_dict": {"weight": torch.zeros(1)},
    "arch": "mobilenetv1",
    "seed": 7,
    "classes": ["cat", "dog"],
    "training_images": 24,
    "command": "imagenet.py -a mobilenetv1 --data images",
    "arguments": {"epochs": 1},
    "versions": {"torch": "2.14.1"},
    "commit": COMMIT,
    "rows": ROWS,
}


@pytest.fixture
def record(call: Run) -> Run:
    """Start the script within this process."""

    def start(run: object, *arguments: object) -> Any:
        return call(run, "--study", "small", "--logs", "logs", *arguments, script="scripts/record_run.py")

    return start


@pytest.fixture
def finished(tmp_path: Path) -> Callable[..., Path]:
    """Write the checkpoint of a run, with other fields; one of None is left out."""

    def write(folder: str = "net-7", **changes: object) -> Path:
        (tmp_path / folder).mkdir(exist_ok=True)
        content = {name: value for name, value in {**FIELDS, **changes}.items() if value is not None}
        checkpoint.write(content, tmp_path / folder / LAST)
        return tmp_path / folder

    return write


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_what_is_kept(record: Run, finished: Callable[..., Path], tmp_path: Path) -> None:
    finished()
    for _ in range(2):  # again: the same
        result = record("net-7/")
        assert (result.returncode, result.stdout) == (0, "wrote logs/small/net-7.log.txt\n"), result.stderr
        assert files(tmp_path / "logs") == {"small/net-7.log.txt", "small/net-7.json"}
        assert (tmp_path / "logs" / "small" / "net-7.log.txt").read_text() == "".join(
            f"{row}\n" for row in ROWS
        )
        facts = json.loads((tmp_path / "logs" / "small" / "net-7.json").read_text())
        named = ("arch", "seed", "training_images", "command", "commit", "versions")
        assert facts == {**{name: FIELDS[name] for name in named}, "classes": 2}


def test_a_run_of_this_code(call: Run, record: Run, images: Path, tmp_path: Path) -> None:
    """Its own checkpoint has what is asked for; recorded it is exactly where its code is of a commit."""
    flags = ("-a", "mobilenetv1", "--data", images, "--img-size", 32, "--epochs", 1, "--manualSeed", 7)
    assert call(*flags, "-c", "net-7").returncode == 0
    commit = torch.load(tmp_path / "net-7" / LAST, weights_only=True)["commit"]
    result = record("net-7")
    if re.fullmatch("[0-9a-f]{40}", commit):
        assert result.returncode == 0, result.stderr
        assert (tmp_path / "logs" / "small" / "net-7.log.txt").read_text() == (
            tmp_path / "net-7" / "log.txt"
        ).read_text()
    else:
        assert_one_line_error(result, "RUN net-7: its code is of no commit")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arguments": {"epochs": 3}}, "RUN net-7: 1 of 3 epochs are done; go on with --resume auto first"),
        ({"arguments": {}}, "RUN net-7: 1 of None epochs are done"),
        ({"epoch": None}, "RUN net-7: 0 of 1 epochs are done"),
        ({"commit": ""}, "RUN net-7: its code is of no commit (no git): commit it, train again"),
        ({"commit": f"{COMMIT}+"}, f"RUN net-7: its code is of no commit ({COMMIT}+)"),
        ({"seed": 8}, "RUN net-7: the folder's name must end in the seed: NAME-8"),
        ({"seed": 77}, "must end in the seed: NAME-77"),
        *(
            ({name: None}, f"RUN net-7: its checkpoint does not say its {name}: not one of this code")
            for name in ("arch", "seed", "classes", "training_images", "command", "versions", "rows")
        ),
    ],
)
def test_runs_that_are_not_kept(
    record: Run, finished: Callable[..., Path], tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    finished(**changes)
    assert_one_line_error(record("net-7"), message)
    assert not (tmp_path / "logs").exists()


def test_checkpoints_of_others(record: Run, finished: Callable[..., Path], tmp_path: Path) -> None:
    published = {"epoch": 1, "acc": 1.0, "best_acc": 1.0, "state_dict": {"module.w": torch.zeros(1)}}
    for content in (published, {"w": torch.zeros(1)}):
        torch.save(content, finished() / LAST)
        assert_one_line_error(record("net-7"), "its checkpoint does not say its arch")
    (tmp_path / "net-7" / LAST).write_text("text")
    assert_one_line_error(record("net-7"), "RUN net-7/checkpoint.pth.tar", "not a checkpoint")


def test_another_run_of_the_same_name(record: Run, finished: Callable[..., Path], tmp_path: Path) -> None:
    finished()
    assert record("net-7").returncode == 0
    finished(rows=[ROWS[0], "0.1\t2\t1\t50\t99\t"])
    assert_one_line_error(record("net-7"), "logs/small/net-7.log.txt: another run is recorded there")
    assert (tmp_path / "logs" / "small" / "net-7.log.txt").read_text().endswith("\t60\t\n")


def test_bad_paths(record: Run, finished: Callable[..., Path], tmp_path: Path) -> None:
    assert_one_line_error(record("nowhere-7"), "RUN nowhere-7/checkpoint.pth.tar: no such file")
    finished("7")
    assert_one_line_error(record("7"), "must end in the seed: NAME-7")
    finished("-7")
    assert_one_line_error(record("./-7"), "must end in the seed: NAME-7")
    finished()
    (tmp_path / "file").write_text("")
    assert_one_line_error(record("net-7", "--logs", "file"), "cannot write file/small/net-7.log.txt")
    for study in ("../up", "a/b", "..", ""):
        assert_one_line_error(record("net-7", "--study", study), "--study: must be a name, not")
    assert not (tmp_path / "logs").exists()
