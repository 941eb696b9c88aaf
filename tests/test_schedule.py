"""Learning rates against the published scripts' tables."""

import json
from pathlib import Path

import pytest

from utils.training.schedule import Schedule

GOLDEN = json.loads((Path(__file__).parent / "goldens_math.json").read_text())
STEPS = (30, 60, 90)


@pytest.mark.parametrize(
    ("schedule", "table"),
    [
        (Schedule(0.1, 100, milestones=STEPS), GOLDEN["lr_imagenet_step"]),
        (Schedule(0.1, 100, warmup=5, milestones=STEPS), GOLDEN["lr_fast"]["step_100_warm5_base.1"]),
        (Schedule(0.1, 100, milestones=STEPS), GOLDEN["lr_fast"]["step_100_warm0_base.1"]),
        (Schedule(0.4, 100, warmup=5, cosine=True), GOLDEN["lr_fast"]["cos_100_warm5_base.4"]),
    ],
    ids=["imagenet", "fast, warm-up", "fast", "fast, cosine"],
)
def test_the_published_tables_by_epoch(schedule: Schedule, table: list[float]) -> None:
    assert [schedule(epoch, 0, 10) for epoch in range(len(table))] == pytest.approx(table, rel=1e-12)
    assert [schedule(epoch, 9, 10) for epoch in range(len(table))] == pytest.approx(table, rel=1e-12)


def test_the_published_table_by_step() -> None:
    schedule = Schedule(0.4, 300, warmup=5, cosine=True, per_iteration=True)
    for position, rate in GOLDEN["lr_mobile_base.4_T300_N1252_warm5"].items():
        epoch, step = map(int, position.split(","))
        assert schedule(epoch, step, 1252) == pytest.approx(rate, rel=1e-12, abs=1e-16)
    assert schedule(299, 1251, 1252) == 0


def test_warm_up_by_step_then_decay_by_epoch() -> None:
    schedule = Schedule(1.0, 9, warmup=2, milestones=[1, 4], gamma=0.5, per_iteration=True)
    rates = [schedule(epoch, step, 2) for epoch in (0, 1, 2, 4) for step in (0, 1)]
    assert rates == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 0.5, 0.5]  # the milestone in the warm-up does not count


def test_a_run_shorter_than_its_warm_up() -> None:
    for per_iteration in (False, True):
        schedule = Schedule(1.0, 5, warmup=5, cosine=True, per_iteration=per_iteration)
        assert schedule(4, 1, 2) == 1.0


def test_milestones_without_effect_are_noted() -> None:
    """The published imagenet.py has 150 225 and 90 epochs by default."""
    note = str(Schedule(0.1, 90, milestones=(150, 225))).splitlines()[1]
    assert note == "note: no epoch of --schedule 150 225 lies within --epochs 90: the rate never drops"
    assert "between --warmup 5 and --epochs 30:" in str(Schedule(0.1, 30, warmup=5, milestones=(30, 4)))
    for schedule in (
        Schedule(0.1, 31, milestones=(30, 60)),
        Schedule(0.1, 9, milestones=(0,)),
        Schedule(0.1, 9, milestones=(30,), cosine=True),
        Schedule(0.1, 3, warmup=5, milestones=(30,)),  # said in another way
    ):
        assert "note" not in str(schedule)


def test_milestones_in_any_order_and_at_the_first_epoch() -> None:
    assert Schedule(1.0, 9, milestones=[9, 3, 4], gamma=0.5)(5, 0, 1) == 0.25
    assert Schedule(1.0, 9, milestones=[0])(0, 0, 1) == 0.1


def test_the_warm_up_of_the_first_steps_rises_from_a_third() -> None:
    schedule = Schedule(0.3, 3, milestones=(2,), warmup_steps=6)
    rates = [schedule(epoch, step, 4) for epoch in range(3) for step in range(4)]
    rising = [0.1 + 0.2 * step / 6 for step in range(6)]
    assert rates == pytest.approx([*rising, *[0.3] * 2, *[0.03] * 4])
    assert Schedule(0.3, 3, warmup_steps=2, warmup_from=0.5)(0, 1, 4) == pytest.approx(0.225)
    assert "6 steps of warm-up from 0.33 of it" in str(schedule)
