"""scripts/show_batch.py: the batch that is shown is the one that training sees."""

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run, assert_one_line_error
from PIL import Image
from torch import Tensor, nn

import imagenet_fast
from imagenet import Opened
from scripts import show_batch
from utils.common.distributed import Ranks
from utils.data.loading import Reading, training_loader
from utils.data.sampling import Position
from utils.data.splits import Splits, open_data
from utils.data.transforms import MEAN, STD, TrainTransform
from utils.networks.building import NetworkSpec
from utils.runs.folder import save
from utils.runs.resume import Resumed
from utils.training.mixing import MixedBatch, Mixer
from utils.training.precision import Precision

SCRIPT = "scripts/show_batch.py"
SEED = 5
FLAGS = ("--img-size", 32, "-j", 0, "--train-batch", 5, "--manualSeed", SEED)


@pytest.fixture
def show(call: Run, images: Path) -> Run:
    """The script within this process, on the folder ``images``."""
    return lambda *flags: call("--data", images, *FLAGS, *flags, script=SCRIPT)


@pytest.fixture
def shown(show: Run, monkeypatch: pytest.MonkeyPatch) -> list[MixedBatch]:
    """The batches that the script draws."""
    script = importlib.import_module("scripts.show_batch")
    batches: list[MixedBatch] = []
    original = script.batches_of_step

    def spy(*args: Any) -> list[MixedBatch]:
        step = original(*args)
        batches.extend(step)
        return step

    monkeypatch.setattr(script, "batches_of_step", spy)
    return batches


class Seeing(nn.Module):
    """A network that keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []
        self.fc = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.clone())
        return self.fc(x.mean((2, 3)))


def parsed(monkeypatch: pytest.MonkeyPatch, *flags: object) -> argparse.Namespace:
    monkeypatch.setattr(sys, "argv", ["show_batch.py", *map(str, flags)])
    return show_batch.parse_arguments()


def trained_on(args: argparse.Namespace, begin: Position) -> list[Tensor]:
    """What the network sees in an epoch of imagenet_fast.py's Trainer, from ``begin``."""
    split = open_data(args.data, evaluate=False).train
    assert split is not None
    net, ranks, precision = Seeing(), Ranks(), Precision()
    opened = Opened(NetworkSpec(img_size=args.img_size), net, 3, Splits(split, split))
    loader, trainer = imagenet_fast.prepare_training(args, Resumed(Path()), opened, precision, SEED, ranks)
    for _ in trainer.epoch(loader, begin):
        pass
    return net.seen


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--mixup", "--cutmix", "--auto-augment", "ta", "--accum-steps", 2),
        ("--cutmix", "--random-erase", 0.5, "--channels-last"),
        ("--cutout", "--show-epoch", 3),
        ("--mixup", "--start-epoch", 2),
    ],
)
def test_it_is_what_the_network_sees(
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
    show: Run,
    shown: list[MixedBatch],
    flags: tuple[object, ...],
) -> None:
    args = parsed(monkeypatch, "--data", images, *FLAGS, *flags)
    seen = trained_on(args, Position((args.show_epoch or args.start_epoch + 1) - 1))
    steps = len(seen) // args.accum_steps
    assert steps >= 2
    for step in range(1, steps + 1):
        result = show(*flags, "--show-step", step, "-o", f"{step}.png")
        assert result.returncode == 0, result.stderr
    assert len(shown) == len(seen)
    for batch, given in zip(shown, seen, strict=True):
        assert torch.equal(batch.images, given)
    assert len({float(given.sum()) for given in seen}) == len(seen)


def test_a_resumed_run_goes_on_in_the_middle_of_an_epoch(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, show: Run, shown: list[MixedBatch]
) -> None:
    """Its steps begin at the image where it was stopped, perhaps with other batches than before."""
    fields: dict[str, Any] = {"state_dict": {"a": torch.zeros(1)}, "seed": SEED, "epoch": 1, "images": 7}
    saved = save({**fields, "classes": ["cat", "dog", "owl"]}, tmp_path)
    args = parsed(monkeypatch, "--data", images, *FLAGS, "--mixup")
    seen = trained_on(args, Position(1, 7))
    assert show("--mixup", "--resume", saved).returncode == 0
    assert show("--mixup", "--resume", saved, "--show-step", 3, "-o", "3.png").returncode == 0
    assert torch.equal(shown[0].images, seen[0])
    assert torch.equal(shown[1].images, seen[1])
    assert_one_line_error(
        show("--resume", saved, "--show-step", 1, "-o", "1.png"), "epoch 2 has steps 2 to 4"
    )


def test_the_picture_and_its_labels(tmp_path: Path, show: Run) -> None:
    result = show("--mixup", "--images", 3, "-o", "three.png")
    assert result.returncode == 0, result.stderr
    assert "epoch 1, step 1 of 4, seed 5: reading 5 images" in result.stdout
    assert "wrote three.png: 3 images" in result.stdout
    (tmp_path / "mine.png").write_text("mine")
    assert_one_line_error(show("-o", "mine.png"), "-o mine.png is there already", "--overwrite")
    assert (tmp_path / "mine.png").read_text() == "mine"
    assert show("--images", 1, "-o", "mine.png", "--overwrite").returncode == 0
    assert (tmp_path / "mine.png").read_bytes().startswith(b"\x89PNG")
    with Image.open(tmp_path / "three.png") as image:
        assert image.width > 500
    values = torch.rand(2, 3, 4, 4)
    mean, std = (torch.tensor(of).view(3, 1, 1) for of in (MEAN, STD))
    assert torch.allclose(show_batch.pixels((values - mean) / std), values.permute(0, 2, 3, 1), atol=1e-6)
    labels, partners = torch.tensor([0, 1]), torch.tensor([1, 1])
    batch = MixedBatch(values, labels, partners, 0.25)
    assert show_batch.captions(batch, ["$cat", "d" * 40]) == [
        f"$cat: 0.250\n{'d' * 17}...: 0.750",
        f"{'d' * 17}...: 0.250\n{'d' * 17}...: 0.750",
    ]
    assert show_batch.captions(batch._replace(weight=1.0), ["cat", "dog"]) == ["cat", "dog"]


def test_the_batch_of_another_process(images: Path) -> None:
    """The processes' batches of a step are together that of one process, where nothing is mixed."""
    split = open_data(str(images), evaluate=False).train
    assert split is not None
    transform = TrainTransform(32)

    def of(ranks: Ranks, batch: int) -> Tensor:
        loader = training_loader(split, transform, batch, SEED, Reading(), ranks)
        begin, step = show_batch.chosen_step(Position(0), loader.batches, None, None)
        return torch.cat([b.images for b in show_batch.batches_of_step(loader, Mixer(), SEED, begin, step)])

    both = torch.cat([of(Ranks(rank, 2), 4) for rank in range(2)])
    assert torch.equal(both, of(Ranks(), 8))


@pytest.mark.parametrize(
    ("flags", "fragment"),
    [
        (("--show-step", 9), "epoch 1 has steps 1 to 4"),
        (("--show-epoch", 200), "beyond --epochs 100"),
        (("--rank", 1), "not below --processes 1"),
        (("--mixup", "--cutout"), "--cutout does not go with"),
        (("-o", "batch.gif"), "must end in .png or .svg"),
        (("-e", "--pretrained"), "-e trains on no batch"),
    ],
)
def test_bad_input(show: Run, flags: tuple[object, ...], fragment: str) -> None:
    assert_one_line_error(show(*flags), fragment)
