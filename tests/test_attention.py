"""Attention modules and special convolutions alone: against the papers, and under torch's own tools."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from models import create_model
from models.mobilenetv2_ca import CoordinateAttention
from models.resnet_bam import BAM
from models.resnet_cbam import CBAM
from models.resnet_eca import ECALayer
from models.resnet_fca import FrequencyChannelAttention
from models.resnet_gc import GlobalContext
from models.resnet_oct import OctaveConv
from models.resnet_se import SELayer
from models.resnet_sge import SpatialGroupEnhance
from models.resnet_simam import SimAM
from models.resnet_sk import SKBottleneck
from models.resnet_srm import SRMLayer
from models.resnet_triplet import TripletAttention
from models.resnet_ws import WSConv2d
from models.sknet import SKConv


class OctavePair(nn.Module):
    """Two octave convolutions, so that a tensor goes in and one comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.split, self.join = OctaveConv(16, 16, 3, alpha_in=0), OctaveConv(16, 16, 3, alpha_out=0)

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self.split((x,)))[0]


MODULES: dict[str, Callable[[], nn.Module]] = {
    "SE": lambda: SELayer(16, reduction=4),
    "SGE": lambda: SpatialGroupEnhance(4),
    "CBAM": lambda: CBAM(16, reduction=4),
    "BAM": lambda: BAM(16, reduction=4),
    "BAM, sum": lambda: BAM(16, reduction=4, combine="sum"),
    "SRM": lambda: SRMLayer(16),
    "GC": lambda: GlobalContext(16, reduction=4),
    "ECA": lambda: ECALayer(16),
    "SimAM": lambda: SimAM(),
    "Triplet": lambda: TripletAttention(),
    "Fca": lambda: FrequencyChannelAttention(16, size=7, reduction=4),
    "CA": lambda: CoordinateAttention(16),
    "SK, modified": lambda: SKBottleneck(16, 32, downsample=nn.Conv2d(16, 128, 1)),
    "SK": lambda: SKConv(16, 16, groups=4),
    "WS": lambda: WSConv2d(16, 16, 3, padding=1),
    "Octave": lambda: OctavePair(),
}


@pytest.fixture(params=MODULES)
def module(request: pytest.FixtureRequest) -> nn.Module:
    """One of each with random parameters, float64, in evaluation: batch norm has seen a batch."""
    return prepared(request.param)


def prepared(name: str) -> nn.Module:
    torch.manual_seed(0)
    module = MODULES[name]().double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    with torch.no_grad():
        module.train()(images())
    return module.eval()


def images(*shape: int) -> Tensor:
    """Float64 maps, (3, 16, 6, 5) by default."""
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape or (3, 16, 6, 5), generator=generator, dtype=torch.float64)


def loss_of(module: nn.Module, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
    return functional_call(module, parameters, (x,)).sin().sum()


def parameters_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in module.named_parameters()}


def test_first_and_second_derivatives(module: nn.Module) -> None:
    x = images(2, 16, 3, 3).requires_grad_()
    assert torch.autograd.gradcheck(module, (x,), fast_mode=True)
    v = images(2, 16, 3, 3)
    parameters = parameters_of(module)

    def gradient(x: Tensor) -> Tensor:
        return grad(loss_of, argnums=2)(module, parameters, x)

    (first,) = torch.autograd.grad(loss_of(module, parameters, x), x, create_graph=True)
    (second,) = torch.autograd.grad(first, x, v)
    step = 1e-6
    numerical = (gradient(x + step * v) - gradient(x - step * v)).detach() / (2 * step)
    assert torch.allclose(first, gradient(x))
    assert torch.allclose(second, numerical, rtol=1e-5, atol=1e-7)
    assert torch.allclose(jvp(gradient, (x.detach(),), (v,))[1], second)  # forward over reverse


