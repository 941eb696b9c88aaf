"""Labels (names and scores) beside the boxes of a picture, without overlaps."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
Corners = tuple[float, float, float, float]  # x1, y1, x2, y2 in pixels


def draw_labels(
    picture: Image.Image, boxes: Sequence[Corners], texts: Sequence[str], colours: Sequence[Colour], size: int
) -> None:
    """Draw a label above each box; if the border, a small box or another label is in the way, near it.

    Args:
        picture: the labels are drawn on it.
        boxes: the most important first; its label is placed first.
        texts: of the labels, one for each box.
        colours: of boxes and labels.
        size: height of the letters in pixels.
    """
    from matplotlib import font_manager  # takes a second

    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size)
    draw = ImageDraw.Draw(picture)
    margin = max(2, size // 5)
    high = size + 2 * margin
    small = [box for box in boxes if min(box[2] - box[0], box[3] - box[1]) < 2 * high]
    labels: list[Corners] = []
    for box, text in zip(boxes, texts, strict=True):
        wide = math.ceil(draw.textlength(text, font)) + 2 * margin
        above = (box[0], box[1] - high - 1)
        labels.append(free_place(above, (wide, high), picture.size, [*small, *labels]))
    for label, box, colour in zip(labels, boxes, colours, strict=True):  # lines to labels away from their box
        x, y = (min(max(box[axis], label[axis]), label[axis + 2]) for axis in (0, 1))
        draw.line((box[0], box[1], x, y), fill=colour, width=max(1, size // 6))
    for label, text, colour in zip(labels, texts, colours, strict=True):
        draw.rectangle(label, fill=colour)
        draw.text((label[0] + margin, label[1] + high / 2), text, letters_on(colour), font, "lm")


def free_place(
    wanted: tuple[float, float], size: tuple[int, int], picture: tuple[int, int], taken: Sequence[Corners]
) -> Corners:
    """Return the place for a label within the picture that is nearest to the wanted one and free.

    If no place is free, the label covers something.

    Args:
        wanted: upper left corner, x and y in pixels.
        size: width and height of the label.
        picture: width and height of the picture.
        taken: boxes that the label should not cover.
    """
    # The nearest free place has the wanted x or y, or touches a taken box.
    places = []
    for axis in (0, 1):
        limit = max(0, picture[axis] - 1 - size[axis])
        beside = [at for box in taken for at in (box[axis] - size[axis] - 1, box[axis + 2] + 1)]
        places.append([min(max(wanted[axis], 0), limit), *(at for at in beside if 0 <= at <= limit)])
    left, top = (axis.ravel() for axis in np.meshgrid(*places))
    free = np.ones(len(left), dtype=bool)
    for box in taken:
        across = (left <= box[2]) & (left + size[0] >= box[0])
        free &= ~(across & (top <= box[3]) & (top + size[1] >= box[1]))
    distance = np.where(free, np.hypot(left - wanted[0], top - wanted[1]), np.inf)
    best = int(distance.argmin())
    return float(left[best]), float(top[best]), float(left[best] + size[0]), float(top[best] + size[1])


def letters_on(colour: Colour) -> str:
    """Return black or white, whichever is easier to read on a colour (by its luma, ITU-R BT.601)."""
    red, green, blue = colour
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 127 else "white"
