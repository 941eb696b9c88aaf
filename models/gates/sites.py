"""Finding the places of a network where a gate can stand, and putting it there."""

import copy
import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from models.gates.blocks import GATED, Gated
from models.gates.modules import gated, places_of_timm


class Place(NamedTuple):
    """A place in a block of a network."""

    block: str  # name of the block in the network
    host: str  # name of the module that applies the gate: the block or a child of it
    place: str  # in the host


class Site(NamedTuple):
    """A place, and the map (B, C, H, W) that a gate gets there."""

    at: Place
    stage: int  # from 1
    channels: int
    side: int  # H in pixels


class _Probe(nn.Module):
    """Stands where a gate will stand, and notes the shape of the map in each call."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, x: Any) -> Any:
        self.shapes.append(tuple(x.shape) if isinstance(x, Tensor) else ())
        return x

    def check(self, at: Place, calls: int) -> None:
        """Check that a gate gets maps with one number of channels, as often as its host is called."""
        if not self.shapes or any(len(shape) != 4 for shape in self.shapes):
            raise ValueError(f"{at.host} has no map (B, C, H, W) at the place '{at.place}'")
        if len(self.shapes) != calls:
            raise ValueError(f"{at.host} calls its children in a loop, and so would call its gate again")
        if len(channels := sorted({shape[1] for shape in self.shapes})) > 1:
            raise ValueError(f"{at.host} is called with maps of {channels[0]} and of {channels[1]} channels")


def places_of_blocks(net: nn.Module, wanted: Sequence[str]) -> list[Place]:
    """Return the first of the wanted places that there is in a network, in every known block that has it.

    Raises:
        ValueError: the network has no known blocks, or some are of derived classes, or they have none of
            these places.
    """
    of_blocks = {name: (module, places_of(module)) for name, module in net.named_modules()}
    of_blocks = {name: of for name, of in of_blocks.items() if of[1]}
    derived = [name for name, module in net.named_modules() if name not in of_blocks and _is_derived(module)]
    if of_blocks and derived:
        kind = type(net.get_submodule(derived[0])).__name__
        raise ValueError(f"{derived[0]} is a {kind}, no block of torchvision itself; name modules (modules=)")
    if not of_blocks:
        raise ValueError(
            f"{type(net).__name__} has no residual blocks of torchvision or timm; name its modules (modules=)"
        )
    for place in wanted:
        found = [(name, *places[place]) for name, (_, places) in of_blocks.items() if place in places]
        if found:
            return [Place(name, f"{name}.{child}".strip("."), side) for name, child, side in found]
    have: dict[str, set[str]] = {}
    for block, places in of_blocks.values():
        have.setdefault(type(block).__name__, set()).update(places)
    texts = [f"{kind} has {', '.join(sorted(places))}" for kind, places in have.items()]
    raise ValueError(f"no block has the place '{wanted[0]}': {'; '.join(texts)}")


def _is_derived(module: nn.Module) -> bool:
    """Whether a module is of a class derived from a block of torchvision, which may compute anything."""
    return isinstance(module, tuple(GATED)) and not isinstance(module, Gated)


def places_of(block: nn.Module) -> dict[str, tuple[str, str]]:
    """Return the places of a block: a child (``""``: the block itself) and the place in that child."""
    kind, places = type(block), dict(places_of_timm(block))  # also of one that has gates on itself already
    if not places and (kind in GATED or isinstance(block, Gated)):
        twin: Gated = block if isinstance(block, Gated) else gated(copy.copy(block))
        places = {place: ("", place) for place in ("standard", "pre", "identity", "3x3", "conv", "post")}
        places = {place: where for place, where in places.items() if twin.has(place)}
    return {**places, "stage": places["post"]} if "standard" in places else {}


def named_places(net: nn.Module, modules: Sequence[str], at: str) -> list[Place]:
    """Return the places of named modules: ``post``, their output, or ``pre``, their input.

    Raises:
        ValueError: there is no such module or place.
    """
    if at not in ("paper", "post", "pre"):
        raise ValueError(f"modules that are named have the places pre and post, not '{at}'")
    if not modules or isinstance(modules, str):
        raise ValueError(f"modules is a list of names, not {modules!r}")
    known = dict(net.named_modules())
    if unknown := [name for name in modules if name not in known]:
        raise ValueError(f"{type(net).__name__} has no module '{unknown[0]}'")
    return [Place(name, name, "pre" if at == "pre" else "post") for name in modules]


def put(net: nn.Module, at: Place, child: str, gate: nn.Module) -> None:
    """Put a gate into a network, under the name ``child``, or ``child_PLACE`` if that is taken.

    Raises:
        ValueError: there is one already.
    """
    parent, _, leaf = at.host.rpartition(".")
    owner = net.get_submodule(parent)
    if at.host and getattr(owner, leaf) is None:  # the block calls what is there, if there is something
        setattr(owner, leaf, gate)
        owner.gate_at = {**getattr(owner, "gate_at", {}), leaf: leaf}  # type: ignore[assignment]
        return
    host = gated(net.get_submodule(at.host))
    free = [name for name in (child, f"{child}_{at.place}") if not hasattr(host, name)]
    if at.place in host.gate_at or not free:
        raise ValueError(f"{at.host} has a gate at the place '{at.place}' already")
    host.put(at.place, free[0], gate)


def measured(net: nn.Module, places: Sequence[Place], img_size: int) -> list[Site]:
    """Return the places with the shapes of the maps there.

    Args:
        net: the network; a copy of it runs on the meta device, where nothing is computed.
        places: in it.
        img_size: side of the images in pixels.

    Raises:
        ValueError: the network cannot be copied, or does not take one batch of images; at a place there is no
            map (B, C, H, W), or maps of several numbers of channels, or there is a gate already; a module
            calls its children in a loop, so that it would call the gate too.
    """
    twin = _twin(net)
    sides: dict[str, int] = {}
    calls: Counter[str] = Counter()

    def note(name: str) -> None:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            calls[name] += 1
            if isinstance(output, Tensor) and output.dim() == 4:
                sides[name] = output.shape[2]

        twin.get_submodule(name).register_forward_hook(hook)

    probes = [_Probe() for _ in places]
    for place, probe in zip(places, probes, strict=True):
        put(twin, place, "probe", probe)
    for name in {name for place in places for name in (place.block, place.host)}:
        note(name)
    _run(twin, img_size)
    for place, probe in zip(places, probes, strict=True):
        probe.check(place, calls[place.host])
        if place.block not in sides:
            raise ValueError(f"{place.block} does not return a map (B, C, H, W)")
    return [
        Site(place, stage_of(place.block, sides[place.block], img_size), *probe.shapes[-1][1:3])
        for place, probe in zip(places, probes, strict=True)
    ]


def _twin(net: nn.Module) -> nn.Module:
    """Return a copy of a network on the meta device, without the forward hooks, which are the user's."""
    try:
        twin = copy.deepcopy(net).to("meta").eval()
    except Exception as error:  # it holds a result of autograd, say, as torch.nn.utils.prune makes
        raise ValueError(f"{type(net).__name__} cannot be copied: {str(error).partition('. ')[0]}") from error
    for module in twin.modules():
        module._forward_hooks.clear()
    return twin


