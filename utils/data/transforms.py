"""What is done to an image before it is stacked: crop, resize, flip, augment; the result is uint8.

With ``--decoder pil`` PIL resizes, as in the published scripts; otherwise torch does, on uint8 and within one
level of PIL.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import v2

from utils.data.decoding import Box

MEAN = (0.485, 0.456, 0.406)  # of ImageNet's training images, RGB in [0, 1]
STD = (0.229, 0.224, 0.225)
# arXiv 1909.13719, 2103.10158, 1805.09501
AUTO_AUGMENT = MappingProxyType(
    {"ra": v2.RandAugment, "ta": v2.TrivialAugmentWide, "imagenet": v2.AutoAugment}
)
# Those whose results are within one level of each other in PIL and torch.
INTERPOLATIONS = MappingProxyType(
    {"bilinear": v2.InterpolationMode.BILINEAR, "bicubic": v2.InterpolationMode.BICUBIC}
)
CROP_PCT, INTERPOLATION = 224 / 256, "bilinear"  # of validation, as published
LEAST_STD = 0.001  # of pixels in [0, 1]; less would blow them up
LEAST_CROP = 0.1  # for less an image would be enlarged more than tenfold
_RATIO = (3 / 4, 4 / 3)  # least and largest width over height of a training crop
_TRIES = 10


class Scaling(NamedTuple):
    """What makes the network's input of pixels in [0, 1]: minus the mean, divided by the deviation.

    Args:
        mean: of red, green and blue.
        std: their standard deviation over all pixels.
    """

    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    def other(self) -> dict[str, tuple[float, ...]]:
        """Return mean and deviation by name, without those that are ImageNet's."""
        return {name: of for name, of in self._asdict().items() if of != IMAGENET._asdict()[name]}

    @property
    def flags(self) -> str:
        """The flags that say them."""
        return " ".join(f"--{name} {' '.join(map(str, of))}" for name, of in self._asdict().items())

    def tensors(self, device: torch.device | None = None) -> Tensor:
        """Return mean and deviation as (2, 3, 1, 1), float32."""
        return torch.tensor(tuple(self), device=device).view(2, 3, 1, 1)


IMAGENET = Scaling()


