"""scripts/study.py: a study's file, what it runs, what survives a kill, its tables and pictures."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, Run, assert_one_line_error
from recorded import COMMIT, spoil, write_record, write_study
from scipy.stats import ttest_rel
from test_shell import copy as copy_of_the_code
from tiny_net import TinyResNet

from models.gates import add_gates
from scripts.lib import study_runs
from scripts.lib.results_study import read_results
from scripts.lib.results_tables import escaped, latex
from scripts.lib.study_file import expand, read_study
from scripts.lib.study_statistics import Difference, detectable, paired, typical_deviation, with_error
from scripts.lib.study_tradeoff import apart, draw, points_of
from utils.common.errors import UserError
from utils.networks import checkpoint
from utils.runs import provenance
from utils.runs.folder import LAST

copy = pytest.fixture(copy_of_the_code.__wrapped__)  # type: ignore[attr-defined]
FLAGS = "-a tiny_resnet --img-size 32 --epochs 2 --train-batch 8"
HEAD = "Learning Rate\tTrain Loss\tValid Loss\tTrain Acc.\tValid Acc.\t"


class Played:
    """In place of a training process: ends at its third look, with a checkpoint or an error."""

    running = most = 0
    started: Sequence[Sequence[str]] = ()

    def __init__(self, words: Sequence[str], output: Path, environment: dict[str, str]) -> None:
        Played.started = [*Played.started, words]
        Played.running += 1
        Played.most = max(Played.most, Played.running)
        self.words, self.output, self.looks, self.told = list(words), output, 0, False
        self.environment = environment

    def value(self, flag: str) -> str:
        return self.words[self.words.index(flag) + 1] if flag in self.words else ""

    def poll(self) -> int | None:
        self.looks += 1
        if self.looks < 3:
            return None
        Played.running -= 1
        if self.value("--gate") == "srm":
            self.output.write_text("some lines\nimagenet_fast.py: error: no such luck\n")
            return 2
        self.finish()
        return 0

    def finish(self) -> None:
        seed, gate = int(self.value("--manualSeed")), self.value("--gate")
        net = TinyResNet(num_classes=10)
        rows = [
            HEAD,
            *(f"0.1\t1\t1\t40\t{50 + 10 * epoch + seed + len(gate) * (seed + 1)}" for epoch in range(2)),
        ]
        content = {
            **{"epoch": 2, "images": 0, "arch": "tiny_resnet", "seed": seed, "classes": list("0123456789")},
            **{"training_images": 1437, "processes": 1, "rows": rows, "commit": provenance.commit()},
            "versions": provenance.origin({})["versions"],
            "command": " ".join(self.words[1:]),
            "arguments": {"epochs": 2, "img_size": 32, "gate": gate or None, "opt_level": "O0"},
            "state_dict": (add_gates(net, gate) if gate else net).state_dict(),
        }
        checkpoint.write(content, Path(self.value("-c")) / LAST)

    def terminate(self) -> None:
        self.told = True

    def wait(self, timeout: float | None = None) -> int:
        assert self.told
        return 143


@pytest.fixture
def study(call: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The script within this process, with trainings that are played."""
    monkeypatch.setattr(Played, "started", ())
    monkeypatch.setattr(Played, "most", 0)
    monkeypatch.setattr(Played, "running", 0)
    monkeypatch.setattr("scripts.study.start_process", Played)
    monkeypatch.setattr(provenance, "commit", lambda: COMMIT)
    monkeypatch.setattr(study_runs, "_LOOK", 0.0)
    return lambda *arguments: call(*arguments, script="scripts/study.py")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_study(tmp_path / "small.toml", {"plain": "", "se": "--gate se"}, (1,), FLAGS)


def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.study.write_pictures", lambda results: [])


def texts(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".md", ".tex")}


