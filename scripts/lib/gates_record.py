"""Recording the gates of a network's attention modules during a forward pass.

Hooks note which module is running, and a TorchFunctionMode sees the result of every sigmoid and softmax in
it. So the gates are those of the pass itself, and no module needs to return them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from models.gates import gates_of
from models.gates.blocks import Gated
from models.gates.identity import Mixed, Rescaled
from models.gates.sites import places_of, stage_of
from models.resnet_gc import GlobalContext
from models.resnet_oct import OctMobileNet, OctResNet
from scripts.lib.gates_families import FAMILIES, Pass, Seen, unknown
from utils.common.errors import UserError

_GATES = ("sigmoid", "sigmoid_", "hardsigmoid", "softmax")  # torch functions whose results are gates
_OCTAVES = ("features.3", "features.5", "features.11", "features.13")  # last modules of OctMobileNet's stages
_NONE = """this network has no attention to draw: give one that has (-a se_resnet50, or an sk_, cbam_, bam_,
gc_, sge_, srm_, eca_, fca_, simam_, triplet_, ca_ or oct_ net, or sknet50; sk_resnet18 and 34 are plain), or
put gates into it (--gate NAME); a class of your own says is_gate = True"""


class Gate(NamedTuple):
    """One gate of one module of a network."""

    module: str  # its name in the network
    stage: int  # from 1
    formula: str  # how the module applies it
    seen: Seen
    place: str = ""  # where it was added; empty: it is part of the architecture

    @property
    def values(self) -> Tensor:
        return self.seen.values


class Octave(NamedTuple):
    """A stage of an Octave net: the mean square over the channels at every position of its two maps."""

    module: str
    stage: int
    high: Tensor  # (B, H, W)
    low: Tensor | None  # (B, H / 2, W / 2); None: the stage has high frequencies only
    channels: tuple[int, int]  # of the high and the low frequencies

    @property
    def shares(self) -> Tensor:
        """Return the shares of both maps in the sum of squares, (B, 2); a low position counts as four."""
        maps = (self.high, self.high[:, :1, :1] * 0 if self.low is None else self.low)
        energies = [count * values.mean((1, 2)) for count, values in zip(self.channels, maps, strict=True)]
        both = torch.stack(energies, 1)
        return both / both.sum(1, keepdim=True)


class _Recorder(TorchFunctionMode):
    """Keeps the gates of the attention module that is running (of nested ones the innermost)."""

    def __init__(self) -> None:
        super().__init__()
        self.running: list[list[tuple[str, Tensor]]] = []  # functions and their results
        self.sides: dict[str, int] = {}  # of the output of a block, in pixels
        self.gates: list[Gate] = []
        self.octaves: list[Octave] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if self.running and name in _GATES:
            self.running[-1].append((name.rstrip("_"), result))
        return result

    def begin(self, module: nn.Module, inputs: Any) -> None:
        """The hook before an attention module."""
        self.running.append([])

    def keep(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        """The hook after a part of an attention module whose output is recorded too."""
        self.running[-1].append(("", output))

    def end(self, name: str, place: str, wrapper: nn.Module) -> Callable[[nn.Module, Any, Tensor], None]:
        """Return the hook after an attention module. Its stage follows when its block has ended."""

        def hook(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            found = self.running.pop()
            one = Pass(
                inputs[0], output, [values for _, values in found], [function for function, _ in found]
            )
            if family := FAMILIES.get(_class_of(module)):
                formula, shown = family.formula, family.read(one)
            else:
                formula, shown = unknown(one, type(module).__name__)
            for seen in shown:
                kept = seen._replace(values=seen.values.detach().clone())
                self.gates.append(Gate(name, 0, f"{formula}{_then(wrapper)}", kept, place))

        return hook

    def side(self, name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        """Return the hook after a block."""

        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            self.sides[name] = output.shape[2]

        return hook

    def split(self, name: str, stage: int) -> Callable[[nn.Module, Any, tuple[Tensor, ...]], None]:
        """Return the hook after a stage with two resolutions."""

        def hook(module: nn.Module, inputs: Any, output: tuple[Tensor, ...]) -> None:
            energies = [values.detach().square().mean(1) for values in output]
            low = energies[1] if len(energies) > 1 else None
            counts = (output[0].shape[1], output[1].shape[1] if len(output) > 1 else 0)
            self.octaves.append(Octave(name, stage, energies[0], low, counts))

        return hook


class Recorded(NamedTuple):
    """What one pass computed: either gates or octaves, and the network's output."""

    shown: Sequence[Gate] | Sequence[Octave]
    logits: Tensor  # (B, K)


