"""Any gate in any residual network: against the nets with gates of their own, and under torch's tools."""

import copy
import functools
import inspect
import itertools
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils import prune
from torchvision.models import convnext, efficientnet, mobilenetv2, regnet, resnet
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.ops import StochasticDepth

from models import add_gates, create_gate, create_model, list_gates, list_models, resnet_eca
from models.gates import POSITIONS, base_of, gates_of, knobs, start_as_identity

PLACES = [place for place in POSITIONS if place != "paper"]
KNOBS: dict[str, dict[str, Any]] = {"sge": {"groups": 4}, "fca": {"frequencies": 4, "reduction": 4}}
KNOBS |= {name: {"reduction": 4} for name in ("se", "cbam", "bam", "gc", "ca")}
REAL = ("resnet18", "regnet_y_400mf", "mobilenet_v2", "efficientnet_b0", "convnext_tiny")


def of_regnet() -> nn.Module:
    settings = regnet.BlockParams([1, 2, 1, 1], [8, 16, 24, 32], [8] * 4, [1.0] * 4, [2] * 4, 0.25)
    return regnet.RegNet(settings, num_classes=5, stem_width=8)


def of_efficientnet() -> nn.Module:
    kinds = ((1, 16, 16, 1), (4, 16, 24, 2), (4, 24, 40, 2), (4, 40, 80, 2), (4, 80, 96, 2))
    settings = [
        efficientnet.MBConvConfig(expand, 3, stride, inside, outside, 1 + (stride == 2), 1.0, 1.0)
        for expand, inside, outside, stride in kinds
    ]
    return efficientnet.EfficientNet(settings, 0.0, stochastic_depth_prob=0.0, num_classes=5)


def of_mobilenet() -> nn.Module:
    settings = [[1, 16, 1, 1], [4, 24, 2, 2], [4, 32, 2, 2], [4, 64, 2, 2], [4, 96, 2, 2]]
    return mobilenetv2.MobileNetV2(5, inverted_residual_setting=settings, dropout=0.0)


def of_convnext() -> nn.Module:
    widths = (16, 24, 32, 48, None)
    settings = [convnext.CNBlockConfig(int(widths[i] or 0), widths[i + 1], 1) for i in range(4)]
    return convnext.ConvNeXt(settings, layer_scale=0.5, num_classes=5)


def of_bottlenecks() -> nn.Module:
    return resnet.ResNet(resnet.Bottleneck, [2, 1, 1, 1], num_classes=5, width_per_group=16)


SHORT: dict[str, Any] = {  # nets of few blocks and channels, of the five families and of ResNet-50's blocks
    "resnet18": partial(resnet.ResNet, resnet.BasicBlock, [2, 1, 1, 1], num_classes=5),
    "resnet50": of_bottlenecks,
    "regnet": of_regnet,
    "mobilenet": of_mobilenet,
    "efficientnet": of_efficientnet,
    "convnext": of_convnext,
}


@functools.cache
def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    net = SHORT[name]() if name in SHORT else create_model(name, num_classes=5)
    net = net.double()
    for module in net.modules():
        if isinstance(module, nn.Dropout | StochasticDepth):
            module.p = 0.0
        if isinstance(module, convnext.CNBlock):
            nn.init.constant_(module.layer_scale, 0.5)  # 1e-6 hides what the branch computes
    with torch.no_grad():
        net.train()(images())  # statistics of batch norm that are no constants
    return net.eval()


def images(batch: int = 2, size: int = 64) -> Tensor:
    generator = torch.Generator().manual_seed(batch + size)
    return torch.randn(batch, 3, size, size, generator=generator, dtype=torch.float64)


def lacks(base: str, place: str) -> bool:
    return place == "3x3" if base == "resnet18" else place == "conv" and "resnet" not in base


def randomise(net: nn.Module) -> None:
    """Give the gates of a net random parameters."""
    torch.manual_seed(0)
    for gate in gates_of(net).values():
        for parameter in gate.parameters():
            nn.init.normal_(parameter, std=0.3)


