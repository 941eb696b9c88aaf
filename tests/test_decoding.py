"""Decoders agree: the same crops, pixels within one level, the same files refused."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run, assert_one_line_error
from PIL import Image
from torch import Tensor

from utils.common.randomness import seeded_cpu
from utils.data import decoding
from utils.data.decoding import Box, available, choose_decoder, jpeg_size, read_image
from utils.data.loading import ImageDataset
from utils.data.sampling import SampleKey
from utils.data.splits import ImageSplit
from utils.data.transforms import TrainTransform, ValTransform, random_box, resized_crop

FAST = [
    pytest.param(name, marks=pytest.mark.skipif(not available(name), reason="not installed"))
    for name in ("torchvision", "simplejpeg")
]


def photograph(height: int = 260, width: int = 341, seed: int = 0) -> Image.Image:
    """Smooth shapes with some noise, as in a photograph."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return Image.fromarray((pixels + generator.integers(-9, 10, pixels.shape)).clip(0, 255).astype(np.uint8))


# Everything that ends in a JPEG that the fast decoders take.
JPEGS: dict[str, Callable[[Path], object]] = {
    "4:2:0": lambda path: photograph().save(path, quality=90),
    "4:4:4": lambda path: photograph().save(path, quality=95, subsampling=0),
    "4:2:2": lambda path: photograph().save(path, quality=85, subsampling=1),
    "progressive": lambda path: photograph().save(path, progressive=True),
    "restarts": lambda path: photograph().save(path, restart_marker_rows=2),
    "grey": lambda path: photograph().convert("L").save(path),
    "odd size": lambda path: photograph(37, 53).save(path),
    "one pixel": lambda path: photograph(1, 1).save(path),
    "exif": lambda path: photograph().save(path, exif=turned()),
}


