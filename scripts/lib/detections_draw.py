"""The picture of what a detector found on one image: masks, boxes, and a label for each."""

import colorsys
import math
from collections import Counter
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from scripts.lib.detections_labels import Colour, draw_labels

LEAST_SIDE = 600  # pixels; images with a shorter side below it are enlarged, or labels would cover them
MOST_SIDE = 4000  # pixels; the longer side of enlarged images
TEXT = 0.02  # height of the letters, as a share of the picture's shorter side
LEAST_TEXT = 12  # pixels
GOLDEN = 0.618034  # golden section: multiples of it, modulo 1, are spread evenly
# For the instances of a class in turn.
LIGHTNESS = (0.6, 0.4, 0.8)
HUES = (0.0, 0.07, -0.07)


class Found(NamedTuple):
    """The N detections of an image that are drawn, by decreasing score."""

    boxes: Tensor  # (N, 4): x1, y1, x2, y2 in pixels
    labels: list[int]  # classes, from 1
    names: list[str]  # of these classes
    scores: list[float]
    masks: Tensor | None  # (N, H, W), bool

    def __str__(self) -> str:
        parts = [f"{name} {100 * score:.0f} %" for name, score in zip(self.names, self.scores, strict=True)]
        return ", ".join(parts) or "nothing"


def colours_of(labels: list[int]) -> list[Colour]:
    """Return a colour for each detection: its hue shows the class, its lightness the instance."""
    seen: Counter[int] = Counter()
    colours = []
    for label in labels:
        colours.append(_colour(label, seen[label]))
        seen[label] += 1
    return colours


def _colour(label: int, instance: int) -> Colour:
    """Return the colour of a class (from 1) and its instance (from 0)."""
    turn, shade = divmod(instance, len(LIGHTNESS))
    hue = (label * GOLDEN + HUES[turn % len(HUES)]) % 1
    red, green, blue = colorsys.hls_to_rgb(hue, LIGHTNESS[shade], 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def drawn(image: Image.Image, found: Found) -> Image.Image:
    """Draw masks, boxes, and names with scores on the image, which is enlarged if it is small."""
    if not found.names:
        return image
    factor = enlargement(*image.size)
    colours = colours_of(found.labels)
    picture = image.resize((factor * image.width, factor * image.height), Image.Resampling.BICUBIC)
    size = max(LEAST_TEXT, round(TEXT * min(picture.size)))
    width = max(2, size // 6)
    if found.masks is not None:
        masks = found.masks.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
        picture = with_masks(picture, masks, colours, width)
    _draw_boxes(picture, factor * found.boxes, colours, width)
    texts = [f"{name} {score:.2f}" for name, score in zip(found.names, found.scores, strict=True)]
    draw_labels(picture, (factor * found.boxes).tolist(), texts, colours, size)
    return picture


def enlargement(width: int, height: int) -> int:
    """Return the integer factor by which an image of so many pixels is enlarged."""
    wanted = math.ceil(LEAST_SIDE / min(width, height))
    return max(1, min(wanted, MOST_SIDE // max(width, height)))


def with_masks(image: Image.Image, masks: Tensor, colours: list[Colour], width: int) -> Image.Image:
    """Fill masks (N, H, W), and draw their edges ``width`` pixels wide.

    Where masks overlap, the smallest one is drawn: a person's tie, not the person. All edges are drawn.
    """
    inside = torch.zeros(masks.shape[1:], dtype=torch.int64)  # number of the detection, from 1; 0: none
    edges = torch.zeros_like(inside)
    for number in masks.flatten(1).sum(1).argsort(descending=True, stable=True).tolist():
        inside[masks[number]] = number + 1
    for number, mask in reversed(list(enumerate(masks, 1))):
        edges[edge_of(mask, width)] = number
    palette = torch.tensor([(0, 0, 0), *colours], dtype=torch.uint8)
    pixels = pil_to_tensor(image).permute(1, 2, 0)
    filled = torch.where(inside[..., None] > 0, pixels // 2 + palette[inside] // 2, pixels)
    return Image.fromarray(torch.where(edges[..., None] > 0, palette[edges], filled).numpy())


def edge_of(mask: Tensor, width: int) -> Tensor:
    """Return the pixels of a mask (H, W) within ``width`` of one outside, in their row or column."""
    inner = mask.clone()
    for away in range(1, width + 1):
        inner[away:] &= mask[:-away]
        inner[:-away] &= mask[away:]
        inner[:, away:] &= mask[:, :-away]
        inner[:, :-away] &= mask[:, away:]
    return mask & ~inner


def _draw_boxes(picture: Image.Image, boxes: Tensor, colours: list[Colour], width: int) -> None:
    """Draw the box of the highest score last, over the others."""
    draw = ImageDraw.Draw(picture)
    for box, colour in reversed(list(zip(boxes.tolist(), colours, strict=True))):
        draw.rectangle(box, outline=colour, width=width)