def test_a_study_runs_and_its_tables_regenerate(study: Run, file: Path) -> None:
    write_study(file, {"plain": "", "se": "--gate se"}, (1, 2), FLAGS)
    result = study(file, "--jobs", 2)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("small: 4 runs, 0 of them recorded\n[1/4] plain, seed 1: started\n")
    pictures = ["curves.png", "tradeoff_parameters.png", "tradeoff_gflops.png"]
    assert result.stdout.endswith(f"wrote {file.parent}/small/: table.md, table.tex, {', '.join(pictures)}\n")
    folder = file.with_suffix("")
    assert {path.name for path in folder.iterdir()} == {
        *(".lock", "table.md", "table.tex", *pictures),
        *(
            f"{row}-{seed}.{kind}"
            for row in ("plain", "se")
            for seed in (1, 2)
            for kind in ("log.txt", "json")
        ),
    }
    assert Played.most == 2
    flags = "--data digits -a tiny_resnet --img-size 32 --epochs 2 --train-batch 8 --gate se --manualSeed 2"
    assert any(flags in " ".join(words) and words[-2:] == ["--resume", "auto"] for words in Played.started)
    assert "| se | --gate se |" in (folder / "table.md").read_text()
    assert "+5.00 ± 1.00 | 0.126 |" in (folder / "table.md").read_text()

    before = texts(folder)
    for path in (folder / "table.md", folder / "table.tex"):
        path.unlink()
    again = study(file)
    assert again.stdout.startswith("small: 4 runs, 4 of them recorded\nwrote")
    assert len(Played.started) == 4
    assert texts(folder) == before


