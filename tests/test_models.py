"""The registry, and the promise that every model file works copied alone."""

import itertools
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY
from torch import nn

from models import create_model, is_own, list_models, resolve
from models.resnet_simam import SimAM

NO_NETWORKS = ("__init__.py", "stems.py")
MODEL_FILES = sorted(path for path in (REPOSITORY / "models").glob("*.py") if path.name not in NO_NETWORKS)

COPIED = """
import gc, os, sys, torch, torchvision

def check(name):
    sys.path.insert(0, name)
    file = __import__(name)
    assert set(file.__all__) <= set(dir(file))
    builders = [name for name in file.__all__ if name.islower()]
    assert builders
    net = getattr(file, builders[0])(num_classes=5)
    out = net(torch.rand(2, 3, 32, 32))
    assert out.shape == (2, 5)
    out.sum().backward()
    assert not [name for name in sys.modules if name.split(".")[0] in ("models", "utils")]

gc.freeze()  # or else a fork spends a second on copying what it looks through
for name in sys.argv[1:]:
    if not os.fork():
        check(name)
        print(name, flush=True)
        os._exit(0)
    os.wait()
"""


def test_a_file_copied_alone_builds_and_trains(tmp_path: Path) -> None:
    """Each in a folder and a process of its own."""
    names = [file.stem for file in MODEL_FILES]
    for file in MODEL_FILES:
        (tmp_path / file.stem).mkdir()
        (tmp_path / file.stem / file.name).write_text(file.read_text())
    result = subprocess.run(
        [sys.executable, "-c", COPIED, *names], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.stdout.split() == names, result.stderr


def test_every_builder_of_every_file_is_registered() -> None:
    for file in MODEL_FILES:
        module = __import__(f"models.{file.stem}", fromlist=["__all__"])
        for name in module.__all__:
            assert not name.islower() or is_own(name)


def test_list_models_matches_patterns() -> None:
    assert list_models("sge_resnet*") == [f"sge_resnet{depth}" for depth in (18, 34, 50, 101, 152)]
    assert {"se_resnet50", "old_resnet50", "resnet50", "mobilenet_v2"} <= set(list_models())
    assert "get_model" not in list_models()
    assert "fasterrcnn_resnet50_fpn" not in list_models()
    assert len(set(list_models())) == len(list_models())


def test_old_resnet_is_torchvisions() -> None:
    assert resolve("old_resnet50") == "resnet50"
    assert type(create_model("old_resnet18")) is type(create_model("resnet18"))


def test_unknown_name() -> None:
    with pytest.raises(KeyError):
        create_model("list_models")


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_nets_with_auxiliary_heads_train_on_one_output(name: str) -> None:
    assert isinstance(create_model(name, num_classes=3)(torch.rand(2, 3, 96, 96)), torch.Tensor)


def test_groups_make_resnext_variants() -> None:
    net = create_model("sge_resnet50", groups=32, width_per_group=4, num_classes=10)
    widths = {(conv.groups, conv.out_channels) for conv in net.modules() if isinstance(conv, nn.Conv2d)}
    assert (32, 128) in widths
    named = create_model("sge_resnext50_32x4d", num_classes=10)
    shapes = ({key: value.shape for key, value in twin.state_dict().items()} for twin in (net, named))
    assert next(shapes) == next(shapes)


KNOBS: list[tuple[str, dict[str, Any], dict[str, tuple[int, ...]]]] = [
    ("se_resnet18", {"reduction": 4}, {"layer1.0.se.fc.0.weight": (16, 64)}),
    ("se_resnext50_32x4d", {"reduction": 8}, {"layer4.2.se.fc.0.weight": (256, 2048)}),
    ("cbam_resnet50", {"reduction": 8}, {"layer4.0.cbam.ChannelGate.mlp.1.weight": (256, 2048)}),
    ("gc_resnet50", {"reduction": 4}, {"layer2.1.gc.channel_add_conv.0.weight": (128, 512, 1, 1)}),
    ("sge_resnet50", {"sge_groups": 32, "groups": 2}, {"layer3.0.sge.weight": (1, 32, 1, 1)}),
    ("bam_resnet18", {"reduction": 32}, {"bam3.channel_att.gate_c.gate_c_fc_0.weight": (8, 256)}),
    ("eca_resnet50", {"kernel_size": 9}, {f"layer{i}.0.eca.conv.weight": (1, 1, 9) for i in range(1, 5)}),
    ("eca_resnet34", {"kernel_size": [1, 3, 5, 9]}, {"layer4.2.eca.conv.weight": (1, 1, 9)}),
    ("eca_resnet50", {"kernel_size": None}, {"layer1.2.eca.conv.weight": (1, 1, 5)}),
    (
        "triplet_resnet50",
        {"kernel_size": 3},
        {"layer4.0.triplet_attention.SpatialGate.spatial.conv.weight": (1, 2, 3, 3)},
    ),
    ("fca_resnet34", {"reduction": 4, "frequencies": 2}, {"layer1.0.att.fc.0.weight": (16, 64)}),
    ("ca_mobilenetv2", {"reduction": 8}, {"features.17.conv.6.conv1.weight": (120, 960, 1, 1)}),
]


@pytest.mark.parametrize(("name", "knobs", "shapes"), KNOBS)
def test_knobs_of_the_gates(name: str, knobs: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> None:
    with torch.device("meta"):
        state = create_model(name, **knobs).state_dict()
        plain = create_model(name).state_dict()
    assert list(state) == list(plain)
    for key, shape in shapes.items():
        assert tuple(state[key].shape) == shape
        assert tuple(plain[key].shape) != shape


def test_knobs_without_a_shape() -> None:
    bam: Any = create_model("bam_resnet18", dilation=2, combine="sum")
    assert bam.bam2.spatial_att.gate_s.gate_s_conv_di_1.dilation == (2, 2)
    assert bam.bam3.combine == "sum"
    simam: Any = create_model("simam_resnext50_32x4d", lam=0.5)
    assert {module.lam for module in simam.modules() if isinstance(module, SimAM)} == {0.5}
    default: Any = create_model("simam_resnet18")
    assert default.layer1[0].conv2[1].lam == 0.1


def test_default_kernels_of_eca() -> None:
    found = {}
    for depth in (18, 34, 50, 101, 152):
        with torch.device("meta"):
            net: Any = create_model(f"eca_resnet{depth}")
        stages = (net.layer1, net.layer2, net.layer3, net.layer4)
        found[depth] = "".join(str(stage[-1].eca.conv.kernel_size[0]) for stage in stages)
    assert found == {18: "3577", 34: "3357", 50: "3557", 101: "3357", 152: "3357"}


@pytest.mark.parametrize(
    ("name", "knobs", "message"),
    [
        ("se_resnet18", {"reduction": 65}, "between 1 and the 64 channels, not 65"),
        ("se_resnet18", {"reduction": 0}, "between 1 and the 64 channels, not 0"),
        ("cbam_resnet18", {"reduction": 100}, "between 1 and the 64 channels, not 100"),
        ("bam_resnet18", {"reduction": 100}, "between 1 and the 64 channels, not 100"),
        ("bam_resnet18", {"dilation": 0}, "dilation must be at least 1, not 0"),
        ("gc_resnet50", {"reduction": 257}, "between 1 and the 256 channels, not 257"),
        ("sge_resnet18", {"sge_groups": 48}, "48 groups do not divide 64 channels"),
        ("sge_resnet18", {"sge_groups": 0}, "0 groups do not divide 64 channels"),
        ("fca_resnet34", {"frequencies": 3}, "3 frequencies do not divide 64 channels"),
        ("fca_resnet34", {"reduction": 65}, "between 1 and the 64 channels, not 65"),
        ("eca_resnet18", {"kernel_size": (3, 3)}, "one for each of 4 stages, not .3, 3."),
        ("eca_resnet18", {"kernel_size": 4}, "must be odd and positive, not 4"),
        ("simam_resnet18", {"lam": -1}, "lam must be greater than 0, not -1"),
        ("triplet_resnet18", {"kernel_size": 6}, "must be odd and positive, not 6"),
        ("ca_mobilenetv2", {"reduction": 0}, "reduction must be at least 1, not 0"),
    ],
)
def test_knobs_out_of_range(name: str, knobs: dict[str, Any], message: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        create_model(name, **knobs)


def test_widths_of_ca_mobilenetv2() -> None:
    """All channels are multiples of 8; the last convolution is not narrower than 1280."""
    for width_mult, last, first in ((0.5, 1280, 16), (0.35, 1280, 16), (1.4, 1792, 48)):
        net: Any = create_model("ca_mobilenetv2", width_mult=width_mult, num_classes=3)
        convolutions = [module for module in net.modules() if type(module) is nn.Conv2d]
        assert all(conv.out_channels % 8 == 0 for conv in convolutions if conv.bias is None)
        assert convolutions[0].out_channels == first
        assert net.forward_features(torch.rand(1, 3, 64, 96)).shape == (1, last, 2, 3)
        assert [stage.shape[2] for stage in net.forward_stages(torch.rand(1, 3, 64, 96))] == [16, 8, 4, 2]


def names_in_readme() -> set[str]:
    """The names of the README's table of architectures, with ``{18,34}`` spelled out."""
    readme = (REPOSITORY / "README.md").read_text()
    table = readme[readme.index("## Architectures") : readme.index("list_models(")]
    names: set[str] = set()
    for pattern in re.findall(r"`([a-z0-9_{},]+)`", table):
        parts = [part.split(",") for part in re.split(r"[{}]", pattern)]
        names.update("".join(choice) for choice in itertools.product(*parts))
    return names - {"models"}


def test_readme_lists_every_architecture() -> None:
    assert names_in_readme() == {name for name in list_models() if is_own(name)}


def test_aliases_lead_to_architectures() -> None:
    for alias in ("ws_resnext50_32x4d", "ws_shufflenetv2_1x", "shufflenetv1_1x_g3", "old_resnet152"):
        assert alias in list_models()
        assert resolve(alias) != alias
        assert resolve(alias) in list_models()
