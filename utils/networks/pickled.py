"""The pickles in torch's files, read without running anything: containers, numbers, strings and tensors.

Only what ``torch.save`` writes of such values is understood (pickle protocol 2 of Python 2 and 3). No name in
a file is looked up: each of the few that may stand there has its code here. Every step is counted, so that
the time and the memory do not exceed what the caller grants.
"""

import math
import struct
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

LONGEST = 2**25  # bytes of a pickle; those of the largest nets with their optimizer have some megabytes
_DIMENSIONS = 64  # of a tensor; torch computes with no more
_NUMBERS = ("f4", "f8", "i4", "i8")  # numpy's types of the scalars in old files

_TYPES = MappingProxyType(
    {str(kind): kind for kind in vars(torch).values() if isinstance(kind, torch.dtype) and kind.itemsize}
)
_KINDS = (
    ("Float", torch.float32),
    ("Double", torch.float64),
    ("Half", torch.float16),
    ("BFloat16", torch.bfloat16),
    ("Long", torch.int64),
    ("Int", torch.int32),
    ("Short", torch.int16),
    ("Char", torch.int8),
    ("Byte", torch.uint8),
    ("Bool", torch.bool),
    ("ComplexFloat", torch.complex64),
    ("ComplexDouble", torch.complex128),
)
_STORAGES = MappingProxyType(
    {f"{module}.{kind}Storage": dtype for module in ("torch", "torch.cuda") for kind, dtype in _KINDS}
    | {f"torch.storage.{kind}Storage": torch.uint8 for kind in ("Untyped", "_Untyped")}
)


class DamagedError(Exception):
    """The file has changed since it was written, or is not a file of tensors."""


class ForeignError(Exception):
    """The file holds, or is, something else than tensors and numbers."""


class Wanted(NamedTuple):
    """A storage that a pickle refers to."""

    key: str
    dtype: torch.dtype
    length: int  # in numbers


OpenStorage = Callable[[Wanted], Tensor]  # returns its numbers (N,); called once for a key


class _Name(str):
    """A function or class that the file names."""

    __slots__ = ()


class _Storage(NamedTuple):
    numbers: Tensor  # (N,)


_KEYS = (str, int, float, bool)  # tuples hide a hash that may take for ever


