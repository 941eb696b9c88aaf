"""The stem for small images: one 3x3 convolution of stride 1 and no pooling.

The published stem, a 7x7 convolution of stride 2 and max pooling of stride 2, leaves an eighth of the side of
an image to the second stage: of 32 pixels 4, and 1 to the last stage. He et al., arXiv 1512.03385, section
4.2, begin with a 3x3 convolution of stride 1 on CIFAR, and so do Huang et al., arXiv 1608.06993, section 3.

The weights of the rest of the network keep their names and shapes; the convolution keeps its name, ``conv1``
in a ResNet and ``features.conv0`` in a DenseNet, and its shape tells the two stems apart.
"""

from collections.abc import Mapping

from torch import Tensor, nn
from torchvision.models.densenet import DenseNet
from torchvision.models.resnet import ResNet

__all__ = ["has_published_stem", "has_small_stem", "of_stem", "put_small_stem"]

# A class of networks, the module of its stem's convolution, and that of its pooling.
_STEMS = ((ResNet, "conv1", "maxpool"), (DenseNet, "features.conv0", "features.pool0"))
_CONVOLUTIONS = tuple(conv for _, conv, _ in _STEMS)


def put_small_stem(net: nn.Module) -> nn.Module:
    """Give a network of torchvision's classes ResNet and DenseNet, or of ours, the small stem; return it.

    The new convolution is of the same class as the old one (WS-ResNet's standardises its weight) and starts
    as all others of the network. The three convolutions of ResNet-C and -D become one, so that ``resnet50_c``
    is ``resnet50_b`` then.

    Args:
        net: the network, which is changed.

    Raises:
        ValueError: it has another stem, or the small one already; it is then unchanged.
    """
    names = next((names for kind, *names in _STEMS if isinstance(net, kind)), None)
    if names is None:
        raise ValueError("its stem is no 7x7 convolution with max pooling: ResNets and DenseNets have one")
    if isinstance(net.get_submodule(names[1]), nn.Identity):
        raise ValueError("it has that stem already")
    old = [module for module in net.get_submodule(names[0]).modules() if isinstance(module, nn.Conv2d)]
    conv = type(old[0])(old[0].in_channels, old[-1].out_channels, 3, padding=1, bias=False)
    if isinstance(net, ResNet):
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    else:
        nn.init.kaiming_normal_(conv.weight)
    conv.to(old[0].weight.device, old[0].weight.dtype).train(net.training)
    for name, module in zip(names, (conv, nn.Identity()), strict=True):
        parent, _, child = name.rpartition(".")
        setattr(net.get_submodule(parent), child, module)  # which keeps its place among the others
    return net


def has_published_stem(net: nn.Module) -> bool:
    """Whether :func:`put_small_stem` takes a network."""
    return isinstance(net, (ResNet, DenseNet)) and not has_small_stem(net.state_dict())


def of_stem(key: str) -> bool:
    """Whether a key of a state dict is of a convolution of the stem of a ResNet or DenseNet."""
    return key.startswith(tuple(f"{conv}." for conv in _CONVOLUTIONS))


def has_small_stem(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict of a ResNet or DenseNet has the small stem."""
    keys = (f"{conv}.weight" for conv in _CONVOLUTIONS)
    return any(tuple(state[key].shape[1:]) == (3, 3, 3) for key in keys if key in state)
