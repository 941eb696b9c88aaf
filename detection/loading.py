"""From COCO's files to batches on the device: lists of images of different sizes, which detectors pad."""

from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from detection.coco import CocoSplit, Target, decode_masks
from utils.common.distributed import Ranks
from utils.common.randomness import permutation
from utils.data.decoding import decode
from utils.data.loading import Batch, Batches, DeviceLoader, ImageDataset, Reading, Sample, shared
from utils.data.sampling import EvalBatches, TrainBatches
from utils.data.splits import ImageSplit

CHUNK = 16  # images of one orientation in a row: batches of 1, 2, 4, 8 or 16 hold only one


class CocoDataset(ImageDataset):
    """Images (3, H, W) uint8 as they are, and dicts of what they show.

    A dict has ``boxes`` (N, 4) float32 (x1, y1, x2, y2 in pixels), ``labels`` (N,) int64, ``image_id`` ()
    int64, and ``masks`` (N, H, W) uint8 when wanted.
    """

    def read(self, path: str, label: Target) -> Image.Image:
        """The image; a size that the annotations don't know would shift the objects."""
        image = decode(path)
        if image.size != label.size:
            text = "it has {} x {} pixels, by its annotations {} x {}"
            raise ValueError(text.format(*image.size, *label.size))
        return image

    def transformed(self, read: Image.Image, label: Target) -> tuple[Tensor, dict[str, Tensor]]:
        """Image and objects, by the transform flipped together."""
        size = label.size[::-1]
        target = {
            "boxes": tv_tensors.BoundingBoxes(torch.tensor(label.boxes), format="XYXY", canvas_size=size),
            "labels": torch.tensor(label.labels),
            "image_id": torch.tensor(label.image_id),
        }
        if label.masks is not None:
            target["masks"] = tv_tensors.Mask(decode_masks(label.masks, *label.size))
        transform: Any = self.transform
        image, target = transform(tv_tensors.Image(v2.functional.pil_to_tensor(read)), target)
        return image.as_subclass(Tensor), {key: value.as_subclass(Tensor) for key, value in target.items()}


class GroupedBatches(TrainBatches):
    """Training batches of images of one orientation, wide or not, which need less padding.

    An epoch is a random order of chunks of ``CHUNK`` random images of one orientation; incomplete chunks come
    last. The order depends on (seed, epoch) only.

    Args:
        wide: (N,) bool, whether each image is wider than high.
        others: as in :class:`TrainBatches`.
    """

    def __init__(self, wide: Tensor, batch: int, seed: int, *others: int) -> None:
        super().__init__(len(wide), batch, seed, *others)
        self.wide = wide

    def order(self) -> Tensor:
        order = super().order()
        orientations = (order[self.wide[order] == wide] for wide in (True, False))
        chunks = [chunk for images in orientations for chunk in images.split(CHUNK)]
        full = [chunk for chunk in chunks if len(chunk) == CHUNK]
        shuffled = permutation(len(full), self.seed, "chunks", self.epoch)
        return torch.cat([*(full[i] for i in shuffled), *(chunk for chunk in chunks if len(chunk) < CHUNK)])


def collect(samples: list[Sample]) -> Batch:
    """Those that could be read, possibly none, in lists: images (3, H, W) differ in size."""
    whole: Any = [sample for sample in samples if sample.image is not None]
    images: Any = [shared(sample.image) for sample in whole]
    labels: Any = [{key: shared(value) for key, value in sample.label.items()} for sample in whole]
    return Batch(images, labels, tuple(file for sample in samples for file in sample.broken))


class RaggedLoader(DeviceLoader[Batches]):
    """Batches on the device: a list of images (3, H, W), float32 from 0 to 1, and one of their dicts."""

    without = "counted as images without detections"
    remedy = ""

    def _to_device(self, batch: Any) -> tuple[Any, Any]:
        images = [image.to(self.device, non_blocking=True).float().div_(255) for image in batch.images]
        targets = [{k: v.to(self.device, non_blocking=True) for k, v in one.items()} for one in batch.labels]
        return images, targets


def coco_training_loader(
    split: CocoSplit, hflip: float, batch: int, seed: int, reading: Reading, ranks: Ranks, parts: int = 1
) -> RaggedLoader[TrainBatches]:
    """Return this process's training batches; arguments as of ``utils.data.loading.training_loader``.

    Args:
        split: images and what they show.
        hflip: probability of a horizontal flip.

    Raises:
        UserError: fewer images than one for each process and part.
    """
    dataset = CocoDataset(ImageSplit(*split[:2]), v2.RandomHorizontalFlip(hflip), seed, substitute=True)
    wide = torch.tensor([target.size[0] > target.size[1] for _, target in split.samples])
    batches = GroupedBatches(wide, batch, seed, parts, ranks.rank, ranks.size)
    return RaggedLoader(dataset, batches, collect, reading, ranks.device)


def coco_validation_loader(
    split: CocoSplit, batch: int, reading: Reading, ranks: Ranks
) -> RaggedLoader[EvalBatches]:
    """Return this process's share of the images in batches; arguments as of the training loader."""
    dataset = CocoDataset(ImageSplit(*split[:2]), v2.Identity(), 0)
    batches = EvalBatches(len(dataset), batch, ranks.rank, ranks.size)
    return RaggedLoader(dataset, batches, collect, reading, ranks.device)
