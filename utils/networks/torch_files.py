"""The containers of ``torch.save``: a zip archive, and before torch 1.6 a row of pickles with the numbers.

Each number is read once, from where it lies in the file. So the size of the file bounds the memory, whatever
the file claims. Nothing that is returned refers to it: it may change then.
"""

import mmap
import struct
import zlib
from collections.abc import Mapping
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor

from utils.networks.pickled import DamagedError, ForeignError, Unpickler, Wanted

ZIP = b"PK\x03\x04"  # begins an archive
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the number that begins the older format
_PROTOCOL = 1001  # of the older format, its second pickle
_DIRECTORY = 2**22  # bytes of a zip's directory: 40,000 tensors

# PKWARE's APPNOTE.TXT 6.3.10: end of the directory (4.3.16), its zip64 form (4.3.15, 4.3.14), an entry of the
# directory (4.3.12), and the header before what is stored (4.3.7).
_END = struct.Struct("<4s4H2LH")
_LOCATOR_64 = struct.Struct("<4sLQL")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_CENTRAL = struct.Struct("<4s4x2H4x3L3H8xL")
_LOCAL = struct.Struct("<4s22x2H")
_MANY, _LARGE = 2**16 - 1, 2**32 - 1  # stand for a number that is in the zip64 form
_COUNT = struct.Struct("<q")  # before a storage of the older format


def steps_for(size: int) -> int:
    """Return how many parts a file of so many bytes may have: far more than any network's."""
    return 300_000 + size // 300


