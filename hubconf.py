"""Every network of models/ for torch.hub.

    net = torch.hub.load("/path/to/PytorchInsight", "sge_resnet50", source="local", checkpoint="sge.pth")

``checkpoint`` is a file, published or ours; without it the weights are random. Other keywords go to the
builder. If ``num_classes`` is not the checkpoint's, the classifier is random and all other layers are loaded.
"""

import collections.abc
import typing

from torch import nn

import models
from models import create_model as _create_model
from models import is_own as _is_own
from models import list_models as _list_models
from utils.common.errors import UserError as _UserError
from utils.networks import checkpoint as _checkpoint
from utils.networks import parts as _parts
from utils.networks import weights as _weights

dependencies = ["torch", "torchvision", "numpy"]


def _builder(name: str) -> collections.abc.Callable[..., nn.Module]:
    """Return the torch.hub entry point of an architecture."""

    def build(checkpoint: str | None = None, **kwargs: typing.Any) -> nn.Module:
        if checkpoint is None:
            return _create_model(name, **kwargs)
        saved = _checkpoint.load(checkpoint, "checkpoint")
        outputs, parts = _weights.output_count(saved["state_dict"], name), _parts.parts_in(saved, name)
        if parts.gate_file:
            raise _UserError(f"checkpoint {checkpoint}: its gates are of {parts.gate_file}, which is not run")
        net = _create_model(name, **{**kwargs, "num_classes": outputs})
        _parts.put_parts(net, parts, name)
        _weights.load_weights(net, saved, name, checkpoint, "checkpoint", "{arch}", parts)
        if kwargs.get("num_classes", outputs) == outputs:
            return net
        other = _create_model(name, **kwargs)
        _parts.put_parts(other, parts, name)
        own = other.state_dict()
        fitting = {key: value for key, value in net.state_dict().items() if value.shape == own[key].shape}
        other.load_state_dict({**own, **fitting})
        return other

    file = next(file for file in models._FILES if name in file.__all__)
    header = " ".join((file.__doc__ or "").split("\n\n")[0].split())
    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"""{name}, by models/{file.__name__.removeprefix("models.")}.py: {header}

    Args:
        checkpoint: file of weights, which must fit exactly; None: random weights.
        **kwargs: for the builder, such as ``num_classes`` (default: the checkpoint's, or 1000 without one).
            If it is not the checkpoint's, the classifier is random; every other layer must fit exactly.

    Raises:
        utils.common.errors.UserError: the file cannot be read or does not fit.
    """
    return build


globals().update({name: _builder(name) for name in _list_models() if _is_own(name)})
