"""Parameters and GFLOPs of the published tables, digit for digit."""

import pytest
import torch

from models import create_model
from utils.complexity import count

PUBLISHED = {
    "old_resnet50": ("25.56", "4.122"),
    "se_resnet50": ("28.09", "4.130"),
    "sge_resnet50": ("25.56", "4.127"),
    "old_resnet101": ("44.55", "7.849"),
    "se_resnet101": ("49.33", "7.863"),
    "sge_resnet101": ("44.55", "7.858"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_classification_rows(name: str) -> None:
    parameters, multiply_adds = count(create_model(name), (3, 224, 224))
    assert (f"{parameters / 1e6:.2f}", f"{multiply_adds / 1e9:.3f}") == PUBLISHED[name]


def test_counting_leaves_the_network_as_it_was() -> None:
    net = create_model("se_resnet18")
    net.layer1.eval()
    modes = [module.training for module in net.modules()]
    before = {key: value.clone() for key, value in net.state_dict().items()}
    count(net, (3, 64, 64))
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert not any(module._forward_hooks for module in net.modules())


def test_a_part_of_a_network_can_be_counted() -> None:
    net = create_model("sge_resnet50")
    whole, features = count(net, (3, 224, 224)), count(net, (3, 224, 224), "forward_features")
    pooled = 2048 * 7 * 7
    assert whole.multiply_adds - features.multiply_adds == pooled + 2048 * 1000
