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
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as target:
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


def name(module: str, of: str) -> bytes:
    """The instruction that names a function."""
    return b"c%s\n%s\n" % (module.encode(), of.encode())


def text(value: str) -> bytes:
    """The instruction that puts a text onto the stack."""
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def zip_of(path: Path, program: bytes, **records: bytes) -> None:
    """A file whose structure is a pickle that no honest program writes."""
    with zipfile.ZipFile(path, "w") as target:
        target.writestr("x/data.pkl", b"\x80\x02" + program + b".")
        for record, data in records.items():
            target.writestr(f"x/data/{record.strip('_')}", data)


def legacy_of(path: Path, program: bytes) -> None:
    torch.save({}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"\x80\x02}q\x00.", b"\x80\x02" + program + b".", 1))


def bytes_by_a_call(path: Path) -> None:
    """Five gigabytes of zeros: 1,407 bytes took 5.6 GB, and were read."""
    zip_of(
        path, name("__builtin__", "bytearray") + b"\x8a\x05" + (5 * 10**9).to_bytes(5, "little") + b"\x85R"
    )


def encoded(path: Path) -> None:
    """Thirty times the hexadecimal digits of the bytes before."""
    encode, again = name("_codecs", "encode"), text("hex") + b"\x86R"
    zip_of(path, encode * 31 + text("a" * 8) + text("latin1") + b"\x86R" + again * 30)


# A tuple of the same tuple twice, sixty deep: its hash takes 2^60 steps, as a key or as a storage's name.
SHARED = b")q\0" + b"".join(b"h%c\x86q%c" % (i, i + 1) for i in range(60))
AS_STORAGE = b"(" + text("storage") + name("torch", "FloatStorage") + SHARED + text("cpu") + b"K\x01NtQ"


def twice(path: Path, other: str) -> None:
    """Two entries of the directory for one record, in place of one for each."""
    zip_of(path, b"}", _0=b"\0" * 64, _1=b"\0" * 64)
    with zipfile.ZipFile(path) as source:
        first, second = (source.getinfo(f"x/data/{i}").header_offset for i in (0, 1))
    data = bytearray(path.read_bytes())
    directory = data.index(b"PK\1\2")
    at = directory + data[directory:].index(b"x/data/1")
    data[at - 4 : at] = struct.pack("<I", first)
    data[at : at + 8] = other.encode()
    assert second > first
    path.write_bytes(data)


def of_one_name(path: Path) -> None:
    zip_of(path, b"}", _0=b"\0" * 64, _1=b"\0" * 64)
    path.write_bytes(path.read_bytes().replace(b"x/data/1", b"x/data/0"))


def longer_than_its_record(path: Path) -> None:
    """A storage of eight numbers in a record of seven; the next record follows."""
    torch.save({"w": torch.zeros(7), "x": torch.zeros(7)}, path)
    with zipfile.ZipFile(path) as source:
        entries = {info.filename: source.read(info) for info in source.infolist()}
    with zipfile.ZipFile(path, "w") as target:
        for entry, data in entries.items():
            target.writestr(entry, data.replace(b"K\x07tq", b"K\x08tq") if entry.endswith(".pkl") else data)


def deep(path: Path) -> None:
    zip_of(path, b"]" + b"\x85" * 1000)


def copied(path: Path) -> None:
    """A list of a thousand items, a thousand times made into a dict."""
    items = b"](" + b"".join(b"](" + text(str(i)) + b"Ne" for i in range(1000)) + b"eq\0\x85q\1"
    zip_of(path, items + b"](" + (name("collections", "OrderedDict") + b"h\1R") * 1000 + b"e")


def instructions(path: Path) -> None:
    """More of them than a file of 8 MB may have."""
    zip_of(path, b"](" + b"]" * 8_000_000 + b"e")


def header_of_safetensors(path: Path) -> None:
    """A header of 3 MB, of a million lists."""
    header = b'{"__metadata__":{"checkpoint":"' + b"[" * 3_000_000 + b'"}}'
    path.write_bytes(struct.pack("<Q", len(header)) + header)


HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "bytes by a call": (bytes_by_a_call, "it holds __builtin__.bytearray"),
    "encoded": (encoded, "its encode is damaged"),
    "shared key": (lambda path: zip_of(path, b"}" + SHARED + b"Ns"), "it has a tuple as a key"),
    "shared key, legacy": (lambda path: legacy_of(path, b"}" + SHARED + b"Ns"), "it has a tuple as a key"),
    "shared storage": (lambda path: legacy_of(path, AS_STORAGE), "its storage is damaged"),
    "shared storage, zip": (
        lambda path: zip_of(path, AS_STORAGE.replace(b"NtQ", b"tQ")),
        "its storage is damaged",
    ),
    "one record twice": (lambda path: twice(path, "x/data/1"), "an entry is damaged"),
    "one record and name twice": (lambda path: twice(path, "x/data/0"), "its entries overlap"),
    "one name twice": (of_one_name, "two entries of one name"),
    "longer than its record": (longer_than_its_record, "a storage is larger than its record"),
    "deep": (deep, "too many parts"),
    "copied": (copied, "too many parts"),
    "instructions": (instructions, "too many parts"),
    "header.safetensors": (header_of_safetensors, "its header takes more than"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_no_honest_program_writes_is_refused(tmp_path: Path, case: str) -> None:
    """Each took gigabytes or did not end, or could be read in two ways."""
    make, why = HOSTILE[case]
    path = tmp_path / case.replace(" ", "_")
    make(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert why in outcome(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes


def test_files_of_other_programs_are_read_as_torch_reads_them(tmp_path: Path) -> None:
    weights = torch.randn(4, 5)
    content = {
        "views": [weights, weights.t(), weights[1:3, ::2], weights.flatten()[3:3]],
        "parameter": torch.nn.Parameter(weights),
        "kinds": [weights.to(kind) for kind in (torch.half, torch.bfloat16, torch.double, torch.cfloat)],
        "counters": [torch.arange(3, dtype=kind) for kind in (torch.uint8, torch.int8, torch.int64)],
        "bool": torch.tensor([True, False]),
        "channels_last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "scalar": torch.tensor(3.5),
        "plain": [2**70, -(2**40), 300, 70_000, 1e300, None, True, "\udce9", (1, (2, 3)), {"a": {7: ()}}],
        "state": torch.nn.BatchNorm1d(3).state_dict(),  # with the versions of modules
    }
    newer = {"newer": [weights.to(torch.float8_e5m2), torch.zeros(3, dtype=torch.uint16)]}
    for zipped, more in ((True, newer), (False, {})):
        torch.save({**content, **more}, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
        expected, found = (
            torch.load(tmp_path / "x.pth", weights_only=True),
            archive.read(str(tmp_path / "x.pth")),
        )
        assert archive.checksum(found) == archive.checksum(expected)
        assert found["views"][1].data_ptr() == found["views"][0].data_ptr()  # one storage


def test_a_file_of_a_later_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as later:
        later.setattr(archive, "VERSION", 2)
        path = saved(tmp_path)
        notes = archive.metadata({"epoch": 3}, {"w": torch.zeros(3)})
        save_file({"w": torch.zeros(3)}, tmp_path / "x.safetensors", notes)
    for name in (path, tmp_path / "x.safetensors"):
        assert "by a later version of this code (format 2, this one reads 1)" in outcome(name)


def test_keys_do_not_reach_the_terminal_unescaped(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"w\x1b[31m": torch.zeros(3)}, path)
    assert "damaged ('w\\x1b[31m' is no name of a weight)" in outcome(path)
    torch.save({"state_dict": {"w": torch.zeros(3)}, "\x1b]0;title\x07": 3}, path)
    assert "damaged (fields not of the kind expected)" in outcome(path)
    torch.save({"module.w": torch.zeros(3), "w": torch.ones(3)}, path)
    assert "two weights w, one of them as module.w" in outcome(path)


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pth")
    for path in (tmp_path / "pipe.pth", Path("/dev/zero")):
        assert "is a pipe or a device" in outcome(path)
    (tmp_path / "empty.pth").touch()
    assert "it is empty" in outcome(tmp_path / "empty.pth")


def test_torchs_first_format_is_refused_with_the_command_that_converts_it(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.pth", "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(tarfile.TarInfo("sys_info"))
    assert 'convert it: python -c "import torch; torch.save(' in outcome(tmp_path / "x.pth")


def test_our_safetensors_have_a_checksum(tmp_path: Path) -> None:
    path, weights = tmp_path / "x.safetensors", {"b": torch.randn(30, 40), "a": torch.randn(3)}
    save_file(weights, path, archive.metadata({"epoch": 3, "classes": ["cat", "\udce9"]}, weights))
    whole, expected = path.read_bytes(), outcome(path)
    assert len(expected) == 64
    choose, noticed = random.Random(0), 0
    for position in choose.sample(range(len(whole)), 100):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << choose.randrange(8)
        path.write_bytes(damaged)
        noticed += (found := outcome(path)) != expected
        assert found == expected or "damaged" in found, position
    assert noticed > 90  # the others are blanks, or in the word "format"
    save_file(weights, path, {"format": "pt", "checkpoint": '{"epoch": 3}'})  # as written before
    assert checkpoint.load(str(path))["epoch"] == 3


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
    with_attribute = torch.nn.Parameter(torch.zeros(3))
    with_attribute.detach = "no function"  # type: ignore[assignment, method-assign]
    for name, tensor, why in (
        ("meta", torch.empty(3, device="meta"), "it holds torch._utils._rebuild_meta_tensor_no_storage"),
        ("sparse", torch.eye(3).to_sparse(), "it holds torch"),
        ("attribute", with_attribute, "it holds torch._utils._rebuild_parameter_with_state"),
        ("complex", torch.zeros(3, dtype=torch.complex64), "w is complex64"),
        ("float8", torch.zeros(3).to(torch.float8_e4m3fn), "w is float8_e4m3fn"),
    ):
        torch.save({"w": tensor}, tmp_path / name)
        assert why in outcome(tmp_path / name), name
    save_file({"w": torch.zeros(3, dtype=torch.complex64)}, tmp_path / "complex.safetensors")
    assert "w is complex64" in outcome(tmp_path / "complex.safetensors")


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
