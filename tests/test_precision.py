"""Mixed precision: which types are used, what the optimizer sees, that a loss scale never shows."""

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_optim import optimizer_of
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from utils.common.errors import UserError
from utils.training.apex import ApexPrecision, choose_apex
from utils.training.optim import start_momentum
from utils.training.precision import HalfWeights, Precision, batch_norms, choose_precision

HALF = (torch.float16, torch.bfloat16)


def small_net() -> nn.Module:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
    return nn.Sequential(
        conv, nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    )


def train(precision: Precision, net: nn.Module, steps: int = 20) -> list[float]:
    """Losses of some steps on fixed images."""
    torch.manual_seed(1)
    images, labels = torch.randn(16, 3, 12, 12), torch.arange(16) % 4
    optimizer = torch.optim.SGD(net.parameters(), 0.2, momentum=0.9, fused=True)
    model = precision.prepare(net, optimizer)
    losses = []
    for _ in range(steps):
        logits = precision.forward(model, images)
        assert logits.dtype == torch.float32
        loss = F.cross_entropy(logits, labels)
        precision.backward(loss, optimizer)
        precision.unscale(optimizer)
        precision.step(optimizer)
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("half", HALF, ids=str)
@pytest.mark.parametrize(
    ("level", "keep", "scale"),
    [
        ("O1", True, "dynamic"),
        ("O2", True, "dynamic"),
        ("O2", True, 128.0),
        ("O2", False, 1.0),
        ("O3", False, 1.0),
        ("O3", True, 128.0),
    ],
)
def test_every_level_learns_as_float32_does(
    level: str, keep: bool, scale: float | str, half: torch.dtype
) -> None:
    plain, net = small_net(), small_net()
    expected, losses = train(Precision(), plain), train(Precision(level, half, keep, scale), net)
    assert expected[-1] < expected[0] - 0.1
    assert losses == pytest.approx(expected, rel=0.02)
    types = {name: value.dtype for name, value in net.state_dict().items() if value.is_floating_point()}
    norm = torch.float32 if keep or level != "O3" else half
    assert types["0.weight"] == types["5.weight"] == (half if level == "O3" else torch.float32)
    assert types["1.weight"] == norm
    assert types["1.running_var"] == (torch.float32 if keep else half)
    if level == "O1" or scale != 1.0:  # the same but for rounding, which the other levels have more of
        assert losses != expected


@pytest.mark.parametrize(
    ("level", "keep"), [("O1", True), ("O2", True), ("O2", False), ("O3", True), ("O3", False)]
)
def test_what_is_computed_in_half(level: str, keep: bool) -> None:
    net, seen = small_net(), {}
    for name, module in net.named_children():
        module.register_forward_hook(lambda _, inputs, out, name=name: seen.update({name: (inputs[0], out)}))
    precision = Precision(level, torch.bfloat16, keep)
    precision.forward(precision.prepare(net), torch.randn(4, 3, 12, 12))
    assert seen["0"][1].dtype == seen["5"][1].dtype == torch.bfloat16
    assert seen["1"][1].dtype == torch.bfloat16  # float32 batch norm still hands on what it was given


def test_master_weights_keep_what_half_weights_lose() -> None:
    """Updates below the spacing of half numbers add up in O2 and vanish in O3."""
    ends = {}
    for level in ("O2", "O3"):
        linear = nn.Linear(1, 1, bias=False)
        net = nn.Sequential(nn.Flatten(), linear)
        nn.init.ones_(linear.weight)
        optimizer = torch.optim.SGD(net.parameters(), 1e-4)
        precision = Precision(level, torch.bfloat16)
        model = precision.prepare(net, optimizer)
        for _ in range(200):
            precision.backward(-precision.forward(model, torch.ones(1, 1)).sum(), optimizer)
            precision.step(optimizer)
            optimizer.zero_grad()
        ends[level] = linear.weight.item()
    assert ends == {"O2": pytest.approx(1.02, abs=1e-4), "O3": 1.0}


def test_an_overflow_skips_the_step_and_lowers_the_scale() -> None:
    net = small_net()
    before = copy.deepcopy(net.state_dict())
    precision = Precision("O1", torch.float16, loss_scale="dynamic")
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    scale = precision.scaler.get_scale()
    loss = precision.forward(net.eval(), torch.randn(4, 3, 12, 12)).sum()
    precision.backward(loss * 1e38, optimizer)
    precision.unscale(optimizer)
    precision.step(optimizer)
    assert precision.scaler.get_scale() == scale / 2
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    restored = Precision("O1", torch.float16, loss_scale="dynamic")
    restored.load_state_dict(precision.state_dict())
    assert restored.scaler.get_scale() == scale / 2


@pytest.mark.parametrize("nesterov", [False, True])
def test_an_overflow_at_the_first_step_leaves_no_trace(nesterov: bool) -> None:
    """The fused kernel, left to itself, makes momentum of uninitialised memory then."""
    ends = []
    for overflows in (True, False):
        net = small_net()
        optimizer = optimizer_of(net, lam=1.0, nesterov=nesterov, nowd_conv=True)
        precision = Precision("O1", torch.float16, loss_scale="dynamic")
        start_momentum(optimizer)
        images = torch.ones(4, 3, 12, 12)
        for factor in ([1e38] if overflows else []) + [1.0, 1.0]:
            precision.backward(precision.forward(net.eval(), images).square().mean() * factor, optimizer)
            precision.unscale(optimizer)
            precision.step(optimizer)
            optimizer.zero_grad()
        ends.append([p.detach().clone() for p in net.parameters()])
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-6) for a, b in zip(*ends, strict=True))


