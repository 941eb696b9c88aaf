"""The members of an uncompressed tar archive, and where in it their bytes lie.

The formats are those of V7, ustar and pax (POSIX.1-2017, ``pax``), and GNU's with its long names. Python's
``tarfile`` takes three times as long for a header, which a million members make felt.
"""

import os
from collections.abc import Iterator
from typing import Literal, NamedTuple, NoReturn

from utils.common.errors import UserError
from utils.common.text import shown

BLOCK = 512  # bytes
LONGEST = 2**20  # bytes of a long name or of a pax header
CHUNK = 2**20  # bytes that are read at once after the last member
_NOTHING = bytes(BLOCK)  # ends an archive
_COMPRESSED = (
    (b"\x1f\x8b", "gzip -dc"),
    (b"BZh", "bzip2 -dc"),
    (b"\xfd7zXZ\0", "xz -dc"),
    (b"\x28\xb5\x2f\xfd", "zstd -dc"),
)
_CHECKSUM = slice(148, 156)  # in a header; counts as blanks in the sum of its bytes
Kind = Literal["file", "folder", "link", "other"]
_KINDS: dict[bytes, Kind] = {
    **dict.fromkeys((b"0", b"\0", b"7"), "file"),
    **dict.fromkeys((b"1", b"2"), "link"),
    **dict.fromkeys((b"3", b"4", b"6"), "other"),  # devices and pipes
    b"5": "folder",
}


class Entry(NamedTuple):
    """A member of an archive."""

    name: str  # without "." and empty parts
    kind: Kind
    start: int  # of its bytes, from the beginning of the file that was opened
    size: int  # bytes
    changed: int  # time of modification, s


class _Tar(NamedTuple):
    """An archive: a part of an open file."""

    file: int  # descriptor
    name: str  # for messages
    end: int

    def refuse(self, what: str) -> NoReturn:
        raise UserError(f"{shown(self.name)}: {shown(what)}")

    def read(self, start: int, size: int) -> bytes:
        """Return bytes; refuse an archive that ends before them."""
        data = os.pread(self.file, size, start) if start + size <= self.end else b""
        if len(data) < size:
            self.refuse(f"the archive is cut off after {self.end:,} bytes: copy or download it again")
        return data


def entries(file: int, name: str, start: int, end: int) -> Iterator[Entry]:
    """Yield the members of an archive, in its order; devices, pipes and links as what they are.

    Args:
        file: descriptor of the file that is, or holds, the archive.
        name: the archive's, for messages.
        start: first byte of the archive.
        end: the byte after its last one.

    Raises:
        UserError: it is compressed, cut off, damaged, no tar archive, or holds what is never read: sparse
            files, names that lead out of the archive's folder.
    """
    tar, at, said = _Tar(file, name, end), start, dict[bytes, bytes]()
    _check_begin(tar, start)
    while (header := tar.read(at, BLOCK)) != _NOTHING:
        try:
            size = _size(header)
            if header[156:157] in b"LKxXg":
                said |= _said(tar, header[156:157], tar.read(at + BLOCK, min(size, LONGEST)), size)
                at += BLOCK + _padded(size)
                continue
            size = int(said.get(b"size", size))
            entry = _entry(tar, header, said.get(b"path"), at + BLOCK, size)
        except ValueError:
            what = f"damaged, or no tar archive (no header at byte {at - start:,})"
            tar.refuse(f"{what}: copy or download it again")
        stored = size if entry.kind == "file" else 0
        at += BLOCK + _padded(stored)
        if at > end:
            tar.refuse(f"the archive is cut off in {entry.name}: copy or download it again")
        said = {}
        yield entry
    _check_end(tar, at)


