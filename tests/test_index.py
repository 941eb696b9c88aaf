"""The index of a split: torchvision's samples in torchvision's order; a cache that notices every change."""

import io
import itertools
import multiprocessing
import os
import pickle
import random
import shutil
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from utils.data.index import Index, read_index

CLASSES = ("cat", "dog", "owl")


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders made by the test count as old: the index believes that it is ten seconds later."""
    real = time.time_ns
    monkeypatch.setattr("utils.data.index.time.time_ns", lambda: real() + 10**10)


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.fixture
def split(tmp_path: Path) -> Path:
    """Three classes of two images; one of them is a link to a folder elsewhere, one has a folder within."""
    split = tmp_path / "data" / "train"
    touch(split / "cat" / "0.png", split / "cat" / "more" / "1.png", split / "dog" / "0.png")
    touch(split / "dog" / "1.png", tmp_path / "store" / "owl" / "0.png", tmp_path / "store" / "owl" / "1.png")
    (split / "owl").symlink_to(tmp_path / "store" / "owl")
    return split


def theirs(split: Path, classes: Sequence[str] = CLASSES) -> list[tuple[str, int]]:
    label = {name: i for i, name in enumerate(classes)}
    return make_dataset(str(split), label, extensions=IMG_EXTENSIONS, allow_empty=True)


def is_kept(split: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether a true index can be had without a look into the folders."""
    empty = Index(split, np.empty(0, np.uint8), np.empty(0, np.int32))
    with monkeypatch.context() as patch:
        patch.setattr("utils.data.index._scan", lambda *_: empty)
        patch.setattr("utils.data.index._store", lambda *_: None)
        return list(read_index(split, CLASSES, use_cache=True)) == theirs(split)


def test_samples_are_a_sequence(split: Path) -> None:
    index, expected = read_index(split, CLASSES, use_cache=False), theirs(split)
    assert len(index) == len(expected) == 6
    assert list(index) == [index[i] for i in range(6)] == expected
    assert (index[-1], index[np.int64(2)], index[1:9:2]) == (expected[-1], expected[2], expected[1:9:2])
    assert all(type(label) is int for _, label in index)
    assert list(pickle.loads(pickle.dumps(index))) == expected
    for beyond in (6, -7):
        with pytest.raises(IndexError):
            index[beyond]


def test_an_index_takes_the_room_of_its_names() -> None:
    names = np.frombuffer(b"n01440764/n01440764_10026.JPEG\0" * 1000, np.uint8)
    index = Index(Path("train"), names, np.zeros(1000, np.int32))
    arrays = [value for value in vars(index).values() if isinstance(value, np.ndarray)]
    assert sum(array.nbytes for array in arrays) <= 1000 * (len("n01440764/n01440764_10026.JPEG") + 13) + 8
    assert index[999] == ("train/n01440764/n01440764_10026.JPEG", 0)


def test_awkward_names_and_links(split: Path, tmp_path: Path) -> None:
    cat = split / "cat"
    touch(
        cat / "UPPER.JPEG",
        cat / "two words.JpG",
        cat / ".jpg",
        cat / "notes.txt",
        cat / "jpg",
        cat / "new\nline.png",
    )
    touch(cat / "b" / "d" / "0.png", cat / "b-c" / "0.png", cat / "b" / "0.png", cat / "folder.png" / "0.bmp")
    touch(split / "loose.png", split / "cat-like" / "0.png", split / "unknown" / "0.png")
    byte = os.fsdecode(b"\xff")  # sorts before emoji as text, after them as bytes
    touch(cat / f"{byte}.png", cat / "😀.png", cat / "é.png", cat / byte / "0.png", cat / "😀" / "0.png")
    (cat / "file link.png").symlink_to(tmp_path / "store" / "owl" / "0.png")
    (cat / "nowhere.png").symlink_to(tmp_path / "nothing")
    (cat / "nowhere").symlink_to(tmp_path / "nothing")
    (cat / "itself.png").symlink_to(cat / "itself.png")
    (cat / "link").symlink_to(tmp_path / "store")
    (cat / "again").symlink_to(cat / "b")
    (split / "empty" / "inner").mkdir(parents=True)
    classes = ("owl", "cat-like", "dog", "empty", "missing", byte, "cat")
    touch(split / byte / "0.png")
    index = read_index(split, classes, use_cache=False)
    assert list(index) == theirs(split, classes)
    assert len(index) == 28


