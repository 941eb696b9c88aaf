"""COCO's images and objects: reading annotation files.

Sets of one's own have the same form: ``annotations/instances_NAME.json`` and the images in ``NAME/``.
Categories have any ids (COCO's 80 have 1 to 90); labels count them from 1 in the order of their ids, 0 is the
background. Lin et al., "Microsoft COCO: Common Objects in Context", arXiv 1405.0312;
cocodataset.org/#format-data.
"""

import json
import math
from collections.abc import Sequence
from operator import index
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as rle_masks
from torch import Tensor

from utils.common.errors import UserError
from utils.common.text import plural

LEAST_IMAGE = 32  # pixels; images with a shorter side are not trained on
LEAST_BOX = 0.01  # pixels; of thinner boxes a flip or a change of size in float32 may leave nothing


class Target(NamedTuple):
    """What an image shows; crowds are not among the objects."""

    image_id: int
    size: tuple[int, int]  # width, height in pixels
    boxes: NDArray[np.float32]  # (N, 4): x1, y1, x2, y2 in pixels, within the image
    labels: NDArray[np.int64]  # (N,), from 1
    masks: list[bytes] | None  # N, as COCO's compressed run lengths; None: not wanted


class CocoSplit(NamedTuple):
    """The images of a split and what they show."""

    samples: list[tuple[str, Any]]  # files, each with its Target
    classes: tuple[str, ...]  # names of the labels 1, 2, ...
    ids: tuple[int, ...]  # of their categories
    annotations: Path

    def __str__(self) -> str:
        objects = plural(sum(len(target.labels) for _, target in self.samples), "object")
        return f"{plural(len(self.samples), 'image')} with {objects} of {plural(len(self.ids), 'class')}"

    @property
    def image_ids(self) -> list[int]:
        return [target.image_id for _, target in self.samples]


def read_coco(
    root: Path, split: str, training: bool, masks: bool = False, known: Sequence[str] = ()
) -> CocoSplit:
    """Read the annotations of a split.

    Crowds are no objects to learn; what has no box (or mask) of any area is left out, and counted in a note.
    Training leaves out images without objects and those with a side below ``LEAST_IMAGE`` pixels.

    Args:
        root: the folder of ``annotations/`` and the images.
        split: such as ``train2017``, or ``train`` for the only one of that name, whatever its year.
        training: whether it is to be learned; an evaluation needs every image.
        masks: whether masks are wanted beside boxes.
        known: names of the classes by label, of a checkpoint or another split; none if they don't matter.

    Raises:
        UserError: files are missing or not of COCO's form, or the classes are not the known ones.
    """
    file = find_annotations(root, split)
    try:
        found = parse(file, root / file.stem.removeprefix("instances_"), training, masks)
    except (OSError, RecursionError, ValueError, LookupError, TypeError, AttributeError, OverflowError) as e:
        raise UserError(f"{file} is not of COCO's form ({type(e).__name__}: {e}): mend it") from None
    if known and found.classes != tuple(known):
        which = ", ".join(sorted(set(known) ^ set(found.classes))[:3]) or "another order"
        raise UserError(f"{file} lacks the categories of checkpoint or other split ({which}): give its data")
    if not found.samples:
        raise UserError(f"{file} has no images{' with objects to learn' * training}: give another --data")
    # To list a folder takes less than to look at each file.
    folders = {Path(path).parent for path, _ in found.samples}
    there = {str(image) for folder in folders for image in folder.glob("*")}
    if missing := [path for path, _ in found.samples if path not in there]:
        raise UserError(f"{plural(len(missing), 'image')} of {file} missing, as {missing[0]}: unpack them")
    return found


def find_annotations(root: Path, split: str) -> Path:
    """Find the annotation file of a split: the one with this name, or the only one that begins with it.

    Raises:
        UserError: there is none, or there are several.
    """
    name = f"annotations/instances_{split}"
    found = sorted(root.glob(f"{name}.json")) or sorted(root.glob(f"{name}*.json"))
    if len(found) != 1:
        names = " and ".join(file.name for file in found) or "none"
        raise UserError(f"--data {root}: looked for one {name}*.json and found {names}; give COCO's folder")
    return found[0]


