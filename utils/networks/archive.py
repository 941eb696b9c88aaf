"""Read tensor files that may be damaged or hostile: no code runs, and the file's size bounds the memory."""

import hashlib
import json
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

_TYPES = frozenset(
    {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool}
    | {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
)
NOTES = "checkpoint"  # key in the metadata of safetensors: a checkpoint's other fields, as JSON
_MAX_PARTS = 1_000_000  # values and containers in a file; checkpoints of the largest nets have some 10,000


class DamagedError(Exception):
    """The file has changed since it was written, or is not a file of tensors."""


def read(path: str) -> Any:
    """Read a file of torch (zip or older format) or, by its suffix, safetensors; tensors are on the CPU.

    Raises:
        DamagedError: it is truncated or compressed, claims more than it holds, or a checksum does not match.
        Exception: of almost any type, by torch's or safetensors' reader for such a file.
    """
    if path.endswith(".safetensors"):
        return _read_safetensors(path)
    with open(path, "rb") as file:  # noqa: PTH123
        zipped = file.read(4) == b"PK\x03\x04"
    if zipped:
        _refuse_compressed(path)
    with torch.serialization.safe_globals(_numpy_scalars()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old formats make torch warn about its own internals
        # Mapped into memory, a storage cannot reach beyond the file, whatever length it claims.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    _check_tensors(content, Path(path).stat().st_size)
    if isinstance(content, dict) and "checksum" in content:
        if content["checksum"] != checksum(content):
            raise DamagedError("its checksum does not match its content")
    elif isinstance(content, dict) and "version" in content:
        raise DamagedError("its checksum is missing")
    elif zipped and (record := zipfile.ZipFile(path).testzip()):
        raise DamagedError(f"the CRC-32 of {record} does not match")
    return content


def _read_safetensors(path: str) -> dict[str, Any]:
    """Read the tensors; also the other fields if ``scripts/convert_checkpoint.py`` wrote the file."""
    from safetensors import safe_open  # optional: only for such files

    with safe_open(path, "pt") as file:
        weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        notes = (file.metadata() or {}).get(NOTES)
    fields = json.loads(notes or "{}")
    if not isinstance(fields, dict):
        raise DamagedError("its metadata are not the fields of a checkpoint")
    return {**fields, "state_dict": weights} if notes else weights


def _refuse_compressed(path: str) -> None:
    """Refuse zip files unlike torch's: compressed, or with something before the archive.

    A small compressed file could fill the memory. With something before the archive, torch and Python could
    read different archives.
    """
    entries = zipfile.ZipFile(path).infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise DamagedError("it is a compressed archive: unpack it first")
    if not entries or min(entry.header_offset for entry in entries) != 0:
        raise DamagedError("there is something before its archive")


def _check_tensors(content: object, size: int) -> None:
    """Refuse tensors that are not plain arrays, and more of them than ``size`` bytes can hold.

    Each reference to an array counts as one more array, as it does to code that walks through the content.
    """
    total = 0
    for tensor in (part for part in _parts(content) if isinstance(part, Tensor)):
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.dtype not in _TYPES:
            raise DamagedError("it holds tensors that are not plain arrays")
        total += tensor.nbytes
        if total > 4 * size + 1_000_000:
            raise DamagedError(f"its tensors ({total:,} bytes and more) are larger than the file")


def _numpy_scalars() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Safe globals to unpickle a numpy scalar: published files hold their learning rate as one."""
    return [
        (_scalar, "numpy.core.multiarray.scalar"),
        (_scalar, "numpy._core.multiarray.scalar"),
        (_number_type, "numpy.dtype"),
        *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8")),
    ]


def _number_type(name: str, *_: object) -> Any:
    if name not in ("f4", "f8", "i4", "i8"):
        raise DamagedError(f"it holds a numpy value of type {name}")
    return np.dtype(name)


def _scalar(kind: Any, data: object) -> float | int:
    content = data.encode("latin-1") if isinstance(data, str) else data  # Python 2 wrote bytes as text
    if not isinstance(kind, np.dtype) or not isinstance(content, bytes) or len(content) != kind.itemsize:
        raise DamagedError("it holds a numpy value of an unknown form")
    return np.frombuffer(content, kind)[0].item()


def _parts(content: object) -> Iterator[object]:
    """Yield the values and containers in nested containers, depth first.

    Raises:
        DamagedError: there are too many; with nested references a small file can contain any number.
    """
    waiting = [content]
    for _ in range(_MAX_PARTS):
        if not waiting:
            return
        yield (part := waiting.pop())
        if isinstance(part, dict):
            waiting += [*part.values(), *part.keys()][::-1]
        elif isinstance(part, list | tuple):
            waiting += part[::-1]
    raise DamagedError("it has too many parts")


def checksum(content: dict[Any, Any]) -> str:
    """Return the SHA-256, in hexadecimal, of the structure and values of a dict without key ``checksum``.

    Raises:
        DamagedError: it holds anything but dicts, lists, tensors, numbers, strings and None.
    """
    digest = hashlib.sha256()
    for part in _parts({key: value for key, value in content.items() if key != "checksum"}):
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
