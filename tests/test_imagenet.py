"""imagenet.py from outside, as a user types it."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run, assert_one_line_error
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tiny_net import TinyNet
from torch import nn

from models import create_model
from utils.common.errors import UserError
from utils.data.decoding import choose_decoder, read_image
from utils.data.splits import open_data
from utils.data.transforms import MEAN, STD, ValTransform
from utils.training.engine import Trainer
from utils.training.metrics import Sums
from utils.training.schedule import Schedule

SMALL = ("--img-size", 64, "--train-batch", 8, "--test-batch", 7, "--manualSeed", 7)


def rows(folder: Path) -> list[str]:
    return (folder / "log.txt").read_text().splitlines()


def read(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def events(folder: Path) -> dict[str, dict[int, float]]:
    """Scalars by tag and step, from the file format itself (length, checksum, message, checksum).

    As in TensorBoard what a later file begins with hides that step and those after it in earlier files.
    """
    found: dict[str, dict[int, float]] = {}
    for path in sorted(folder.glob("events.out.tfevents.*")):
        content, at = path.read_bytes(), 0
        while at < len(content):
            length = int.from_bytes(content[at : at + 8], "little")
            event = Event.FromString(content[at + 12 : at + 12 + length])
            if event.session_log.status == SessionLog.START:
                found = {tag: {s: v for s, v in of.items() if s < event.step} for tag, of in found.items()}
            for value in event.summary.value:
                assert event.step not in found.get(value.tag, {}) or not value.tag.startswith("step/")
                found.setdefault(value.tag, {})[event.step] = value.simple_value
            at += length + 16
    return found


def direct_accuracy(net: nn.Module, images: Path, size: int) -> tuple[float, float]:
    """Loss and top-1 of a plain forward pass over a validation folder, image by image."""
    samples = open_data(str(images), evaluate=True).val.samples
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    net.eval()
    losses, hits = [], 0
    with torch.no_grad():
        for path, label in samples:
            transform = ValTransform(size)
            pixels = transform(*read_image(path, choose_decoder("auto"), transform.box))
            x = (pixels.float() / 255 - mean) / std
            logits = net(x[None])
            losses.append(nn.functional.cross_entropy(logits, torch.tensor([label])).item())
            hits += int(logits.argmax() == label)
    return sum(losses) / len(losses), 100 * hits / len(samples)


def test_train_writes_log_events_and_checkpoints(run: Run, images: Path, tmp_path: Path) -> None:
    result = run("-a", "se_resnet18", "--data", images, "--epochs", 2, "-c", "out", *SMALL)
    assert result.returncode == 0, result.stderr
    assert "seed 7" in result.stdout
    assert "learning rate 0.1, times 0.1 at epochs [150, 225], by epoch\n" in result.stdout
    assert (
        "note: no epoch of --schedule 150 225 lies within --epochs 2: the rate never drops" in result.stdout
    )
    table = [line for line in result.stdout.splitlines() if re.match(r" *(epoch|\d/2) ", line)]
    assert len(table) == 3
    assert max(map(len, table)) <= 100
    assert len(set(map(len, table))) == 1
    assert re.search(r"2/2 +0\.100000", result.stdout)
    assert "11.27M parameters" in result.stdout
    assert not re.search(r"warning|error", result.stderr, re.IGNORECASE)

    out = tmp_path / "out"
    header, *lines = rows(out)
    assert header == (
        "Learning Rate\tTrain Loss\tValid Loss\tTrain Acc.\tValid Acc.\tTrain Acc.5\tValid Acc.5\t"
    )
    assert len(lines) == 2
    values = [float(text) for text in lines[1].rstrip("\t").split("\t")]
    assert values[0] == 0.1
    assert values[5:] == [100, 100]  # three classes
    written = events(out)
    assert written["top1/valid"][2] == pytest.approx(values[4], rel=1e-5)
    assert set(written["learning_rate"]) == {1, 2}

    saved, best = read(out / "checkpoint.pth.tar"), read(out / "model_best.pth.tar")
    assert saved["epoch"] == 2
    assert saved["seed"] == 7
    assert saved["classes"] == ["cat", "dog", "owl"]
    assert saved["acc"] == pytest.approx(values[4], abs=1e-5)
    assert best["acc"] == best["best_acc"] == saved["best_acc"]
    assert best["acc"] == pytest.approx(max(float(line.split("\t")[4]) for line in lines), abs=1e-5)
    assert list(saved["state_dict"]) == list(create_model("se_resnet18").state_dict())


def test_resume_continues_the_log_line_for_line(run: Run, call: Run, images: Path, tmp_path: Path) -> None:
    """Past a milestone, with other workers, with the stored seed, into the same and another folder."""
    flags = ("-a", "tiny", "--data", images, "--schedule", 1, 3, "--gamma", 0.5, *SMALL[:-2])
    assert run(*flags, "--epochs", 4, "-c", "whole", "-j", 0, "--manualSeed", 7).returncode == 0
    assert call(*flags, "--epochs", 2, "-c", "half", "-j", 0, "--manualSeed", 7).returncode == 0
    resume = ("--resume", "half/checkpoint.pth.tar", "--epochs", 4)
    assert run(*flags, *resume, "-c", "other", "-j", 2).returncode == 0
    assert call(*flags, *resume, "-j", 1).returncode == 0

    expected = rows(tmp_path / "whole")
    assert [line.split("\t")[0] for line in expected[1:]] == ["0.100000", "0.050000", "0.050000", "0.025000"]
    for name in ("other", "half"):
        assert rows(tmp_path / name) == expected
        assert sorted(events(tmp_path / name)["loss/train"])[-1] == 4
        ours, theirs = (read(tmp_path / folder / "checkpoint.pth.tar") for folder in (name, "whole"))
        for key, value in theirs["state_dict"].items():
            assert torch.equal(ours["state_dict"][key], value), key
        for index, state in theirs["optimizer"]["state"].items():
            assert torch.equal(ours["optimizer"]["state"][index]["momentum_buffer"], state["momentum_buffer"])


def older(folder: Path) -> None:
    """Give the events that are there a name that comes first: names hold the second of the start."""
    for path in folder.glob("events.out.tfevents.*"):
        path.rename(path.with_name("events.out.tfevents.0"))


POINTS = (*SMALL, "-a", "tiny", "--img-size", 32)


def test_points_of_the_curves_within_epochs(call: Run, images: Path, tmp_path: Path) -> None:
    """With every line of progress loss and rate, also from the middle of an epoch on."""
    rate = ("--epochs", 3, "--cos", "--per-iter", "--warmup", 1)
    flags = (*POINTS, "--data", images, *rate, "-c", "out", "-p", 1, "--save-every", 1, "--keep", 9)
    assert call(*flags, script="imagenet_fast.py").returncode == 0
    written = events(tmp_path / "out")
    assert sorted(written["step/loss"]) == sorted(written["step/learning_rate"]) == list(range(1, 10))
    schedule = Schedule(0.1 * 8 / 256, 3, warmup=1, cosine=True, per_iteration=True)
    for step, value in written["step/learning_rate"].items():
        assert value == pytest.approx(schedule(*divmod(step - 1, 3), 3), abs=1e-8)
    for epoch, line in enumerate(rows(tmp_path / "out")[1:]):
        losses = [written["step/loss"][3 * epoch + step] for step in (1, 2, 3)]
        assert sum(losses) / 3 == pytest.approx(float(line.split("\t")[1]), abs=1e-5)
        assert len(set(losses)) == 3

    for path in (tmp_path / "out").glob("*.pth.tar"):
        if path.name != "checkpoint-0001-0000016.pth.tar":
            path.unlink()
    older(tmp_path / "out")
    again = call(*flags, "--resume", "auto", script="imagenet_fast.py")
    assert "continuing out/checkpoint-0001-0000016.pth.tar" in again.stdout
    found = events(tmp_path / "out")
    del found["images_per_second"], written["images_per_second"]
    assert found == written


def test_points_of_steps_of_several_batches(
    call: Run, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One for each step at most; without the flag one every ten seconds."""
    steps = ("--train-batch", 2, "--accum-steps", 3, "--epochs", 2)
    flags = (*POINTS, "--data", images, *steps)
    for every in (1, 2):
        result = call(*flags, "-c", f"out{every}", "--print-freq", every, script="imagenet_fast.py")
        lines = re.findall(r"epoch 1/2: batch (\d+)/12", result.stdout)
        assert list(map(int, lines)) == [3, 6, 9, 12]  # at the ends of steps
        written = events(tmp_path / f"out{every}")
        assert sorted(written["step/loss"]) == list(range(1, 9))
    losses = [events(tmp_path / "out1")["step/loss"][step] for step in range(1, 5)]
    assert sum(losses) / 4 == pytest.approx(written["loss/train"][1], rel=1e-5)
    reads: list[None] = []
    values = Sums.values

    def spy(meter: Sums, *ranks: Any) -> list[float]:
        reads.append(None)
        return values(meter, *ranks)

    monkeypatch.setattr(Sums, "values", spy)
    assert call(*flags, "-c", "out", script="imagenet_fast.py").returncode == 0
    assert "step/loss" not in events(tmp_path / "out")
    assert len(reads) == 6  # the device is waited for before and after each epoch, after each evaluation


