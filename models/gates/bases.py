"""The plain network that a network with gates is made of, and its weights under the names of the other's."""

from collections.abc import Mapping
from types import MappingProxyType

import torchvision
from torch import Tensor, nn

from models.gates.registry import gates_of, list_gates
from models.stems import of_stem

_OTHER_NAMES = MappingProxyType({"mobilenetv2": "mobilenet_v2"})  # ours and torchvision's


def base_of(arch: str) -> str | None:
    """Return torchvision's network that an architecture is, or is plus gates; None: there is none.

    Example: ``se_resnext50_32x4d`` is ``resnext50_32x4d`` plus gates; ``ws_resnet50`` has none.
    """
    known = torchvision.models.list_models(module=torchvision.models)
    gate, _, plain = arch.partition("_")
    base = _OTHER_NAMES.get(plain, plain) if gate in list_gates() else arch
    return base if base in known else None


def renamed(net: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of the plain network under the names that they have in a network with gates.

    Where a gate stands in a sequence with a layer, the layer has another name: SimAM's ``conv2.0.weight`` is
    the plain ``conv2.weight``. Names that both networks have for the same shape stay, and that of the stem,
    which may be another; what is left has the same order in both, whatever the number of classes.

    Args:
        net: the network with gates.
        state: the state dict of its plain network.

    Returns:
        ``state`` itself if the rest of the two does not have the same shapes.
    """
    inside = tuple(f"{name}." for name in gates_of(net))
    own = {key: value.shape for key, value in net.state_dict().items() if not key.startswith(inside)}
    same = {key for key, value in state.items() if own.get(key) == value.shape or of_stem(key)}
    ours, theirs = ([key for key in keys if key not in same] for keys in (own, state))
    if [own[key][1:] for key in ours] != [state[key].shape[1:] for key in theirs]:
        return dict(state)
    names = dict(zip(theirs, ours, strict=True))
    return {names.get(key, key): value for key, value in state.items()}
