"""Whether a checkpoint fits a network: weights exactly, momentum by name or by the published order."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

from models import create_model, is_own, list_models, resolve
from utils.errors import UserError

_FILLING = frozenset({Tensor.normal_, Tensor.uniform_, Tensor.fill_, Tensor.zero_, Tensor.erfinv_})


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
    if problems := differences(model, state):
        if saved.get("arch") in list_models():
            fits = [saved["arch"] + _class_flag(output_count(state, saved["arch"]))]
        else:
            print(f"{path} does not fit {arch}; looking for the architecture that it fits", flush=True)
            fits = fitting_architectures(state)
        hint = (
            f"the file fits -a {' or '.join(fits)}" if fits else "no registered architecture was found to fit"
        )
        raise UserError(f"{flag} {path} does not fit {arch}: {problems}; {hint}")
    written_as = saved.get("arch", arch)
    if written_as in list_models() and resolve(written_as) != resolve(arch):
        raise UserError(f"{flag} {path} holds {written_as}, not {arch}; give -a {written_as}")
    model.load_state_dict(state)


def load_other(
    model: nn.Module, saved: Mapping[str, Any], name: str, path: str, remedy: str, flag: str = "--resume"
) -> None:
    """The same for a network that is in no registry, such as a detector.

    Args:
        model: the network.
        saved: from :func:`load`.
        name: what the file must say that it holds.
        path: where the checkpoint came from, for messages.
        remedy: what to do if it holds something else.
        flag: what named it, for messages.

    Raises:
        UserError: it does not fit.
    """
    if (holds := saved.get("arch", "a network without a name")) != name:
        raise UserError(f"{flag} {path} holds {holds}, not {name}; {remedy}")
    if problems := differences(model, saved["state_dict"]):
        raise UserError(f"{flag} {path} does not fit {name}: {problems}")
    model.load_state_dict(saved["state_dict"])


def differences(model: nn.Module, state: Mapping[str, Tensor]) -> str:
    """How the keys and shapes of a state dict differ from a network's, in words; empty if they do not."""
    expected = model.state_dict()
    missing = [key for key in expected if key not in state]
    extra = [key for key in state if key not in expected]
    shapes = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in expected
        if key in state and state[key].shape != expected[key].shape
    ]
    return "; ".join(
        f"{len(items)} keys {what} ({', '.join(items[:2])}{', ...' if len(items) > 2 else ''})"
        for what, items in (("missing", missing), ("unexpected", extra), ("of another shape", shapes))
        if items
    )


def fitting_architectures(state: Mapping[str, Tensor]) -> list[str]:
    """The registered architectures with the keys and shapes of ``state``, as flags; our own only, if any."""
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    fits: list[str] = []
    for name in list_models():
        if is_own(resolve(name)) and resolve(name) != name:
            continue
        if fits and not is_own(name) and resolve(name) == name:
            break  # torchvision's own names come last
        try:
            expected = _shapes_of(name)
        except NotImplementedError:  # RegNets compute their widths with tensors, which meta tensors cannot
            continue
        weight = _classifier(expected)
        outputs = shapes.get(weight, ())[:1]
        for key in expected.keys() & {weight, weight.removesuffix("weight") + "bias"}:
            expected[key] = (*outputs, *expected[key][1:])
        if expected == shapes:
            fits.append(name + _class_flag(*outputs))
    return fits


def output_count(state: Mapping[str, Tensor], arch: str) -> int:
    """Outputs of the classifier of ``arch`` in a checkpoint; 1000 if it has none."""
    return outputs_in(state, arch) or 1000


def outputs_in(state: Mapping[str, Tensor], arch: str) -> int | None:
    """Outputs of the classifier of ``arch`` in a checkpoint; None if it has none."""
    try:
        expected = _shapes_of(arch)
    except NotImplementedError:
        expected = _shapes_of(arch, "cpu")
    shape = tuple(state[key].shape) if (key := _classifier(expected)) in state else ()
    return shape[0] if shape else None


class _NoValues(TorchFunctionMode):
    """Leaves tensors as they were made: on ``meta`` most of the time goes into giving them no values."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _FILLING:
            return args[0]
        return func(*args, **(kwargs or {}))


def _shapes_of(arch: str, device: str = "meta") -> dict[str, tuple[int, ...]]:
    """The keys and shapes of an architecture; on ``meta`` it takes no memory and is not initialised."""
    with torch.device(device), _NoValues(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = create_model(arch)
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def _classifier(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The last matrix of every registered net. In a file it need not be the last: safetensors sorts keys."""
    return [key for key, shape in shapes.items() if len(shape) >= 2][-1]


