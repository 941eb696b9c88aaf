"""Checkpoints: a crash cannot lose one, a file cannot run code, a mismatch is explained.

A file is a dict of plain tensors, scalars, strings and lists. ``epoch`` (epochs completed), ``state_dict``
(keys without ``module.``), ``acc``, ``best_acc`` (top-1 in percent) and ``optimizer`` are the published
fields.
"""

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from models import create_model, is_own, list_models, resolve
from utils.errors import UserError
from utils.files import copy_atomically, write_atomically

LAST = "checkpoint.pth.tar"
BEST = "model_best.pth.tar"

# Parts that wrappers add to a parameter's name: DataParallel and DDP (published files have it),
# torch.compile.
_WRAPPERS = ("module", "_orig_mod")


def save(state: Mapping[str, Any], folder: Path, is_best: bool) -> None:
    """Write ``checkpoint.pth.tar`` and, for the best so far, ``model_best.pth.tar``.

    At any moment either name leads to a whole checkpoint, the previous or the new one.
    """
    write_atomically(folder / LAST, lambda file: torch.save(dict(state), file))
    if is_best:
        copy_atomically(folder / LAST, folder / BEST)


def _numpy_scalars() -> list[Any]:
    """What a numpy float pickles to: published files hold a learning rate of that type."""
    scalar = np.float64(0).__reduce__()[0]
    return [
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        np.dtype,
        type(np.dtype(np.float64)),
        type(np.dtype(np.float32)),
    ]


def load(path: str, flag: str = "--resume") -> dict[str, Any]:
    """Read a checkpoint onto the CPU, running no code from it.

    A bare state dict becomes ``{"state_dict": ...}``. Wrapper parts (``module.``, ``_orig_mod.``) are removed
    from the keys of ``state_dict``.

    Args:
        path: the file.
        flag: what named it, for messages.

    Raises:
        UserError: the file is missing, unreadable, or holds something else.
    """
    if not Path(path).is_file():
        what = "is a folder: give a file in it" if Path(path).is_dir() else "no such file"
        raise UserError(f"{flag} {path}: {what}")
    try:
        with torch.serialization.safe_globals(_numpy_scalars()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old formats make torch warn about its own internals
            content = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError:
        raise UserError(f"{flag} {path}: no permission to read it") from None
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{flag} {path}: not a checkpoint of tensors and numbers ({_first_sentence(error)})"
        ) from None
    except (
        Exception
    ) as error:  # damage shows up as nearly any exception: EOFError, RuntimeError, KeyError, ...
        raise UserError(f"{flag} {path}: damaged or not a checkpoint ({_first_sentence(error)})") from None
    return _normalize(content, f"{flag} {path}")


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


def _check_fields(content: Mapping[Any, Any], source: str) -> None:
    """What training goes on from must be of its type."""
    kinds = {"epoch": int, "seed": int, "arch": str, "classes": list, "averaged_steps": int}
    wrong = [key for key, kind in kinds.items() if not isinstance(content.get(key, kind()), kind)]
    parts = {"state", "param_groups"}
    optimizer = content.get("optimizer", dict.fromkeys(parts))
    if not isinstance(optimizer, dict) or not parts <= set(optimizer):
        wrong.append("optimizer")
    wrong += [key for key in ("epoch", "seed") if key not in wrong and content.get(key, 0) < 0]
    if wrong:
        raise UserError(f"{source}: damaged ({' and '.join(wrong)} not of the kind expected)")


def _all_tensors(values: Mapping[Any, Any]) -> bool:
    return all(isinstance(key, str) and isinstance(value, Tensor) for key, value in values.items())


def _plain_key(key: str) -> str:
    return ".".join(part for part in key.split(".") if part not in _WRAPPERS)


