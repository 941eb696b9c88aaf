"""The images of a split and their labels, cached between runs.

The samples are in arrays. A list of tuples would soon be copied into every data worker: reading a tuple
changes its reference count, which writes to a page of memory that the processes share.

The cache has a file for each split in ``$XDG_CACHE_HOME/pytorch-insight`` or ``~/.cache/pytorch-insight``. It
is used as long as no folder of the split has changed. File systems on top of object stores may not record
that a folder has changed.
"""

import hashlib
import os
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray
from torchvision.datasets.folder import IMG_EXTENSIONS
from tqdm import tqdm

from utils.common.files import write_atomically
from utils.data.folders import Folder, is_image, walk

VERSION = 1  # of the cache's content
TICK = 2_000_000_000  # ns; of the coarsest clock that a file system has (FAT)

# Inode, time of modification and time of change (ns); None if there is no such file. Programs that unpack or
# copy may set the time of modification back, but not the time of change.
Stamp = tuple[int, int, int] | None
Kept = TypeVar("Kept")


class Index(Sequence[tuple[str, int]]):
    """Path and label of each image.

    Args:
        split: the folder that all paths begin with.
        names: (bytes,), uint8: paths within the folder, in the system's encoding, each ended by a zero byte.
        labels: (images,), int32.

    Raises:
        ValueError: the shapes or types of the arrays are wrong, or their lengths do not match.
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
        return self.path(i, os.fsdecode(name)), int(self.labels[i])

    def path(self, i: int, name: str) -> str:
        """Return the path of an image from its number and its name in ``names``."""
        return f"{self.split}/{name}"


def read_index(split: Path, classes: Sequence[str], use_cache: bool) -> Index:
    """Return the images of a split in the order of ``torchvision.datasets.folder.make_dataset``.

    Links are followed, except to a folder that they lie in.

    Args:
        split: the folder of the class folders.
        classes: the names of the class folders by label. One may be missing; other folders are left out.
        use_cache: whether to use the index of an earlier run, and to keep this one for later runs.

    Raises:
        OSError: a folder cannot be read.
    """
    if use_cache and (kept := _load(split, classes)) is not None:
        return kept
    started = time.time_ns()
    stamps: dict[str, Stamp] = {}
    index = _scan(split, classes, stamps)
    if use_cache and settled(stamps.values(), started):
        _store(index, classes, stamps)
    return index


def settled(stamps: Iterable[Stamp], started: int) -> bool:
    """Whether nothing can have changed unnoticed since a walk began at ``started`` (ns).

    What changes twice within a tick has the same time after both changes.
    """
    times = (at for stamp in stamps if stamp for at in stamp[1:])
    return all(0 < at < started - TICK for at in times)


def _scan(split: Path, classes: Sequence[str], stamps: dict[str, Stamp]) -> Index:
    """Index a split, and fill ``stamps`` (by path within it) with all that the index depends on."""
    label = {name: i for i, name in enumerate(classes)}
    folders = tqdm(
        _class_folders(split, label, stamps),
        desc=f"indexing {split.name}",
        unit=" folders",
        leave=False,
        file=sys.stdout,  # silenced in all processes but one
        disable=None,
        delay=2,
    )
    found = []
    for folder in folders:
        if images := sorted(entry.name for entry in folder.files if is_image(entry.name)):
            paths = "".join(f"{folder.path}{image}\0" for image in images)
            found.append((folder.path.partition("/")[0], folder.path[:-1], os.fsencode(paths), len(images)))
    found.sort()  # class by class; without the slash, "a/b-c" stands before "a/b/d"
    names = np.frombuffer(b"".join(paths for _, _, paths, _ in found), np.uint8)
    labels = np.array([label[name] for name, *_ in found], np.int32)
    return Index(split, names, labels.repeat(np.array([count for *_, count in found], np.int64)))


def _class_folders(split: Path, classes: Collection[str], stamps: dict[str, Stamp]) -> Iterator[Folder]:
    """Walk through the folders of these classes, and note the stamps of folders and links."""
    for folder in walk(split):
        stamps[folder.path] = _stamp(folder.status)
        # A link that leads to no folder may lead to one later.
        links = (at for at in folder.files if at.is_symlink() and not is_image(at.name))
        stamps.update((folder.path + link.name, stamp_of(Path(link.path))) for link in links)
        if folder.path:
            yield folder
        else:
            folder.folders[:] = [entry for entry in folder.folders if entry.name in classes]


def _stamp(status: os.stat_result) -> Stamp:
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns


def stamp_of(path: Path) -> Stamp:
    """Return what changes with a file or folder."""
    try:
        return _stamp(path.stat())
    except OSError:
        return None


def _cache_file(split: Path) -> Path:
    """Return the file that keeps the index of a split, which is a folder or an archive.

    Raises:
        RuntimeError: the user has no home folder.
    """
    digest = hashlib.sha256(os.fsencode(split.absolute())).hexdigest()
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return caches / "pytorch-insight" / f"index-{digest[:16]}.npz"


def _state(split: Path, classes: Sequence[str], stamps: dict[str, Stamp]) -> NDArray[np.uint8]:
    """Return a digest of all that an index depends on."""
    state = repr((VERSION, str(split.absolute()), list(classes), IMG_EXTENSIONS, list(stamps.items())))
    return np.frombuffer(hashlib.sha256(state.encode()).digest(), np.uint8)


def _store(index: Index, classes: Sequence[str], stamps: dict[str, Stamp]) -> None:
    """Keep an index for later runs."""
    watched = np.frombuffer(os.fsencode("\0".join(stamps)), np.uint8)
    arrays: dict[str, NDArray[Any]] = {"watched": watched, "names": index.names, "labels": index.labels}
    keep(index.split, {"state": _state(index.split, classes, stamps), **arrays})


def _load(split: Path, classes: Sequence[str]) -> Index | None:
    """Return the index that an earlier run kept; None if it is damaged or out of date."""
    return kept(split, lambda cache: _restored(split, classes, cache))


def _restored(split: Path, classes: Sequence[str], cache: Mapping[str, NDArray[Any]]) -> Index | None:
    watched = os.fsdecode(cache["watched"].tobytes()).split("\0")
    stamps = {name: stamp_of(split / name) for name in watched}
    if not np.array_equal(cache["state"], _state(split, classes, stamps)):
        return None
    index = Index(split, cache["names"], cache["labels"])
    return index if labelled(index, len(classes)) else None


def labelled(index: Index, classes: int) -> bool:
    """Whether all labels are of so many classes."""
    return not len(index) or bool(0 <= index.labels.min() <= index.labels.max() < classes)


def keep(place: Path, arrays: Mapping[str, Any]) -> None:
    """Keep what was found in ``place``; what cannot be written is found anew by the next run."""
    with suppress(OSError, RuntimeError):
        file = _cache_file(place)
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # the names may be private
        write_atomically(file, lambda new: np.savez(new, **arrays))


def kept(place: Path, restore: Callable[[Mapping[str, NDArray[Any]]], Kept | None]) -> Kept | None:
    """Return what ``restore`` makes of the arrays that an earlier run kept; None if they are damaged."""
    try:
        file = _cache_file(place)
        if not file.is_file():  # reading a pipe would wait forever
            return None
        with np.load(file, allow_pickle=False) as cache:
            if any(entry.compress_type for entry in cache.zip.infolist()):  # it might fill the memory
                return None
            return restore(cache)
    except Exception:  # a damaged file makes numpy and zipfile raise exceptions of many types
        return None