def _class_flag(outputs: int) -> str:
    return "" if outputs == 1000 else f" --num-classes {outputs}"


def load_optimizer(optimizer: Optimizer, saved: Mapping[str, Any] | None, net: nn.Module, path: str) -> None:
    """Restore the momentum; rates and decay stay those of the command line.

    Our files name the parameters. Published files number them, in one group or two: the grouping of the
    published scripts that gives groups of these sizes and shapes says which is which.

    Args:
        optimizer: made with ``named_parameters``.
        saved: its state dict in the checkpoint, if there is one.
        net: whose parameters they are, all that are trained.
        path: where the checkpoint came from, for messages.

    Raises:
        UserError: there is no state, or it cannot be told which parameters it belongs to.
    """
    remedy = "--fresh-optimizer goes on with fresh momentum"
    if saved is None:
        raise UserError(f"--resume {path}: it holds no optimizer state; {remedy}")
    parameters = {name: value for name, value in net.named_parameters() if value.requires_grad}
    ours = [name for group in optimizer.param_groups for name in group["param_names"]]
    theirs = _order_of(saved, [group["param_names"] for group in optimizer.param_groups], parameters)
    if theirs is None:
        sizes = [len(group["params"]) for group in saved["param_groups"]]
        raise UserError(
            f"--resume {path}: it cannot be told to which of the {len(parameters)} parameters its optimizer "
            f"state, groups of {sizes}, belongs; {remedy}"
        )
    state = {
        i: {"momentum_buffer": _laid_out_as(theirs[name]["momentum_buffer"], parameters[name])}
        for i, name in enumerate(ours)
        if theirs[name].get("momentum_buffer") is not None
    }
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _order_of(
    saved: Mapping[str, Any], own: list[list[str]], parameters: Mapping[str, Tensor]
) -> dict[str, Mapping[str, Any]] | None:
    """The saved state of every parameter, by name; None if nothing or more than one thing fits."""
    groups, state = saved["param_groups"], saved["state"]
    keys = [key for group in groups for key in group["params"]]
    named = all("param_names" in group for group in groups)
    groupings = (
        [[group["param_names"] for group in groups]] if named else [own, *_published_groupings(parameters)]
    )
    fitting: list[dict[str, Mapping[str, Any]]] = []
    for grouping in groupings:
        names = [name for group in grouping for name in group]
        sizes_fit = [len(group) for group in grouping] == [len(group["params"]) for group in groups]
        if not sizes_fit or sorted(names) != sorted(parameters):
            continue
        found = {name: state.get(key, {}) for name, key in zip(names, keys, strict=True)}
        if all(_shapes_fit(values, parameters[name]) for name, values in found.items()):
            if grouping is own:
                return found
            fitting += [found] if all(list(found) != list(other) for other in fitting) else []
    return fitting[0] if len(fitting) == 1 else None


def _published_groupings(parameters: Mapping[str, Tensor]) -> Iterator[list[list[str]]]:
    """Parameter names as the published scripts group them: all together, or without and with decay.

    They tell kinds apart by the name (``bias``) and the number of dimensions (norm 1, linear 2, convolution
    4).
    """
    named = [(name, parameter.dim()) for name, parameter in parameters.items()]
    yield [[name for name, _ in named]]
    for switched_off in product((False, True), repeat=3):
        without = {dim for dim, off in zip((1, 2, 4), switched_off, strict=True) if off}
        grouping: list[list[str]] = [[], []]
        for name, dim in named:
            grouping[0 if "bias" in name or dim in without else 1].append(name)
        yield grouping


def _shapes_fit(values: Mapping[str, Any], parameter: Tensor) -> bool:
    """SGD keeps nothing but the momentum; a kernel must not be given one of another shape."""
    momentum = values.get("momentum_buffer")
    return momentum is None or (isinstance(momentum, Tensor) and momentum.shape == parameter.shape)


def _laid_out_as(value: Tensor, parameter: Tensor) -> Tensor:
    """A tensor in the parameter's memory format: fused optimizers pair memory, not indices."""
    return torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)
