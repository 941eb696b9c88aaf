"""Loading weights, which must fit a network exactly; if they do not, finding the network that they fit."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from models import create_model, list_models, resolve
from models.gates import gates_of, list_gates
from models.gates.registry import kind_of
from models.stems import has_small_stem, of_stem
from utils.common.errors import UserError
from utils.common.text import plural
from utils.networks.checkpoint import FLOATS
from utils.networks.gating import GateSpec, gates_said
from utils.networks.parts import SMALL_STEM, PartSpec, parts_said

CHOICE = "-a {arch}{groups}{parts}{classes}"  # how the training scripts choose a network
Shapes = Mapping[str, tuple[int, ...]]  # by the key of a state dict
_FILLING = frozenset({Tensor.normal_, Tensor.uniform_, Tensor.fill_, Tensor.zero_, Tensor.erfinv_})


def load_weights(
    model: nn.Module,
    saved: Mapping[str, Any],
    arch: str,
    path: str,
    flag: str = "--resume",
    choice: str = CHOICE,
    parts: PartSpec | None = None,
) -> None:
    """Load a checkpoint's weights, which must fit exactly; nothing is filled in or dropped.

    Args:
        model: the network, built as ``arch``.
        saved: from :func:`load`.
        arch: name of the architecture.
        path: of the checkpoint, for messages.
        flag: the flag that named it, for messages.
        choice: how a user chooses the network: ``{arch}``, and further flags, ``{groups}``, ``{parts}`` and
            ``{classes}``.
        parts: what flags have put into the network; None: nothing.

    Raises:
        UserError: it does not fit; the message counts the differences and says what would fit.
    """
    parts = parts or PartSpec()
    name = f"{arch}{parts.flags}"
    check_types(model, saved["state_dict"], f"{flag} {path}")
    if problems := differences(model, saved["state_dict"]):
        remedy = _remedy(model, saved, arch, parts, path, choice)
        raise UserError(f"{flag} {path} does not fit {name}: {problems}; {remedy}")
    if _is_other(saved, arch, parts):
        said = parts_said(saved).flags
        holds, widths = f"{saved['arch']}{said}", _group_flags(saved)
        instead = choice.format(arch=saved["arch"], groups=widths, parts=said, classes="")
        raise UserError(f"{flag} {path} holds {holds}, not {name}; give {instead}")
    model.load_state_dict(saved["state_dict"])


def _is_other(saved: Mapping[str, Any], arch: str, parts: PartSpec) -> bool:
    """Whether a checkpoint names another registered architecture, or another stem or gates of this one."""
    says = saved.get("arch")
    if says not in list_models():
        return False
    return resolve(says) != resolve(arch) or (
        "arguments" in saved and not parts_said(saved).same_parts_as(parts)
    )


def _remedy(
    model: nn.Module, saved: Mapping[str, Any], arch: str, parts: PartSpec, path: str, choice: str
) -> str:
    """Say what to give if a checkpoint does not fit a network, built as ``arch`` with ``parts``."""
    expected, state, says = _shapes(model.state_dict()), saved["state_dict"], saved.get("arch")
    if detector := of_a_detector(state):
        return f"it {detector}"
    ours, groups, said = _outputs(expected, expected) or 0, _group_flags(saved), parts_said(saved).flags
    if _fits(expected, _shapes(state)) and not _is_other(saved, arch, parts):
        theirs = output_count(state, arch)
        return f"it has {plural(theirs, 'output')}, not {ours:,}: give{_class_flag(theirs, ours)}"
    if says in list_models():
        fits = [says] if groups or said or _fits(_known_shapes(says), _shapes(state)) else []
    else:
        print(f"{path} does not fit {arch}; looking for the architecture that it fits", flush=True)
        fits = fitting_architectures(state)
    if not fits:
        return _remedy_without_a_name(model, state)
    classes = _class_flag(output_count(state, fits[0]), ours)
    if not groups and not said:
        small = has_small_stem(state)
        said = SMALL_STEM * small
        if resolve(arch) in map(resolve, fits):  # as built by default
            too_many = replace(parts, stem=None).flags if small else parts.flags
            said += f" without{too_many}" if too_many else ""
            fits, groups = [arch], "" if said else " without --cardinality and --base-width"
    known = [choice.format(arch=name, groups=groups, parts=said, classes=classes) for name in fits]
    return f"the file fits {alternatives(known)}"


def _remedy_without_a_name(model: nn.Module, state: Mapping[str, Tensor]) -> str:
    """Say what to give if a checkpoint that fits no registered architecture does not fit a network."""
    expected = model.state_dict()
    if expected.keys() == state.keys():
        other = [key for key, value in expected.items() if value.shape != state[key].shape]
        if all(map(of_stem, other)):
            return f"it has another stem: give --stem {'small' if has_small_stem(state) else 'published'}"
        if all(key.startswith(tuple(f"{name}." for name in gates_of(model))) for key in other):
            return "its gates have other arguments: give --gate-args as it was trained"
        return "its layers have other widths: give --cardinality and --base-width as it was trained"
    names = [gate for gate in list_gates() if any(f".{kind_of(gate).child}." in key for key in state)]
    if names:
        likely = " or ".join(f"--gate {name}" for name in names)
        further = "(and --gate-at, --gate-stages, --gate-args) as it was trained"
        return f"no registered architecture was found to fit, but it has gates: give {likely} {further}"
    return "no registered architecture was found to fit"


def has_keys_of(state: Mapping[str, Tensor], arch: str) -> bool:
    """Whether a state dict has the keys of an architecture."""
    return _known_shapes(arch).keys() == state.keys()


def _group_flags(saved: Mapping[str, Any]) -> str:
    """The run's flags that change the widths of its network."""
    given = saved.get("arguments", {})
    return width_flags(given.get("cardinality"), given.get("base_width"))


