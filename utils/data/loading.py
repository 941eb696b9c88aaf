"""From the files of a split to normalised batches on the device.

Samples stay uint8 until they are on the device; there they are cast and normalised.
"""

import atexit
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.util import Finalize, get_temp_dir
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info
from tqdm import tqdm

from utils.common.distributed import Ranks
from utils.common.errors import SHARED_MEMORY, UserError
from utils.common.randomness import derive_seed, seeded_cpu
from utils.common.signals import end_workers, ignore_signals
from utils.common.text import plural
from utils.data.decoding import read_image
from utils.data.sampling import EvalBatches, SampleKey, TrainBatches
from utils.data.splits import ImageSplit
from utils.data.transforms import IMAGENET, Scaling, TrainTransform, Transform, ValTransform

_WORKER = 2**16  # bytes of shared memory for the locks of a data worker
SUBSTITUTES = 100  # files drawn in place of one that cannot be decoded


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


@dataclass(eq=False)
class ImageDataset(Dataset[Sample]):
    """Decoded and transformed samples, each a pure function of (seed, epoch, index).

    A file that cannot be decoded is no exception: one bad file must not end a run of days. In training
    another file, drawn at random, takes its place, so that every process has as many images in every step; in
    evaluation its sample stays empty.

    Args:
        split: files and labels.
        transform: to (3, S, S) uint8; may draw from torch's CPU generator.
        seed: the run's seed.
        substitute: whether another file takes the place of one that cannot be decoded.
        decoder: ``pil``, ``torchvision`` or ``simplejpeg``.
        upright: turn images as their EXIF orientation says.
    """

    split: ImageSplit
    transform: Transform
    seed: int
    substitute: bool = False
    decoder: str = "pil"
    upright: bool = False

    def __len__(self) -> int:
        return len(self.split.samples)

    def __getitem__(self, key: SampleKey) -> Sample:
        broken: list[Broken] = []
        for attempt in range(SUBSTITUTES if self.substitute else 1):
            other = derive_seed(self.seed, "substitute", key.epoch, key.sample, attempt) % len(self)
            path, label = self.split.samples[other if attempt else key.sample]
            with seeded_cpu(derive_seed(self.seed, "augment", key.epoch, key.sample)):
                try:
                    read = self.read(path, label)
                except Exception as error:  # decoders raise anything: OSError, SyntaxError, struct.error, ...
                    broken.append(Broken(path, f"{type(error).__name__}: {error}"))
                    continue
                return Sample(*self.transformed(read, label), tuple(broken))
        return Sample(None, -1, tuple(broken))

    def read(self, path: str, label: Any) -> Any:
        """Read a file; raise an error if that fails, or if it cannot be what ``label`` describes."""
        return read_image(path, self.decoder, self.transform.box, self.upright)

    def transformed(self, read: Any, label: Any) -> tuple[Any, Any]:
        """Make what was read and the file's label into the image and label to learn from."""
        return self.transform(*read), label


class NumberedDataset(ImageDataset):
    """The same samples, each with its number in the split in place of its label."""

    def __getitem__(self, key: SampleKey) -> Sample:
        return super().__getitem__(key)._replace(label=key.sample)


def stack(samples: list[Sample], size: int) -> Batch:
    """Stack the samples that could be read, possibly none; ``size`` is the side of an image in pixels.

    The images lie in memory as decoders write them, (B, S, S, 3). In a data worker torch stacks them in
    shared memory, so that each is copied once.
    """
    images = [sample.image.permute(1, 2, 0) for sample in samples if sample.image is not None]
    labels = [sample.label for sample in samples if sample.image is not None]
    broken = tuple(file for sample in samples for file in sample.broken)
    stacked = default_collate(images) if images else torch.empty(0, size, size, 3, dtype=torch.uint8)
    return Batch(stacked.permute(0, 3, 1, 2), shared(torch.tensor(labels, dtype=torch.int64)), broken)


def shared(tensor: Tensor) -> Tensor:
    """Move a tensor to shared memory in a data worker; return it as it is elsewhere.

    The queue to the main process would do it in a thread, whose errors nobody hears: where the memory is full
    the main process would wait for ever.
    """
    return tensor.share_memory_() if get_worker_info() is not None else tensor


def check_shared_memory(workers: int) -> None:
    """Check that there is shared memory for what data workers need to begin.

    Raises:
        UserError: there is not.
    """
    try:
        room = os.statvfs("/dev/shm")
    except OSError:  # another system
        return
    if room.f_blocks and room.f_bavail * room.f_frsize < workers * _WORKER:  # no blocks: no limit
        raise UserError(SHARED_MEMORY)


def _begin_worker(_: int) -> None:
    ignore_signals()
    Finalize(None, _remove_left_behind, (os.getppid(), get_temp_dir()), exitpriority=-200)


def _remove_left_behind(parent: int, folder: str) -> None:
    """Remove the folder of a process that was killed; its last data worker to end finds it empty."""
    if os.getppid() != parent:
        with suppress(OSError):
            Path(folder).rmdir()


Batches = TypeVar("Batches", TrainBatches, EvalBatches)


@dataclass(frozen=True)
class Reading:
    """How images are read; none of it changes what is learned.

    Args:
        workers: processes that decode.
        max_bad: share of the files that may be undecodable.
        decoder: ``pil``, ``torchvision`` or ``simplejpeg``.
        layout: memory format of the batches.
    """

    workers: int = 0
    max_bad: float = 1.0
    decoder: str = "pil"
    layout: torch.memory_format = torch.contiguous_format


