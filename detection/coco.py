"""COCO's images and objects, from the annotation files to batches on the device.

Sets of one's own have the same form: ``annotations/instances_NAME.json`` and the images in ``NAME/``.
Categories have any ids (COCO's 80 have 1 to 90); labels count them from 1 in the order of their ids, 0 is the
background.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import index
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as rle_masks
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from detection.annotations import (
    PREFIX,
    Images,
    Objects,
    check_files,
    coco_form,
    find_annotations,
    read_categories,
    read_images,
    read_objects,
)
from utils.data import Batches, Broken, DeviceLoader, ImageDataset, Sample
from utils.decoding import decode
from utils.distributed import Ranks
from utils.errors import UserError
from utils.randomness import permutation
from utils.sampling import EvalBatches, TrainBatches
from utils.splits import ImageSplit
from utils.text import plural

LEAST_IMAGE = 32  # pixels; images with a shorter side are not trained on
CHUNK = 16  # images of one shape in a row: batches of 1, 2, 4, 8 or 16 hold one shape


class Target(NamedTuple):
    """What an image shows; crowds are not among the objects."""

    image_id: int
    size: tuple[int, int]  # width, height in pixels
    boxes: NDArray[np.float32]  # (N, 4): x1, y1, x2, y2 in pixels, within the image
    labels: NDArray[np.int64]  # (N,), from 1
    masks: list[bytes] | None  # N, as COCO's compressed run lengths; None: not wanted


@dataclass(frozen=True, eq=False)
class CocoSamples(Sequence[tuple[str, Any]]):
    """Path and :class:`Target` of N images with M objects, in arrays, which data workers share.

    Args:
        folder: of the images.
        names: (N,), files in it.
        ids: (N,), int64.
        sizes: (N, 2), width and height in pixels.
        starts: (N + 1,), where the objects of each image begin.
        boxes: (M, 4), float32: x1, y1, x2, y2 in pixels.
        labels: (M,), int64.
        masks: compressed run lengths of all objects, one after the other; None: not wanted.
        cuts: (M + 1,), where those of each object begin.
    """

    folder: Path
    names: NDArray[np.str_]
    ids: NDArray[np.int64]
    sizes: NDArray[np.int64]
    starts: NDArray[np.int64]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    masks: bytes | None
    cuts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, at: Any) -> Any:
        i = range(len(self))[index(at)]
        begin, end = self.starts[i : i + 2]
        masks = None
        if self.masks is not None:
            cuts = self.cuts[begin : end + 1].tolist()
            masks = [self.masks[a:b] for a, b in pairwise(cuts)]
        width, height = self.sizes[i].tolist()
        objects = self.boxes[begin:end], self.labels[begin:end], masks
        return f"{self.folder}/{self.names[i]}", Target(int(self.ids[i]), (width, height), *objects)


class CocoSplit(NamedTuple):
    """The images of a split and what they show."""

    samples: CocoSamples
    classes: tuple[str, ...]  # names of the labels 1, 2, ...
    ids: tuple[int, ...]  # of their categories
    annotations: Path

    def __str__(self) -> str:
        objects = plural(len(self.samples.labels), "object")
        return f"{plural(len(self.samples), 'image')} with {objects} of {plural(len(self.ids), 'class')}"

    @property
    def label_of(self) -> dict[int, int]:
        """Labels by the ids of the categories."""
        return {category: label for label, category in enumerate(self.ids, 1)}

    @property
    def image_ids(self) -> list[int]:
        return self.samples.ids.tolist()


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
    with coco_form(file):
        data = json.loads(file.read_bytes())
        ids, classes = read_categories(data["categories"], file)
        if known and classes != tuple(known):
            raise UserError(_other_classes(file, known, classes))
        images = read_images(data["images"], file)
        objects = read_objects(data["annotations"], images, ids, masks, training, file)
    if training:
        wanted = np.bincount(objects.rows, minlength=len(images.ids)) > 0
        wanted &= (images.sizes >= LEAST_IMAGE).all(1)
        objects = objects.of(wanted[objects.rows])
        objects = objects._replace(rows=(np.cumsum(wanted) - 1)[objects.rows])
        images = images.of(wanted)
    if not len(images.ids):
        wanting = f" with objects, and with sides of {LEAST_IMAGE} pixels or more" if training else ""
        raise UserError(f"{file} has no images{wanting}: give another --data")
    folder = root / file.stem.removeprefix(PREFIX)
    check_files(folder, images.names.tolist(), file)
    return CocoSplit(_in_order(folder, images, objects), classes, ids, file)


def _in_order(folder: Path, images: Images, objects: Objects) -> CocoSamples:
    """The objects of an image side by side."""
    order = np.argsort(objects.rows, kind="stable")
    starts = np.searchsorted(objects.rows[order], np.arange(len(images.ids) + 1))
    runs = None if objects.masks is None else [objects.masks[i] for i in order]
    cuts = np.cumsum([0, *map(len, runs or ())])
    blob = None if runs is None else b"".join(runs)
    ids, names, sizes = images
    return CocoSamples(
        folder, names, ids, sizes, starts, objects.boxes[order], objects.labels[order], blob, cuts
    )


def _other_classes(file: Path, known: Sequence[str], classes: Sequence[str]) -> str:
    theirs, ours = (", ".join(sorted(set(a) - set(b))[:3]) for a, b in ((known, classes), (classes, known)))
    return (
        f"{file} has other categories, or in another order, than the training split or the checkpoint: "
        f"{theirs or 'none'} missing, {ours or 'none'} new; give the data of that run"
    )


class CocoDataset(ImageDataset):
    """Images (3, H, W) uint8 as they are, and dicts of what they show.

    A dict has ``boxes`` (N, 4) float32 (x1, y1, x2, y2 in pixels), ``labels`` (N,) int64, ``image_id`` ()
    int64, and ``masks`` (N, H, W) uint8 when wanted.
    """

    def read(self, path: str, label: Target) -> Image.Image:
        """The image; a size that the annotations don't know would shift the objects."""
        image = decode(path)
        if image.size != label.size:
            sizes = ("{} x {} pixels".format(*size) for size in (image.size, label.size))
            raise ValueError("it has {}, by its annotations {}".format(*sizes))
        return image

    def transformed(self, read: Image.Image, label: Target) -> tuple[Tensor, dict[str, Tensor]]:
        """Image and objects, by the transform flipped together."""
        width, height = label.size
        boxes = torch.tensor(label.boxes)
        target = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)),
            "labels": torch.tensor(label.labels),
            "image_id": torch.tensor(label.image_id),
        }
        if label.masks is not None:
            target["masks"] = tv_tensors.Mask(decode_masks(label.masks, width, height))
        transform: Any = self.transform
        image, target = transform(tv_tensors.Image(v2.functional.pil_to_tensor(read)), target)
        return image.as_subclass(Tensor), {key: value.as_subclass(Tensor) for key, value in target.items()}