def _class_of(module: nn.Module) -> type[nn.Module]:
    """Return a module's class, without what a gate on its input or output made of it."""
    return getattr(module, "kind", type(module)) if isinstance(module, Gated) else type(module)


def _then(wrapper: nn.Module) -> str:
    """Say what becomes of the output of a gate that started as the identity."""
    if isinstance(wrapper, Rescaled):
        return f", times the factor {float(wrapper.factor.detach()):.3g}"
    if isinstance(wrapper, Mixed):
        return f", mixed: x + {float(wrapper.share.detach()):.3g} * (out - x)"
    return ""


def attention_of(net: nn.Module) -> dict[str, nn.Module]:
    """Return the modules whose gates can be recorded, by name: the gates, and selective kernels.

    Of a gate that started as the identity it is the gate inside, by the name of the whole.
    """
    gates = gates_of(net)
    inside = {name: gate.gate if isinstance(gate, Rescaled | Mixed) else gate for name, gate in gates.items()}
    others = {
        name: module
        for name, module in net.named_modules()
        if _class_of(module) in FAMILIES and not any(f"{name}.".startswith(f"{gate}.") for gate in gates)
    }
    return {**inside, **others}


def has_attention(net: nn.Module) -> bool:
    """Return whether a network has gates, or two resolutions."""
    return bool(attention_of(net)) or isinstance(net, OctResNet | OctMobileNet)


def _parents(name: str) -> Iterator[str]:
    """Yield the names of the modules around a module, the nearest first."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def block_of(net: nn.Module, gate: str) -> str:
    """Return the name of the residual block around a gate; the gate's own if no block is known there."""
    return next((name for name in _parents(gate) if places_of(net.get_submodule(name))), gate)


def place_of(net: nn.Module, gate: str) -> str:
    """Say where a gate was added to a network: a place of ``add_gates``; empty if it was not added."""
    owner, _, child = gate.rpartition(".")
    at = getattr(net.get_submodule(owner), "gate_at", {})
    side = next((side for side, name in at.items() if name == child), None)
    if side is None:
        return ""
    block = block_of(net, gate)
    host = gate if side == child else owner  # a child that the block calls if it is there: the gate itself
    for place, (part, its_side) in places_of(net.get_submodule(block)).items() if block != gate else ():
        if host == f"{block}.{part}".strip(".") and (side in (its_side, child)):
            return place
    return f"{'input' if side == 'pre' else 'output'} of {owner or 'the network'}"


@torch.no_grad()
def record(net: nn.Module, images: Tensor) -> Recorded:
    """Run a network in evaluation mode on images (B, 3, H, W), and return its gates and its output.

    Raises:
        UserError: it has no attention that can be recorded.
    """
    modules = attention_of(net)
    octaves = isinstance(net, OctResNet | OctMobileNet)
    if not has_attention(net):
        raise UserError(" ".join(_NONE.split()))
    blocks = {name: block_of(net, name) for name in modules}
    with ExitStack() as hooks, _Recorder() as recorder:
        for handle in chain(_watch_gates(net, recorder), _watch_octaves(net, recorder)):
            hooks.callback(handle.remove)
        for block in set(blocks.values()):
            hooks.callback(net.get_submodule(block).register_forward_hook(recorder.side(block)).remove)
        logits = net.eval()(images)
    called = [(gate, blocks[gate.module]) for gate in recorder.gates]
    gates = [
        gate._replace(stage=stage_of(block, recorder.sides[block], images.shape[2])) for gate, block in called
    ]
    return Recorded(recorder.octaves if octaves else gates, logits)


def _watch_gates(net: nn.Module, recorder: _Recorder) -> Iterator[Any]:
    """Hook the recorder into the gates of a network; yield the handles of the hooks."""
    for name, module in attention_of(net).items():
        yield module.register_forward_pre_hook(recorder.begin)
        if isinstance(module, GlobalContext):
            yield module.channel_add_conv.register_forward_hook(recorder.keep)
        yield module.register_forward_hook(recorder.end(name, place_of(net, name), net.get_submodule(name)))


def _watch_octaves(net: nn.Module, recorder: _Recorder) -> Iterator[Any]:
    """Hook the recorder into the stages of an Octave net; yield the handles of the hooks."""
    if isinstance(net, OctResNet | OctMobileNet):
        names = _OCTAVES if isinstance(net, OctMobileNet) else [f"layer{i}" for i in range(1, 5)]
        for stage, name in enumerate(names, 1):
            yield net.get_submodule(name).register_forward_hook(recorder.split(name, stage))


def last_of_each_stage(gates: Sequence[Gate]) -> list[Gate]:
    """Return the gates of the last module of every stage."""
    last = {gate.stage: gate.module for gate in gates}
    return [gate for gate in gates if gate.module == last[gate.stage]]
