"""Checkpoints: a crash cannot lose one, a file cannot run code.

A file is a dict of plain tensors, scalars, strings, lists and dicts. ``epoch`` (epochs completed),
``state_dict`` (keys without ``module.``), ``acc``, ``best_acc`` (top-1 in percent) and ``optimizer`` are the
published fields; ``images`` of the next epoch are done beside them. ``checksum`` is over all the rest.
"""

import math
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from utils.common.errors import UserError
from utils.common.files import copy_atomically, write_atomically
from utils.networks import archive

LAST = "checkpoint.pth.tar"
BEST = "model_best.pth.tar"
VERSION = 1  # of the format
_SUMS = (0, 4, 5, 6)  # of an epoch: before any, of classification, of detectors without and with masks

# Arguments that an evaluation goes on with.
_SIZES = ("img_size", "min_size", "max_size", "cardinality", "base_width")

# Parts that wrappers add to a parameter's name: DataParallel and DDP (published files have it),
# torch.compile.
_WRAPPERS = ("module", "_orig_mod")


def kept(folder: Path) -> list[Path]:
    """The checkpoints of a folder that are kept under the name of their position, the newest first."""
    found = [(position_of(path), path) for path in folder.glob("checkpoint-*.pth.tar") if path.is_file()]
    return [path for _, path in sorted((at, path) for at, path in found if at is not None)][::-1]


def position_of(path: Path) -> tuple[int, int] | None:
    """Epochs completed and images of the next one, by a kept file's name; None for other names."""
    match = re.fullmatch(r"checkpoint-(\d+)-(\d+)\.pth\.tar", path.name)
    return (int(match[1]), int(match[2])) if match else None


def save(state: Mapping[str, Any], folder: Path) -> Path:
    """Write a checkpoint under the name of its position, ``checkpoint-EPOCHS-IMAGES.pth.tar``."""
    path = folder / f"checkpoint-{state['epoch']:04d}-{state['images']:07d}.pth.tar"
    write(state, path)
    return path


def write(state: Mapping[str, Any], path: Path, zipped: bool = True) -> None:
    """Write a checkpoint, with the version of the format and a checksum over all.

    Without ``zipped`` it is in torch's older format, which the versions before 1.6 need.
    """
    content = {**state, "version": VERSION}
    content["checksum"] = archive.checksum(content)
    write_atomically(path, lambda file: torch.save(content, file, _use_new_zipfile_serialization=zipped))


def publish(path: Path, is_best: bool, keep: int) -> None:
    """Give the newest checkpoint its plain names and remove the oldest of more than ``keep``.

    At any moment each name leads to a whole checkpoint, the previous or the new one. The best comes first:
    whoever continues from ``checkpoint.pth.tar`` then has the best of all epochs before it.
    """
    if is_best:
        copy_atomically(path, path.parent / BEST)
    copy_atomically(path, path.parent / LAST)
    for old in kept(path.parent)[keep:]:
        if old != path:
            old.unlink()


def candidates(folder: Path) -> list[Path]:
    """All checkpoints of a folder, the newest first."""
    return [path for path in (*kept(folder), folder / LAST, folder / BEST) if path.exists()]


def newest(folder: Path) -> str | None:
    """The newest checkpoint of a folder that can be read, or None in a folder without any.

    A damaged one is named, and the one before it tried.

    Raises:
        UserError: there are some, and none can be read.
    """
    for path in candidates(folder):
        try:
            load(str(path), "--resume auto:")
        except UserError as error:
            print(f"note: {error}; trying the one before it", flush=True)
        else:
            return str(path)
    if found := candidates(folder):
        raise UserError(
            f"--resume auto: none of the {len(found)} checkpoints in {folder} can be read; "
            "start anew in another folder with -c"
        )
    return None


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
        if not Path(path).is_file():
            what = "is a folder: give a file in it" if Path(path).is_dir() else "no such file"
            raise UserError(f"{flag} {path}: {what}")
        return _normalize(archive.read(path), f"{flag} {path}")
    except (UserError, KeyboardInterrupt):
        raise
    except PermissionError:
        raise UserError(f"{flag} {path}: no permission to read it") from None
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{flag} {path}: not a checkpoint of tensors and numbers ({_first_sentence(error)})"
        ) from None
    except Exception as error:  # damage shows up as nearly any: EOFError, RuntimeError, KeyError, ...
        raise UserError(f"{flag} {path}: damaged or not a checkpoint ({_first_sentence(error)})") from None


