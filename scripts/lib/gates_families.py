"""What is drawn of a gate: its sigmoids and softmaxes, by its class; of an unknown class what can be read."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from torch import Tensor, nn

from models.mobilenetv2_ca import CoordinateAttention
from models.resnet_bam import BAM
from models.resnet_cbam import CBAM
from models.resnet_eca import ECALayer
from models.resnet_fca import FrequencyChannelAttention
from models.resnet_gc import GlobalContext
from models.resnet_se import SELayer
from models.resnet_sge import SpatialGroupEnhance
from models.resnet_simam import SimAM
from models.resnet_sk import SKBottleneck
from models.resnet_srm import SRMLayer
from models.resnet_triplet import TripletAttention
from models.sknet import SKConv


class Seen(NamedTuple):
    """The values of a gate and how they are shown."""

    title: str
    values: Tensor  # (B, C) for the channels, or (B, G, H, W): G maps of the positions
    bounded: bool = True  # from 0 to 1, independently of the number of positions or channels
    part: str = "group"  # what there is a map for, if there are several


class Pass(NamedTuple):
    """A forward pass of an attention module."""

    x: Tensor  # its input (B, C, H, W)
    out: Tensor
    results: Sequence[Tensor]  # of its sigmoids and softmaxes, in their order
    functions: Sequence[str]  # the names of these


class Family(NamedTuple):
    """A kind of attention."""

    formula: str  # how its gates are applied
    read: Callable[[Pass], list[Seen]]


def _channels(title: str, formula: str) -> Family:
    """Return a family with one gate for every channel."""
    return Family(formula, lambda one: [Seen(title, one.results[0].flatten(1))])


def _maps(title: str, formula: str, part: str) -> Family:
    """Return a family with maps of the positions, for each of the parts of the channels."""
    return Family(formula, lambda one: [Seen(title, one.results[0], part=part)])


def _context(one: Pass) -> list[Seen]:
    """Read GlobalContext: its softmax, and the output of its transform."""
    weights = one.results[0].unflatten(-1, one.x.shape[2:])
    added = one.results[1].flatten(1)
    return [Seen("weight in the context", weights, bounded=False), Seen("added", added, bounded=False)]


def _cbam(one: Pass) -> list[Seen]:
    return [Seen("channel gate", one.results[0]), Seen("spatial gate", one.results[1])]


def _coordinates(one: Pass) -> list[Seen]:
    """Read CoordinateAttention: the product of its gates along H (B, C, H, 1) and along W (B, C, W, 1)."""
    along_h, along_w = one.results
    return [Seen("gate along H * gate along W", along_h * along_w.transpose(2, 3), part="channel")]


def _triplet(one: Pass) -> list[Seen]:
    """Read TripletAttention: g(C, W), g(H, C), g(H, W), each (B, 1, its two axes).

    The first two are no maps of the image; their means over the positions are gates of the channels.
    """
    over_h, over_w, over_c = one.results
    return [
        Seen("g(H, W)", over_c),
        Seen("g(C, W), mean over W", over_h.mean(3).flatten(1)),
        Seen("g(H, C), mean over H", over_w.mean(2).flatten(1)),
    ]


FAMILIES: Mapping[type[nn.Module], Family] = MappingProxyType(
    {
        SELayer: _channels("gate", "out = x * gate"),
        SRMLayer: _channels("gate", "out = x * gate"),
        ECALayer: _channels("gate", "out = x * gate"),
        FrequencyChannelAttention: _channels("gate", "out = x * gate"),
        SKBottleneck: _channels("weight", "weight * dense branch + (1 - weight) * grouped branch"),
        SKConv: _channels("weight", "out = weight * 3x3 branch + (1 - weight) * dilated 3x3 branch"),
        CBAM: Family("out = x * channel gate * spatial gate", _cbam),
        BAM: _maps("gate", "out = x * (1 + gate)", part="channel"),
        SpatialGroupEnhance: _maps("gate", "out = x * gate", part="group"),
        SimAM: _maps("gate", "out = x * gate", part="channel"),
        CoordinateAttention: Family("out = x * gate along H * gate along W", _coordinates),
        TripletAttention: Family("out = x * (g(C, W) + g(H, C) + g(H, W)) / 3", _triplet),
        GlobalContext: Family("out = x + added, from the mean of x by the weights", _context),
    }
)


def unknown(one: Pass, name: str) -> tuple[str, list[Seen]]:
    """Read a gate of a class that is not in ``FAMILIES``, such as a user's.

    Returns:
        What is shown, and that: the results of its sigmoids and softmaxes whose shape says what they are for,
        or, if there are none, how much larger its output is than its input.
    """
    if gates := [
        seen for pair in zip(one.functions, one.results, strict=True) if (seen := _by_shape(one.x, *pair))
    ]:
        return f"the sigmoid and softmax in {name}", gates
    return f"mean |output| / mean |input| of {name}", _ratios(one)


def _by_shape(x: Tensor, function: str, values: Tensor) -> Seen | None:
    """Take values for gates of the channels or of the positions by their shape; None: neither."""
    batch, channels, height, width = x.shape
    bounded = function != "softmax"
    if values.shape[:1] == (batch,) and values[0].numel() == channels and channels in values.shape:
        return Seen(f"{function} of the channels", values.flatten(1), bounded)
    if values.dim() == 4 and values.shape[2:] == (height, width):
        part = "channel" if values.shape[1] == channels else "group"
        return Seen(f"{function} of the positions", values, bounded, part)
    if values.shape[:1] == (batch,) and values.shape[1:] in ((height * width,), (1, height * width)):
        return Seen(f"{function} of the positions", values.reshape(batch, 1, height, width), bounded)
    return None


def _ratios(one: Pass) -> list[Seen]:
    """Compare the sizes of output and input, by position and by channel; 1 where the input is 0."""
    size, before = one.out.abs(), one.x.abs()

    def ratio(*axes: int) -> Tensor:
        most, least = size.mean(axes, keepdim=True), before.mean(axes, keepdim=True)
        return (most / least).where(least > 0, 1.0)

    return [
        Seen("ratio, by position", ratio(1), bounded=False),
        Seen("ratio, by channel", ratio(2, 3).flatten(1), bounded=False),
    ]
