"""Steps that the host does not wait for: whatever it learns late, all ends as if it had looked every time."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run, write_classes
from kernels import Kernels, kernels_of
from killer import fingerprint
from small_training import Spoiled, small_net
from test_optim import optimizer_of
from test_resume import stop_at
from torch import Tensor, nn

from utils.common.distributed import ONE_PROCESS
from utils.common.errors import UserError
from utils.common.randomness import derive_seed
from utils.data.loading import Batch, DeviceLoader, Reading, training_loader
from utils.data.sampling import Position, TrainBatches
from utils.data.splits import open_data
from utils.data.transforms import TrainTransform
from utils.runs.folder import kept, position_of
from utils.training import ahead
from utils.training.classification import Classification
from utils.training.ema import create_average
from utils.training.engine import SKIPPED_IN_A_ROW, Step, Trainer
from utils.training.mixing import Mixer
from utils.training.optim import start_momentum
from utils.training.precision import Precision
from utils.training.schedule import Schedule

STEPS, PARTS, BATCH = 6, 2, 2  # of an epoch of 24 images


@pytest.fixture(autouse=True)
def far_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host looks after so many steps as the trainer says, also on a slow machine."""
    monkeypatch.setattr(ahead, "LOOK_SECONDS", 1e9)


def create(
    most: int, spoiled: Sequence[tuple[int, int]] = (), half: bool = True
) -> tuple[Trainer, nn.Module]:
    """A trainer with everything that a step may change."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), small_net())
    optimizer = optimizer_of(net, lam=1e-3, nesterov=True, nowd_conv=True)
    task = Spoiled(nn.CrossEntropyLoss(), Mixer(mixup_alpha=0.4, cutmix_prob=0.5))
    task.bad = {derive_seed(1, "mix", epoch, batch, 0) for epoch, batch in spoiled}
    precision = Precision("O2", torch.bfloat16, loss_scale="dynamic") if half else Precision()
    precision.scaler.set_growth_interval(4) if half else None  # the scale grows within an epoch
    trainer = Trainer(
        precision.prepare(net), optimizer, task, Schedule(0.1, 2, cosine=True, per_iteration=True), 1
    )
    trainer.precision, trainer.average = precision, create_average(net, 0.9, {})
    trainer.accumulate, trainer.clip, trainer.skip_nan, trainer.ahead = PARTS, 1.0, True, most
    return trainer, net


def loader_of(images: Path, workers: int = 0) -> DeviceLoader[TrainBatches]:
    split = open_data(str(images), evaluate=False).train
    assert split is not None
    reading = Reading(workers, max_bad=0.05)  # one of 24
    return training_loader(split, TrainTransform(24), BATCH, 1, reading, ONE_PROCESS, parts=PARTS)


def end(trainer: Trainer, net: nn.Module, images: Path, workers: int = 0) -> tuple[Any, list[int]]:
    """All that a checkpoint holds after two epochs, and the steps after which the host looked."""
    loader, looks = loader_of(images, workers), []
    sums = []
    for epoch in range(2):
        for step in trainer.epoch(loader, Position(epoch)):
            assert step.position.images == step.number * BATCH * PARTS
            looks.append(step.number)
            sums.append(step.position.sums)
        sums.append(torch.tensor(trainer.trained))
    return {**trainer.state(net), "sums": sums[-1]}, looks


def assert_equal(found: Any, expected: Any) -> None:
    if isinstance(expected, Tensor):
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_equal(found[key], value)
    elif isinstance(expected, list):
        for one, other in zip(found, expected, strict=True):
            assert_equal(one, other)
    else:
        assert found == expected


@pytest.mark.parametrize(
    "spoiled",
    [
        [(0, 0), (1, 3)],  # the very first; the second part of a step
        [(0, 5), (0, 6), (0, 11), (1, 0)],  # in a row, the last and the first of an epoch
        pytest.param((), marks=pytest.mark.slow),
        *(pytest.param([(0, 2 * step), (1, 2 * step + 1)], marks=pytest.mark.slow) for step in range(STEPS)),
    ],
)
def test_how_far_the_host_runs_ahead_changes_nothing(
    images: Path, spoiled: list[tuple[int, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights, momentum, average, statistics, loss scale, sums, notes: by 1, 4 and 16 steps until a look."""
    expected, looks = end(*create(1, spoiled), images)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note")]
    assert looks == [*range(1, STEPS + 1)] * 2
    assert len(said) == len({(epoch, batch // PARTS) for epoch, batch in spoiled})
    for most in (4, 16):
        found, looks = end(*create(most, spoiled), images)
        assert_equal(found, expected)
        lines = capsys.readouterr().out.splitlines()
        assert [line for line in lines if line.startswith("note")] == said
        assert len(looks) < 2 * STEPS


def test_batches_are_read_again_by_workers_too(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And a file that cannot be decoded is counted once an epoch, though read before and after."""
    (images / "train" / "cat" / "0.JPEG").write_bytes(b"")
    spoiled = [(0, 4), (1, 2)]
    expected, _ = end(*create(1, spoiled, half=False), images)
    said = capsys.readouterr().out
    assert said.count("note: cannot decode") == 1
    assert said.count("note: 1 image could not be decoded") == 2
    found, _ = end(*create(16, spoiled, half=False), images, workers=2)
    assert_equal(found, expected)
    assert capsys.readouterr().out == said


def test_a_step_that_is_left_out_is_one_that_was_never_taken(images: Path) -> None:
    """Against a plain loop without it, which knows nothing of flags."""
    trainer, net = create(16, [(0, 6)], half=False)
    found, _ = end(trainer, net, images)
    other, twin = create(1, half=False)
    for epoch in range(2):
        loader = loader_of(images)
        loader.batches.set_position(Position(epoch))
        meter = other.task.meter(torch.device("cpu"))
        batches = iter(loader)
        for step in range(STEPS):
            parts = [next(batches) for _ in range(PARTS)]
            if (epoch, step) == (0, 3):
                continue
            for group in other.optimizer.param_groups:
                group["lr"] = other.schedule(epoch, step, STEPS)
            for part, (pictures, labels) in enumerate(parts):
                place = (epoch, step * PARTS + part, 0)
                batch = other.task.prepare(pictures, labels, derive_seed(1, "mix", *place))
                torch.manual_seed(derive_seed(1, "step", *place))
                (other.task.loss(twin.train(), other.precision, batch, meter) / PARTS).backward()
            nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
            other.optimizer.step()
            other.optimizer.zero_grad()
            assert other.average is not None
            other.average.update(twin)
    assert_equal(found, {**other.state(twin), "sums": torch.tensor(meter.read())})


def until_an_error(epoch: Iterator[Step]) -> tuple[list[Step], str]:
    """The steps of an epoch up to an error, and what that says."""
    steps = []
    try:
        for step in epoch:
            steps.append(step)
    except UserError as error:
        return steps, str(error)
    return steps, ""


@pytest.mark.parametrize("most", [1, 16])
def test_without_skip_all_is_as_before_the_step(images: Path, most: int) -> None:
    """Also the scale of the loss and the count of averages, though steps after it have been computed."""
    stopped, other = create(most, [(0, 7)])
    stopped.skip_nan = False
    seen, error = until_an_error(stopped.epoch(loader_of(images), Position(0)))
    assert error.startswith("the loss is not finite in epoch 1, step 4 of 6, at learning rate")
    assert seen[-1].error == error
    assert seen[-1].position[:2] == (0, 3 * BATCH * PARTS)
    assert len(seen[-1].files) == BATCH * PARTS
    whole, net = create(1)
    third = next(step for step in whole.epoch(loader_of(images), Position(0)) if step.number == 3)
    assert_equal(seen[-1].position.sums, third.position.sums)
    whole._set_learning_rate(0, 3, STEPS)  # that of the step that was not taken
    assert_equal(stopped.state(other), whole.state(net))


def test_the_host_looks_where_a_save_or_a_line_is_due(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for saves, lines, expected in ((None, None, [1, 6]), (2, None, [1, 2, 4, 6]), (None, 6, [1, 3, 6])):
        trainer, _ = create(16, half=False)
        trainer.pause_every, trainer.print_every = saves, lines
        assert [step.number for step in trainer.epoch(loader_of(images), Position(0))] == expected
    assert capsys.readouterr().out.count("epoch 1/2: batch") == 2


@pytest.mark.parametrize("most", [pytest.param(1, marks=pytest.mark.slow), 16])
def test_too_many_in_a_row(images: Path, most: int) -> None:
    """Of steps that are left out, whether the host looks at each or not."""
    trainer, _ = create(
        most, [(epoch, batch) for epoch in range(9) for batch in range(STEPS * PARTS)], half=False
    )
    whole = (step for epoch in range(9) for step in trainer.epoch(loader_of(images), Position(epoch)))
    seen, error = until_an_error(whole)
    assert error.startswith("the loss is not finite in epoch 4, step 3 of 6")
    assert len(seen) == SKIPPED_IN_A_ROW + 1
    trainer, _ = create(most, [(epoch, batch) for epoch in range(7) for batch in (0, 4, 8)], half=False)
    whole = (step for epoch in range(7) for step in trainer.epoch(loader_of(images), Position(epoch)))
    assert until_an_error(whole)[1] == ""  # as many, but not in a row


SMALL = ("-a", "tiny", "--img-size", 32, "--train-batch", 4, "--manualSeed", 7, "-j", 0, "--epochs", 1)


@pytest.mark.parametrize(
    "number", [1, 4, *(pytest.param(step, marks=pytest.mark.slow) for step in range(2, 13) if step != 4)]
)
def test_a_signal_in_any_step(
    call: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """It is heard at once, though no look was due, and what is resumed ends as the whole run."""
    images = write_classes(tmp_path / "images", 16, size=(32, 36))
    flags = (*SMALL, "--data", images, "--ema", 0.9)
    assert call(*flags, "-c", "whole", script="imagenet_fast.py").returncode == 0
    taken = stop_at(call, monkeypatch, number, *flags, "-c", "out")
    assert position_of(kept(tmp_path / "out")[0]) == (0, 4 * number)
    assert taken == number
    assert call(*flags, "-c", "out", "--resume", "auto", script="imagenet_fast.py").returncode == 0
    assert fingerprint("out") == fingerprint("whole")


def bare(trainer: Trainer, loader: DeviceLoader[TrainBatches]) -> None:
    """An epoch of a loop with nothing but what training needs."""
    trainer.model.train()
    loader.batches.set_position(Position(0))
    for pictures, labels in loader:
        loss = nn.functional.cross_entropy(trainer.precision.forward(trainer.model, pictures), labels)
        trainer.precision.backward(loss, trainer.optimizer)
        trainer.precision.unscale(trainer.optimizer)
        trainer.precision.step(trainer.optimizer)
        trainer.optimizer.zero_grad()


@pytest.mark.parametrize(
    "precision", [Precision(), Precision("O2", torch.bfloat16, loss_scale="dynamic")], ids=str
)
def test_what_a_step_costs_more_than_a_bare_one(images: Path, precision: Precision) -> None:
    """At most 12 kernels, and the host waits for nothing between two lines of progress."""
    net = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), small_net())
    optimizer = optimizer_of(net)
    task = Classification(nn.CrossEntropyLoss())
    trainer = Trainer(precision.prepare(net), optimizer, task, Schedule(0.1, 2), 1, precision=precision)
    split = open_data(str(images), evaluate=False).train
    assert split is not None
    loader = training_loader(split, TrainTransform(24), BATCH, 1, Reading(max_bad=0.01), ONE_PROCESS)
    steps = loader.batches.steps
    batch = Batch(torch.ones(BATCH, 3, 24, 24, dtype=torch.uint8), torch.arange(BATCH), ())
    loader.loader = [batch] * steps  # type: ignore[assignment]  # without what reads files
    bare(trainer, loader)
    without = kernels_of(lambda: bare(trainer, loader))
    epoch = trainer.epoch(loader, Position(0))
    assert next(epoch).number == 1
    assert steps - 1 > 8
    with Kernels() as needed:
        assert next(epoch).number == steps
    assert not needed.waits
    extra = needed.count - without.count * (steps - 1) / steps
    look = needed.launched["copy_"] - without.launched["copy_"]  # one in all these steps
    assert look <= 1
    assert (extra - look) / (steps - 1) <= 12


def test_what_half_precision_costs_more() -> None:
    """In O2 at most 20 kernels more than in float32, however many weights the network has."""
    counts = []
    for precision in (Precision(), Precision("O2", torch.bfloat16)):
        torch.manual_seed(0)
        layers = [layer for _ in range(30) for layer in (nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3))]
        net = nn.Sequential(*layers, small_net())
        optimizer = optimizer_of(net)
        start_momentum(optimizer)
        model = precision.prepare(net)

        def step(precision: Precision = precision, model: nn.Module = model, of: Any = optimizer) -> None:
            logits = precision.forward(model, torch.ones(2, 3, 24, 24))
            precision.backward(nn.functional.cross_entropy(logits, torch.tensor([0, 1])), of)
            precision.step(of)
            of.zero_grad()

        counts.append(kernels_of(step))
    assert not counts[1].waits
    assert counts[1].count - counts[0].count <= 20
