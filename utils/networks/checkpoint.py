"""Checkpoints: a crash cannot lose one, a file cannot run code.

A file is a dict of plain tensors, scalars, strings, lists and dicts. ``epoch`` (epochs completed),
``state_dict`` (keys without ``module.``), ``acc``, ``best_acc`` (top-1 in percent) and ``optimizer`` are the
published fields; ``images`` of the next epoch are done beside them. ``checksum`` is over all the rest.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from utils.common.errors import UserError
from utils.common.files import write_atomically
from utils.data.transforms import INTERPOLATIONS, LEAST_CROP, LEAST_STD
from utils.networks import archive, gating
from utils.networks.parts import STEMS

# Arguments in which an evaluation takes a checkpoint at its word.
_SIZES = ("img_size", "min_size", "max_size", "cardinality", "base_width")

# Numbers that weights may be stored as; others would be cast into something else.
FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
_COUNTERS = frozenset({torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64})

# Parts that wrappers add to a parameter's name: DataParallel and DDP (published files have it),
# torch.compile.
_WRAPPERS = ("module", "_orig_mod")


def write(state: Mapping[str, Any], path: Path, zipped: bool = True) -> None:
    """Write a checkpoint, with the version of the format and a checksum over all.

    Without ``zipped`` it is in torch's older format, which the versions before 1.6 need.
    """
    content = {**state, "version": archive.VERSION}
    content["checksum"] = archive.checksum(content)
    write_atomically(path, lambda file: torch.save(content, file, _use_new_zipfile_serialization=zipped))


def load(path: str, flag: str = "--resume") -> dict[str, Any]:
    """Read a checkpoint onto the CPU, running no code from it.

    A bare state dict becomes ``{"state_dict": ...}``. Wrapper parts (``module.``, ``_orig_mod.``) are removed
    from the keys of ``state_dict``, and old names (DenseNet's ``norm.1``) replaced.

    Args:
        path: the file.
        flag: what named it, for messages.

    Raises:
        UserError: the file is missing, unreadable, damaged, or holds something else.
    """
    try:
        if Path(path).is_dir():
            raise UserError(f"{flag} {path}: is a folder: give a file in it")
        if not Path(path).is_file():
            what = "is a pipe or a device" if Path(path).exists() else "no such file"
            raise UserError(f"{flag} {path}: {what}")
        return _normalize(archive.read(path), f"{flag} {path}")
    except UserError:
        raise
    except PermissionError:
        raise UserError(f"{flag} {path}: no permission to read it") from None
    except archive.NewerError as error:
        raise UserError(f"{flag} {path}: {error}") from None
    except archive.ForeignError as error:
        raise UserError(f"{flag} {path}: not a checkpoint of tensors and numbers ({error})") from None
    except Exception as error:  # of safetensors nearly any
        sentence = " ".join(str(error).split()).split(". ")[0][:120]
        why = sentence if " " in sentence else f"{type(error).__name__} {sentence}".strip()
        raise UserError(f"{flag} {path}: damaged or not a checkpoint ({why})") from None


def _normalize(content: object, source: str) -> dict[str, Any]:
    if _matches(content, {str: Tensor}) and content:
        content = {"state_dict": content}
    if not isinstance(content, dict) or not _matches(content, {"state_dict": {str: Tensor}}):
        raise UserError(f"{source}: it holds no network weights ('state_dict')")
    wrong = [key for key, kind in _SCHEMA.items() if key in content and not _matches(content[key], kind)]
    if wrong or not _matches(content, {_printable: object}):
        raise UserError(f"{source}: damaged ({' and '.join(wrong) or 'fields'} not of the kind expected)")
    weights = _plain_weights(content["state_dict"], source)
    if "training_state_dict" in content:
        _plain_weights(content["training_state_dict"], source)
    return {**content, "state_dict": weights}


def _plain_weights(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Return weights by the names that they have in a network without wrappers.

    Raises:
        UserError: a name is none, two are of one weight, or weights are of a type that no network here has.
    """
    if wrong := [key for key in state if not key.isprintable()]:
        raise UserError(f"{source}: damaged ({wrong[0]!a} is no name of a weight)")
    if other := [key for key, value in state.items() if value.dtype not in FLOATS | _COUNTERS]:
        kind = str(state[other[0]].dtype).removeprefix("torch.")
        raise UserError(f"{source}: {other[0]} is {kind}, not float16, bfloat16, float32 or float64")
    weights = {_plain_key(key): value for key, value in state.items()}
    if len(weights) < len(state):
        first = next(key for key in state if key != _plain_key(key) and _plain_key(key) in state)
        raise UserError(f"{source}: it holds two weights {_plain_key(first)}, one of them as {first}")
    return weights


def _count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _number(value: object) -> bool:
    """A finite number, or a tensor of one, as published."""
    number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    return isinstance(number, int | float) and math.isfinite(number)


def _colours(value: Any, least: float) -> bool:
    """Three numbers from ``least`` to 1, or None."""
    return value is None or (
        _matches(value, [_number]) and len(value) == 3 and least <= min(value) <= max(value) <= 1
    )


def _printable(value: object) -> bool:
    return isinstance(value, str) and value.isprintable()


def _momentum(value: object) -> bool:
    """What an optimizer keeps of a parameter."""
    tensors = (one for one in value.values() if isinstance(one, Tensor)) if isinstance(value, dict) else ()
    return isinstance(value, dict) and all(one.dtype in FLOATS for one in tensors)


def _text(value: object) -> bool:
    return isinstance(value, str) and "\n" not in value


def _plain(value: object) -> bool:
    if isinstance(value, list):
        return all(map(_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _matches(value: object, schema: Any) -> bool:
    """Whether a value is of a kind.

    Args:
        value: anything.
        schema: a type; a predicate; ``[schema]`` of a list's items; ``{"key": schema}`` of the keys that a
            dict must have; ``{type: schema}`` of all values of a dict with such keys.
    """
    if isinstance(schema, list):
        return isinstance(value, list) and all(_matches(item, schema[0]) for item in value)
    if isinstance(schema, type):
        return isinstance(value, schema)
    if not isinstance(schema, dict):
        return bool(schema(value))
    if not isinstance(value, dict):
        return False
    if isinstance(next(iter(schema)), str):
        return all(key in value and _matches(value[key], kind) for key, kind in schema.items())
    [(of_keys, of_values)] = schema.items()
    return all(_matches(key, of_keys) and _matches(item, of_values) for key, item in value.items())


def _group(value: Any) -> bool:
    """A group of an optimizer's parameters: their numbers and, in our files, their names."""
    if not _matches(value, {"params": [_count]}):
        return False
    names = value.get("param_names", [""] * len(value["params"]))
    return _matches(names, [_text]) and len(names) == len(value["params"])


def _arguments(value: Any) -> bool:
    """The flags of a command line; what of the network is taken from them has the form that flags have."""
    if not _matches(value, {str: _plain}):
        return False
    sizes = (value[name] for name in _SIZES if value.get(name) is not None)
    crop, interpolation = value.get("crop_pct"), value.get("interpolation")
    images = crop is None or (_number(crop) and LEAST_CROP <= crop <= 1)
    images = images and (interpolation is None or interpolation in list(INTERPOLATIONS))
    images = images and _colours(value.get("mean"), 0) and _colours(value.get("std"), LEAST_STD)
    images = images and value.get("stem") in (None, *STEMS)
    return images and all(_count(size) and size > 0 for size in sizes) and gating.plausible(value)


# What a run that goes on from a checkpoint relies on.
_SCHEMA: Mapping[str, Any] = MappingProxyType(
    {
        **dict.fromkeys(("epoch", "images", "seed", "best_epoch", "averaged_steps"), _count),
        **dict.fromkeys(("training_images", "images_per_step", "processes"), _count),
        **dict.fromkeys(("acc", "best_acc"), _number),
        "classes": [_text],
        "rows": [_text],
        "arch": _printable,
        "sums": [[_number]],
        "training_state_dict": {str: Tensor},
        "optimizer": {"state": {object: _momentum}, "param_groups": [_group]},
        "precision": dict,
        "versions": {object: _plain},
        "archives": {str: str},
        "arguments": _arguments,
    }
)


def _plain_key(key: str) -> str:
    plain = ".".join(part for part in key.split(".") if part not in _WRAPPERS)
    # torchvision before 0.3 wrote DenseNet's norm1 and conv1 as norm.1 and conv.1
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)", r"\1\2", plain)
