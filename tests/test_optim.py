"""Weight-decay groups, and the e-shifted L2 steps against the published optimizer's."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kernels import kernels_of
from torch import nn
from torch.optim import SGD

from models import create_model
from utils.training.optim import (
    EShiftedSGD,
    WeightDecay,
    classify,
    create_optimizer,
    decaying_kinds,
    start_momentum,
)

GOLDEN = json.loads((Path(__file__).parent / "goldens_math.json").read_text())["lsgd"]


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def optimizer_of(
    net: nn.Module,
    lam: float | None = None,
    shift: float = 0.01,
    nesterov: bool = False,
    *,
    wd_all: bool = False,
    nowd_bn: bool = False,
    nowd_fc: bool = False,
    nowd_conv: bool = False,
) -> SGD:
    """The optimizer of some flags; with ``lam`` it has the e-shifted L2."""
    decay = WeightDecay(0.01, decaying_kinds(wd_all, nowd_bn, nowd_fc, nowd_conv), lam, shift)
    return create_optimizer(net, decay, lr=0.1, momentum=0.9, nesterov=nesterov)


@pytest.mark.parametrize(
    ("name", "lam", "shift", "nesterov"),
    [
        ("lam1_eps0.01", 1.0, 0.01, False),
        ("lam1e-4_eps1e-3", 1e-4, 1e-3, False),
        ("lam1_eps0.01_nesterov", 1.0, 0.01, True),
    ],
)
@pytest.mark.parametrize("together", [False, True])
def test_steps_are_the_published_ones(
    name: str, lam: float, shift: float, nesterov: bool, together: bool
) -> None:
    conv, depthwise = 0.05 * normal(1, 4, 3, 3, 3) + 0.02, 0.05 * normal(2, 4, 1, 3, 3)
    values = [nn.Parameter(v) for v in (conv, depthwise, 0.05 * normal(3, 5, 7), 0.05 * normal(4, 4))]
    groups = [
        {"params": [values[0], values[1], values[3]], "weight_decay": 0.0, "shifted": [True, False, False]},
        {"params": [values[2]], "weight_decay": 0.01, "shifted": [False]},
    ]
    settings: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "nesterov": nesterov}
    optimizer = EShiftedSGD(groups, lam, shift, together, **settings)
    for step, expected in enumerate(GOLDEN[f"{name}/imagenet_fast"]):
        for i, value in enumerate(values):
            value.grad = 0.01 * normal(100 + 10 * step + i, *value.shape)
        optimizer.step()
        for value, golden in zip(values, expected, strict=True):
            flat = value.detach().flatten()
            assert flat[:4].tolist() == pytest.approx(golden["first4"], rel=1e-12, abs=1e-15)
            assert flat.sum().item() == pytest.approx(golden["sum"], rel=1e-12)
            assert flat.norm().item() == pytest.approx(golden["l2"], rel=1e-12)


def gradient(weight: torch.Tensor, lam: float, shift: float, together: bool = False) -> torch.Tensor:
    """What the regularizer adds to a gradient of 0: a step of rate 1 subtracts it."""
    parameter = nn.Parameter(weight.clone())
    parameter.grad = torch.zeros_like(parameter)
    group = {"params": [parameter], "weight_decay": 0.0, "shifted": [True]}
    EShiftedSGD([group], lam, shift, together, lr=1.0).step()
    return weight - parameter.detach()


@pytest.mark.parametrize("together", [False, True])
def test_the_regularizer_is_the_gradient_of_its_objective(together: bool) -> None:
    weight = 0.1 * normal(0, 6, 3, 3, 3) + 0.03
    variable = weight.clone().requires_grad_()
    flat = variable.flatten(1)
    mean, count = flat.mean(dim=1), flat.shape[1]
    radius = (flat - mean[:, None]).norm(dim=1) - 0.02 * (count - 1) ** 0.5
    (0.5 / 2 * (radius**2 + count * mean**2)).sum().backward()
    assert variable.grad is not None
    assert torch.allclose(gradient(weight, 0.5, 0.02, together), variable.grad, rtol=1e-12, atol=1e-15)
    assert torch.allclose(gradient(weight, 0.5, 0.0, together), 0.5 * weight, rtol=1e-12)  # plain L2


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_filters_of_equal_weights_stay_finite(dtype: torch.dtype, together: bool) -> None:
    weight = torch.stack([torch.full((3, 3, 3), value, dtype=dtype) for value in (0.0, 0.3, -1e-6)])
    assert torch.allclose(gradient(weight, 0.5, 0.01, together), 0.5 * weight, rtol=1e-2)


def step_of_convolutions(layout: torch.memory_format, together: bool) -> list[torch.Tensor]:
    """Weights after a step: some shapes more than once, some of one input or one output channel."""
    shapes = [(6, 3, 3, 3), (4, 1, 3, 3), (1, 8, 1, 1), (5, 3, 3, 3), (2, 9, 1, 1), (3, 27, 1, 1)]
    weights = [nn.Parameter(normal(i, *s).contiguous(memory_format=layout)) for i, s in enumerate(shapes)]
    weights.append(nn.Parameter(normal(10, 7, 3, 2, 4).transpose(1, 3)))  # in neither format
    weights += [nn.Parameter(normal(11, 4, 3, 3)), nn.Parameter(normal(12, 2, 3, 1, 3, 3))]
    for i, weight in enumerate(weights):
        weight.grad = torch.empty_like(weight).copy_(normal(20 + i, *weight.shape))
    group = {"params": weights, "weight_decay": 0.0, "shifted": [True] * len(weights)}
    usual = EShiftedSGD(
        [{**group, "params": weights[:-3], "shifted": [True] * 6}], 0.5, 0.02, together, lr=0.1
    )
    usual.step()
    odd = EShiftedSGD([{**group, "params": weights[-3:], "shifted": [True] * 3}], 0.5, 0.02, together, lr=0.1)
    odd.step()
    return [weight.detach() for weight in weights]


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_no_layout_changes_the_step(layout: torch.memory_format, together: bool) -> None:
    expected = step_of_convolutions(torch.contiguous_format, False)
    for one, other in zip(step_of_convolutions(layout, together), expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-15)


def test_the_regularizer_takes_few_kernels_whatever_the_depth() -> None:
    """On filters of the shapes of the network's, of which two per layer are enough to count."""
    counts = []
    for arch in ("ws_resnet50", "ws_resnet101"):
        with torch.device("meta"):
            found = classify(create_model(arch))
        weights = [
            nn.Parameter(torch.randn(2, *one.parameter.shape[1:])) for one in found if one.kind == "conv"
        ]
        for weight in weights:
            weight.grad = torch.zeros_like(weight)
        group = {"params": weights, "weight_decay": 0.0, "shifted": [True] * len(weights)}
        optimizer = EShiftedSGD([group], 1e-4, 1e-3, together=True, lr=0.1, momentum=0.9)
        start_momentum(optimizer)
        needed = kernels_of(optimizer.step)
        assert not needed.waits
        counts.append(needed.count)
    assert counts[0] == counts[1] <= 60