class Unpickler:
    """Reads pickles that follow each other.

    Args:
        data: they begin at its start.
        open_storage: finds the numbers of a storage.
        steps: how many instructions and copied items are granted.
    """

    def __init__(self, data: memoryview, open_storage: OpenStorage, steps: int) -> None:
        self.data, self.open_storage, self.steps = data, open_storage, steps
        self.at = 0
        self.storages: dict[str, tuple[Wanted, Tensor]] = {}

    def load(self) -> Any:
        """Read the next pickle; parameters become tensors, and ordered dicts dicts.

        Raises:
            ForeignError: it holds anything but containers, numbers, strings and tensors.
            DamagedError: it is cut off or damaged, or takes more than is granted.
        """
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        end = self.at + LONGEST
        try:
            while (code := self.data[self.at]) != _STOP:
                self.at += 1
                self._pay(1)
                _INSTRUCTIONS[code](self)
                if self.at > end:
                    raise DamagedError(f"its structure takes more than {LONGEST:,} bytes")
            self.at += 1
            return self.stack.pop()
        except (IndexError, KeyError, struct.error):
            raise DamagedError("its pickle is cut off or damaged") from None

    def _pay(self, steps: int) -> None:
        self.steps -= steps
        if self.steps < 0:
            raise DamagedError("it has too many parts")

    def _bytes(self, count: int) -> memoryview:
        self.at += count
        if self.at > len(self.data):
            raise DamagedError("its pickle is cut off")
        return self.data[self.at - count : self.at]

    def _number(self, form: struct.Struct) -> Any:
        return form.unpack(self._bytes(form.size))[0]

    def _line(self) -> str:
        for length in range(256):
            if self.data[self.at + length] == ord("\n"):
                return bytes(self._bytes(length + 1)[:-1]).decode("ascii", "backslashreplace")
        raise DamagedError("its pickle is damaged")

    def _marked(self) -> list[Any]:
        """Return what was put onto the stack since the last mark."""
        items, self.stack = self.stack, self.marks.pop()
        return items

    def _mark(self) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def _name(self) -> None:
        name = _Name(f"{self._line()}.{self._line()}")
        if name not in _CALLS and name not in _STORAGES and name not in _TYPES:
            raise ForeignError(f"it holds {name}")
        self.stack.append(name)

    def _tuple(self, count: int) -> None:
        items = tuple(self.stack[-count:])
        if len(items) < count:
            raise DamagedError("its pickle is damaged")
        self.stack[-count:] = [items]

    def _tuple_from_mark(self) -> None:
        items = tuple(self._marked())
        self.stack.append(items)

    def _append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise DamagedError("its pickle is damaged")
        target += items

    def _set(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise DamagedError("its pickle is damaged")
        _fill(target, zip(items[::2], items[1::2], strict=True))

    def _pair(self) -> list[Any]:
        value, key = self.stack.pop(), self.stack.pop()
        return [key, value]

    def _call(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(function) is not _Name or function not in _CALLS or type(arguments) is not tuple:
            raise ForeignError("it calls what is no function")
        try:
            self.stack.append(_CALLS[function](self, *arguments))
        except (TypeError, ValueError, RuntimeError):
            raise DamagedError(f"its {function.rpartition('.')[2]} is damaged") from None

    def _build(self) -> None:
        """Accept what ordered dicts of weights (versions of modules) and numpy's types say of themselves."""
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is dict and type(state) is dict and state.keys() <= {"_metadata"}:
            return
        if isinstance(target, np.dtype) and type(state) is tuple and state[1:2] in (("<",), ("|",), ("=",)):
            return
        raise ForeignError("it holds objects with attributes")

    def _persistent(self) -> None:
        saved = self.stack.pop()
        if type(saved) is not tuple or len(saved) not in (5, 6) or saved[0] != "storage":
            raise ForeignError("it holds more than tensors")
        kind, key, count = saved[1], saved[2], saved[4]
        if type(kind) is not _Name or kind not in _STORAGES or type(key) is not str or not _whole(count):
            raise DamagedError("its storage is damaged")
        numbers = self._numbers_of(Wanted(key, _STORAGES[kind], count))
        if view := (saved[5] if len(saved) == 6 else None):
            _, start, length = view
            if not (_whole(start) and _whole(length) and start + length <= len(numbers)):
                raise DamagedError("its storage is damaged")
            numbers = numbers[start : start + length]
        self.stack.append(_Storage(numbers))

    def _numbers_of(self, wanted: Wanted) -> Tensor:
        if wanted.key not in self.storages:
            self.storages[wanted.key] = wanted, self.open_storage(wanted)
        before, numbers = self.storages[wanted.key]
        if before != wanted:
            raise DamagedError("its storage is damaged")
        return numbers

    def _ordered(self, items: Any = ()) -> dict[Any, Any]:
        """An ordered dict; Python 2 gives its items as a list of lists."""
        self._pay(len(items))
        return _fill({}, items)

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
        if not (isinstance(storage, _Storage) and type(size) is type(stride) is tuple):
            raise ValueError
        whole = all(map(_whole, (offset, *size, *stride))) and len(size) == len(stride) <= _DIMENSIONS
        if not whole:
            raise ValueError
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if math.prod(size) and last >= len(storage.numbers):
            raise DamagedError("a tensor is larger than its storage")
        return storage.numbers.as_strided(size, stride, offset if math.prod(size) else 0)

    def _tensor_of_type(self, storage: Any, offset: Any, size: Any, stride: Any, *others: Any) -> Tensor:
        """A tensor of a newer type, whose storage is of bytes."""
        dtype = _TYPES[others[2]]
        numbers = storage.numbers
        numbers = numbers[: len(numbers) // dtype.itemsize * dtype.itemsize].view(dtype)
        return self._tensor(_Storage(numbers), offset, size, stride)

    def _parameter(self, data: Any, *_: Any) -> Tensor:
        if not isinstance(data, Tensor):
            raise ValueError
        return data

    def _numpy_type(self, name: Any, *_: Any) -> "np.dtype[Any]":
        if name not in _NUMBERS:
            raise DamagedError(f"it holds a numpy value of type {name}")
        return np.dtype(f"<{name}")

    def _numpy_scalar(self, kind: Any, data: Any) -> float | int:
        content = data.encode("utf-8", "surrogateescape") if type(data) is str else data
        if not isinstance(kind, np.dtype) or type(content) is not bytes or len(content) != kind.itemsize:
            raise DamagedError("it holds a numpy value of an unknown form")
        return np.frombuffer(content, kind)[0].item()

    def _encoded(self, text: Any, encoding: Any) -> bytes:
        """The bytes of a numpy scalar, which Python 3 writes as a text."""
        if type(text) is not str or encoding not in ("latin1", "latin-1") or len(text) > 8:
            raise ValueError
        return text.encode("latin-1")


def _whole(number: object) -> bool:
    return type(number) is int and 0 <= number < 2**63


def _fill(target: dict[Any, Any], items: Any) -> dict[Any, Any]:
    for key, value in items:
        if type(key) not in _KEYS:
            raise DamagedError(f"it has a {type(key).__name__} as a key")
        target[key] = value
    return target


_CALLS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "collections.OrderedDict": Unpickler._ordered,
        "torch._utils._rebuild_tensor": Unpickler._tensor,
        "torch._utils._rebuild_tensor_v2": Unpickler._tensor,
        "torch._utils._rebuild_tensor_v3": Unpickler._tensor_of_type,
        "torch._utils._rebuild_parameter": Unpickler._parameter,
        "numpy.dtype": Unpickler._numpy_type,
        "numpy.core.multiarray.scalar": Unpickler._numpy_scalar,
        "numpy._core.multiarray.scalar": Unpickler._numpy_scalar,
        "_codecs.encode": Unpickler._encoded,
    }
)

_BYTE, _SHORT, _INT, _LENGTH = map(struct.Struct, ("<B", "<H", "<i", "<I"))
_FLOAT = struct.Struct(">d")
_STOP = ord(".")


def _foreign(unpickler: Unpickler) -> None:
    code = unpickler.data[unpickler.at - 1]
    raise ForeignError(f"it is no pickle of tensors (instruction {code:#04x})")


def _text(unpickler: Unpickler, length: struct.Struct, errors: str) -> None:
    data = unpickler._bytes(unpickler._number(length))
    try:
        unpickler.stack.append(str(data, "utf-8", errors))
    except UnicodeDecodeError:
        raise DamagedError("it holds a text that is none") from None


def _put(unpickler: Unpickler, number: struct.Struct) -> None:
    unpickler.memo[unpickler._number(number)] = unpickler.stack[-1]


def _get(unpickler: Unpickler, number: struct.Struct) -> None:
    unpickler.stack.append(unpickler.memo[unpickler._number(number)])


def _long(unpickler: Unpickler) -> None:
    data = unpickler._bytes(unpickler._number(_BYTE))
    unpickler.stack.append(int.from_bytes(data, "little", signed=True))


# The instructions of pickle protocol 2 that torch.save uses, by their letters in ``pickletools``.
_BY_LETTER: Mapping[bytes, Callable[[Unpickler], object]] = MappingProxyType(
    {
        b"\x80": lambda of: of._bytes(1),  # the protocol
        b"c": Unpickler._name,
        b"R": Unpickler._call,
        b"b": Unpickler._build,
        b"Q": Unpickler._persistent,
        b"(": Unpickler._mark,
        b"t": Unpickler._tuple_from_mark,
        b"\x85": lambda of: of._tuple(1),
        b"\x86": lambda of: of._tuple(2),
        b"\x87": lambda of: of._tuple(3),
        b"a": lambda of: of._append([of.stack.pop()]),
        b"e": lambda of: of._append(of._marked()),
        b"s": lambda of: of._set(of._pair()),
        b"u": lambda of: of._set(of._marked()),
        b")": lambda of: of.stack.append(()),
        b"]": lambda of: of.stack.append([]),
        b"}": lambda of: of.stack.append({}),
        b"N": lambda of: of.stack.append(None),
        b"\x88": lambda of: of.stack.append(True),
        b"\x89": lambda of: of.stack.append(False),
        b"K": lambda of: of.stack.append(of._number(_BYTE)),
        b"M": lambda of: of.stack.append(of._number(_SHORT)),
        b"J": lambda of: of.stack.append(of._number(_INT)),
        b"G": lambda of: of.stack.append(of._number(_FLOAT)),
        b"\x8a": _long,
        b"X": lambda of: _text(of, _LENGTH, "surrogatepass"),
        b"U": lambda of: _text(of, _BYTE, "surrogateescape"),  # of Python 2, also for bytes
        b"q": lambda of: _put(of, _BYTE),
        b"r": lambda of: _put(of, _LENGTH),
        b"h": lambda of: _get(of, _BYTE),
        b"j": lambda of: _get(of, _LENGTH),
    }
)
_INSTRUCTIONS = tuple(_BY_LETTER.get(bytes([code]), _foreign) for code in range(256))
