"""The images that benchmarks read, and the decoders that can read them."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from utils.command_line import cli
from utils.common.errors import UserError
from utils.data.decoding import DECODERS, Box, available, read_image
from utils.data.splits import TRAIN_NAMES, ImageSplit, class_names, data_root, find_split, read_split

SYNTHETIC_FILES = 64
SYNTHETIC_SIDES = (500, 375)  # pixels, the most frequent of ImageNet


def add_arguments(parser: cli.Parser) -> None:
    """Add the flags that say which files are read."""
    text = "folder with train/ and a folder per class in it, or 'digits'"
    parser.add_argument("folder", nargs="?", type=cli.name_of_file, metavar="FOLDER", help=text)
    text = f"read {SYNTHETIC_FILES} JPEGs of ImageNet's most frequent size, written for the run"
    parser.add_argument("--synthetic", action="store_true", help=text)
    text = "images of a pass, spread evenly over the files; fewer files are read repeatedly (default: 512)"
    parser.add_argument("--images", type=cli.count_of, default=512, metavar="N", help=text)


def add_worker_arguments(parser: cli.Parser) -> None:
    """Add the flag that says how many processes read."""
    text = "processes that decode (default: one per core, at most 32)"
    workers = min(32, os.cpu_count() or 1)
    parser.add_argument("-j", "--workers", type=cli.whole, default=workers, metavar="N", help=text)


def decoders() -> list[str]:
    """Return the values of ``--decoder`` that are installed here."""
    return [name for name in DECODERS if name != "auto" and available(name)]


def decode_whole(path: str, decoder: str) -> object:
    """Decode a whole image, without a crop; the result's type depends on the decoder."""
    return read_image(path, decoder, lambda height, width: Box(0, 0, height, width))


@contextmanager
def open_images(folder: str | None, synthetic: bool, images: int) -> Iterator[ImageSplit]:
    """Give so many samples: of a folder's training split, or of files that exist within the block only.

    Raises:
        UserError: the folder is missing or unusable, or it is given with ``synthetic``, or neither is.
    """
    if synthetic == bool(folder):
        raise UserError("give either a FOLDER of images or --synthetic")
    if folder:
        yield spread(read(folder), images)
        return
    with tempfile.TemporaryDirectory() as temporary:
        write_synthetic(Path(temporary) / "train" / "synthetic")
        yield spread(read(temporary), images)


def read(folder: str) -> ImageSplit:
    """Index the training split of a folder.

    Raises:
        UserError: it is missing or unusable.
    """
    try:
        train = find_split(data_root(folder), TRAIN_NAMES)
        return read_split(train, class_names(train))
    except UserError as error:
        raise UserError(str(error).removeprefix("--data ")) from None
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror} ({error.filename})") from None


def spread(split: ImageSplit, images: int) -> ImageSplit:
    """Return so many samples, spread evenly over the split; a smaller split's samples are repeated."""
    samples = split.samples
    return ImageSplit([samples[i * len(samples) // images] for i in range(images)], split.classes)


def write_synthetic(folder: Path) -> None:
    """Write JPEGs of about 100 KB like ImageNet's: large shapes, and noise of which JPEG keeps some."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    width, height = SYNTHETIC_SIDES
    for i in range(SYNTHETIC_FILES):
        coarse = Image.fromarray(generator.integers(0, 256, (18, 24, 3), np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32)
        noisy = smooth + generator.normal(0, 14, (height, width, 1))
        pixels = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
        pixels.save(folder / f"{i}.JPEG", quality=90)
