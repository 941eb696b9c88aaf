"""Which network a checkpoint fits, and which parameter its momentum belongs to."""

import functools
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from test_optim import optimizer_of
from tiny_net import TinyNet
from torch import nn

from models import create_model, list_models
from utils.common.errors import UserError
from utils.networks import weights as fitting
from utils.networks.building import finetune
from utils.networks.optimizer_state import load_optimizer

_known = functools.cache(fitting._shapes_of)


@pytest.fixture(autouse=True)
def shapes(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Of every architecture once for all tests, without --slow of some: to build all takes seconds."""
    monkeypatch.setattr(fitting, "_shapes_of", lambda *args: dict(_known(*args)))
    if not request.node.get_closest_marker("slow"):
        some = ("18", "34", "50", "50_b", "32x4d")
        names = [name for name in list_models("*resne*") if name.endswith(some)]
        monkeypatch.setattr(fitting, "list_models", lambda: names)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "classes"), [("se_resnet50", 7), ("mobilenet_v2", 1000)])
def test_the_architecture_that_fits_is_found(name: str, classes: int) -> None:
    with torch.device("meta"):
        weights = create_model(name, num_classes=classes).state_dict()
    for state in (weights, dict(sorted(weights.items()))):  # as safetensors has them
        assert fitting.output_count(state, name) == classes
    assert fitting.fitting_architectures(state) == [name]


@pytest.mark.parametrize("name", ["regnet_y_400mf", "squeezenet1_1", "shufflenetv1_1x", "vit_b_32"])
def test_the_outputs_of_a_checkpoint(name: str) -> None:
    state = create_model(name, num_classes=7).state_dict()
    assert fitting.output_count(state, name) == 7
    assert fitting.output_count({"a": torch.ones(1)}, name) == 1000


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        ("old_resnet50", ["resnet50", "resnet50_b", "ws_resnet50"]),
        ("sk_resnet18", ["resnet18", "sk_resnet18", "ws_resnet18"]),
        ("ws_resnext50_32x4d", ["resnext50_32x4d", "ws_resnext50"]),
    ],
)
def test_all_architectures_of_the_same_shapes_are_named_once_the_plain_one_first(
    name: str, fits: list[str]
) -> None:
    with torch.device("meta"):
        weights = create_model(name, num_classes=5).state_dict()
    assert fitting.fitting_architectures(weights) == fits


def hint(
    asked: str,
    held: str,
    says: str | None,
    outputs: int,
    built: Mapping[str, int],
    trained: Mapping[str, int],
) -> str:
    """What is said where a net of 3 outputs does not fit a file, both without values.

    Args:
        asked: the net.
        held: what the file holds.
        says: what it says that it holds.
        outputs: of the file.
        built: settings of the net.
        trained: those in the file, by their flags.
    """
    keywords = {"cardinality": "groups", "base_width": "width_per_group"}
    with torch.device("meta"):
        model = create_model(asked, num_classes=3, **built)
        settings = {keywords[flag]: value for flag, value in trained.items()}
        state = create_model(held, num_classes=outputs, **settings).state_dict()
    saved = {"state_dict": state, "arguments": trained, **({"arch": says} if says else {})}
    with pytest.raises(UserError) as error:
        fitting.load_weights(model, saved, asked, "x.pth")
    return str(error.value).rpartition("; ")[2]


GROUPS = {"cardinality": 2, "base_width": 8}
SEVERAL = "(same shapes, other mathematics: give the one that was trained)"


@pytest.mark.parametrize(
    ("asked", "held", "says", "outputs", "expected"),
    [
        ("ws_resnet18", "resnet18", None, 1000, "it has 1,000 outputs, not 3: give --num-classes 1000"),
        ("old_resnet18", "resnet18", "resnet18", 9, "it has 9 outputs, not 3: give --num-classes 9"),
        (
            *("resnet18", "resnet18", "resnet18", 2),
            "it has 2 outputs, not 3: give --num-classes 2 and data of no more classes",
        ),
        ("resnet18", "ws_resnet18", "ws_resnet18", 9, "the file fits -a ws_resnet18 --num-classes 9"),
        ("resnet18", "ws_resnet18", "ws_resnet18", 3, "give -a ws_resnet18"),
        ("resnet18", "se_resnet18", None, 3, "the file fits -a se_resnet18"),
        (
            *("se_resnet18", "resnet18", None, 9),
            "the file fits -a resnet18 --num-classes 9 or -a sk_resnet18 --num-classes 9 or "
            f"-a ws_resnet18 --num-classes 9 {SEVERAL}",
        ),
        ("resnet18", "resnet34", "resnet18", 3, "no registered architecture was found to fit"),
    ],
)
def test_what_is_offered_instead(
    asked: str, held: str, says: str | None, outputs: int, expected: str
) -> None:
    assert hint(asked, held, says, outputs, {}, {}) == expected


def test_flags_that_change_the_shapes_are_offered() -> None:
    net = ("se_resnet50", "se_resnet50", "se_resnet50", 3)
    assert hint(*net, {}, GROUPS) == "the file fits -a se_resnet50 --cardinality 2 --base-width 8"
    without = "the file fits -a se_resnet50 without --cardinality and --base-width"
    built = {"groups": 2, "width_per_group": 8}
    assert hint(*net, built, {}) == without
    assert hint(*net[:2], None, 3, built, {}) == without
    assert "give --cardinality and --base-width as it was trained" in hint(*net[:2], None, 3, {}, GROUPS)


def test_momentum_follows_the_parameters_and_flags_stay() -> None:
    net = create_model("se_resnet18", num_classes=2)
    old = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9, weight_decay=0.1)
    net(torch.randn(2, 3, 64, 64)).sum().backward()
    old.step()
    new = torch.optim.SGD(net.named_parameters(), lr=0.1, momentum=0.8, weight_decay=0.2)
    load_optimizer(new, old.state_dict(), net, "x")
    group = new.param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.1, 0.8, 0.2)
    for parameter in net.parameters():
        assert torch.equal(new.state[parameter]["momentum_buffer"], old.state[parameter]["momentum_buffer"])


def test_momentum_takes_the_layout_of_the_parameters() -> None:
    net = create_model("mobilenetv1", num_classes=3)
    plain = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    net(torch.randn(2, 3, 32, 32)).sum().backward()
    plain.step()
    other = create_model("mobilenetv1", num_classes=3).to(memory_format=torch.channels_last)
    resumed = torch.optim.SGD(other.named_parameters(), 0.1, momentum=0.9, fused=True)
    load_optimizer(resumed, plain.state_dict(), other, "x")
    for ours, theirs in zip(other.parameters(), net.parameters(), strict=True):
        momentum = resumed.state[ours]["momentum_buffer"]
        assert torch.equal(momentum, plain.state[theirs]["momentum_buffer"])
        assert momentum.stride() == ours.stride()


def published_state(net: nn.Module, *off: int, together: bool = False) -> dict[str, Any]:
    """An optimizer state as the published scripts write it: numbered, grouped by name and dimensions."""
    named = list(net.named_parameters())
    first = [(n, p) for n, p in named if "bias" in n or p.dim() in off]
    second = [(n, p) for n, p in named if ("bias" in n or p.dim() in off) is False]
    groups = [named] if together else [first, second]
    order = [pair for group in groups for pair in group]
    ends = [sum(map(len, groups[: i + 1])) for i in range(len(groups))]
    return {
        "state": {i: {"momentum_buffer": momentum_of(name, p)} for i, (name, p) in enumerate(order)},
        "param_groups": [
            {"lr": 0.1, "params": list(range(end - len(group), end))}
            for group, end in zip(groups, ends, strict=True)
        ],
    }


def momentum_of(name: str, parameter: torch.Tensor) -> torch.Tensor:
    """A tensor that only this parameter has."""
    return torch.full_like(parameter, float(sum(map(ord, name)) + len(name) / 7))


@pytest.mark.parametrize(
    "ours", [{}, {"wd_all": True}, {"nowd_bn": True}, {"nowd_bn": True, "nowd_fc": True}]
)
@pytest.mark.parametrize("theirs", [(), (1,), (1, 2), (4,), (1, 2, 4), "together"])
def test_published_momentum_goes_to_its_parameters_whatever_the_groups(
    theirs: tuple[int, ...] | str, ours: dict[str, bool]
) -> None:
    """SGE's weights are convolutions to the published rule (four dimensions) and norm layers to ours."""
    net = create_model("sge_resnet18", num_classes=3)
    together = theirs == "together"
    saved = published_state(net, *(() if isinstance(theirs, str) else theirs), together=together)
    optimizer = optimizer_of(net, **ours)
    load_optimizer(optimizer, saved, net, "x")
    for name, parameter in net.named_parameters():
        momentum = optimizer.state[parameter]["momentum_buffer"]
        assert torch.equal(momentum, momentum_of(name, parameter)), name


def test_our_momentum_goes_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    net = create_model("gc_resnet50", num_classes=3)
    ours = optimizer_of(net, nowd_bn=True)
    for name, parameter in net.named_parameters():
        ours.state[parameter]["momentum_buffer"] = momentum_of(name, parameter)
    other = optimizer_of(net, nowd_fc=True)
    load_optimizer(other, ours.state_dict(), net, "x")
    for name, parameter in net.named_parameters():
        assert torch.equal(other.state[parameter]["momentum_buffer"], momentum_of(name, parameter)), name


def test_momentum_that_cannot_be_told_apart_is_refused() -> None:
    class Two(nn.Module):
        """Two layers of one shape, of two kinds by the published rule."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

    net = Two()
    optimizer = optimizer_of(net)
    swapped = {
        "state": {i: {"momentum_buffer": torch.ones(s)} for i, s in enumerate(((3, 3), (3,), (3,), (3, 3)))},
        "param_groups": [{"params": [0, 1]}, {"params": [2, 3]}],
    }
    scalar = {
        "state": {0: {"momentum_buffer": torch.tensor(1.0)}},
        "param_groups": [{"params": [0, 1, 2, 3]}],
    }
    for saved in (None, swapped, scalar, {"state": {}, "param_groups": [{"params": [0, 1, 2]}]}):
        with pytest.raises(UserError, match="--fresh-optimizer"):
            load_optimizer(optimizer, saved, net, "x")


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.bool, torch.int64])
def test_weights_of_another_kind_of_number_are_refused_by_name(kind: torch.dtype) -> None:
    """Quantized ones have the shapes of the others, and would be cast into other numbers."""
    net = TinyNet(num_classes=3)
    state = {**net.state_dict(), "fc.weight": torch.ones(3, 16).to(kind)}
    why = f"fc.weight is {str(kind).removeprefix('torch.')}, in the network float32"
    with pytest.raises(UserError, match=f"--resume x.pth: {why}: give weights of float32"):
        fitting.load_weights(net, {"state_dict": state}, "resnet18", "x.pth")
    with pytest.raises(UserError, match=f"--finetune x.pth: {why}"):
        finetune(net, state, "x.pth")
    half = {key: value.half() for key, value in net.state_dict().items()}  # counters too
    finetune(net, half, "x.pth")
    half["stem.0.1.num_batches_tracked"] = torch.tensor(0.5)
    with pytest.raises(UserError, match=r"num_batches_tracked is float32, in the network int64"):
        finetune(net, half, "x.pth")