class TensorFile:
    """A file of tensors, mapped into memory.

    Args:
        file: opened; not empty.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        self.size = len(self.data)  # bytes

    def numbers(self, start: int, wanted: Wanted) -> Tensor:
        """Return the numbers (N,) that begin at a byte."""
        numbers = torch.empty(wanted.length, dtype=wanted.dtype)
        self.fill(numbers, start)
        return numbers

    def fill(self, numbers: Tensor, start: int) -> int:
        """Read numbers (N,) from the file, and return the byte after them.

        Raises:
            DamagedError: the file ends before.
        """
        target = numbers.view(torch.uint8).numpy()
        self.file.seek(start)
        if self.file.readinto(target) < len(target):  # type: ignore[attr-defined]
            raise DamagedError("it is cut off")
        return start + len(target)


class Record(NamedTuple):
    """An entry of a zip archive: from its first byte in the file to the one after its last."""

    start: int
    end: int
    crc: int


def read_zip(file: TensorFile, records: Mapping[str, Record]) -> Any:
    """Read a file of torch 1.6 and later; ``records`` are its entries.

    Raises:
        DamagedError: it is damaged, or no file of ``torch.save``.
        ForeignError: as of :class:`Unpickler`.
    """
    pickles = [name for name in records if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise DamagedError("it is a zip archive, but not of torch.save")
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" in records:
        raise ForeignError("it is a program of TorchScript")
    if order := records.get(f"{folder}byteorder"):
        _check_order(bytes(file.data[order.start : order.end]) == b"little")

    def open_storage(wanted: Wanted) -> Tensor:
        record = records[f"{folder}data/{wanted.key}"]
        if wanted.length * wanted.dtype.itemsize > record.end - record.start:
            raise DamagedError("a storage is larger than its record")
        return file.numbers(record.start, wanted)

    structure = records[pickles[0]]
    part = file.data[structure.start : structure.end]
    return Unpickler(part, open_storage, steps_for(file.size)).load()


def _check_order(little: bool) -> None:
    if not little:
        raise DamagedError("its numbers are big-endian: write it on another machine")


def read_legacy(file: TensorFile) -> Any:
    """Read a file of torch before 1.6: five pickles, then each storage behind the number of its numbers.

    Raises:
        DamagedError: it is cut off or damaged.
        ForeignError: as of :class:`Unpickler`.
    """
    room, storages = file.size, dict[str, Tensor]()

    def open_storage(wanted: Wanted) -> Tensor:
        nonlocal room
        room -= wanted.length * wanted.dtype.itemsize
        if room < 0:
            raise DamagedError("a storage is larger than the file")
        storages[wanted.key] = torch.empty(wanted.length, dtype=wanted.dtype)  # filled below
        return storages[wanted.key]

    unpickler = Unpickler(file.data, open_storage, steps_for(file.size))
    _, protocol, machine, content, keys = (unpickler.load() for _ in range(5))
    if protocol != _PROTOCOL or type(machine) is not dict or type(keys) is not list:
        raise DamagedError("it is not of torch.save")
    _check_order(machine.get("little_endian") is True)
    whole = len(keys) == len(storages) and all(type(key) is str for key in keys)
    if not whole or set(keys) != storages.keys():
        raise DamagedError("its list of storages is damaged")
    at = unpickler.at
    for numbers in (storages[key] for key in keys):
        if file.data[at : at + _COUNT.size] != _COUNT.pack(len(numbers)):
            raise DamagedError("a storage is cut off or damaged")
        at = file.fill(numbers, at + _COUNT.size)
    return content


def zip_records(file: TensorFile) -> dict[str, Record]:
    """Return the entries of a zip archive by name.

    Only archives as ``torch.save`` writes them are read. With something before the archive, two entries of
    one name, or entries that overlap, two programs could read different archives in one file.

    Raises:
        DamagedError: it is another archive, cut off or damaged.
    """
    try:
        count, size, start = _directory(file.data)
        entries, at = list[tuple[int, str, Record]](), start
        for _ in range(count):
            name, record, header, at = _entry(file.data, at)
            entries.append((header, name, record))
    except (struct.error, UnicodeDecodeError):
        raise DamagedError("its directory is cut off or damaged") from None
    entries.sort()
    if at != start + size or not entries or entries[0][0] != 0:
        raise DamagedError("its directory is damaged, or something stands before the archive")
    ends = [*(header for header, _, _ in entries[1:]), start]
    if any(record.end > end for (_, _, record), end in zip(entries, ends, strict=True)):
        raise DamagedError("its entries overlap")
    records = {name: record for _, name, record in entries}
    if len(records) < len(entries):
        raise DamagedError("it has two entries of one name")
    return records


def _directory(data: memoryview) -> tuple[int, int, int]:
    """Return the number of entries, and the bytes of the directory and where it begins."""
    at = len(data) - _END.size
    sign, *_, count, size, start, comment = _END.unpack_from(data, max(at, 0))
    if sign != b"PK\5\6" or comment:
        raise DamagedError("it is cut off: its directory is missing")
    if count == _MANY or _LARGE in (size, start):
        sign, _, at, _ = _LOCATOR_64.unpack_from(data, at - _LOCATOR_64.size)
        sign_64, *_, count, size, start = _END_64.unpack_from(data, at)
        if (sign, sign_64) != (b"PK\6\7", b"PK\6\6"):
            raise DamagedError("its directory is damaged")
    if size > _DIRECTORY or count * _CENTRAL.size > size:
        raise DamagedError("it has too many parts")
    return count, size, start


def _entry(data: memoryview, at: int) -> tuple[str, Record, int, int]:
    """Return an entry's name, itself, where its header begins, and where the directory goes on."""
    sign, flags, method, crc, *sizes, long, extra, comment, header = _CENTRAL.unpack_from(data, at)
    if sign != b"PK\1\2":
        raise DamagedError("its directory is damaged")
    if method or flags & 1:
        raise DamagedError("it is a compressed archive: unpack it first")
    at += _CENTRAL.size
    name, at = bytes(data[at : at + long]), at + long
    packed, size, header = _with_zip64([*sizes, header], data[at : at + extra])
    sign, long_, extra_ = _LOCAL.unpack_from(data, header)
    start = header + _LOCAL.size + long_ + extra_
    if sign != ZIP or packed != size or data[header + _LOCAL.size :][:long_] != name:
        raise DamagedError("an entry is damaged")
    return name.decode(), Record(start, start + size, crc), header, at + extra + comment


def _with_zip64(numbers: list[int], fields: memoryview) -> list[int]:
    """Replace the packed and the true size and the place by the large ones in the field of zip64."""
    while len(fields) >= 4:
        kind, length = struct.unpack_from("<2H", fields)
        if kind == 1:
            large = iter(struct.unpack(f"<{length // 8}Q", fields[4 : 4 + length // 8 * 8]))
            order = (1, 0, 2)  # the true size comes first
            for i in order:
                if numbers[i] == _LARGE:
                    numbers[i] = next(large, _LARGE)
        fields = fields[4 + length :]
    return numbers


def damaged_record(file: TensorFile, records: Mapping[str, Record]) -> str | None:
    """Return the first entry of a zip archive whose CRC-32 does not match."""
    for name, record in records.items():
        if zlib.crc32(file.data[record.start : record.end]) != record.crc:
            return name
    return None
