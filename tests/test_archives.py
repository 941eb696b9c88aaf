"""Data sets in archives: the samples of class folders, and one line for whatever cannot be read."""

import importlib
import io
import json
import os
import pickle
import random
import resource
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import packed
import pytest
import torch
from conftest import REPOSITORY, Run, assert_one_line_error
from forks import Job
from packed import CLASSES, add, pack_listed, pack_official, pack_plain, pack_shards, write_folders
from PIL import Image

from utils.common.errors import UserError
from utils.data.archive_index import ArchiveIndex
from utils.data.archives import read_archives
from utils.data.content import Archive, Member, _Opened, content, readable
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


Spoil = Callable[[Path], None]


def with_member(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, **fields: object) -> Spoil:
    """``train.tar`` with one more member."""

    def spoil(folder: Path) -> None:
        with tarfile.open(folder / "train.tar", "a") as tar:
            add(tar, name, data, type=kind, **fields)

    return spoil


def changed(change: Callable[[bytes], bytes], name: str = "train.tar") -> Spoil:
    """Another archive in its place."""

    def spoil(folder: Path) -> None:
        (folder / name).write_bytes(change((folder / name).read_bytes()))

    return spoil


def compressed(module: str) -> Callable[[bytes], bytes]:
    return lambda content: importlib.import_module(module).compress(content)


def byte(at: int, value: int) -> Callable[[bytes], bytes]:
    return lambda content: content[:at] + bytes([value]) + content[at + 1 :]


def raw_header(name: bytes, flag: bytes, size: bytes = b"00000000000") -> bytes:
    """A header with a right checksum."""
    header = bytearray(512)
    header[: len(name)], header[124 : 124 + len(size)], header[156:157] = name, size, flag
    header[148:156] = b" " * 8
    header[148:155] = b"%06o\0" % sum(header)
    return bytes(header)


def first(*blocks: bytes) -> Callable[[bytes], bytes]:
    """The archive with other blocks before all others."""
    return lambda content: b"".join(blocks) + content


def pax(*records: bytes, flag: bytes = b"x") -> bytes:
    text = b"".join(records)
    return raw_header(b"pax", flag, b"%011o" % len(text)) + text.ljust(512, b"\0")


def without_end(content: bytes) -> bytes:
    """All members, without the blocks that end an archive."""
    end = len(content.rstrip(b"\0"))
    return content[: end + -end % 512]


BROKEN: dict[str, tuple[Spoil, str]] = {
    "empty file": (changed(lambda content: b""), "cut off after 0 bytes"),
    "cut off in a header": (changed(lambda content: content[:700]), "cut off in n02129165/"),
    "cut off in an image": (changed(lambda content: content[:2048]), "cut off in n02129165/"),
    "cut off between members": (changed(without_end), "cut off after"),
    "no tar": (changed(lambda content: b"\xff\xd8" + bytes(range(256)) * 20), "no tar archive"),
    "text": (changed(lambda content: b"a page that says: not found\n" * 99), "no tar archive"),
    "a damaged header": (changed(byte(3, 0)), "no header at byte 0"),
    "a damaged size": (changed(byte(130, 0x37)), "no header at byte 0"),
    "two archives": (changed(lambda content: content * 2), "more after the end of the archive"),
    "gzip": (changed(compressed("gzip")), "gzip -dc"),
    "bzip2": (changed(compressed("bz2")), "bzip2 -dc"),
    "xz": (changed(compressed("lzma")), "xz -dc"),
    "zstd": (changed(lambda content: b"\x28\xb5\x2f\xfd" + content), "zstd -dc"),
    "absolute name": (with_member("/etc/0.JPEG"), "/etc/0.JPEG is absolute"),
    "a way out": (with_member("n01440764/../../0.JPEG"), "leads out of the archive"),
    "a way out at the end": (with_member("n01440764/.."), "leads out of the archive"),
    "a link with a way out": (
        with_member("../x", kind=tarfile.SYMTYPE, linkname="/etc/passwd"),
        "leads out of the archive",
    ),
    "the same name twice": (with_member("n01440764/n01440764_1.JPEG"), "n01440764_1.JPEG stands there twice"),
    "the same name, written otherwise": (
        with_member("./n01440764//n01440764_1.JPEG"),
        "n01440764_1.JPEG stands there twice",
    ),
    "no class folder": (with_member("loose.JPEG"), "loose.JPEG lies in no class folder"),
    "an empty class": (with_member("n99", kind=tarfile.DIRTYPE), "class folder n99 has no images"),
    "sparse, GNU": (changed(first(raw_header(b"n0/0.JPEG", b"S"))), "--sparse"),
    "sparse, pax": (changed(first(pax(b"22 GNU.sparse.major=1\n"))), "--sparse"),
    "an unknown kind": (changed(first(raw_header(b"n0/0.JPEG", b"M"))), "unknown kind 'M'"),
    "a name for all": (changed(first(pax(b"13 path=n0/0\n", flag=b"g"))), "all members one name"),
    "a damaged pax header": (changed(first(pax(b"99 path=n0/0\n"))), "no header at byte 0"),
    "a pax header of nothing": (changed(first(pax(b"0 \n"))), "no header at byte 0"),
    "a negative pax size": (changed(first(pax(b"11 size=-1\n"))), "no header at byte"),
    "a huge size": (
        changed(first(raw_header(b"n0/0.JPEG", b"0", b"\x80" + b"\x7f" * 11))),
        "cut off in n0/0.JPEG",
    ),
    "a huge long name": (changed(first(raw_header(b"x", b"L", b"77777777777"))), "cut off"),
    "no image": (changed(lambda content: bytes(10240)), "no images"),
}


