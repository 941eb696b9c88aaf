"""From an image folder to normalised batches on the device.

Samples stay uint8 until they are on the device; there they are cast and normalised.
"""

import argparse
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Generic, NamedTuple, TypeVar

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset
from torchvision.transforms import v2
from tqdm import tqdm

from utils.digits import write_digits
from utils.distributed import Ranks
from utils.errors import UserError
from utils.randomness import derive_seed, seeded_cpu
from utils.sampling import EvalBatches, SampleKey, TrainBatches
from utils.signals import ignore_signals
from utils.text import plural

TRAIN_NAMES = ("train",)
VAL_NAMES = ("val", "valf", "valid", "validation")
SUBSTITUTES = 100  # files drawn in place of one that cannot be decoded
MEAN = (0.485, 0.456, 0.406)  # of ImageNet's training images, RGB in [0, 1]
STD = (0.229, 0.224, 0.225)
# arXiv 1909.13719, 2103.10158, 1805.09501
AUTO_AUGMENT = MappingProxyType(
    {"ra": v2.RandAugment, "ta": v2.TrivialAugmentWide, "imagenet": v2.AutoAugment}
)


class Broken(NamedTuple):
    """A file that could not be decoded, in place of its sample."""

    path: str
    reason: str


class Sample(NamedTuple):
    """One image, and the files that could not be decoded in its place."""

    image: Tensor | None  # (3, H, W), uint8
    label: int
    broken: tuple[Broken, ...]


class Batch(NamedTuple):
    """Samples of one step, as a worker hands them over."""

    images: Tensor  # (B, 3, H, W), uint8
    labels: Tensor  # (B,), int64
    broken: tuple[Broken, ...]


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
        what = "not a folder" if root.exists() else "no such folder"
        raise UserError(f"--data {root}: {what}; give an ImageNet folder (train/ and val/), or 'digits'")
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
        raise UserError(
            f"{split} has class folders that the training split lacks: {', '.join(unknown[:5])}; "
            "both need the same names"
        )
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

    def __str__(self) -> str:
        training = plural(len(self.train.samples), "training image") + ", " if self.train else ""
        digest = zlib.crc32("/".join(self.val.classes).encode("utf-8", "surrogateescape"))
        of_classes = f"{plural(len(self.val.classes), 'class')} (names {digest:08x})"
        return f"{training}{plural(len(self.val.samples), 'validation image')}, {of_classes}"


def open_data(name: str, evaluate: bool, known: Sequence[str] = ()) -> Splits:
    """Index the splits of ``--data``.

    Classes are those of the training folder; evaluation goes without one.

    Args:
        name: the folder, or ``digits``.
        evaluate: whether the validation split is enough.
        known: class names of the resumed checkpoint, in order; none if it does not say.

    Raises:
        UserError: a split is missing or unusable, or its classes are not the known ones.
    """
    try:
        return _open_splits(data_root(name), evaluate, known)
    except OSError as error:
        raise UserError(f"--data {name}: {error.strerror} ({error.filename})") from None


def _open_splits(root: Path, evaluate: bool, known: Sequence[str]) -> Splits:
    val = find_split(root, VAL_NAMES)
    if evaluate and not (root / TRAIN_NAMES[0]).is_dir():
        train, classes = None, class_names(val)
        if set(classes) < set(known):  # some classes have no images here; labels count all
            classes = tuple(known)
    else:
        train = find_split(root, TRAIN_NAMES)
        classes = class_names(train)
    if known and classes != tuple(known):
        theirs, ours = (
            ", ".join(sorted(set(a) - set(b))[:3]) for a, b in ((known, classes), (classes, known))
        )
        raise UserError(
            f"--data {root} has other classes than the checkpoint was trained on: "
            f"{theirs or 'none'} missing, {ours or 'none'} new; give the data of that run"
        )
    return Splits(None if evaluate or train is None else read_split(train, classes), read_split(val, classes))


def decode(path: str) -> Image.Image:
    """Read an image file as RGB; grey, CMYK, palette, alpha and 16-bit images are converted."""
    with Image.open(path) as image:
        if image.mode.startswith("I"):  # 16 or 32 bits per pixel: PIL would clip instead of scaling
            return image.convert("I").point(lambda value: value * (1 / 257)).convert("L").convert("RGB")
        if image.mode == "P" and "transparency" in image.info:
            return image.convert("RGBA").convert("RGB")
        return image.convert("RGB")