def _check_begin(tar: _Tar, start: int) -> None:
    begin = os.pread(tar.file, min(8, tar.end - start), start)
    for magic, command in _COMPRESSED:
        if begin.startswith(magic):
            made = "plain.tar" if tar.name.endswith(".tar") else tar.name.rpartition(".")[0]
            how = f"unpack it, {command} {tar.name} > {made}, and put that in its place"
            tar.refuse(f"compressed archives cannot be read by position: {how}")


def _check_end(tar: _Tar, at: int) -> None:
    """Refuse an archive that goes on after its end; a reader that believed the end would miss the rest."""
    while at < tar.end:
        chunk = tar.read(at, min(CHUNK, tar.end - at))
        if chunk.count(0) < len(chunk):
            tar.refuse("there is more after the end of the archive: unpack it (tar -xi) and pack it anew")
        at += len(chunk)


def _padded(size: int) -> int:
    return -size % BLOCK + size


def _size(header: bytes) -> int:
    """Return the number of bytes that follow a header.

    Raises:
        ValueError: it is no header: the sum of its bytes is not what it says.
    """
    field = header[_CHECKSUM]
    if sum(header) - sum(field) + 8 * ord(" ") != _number(field):
        raise ValueError("checksum")
    return _number(header[124:136])


def _number(field: bytes) -> int:
    """Return a number in octal digits or, as GNU writes large ones, in binary."""
    if field[0] & 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.partition(b"\0")[0].strip()
    if digits and not digits.isdigit():
        raise ValueError("not a number")
    return int(digits or b"0", 8)


def _said(tar: _Tar, kind: bytes, content: bytes, size: int) -> dict[bytes, bytes]:
    """Return what a header of GNU or pax says of the next member: its ``path`` and ``size``.

    Raises:
        ValueError: it is damaged.
    """
    if len(content) < size:
        raise ValueError("too long")
    if kind == b"L":
        return {b"path": content.partition(b"\0")[0]}
    if kind == b"K":  # of the file that a link leads to
        return {}
    records = dict[bytes, bytes]()
    while content:
        length = int(content.partition(b" ")[0])
        record, end, content = content[: length - 1], content[length - 1 : length], content[max(length, 1) :]
        key, equals, value = record.partition(b" ")[2].partition(b"=")
        if end != b"\n" or not equals:
            raise ValueError("no record")
        records[key] = value
    if any(key.startswith(b"GNU.sparse") for key in records):
        _refuse_sparse(tar)
    said = {key: value for key, value in records.items() if key in (b"path", b"size")}
    if said and kind == b"g":
        tar.refuse("a pax header gives all members one name or size: pack it anew")
    return said


def _refuse_sparse(tar: _Tar) -> NoReturn:
    tar.refuse("files with holes (tar --sparse) are not read: pack it anew without --sparse")


def _entry(tar: _Tar, header: bytes, path: bytes | None, start: int, size: int) -> Entry:
    """Return what a header describes; ``path`` is the name if another header said it."""
    flag = header[156:157]
    if flag == b"S":
        _refuse_sparse(tar)
    if flag not in _KINDS:
        kind_ = flag.decode("ascii", "backslashreplace")
        tar.refuse(f"member of the unknown kind '{kind_}' at byte {start - BLOCK:,}: pack it anew")
    if path is None:
        path = header[:100].partition(b"\0")[0]
        if header[257:263] == b"ustar\0" and (folder := header[345:500].partition(b"\0")[0]):
            path = folder + b"/" + path
    if b"\0" in path or size < 0:
        raise ValueError("name")
    name = os.fsdecode(path)
    kind: Kind = "folder" if _KINDS[flag] == "file" and name.endswith("/") else _KINDS[flag]
    if name.startswith("/"):
        tar.refuse(f"the name {name} is absolute: pack it anew with relative names (tar -C FOLDER)")
    if "./" in name or "//" in name or name.endswith(("/", ".")):
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if ".." in parts:
            tar.refuse(f"the name {name} leads out of the archive: pack it anew without '..'")
        name = "/".join(parts)
    return Entry(name, kind, start, size, _number(header[136:148]))