def width_flags(cardinality: int | None, base_width: int | None) -> str:
    """The flags of these widths, each after a blank; empty for those of the architecture."""
    flags = (("--cardinality", cardinality), ("--base-width", base_width))
    return "".join(f" {flag} {value}" for flag, value in flags if value is not None)


def _class_flag(theirs: int, ours: int) -> str:
    """The flag for a file with ``theirs`` outputs where the network has ``ours``."""
    if theirs == ours:
        return ""
    return f" --num-classes {theirs}" + (" and data of no more classes" if theirs < ours else "")


def alternatives(texts: Sequence[str]) -> str:
    """Join the names of networks with the same keys and shapes, for the user to choose from."""
    why = " (same shapes, other mathematics: give the one that was trained)" if len(texts) > 1 else ""
    return " or ".join(texts) + why


def of_a_detector(state: Mapping[str, Tensor]) -> str:
    """Say what to do with the weights of a detector; empty for other weights."""
    detector = any(key.startswith(("rpn.", "roi_heads.")) for key in state)
    return "holds a whole detector: give it to detection/train.py with --resume" if detector else ""


def load_other(
    model: nn.Module,
    saved: Mapping[str, Any],
    name: str,
    path: str,
    remedy: str,
    flag: str = "--resume",
    gates: GateSpec | None = None,
) -> None:
    """Load a checkpoint's weights into a network that is not registered, such as a detector.

    Args:
        model: the network.
        saved: from :func:`load`.
        name: what the checkpoint's ``arch`` must be.
        path: of the checkpoint, for messages.
        remedy: what to do if it holds something else.
        flag: the flag that named it, for messages.
        gates: those that flags have put into it; None: none.

    Raises:
        UserError: it does not fit.
    """
    said, gates = gates_said(saved), gates or GateSpec()
    holds = saved.get("arch", "a network without a name")
    if holds != name or ("arguments" in saved and not said.same_as(gates)):
        raise UserError(f"{flag} {path} holds {holds}{said.flags}, not {name}{gates.flags}; {remedy}")
    check_types(model, saved["state_dict"], f"{flag} {path}")
    if problems := differences(model, saved["state_dict"]):
        raise UserError(f"{flag} {path} does not fit {name}: {problems}")
    model.load_state_dict(saved["state_dict"])


def differences(model: nn.Module, state: Mapping[str, Tensor]) -> str:
    """Describe how the keys and shapes of a state dict differ from a network's; empty if they do not."""
    expected = model.state_dict()
    missing = [key for key in expected if key not in state]
    extra = [key for key in state if key not in expected]
    shapes = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in expected
        if key in state and state[key].shape != expected[key].shape
    ]
    return "; ".join(
        f"{len(items)} keys {what} ({first(items, 2)})"
        for what, items in (("missing", missing), ("unexpected", extra), ("of another shape", shapes))
        if items
    )