@pytest.mark.parametrize("together", [False, True])
def test_a_step_that_the_device_leaves_out(together: bool) -> None:
    """As the loss scale does after an overflow, by what torch calls found_inf: weights and momentum stay."""
    weight = nn.Parameter(normal(0, 6, 3, 3, 3))
    group = {"params": [weight], "weight_decay": 0.0, "shifted": [True]}
    optimizer = EShiftedSGD([group], 1.0, 0.01, together, lr=0.1, momentum=0.9)
    start_momentum(optimizer)
    for found, gradient in ((0.0, 1.0), (1.0, float("nan")), (0.0, 1.0)):
        before = [weight.detach().clone(), optimizer.state[weight]["momentum_buffer"].clone()]
        weight.grad = torch.full_like(weight, gradient)
        optimizer.found_inf = torch.tensor(found)  # type: ignore[attr-defined]
        optimizer.step()
        after = [weight.detach(), optimizer.state[weight]["momentum_buffer"]]
        assert all(torch.equal(*pair) == bool(found) for pair in zip(before, after, strict=True))
        assert torch.isfinite(weight).all()


@pytest.mark.parametrize(
    ("arch", "kinds"),
    [
        ("sge_resnet18", {"layer1.0.sge.weight": "norm", "layer1.0.sge.bias": "bias"}),
        ("srm_resnet18", {"layer1.0.rclb.cfc": "own", "layer1.0.rclb.bn.weight": "own"}),
        (
            "gc_resnet50",
            {"layer1.0.gc.channel_add_conv.1.weight": "norm", "layer1.0.gc.conv_mask.weight": "conv"},
        ),
        ("se_resnet18", {"layer1.0.se.fc.0.weight": "fc", "layer1.0.downsample": "", "bn1.weight": "norm"}),
        ("mobilenetv1", {"model.1.0.weight": "depthwise", "model.1.3.weight": "conv", "fc.weight": "fc"}),
        ("eca_resnet18", {"layer1.0.eca.conv.weight": "conv", "layer4.1.eca.conv.weight": "conv"}),
        ("triplet_resnet18", {"layer1.0.triplet_attention.SpatialGate.spatial.conv.weight": "conv"}),
        ("fca_resnet34", {"layer1.0.att.fc.0.weight": "fc"}),
        (
            "ca_mobilenetv2",
            {"features.2.conv.3.weight": "depthwise", "features.2.conv.6.conv1.weight": "conv"},
        ),
        ("vit_b_16", {"encoder.layers.encoder_layer_0.self_attention.in_proj_weight": "fc"}),
    ],
)
def test_parameters_are_what_their_modules_are(arch: str, kinds: dict[str, str]) -> None:
    with torch.device("meta"):
        found = {one.name: one.kind for one in classify(create_model(arch))}
    assert {name: found[name] for name, kind in kinds.items() if kind} == {
        n: k for n, k in kinds.items() if k
    }
    assert {kind for name, kind in found.items() if name.endswith("bias")} <= {"bias", "own"}


