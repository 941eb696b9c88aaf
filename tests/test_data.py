"""From files to batches: folders, colour modes, broken files, independence of the workers."""

import io
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_images
from PIL import Image

from utils.common.distributed import ONE_PROCESS
from utils.common.errors import UserError
from utils.data.decoding import Box, decode
from utils.data.digits import write_digits
from utils.data.loading import DeviceLoader, ImageDataset, Reading, stack
from utils.data.sampling import EvalBatches, Position, SampleKey, TrainBatches
from utils.data.splits import open_data
from utils.data.transforms import MEAN, STD, TrainTransform, ValTransform

CPU = torch.device("cpu")
TO_32 = partial(stack, size=32)
WHOLE = Box(0, 0, 0, 0)  # not looked at


def loader(images: Path, workers: int, batch: int = 5, seed: int = 1) -> DeviceLoader[TrainBatches]:
    split = open_data(str(images), evaluate=False).train
    assert split is not None
    dataset = ImageDataset(split, TrainTransform(32), seed, substitute=True)
    return DeviceLoader(dataset, TrainBatches(len(dataset), batch, seed), TO_32, Reading(workers), CPU)


@pytest.mark.parametrize("name", ["val", "valf", "valid", "validation"])
def test_names_of_the_validation_split(tmp_path: Path, name: str) -> None:
    write_images(tmp_path / "train" / "a", 2)
    write_images(tmp_path / name / "a", 3)
    splits = open_data(str(tmp_path), evaluate=False)
    assert splits.train is not None
    assert (len(splits.train.samples), len(splits.val.samples)) == (2, 3)


@pytest.mark.parametrize(
    ("whole", "flat"),
    [("valf", "val"), ("val", "valf"), ("valf", "valid"), ("valid", "valf"), ("validation", "val")],
)
@pytest.mark.parametrize("file", ["0.JPEG", "notes.txt"])
def test_of_two_validation_folders_the_one_with_classes_is_read(
    tmp_path: Path, whole: str, flat: str, file: str
) -> None:
    write_images(tmp_path / whole / "a", 1)
    (tmp_path / flat).mkdir()
    (tmp_path / flat / file).touch()
    ((path, _),) = open_data(str(tmp_path), evaluate=True).val.samples
    assert path == f"{tmp_path}/{whole}/a/0.JPEG"


@pytest.mark.parametrize("others", [("val",), ("valid", "validation")])
def test_two_validation_folders_with_classes(tmp_path: Path, others: tuple[str, ...]) -> None:
    """Which one is meant cannot be told, unless they are one."""
    write_images(tmp_path / "valf" / "a", 1)
    for name in others:
        (tmp_path / name).symlink_to("valf")
    assert len(open_data(str(tmp_path), evaluate=True).val.samples) == 1
    (tmp_path / others[-1]).unlink()
    write_images(tmp_path / others[-1] / "a", 1)
    with pytest.raises(UserError, match=r"val\w*/ and val\w*/.* have class folders: rename"):
        open_data(str(tmp_path), evaluate=True)


def test_a_flat_validation_folder(tmp_path: Path) -> None:
    write_images(tmp_path / "train" / "a", 1)
    write_images(tmp_path / "val", 1)
    with pytest.raises(
        UserError, match=r"val has no class folders.* move each image .*prepare_imagenet.py \S+ TARGET"
    ):
        open_data(str(tmp_path), evaluate=True)


def test_labels_come_from_the_training_folders(images: Path) -> None:
    for path in (images / "valf" / "cat").iterdir():
        path.unlink()
    (images / "valf" / "cat").rmdir()
    splits = open_data(str(images), evaluate=True)
    assert splits.val.classes == ("cat", "dog", "owl")
    assert {label for _, label in splits.val.samples} == {1, 2}


def test_evaluation_needs_no_training_folder(tmp_path: Path) -> None:
    write_images(tmp_path / "val" / "a", 2)
    assert open_data(str(tmp_path), evaluate=True).train is None
    with pytest.raises(UserError, match="train/"):
        open_data(str(tmp_path), evaluate=False)


