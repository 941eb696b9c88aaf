"""Putting a gate into every block of a residual network.

The places in a block; the first five are those of Hu et al., arXiv 1709.01507, section 6.5:

* ``standard``: on the residual branch after its last norm
* ``pre``: on the branch's input
* ``post``: after the addition and the ReLU
* ``identity``: on the shortcut; blocks without a shortcut get no gate
* ``3x3``: after the spatial convolution of the branch, its norm and its activation; blocks without an
  expansion before it get no gate
* ``conv``: on the output of a ResNet's 3x3 convolution (the second of a basic block), before its norm
* ``stage``: after the last block of each stage
* ``paper``: where the gate's paper has it, or ``standard`` if no block has that place
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from models.gates.registry import check_knobs, create_gate, kind_of, knobs
from models.gates.sites import Site, check_unwrapped, measured, named_places, places_of_blocks, put

POSITIONS = ("paper", "standard", "pre", "post", "identity", "3x3", "stage", "conv")
Gate = str | Callable[..., nn.Module]


def add_gates(
    net: nn.Module,
    gate: Gate,
    at: str = "paper",
    stages: Sequence[int] | None = None,
    modules: Sequence[str] | None = None,
    img_size: int = 224,
    **kwargs: Any,
) -> nn.Module:
    """Put a gate into every block of a residual network, and return the network.

    The blocks of torchvision's ResNet (ResNeXt, Wide-ResNet), RegNet, MobileNetV2 and V3, EfficientNet and
    ConvNeXt are known, and those of the same networks of timm; ``modules`` names those of any other network.
    The keys of the network's state dict stay, and the gates' keys come beside them: in a ResNet those of the
    published checkpoints, ``layer1.0.se.fc.0.weight``.

    Args:
        net: the network, which is changed.
        gate: one of :func:`models.gates.list_gates`; or what maps a number of channels to a module that maps
            (B, C, H, W) to the same shape.
        at: the place in a block, one of ``POSITIONS``; the head of this file describes them.
        stages: those that get gates, from 1; a stage is ``layer1`` to ``layer4``, or the blocks whose output
            has a stride of 4 (or less), 8, 16 and 32. None: all; after stages (BAM): all but the last.
        modules: names of modules that get a gate on their output (or, ``at="pre"``, on their input).
        img_size: side of the images in pixels for which a gate with a map size (FcaNet's) is made.
        **kwargs: the gate's knobs. A list or tuple has a value for each stage of the network.

    Raises:
        ValueError: there is no such gate, place, stage or module; the gate does not take the number of
            channels; or the network is one whose places cannot be found. It is then unchanged.
        TypeError: the gate has no such knob.
    """
    if at not in POSITIONS:
        raise ValueError(f"unknown place '{at}'; there are {', '.join(POSITIONS)}")
    if isinstance(gate, nn.Module):
        kind = type(gate).__name__
        raise ValueError(f"gate is one {kind}; give its class, or a function that makes one for C channels")
    if isinstance(gate, str):
        check_knobs(gate, kwargs)
    check_unwrapped(net)
    wanted = _wanted(gate, at)
    places = named_places(net, modules, at) if modules is not None else places_of_blocks(net, wanted)
    sites = measured(net, places, img_size)
    last = max(site.stage for site in sites)
    if wanted[0] == "stage" and modules is None:
        sites = list({site.stage: site for site in sites}.values())
        stages = range(1, last) if stages is None else stages
    chosen = _in_stages(sites, range(1, last + 1) if stages is None else stages, last)
    gates = [_create(gate, site, _at_stage(kwargs, site.stage, last)) for site in chosen]
    like = next(net.parameters(), torch.empty(0))
    child = kind_of(gate).child if isinstance(gate, str) else "gate"
    for site, made in zip(chosen, gates, strict=True):
        put(net, site.at, child, made.to(like.device, like.dtype).train(net.training))
    return net


def _wanted(gate: Gate, at: str) -> tuple[str, ...]:
    """Return the places for a gate, the first choice first."""
    if at != "paper":
        return (at,)
    return (*(kind_of(gate).places if isinstance(gate, str) else ()), "standard")


def _in_stages(sites: Sequence[Site], stages: Sequence[int], last: int) -> list[Site]:
    """Return the sites of these stages."""
    if not stages:
        raise ValueError("there is no stage for a gate: stages is empty, or the network has one stage only")
    if missing := [str(stage) for stage in stages if not 1 <= stage <= last]:
        raise ValueError(f"the network has stages 1 to {last}, not {', '.join(missing)}")
    if not (chosen := [site for site in sites if site.stage in stages]):
        raise ValueError(f"no block of stages {', '.join(map(str, stages))} has this place")
    return chosen


def _at_stage(kwargs: Mapping[str, Any], stage: int, last: int) -> dict[str, Any]:
    """Return the knobs for a stage of ``last``."""
    chosen = {}
    for name, value in kwargs.items():
        if isinstance(value, list | tuple) and len(value) != last:
            raise ValueError(f"{name} has {len(value)} values, and the network {last} stages")
        chosen[name] = value[stage - 1] if isinstance(value, list | tuple) else value
    return chosen


def _create(gate: Gate, site: Site, kwargs: dict[str, Any]) -> nn.Module:
    """Create the gate of a site."""
    try:
        if isinstance(gate, str):
            made_for = {"size": max(site.side, 7)} if "size" in knobs(gate) else {}
            return create_gate(gate, site.channels, **{**made_for, **kwargs})
        return _checked(gate(site.channels, **kwargs), site.channels)
    except ValueError as error:
        raise ValueError(f"{site.at.host}: {error}") from None


def _checked(gate: object, channels: int) -> nn.Module:
    """Return a gate of a user that maps to the shape of its input, and leaves the input as it is."""
    if not isinstance(gate, nn.Module):
        raise ValueError(f"the gate is a {type(gate).__name__}, no torch.nn.Module")
    x = torch.zeros(2, channels, 8, 8)
    with torch.no_grad():
        out = copy.deepcopy(gate).eval()(x)
    found = tuple(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
    if found != x.shape:
        raise ValueError(f"the gate maps {tuple(x.shape)} to {found}, not to the same shape")
    if x._version:
        raise ValueError("the gate changes its input in place, which a block may use elsewhere")
    return gate
