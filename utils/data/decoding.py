"""From an image file to uint8 pixels: whole, or only as far down as a crop reaches.

Three decoders, which agree to the last bit (they share libjpeg-turbo's default algorithm): PIL takes every
format; simplejpeg and torchvision are faster, take JPEGs only, and leave the rest to PIL.
"""

import importlib.util
import io
import warnings
from collections.abc import Callable
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from utils.common.errors import UserError

DECODERS = ("auto", "pil", "torchvision", "simplejpeg")
_ROWS_BELOW = 4  # libjpeg's smooth upsampling of colour looks at rows below the last one wanted
_LARGEST = Image.MAX_IMAGE_PIXELS or 2**63  # beyond it PIL warns of a decompression bomb; it is to decide


class Box(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


Choose = Callable[[int, int], Box]  # of the height and width of the image


def orientation(image: Image.Image) -> int:
    """How the camera was held, from 1, upright, to 8: the EXIF tag; damaged metadata say nothing."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # PIL raises anything
        return 1


def decode(path: str, upright: bool = False) -> Image.Image:
    """Read an image file as RGB by PIL; grey, CMYK, palette, alpha and 16-bit images are converted.

    Args:
        path: the file.
        upright: turn the image as its EXIF orientation says, for people's photos.
    """
    with Image.open(path) as image:
        if upright and orientation(image) != 1:
            ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith("I"):  # 16 or 32 bits per pixel: PIL would clip instead of scaling
            return image.convert("I").point(lambda value: value * (1 / 257)).convert("L").convert("RGB")
        if image.mode == "P" and "transparency" in image.info:
            return image.convert("RGBA").convert("RGB")
        return image.convert("RGB")


class JpegSize(NamedTuple):
    """The size of a JPEG, and where its file says the height: two bytes, big-endian."""

    height: int
    width: int
    at: int


def jpeg_size(data: bytes | bytearray) -> JpegSize | None:
    """The size of a complete JPEG, baseline or progressive, 8 bits, grey or colour; None of others.

    The segments of a JPEG begin with FF and their kind; that of the frame (C0 to C2) holds the size: ITU-T
    T.81, annex B.
    """
    if data[:2] != b"\xff\xd8" or data[-2:] != b"\xff\xd9":
        return None
    at, end = 2, len(data) - 10
    while at < end and data[at] == 0xFF:
        kind = data[at + 1]
        if kind == 0xFF:  # padding
            at += 1
            continue
        if kind in (0xC0, 0xC1, 0xC2):
            height, width = (int.from_bytes(data[i : i + 2], "big") for i in (at + 5, at + 7))
            sound = data[at + 4] == 8 and data[at + 9] in (1, 3) and 0 < height * width <= _LARGEST
            return JpegSize(height, width, at + 5) if sound else None
        if kind in (0xD9, 0xDA) or (0xC3 <= kind <= 0xCF and kind not in (0xC4, 0xCC)):
            return None
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def available(name: str) -> bool:
    """Whether a decoder is installed."""
    return name == "pil" or importlib.util.find_spec(name) is not None


def choose_decoder(name: str) -> str:
    """What ``--decoder`` means on this machine; ``auto`` is the fastest that is installed.

    Raises:
        UserError: the decoder is not installed.
    """
    if name == "auto":
        return next(one for one in ("simplejpeg", "torchvision", "pil") if available(one))
    if not available(name):
        raise UserError(f"--decoder {name}: not installed; pip install {name}, or --decoder auto")
    return name


def _by_simplejpeg(data: bytearray) -> Tensor:
    import simplejpeg  # not installed everywhere

    return torch.from_numpy(simplejpeg.decode_jpeg(data, "RGB", strict=False)).permute(2, 0, 1)


def _by_torchvision(data: bytearray) -> Tensor:
    from torchvision.io import ImageReadMode, decode_jpeg  # announced to be removed

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return decode_jpeg(torch.frombuffer(data, dtype=torch.uint8), ImageReadMode.RGB)


_FAST: MappingProxyType[str, Callable[[bytearray], Tensor]] = MappingProxyType(
    {"simplejpeg": _by_simplejpeg, "torchvision": _by_torchvision}
)


def read_image(
    path: str, decoder: str, choose: Choose, upright: bool = False
) -> tuple[Image.Image | Tensor, Box]:
    """An image as RGB and the box that ``choose`` wants of it.

    simplejpeg stops below the box: told that the image ends there, libjpeg decodes no further, and what it
    has decoded is the same to the last bit. Rows above cannot be left out.

    Args:
        path: the file.
        decoder: ``pil``, ``torchvision`` or ``simplejpeg``.
        choose: the box in pixels, of the image's height and width.
        upright: turn the image as its EXIF orientation says; PIL reads those that are to be turned.

    Returns:
        For ``pil`` a PIL image, otherwise (3, H, W) uint8, perhaps without rows below the box.

    Raises:
        Exception: nearly any that PIL's readers raise for a damaged file.
    """
    if decoder == "pil":
        image = decode(path, upright)
        return image, choose(image.height, image.width)
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123 (Path.open takes 5 % longer in all)
        data = bytearray(file.readall())
    if (size := jpeg_size(data)) and not (upright and orientation(Image.open(io.BytesIO(data))) != 1):
        box = choose(size.height, size.width)
        if decoder == "simplejpeg":
            rows = min(size.height, box.top + box.height + _ROWS_BELOW)
            data[size.at : size.at + 2] = rows.to_bytes(2, "big")
        try:
            return _FAST[decoder](data), box
        except (ValueError, RuntimeError):  # PIL decides what is wrong with it
            pass
    pixels = torch.from_numpy(np.array(decode(path, upright))).permute(2, 0, 1)
    return pixels, choose(pixels.shape[1], pixels.shape[2])