def test_class_folders_that_training_lacks(images: Path) -> None:
    write_images(images / "valf" / "emu", 1)
    with pytest.raises(UserError, match="emu"):
        open_data(str(images), evaluate=True)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
def test_every_colour_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("x.JPEG" if mode == "CMYK" else "x.png")
    Image.new("RGB", (9, 7), (204, 204, 204)).convert(mode).save(path)
    image = decode(str(path))
    assert (image.mode, image.size) == ("RGB", (9, 7))
    if mode != "1":
        assert np.abs(np.asarray(image).astype(int) - 204).max() <= 3


def test_a_png_named_jpeg(tmp_path: Path) -> None:
    Image.new("RGB", (9, 7), (1, 2, 3)).save(tmp_path / "x.JPEG", format="PNG")
    assert decode(str(tmp_path / "x.JPEG")).getpixel((0, 0)) == (1, 2, 3)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 257 * 100, 65535]], dtype=np.uint16)).save(tmp_path / "x.png")
    assert [decode(str(tmp_path / "x.png")).getpixel((x, 0)) for x in range(3)] == [
        (0,) * 3,
        (100,) * 3,
        (255,) * 3,
    ]


def test_a_transparent_palette(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4))
    image.putpalette([10, 20, 30] * 256)
    image.save(tmp_path / "x.png", transparency=bytes([0] * 256))
    assert decode(str(tmp_path / "x.png")).getpixel((0, 0)) == (10, 20, 30)


def test_validation_is_the_classical_resize_and_centre_crop() -> None:
    generator = np.random.default_rng(0)
    image = Image.fromarray(generator.integers(0, 256, (300, 400, 3), dtype=np.uint8))
    resized = image.resize((341, 256), Image.Resampling.BILINEAR)
    left, top = round((341 - 224) / 2), (256 - 224) // 2
    expected = np.asarray(resized.crop((left, top, left + 224, top + 224)))
    assert np.array_equal(ValTransform(224)(image, WHOLE).permute(1, 2, 0).numpy(), expected)


def test_batches_do_not_depend_on_workers_or_earlier_passes(images: Path) -> None:
    alone, many = loader(images, workers=0), loader(images, workers=2)
    list(alone)
    for epoch in (0, 3):
        for batches in (alone, many):
            batches.batches.set_position(Position(epoch))
        for (a, la), (b, lb) in zip(alone, many, strict=True):
            assert torch.equal(a, b)
            assert torch.equal(la, lb)


def test_augmentation_differs_between_epochs_and_seeds(tmp_path: Path) -> None:
    write_images(tmp_path / "train" / "a", 1)
    write_images(tmp_path / "val" / "a", 1)

    def draw(seed: int, epoch: int) -> torch.Tensor:
        batches = loader(tmp_path, workers=0, seed=seed)
        batches.batches.set_position(Position(epoch))
        return next(iter(batches))[0]

    assert torch.equal(draw(1, 0), draw(1, 0))
    assert not torch.equal(draw(1, 0), draw(1, 1))
    assert not torch.equal(draw(1, 0), draw(2, 0))


def test_images_are_normalised_by_imagenets_mean_and_deviation(tmp_path: Path) -> None:
    write_images(tmp_path / "val" / "a", 1, size=(64, 64))
    split = open_data(str(tmp_path), evaluate=True).val
    images, labels = next(
        iter(
            DeviceLoader(
                ImageDataset(split, ValTransform(56), 0),
                EvalBatches(1, 1),
                partial(stack, size=56),
                Reading(),
                CPU,
            )
        )
    )
    pixels = ValTransform(56)(decode(split.samples[0][0]), WHOLE).double() / 255
    mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (MEAN, STD))
    assert torch.allclose(images[0].double(), (pixels - mean) / std, atol=1e-6)
    assert labels.tolist() == [0]


def break_two(images: Path) -> None:
    truncated = images / "train" / "cat" / "0.JPEG"
    truncated.write_bytes(truncated.read_bytes()[:200])
    (images / "train" / "dog" / "1.JPEG").write_bytes(b"")


