"""Data sets in archives: the samples of class folders, and one line for whatever cannot be read."""

import io
import json
import os
import pickle
import tarfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import packed
import pytest
import torch
from conftest import REPOSITORY, Run, assert_one_line_error
from forks import Job
from packed import CLASSES, add, pack_listed, pack_official, pack_plain, pack_shards, write_folders

from utils.common.errors import UserError
from utils.data.archive_index import ArchiveIndex
from utils.data.content import content, readable
from utils.data.decoding import DECODERS, Box, available, read_image
from utils.data.splits import open_data

Pack = Callable[[Path, Path], Path]
FORMS: dict[str, Pack] = {
    "official": pack_official,
    "official with a list of labels": pack_listed,
    "plain": pack_plain,
    "plain, from ./": partial(pack_plain, prefix="./", format=tarfile.GNU_FORMAT),
    "plain, in folders": partial(pack_plain, prefix="imagenet/it/", format=tarfile.USTAR_FORMAT),
    "shards": pack_shards,
    "shards beside each other": partial(pack_shards, beside=True),
}
SMALL = ("-a", "tiny", "--img-size", 32, "--test-batch", 7, "--manualSeed", 7, "--train-batch", 8, "-j", 0)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    return write_folders(tmp_path / "folders")


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Archives made by the test count as old."""
    real = time.time_ns
    monkeypatch.setattr("utils.data.archives.time.time_ns", lambda: real() + 10**10)


Read = list[tuple[str, int, bytes]]


def read_all(data: Path, **options: Any) -> tuple[Read, Read]:
    """Name, label, and bytes of every sample of both splits."""
    splits = open_data(str(data), evaluate=False, **options)
    assert splits.train is not None
    train, val = (
        [(Path(path).name.rpartition(":")[2], label, bytes(content(path))) for path, label in of.samples]
        for of in (splits.train, splits.val)
    )
    assert splits.train.classes == splits.val.classes == CLASSES
    return train, val


@pytest.mark.parametrize("form", FORMS)
def test_the_samples_are_those_of_the_folders(folders: Path, tmp_path: Path, form: str, later: None) -> None:
    expected = read_all(folders)
    data = FORMS[form](folders, tmp_path / "packed")
    assert read_all(data) == expected
    assert read_all(data) == expected  # from the cache


def weights(call: Run, data: Path, **fields: str) -> dict[str, torch.Tensor]:
    result = call(*SMALL, "--data", data, "--epochs", 1, "-c", f"{data}-run")
    assert result.returncode == 0, result.stderr
    return torch.load(f"{data}-run/checkpoint.pth.tar", weights_only=True)["state_dict"]


def test_training_ends_in_the_same_bits(folders: Path, tmp_path: Path, call: Run) -> None:
    expected = weights(call, folders)
    for number, pack in enumerate((pack_official, pack_plain, pack_shards)):
        found = weights(call, pack(folders, tmp_path / f"packed-{number}"))
        assert all(torch.equal(value, found[key]) for key, value in expected.items())
