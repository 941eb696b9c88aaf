"""Find the images in the archives of a split, and their classes.

Four forms are told apart by what the archives hold:

* images in folders: the folder of an image is its class; folders that all images share are left out;
* archives named after their classes, with the images in them, as ImageNet's training images come;
* images without folders, as ImageNet's validation images come: :mod:`utils.data.truth` has their labels;
* WebDataset's: for each image ``KEY.jpg`` a file ``KEY.cls`` with its class, a number or a name.

Classes and images have the order that they would have in class folders.
"""

import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS
from tqdm import tqdm

from utils.common.errors import UserError
from utils.common.text import shown
from utils.data.archive_index import PLACES, ArchiveIndex, Contents
from utils.data.content import Archive
from utils.data.folders import is_image
from utils.data.tar import Entry, entries
from utils.data.truth import read_truth

LONGEST = 1024  # bytes of a WebDataset class
_OF_CLASS = re.compile(r"(?!\.{1,2}$)[^/\0\n]+")


class _Image(NamedTuple):
    """An image; sorted as the samples are."""

    label: str  # the class
    folder: str  # within the class
    name: str
    archive: int
    entry: Entry


@dataclass
class _Found:
    """What was found in the archives of a split."""

    archives: tuple[Archive, ...]
    images: list[tuple[int, Entry]] = field(default_factory=list)  # each with the number of its archive
    inner: list[tuple[int, Entry]] = field(default_factory=list)  # archives within
    classes: dict[tuple[int, str], str] = field(default_factory=dict)  # by archive and key
    folders: set[str] = field(default_factory=set)
    left_out: Counter[str] = field(default_factory=Counter)

    def add(self, number: int, entry: Entry, file: int) -> None:
        """Take a member of the archive ``number``, which is open as ``file``."""
        if entry.kind == "folder":
            self.folders.add(entry.name)
        elif entry.kind != "file":
            self.left_out["link" if entry.kind == "link" else "other file"] += 1
        elif is_image(entry.name):
            self.images.append((number, entry))
        elif entry.name.endswith(".cls"):
            self.classes[number, entry.name.removesuffix(".cls")] = self.read_class(number, entry, file)
        elif entry.name.endswith(".tar"):
            self.inner.append((number, entry))
        else:
            self.left_out["other file"] += 1

    def read_class(self, number: int, entry: Entry, file: int) -> str:
        """Return what a ``.cls`` file says; numbers without leading zeros."""
        if (number, entry.name.removesuffix(".cls")) in self.classes:
            self.refuse(f"{entry.name} stands there twice: pack it anew", number)
        text = os.fsdecode(os.pread(file, min(entry.size, LONGEST), entry.start).strip())
        if entry.size > LONGEST or not _OF_CLASS.fullmatch(text):
            self.refuse(f"{entry.name} says no class: it must hold a number or a name", number)
        return str(int(text)) if text.isascii() and text.isdigit() else text

    def refuse(self, what: str, number: int = 0) -> NoReturn:
        raise UserError(f"{shown(self.archives[number].path)}: {shown(what)}")


def scan(split: Path, archives: tuple[Archive, ...]) -> ArchiveIndex:
    """Index the archives of a split.

    Args:
        split: the folder that the images would lie in, if they were unpacked.
        archives: in order.

    Raises:
        UserError: they cannot be read, or do not say the class of every image.
    """
    found = _Found(archives)
    bar: dict[str, Any] = {"desc": f"indexing {split.name}", "unit": " members", "leave": False}
    with tqdm(disable=None, delay=2, file=sys.stdout, **bar) as progress:
        for number, archive in enumerate(archives):
            with _opened(archive) as file:
                for entry in entries(file, archive.path, 0, archive.size):
                    found.add(number, entry, file)
                    progress.update()
        nested = bool(found.inner) and not found.images
        images = list(_of_archives(found, progress) if nested else _of_members(found))
    before = "" if nested else None if found.classes or _is_flat(found) else _shared(found)
    return _index(split, found, images, before, ".tar/" if nested else "/")