@dataclass(eq=False)
class DeviceLoader(Generic[Batches]):
    """Batches on the device: images (B, 3, H, W) normalised float32, labels (B,) int64.

    The content does not depend on ``workers``. In evaluation a batch may be empty.

    Args:
        dataset: the samples.
        batches: which samples form the batches of a pass.
        collate: makes a batch of samples.
        reading: how the files are read.
        device: where the batches go.
        scaling: of the pixels.

    Raises:
        UserError: the workers find no shared memory to begin with.
    """

    without = "left out"  # what an evaluation does with undecodable files
    remedy = "; scripts/check_data.py lists all"

    dataset: ImageDataset
    batches: Batches
    collate: Callable[[list[Sample]], Batch]
    reading: Reading
    device: torch.device
    scaling: Scaling = IMAGENET

    def __post_init__(self) -> None:
        self.mean, self.std = self.scaling.tensors(self.device).mul_(255).unsqueeze(1)
        self.most_bad = self.reading.max_bad * len(self.dataset)
        self.read, self.broken, self.named = 0, set[Broken](), set[str]()
        check_shared_memory(self.reading.workers)
        atexit.register(end_workers)
        if self.reading.workers:
            get_temp_dir()  # makes one that the workers share: one that is killed leaves none of its own
        self.loader: DataLoader[Any] = DataLoader(
            self.dataset,
            batch_sampler=self.batches,
            num_workers=self.reading.workers,
            collate_fn=self.collate,
            pin_memory=self.device.type == "cuda",
            persistent_workers=self.reading.workers > 0,
            worker_init_fn=_begin_worker,
        )

    def __len__(self) -> int:
        return len(self.batches)

    def __str__(self) -> str:
        return str(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return map(self._to_device, self._checked())

    def _checked(self) -> Iterator[Batch]:
        """Yield the batches of the workers, and count the files that could not be decoded."""
        for batch in self.loader:
            self.read += len(batch.labels)
            self.broken.update(batch.broken)
            short = isinstance(self.batches, TrainBatches) and len(batch.labels) < self.batches.batch
            if short or len(self.broken) > self.most_bad:
                raise UserError(self._too_many(self.broken))
            yield batch

    def _to_device(self, batch: Batch) -> tuple[Tensor, Tensor]:
        images = batch.images.to(self.device, non_blocking=True)
        images = images.to(torch.float32, memory_format=self.reading.layout).sub_(self.mean).div_(self.std)
        return images, batch.labels.to(self.device, non_blocking=True)

    def _too_many(self, broken: Collection[Broken]) -> str:
        first = min(broken)
        return (
            f"{len(broken)} of {plural(len(self.dataset), 'image')} cannot be decoded, more than --max-bad "
            f"allows; the first: {first.path} ({first.reason}){self.remedy}"
        )

    def files(self: "DeviceLoader[TrainBatches]", step: int) -> list[str]:
        """Return the files of this process in a step; those that were replaced are still named."""
        return [self.dataset.split.samples[sample][0] for sample in self.batches.of_step(step)]

    def report(self, ranks: Ranks) -> None:
        """Name the files that could not be decoded since the last report, each once a run, and count them.

        Raises:
            UserError: they are more than ``max_bad`` of all, or all.
        """
        passes = ranks.gather((self.read, self.broken))
        self.read, self.broken = 0, set()
        broken = set().union(*(files for _, files in passes))
        if not broken:
            return
        if len(broken) > self.most_bad or not any(read for read, _ in passes):
            ranks.refuse(self._too_many(broken))
        for path, reason in sorted(broken):
            if path not in self.named:
                tqdm.write(f"note: cannot decode {path} ({reason})")
        self.named.update(path for path, _ in broken)
        instead = "replaced by others" if isinstance(self.batches, TrainBatches) else self.without
        tqdm.write(f"note: {plural(len(broken), 'image')} could not be decoded: {instead}")


def training_loader(
    split: ImageSplit,
    transform: TrainTransform,
    batch: int,
    seed: int,
    reading: Reading,
    ranks: Ranks,
    parts: int = 1,
) -> DeviceLoader[TrainBatches]:
    """Return this process's training batches.

    Args:
        split: files and labels.
        transform: makes an image of a file.
        batch: images per batch.
        seed: the run's seed.
        reading: how the files are read.
        ranks: the processes that train together.
        parts: batches per step.

    Raises:
        UserError: fewer images than one for each process and part.
    """
    dataset = ImageDataset(split, transform, seed, substitute=True, decoder=reading.decoder)
    batches = TrainBatches(len(dataset), batch, seed, parts, ranks.rank, ranks.size)
    to_batch = partial(stack, size=transform.size)
    return DeviceLoader(dataset, batches, to_batch, reading, ranks.device, transform.scaling)


def validation_loader(
    split: ImageSplit,
    transform: ValTransform,
    batch: int,
    reading: Reading,
    ranks: Ranks,
    upright: bool = False,
    numbered: bool = False,
) -> DeviceLoader[EvalBatches]:
    """Return this process's share of the images in batches; arguments as of :func:`training_loader`.

    ``upright`` turns the images as their EXIF orientation says; an evaluation, as published, does not.
    ``numbered`` gives each image its number in the split in place of its label.
    """
    kind = NumberedDataset if numbered else ImageDataset
    dataset = kind(split, transform, 0, decoder=reading.decoder, upright=upright)
    batches = EvalBatches(len(dataset), batch, ranks.rank, ranks.size)
    to_batch = partial(stack, size=transform.size)
    return DeviceLoader(dataset, batches, to_batch, reading, ranks.device, transform.scaling)