def test_buffers_of_other_modules_are_half_in_o2() -> None:
    class Shift(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.ones(12, 12))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.table  # type: ignore[operator]

    net = nn.Sequential(Shift(), small_net())
    precision = Precision("O2", torch.bfloat16)
    precision.forward(precision.prepare(net).train(), torch.randn(4, 3, 12, 12)).sum().backward()
    assert {value.dtype for value in net.state_dict().values()} == {torch.float32, torch.int64}
    assert net.state_dict()["1.1.running_mean"].abs().sum() > 0


class Sequential(nn.Sequential):
    """One whose last module is not called."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for module in list(self)[:-1]:
            x = module(x)
        return x


def gradients(cast: Callable[[nn.Module, torch.Tensor], torch.Tensor]) -> list[torch.Tensor | None]:
    """After two batches, of a net with a frozen and an unused layer; ``cast`` computes in half."""
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(3, 3, 3, padding=1, bias=i > 2) for i in range(12)]
    net = Sequential(*convolutions, small_net(), nn.Linear(2, 2))
    net[1].requires_grad_(False)
    net = net.to(memory_format=torch.channels_last)
    images = torch.randn(4, 3, 12, 12).to(memory_format=torch.channels_last)
    for batch in (images, images + 1):
        cast(net, batch).float().square().sum().backward()
    return [parameter.grad for parameter in net.parameters()]


def test_casting_in_groups_is_casting_one_by_one() -> None:
    """Values and gradients in O2, to the bit; the gradients arrive in several groups."""

    def one_by_one(net: nn.Module, images: torch.Tensor) -> torch.Tensor:
        kept = {id(p) for module in batch_norms(net) for p in module.parameters()}
        half = {k: v.to(torch.bfloat16) for k, v in net.named_parameters() if id(v) not in kept}
        return functional_call(net, half, (images.to(torch.bfloat16),))

    found = gradients(lambda net, images: HalfWeights(net, torch.bfloat16, True)(images))
    for gradient, expected in zip(found, gradients(one_by_one), strict=True):
        if expected is None:
            assert gradient is None
        else:
            assert gradient is not None
            assert torch.equal(gradient, expected)
            assert gradient.stride() == expected.stride()


@pytest.mark.parametrize(
    ("device", "level", "flags", "text"),
    [
        ("cpu", "O0", {}, "O0 (float32)"),
        ("cuda", "O2", {}, "O2 (float16, float32 batch norm, loss scale dynamic)"),
        ("cuda", "O1", {}, "O1 (float16, loss scale dynamic)"),
        ("cuda", "O3", {}, "O3 (float16, half batch norm, loss scale 1)"),
        ("cuda", "O2", {"amp_dtype": "bfloat16"}, "O2 (bfloat16, float32 batch norm, loss scale 1)"),
        ("cpu", "O1", {}, "O1 (bfloat16, loss scale 1)"),
        ("cpu", "O2", {"loss_scale": 8.0}, "O2 (bfloat16, float32 batch norm, loss scale 8)"),
        ("cpu", "O3", {}, "O3 (bfloat16, half batch norm, loss scale 1)"),
    ],
)
@pytest.mark.filterwarnings("ignore:torch.cuda.amp.GradScaler is enabled, but CUDA is not available")
def test_defaults(device: str, level: str, flags: dict[str, Any], text: str) -> None:
    assert str(choose_precision(level, device, **flags)) == text


FAKE_AMP = """
from contextlib import contextmanager

calls = []

def initialize(model, optimizer=None, **settings):
    calls.append(("initialize", settings))
    return model if optimizer is None else (model, optimizer)

@contextmanager
def scale_loss(loss, optimizer):
    calls.append(("scale_loss",))
    yield loss

def state_dict():
    return {"loss_scaler0": {"loss_scale": 4.0}}

def load_state_dict(state):
    calls.append(("load", state))
"""


def test_apex_is_used_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a stand-in with Apex's interface: no machine of the tests has an Apex with amp."""
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").touch()
    (tmp_path / "apex" / "amp.py").write_text(FAKE_AMP)
    (tmp_path / "apex" / "parallel.py").write_text("from torch.nn.parallel import DistributedDataParallel\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "apex"]:
        monkeypatch.delitem(sys.modules, name)
    precision = choose_apex("O1", "cuda", None, None, None)
    assert isinstance(precision, ApexPrecision)
    losses = train(precision, small_net())
    assert losses[-1] < losses[0]
    precision.load_state_dict(precision.state_dict())
    calls = sys.modules["apex.amp"].calls
    settings = {"opt_level": "O1", "keep_batchnorm_fp32": None, "loss_scale": None}
    assert calls[0] == ("initialize", settings)
    assert calls.count(("scale_loss",)) == 20
    assert calls[-1] == ("load", {"loss_scaler0": {"loss_scale": 4.0}})
    for name in [name for name in sys.modules if name.split(".")[0] == "apex"]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("choose", "level", "flags", "fragment"),
    [
        (choose_apex, "O1", (None, None, None), "removed it in May 2025"),
        (choose_apex, "O1", ("bfloat16", None, None), "float16 on CUDA only"),
        (choose_precision, "O0", (None, 2.0, None), "--loss-scale does nothing"),
        (choose_precision, "O1", (None, None, True), "for --opt-level O2 and O3"),
        (choose_precision, "O3", (None, "dynamic", None), "needs float32 weights"),
    ],
)
def test_flags_that_do_not_go_together(
    choose: Callable[..., Precision], level: str, flags: tuple[Any, ...], fragment: str
) -> None:
    with pytest.raises(UserError, match=fragment):
        choose(level, "cuda", *flags)
