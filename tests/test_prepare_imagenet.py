"""scripts/prepare_imagenet.py: the same tree from every form of ImageNet, also after kills."""

import errno
import fcntl
import hashlib
import os
import random
import shutil
import signal
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import REPOSITORY, Run, assert_one_line_error
from forks import Job
from packed import (
    CLASSES,
    DEVKIT,
    IDS,
    pack_listed,
    pack_official,
    pack_plain,
    pack_shards,
    write_devkit,
    write_folders,
)
from torchvision.datasets.imagenet import ARCHIVE_META

from scripts.lib import prepare_target
from scripts.lib.prepare_sources import Image, read_solution
from utils.common.errors import UserError
from utils.data.archive_index import ArchiveIndex
from utils.data.content import content, place_of
from utils.data.labels import imagenet_classes
from utils.data.splits import open_data

SCRIPT = "scripts/prepare_imagenet.py"
NOTE = "prepared.txt"
Tree = dict[str, bytes]


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    return write_folders(tmp_path / "folders", training=4)


@pytest.fixture
def prepare(call: Run) -> Run:
    return lambda *arguments: call(*arguments, script=SCRIPT)


def tree(folder: Path) -> Tree:
    """The content of all files but the note, hidden files too."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != NOTE]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def validation(folders: Path) -> list[Path]:
    return sorted((folders / "val").rglob("*.JPEG"), key=lambda file: file.name)


def pack_flat(folders: Path, target: Path) -> Path:
    """Training images in class folders, a flat ``val/``, and the devkit."""
    shutil.copytree(folders / "train", target / "train")
    (target / "val").mkdir()
    files = validation(folders)
    for file in files:
        shutil.copy(file, target / "val")
    write_devkit(target, [IDS[CLASSES.index(file.parent.name)] for file in files])
    return target


def pack_flat_listed(folders: Path, target: Path) -> Path:
    pack_flat(folders, target)
    (target / DEVKIT).unlink()
    (target / "val.txt").write_text("".join(f"{file.parent.name}\n" for file in validation(folders)))
    return target


def pack_kaggle(folders: Path, target: Path) -> Path:
    data = target / "ILSVRC" / "Data" / "CLS-LOC"
    pack_flat(folders, data)
    (data / DEVKIT).unlink()
    (data / "test").mkdir()
    lines = [
        f"{file.stem},{file.parent.name} 1 2 30 40 {file.parent.name} 5 6 7 8 \n"
        for file in reversed(validation(folders))
    ]
    (target / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "".join(lines))
    return target


def pack_links(folders: Path, target: Path) -> Path:
    """Links to the files, in folders that are links."""
    target.mkdir()
    for split in ("train", "val"):
        (target / split).symlink_to(folders / split)
    return target


FORMS: dict[str, Callable[[Path, Path], Path]] = {
    "official": pack_official,
    "official with a list of labels": pack_listed,
    "plain": pack_plain,
    "shards": pack_shards,
    "flat": pack_flat,
    "flat with a list of labels": pack_flat_listed,
    "Kaggle": pack_kaggle,
    "links": pack_links,
}


@pytest.mark.parametrize("form", FORMS)
def test_the_tree_is_that_of_the_class_folders(
    prepare: Run, folders: Path, tmp_path: Path, form: str, cache: Path
) -> None:
    expected = tree(folders)
    source = FORMS[form](folders, tmp_path / "source")
    before = tree(source)
    result = prepare("source", "target")
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()[-2:]
    assert lines[0].startswith("train: 12 images in 3 classes, 0.00 GB: 12 written, 0 there before")
    assert lines[1].startswith("val: 9 images in 3 classes, 0.00 GB: 9 written, 0 there before")
    assert tree(tmp_path / "target") == expected
    assert not [path for path in (tmp_path / "target").rglob("*") if path.is_symlink()]
    assert tree(source) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folders", "source", "target"]
    assert not cache.exists()
    again = prepare("source", "target")
    assert "0 written, 12 there before" in again.stdout
    assert tree(tmp_path / "target") == expected


def read(data: Path) -> list[list[tuple[str, int, bytes]]]:
    splits = open_data(str(data), evaluate=False, use_cache=False)
    assert splits.train is not None
    assert isinstance(splits.val.samples, ArchiveIndex) == (data / "val.tar").exists()
    return [
        [(place_of(path, data), label, bytes(content(path))) for path, label in of.samples]
        for of in (splits.train, splits.val)
    ]


def test_tars_are_the_same_from_every_form_and_are_read_as_folders_are(
    prepare: Run, folders: Path, tmp_path: Path
) -> None:
    made = []
    for number, form in enumerate(FORMS.values()):
        form(folders, tmp_path / f"source-{number}")
        result = prepare(f"source-{number}", f"target-{number}", "--tar")
        assert (result.returncode, result.stderr) == (0, "")
        made.append(tree(tmp_path / f"target-{number}"))
    assert all(one == made[0] for one in made)
    assert made[0].keys() == {"train.tar", "val.tar"}
    assert read(tmp_path / "target-0") == read(folders)
    with tarfile.open(tmp_path / "target-0" / "train.tar") as tar:
        members = tar.getmembers()
    assert len(members) == 12
    assert {(m.uid, m.gid, m.mtime, m.mode, m.isfile()) for m in members} == {(0, 0, 0, 0o644, True)}
    assert "0 written, 12 there before" in prepare("source-0", "target-0", "--tar").stdout


def test_names_of_any_length_and_bytes(prepare: Run, folders: Path, tmp_path: Path) -> None:
    names = ("a" * 150 + ".jpg", os.fsdecode(b"caf\xe9\n.jpg"))
    for name in names:
        shutil.copy(validation(folders)[0], folders / "val" / CLASSES[1] / name)
    for flags in ((), ("--tar",)):
        target = f"target{len(flags)}"
        assert prepare("folders", target, *flags).returncode == 0
        assert read(tmp_path / target) == read(folders)


@pytest.mark.parametrize("flags", [(), ("--tar",)], ids=["folders", "tar"])
def test_killed_at_any_moment(
    prepare: Run,
    start: Callable[..., Job],
    tmp_path: Path,
    flags: tuple[str, ...],
) -> None:
    kill_and_compare(prepare, start, tmp_path, flags, 3)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("--tar",)], ids=["folders", "tar"])
def test_killed_at_ten_moments(
    prepare: Run, start: Callable[..., Job], tmp_path: Path, flags: tuple[str, ...]
) -> None:
    kill_and_compare(prepare, start, tmp_path, flags, 10)


@pytest.mark.parametrize("after", [1, 7, 20])
def test_a_half_written_archive_is_continued(
    prepare: Run, folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """Where its headers are not those of the source, or its last bytes may be lost, it is written again."""
    prepare("folders", "whole", "--tar")
    (tmp_path / "target").mkdir()
    shutil.copy(tmp_path / "whole" / NOTE, tmp_path / "target")
    monkeypatch.setattr(prepare_target, "SYNC", 2000)
    whole = (tmp_path / "whole" / "train.tar").read_bytes()
    with tarfile.open(tmp_path / "whole" / "train.tar") as tar:
        ends = [member.offset for member in tar][1:]
    for damaged in (False, True):
        part = bytearray(whole[: ends[5] + 2000 + after])
        part[-1500:] = bytes(1500)  # as after a power cut
        if damaged:
            part[ends[2] + 3] ^= 1
        (tmp_path / "target" / ".train.tar.unfinished").write_bytes(part)
        result = prepare("folders", "target", "--tar")
        assert f"train: 12 images in 3 classes, 0.00 GB: {9 if damaged else 6} written" in result.stdout
        assert tree(tmp_path / "target") == tree(tmp_path / "whole")
        (tmp_path / "target" / "train.tar").unlink()


def test_files_of_another_size_are_written_again(prepare: Run, folders: Path, tmp_path: Path) -> None:
    """A power cut leaves such files."""
    prepare("folders", "target")
    lost = tmp_path / "target" / "train" / CLASSES[0] / f"{CLASSES[0]}_0.JPEG"
    lost.write_bytes(b"")
    (tmp_path / "target" / ".unfinished").write_bytes(b"half")
    assert (
        "train: 12 images in 3 classes, 0.00 GB: 1 written, 11 there before"
        in prepare("folders", "target").stdout
    )
    assert tree(tmp_path / "target") == tree(folders)


def test_interrupted(prepare: Run, folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = iter(range(5))

    def read(image: Image) -> bytes | bytearray:
        if next(images, None) is None:
            raise KeyboardInterrupt
        return image.read()

    with monkeypatch.context() as patched:
        patched.setattr(prepare_target, "_read", read)
        result = prepare("folders", "target")
    assert (result.returncode, result.stderr.strip()) == (130, "interrupted")
    assert "7 written, 5 there before" in prepare("folders", "target").stdout
    assert tree(tmp_path / "target") == tree(folders)


def kill_and_compare(
    prepare: Run, start: Callable[..., Job], tmp_path: Path, flags: tuple[str, ...], kills: int
) -> None:
    """Kill a process when it has written a random share of the images, so many times, and go on."""
    folders = write_folders(tmp_path / "folders", training=1, validation=1)
    data = validation(folders)[0].read_bytes()
    for i in range(300):
        (folders / "train" / CLASSES[i % 3] / f"{CLASSES[i % 3]}_{i}.JPEG").write_bytes(
            data + bytes([i % 251])
        )
    pack_official(folders, tmp_path / "source")
    assert prepare("source", "whole", *flags).returncode == 0
    target, chance = tmp_path / "target", random.Random(kills)
    total = sum(map(len, tree(tmp_path / "whole").values()))
    codes = set[int | None]()
    for share in sorted(chance.uniform(0, 0.9) for _ in range(kills)):
        job = start(REPOSITORY / SCRIPT, "source", "target", *flags)
        while job.running and written(target) < share * total:
            time.sleep(0.001)
        job.kill()
        job.processes[0].join()
        codes.add(job.returncode)
        for name, data in tree(target).items():
            assert "unfinished" in name or data == (tmp_path / "whole" / name).read_bytes()
    assert -signal.SIGKILL in codes <= {-signal.SIGKILL, 0}
    assert prepare("source", "target", *flags).returncode == 0
    assert tree(target) == tree(tmp_path / "whole")
    assert (target / NOTE).read_bytes() == (tmp_path / "whole" / NOTE).read_bytes()


def written(target: Path) -> int:
    total = 0
    for folder, _, names in os.walk(target):
        for name in names:
            try:
                total += (Path(folder) / name).stat().st_size
            except FileNotFoundError:
                continue
    return total


def test_check(prepare: Run, folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = pack_official(folders, tmp_path / "source")
    result = prepare("source", "target", "--check")
    name, published = ARCHIVE_META["train"]
    assert_one_line_error(result, f"source/{name}: its MD5 sum is ", f"published is {published}: download it")
    assert tree(tmp_path / "target") == {}
    for key, (file, _) in ARCHIVE_META.items():
        digest = hashlib.md5((source / file).read_bytes()).hexdigest()
        monkeypatch.setitem(ARCHIVE_META, key, (file, digest))
    result = prepare("source", "target", "--check")
    assert (result.returncode, result.stderr) == (1, "")
    assert "trouble: train/ has 3 classes and 12 images, ImageNet 1,000 and 1,281,167" in result.stdout
    assert "trouble: val/ has 3 classes and 9 images, ImageNet 1,000 and 50,000" in result.stdout
    assert tree(tmp_path / "target") == tree(folders)
    monkeypatch.setattr("scripts.lib.data_contents.IMAGENET_CLASSES", 3)
    sizes = (("train", ("train",), 12), ("val", ("val",), 9))
    monkeypatch.setattr("scripts.lib.prepare_sources.SPLITS", sizes)
    assert prepare("source", "target", "--check").returncode == 0


def test_one_split_alone(prepare: Run, folders: Path, tmp_path: Path) -> None:
    source = pack_official(folders, tmp_path / "source")
    (source / "ILSVRC2012_img_train.tar").unlink()
    result = prepare("source", "target")
    assert result.returncode == 0
    assert "note: source: looked for train/" in result.stdout
    assert tree(tmp_path / "target") == {k: v for k, v in tree(folders).items() if k.startswith("val/")}


def test_what_is_left_out(prepare: Run, folders: Path, tmp_path: Path) -> None:
    (folders / "train" / "loose.jpg").touch()
    (folders / "train" / CLASSES[0] / "dead.jpg").symlink_to("nowhere")
    (folders / "train" / CLASSES[0] / "note.txt").touch()
    result = prepare("folders", "target")
    assert (result.returncode, result.stderr) == (1, "")
    assert "note: train: 1 file without the suffix of an image: left out" in result.stdout
    assert "trouble: train/ has 1 loose image (train/loose.jpg)" in result.stdout
    assert "trouble: train/ has 1 dead link (train/n01440764/dead.jpg)" in result.stdout
    assert len(tree(tmp_path / "target")) == 21


def test_images_that_kaggles_list_has_and_the_folder_lacks(
    prepare: Run, folders: Path, tmp_path: Path
) -> None:
    data = pack_kaggle(folders, tmp_path / "source") / "ILSVRC" / "Data" / "CLS-LOC"
    (data / "val" / "ILSVRC2012_val_00000002.JPEG").unlink()
    result = prepare("source", "target")
    assert result.returncode == 1
    assert "trouble: val/ has 1 missing image (val/ILSVRC2012_val_00000002)" in result.stdout
    assert len(tree(tmp_path / "target")) == 20


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_disk_space(prepare: Run, folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def usage(path: Path) -> Usage:
        asked.append(path)
        return Usage(10**9, 0, 30_000)

    monkeypatch.setattr(prepare_target.shutil, "disk_usage", usage)
    for flags in ((), ("--tar",)):
        result = prepare("folders", "new/target", *flags)
        assert_one_line_error(result, "new/target: ", "GB are needed, 0.00 GB are free: make room")
    assert asked == [tmp_path, tmp_path]
    assert not (tmp_path / "new").exists()


def test_what_is_there_needs_no_space(
    prepare: Run, folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare("folders", "target")
    monkeypatch.setattr(prepare_target.shutil, "disk_usage", lambda _: Usage(10**9, 10**9, 0))
    assert prepare("folders", "target").returncode == 0
    next((tmp_path / "target").rglob("*.JPEG")).unlink()
    assert_one_line_error(prepare("folders", "target"), "make room")


def made(name: str, change: Callable[[Path], object]) -> Callable[[Path, Path], object]:
    return lambda folders, source: change(FORMS[name](folders, source))


def first(folder: Path) -> Path:
    return sorted(folder.iterdir())[0]


def move_up(folder: Path) -> None:
    """Make a folder of class folders flat."""
    for path in list(folder.rglob("*.JPEG")):
        path.rename(folder / path.name)
    for name in CLASSES:
        (folder / name).rmdir()


BAD: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "no folder": (lambda folders, source: None, "source: no such folder"),
    "a file": (lambda folders, source: source.touch(), "source: not a folder"),
    "empty": (lambda folders, source: source.mkdir(), "source: no train/ or val/, no tar archives"),
    "no labels": (
        made("flat", lambda source: (source / DEVKIT).unlink()),
        f"val has no folders: put {DEVKIT} beside it, or val.txt",
    ),
    "an image less than labels": (
        made("flat", lambda source: first(source / "val").unlink()),
        "9 labels for 8 images of val; give the labels",
    ),
    "another name": (
        made("flat", lambda source: first(source / "val").rename(source / "val" / "x.jpg")),
        "image 1 of ILSVRC2012_devkit_t12.tar.gz is ILSVRC2012_val_00000001.JPEG, here",
    ),
    "an image more than labels": (
        made("flat with a list of labels", lambda source: (source / "val" / "y.jpg").touch()),
        "9 labels for 10 images",
    ),
    "a label that leads out": (
        made("flat with a list of labels", lambda source: (source / "val.txt").write_text("..\n" * 9)),
        "../ILSVRC2012_val_00000001.JPEG",
    ),
    "flat training images": (
        made("flat", lambda source: move_up(source / "train")),
        "train has no class folders: training images need them",
    ),
    "no list of Kaggle's": (
        made("Kaggle", lambda source: (source / "LOC_val_solution.csv").unlink()),
        "LOC_val_solution.csv is missing",
    ),
    "an empty list of Kaggle's": (
        made("Kaggle", lambda source: (source / "LOC_val_solution.csv").write_text("")),
        "its first line must be ImageId,PredictionString",
    ),
    "an unlisted image": (
        made("Kaggle", lambda source: (source / "ILSVRC/Data/CLS-LOC/val/new.JPEG").touch()),
        "no line for 1 image of",
    ),
    "a cut archive": (
        made("official", lambda source: os.truncate(source / "ILSVRC2012_img_val.tar", 5000)),
        "cut off",
    ),
}
SOLUTIONS = {
    "a,n01440764 1\nb,../.. 1\n": "line 3 names no class",
    "a,\n": "line 2 names no class",
    "a\n": "line 2 names no class",
    "a,n01440764\na,n01443537\n": "line 3: a has two classes",
    "\xff,n01440764\n": "no CSV file in UTF-8",
}


@pytest.mark.parametrize("case", BAD)
def test_bad_sources(prepare: Run, folders: Path, tmp_path: Path, case: str) -> None:
    make, fragment = BAD[case]
    make(folders, tmp_path / "source")
    before = tree(tmp_path)
    assert_one_line_error(prepare("source", "target"), "prepare_imagenet.py: error: ", fragment)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("lines", SOLUTIONS)
def test_bad_lists_of_kaggles(tmp_path: Path, lines: str) -> None:
    file = tmp_path / "LOC_val_solution.csv"
    file.write_bytes(b"ImageId,PredictionString\n" + lines.encode("latin-1"))
    with pytest.raises(UserError, match=SOLUTIONS[lines]):
        read_solution(file)


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (("folders",), "--help"),
        (("folders", ""), "TARGET: is empty"),
        (("folders", "folders"), "folders lies in SOURCE"),
        (("folders", "folders/train/new"), "lies in SOURCE"),
        (("linked", "folders/train/new"), "lies in SOURCE"),
        (("folders", "foreign"), "foreign is not empty and has no prepared.txt: give a new folder as TARGET"),
        (("folders", "file"), "file: File exists"),
        (("folders", "file/target"), "Not a directory"),
        (("others", "target"), "target was begun from"),
        (("folders", "target", "--tar"), "target was begun from"),
    ],
)
def test_bad_usage(
    prepare: Run, folders: Path, tmp_path: Path, arguments: tuple[str, ...], fragment: str
) -> None:
    shutil.copytree(folders, tmp_path / "others")
    prepare("folders", "target")
    pack_links(folders, tmp_path / "linked")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "mine").touch()
    (tmp_path / "file").touch()
    before = tree(tmp_path)
    assert_one_line_error(prepare(*arguments), "prepare_imagenet.py: error: ", fragment)
    assert tree(tmp_path) == before


def test_a_source_that_changed_is_refused(prepare: Run, folders: Path, tmp_path: Path) -> None:
    prepare("folders", "target")
    first(folders / "val" / CLASSES[0]).write_bytes(b"longer or shorter")
    before = tree(tmp_path)
    assert_one_line_error(prepare("folders", "target"), "target was begun from", "give the same SOURCE")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("place", ["train", f"val/{CLASSES[1]}"])
def test_nothing_is_written_through_a_link(prepare: Run, folders: Path, tmp_path: Path, place: str) -> None:
    prepare("folders", "target")
    (tmp_path / "elsewhere").mkdir()
    shutil.rmtree(tmp_path / "target" / place)
    (tmp_path / "target" / place).symlink_to(tmp_path / "elsewhere")
    assert_one_line_error(prepare("folders", "target"), "leads out of TARGET: remove the link")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_two_processes_do_not_write_at_once(prepare: Run, folders: Path, tmp_path: Path) -> None:
    prepare("folders", "target")
    with (tmp_path / "target" / NOTE).open() as note:
        fcntl.flock(note, fcntl.LOCK_EX)
        assert_one_line_error(prepare("folders", "target"), "another process is writing there")


def test_a_full_disk(prepare: Run, folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter(range(6))

    def replace(source: Path, target: Path) -> None:
        if next(calls, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        source.rename(target)

    with monkeypatch.context() as full:
        full.setattr(prepare_target.os, "replace", replace)
        assert_one_line_error(
            prepare("folders", "target"), "No space left on device; mend it and start again"
        )
    assert "6 written, 6 there before" in prepare("folders", "target").stdout
    assert tree(tmp_path / "target") == tree(folders)


def write_shards(folders: Path, target: Path, how: str = "named") -> Path:
    """Two shards of each split in an order of their own, with Hugging Face's names, or without names."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    order = list(imagenet_classes())
    (target / "data").mkdir(parents=True)
    for split, prefix in (("train", "train"), ("val", "validation")):
        files = sorted((folders / split).rglob("*.JPEG"), key=lambda file: file.name[::-1])
        files = validation(folders) if split == "val" and how == "unnamed" else files
        middle = len(files) // 2
        for number, part in enumerate((files[:middle], files[middle:])):
            images = [
                {
                    "bytes": file.read_bytes(),
                    "path": f"{file.stem}_{file.parent.name}.JPEG" if how == "named" else None,
                }
                for file in part
            ]
            labels = [order.index(file.parent.name) for file in part]
            table = pyarrow.table({"image": images, "label": labels})
            parquet.write_table(table, target / "data" / f"{prefix}-{number:05d}-of-00002.parquet")
    return target