def train_transform(args: argparse.Namespace, scale: Sequence[float]) -> v2.Transform:
    """Random resized crop, horizontal flip and more on demand; PIL image to (3, H, W) uint8.

    Args:
        args: ``img_size`` in pixels, ``hflip``, ``auto_augment`` (a name of ``AUTO_AUGMENT``, applied to the
            crop) and ``random_erase`` (Zhong et al., arXiv 1708.04896).
        scale: least and largest share of the image's area that a crop covers.
    """
    crop = v2.RandomResizedCrop(args.img_size, scale=tuple(scale), antialias=True)
    steps = [crop, v2.RandomHorizontalFlip(args.hflip)]
    if args.auto_augment:
        fill = [round(255 * value) for value in MEAN]
        augment = AUTO_AUGMENT[args.auto_augment]
        steps.append(augment(interpolation=v2.InterpolationMode.BILINEAR, fill=fill))
    steps.append(v2.PILToTensor())
    if args.random_erase:
        steps.append(v2.RandomErasing(args.random_erase, value=[255 * value for value in MEAN]))
    return v2.Compose(steps)


def val_transform(size: int) -> v2.Transform:
    """Shorter side to 256/224 of ``size``, then the centre crop; PIL image to (3, H, W) uint8."""
    return v2.Compose(
        [v2.Resize(round(size * 256 / 224), antialias=True), v2.CenterCrop(size), v2.PILToTensor()]
    )


class ImageDataset(Dataset[Sample]):
    """Decoded and transformed samples, each a pure function of (seed, epoch, index).

    A file that cannot be decoded is no exception: one bad file must not end a run of days. In training
    another file, drawn at random, takes its place, so that every process has as many images in every step; in
    evaluation its sample stays empty.

    Args:
        split: files and labels.
        transform: PIL RGB image to (3, H, W) uint8; may draw from torch's CPU generator.
        seed: the run's seed.
        substitute: whether another file takes the place of one that cannot be decoded.
    """

    def __init__(
        self,
        split: ImageSplit,
        transform: Callable[[Image.Image], Tensor],
        seed: int,
        substitute: bool = False,
    ) -> None:
        self.split = split
        self.transform = transform
        self.seed = seed
        self.tries = SUBSTITUTES if substitute else 1

    def __len__(self) -> int:
        return len(self.split.samples)

    def __getitem__(self, key: SampleKey) -> Sample:
        broken: list[Broken] = []
        for attempt in range(self.tries):
            drawn = derive_seed(self.seed, "substitute", key.epoch, key.sample, attempt) % len(self)
            path, label = self.split.samples[drawn if attempt else key.sample]
            try:
                image = decode(path)
            except Exception as error:  # decoders raise anything: OSError, SyntaxError, struct.error, ...
                broken.append(Broken(path, f"{type(error).__name__}: {error}"))
                continue
            with seeded_cpu(derive_seed(self.seed, "augment", key.epoch, key.sample)):
                return Sample(self.transform(image), label, tuple(broken))
        return Sample(None, -1, tuple(broken))


def collate(samples: list[Sample], size: int) -> Batch:
    """Stack the samples that could be read, possibly none; ``size`` is the image side in pixels."""
    images = [sample.image for sample in samples if sample.image is not None]
    labels = [sample.label for sample in samples if sample.image is not None]
    broken = tuple(file for sample in samples for file in sample.broken)
    stacked = torch.stack(images) if images else torch.empty(0, 3, size, size, dtype=torch.uint8)
    return Batch(stacked, torch.tensor(labels, dtype=torch.int64), broken)


Batches = TypeVar("Batches", TrainBatches, EvalBatches)


