"""What goes wrong in long runs: files, disks, numbers, processes. Nothing is lost, one line says what."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, Run, assert_one_line_error, write_images, write_no_files
from forks import Job
from PIL import Image
from small_training import small_net
from tensorboardX.event_file_writer import EventsWriter
from torch import Tensor, nn

from detection.loading import collect
from utils.common.distributed import ONE_PROCESS, Ranks
from utils.common.errors import UserError
from utils.data.loading import Reading, Sample, stack, training_loader
from utils.data.sampling import Position
from utils.data.splits import open_data
from utils.data.transforms import TrainTransform
from utils.networks.checkpoint import load
from utils.runs.folder import kept, position_of
from utils.runs.run import BAD_BATCH
from utils.training import engine
from utils.training.classification import Classification
from utils.training.ema import create_average
from utils.training.engine import Trainer
from utils.training.schedule import Schedule

SMALL = ("-a", "tiny", "--img-size", 32, "--manualSeed", 7, "-j", 0, "--train-batch", 8)


def awkward_files(folder: Path) -> None:
    """Files that cannot be decoded."""
    Path(folder / "empty.JPEG").touch()
    (folder / "text.JPEG").write_text("no picture")
    (folder / "link.JPEG").symlink_to(folder / "nowhere.JPEG")
    (folder / "folder.JPEG").mkdir()
    whole = (folder / "0.JPEG").read_bytes()
    (folder / "cut.JPEG").write_bytes(whole[: len(whole) // 2])
    Path(os.fsdecode(bytes(folder) + b"/caf\xe9.JPEG")).write_bytes(b"")
    Image.new("1", (14_000, 14_000)).save(folder / "gigapixel.png")
    write_no_files(folder)
    if os.geteuid():
        (folder / "forbidden.JPEG").write_bytes(whole)
        (folder / "forbidden.JPEG").chmod(0)


def odd_files(folder: Path) -> None:
    """Files that can."""
    Image.new("CMYK", (40, 40)).save(folder / "cmyk.JPEG")
    Image.fromarray(np.zeros((40, 40), dtype=np.uint16)).save(folder / "sixteen.png")
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    frames[0].save(folder / "animated.webp", save_all=True, append_images=frames[1:])
    frames[0].save(Path(os.fsdecode(bytes(folder) + b"/d\xe9j\xe0 vu.png")))


def test_awkward_files_are_replaced_counted_and_named(run: Run, images: Path, tmp_path: Path) -> None:
    """In training and evaluation, in a class folder that is no UTF-8, in a script of its own."""
    (images / "train" / "dog").rename(os.fsdecode(bytes(images) + b"/train/d\xf6g"))
    (images / "valf" / "dog").rename(os.fsdecode(bytes(images) + b"/valf/d\xf6g"))
    for folder in (images / "train" / "cat", images / "valf" / "cat"):
        awkward_files(folder)
        odd_files(folder)
    flags = (*SMALL, "--data", images, "--epochs", 2, "-c", "out")
    result = run(*flags, "--max-bad", 0.3, script="imagenet_fast.py")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    bad = 10 if os.geteuid() else 9
    assert result.stdout.count("note: cannot decode") == 2 * bad
    assert result.stdout.count(f"note: {bad} images could not be decoded: left out") == 2
    assert "images could not be decoded: replaced by others" in result.stdout
    assert "caf\\udce9.JPEG" in result.stdout
    evaluated = run(*flags[:-4], "-e", "--resume", "out/checkpoint.pth.tar", "--max-bad", 0.3)
    assert evaluated.returncode == 0, evaluated.stderr


def test_too_many_bad_files(call: Run, images: Path) -> None:
    for i in range(3):
        (images / "train" / "cat" / f"{i}.JPEG").write_bytes(b"")
    flags = (*SMALL, "--data", images, "--epochs", 1)
    assert_one_line_error(
        call(*flags), "of 24 images cannot be decoded, more than --max-bad", "check_data.py"
    )
    assert_one_line_error(call(*flags, "--max-bad", 0.12), "3 of 24 images cannot be decoded")
    assert call(*flags, "--max-bad", 0.125).returncode == 0


def test_a_full_disk(call: Run, images: Path, tmp_path: Path) -> None:
    """Files may not grow beyond a limit, which the second checkpoint meets."""
    flags = (*SMALL, "--data", images, "--epochs", 2, "-c", "out")
    assert call(*flags, "--epochs", 1).returncode == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        result = call(*flags, "--resume", "auto")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_one_line_error(result, "cannot write to out (File too large)", "--resume auto")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert call(*flags, "--resume", "auto").returncode == 0


@pytest.mark.parametrize("broken", ["__init__", "write_event", "flush"])
def test_a_disk_that_takes_no_events(
    call: Run, images: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """TensorBoard's are not worth a run."""

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(EventsWriter, broken, fail)
    result = call(*SMALL, "--data", images, "--epochs", 3, "-c", "out")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("note: no more events for TensorBoard: No space left on device") == 1


