"""The annotation files of COCO and of sets in its form: found, checked, in tables.

Lin et al., "Microsoft COCO: Common Objects in Context", arXiv 1405.0312; cocodataset.org/#format-data.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import index
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle_masks

from utils.errors import UserError
from utils.text import plural

PREFIX = "instances_"  # of their names
LEAST_BOX = 0.01  # pixels; of thinner boxes a flip or a change of size in float32 may leave nothing
Records = list[dict[str, Any]]


class Images(NamedTuple):
    """Those of an annotation file."""

    ids: NDArray[np.int64]  # (N,)
    names: NDArray[np.str_]  # (N,)
    sizes: NDArray[np.int64]  # (N, 2), width and height

    def of(self, wanted: NDArray[np.bool_]) -> "Images":
        """Those that are wanted, (N,)."""
        return Images(self.ids[wanted], self.names[wanted], self.sizes[wanted])


class Objects(NamedTuple):
    """Those of an annotation file that can be learned."""

    rows: NDArray[np.int64]  # (M,), of their images
    labels: NDArray[np.int64]  # (M,)
    boxes: NDArray[np.float32]  # (M, 4)
    masks: list[bytes] | None  # M

    def of(self, wanted: NDArray[np.bool_]) -> "Objects":
        """Those that are wanted, (M,)."""
        masks = None if self.masks is None else [self.masks[i] for i in np.flatnonzero(wanted)]
        return Objects(self.rows[wanted], self.labels[wanted], self.boxes[wanted], masks)


def find_annotations(root: Path, split: str) -> Path:
    """The annotation file of a split: of this very name, or the only one of another year.

    Raises:
        UserError: there is none, or there are several.
    """
    folder = root / "annotations"
    exact = folder / f"{PREFIX}{split}.json"
    if exact.is_file():
        return exact
    pattern = f"{PREFIX}{split.rstrip('0123456789')}*.json"
    found = sorted(folder.glob(pattern))
    if len(found) == 1:
        return found[0]
    names = " and ".join(file.name for file in found) or "none"
    raise UserError(
        f"--data {root}: looked for annotations/{exact.name}, or one annotations/{pattern}, and found "
        f"{names}; give a folder with COCO's annotations/ and images"
    )


@contextmanager
def coco_form(file: Path) -> Iterator[None]:
    """What goes wrong in the block is the fault of the file.

    Raises:
        UserError: the file cannot be read, is not JSON, or holds something else.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{file} is not JSON ({error}): download or write it anew") from None
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(
            f"{file} is not of COCO's form for instances ({type(error).__name__}: {error}): download or "
            "write it anew"
        ) from None


def read_categories(categories: Records, file: Path) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Their ids in order, and their names in that order; raises UserError for an id that two share."""
    names = {index(category["id"]): str(category["name"]) for category in categories}
    if len(names) < len(categories):
        raise UserError(f"{file} has two categories of one id: mend it")
    ids = tuple(sorted(names))
    return ids, tuple(names[category] for category in ids)


def read_images(images: Records, file: Path) -> Images:
    """All images that the file lists."""
    ids = np.array([index(image["id"]) for image in images], np.int64)
    names = np.array([str(image["file_name"]) for image in images], np.str_)
    sizes = np.array([(index(image["width"]), index(image["height"])) for image in images], np.int64)
    values, counts = np.unique(ids, return_counts=True)
    if twice := values[counts > 1].tolist():
        raise UserError(f"{file} has several images of the id {twice[0]}: mend it")
    if (sizes < 1).any():
        raise ValueError("an image has no pixels")
    return Images(ids, names, sizes.reshape(-1, 2))


def read_objects(
    annotations: Records,
    images: Images,
    ids: Sequence[int],
    masks: bool,
    training: bool,
    file: Path,
) -> Objects:
    """Annotations that can be learned: no crowds, with a box of some area, and a mask if that is wanted.

    Raises:
        UserError: one is of an unknown image or category or, if not for ``training``, has no mask.
    """
    rows = _numbers(annotations, "image_id", images.ids.tolist(), "image", file)
    labels = 1 + _numbers(annotations, "category_id", ids, "category", file)
    given = np.array([one["bbox"] for one in annotations], np.float64).reshape(len(annotations), 4)
    single = np.array([not one.get("iscrowd") for one in annotations], bool)
    boxes = _corners(given, images.sizes[rows])
    usable = single & (boxes[:, 2:] - boxes[:, :2] >= LEAST_BOX).all(1)
    runs: list[bytes] = []
    if masks:
        runs = _all_run_lengths(annotations, images.sizes[rows], usable, training, file)
        usable &= [bool(run) for run in runs]
    if bad := int(single.sum() - usable.sum()):
        what = "box and mask" if masks else "box"
        print(f"note: {file.name}: {plural(bad, 'object')} left out, without a {what} of any area")
    return Objects(rows, labels, boxes, runs if masks else None).of(usable)


def _numbers(annotations: Records, key: str, ids: Sequence[int], what: str, file: Path) -> NDArray[np.int64]:
    """Where each annotation's image or category is among the ``ids``: (M,)."""
    number = {one: i for i, one in enumerate(ids)}
    found = np.array([number.get(one[key], -1) for one in annotations], np.int64)
    for i in np.flatnonzero(found < 0):
        name = annotations[i].get("id")
        raise UserError(f"{file}: annotation {name} is of the unknown {what} {annotations[i][key]}: mend it")
    return found


