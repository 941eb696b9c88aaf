"""torch.compile for networks of repeated blocks."""

from collections import Counter
from collections.abc import Iterator

import torch
from torch import nn

# Limit of the graphs compiled for one function. A block's forward has one for each input shape and each mode
# of the network: in ResNet-50 more than torch's limit of 8, beyond which blocks run uncompiled.
GRAPHS = 1024
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def compile_blocks(net: nn.Module) -> nn.Module:
    """Set each block of a network to be compiled at its first call, and return the network.

    Blocks of the same shapes share compiled code, so this takes a fraction of the time of compiling the whole
    network. It is also safer: the compiled backward pass of a whole SGE-ResNet-50 at 224 px crashes on a CPU
    (torch 2.14).
    """
    torch._dynamo.config.recompile_limit = GRAPHS
    torch._dynamo.config.accumulated_recompile_limit = GRAPHS
    for block in blocks(net):
        block.compile(dynamic=False)
    return net


def blocks(net: nn.Module) -> Iterator[nn.Module]:
    """Yield the blocks of a network, such as residual blocks, dense layers and stems.

    The search goes down from the network. It looks inside containers, and inside modules whose class occurs
    only once, such as the encoder of a vision transformer, unless they consist of single layers.
    """
    counts = Counter(type(module) for module in net.modules())

    def search(module: nn.Module) -> Iterator[nn.Module]:
        for part in filter(has_parts, module.children()):
            divisible = isinstance(part, CONTAINERS) or counts[type(part)] == 1
            if divisible and any(map(has_parts, part.children())):
                yield from search(part)
            else:
                yield part

    return search(net)


def has_parts(module: nn.Module) -> bool:
    """Whether a module has child modules; a single layer, such as a convolution, has none."""
    return any(True for _ in module.children())