def _run(twin: nn.Module, img_size: int) -> None:
    """Run the copy of a network on an image."""
    first = next((module for module in twin.modules() if isinstance(module, nn.Conv2d)), None)
    shape = (1, first.in_channels if first else 3, img_size, img_size)
    like = next(twin.parameters(), torch.empty(0))
    try:
        with torch.no_grad():
            twin(torch.empty(shape, dtype=like.dtype, device="meta"))
    except Exception as error:  # whatever the user's code raises
        text = f"{type(twin).__name__} fails on images {shape}; add gates to the part of it that takes images"
        raise ValueError(f"{text}: {error}") from error


def check_unwrapped(net: nn.Module) -> None:
    """Refuse a network of which new parameters would not be trained alike in all processes.

    Raises:
        ValueError: it is in DistributedDataParallel, which averages the gradients of those it began with.
    """
    if any(isinstance(module, nn.parallel.DistributedDataParallel) for module in net.modules()):
        raise ValueError("change the gates of a network before DistributedDataParallel wraps it, not after")


def stage_of(block: str, side: int, img_size: int) -> int:
    """Return the stage of a block: N of ``layerN`` or ``bamN`` in its name, or else its output's stride."""
    if found := re.search(r"(?:^|\.)(?:layer|bam)([1-9])(?:\.|$)", block):
        return int(found[1])
    return max(1, round(math.log2(img_size / side)) - 1)