def decode_masks(masks: Sequence[bytes], width: int, height: int) -> Tensor:
    """N masks of compressed run lengths as (N, H, W), uint8."""
    if not masks:
        return torch.zeros(0, height, width, dtype=torch.uint8)
    decoded = rle_masks.decode([{"size": [height, width], "counts": counts} for counts in masks])
    return torch.from_numpy(decoded).permute(2, 0, 1).contiguous()


class GroupedBatches(TrainBatches):
    """Batches of images of one shape, wide or not: less padding.

    The order of an epoch is that of chunks of ``CHUNK`` random images of one shape; what fills no chunk comes
    last. Like any order it depends on (seed, epoch) only.

    Args:
        wide: (N,) bool, of each image whether it is wider than high.
        others: as in :class:`TrainBatches`.
    """

    def __init__(self, wide: Tensor, batch: int, seed: int, *others: int) -> None:
        super().__init__(len(wide), batch, seed, *others)
        self.wide = wide

    def order(self) -> Tensor:
        order = super().order()
        shapes = [order[self.wide[order] == wide] for wide in (True, False)]
        whole = [len(shape) // CHUNK * CHUNK for shape in shapes]
        chunks = torch.cat([shape[:end].view(-1, CHUNK) for shape, end in zip(shapes, whole, strict=True)])
        chunks = chunks[permutation(len(chunks), self.seed, "chunks", self.epoch)]
        return torch.cat([chunks.flatten(), *(shape[end:] for shape, end in zip(shapes, whole, strict=True))])


class CocoBatch(NamedTuple):
    """Samples of one step, as a worker hands them over; images differ in size."""

    images: list[Tensor]  # (3, H, W), uint8
    labels: list[dict[str, Tensor]]
    broken: tuple[Broken, ...]


def collect(samples: list[Sample]) -> Any:
    """A :class:`CocoBatch` of the samples that could be read, possibly none."""
    whole: list[Any] = [sample for sample in samples if sample.image is not None]
    broken = tuple(file for sample in samples for file in sample.broken)
    return CocoBatch([sample.image for sample in whole], [sample.label for sample in whole], broken)


class CocoLoader(DeviceLoader[Batches]):
    """Batches on the device: a list of images (3, H, W), float32 from 0 to 1, and one of their dicts."""

    without = "counted as images without detections"
    remedy = ""

    def _to_device(self, batch: Any) -> tuple[Any, Any]:
        images = [image.to(self.device, non_blocking=True).float().div_(255) for image in batch.images]
        targets = [
            {key: value.to(self.device, non_blocking=True) for key, value in target.items()}
            for target in batch.labels
        ]
        return images, targets


def coco_training_loader(
    split: CocoSplit, args: argparse.Namespace, seed: int, ranks: Ranks, parts: int = 1
) -> CocoLoader[TrainBatches]:
    """This process's batches of ``--train-batch``, ``parts`` of them for a step, flipped with ``--hflip``.

    Raises:
        UserError: fewer images than one for each process and part.
    """
    samples = split.samples
    dataset = CocoDataset(_plain(split), v2.RandomHorizontalFlip(args.hflip), seed, substitute=True)
    wide = torch.from_numpy(samples.sizes[:, 0] > samples.sizes[:, 1])
    batches = GroupedBatches(wide, args.train_batch, seed, parts, ranks.rank, ranks.size)
    return CocoLoader(dataset, batches, collect, args.workers, ranks.device, max_bad=args.max_bad)


def coco_validation_loader(
    split: CocoSplit, args: argparse.Namespace, seed: int, ranks: Ranks
) -> CocoLoader[EvalBatches]:
    """This process's share of the images, in batches of ``--test-batch``."""
    dataset = CocoDataset(_plain(split), v2.Identity(), seed)
    batches = EvalBatches(len(dataset), args.test_batch, ranks.rank, ranks.size)
    return CocoLoader(dataset, batches, collect, args.workers, ranks.device, max_bad=args.max_bad)


def _plain(split: CocoSplit) -> ImageSplit:
    return ImageSplit(split.samples, split.classes)
