"""A net of every kind under torch's transformations: func, fx, trace, export, checkpointing, compile.

The attention modules alone: test_attention.py. The statistics of batch norm change in place, which torch.func
refuses: where it is used, nets are in evaluation.
"""

import io
import subprocess
import sys
from typing import Any

import pytest
import torch
from conftest import REPOSITORY
from test_robustness import AS_MODULES, BUILDERS, NAMES, SHALLOW, SHORT, build, images
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from torch.utils.checkpoint import checkpoint
from torchvision.models.feature_extraction import create_feature_extractor

LABELS = torch.tensor([0, 1])
# What is their own stands alone under the same tools in test_attention.py: as whole nets they are slow. A new
# net is not.
SLOW = AS_MODULES | {
    f"{SHORT}{name}"
    for name in (
        *("se_resnet18", "bam_resnet18", "sk_resnet50", "sknet50", "oct_resnet26", "ws_resnet18"),
        *("ws_densenet201", "ws_mobilenetv1", "ws_shufflenetv1", "ws_shufflenetv2", "mobilenetv1"),
        *("resnet50_b", "resnet50_c", "resnet50_d", "oct_mobilenet", "shufflenetv1_1x", "ca_mobilenetv2"),
    )
}
SOME = [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in NAMES]
EACH = pytest.mark.parametrize(
    "name", [*SOME, *(pytest.param(name, marks=pytest.mark.slow) for name in SHALLOW)], scope="module"
)


def prepared(name: str) -> Any:
    """A net in float64 and evaluation."""
    return build(name).double().eval()


def loss_of(net: nn.Module, parameters: dict[str, Tensor], x: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(functional_call(net, parameters, (x,)), labels)


def parameters_of(net: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in net.named_parameters()}


def flat(gradients: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.flatten() for value in gradients.values()])


@EACH
@pytest.mark.filterwarnings("ignore")  # torch.jit is deprecated, and warns of shapes that become constants
@torch.no_grad()
def test_fx_and_traces(name: str) -> None:
    """Also for images of another size and number, none included."""
    net, stored = prepared(name), io.BytesIO()
    torch.jit.save(torch.jit.trace(net, images().double(), check_trace=False), stored)
    stored.seek(0)
    graph, trace = torch.fx.symbolic_trace(net), torch.jit.load(stored)
    for x in (images(1, 96, 72).double(), images(0).double()):
        expected = net(x)
        assert torch.equal(graph(x), expected)
        with torch.jit.optimized_execution(False):  # which takes as long as all the rest
            assert torch.allclose(trace(x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in NAMES if "_resnet" in name and "oct" not in name])
@torch.no_grad()
def test_feature_extractor(name: str) -> None:
    """torchvision's, by names of modules; Octave's stages have two maps each."""
    net = prepared(name)
    x = images().double()
    found = create_feature_extractor(net, {f"layer{i}": f"c{i + 1}" for i in range(1, 5)})(x)
    c2, c3, c4, c5 = net.forward_stages(x)
    assert torch.equal(found["c5"], c5)
    if "bam" not in name:  # its attention follows the stages
        assert all(torch.equal(a, b) for a, b in zip(found.values(), (c2, c3, c4, c5), strict=True))


