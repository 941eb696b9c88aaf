"""Decode image files to uint8 pixels: the whole image, or only the rows down to the end of a crop.

Three decoders with bit-identical results (they share libjpeg-turbo's default algorithm): PIL reads every
format; simplejpeg and torchvision are faster but read only JPEGs, so that PIL reads all other files.
"""

import importlib.util
import io
import struct
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from utils.common.errors import UserError
from utils.data.content import content, readable

DECODERS = ("auto", "pil", "torchvision", "simplejpeg")
_ROWS_BELOW = 4  # libjpeg's smooth upsampling of colour needs rows below the last one of the crop
_LARGEST = Image.MAX_IMAGE_PIXELS or 2**63  # larger ones are left to PIL, which warns of a bomb


class Box(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


ChooseBox = Callable[[int, int], Box]  # takes the height and width of the image


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, from 1 (upright) to 8; 1 if the tag is missing or damaged."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # PIL raises errors of any type
        return 1


def decode(path: str, upright: bool = False) -> Image.Image:
    """Read an image file as RGB by PIL; grey, CMYK, palette, alpha and 16-bit images are converted.

    Args:
        path: the file, or a member of an archive.
        upright: rotate the image to its EXIF orientation, for users' photos.

    Raises:
        Exception: of almost any type, by PIL's readers for a damaged file; OSError for what is no file, or
            larger than an image may be.
    """
    with Image.open(readable(path)) as image:
        if upright and orientation(image) != 1:
            ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith("I"):  # 16 or 32 bits per pixel: PIL would clip instead of scaling
            return image.convert("I").point(lambda value: value * (1 / 257)).convert("L").convert("RGB")
        if image.mode == "P" and "transparency" in image.info:
            return image.convert("RGBA").convert("RGB")
        return image.convert("RGB")


class JpegSize(NamedTuple):
    """The size of a JPEG, and the offset of the height in its file: two bytes, big-endian."""

    height: int
    width: int
    at: int


def jpeg_size(data: bytes | bytearray) -> JpegSize | None:
    """Return the size of a complete JPEG, baseline or progressive, 8 bits, grey or colour; None otherwise.

    A segment of a JPEG begins with FF and its marker; the frame header (C0 to C2) holds the size: ITU-T T.81,
    annex B.
    """
    if data[:2] != b"\xff\xd8" or data[-2:] != b"\xff\xd9":
        return None
    at, end = 2, len(data) - 10
    while at < end and data[at] == 0xFF:
        marker, length, bits, height, width, colours = struct.unpack_from(">BHBHHB", data, at + 1)
        if marker in (0xC0, 0xC1, 0xC2):
            supported = bits == 8 and colours in (1, 3) and 0 < height * width <= _LARGEST
            return JpegSize(height, width, at + 5) if supported else None
        at += 1 if marker == 0xFF else 2 + length  # FF may be repeated
    return None


def available(name: str) -> bool:
    """Whether a decoder is installed."""
    return name == "pil" or importlib.util.find_spec(name) is not None


def choose_decoder(name: str) -> str:
    """Return the decoder that ``--decoder`` selects; ``auto`` is the fastest one installed.

    Raises:
        UserError: the decoder is not installed.
    """
    if name == "auto":
        return next(one for one in ("simplejpeg", "torchvision", "pil") if available(one))
    if not available(name):
        raise UserError(f"--decoder {name}: not installed; pip install {name}, or --decoder auto")
    return name


def _by_simplejpeg(data: bytearray) -> Tensor:
    import simplejpeg  # an optional dependency

    return torch.from_numpy(simplejpeg.decode_jpeg(data, "RGB", strict=False)).permute(2, 0, 1)


def _by_torchvision(data: bytearray) -> Tensor:
    from torchvision.io import ImageReadMode, decode_jpeg  # deprecated by torchvision

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return decode_jpeg(torch.frombuffer(data, dtype=torch.uint8), ImageReadMode.RGB)


def read_image(
    path: str, decoder: str, choose: ChooseBox, upright: bool = False
) -> tuple[Image.Image | Tensor, Box]:
    """Read an image as RGB, and the box that ``choose`` selects in it.

    simplejpeg stops below the box: with the height in the file's header lowered, libjpeg decodes no further,
    and the decoded rows are bit-identical. Rows above the box cannot be skipped.

    Args:
        path: the file, or a member of an archive.
        decoder: ``pil``, ``torchvision`` or ``simplejpeg``.
        choose: returns the box in pixels for the image's height and width.
        upright: rotate the image to its EXIF orientation; PIL reads images that need it.

    Returns:
        For ``pil`` a PIL image, otherwise (3, H, W) uint8; rows below the box may be missing.

    Raises:
        Exception: of almost any type, by PIL's readers for a damaged file.
    """
    if decoder == "pil":
        image = decode(path, upright)
        return image, choose(image.height, image.width)
    data = content(path)
    if (size := jpeg_size(data)) and not (upright and orientation(Image.open(io.BytesIO(data))) != 1):
        box = choose(size.height, size.width)
        if decoder == "simplejpeg":
            rows = min(size.height, box.top + box.height + _ROWS_BELOW)
            struct.pack_into(">H", data, size.at, rows)
        try:
            return _by_simplejpeg(data) if decoder == "simplejpeg" else _by_torchvision(data), box
        except (ValueError, RuntimeError):  # PIL reads it, or raises what is wrong
            pass
    pixels = torch.from_numpy(np.array(decode(path, upright))).permute(2, 0, 1)
    return pixels, choose(pixels.shape[1], pixels.shape[2])