@pytest.mark.parametrize("seed", range(8))
def test_random_trees(tmp_path: Path, seed: int, later: None) -> None:
    draw = random.Random(seed)
    parts = [b"a", b"a-", b"a.", b"B", b"\xe9", "é".encode(), "\uff21".encode(), b"a b", b"x.png", b"~"]
    split = tmp_path / "train"
    for _ in range(60):
        folders = [os.fsdecode(draw.choice(parts)) for _ in range(draw.randint(1, 4))]
        path = split.joinpath(
            *folders, os.fsdecode(draw.choice(parts)) + draw.choice([".png", ".PNG", "", "/"])
        )
        if not any(parent.is_file() for parent in (path, *path.parents)) and not path.exists():
            touch(path)
    classes = sorted(path.name for path in split.iterdir() if path.is_dir())
    draw.shuffle(classes)
    assert list(read_index(split, classes, use_cache=True)) == theirs(split, classes)
    assert list(read_index(split, classes, use_cache=True)) == theirs(split, classes)


def test_relative_paths_stay_relative(split: Path, monkeypatch: pytest.MonkeyPatch, later: None) -> None:
    monkeypatch.chdir(split.parent)
    for folder in (split, Path("train"), split):  # one cache serves both
        assert list(read_index(folder, CLASSES, use_cache=True)) == theirs(folder)
    monkeypatch.chdir(split)
    assert list(read_index(Path(), CLASSES, use_cache=False)) == theirs(Path())


def test_links_to_folders_above_end(split: Path, tmp_path: Path) -> None:
    expected = theirs(split)
    (split / "cat" / "self").symlink_to(".")
    (split / "cat" / "more" / "split").symlink_to(split)
    (split / "dog" / "data").symlink_to(split.parent)
    (tmp_path / "store" / "owl" / "up").symlink_to(split / "owl")
    assert list(read_index(split, CLASSES, use_cache=False)) == expected


def test_no_images(tmp_path: Path, later: None) -> None:
    (tmp_path / "train" / "cat").mkdir(parents=True)
    for classes in (("cat",), ()):
        for _ in range(2):
            index = read_index(tmp_path / "train", classes, use_cache=True)
            assert (len(index), list(index), index.labels.dtype) == (0, [], np.int32)


