"""Files from anywhere: none runs code, none takes unbounded memory, none is accepted with a wrong value."""

import builtins
import io
import os
import pickle
import random
import resource
import struct
import subprocess
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from utils.common.errors import UserError
from utils.networks import archive, checkpoint
from utils.runs.folder import save


def saved(folder: Path) -> Path:
    """A small checkpoint of every kind of field."""
    generator = torch.Generator().manual_seed(0)
    weights = {f"layer{i}.weight": torch.randn(3, 4, generator=generator) for i in range(4)}
    state = {
        "epoch": 3,
        "images": 0,
        "state_dict": weights,
        "optimizer": {
            "state": {i: {"momentum_buffer": torch.randn(3, 4, generator=generator)} for i in range(4)},
            "param_groups": [{"lr": 0.1, "params": [0, 1, 2, 3], "param_names": list(weights)}],
        },
        "classes": ["cat", "dog", "\udce9"],
        "seed": 7,
        "sums": [[1.0, 2.0, 3.0, 4.0]],
        "best_acc": 77.5,
        "precision": {},
        "half": torch.randn(5, generator=generator).bfloat16(),
        "none": None,
    }
    return save(state, folder)


def outcome(path: Path) -> str:
    """The checksum of what is read, or the message of the refusal; anything else is a failure."""
    began = time.monotonic()
    try:
        content = checkpoint.load(str(path))
    except UserError as error:
        return str(error)
    finally:
        assert time.monotonic() - began < 10
    return archive.checksum(content)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    whole = path.read_bytes()
    lengths = {*range(8), *random.Random(0).sample(range(len(whole)), 250), len(whole) - 1}
    for length in lengths:
        path.write_bytes(whole[:length])
        assert "not a checkpoint" in outcome(path), length


def test_every_changed_byte_is_refused_or_harmless(tmp_path: Path) -> None:
    path = saved(tmp_path)
    whole, expected = path.read_bytes(), outcome(path)
    choose, harmless = random.Random(0), 0
    positions = choose.sample(range(len(whole)), 500)
    for position in positions:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << choose.randrange(8)
        path.write_bytes(damaged)
        found = outcome(path)
        assert found == expected or "damaged" in found or "not a checkpoint" in found, (position, found)
        harmless += found == expected
    assert harmless < len(positions)  # padding and the zip's own duplicates of its names


def test_a_changed_value_is_refused_even_if_the_zip_is_whole(tmp_path: Path) -> None:
    path = saved(tmp_path)
    content = torch.load(path, weights_only=True)
    for change in (
        {"best_acc": 99.0},
        {"state_dict": {**content["state_dict"], "layer0.weight": torch.zeros(3, 4)}},
        {"more": 1},
    ):
        torch.save({**content, **change}, path)
        assert "checksum does not match" in outcome(path)
    del content["checksum"]
    torch.save(content, path)
    assert "checksum is missing" in outcome(path)


def test_damage_in_a_foreign_zip_is_found_by_its_crc(tmp_path: Path) -> None:
    path = tmp_path / "foreign.pth"
    weights = torch.arange(1000.0)
    torch.save({"w": weights}, path)
    whole = path.read_bytes()
    at = whole.index(weights.numpy().tobytes()) + 2000
    path.write_bytes(whole[:at] + b"\x55" + whole[at + 1 :])
    assert "the CRC-32 of" in outcome(path)


