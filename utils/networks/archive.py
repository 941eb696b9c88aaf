"""Reading files of tensors that may be damaged or hostile: no code runs, memory stays bounded by the file."""

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
NOTES = "checkpoint"  # where the metadata of safetensors hold a checkpoint's other fields, as JSON
_PARTS = 1_000_000  # values and containers in a file; checkpoints of the largest nets have some ten thousand


class DamagedError(Exception):
    """The file is not what it was when it was written, or was never a file of tensors."""


def read(path: str) -> Any:
    """The content of a file of torch (zip or older format) or, by its suffix, safetensors, on the CPU.

    Raises:
        DamagedError: it is cut off, compressed, claims more than it holds, or a zip's CRC-32 does not match.
        Exception: nearly any that torch's or safetensors' reader meets in such a file.
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
    """The tensors; with the other fields, those of a file of ``scripts/convert_checkpoint.py``."""
    from safetensors import safe_open  # only those who have such files need the library

    with safe_open(path, "pt") as file:
        weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no dict)
        notes = (file.metadata() or {}).get(NOTES)
    if notes is None:
        return weights
    fields = json.loads(notes)
    if not isinstance(fields, dict):
        raise DamagedError("its metadata are no fields of a checkpoint")
    return {**fields, "state_dict": weights}


def _refuse_compressed(path: str) -> None:
    """torch never compresses; a small compressed file could fill the memory.

    Something before the archive would have torch and Python read two different ones.
    """
    entries = zipfile.ZipFile(path).infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise DamagedError("it is a compressed archive: unpack it first")
    if not entries or min(entry.header_offset for entry in entries) != 0:
        raise DamagedError("something stands before its archive")


def _check_tensors(content: object, size: int) -> None:
    """Refuse what no checkpoint holds: other than plain arrays, or more of them than ``size`` bytes can hold.

    References to one array stand for as many arrays to whoever walks through them.
    """
    total = 0
    for tensor in _tensors(content):
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and tensor.dtype in _TYPES
        if not plain:
            raise DamagedError("it holds tensors that are no plain arrays")
        total += tensor.numel() * tensor.element_size()
        if total > 4 * size + 1_000_000:
            raise DamagedError(f"its tensors ({total:,} bytes and more) are larger than the file")


def _numpy_scalars() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Stand-ins for what a numpy number pickles to: published files hold a learning rate of that type."""
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
    """The values and containers of nested containers, depth first.

    Raises:
        DamagedError: there are too many; a few references to references can stand for any number.
    """
    waiting, count = [content], 0
    while waiting:
        part = waiting.pop()
        count += 1
        if count > _PARTS:
            raise DamagedError("it has too many parts")
        yield part
        if isinstance(part, dict):
            waiting += [*part.values(), *part.keys()][::-1]
        elif isinstance(part, list | tuple):
            waiting += part[::-1]


def _tensors(content: object) -> Iterator[Tensor]:
    return (part for part in _parts(content) if isinstance(part, Tensor))


def checksum(content: dict[Any, Any]) -> str:
    """SHA-256, in hexadecimal, of the structure and all values of a dict but its key ``checksum``.

    Raises:
        DamagedError: it holds something else than dicts, lists, tensors, numbers and strings.
    """
    total = hashlib.sha256()
    for part in _parts({key: value for key, value in content.items() if key != "checksum"}):
        if isinstance(part, dict | list | tuple):
            total.update(f"{'dict' if isinstance(part, dict) else 'list'} {len(part)}\n".encode())
        elif isinstance(part, Tensor):
            total.update(f"{part.dtype} {tuple(part.shape)}\n".encode())
            flat = part.detach().cpu().contiguous().reshape(-1)
            total.update(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]
        elif type(part) in (type(None), bool, int, float, str):  # a subclass would not be read back as itself
            text = repr(part).encode("utf-8", "backslashreplace")
            total.update(b"%s %d " % (type(part).__name__.encode(), len(text)) + text)
        else:
            raise DamagedError(f"it holds a {type(part).__name__}")
    return total.hexdigest()
