"""From an image folder to normalised batches on the device.

Samples stay uint8 until they are on the device; there they are cast and normalised.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset
from torchvision.transforms import v2
from tqdm import tqdm

from utils.digits import write_digits
from utils.errors import UserError
from utils.randomness import derive_seed, seeded_cpu
from utils.sampling import EvalBatches, SampleKey, TrainBatches

TRAIN_NAMES = ("train",)
VAL_NAMES = ("val", "valf", "valid", "validation")
MEAN = (0.485, 0.456, 0.406)  # of ImageNet's training images, RGB in [0, 1]
STD = (0.229, 0.224, 0.225)


class Broken(NamedTuple):
    """A file that could not be decoded, in place of its sample."""

    path: str
    reason: str


class Batch(NamedTuple):
    """Samples of one step, as a worker hands them over."""

    images: Tensor  # (B, 3, H, W), uint8
    labels: Tensor  # (B,), int64
    broken: tuple[Broken, ...]  # files that could not be decoded and are missing from the batch


class ImageSplit(NamedTuple):
    """The files of one split and their labels."""

    samples: Sequence[tuple[str, int]]
    classes: tuple[str, ...]


def data_root(name: str) -> Path:
    """The folder that ``--data`` means: ``digits`` is the embedded data, written to ``data/digits`` once."""
    return write_digits(Path("data") / "digits") if name == "digits" else Path(name)


def find_split(root: Path, names: Sequence[str]) -> Path:
    """The first existing split folder below ``root``.

    Raises:
        UserError: there is none.
    """
    if not root.is_dir():
        raise UserError(
            f"--data {root}: no such folder; give an ImageNet folder (train/ and val/), or 'digits'"
        )
    for name in names:
        if (root / name).is_dir():
            return root / name
    found = ", ".join(sorted(path.name + "/" for path in root.iterdir() if path.is_dir())[:5]) or "no folders"
    looked_for = " or ".join(f"{name}/" for name in names)
    raise UserError(f"--data {root}: looked for {looked_for} in it and found {found}")


def class_names(split: Path) -> tuple[str, ...]:
    """Sorted names of a split's class folders.

    Raises:
        UserError: there are none.
    """
    names = tuple(sorted(path.name for path in split.iterdir() if path.is_dir()))
    if not names:
        raise UserError(f"{split} has no class folders; put each class's images in a folder of its own")
    return names


def read_split(split: Path, classes: Sequence[str]) -> ImageSplit:
    """Index a split by the class order of ``classes`` (the training folder's, so labels can't shift).

    Raises:
        UserError: a class folder is empty, or is not among ``classes``.
    """
    present = class_names(split)
    unknown = [name for name in present if name not in set(classes)]
    if unknown:
        raise UserError(f"{split} has class folders that the training split lacks: {', '.join(unknown[:5])}")
    label = {name: index for index, name in enumerate(classes) if name in set(present)}
    samples = make_dataset(str(split), label, extensions=IMG_EXTENSIONS, allow_empty=True)
    empty = sorted(set(label.values()) - {target for _, target in samples})
    if empty:
        raise UserError(
            f"class folder {split / classes[empty[0]]} has no images ({' '.join(IMG_EXTENSIONS)}): "
            "add some or remove the folder"
        )
    return ImageSplit(samples, tuple(classes))


class Splits(NamedTuple):
    """What a command reads: no training split when it only evaluates."""

    train: ImageSplit | None
    val: ImageSplit


def open_data(name: str, evaluate: bool) -> Splits:
    """Index the splits of ``--data``.

    Classes are those of the training folder; evaluation goes without one.

    Raises:
        UserError: a split is missing or unusable.
    """
    root = data_root(name)
    val = find_split(root, VAL_NAMES)
    if evaluate and not (root / TRAIN_NAMES[0]).is_dir():
        return Splits(None, read_split(val, class_names(val)))
    train = find_split(root, TRAIN_NAMES)
    classes = class_names(train)
    return Splits(None if evaluate else read_split(train, classes), read_split(val, classes))


def decode(path: str) -> Image.Image:
    """Read an image file as RGB; grey, CMYK, palette, alpha and 16-bit images are converted."""
    with Image.open(path) as image:
        if image.mode.startswith("I"):  # 16 or 32 bits per pixel: PIL would clip instead of scaling
            return image.convert("I").point(lambda value: value * (1 / 257)).convert("L").convert("RGB")
        if image.mode == "P" and "transparency" in image.info:
            return image.convert("RGBA").convert("RGB")
        return image.convert("RGB")


def train_transform(size: int, scale: tuple[float, float], flip: float) -> v2.Transform:
    """Random resized crop and horizontal flip; PIL image to (3, H, W) uint8.

    Args:
        size: side of the output in pixels.
        scale: least and largest share of the image's area that a crop covers.
        flip: probability of the flip.
    """
    crop = v2.RandomResizedCrop(size, scale=scale, antialias=True)
    return v2.Compose([crop, v2.RandomHorizontalFlip(flip), v2.PILToTensor()])


def val_transform(size: int) -> v2.Transform:
    """Shorter side to 256/224 of ``size``, then the centre crop; PIL image to (3, H, W) uint8."""
    return v2.Compose(
        [v2.Resize(round(size * 256 / 224), antialias=True), v2.CenterCrop(size), v2.PILToTensor()]
    )


class ImageDataset(Dataset[Any]):
    """Decoded and transformed samples, each a pure function of (seed, epoch, index).

    A file that cannot be decoded gives :class:`Broken`, never an exception: one bad file must not end a run
    of days.

    Args:
        split: files and labels.
        transform: PIL RGB image to (3, H, W) uint8; may draw from torch's CPU generator.
        seed: the run's seed.
    """

    def __init__(self, split: ImageSplit, transform: Callable[[Image.Image], Tensor], seed: int) -> None:
        self.split = split
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.split.samples)

    def __getitem__(self, key: SampleKey) -> tuple[Tensor, int] | Broken:
        path, label = self.split.samples[key.sample]
        try:
            image = decode(path)
        except Exception as error:  # decoders raise anything: OSError, SyntaxError, struct.error, ...
            return Broken(path, f"{type(error).__name__}: {error}")
        with seeded_cpu(derive_seed(self.seed, "augment", key.epoch, key.sample)):
            return self.transform(image), label


def collate(samples: list[tuple[Tensor, int] | Broken], size: int) -> Batch:
    """Stack the samples that could be read, possibly none; ``size`` is the image side in pixels."""
    good = [sample for sample in samples if not isinstance(sample, Broken)]
    broken = tuple(sample for sample in samples if isinstance(sample, Broken))
    images = (
        torch.stack([image for image, _ in good])
        if good
        else torch.empty(0, 3, size, size, dtype=torch.uint8)
    )
    return Batch(images, torch.tensor([label for _, label in good], dtype=torch.int64), broken)


class DeviceLoader:
    """Batches on the device: images (B, 3, H, W) normalised float32, labels (B,) int64.

    The content does not depend on ``workers``. Files that cannot be decoded are left out of their batch (a
    batch of none is left out altogether); each is named once, and every pass ends with their count.

    Args:
        dataset: the samples.
        batches: which samples form the batches of a pass.
        size: side of the images in pixels.
        workers: processes that decode.
        device: where the batches go.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        batches: TrainBatches | EvalBatches,
        size: int,
        workers: int,
        device: torch.device,
    ) -> None:
        self.batches = batches
        self.device = device
        self.named: set[str] = set()
        self.loader = DataLoader(
            dataset,
            batch_sampler=batches,
            num_workers=workers,
            collate_fn=partial(collate, size=size),
            pin_memory=device.type == "cuda",
            persistent_workers=workers > 0,
        )

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass."""
        self.batches.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        mean = 255 * torch.tensor(MEAN, device=self.device).view(1, 3, 1, 1)
        std = 255 * torch.tensor(STD, device=self.device).view(1, 3, 1, 1)
        read, skipped = 0, []
        for images, labels, broken in self.loader:
            read += len(labels)
            skipped += broken
            if len(labels):
                images = images.to(self.device, non_blocking=True).float().sub_(mean).div_(std)
                yield images, labels.to(self.device, non_blocking=True)
        if skipped:
            self._report(read, skipped)

    def _report(self, read: int, skipped: list[Broken]) -> None:
        if not read:
            first = skipped[0]
            raise UserError(f"none of {len(skipped)} images could be decoded; {first.path}: {first.reason}")
        for path, reason in skipped:
            if path not in self.named:
                tqdm.write(f"note: cannot decode {path} ({reason})")
        self.named.update(path for path, _ in skipped)
        tqdm.write(
            f"note: {len(skipped)} of {read + len(skipped)} images could not be decoded and were skipped"
        )
