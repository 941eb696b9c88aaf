"""``--freeze backbone``: only the gates and the classifier are trained."""

from collections.abc import Iterable

from torch import nn

from models.gates import gates_of
from utils.common.text import plural
from utils.networks.weights import classifier_of
from utils.training.precision import batch_norms


def freeze(net: nn.Module, part: str | None) -> list[nn.Module]:
    """Freeze a part of a network, and print what is trained.

    Args:
        net: the network.
        part: ``backbone``, all but the gates and the classifier; None: nothing.

    Returns:
        The batch norms of the frozen part. They must stay in evaluation mode: in training mode they would
        normalise by the batch and change their statistics.
    """
    if part is None:
        return []
    gates, classifier = gates_of(net), classifier_of(net)
    trained = [*gates.values(), net.get_submodule(classifier)]
    of_trained = {id(parameter) for module in trained for parameter in module.parameters()}
    for parameter in net.parameters():
        parameter.requires_grad_(id(parameter) in of_trained)
    print(f"frozen: all but {plural(len(gates), 'gate')} and {classifier}; {_sizes(net.parameters())}")
    learning = {id(norm) for module in trained for norm in batch_norms(module)}
    return [norm for norm in batch_norms(net) if id(norm) not in learning]


def _sizes(parameters: Iterable[nn.Parameter]) -> str:
    """Say how many of the parameters are trained."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in parameters]
    trained, total = sum(size for size, learns in sizes if learns), sum(size for size, _ in sizes)
    return f"{trained:,} of {total:,} parameters are trained"