@pytest.mark.parametrize("trouble", BROKEN)
def test_a_broken_archive_is_refused(folders: Path, tmp_path: Path, trouble: str) -> None:
    spoil, message = BROKEN[trouble]
    data = pack_plain(folders, tmp_path / "packed")
    spoil(data)
    assert message in refusal(data)


def refusal(data: Path) -> str:
    """What a user reads, which names an archive or the folder."""
    with pytest.raises(UserError) as error:
        open_data(str(data), evaluate=False, use_cache=False)
    assert str(error.value).startswith(str(data)) or str(error.value).startswith(f"--data {data}")
    assert "\n" not in str(error.value)
    return str(error.value)


def inner(change: Callable[[bytes], bytes], name: str = "n01440764.tar") -> Spoil:
    """The official archive of training images with another archive of a class."""

    def spoil(folder: Path) -> None:
        file = folder / "ILSVRC2012_img_train.tar"
        with tarfile.open(file) as tar:
            contents = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        with tarfile.open(file, "w") as tar:
            for own, content in contents.items():
                if own == "n01440764.tar":
                    add(tar, name, change(content))
                else:
                    add(tar, own, content)

    return spoil


def devkit(change: Callable[[bytes], bytes]) -> Spoil:
    return changed(change, packed.DEVKIT)


def listed(change: Callable[[str], str]) -> Spoil:
    """The list of labels in place of the devkit, changed."""

    def spoil(folder: Path) -> None:
        (folder / packed.DEVKIT).unlink()
        text = change("".join(f"{name}\n" for name in CLASSES * 3))
        (folder / "ILSVRC2012_img_val.txt").write_text(text, encoding="latin-1")

    return spoil