def test_parquet_shards(prepare: Run, folders: Path, tmp_path: Path) -> None:
    write_shards(folders, tmp_path / "source")
    result = prepare("source", "target")
    assert (result.returncode, result.stderr) == (0, "")
    assert tree(tmp_path / "target") == tree(folders)
    assert "0 written, 9 there before" in prepare("source", "target").stdout
    assert prepare("source", "tars", "--tar").returncode == 0
    assert read(tmp_path / "tars") == read(folders)


def test_parquet_images_without_names(prepare: Run, folders: Path, tmp_path: Path) -> None:
    write_shards(folders, tmp_path / "source", "unnamed")
    result = prepare("source", "target")
    assert "note: val: 9 images without name, numbered by row; --real fits only if" in result.stdout
    made = tree(tmp_path / "target")
    expected = tree(folders)
    assert {k: v for k, v in made.items() if k[0] == "v"} == {
        k: v for k, v in expected.items() if k[0] == "v"
    }
    for name in CLASSES:
        images = [
            [v for k, v in of.items() if k.startswith(f"train/{name}/{name}_")] for of in (made, expected)
        ]
        assert sorted(images[0]) == sorted(images[1])


def test_a_half_written_archive_of_parquet_images_is_continued(
    prepare: Run, folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards(folders, tmp_path / "source")
    prepare("source", "target", "--tar")
    whole = tree(tmp_path / "target")
    monkeypatch.setattr(prepare_target, "SYNC", 100)
    (tmp_path / "target" / "val.tar").unlink()
    (tmp_path / "target" / ".val.tar.unfinished").write_bytes(whole["val.tar"][:9000])
    assert "val: 9 images in 3 classes" in (out := prepare("source", "target", "--tar").stdout)
    assert " 0 there before" not in out
    assert tree(tmp_path / "target") == whole


def change_table(source: Path, name: str, **columns: list[object]) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table(columns), source / "data" / name)


