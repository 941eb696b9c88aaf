"""Which sample is read when, and that only seed and position decide what is drawn."""

import pytest
import torch

from utils.common.errors import UserError
from utils.common.randomness import derive_seed, permutation, seeded_cpu
from utils.data.sampling import EvalBatches, Position, TrainBatches


def samples(batches: TrainBatches | EvalBatches) -> list[list[int]]:
    return [[key.sample for key in batch] for batch in batches]


def test_training_order_depends_on_seed_and_epoch_alone() -> None:
    first, again = TrainBatches(50, 8, seed=3), TrainBatches(50, 8, seed=3)
    list(first)  # an earlier pass must not matter
    torch.rand(7)
    for epoch in (0, 4):
        first.set_position(Position(epoch))
        again.set_position(Position(epoch))
        assert samples(first) == samples(again)
    assert samples(TrainBatches(50, 8, seed=4)) != samples(TrainBatches(50, 8, seed=3))
    assert samples(first) != samples(TrainBatches(50, 8, seed=3))


def test_training_leaves_out_the_last_smaller_batch() -> None:
    batches = TrainBatches(50, 8, seed=0)
    seen = [sample for batch in samples(batches) for sample in batch]
    assert len(batches) == len(list(batches)) == batches.steps == 6
    assert len(seen) == len(set(seen)) == 48
    assert set(seen) <= set(range(50))


def test_fewer_samples_than_a_batch_give_one_batch_of_all() -> None:
    assert sorted(samples(TrainBatches(5, 256, seed=0))[0]) == [0, 1, 2, 3, 4]
    assert len(TrainBatches(5, 256, seed=0)) == 1


@pytest.mark.parametrize(("processes", "parts"), [(2, 1), (1, 2), (3, 2)])
def test_a_step_reads_the_same_samples_however_it_is_spread(processes: int, parts: int) -> None:
    """And every process has as many batches as the others, of the same size."""
    whole = [set(step) for step in samples(TrainBatches(100, 4 * processes * parts, seed=1))]
    spread = [samples(TrainBatches(100, 4, 1, parts, rank, processes)) for rank in range(processes)]
    assert {len(batch) for batches in spread for batch in batches} == {4}
    assert {len(batches) for batches in spread} == {len(whole) * parts}
    for step, expected in enumerate(whole):
        read = [s for batches in spread for part in range(parts) for s in batches[step * parts + part]]
        assert len(read) == len(expected)
        assert set(read) == expected


def test_more_processes_than_samples() -> None:
    with pytest.raises(UserError, match="3 training images cannot fill 2 batches per step in 2 processes"):
        TrainBatches(3, 8, seed=1, parts=2, processes=2)


def test_the_rest_of_an_epoch_is_what_was_left() -> None:
    """From any step, for any number of processes, without reading what is skipped."""
    whole = samples(TrainBatches(100, 8, seed=3))
    rest = TrainBatches(100, 8, seed=3)
    for done in range(13):
        rest.set_position(Position(0, 8 * done))
        assert samples(rest) == whole[done:]
        assert (rest.first_step, rest.steps, len(rest)) == (done, 12, 12 - done)
        assert [rest.of_step(step) for step in range(done, 12)] == whole[done:]


def test_the_rest_of_an_epoch_with_another_number_of_processes() -> None:
    order = [sample for step in samples(TrainBatches(1000, 8, seed=3)) for sample in step]
    read = []
    for rank in range(3):
        batches = TrainBatches(1000, 5, 3, parts=2, rank=rank, processes=3)
        batches.set_position(Position(0, 400))
        read += [sample for batch in samples(batches) for sample in batch]
        of_step = batches.of_step(batches.first_step + 1)
        assert of_step == [sample for batch in samples(batches)[2:4] for sample in batch]
    assert sorted(read) == sorted(order[400:])  # 600 images in steps of 30
    assert batches.steps == 400 // 30 + 20


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_evaluation_is_shared_without_padding(processes: int) -> None:
    read = [s for rank in range(processes) for b in samples(EvalBatches(5, 2, rank, processes)) for s in b]
    assert sorted(read) == [0, 1, 2, 3, 4]


def test_evaluation_reads_every_sample_once() -> None:
    for size, batch in ((21, 1), (21, 7), (21, 8), (21, 100)):
        read = samples(EvalBatches(size, batch))
        assert len(read) == len(EvalBatches(size, batch))
        assert [sample for part in read for sample in part] == list(range(size))


def test_seeds_differ_by_purpose_and_position() -> None:
    seeds = {
        derive_seed(1, purpose, a, b) for purpose in ("order", "augment") for a in range(9) for b in range(9)
    }
    assert len(seeds) == 2 * 9 * 9
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert sorted(permutation(9, 0, "order", 1).tolist()) == list(range(9))


def test_a_seeded_block_leaves_the_generator_as_it_was() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with seeded_cpu(1):
        inside = torch.rand(3)
    with seeded_cpu(1):
        assert torch.equal(torch.rand(3), inside)
    assert torch.equal(torch.rand(3), expected)
