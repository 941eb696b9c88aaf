"""scripts/show_detections.py: what is drawn is what the detector finds."""

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch
from conftest import Run, assert_one_line_error, write_images, write_no_files
from PIL import Image
from small_checkpoint import write_checkpoint
from small_coco import NAMES, write_detector
from test_decoding import turned
from torch import Tensor, nn
from torchvision.transforms.functional import pil_to_tensor

from scripts.show_detections import Found, detect, drawn, restore

CPU = torch.device("cpu")
GREY = 100  # of the image
SCRIPT = "scripts/show_detections.py"


class Finds(nn.Module):
    """Whatever it sees, finds objects of these labels: all of each box is mask, but for its probability."""

    def __init__(self, boxes: list[list[int]], labels: list[int], masks: tuple[float, ...] = ()) -> None:
        super().__init__()
        self.boxes, self.labels, self.masks = boxes, labels, masks

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        scores = torch.linspace(0.9, 0.4, len(self.labels))
        found = {"boxes": torch.tensor(self.boxes).float(), "labels": torch.tensor(self.labels)}
        if not self.masks:
            return [{**found, "scores": scores}]
        masks = torch.zeros(len(self.labels), 1, *images[0].shape[1:])
        for mask, (left, top, right, bottom), probability in zip(masks, self.boxes, self.masks, strict=True):
            mask[0, top:bottom, left:right] = probability
        return [{**found, "scores": scores, "masks": masks}]


@pytest.fixture
def image() -> Image.Image:
    return Image.new("RGB", (960, 800), (GREY, GREY, GREY))


def picture_of(net: nn.Module, image: Image.Image) -> Tensor:
    return pil_to_tensor(drawn(image, detect(net, image, NAMES, 0.3, CPU)))


def test_what_is_found_and_drawn(image: Image.Image) -> None:
    net = Finds([[100, 200, 300, 400], [400, 80, 600, 600]], [1, 3], (0.9, 0.4))  # the second has no mask
    assert str(detect(net, image, NAMES, 0.3, CPU)) == "cat 90 %, owl 40 %"
    surer = detect(net, image, NAMES, 0.5, CPU)
    assert (str(surer), surer.names, surer.boxes.tolist()) == ("cat 90 %", ["cat"], [[100, 200, 300, 400]])
    changed = (pil_to_tensor(drawn(image, surer)) != GREY).any(0)
    assert changed[200:400, 100:300].all()  # the mask
    assert changed[400, 100:301].all()  # the box
    assert not changed[405:, :].any()
    assert not changed[:, 350:].any()
    assert not (pil_to_tensor(drawn(image, detect(net, image, NAMES, 1.0, CPU))) != GREY).any()


def test_masks_that_overlap_keep_their_colours(image: Image.Image) -> None:
    """The smaller is seen, whichever is the surer; its colour is that which it has alone."""
    large, small = [200, 200, 800, 700], [300, 300, 500, 500]
    alone = [picture_of(Finds([box], [label], (0.9,)), image) for box, label in ((large, 1), (small, 3))]
    for boxes, labels in (([large, small], [1, 3]), ([small, large], [3, 1])):
        both = picture_of(Finds(boxes, labels, (0.9, 0.9)), image)
        assert torch.equal(both[:, 310:490, 310:490], alone[1][:, 310:490, 310:490])
        assert torch.equal(both[:, 520:690, 210:790], alone[0][:, 520:690, 210:790])
        assert not torch.equal(both[:, 400, 400], both[:, 600, 600])