def test_a_failed_row_does_not_stop_the_others(
    study: Run, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_pictures(monkeypatch)
    write_study(file, {"plain": "", "srm": "--gate srm", "se": "--gate se"}, (1,), FLAGS)
    for count in (3, 4):  # the second time only the failed ones run
        result = study(file)
        assert result.returncode == 1
        assert len(Played.started) == count
        why = "exit code 2: imagenet_fast.py: error: no such luck (checkpoints/study/small/srm-1/output.txt)"
        assert f"srm, seed 1 failed: {why}\n" in result.stderr
        assert result.stderr.endswith("failed: srm, seed 1. The same command tries them again\n")
    assert (
        "| srm | --gate srm | - | - | - | 0 of 1 | - | - | - | - |"
        in (file.with_suffix("") / "table.md").read_text()
    )


def test_a_signal_stops_it_and_it_goes_on(study: Run, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_pictures(monkeypatch)
    usual = Played.poll

    def signalled(process: Played) -> int | None:
        if len(Played.started) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            return None
        return usual(process)

    monkeypatch.setattr(Played, "poll", signalled)
    stopped = study(file)
    assert (stopped.returncode, stopped.stderr) == (143, "")
    assert "stopped by SIGTERM: the same command goes on" in stopped.stdout
    monkeypatch.setattr(Played, "poll", usual)
    assert study(file).returncode == 0
    assert len(Played.started) == 3


def test_what_a_kill_leaves_behind(study: Run, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Facts without a log, half a file: none of it stops the next start."""
    without_pictures(monkeypatch)
    folder = file.with_suffix("")
    folder.mkdir()
    (folder / "plain-1.json").write_text("{")
    (folder / ".table.md.unfinished-01234567").write_text("half")
    assert study(file, "--tables").returncode == 2  # which says what is wrong, and removes no fact
    assert study(file).returncode == 0
    assert not list(folder.glob(".*unfinished*"))


def test_only_one_works_on_a_study(study: Run, file: Path) -> None:
    code = f"""import fcntl, sys
lock = open({str(file.with_suffix("") / ".lock")!r}, "w")
fcntl.lockf(lock, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()"""
    file.with_suffix("").mkdir()
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout is not None
    other.stdout.readline()
    try:
        assert_one_line_error(study(file), f"{file}: another process works on this study")
    finally:
        other.communicate(b"")


def test_the_gpus_are_shared(file: Path) -> None:
    runner = study_runs.Runner(read_study(file), [], 3, ["4", "5"], Played, lambda: None)
    assert [runner._environment(slot)["CUDA_VISIBLE_DEVICES"] for slot in range(3)] == ["4", "5", "4"]
    assert runner._environment(0)["OMP_NUM_THREADS"] == "1"


def test_several_processes_are_started_by_torchrun(file: Path) -> None:
    write_study(file, flags=FLAGS, processes="2")
    todo = study_runs.Todo("se", 1, Path("runs/se-1"))
    words = study_runs.command(read_study(file), todo, 3)
    assert words[1:5] == ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    assert words[5].endswith("imagenet_fast.py")


def test_code_that_is_not_committed_or_has_changed(
    study: Run, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for commit, said in (("", "is of no commit (no git)"), (f"{COMMIT}+", "has changes that are not")):
        monkeypatch.setattr(provenance, "commit", lambda commit=commit: commit)
        assert_one_line_error(study(file), f"this code {said}", "commit it first")
    monkeypatch.setattr(provenance, "commit", lambda: COMMIT)
    versions = provenance.origin({})["versions"]
    words = f"--data digits {FLAGS}"
    facts = {"arch": "tiny_resnet", "versions": versions, "flags": words}
    log = write_record(file, "plain", 1, 50, 60, **facts)
    assert_one_line_error(study(file), f"{log} and what would run now cannot be compared: code cccccccccc")
    spoil(log, code=COMMIT, versions={**versions, "numpy": "1.0"})
    assert_one_line_error(study(file), "numpy 1.0 in the one,", "or copy", "for a new study")
    assert not Played.started


def test_a_folder_of_another_run_is_not_gone_on_with(
    study: Run, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_pictures(monkeypatch)
    assert study(file).returncode == 0
    for path in file.with_suffix("").glob("se-*"):
        path.unlink()
    for path in file.with_suffix("").glob("plain-*"):
        path.unlink()
    write_study(file, {"plain": "", "se": "--gate se"}, seeds=(1,), flags=f"{FLAGS} --lr 0.5")
    result = study(file)
    assert result.returncode == 1
    text = f"the run has --lr (none), where row 'se' of {file} says 0.5: remove the folder, or give another"
    assert f"se, seed 1 failed: RUN checkpoints/study/small/se-1: {text} with --runs" in result.stderr
    assert study(file, "--runs", "others").returncode == 0
    assert (tmp_path / "others" / "se-1" / LAST).exists()


def test_data_elsewhere(study: Run, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_pictures(monkeypatch)
    assert_one_line_error(study(file, "--data", "/x/letters"), "says digits: give a folder of that name")
    assert study(file, "--data", "/there/digits").returncode == 0
    assert "/there/digits" in Played.started[0]


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "key": ({"recipe": '""'}, "a study has no 'recipe'; it has script, data,"),
    "near": ({"seed": "[1]"}, "a study has no 'seed'; did you mean seeds?"),
    "kind": ({"threads": '"1"'}, "threads must be a whole number, not '1'"),
    "seeds": ({"seeds": "[1, 1]"}, "seeds must be different whole numbers"),
    "data": ({"data": '""'}, "it does not say data"),
    "script": ({"script": '"train.py"'}, "script must be one of imagenet.py,"),
    "baseline": ({"baseline": '"x"'}, "baseline 'x' is none of its rows: plain, se"),
    "threads": ({"threads": "0"}, "threads must be at least 1"),
    "grid": ({"grid": '["gate"]'}, "grid 'gate': 'gate' must be KEY=VALUE,VALUE"),
    "twice": ({"grid": '["gate=se"]'}, "two rows are called 'se'"),
    "stages": ({"grid": '["gate=eca stages=3+4"]'}, "stages are digits without blanks"),
    "own flag": ({"flags": "--epochs 1 --manualSeed 3"}, "flags: leave out --manualSeed: every run"),
    "own in row": ({"rows": {"plain": "", "b": "-c x"}}, "row 'b': leave out -c"),
    "name": ({"rows": {"plain": "", "a/b": ""}}, "a row's name must be of letters"),
    "shell": ({"rows": {"plain": "'"}}, "row 'plain': no words of a shell"),
    "flag": ({"rows": {"plain": "", "b": "--gates se"}}, "row 'b': unrecognized arguments: --gates se"),
    "gate": ({"rows": {"plain": "", "b": "--gate sa"}}, "row 'b': argument --gate: unknown gate 'sa'"),
    "pair": ({"rows": {"plain": "", "b": "--gate-at pre"}}, "row 'b': --gate-at goes with --gate"),
    "place": (
        {"rows": {"plain": "", "b": "--gate se --gate-at 3x3"}},
        "row 'b': -a tiny_resnet does not take",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_files_that_are_refused(study: Run, file: Path, kind: str) -> None:
    """At the start, before anything runs."""
    changes, message = BAD[kind]
    write_study(file, **{"flags": FLAGS, **changes})
    assert_one_line_error(study(file), str(file), message)
    assert not Played.started


def test_what_is_no_toml(study: Run, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("data = ")
    assert_one_line_error(study(file), "it is no TOML")
    assert_one_line_error(study(file.with_name("none.toml")), "No such file")
    for name in ("tomllib", "tomli"):
        monkeypatch.setitem(sys.modules, name, None)
    assert_one_line_error(study(file), "Python 3.10 reads TOML with tomli only: pip install tomli")


def test_a_grid() -> None:
    rows = dict(expand("gate=se,sge at=standard,pre stages=4,34", ""))
    assert list(rows)[:3] == ["se_standard_4", "se_standard_34", "se_pre_4"]
    assert len(rows) == 8
    assert rows["sge_pre_34"] == "--gate sge --gate-at pre --gate-stages 3 4"
    knobs = dict(expand("arch=resnet18 gate=bam knob.reduction=8 knob.dilation=2,4 lr=0.1", ""))
    assert knobs["resnet18_bam_8_4_0.1"] == (
        "-a resnet18 --gate bam --lr 0.1 --gate-args reduction=8 dilation=4"
    )


def test_the_statistics() -> None:
    assert with_error([]) == "-"
    assert with_error([2], "+") == "+2.00"
    assert with_error([-1, -2, -3], "+") == "-2.00 ± 0.58"  # 1 / sqrt(3)
    row, baseline = {1: 61.0, 2: 63.5, 3: 62.0, 4: 99.0}, {3: 61.0, 2: 60.0, 1: 60.5}
    one = paired(row, baseline)
    assert one.values == [0.5, 3.5, 1.0]
    assert one.p == pytest.approx(ttest_rel([61.0, 63.5, 62.0], [60.5, 60.0, 61.0]).pvalue)
    assert Difference([1.0]).p is Difference([1.0, 1.0]).p is Difference([]).p is None


def test_which_difference_would_be_found() -> None:
    """By simulation: the test finds the difference that it is said to find in 80 % of the studies."""
    seeds, random = 4, np.random.default_rng(0)
    found = detectable(2.0, seeds)
    assert found is not None
    values = random.normal(found, 2.0, (20_000, seeds))
    t = values.mean(1) / values.std(1, ddof=1) * np.sqrt(seeds)
    assert np.mean(np.abs(t) > 3.182) == pytest.approx(0.8, abs=0.01)  # t of 3 degrees of freedom at 5 %
    deviations = [typical_deviation([Difference(list(row)) for row in random.normal(0, 2, (4001, 3))])]
    assert deviations == [pytest.approx(2, abs=0.1)]
    assert detectable(2.0, 1) is typical_deviation([Difference([1.0])]) is None


def test_latex() -> None:
    text = latex([("a", "b_1", "c"), ("x", "--gate se", "-1.20 ± 0.10")], ["on 1 %"])
    assert text == (
        "% on 1 %\n\\begin{tabular}{llr}\n\\toprule\na & b\\_1 & c \\\\\n\\midrule\n"
        "x & -{}-gate se & $-$1.20 $\\pm$ 0.10 \\\\\n\\bottomrule\n\\end{tabular}\n"
    )
    assert escaped("{\\}") == "\\{\\textbackslash{}\\}"


def crowded(tmp_path: Path, count: int) -> Path:
    """A study whose rows cost nearly the same, as gates in one network do."""
    rows = {"plain": "", **{f"a_row_of_number_{i}": "" for i in range(count)}}
    file = write_study(tmp_path / "crowded.toml", rows, flags="--epochs 1 --lr 0.2")
    for number, row in enumerate(rows):
        for seed in (1, 2):
            top1 = 70 + number % 5 / 10 + seed / 7
            write_record(file, row, seed, top1, parameters=11_180_000 + number * 100)
    return file


@pytest.mark.parametrize("count", [1, 3, 40])
def test_names_in_the_trade_off_do_not_overlap(tmp_path: Path, count: int) -> None:
    results = read_results(crowded(tmp_path, count))
    figure = draw(results, "parameters")
    figure.draw_without_rendering()
    (axes,) = figure.axes
    boxes = [text.get_window_extent() for text in axes.texts]
    assert [text.get_text() for text in axes.texts if text.get_weight() == "bold"] == ["plain"]
    assert {text.get_text() for text in axes.texts} == set(results.rows)
    # Of an annotation with a line the extent has the line; its own text is what must not overlap.
    boxes = [super(type(text), text).get_window_extent() for text in axes.texts]
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:number])
        assert figure.bbox.x1 >= box.x1
        assert box.y0 >= 0
    ends = [container.lines[0].get_xydata()[0].tolist() for container in axes.containers]
    assert ends == [[point.cost, point.top1] for point in points_of(results, "parameters")]


def test_a_picture_that_cannot_be_written(study: Run, file: Path) -> None:
    write_record(file, "plain", 1, 50, 60, arch="tiny_resnet", flags=f"--data digits {FLAGS}")
    picture = file.with_suffix("") / "curves.png"
    picture.mkdir()
    assert_one_line_error(study(file, "--tables"), f"error: cannot write {picture}: Is a directory")


def test_places_in_the_margin() -> None:
    assert apart([0.5, 0.5, 0.9], 0.1) == pytest.approx([0.5, 0.6, 0.9])
    assert apart([0.0, 0.99, 0.99], 0.2) == pytest.approx([0.0, 0.8, 1.0])


def test_the_step_ratio(study: Run, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_pictures(monkeypatch)
    threads = torch.get_num_threads()
    result = study(file, "--speed", "--rounds", 2, "--data", "/there/digits")
    torch.set_num_threads(threads)
    assert result.returncode == 0, result.stderr
    written = json.loads((file.with_suffix("") / "speed.json").read_text())
    assert list(written["rows"]) == ["plain", "se"]
    ratio = written["rows"]["se"]["ratio"]
    assert ratio[1] <= ratio[0] <= ratio[2]
    table = (file.with_suffix("") / "table.md").read_text()
    assert f"| se | --gate se | 0.31M | 0.001 | {ratio[0]:.2f} | 2 | 1 |" in table
    assert "Step ratio: the time of a step (train, batch 8, 32 px, fp32, contiguous; forward" in table
    assert len(points_of(read_results(file), "step")) == 2
    write_study(file, {"plain": "", "se": "--gate se --gate-at pre"}, flags=FLAGS)
    (file.with_suffix("") / "se-1.log.txt").unlink()
    for path in file.with_suffix("").glob("se-*"):
        path.unlink()
    message = "speed.json: row 'se' was measured with other flags: measure again with --speed"
    assert_one_line_error(study(file, "--tables"), message)


def test_the_speed_of_nothing(study: Run, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.study.train", lambda *_: 0)
    assert_one_line_error(study(file, "--speed"), "--speed needs a recorded run")
    assert study(file, "--tables").stdout == "no run of small is recorded yet\n"


def commit_all(folder: Path) -> None:
    person = ("-c", "user.name=a", "-c", "user.email=a@b")
    for words in (("init", "-q"), ("add", "."), (*person, "commit", "-q", "-m", "all")):
        subprocess.run(["git", *words], cwd=folder, check=True)


@pytest.mark.slow
def test_killed_ten_times(copy: Path, tmp_path: Path) -> None:
    """Real trainings of two rows with two seeds: the killed study has the tables of the whole one."""
    (copy / ".gitignore").open("a").write("\n*.toml\n/whole/\n/killed/\n/.venv\n")
    commit_all(copy)
    flags = "-a shufflenetv2_05x --img-size 32 --epochs 3 --train-batch 128 --lr 0.1 --warmup 0 --cos"
    rows = {"plain": "", "nesterov": "--nesterov"}
    files = [write_study(copy / f"{name}.toml", rows, flags=flags) for name in ("whole", "killed")]

    def start(file: Path) -> subprocess.Popen[bytes]:
        words = [sys.executable, "scripts/study.py", file.name, "--jobs", "2"]
        return subprocess.Popen(words, cwd=copy, start_new_session=True, stdout=subprocess.DEVNULL)

    began = time.monotonic()
    assert start(files[0]).wait(600) == 0
    duration, choose = time.monotonic() - began, random.Random(0)
    for _ in range(10):
        process = start(files[1])
        try:
            process.wait(choose.uniform(0.1, 1) * duration)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, choose.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)))
        process.wait(100)
    assert start(files[1]).wait(600) == 0
    one, other = (texts(file.with_suffix("")) for file in files)
    assert {name: text.replace(b"whole", b"killed") for name, text in one.items()} == other
    logs = [{path.name: path.read_text() for path in file.with_suffix("").glob("*.txt")} for file in files]
    assert logs[0] == logs[1]
    assert len(logs[0]) == 4


def test_the_repositorys_studies_can_be_read() -> None:
    for path in (REPOSITORY / "pretrain_log").glob("*.toml"):
        assert read_study(path).rows


def test_the_file_of_a_grid_that_is_no_text(file: Path) -> None:
    write_study(file, grid="[1]")
    with pytest.raises(UserError, match="a grid must be text"):
        read_study(file)
