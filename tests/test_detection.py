"""detection/train.py as its user types it: it learns, resumes exactly, evaluates, refuses what is wrong."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run, assert_one_line_error
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from small_checkpoint import calibrated, fields
from small_coco import IDS, NAMES, save, write_coco
from test_imagenet import events

from detection import options
from detection.recipes import RECIPES
from scripts.show_detections import restore
from utils.networks import checkpoint
from utils.runs.folder import LAST

SCRIPT = "detection/train.py"
TRAIN, VAL = "train2017", "val2017"
SMALL = ("--data", "coco", "-a", "resnet18", "--min-size", 32, "--max-size", 48, "--manualSeed", 1)
DETECTORS = ("faster_rcnn", "mask_rcnn", "cascade_rcnn")
NARROW = {"backbone.CHANNELS": 32, "heads.HIDDEN": 64, "heads.MASK_CHANNELS": 16}

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:pycocotools")


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pyramid and heads that take a sixteenth of the time, of detectors made in this process."""
    for name, value in NARROW.items():
        monkeypatch.setattr(f"detection.{name}", value)


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    root = tmp_path / "coco"
    write_coco(root, TRAIN, 8)
    write_coco(root, VAL, 3, seed=1)
    return root


def rows(log: Path) -> list[dict[str, float]]:
    heads, *lines = ([cell for cell in line.split("\t") if cell] for line in log.read_text().splitlines())
    return [dict(zip(heads, map(float, line), strict=True)) for line in lines]


def state(path: Path) -> dict[str, Any]:
    """What must not depend on interruptions and workers."""
    saved = checkpoint.load(str(path))
    return {
        key: saved[key] for key in ("state_dict", "optimizer", "epoch", "acc", "best_acc", "rows", "seed")
    }


def assert_same(one: Any, other: Any) -> None:
    if isinstance(one, Mapping):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


@pytest.mark.slow
@pytest.mark.parametrize("detector", DETECTORS)
def test_the_loss_falls_in_20_steps(coco: Path, narrow: None, call: Run, detector: str) -> None:
    write_coco(coco.parent / "more", TRAIN, 20)
    write_coco(coco.parent / "more", VAL, 1)
    flags = ("--data", "more", "--model", detector, "--epochs", 2, "--warmup-steps", 4, "--lr", 0.08)
    result = call(*SMALL, *flags, "-c", "run", "-j", 0, script=SCRIPT)
    assert result.returncode == 0, result.stderr
    log = rows(coco.parent / "run" / "log.txt")
    assert log[-1]["Train Loss"] < 0.8 * log[0]["Train Loss"]
    parts = [value for name, value in log[0].items() if name.startswith("loss_")]
    assert len(parts) == (5 if detector == "mask_rcnn" else 4)
    assert sum(parts) == pytest.approx(log[0]["Train Loss"], abs=1e-5)
    assert ("Mask AP" in log[0]) == (detector == "mask_rcnn")
    assert (coco.parent / "run" / "curves.png").exists()
    assert "best AP: " in result.stdout
    assert {len(line) for line in result.stdout.splitlines() if " 2/2 " in line} <= set(range(60, 101))


def test_a_resumed_run_is_the_uninterrupted_one(coco: Path, narrow: None, call: Run) -> None:
    """With the detector of the checkpoint, gates included."""
    gates = ("--gate", "sge", "--gate-stages", 1, 4)
    flags = ("--data", "coco", "--epochs", 2, "--save-every", 2, "--keep", 9, "-p", 1)
    assert call(*SMALL, *gates, *flags, "-c", "whole", "-j", 0, script=SCRIPT).returncode == 0
    whole = coco.parent / "whole"
    middle = whole / "checkpoint-0001-0000004.pth.tar"
    assert middle.exists()
    result = call(*flags, "-c", "rest", "--resume", middle, "-j", 1, script=SCRIPT)
    assert result.returncode == 0, result.stderr
    said = f"as in {middle}: --model faster_rcnn --arch resnet18 --min-size 32 --max-size 48"
    assert result.stdout.startswith(f"{said} --gate sge --gate-stages 1 4\n")
    assert_same(state(coco.parent / "rest" / LAST), state(whole / LAST))
    assert restore(str(whole / LAST)).name == "faster_rcnn resnet18 --gate sge --gate-stages 1 4"
    other = call("--data", "coco", "-e", "--resume", whole / LAST, "--gate", "se", script=SCRIPT)
    held = (
        "holds faster_rcnn resnet18 --gate sge --gate-stages 1 4, not faster_rcnn resnet18 --gate se; give "
    )
    assert_one_line_error(other, held, "give --model faster_rcnn -a resnet18 --gate sge --gate-stages 1 4\n")
    points, rest = (events(folder)["step/loss"] for folder in (whole, coco.parent / "rest"))
    assert sorted(points) == list(range(1, 9))
    assert rest == {step: points[step] for step in (7, 8)}
    losses = [points[step] for step in range(1, 5)]
    assert sum(losses) / 4 == pytest.approx(rows(whole / "log.txt")[0]["Train Loss"], abs=1e-5)