def check_types(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Check that a state dict has numbers of the network's kind wherever it has its shapes.

    Quantized weights, for example, have the shapes of the others, and would be cast into other numbers.

    Args:
        model: the network.
        state: by the names of its weights; others are not looked at.
        source: the flag and the file, for messages.

    Raises:
        UserError: they are not.
    """
    for key, own in model.state_dict().items():
        value = state.get(key)
        if value is not None and value.shape == own.shape and not _fits_type(value, own):
            theirs, ours = (str(of.dtype).removeprefix("torch.") for of in (value, own))
            raise UserError(f"{source}: {key} is {theirs}, in the network {ours}: give weights of {ours}")


def _fits_type(value: Tensor, own: Tensor) -> bool:
    """Whether numbers can be cast: any floating point to any other, and to counters what is equal to them."""
    if own.is_floating_point():
        return value.dtype in FLOATS
    return value.dtype == own.dtype or torch.equal(value.to(own.dtype).to(value.dtype), value)


def first(items: Sequence[str], most: int) -> str:
    """Join the first items, and say whether there are more."""
    return ", ".join(items[:most]) + ", ..." * (len(items) > most)


def fitting_architectures(state: Mapping[str, Tensor]) -> list[str]:
    """List the registered architectures with the keys and shapes of ``state``, for any number of outputs.

    Several can fit: a net and its weight-standardised form. They are in alphabetical order, which puts the
    plain net first, without aliases. A network with the small stem fits its architecture.
    """
    compared = _without_stem if has_small_stem(state) else dict
    shapes = compared(_shapes(state))
    fits: list[str] = []
    for name in list_models():
        if resolve(name) != name:
            continue
        with suppress(NotImplementedError):  # RegNets, which would take minutes
            if _fits(compared(_shapes_of(name)), shapes):
                fits.append(name)
    return sorted(fits)


def output_count(state: Mapping[str, Tensor], arch: str) -> int:
    """Outputs of the classifier of ``arch`` in a checkpoint; 1000 if it has none."""
    return outputs_in(state, arch) or 1000


def outputs_in(state: Mapping[str, Tensor], arch: str) -> int | None:
    """Outputs of the classifier of ``arch`` in a checkpoint; None if it has none."""
    return _outputs(_known_shapes(arch), _shapes(state))


def _fits(expected: Shapes, shapes: Shapes) -> bool:
    """Whether keys and shapes are the same except for the number of outputs."""
    weight = _classifier(expected)
    outputs = shapes.get(weight, ())[:1]
    classifier = expected.keys() & {weight, weight.removesuffix("weight") + "bias"}
    return {**expected, **{key: (*outputs, *expected[key][1:]) for key in classifier}} == shapes


class _NoValues(TorchFunctionMode):
    """Skips initialisation, which takes most of the time on the meta device and has no effect there."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _FILLING:
            return args[0]
        return func(*args, **(kwargs or {}))


def _known_shapes(arch: str) -> dict[str, tuple[int, ...]]:
    """Return the keys and shapes of any architecture."""
    try:
        return _shapes_of(arch)
    except NotImplementedError:  # RegNets compute their widths with tensors, which is impossible on meta
        return _shapes_of(arch, "cpu")


def _shapes_of(arch: str, device: str = "meta") -> dict[str, tuple[int, ...]]:
    """Return the keys and shapes of an architecture; on ``meta`` this allocates no memory."""
    with torch.device(device), _NoValues(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = create_model(arch)
    return _shapes(model.state_dict())


def _without_stem(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    return {key: shape for key, shape in shapes.items() if not of_stem(key)}


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in state.items()}


def classifier_of(net: nn.Module) -> str:
    """Return the name of a network's classifier, its last layer with a matrix: ``fc``, ``classifier.3``."""
    return _classifier(_shapes(dict(net.named_parameters()))).rpartition(".")[0]


def _classifier(shapes: Shapes) -> str:
    """The key of the classifier's weight: a net's last matrix (not a file's, as safetensors sorts keys)."""
    return [key for key, shape in shapes.items() if len(shape) >= 2][-1]


def _outputs(expected: Shapes, shapes: Shapes) -> int | None:
    """The number of outputs that ``shapes`` have at the classifier of ``expected``."""
    return next(iter(shapes.get(_classifier(expected), ())), None)
