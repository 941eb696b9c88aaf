"""Stopped at any moment and resumed: the same weights, optimizer state and log.txt as if nothing had been."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY, Run, assert_one_line_error, places, write_classes
from forks import Job
from killer import fingerprint
from test_imagenet import events

import imagenet
from utils.common.distributed import ONE_PROCESS, Ranks
from utils.data.sampling import Position
from utils.runs.folder import RunFolder, kept, position_of, save
from utils.runs.resume import Resumed, differences
from utils.training import engine
from utils.training.precision import Precision

SMALL = ("-a", "tiny", "--img-size", 32, "--test-batch", 7, "--manualSeed", 7)
KILLER = REPOSITORY / "tests" / "killer.py"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Enough images for some steps per epoch."""
    return write_classes(tmp_path / "images", 16, size=(32, 36))


KILLED = {
    "imagenet": (1, ("--train-batch", 8, "--lr", 0.02)),
    "imagenet_fast": (
        2,
        ("--train-batch", 4, "--accum-steps", 2, "--mixup", "--cutmix", "--ema", 0.9, "--clip-grad", 1),
    ),
    "imagenet_mobile": (
        1,
        ("-a", "squeezenet1_1", "--train-batch", 8, "--cutout", "--nowd-conv", "--el2", "--nesterov"),
    ),  # with dropout
}


@pytest.mark.parametrize(
    ("script", "kills"),
    [
        ("imagenet_fast", 3),
        *(pytest.param(script, kills, marks=pytest.mark.slow) for script in KILLED for kills in (10, 30)),
    ],
)
def test_killed_at_any_moment(start: Callable[..., Job], script: str, pictures: Path, kills: int) -> None:
    """By SIGKILL; with 0, 1 and 4 workers by turns, and two steps whose loss is not finite."""
    processes, flags = KILLED[script]
    given = (*SMALL, "--data", "images", "--epochs", 2, "--save-every", 2, "--on-nan", "skip", *flags)
    options = (script, "--processes", processes, "--kills", kills)
    spoiled = ("--spoil", 0, 1, processes - 1, "--spoil", 1, 2, 0)
    result = start(KILLER, *options, *spoiled, "--rest", *given).complete()
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["kills"] == kills
    assert found["runs"] > 0
    assert found["differing"] == []
    assert found["left out"] == 2


@pytest.mark.slow
def test_killed_in_half_precision(start: Callable[..., Job], pictures: Path) -> None:
    given = (*SMALL, "--data", "images", "--epochs", 2, "--save-every", 1, "--train-batch", 16)
    half = ("--opt-level", "O1", "--amp-dtype", "bfloat16")
    result = start(KILLER, "imagenet_fast", "--kills", 2, "--rest", *given, *half).complete()
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["differing"] == []


@pytest.mark.parametrize(
    ("number", "code", "processes"),
    [
        pytest.param(signal.SIGTERM, 143, 1, marks=pytest.mark.slow),
        (signal.SIGINT, 130, 1),
        (signal.SIGUSR1, 0, 1),
        (signal.SIGTERM, 143, 2),
    ],
)
def test_a_signal_finishes_the_step_and_saves(
    start: Callable[..., Job],
    call: Run,
    launch: Run,
    pictures: Path,
    tmp_path: Path,
    number: signal.Signals,
    code: int,
    processes: int,
) -> None:
    """To every process of the job, data workers included, as a terminal and a scheduler send it."""
    slow = (*SMALL, "-a", "shufflenetv2_05x")  # a step takes longer than the signal
    flags = (*slow, "--data", "images", "--epochs", 1, "-p", 1, "-j", 1, "--train-batch", 4)
    script = REPOSITORY / "imagenet_fast.py"
    environments = places(processes) if processes > 1 else ({},)
    job = start(script, *flags, "-c", "out", environments=environments)
    job.wait_for("epoch 1/1: batch 2/")
    for process in job.processes:
        os.killpg(process.pid or 0, number)
    output, errors = job.communicate(timeout=60)
    codes = {process.exitcode for process in job.processes}
    assert codes in ({code}, {code, -signal.SIGTERM}), errors  # as by torchrun, the first end stops the rest
    assert errors == ""
    assert f"stopped by {number.name}, in epoch 1 after" in output
    assert "resume with --resume out/checkpoint.pth.tar" in output
    position = position_of(kept(tmp_path / "out")[0])
    assert position is not None
    assert position[0] == 0
    assert position[1] >= 8

    os.chdir(tmp_path)
    for arguments in (("--resume", "out/checkpoint.pth.tar", *flags), (*flags, "-c", "whole")):
        if processes > 1:
            assert launch("imagenet_fast.py", *arguments).returncode == 0
        else:
            assert call(*arguments, script="imagenet_fast.py").returncode == 0
    assert fingerprint("out") == fingerprint("whole")