def turned(orientation: int = 6) -> Image.Exif:
    """An orientation, which PIL and so training and evaluation ignore."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


# By EXIF orientation what a camera stores of an upright image (H, W, 3): CIPA DC-008, "Orientation".
HELD: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: upright.swapaxes(0, 1)[::-1],
    7: lambda upright: upright.swapaxes(0, 1)[::-1, ::-1],
    8: lambda upright: upright.swapaxes(0, 1)[:, ::-1],
}


def write_held(folder: Path, upright: Image.Image, ending: str) -> list[Path]:
    """The photo as a camera stores it, held in every way."""
    paths = [folder / f"{orientation}{ending}" for orientation in HELD]
    for path, (orientation, stored) in zip(paths, HELD.items(), strict=True):
        pixels = np.ascontiguousarray(stored(np.asarray(upright)))
        Image.fromarray(pixels).save(path, exif=turned(orientation))
    return paths


OTHERS: dict[str, Callable[[Path], object]] = {
    "png": lambda path: photograph().save(path, format="PNG"),
    "cmyk": lambda path: photograph().convert("CMYK").save(path),
    "trailing bytes": lambda path: path.write_bytes(as_bytes() + b"more"),
    "sixteen bits": lambda path: Image.fromarray(
        (np.arange(1200, dtype=np.uint16) * 50).reshape(30, 40)
    ).save(path, format="PNG"),
}


def as_bytes() -> bytes:
    buffer = io.BytesIO()
    photograph().save(buffer, format="JPEG")
    return buffer.getvalue()


def whole(height: int, width: int) -> Box:
    return Box(0, 0, height, width)


def by_pil(path: Path) -> Tensor:
    return torch.from_numpy(np.array(decoding.decode(str(path)))).permute(2, 0, 1)


@pytest.mark.parametrize("decoder", FAST)
@pytest.mark.parametrize("name", [*JPEGS, *OTHERS])
def test_decoded_pixels_are_those_of_pil(tmp_path: Path, name: str, decoder: str) -> None:
    path = tmp_path / "x.JPEG"
    (JPEGS | OTHERS)[name](path)
    assert (jpeg_size(path.read_bytes()) is not None) == (name in JPEGS)
    found, box = read_image(str(path), decoder, whole)
    expected = by_pil(path)
    assert box == (0, 0, *expected.shape[1:])
    assert torch.equal(torch.as_tensor(found), expected)


@pytest.mark.parametrize("decoder", ["pil", *FAST])
def test_photos_are_turned_upright_on_demand(tmp_path: Path, decoder: str) -> None:
    """However the camera was held; the box is one of the upright image."""
    for ending in (".JPEG", ".png", ".webp", ".tiff"):
        paths = write_held(tmp_path, photograph(64, 90), ending)
        for path, stored in zip(paths, HELD.values(), strict=True):
            found, box = read_image(str(path), decoder, whole, upright=True)
            pixels = np.array(found) if decoder == "pil" else torch.as_tensor(found).permute(1, 2, 0).numpy()
            assert box == (0, 0, 64, 90)
            assert pixels.shape == (64, 90, 3)
            if ending != ".tiff":  # which PIL turns upright in any case
                assert np.array_equal(stored(pixels), np.array(decoding.decode(str(path))))
        if ending == ".png":
            assert np.array_equal(pixels, np.array(photograph(64, 90)))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("decoder", ["pil", *FAST])
def test_an_orientation_that_cannot_be_read_is_none(tmp_path: Path, decoder: str) -> None:
    path = tmp_path / "x.JPEG"
    for exif in (b"Exif\0\0", b"Exif\0\0II*\0\x08\0\0\0\xff", b"Exif\0\0no metadata", turned(9)):
        photograph().save(path, exif=exif)
        found, _ = read_image(str(path), decoder, whole, upright=True)
        expected, _ = read_image(str(path), decoder, whole)
        assert np.array_equal(np.asarray(found), np.asarray(expected))


@pytest.mark.skipif(not available("simplejpeg"), reason="not installed")
@pytest.mark.parametrize("name", JPEGS)
def test_what_is_decoded_down_to_a_box_is_the_same(tmp_path: Path, name: str) -> None:
    """For every last row: libjpeg's upsampling looks at neighbours."""
    path = tmp_path / "x.JPEG"
    JPEGS[name](path)
    expected = by_pil(path)
    height, width = expected.shape[1:]
    for bottom in range(1, height + 1, 1 if height < 100 else 7):
        box = Box(bottom // 2, 0, bottom - bottom // 2, width)
        found, _ = read_image(str(path), "simplejpeg", lambda *_, box=box: box)
        assert isinstance(found, Tensor)
        assert found.shape[1] <= bottom + 4
        assert torch.equal(found[:, :bottom], expected[:, :bottom]), bottom


@pytest.mark.parametrize("decoder", FAST)
@pytest.mark.parametrize("size", [(260, 341), (600, 400), (90, 120)])
def test_crops_and_validation_are_within_one_level_of_pil(
    tmp_path: Path, decoder: str, size: tuple[int, int]
) -> None:
    path = tmp_path / "x.JPEG"
    photograph(*size).save(path, quality=92)
    transforms: list[ValTransform | Fixed] = [ValTransform(224), *(Fixed(seed) for seed in range(8))]
    for transform in transforms:
        crops = [transform(*read_image(str(path), name, transform.box)) for name in ("pil", decoder)]
        assert crops[0].shape == crops[1].shape == (3, 224, 224)
        assert (crops[0].int() - crops[1].int()).abs().max() <= 1


class Fixed:
    """A training crop that depends on a seed alone."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def box(self, height: int, width: int) -> Box:
        with seeded_cpu(self.seed):
            return random_box(height, width, (0.08, 1.0))

    def __call__(self, image: Image.Image | Tensor, box: Box) -> Tensor:
        return resized_crop(image, box, 224)


@pytest.mark.parametrize("decoder", FAST)
def test_all_decoders_draw_the_same_for_a_seed(tmp_path: Path, decoder: str) -> None:
    """Box, flip and augmentation of a sample."""
    path = tmp_path / "x.JPEG"
    photograph().save(path)
    transform = TrainTransform(64)
    split = ImageSplit([(str(path), 0)], ("a",))
    for epoch in range(12):
        samples = [
            ImageDataset(split, transform, 1, decoder=name)[SampleKey(epoch, 0)] for name in ("pil", decoder)
        ]
        images = [sample.image for sample in samples]
        assert images[0] is not None
        assert images[1] is not None
        assert (images[0].int() - images[1].int()).abs().max() <= 1


@pytest.mark.parametrize("decoder", ["pil", *FAST])
def test_damaged_files_are_refused(tmp_path: Path, decoder: str) -> None:
    data, path = as_bytes(), tmp_path / "x.JPEG"
    for damaged in (data[: len(data) // 2], data[:-200], data[:200], b"", b"\xff\xd8\xff\xd9", b"GIF89a"):
        path.write_bytes(damaged)
        with pytest.raises(Exception, match=r"."):
            read_image(str(path), decoder, whole)


def test_sizes_beyond_pils_limit_are_left_to_pil(tmp_path: Path) -> None:
    data = bytearray(as_bytes())
    size = jpeg_size(data)
    assert size is not None
    assert (size.height, size.width) == (260, 341)
    data[size.at : size.at + 4] = b"\xff\xff\xff\xff"
    assert jpeg_size(data) is None
    (tmp_path / "x.JPEG").write_bytes(data)
    for decoder in decoding.DECODERS[1:]:
        if available(decoder):
            with pytest.raises(Image.DecompressionBombError):
                read_image(str(tmp_path / "x.JPEG"), decoder, whole)


def test_random_boxes() -> None:
    """Within the image, of the wanted area and shape; the middle where no such box fits."""
    with seeded_cpu(0):
        boxes = [random_box(300, 400, (0.08, 1.0)) for _ in range(2000)]
        assert random_box(10, 1000, (0.9, 1.0)) == (0, 493, 10, 13)
        assert random_box(1000, 10, (0.9, 1.0)) == (493, 0, 13, 10)
    for box in boxes:
        assert 0 <= box.top <= box.top + box.height <= 300
        assert 0 <= box.left <= box.left + box.width <= 400
    shares = torch.tensor([box.height * box.width / 120_000 for box in boxes])
    shapes = torch.tensor([box.width / box.height for box in boxes])
    assert shares.min() > 0.07
    assert shares.max() > 0.95
    assert 0.4 < shares.mean() < 0.54
    assert 0.74 < shapes.min() < 0.76
    assert 1.32 < shapes.max() < 1.35
    assert len(set(boxes)) > 1990


def test_the_decoder_of_a_command_line(call: Run, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """auto is the fastest there is; one that is not installed is refused; a change is noted."""
    flags = ("--data", images, "-a", "tiny", "--img-size", 32, "-j", 0, "-c", "out")
    assert call(*flags, "--epochs", 1, "--decoder", "pil").returncode == 0
    again = call(*flags, "--epochs", 2, "--resume", "auto")
    assert again.returncode == 0
    assert f"--decoder pil -> {choose_decoder('auto')}" in again.stdout
    monkeypatch.setattr(decoding, "available", lambda name: name == "pil")
    assert choose_decoder("auto") == "pil"
    assert_one_line_error(call(*flags, "--decoder", "simplejpeg"), "--decoder simplejpeg: not installed")
