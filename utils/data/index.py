"""Which images a split has, and their labels; kept between runs.

The samples are in arrays. Of a list of tuples each data worker would soon have a copy of its own: to read
one is to count a reference to it, and that writes to a page that the processes shared.

The cache, ``$XDG_CACHE_HOME/pytorch-insight`` or ``~/.cache/pytorch-insight``, has a file for each split. It
is used while no folder of the split has changed. File systems over object stores may not record that one did.
"""

import hashlib
import os
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray
from torchvision.datasets.folder import IMG_EXTENSIONS
from tqdm import tqdm

from utils.common.files import write_atomically

VERSION = 1  # of the cache's content
TICK = 2_000_000_000  # ns; of the coarsest clock that a file system has (FAT)

# Inode, time of modification and time of change (ns); None where nothing is. A program that unpacks or
# copies may set the time of modification back, but not the other.
Stamp = tuple[int, int, int] | None


class Index(Sequence[tuple[str, int]]):
    """Path and label of each image.

    Args:
        split: the folder, as the paths shall begin.
        names: (bytes,), uint8: paths within the folder, as the system has them, a zero byte after each.
        labels: (images,), int32.

    Raises:
        ValueError: the arrays are of another form, or don't fit each other.
    """

    def __init__(self, split: Path, names: NDArray[np.uint8], labels: NDArray[np.int32]) -> None:
        if (names.dtype, names.ndim, labels.dtype, labels.ndim) != (np.uint8, 1, np.int32, 1):
            raise ValueError("names must be a row of uint8, labels one of int32")
        self.split = split
        self.names = names
        self.labels = labels
        self.starts = np.concatenate([[0], np.flatnonzero(names == 0) + 1])
        if len(self.starts) != len(labels) + 1 or self.starts[-1] != len(names):
            raise ValueError(f"{len(labels)} labels for {len(self.starts) - 1} names")

    def __len__(self) -> int:
        return len(self.labels)

    @overload
    def __getitem__(self, at: int) -> tuple[str, int]: ...

    @overload
    def __getitem__(self, at: slice) -> list[tuple[str, int]]: ...

    def __getitem__(self, at: int | slice) -> tuple[str, int] | list[tuple[str, int]]:
        if isinstance(at, slice):
            return [self[i] for i in range(len(self))[at]]
        i = range(len(self))[at]
        name = self.names[self.starts[i] : self.starts[i + 1] - 1].tobytes()
        return f"{self.split}/{os.fsdecode(name)}", int(self.labels[i])


def read_index(split: Path, classes: Sequence[str], use_cache: bool) -> Index:
    """The images of a split in the order of ``torchvision.datasets.folder.make_dataset``.

    Links are followed, except to a folder that they lie in.

    Args:
        split: the folder of the class folders.
        classes: their names by label; those without a folder have no images, other folders are left out.
        use_cache: whether an index of an earlier run will do, and later runs may use this one.

    Raises:
        OSError: a folder cannot be read.
    """
    if use_cache and (kept := _load(split, classes)) is not None:
        return kept
    started = time.time_ns()
    stamps: dict[str, Stamp] = {}
    index = _scan(split, classes, stamps)
    # A folder that changes twice within a tick has the same time after both.
    times = (at for stamp in stamps.values() if stamp for at in stamp[1:])
    if use_cache and all(0 < at < started - TICK for at in times):
        _store(index, classes, stamps)
    return index


def _scan(split: Path, classes: Sequence[str], stamps: dict[str, Stamp]) -> Index:
    """Index a split and note in ``stamps``, by path within it, what the index depends on."""
    label = {name: i for i, name in enumerate(classes)}
    folders = tqdm(
        _walk(split, label, stamps),
        desc=f"indexing {split.name}",
        unit=" folders",
        leave=False,
        file=sys.stdout,  # of several processes one has it
        disable=None,
        delay=2,
    )
    found = []
    for folder, images in folders:
        name = folder.partition("/")[0]
        if name and images:
            paths = "".join(f"{folder}{image}\0" for image in sorted(images))
            found.append((name, folder[:-1], os.fsencode(paths), len(images)))
    found.sort()  # class by class; without the slash, "a/b-c" stands before "a/b/d"
    names = np.frombuffer(b"".join(paths for _, _, paths, _ in found), np.uint8)
    labels = np.array([label[name] for name, *_ in found], np.int32)
    return Index(split, names, labels.repeat(np.array([count for *_, count in found], np.int64)))