def random_box(height: int, width: int, scale: Sequence[float]) -> Box:
    """Draw a box of random area and shape, from torch: Szegedy et al., arXiv 1409.4842, section 6.

    Args:
        height: of the image.
        width: of the image.
        scale: least and largest share of the image's area.
    """
    shapes = tuple(map(math.log, _RATIO))
    for share, shape, down, right in torch.rand(_TRIES, 4).tolist():
        area = height * width * (scale[0] + share * (scale[1] - scale[0]))
        ratio = math.exp(shapes[0] + shape * (shapes[1] - shapes[0]))
        high, wide = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < high <= height and 0 < wide <= width:
            return Box(int(down * (height - high + 1)), int(right * (width - wide + 1)), high, wide)
    high = min(height, round(width / _RATIO[0]))  # the largest box of an allowed shape, in the middle
    wide = min(width, round(height * _RATIO[1]))
    return Box((height - high) // 2, (width - wide) // 2, high, wide)


@dataclass(eq=False)
class TrainTransform:
    """Random crop, horizontal flip and more on demand; draws from torch's CPU generator.

    Args:
        size: side of the crop in pixels.
        scale: least and largest share of the image's area that a crop covers.
        hflip: probability of a flip.
        auto_augment: a name of ``AUTO_AUGMENT``, applied to the crop; None: none.
        random_erase: probability of random erasing (Zhong et al., arXiv 1708.04896).
        pad: instead of a crop of random size, resize the shorter side to ``size`` (an image of that size is
            left as it is), add so many black pixels on every side and cut out a square at random, as is usual
            on CIFAR (He et al., arXiv 1512.03385, section 4.2); None: crop of random size.
        scaling: of the network's input; auto augment and random erasing fill with its mean.
    """

    size: int
    scale: Sequence[float] = (0.08, 1.0)
    hflip: float = 0.5
    auto_augment: str | None = None
    random_erase: float = 0.0
    pad: int | None = None
    scaling: Scaling = IMAGENET

    def __post_init__(self) -> None:
        self.further: list[v2.Transform] = []
        mean = self.scaling.mean
        if self.auto_augment:
            fill = [round(255 * value) for value in mean]
            augment = AUTO_AUGMENT[self.auto_augment](interpolation=v2.InterpolationMode.BILINEAR, fill=fill)
            self.further += [v2.ToPILImage(), augment, v2.PILToTensor()]
        if self.random_erase:
            self.further.append(v2.RandomErasing(self.random_erase, value=[255 * value for value in mean]))

    def box(self, height: int, width: int) -> Box:
        """Draw the part of an image of this size that is needed: the crop, or all if it is padded."""
        return random_box(height, width, self.scale) if self.pad is None else Box(0, 0, height, width)

    def __call__(self, image: Image.Image | Tensor, box: Box) -> Tensor:
        """Return the crop ``box``, or a random one of the padded image, as (3, S, S)."""
        if self.pad is None:
            pixels = resized_crop(image, box, self.size)
        else:
            pixels = padded_crop(image, self.size, self.pad)
        if torch.rand(()).item() < self.hflip:
            pixels = pixels.flip(2)
        for transform in self.further:
            pixels = transform(pixels)
        return pixels


@dataclass(eq=False)
class ValTransform:
    """Resize the shorter side to ``size / crop_pct``, antialiased, then crop the centre.

    Args:
        size: side of the crop in pixels.
        crop_pct: share of the resized shorter side that the crop covers, from ``LEAST_CROP`` to 1.
        interpolation: a name of ``INTERPOLATIONS``.
        scaling: of the network's input.
    """

    size: int
    crop_pct: float = CROP_PCT
    interpolation: str = INTERPOLATION
    scaling: Scaling = IMAGENET

    def __post_init__(self) -> None:
        mode = INTERPOLATIONS[self.interpolation]
        resize = v2.Resize(round(self.size / self.crop_pct), mode, antialias=True)
        self.resize_and_crop = v2.Compose([resize, v2.CenterCrop(self.size)])

    def __str__(self) -> str:
        """Return ``224 px``, and what is not as published: ``224 px (crop 0.95, bicubic)``."""
        other = [f"crop {self.crop_pct:g}"] * (self.crop_pct != CROP_PCT)
        other += [self.interpolation] * (self.interpolation != INTERPOLATION)
        other += [f"{n} {' '.join(f'{x:.3g}' for x in of)}" for n, of in self.scaling.other().items()]
        return f"{self.size} px" + (f" ({', '.join(other)})" if other else "")

    def box(self, height: int, width: int) -> Box:
        """Return the whole image."""
        return Box(0, 0, height, width)

    def __call__(self, image: Image.Image | Tensor, box: Box) -> Tensor:
        """Return the centre as (3, S, S); ``box`` is the whole image."""
        pixels = self.resize_and_crop(image)
        return pixels if isinstance(pixels, Tensor) else v2.functional.pil_to_tensor(pixels)


def resized_crop(image: Image.Image | Tensor, box: Box, size: int) -> Tensor:
    """Resize a box of an image to (3, size, size), bilinear and antialiased."""
    if isinstance(image, Image.Image):
        resized = v2.functional.resized_crop(image, *box, [size, size], antialias=True)
        return v2.functional.pil_to_tensor(resized)
    part = image[None, :, box.top : box.top + box.height, box.left : box.left + box.width]
    # A part of a decoded image is neither contiguous nor channels_last, which torch resizes slowly.
    part = part.contiguous(memory_format=torch.channels_last)
    return functional.interpolate(part, size=(size, size), mode="bilinear", antialias=True)[0]


def padded_crop(image: Image.Image | Tensor, size: int, pad: int) -> Tensor:
    """Return a random square of an image with a black border, (3, size, size); the shorter side is resized.

    Args:
        image: of any size, RGB.
        size: side of the square in pixels, and length of the image's shorter side before the border is added.
        pad: width of the border.
    """
    resized = v2.functional.resize(image, [size], antialias=True)
    pixels = v2.functional.pil_to_tensor(resized) if isinstance(resized, Image.Image) else resized
    bordered = functional.pad(pixels, [pad] * 4)
    free = torch.tensor(bordered.shape[1:]) - size + 1  # places of the square
    top, left = (torch.rand(2) * free).long().tolist()
    return bordered[:, top : top + size, left : left + size]


Transform = TrainTransform | ValTransform