def test_instances_of_a_class_are_told_apart(image: Image.Image) -> None:
    boxes = [
        [250 * (i % 3) + 50, 250 * (i // 3) + 50, 250 * (i % 3) + 250, 250 * (i // 3) + 250] for i in range(9)
    ]
    picture = picture_of(Finds(boxes, [1] * 9, (0.9,) * 9), image)
    fills = {tuple(picture[:, (box[1] + box[3]) // 2, (box[0] + box[2]) // 2].tolist()) for box in boxes}
    assert len(fills) == 9
    hidden = [[100, 100, 500, 500], [200, 200, 600, 600]]  # two of a class, one over the other
    picture = picture_of(Finds(hidden, [2, 2], (0.9, 0.9)), image)
    edges = [tuple(picture[:, y, x].tolist()) for x, y in ((100, 300), (500, 300), (200, 300), (600, 400))]
    assert edges[0] == edges[1] != edges[2] == edges[3]


@pytest.mark.parametrize("size", [(960, 800), (48, 40), (30, 90)])
@pytest.mark.parametrize("place", ["middle", "border"])
def test_labels_stay_readable(size: tuple[int, int], place: str) -> None:
    """Of objects at one place, and at the image's border, all labels are seen in full."""
    image = Image.new("RGB", size, (GREY, GREY, GREY))
    width, height = size
    box = [width // 3, height // 3, width // 2, height // 2]
    if place == "border":
        box = [width - 3, 0, width, 3]
    together = label_pixels(picture_of(Finds([box] * 3, [1, 2, 3]), image), box, width)
    for label in (1, 2, 3):
        ((colour, count),) = label_pixels(picture_of(Finds([box], [label]), image), box, width).items()
        assert count > 300
        assert together[colour] > 0.8 * count


def label_pixels(picture: Tensor, box: list[int], width: int) -> dict[int, int]:
    """How many pixels have the colour of each label, without the lines of the box."""
    left, top, right, bottom = (picture.shape[2] // width * side for side in box)
    lines = torch.zeros(picture.shape[1:], dtype=torch.bool)
    lines[max(top - 4, 0) : bottom + 4, max(left - 4, 0) : right + 4] = True
    lines[top + 4 : bottom - 4, left + 4 : right - 4] = False
    red, green, blue = picture[:, ~lines].int()
    colours, counts = (red << 16 | green << 8 | blue).unique(return_counts=True)
    found = dict(zip(colours.tolist(), counts.tolist(), strict=True))
    others = (0, 0xFFFFFF, GREY << 16 | GREY << 8 | GREY)  # of letters and image
    return {colour: count for colour, count in found.items() if count > 200 and colour not in others}


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.pictures: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.pictures += [unquote(value or "") for name, value in attributes if (tag, name) == ("img", "src")]


def test_pictures_and_a_page_over_them(tmp_path: Path, call: Run) -> None:
    write_detector(tmp_path / "net.pth.tar", "faster_rcnn", "resnet18")
    write_images(tmp_path / "photos" / "in", 2)
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"no picture")
    Image.new("RGB", (30, 20)).save(tmp_path / "photos" / "turned.jpg", exif=turned())
    no_files = write_no_files(tmp_path / "photos")
    result = call("--resume", "net.pth.tar", "photos", "-o", "out", "--threshold", 0, script=SCRIPT)
    assert result.returncode == 0, result.stderr
    for name in ("broken.jpg", *no_files):
        assert f"note: cannot decode photos/{name}" in result.stdout
    assert "wrote out/: 3 pictures, index.html" in result.stdout
    again = ("--resume", "net.pth.tar", "photos/in/0.JPEG", "-o", "out")
    refused = call(*again, script=SCRIPT)
    assert_one_line_error(refused, "-o out is not empty: give another folder, or --overwrite")
    links = Links()
    links.feed((tmp_path / "out" / "index.html").read_text())
    assert links.pictures == sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    for name, sides in zip(links.pictures, ((48, 40), (48, 40), (20, 30)), strict=True):
        with Image.open(tmp_path / "out" / name) as picture:
            assert picture.width * sides[1] == picture.height * sides[0]
            assert min(picture.size) >= 600


def test_the_checkpoint_says_what_it_is(tmp_path: Path) -> None:
    write_detector(tmp_path / "net.pth.tar", "cascade_rcnn", "bam_resnet18", size=96)
    net, name, classes = restore(str(tmp_path / "net.pth.tar"))
    assert (name, list(classes)) == ("cascade_rcnn bam_resnet18", list(NAMES))
    assert not net.training
    assert isinstance(detect(net, Image.new("RGB", (50, 60)), classes, 0.5, CPU), Found)


def test_bad_input(tmp_path: Path, call: Run) -> None:
    write_images(tmp_path / "photos", 1)
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    write_checkpoint(tmp_path).rename(tmp_path / "classifier.pth.tar")
    write_detector(tmp_path / "net.pth.tar", "faster_rcnn", "resnet18")
    for flags, fragment in (
        (("--resume", "nowhere", "photos"), "nowhere"),
        (("--resume", "classifier.pth.tar", "photos"), ", no detector: give a checkpoint of detection"),
        (("--resume", "net.pth.tar", "nowhere.jpg"), "nowhere.jpg"),
        (("--resume", "net.pth.tar", "broken.jpg"), "none of 1 image can be decoded"),
        (("--resume", "net.pth.tar", "photos", "--threshold", 2), "--threshold"),
        (("--resume", "net.pth.tar", "photos", "-o", "broken.jpg"), "-o broken.jpg"),
    ):
        assert_one_line_error(call(*flags, script=SCRIPT), fragment)