def gated(base: str, gate: str, place: str) -> nn.Module:
    """A net with random gates."""
    net = add_gates(copy.deepcopy(built(base)), gate, place, **KNOBS.get(gate, {}))
    randomise(net)
    return net


def cases() -> list[Any]:
    """Each gate where its paper has it, one at every place; with --slow all, in whole networks too."""
    table = itertools.product((*SHORT, *REAL), list_gates(), POSITIONS)
    quick = {
        *itertools.product(("mobilenet",), list_gates(), ("paper",)),
        *itertools.product(("resnet50",), ("se",), POSITIONS),
        *itertools.product(SHORT, ("se",), ("standard", "identity")),
    }
    return [
        pytest.param(*case, marks=() if case in quick else pytest.mark.slow)
        for case in table
        if not lacks(case[0], case[2])
    ]


@pytest.mark.parametrize(("base", "gate", "place"), cases())
def test_every_gate_at_every_place(base: str, gate: str, place: str) -> None:
    net, plain, x = gated(base, gate, place), built(base), images()
    names = gates_of(net)
    assert names

    # Keys: those of the plain net, whose weights load, and those of the gates.
    result = net.load_state_dict(plain.state_dict(), strict=False)
    assert not result.unexpected_keys
    assert all(any(key.startswith(f"{name}.") for name in names) for key in result.missing_keys)
    out = net(x)
    assert not torch.allclose(out, plain(x), rtol=1e-6)
    twin = gated(base, gate, place)
    twin.load_state_dict(net.state_dict())
    assert torch.equal(twin(x), out)

    # Every gate is called once, and every parameter of it is reached.
    calls: list[str] = []
    for name, module in names.items():
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
    net.train()(x).square().sum().backward()
    assert calls == list(names)
    for name, module in names.items():
        for key, parameter in module.named_parameters():
            assert parameter.grad is not None, f"{name}.{key}"


@pytest.mark.parametrize(("base", "gate", "place"), cases())
def test_identity_start(base: str, gate: str, place: str) -> None:
    """Of a net with random gates, in evaluation and in training; the gates then learn."""
    net, plain, x = gated(base, gate, place), copy.deepcopy(built(base)), images()
    start_as_identity(net)
    expected = plain(x)
    assert torch.allclose(net(x), expected, rtol=1e-6, atol=1e-6 * float(expected.detach().abs().max()))
    expected, out = plain.train()(x), net.train()(x)
    assert torch.allclose(out, expected, rtol=1e-6, atol=1e-6 * float(expected.detach().abs().max()))
    out.square().sum().backward()
    for name, module in gates_of(net).items():
        learned = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
        assert any(bool(gradient.abs().sum() > 0) for gradient in learned), name


# Every net whose name says a gate; the default suite takes the shallowest of each.
EQUAL = [name for gate in list_gates() for name in list_models(f"{gate}_*")]


def plain_of(name: str) -> nn.Module:
    """The net without gates."""
    if base := base_of(name):
        return create_model(base, num_classes=5)
    assert name.endswith("_resnext101_32x4d")  # which torchvision does not have
    return create_model("resnet101", num_classes=5, groups=32, width_per_group=4)


def knobs_of(name: str) -> dict[str, Any]:
    """What the gates of a net have that is not their default: ECA's kernels, those of the published files."""
    if not name.startswith("eca_"):
        return {}
    return {"kernel_size": inspect.signature(getattr(resnet_eca, name)).parameters["kernel_size"].default}