def test_a_signal_in_an_evaluation(
    call: Run, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = (*SMALL, "--data", pictures, "--epochs", 2, "-j", 0, "--train-batch", 16)
    assert call(*flags, "-c", "whole").returncode == 0
    calls: list[None] = []
    forward = Precision.forward

    def spy(*args: Any) -> torch.Tensor:
        if not torch.is_grad_enabled():
            calls.append(None)
            if len(calls) == 2:
                os.kill(os.getpid(), signal.SIGUSR1)
        return forward(*args)

    with monkeypatch.context() as patch:
        patch.setattr(Precision, "forward", spy)
        stopped = call(*flags, "-c", "out", script="imagenet_fast.py")
    assert stopped.returncode == 0
    assert "stopped by SIGUSR1, in epoch 1 after 48 images" in stopped.stdout
    assert len(calls) == 2
    assert not (tmp_path / "out" / "model_best.pth.tar").exists()
    assert call(*flags, "-c", "fast", script="imagenet_fast.py").returncode == 0
    assert call(*flags, "-c", "out", "--resume", "auto", script="imagenet_fast.py").returncode == 0
    assert fingerprint("out") == fingerprint("fast")


def process_of(folder: Path, rank: int) -> int:
    """The id of the process that computes a rank of the job in ``folder``."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            environment, where = (path / "environ").read_bytes(), (path / "cwd").resolve()
        except OSError:
            continue
        if where == folder and f"\0RANK={rank}\0".encode() in environment:
            return int(path.name)
    raise AssertionError("no such process")


@pytest.mark.slow
def test_torchrun_restarts_a_killed_rank(
    start: Callable[..., Job], launch: Run, pictures: Path, tmp_path: Path
) -> None:
    net = ("-a", "squeezenet1_1", *SMALL[2:])  # torchrun's processes know no network of the tests
    flags = (*net, "--data", "images", "--epochs", 2, "-p", 1, "-j", 0, "--train-batch", 4)
    resume = ("--save-every", 1, "--resume", "auto", "-c")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max-restarts=1")
    job = start(*launcher, REPOSITORY / "imagenet_fast.py", *flags, *resume, "out")
    job.wait_for("epoch 1/2: batch 3/")
    os.kill(process_of(tmp_path, rank=1), signal.SIGKILL)
    output, errors = job.communicate(timeout=120)
    assert job.returncode == 0, errors
    assert re.search(r"continuing out/checkpoint-0000-\d+.pth.tar in epoch 1 after", output)
    assert launch("imagenet_fast.py", *flags, *resume, "whole").returncode == 0
    os.chdir(tmp_path)
    assert fingerprint("out") == fingerprint("whole")


@pytest.mark.slow
def test_torchrun_passes_sigusr1_on(
    start: Callable[..., Job], launch: Run, pictures: Path, tmp_path: Path
) -> None:
    """With the flag that docs/resume.md gives; what is resumed ends in the same bits."""
    page = (REPOSITORY / "docs" / "resume.md").read_text()
    (flag,) = re.findall(r"`(--signals-to-handle=\S+)`", page)
    net = ("-a", "squeezenet1_1", *SMALL[2:])
    flags = (*net, "--data", "images", "--epochs", 2, "-p", 1, "-j", 0, "--train-batch", 4)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", flag)
    job = start(*launcher, REPOSITORY / "imagenet_fast.py", *flags, "-c", "out")
    job.wait_for("epoch 1/2: batch 2/")
    children = [process_of(tmp_path, rank) for rank in range(2)]
    os.kill(job.pid, signal.SIGUSR1)
    output, errors = job.communicate(timeout=120)
    assert output.count("stopped by SIGUSR1, in epoch 1 after") == 1, errors
    assert "imagenet_fast.py: error" not in errors
    assert not [child for child in children if Path(f"/proc/{child}").exists()], "orphans"
    resume = (*flags, "-c")
    assert launch("imagenet_fast.py", *resume, "out", "--resume", "auto").returncode == 0
    assert launch("imagenet_fast.py", *resume, "whole").returncode == 0
    os.chdir(tmp_path)
    assert fingerprint("out") == fingerprint("whole")


def stop_at(call: Run, monkeypatch: pytest.MonkeyPatch, step: int, *flags: object) -> int:
    """Train until SIGTERM in a step, counted from 1; return how many steps were taken."""
    calls: list[None] = []
    update = engine.Trainer._update

    def spy(trainer: engine.Trainer, bad: torch.Tensor) -> None:
        update(trainer, bad)
        calls.append(None)
        if len(calls) == step:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(engine.Trainer, "_update", spy)
        assert call(*flags, script="imagenet_fast.py").returncode == 143
    return len(calls)


def test_another_number_of_processes_loses_no_image(
    call: Run, launch: Run, pictures: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    flags = (*SMALL, "--data", pictures, "--epochs", 1, "-j", 0, "--train-batch", 4)
    stop_at(call, monkeypatch, 3, *flags, "-c", "out")  # 12 images
    result = launch("imagenet_fast.py", *flags, "-c", "out", "--resume", "auto", "-p", 1)
    assert result.returncode == 0, result.stderr
    assert "note: that run had 1 process and steps of 4 images, this one 2 and 8" in result.stdout
    assert re.findall(r"epoch 1/1: batch (\d+)/(\d+)", result.stdout) == [(str(i), "5") for i in range(2, 6)]
    saved = torch.load(tmp_path / "out" / "checkpoint.pth.tar", weights_only=True)
    assert saved["epoch"] == 1
    assert saved["processes"] == 2
    assert len(list((tmp_path / "out").glob("events.*"))) == 1  # of rank 0
    assert sorted(events(tmp_path / "out")["step/loss"]) == [2, 3, 4, 5]


def test_resume_auto(call: Run, pictures: Path, tmp_path: Path) -> None:
    """Without a checkpoint, with a damaged one, with a finished run."""
    flags = (*SMALL, "--data", pictures, "-j", 0, "--train-batch", 16, "-c", "out", "--resume", "auto")
    assert_one_line_error(call(*flags, "-e"), "no checkpoint in out to evaluate")
    first = call(*flags, "--epochs", 3)
    assert first.returncode == 0
    assert "--resume auto: no checkpoint in out/: starting anew" in first.stdout
    os.chdir(tmp_path)
    expected = fingerprint("out")
    assert [position_of(path) for path in kept(Path("out"))] == [(3, 0), (2, 0)]

    Path("out/checkpoint.pth.tar").write_bytes(Path("out/checkpoint.pth.tar").read_bytes()[:-7])
    again = call(*flags, "--epochs", 3)
    assert again.returncode == 0, again.stderr
    assert "note: --resume auto: out/checkpoint-0003-0000000.pth.tar: damaged" in again.stdout
    assert "continuing out/checkpoint-0002-0000000.pth.tar after epoch 2" in again.stdout
    assert fingerprint("out") == expected
    finished = call(*flags, "--epochs", 3)
    assert finished.returncode == 0
    assert fingerprint("out") == expected
    for name in ("checkpoint.pth.tar", "model_best.pth.tar", *(path.name for path in kept(Path("out")))):
        Path("out", name).write_bytes(b"")
    assert_one_line_error(call(*flags, "--epochs", 3), "none of the 4 checkpoints in out can be read")
    assert_one_line_error(call(*flags, "--overwrite"), "--overwrite and --resume auto contradict")
    assert_one_line_error(call(*flags, "--fresh-optimizer"), "would drop the momentum at every start")


def test_auto_goes_with_what_a_first_start_is_from(call: Run, pictures: Path) -> None:
    flags = (*SMALL, "--data", pictures, "-j", 0, "--train-batch", 16)
    assert call(*flags, "--epochs", 1, "-c", "teacher").returncode == 0
    command = (*flags, "-c", "out", "--finetune", "teacher/checkpoint.pth.tar", "--resume", "auto")
    assert "fine-tuning teacher" in call(*command, "--epochs", 1).stdout
    second = call(*command, "--epochs", 2)
    assert second.returncode == 0
    assert "fine-tuning" not in second.stdout


def test_keep(call: Run, pictures: Path, tmp_path: Path) -> None:
    flags = (*SMALL, "--data", pictures, "-j", 0, "--train-batch", 16, "--epochs", 2, "--save-every", 1)
    for keep, expected in ((1, [(2, 0)]), (4, [(2, 0), (1, 48), (1, 32), (1, 16)])):
        assert call(*flags, "-c", f"keep{keep}", "--keep", keep).returncode == 0
        assert [position_of(path) for path in kept(tmp_path / f"keep{keep}")] == expected


def best(folder: str) -> tuple[int, float]:
    saved = torch.load(f"{folder}/model_best.pth.tar", weights_only=True)
    return saved["epoch"], saved["acc"]


def test_the_best_that_is_brought_along_is_of_before(call: Run, pictures: Path, tmp_path: Path) -> None:
    """Not of later epochs, and not of another network that lies beside the resumed file."""
    flags = (*SMALL, "--data", pictures, "-j", 0, "--train-batch", 16, "--keep", 9)
    assert call(*flags, "--epochs", 4, "-c", "out").returncode == 0
    os.chdir(tmp_path)
    for epoch in (1, 2, 3):
        path = f"out/checkpoint-{epoch:04d}-0000000.pth.tar"
        saved = torch.load(path, weights_only=True)
        assert call(*flags, "--epochs", epoch + 1, "-c", f"new{epoch}", "--resume", path).returncode == 0
        after = torch.load(f"new{epoch}/checkpoint.pth.tar", weights_only=True)
        if Path(f"new{epoch}/model_best.pth.tar").exists():
            assert best(f"new{epoch}") == (after["best_epoch"], after["best_acc"])
        else:
            assert after["best_epoch"] == saved["best_epoch"] != epoch
    Path("zoo").mkdir()
    Path("zoo/model_best.pth.tar").write_bytes(b"junk")
    torch.save({**saved, "best_epoch": 1}, "zoo/net.pth.tar")
    del saved["checksum"], saved["version"]
    torch.save({**saved, "best_epoch": 1, "epoch": 3}, "zoo/net.pth.tar")
    result = call(*flags, "--epochs", 4, "-c", "fresh", "--resume", "zoo/net.pth.tar")
    assert result.returncode == 0, result.stderr
    assert "note: zoo/model_best.pth.tar is not the best before zoo/net.pth.tar" in result.stdout


def test_a_replaced_run_does_not_come_back(
    call: Run, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the first checkpoint of the new run and the removal of the old one."""
    flags = (*SMALL, "--data", pictures, "-j", 0, "--train-batch", 16, "-c", "out")
    assert call(*flags, "--epochs", 3).returncode == 0
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "_replace_old_run", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            call(*flags, "--epochs", 2, "--overwrite", "--lr", 0.01)
    result = call(*flags, "--epochs", 2, "--resume", "auto", "--lr", 0.01)
    assert "continuing out/checkpoint-0001-0000000.pth.tar after epoch 1" in result.stdout
    assert call(*flags, "--epochs", 2, "--lr", 0.01, "-c", "whole").returncode == 0
    os.chdir(tmp_path)
    assert fingerprint("out") == fingerprint("whole")


def test_a_damaged_newest_takes_no_place(call: Run, pictures: Path, tmp_path: Path) -> None:
    flags = (*SMALL, "--data", pictures, "-j", 0, "--train-batch", 16, "-c", "out", "--resume", "auto")
    assert call(*flags, "--epochs", 3).returncode == 0
    newest, before = kept(tmp_path / "out")
    newest.write_bytes(b"damaged")
    assert call(*flags, "--epochs", 2, "--keep", 1).returncode == 0
    assert kept(tmp_path / "out") == [before]


def test_another_process_that_went_on_meanwhile(
    call: Run, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = (*SMALL, "--data", pictures, "-j", 0, "--train-batch", 16, "-c", "out", "--resume", "auto")
    assert call(*flags, "--epochs", 1).returncode == 0
    build = imagenet.build_model

    def meanwhile(*args: Any) -> Any:
        built = build(*args)
        monkeypatch.setattr(imagenet, "build_model", build)
        saved = torch.load("out/checkpoint.pth.tar", weights_only=True)
        save({**saved, "epoch": 2}, Path("out"))
        return built

    monkeypatch.setattr(imagenet, "build_model", meanwhile)
    assert_one_line_error(call(*flags, "--epochs", 3), "another process has trained into it meanwhile")


def test_a_batch_larger_than_what_is_left_of_the_epoch(
    call: Run, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = (*SMALL, "--data", pictures, "-j", 0, "-c", "out", "--epochs", 2, "--per-iter")
    stop_at(call, monkeypatch, 2, *flags, "--train-batch", 4)
    result = call(*flags, "--train-batch", 48, "--resume", "auto", script="imagenet_fast.py")
    assert result.returncode == 0, result.stderr
    assert "every image that was left is read, but for those at the end that fill no step" in result.stdout


def test_what_differs_is_noted() -> None:
    """Each by itself; flags by the names that they are typed by."""
    saved: dict[str, Any] = {"seed": 1, "training_images": 10, "processes": 1, "images_per_step": 4}
    saved |= {"versions": {"torch": "2"}, "arguments": {"wdall": False, "schedule": [1, 2]}}
    reached = Position(1, 4)
    assert list(differences(saved, saved, reached)) == []
    for change, note in (
        ({"seed": 2}, "that run's seed is 1"),
        ({"training_images": 11}, "the number of training images has changed"),
        ({"processes": 2, "images_per_step": 8}, "1 process and steps of 4 images, this one 2 and 8"),
        ({"versions": {"torch": "3"}}, "other versions: {'torch': '2'}"),
        ({"arguments": {"wdall": True, "schedule": [3]}}, "--schedule 1 2 -> 3, --wd-all False -> True"),
    ):
        (found,) = differences(saved, {**saved, **change}, reached)
        assert note in found


def test_a_first_epoch_beside_a_resumed_file_is_noted(call: Run, pictures: Path) -> None:
    flags = (*SMALL, "--data", pictures, "--train-batch", 16, "-c", "out")
    assert call(*flags, "--epochs", 1).returncode == 0
    result = call(*flags, "--epochs", 3, "--start-epoch", 2, "--resume", "auto")
    assert "note: --start-epoch 2 is not used" in result.stdout
    assert result.returncode == 0


def test_sums_of_fewer_processes() -> None:
    saved = {"epoch": 1, "images": 8, "sums": [[1.0, 2.0, 3.0, 4.0], [], [1.0, 1.0, 1.0, 1.0]]}
    resumed = Resumed(Path(), "x", saved)
    assert resumed.position(0, 4, ONE_PROCESS).sums == (2.0, 3.0, 4.0, 5.0)
    assert resumed.position(0, 4, Ranks(1, 2)).sums == ()


def test_what_a_checkpoint_says_of_its_origin(call: Run, pictures: Path, tmp_path: Path) -> None:
    flags = (*SMALL, "--data", pictures, "-j", 0, "--train-batch", 16, "-c", "out", "--lr", 0.3)
    assert call(*flags, "--epochs", 1, script="imagenet_fast.py").returncode == 0
    saved = torch.load(tmp_path / "out" / "checkpoint.pth.tar", weights_only=True)
    assert saved["version"] == 1
    assert saved["command"].startswith("imagenet_fast.py -a tiny --img-size 32")
    assert saved["arguments"]["lr"] == 0.3
    assert saved["versions"]["torch"] == torch.__version__
    assert saved["seed"] == 7
    assert saved["classes"] == ["cat", "dog", "owl"]
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True)
    if head.returncode == 0:
        assert saved["commit"].rstrip("+") == head.stdout.strip()
    changed = (*flags[:-1], 0.2, "--mixup", "--resume", "auto", "--epochs", 2)
    result = call(*changed, script="imagenet_fast.py")

    assert (
        "note: other than in that run: --epochs 1 -> 2, --lr 0.3 -> 0.2, --mixup False -> True"
        in result.stdout
    )


def test_a_second_interrupt_ends_at_once(start: Callable[..., Job], tmp_path: Path) -> None:
    """Two seconds or more after the first: a step may take long, or hang."""
    (tmp_path / "waits.py").write_text(
        "import time; from utils.common.signals import Signals\n"
        "with Signals():\n"
        "    print('ready', flush=True)\n"
        "    while True: time.sleep(0.01)"
    )
    job = start(tmp_path / "waits.py")
    job.wait_for("ready")
    for _ in range(2):
        os.kill(job.pid, signal.SIGINT)
        time.sleep(0.2)
    assert job.running
    time.sleep(2.2)
    os.kill(job.pid, signal.SIGINT)
    job.communicate(timeout=10)
    assert job.returncode != 0