def _walk(split: Path, classes: Collection[str], stamps: dict[str, Stamp]) -> Iterator[tuple[str, list[str]]]:
    """Yield the folders, as paths within the split that end in a slash, and the names of their images."""
    outside = frozenset((at.st_dev, at.st_ino) for at in map(Path.stat, split.resolve().parents))
    waiting = [("", outside)]
    while waiting:
        folder, above = waiting.pop()
        status = (split / folder).stat()
        stamps[folder] = _stamp(status)
        here = (status.st_dev, status.st_ino)
        if here in above:
            continue
        images, folders, links = _list(f"{split}/{folder}")
        stamps.update((folder + name, _stamp_of(split / folder / name)) for name in links)
        yield folder, images
        inside = above | {here}
        waiting += [(f"{folder}{name}/", inside) for name in folders if folder or name in classes]


def _list(folder: str) -> tuple[list[str], list[str], list[str]]:
    """The names of images, of folders, and of links that lead to neither and one day may lead to a folder."""
    images, folders, links = [], [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if _is_folder(entry):
                folders.append(entry.name)
            elif entry.name.lower().endswith(IMG_EXTENSIONS):
                images.append(entry.name)
            elif entry.is_symlink():
                links.append(entry.name)
    return images, folders, links


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, for one; to torchvision it is a file
        return False


def _stamp(status: os.stat_result) -> Stamp:
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns


def _stamp_of(path: Path) -> Stamp:
    try:
        return _stamp(path.stat())
    except OSError:
        return None


def _cache_file(split: Path) -> Path:
    """Where the index of a split is kept.

    Raises:
        RuntimeError: the user has no home.
    """
    digest = hashlib.sha256(os.fsencode(split.absolute())).hexdigest()
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return caches / "pytorch-insight" / f"index-{digest[:16]}.npz"


def _state(split: Path, classes: Sequence[str], stamps: dict[str, Stamp]) -> NDArray[np.uint8]:
    """A digest of all that an index depends on."""
    state = repr((VERSION, str(split.absolute()), list(classes), IMG_EXTENSIONS, list(stamps.items())))
    return np.frombuffer(hashlib.sha256(state.encode()).digest(), np.uint8)


def _store(index: Index, classes: Sequence[str], stamps: dict[str, Stamp]) -> None:
    """Keep an index, unless the place cannot be written: then the next run makes it again."""
    state = _state(index.split, classes, stamps)
    watched = np.frombuffer(os.fsencode("\0".join(stamps)), np.uint8)
    with suppress(OSError, RuntimeError):
        file = _cache_file(index.split)
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # the names may be private
        write_atomically(
            file,
            lambda new: np.savez(new, state=state, watched=watched, names=index.names, labels=index.labels),
        )


def _load(split: Path, classes: Sequence[str]) -> Index | None:
    """The index that an earlier run kept; None if it is not whole or no longer true."""
    try:
        file = _cache_file(split)
        if not file.is_file():  # a pipe would keep its reader waiting
            return None
        with np.load(file, allow_pickle=False) as cache:
            if any(entry.compress_type for entry in cache.zip.infolist()):  # these could fill the memory
                return None
            watched = os.fsdecode(cache["watched"].tobytes()).split("\0")
            stamps = {name: _stamp_of(split / name) for name in watched}
            if not np.array_equal(cache["state"], _state(split, classes, stamps)):
                return None
            index = Index(split, cache["names"], cache["labels"])
        labelled = not len(index) or 0 <= index.labels.min() <= index.labels.max() < len(classes)
        return index if labelled else None
    except Exception:  # numpy and zipfile raise anything over a damaged file
        return None