def own_keys(paper: nn.Module, ours: nn.Module, gate: str) -> dict[str, str]:
    """The key in a gated net for each key of the net with gates of its own."""
    if gate == "bam":
        last = {name.split(".")[0][-1]: name for name in gates_of(ours)}
        return {key: re.sub(r"^bam(\d)", lambda found: last[found[1]], key) for key in paper.state_dict()}
    if gate == "ca":  # torchvision's names of the same layers, in the same order
        inside = {f"{name}." for name in gates_of(ours)}
        theirs = [key for key in ours.state_dict() if not any(key.startswith(name) for name in inside)]
        gates = [key for key in ours.state_dict() if key not in theirs]
        of_paper = {True: iter(gates), False: iter(theirs)}
        within = tuple(f"{name}." for name in gates_of(paper))
        return {key: next(of_paper[key.startswith(within)]) for key in paper.state_dict()}
    return {key: key.replace("conv2.0.", "conv2.") for key in paper.state_dict()}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=() if name.endswith(("18", "fca_resnet34", "ca_mobilenetv2")) else pytest.mark.slow
        )
        for name in EQUAL
    ],
)
def test_a_net_with_added_gates_equals_the_net_of_the_paper(name: str) -> None:
    """With the same weights bit for bit, forwards and backwards."""
    gate = name.partition("_")[0]
    paper, ours = create_model(name, num_classes=5), plain_of(name)
    add_gates(ours, gate, **knobs_of(name))
    randomise(paper)
    keys = own_keys(paper, ours, gate)
    ours.load_state_dict({keys[key]: value for key, value in paper.state_dict().items()})
    x = torch.randn(2, 3, 64, 64)
    for net in (paper, ours):
        for module in net.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        net(x).square().sum().backward()
    assert torch.equal(paper.eval()(x), ours.eval()(x))
    gradients = {key: parameter.grad for key, parameter in ours.named_parameters()}
    for key, parameter in paper.named_parameters():
        assert torch.equal(parameter.grad, gradients[keys[key]]), key  # type: ignore[arg-type]


# torch's tools, on nets with a gate at every place of every block.


@functools.cache
def with_all(base: str) -> nn.Module:
    net = copy.deepcopy(built(base))
    for place in ("standard", "pre", "3x3", "conv", "identity", "post"):
        if not lacks(base, place):
            add_gates(net, "se", place, reduction=4)
    randomise(net)
    return net


# What is compiled and exported: a block with a gate at every place; with --slow whole nets.
SOME = pytest.mark.parametrize(
    "base", ["block", *(pytest.param(name, marks=pytest.mark.slow) for name in SHORT)]
)