@pytest.mark.parametrize(
    ("flags", "decaying"),
    [
        ({}, {"conv", "depthwise", "fc", "norm"}),
        ({"nowd_bn": True}, {"conv", "depthwise", "fc"}),
        ({"nowd_bn": True, "nowd_fc": True}, {"conv", "depthwise"}),
        ({"nowd_conv": True}, {"fc", "norm"}),
        ({"wd_all": True}, {"conv", "depthwise", "fc", "norm", "bias"}),
    ],
)
def test_decay_by_flags(flags: dict[str, bool], decaying: set[str]) -> None:
    net = create_model("mobilenetv1", num_classes=10)
    optimizer = optimizer_of(net, **flags)
    kind = {id(one.parameter): one.kind for one in classify(net)}
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {kind[i] for i, value in decay.items() if value} == decaying
    assert len(decay) == len(list(net.parameters()))


def test_the_table_counts_every_parameter(capsys: pytest.CaptureFixture[str]) -> None:
    net = create_model("srm_resnet18", num_classes=10)
    optimizer_of(net, lam=1.0, nowd_conv=True)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert sum(int(row[1]) for row in rows) == len(list(net.parameters()))
    assert sum(int(row[2].replace(",", "")) for row in rows) == sum(p.numel() for p in net.parameters())
    assert {row[0]: " ".join(row[3:]) for row in rows} == {
        **{"conv": "e-shifted L2, lambda 1, e 0.01", "norm": "0.01", "bias": "0", "fc": "0.01", "own": "0"}
    }
