"""scripts/record_run.py: what is kept of a finished run, and which runs are not kept."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run, assert_one_line_error
from recorded import COMMIT, write_study
from tiny_net import TinyResNet

from models.gates import add_gates
from scripts.lib.study_recording import code_of
from utils.networks import checkpoint
from utils.networks.complexity import count
from utils.runs.folder import LAST

ROWS = ["Learning Rate\tTrain Loss\tValid Loss\tTrain Acc.\tValid Acc.\t", "0.1\t2\t1\t50\t60\t"]
ROW = "-a tiny_resnet --gate se --img-size 32"
FIELDS: dict[str, Any] = {
    "epoch": 1,
    "images": 0,
    "arch": "tiny_resnet",
    "seed": 7,
    "classes": ["cat", "dog"],
    "training_images": 24,
    "processes": 1,
    "command": f"imagenet_fast.py --data /there/digits {ROW} --manualSeed 7",
    "arguments": {"epochs": 1, "img_size": 32, "gate": "se", "opt_level": "O0"},
    "versions": {"torch": "2.14.1"},
    "commit": COMMIT,
    "rows": ROWS,
}


def tiny() -> torch.nn.Module:
    return add_gates(TinyResNet(num_classes=2), "se")


@pytest.fixture
def record(call: Run, tmp_path: Path) -> Run:
    """Start the script within this process, for a study with a row 'net'."""
    write_study(tmp_path / "small.toml", {"plain": "", "net": ROW}, (7, 8), flags="")

    def start(run: object, *arguments: object) -> Any:
        return call(run, "--study", "small.toml", *arguments, script="scripts/record_run.py")

    return start


@pytest.fixture
def finished(tmp_path: Path) -> Callable[..., Path]:
    """Write the checkpoint of a run, with other fields; one of None is left out."""

    def write(folder: str = "net-7", **changes: object) -> Path:
        (tmp_path / folder).mkdir(exist_ok=True)
        fields = {"state_dict": tiny().state_dict(), **FIELDS, **changes}
        content = {name: value for name, value in fields.items() if value is not None}
        checkpoint.write(content, tmp_path / folder / LAST)
        return tmp_path / folder

    return write


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_what_is_kept(record: Run, finished: Callable[..., Path], tmp_path: Path) -> None:
    finished()
    for _ in range(2):  # again: the same
        result = record("net-7/")
        assert (result.returncode, result.stdout) == (0, "wrote small/net-7.log.txt\n"), result.stderr
        assert files(tmp_path / "small") == {"net-7.log.txt", "net-7.json"}
        assert (tmp_path / "small" / "net-7.log.txt").read_text() == "".join(f"{row}\n" for row in ROWS)
    facts = json.loads((tmp_path / "small" / "net-7.json").read_text())
    named = ("arch", "seed", "training_images", "processes", "command", "commit", "versions")
    size = count(tiny(), (3, 32, 32))
    assert facts == {
        **{name: FIELDS[name] for name in named},
        **{"classes": 2, "parameters": size.parameters, "multiply_adds": size.multiply_adds},
        **{"code": COMMIT, "opt_level": "O0"},  # git does not know this commit
    }


def test_commits_of_the_same_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit of pages is the same code, one of a model is other code; an unknown one stands for itself."""

    def git(*words: str) -> str:
        person = ("-c", "user.name=a", "-c", "user.email=a@b")
        done = subprocess.run(
            ("git", *person, *words), cwd=tmp_path, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    def commit(file: str, text: str) -> str:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(text)
        git("add", ".")
        git("commit", "-q", "-m", text)
        return git("rev-parse", "HEAD")

    git("init", "-q")
    for file in ("imagenet.py", "imagenet_fast.py", "imagenet_mobile.py", "utils/a.py"):
        commit(file, "first")
    commits = [commit("models/a.py", "a"), commit("page.md", "b"), commit("models/a.py", "c")]
    monkeypatch.setattr("scripts.lib.study_recording.ROOT", tmp_path)
    before, page, model = map(code_of, commits)
    assert before == page != model
    assert code_of("f" * 40) == "f" * 40


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arguments": {"epochs": 3}}, "RUN net-7: 1 of 3 epochs are done; go on with --resume auto first"),
        ({"arguments": {}}, "RUN net-7: 1 of None epochs are done"),
        ({"epoch": None}, "RUN net-7: 0 of 1 epochs are done"),
        ({"commit": ""}, "RUN net-7: its code is of no commit (no git): commit it, train again"),
        ({"commit": f"{COMMIT}+"}, f"RUN net-7: its code is of no commit ({COMMIT}+)"),
        ({"seed": 8}, "RUN net-7: the folder's name must end in the seed: NAME-8"),
        ({"arch": "tiny"}, "RUN net-7: the run has -a tiny, where row 'net' of small.toml says tiny_resnet"),
        ({"processes": 2}, "RUN net-7: the run has processes 2, where row 'net' of small.toml says 1"),
        ({"seed": 77}, "must end in the seed: NAME-77"),
        *(
            ({name: None}, f"RUN net-7: its checkpoint does not say its {name}: not one of this code")
            for name in (
                "arch",
                "seed",
                "classes",
                "training_images",
                "processes",
                "command",
                "versions",
                "rows",
            )
        ),
    ],
)
def test_runs_that_are_not_kept(
    record: Run, finished: Callable[..., Path], tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    finished(**changes)
    assert_one_line_error(record("net-7"), message)
    assert not (tmp_path / "small").exists()


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
    assert_one_line_error(record("net-7"), "small/net-7.log.txt: another run is recorded there")
    assert (tmp_path / "small" / "net-7.log.txt").read_text().endswith("\t60\t\n")


def test_bad_paths(call: Run, record: Run, finished: Callable[..., Path], tmp_path: Path) -> None:
    assert_one_line_error(record("nowhere-7"), "RUN nowhere-7/checkpoint.pth.tar: no such file")
    finished("7")
    assert_one_line_error(record("7"), "must end in the seed: NAME-7")
    finished("other-7")
    assert_one_line_error(record("other-7"), "RUN other-7: small.toml has no row 'other'")
    finished()
    (tmp_path / "small").write_text("")
    assert_one_line_error(record("net-7"), "cannot write small/net-7.log.txt")
    script = "scripts/record_run.py"
    assert_one_line_error(call("net-7", "--study", "none.toml", script=script), "none.toml: No such file")
    assert_one_line_error(call("net-7", "--study", "small", script=script), "small: a study is a .toml file")
