"""Every architecture with a manifest in tests/goldens meets it in float64."""

import copy

import pytest
import torch
from golden_recipe import GOLDENS, fill, golden_input, load_manifest
from torch import Tensor, nn

from models import create_model

NAMES = sorted(path.stem for path in GOLDENS.glob("*.json"))

# The default suite computes the shallowest net of each kind, and trains some of those that are fast.
DEEPER = {
    f"{kind}_resnet50" for kind in ("old", "se", "sge", "bam", "cbam", "ws", "oct", "eca", "triplet", "fca")
} | {"ws_resnext50"}
DEEP = DEEPER | {
    "ca_mobilenetv2",
    "cbam_resnet18",
    "se_resnet18",
    "mobilenetv1",
    "gc_resnet50",
    "srm_resnet50",
    "sk_resnet50",
    "simam_resnet50",
    "fca_resnet34",
    "eca_resnet18",
    "triplet_resnet18",
    "ws_densenet201",
    "oct_resnet26",
    "old_resnet18",
}


def cases(slow: set[str]) -> pytest.MarkDecorator:
    names = [pytest.param(name, marks=pytest.mark.slow if name in slow else ()) for name in NAMES]
    return pytest.mark.parametrize("case", names, indirect=True, scope="module")


def relative(value: float, golden: float) -> float:
    return abs(value - golden) / max(abs(golden), 1e-12)


def l2(tensors: list[Tensor]) -> float:
    return float(torch.stack([t.square().sum() for t in tensors]).sum().sqrt())


@pytest.fixture(scope="module")
def case(request: pytest.FixtureRequest) -> tuple[dict, nn.Module]:
    """What is recorded of a net, and the net, with the recipe's weights."""
    manifest = load_manifest(request.param)
    return manifest, fill(create_model(request.param).double(), manifest)


@pytest.mark.parametrize("name", NAMES)
def test_keys_shapes_and_registration_order(name: str) -> None:
    manifest = load_manifest(name)
    with torch.device("meta"):
        model = create_model(name)
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == manifest["keys"]
    assert list(model.state_dict()) == list(manifest["keys"])
    assert sum(p.numel() for p in model.parameters()) == manifest["params"]


@pytest.mark.parametrize("name", [name for name in NAMES if load_manifest(name).get("kept")])
def test_buffers_that_are_kept(name: str) -> None:
    """FcaNet's filters; a double net has them in the precision in which they are published, float32."""
    kept = load_manifest(name)["kept"]
    state = create_model(name).double().state_dict()
    for key, golden in kept.items():
        assert relative(l2([state[key]]), golden["l2"]) < 1e-12
        assert relative(float(state[key].sum()), golden["sum"]) < 1e-11


@cases(slow=DEEPER)
def test_eval_logits(case: tuple[dict, nn.Module]) -> None:
    manifest, model = case
    golden = manifest["golden"]["eval"]
    model.eval()
    with torch.no_grad():
        logits = model(golden_input(2024, 2))
    first8 = torch.tensor(golden["logits_first8"], dtype=torch.float64)
    assert list(logits.shape) == [2, 1000]
    assert logits.argmax(1).tolist() == golden["argmax"]
    assert float((logits[:, :8] - first8).abs().max() / first8.abs().max()) < 1e-9
    assert relative(l2([logits]), golden["logits_l2"]) < 1e-10


@cases(slow=DEEP)
def test_train_loss_gradients_and_running_statistics(case: tuple[dict, nn.Module]) -> None:
    manifest, model = case
    golden = manifest["golden"]["train"]
    model = copy.deepcopy(model).train()  # it changes the statistics of batch norm
    loss = nn.functional.cross_entropy(model(golden_input(2025, 4)), torch.tensor(golden["labels"]))
    loss.backward()
    assert relative(float(loss.detach()), golden["loss"]) < 1e-9

    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert set(gradients) == {name for name, _ in model.named_parameters()}
    assert relative(l2(list(gradients.values())), golden["grad_l2"]) < 1e-6

    buffers = dict(model.named_buffers())
    means = [value for name, value in buffers.items() if name.endswith("running_mean")]
    variances = [value for name, value in buffers.items() if name.endswith("running_var")]
    assert relative(l2(means), golden["running_mean_l2_after"]) < 1e-9
    assert relative(l2(variances), golden["running_var_l2_after"]) < 1e-9


# Of GC-ResNet only a detection backbone was published, and its initialisation is not that of a classifier.
# The manifests of the later gates are of their authors' own code.
LATER = ("eca_", "simam_", "triplet_", "fca_", "ca_")
AUTHORITATIVE = [
    name
    for name in NAMES
    if (load_manifest(name)["source"].startswith("implus") and not name.startswith("gc_"))
    or name.startswith(LATER)
]


def initial_statistics(name: str) -> dict[str, tuple[str, float]]:
    """Of each parameter: "const" and its value, or "uniform" or "normal" and the standard deviation."""
    recorded = load_manifest(name)["init_seed0"]
    kinds = {}
    for key, (kind, value, *largest) in recorded.get("stats", recorded).items():
        if kind == "std":  # the later manifests leave to the reader what the largest value says
            kind = "uniform" if largest[0] / value < 1.9 else "normal"
        if not key.endswith(("running_mean", "running_var")):
            kinds[key] = (kind, value)
    return kinds


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in DEEPER else ()) for name in AUTHORITATIVE]
)
def test_initialisation_is_the_published_one(name: str) -> None:
    """Constants exactly; of large tensors the deviation, and uniform or normal by the largest value."""
    torch.manual_seed(0)
    parameters = dict(create_model(name).named_parameters())
    statistics = initial_statistics(name)
    assert set(statistics) == set(parameters)
    for key, (kind, value) in statistics.items():
        parameter = parameters[key].detach()
        if kind == "const":
            assert torch.all(parameter == value), key
        elif parameter.numel() >= 1000:
            std = float(parameter.std())
            assert std == pytest.approx(value, rel=0.1), key
            assert (float(parameter.abs().max()) / std < 1.9) == (kind == "uniform"), key
