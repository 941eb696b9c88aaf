"""Saving and loading below the scripts: what a crash leaves, what a file may hold."""

import errno
import io
import os
import re
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import torch

from models import create_model, list_models
from utils.common.errors import UserError
from utils.networks import checkpoint
from utils.runs import folder as run_folder
from utils.runs.folder import BEST, LAST, newest


def state(epoch: int) -> dict[str, Any]:
    return {"epoch": epoch, "images": 0, "state_dict": {"w": torch.full((3,), float(epoch))}}


def save(epoch: int, folder: Path, is_best: bool, keep: int = 2) -> None:
    run_folder.publish(run_folder.save(state(epoch), folder), is_best, keep)


def test_best_is_kept_when_later_epochs_are_worse(tmp_path: Path) -> None:
    for epoch in (1, 2, 3):
        save(epoch, tmp_path, is_best=epoch == 1)
    assert checkpoint.load(str(tmp_path / LAST))["epoch"] == 3
    assert checkpoint.load(str(tmp_path / BEST))["epoch"] == 1
    kept = ["checkpoint-0002-0000000.pth.tar", "checkpoint-0003-0000000.pth.tar"]
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [*kept, LAST, BEST]


class FailingFile:
    """A file on a disk that is full after so many bytes."""

    def __init__(self, file: IO[bytes], room: int) -> None:
        self.file, self.room = file, room

    def write(self, data: Any) -> int:
        if len(memoryview(data).cast("B")) > self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.room -= len(memoryview(data).cast("B"))
        return self.file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> "FailingFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


def size_of_a_checkpoint() -> int:
    buffer = io.BytesIO()
    torch.save(state(1), buffer)
    return len(buffer.getvalue())


@pytest.mark.parametrize(
    "fault",
    ["open", "fsync", "replace", "link", *(f"write {share}" for share in (0, 1, 10, 50, 90, 99))],
)
def test_a_failure_while_saving_keeps_the_previous(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """At every step of a save, and with a disk that is full after a share of the file."""
    save(1, tmp_path, is_best=True)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    call, _, share = fault.partition(" ")
    if call == "write":
        room, real = size_of_a_checkpoint() * int(share) // 100, Path.open

        def limited(path: Path, mode: str) -> Any:
            return FailingFile(real(path, "xb"), room) if mode == "xb" else real(path, mode)

        monkeypatch.setattr(Path, "open", limited)
    else:
        monkeypatch.setattr(Path if call == "open" else os, call, fail)
    if fault == "link":  # a file system without hard links gets a copy
        save(2, tmp_path, is_best=True)
    else:
        with pytest.raises(OSError, match="No space left"):
            save(2, tmp_path, is_best=True)
    monkeypatch.undo()
    expected = 2 if fault == "link" else 1
    for name in (LAST, BEST):
        assert checkpoint.load(str(tmp_path / name))["epoch"] == expected
    after = {path.name for path in tmp_path.iterdir()}
    assert after == set(before) | ({"checkpoint-0002-0000000.pth.tar"} if fault == "link" else set())


def test_the_newest_that_can_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert newest(tmp_path) is None
    for epoch in (1, 2, 3):
        save(epoch, tmp_path, is_best=epoch == 1, keep=2)
    last, before = sorted(tmp_path.glob("checkpoint-*"), reverse=True)
    assert newest(tmp_path) == str(last)
    last.write_bytes(last.read_bytes()[:-100])  # and checkpoint.pth.tar, the same file
    assert newest(tmp_path) == str(before)
    assert f"note: --resume auto: {last}: damaged" in capsys.readouterr().out
    before.unlink()
    assert newest(tmp_path) == str(tmp_path / BEST)
    (tmp_path / BEST).write_bytes(b"")
    with pytest.raises(UserError, match="none of the 3 checkpoints"):
        newest(tmp_path)


def test_order_of_kept_checkpoints_is_by_position(tmp_path: Path) -> None:
    positions = [(9, 0), (10, 0), (10, 64), (10, 128), (10, 12_345_678), (11, 0)]
    for epoch, images in positions:
        run_folder.save({**state(epoch), "images": images}, tmp_path)
    (tmp_path / "checkpoint-mine.pth.tar").touch()
    assert [run_folder.position_of(path) for path in run_folder.kept(tmp_path)] == positions[::-1]


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("rate", [np.float64(0.1), np.float32(0.1)])
def test_numpy_scalars_of_published_files_load(tmp_path: Path, zipped: bool, rate: np.floating[Any]) -> None:
    path = tmp_path / "old.pth.tar"
    content = {**state(1), "optimizer": {"state": {}, "param_groups": [{"lr": rate, "params": []}]}}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()
    if not zipped:  # numpy 1 had this module under another name, of another length: patch the plain pickle
        path.write_bytes(data.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
    loaded = checkpoint.load(str(path))
    assert loaded["optimizer"]["param_groups"][0]["lr"] == pytest.approx(0.1)


def test_wrapper_parts_of_keys_are_removed(tmp_path: Path) -> None:
    keys = ("module.w", "_orig_mod.x", "module._orig_mod.y", "features.module.0.z", "plain.v")
    torch.save({"state_dict": {key: torch.zeros(1) for key in keys}}, tmp_path / "x.pth")
    assert list(checkpoint.load(str(tmp_path / "x.pth"))["state_dict"]) == [
        "w",
        "x",
        "y",
        "features.0.z",
        "plain.v",
    ]


def test_old_names_of_densenet(tmp_path: Path) -> None:
    """torchvision before 0.3 had a point in the names."""
    state = create_model("densenet121", num_classes=3).state_dict()
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", key): state[key] for key in state}
    assert set(old) != set(state)
    torch.save({f"module.{key}": value for key, value in old.items()}, tmp_path / "x.pth")
    assert list(checkpoint.load(str(tmp_path / "x.pth"))["state_dict"]) == list(state)


def test_no_registered_net_has_a_wrapper_part_in_its_keys() -> None:
    for name in (*list_models("*resnet50*"), "alexnet", "vgg11", "vit_b_16", "densenet121"):
        with torch.device("meta"):
            keys = create_model(name).state_dict()
        assert not [key for key in keys if {"module", "_orig_mod"} & set(key.split("."))]


def test_a_checkpoint_whose_name_contradicts_it_is_not_the_newest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And it is not removed: it is no damaged file of the run."""
    save(3, tmp_path, is_best=True)
    ours, copied = (tmp_path / f"checkpoint-000{epoch}-0000000.pth.tar" for epoch in (3, 9))
    copied.write_bytes(ours.read_bytes())
    damaged = tmp_path / "checkpoint-0008-0000000.pth.tar"
    damaged.write_bytes(b"")
    assert newest(tmp_path) == str(ours)
    said = capsys.readouterr().out
    assert f"{copied}: its name is not that of what it holds, epochs and images (3, 0)" in said
    run = run_folder.RunFolder(tmp_path, True, False, 2)
    run.repair(ours, ["Rate"], False)
    run.close()
    assert copied.exists()
    assert not damaged.exists()


def test_a_file_system_that_cannot_flush_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flush = os.fsync

    def only_files(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):  # noqa: PTH112
            raise OSError(errno.EINVAL, "Invalid argument")
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", only_files)
    save(1, tmp_path, is_best=True)
    assert checkpoint.load(str(tmp_path / LAST))["epoch"] == 1
