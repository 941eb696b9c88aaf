"""Time and memory of a loader by the number of images, over several epochs.

    python scripts/benchmark.py growth --images 10000 100000 1281167 --epochs 10 --read 10000

The index repeats 64 small JPEGs, whose names have the length of ImageNet's. Of each epoch only the last
--read images are read, so that it is short. Memory is what is private to a process (Linux): a page that a
data worker shares with the main process counts as soon as one of them has written to it.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from scripts.lib import benchmark_images as images
from scripts.lib.benchmark_report import Result, Table
from utils.command_line import cli
from utils.common.distributed import ONE_PROCESS
from utils.common.errors import UserError
from utils.data.decoding import choose_decoder
from utils.data.index import Index
from utils.data.loading import Reading, training_loader
from utils.data.sampling import Position
from utils.data.splits import ImageSplit
from utils.data.transforms import TrainTransform

FILES, SIDE = 64, 48  # pixels
CLASSES = 1000


def add_arguments(parser: cli.Parser) -> None:
    text = "numbers of images (default: 10000 100000 1281167)"
    sizes = [10_000, 100_000, 1_281_167]
    parser.add_argument("--images", type=cli.count_of, nargs="+", default=sizes, metavar="N", help=text)
    parser.add_argument("--epochs", type=cli.count_of, default=10, help="(default: %(default)s)")
    text = "images of each epoch that are read (default: %(default)s)"
    parser.add_argument("--read", type=cli.count_of, default=10_000, metavar="N", help=text)
    images.add_worker_arguments(parser)


def write_files(folder: Path) -> None:
    """Write the small noisy JPEGs that an index of any size repeats."""
    generator = np.random.default_rng(0)
    for file in range(FILES):
        pixels = generator.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"n{file:08d}_{file:05d}.JPEG")


def index_of(folder: Path, size: int) -> Index:
    """Index ``size`` images, which are the same few files again and again."""
    names = b"".join(f"n{file:08d}_{file:05d}.JPEG\0".encode() for file in range(FILES))
    whole, rest = divmod(size, FILES)
    row = np.frombuffer(names, dtype=np.uint8)
    blob = np.concatenate([np.tile(row, whole), row[: rest * (len(row) // FILES)]])
    return Index(folder, blob, (np.arange(size) % CLASSES).astype(np.int32))


def private_megabytes(process: int | str) -> float:
    """Return the MB that are private to a process."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private")) / 1024


def measure_epochs(
    folder: Path, size: int, epochs: int, read: int, workers: int
) -> Iterator[tuple[float, float, float]]:
    """Yield each epoch's seconds, and the MB of the main process and of the largest worker after it.

    Args:
        folder: the JPEGs.
        size: images of the index.
        epochs: how many.
        read: images of each epoch that are read.
        workers: processes that decode.
    """
    split = ImageSplit(index_of(folder, size), tuple(map(str, range(CLASSES))))
    reading = Reading(workers, max_bad=0.0, decoder=choose_decoder("auto"))
    loader = training_loader(split, TrainTransform(32), 100, 0, reading, ONE_PROCESS)
    for epoch in range(epochs):
        loader.batches.set_position(Position(epoch, max(size - read, 0)))
        began = time.perf_counter()
        for _ in loader:
            pass
        seconds = time.perf_counter() - began
        children = Path("/proc/self/task").joinpath(Path("/proc/self").resolve().name, "children")
        sizes = [private_megabytes(child) for child in children.read_text().split()]
        yield seconds, private_megabytes("self"), max(sizes, default=0.0)


def main(args: argparse.Namespace) -> list[Table]:
    if not Path("/proc/self/smaps_rollup").exists():
        raise UserError("growth reads Linux's /proc/self/smaps_rollup, which is not there")
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        write_files(Path(temporary))
        for size in args.images:
            settings = (args.epochs, args.read, args.workers)
            rounds = list(measure_epochs(Path(temporary), size, *settings))
            after_one, last = rounds[min(1, len(rounds) - 1)], rounds[-1]
            further: dict[str, float | None] = {
                "main MB": last[1],
                "since epoch 2": last[1] - after_one[1],
                "worker MB": last[2],
                "since epoch 2 ": last[2] - after_one[2],
            }
            seconds = [1e6 * one[0] / min(size, args.read) for one in rounds]
            results.append(Result(f"{size:,}", seconds, further))
    note = f"private memory after {args.epochs} epochs, and its growth since the second; the largest worker"
    return [Table("loader by the number of images", "µs/image", results, notes=[note])]
