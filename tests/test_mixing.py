"""Mixup, CutMix and Cutout: boxes against the published code's, contents against the definitions."""

import json
from pathlib import Path

import pytest
import torch

from utils.training.mixing import Mixer, cutmix_box

GOLDEN = json.loads((Path(__file__).parent / "goldens_math.json").read_text())


def batch(size: int = 16, side: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Images whose every pixel is the number of the image, counted from 1; labels count from 0."""
    labels = torch.arange(size)
    return (labels + 1.0)[:, None, None, None].expand(-1, 3, side, side).clone(), labels


@pytest.mark.parametrize("golden", GOLDEN["cutmix_boxes_224"], ids=lambda golden: str(golden["lam"]))
def test_boxes_are_the_published_ones(golden: dict[str, float]) -> None:
    box, weight = cutmix_box((224, 224), golden["lam"], (int(golden["cx"]), int(golden["cy"])))
    assert list(box) == golden["x1,y1,x2,y2"]
    assert weight == pytest.approx(golden["lam_adjusted"], rel=1e-12)


def test_mixup_is_the_weighted_sum_of_an_image_and_its_partner() -> None:
    images, labels = batch()
    weights = set()
    for seed in range(20):
        mixed = Mixer(mixup_alpha=0.2)(images.clone(), labels, seed)
        expected = mixed.weight * (labels + 1) + (1 - mixed.weight) * (mixed.partners + 1)
        assert torch.allclose(mixed.images, expected[:, None, None, None].expand_as(images), atol=1e-5)
        assert sorted(mixed.partners.tolist()) == labels.tolist()
        weights.add(mixed.weight)
    assert len(weights) == 20
    assert all(0 <= weight <= 1 for weight in weights)
    assert torch.equal(Mixer(mixup_alpha=0.0)(images.clone(), labels, 0).images, images)


def test_cutmix_weighs_by_the_pixels_that_are_left() -> None:
    for seed in range(20):
        images, labels = batch()
        mixed = Mixer(cutmix_prob=1.0)(images, labels, seed)
        for picture, label, partner in zip(mixed.images, labels, mixed.partners, strict=True):
            own, pasted = (picture == label + 1).float().mean(), (picture == partner + 1).float().mean()
            assert own.item() == pytest.approx(1.0 if label == partner else mixed.weight, abs=1e-6)
            assert pasted.item() == pytest.approx(1.0 if label == partner else 1 - mixed.weight, abs=1e-6)


def changed(mixer: Mixer, draws: int = 400) -> list[str]:
    """What happened in every draw."""
    names = []
    for seed in range(draws):
        images, labels = batch()
        mixed = mixer(images, labels, seed)
        if not mixed.images.frac().eq(0).all():
            names.append("mixup")
        elif mixed.images.eq(0).any():
            names.append("cutout")
        else:
            names.append("cutmix" if mixed.weight < 1 else "nothing")
    return names


def test_cutmix_prob_is_a_probability_per_batch() -> None:
    names = changed(Mixer(cutmix_prob=0.25))
    # A box may be empty, so somewhat fewer than a quarter are seen.
    assert 0.15 < names.count("cutmix") / len(names) < 0.3
    assert set(changed(Mixer(cutmix_prob=0.0), 20)) == {"nothing"}


def test_mixup_and_cutmix_take_turns() -> None:
    names = changed(Mixer(mixup_alpha=1.0, cutmix_prob=1.0))
    assert 0.4 < names.count("mixup") / len(names) < 0.6
    assert names.count("cutmix") > 0.35 * len(names)


def test_cutout_clears_one_square_of_all_images_and_keeps_the_labels() -> None:
    for seed in range(10):
        images, labels = batch()
        mixed = Mixer(cutout_size=4)(images, labels, seed)
        assert mixed.weight == 1
        cleared = mixed.images == 0
        assert torch.equal(cleared, cleared[:1, :1].expand_as(cleared))
        assert 4 <= cleared[0, 0].sum() <= 16


def test_what_is_drawn_depends_on_the_seed_alone() -> None:
    mixer = Mixer(mixup_alpha=0.2, cutmix_prob=1.0)
    first, again = (mixer(*batch(), 5) for _ in range(2))
    assert torch.equal(first.images, again.images)
    assert first.weight == again.weight