@contextmanager
def _opened(archive: Archive) -> Iterator[int]:
    try:
        file = os.open(archive.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield file
        finally:
            os.close(file)
    except OSError as error:
        raise UserError(f"{shown(archive.path)}: {error.strerror}") from None


def _of_archives(found: _Found, progress: "tqdm[NoReturn]") -> Iterator[_Image]:
    """Yield the images of archives that are named after their classes."""
    classes = Counter(_class_of_archive(entry) for _, entry in found.inner)
    if twice := [name for name, count in classes.items() if count > 1]:
        found.refuse(f"{twice[0]}.tar stands there twice: pack it anew")
    for number, inner in found.inner:
        archive, label, images = found.archives[number], _class_of_archive(inner), 0
        with _opened(archive) as file:
            for entry in entries(file, f"{archive.path}:{inner.name}", inner.start, inner.start + inner.size):
                progress.update()
                if entry.kind == "file" and is_image(entry.name):
                    images += 1
                    yield _image(label, entry.name, number, entry)
                elif entry.kind != "folder":
                    found.left_out["link" if entry.kind == "link" else "other file"] += 1
        if not images:
            found.refuse(f"{inner.name} has no images: pack the archive anew without it", number)


def _class_of_archive(inner: Entry) -> str:
    return inner.name.rpartition("/")[2].removesuffix(".tar")


def _image(label: str, path: str, number: int, entry: Entry) -> _Image:
    folder, _, name = path.rpartition("/")
    return _Image(label, folder, name, number, entry)


def _of_members(found: _Found) -> Iterator[_Image]:
    """Yield the images of the other forms."""
    found.left_out["other file"] += len(found.inner)
    if found.classes:
        return _of_keys(found)
    return _of_list(found) if _is_flat(found) else _of_folders(found)


def _of_keys(found: _Found) -> Iterator[_Image]:
    """Yield the images of WebDataset's form. A key ends at the first dot of a name, as there."""
    keys = set[tuple[int, str]]()
    for number, entry in found.images:
        folder, slash, name = entry.name.rpartition("/")
        key, _, suffix = name.partition(".")
        if not is_image(f".{suffix}") or "." in suffix:  # KEY.mask.png
            found.left_out["other file"] += 1
            continue
        at = (number, folder + slash + key)
        if at in keys:
            found.refuse(f"{at[1]} has two images: pack it anew with one for each key", number)
        if at not in found.classes:
            found.refuse(f"{entry.name} has no {key}.cls beside it, which would say its class", number)
        keys.add(at)
        yield _image(found.classes[at], entry.name, number, entry)
    found.left_out["other file"] += len(found.classes.keys() - keys)


def _is_flat(found: _Found) -> bool:
    return bool(found.images) and all("/" not in entry.name for _, entry in found.images)


def _of_list(found: _Found) -> Iterator[_Image]:
    """Yield images without folders, with the labels of a file beside the archive."""
    if len(found.archives) > 1:
        found.refuse("images without class folders, or a .cls for each: give them as one archive with labels")
    ordered = sorted(found.images, key=lambda image: image[1].name)
    labels = read_truth(Path(found.archives[0].path), len(ordered))
    for label, (number, entry) in zip(labels, ordered, strict=True):
        yield _image(label, entry.name, number, entry)


def _shared(found: _Found) -> str:
    """Return the folders that all images share above their class folders; empty, or ends in a slash."""
    shared, names = "", [entry.name for _, entry in found.images]
    while names:
        longer = names[0][: names[0].find("/", len(shared)) + 1]
        if not all(name.startswith(longer) and "/" in name[len(longer) :] for name in names):
            break
        shared = longer
    return shared


def _of_folders(found: _Found) -> Iterator[_Image]:
    """Yield images whose folder is their class."""
    shared = _shared(found)
    classes = set[str]()
    for number, entry in found.images:
        label, slash, path = entry.name[len(shared) :].partition("/")
        if not slash:
            found.refuse(f"{entry.name} lies in no class folder: pack it anew", number)
        classes.add(label)
        yield _image(label, path, number, entry)
    inside = (name[len(shared) :] for name in found.folders if name.startswith(shared))
    if empty := {name.partition("/")[0] for name in inside} - classes - {""}:
        found.refuse(f"class folder {shared}{min(empty)} has no images: pack it anew without it")


def _index(split: Path, found: _Found, images: list[_Image], before: str | None, after: str) -> ArchiveIndex:
    """Sort the images, and refuse any that could not be told apart in folders."""
    if not images:
        found.refuse(f"no images ({' '.join(IMG_EXTENSIONS)})")
    images.sort()
    for one, other in pairwise(images):
        if one[:3] == other[:3]:
            found.refuse(f"{other.entry.name} stands there twice: pack it anew", other.archive)
    if large := [image for image in images if image.entry.size >= 2**32]:
        found.refuse(f"{large[0].entry.name} has more than 4 GB: that is no image", large[0].archive)
    classes = tuple(sorted({image.label for image in images}))
    if elsewhere := {"", ".", ".."} & set(classes):
        found.refuse(f"'{min(elsewhere)}' is no name of a class")
    label = {name: i for i, name in enumerate(classes)}
    paths = [f"{image.folder}/{image.name}".removeprefix("/") for image in images]
    digest = sha256()
    for image, path in zip(images, paths, strict=True):
        line = f"{image.label}/{path}\0{image.entry.size}\0{image.entry.changed}\n"
        digest.update(os.fsencode(line))
    of: list[Callable[[_Image], int]] = [lambda i: i.archive, lambda i: i.entry.start, lambda i: i.entry.size]
    places = [np.array(list(map(get, images)), kind) for get, kind in zip(of, PLACES.values(), strict=True)]
    contents = Contents(split, found.archives, classes, before, after, +found.left_out, digest.hexdigest())
    names = np.frombuffer(os.fsencode("".join(f"{path}\0" for path in paths)), np.uint8)
    return ArchiveIndex(contents, names, np.array([label[i.label] for i in images], np.int32), places)