OFFICIAL: dict[str, tuple[Spoil, str]] = {
    "a class that is no tar": (
        inner(lambda content: b"no tar " * 500),
        "train.tar:n01440764.tar: damaged, or no tar",
    ),
    "a class that is cut off": (
        inner(lambda content: content[:5000]),
        "train.tar:n01440764.tar: the archive is cut off",
    ),
    "a class of nothing": (inner(lambda content: b""), "train.tar:n01440764.tar: the archive is cut off"),
    "a class without images": (inner(lambda content: bytes(10240)), "n01440764.tar has no images"),
    "a compressed class": (inner(compressed("gzip")), "gzip -dc"),
    "a class twice": (inner(lambda content: content, "x/n02129165.tar"), "n02129165.tar stands there twice"),
    "a class that training lacks": (
        inner(lambda content: content, "n99.tar"),
        "that the training split lacks: n01440764",
    ),
    "cut off": (changed(lambda content: content[:9000], "ILSVRC2012_img_train.tar"), "cut off in n"),
    "a class that leads elsewhere": (inner(bytes, "...tar"), "'..' is no name of a class"),
    "a label that leads elsewhere": (
        listed(lambda text: text.replace("n01440764", "..")),
        "'..' is no name of a class",
    ),
    "no labels": (lambda folder: (folder / packed.DEVKIT).unlink(), "ILSVRC2012_img_val.txt with the class"),
    "a devkit cut off": (devkit(lambda content: content[:300]), "no devkit of ILSVRC2012 ("),
    "a devkit that is none": (devkit(lambda content: b"not found"), "no devkit of ILSVRC2012 (ReadError"),
    "a devkit of other images": (lambda folder: packed.write_devkit(folder, [1, 2]), "2 labels for 9 images"),
    "a devkit with another id": (lambda folder: packed.write_devkit(folder, [9] * 9), "(KeyError: 9)"),
    "a list too short": (listed(lambda text: text[:20]), "2 labels for 9 images of ILSVRC2012_img_val.tar"),
    "an empty list": (listed(lambda text: ""), "line 1 ('') is no class"),
    "a list with an empty line": (listed(lambda text: "\n" + text), "line 1 ('') is no class"),
    "a list of names and labels": (
        listed(lambda text: text.replace("\n", " 7\n")),
        "('n01440764 7') is no class",
    ),
    "a list of other classes": (listed(lambda text: text.replace("n0", "x")), "lacks: x1440764"),
    "a list that is not UTF-8": (listed(lambda text: "\xff" + text), "not UTF-8"),
    "a list that is a folder": (lambda folder: (folder / "ILSVRC2012_img_val.txt").mkdir(), "Is a directory"),
    "a second archive": (lambda folder: (folder / "train.tar").touch(), "remove the one not to be used"),
}


@pytest.mark.parametrize("trouble", OFFICIAL)
def test_broken_official_archives_are_refused(folders: Path, tmp_path: Path, trouble: str) -> None:
    spoil, message = OFFICIAL[trouble]
    data = pack_official(folders, tmp_path / "packed")
    spoil(data)
    assert message in refusal(data)


SHARDS: dict[str, tuple[tuple[str, bytes], str]] = {
    "an image without a class": (("one.jpg", b""), "one.jpg has no one.cls"),
    "an empty class": (("one.cls", b" "), "says no class"),
    "a class that leads elsewhere": (("one.cls", b".."), "says no class"),
    "a class with a slash": (("one.cls", b"a/b"), "says no class"),
    "a long class": (("one.cls", b"x" * 2000), "says no class"),
    "two images of a key": (("KEY.png", b""), "has two images"),
    "a class twice": (("KEY.cls", b"n01440764"), "stands there twice"),
}


@pytest.mark.parametrize("trouble", SHARDS)
def test_broken_shards_are_refused(folders: Path, tmp_path: Path, trouble: str) -> None:
    (name, data), message = SHARDS[trouble]
    packs = pack_shards(folders, tmp_path / "packed", shards=1)
    with tarfile.open(packs / "train" / "000000.tar", "a") as tar:
        key = tar.getnames()[0].partition(".")[0]
        add(tar, name.replace("KEY", key), data)
    assert message in refusal(packs)


def test_the_same_image_in_two_shards_is_refused(folders: Path, tmp_path: Path) -> None:
    data = pack_shards(folders, tmp_path / "packed")
    (data / "train" / "9.tar").write_bytes((data / "train" / "000000.tar").read_bytes())
    assert "stands there twice" in refusal(data)