def test_second_derivatives_by_the_parameters(module: nn.Module) -> None:
    parameters, x = parameters_of(module), images()
    if not parameters:
        pytest.skip("it has none")
    direction = {name: torch.randn_like(value) for name, value in parameters.items()}

    def gradient(step: float) -> dict[str, Tensor]:
        moved = {name: value + step * direction[name] for name, value in parameters.items()}
        return grad(loss_of, argnums=1)(module, moved, x)

    found = jvp(lambda p: grad(loss_of, argnums=1)(module, p, x), (parameters,), (direction,))[1]
    above, below = gradient(1e-6), gradient(-1e-6)
    for name, value in found.items():
        numerical = (above[name] - below[name]) / 2e-6
        assert torch.allclose(value, numerical, rtol=1e-4, atol=1e-6 * float(1 + numerical.abs().max())), name


def test_forward_mode(module: nn.Module) -> None:
    x, v = images(), images(3, 16, 6, 5)
    numerical = (module(x + 1e-6 * v) - module(x - 1e-6 * v)) / 2e-6
    assert torch.allclose(jvp(module, (x,), (v,))[1], numerical, rtol=1e-5, atol=1e-7)


def test_gradients_of_each_sample(module: nn.Module) -> None:
    parameters, x = parameters_of(module), images()

    def of_one(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return loss_of(module, parameters, x[None])

    each = vmap(grad(of_one), in_dims=(None, 0))(parameters, x)
    together = grad(loss_of, argnums=1)(module, parameters, x)
    for name, value in together.items():
        assert each[name].shape == (3, *value.shape)
        assert torch.allclose(each[name].sum(0), value), name


@pytest.mark.filterwarnings("ignore")
def test_traced_and_saved(module: nn.Module) -> None:
    stored = io.BytesIO()
    torch.jit.save(torch.jit.trace(module, images()), stored)
    stored.seek(0)
    for shape in ((3, 16, 6, 5), (2, 16, 9, 7), (1, 16, 2, 3)):
        assert torch.allclose(torch.jit.load(stored)(images(*shape)), module(images(*shape))), shape
        stored.seek(0)


@pytest.mark.filterwarnings("ignore")
def test_scripted(module: nn.Module) -> None:
    if isinstance(module, OctavePair | SKBottleneck | SKConv):
        pytest.skip(
            "TorchScript has no tuples of any length, no shortcut that may be None, no expressions over paths"
        )
    scripted = torch.jit.script(module)
    for shape in ((3, 16, 6, 5), (1, 16, 2, 3)):
        assert torch.allclose(scripted(images(*shape)), module(images(*shape)))


def test_symbolic_trace(module: nn.Module) -> None:
    traced = torch.fx.symbolic_trace(module)
    for shape in ((3, 16, 6, 5), (2, 16, 9, 7), (1, 16, 1, 1)):
        assert torch.equal(traced(images(*shape)), module(images(*shape))), shape
    assert torch.equal(pickle.loads(pickle.dumps(traced))(images()), module(images()))


def test_exported_with_any_batch_and_size(module: nn.Module) -> None:
    any_size = torch.export.Dim.DYNAMIC
    sizes = {0: any_size, 2: any_size, 3: any_size}
    exported = torch.export.export(module, (images(),), dynamic_shapes=(sizes,)).module()
    for shape in ((3, 16, 6, 5), (2, 16, 9, 7), (1, 16, 12, 3)):
        assert torch.allclose(exported(images(*shape)), module(images(*shape))), shape


@pytest.mark.slow
def test_compiled_as_one_graph(module: nn.Module) -> None:
    """By a backend that runs what torch.compile traced; whole nets: test_transformations.py."""
    compiled: Any = torch.compile(copy.deepcopy(module), backend="aot_eager", fullgraph=True, dynamic=False)
    for ours, theirs in zip(gradients(module, images()), gradients(compiled, images()), strict=True):
        assert torch.allclose(ours, theirs)
    torch.compiler.reset()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_forward_and_backward(module: nn.Module, dtype: torch.dtype) -> None:
    """Both within the region, as torch discourages and people do; the gradients are about right."""
    expected = gradients(module, images())
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(module.float(), images().to(dtype))
    ours, theirs = (torch.cat([g.flatten().double() for g in each]) for each in (found, expected))
    assert float((ours - theirs).norm() / theirs.norm()) < 0.2  # 8 bits, through a sine


def gradients(module: nn.Module, x: Tensor) -> list[Tensor]:
    """Of the input, then of the parameters."""
    module.zero_grad()
    x = x.clone().requires_grad_()
    module(x).sin().sum().backward()
    return [t.grad.clone() for t in (x, *module.parameters()) if t.grad is not None]


def test_checkpointed(module: nn.Module) -> None:
    def again(x: Tensor) -> Any:
        return checkpoint(module, x, use_reentrant=False)

    expected = gradients(module, images())
    x = images().requires_grad_()
    module.zero_grad()
    again(x).sin().sum().backward()
    for ours, theirs in zip((x, *module.parameters()), expected, strict=True):
        assert ours.grad is not None
        assert torch.equal(ours.grad, theirs)


def test_channels_last(module: nn.Module) -> None:
    x = images()
    expected, found = gradients(module, x), gradients(module, x.to(memory_format=torch.channels_last))
    assert module(x.to(memory_format=torch.channels_last)).is_contiguous(memory_format=torch.channels_last)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours, theirs)