def some(base: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A module, and inputs of different numbers and sizes."""
    if base == "block":
        maps = [x.mean(1, keepdim=True).expand(-1, 64, -1, -1)[..., ::4, ::4] for x in three()]
        return copy.deepcopy(with_all("resnet18").get_submodule("layer1.1")), tuple(maps)
    return copy.deepcopy(with_all(base)), three()


def three() -> tuple[Tensor, ...]:
    return images(), images(3, 96), images(1, 64)


@pytest.fixture(
    params=[
        "resnet50",
        "mobilenet",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in SHORT
            if name not in ("resnet50", "mobilenet")
        ),
    ]
)
def net(request: pytest.FixtureRequest) -> nn.Module:
    return copy.deepcopy(with_all(request.param))


def test_copies_and_layouts(net: nn.Module) -> None:
    x = images()
    expected = net(x)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), copy.deepcopy(copy.deepcopy(net))):
        assert torch.equal(twin(x), expected)
        assert list(gates_of(twin)) == list(gates_of(net))
    last = torch.channels_last
    assert torch.allclose(net.to(memory_format=last)(x.to(memory_format=last)), expected)


def test_fx_and_features(net: nn.Module) -> None:
    x = images(1, 96)
    graph = torch.fx.symbolic_trace(net)
    assert torch.equal(graph(x), net(x))
    assert set(graph.state_dict()) == set(net.state_dict())
    block = next(iter(gates_of(net))).rpartition(".")[0]
    features = create_feature_extractor(net, {block: "map"})(x)["map"]
    net.get_submodule(block).register_forward_hook(lambda module, inputs, output: features.sub_(output))
    net(x)
    assert not features.any()


@SOME
def test_exported_with_any_batch_and_size(base: str) -> None:
    net, (x, *others) = some(base)
    sizes = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    exported = torch.export.export(net, (x,), dynamic_shapes=(sizes,)).module()
    for x in others:
        assert torch.allclose(exported(x), net(x))


@SOME
def test_compiled_as_one_graph(base: str) -> None:
    net, (x, *_) = some(base)
    compiled: Any = torch.compile(copy.deepcopy(net), backend="aot_eager", fullgraph=True, dynamic=False)
    for each in (net, compiled):
        each(x).square().sum().backward()
    for ours, theirs in zip(compiled.parameters(), net.parameters(), strict=True):
        assert ours.grad is not None
        assert torch.allclose(ours.grad, theirs.grad)  # type: ignore[arg-type]
    torch.compiler.reset()


def test_gradients_of_each_image(net: nn.Module) -> None:
    parameters = {name: value.detach() for name, value in net.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(net, parameters, (x,)).square().sum()

    each = vmap(grad(lambda parameters, x: loss(parameters, x[None])), (None, 0))(parameters, images())
    for name, value in grad(loss)(parameters, images()).items():
        assert torch.allclose(each[name].sum(0), value), name


def test_distributed(net: nn.Module) -> None:
    """Each gate is part of the net that DDP sees."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        ours = nn.parallel.DistributedDataParallel(copy.deepcopy(net).train())
        for each in (ours, net.train()):
            each(images()).square().sum().backward()
        for mine, theirs in zip(ours.parameters(), net.parameters(), strict=True):
            assert mine.grad is not None
            assert torch.equal(mine.grad, theirs.grad)  # type: ignore[arg-type]
    finally:
        torch.distributed.destroy_process_group()


# Stages, knobs, modules of a user, and mistakes.


def test_stages() -> None:
    net = add_gates(built_anew("mobilenet"), "se", "post", stages=[2, 4], reduction=4)
    assert list(gates_of(net)) == [f"features.{i}.se" for i in (4, 5, 8, 9)]
    dilated = resnet.ResNet(resnet.Bottleneck, [1, 1, 1, 1], replace_stride_with_dilation=[False, True, True])
    assert list(gates_of(add_gates(dilated, "se", stages=[3, 4]))) == ["layer3.0.se", "layer4.0.se"]
    assert list(gates_of(add_gates(built_anew("resnet18"), "bam"))) == [
        f"layer{i}.{int(i == 1)}.bam" for i in (1, 2, 3)
    ]


def built_anew(base: str) -> nn.Module:
    return copy.deepcopy(built(base))


def test_knobs_of_each_stage() -> None:
    net = add_gates(built_anew("resnet50"), "se", reduction=(2, 4, 8, 16))
    hidden = [gate.fc[0].out_features for gate in gates_of(net).values()]  # type: ignore[index, union-attr]
    assert hidden == [128, 128, 128, 128, 128]


def test_dtype_and_mode_are_the_networks() -> None:
    net = add_gates(resnet.resnet18().bfloat16().eval(), "cbam")
    assert {value.dtype for value in net.state_dict().values()} == {torch.bfloat16, torch.int64}
    assert not any(module.training for module in net.modules())


class Gate(nn.Module):
    def __init__(self, channels: int, scale: float = 1.0) -> None:
        super().__init__()
        self.scale, self.weight = scale, nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.scale * self.weight)


def test_a_gate_of_a_user() -> None:
    net = add_gates(built_anew("resnet18"), Gate, scale=2.0)
    assert [gate.scale for gate in gates_of(net).values()] == [2.0] * 5
    assert "layer1.0.gate.weight" in net.state_dict()
    plain, x = built("resnet18"), images()
    assert torch.allclose(start_as_identity(net)(x), plain(x))
    with pytest.raises(ValueError, match=r"layer1\.0: the gate maps \(2, 64, 8, 8\) to \(2, 64\)"):
        add_gates(
            built_anew("resnet18"), lambda channels: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        )


