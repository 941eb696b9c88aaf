"""What ``-e`` counts, and how validation images are made: other test sets, ReaL labels, files per class."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run, assert_one_line_error
from PIL import Image
from torch import Tensor

from utils.data.decoding import Box, choose_decoder, read_image
from utils.data.transforms import ValTransform

FAST = "imagenet_fast.py"
TRAIN = ("-a", "tiny", "--img-size", 32, "--data", "images", "--train-batch", 8, "--manualSeed", 7)


def photograph(height: int, width: int) -> Image.Image:
    """Smooth colours with some noise."""
    generator = np.random.default_rng(0)
    small = Image.fromarray(generator.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    smooth = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    noisy = smooth + generator.integers(-20, 21, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("crop_pct", [0.875, 0.95, 1.0])
def test_validation_images_are_what_pil_makes(tmp_path: Path, interpolation: str, crop_pct: float) -> None:
    """Bit for bit with PIL's decoder; by the others within one level."""
    photograph(300, 400).save(tmp_path / "x.JPEG", quality=95)
    transform = ValTransform(96, crop_pct, interpolation)
    image = Image.open(tmp_path / "x.JPEG")
    short = round(96 / crop_pct)
    resized = image.resize((int(short * 400 / 300), short), Image.Resampling[interpolation.upper()])
    left, top = round((resized.width - 96) / 2), round((short - 96) / 2)
    expected = torch.from_numpy(np.array(resized.crop((left, top, left + 96, top + 96)))).permute(2, 0, 1)
    for decoder in ("pil", choose_decoder("auto")):
        found = transform(*read_image(str(tmp_path / "x.JPEG"), decoder, transform.box))
        assert (found.int() - expected.int()).abs().max() <= int(decoder != "pil")


def test_the_published_crop_is_as_before(tmp_path: Path) -> None:
    """Its resized side is 256/224 of the crop, to the pixel; and it is what is taken if nothing is said."""
    for size in range(1, 1025):
        assert round(size / 0.875) == round(size * 256 / 224)
    pixels = torch.from_numpy(np.array(photograph(90, 120))).permute(2, 0, 1)

    def made(*arguments: float | str) -> Tensor:
        return ValTransform(64, *arguments)(pixels, Box(0, 0, 90, 120))  # type: ignore[arg-type]

    assert torch.equal(made(), made(0.875, "bilinear"))
    assert not torch.equal(made(), made(0.9))
    assert not torch.equal(made(), made(0.875, "bicubic"))


def test_a_checkpoint_keeps_its_crop(call: Run, images: Path, tmp_path: Path) -> None:
    """-e takes it, says so in its line, and finds what training found; what is given goes before it."""
    other = ("--crop-pct", 0.6, "--interpolation", "bicubic")
    trained = call(*TRAIN, *other, "--epochs", 1, "-c", "out", script=FAST)
    assert trained.returncode == 0, trained.stderr
    assert " at 32 px (crop 0.6, bicubic), 3 classes" in trained.stdout
    logged = float((tmp_path / "out" / "log.txt").read_text().splitlines()[-1].split("\t")[2])
    evaluate = (*TRAIN[4:6], "-e", "--resume", "out/checkpoint.pth.tar")
    for script in (FAST, "imagenet.py"):
        taken = call(*evaluate, script=script)
        assert "as in out/checkpoint.pth.tar:" in taken.stdout
        assert "--crop-pct 0.6 --interpolation bicubic" in taken.stdout
        assert " at 32 px (crop 0.6, bicubic), 3 classes" in taken.stdout
        assert loss_in(taken.stdout) == pytest.approx(logged, abs=1e-4)
    published = call(*evaluate, "--crop-pct", 0.875, "--interpolation", "bilinear")
    assert " at 32 px, 3 classes" in published.stdout
    assert loss_in(published.stdout) != pytest.approx(logged, abs=1e-4)
    assert call(*TRAIN, "--epochs", 2, "-c", "out", "--resume", "auto").returncode == 0
    saved = torch.load(tmp_path / "out" / "checkpoint.pth.tar", weights_only=True)["arguments"]
    assert (saved["crop_pct"], saved["interpolation"]) == (0.6, "bicubic")


def test_predict_takes_the_crop_of_a_checkpoint(call: Run, images: Path, tmp_path: Path) -> None:
    other = ("--crop-pct", 0.4, "--interpolation", "bicubic")
    for name, flags in (("other", other), ("published", ())):
        assert call(*TRAIN, *flags, "--epochs", 1, "-c", name).returncode == 0
    asked = ("images/valf/cat/0.JPEG", "-j", 0, "--resume")
    found = [
        call(*asked, f"{name}/checkpoint.pth.tar", script="scripts/predict.py").stdout
        for name in ("other", "published")
    ]
    assert found[0] != found[1]
    assert found[0].count("\n") == found[1].count("\n") == 4


@pytest.mark.parametrize(
    ("flags", "fragments"),
    [
        (("--crop-pct", 0), ("--crop-pct", "from 0.1 to 1")),
        (("--crop-pct", 1.1), ("--crop-pct", "from 0.1 to 1")),
        (("--crop-pct", "nan"), ("--crop-pct", "from 0.1 to 1")),
        (("--interpolation", "lanczos"), ("--interpolation", "'bilinear', 'bicubic'")),
    ],
)
def test_unusable_crops(call: Run, images: Path, flags: tuple[object, ...], fragments: tuple[str]) -> None:
    assert_one_line_error(call(*TRAIN, *flags), *fragments)


@pytest.mark.parametrize("wrong", [{"crop_pct": 7}, {"crop_pct": "x"}, {"interpolation": "x"}])
def test_a_checkpoint_with_an_unusable_crop(
    call: Run, images: Path, tmp_path: Path, wrong: dict[str, object]
) -> None:
    state = {"x": torch.zeros(1)}
    torch.save({"state_dict": state, "arguments": wrong}, tmp_path / "x.pth")
    assert_one_line_error(call(*TRAIN, "-e", "--resume", "x.pth"), "x.pth: damaged (arguments")


def loss_in(text: str) -> float:
    return float(text.split("Test Loss:")[1].split(",")[0])
