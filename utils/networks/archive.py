"""Read tensor files, damaged or hostile: no code runs, and the file's size bounds the time and the memory."""

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.networks.pickled import DamagedError, ForeignError
from utils.networks.torch_files import (
    LEGACY,
    ZIP,
    TensorFile,
    damaged_record,
    read_legacy,
    read_zip,
    zip_records,
)

VERSION = 1  # of the format
NOTES, CHECKSUM = "checkpoint", "checksum"  # keys in the metadata of safetensors: the other fields as JSON
_BEFORE_CHECKSUMS = frozenset({"format", NOTES})  # the keys in files of November 2026 and before
_LENGTH = struct.Struct("<Q")  # of that header, at its beginning
_HEADER = 2**21  # bytes of the header of safetensors; a file of 10,000 tensors has a megabyte
_DEPTH = 32  # of containers in each other; checkpoints have 5
_MOST_PARTS = 500_000  # values and containers in a file; checkpoints of the largest nets have some 10,000
_SMALL = 1_000_000  # bytes
_PLAIN = (dict, list, tuple, str, bytes, int, float, bool, type(None))
_TAR = slice(257, 262)  # where a tar archive says so
_UPGRADE = "import torch; torch.save(torch.load('FILE', weights_only=False), 'NEW.pth')"


class NewerError(Exception):
    """The file is of a later version of the format."""


def read(path: str) -> Any:
    """Read a file of torch (zip or older format) or, by its suffix, safetensors; tensors are on the CPU.

    Reading takes at most twice the file's size of memory and 200 MB.

    Raises:
        DamagedError: it is cut off or damaged, claims more than it holds, or a checksum does not match.
        ForeignError: it is something else.
        NewerError: it is of a later version of the format.
        Exception: of almost any type, by the reader of safetensors for such a file.
    """
    if path.endswith(".safetensors"):
        return _verified(_read_safetensors(path), Path(path).stat().st_size)
    with open(path, "rb") as opened:  # noqa: PTH123
        begin = opened.read(_TAR.stop)
        if not begin:
            raise DamagedError("it is empty")
        file = TensorFile(opened)
        if begin.startswith(ZIP):
            records = zip_records(file)
            content = _verified(read_zip(file, records), file.size)
            if not is_ours(content) and (name := damaged_record(file, records)):
                raise DamagedError(f"the CRC-32 of {name} does not match")
            return content
        if begin.startswith(LEGACY):
            return _verified(read_legacy(file), file.size)
    if begin[_TAR] == b"ustar":
        what = "a tar archive, as torch wrote before 0.2, would have to be read by running code from it"
        raise ForeignError(f'{what}: if you trust it, convert it: python -c "{_UPGRADE}"')
    raise DamagedError("it does not begin as a file of torch does")


def _read_safetensors(path: str) -> dict[str, Any]:
    """Read the tensors; also the other fields if ``scripts/convert_checkpoint.py`` wrote the file."""
    from safetensors import safe_open  # optional: only for such files

    with open(path, "rb") as opened:  # noqa: PTH123
        begin = opened.read(_LENGTH.size)
    if len(begin) < _LENGTH.size or _LENGTH.unpack(begin)[0] > _HEADER:
        raise DamagedError(f"its header takes more than {_HEADER:,} bytes, or is cut off")
    with safe_open(path, "pt") as file:
        weights = {key: file.get_tensor(key) for key in sorted(file.keys())}
        said = file.metadata() or {}
    if NOTES not in said and CHECKSUM not in said:
        return weights
    fields = json.loads(said.get(NOTES, ""))
    if not isinstance(fields, dict):
        raise DamagedError("its metadata are not the fields of a checkpoint")
    checksums = {CHECKSUM: said[CHECKSUM]} if CHECKSUM in said else {}
    if not checksums and said.keys() != _BEFORE_CHECKSUMS:
        raise DamagedError("its checksum is missing")
    return {**fields, "state_dict": weights, **checksums}


def metadata(fields: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the metadata of safetensors: a checkpoint's other fields, and a checksum over all.

    The fields must be numbers, strings, lists and dicts with strings as keys.
    """
    content = {**fields, "version": VERSION}
    ordered = {key: weights[key] for key in sorted(weights)}  # as they are read
    found = checksum({**content, "state_dict": ordered})
    return {"format": "pt", NOTES: json.dumps(content), CHECKSUM: found}


def _verified(content: Any, size: int) -> Any:
    """Return what a file of ``size`` bytes holds, unless it is not plain, or not what was written."""
    _check_parts(content, size)
    if not isinstance(content, dict) or not ({CHECKSUM, "version"} & content.keys()):
        return content
    version = content.get("version", VERSION)
    if CHECKSUM in content and type(version) is int and version > VERSION:
        what = f"written by a later version of this code (format {version}, this one reads {VERSION})"
        raise NewerError(f"{what}, or damaged: update the code")
    if CHECKSUM not in content:
        raise DamagedError("its checksum is missing")
    if content[CHECKSUM] != checksum(content):
        raise DamagedError("its checksum does not match its content")
    return content


def is_ours(content: object) -> bool:
    """Whether what was read has a checksum, which matches then."""
    return isinstance(content, dict) and CHECKSUM in content


def _check_parts(content: object, size: int) -> None:
    """Refuse what is not plain, and more tensors than ``size`` bytes can hold.

    Each reference to an array counts as one more array, as it does to code that walks through the content.
    """
    total = 0
    for part in _parts(content):
        if type(part) in _PLAIN:
            continue
        if not isinstance(part, Tensor) or part.layout != torch.strided or part.device.type != "cpu":
            raise ForeignError(f"it holds {str(part)[:60]}")
        claimed = part.numel() * part.element_size()
        total += claimed
        if claimed > size + _SMALL or total > 4 * size + _SMALL:
            raise DamagedError(f"its tensors ({total:,} bytes and more) are larger than the file")


def _parts(content: object) -> Iterator[object]:
    """Yield the values and containers in nested containers, depth first.

    Raises:
        DamagedError: there are too many; with nested references a small file can contain any number.
    """
    waiting = [(content, 0)]
    for _ in range(_MOST_PARTS):
        if not waiting:
            return
        part, depth = waiting.pop()
        yield part
        if isinstance(part, dict):
            waiting += [(inner, depth + 1) for inner in (*part.values(), *part.keys())][::-1]
        elif isinstance(part, list | tuple):
            waiting += [(inner, depth + 1) for inner in part][::-1]
        if depth > _DEPTH:
            break
    raise DamagedError("it has too many parts")


def checksum(content: Mapping[str, Any]) -> str:
    """Return the SHA-256, in hexadecimal, of the structure and values of a dict without key ``checksum``.

    Raises:
        DamagedError: it holds anything but dicts, lists, tensors, numbers, strings and None.
    """
    digest = hashlib.sha256()
    for part in _parts({key: value for key, value in content.items() if key != CHECKSUM}):
        if isinstance(part, dict | list | tuple):
            digest.update(f"{'dict' if isinstance(part, dict) else 'list'} {len(part)}\n".encode())
        elif isinstance(part, Tensor):
            digest.update(f"{part.dtype} {tuple(part.shape)}\n".encode())
            flat = part.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]
        elif type(part) in (type(None), bool, int, float, str):  # a subclass would be read back as its base
            text = repr(part).encode("utf-8", "backslashreplace")
            digest.update(b"%s %d " % (type(part).__name__.encode(), len(text)) + text)
        else:
            raise DamagedError(f"it holds a {type(part).__name__}")
    return digest.hexdigest()