def test_what_is_left_out_is_counted(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At every start; never is a link taken for an image."""
    expected = read_all(folders)
    data = pack_plain(folders, tmp_path / "packed")
    for name, kind in (("n01440764/a.JPEG", b"1"), ("n01440764/b.JPEG", b"2"), ("n01440764/c.JPEG", b"6")):
        with_member(name, kind=kind, linkname="n01440764/n01440764_1.JPEG")(data)
    with_member("readme.txt", b"text")(data)
    with_member("n01440764/more.tar", b"no tar")(data)
    with_member("n01440764", kind=tarfile.DIRTYPE)(data)
    for _ in range(2):
        assert read_all(data) == expected
        assert capsys.readouterr().out == f"note: {data}/train.tar: left out 2 links, 3 other files\n"


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_awkward_names(folders: Path, tmp_path: Path, format: int, later: None) -> None:
    """Long, not UTF-8, sorted otherwise as bytes; in folders within the class."""
    image = next((folders / "train").rglob("*.JPEG")).read_bytes()
    names = [
        "é.JPEG",
        "\udcff.JPEG",
        "😀.png",
        "a-b/0.jpg",
        "a/b.jpg",
        "a/.jpg",
        "two words.JPEG",
        "a..b/0.jpg",
    ]
    names += ["x" * 100 + "/" + "y" * 80 + ".JPEG", "no image.txt", "A.JPEG", "new\nline.JPG"]
    if format != tarfile.USTAR_FORMAT:  # it cannot
        names += ["x" * 150 + ".JPEG", "/".join(["z" * 99] * 5) + "/0.JPEG"]
    for name in names:
        file = folders / "train" / CLASSES[1] / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(image + os.fsencode(name))
    data = pack_plain(folders, tmp_path / "packed", "./", format)
    (data / "train.tar").unlink()
    with tarfile.open(data / "train.tar", "w", format=format, errors="surrogateescape") as tar:
        tar.add(folders / "train", "train")
    expected = read_all(folders)
    assert len(expected[0]) == 24 + len(names) - 1
    for _ in range(2):
        assert read_all(data) == expected


def test_files_of_gnu_tar(folders: Path, tmp_path: Path) -> None:
    """As people pack: the folder, its content, in several parts; and with a large number as GNU writes it."""
    for number, (where, what) in enumerate(
        [(folders, "train"), (folders / "train", "."), (folders / "train", "*")]
    ):
        data = pack_plain(folders, tmp_path / f"packed-{number}")
        command = f"cd {where} && tar -cf {data}/train.tar {what}"
        assert subprocess.run(command, shell=True).returncode == 0
        assert read_all(data) == read_all(folders)
    changed(first(raw_header(b"readme", b"0", b"\x80" + bytes(10) + b"\5"), b"hello".ljust(512, b"\0")))(data)
    assert read_all(data) == read_all(folders)


def test_an_image_of_no_bytes_is_a_broken_image(folders: Path, tmp_path: Path, call: Run) -> None:
    """As in folders; and messages name images by archive and member."""
    (folders / "train" / CLASSES[0] / "a.JPEG").touch()
    (folders / "train" / CLASSES[0] / "b.JPEG").write_bytes(b"\xff\xd8 no image \xff\xd9")
    data = pack_official(folders, tmp_path / "packed")
    found = []
    for name in ("folders", "packed"):
        result = call(*SMALL, "--data", name, "--epochs", 1, "-c", f"{name}-run", "--max-bad", 0.5)
        assert result.returncode == 0, result.stderr
        state = torch.load(tmp_path / f"{name}-run" / "checkpoint.pth.tar", weights_only=True)
        found.append((state["state_dict"]["fc.weight"], result.stdout.count("cannot decode")))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1] == 2
    where = "packed/ILSVRC2012_img_train.tar:n01440764.tar/"
    for name in ("a", "b"):
        reason = f"UnidentifiedImageError: cannot identify image file '{where}{name}.JPEG'"
        assert f"note: cannot decode {where}{name}.JPEG ({reason})" in result.stdout
    assert data.exists()


def test_a_member_that_is_no_image_is_not_read(folders: Path, tmp_path: Path) -> None:
    """One of 101 MB is a broken image, and a pipe with the name of a shard no archive."""
    archive = Archive("none.tar", 0, 0)
    with pytest.raises(OSError, match="101,000,000 bytes, more than the 100,000,000 that an image may have"):
        content(Member("none.tar:x.jpg", archive, 0, 101_000_000, "train/cat/x.jpg"))
    os.mkfifo(tmp_path / "train-0000.tar")
    with pytest.raises(UserError, match=r"train-0000.tar: is no file: remove it"):
        read_archives(tmp_path / "train", [tmp_path / "train-0000.tar"], False)


def test_all_decoders_read_members(folders: Path, tmp_path: Path) -> None:
    def pixels(data: Path, decoder: str) -> list[np.ndarray]:
        whole = [read_image(path, decoder, lambda h, w: Box(0, 0, h, w)) for path, _ in samples_of(data)]
        return [np.asarray(image if decoder == "pil" else image.permute(1, 2, 0)) for image, _ in whole]  # type: ignore[union-attr]

    data = pack_plain(folders, tmp_path / "packed")
    expected = pixels(folders, "pil")
    for decoder in filter(available, DECODERS[1:]):
        assert all(map(np.array_equal, pixels(data, decoder), expected))


def samples_of(data: Path) -> Any:
    train = open_data(str(data), evaluate=False).train
    assert train is not None
    return train.samples


def test_samples_in_archives_are_a_sequence(folders: Path, tmp_path: Path) -> None:
    data = pack_official(folders, tmp_path / "packed")
    index = samples_of(data)
    assert isinstance(index, ArchiveIndex)
    path, label = index[9]
    assert isinstance(path, Member)
    assert path == f"{data}/ILSVRC2012_img_train.tar:n01443537.tar/n01443537_1.JPEG"
    assert (label, len(index), index[-1], index[8:10][1]) == (1, 24, index[23], index[9])
    assert (path.place, path.size) == ("train/n01443537/n01443537_1.JPEG", len(content(path)))
    copied = pickle.loads(pickle.dumps(path))
    assert (copied, content(copied), repr(readable(copied))) == (path, content(path), repr(str(path)))
    assert pickle.loads(pickle.dumps(index))[9] == index[9]
    arrays = [value for value in (*vars(index).values(), *index.places) if isinstance(value, np.ndarray)]
    names = sum(len("n01443537_1.JPEG") + 1 for _ in index)
    assert sum(array.nbytes for array in arrays) <= names + 26 * len(index) + 8


def test_the_index_is_kept_until_an_archive_changes(
    folders: Path, tmp_path: Path, later: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, expected = pack_listed(folders, tmp_path / "packed"), read_all(folders)
    assert read_all(data) == expected
    with monkeypatch.context() as patch:
        patch.setattr("utils.data.archives.scan", None)
        assert read_all(data) == expected
        with pytest.raises(TypeError):
            read_all(data, use_cache=False)
        touched = data / "ILSVRC2012_img_train.tar"
        os.utime(touched, ns=(0, touched.stat().st_mtime_ns + 1))
        with pytest.raises(TypeError):
            read_all(data)
    labels = data / "ILSVRC2012_img_val.txt"
    labels.write_text("".join(f"{name}\n" for name in reversed(labels.read_text().split())))
    assert read_all(data)[0] == expected[0]
    assert read_all(data)[1] != expected[1]


DAMAGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "state": lambda arrays: arrays["state"][::-1],
    "contents": lambda arrays: arrays["contents"][:-1],
    "names": lambda arrays: arrays["names"][:-1],
    "labels": lambda arrays: arrays["labels"] + 7,
    "archive": lambda arrays: arrays["archive"] + np.uint16(1),
    "start": lambda arrays: arrays["start"] + 10**6,
    "size": lambda arrays: arrays["size"] + np.uint32(10**6),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_index_is_made_anew(
    folders: Path, tmp_path: Path, cache: Path, damage: str, later: None
) -> None:
    data, expected = pack_plain(folders, tmp_path / "packed"), read_all(folders, use_cache=False)
    read_all(data)
    for file in cache.iterdir():
        with np.load(file) as kept:
            arrays = dict(kept)
        np.savez(file, **{**arrays, damage: DAMAGES[damage](arrays)})
    assert read_all(data) == expected


def test_an_archive_that_changes_while_it_is_read(folders: Path, tmp_path: Path) -> None:
    """Never is another image read in place of the right one."""
    data = pack_plain(folders, tmp_path / "packed")
    path, _ = samples_of(data)[0]
    pack_plain(folders, tmp_path / "other", prefix="longer/")
    (tmp_path / "other" / "train.tar").replace(data / "train.tar")
    with pytest.raises(OSError, match=r"train\.tar has changed since it was indexed"):
        content(path)


def test_more_archives_than_files_may_be_open(folders: Path, tmp_path: Path) -> None:
    data = pack_shards(folders, tmp_path / "packed", shards=24)
    samples = samples_of(data)
    with limited_files(len(list(Path("/proc/self/fd").iterdir())) + 8), pytest.MonkeyPatch.context() as patch:
        patch.setattr("utils.data.content._opened", lru_cache(4)(_Opened))
        for path, _ in [*samples, *samples]:
            assert len(content(path)) == path.size


@contextmanager
def limited_files(count: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_run_on_another_archive_is_not_resumed(folders: Path, tmp_path: Path, call: Run) -> None:
    """Even one of as many images, of other times; what was only packed anew is the same."""
    pack_plain(folders, tmp_path / "packed")
    flags = (*SMALL, "--data", "packed", "-c", "out", "--resume", "auto", "--epochs")
    assert call(*flags, 1).returncode == 0
    again = pack_plain(folders, tmp_path / "again", prefix="./", format=tarfile.GNU_FORMAT)
    for split in ("train", "val"):
        (again / f"{split}.tar").replace(tmp_path / "packed" / f"{split}.tar")
    assert call(*flags, 2).returncode == 0
    assert call(*flags[:-1], "--data", "folders", "--epochs", 3).returncode == 0
    assert call(*flags, 4).returncode == 0
    before = (tmp_path / "out" / "checkpoint.pth.tar").read_bytes()
    with tarfile.open(tmp_path / "packed" / "train.tar", "w") as tar:
        for file in (folders / "train").rglob("*.JPEG"):
            add(tar, file.relative_to(folders / "train").as_posix(), file.read_bytes(), mtime=1)
    assert_one_line_error(call(*flags, 5), "train is read from another archive than in that run")
    assert_one_line_error(
        call(*flags, 5, script="scripts/show_batch.py"), "train is read from another archive than in that run"
    )
    assert (tmp_path / "out" / "checkpoint.pth.tar").read_bytes() == before
    assert call(*flags, 5, "-e").returncode == 0


@pytest.mark.slow
def test_killed_in_the_middle_of_an_epoch(start: Callable[..., Job], folders: Path, tmp_path: Path) -> None:
    """By SIGKILL, on the official archives, with 0, 1 and 4 workers by turns."""
    pack_official(folders, tmp_path / "packed")
    given = (*SMALL[:-2], "--data", "packed", "--epochs", 2, "--save-every", 1, "--lr", 0.02)
    result = start(REPOSITORY / "tests" / "killer.py", "imagenet", "--kills", 1, "--rest", *given).complete()
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["kills"], found["differing"]) == (1, [])


def test_a_devkit_without_scipy(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = pack_official(folders, tmp_path / "packed")
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    assert "needs scipy: pip install scipy, or list the classes in a .txt" in refusal(data)


def test_an_evaluation_reads_the_labels_of_training(folders: Path, tmp_path: Path, call: Run) -> None:
    """An archive of validation that lacks a class, and numbers as classes."""
    data = pack_plain(folders, tmp_path / "packed")
    with tarfile.open(data / "val.tar", "w") as tar:
        for file in (folders / "val" / CLASSES[2]).iterdir():
            add(tar, f"{CLASSES[2]}/{file.name}", file.read_bytes())
    splits = open_data(str(data), evaluate=True)
    assert splits.train is None
    assert {label for _, label in splits.val.samples} == {2}


def test_numbers_as_classes_of_shards(tmp_path: Path) -> None:
    """0 to 11, in the order of the numbers, as folders of these names."""
    numbers = [11, 2, 0, 10, 1, 3, 4, 5, 6, 7, 8, 9]
    for split in ("train", "val"):
        with tarfile.open(tmp_path / f"x-{split}-0.tar", "w") as tar:
            for number in numbers:
                add(tar, f"{99 - number}.cls", b"%03d\n" % number)
                add(tar, f"{99 - number}.JPG", bytes(number))
        for number in numbers:
            (tmp_path / "folders" / split / str(number)).mkdir(parents=True)
            (tmp_path / "folders" / split / str(number) / f"{99 - number}.JPG").write_bytes(bytes(number))
    (ours, theirs) = (open_data(str(data), evaluate=True) for data in (tmp_path, tmp_path / "folders"))
    assert ours.val.classes == theirs.val.classes == tuple(map(str, range(12)))
    expected = [(label, bytes(content(path))) for path, label in theirs.val.samples]
    assert [(label, bytes(content(path))) for path, label in ours.val.samples] == expected


def test_check_data_reads_archives(folders: Path, tmp_path: Path, call: Run) -> None:
    (folders / "train" / CLASSES[0] / "a.JPEG").touch()
    pack_official(folders, tmp_path / "packed")
    result = call("packed", "-j", 1, "--list", "broken.txt", script="scripts/check_data.py")
    assert result.returncode == 1, result.stderr
    assert "train/              3          25" in result.stdout
    where = "ILSVRC2012_img_train.tar:n01440764.tar/a.JPEG"
    assert f"  {where}: UnidentifiedImageError" in result.stdout
    assert (tmp_path / "broken.txt").read_text() == f"packed/{where}\n"


@pytest.mark.parametrize("pack", [pack_official, pack_shards])
def test_smaller_copies_are_made_of_archives(folders: Path, tmp_path: Path, call: Run, pack: Pack) -> None:
    (folders / "train" / CLASSES[0] / "big.JPEG").write_bytes(large_image())
    pack(folders, tmp_path / "packed")
    for name in ("folders", "packed"):
        result = call(name, f"small-{name}", "--side", 64, "-j", 0, script="scripts/resize_images.py")
        assert result.returncode == 0, result.stderr
    trees = [
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*.JPEG")}
        for root in (tmp_path / "small-folders", tmp_path / "small-packed")
    ]
    assert trees[0] == trees[1]
    assert len(trees[0]) == 25 + 9


def large_image() -> bytes:
    file = io.BytesIO()
    Image.effect_noise((90, 100), 50).save(file, "JPEG")
    return file.getvalue()


def test_the_loader_of_archives_is_measured_against_that_of_folders(
    folders: Path, tmp_path: Path, call: Run
) -> None:
    pack_plain(folders, tmp_path / "packed")
    flags = ("--against", "packed", "-j", 0, "--images", 8, "--img-size", 32, "--rounds", 1)
    result = call("loader", "folders", *flags, script="scripts/benchmark.py")
    assert result.returncode == 0, result.stderr
    assert "\npil, packed  " in result.stdout


@pytest.mark.parametrize("pack", [pack_official, pack_shards])
def test_random_damage_is_refused_or_harmless(folders: Path, tmp_path: Path, pack: Pack) -> None:
    """Bytes changed in headers, and archives cut off: no other error, and never another number of images."""
    draw, count = random.Random(0), len(read_all(folders)[0])
    data = pack(folders, tmp_path / "packed")
    file = next(path for path in sorted(data.rglob("*.tar")) if "train" in str(path))
    whole = file.read_bytes()
    headers = [at for at in range(0, len(whole), 512) if whole[at + 257 : at + 262] == b"ustar"]
    refused = 0
    for _ in range(150):
        spoilt = bytearray(whole)
        if draw.random() < 0.2:
            del spoilt[draw.randrange(len(whole)) :]
        else:
            spoilt[draw.choice(headers) + draw.randrange(512)] ^= 1 << draw.randrange(8)
        file.write_bytes(spoilt)
        try:
            splits = open_data(str(data), evaluate=False, use_cache=False)
        except UserError:
            refused += 1
        else:
            assert splits.train is not None
            assert len(splits.train.samples) == count
    assert refused > 100
