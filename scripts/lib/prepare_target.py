"""Writing images into class folders or tar archives, so that a killed process can be followed by another.

Files are not flushed to the disk one by one, which for a million would take hours. What a power cut left
shorter is recognized by its size and written again, and so are the last ``SYNC`` bytes of an archive.
"""

import fcntl
import os
import shutil
import tarfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tqdm import tqdm

from scripts.lib.prepare_sources import Image, Source
from utils.common.errors import UserError
from utils.common.text import shown

NOTE = "prepared.txt"  # in the target: what it is made from
UNFINISHED = ".unfinished"  # the file that is being written
SYNC = 2**26  # bytes of an archive that are written before they are flushed to the disk
AROUND = {False: 2048, True: 768}  # bytes that an image takes beside its own, on average; True: in an archive


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into one line about a file."""
    try:
        yield
    except OSError as error:
        what = f"{error.filename or path}: {error.strerror or error}"
        raise UserError(f"{shown(what)}; mend it and start again to go on") from None


def check_space(target: Path, sources: list[Source], tar: bool) -> None:
    """Refuse to begin what the disk cannot hold.

    Raises:
        UserError: it has too little space.
    """
    needed = sum(source.bytes + AROUND[tar] * len(source) for source in sources)
    with naming(target):
        if (target / NOTE).is_file():
            around = 0 if tar else AROUND[tar]
            files = (Path(folder, name) for folder, _, names in os.walk(target) for name in names)
            needed -= sum(file.lstat().st_size + around for file in files)
        there = next(folder for folder in (target.absolute(), *target.absolute().parents) if folder.exists())
        free = shutil.disk_usage(there).free
    if needed > free:
        what = f"{needed / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB are free"
        raise UserError(f"{shown(str(target))}: {what}: make room, or give another TARGET")


@contextmanager
def claimed(target: Path, made_from: str) -> Iterator[None]:
    """Make the target, or check that it was begun from the same source; keep other processes out of it.

    Raises:
        UserError: it was begun otherwise, or not by this command, or another process is writing there.
    """
    name, note = shown(str(target)), target / NOTE
    with naming(target):
        if target.is_dir() and not note.is_file() and any(target.iterdir()):
            raise UserError(f"{name} is not empty and has no {NOTE}: give a new folder as TARGET")
        target.mkdir(parents=True, exist_ok=True)
        file = os.open(note, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{name}: another process is writing there: wait for its end") from None
        with naming(note):
            begun = os.fsdecode(os.pread(file, 2**20, 0))
            if not begun and {path.name for path in target.iterdir()} == {NOTE}:
                os.pwrite(file, os.fsencode(made_from), 0)
                os.fsync(file)
                begun = made_from
        if begun != made_from:
            what = f"{name} was begun from {shown(begun.strip())}, and this is {shown(made_from.strip())}"
            raise UserError(f"{what}: give the same SOURCE and flags, or another TARGET")
        yield
    finally:
        os.close(file)


def write_folders(source: Source, target: Path) -> Counter[str]:
    """Write the images of a split into class folders; count those written and those there before.

    Raises:
        UserError: one cannot be read or written.
    """
    counts, made = Counter[str](), set[Path]()
    for image in _shown(source):
        path = target / source.name / image.place
        with naming(path):
            if path.parent not in made:
                _check_inside(target, path.parent)
                path.parent.mkdir(parents=True, exist_ok=True)
                made.add(path.parent)
            if _size_of(path) == image.size:
                counts["there before"] += 1
                continue
            unfinished = target / UNFINISHED
            unfinished.unlink(missing_ok=True)
            with unfinished.open("xb") as file:
                file.write(_read(image))
            os.replace(unfinished, path)
        counts["written"] += 1
    with naming(target):
        (target / UNFINISHED).unlink(missing_ok=True)
        os.sync()
    return counts


def write_tar(source: Source, target: Path) -> Counter[str]:
    """Write the images of a split into ``train.tar`` or ``val.tar``; count as :func:`write_folders` does.

    Raises:
        UserError: one cannot be read or written.
    """
    whole, part = target / f"{source.name}.tar", target / f".{source.name}.tar{UNFINISHED}"
    if whole.exists():
        return Counter({"there before": len(source)})
    with naming(part):
        _check_inside(target, part)
        part.touch()
        with part.open("r+b") as file:
            counts = _fill(file, source)
            os.fsync(file.fileno())
        os.replace(part, whole)
        os.sync()
    return counts


def _fill(file: IO[bytes], source: Source) -> Counter[str]:
    """Write the members of an archive after those that are there; the order is always the same."""
    counts = Counter[str]()
    at, flushed = 0, 0
    kept = os.fstat(file.fileno()).st_size - SYNC  # what is before was flushed
    for image in _shown(source):
        header = header_of(image)
        end = at + len(header) + _padded(image.size)
        if end <= kept and os.pread(file.fileno(), len(header), at) == header:
            counts["there before"] += 1
            at = flushed = end
            continue
        if not counts["written"]:
            kept = 0
            file.seek(at)
            file.truncate()
        file.write(b"".join((header, _read(image), bytes(_padded(image.size) - image.size))))
        counts["written"] += 1
        at = end
        if at - flushed >= SYNC:
            file.flush()
            os.fsync(file.fileno())
            flushed = at
    file.seek(at)
    file.truncate()
    end = at + 2 * tarfile.BLOCKSIZE  # two empty blocks, and whole records
    file.write(bytes(end - at + -end % tarfile.RECORDSIZE))
    file.flush()
    return counts


def header_of(image: Image) -> bytes:
    """Return the header of a member, the same in every run."""
    member = tarfile.TarInfo(image.place)
    member.size, member.mtime, member.mode = image.size, 0, 0o644
    return member.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def _padded(size: int) -> int:
    return size + -size % tarfile.BLOCKSIZE


def _shown(source: Source) -> Iterator[Image]:
    """Yield the images with a progress bar."""
    with tqdm(desc=source.name, total=len(source), unit=" images", leave=False, disable=None) as bar:
        for image in source:
            yield image
            bar.update()


def _read(image: Image) -> bytes | bytearray:
    try:
        data = image.read()
    except OSError as error:
        raise UserError(f"{shown(image.place)}: {shown(str(error))}: mend SOURCE and start again") from None
    if len(data) != image.size:
        raise UserError(f"{shown(image.place)}: SOURCE changed since it was listed: start again")
    return data


def _size_of(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _check_inside(target: Path, path: Path) -> None:
    """Refuse a link that leads out of the target."""
    if not path.resolve().is_relative_to(target.resolve()):
        raise UserError(f"{shown(str(path))} leads out of TARGET: remove the link")
