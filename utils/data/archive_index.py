"""Where the images of a split lie in its archives, and their labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utils.common.text import plural
from utils.data.content import Archive, Member, Record
from utils.data.index import Index

# The arrays that say where an image lies: its archive, its first byte there, its number of bytes.
PLACES: Mapping[str, np.dtype[Any]] = MappingProxyType(
    {"archive": np.dtype(np.uint16), "start": np.dtype(np.int64), "size": np.dtype(np.uint32)}
)


@dataclass(frozen=True)
class Contents:
    """What the archives of a split hold besides the bytes of the images.

    Args:
        split: the folder that the images would lie in.
        archives: in order.
        classes: their names; sorted.
        before: what stands before the class in the name of a member; None if no class is in it.
        after: what stands between the class and the name.
        left_out: how many members of each kind are not read.
        digest: of classes, names, sizes and times of the images, in hexadecimal digits.
    """

    split: Path
    archives: tuple[Archive, ...]
    classes: tuple[str, ...]
    before: str | None
    after: str
    left_out: Mapping[str, int]
    digest: str


class ArchiveIndex(Index):
    """Where each image lies in the archives of a split, and its label; as :class:`Index`.

    Args:
        contents: of the archives.
        names: (bytes,), uint8: the names within the classes, each ended by a zero byte.
        labels: (images,), int32: places in ``classes``.
        places: archive (``uint16``), first byte (``int64``), and size (``uint32``) of each image.
        classes: names of the classes by label; None: the archives' own.

    Raises:
        ValueError: as of :class:`Index`.
    """

    member = Member  # what an image is

    def __init__(
        self,
        contents: Contents,
        names: NDArray[np.uint8],
        labels: NDArray[np.int32],
        places: Sequence[NDArray[Any]],
        classes: Sequence[str] | None = None,
    ) -> None:
        super().__init__(contents.split, names, labels)
        if [(of.dtype, of.shape) for of in places] != [(kind, labels.shape) for kind in PLACES.values()]:
            raise ValueError("places must be rows of uint16, int64 and uint32")
        self.contents, self.places = contents, tuple(places)
        self.classes = contents.classes if classes is None else classes

    def __str__(self) -> str:
        first = self.contents.archives[0].path
        others = len(self.contents.archives) - 1
        return f"{first} and {plural(others, 'other')}" if others else first

    def path(self, i: int, name: str) -> Member:
        """Return an image from its number and its name within its class."""
        number, start, size = (int(of[i]) for of in self.places)
        contents, label = self.contents, self.classes[self.labels[i]]
        archive = contents.archives[number]
        way = "" if contents.before is None else f"{contents.before}{label}{contents.after}"
        place = f"{self.split.name}/{label}/{name}"
        return self.member(f"{archive.path}:{way}{name}", archive, start, size, place)

    def relabelled(self, classes: Sequence[str]) -> "ArchiveIndex":
        """Return the same images with the labels that ``classes`` gives; all of their classes are in it."""
        label = {name: i for i, name in enumerate(classes)}
        own = np.array([label[name] for name in self.contents.classes], np.int32)
        return type(self)(self.contents, self.names, own[self.labels], self.places, classes)

    def notes(self) -> str:
        """Say what of the archives is not read, or nothing."""
        return ", ".join(plural(count, kind) for kind, count in sorted(self.contents.left_out.items()))


class RecordIndex(ArchiveIndex):
    """The images of CIFAR's binary files."""

    member = Record
