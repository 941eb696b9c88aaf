"""Gates that start so that the network computes what it computes without them.

A gate that multiplies by sigmoid(0) halves its input when training starts. That is harmless in a new network
and harmful in one with trained weights. Here a gate's last layer starts at zero, so that the gate is a known
constant, and a factor that starts at the reciprocal of this constant and is learned takes it back. Global
context starts as the identity without a factor. SimAM and gates of a user have no layer to set to zero: their
output is mixed with their input, and its share starts at 0 and is learned.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from models.gates.registry import gates_of
from models.gates.sites import check_unwrapped
from models.mobilenetv2_ca import CoordinateAttention
from models.resnet_bam import BAM
from models.resnet_cbam import CBAM
from models.resnet_eca import ECALayer
from models.resnet_fca import FrequencyChannelAttention
from models.resnet_gc import GlobalContext
from models.resnet_se import SELayer
from models.resnet_sge import SpatialGroupEnhance
from models.resnet_srm import SRMLayer
from models.resnet_triplet import TripletAttention


class Rescaled(nn.Module):
    """A gate times a factor that is learned: out = factor * gate(x)."""

    is_gate = True  # for models.gates.gates_of

    def __init__(self, gate: nn.Module, factor: float, like: Tensor) -> None:
        super().__init__()
        self.gate = gate
        self.factor = nn.Parameter(torch.full((), factor, device=like.device, dtype=like.dtype))

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that decay would draw to 0, where the branch ends."""
        return {"factor"}

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.gate(x)


class Mixed(nn.Module):
    """A gate's output and its input, mixed: out = x + share * (gate(x) - x); share starts at 0."""

    is_gate = True

    def __init__(self, gate: nn.Module, like: Tensor) -> None:
        super().__init__()
        self.gate = gate
        self.share = nn.Parameter(torch.zeros((), device=like.device, dtype=like.dtype))

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that decay would draw to 0, where there is no gate."""
        return {"share"}

    def forward(self, x: Tensor) -> Tensor:
        return x + self.share * (self.gate(x) - x)


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


# Each sets the parameters of a new gate so that it multiplies by a constant, and returns the constant.


def _se(gate: Any) -> float:
    _zero(gate.fc[2])
    return 0.5


def _sge(gate: Any) -> float:
    nn.init.zeros_(gate.weight)
    nn.init.zeros_(gate.bias)  # otherwise 1, and 1 / sigmoid(1) is no number of a computer
    return 0.5


def _cbam(gate: Any) -> float:
    _zero(gate.ChannelGate.mlp[3])
    _zero(gate.SpatialGate.spatial.bn)
    return 0.25


def _bam(gate: Any) -> float:
    _zero(gate.channel_att.gate_c.gate_c_fc_final)
    if gate.combine == "sum":  # a product of two zeros would have no gradient
        _zero(gate.spatial_att.gate_s.gate_s_conv_final)
    return 1.5


def _srm(gate: Any) -> float:
    nn.init.zeros_(gate.cfc)
    nn.init.zeros_(gate.bn.bias)
    nn.init.zeros_(gate.bn.running_mean)  # that of a gate that was trained
    return 0.5


def _gc(gate: Any) -> float:
    _zero(gate.channel_add_conv[3])
    return 1.0


def _eca(gate: Any) -> float:
    _zero(gate.conv)
    return 0.5


def _triplet(gate: Any) -> float:
    for plane in (gate.ChannelGateH, gate.ChannelGateW, gate.SpatialGate):
        _zero(plane.spatial.bn)
    return 0.5


def _ca(gate: Any) -> float:
    _zero(gate.conv2)
    _zero(gate.conv3)
    return 0.25


_CONSTANT: Mapping[type[nn.Module], Callable[[nn.Module], float]] = MappingProxyType(
    {
        SELayer: _se,
        SpatialGroupEnhance: _sge,
        CBAM: _cbam,
        BAM: _bam,
        GlobalContext: _gc,
        SRMLayer: _srm,
        ECALayer: _eca,
        TripletAttention: _triplet,
        FrequencyChannelAttention: _se,  # the same layers
        CoordinateAttention: _ca,
    }
)


def as_identity(gate: nn.Module, like: Tensor) -> nn.Module:
    """Return a gate that starts as the identity; what it is made of says how (see the head of this file).

    Args:
        gate: the gate, which is changed.
        like: a parameter on the device and of the type that a new parameter is to have.
    """
    if type(gate) not in _CONSTANT:
        return Mixed(gate, like)
    constant = _CONSTANT[type(gate)](gate)
    return gate if constant == 1 else Rescaled(gate, 1 / constant, like)


def start_as_identity(net: nn.Module) -> nn.Module:
    """Let every gate of a network start as the identity, and return the network.

    The state dict gets a ``gate`` in the names of the gates' keys, and beside them ``factor`` or ``share``.

    Raises:
        ValueError: the network has no gates, or is in DistributedDataParallel.
    """
    check_unwrapped(net)
    gates = gates_of(net)
    if not gates or "" in gates:
        raise ValueError("there are no gates inside this network that could start as the identity")
    made: dict[nn.Module, nn.Module] = {}
    for gate in gates.values():
        if gate not in made and not isinstance(gate, Rescaled | Mixed):
            like = next(gate.parameters(), next(net.parameters(), torch.empty(0)))
            made[gate] = as_identity(gate, like).train(gate.training)
    # A gate that stands at several places has several names.
    for name, module in list(net.named_modules(remove_duplicate=False)):
        if module in made:
            net.set_submodule(name, made[module])
    return net