def own_net() -> nn.Sequential:
    """Blocks that nobody knows: a sequence, and a module with a convolution."""
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU()),
        Gate(8),
        nn.Conv2d(8, 16, 3, 2, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 5),
    )


@pytest.mark.parametrize("place", ["post", "pre"])
def test_named_modules(place: str) -> None:
    torch.manual_seed(0)
    plain, x = own_net(), torch.randn(2, 3, 32, 32)
    net = copy.deepcopy(plain)
    with pytest.raises(ValueError, match="Sequential has no residual blocks"):
        add_gates(net, "se")
    add_gates(net, "se", place, modules=["2", "0"], img_size=32, reduction=1)
    assert not net.load_state_dict(plain.state_dict(), strict=False).unexpected_keys
    assert list(gates_of(net)) == ["0.se", "2.se"]
    randomise(net)

    expected, out = x, net(x)
    for i, layer in enumerate(plain):
        gate = gates_of(net).get(f"{i}.se", nn.Identity())
        expected = layer(gate(expected)) if place == "pre" else gate(layer(expected))
    assert torch.allclose(out, expected)
    for twin in (
        copy.deepcopy(net),
        pickle.loads(pickle.dumps(net)),
        torch.fx.symbolic_trace(net),
    ):
        assert torch.equal(twin(x), out)
        assert set(twin.state_dict()) == set(net.state_dict())


def test_two_gates() -> None:
    net = add_gates(add_gates(built_anew("resnet18"), "se"), "sge", "post")
    assert {type(gate).__name__ for gate in gates_of(net).values()} == {"SELayer", "SpatialGroupEnhance"}
    before = list(net.state_dict())
    with pytest.raises(ValueError, match=r"layer1\.0 has a gate at the place 'standard' already"):
        add_gates(net, "cbam")
    assert list(net.state_dict()) == before


