"""The exponential moving average (EMA) of the weights (``--ema``), and how a checkpoint stores it."""

import copy
from collections.abc import Mapping
from itertools import compress
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD


class Average(nn.Module):
    """The EMA of a network's parameters and buffers, updated after every step.

    torch's ``AveragedModel`` counts steps on the device; the decay depends on the count, so every step would
    have to wait for the device.

    Args:
        net: the network in training; it is copied.
        decay: at least 0, less than 1. It grows as ``(1 + n) / (10 + n)`` at step n up to this value;
            otherwise the first weights would dominate for ``1 / (1 - decay)`` steps.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        super().__init__()
        self.module = copy.deepcopy(net).requires_grad_(False)
        self.decay, self.steps = decay, 0
        averages = [*self.module.parameters(), *self.module.buffers()]
        self.floating = [average.is_floating_point() for average in averages]
        self.counting = [not one for one in self.floating]
        self.averages = averages
        self.descent = SGD(list(compress(averages, self.floating)), fused=True)

    @torch.no_grad()
    def update(self, model: nn.Module, bad: Tensor | None = None) -> None:
        """Move towards the weights of ``model``, the network or its wrapper; integer buffers are copied.

        Args:
            model: the network in training.
            bad: a flag on the device; if it is 1 there, and the weights have stayed what they were, so do
                their averages. Those of buffers may not.
        """
        values = [tensor.detach() for tensor in (*model.parameters(), *model.buffers())]
        if self.steps == 0:
            torch._foreach_copy_(self.averages, values)
        else:
            self._approach(list(compress(values, self.floating)), bad)
            if any(self.counting):
                counters = list(compress(self.averages, self.counting))
                torch._foreach_copy_(counters, list(compress(values, self.counting)))
        self.steps += 1

    def _approach(self, values: list[Tensor], bad: Tensor | None) -> None:
        """Move by a share of the distance, which is a step of gradient descent on half its square.

        torch's fused steps heed a flag on the device; its interpolation does not.
        """
        averages = self.descent.param_groups[0]["params"]
        for average, distance in zip(averages, torch._foreach_sub(averages, values), strict=True):
            average.grad = distance
        self.descent.param_groups[0]["lr"] = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.descent.found_inf = bad  # type: ignore[attr-defined]
        self.descent.step()
        self.descent.zero_grad()


def create_average(net: nn.Module, decay: float | None, saved: Mapping[str, Any]) -> Average | None:
    """Create the EMA of a network, or continue the one in a checkpoint.

    Args:
        net: the network in training.
        decay: at least 0, less than 1; None: no EMA.
        saved: the resumed checkpoint, or empty.
    """
    if decay is None:
        if "averaged_steps" in saved:
            print("note: without --ema the average of the resumed run ends; its best top-1 is the average's")
        return None
    average = Average(net, decay)
    if "averaged_steps" in saved:
        average.module.load_state_dict(saved["state_dict"])
        average.steps = saved["averaged_steps"]
    return average


def weights(net: nn.Module, average: Average | None) -> dict[str, Any]:
    """Return the weights for a checkpoint: ``state_dict`` is always the network that was evaluated."""
    if average is None:
        return {"state_dict": net.state_dict()}
    averaged = {"state_dict": average.module.state_dict(), "averaged_steps": average.steps}
    return {**averaged, "training_state_dict": net.state_dict()}