def test_a_full_disk_at_the_start(
    call: Run, images: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    flags = (*SMALL, "--data", images, "-c", "out", "--resume", "auto")
    assert call(*flags, "--epochs", 1).returncode == 0

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("utils.runs.folder.write_log", fail)
    assert_one_line_error(call(*flags, "--epochs", 2), "cannot write to out (No space left on device)")


@pytest.mark.parametrize(
    ("message", "fragments"),
    [
        (
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes.",
            ("too little memory", "--train-batch"),
        ),
        (
            "some_backward_cuda does not have a deterministic implementation, but you set 'torch.use_...'",
            ("--deterministic: on this device torch has no such some_backward_cuda; leave the flag out",),
        ),
        (
            "DataLoader worker (pid 12) is killed by signal: Bus error. It is possible that dataloader's "
            "workers are out of shared memory. Please try to raise your shared memory limit.",
            ("the shared memory is full", "fewer --workers", "docker run --shm-size"),
        ),
    ],
)
def test_what_torch_cannot_do(
    call: Run, images: Path, monkeypatch: pytest.MonkeyPatch, message: str, fragments: tuple[str, ...]
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError(message)

    monkeypatch.setattr(Trainer, "epoch", fail)
    assert_one_line_error(call(*SMALL, "--data", images), *fragments)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            RuntimeError,
            "unable to allocate shared memory(shm) for file </torch_1_2_3>: No space left on device (28)",
        ),
        (RuntimeError, "unable to mmap 12582912 bytes from file </torch_1_2_3>: Cannot allocate memory (12)"),
        (OSError, "[Errno 28] No space left on device"),
    ],
)
def test_a_full_shared_memory(
    call: Run, images: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception], message: str
) -> None:
    """In a data worker, where images lie in it."""

    def fail(*_: object, **__: object) -> None:
        raise kind(message)

    monkeypatch.setattr(torch.UntypedStorage, "_new_shared", fail)
    result = call(*SMALL, "--data", images, "-j", 1)
    assert_one_line_error(result, "the shared memory is full", "fewer --workers", "docker run --shm-size")


