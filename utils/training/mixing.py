"""Mixup, CutMix and Cutout on a batch that is already on the device.

torchvision's MixUp and CutMix pair neighbours in the batch, cut another box and return dense labels; these
are the published forms, with a random permutation and the boxes of the published code.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

Box = tuple[int, int, int, int]


class MixedBatch(NamedTuple):
    """Images (B, C, H, W); ``labels`` (B,) count ``weight`` in the loss, ``partners`` (B,) the rest."""

    images: Tensor
    labels: Tensor
    partners: Tensor
    weight: float


def square_box(sides: tuple[int, int], size: tuple[int, int], centre: tuple[int, int]) -> Box:
    """Return the box of ``size`` around ``centre``, clipped to the image; an odd size loses a pixel.

    Returns:
        First and last-plus-one index on the first axis ``x1, x2`` and the second ``y1, y2``, in the order
        ``x1, y1, x2, y2``.
    """
    (x1, x2), (y1, y2) = (
        (max(at - extent // 2, 0), min(at + extent // 2, side))
        for side, extent, at in zip(sides, size, centre, strict=True)
    )
    return x1, y1, x2, y2


def cutmix_box(sides: tuple[int, int], weight: float, centre: tuple[int, int]) -> tuple[Box, float]:
    """Return the box that covers ``1 - weight`` of the image, clipped to it, and the weight left outside.

    Yun et al., CutMix, arXiv 1905.04899, equation 2.
    """
    share = math.sqrt(1 - weight)
    x1, y1, x2, y2 = box = square_box(sides, (int(sides[0] * share), int(sides[1] * share)), centre)
    return box, 1 - (x2 - x1) * (y2 - y1) / (sides[0] * sides[1])


@dataclass
class Mixer:
    """Mix or cut a batch at random, as a function of a seed.

    Mixup is by Zhang et al., arXiv 1710.09412; for CutMix see :func:`cutmix_box`. With both, each batch takes
    one of them with probability 0.5.

    Args:
        mixup_alpha: parameter of mixup's Beta distribution; None: no mixup.
        cutmix_prob: probability that a batch assigned to CutMix is changed; None: no CutMix.
        cutout_size: side in pixels of the square set to the mean colour, at one place per batch (DeVries and
            Taylor, arXiv 1708.04552); None: no Cutout.
    """

    mixup_alpha: float | None = None
    cutmix_prob: float | None = None
    cutout_size: int | None = None

    def __call__(self, images: Tensor, labels: Tensor, seed: int) -> MixedBatch:
        """Mix a batch of normalised images; may change ``images``."""
        random = np.random.default_rng(seed)
        sides = (images.shape[2], images.shape[3])
        order = random.permutation(len(images))
        if self.cutmix_prob is not None and (self.mixup_alpha is None or random.random() < 0.5):
            if random.random() < self.cutmix_prob:
                weight, centre = random.beta(1, 1), tuple(random.integers(sides).tolist())
                (x1, y1, x2, y2), weight = cutmix_box(sides, weight, centre)
                others = _on_device(order, images.device)
                images[:, :, x1:x2, y1:y2] = images[others, :, x1:x2, y1:y2]
                return MixedBatch(images, labels, labels[others], weight)
        elif self.mixup_alpha is not None:
            weight = random.beta(self.mixup_alpha, self.mixup_alpha) if self.mixup_alpha > 0 else 1.0
            others = _on_device(order, images.device)
            mixed = torch.lerp(images[others], images, weight)  # weight * x + (1 - weight) * x[others]
            return MixedBatch(mixed, labels, labels[others], weight)
        if self.cutout_size is not None:
            size, centre = (self.cutout_size, self.cutout_size), tuple(random.integers(sides).tolist())
            x1, y1, x2, y2 = square_box(sides, size, centre)
            images[:, :, x1:x2, y1:y2] = 0
        return MixedBatch(images, labels, labels, 1.0)


def _on_device(order: np.ndarray, device: torch.device) -> Tensor:
    """Return numbers as a tensor on a device, for which the host does not wait."""
    numbers = torch.from_numpy(order)
    return numbers.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else numbers
