"""The bytes of an image: those of a file, or of a member of an archive, or a record of CIFAR's as a file."""

import io
import os
import stat
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

OPEN = 64  # archives that a process holds open
LARGEST = 100_000_000  # bytes of an image; a larger one is not read


class Archive(NamedTuple):
    """An archive as it was when it was indexed."""

    path: str
    size: int  # bytes
    changed: int  # time of modification, ns


class Member(str):
    """An image in an archive; as text ``ARCHIVE:MEMBER``.

    Args:
        text: what names it in messages.
        archive: where it is.
        start: its first byte in the archive.
        size: bytes.
        place: where it would lie in the folders of the data set, ``train/CLASS/NAME``.
    """

    __slots__ = ("archive", "place", "size", "start")

    archive: Archive
    start: int
    size: int
    place: str

    def __new__(cls, text: str, archive: Archive, start: int, size: int, place: str) -> "Member":
        member = super().__new__(cls, text)
        member.archive, member.start, member.size, member.place = archive, start, size, place
        return member

    def __getnewargs__(self) -> Any:
        return str(self), self.archive, self.start, self.size, self.place


class Record(Member):
    """An image of CIFAR's binary files, 32 rows of 32 pixels: all red values, then green, then blue.

    Its content is a PPM file of these pixels, which every decoder reads without loss.
    """

    __slots__ = ()


SIDE = 32  # pixels of a record's image
_PPM = b"P6 32 32 255\n"  # the head of the file


class _Content(io.BytesIO):
    """The bytes of an image. Decoders name it as they would name a file."""

    def __init__(self, path: str) -> None:
        super().__init__(content(path))
        self.name = str(path)

    def __repr__(self) -> str:
        return repr(self.name)


class _Opened:
    """The descriptor of an archive, which is closed with the object.

    Processes may share it: they read by position.
    """

    def __init__(self, archive: Archive) -> None:
        self.descriptor = os.open(archive.path, os.O_RDONLY | os.O_CLOEXEC)
        status = os.fstat(self.descriptor)
        if (status.st_size, status.st_mtime_ns) != archive[1:]:
            raise OSError(f"{archive.path} has changed since it was indexed")

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


_opened = lru_cache(OPEN)(_Opened)


def content(path: str) -> bytearray:
    """Return the bytes of an image.

    Raises:
        OSError: they cannot be read, are more than ``LARGEST``, or the archive has changed since it was
            indexed; or the path leads to a pipe or a device.
    """
    if not isinstance(path, Member):
        return _content_of_file(path)
    data = bytearray(_checked_size(path.size))
    opened = _opened(path.archive)
    if os.preadv(opened.descriptor, [data], path.start) < path.size:
        raise OSError(f"{path.archive.path} ends within it")
    if isinstance(path, Record):
        return bytearray(_PPM + np.frombuffer(data, np.uint8).reshape(3, SIDE * SIDE).T.tobytes())
    return data


def _content_of_file(path: str) -> bytearray:
    """Return the bytes of a regular file. A pipe is not waited for, a device not read without end."""
    # Path.open takes 5 % longer in all
    with open(path, "rb", buffering=0, opener=_without_waiting) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError("a pipe or a device, no file")
        _checked_size(status.st_size)
        return bytearray(file.readall())


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _checked_size(size: int) -> int:
    if size > LARGEST:
        raise OSError(f"{size:,} bytes, more than the {LARGEST:,} that an image may have")
    return size


def size_of(path: str) -> int:
    """Return the number of bytes of an image."""
    if isinstance(path, Record):
        return path.size + len(_PPM)
    return path.size if isinstance(path, Member) else Path(path).stat().st_size


def place_of(path: str, root: Path) -> str:
    """Return where an image lies, or would lie if its archive were unpacked, within the data set's folder."""
    return path.place if isinstance(path, Member) else os.path.relpath(path, root)


def readable(path: str) -> io.BytesIO:
    """Return what PIL opens: the bytes of an image; errors as of :func:`content`."""
    return _Content(path)
