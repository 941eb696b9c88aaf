"""Weight-decay groups, and the e-shifted L2 steps against the published optimizer's."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD

from models import create_model
from utils.training.optim import EShiftedSGD, WeightDecay, classify, create_optimizer, decaying_kinds

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
def test_steps_are_the_published_ones(name: str, lam: float, shift: float, nesterov: bool) -> None:
    conv, depthwise = 0.05 * normal(1, 4, 3, 3, 3) + 0.02, 0.05 * normal(2, 4, 1, 3, 3)
    values = [nn.Parameter(v) for v in (conv, depthwise, 0.05 * normal(3, 5, 7), 0.05 * normal(4, 4))]
    groups = [
        {"params": [values[0], values[1], values[3]], "weight_decay": 0.0, "shifted": [True, False, False]},
        {"params": [values[2]], "weight_decay": 0.01, "shifted": [False]},
    ]
    optimizer = EShiftedSGD(groups, lam=lam, shift=shift, lr=0.1, momentum=0.9, nesterov=nesterov)
    for step, expected in enumerate(GOLDEN[f"{name}/imagenet_fast"]):
        for i, value in enumerate(values):
            value.grad = 0.01 * normal(100 + 10 * step + i, *value.shape)
        optimizer.step()
        for value, golden in zip(values, expected, strict=True):
            flat = value.detach().flatten()
            assert flat[:4].tolist() == pytest.approx(golden["first4"], rel=1e-12, abs=1e-15)
            assert flat.sum().item() == pytest.approx(golden["sum"], rel=1e-12)
            assert flat.norm().item() == pytest.approx(golden["l2"], rel=1e-12)


def gradient(weight: torch.Tensor, lam: float, shift: float) -> torch.Tensor:
    """What the regularizer adds to a gradient of 0: a step of rate 1 subtracts it."""
    parameter = nn.Parameter(weight.clone())
    parameter.grad = torch.zeros_like(parameter)
    group = {"params": [parameter], "weight_decay": 0.0, "shifted": [True]}
    EShiftedSGD([group], lam=lam, shift=shift, lr=1.0).step()
    return weight - parameter.detach()


def test_the_regularizer_is_the_gradient_of_its_objective() -> None:
    weight = 0.1 * normal(0, 6, 3, 3, 3) + 0.03
    variable = weight.clone().requires_grad_()
    flat = variable.flatten(1)
    mean, count = flat.mean(dim=1), flat.shape[1]
    radius = (flat - mean[:, None]).norm(dim=1) - 0.02 * (count - 1) ** 0.5
    (0.5 / 2 * (radius**2 + count * mean**2)).sum().backward()
    assert variable.grad is not None
    assert torch.allclose(gradient(weight, 0.5, 0.02), variable.grad, rtol=1e-12, atol=1e-15)
    assert torch.allclose(gradient(weight, 0.5, 0.0), 0.5 * weight, rtol=1e-12)  # e = 0 is plain L2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_filters_of_equal_weights_stay_finite(dtype: torch.dtype) -> None:
    weight = torch.stack([torch.full((3, 3, 3), value, dtype=dtype) for value in (0.0, 0.3, -1e-6)])
    assert torch.allclose(gradient(weight, 0.5, 0.01), 0.5 * weight, rtol=1e-2)


def test_channels_last_weights_take_the_same_step() -> None:
    weight = normal(0, 6, 3, 3, 3)
    other = gradient(weight.contiguous(memory_format=torch.channels_last), 0.5, 0.02)
    assert torch.allclose(other, gradient(weight, 0.5, 0.02), rtol=1e-12, atol=1e-15)


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
