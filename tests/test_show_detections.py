"""scripts/show_detections.py: what is drawn is what the detector finds."""

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch
from conftest import Run, assert_one_line_error, write_images
from PIL import Image
from small_checkpoint import write_checkpoint
from small_coco import NAMES, write_detector
from torchvision.transforms.functional import pil_to_tensor

from scripts.show_detections import Found, detect, drawn, restore

SCRIPT = "scripts/show_detections.py"


class Sure(torch.nn.Module):
    """Finds a cat and, less surely, an owl, whatever it sees."""

    def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        height, width = images[0].shape[1:]
        masks = torch.zeros(2, 1, height, width)
        masks[0, 0, 10:20, 5:15] = 0.9
        masks[1, 0, 10:20, 5:15] = 0.4  # not there
        boxes = torch.tensor([[5.0, 10, 15, 20], [20, 4, 30, 30]])
        found = {"boxes": boxes, "labels": torch.tensor([1, 3]), "scores": torch.tensor([0.9, 0.4])}
        return [{**found, "masks": masks}]


@pytest.fixture
def image() -> Image.Image:
    return Image.new("RGB", (48, 40), (100, 100, 100))


def test_what_is_found_and_drawn(image: Image.Image) -> None:
    found = detect(Sure(), image, NAMES, 0.3, torch.device("cpu"))
    assert str(found) == "cat 90 %, owl 40 %"
    surer = detect(Sure(), image, NAMES, 0.5, torch.device("cpu"))
    assert (str(surer), surer.names, surer.boxes.tolist()) == ("cat 90 %", ["cat"], [[5, 10, 15, 20]])
    changed = (pil_to_tensor(drawn(image, surer)) != 100).any(0)
    assert changed[12:18, 7:13].all()  # the mask
    assert changed[19, 5:16].all()  # the box
    assert not changed[35:, 35:].any()
    assert not (
        pil_to_tensor(drawn(image, detect(Sure(), image, NAMES, 1.0, torch.device("cpu")))) != 100
    ).any()


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
    result = call("--resume", "net.pth.tar", "photos", "-o", "out", "--threshold", 0, script=SCRIPT)
    assert result.returncode == 0, result.stderr
    assert "note: cannot decode photos/broken.jpg" in result.stdout
    assert "wrote out/: 2 pictures, index.html" in result.stdout
    links = Links()
    links.feed((tmp_path / "out" / "index.html").read_text())
    assert links.pictures == sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    with Image.open(tmp_path / "out" / links.pictures[0]) as picture:
        assert picture.size == (48, 40)


def test_the_checkpoint_says_what_it_is(tmp_path: Path) -> None:
    write_detector(tmp_path / "net.pth.tar", "cascade_rcnn", "bam_resnet18", size=96)
    net, name, classes = restore(str(tmp_path / "net.pth.tar"))
    assert (name, list(classes)) == ("cascade_rcnn bam_resnet18", list(NAMES))
    assert not net.training
    assert isinstance(detect(net, Image.new("RGB", (50, 60)), classes, 0.5, torch.device("cpu")), Found)


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