def test_no_points_beside_another_run(
    call: Run, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the first checkpoint of the run that replaces it."""
    flags = (*POINTS, "--data", images, "--epochs", 1, "-c", "out")
    assert call(*flags).returncode == 0
    older(tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    update: Callable[[Trainer, torch.Tensor], None] = Trainer._update
    updates: list[None] = []

    def stop(trainer: Trainer, bad: torch.Tensor) -> None:
        update(trainer, bad)
        updates.append(None)
        if len(updates) == 3:
            raise UserError("enough")

    monkeypatch.setattr(Trainer, "_update", stop)
    assert_one_line_error(call(*flags, "--overwrite", "-p", 1), "enough")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert call(*flags, "--overwrite", "-p", 1).returncode == 0
    assert sorted(events(tmp_path / "out")["step/loss"]) == [1, 2, 3]


def as_published(saved: dict[str, Any]) -> dict[str, Any]:
    """The published file format: ``module.`` keys, accuracies as 0-d tensors, nothing else."""
    return {
        "epoch": 100,
        "state_dict": {f"module.{key}": value for key, value in saved["state_dict"].items()},
        "acc": torch.tensor(77.5),
        "best_acc": torch.tensor(77.6),
        "optimizer": saved["optimizer"],
    }


def bare(saved: dict[str, Any]) -> dict[str, Any]:
    return saved["state_dict"]


def unchanged(saved: dict[str, Any]) -> dict[str, Any]:
    return saved


@pytest.mark.parametrize(
    ("arch", "form", "batch"),
    [
        ("sge_resnet18", as_published, 7),
        ("tiny", as_published, 1),
        ("tiny", as_published, 100),
        ("tiny", unchanged, 7),
        ("tiny", bare, 7),
    ],
)
def test_evaluation_equals_a_direct_forward_pass(
    call: Run, images: Path, tmp_path: Path, arch: str, form: Callable[[dict[str, Any]], Any], batch: int
) -> None:
    torch.manual_seed(0)
    net = TinyNet(num_classes=3) if arch == "tiny" else create_model(arch, num_classes=3)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    net(torch.randn(4, 3, 64, 64)).sum().backward()
    optimizer.step()
    saved = {"state_dict": net.state_dict(), "optimizer": optimizer.state_dict(), "arch": arch}
    (tmp_path / "download").mkdir()
    torch.save(form(saved), tmp_path / "download" / "net.pth.tar")

    flags = ("-a", arch, "--data", images, "--img-size", 32, "--test-batch", batch)
    result = call(*flags, "-e", "--resume", "download/net.pth.tar")
    assert result.returncode == 0, result.stderr
    found = re.search(r" Test Loss:  ([0-9.]+), Test Acc:  ([0-9.]+)", result.stdout)
    assert found
    loss, accuracy = direct_accuracy(net, images, 32)
    assert float(found[1]) == pytest.approx(loss, rel=1e-4)
    assert float(found[2]) == pytest.approx(accuracy, abs=0.006)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["download", "images"]  # -e writes nothing
    assert [path.name for path in (tmp_path / "download").iterdir()] == ["net.pth.tar"]


def test_resume_of_a_published_file(call: Run, images: Path, tmp_path: Path) -> None:
    """One optimizer group, a numpy learning rate, no seed, no log.txt beside it."""
    net = create_model("se_resnet18", num_classes=3)
    optimizer = torch.optim.SGD(net.parameters(), np.float64(0.1), momentum=0.9)
    net(torch.randn(4, 3, 64, 64)).sum().backward()
    optimizer.step()
    published = as_published({"state_dict": net.state_dict(), "optimizer": optimizer.state_dict()})
    torch.save({**published, "epoch": 1}, tmp_path / "published.pth.tar")
    flags = ("-a", "se_resnet18", "--data", images, "--resume", "published.pth.tar", "--epochs", 2)
    result = call(*flags, "-c", "out", *SMALL)
    assert result.returncode == 0, result.stderr
    assert "0 of 1 earlier epochs" in result.stdout
    assert len(rows(tmp_path / "out")) == 2
    assert read(tmp_path / "out" / "checkpoint.pth.tar")["best_acc"] == pytest.approx(77.6)


def test_a_batch_larger_than_the_training_set(call: Run, images: Path) -> None:
    result = call("-a", "tiny", "--data", images, "--epochs", 1, "--img-size", 64, "--train-batch", 4096)
    assert result.returncode == 0, result.stderr
    assert "24 training images in steps of 24 (too few for --train-batch 4096)" in result.stdout


def test_a_broken_training_image_is_replaced_and_named(call: Run, images: Path) -> None:
    (images / "train" / "dog" / "3.JPEG").write_bytes(b"\xff\xd8 no picture")
    flags = ("-a", "tiny", "--data", images, "--epochs", 1, "-j", 0, *SMALL)
    assert_one_line_error(call(*flags), "1 of 24 images cannot be decoded, more than --max-bad", "dog/3.JPEG")
    result = call(*flags, "--max-bad", 0.05)
    assert result.returncode == 0, result.stderr
    assert "dog/3.JPEG" in result.stdout
    assert "1 image could not be decoded: replaced by others" in result.stdout