def load_weights(
    model: nn.Module, saved: Mapping[str, Any], arch: str, path: str, flag: str = "--resume"
) -> None:
    """Load a checkpoint's weights, which must fit exactly; nothing is filled in and nothing dropped.

    Args:
        model: the network, built as ``arch``.
        saved: from :func:`load`.
        path: where the checkpoint came from, for messages.
        flag: what named it, for messages.

    Raises:
        UserError: it does not fit; the message counts what differs and names the architecture that fits.
    """
    state = saved["state_dict"]
    expected = model.state_dict()
    missing = [key for key in expected if key not in state]
    extra = [key for key in state if key not in expected]
    shapes = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in expected
        if key in state and state[key].shape != expected[key].shape
    ]
    problems = [
        f"{len(items)} keys {what} ({', '.join(items[:2])}{', ...' if len(items) > 2 else ''})"
        for what, items in (("missing", missing), ("unexpected", extra), ("of another shape", shapes))
        if items
    ]
    if problems:
        if saved.get("arch") in list_models():
            fits = [saved["arch"] + _class_flag(state)]
        else:
            print(f"{path} does not fit {arch}; looking for the architecture that it fits", flush=True)
            fits = fitting_architectures(state)
        hint = (
            f"the file fits -a {' or '.join(fits)}" if fits else "no registered architecture was found to fit"
        )
        raise UserError(f"{flag} {path} does not fit {arch}: {'; '.join(problems)}; {hint}")
    written_as = saved.get("arch", arch)
    if written_as in list_models() and resolve(written_as) != resolve(arch):
        raise UserError(f"{flag} {path} holds {written_as}, not {arch}; give -a {written_as}")
    model.load_state_dict(state)


def fitting_architectures(state: Mapping[str, Tensor]) -> list[str]:
    """The registered architectures with the keys and shapes of ``state``, as flags; our own only, if any.

    Networks are built on the ``meta`` device: no memory, no initialisation.
    """
    classes = _class_count(state)
    shapes = {key: value.shape for key, value in state.items()}
    fits: list[str] = []
    for name in list_models():
        if is_own(resolve(name)) and resolve(name) != name:
            continue
        if fits and not is_own(name) and resolve(name) == name:
            break  # torchvision's own names come last
        try:
            with torch.device("meta"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = create_model(name, num_classes=classes)
        except NotImplementedError:  # RegNets compute their widths with tensors, which meta tensors cannot
            continue
        if {key: value.shape for key, value in model.state_dict().items()} == shapes:
            fits.append(name + _class_flag(state))
    return fits


def _class_count(state: Mapping[str, Tensor]) -> int:
    """Outputs of the classifier, which is the last matrix of every registered net."""
    matrices = [value for value in state.values() if value.dim() >= 2]
    return matrices[-1].shape[0] if matrices else 1000


def _class_flag(state: Mapping[str, Tensor]) -> str:
    classes = _class_count(state)
    return "" if classes == 1000 else f" --num-classes {classes}"


def load_optimizer(optimizer: Optimizer, saved: Mapping[str, Any] | None, path: str) -> None:
    """Restore momentum and other per-parameter state; rates and decay stay those of the command line.

    Raises:
        UserError: there is no state, or it is for another network or other parameter groups.
    """
    remedy = "--fresh-optimizer goes on with fresh momentum"
    if saved is None:
        raise UserError(f"--resume {path}: it holds no optimizer state; {remedy}")
    groups = optimizer.state_dict()["param_groups"]
    sizes, saved_sizes = ([len(group["params"]) for group in g] for g in (groups, saved["param_groups"]))
    if sizes != saved_sizes:
        groups_differ = f"its optimizer has groups of {saved_sizes} parameters, this run {sizes}"
        cause = "other --wd-all, --nowd-*, or another script"
        raise UserError(f"--resume {path}: {groups_differ} ({cause}); {remedy}")
    position = {
        key: i for i, key in enumerate(key for group in saved["param_groups"] for key in group["params"])
    }
    state = {position[key]: value for key, value in saved["state"].items()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for i, values in state.items():
        if any(isinstance(v, Tensor) and v.dim() and v.shape != parameters[i].shape for v in values.values()):
            raise UserError(
                f"--resume {path}: its optimizer state is in another order than this net; {remedy}"
            )
    laid_out = {
        i: {k: _laid_out_as(v, parameters[i]) for k, v in values.items()} for i, values in state.items()
    }
    optimizer.load_state_dict({"state": laid_out, "param_groups": groups})


def _laid_out_as(value: Any, parameter: Tensor) -> Any:
    """A tensor in the parameter's memory format: fused optimizers pair memory, not indices."""
    if not isinstance(value, Tensor) or not value.dim():
        return value
    return torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)