def _first_sentence(error: Exception) -> str:
    text = " ".join(str(error).split()).split(". ")[0][:120]
    return text if " " in text else f"{type(error).__name__} {text}".strip()


def _normalize(content: object, source: str) -> dict[str, Any]:
    if isinstance(content, dict) and content and _all_tensors(content):
        content = {"state_dict": content}
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(content, dict) or not isinstance(state, dict) or not _all_tensors(state):
        raise UserError(f"{source}: it holds no network weights ('state_dict')")
    _check_fields(content, source)
    return {**content, "state_dict": {_plain_key(key): value for key, value in state.items()}}


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_number(value: object) -> bool:
    """A finite one; a tensor of one, as published."""
    number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    return isinstance(number, int | float) and math.isfinite(number)


def _is_plain(value: object) -> bool:
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) and "\n" not in text for text in value)


def _are_sums(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(sums, list) and len(sums) in _SUMS and all(map(_is_number, sums)) for sums in value
    )


def _are_weights(value: object) -> bool:
    return isinstance(value, dict) and _all_tensors(value)


def _is_optimizer_state(value: object) -> bool:
    state = value.get("state") if isinstance(value, dict) else None
    groups = value.get("param_groups") if isinstance(value, dict) else None
    return (
        isinstance(state, dict)
        and all(isinstance(of_parameter, dict) for of_parameter in state.values())
        and isinstance(groups, list)
        and all(map(_is_group, groups))
    )


def _is_group(value: object) -> bool:
    """Of parameters, by number and, in our files, by name."""
    params = value.get("params") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(params, list):
        return False
    names = value.get("param_names", [""] * len(params))
    return all(type(key) is int for key in params) and _are_texts(names) and len(names) == len(params)


def _is_dict(value: object) -> bool:
    return isinstance(value, dict)


def _are_versions(value: object) -> bool:
    return isinstance(value, dict) and _is_plain([*value, *value.values()])


def _are_arguments(value: object) -> bool:
    """Of a command line; what an evaluation takes from it must be whole numbers from 1."""
    return (
        isinstance(value, dict)
        and _are_versions(value)
        and all(_is_count(value[name]) and value[name] for name in _SIZES if value.get(name) is not None)
    )


# What a run goes on from must be of its kind.
_FIELDS: Mapping[str, Callable[[object], bool]] = MappingProxyType(
    {
        **dict.fromkeys(("epoch", "images", "seed", "best_epoch", "averaged_steps"), _is_count),
        **dict.fromkeys(("training_images", "images_per_step", "processes"), _is_count),
        **dict.fromkeys(("acc", "best_acc"), _is_number),
        **dict.fromkeys(("classes", "rows"), _are_texts),
        "arch": lambda value: isinstance(value, str),
        "sums": _are_sums,
        "training_state_dict": _are_weights,
        "optimizer": _is_optimizer_state,
        "precision": _is_dict,
        "versions": _are_versions,
        "arguments": _are_arguments,
    }
)


def _check_fields(content: Mapping[Any, Any], source: str) -> None:
    wrong = [key for key, is_sound in _FIELDS.items() if key in content and not is_sound(content[key])]
    if wrong:
        raise UserError(f"{source}: damaged ({' and '.join(wrong)} not of the kind expected)")


def _all_tensors(values: Mapping[Any, Any]) -> bool:
    return all(isinstance(key, str) and isinstance(value, Tensor) for key, value in values.items())


def _plain_key(key: str) -> str:
    plain = ".".join(part for part in key.split(".") if part not in _WRAPPERS)
    # torchvision before 0.3 wrote DenseNet's norm1 and conv1 as norm.1 and conv.1
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)", r"\1\2", plain)