def test_a_folder_that_cannot_be_read(split: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = os.scandir

    def refuse(folder: str) -> "Iterator[os.DirEntry[str]]":
        if folder.endswith("more/"):
            raise PermissionError(13, "Permission denied", folder)
        return scan(folder)

    monkeypatch.setattr("utils.data.index.os.scandir", refuse)  # root, who may run this, can read all
    with pytest.raises(PermissionError):
        read_index(split, CLASSES, use_cache=False)


def test_the_cache_replaces_the_walk(
    split: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, later: None
) -> None:
    assert not is_kept(split, monkeypatch)
    first = read_index(split, CLASSES, use_cache=True)
    assert [path.suffix for path in cache.iterdir()] == [".npz"]
    assert cache.stat().st_mode & 0o077 == 0
    assert is_kept(split, monkeypatch)
    assert list(first) == theirs(split)


def test_without_the_cache_nothing_is_read_or_written(split: Path, cache: Path, later: None) -> None:
    read_index(split, CLASSES, use_cache=False)
    assert not cache.exists()
    read_index(split, CLASSES, use_cache=True)
    (file,) = cache.iterdir()
    file.write_bytes(b"")
    read_index(split, CLASSES, use_cache=False)
    assert file.read_bytes() == b""


def move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    source.rename(target)


def file_becomes_a_folder(split: Path) -> None:
    (split / "dog" / "1.png").unlink()
    (split / "dog" / "1.png").mkdir()


def one_class_becomes_another(split: Path) -> None:
    move(split / "dog", split / "was dog")
    move(split / "cat", split / "dog")


def link_replaced(split: Path) -> None:
    (split / "owl").unlink()
    (split / "owl").symlink_to(split / "cat")


def target_of_link_replaced(split: Path) -> None:
    move(split.parent.parent / "store" / "owl", split.parent / "was owl")
    move(split / "cat" / "more", split.parent.parent / "store" / "owl")


def way_of_link_replaced(split: Path) -> None:
    store = split.parent.parent / "store"
    move(store, split.parent / "was store")
    touch(store / "owl" / "9.png")


def split_replaced(split: Path) -> None:
    move(split, split.parent / "was train")
    touch(split / "cat" / "7.png")


CHANGES: dict[str, Callable[[Path], None]] = {
    "file added": lambda split: touch(split / "dog" / "2.png"),
    "file added to a folder within": lambda split: touch(split / "cat" / "more" / "2.png"),
    "file added beyond a link": lambda split: touch(split / "owl" / "2.png"),
    "file removed": lambda split: (split / "dog" / "1.png").unlink(),
    "file renamed": lambda split: move(split / "dog" / "1.png", split / "dog" / "5.png"),
    "file moved": lambda split: move(split / "dog" / "1.png", split / "cat" / "1.png"),
    "file becomes a folder": file_becomes_a_folder,
    "folder added": lambda split: touch(split / "dog" / "more" / "2.png"),
    "folder renamed": lambda split: move(split / "cat" / "more", split / "cat" / "less"),
    "class removed": lambda split: shutil.rmtree(split / "dog"),
    "one class becomes another": one_class_becomes_another,
    "link replaced": link_replaced,
    "target of a link replaced": target_of_link_replaced,
    "folder on the way of a link replaced": way_of_link_replaced,
    "target of a link removed": lambda split: shutil.rmtree(split.parent.parent / "store"),
    "dead link comes to life": lambda split: touch(split.parent.parent / "later" / "0.png"),
    "split replaced": split_replaced,
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_noticed(
    split: Path, change: str, monkeypatch: pytest.MonkeyPatch, later: None
) -> None:
    (split / "dog" / "dead").symlink_to(split.parent.parent / "later")
    before = list(read_index(split, CLASSES, use_cache=True))
    assert is_kept(split, monkeypatch)
    time.sleep(0.02)  # until the next tick of the file system's clock, up to 10 ms
    CHANGES[change](split)
    after = list(read_index(split, CLASSES, use_cache=True))
    assert after == theirs(split) != before
    assert is_kept(split, monkeypatch)


def test_a_new_class_takes_its_label(split: Path, later: None) -> None:
    """A class folder that the validation split lacked, and one that the training split lacked."""
    (split / "dog").rename(split.parent / "dog")
    assert {label for _, label in read_index(split, CLASSES, use_cache=True)} == {0, 2}
    (split.parent / "dog").rename(split / "dog")
    touch(split / "bee" / "0.png")
    for classes in (CLASSES, ("bee", *CLASSES), CLASSES[::-1]):
        assert list(read_index(split, classes, use_cache=True)) == theirs(split, classes)


def test_a_time_set_back_is_noticed(split: Path, later: None) -> None:
    """An archive in parts sets a folder's time to the same value after each part."""
    os.utime(split / "dog", (1e9, 1e9))
    read_index(split, CLASSES, use_cache=True)
    time.sleep(0.02)
    touch(split / "dog" / "2.png")
    os.utime(split / "dog", (1e9, 1e9))
    assert list(read_index(split, CLASSES, use_cache=True)) == theirs(split)


def test_a_folder_that_has_just_changed_is_not_trusted(
    split: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_index(split, CLASSES, use_cache=True)
    assert not cache.exists()
    now = time.time_ns()
    monkeypatch.setattr("utils.data.index.time.time_ns", lambda: now + 3 * 10**9)
    touch(split / "dog" / "2.png")
    os.utime(split / "dog", ns=(now, now + 2 * 10**9))  # a second before that time
    read_index(split, CLASSES, use_cache=True)
    assert not cache.exists()
    os.utime(split / "dog", ns=(now, 0))  # no file system that keeps time has this one
    read_index(split, CLASSES, use_cache=True)
    assert not cache.exists()


def with_array(name: str, change: Callable[[np.ndarray], object]) -> Callable[[bytes], bytes]:
    """A cache in which one array is another."""

    def damaged(content: bytes) -> bytes:
        with np.load(io.BytesIO(content)) as arrays:
            changed = {**arrays, name: change(arrays[name])}
        file = io.BytesIO()
        np.savez(file, **changed)
        return file.getvalue()

    return damaged


def compressed(content: bytes) -> bytes:
    file = io.BytesIO()
    with np.load(io.BytesIO(content)) as arrays:
        np.savez_compressed(file, **arrays)
    return file.getvalue()


def huge(content: bytes) -> bytes:
    """An array that claims 2 ** 50 bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            array = old.read(name)
            if name == "names.npy":
                stop = array.index(b"\n")
                header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1125899906842624,), }"
                array = array[:10] + header.ljust(stop - 10) + array[stop:]
            new.writestr(name, array)
    return file.getvalue()


def flipped(content: bytes) -> bytes:
    """A name of which a letter is another one; the CRC-32 tells."""
    at = content.index(b"0.png")
    return content[:at] + b"7" + content[at + 1 :]


class Bomb:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, ...]]:
        return os.system, ("touch exploded",)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut off": lambda content: content[: len(content) // 2],
    "another file": lambda content: b"no archive of arrays",
    "a pickle": lambda content: pickle.dumps(Bomb()),
    "a single array": lambda content: content[content.index(b"\x93NUMPY") :],
    "pickled names": with_array("names", lambda names: np.array([Bomb()], dtype=object)),
    "pickled state": with_array("state", lambda state: np.array([Bomb()], dtype=object)),
    "another state": with_array("state", lambda state: state[::-1]),
    "compressed": compressed,
    "huge": huge,
    "flipped": flipped,
    "nothing watched": with_array("watched", lambda watched: watched[:0]),
    "watched text": with_array("watched", lambda watched: np.array("\udcff")),
    "names without an end": with_array("names", lambda names: names[:-1]),
    "names of two dimensions": with_array("names", lambda names: names[None]),
    "names of another type": with_array("names", lambda names: names.astype(np.int64)),
    "no names": with_array("names", lambda names: names[:0]),
    "too few labels": with_array("labels", lambda labels: labels[1:]),
    "a negative label": with_array("labels", lambda labels: -labels),
    "a label too many": with_array("labels", lambda labels: labels + 1),
    "labels of another type": with_array("labels", lambda labels: labels.astype(np.float32)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_made_anew(
    split: Path,
    cache: Path,
    damage: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    later: None,
) -> None:
    monkeypatch.chdir(cache.parent.parent)
    read_index(split, CLASSES, use_cache=True)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    file.write_bytes(DAMAGES[damage](whole))
    assert not is_kept(split, monkeypatch)
    assert list(read_index(split, CLASSES, use_cache=True)) == theirs(split)
    assert is_kept(split, monkeypatch)
    assert not Path("exploded").exists()
    assert capfd.readouterr() == ("", "")


def test_a_cache_of_another_folder_is_not_used(split: Path, cache: Path, later: None) -> None:
    other = split.parent / "val"
    shutil.copytree(split, other, symlinks=True)
    touch(other / "dog" / "2.png")
    read_index(split, CLASSES, use_cache=True)
    (mine,) = cache.iterdir()
    read_index(other, CLASSES, use_cache=True)
    (foreign,) = set(cache.iterdir()) - {mine}
    shutil.copy(foreign, mine)
    assert list(read_index(split, CLASSES, use_cache=True)) == theirs(split)


def no_place(cache: Path) -> None:
    touch(cache)


def a_file_above(cache: Path) -> None:
    touch(cache.parent)


def a_folder_in_its_place(cache: Path) -> None:
    (file,) = cache.iterdir()
    file.unlink()
    (file / "within").mkdir(parents=True)


def a_pipe_in_its_place(cache: Path) -> None:
    (file,) = cache.iterdir()
    file.unlink()
    os.mkfifo(file)


@pytest.mark.parametrize("obstacle", [no_place, a_file_above, a_folder_in_its_place, a_pipe_in_its_place])
def test_a_cache_that_cannot_be_written(
    split: Path,
    cache: Path,
    obstacle: Callable[[Path], None],
    capfd: pytest.CaptureFixture[str],
    later: None,
) -> None:
    if obstacle in (a_folder_in_its_place, a_pipe_in_its_place):
        read_index(split, CLASSES, use_cache=True)
    obstacle(cache)
    for _ in range(2):
        assert list(read_index(split, CLASSES, use_cache=True)) == theirs(split)
    assert capfd.readouterr() == ("", "")
    assert not cache.is_dir() or not [path for path in cache.iterdir() if path.name.startswith(".")]


def test_a_user_without_a_home(split: Path, monkeypatch: pytest.MonkeyPatch, later: None) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(split.parent / "home"))
    read_index(split, CLASSES, use_cache=True)
    assert len(list((split.parent / "home" / ".cache" / "pytorch-insight").iterdir())) == 1

    def fail(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", fail)
    assert list(read_index(split, CLASSES, use_cache=True)) == theirs(split)


def read_often(split: Path) -> bool:
    return all(
        list(read_index(split, CLASSES[::step], True)) == theirs(split, CLASSES[::step])
        for step in (1, -1) * 20
    )


def test_processes_that_write_at_once(split: Path, cache: Path, later: None) -> None:
    """Each wants labels in either order by turns, so that all keep writing."""
    with multiprocessing.get_context("fork").Pool(3) as pool:
        assert pool.map(read_often, [split] * 3, chunksize=1) == [True] * 3
    assert len(list(cache.iterdir())) == 1


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stdout", "hours", "seen"), [(Terminal(), 1, True), (Terminal(), 0, False), (io.StringIO(), 1, False)]
)
def test_a_bar_for_those_who_wait_at_a_terminal(
    split: Path, monkeypatch: pytest.MonkeyPatch, stdout: io.StringIO, hours: int, seen: bool
) -> None:
    now, looks = time.time(), itertools.count()
    monkeypatch.setattr("tqdm.std.time", lambda: now + 3600 * hours * next(looks))
    monkeypatch.setattr(sys, "stdout", stdout)
    read_index(split, CLASSES, use_cache=False)
    assert ("indexing train" in stdout.getvalue()) == seen


@pytest.mark.slow
def test_a_second_start_does_not_walk_a_hundred_thousand_files(
    tmp_path: Path, later: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"c{label:03d}" for label in range(100)]
    for name in names:
        (tmp_path / name).mkdir()
        for file in range(1000):
            (tmp_path / name / f"{file}.JPEG").touch()
    first = read_index(tmp_path, names, use_cache=True)
    assert len(first) == 100_000
    monkeypatch.setattr("utils.data.index.os.scandir", None)
    second = read_index(tmp_path, names, use_cache=True)
    assert list(second) == list(first)
