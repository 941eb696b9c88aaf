"""The moving average of the weights (``--ema``), and what a checkpoint holds of it."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

Tensors = tuple[Tensor, ...] | list[Tensor]


def create_average(net: nn.Module, decay: float | None, saved: Mapping[str, Any]) -> AveragedModel | None:
    """The average of a network's parameters and buffers, begun anew or continued.

    Its decay grows, ``(1 + n) / (10 + n)`` at step n, until it is ``decay``: otherwise the first weights
    would outweigh all others for ``1 / (1 - decay)`` steps.

    Args:
        net: the network in training.
        decay: from 0 to below 1; None: no average.
        saved: the resumed checkpoint, or nothing.
    """
    if decay is None:
        if "averaged_steps" in saved:
            print("note: without --ema the average of the resumed run, which its best top-1 is of, ends here")
        return None

    def update(averages: Tensors, values: Tensors, steps: Tensor | int) -> None:
        n = int(steps)
        get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))(averages, values, steps)

    average = AveragedModel(net, multi_avg_fn=update, use_buffers=True)
    if "averaged_steps" in saved:
        average.module.load_state_dict(saved["state_dict"])
        average.n_averaged.fill_(saved["averaged_steps"])
    return average


def weights(net: nn.Module, average: AveragedModel | None) -> dict[str, Any]:
    """What a checkpoint holds: ``state_dict`` is always the network that was evaluated."""
    if average is None:
        return {"state_dict": net.state_dict()}
    return {
        "state_dict": average.module.state_dict(),
        "training_state_dict": net.state_dict(),
        "averaged_steps": int(average.n_averaged),
    }
