"""Decoding of whole images, by each decoder that is installed.

    python scripts/benchmark.py decode /path/to/imagenet --images 256
    python scripts/benchmark.py decode --synthetic

One process decodes on one thread, without a crop; after the warm-up the files are in the page cache. The
baseline is PIL, which also decodes for the others what is no JPEG.
"""

import argparse
import time

from scripts.lib import benchmark_images as images
from scripts.lib import benchmark_measure as measure
from scripts.lib.benchmark_report import Result, Table
from utils.command_line import cli
from utils.common.errors import UserError
from utils.data.splits import ImageSplit


def add_arguments(parser: cli.Parser) -> None:
    images.add_arguments(parser)
    measure.add_round_arguments(parser, rounds=5)


def images_per_second(split: ImageSplit, decoder: str) -> float:
    """Decode every sample once.

    Raises:
        UserError: a file cannot be decoded.
    """
    started = time.perf_counter()
    for path, _ in split.samples:
        try:
            images.decode_whole(path, decoder)
        except Exception as error:  # decoders raise anything: OSError, SyntaxError, struct.error, ...
            raise UserError(f"{path}: {decoder} cannot decode it ({error})") from error
    return len(split.samples) / (time.perf_counter() - started)


def main(args: argparse.Namespace) -> list[Table]:
    with images.open_images(args.folder, args.synthetic, args.images) as split:
        names = images.decoders()
        turns = [lambda turn, name=name: images_per_second(split, name) for name in names]
        speeds = measure.interleave(turns, args.rounds, args.warmup_rounds, "decode")
    results = [Result(name, own) for name, own in zip(names, speeds, strict=True)]
    what = args.folder or "synthetic JPEGs"
    return [Table(f"decoding of {args.images} whole images of {what}", "images/s", results, best=max)]