def trained(coco: Path, call: Run, detector: str = "mask_rcnn") -> Path:
    """A checkpoint that finds something."""
    flags = ("--model", detector, "--epochs", 1, "--warmup-steps", 0, "-c", "run", "-j", 0)
    assert call(*SMALL, *flags, script=SCRIPT).returncode == 0
    return coco.parent / "run" / LAST


def direct(coco: Path, found: Path, kind: str) -> list[float]:
    truth = COCO(str(coco / "annotations" / f"instances_{VAL}.json"))
    records = [
        {k: v for k, v in one.items() if kind == "bbox" or k != "bbox"}
        for one in json.loads(found.read_text())
    ]
    evaluation = COCOeval(truth, truth.loadRes(records), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return [100 * float(value) for value in evaluation.stats]


def test_an_evaluation_is_that_of_pycocotools_whatever_the_processes(
    coco: Path, narrow: None, call: Run, launch: Run
) -> None:
    """In one process with what the checkpoint says, in two with flags for it."""
    saved = trained(coco, call)
    evaluate = ("-e", "--resume", saved, "-j", 0, "--detections")
    result = call("--data", "coco", *evaluate, "one.json", script=SCRIPT)
    assert result.returncode == 0, result.stderr
    said = "--model mask_rcnn --arch resnet18 --min-size 32 --max-size 48"
    assert result.stdout.startswith(
        f"as in {saved}: {said}\nmask_rcnn on resnet18 at 32 px, long sides at most 48"
    )
    before = (coco.parent / "one.json").read_bytes()
    refused = call("--data", "coco", *evaluate, "one.json", script=SCRIPT)
    assert_one_line_error(refused, "--detections one.json is there already", "--overwrite")
    assert (coco.parent / "one.json").read_bytes() == before
    for kind, name in (("bbox", "box"), ("segm", "mask")):
        (line,) = (line for line in result.stdout.splitlines() if line.startswith(f"{name:<4}  "))
        figures = [float(word) for word in line.split()[2::2]]
        expected = direct(coco, coco.parent / "one.json", kind)
        for figure, value in zip(figures, expected, strict=True):
            assert math.isnan(figure) if value < 0 else figure == pytest.approx(value, abs=0.051)
    script = coco.parent / "narrow.py"
    narrowed = "".join(f"detection.{name} = {value}\n" for name, value in NARROW.items())
    script.write_text(
        "import detection.train\n"
        "from utils.command_line import cli\n"
        f"{narrowed}"
        "cli.run(detection.train.main)\n"
    )
    several = launch(script, *SMALL, "--model", "mask_rcnn", *evaluate, "two.json")
    assert several.returncode == 0, several.stderr
    one, two = (json.loads((coco.parent / f"{name}.json").read_text()) for name in ("one", "two"))
    assert one == two


@pytest.mark.slow
def test_two_processes_resume_exactly(coco: Path, launch: Run) -> None:
    flags = (*SMALL, "--model", "cascade_rcnn", "--epochs", 2, "--save-every", 1, "--keep", 9, "-j", 0)
    assert launch(SCRIPT, *flags, "-c", "whole").returncode == 0
    middle = coco.parent / "whole" / "checkpoint-0001-0000004.pth.tar"
    assert launch(SCRIPT, *flags, "-c", "rest", "--resume", middle).returncode == 0
    assert_same(state(coco.parent / "rest" / LAST), state(coco.parent / "whole" / LAST))


@pytest.mark.parametrize("recipe", [recipe.name for recipe in RECIPES])
def test_a_recipe_sets_the_published_values(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = (row for row in RECIPES if row.name == recipe)
    args = parsed(monkeypatch, "--recipe", recipe)
    assert (args.model, args.arch, args.epochs) == (row.detector, row.arch, row.epochs)
    assert (tuple(args.schedule), args.train_batch) == (row.steps, row.images)
    assert args.lr * 8 * args.train_batch / options.IMAGES == pytest.approx(row.rate)
    common = (args.momentum, args.weight_decay, args.gamma, args.clip_grad, args.warmup_steps, args.hflip)
    assert common == (0.9, 1e-4, 0.1, 35.0, 500, 0.5)
    own = parsed(monkeypatch, "--epochs", "3", "--recipe", recipe, "-a", "se_resnet50")
    assert (own.epochs, own.arch, own.model) == (3, "se_resnet50", row.detector)


def parsed(monkeypatch: pytest.MonkeyPatch, *flags: str) -> Any:
    monkeypatch.setattr("sys.argv", [SCRIPT, "--data", "coco", *flags])
    args, _ = options.parse_arguments(None)
    return args


def test_a_dry_run_trains_nothing(coco: Path, narrow: None, call: Run) -> None:
    result = call(*SMALL, "--dry-run", "-j", 0, script=SCRIPT)
    assert result.returncode == 0, result.stderr
    assert "4 steps in each of 24 epochs" in result.stdout
    assert "images/s" in result.stdout
    assert not (coco.parent / "checkpoint").exists()


def save_classifier(path: Path, arch: str) -> None:
    torch.save({**fields(calibrated(arch)), "arch": arch}, path)


def test_a_classification_checkpoint_as_backbone(coco: Path, narrow: None, call: Run) -> None:
    save_classifier(coco.parent / "se.pth.tar", "se_resnet18")
    flags = (*SMALL, "--backbone", "se.pth.tar", "--dry-run", "-j", 0)
    result = call(*flags, "-a", "se_resnet18", script=SCRIPT)
    assert result.returncode == 0, result.stderr
    assert "not used from the file: fc.weight, fc.bias" in result.stdout
    assert_one_line_error(
        call(*flags, "-a", "cbam_resnet18", script=SCRIPT), "--backbone se.pth.tar", "se_resnet18"
    )


def test_bad_input_ends_in_one_line(coco: Path, narrow: None, call: Run) -> None:
    folder = coco.parent
    save_classifier(folder / "net.pth.tar", "resnet18")
    for flags, fragments in (
        (("-a", "shufflenetv2_1x"), ("-a shufflenetv2_1x", "layer1")),
        (("-e",), ("--resume FILE",)),
        (
            ("-e", "--resume", "net.pth.tar"),
            ("net.pth.tar holds resnet18, no detector", "detection/train.py"),
        ),
        (("--resume", "net.pth.tar"), ("net.pth.tar holds resnet18", "--backbone")),
        (("--resume", "nowhere"), ("--resume nowhere",)),
        (("--detections", "x.json"), ("--detections", "-e")),
        (("--min-size", 900), ("--min-size 900",)),
        (("--backbone", "net.pth.tar", "--pretrained"), ("--backbone", "--pretrained")),
        (("--resume", "net.pth.tar", "--backbone", "net.pth.tar"), ("--backbone", "--resume")),
        (("--opt-level", "O2"), ("O2",)),
        (("--recipe", "nothing"), ("--recipe",)),
        (("--train-batch", 0), ("--train-batch",)),
        (("--loss-scale", 2), ("--loss-scale",)),
        (("--data", "empty"), ("--data empty",)),
    ):
        assert_one_line_error(call(*SMALL, *flags, "-j", 0, script=SCRIPT), *fragments)
    assert not (folder / "checkpoint").exists()


def test_a_checkpoint_of_another_detector(coco: Path, narrow: None, call: Run) -> None:
    saved = trained(coco, call, "faster_rcnn")
    before = saved.read_bytes()
    for flags in (("--model", "cascade_rcnn"), ("-a", "resnet34")):
        result = call(*SMALL, *flags, "-e", "--resume", saved, "-j", 0, script=SCRIPT)
        assert_one_line_error(result, "holds faster_rcnn resnet18", "give --model faster_rcnn -a resnet18\n")
    result = call("--data", "coco", "-e", "--resume", saved, "--min-size", 64, script=SCRIPT)
    assert_one_line_error(result, "--min-size 64 is above --max-size 48")
    result = call("--data", "images", "-a", "resnet18", "-e", "--resume", saved)
    assert result.returncode == 2
    write_coco(coco.parent / "other", TRAIN, 2)
    content = write_coco(coco.parent / "other", VAL, 2)
    content["categories"][0]["name"] = "cow"
    (coco.parent / "other" / "annotations" / f"instances_{VAL}.json").write_text(json.dumps(content))
    result = call(*SMALL, "--data", "other", "-e", "--resume", saved, "-j", 0, script=SCRIPT)
    assert_one_line_error(result, "cow")
    assert saved.read_bytes() == before


FAMILIES = ("cbam", "bam", "gc", "srm", "ws", "se", "sge", "sk")


@pytest.mark.slow
@pytest.mark.parametrize("arch", [*(f"{name}_resnet18" for name in FAMILIES), "oct_resnet26", "resnet50_d"])
def test_every_family_is_trained_and_evaluated(coco: Path, narrow: None, call: Run, arch: str) -> None:
    flags = ("-a", arch, "--epochs", 1, "--warmup-steps", 0, "-c", "run", "-j", 0)
    result = call(*SMALL, *flags, script=SCRIPT)
    assert result.returncode == 0, result.stderr
    (row,) = rows(coco.parent / "run" / "log.txt")
    assert math.isfinite(row["Train Loss"])
    assert math.isfinite(row["AP"])


@pytest.mark.slow
@pytest.mark.parametrize("detector", DETECTORS)
def test_four_images_are_learned_by_heart(tmp_path: Path, narrow: None, call: Run, detector: str) -> None:
    """Each is in the training set ten times, so that most of the time goes into training."""
    write_shapes(tmp_path / "coco", TRAIN, 10)
    write_shapes(tmp_path / "coco", VAL, 1)
    save_classifier(tmp_path / "start.pth.tar", "resnet18")
    start = ("--model", detector, "--backbone", "start.pth.tar", "--hflip", 0, "--warmup-steps", 20)
    flags = (*start, "--min-size", 96, "--max-size", 96, "--epochs", 12, "--schedule", 9, "--lr", 0.08)
    result = call(*SMALL, *flags, "-c", "run", "-j", 0, script=SCRIPT)
    assert result.returncode == 0, result.stderr
    assert rows(tmp_path / "run" / "log.txt")[-1]["AP"] >= 50


def write_shapes(root: Path, split: str, times: int) -> None:
    """Four grey images, each of two rectangles in the colours of their classes."""
    (root / split).mkdir(parents=True)
    content: dict[str, Any] = {"images": [], "annotations": []}
    content["categories"] = [{"id": number, "name": name} for number, name in zip(IDS, NAMES, strict=True)]
    for number in range(4):
        image = Image.new("RGB", (96, 96), (110, 110, 110))
        boxes = [(8 + 4 * number, 8, 34, 30), (44, 50 - 4 * number, 40, 36)]
        labels = [number % 3, (number + 1) % 3]
        for (x, y, width, height), label in zip(boxes, labels, strict=True):
            colour = [(220, 40, 40), (40, 200, 40), (40, 40, 220)][label]
            image.paste(colour, (x, y, x + width, y + height))
        image.save(root / split / f"{number}.png")
        for copy in range(times):
            name = 100 * number + copy
            content["images"].append({"id": name, "file_name": f"{number}.png", "width": 96, "height": 96})
            for box, label in zip(boxes, labels, strict=True):
                content["annotations"].append(annotation(name, len(content["annotations"]), IDS[label], box))
    save(root, split, content)


def annotation(image: int, number: int, category: int, box: tuple[int, int, int, int]) -> dict[str, Any]:
    x, y, width, height = box
    corners = [x, y, x + width, y, x + width, y + height, x, y + height]
    return {
        **{"id": number + 1, "image_id": image, "category_id": category, "bbox": list(box)},
        **{"area": width * height, "iscrowd": 0, "segmentation": [corners]},
    }
