"""Learning rates against the published script's."""

import json
from pathlib import Path

import pytest

from utils.schedule import step_decay

GOLDEN = json.loads((Path(__file__).parent / "goldens_math.json").read_text())


def test_step_decay_meets_the_published_table() -> None:
    rates = [step_decay(0.1, epoch, [30, 60, 90], 0.1) for epoch in range(len(GOLDEN["lr_imagenet_step"]))]
    assert rates == pytest.approx(GOLDEN["lr_imagenet_step"], rel=1e-12)


def test_order_of_milestones_does_not_matter() -> None:
    assert step_decay(1.0, 5, [9, 3, 4], 0.5) == 0.25


def test_a_milestone_at_the_first_epoch_counts() -> None:
    assert step_decay(1.0, 0, [0], 0.1) == 0.1