class Call:
    """Calls a function when unpickled by a careless loader."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self) -> Any:
        return self.reduced


def attacks(marker: Path) -> dict[str, object]:
    touch = f"touch {marker}"
    code = f"open({str(marker)!r}, 'w').close()"
    return {
        "system": Call(os.system, touch),
        "eval": Call(builtins.eval, code),
        "exec": Call(builtins.exec, code),
        "popen": Call(subprocess.Popen, ["touch", str(marker)]),
        "open": Call(builtins.open, str(marker), "w"),
        "getattr": Call(builtins.getattr, "", "upper"),
        "nested load": Call(pickle.loads, pickle.dumps(Call(os.system, touch))),
        "torch.load": Call(torch.load, io.BytesIO(), None, pickle),
        "in a tensor": {"w": torch.zeros(1), "x": [Call(os.system, touch)]},
    }


@pytest.mark.parametrize("name", sorted(attacks(Path("x"))))
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle", "tar", "zip of pickle"])
def test_a_file_cannot_run_code(tmp_path: Path, name: str, form: str) -> None:
    path, marker = tmp_path / "evil.pth.tar", tmp_path / "ran"
    content = {"state_dict": {}, "x": attacks(marker)[name]}
    if form in ("zip", "legacy"):
        if name == "torch.load":
            pytest.skip("a stream cannot be pickled")
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    else:
        if name == "torch.load":
            content = {"state_dict": {}, "x": Call(torch.load, "evil.pth.tar")}
        data = pickle.dumps(content, protocol=2)
        if form == "pickle":
            path.write_bytes(data)
        elif form == "tar":
            with tarfile.open(path, "w") as tar:
                for entry in ("sys_info", "pickle", "storages", "tensors"):
                    info = tarfile.TarInfo(entry)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        else:
            with zipfile.ZipFile(path, "w") as archive_:
                archive_.writestr("x/data.pkl", data)
                archive_.writestr("x/version", "3")
                archive_.writestr("x/byteorder", "little")
    with pytest.raises(UserError, match="not a checkpoint"):
        checkpoint.load(str(path))
    assert not marker.exists()


def huge_legacy(path: Path) -> None:
    torch.save({"w": torch.zeros(7)}, path, _use_new_zipfile_serialization=False)
    small, big = struct.pack("<BB", ord("K"), 7), b"\x8a\x06" + (10**12).to_bytes(6, "little")
    path.write_bytes(path.read_bytes().replace(small, big))


def huge_zip(path: Path, stride: int) -> None:
    """A storage and a tensor of 10^12 elements over the bytes of seven."""
    torch.save({"w": torch.zeros(7)}, path)
    with zipfile.ZipFile(path) as source:
        entries = {info.filename: source.read(info) for info in source.infolist()}
    big = b"\x8a\x06" + (10**12).to_bytes(6, "little")
    name = next(name for name in entries if name.endswith("data.pkl"))
    entries[name] = entries[name].replace(b"K\x07", big).replace(b"K\x01", b"K" + bytes([stride]))
    with zipfile.ZipFile(path, "w") as target:
        for entry, data in entries.items():
            target.writestr(entry, data)


def compressed(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("x/data.pkl", b"\0" * 300_000_000)
        target.writestr("x/version", "3")


def references(path: Path) -> None:
    """Lists of the same list twice, sixty deep: 2^60 elements to whoever walks through them."""
    nested: list[Any] = []
    for _ in range(60):
        nested = [nested, nested]
    torch.save({"state_dict": {"w": torch.zeros(1)}, "checksum": "", "x": nested}, path)


def numpy_void(path: Path) -> None:
    """Two gigabytes of zeros from a few bytes."""
    scalar = np.float64(0).__reduce__()[0]

    class Void:
        def __reduce__(self) -> Any:
            return scalar, (np.dtype("V2000000000"),)

    torch.save({"state_dict": {}, "x": [Void()]}, path)


def prepended(path: Path) -> None:
    """Python's zipfile finds the archive behind other bytes; torch would read another one."""
    torch.save({"w": torch.zeros(7)}, path)
    path.write_bytes(path.read_bytes()[:64] + path.read_bytes())


def repeated(path: Path) -> None:
    """A tensor of a megabyte, two thousand times."""
    tensor = torch.zeros(250_000)
    torch.save({"state_dict": {"w": tensor}, "checksum": "", "x": [tensor] * 2000}, path)


@pytest.mark.parametrize(
    "make",
    [
        huge_legacy,
        lambda path: huge_zip(path, 1),
        lambda path: huge_zip(path, 0),
        compressed,
        references,
        numpy_void,
        prepended,
        repeated,
    ],
    ids=["legacy", "zip", "expanded", "compressed", "references", "numpy", "prepended", "repeated"],
)
def test_memory_stays_bounded(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "bomb.pth"
    make(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "not a checkpoint" in outcome(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes


def test_tensors_of_other_kinds_are_refused(tmp_path: Path) -> None:
    for name, tensor in (
        ("meta", torch.empty(3, device="meta")),
        ("sparse", torch.eye(3).to_sparse()),
        ("complex", torch.zeros(3, dtype=torch.complex64)),
    ):
        torch.save({"w": tensor}, tmp_path / name)
        assert "damaged or not a checkpoint" in outcome(tmp_path / name), name


def test_safetensors(tmp_path: Path) -> None:
    weights = {"module.a": torch.randn(3), "b": torch.randn(2, 2).half()}
    save_file(weights, tmp_path / "x.safetensors")
    state = checkpoint.load(str(tmp_path / "x.safetensors"))["state_dict"]
    assert torch.equal(state["a"], weights["module.a"])
    assert torch.equal(state["b"], weights["b"])
    whole = (tmp_path / "x.safetensors").read_bytes()
    (tmp_path / "x.safetensors").write_bytes(whole[:-1])
    assert "damaged or not a checkpoint" in outcome(tmp_path / "x.safetensors")


@pytest.mark.parametrize("zipped", [True, False])
def test_zero_dimensional_and_gpu_tensors_of_published_files(tmp_path: Path, zipped: bool) -> None:
    """Written on a GPU, read without one: here the location in the file is patched."""
    path = tmp_path / "gpu.pth.tar"
    content = {"state_dict": {"w": torch.arange(3.0)}, "best_acc": torch.tensor(77.5), "epoch": 1}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    name, cuda = b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0"
    if zipped:
        with zipfile.ZipFile(path) as source:
            entries = {info.filename: source.read(info) for info in source.infolist()}
        with zipfile.ZipFile(path, "w") as target:
            for entry, data in entries.items():
                target.writestr(entry, data.replace(name, cuda))
    else:
        path.write_bytes(path.read_bytes().replace(name, cuda))
    assert b"cuda:0" in path.read_bytes()
    loaded = checkpoint.load(str(path))
    assert float(loaded["best_acc"]) == 77.5
    assert loaded["state_dict"]["w"].tolist() == [0, 1, 2]