class DeviceLoader(Generic[Batches]):
    """Batches on the device: images (B, 3, H, W) normalised float32, labels (B,) int64.

    The content does not depend on ``workers``. In evaluation a batch may be empty.

    Args:
        dataset: the samples.
        batches: which samples form the batches of a pass.
        size: side of the images in pixels.
        workers: processes that decode.
        device: where the batches go.
        layout: memory format of the images.
        max_bad: share of the files that may be undecodable.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        batches: Batches,
        size: int,
        workers: int,
        device: torch.device,
        layout: torch.memory_format = torch.contiguous_format,
        max_bad: float = 1.0,
    ) -> None:
        self.dataset = dataset
        self.batches: Batches = batches
        self.device = device
        self.layout = layout
        self.most_bad = max_bad * len(dataset)
        self.broken: set[Broken] = set()
        self.read = 0
        self.named: set[str] = set()
        self.loader = DataLoader(
            dataset,
            batch_sampler=batches,
            num_workers=workers,
            collate_fn=partial(collate, size=size),
            pin_memory=device.type == "cuda",
            persistent_workers=workers > 0,
            worker_init_fn=ignore_signals,
        )

    def __len__(self) -> int:
        return len(self.batches)

    def __str__(self) -> str:
        return str(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        mean = 255 * torch.tensor(MEAN, device=self.device).view(1, 3, 1, 1)
        std = 255 * torch.tensor(STD, device=self.device).view(1, 3, 1, 1)
        self.read, self.broken = 0, set()
        for images, labels, broken in self.loader:
            self.read += len(labels)
            self.broken.update(broken)
            short = isinstance(self.batches, TrainBatches) and len(labels) < self.batches.batch
            if short or len(self.broken) > self.most_bad:
                raise UserError(self._too_many(self.broken))
            images = images.to(self.device, non_blocking=True)
            images = images.to(torch.float32, memory_format=self.layout).sub_(mean).div_(std)
            yield images, labels.to(self.device, non_blocking=True)

    def _too_many(self, broken: Collection[Broken]) -> str:
        first = min(broken)
        return (
            f"{len(broken)} of {plural(len(self.dataset), 'image')} cannot be decoded, more than --max-bad "
            f"allows; the first: {first.path} ({first.reason}); scripts/check_data.py lists all"
        )

    def files(self: "DeviceLoader[TrainBatches]", step: int) -> list[str]:
        """The files of this process in a step; those that were replaced are still named."""
        return [self.dataset.split.samples[sample][0] for sample in self.batches.of_step(step)]

    def report(self, ranks: Ranks) -> None:
        """Name the files that could not be decoded in the last pass, each once a run, and count them.

        Raises:
            UserError: they are more than ``max_bad`` of all, or all.
        """
        passes = ranks.gather((self.read, self.broken))
        broken = set().union(*(files for _, files in passes))
        if not broken:
            return
        if len(broken) > self.most_bad or not any(read for read, _ in passes):
            ranks.refuse(self._too_many(broken))
        for path, reason in sorted(broken):
            if path not in self.named:
                tqdm.write(f"note: cannot decode {path} ({reason})")
        self.named.update(path for path, _ in broken)
        instead = "replaced by others" if isinstance(self.batches, TrainBatches) else "left out"
        tqdm.write(f"note: {plural(len(broken), 'image')} could not be decoded: {instead}")


def training_loader(
    split: ImageSplit,
    transform: v2.Transform,
    args: argparse.Namespace,
    seed: int,
    ranks: Ranks,
    layout: torch.memory_format = torch.contiguous_format,
    parts: int = 1,
) -> DeviceLoader[TrainBatches]:
    """This process's batches of ``--train-batch``, ``parts`` of them for a step.

    Raises:
        UserError: fewer images than one for each process and part.
    """
    dataset = ImageDataset(split, transform, seed, substitute=True)
    batches = TrainBatches(len(dataset), args.train_batch, seed, parts, ranks.rank, ranks.size)
    return DeviceLoader(dataset, batches, args.img_size, args.workers, ranks.device, layout, args.max_bad)


def validation_loader(
    split: ImageSplit,
    args: argparse.Namespace,
    seed: int,
    ranks: Ranks,
    layout: torch.memory_format = torch.contiguous_format,
) -> DeviceLoader[EvalBatches]:
    """This process's share of the images, in batches of ``--test-batch``."""
    dataset = ImageDataset(split, val_transform(args.img_size), seed)
    batches = EvalBatches(len(dataset), args.test_batch, ranks.rank, ranks.size)
    return DeviceLoader(dataset, batches, args.img_size, args.workers, ranks.device, layout, args.max_bad)