IMAGE = {"bytes": b"x", "path": "n01440764_1.JPEG"}
TRAIN = "train-00000-of-00002.parquet"
BAD_SHARDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (
        lambda source: (source / "data" / TRAIN).unlink(),
        "train-*.parquet: 1 shard of 2 missing (number 00000)",
    ),
    "cut": (lambda source: os.truncate(source / "data" / TRAIN, 900), f"{TRAIN}: damaged ("),
    "no label": (lambda source: change_table(source, TRAIN, image=[IMAGE]), "no column label"),
    "no bytes": (lambda source: change_table(source, TRAIN, image=[1], label=[1]), "no column image.bytes"),
    "hidden labels": (
        lambda source: change_table(source, TRAIN, image=[IMAGE], label=[-1]),
        "label -1: labels must be 0 to 999",
    ),
    "other labels": (
        lambda source: change_table(source, TRAIN, image=[IMAGE], label=[1]),
        "n01440764_1.JPEG is of n01440764 by its name, of n01443537 by its label",
    ),
    "twice": (
        lambda source: change_table(source, TRAIN, image=[IMAGE, IMAGE], label=[0, 0]),
        "n01440764/n01440764_1.JPEG is there twice",
    ),
    "no image": (
        lambda source: change_table(source, TRAIN, image=[{"bytes": b"x", "path": "a/.."}], label=[0]),
        ".. is no name of an image",
    ),
}


@pytest.mark.parametrize("case", BAD_SHARDS)
def test_bad_shards(prepare: Run, folders: Path, tmp_path: Path, case: str) -> None:
    make, fragment = BAD_SHARDS[case]
    make(write_shards(folders, tmp_path / "source"))
    assert_one_line_error(prepare("source", "target"), "prepare_imagenet.py: error: ", fragment)
    assert not (tmp_path / "target").exists()


def test_without_pyarrow(prepare: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "validation-0.parquet").touch()
    monkeypatch.setattr("utils.common.checks.importlib.util.find_spec", lambda _: None)
    assert_one_line_error(prepare("source", "target"), "pyarrow is not installed; pip install pyarrow")


def test_training_names_the_command_for_a_flat_validation_folder(
    call: Run, folders: Path, tmp_path: Path
) -> None:
    pack_flat(folders, tmp_path / "source")
    result = call("-a", "tiny", "--data", "source")
    assert_one_line_error(result, "source/val has no class folders", "prepare_imagenet.py source TARGET")