@EACH
def test_gradients_of_each_image(name: str) -> None:
    net = prepared(name)
    parameters, x = parameters_of(net), images().double()

    def of_one(parameters: dict[str, Tensor], x: Tensor, label: Tensor) -> Tensor:
        return loss_of(net, parameters, x[None], label[None])

    each = vmap(grad(of_one), in_dims=(None, 0, 0))(parameters, x, LABELS)
    together = grad(loss_of, argnums=1)(net, parameters, x, LABELS)
    means = flat({key: value.mean(0) for key, value in each.items()})
    assert float((means - flat(together)).norm() / flat(together).norm()) < 1e-8


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NAMES, *SHALLOW], scope="module")
def test_products_with_the_hessian(name: str) -> None:
    """Forward over reverse and reverse over reverse, against differences of gradients."""
    net = build(name).double().eval()
    parameters, x = parameters_of(net), images().double()
    direction = {key: torch.randn_like(value) for key, value in parameters.items()}
    length = flat(direction).norm()
    direction = {key: value / length for key, value in direction.items()}

    def gradient(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
        return grad(loss_of, argnums=1)(net, parameters, x, LABELS)

    def moved(step: float) -> Tensor:
        return flat(gradient({key: value + step * direction[key] for key, value in parameters.items()}))

    found = flat(jvp(gradient, (parameters,), (direction,))[1])
    errors = []
    for step in (1e-7, 1e-8, 1e-9):  # a ReLU that switches within the step spoils the difference
        numerical = (moved(step) - moved(-step)) / (2 * step)
        errors.append(float((found - numerical).norm() / numerical.norm()))
    assert min(errors) < 1e-4, errors

    leaves = {key: value.clone().requires_grad_() for key, value in parameters.items()}
    first = torch.autograd.grad(loss_of(net, leaves, x, LABELS), list(leaves.values()), create_graph=True)
    second = torch.autograd.grad(
        first, list(leaves.values()), list(direction.values()), materialize_grads=True
    )
    assert float((torch.cat([t.flatten() for t in second]) - found).norm() / found.norm()) < 1e-8


@EACH
def test_checkpointing(name: str) -> None:
    net, x = prepared(name), images().double()
    results = []
    for forward in (net, lambda x: checkpoint(net, x, use_reentrant=False)):
        net.zero_grad()
        nn.functional.cross_entropy(forward(x), LABELS).backward()
        results.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    assert torch.equal(*results)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == f"{SHORT}sge_resnet18" else pytest.mark.slow)
        for name in (*NAMES, *BUILDERS)
    ],
    scope="module",
)
@torch.no_grad()
def test_export(name: str) -> None:
    """For any number and size of images.

    torch.export takes a size of 1 for a constant: the example must be larger than Octave's smallest map, a
    64th of the image.
    """
    net = prepared(name)
    any_size = torch.export.Dim.DYNAMIC
    sizes = {0: any_size, 2: any_size, 3: any_size}
    exported = torch.export.export(net, (images(2, 96, 96).double(),), dynamic_shapes=(sizes,)).module()
    for x in (images(3, 128, 72).double(), images(1, 225, 160).double()):
        assert torch.allclose(exported(x), net(x), rtol=1e-9, atol=1e-9), x.shape


# torch.compile as --compile uses it. Each in a process of its own: a crash would end all tests.
COMPILED = """
import copy, torch
from models import create_model
from utils.networks.compilation import compile_blocks
torch.manual_seed(0)
net = create_model("{name}", num_classes=5).double()
for module in net.modules():
    if isinstance(module, torch.nn.Dropout):
        module.p = 0.0
compiled = compile_blocks(copy.deepcopy(net))
x, labels = torch.randn(2, 3, 224, 224, dtype=torch.float64), torch.arange(2)
losses = [torch.nn.functional.cross_entropy(each(x), labels) for each in (net, compiled)]
for loss in losses:
    loss.backward()
assert abs(losses[0] - losses[1]) < 1e-9, losses
ours, theirs = (torch.cat([p.grad.flatten() for p in each.parameters()]) for each in (compiled, net))
assert (ours - theirs).norm() < 1e-8 * theirs.norm(), (ours - theirs).norm() / theirs.norm()
assert sorted(compiled.state_dict()) == sorted(net.state_dict())
assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", [name.replace("resnet18", "resnet50") for name in SHALLOW])
def test_compiled_blocks(name: str) -> None:
    """Depth 50 and 224 px: there the whole network, compiled, crashed (sge_resnet50, torch 2.14)."""
    command = [sys.executable, "-c", COMPILED.format(name=name)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert result.returncode == 0, result.stderr[-2000:]
