"""Loading of training images: with each decoder, and as the published code does it.

    python scripts/benchmark.py loader /path/to/imagenet -j 8 --batch 256 --images 4096
    python scripts/benchmark.py loader --synthetic -j 2
    python scripts/benchmark.py loader /path/to/folders --against /path/to/archives

Measured are decoding, crop, flip and stacking to uint8 batches, without the transfer to the device; after the
warm-up the files are in the page cache. The baseline "published" decodes, crops, resizes and flips with PIL
and stacks with numpy.
"""

import argparse
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from scripts.lib import benchmark_images as images
from scripts.lib import benchmark_measure as measure
from scripts.lib.benchmark_report import Result, Table
from utils.command_line import cli
from utils.common.distributed import ONE_PROCESS
from utils.common.signals import ignore_signals
from utils.data.content import readable
from utils.data.loading import Reading, training_loader
from utils.data.sampling import Position
from utils.data.splits import ImageSplit
from utils.data.transforms import TrainTransform

Pil = tuple[Image.Image, int]


def add_arguments(parser: cli.Parser) -> None:
    images.add_arguments(parser)
    images.add_worker_arguments(parser)
    text = "images of a batch (default: 64)"
    parser.add_argument("--batch", dest="train_batch", type=cli.count_of, default=64, metavar="N", help=text)
    parser.add_argument("--img-size", type=cli.count_of, default=224, help="pixels (default: 224)")
    text = "another FOLDER with the same images, such as their archives, measured in turn"
    parser.add_argument("--against", type=cli.name_of_file, metavar="FOLDER", help=text)
    measure.add_round_arguments(parser, rounds=5)


class PublishedDataset(Dataset[Pil]):
    """PIL images and labels, cropped, resized and flipped by PIL."""

    def __init__(self, split: ImageSplit, size: int) -> None:
        self.samples = split.samples
        crop = transforms.RandomResizedCrop(size)
        self.transform = transforms.Compose([crop, transforms.RandomHorizontalFlip()])

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Pil:
        path, label = self.samples[index]
        with Image.open(readable(path)) as image:
            return self.transform(image.convert("RGB")), label


def collate(samples: list[Pil]) -> tuple[Tensor, Tensor]:
    """Stack with numpy: images (B, 3, S, S), uint8, and labels (B,), int64."""
    pixels = np.stack([np.asarray(image).transpose(2, 0, 1) for image, _ in samples])
    return torch.from_numpy(pixels), torch.tensor([label for _, label in samples])


class Pass(NamedTuple):
    """What was measured in a pass over a loader."""

    speed: float  # images/s
    cores: float  # CPU seconds of all processes per second


@dataclass(frozen=True)
class Candidate:
    """A loader, and a function that tells it which pass begins."""

    name: str
    batches: Iterable[tuple[Tensor, ...]]
    begin: Callable[[int], object]

    def __call__(self, turn: int) -> Pass:
        """Measure one pass."""
        self.begin(turn)
        started, busy = time.perf_counter(), cpu_seconds()
        read = sum(len(batch[0]) for batch in self.batches)
        seconds = time.perf_counter() - started
        return Pass(read / seconds, (cpu_seconds() - busy) / seconds)


def cpu_seconds() -> float:
    """Return the CPU time of this process and its living workers; without /proc of this process only."""
    total = time.process_time()
    for worker in multiprocessing.active_children():
        try:
            text = Path(f"/proc/{worker.pid}/stat").read_text()
        except OSError:
            continue
        user, system = text.rpartition(")")[2].split()[11:13]  # the name in brackets may have blanks
        total += (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    return total


def published(split: ImageSplit, size: int, batch: int, workers: int) -> Candidate:
    """Create the loader of the published code: images of ``size`` pixels in batches of ``batch``."""
    loader = DataLoader(
        PublishedDataset(split, size),
        batch,
        shuffle=True,
        num_workers=workers,
        collate_fn=collate,
        drop_last=True,
        persistent_workers=workers > 0,
        worker_init_fn=ignore_signals,
    )
    return Candidate("published", loader, lambda turn: None)


def by_decoder(split: ImageSplit, size: int, batch: int, workers: int, decoder: str) -> Candidate:
    """Create the loader of this code with one of its decoders."""
    reading = Reading(workers, decoder=decoder)
    loader = training_loader(split, TrainTransform(size), batch, 0, reading, ONE_PROCESS)
    return Candidate(decoder, loader.loader, lambda turn: loader.batches.set_position(Position(turn)))


def main(args: argparse.Namespace) -> list[Table]:
    batch = min(args.train_batch, args.images)
    with images.open_images(args.folder, args.synthetic, args.images) as split:
        settings = (split, args.img_size, batch, args.workers)
        candidates = [published(*settings), *(by_decoder(*settings, name) for name in images.decoders())]
        if args.against:
            others = (images.spread(images.read(args.against), args.images), *settings[1:])
            for one in [by_decoder(*others, name) for name in images.decoders()]:
                candidates.append(replace(one, name=f"{one.name}, {args.against}"))
        passes = measure.interleave(candidates, args.rounds, args.warmup_rounds, "loader")
    results = [
        Result(
            candidate.name,
            [one.speed for one in own],
            {"cores used": sum(one.cores for one in own) / len(own)},
        )
        for candidate, own in zip(candidates, passes, strict=True)
    ]
    what = f"{args.images} images of {args.folder or 'synthetic JPEGs'}"
    title = f"loading of {what}, {args.workers} workers, batch {batch}, {args.img_size} px"
    note = "cores used: CPU time of this process and its workers, divided by the time of the pass"
    return [Table(title, "images/s", results, best=max, notes=[note])]