def _corners(boxes: NDArray[np.float64], sizes: NDArray[np.int64]) -> NDArray[np.float32]:
    """From (M, 4) corner, width, height to both corners, within images of (M, 2) width, height.

    A box that is not finite becomes one of no area.
    """
    boxes = np.where(np.isfinite(boxes).all(1, keepdims=True), boxes, 0.0)
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    return np.clip(corners, 0, np.tile(sizes, 2)).astype(np.float32)


def _all_run_lengths(
    annotations: Records, sizes: NDArray[np.int64], usable: NDArray[np.bool_], training: bool, file: Path
) -> list[bytes]:
    """Of each annotation; in training only of those usable, and what cannot be a mask is none.

    An evaluation needs all: pycocotools would end in an error, and only after the first epoch.
    """
    runs = [b""] * len(annotations)
    for i in np.flatnonzero(usable).tolist() if training else range(len(annotations)):
        runs[i] = _run_lengths(annotations[i].get("segmentation"), *sizes[i].tolist())
        if not runs[i] and not training:
            raise UserError(f"{file}: annotation {annotations[i].get('id')} has no mask: mend it")
    return runs


def _run_lengths(segmentation: Any, width: int, height: int) -> bytes:
    """A mask, given as polygons or run lengths, as compressed run lengths; none if it cannot be one."""
    try:
        if isinstance(segmentation, list):
            return rle_masks.merge(rle_masks.frPyObjects(segmentation, height, width))["counts"]
        counts = segmentation["counts"]
        if segmentation["size"] != [height, width]:
            return b""
        if isinstance(counts, list):  # pycocotools reads beyond the end of counts that don't add up
            whole = min(counts) >= 0 and sum(counts) == height * width
            return rle_masks.frPyObjects(segmentation, height, width)["counts"] if whole else b""
        rle_masks.decode({"size": [height, width], "counts": counts})  # raises an error if it is damaged
        return counts.encode()
    except Exception:  # pycocotools raises anything, Exception itself too
        return b""


def check_files(folder: Path, names: Sequence[str], file: Path) -> None:
    """Refuse a split whose images are not all there.

    A folder is listed once, which takes less than a look at each file.

    Raises:
        UserError: images are missing.
    """
    there: set[str] = set()
    for parent in sorted({name.rpartition("/")[0] for name in names}):
        try:
            there.update(f"{parent}/{entry.name}".lstrip("/") for entry in os.scandir(folder / parent))
        except OSError as error:
            raise UserError(
                f"the images of {file} should be in {folder / parent}: {error.strerror}; unpack them there"
            ) from None
    if missing := [name for name in names if name not in there]:
        raise UserError(
            f"{len(missing):,} of {plural(len(names), 'image')} of {file} are not in {folder}, the first: "
            f"{missing[0]}; unpack them there"
        )
