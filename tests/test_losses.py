"""Label smoothing against the published loss, distillation against its formula."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from utils.training.distillation import Distillation
from utils.training.losses import LabelSmoothing

GOLDEN = json.loads((Path(__file__).parent / "goldens_math.json").read_text())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_smoothing_meets_the_published_loss_and_gradient(smoothing: float) -> None:
    golden = GOLDEN["label_smoothing_0.1" if smoothing else "label_smoothing_0"]
    values = 2 * np.random.default_rng(3).standard_normal((4, 1000))
    logits = torch.tensor(values, requires_grad=True)
    loss = LabelSmoothing(smoothing, 1000)(logits, torch.tensor([0, 1, 2, 999]))
    loss.backward()
    assert loss.item() == pytest.approx(golden["loss"], rel=1e-12)
    assert logits.grad is not None
    assert logits.grad.norm().item() == pytest.approx(golden["grad_l2"], rel=1e-12)


@pytest.mark.parametrize("classes", [2, 3, 1000])
def test_smoothing_of_any_number_of_classes(classes: int) -> None:
    """The loss is the divergence from the target, so a prediction equal to the target has loss 0."""
    smoothing, label = 0.3, 1
    target = torch.full((1, classes), smoothing / (classes - 1), dtype=torch.float64)
    target[0, label] = 1 - smoothing
    assert LabelSmoothing(smoothing, classes)(target.log(), torch.tensor([label])).item() == pytest.approx(
        0, abs=1e-12
    )


def test_distillation_is_hintons_formula() -> None:
    torch.manual_seed(0)
    teacher, images = nn.Linear(5, 4).double(), torch.randn(3, 5, dtype=torch.float64)
    logits, hard = torch.randn(3, 4, dtype=torch.float64), torch.tensor(2.0, dtype=torch.float64)
    loss = Distillation(teacher, alpha=0.25, temperature=3.0)(hard, logits, images)
    p, q = (torch.softmax(z / 3, dim=1) for z in (teacher(images), logits))
    divergence = (p * (p / q).log()).sum(dim=1).mean()
    assert loss.item() == pytest.approx(0.75 * 2 + 0.25 * 9 * divergence.item(), rel=1e-12)
    assert math.isclose(Distillation(teacher, 0.0, 1.0)(hard, logits, images).item(), 2.0)