def test_no_shared_memory_for_the_locks_of_data_workers(
    call: Run, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = os.statvfs_result((4096, 4096, 100, 5, 5, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: room)
    assert_one_line_error(call(*SMALL, "--data", images, "-j", 1), "the shared memory is full", "--workers")


def test_what_a_data_worker_hands_over_lies_in_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it, before the queue moves it there in a thread: if that fails the run waits for ever."""
    target: Any = {"boxes": torch.zeros(2, 4), "labels": torch.ones(2)}
    samples = [Sample(torch.zeros(3, 8, 8, dtype=torch.uint8), 1, ())]
    pictured = [Sample(torch.zeros(3, 8, 9, dtype=torch.uint8), target, ())]
    assert not stack(samples, 8).labels.is_shared()
    for module in ("utils.data.loading", "torch.utils.data"):
        monkeypatch.setattr(f"{module}.get_worker_info", lambda: "a worker")
    images, labels, _ = stack(samples, 8)
    assert images.is_shared()
    assert labels.is_shared()
    (image,), (objects,), _ = collect(pictured)
    assert all(tensor.is_shared() for tensor in (image, objects["boxes"], objects["labels"]))
    assert torch.equal(objects["labels"], torch.ones(2))


@pytest.mark.parametrize("script", ["imagenet.py", "imagenet_fast.py"])
def test_batch_norm_of_one_value(call: Run, images: Path, script: str) -> None:
    """The last map of one image is a single position."""
    flags = ("-a", "resnet18", "--img-size", 32, "--data", images, "--train-batch", 1)
    result = call(*flags, script=script)
    assert_one_line_error(result, "only one value per channel", "--train-batch of at least 2", "--img-size")


def test_a_killed_data_worker(start: Callable[..., Job], images: Path, tmp_path: Path) -> None:
    flags = (*SMALL, "--data", images, "--epochs", 500, "-c", "out", "-j", 1)
    job = start(REPOSITORY / "imagenet.py", *flags)
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children")
    while not (tmp_path / "out" / "log.txt").exists() or not children.read_text().split():
        assert job.running
        time.sleep(0.02)
    os.kill(int(children.read_text().split()[0]), signal.SIGKILL)
    _, errors = job.communicate(timeout=60)
    assert job.returncode == 2
    assert len(errors.strip().splitlines()) == 1
    assert "a process that decodes images was killed" in errors
    assert load(str(tmp_path / "out" / "checkpoint.pth.tar"))["epoch"] >= 1


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["worker", "run"])
def test_no_temporary_folder_is_left(images: Path, tmp_path: Path, victim: str) -> None:
    """By a new interpreter: forks of the tests' server share its folder."""
    (tmp_path / "temporary").mkdir()
    net = ("-a", "mobilenetv1", "--img-size", 32, "--train-batch", 8)
    flags = (*net, "--data", images, "--epochs", 500, "-c", "out", "-j", 2)
    command = [sys.executable, REPOSITORY / "imagenet.py", *flags]
    environment = {**os.environ, "TMPDIR": str(tmp_path / "temporary")}
    with (tmp_path / "said").open("w") as said:
        job = subprocess.Popen(
            list(map(str, command)), cwd=tmp_path, env=environment, stdout=said, stderr=said
        )
    folders, children = tmp_path / "temporary", Path(f"/proc/{job.pid}/task/{job.pid}/children")
    while not (tmp_path / "out" / "log.txt").exists() or not list(folders.glob("pymp-*")):
        assert job.poll() is None, (tmp_path / "said").read_text()
        time.sleep(0.1)
    workers = [int(child) for child in children.read_text().split()]
    os.kill(workers[0] if victim == "worker" else job.pid, signal.SIGKILL)
    job.wait(60)
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        time.sleep(0.1)
    assert not list(folders.glob("pymp-*"))
    assert "FileNotFoundError" not in (tmp_path / "said").read_text()  # by one that removes what another uses


def test_a_loss_that_is_not_finite_stops_the_run(call: Run, images: Path, tmp_path: Path) -> None:
    """The state before the step is saved, and what is resumed from it meets the same step."""
    flags = (*SMALL, "--data", images, "--epochs", 1, "-c", "out", "--lr", 1e36)
    result = call(*flags)
    assert_one_line_error(
        result, "the loss is not finite in epoch 1, step 2 of 3, at learning rate 1e+36, on 8 images", "--lr"
    )
    assert position_of(kept(tmp_path / "out")[0]) == (0, 8)
    names = (tmp_path / "out" / BAD_BATCH).read_text().splitlines()
    assert len(names) == 8
    assert all(Path(name).is_file() for name in names)
    assert_one_line_error(call(*flags, "--resume", "auto"), "epoch 1, step 2 of 3")


def test_a_loss_that_never_comes_right(call: Run, images: Path) -> None:
    flags = (*SMALL, "--data", images, "--epochs", 9, "-c", "out", "--lr", 1e36, "--on-nan", "skip")
    result = call(*flags)
    assert_one_line_error(result, "the loss is not finite in epoch")
    assert result.stdout.count("the step is left out") == engine.SKIPPED_IN_A_ROW


def trained(
    images: Path,
    bad: int | None,
    steps: int,
    skip: bool = True,
    ranks: Ranks = ONE_PROCESS,
    ahead: int = 1,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state after some steps of a net with batch norm, one of them with a loss that is not finite."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), small_net()).to(ranks.device)
    split = open_data(str(images), evaluate=False).train
    assert split is not None
    loader = training_loader(split, TrainTransform(24), 4, 1, Reading(max_bad=0.01), ranks, parts=2)
    calls: list[None] = []

    def criterion(logits: Tensor, labels: Tensor) -> Tensor:
        calls.append(None)
        loss = nn.functional.cross_entropy(logits, labels)
        return loss * float("nan") if len(calls) == bad else loss

    optimizer = torch.optim.SGD(net.named_parameters(), 0.1, momentum=0.9, fused=True)
    average = create_average(net, 0.9, {})
    assert average is not None
    task = Classification(criterion)
    trainer = Trainer(net, optimizer, task, Schedule(0.1, 2), 1, ranks, accumulate=2, average=average)
    trainer.skip_nan, trainer.ahead = skip, ahead
    for step in trainer.epoch(loader, Position(0)):
        if step.error:
            raise UserError(f"at {step.position.images} images: {step.error}")
        if step.number == steps:
            break
    assert step.number == steps
    return {**net.state_dict(), **average.state_dict()}, optimizer.state_dict()["state"]


@pytest.mark.parametrize("ahead", [1, 16])
@pytest.mark.parametrize("bad", [3, 4])
def test_a_skipped_step_leaves_no_trace(images: Path, bad: int, ahead: int) -> None:
    """In either part of the second step, whether or not the host begins the third before it knows."""
    assert_no_trace(images, bad, ahead=ahead)


def assert_no_trace(images: Path, bad: int, ranks: Ranks = ONE_PROCESS, ahead: int = 1) -> None:
    """Of a batch of a skipped step in weights, statistics of batch norm, momentum, average."""
    expected, momentum = trained(images, None, 1, ranks=ranks, ahead=ahead)
    found, found_momentum = trained(images, bad, 2, ranks=ranks, ahead=ahead)
    for key, value in expected.items():
        assert torch.equal(found[key], value), key
    for index, state in momentum.items():
        assert torch.equal(found_momentum[index]["momentum_buffer"], state["momentum_buffer"])
    after, _ = trained(images, bad, 3, ranks=ranks, ahead=ahead)
    assert any(not torch.equal(after[key], value) for key, value in expected.items())


@pytest.mark.parametrize("ahead", [1, 16])
def test_without_skip_the_trainer_gives_up_before_the_step(images: Path, ahead: int) -> None:
    with pytest.raises(UserError, match="at 8 images: the loss is not finite in epoch 1, step 2 of 3"):
        trained(images, 3, 2, skip=False, ahead=ahead)


def test_weights_that_are_not_finite_end_a_run_that_skips(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update: Callable[[Trainer, Tensor], None] = Trainer._update

    def spoil(trainer: Trainer, bad: Tensor) -> None:
        update(trainer, bad)
        with torch.no_grad():
            trainer.optimizer.param_groups[0]["params"][0].fill_(float("nan"))

    monkeypatch.setattr(Trainer, "_update", spoil)
    with pytest.raises(UserError, match=r"at 8 images: .* the weights are not finite either"):
        trained(images, None, 3)


def test_weights_that_are_not_finite_are_never_saved(
    call: Run, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = (*SMALL, "--data", images, "-c", "out")
    assert call(*flags, "--epochs", 1).returncode == 0
    before = (tmp_path / "out" / "checkpoint.pth.tar").read_bytes()
    update: Callable[[Trainer, Tensor], None] = Trainer._update

    def spoil(trainer: Trainer, bad: Tensor) -> None:
        update(trainer, bad)
        with torch.no_grad():
            trainer.optimizer.param_groups[0]["params"][0].view(-1)[0] = float("inf")

    monkeypatch.setattr(Trainer, "_update", spoil)
    result = call(*flags, "--epochs", 2, "--resume", "auto", "--save-every", 1)
    assert_one_line_error(result, "is not finite any more: not saved", "lower --lr")
    assert (tmp_path / "out" / "checkpoint.pth.tar").read_bytes() == before


def test_leftovers_of_a_killed_process_are_cleared_away(call: Run, images: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".checkpoint-0001-0000000.pth.tar.unfinished-abcdefgh").write_bytes(b"half")
    (tmp_path / "out" / ".git-credentials").touch()  # as in -c .
    (tmp_path / "out" / "events.out.tfevents.1.of-another-program").touch()
    flags = (*SMALL, "--data", images, "--epochs", 1, "-c", "out")
    assert call(*flags).returncode == 0
    assert {path.name for path in (tmp_path / "out").glob(".*")} == {".lock", ".git-credentials"}
    assert (tmp_path / "out" / "events.out.tfevents.1.of-another-program").exists()


def test_a_mistake_of_the_optimizer_state_is_said(call: Run, images: Path, tmp_path: Path) -> None:
    """Published momentum goes by the published order; where it cannot, --fresh-optimizer is named."""
    flags = (*SMALL, "--data", images, "--resume", "out/checkpoint.pth.tar", "-c", "new")
    assert call(*SMALL, "--data", images, "--epochs", 1, "-c", "out").returncode == 0
    saved = torch.load(tmp_path / "out" / "checkpoint.pth.tar", weights_only=True)
    published = {key: saved[key] for key in ("epoch", "state_dict", "acc", "best_acc", "optimizer")}
    for group in published["optimizer"]["param_groups"]:
        del group["param_names"]
    torch.save(published, tmp_path / "out" / "checkpoint.pth.tar")
    assert call(*flags, "--epochs", 2).returncode == 0  # one group
    assert call(*flags, "--epochs", 2, "--overwrite", script="imagenet_fast.py").returncode == 0  # into two
    published["optimizer"]["param_groups"][0]["params"].pop()
    torch.save(published, tmp_path / "out" / "checkpoint.pth.tar")
    result = call(*flags, "--epochs", 2, "--overwrite")
    assert_one_line_error(result, "it cannot be told to which of the", "--fresh-optimizer")
    assert call(*flags, "--epochs", 2, "--overwrite", "--fresh-optimizer").returncode == 0


def test_unreadable_data(call: Run, tmp_path: Path) -> None:
    write_images(tmp_path / "images" / "train" / "a", 2)
    (tmp_path / "images" / "val").symlink_to(tmp_path / "images" / "val")
    assert_one_line_error(call(*SMALL, "--data", "images"), "--data images")
