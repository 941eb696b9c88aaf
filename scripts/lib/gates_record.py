"""Recording the gates of a network's attention modules during a forward pass.

Hooks note which module is running, and a TorchFunctionMode sees the result of every sigmoid and softmax in
it. So the gates are those of the pass itself, and no module needs to return them.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from models.resnet_bam import BAM
from models.resnet_cbam import CBAM
from models.resnet_gc import GlobalContext
from models.resnet_oct import OctMobileNet, OctResNet
from models.resnet_se import SELayer
from models.resnet_sge import SpatialGroupEnhance
from models.resnet_sk import SKBottleneck
from models.resnet_srm import SRMLayer
from models.sknet import SKConv
from utils.common.errors import UserError

_GATES = ("sigmoid", "sigmoid_", "softmax")  # torch functions whose results are gates
_OCTAVES = ("features.3", "features.5", "features.11", "features.13")  # last modules of OctMobileNet's stages


class Seen(NamedTuple):
    """The values of a gate and how they are shown."""

    title: str
    values: Tensor  # (B, C) for the channels, or (B, G, H, W): G maps of the positions
    bounded: bool = True  # from 0 to 1, independently of the number of positions or channels
    part: str = "group"  # what there is a map for, if there are several


class Gate(NamedTuple):
    """One gate of one module of a network."""

    module: str  # its name in the network
    stage: int  # from 1
    formula: str  # how the module applies it
    seen: Seen

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


class Family(NamedTuple):
    """A kind of attention."""

    formula: str  # how its gates are applied
    # Reads the gates from the results of its sigmoids and softmaxes, and from its input.
    read: Callable[[Sequence[Tensor], Tensor], list[Seen]]


def _channels(title: str, formula: str) -> Family:
    """Return a family with one gate for every channel."""
    return Family(formula, lambda results, x: [Seen(title, results[0].flatten(1))])


def _enhance(results: Sequence[Tensor], x: Tensor) -> list[Seen]:
    return [Seen("gate", results[0])]


def _context(results: Sequence[Tensor], x: Tensor) -> list[Seen]:
    """Read GlobalContext: its softmax, and the output of its transform."""
    weights = results[0].unflatten(-1, x.shape[2:])
    added = results[1].flatten(1)
    return [Seen("weight in the context", weights, bounded=False), Seen("added", added, bounded=False)]


def _cbam(results: Sequence[Tensor], x: Tensor) -> list[Seen]:
    return [Seen("channel gate", results[0]), Seen("spatial gate", results[1])]


_FAMILIES: Mapping[type[nn.Module], Family] = MappingProxyType(
    {
        SELayer: _channels("gate", "out = x * gate"),
        SRMLayer: _channels("gate", "out = x * gate"),
        SKBottleneck: _channels("weight", "weight * dense branch + (1 - weight) * grouped branch"),
        SKConv: _channels("weight", "out = weight * 3x3 branch + (1 - weight) * dilated 3x3 branch"),
        CBAM: Family("out = x * channel gate * spatial gate", _cbam),
        BAM: Family("out = x * (1 + gate)", lambda results, x: [Seen("gate", results[0], part="channel")]),
        SpatialGroupEnhance: Family("out = x * gate", _enhance),
        GlobalContext: Family("out = x + added, from the mean of x by the weights", _context),
    }
)


class _Recorder(TorchFunctionMode):
    """Keeps the gates of the attention module that is running (of nested ones the innermost)."""

    def __init__(self) -> None:
        super().__init__()
        self.running: list[list[Tensor]] = []
        self.gates: list[Gate] = []
        self.octaves: list[Octave] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.running and getattr(func, "__name__", "") in _GATES:
            self.running[-1].append(result)
        return result

    def begin(self, module: nn.Module, inputs: Any) -> None:
        """The hook before an attention module."""
        self.running.append([])

    def keep(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        """The hook after a part of an attention module whose output is recorded too."""
        self.running[-1].append(output)

    def end(self, name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        """Return the hook after an attention module."""

        def hook(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            formula, read = _FAMILIES[type(module)]
            for seen in read(self.running.pop(), inputs[0]):
                kept = seen._replace(values=seen.values.detach().clone())
                self.gates.append(Gate(name, stage_of(name), formula, kept))

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


def stage_of(name: str) -> int:
    """Return a module's stage, from 1, by its name in the network, such as ``layer2.0.se`` or ``bam2``."""
    found = re.search(r"(?:layer|bam)(\d)", name)
    return int(found[1]) if found else 0


def attention_of(net: nn.Module) -> dict[str, nn.Module]:
    """Return the modules whose gates can be recorded, by name."""
    return {name: module for name, module in net.named_modules() if type(module) in _FAMILIES}


@torch.no_grad()
def record(net: nn.Module, images: Tensor) -> Recorded:
    """Run a network in evaluation mode on images (B, 3, H, W), and return its gates and its output.

    Raises:
        UserError: it has no attention that can be recorded.
    """
    modules = attention_of(net)
    octaves = isinstance(net, OctResNet | OctMobileNet)
    if not modules and not octaves:
        raise UserError(
            "this network has no attention to draw: give an se_, sk_, cbam_, bam_, gc_, sge_, srm_ or oct_ "
            "net of depth 50, or sknet50"
        )
    with ExitStack() as hooks, _Recorder() as recorder:

        def until_the_end(handle: Any) -> None:
            hooks.callback(handle.remove)

        for name, module in modules.items():
            until_the_end(module.register_forward_pre_hook(recorder.begin))
            if isinstance(module, GlobalContext):
                until_the_end(module.channel_add_conv.register_forward_hook(recorder.keep))
            until_the_end(module.register_forward_hook(recorder.end(name)))
        if octaves:
            names = _OCTAVES if isinstance(net, OctMobileNet) else [f"layer{i}" for i in range(1, 5)]
            for stage, name in enumerate(names, 1):
                hook = recorder.split(name, stage)
                until_the_end(net.get_submodule(name).register_forward_hook(hook))
        logits = net.eval()(images)
    return Recorded(recorder.octaves if octaves else recorder.gates, logits)


def last_of_each_stage(gates: Sequence[Gate]) -> list[Gate]:
    """Return the gates of the last module of every stage."""
    last = {gate.stage: gate.module for gate in gates}
    return [gate for gate in gates if gate.module == last[gate.stage]]