MISTAKES: dict[str, tuple[type[Exception], dict[str, Any]]] = {
    "unknown gate 'sse'; there are se, sge, cbam": (ValueError, {"gate": "sse"}),
    "unknown place 'after'; there are paper, standard": (ValueError, {"gate": "se", "at": "after"}),
    "no block has the place '3x3': BasicBlock has conv, identity": (ValueError, {"gate": "se", "at": "3x3"}),
    "gate se takes reduction, not groups": (TypeError, {"gate": "se", "groups": 4}),
    "gate srm takes no arguments, not groups": (TypeError, {"gate": "srm", "groups": 4}),
    "layer1.0: 48 groups do not divide 64 channels": (ValueError, {"gate": "sge", "groups": 48}),
    "the network has stages 1 to 4, not 5": (ValueError, {"gate": "se", "stages": [4, 5]}),
    "reduction has 3 values, and the network 4 stages": (ValueError, {"gate": "se", "reduction": [4, 8, 16]}),
    "ResNet has no module 'layer5'": (ValueError, {"gate": "se", "modules": ["layer5"]}),
    "fc has no map": (ValueError, {"gate": "se", "modules": ["fc"]}),
    "gate on a batch norm would be lost": (ValueError, {"gate": "se", "modules": ["bn1"]}),
    "have the places pre and post, not 'identity'": (
        ValueError,
        {"gate": "se", "at": "identity", "modules": ["layer1"]},
    ),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_leave_the_network_as_it_was(message: str) -> None:
    net = built_anew("resnet18")
    error, given = MISTAKES[message]
    with pytest.raises(error, match=re.escape(message)):
        add_gates(net, **given)
    assert list(net.state_dict()) == list(built("resnet18").state_dict())
    assert torch.equal(net(images()), built("resnet18")(images()))


def test_start_without_gates() -> None:
    with pytest.raises(ValueError, match="there are no gates"):
        start_as_identity(built_anew("resnet18"))


class Doubled(resnet.BasicBlock):
    """A user's block, which looks like torchvision's."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def of_doubled() -> nn.Module:
    net = built_anew("resnet18")
    net.layer1[1] = Doubled(64, 64).double()  # type: ignore[operator]
    return net


class Looping(nn.Sequential):
    """A sequence that calls its layers on its own, like torchvision's ASPPPooling."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            x = layer(x)
        return x


class InPlace(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(0.5)


class Tanh(InPlace):
    """Its output is needed in the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        return x.tanh()


class Two(InPlace):
    def forward(self, x: Tensor) -> Any:
        return x, x


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = built_anew("resnet18")

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.net(x) + self.net(y)


def pruned() -> nn.Module:
    net = built_anew("resnet18")
    prune.l1_unstructured(net.get_submodule("conv1"), "weight", 0.5)
    return net


STRANGE: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "layer1.1 is a Doubled, no block of torchvision itself": (of_doubled, {}),
    "0 calls its children in a loop": (
        lambda: nn.Sequential(Looping(nn.Conv2d(3, 8, 3))),
        {"modules": ["0"]},
    ),
    "1 is called with maps of 8 and of 16 channels": (
        lambda: nn.Sequential(
            OrderedDict(
                {"0": nn.Conv2d(3, 8, 3), "1": (relu := nn.ReLU()), "2": nn.Conv2d(8, 16, 3), "3": relu}
            )
        ),
        {"modules": ["1"]},
    ),
    "Pair fails on images (1, 3, 224, 224); add gates to the part": (Pair, {}),
    "ResNet cannot be copied: Only Tensors created": (pruned, {}),
    "layer1.0: the gate changes its input in place": (partial(built_anew, "resnet18"), {"gate": InPlace}),
    "layer1.0: the gate maps (2, 64, 8, 8) to tuple": (partial(built_anew, "resnet18"), {"gate": Two}),
    "layer1.0: the gate is a int, no torch.nn.Module": (partial(built_anew, "resnet18"), {"gate": int}),
    "groups must be at least 1, not 0": (partial(built_anew, "resnet18"), {"gate": "sge", "groups": 0}),
    "gate is one InPlace; give its class": (partial(built_anew, "resnet18"), {"gate": InPlace(64)}),
    "modules is a list of names, not 'layer1'": (partial(built_anew, "resnet18"), {"modules": "layer1"}),
    "there is no stage for a gate": (partial(built_anew, "resnet18"), {"stages": []}),
}


@pytest.mark.parametrize("message", STRANGE)
def test_what_gates_cannot_be_added_to(message: str) -> None:
    build, given = STRANGE[message]
    net = build()
    before = list(net.state_dict())
    with pytest.raises(ValueError, match=re.escape(message)):
        add_gates(net, **{"gate": "eca", **given})
    assert list(net.state_dict()) == before


@pytest.mark.parametrize("base", SHORT)
def test_a_gate_whose_output_autograd_keeps(base: str) -> None:
    for place in PLACES:
        if not lacks(base, place):
            net = add_gates(built_anew(base), Tanh, place)
            net.train()(images()).sum().backward()


def test_stages_are_counted_from_1() -> None:
    """A first block that is called layer0 is of the stage that its stride says."""
    net = nn.Sequential(OrderedDict(stem=nn.Conv2d(3, 8, 3, 4, 1), layer0=resnet.BasicBlock(8, 8)))
    assert list(gates_of(add_gates(net, "se", reduction=2))) == ["layer0.se"]


def test_networks_of_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradients of gates that come later would not be averaged."""
    monkeypatch.setattr(nn.parallel, "DistributedDataParallel", nn.DataParallel)
    net = nn.DataParallel(add_gates(built_anew("resnet18"), "se"))
    for change in (partial(add_gates, net, "srm", "post"), partial(start_as_identity, net)):
        with pytest.raises(ValueError, match="before DistributedDataParallel wraps it"):
            change()


def test_hooks_of_the_user_are_not_called() -> None:
    net = built_anew("resnet18")
    calls: list[str] = []
    net.get_submodule("layer4").register_forward_hook(lambda *_: calls.append("called"))
    add_gates(net, "eca")
    assert calls == []
    net(images())
    assert calls == ["called"]


def test_a_block_by_itself() -> None:
    block = add_gates(resnet.BasicBlock(8, 8), "eca", img_size=16)
    assert list(gates_of(block)) == ["eca"]
    twin = copy.deepcopy(block)
    twin.load_state_dict(block.state_dict())
    x = torch.randn(2, 8, 16, 16)
    assert torch.equal(twin.eval()(x), block.eval()(x))


def test_a_copy_of_a_compiled_module_has_weights_of_its_own() -> None:
    """As the moving average of a compiled network is made."""
    net = add_gates(nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 3))), "eca", modules=["0"], img_size=16)
    x = torch.randn(1, 3, 16, 16)
    net[0].compile(backend="eager")  # type: ignore[index]
    assert net(x).any()
    twin = copy.deepcopy(net)
    for parameter in twin.parameters():
        nn.init.zeros_(parameter)
    assert not twin(x).any()


