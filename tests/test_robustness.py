"""Every net of our own under what users do to it: precisions, layouts, sizes, copies.

The default suite takes of each kind a net of few blocks; every builder as it is, is marked slow.
"""

import copy
import functools
import io
import itertools
import pickle
import re
from collections.abc import Collection
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import ResNet

import models
from models import create_model, is_own, list_models
from models.densenet_ws import WSDenseNet


def kind(name: str) -> str:
    """A name without depth, cardinality and width."""
    return re.sub(r"(?<=net)\d+|_\d+x4d|_\d+x$", "", name.replace("resnext", "resnet"))


BUILDERS = [name for name in list_models() if is_own(name)]
PLAIN = ("sk_resnet18", "sk_resnet34")  # no unit of their own: plain nets under another name
# The first builder of each kind, which is the shallowest.
SHALLOW = [
    next(names)
    for _, names in itertools.groupby(
        sorted((name for name in BUILDERS if name not in PLAIN), key=kind), kind
    )
]
SHORT = "short "  # before the name of a builder: its net of few blocks
NAMES = [f"{SHORT}{name}" for name in SHALLOW]
# The residual blocks of se_resnet18 around another module, which test_attention.py copies alone.
AS_MODULES = {
    f"{SHORT}{gate}_resnet{34 if gate == 'fca' else 18}"
    for gate in ("cbam", "gc", "srm", "eca", "simam", "triplet", "fca")
}


def each(slow: Collection[str] = ()) -> pytest.MarkDecorator:
    """The nets of few blocks but for some, with --slow these and every builder."""
    names = [pytest.param(name, marks=pytest.mark.slow if name in slow else ()) for name in NAMES]
    whole = [pytest.param(name, marks=pytest.mark.slow) for name in BUILDERS]
    # The tests of a net follow each other: it is built once.
    return pytest.mark.parametrize("name", [*names, *whole], scope="module")


def create(name: str) -> Any:
    """A net by its builder, or cut down to the first blocks of every stage: two that follow each other."""
    if name == f"{SHORT}ws_densenet201":
        return WSDenseNet(32, (2, 2, 2, 2), 64, num_classes=5)
    net: Any = create_model(name.removeprefix(SHORT), num_classes=5)
    if name.startswith(SHORT) and isinstance(net, ResNet):
        net.layer1 = net.layer1[:2]
        for stage in ("layer2", "layer3", "layer4"):
            setattr(net, stage, getattr(net, stage)[:1])
    return net


def build(name: str) -> Any:
    """A net as it is after some training steps: its batch norms know the size of their inputs.

    Weight-standardised convolutions multiply the scale by sqrt(fan-in), which only batch norm takes back:
    with running statistics of 0 and 1 the deep nets overflow.
    """
    return copy.deepcopy(built(name))


@functools.lru_cache(maxsize=1)
def built(name: str) -> Any:
    torch.manual_seed(0)
    return calibrated(create(name))


def calibrated(net: Any) -> Any:
    """A net after a batch in training."""
    momenta = {
        module: module.momentum
        for module in net.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
    }
    for module in momenta:
        module.momentum = None  # the average of all batches so far
    with torch.no_grad():
        net.train()(images(4))
    for module, momentum in momenta.items():
        module.momentum = momentum
    return net


def images(batch: int = 2, height: int = 64, width: int = 64) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def train_step(net: nn.Module) -> None:
    loss = nn.functional.cross_entropy(net(images()), torch.tensor([0, 1]))
    loss.backward()
    assert torch.isfinite(loss)


@each()
def test_training_reaches_every_parameter(name: str) -> None:
    net = build(name)
    train_step(net)
    assert not [key for key, p in net.named_parameters() if p.grad is None]
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)

    net.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        train_step(net)
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)


def kept_tensors(net: nn.Module) -> list[str]:
    """Tensors among the plain attributes of modules, which the replicas of DataParallel would share."""
    return [
        f"{name}.{key}"
        for name, module in net.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, Tensor)
    ]


@each()
@torch.no_grad()
def test_evaluation_of_any_sound_input(name: str) -> None:
    """Batch 1 of several sizes and of extreme values; stages and features agree."""
    net = build(name).eval()
    sizes = ((64, 64), (160, 160), (224, 224), (256, 192), (72, 104))
    extremes = (torch.zeros(1, 3, 64, 64), torch.ones(1, 3, 64, 64), 1e4 * images(1))
    for x in (*(images(1, *size) for size in sizes), *extremes):
        out = net(x)
        assert out.shape == (1, 5)
        assert torch.isfinite(out).all(), x.shape
    assert not kept_tensors(net)
    stages = net.forward_stages(images(1, 72, 104))
    assert torch.equal(net.forward_features(images(1, 72, 104)), stages[-1])
    assert [stage.dim() for stage in stages] == [4] * 4


@each(slow=AS_MODULES)
@torch.no_grad()
def test_copies_and_layouts(name: str) -> None:
    """Deep copy, pickle, state dict, channels_last: the same outputs."""
    net = build(name).double().eval()
    x = images(1).double()
    expected = net(x)
    stored = io.BytesIO()
    torch.save(net.state_dict(), stored)
    stored.seek(0)
    with torch.device("meta"):  # no time for an initialisation that is replaced
        fresh = create(name).double().eval()
    fresh.load_state_dict(torch.load(stored, weights_only=True), assign=True)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), fresh):
        assert torch.equal(twin(x), expected)
    net = net.to(memory_format=torch.channels_last)
    found = net(x.to(memory_format=torch.channels_last))
    assert torch.allclose(found, expected, rtol=0, atol=1e-9 * float(expected.abs().max()))


@each()
@torch.no_grad()
def test_half_weights(name: str) -> None:
    net = build(name).eval()
    for dtype in (torch.bfloat16, torch.float16):
        out = net.to(dtype)(images(1).to(dtype))
        assert out.dtype == dtype
        assert torch.isfinite(out).all(), dtype


def test_every_kind_of_net_is_in_the_default_suite() -> None:
    builders = {file: {name for name in file.__all__ if name.islower()} for file in models._FILES}
    assert all(names & set(SHALLOW) for names in builders.values())
    assert {"sk_resnet50", "sge_resnet18", "ws_resnet18", "oct_mobilenet"} <= set(SHALLOW)
    assert set(NAMES) >= AS_MODULES
