"""Learning rate as a pure function of the position in training, so that a resumed run cannot lose it."""

from collections.abc import Sequence

from torch.optim import Optimizer


def step_decay(base: float, epoch: int, milestones: Sequence[int], gamma: float) -> float:
    """The rate of an epoch: ``base`` times ``gamma`` for every milestone reached.

    Args:
        base: rate before the first milestone.
        epoch: from 0.
        milestones: epochs at whose start the rate is multiplied by ``gamma``; any order.
        gamma: the factor.
    """
    return base * gamma ** sum(milestone <= epoch for milestone in milestones)


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Give every parameter group the same rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