def test_copies(module: nn.Module) -> None:
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(images()), module(images()))


@pytest.mark.filterwarnings("ignore:std")  # torch warns of the standard deviation of nothing
def test_no_images(module: nn.Module) -> None:
    x = torch.zeros(0, 16, 6, 5, dtype=torch.float64, requires_grad=True)
    out = module(x)
    assert (out.shape[0], out.shape[2:]) == (0, (6, 5))
    out.sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("shape", [(2, 16, 1, 1), (2, 16, 4, 4)])
def test_maps_without_spread(module: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.ones(shape, dtype=torch.float64, requires_grad=True)
    out = module(x)
    out.sum().backward()
    assert x.grad is not None
    assert torch.isfinite(out).all()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("name", ["SE", "SGE", "CBAM"])
def test_gradients_follow_a_hook(name: str) -> None:
    """One that changes what is pooled."""
    module = prepared(name)
    pool = next(part for part in module.modules() if isinstance(part, nn.AdaptiveAvgPool2d))
    pool.register_forward_hook(lambda _, inputs, output: 3 * output.sin())
    assert torch.autograd.gradcheck(module, (images(2, 16, 3, 3).requires_grad_(),))


@pytest.mark.parametrize("name", ["SE", "CBAM", "BAM", "GC"])
def test_the_flop_counter_sees_what_is_computed(name: str) -> None:
    """Backward takes twice the products of forward: one for the input and one for the weights."""
    module = prepared(name)
    x = images().requires_grad_()
    totals = []
    for backward in (False, True):
        with FlopCounterMode(display=False) as counter:
            out = module(x).sum()
            if backward:
                out.backward()
        totals.append(counter.get_total_flops())
    assert totals[0] > 0
    assert totals[1] == 3 * totals[0]


def test_channels_that_the_groups_do_not_divide() -> None:
    with pytest.raises(ValueError, match="64 groups do not divide 96 channels"):
        SpatialGroupEnhance(64)(torch.zeros(1, 96, 2, 2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ECALayer(16, 4), "kernel_size must be odd and positive, not 4"),
        (lambda: ECALayer(16, -1), "kernel_size must be odd and positive, not -1"),
        (lambda: SimAM(0), "lam must be greater than 0, not 0"),
        (lambda: TripletAttention(2), "kernel_size must be odd and positive, not 2"),
        (lambda: CoordinateAttention(16, 0), "reduction must be at least 1, not 0"),
        (lambda: FrequencyChannelAttention(24, 7), "16 frequencies do not divide 24 channels"),
        (lambda: FrequencyChannelAttention(24, 7, 25, 8), "between 1 and the 24 channels, not 25"),
        (lambda: FrequencyChannelAttention(34, 7, 16, 17), "frequencies must be between 1 and 16, not 17"),
        (lambda: FrequencyChannelAttention(16, 6), "size must be at least 7, not 6"),
    ],
)
def test_arguments_out_of_range(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_kernel_of_eca_by_the_number_of_channels() -> None:
    """The paper's rule: 2^4.5 = 23 and 2^5.5 = 45 channels lie between two of its steps."""
    kernels = {1: 1, 4: 1, 8: 3, 16: 3, 64: 3, 127: 3, 128: 5, 256: 5, 1024: 5, 2047: 5, 2048: 7, 32768: 9}
    assert {channels: ECALayer(channels).conv.kernel_size[0] for channels in kernels} == kernels


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_statistics_of_half_maps_are_float32(dtype: torch.dtype) -> None:
    """SimAM's squares, of about 90,000 here, do not fit into float16, nor their sums."""
    x = (300 * images(2, 16, 40, 40)).to(dtype)
    for module in (SimAM(), FrequencyChannelAttention(16, 7, reduction=4)):
        with torch.no_grad():
            expected = module(x.float())
            with torch.autocast("cpu", dtype):
                found = module(x)
        assert found.dtype == dtype
        assert float((found - expected).norm() / expected.norm()) < 0.01


def test_filters_of_a_checkpoint_with_other_frequencies() -> None:
    """Each channel has its own filter of the checkpoint."""
    published = FrequencyChannelAttention(64, 14)
    for frequencies in (1, 2, 8):
        module = FrequencyChannelAttention(64, 14, frequencies=frequencies)
        x = images(2, 64, 14, 14).float()
        assert not torch.allclose(module.dct_layer(x), published.dct_layer(x), atol=1e-3)
        module.load_state_dict(published.state_dict())
        assert torch.allclose(module(x), published(x), atol=1e-6)
        expected = torch.einsum("bchw,chw->bc", x, published.dct_layer.weight)
        assert torch.allclose(module.dct_layer(x), expected, atol=1e-4)


# The papers' formulas, written once more without torch.nn.


def linear(module: nn.Module, x: Tensor) -> Tensor:
    """A Linear or a 1x1 convolution of vectors (B, C)."""
    assert isinstance(module.weight, Tensor)
    out = x @ module.weight.flatten(1).T
    return out if module.bias is None else out + module.bias  # type: ignore[operator]


def norm(module: Any, x: Tensor) -> Tensor:
    """A batch norm in evaluation of (B, C) or (B, C, H, W)."""
    mean, var, weight, bias = (
        t.view(-1, *[1] * (x.dim() - 2))
        for t in (module.running_mean, module.running_var, module.weight, module.bias)
    )
    return (x - mean) / (var + module.eps) ** 0.5 * weight + bias


def se(module: Any, x: Tensor) -> Tensor:
    hidden = linear(module.fc[0], x.mean((2, 3))).clamp_min(0)
    return x / (1 + torch.exp(-linear(module.fc[2], hidden)))[:, :, None, None]


def cbam(module: Any, x: Tensor) -> Tensor:
    mlp = module.ChannelGate.mlp
    logits = sum(
        linear(mlp[3], linear(mlp[1], pooled).clamp_min(0)) for pooled in (x.mean((2, 3)), x.amax((2, 3)))
    )
    x = x * torch.sigmoid(logits)[:, :, None, None]  # type: ignore[arg-type]
    maps = torch.stack((x.amax(1), x.mean(1)), 1)
    spatial = module.SpatialGate.spatial
    return x * torch.sigmoid(norm(spatial.bn, nn.functional.conv2d(maps, spatial.conv.weight, padding=3)))


def srm(module: Any, x: Tensor) -> Tensor:
    style = torch.stack((x.mean((2, 3)), (x.var((2, 3)) + 1e-5).sqrt()), 2)
    return x * torch.sigmoid(norm(module.bn, (module.cfc * style).sum(2)))[:, :, None, None]


def gc(module: Any, x: Tensor) -> Tensor:
    logits = torch.einsum("c,bchw->bhw", module.conv_mask.weight.flatten(), x) + module.conv_mask.bias
    weights = torch.exp(logits) / torch.exp(logits).sum((1, 2), keepdim=True)
    first, layer_norm, _, last = module.channel_add_conv
    hidden = linear(first, torch.einsum("bchw,bhw->bc", x, weights))
    centred = hidden - hidden.mean(1, keepdim=True)
    hidden = centred / (centred.square().mean(1, keepdim=True) + layer_norm.eps).sqrt()
    hidden = (hidden * layer_norm.weight.flatten() + layer_norm.bias.flatten()).clamp_min(0)
    return x + linear(last, hidden)[:, :, None, None]


def sge(module: Any, x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    for b in range(x.shape[0]):
        for g, group in enumerate(x[b].chunk(module.groups)):
            similarity = torch.einsum("chw,c->hw", group, group.mean((1, 2)))
            deviation = (similarity - similarity.mean()).square().sum() / (similarity.numel() - 1)
            t = (similarity - similarity.mean()) / (deviation.sqrt() + 1e-5)
            gate = torch.sigmoid(t * module.weight[0, g] + module.bias[0, g])
            out[b].chunk(module.groups)[g].copy_(group * gate)
    return out


def ws(module: Any, x: Tensor) -> Tensor:
    filters = torch.stack([(w - w.mean()) / (w.std() + 1e-5) for w in module.weight])
    return nn.functional.conv2d(x, filters, module.bias, padding=1)


def eca(module: Any, x: Tensor) -> Tensor:
    weight = module.conv.weight.flatten()
    reach = len(weight) // 2
    padded = nn.functional.pad(x.mean((2, 3)), (reach, reach))
    logits = sum(weight[i] * padded[:, i : i + x.shape[1]] for i in range(len(weight)))
    return x * torch.sigmoid(logits)[:, :, None, None]


def simam(module: Any, x: Tensor) -> Tensor:
    """By the minimal energy e = 4 (v + lambda) / ((x - m)^2 + 2 v + 2 lambda): x * sigmoid(1 / e)."""
    mean, variance = x.mean((2, 3), keepdim=True), x.var((2, 3), keepdim=True)
    energy = 4 * (variance + module.lam) / ((x - mean) ** 2 + 2 * variance + 2 * module.lam)
    return x / (1 + torch.exp(-1 / energy))


def triplet(module: Any, x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for gate, order in (
        (module.SpatialGate, "bchw"),
        (module.ChannelGateH, "bhcw"),
        (module.ChannelGateW, "bwhc"),
    ):
        turned = torch.einsum(f"bchw->{order}", x)
        maps = torch.stack((turned.amax(1), turned.mean(1)), 1)
        logits = norm(gate.spatial.bn, nn.functional.conv2d(maps, gate.spatial.conv.weight, padding=3))
        out += torch.einsum(f"{order}->bchw", turned * torch.sigmoid(logits))
    return out / 3


def fca(module: Any, x: Tensor) -> Tensor:
    """16 channels, one for each frequency; orthonormal DCT of a 7x7 map."""
    u = (0, 0, 6, 0, 0, 1, 1, 4, 5, 1, 3, 0, 0, 0, 3, 2)
    v = (0, 1, 0, 5, 2, 0, 2, 0, 0, 6, 0, 4, 6, 3, 5, 2)
    position = torch.arange(7, dtype=torch.float64)
    basis = torch.stack([torch.cos(torch.pi * f * (position + 0.5) / 7) for f in range(7)])
    basis = nn.functional.normalize(basis, dim=1)
    assert torch.allclose(basis @ basis.T, torch.eye(7, dtype=torch.float64))
    coefficients = torch.einsum("ui,vj,bcij->bcuv", basis, basis, nn.functional.adaptive_avg_pool2d(x, 7))
    z = torch.stack([coefficients[:, c, u[c], v[c]] for c in range(16)], 1)
    hidden = linear(module.fc[0], z).clamp_min(0)
    return x * torch.sigmoid(linear(module.fc[2], hidden))[:, :, None, None]


def ca(module: Any, x: Tensor) -> Tensor:
    gates = []
    for axis, last in ((3, module.conv2), (2, module.conv3)):
        lines = x.mean(axis)
        hidden = torch.einsum("dc,bcl->bdl", module.conv1.weight.flatten(1), lines)
        hidden = norm(module.bn1, (hidden + module.conv1.bias[:, None])[..., None])[..., 0]
        hidden = hidden * (hidden + 3).clamp(0, 6) / 6
        logits = torch.einsum("cd,bdl->bcl", last.weight.flatten(1), hidden) + last.bias[:, None]
        gates.append(torch.sigmoid(logits).unsqueeze(axis))
    return x * gates[0] * gates[1]


PAPERS = {
    **{"SE": se, "CBAM": cbam, "SRM": srm, "GC": gc, "SGE": sge, "WS": ws},
    **{"ECA": eca, "SimAM": simam, "Triplet": triplet, "Fca": fca, "CA": ca},
}


@pytest.mark.parametrize("name", PAPERS)
@torch.no_grad()
def test_against_the_paper(name: str) -> None:
    module = prepared(name)
    for shape in ((3, 16, 6, 5), (2, 16, 2, 2), (2, 16, 7, 7), (1, 16, 15, 9)):
        assert torch.allclose(module(images(*shape)), PAPERS[name](module, images(*shape))), shape


def test_bam_combines_as_published_or_as_in_the_paper() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 32, 5, 7)
    for module, attention in ((BAM(32), torch.mul), (BAM(32, combine="sum"), torch.add)):
        module.eval()
        maps = module.channel_att(x), module.spatial_att(x)
        assert torch.allclose(module(x), x * (1 + torch.sigmoid(attention(*maps))), atol=1e-6)
    with pytest.raises(ValueError, match="product"):
        create_model("bam_resnet18", combine="max")


class PublishedSGE(SpatialGroupEnhance):
    """The steps of the published code, in its order (reference for rounding)."""

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        grouped = x.reshape(batch * self.groups, -1, height, width)
        similarity = (grouped * grouped.mean((2, 3), keepdim=True)).sum(1).view(batch * self.groups, -1)
        centred = similarity - similarity.mean(1, keepdim=True)
        t = (centred / (centred.std(1, keepdim=True) + 1e-5)).view(batch, self.groups, height, width)
        gate = torch.sigmoid(t * self.weight + self.bias).view(batch * self.groups, 1, height, width)
        return (grouped * gate).view(x.shape)


def error_of_gradients(net: nn.Module, x: Tensor) -> float:
    """Of float32 against float64, of all gradients together, relative."""
    found = []
    for dtype in (torch.float32, torch.float64):
        twin = copy.deepcopy(net).to(dtype)
        nn.functional.cross_entropy(twin(x.to(dtype)), torch.arange(len(x))).backward()
        found.append(torch.cat([p.grad.flatten().double() for p in twin.parameters() if p.grad is not None]))
    return float((found[0] - found[1]).norm() / found[1].norm())


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("size", [64, 112, 224])
def test_rounding_of_sge_is_no_worse_than_published(size: int, seed: int) -> None:
    torch.manual_seed(seed)
    net, x = create_model("sge_resnet50", num_classes=5), torch.randn(3, 3, size, size)
    gates = [module for module in net.modules() if isinstance(module, SpatialGroupEnhance)]
    for gate in gates:
        nn.init.normal_(gate.weight)
        nn.init.normal_(gate.bias)
    ours = error_of_gradients(net, x)
    for gate in gates:
        gate.__class__ = PublishedSGE
    assert ours <= 2 * error_of_gradients(net, x)
