"""Image data sets in archives: which files they are, and their index, cached between runs."""

import json
import os
import re
import stat
import time
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torchvision.datasets.folder import IMG_EXTENSIONS

from utils.common.errors import UserError
from utils.common.text import shown
from utils.data.archive_forms import scan
from utils.data.archive_index import PLACES, ArchiveIndex, Contents
from utils.data.content import Archive
from utils.data.index import Stamp, keep, kept, labelled, settled, stamp_of
from utils.data.truth import truth_files

VERSION = 1  # of the cache's content
MOST = 2**16  # archives of a split
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
KEPT = ("classes", "before", "after", "left_out", "digest")  # of the contents, in the cache


def find_archives(root: Path, names: Sequence[str]) -> list[Path]:
    """Return the archives of a split in a folder: one, or the shards of WebDataset; none if there are none.

    Args:
        root: the folder.
        names: of the split.

    Raises:
        UserError: there are several that might be the split.
    """
    stems = (*names, f"ILSVRC2012_img_{names[0]}")
    single = [[path] for path in (root / f"{stem}.tar" for stem in stems) if path.is_file()]
    shards = [sorted((root / name).glob("*.tar")) for name in names]
    tars = sorted(root.glob("*.tar"))
    shards += [[path for path in tars if re.search(rf"(?:^|-){name}-", path.name)] for name in names]
    found = single + [paths for paths in shards if paths]
    packed = (root / f"{stem}{suffix}" for stem in stems for suffix in COMPRESSED)
    found = found or [[path] for path in packed if path.is_file()]  # refused with the remedy when read
    if len(found) > 1:
        both = " and ".join(paths[0].relative_to(root).as_posix() for paths in found[:2])
        raise UserError(f"--data {root}: {both}: rename or remove the one not to be used")
    return found[0] if found else []


def read_archives(split: Path, paths: Sequence[Path], use_cache: bool) -> ArchiveIndex:
    """Index the archives of a split.

    Args:
        split: the folder that the images would lie in, if they were unpacked.
        paths: the archives.
        use_cache: whether to use the index of an earlier run, and to keep this one for later runs.

    Raises:
        UserError: they cannot be read, or do not say the class of every image.
    """
    stamps = {str(path): stamp_of(path) for path in (*paths, *truth_files(paths[0]))}
    archives = tuple(map(_archive, paths))
    state = _state(split, archives, stamps)
    if use_cache and (found := kept(paths[0], lambda cache: _restored(split, archives, state, cache))):
        return found
    started = time.time_ns()
    if len(paths) > MOST:
        raise UserError(f"{shown(str(paths[0].parent))}: {len(paths):,} archives, at most {MOST:,} are read")
    index = scan(split, archives)
    if use_cache and settled(stamps.values(), started):
        contents = index.contents
        told = {name: getattr(contents, name) for name in KEPT}
        said = np.frombuffer(json.dumps(told).encode(), np.uint8)
        arrays: dict[str, NDArray[Any]] = {
            "state": state,
            "contents": said,
            "names": index.names,
            "labels": index.labels,
        }
        keep(paths[0], {**arrays, **dict(zip(PLACES, index.places, strict=True))})
    return index


def _archive(path: Path) -> Archive:
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"{shown(str(path))}: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{shown(str(path))}: is no file: remove it, or put an archive in its place")
    return Archive(str(path), status.st_size, status.st_mtime_ns)


def _state(split: Path, archives: Sequence[Archive], stamps: Mapping[str, Stamp]) -> NDArray[np.uint8]:
    """Return a digest of all that an index depends on."""
    places = [(os.path.abspath(path), stamp) for path, stamp in stamps.items()]  # noqa: PTH100
    state = repr((VERSION, split.name, places, [archive.size for archive in archives], IMG_EXTENSIONS))
    return np.frombuffer(sha256(state.encode("utf-8", "surrogateescape")).digest(), np.uint8)


def _restored(
    split: Path, archives: tuple[Archive, ...], state: NDArray[np.uint8], cache: Mapping[str, NDArray[Any]]
) -> ArchiveIndex | None:
    if not np.array_equal(cache["state"], state):
        return None
    said = json.loads(cache["contents"].tobytes())
    contents = Contents(split, archives, tuple(said.pop("classes")), **said)
    index = ArchiveIndex(contents, cache["names"], cache["labels"], [cache[name] for name in PLACES])
    number, start, size = index.places
    inside = all(
        (start[number == i] + size[number == i] <= archive.size).all() for i, archive in enumerate(archives)
    )
    whole = inside and not (start < 0).any() and not (number >= len(archives)).any()
    return index if whole and labelled(index, len(contents.classes)) else None