def test_identity_start_of_one_gate_at_two_places() -> None:
    gate, conv = create_gate("se", 8, reduction=2), nn.Conv2d(3, 8, 3)
    net, x = nn.Sequential(conv, gate, nn.ReLU(), gate), torch.randn(2, 3, 16, 16)
    assert torch.equal(start_as_identity(net)(x), conv(x).relu())
    assert net[1] is net[3]


def test_identity_start_of_gates_that_were_trained() -> None:
    """Statistics of their batch norms are not those of a new gate, and types stay."""
    for name in list_gates():
        gate = create_gate(name, 64, **KNOBS.get(name, {})).eval()
        for key, buffer in gate.named_buffers():
            if "running" in key:
                nn.init.uniform_(buffer, 0.5, 1.5)
        x = torch.randn(2, 64, 7, 7)
        assert torch.allclose(start_as_identity(nn.Sequential(gate))(x), x, atol=1e-6), name
    gate = create_gate("cbam", 64).bfloat16()
    gate.get_submodule("SpatialGate.spatial.bn").float()
    started = start_as_identity(nn.Sequential(gate))
    assert started.get_parameter("0.factor").dtype == torch.bfloat16
    assert started.get_parameter("0.gate.SpatialGate.spatial.bn.weight").dtype == torch.float32


@pytest.mark.parametrize("name", list_gates())
def test_each_gate_by_its_name(name: str) -> None:
    gate = create_gate(name, 64, **KNOBS.get(name, {}))
    x = torch.randn(2, 64, 7, 7)
    assert gate(x).shape == x.shape
    assert all(value is not None for value in knobs(name).values()) or name == "eca"


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet50", "regnety_002", "mobilenetv2_035", "efficientnet_b0", "convnext_atto"]
)
def test_networks_of_timm(name: str) -> None:
    """Where timm is installed."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    plain, x = timm.create_model(name, num_classes=5).double().eval(), images()
    for parameter in plain.parameters():
        if parameter.dim() == 1 and bool((parameter < 1e-3).all()):
            nn.init.uniform_(parameter)  # the last norm of a branch, or its scale
    for place in PLACES:
        net = copy.deepcopy(plain)
        try:
            add_gates(net, "se", place, reduction=2)
        except ValueError as error:
            assert f"no block has the place '{place}'" in str(error)  # noqa: PT017
            continue
        assert not net.load_state_dict(plain.state_dict(), strict=False).unexpected_keys
        randomise(net)
        assert not torch.allclose(net(x), plain(x))
        net(x).square().sum().backward()
        for gate in gates_of(net).values():
            assert all(parameter.grad is not None for parameter in gate.parameters())
        assert torch.equal(copy.deepcopy(net)(x), net(x))
        assert torch.allclose(start_as_identity(net)(x), plain(x))
