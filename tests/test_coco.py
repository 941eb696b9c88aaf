"""COCO's annotations and images: what is learned, what is refused, flips, batches of one shape."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle_masks
from small_coco import IDS, NAMES, save, write_coco
from torch import Tensor

from detection.coco import CocoSplit, decode_masks, read_coco
from detection.loading import (
    CHUNK,
    GroupedBatches,
    RaggedLoader,
    coco_training_loader,
    coco_validation_loader,
)
from utils.common.distributed import ONE_PROCESS
from utils.common.errors import UserError
from utils.data.loading import Reading
from utils.data.sampling import Position, SampleKey, TrainBatches

TRAIN = "train2017"
# pycocotools 2.0.11 under NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    write_coco(tmp_path / "coco", TRAIN, 7)
    return tmp_path / "coco"


def read(root: Path, training: bool = True, masks: bool = False) -> CocoSplit:
    return read_coco(root, TRAIN, training, masks)


def change(root: Path, how: Callable[[dict[str, Any]], object], split: str = TRAIN) -> dict[str, Any]:
    """Let a function change an annotation file."""
    content = json.loads((root / "annotations" / f"instances_{split}.json").read_text())
    how(content)
    return save(root, split, content)


def training(
    split: CocoSplit, hflip: float = 0.5, batch: int = 2, workers: int = 0, max_bad: float = 0.5
) -> RaggedLoader[TrainBatches]:
    return coco_training_loader(split, hflip, batch, 1, Reading(workers, max_bad), ONE_PROCESS)


def test_labels_and_categories(coco: Path) -> None:
    split = read(coco)
    assert (split.ids, split.classes) == (IDS, NAMES)
    assert str(split) == "7 images with 21 objects of 3 classes"


def test_boxes_labels_and_masks_are_those_of_the_file(coco: Path) -> None:
    content = change(coco, lambda content: content["annotations"].reverse())
    split = read(coco, masks=True)
    assert split.image_ids == [image["id"] for image in content["images"]]
    for (path, target), image in zip(split.samples, content["images"], strict=True):
        given = [one for one in content["annotations"] if one["image_id"] == image["id"]]
        assert path == f"{coco}/{TRAIN}/{image['file_name']}"
        assert (target.image_id, target.size) == (image["id"], (image["width"], image["height"]))
        corners = [[x, y, x + width, y + height] for x, y, width, height in (one["bbox"] for one in given)]
        assert target.boxes.tolist() == corners
        assert [split.ids[label - 1] for label in target.labels] == [one["category_id"] for one in given]
        masks = decode_masks(target.masks, *target.size)
        assert masks.sum((1, 2)).tolist() == [one["area"] for one in given]


def test_any_year(tmp_path: Path) -> None:
    write_coco(tmp_path, "train2014", 2)
    write_coco(tmp_path, "val", 3)
    for name in ("train", "train2014"):
        assert len(read_coco(tmp_path, name, training=True).samples) == 2
    assert len(read_coco(tmp_path, "val", training=False).samples) == 3
    write_coco(tmp_path, "train_mine", 4)
    with pytest.raises(UserError, match=r"found instances_train2014\.json and instances_train_mine\.json"):
        read_coco(tmp_path, "train", training=True)
    assert len(read_coco(tmp_path, "train_mine", training=True).samples) == 4


@pytest.mark.parametrize("masks", [False, True])
def test_what_is_not_learned(coco: Path, capsys: pytest.CaptureFixture[str], masks: bool) -> None:
    def spoil(content: dict[str, Any]) -> None:
        objects = content["annotations"]
        objects[0]["iscrowd"] = 1
        boxes = {1: [3, 4, 0, 5], 2: [3, 4, 5, -1], 3: [float("nan"), 0, 5, 5], 4: [0, 0, float("inf"), 5]}
        boxes |= {5: [500, 5, 9, 9], 6: [600, 4, 1e-7, 9], 7: [-10, -10, 20, 500]}
        for i, box in boxes.items():
            objects[i]["bbox"] = box
        content["images"][6].update(width=31)  # read before the file is

    change(coco, spoil)
    split = read(coco, masks=masks)
    assert "6 objects left out" in capsys.readouterr().out
    assert split.image_ids == [998, 997, 996, 995]  # of the first two nothing is left
    width, height = split.samples[0][1].size
    assert split.samples[0][1].boxes[0].tolist() == [0, 0, 10, min(height, 490)]
    assert len(read(coco, training=False).samples) == 7
    assert all(len(target.labels) <= 3 for _, target in read(coco, training=False).samples)
    assert (width, height) != (31, 31)


def test_masks_that_are_none(coco: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong: list[Any] = [None, [], [[1, 2]], {"size": [3, 3], "counts": [9]}, "no mask", {"counts": [2]}]
    wrong.append({"size": [3, 3], "counts": "9"})

    def spoil(content: dict[str, Any]) -> None:
        for one, segmentation in zip(content["annotations"], wrong, strict=False):
            one["segmentation"] = segmentation

    change(coco, spoil)
    assert "with 14 objects of" in str(read(coco, masks=True))
    assert "7 objects left out, no box and mask of any area" in capsys.readouterr().out
    assert "with 21 objects of" in str(read(coco))
    change(coco, lambda content: content["annotations"][0].update(iscrowd=1))
    with pytest.raises(UserError, match=r"annotation 1 has no mask\): mend it"):  # of crowds too
        read(coco, training=False, masks=True)


def test_run_lengths_in_lists_and_in_text(coco: Path) -> None:
    expected = [target.masks for _, target in read(coco, masks=True).samples]

    def rewrite(content: dict[str, Any]) -> None:
        sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
        for i, one in enumerate(content["annotations"]):
            size = sizes[one["image_id"]]
            run = rle_masks.merge(rle_masks.frPyObjects(one["segmentation"], *size))
            ends = np.flatnonzero(np.diff(rle_masks.decode(run).flatten(order="F"))) + 1
            counts = np.diff([0, *ends, size[0] * size[1]]).tolist()
            first_is_set = rle_masks.decode(run)[0, 0]
            listed = [0, *counts] if first_is_set else counts
            one["segmentation"] = {"size": list(size), "counts": listed if i % 2 else run["counts"].decode()}

    change(coco, rewrite)
    assert [target.masks for _, target in read(coco, masks=True).samples] == expected


def remove(key: str, which: str = "annotations") -> Callable[[dict[str, Any]], object]:
    return lambda content: content[which][2].pop(key)


def put(key: str, value: Any, which: str = "annotations") -> Callable[[dict[str, Any]], object]:
    return lambda content: content[which][2].update({key: value})


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (remove("bbox"), "not of COCO's form.*'bbox'.*mend it"),
        (remove("width", "images"), "not of COCO's form.*'width'"),
        (put("width", 12.5, "images"), "not of COCO's form"),
        (put("bbox", [1, 2, 3]), "not of COCO's form"),
        (put("bbox", ["a", 2, 3, 4]), "not of COCO's form"),
        (put("image_id", [4]), "not of COCO's form"),
        (put("id", 10**30, "images"), "annotation 7 is of image 998, category .*: unknown"),
        (lambda content: content.pop("annotations"), "not of COCO's form"),
        (lambda content: content.update(annotations={"a": 1}), "not of COCO's form"),
        (put("image_id", 5), r"annotation 3 is of image 5, category \d+: unknown\): mend it"),
        (put("category_id", 2), r"annotation 3 is of image 1000, category 2: unknown\): mend it"),
        (put("id", 1000, "images"), r"two images have one id\): mend it"),
        (put("id", 90, "categories"), r"two categories or .* have one id\): mend it"),
        (put("file_name", "x.png", "images"), r"1 image of .* missing, as .*/x\.png: unpack"),
        (put("file_name", "sub/x.png", "images"), r"1 image of .* missing, as .*/sub/x\.png: unpack"),
        (lambda content: content.update(annotations=[]), "has no images with objects"),
    ],
)
def test_files_that_are_wrong(coco: Path, how: Callable[[dict[str, Any]], object], message: str) -> None:
    change(coco, how)
    with pytest.raises(UserError, match=message) as error:
        read(coco)
    assert "\n" not in str(error.value)


def test_an_image_without_pixels_is_not_learned(coco: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(coco, put("width", 0, "images"))
    assert len(read(coco, masks=True).samples) == 6
    assert "3 objects left out" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "{", "\x00", "[" * 100_000, "[]", "3"])
def test_files_that_are_something_else(coco: Path, text: str) -> None:
    save(coco, TRAIN, text)
    with pytest.raises(UserError, match=r"instances_train2017\.json is not .*: mend it"):
        read(coco)


def test_files_that_are_not_there(coco: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"looked for one annotations/instances_val2017.*found none; give"):
        read_coco(coco, "val2017", training=False)
    with pytest.raises(UserError, match=r"--data .*nowhere: looked for"):
        read_coco(tmp_path / "nowhere", TRAIN, training=True)
    (coco / TRAIN).rename(coco / "elsewhere")
    with pytest.raises(UserError, match=r"7 images of .* missing, as .*train2017/.*: unpack"):
        read(coco)


def test_images_in_folders(coco: Path) -> None:
    change(coco, put("file_name", "sub/x.png", "images"))
    (coco / TRAIN / "sub").mkdir()
    (coco / TRAIN / "0002.png").rename(coco / TRAIN / "sub" / "x.png")
    assert read(coco).samples[2][0] == f"{coco}/{TRAIN}/sub/x.png"


def test_other_classes_than_those_of_the_checkpoint(coco: Path) -> None:
    assert read_coco(coco, TRAIN, training=True, known=NAMES).classes == NAMES
    with pytest.raises(UserError, match=r"the categories of checkpoint .*\(dog, emu\): give its data"):
        read_coco(coco, TRAIN, training=True, known=("cat", "emu", "owl"))
    with pytest.raises(UserError, match=r"\(another order\)"):
        read_coco(coco, TRAIN, training=True, known=NAMES[::-1])


def samples_of(split: CocoSplit, **settings: Any) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """Every image that the training loader gives, by its id."""
    pairs = [pair for batch in training(split, batch=1, **settings) for pair in zip(*batch, strict=True)]
    return sorted(pairs, key=lambda pair: int(pair[1]["image_id"]))


def test_a_flip_by_hand(coco: Path) -> None:
    split = read(coco, masks=True)
    plain, flipped = (samples_of(split, hflip=hflip) for hflip in (0.0, 1.0))
    assert len(plain) == 7
    for (image, target), (mirrored, other) in zip(plain, flipped, strict=True):
        width = image.shape[2]
        assert torch.equal(mirrored, image.flip(2))
        left, top, right, bottom = target["boxes"].T
        assert torch.equal(other["boxes"], torch.stack([width - right, top, width - left, bottom], 1))
        assert torch.equal(other["masks"], target["masks"].flip(2))
        assert torch.equal(other["labels"], target["labels"])
        for mask, box in zip(other["masks"], other["boxes"].tolist(), strict=True):
            rows, columns = mask.nonzero().T
            edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert [int(edge) for edge in edges] == box


def test_half_of_the_images_are_flipped_and_seed_and_epoch_say_which(coco: Path) -> None:
    loader = training(read(coco))
    plain = {int(target["image_id"]): image for image, target in samples_of(read(coco), hflip=0.0)}

    def flips(epoch: int) -> list[bool]:
        keys = [SampleKey(epoch, sample) for sample in range(7)]
        samples: list[Any] = [loader.dataset[key] for key in keys]
        return [not torch.equal(s.image / 255, plain[int(s.label["image_id"])]) for s in samples]

    drawn = [flips(epoch) for epoch in range(8)]
    assert drawn == [flips(epoch) for epoch in range(8)]
    assert 0.3 < np.mean(drawn) < 0.7
    assert len({tuple(one) for one in drawn}) > 1


def test_images_and_targets(coco: Path) -> None:
    change(coco, lambda content: content.update(annotations=content["annotations"][3:]))
    split = read(coco, training=False, masks=True)
    loader = coco_validation_loader(split, 2, Reading(max_bad=0.5), ONE_PROCESS)
    batches: list[Any] = list(loader)
    assert [len(images) for images, _ in batches] == [len(targets) for _, targets in batches] == [2, 2, 2, 1]
    image, target = batches[0][0][0], batches[0][1][0]
    pixels = np.asarray(Image.open(split.samples[0][0]))
    assert (image.dtype, type(image)) == (torch.float32, Tensor)
    assert torch.equal(image, torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255)
    assert target["boxes"].shape == (0, 4)
    assert target["masks"].shape == (0, *image.shape[1:])
    dtypes = {key: value.dtype for key, value in batches[0][1][1].items()}
    assert dtypes == {
        "boxes": torch.float32,
        "labels": torch.int64,
        "image_id": torch.int64,
        "masks": torch.uint8,
    }


def test_batches_do_not_depend_on_workers(coco: Path) -> None:
    split = read(coco, masks=True)
    loaders = [training(split, workers=workers) for workers in (0, 1, 2)]
    list(loaders[1])  # an earlier pass must not matter
    for loader in loaders:
        loader.batches.set_position(Position(3))
    steps: list[Any] = [list(loader) for loader in loaders]
    for (images, targets), *others in zip(*steps, strict=True):
        for other_images, other_targets in others:
            assert all(map(torch.equal, images, other_images))
            for target, other in zip(targets, other_targets, strict=True):
                assert all(torch.equal(value, other[key]) for key, value in target.items())


def test_files_that_cannot_be_decoded_or_have_another_size(
    coco: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (coco / TRAIN / "0001.png").write_bytes(b"no picture")
    Image.new("RGB", (20, 30)).save(coco / TRAIN / "0002.png")
    loader = training(read(coco, masks=True), batch=7)
    ((images, targets),) = loader
    assert len(images) == len(targets) == 7
    assert not {999, 998} & {int(target["image_id"]) for target in targets}
    loader.report(ONE_PROCESS)
    output = capsys.readouterr().out
    assert "note: cannot decode" in output
    assert "0002.png (ValueError: it has 20 x 30 pixels, by its annotations " in output
    assert "2 images could not be decoded: replaced by others" in output
    with pytest.raises(UserError, match=r"more than --max-bad allows; the first: .*0001.*\)$"):
        list(training(read(coco), max_bad=0.1, batch=7))


WIDE = torch.rand(300, generator=torch.Generator().manual_seed(0)) < 0.7


@pytest.mark.parametrize("batch", [1, 2, 4, 8, 16])
def test_batches_of_one_shape(batch: int) -> None:
    batches = GroupedBatches(WIDE, batch, 5)
    shapes = [{bool(WIDE[key.sample]) for key in samples} for samples in batches]
    mixed = [position for position, shape in enumerate(shapes) if len(shape) > 1]
    whole = sum(int(torch.eq(WIDE, wide).sum()) // CHUNK for wide in (True, False)) * CHUNK // batch
    assert len(mixed) <= 1
    assert all(position >= whole for position in mixed)
    chunks = WIDE[batches.order()[: whole * batch : CHUNK]].tolist()
    assert chunks not in (sorted(chunks), sorted(chunks, reverse=True))


def test_the_order_is_of_every_image_once_and_of_seed_and_epoch_alone() -> None:
    orders = [
        GroupedBatches(WIDE, batch, 5, 1, 0, processes).order() for batch, processes in [(2, 1), (3, 4)]
    ]
    assert torch.equal(*orders)
    assert orders[0].sort().values.tolist() == list(range(300))
    batches = GroupedBatches(WIDE, 2, 5)
    batches.set_position(Position(1, 8))
    assert not torch.equal(batches.order(), orders[0])
    assert not torch.equal(GroupedBatches(WIDE, 2, 6).order(), orders[0])
    first = GroupedBatches(WIDE, 2, 5)
    first.set_position(Position(1))
    assert [*first][4:] == [*batches]  # resumed after eight images
    alone = torch.ones(5, dtype=torch.bool)
    assert sorted(GroupedBatches(alone, 2, 5).order().tolist()) == [0, 1, 2, 3, 4]


def test_processes_share_a_step() -> None:
    parts = [[*GroupedBatches(WIDE, 4, 5, 1, rank, 2)] for rank in range(2)]
    together = [a + b for a, b in zip(*parts, strict=True)]
    assert together == [*GroupedBatches(WIDE, 8, 5)]
