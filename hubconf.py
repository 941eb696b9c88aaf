"""Every network of models/ for torch.hub.

    net = torch.hub.load("/path/to/PytorchInsight", "sge_resnet50", source="local", checkpoint="sge.pth")

``checkpoint`` is a file, published or ours; without it the weights are new. Other keywords go to the builder;
``num_classes`` other than that of the checkpoint gives a new classifier on its other layers.
"""

import collections.abc
import typing

from torch import nn

import models
from models import create_model as _create_model
from models import is_own as _is_own
from models import list_models as _list_models
from utils.networks import checkpoint as _checkpoint
from utils.networks import weights as _fitting

dependencies = ["torch", "torchvision", "numpy"]


def _builder(name: str) -> collections.abc.Callable[..., nn.Module]:
    """The entry of an architecture, under its name."""

    def build(checkpoint: str | None = None, **kwargs: typing.Any) -> nn.Module:
        if checkpoint is None:
            return _create_model(name, **kwargs)
        saved = _checkpoint.load(checkpoint, "checkpoint")
        outputs = _fitting.output_count(saved["state_dict"], name)
        net = _create_model(name, **{**kwargs, "num_classes": outputs})
        _fitting.load_weights(net, saved, name, checkpoint, "checkpoint", "{arch}")
        if kwargs.get("num_classes", outputs) == outputs:
            return net
        other = _create_model(name, **kwargs)
        _fitting.load_but_for_outputs(other, net)
        return other

    file = next(file for file in models._FILES if name in file.__all__)
    about = " ".join((file.__doc__ or "").split("\n\n")[0].split())
    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"""{name}, by models/{file.__name__.removeprefix("models.")}.py: {about}

    Args:
        checkpoint: file of weights, which must fit exactly; None: new weights.
        **kwargs: of the builder, such as ``num_classes`` (default: that of the checkpoint, 1000 without one).
            With another number than the checkpoint's the classifier is new, of random weights; every other
            layer must fit exactly.

    Raises:
        utils.common.errors.UserError: the file cannot be read or does not fit.
    """
    return build


globals().update({name: _builder(name) for name in _list_models() if _is_own(name)})