def test_in_training_another_file_takes_the_place_of_a_broken_one(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    break_two(images)
    batches = loader(images, workers=0, batch=8)
    first_labels, again = (torch.cat([labels for _, labels in loader(images, 0, 8)]) for _ in range(2))
    assert [len(labels) for _, labels in batches] == [8, 8, 8]
    assert torch.equal(first_labels, again)
    batches.report(ONE_PROCESS)
    first = capsys.readouterr().out
    assert "cat/0.JPEG" in first
    assert "dog/1.JPEG" in first
    assert "2 images could not be decoded: replaced by others" in first
    list(batches)
    batches.report(ONE_PROCESS)
    second = capsys.readouterr().out
    assert "JPEG" not in second
    assert "2 images" in second


def test_in_evaluation_a_broken_file_is_left_out(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    break_two(images)
    split = open_data(str(images), evaluate=False).train
    assert split is not None
    dataset = ImageDataset(split, ValTransform(32), 0)
    batches = DeviceLoader(dataset, EvalBatches(len(dataset), 1), TO_32, Reading(), CPU)
    assert [len(labels) for _, labels in batches].count(0) == 2
    batches.report(ONE_PROCESS)
    assert "2 images could not be decoded: left out" in capsys.readouterr().out


def test_only_broken_files(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)
        (tmp_path / split / "a" / "x.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"1 of 1 image cannot be decoded.*x\.png"):
        list(loader(tmp_path, workers=0))
    dataset = ImageDataset(open_data(str(tmp_path), evaluate=True).val, ValTransform(32), 0)
    batches = DeviceLoader(dataset, EvalBatches(1, 1), TO_32, Reading(), CPU)
    assert [len(labels) for _, labels in batches] == [0]
    with pytest.raises(UserError, match=r"1 of 1 image cannot be decoded.*x\.png"):
        batches.report(ONE_PROCESS)


@pytest.mark.parametrize(
    "flags", [{"auto_augment": "ra"}, {"auto_augment": "ta"}, {"auto_augment": "imagenet"}]
)
def test_stronger_augmentation_is_seeded_and_keeps_the_format(images: Path, flags: dict[str, Any]) -> None:
    split = open_data(str(images), evaluate=False).train
    assert split is not None

    def sample(flags: dict[str, Any], epoch: int) -> torch.Tensor:
        transform = TrainTransform(32, **flags)
        image = ImageDataset(split, transform, 1)[SampleKey(epoch, 3)].image
        assert image is not None
        return image

    drawn = [sample(flags, epoch) for epoch in range(8)]
    assert {(image.shape, image.dtype) for image in drawn} == {((3, 32, 32), torch.uint8)}
    assert all(torch.equal(sample(flags, epoch), image) for epoch, image in enumerate(drawn))
    assert any(not torch.equal(sample({}, epoch), image) for epoch, image in enumerate(drawn))


def test_random_erasing_sets_a_box_to_the_mean_colour(images: Path) -> None:
    mean = torch.tensor([round(255 * value) for value in MEAN])[:, None, None]
    transform = TrainTransform(32, (0.9, 1.0), hflip=0.0, random_erase=1.0)
    image = transform(Image.new("RGB", (40, 40), (0, 0, 0)), Box(2, 2, 36, 38))
    erased = (image.int() - mean).abs().amax(dim=0) <= 1
    assert image.dtype == torch.uint8
    assert 0.01 < erased.float().mean() < 0.4


def test_digits_are_written_once(tmp_path: Path) -> None:
    folder = write_digits(tmp_path / "data" / "digits")
    counts = {split: len(list((folder / split).glob("*/*.png"))) for split in ("train", "val")}
    assert counts == {"train": 1437, "val": 360}
    assert list((tmp_path / "data").iterdir()) == [folder]
    for split, share in (("train", 0.8), ("val", 0.2)):
        for digit in range(10):
            assert len(list((folder / split / str(digit)).iterdir())) == pytest.approx(179.7 * share, abs=6)
    one = next((folder / "train" / "0").iterdir())
    assert Image.open(io.BytesIO(one.read_bytes())).size == (8, 8)
    modified = one.stat().st_mtime_ns
    write_digits(folder)
    assert one.stat().st_mtime_ns == modified
