"""The picture of a confusion matrix: which classes are taken for which."""

import io
import warnings
from typing import Any

import numpy as np

from utils.common.text import drawable
from utils.data.labels import readable
from utils.training.per_class import Confusion

MOST = 1000  # classes; of each, a pixel is still drawn
_NAMED = 40  # classes that have room for their names beside the axes
_LARGEST = 10  # confusions that are named below


def picture(confusion: Confusion, title: str) -> bytes:
    """Draw a confusion matrix of at most ``MOST`` classes as PNG."""
    buffer = io.BytesIO()
    figure = draw(confusion, title)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name in letters that the font lacks is drawn as boxes
        figure.savefig(buffer, format="png")
    return buffer.getvalue()


def draw(confusion: Confusion, title: str) -> Any:
    """Draw the share of each class's images that are taken for each class, and name the largest confusions.

    Returns:
        A matplotlib figure.
    """
    from matplotlib.figure import Figure  # takes a second

    figure = Figure(figsize=(10, 11.5), dpi=150, layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=(9.5, 2))
    above, below = parts
    _draw_matrix(above, confusion, title)
    below.text(0.06, 0.98, "\n".join(largest(confusion)), va="top", fontsize=9, parse_math=False)
    return figure


def _draw_matrix(part: Any, confusion: Confusion, title: str) -> None:
    from matplotlib.colors import PowerNorm

    images = np.broadcast_to(confusion.images[:, None], confusion.counts.shape)
    shares = np.ma.masked_array(confusion.counts / np.maximum(images, 1), images == 0)
    axes = part.subplots()
    axes.set_facecolor("lightgrey")  # of classes without images
    drawn = axes.imshow(shares, norm=PowerNorm(0.5, 0, 1), cmap="viridis", interpolation="nearest")
    axes.set_title(title, fontsize=10, parse_math=False)
    axes.set_xlabel("taken for")
    axes.set_ylabel("class")
    if len(confusion.classes) <= _NAMED:
        names = [drawable(readable(name)) for name in confusion.classes]
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8, parse_math=False)
        axes.set_yticks(range(len(names)), names, fontsize=8, parse_math=False)
    part.colorbar(drawn, label="share of the class's images", shrink=0.8)


def largest(confusion: Confusion) -> list[str]:
    """Return a line for each of the largest confusions, with the images of the class and their share."""
    lines = []
    for label, predicted, wrong in confusion.mistakes(_LARGEST):
        name, other = (drawable(readable(confusion.classes[one])) for one in (label, predicted))
        images = int(confusion.images[label])
        lines.append(f"{name} taken for {other}: {wrong} of {images:,} ({100 * wrong / images:.1f} %)")
    return ["Largest confusions:", *lines] if lines else ["No image is taken for another class."]