def parse(file: Path, folder: Path, training: bool, masks: bool) -> CocoSplit:
    """Parse an annotation file whose images are in ``folder``; arguments as of :func:`read_coco`.

    Raises:
        ValueError: an annotation is of an unknown image or category, or has no mask and is to be evaluated;
            this or another built-in error: the file is not of COCO's form.
    """
    data = json.loads(file.read_bytes())
    names = {index(one["id"]): str(one["name"]) for one in data["categories"]}
    ids, classes = zip(*sorted(names.items()), strict=True)
    labels = {category: label for label, category in enumerate(ids, 1)}
    sizes = {index(one["id"]): (index(one["width"]), index(one["height"])) for one in data["images"]}
    if len(names) < len(data["categories"]) or len(sizes) < len(data["images"]):
        raise ValueError("two categories or two images have one id")
    found: dict[int, list[tuple[Any, int, bytes]]] = {image: [] for image in sizes}
    bad = 0
    for one in data["annotations"]:
        image, category = one["image_id"], one["category_id"]
        if image not in sizes or category not in labels:
            raise ValueError(f"annotation {one.get('id')} is of image {image}, category {category}: unknown")
        box = corners(one["bbox"], *sizes[image])
        mask = run_lengths(one.get("segmentation"), *sizes[image]) if masks else b"not wanted"
        if not (mask or training):  # of a crowd too: pycocotools would fail, and only after the first epoch
            raise ValueError(f"annotation {one.get('id')} has no mask")
        if not one.get("iscrowd"):
            bad += not (box and mask)
            found[image] += [(box, labels[category], mask)] if box and mask else []
    if bad:
        print(f"note: {file.name}: {plural(bad, 'object')} left out, no box{' and mask' * masks} of any area")
    samples = []
    for one in data["images"]:
        size, objects = sizes[one["id"]], found[one["id"]]
        if not training or (objects and min(size) >= LEAST_IMAGE):
            boxes = np.array([box for box, _, _ in objects], np.float32).reshape(-1, 4)
            numbers = np.array([label for _, label, _ in objects], np.int64)
            runs = [mask for _, _, mask in objects] if masks else None
            samples.append((str(folder / one["file_name"]), Target(one["id"], size, boxes, numbers, runs)))
    return CocoSplit(samples, classes, ids, file)


def corners(box: Sequence[float], width: int, height: int) -> tuple[float, ...]:
    """Return both corners of a box (corner, width, height), clipped to the image; none without area."""
    x, y, across, down = map(float, box)
    left, right = (min(max(edge, 0.0), width) for edge in (x, x + across))
    top, bottom = (min(max(edge, 0.0), height) for edge in (y, y + down))
    whole = math.isfinite(x + y + across + down) and min(right - left, bottom - top) >= LEAST_BOX
    return (left, top, right, bottom) if whole else ()


def run_lengths(segmentation: Any, width: int, height: int) -> bytes:
    """Convert polygons or run lengths to compressed run lengths; return none if that is impossible."""
    try:
        text = isinstance(segmentation, dict) and isinstance(segmentation["counts"], str)
        runs = segmentation if text else rle_masks.frPyObjects(segmentation, height, width)
        mask = rle_masks.merge(runs if isinstance(runs, list) else [runs])
        return mask["counts"] if mask["size"] == [height, width] else b""
    except Exception:  # pycocotools raises anything, Exception itself too
        return b""


def decode_masks(masks: Sequence[bytes], width: int, height: int) -> Tensor:
    """Decode N masks of compressed run lengths to (N, H, W), uint8."""
    if not masks:
        return torch.zeros(0, height, width, dtype=torch.uint8)
    decoded = rle_masks.decode([{"size": [height, width], "counts": counts} for counts in masks])
    return torch.from_numpy(decoded).permute(2, 0, 1).contiguous()
