"""scripts/show_gates.py: what is drawn is what the forward pass multiplied by."""

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run, assert_one_line_error, write_images, write_no_files
from PIL import Image
from test_decoding import photograph, write_held
from timm_block import BasicBlock
from tiny_net import WITH_TINY, tiny_gated
from torch import Tensor, nn

from models import create_model
from models.gates import add_gates, gates_of, start_as_identity
from models.gates.sites import stage_of
from scripts import show_gates
from scripts.lib.gates_draw import bars_of, draw, maps_of, numbers
from scripts.lib.gates_record import (
    Gate,
    Octave,
    Recorded,
    Seen,
    attention_of,
    last_of_each_stage,
    record,
)
from scripts.lib.grad_cam import grad_cam
from utils.common.errors import UserError
from utils.data.labels import imagenet_classes
from utils.data.transforms import ValTransform
from utils.runs.folder import save

SCRIPT = "scripts/show_gates.py"
SIDE = 64


@pytest.fixture
def show(call: Run) -> Run:
    """The script within this process."""
    return lambda *arguments: call(*arguments, script=SCRIPT)


def stirred(arch: str, **kwargs: Any) -> nn.Module:
    """A network whose gates differ from their start, where many are constant."""
    torch.manual_seed(0)
    net = create_model(arch, num_classes=5, **kwargs).eval()
    for module in attention_of(net).values():
        for parameter in module.parameters():
            if not parameter.any() or parameter.dim() == 1:
                nn.init.normal_(parameter, std=0.5)
    return net


def multiplied(gates: dict[str, Tensor], x: Tensor) -> Tensor:
    """SE, SRM, CBAM and SGE."""
    for values in gates.values():
        gate = values.flatten(1)[:, :, None, None] if values.shape[2:] in ((), (1, 1)) else values
        repeats = x.shape[1] // gate.shape[1] if values.dim() == 4 and values.shape[1] > 1 else 1
        x = x * gate.repeat_interleave(repeats, 1)
    return x


def widened(gates: dict[str, Tensor], x: Tensor) -> Tensor:
    """BAM."""
    return x * (1 + gates["gate"])


def added(gates: dict[str, Tensor], x: Tensor) -> Tensor:
    """GC."""
    return x + gates["added"][:, :, None, None]


@pytest.mark.parametrize(
    ("arch", "formula"),
    [
        ("se_resnet18", multiplied),
        ("srm_resnet18", multiplied),
        ("cbam_resnet18", multiplied),
        ("sge_resnet18", multiplied),
        ("bam_resnet18", widened),
        ("gc_resnet18", added),
        ("eca_resnet18", multiplied),
        ("fca_resnet34", multiplied),
        ("simam_resnet18", multiplied),
        ("ca_mobilenetv2", multiplied),
    ],
)
def test_the_gates_are_those_of_the_forward_pass(
    arch: str, formula: Callable[[dict[str, Tensor], Tensor], Tensor]
) -> None:
    net, passed = stirred(arch), {}
    for name, module in attention_of(net).items():
        module.register_forward_hook(
            lambda _, inputs, out, name=name: passed.update({name: (inputs[0].clone(), out.clone())})
        )
    images = torch.randn(2, 3, SIDE, SIDE)
    plain = net(images).detach()
    recorded = record(net, images)
    assert torch.equal(recorded.logits, plain)
    gates = [gate for gate in recorded.shown if isinstance(gate, Gate)]
    assert {gate.module for gate in gates} == set(passed)
    for name, (x, out) in passed.items():
        of_module = {gate.seen.title: gate.values for gate in gates if gate.module == name}
        assert torch.allclose(formula(of_module, x), out, atol=1e-5), name
        if arch == "gc_resnet18":
            weights = of_module["weight in the context"]
            context = (x * weights).sum((2, 3), keepdim=True)
            module = net.get_submodule(name)
            again = module.channel_add_conv(context).flatten(1)  # type: ignore[operator]
            assert torch.allclose(again, of_module["added"], atol=1e-4)
    assert any(gate.values.std() > 1e-3 for gate in gates)
    assert not any(module._forward_pre_hooks for module in net.modules())


@pytest.mark.parametrize(
    ("arch", "branches", "following"),
    [("sk_resnet50", ("bn2", "bn2g"), "conv3"), ("sknet50", ("conv2.paths.0", "conv2.paths.1"), "conv3")],
)
def test_the_weights_of_selective_kernels(arch: str, branches: tuple[str, str], following: str) -> None:
    net, seen = stirred(arch), {}
    block = net.get_submodule("layer3.1")
    for part in branches:
        hook = lambda _, inputs, out, part=part: seen.update({part: out.relu()})  # noqa: E731
        block.get_submodule(part).register_forward_hook(hook)
    block.get_submodule(following).register_forward_pre_hook(
        lambda _, inputs: seen.update(mixed=inputs[0].clone())
    )
    recorded = record(net, torch.randn(2, 3, SIDE, SIDE))
    gates = [gate for gate in recorded.shown if isinstance(gate, Gate)]
    (weight,) = (gate.values for gate in gates if gate.module.startswith("layer3.1"))
    first, second = (seen[part] for part in branches)
    weight = weight[:, :, None, None]
    assert torch.allclose(weight * first + (1 - weight) * second, seen["mixed"], atol=1e-5)


def shown(net: nn.Module, images: Tensor) -> list[Gate]:
    return [gate for gate in record(net, images).shown if isinstance(gate, Gate)]


def test_the_gates_of_triplet_attention() -> None:
    """Two of them have no map: their means over H or W are the gate's mean over the positions."""
    gate, x = stirred("triplet_resnet18").get_submodule("layer2.1.triplet_attention"), torch.ones(2, 8, 6, 5)
    seen = {one.seen.title: one.values for one in shown(nn.Sequential(gate), x)}
    spatial = seen["g(H, W)"]
    assert torch.equal(spatial, gate.get_submodule("SpatialGate")(x))
    over_h, over_w = seen["g(C, W), mean over W"], seen["g(H, C), mean over H"]
    total = (spatial.mean((1, 2, 3))[:, None] + over_h + over_w) / 3
    assert torch.allclose(gate(x).mean((2, 3)), total, atol=1e-6)
    assert over_h.std() > 1e-3
    figure = draw(torch.rand(3, SIDE, SIDE), shown(nn.Sequential(gate), x[:1]), "title", "text")
    titles = [axes.get_title() for axes in figure.axes]
    assert [any(title.startswith(name) for title in titles) for name in seen] == [True] * 3


PLACED = {
    "resnet18": ("standard", "pre", "conv", "stage"),
    "mobilenet_v3_small": ("3x3", "identity", "post"),
    "regnet_y_400mf": ("3x3",),
}


@pytest.mark.parametrize(("arch", "place"), [(arch, place) for arch, of in PLACED.items() for place in of])
def test_gates_that_were_added(arch: str, place: str) -> None:
    """The stage is that of the block, in nets without layerN too, and the picture names the place."""
    torch.manual_seed(0)
    net = add_gates(create_model(arch, num_classes=3), "se", place, img_size=SIDE, reduction=2)
    gates = shown(net, torch.randn(1, 3, SIDE, SIDE))
    assert {gate.module for gate in gates} == set(gates_of(net))
    stages = [gate.stage for gate in gates]
    assert stages == sorted(stages)
    assert set(stages) >= ({1, 2, 3} if place == "stage" else {2, 3, 4})
    assert set(stages) <= {1, 2, 3, 4}
    assert {gate.place for gate in gates} == {"post" if place == "stage" else place}
    last = last_of_each_stage(gates)
    assert len(last) == len(set(stages))
    figure = draw(torch.rand(3, SIDE, SIDE), last, "title", "text")
    heads = [part.get_suptitle() for part in figure.subfigs[1].subfigs]
    assert heads == [f"stage {gate.stage}: {gate.module} ({gate.place}), out = x * gate" for gate in last]


def test_gates_on_modules_of_any_network() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 8, 1), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
    add_gates(net, "se", modules=["0", "2"], img_size=SIDE, reduction=2)
    add_gates(net, "se", "pre", modules=["1"], img_size=SIDE, reduction=2)
    assert [(gate.module, gate.stage, gate.place) for gate in shown(net, torch.randn(1, 3, SIDE, SIDE))] == [
        ("0.se", 2, "output of 0"),
        ("1.se", 2, "input of 1"),
        ("2.se", 3, "output of 2"),
    ]


@pytest.mark.parametrize("place", ["standard", "pre", "identity", "post"])
def test_places_in_a_block_of_timm(place: str) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 8, 1), BasicBlock(8))
    add_gates(net, "se", place, img_size=SIDE, reduction=2)
    (gate,) = shown(net, torch.randn(1, 3, SIDE, SIDE))
    assert (gate.stage, gate.place) == (2, place)
    if place != "standard":  # a block with a gate on its output is still known
        add_gates(net, "sge", "standard", img_size=SIDE, groups=2)
        assert {gate.place for gate in shown(net, torch.randn(1, 3, SIDE, SIDE))} == {place, "standard"}


class Halved(nn.Module):
    """A gate without a sigmoid."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0, 0.5, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale[:, None, None]


class Both(nn.Module):
    """A gate of the channels and one of the positions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc, self.conv = nn.Linear(channels, channels), nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        channels = torch.sigmoid(self.fc(x.mean((2, 3))))[..., None, None]
        return x * channels * self.conv(x).flatten(1).softmax(1).view(-1, 1, *x.shape[2:])


def test_gates_of_a_user() -> None:
    """What is drawn of them says whether it is their sigmoid or only a ratio."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, SIDE, SIDE)
    net = add_gates(create_model("resnet18", num_classes=3), Both, stages=[2])
    gates = shown(net, x)
    assert {gate.module for gate in gates} == {"layer2.0.gate", "layer2.1.gate"}
    assert {(gate.seen.title, gate.values.shape[1:], gate.seen.bounded) for gate in gates} == {
        ("sigmoid of the channels", (128,), True),
        ("softmax of the positions", (1, 8, 8), False),
    }
    assert {gate.formula for gate in gates} == {"the sigmoid and softmax in Both"}
    assert gates[1].values.sum((1, 2, 3)).tolist() == pytest.approx([1, 1])

    net = add_gates(create_model("resnet18", num_classes=3), Halved, stages=[3])
    positions, channels, *_ = shown(net, x)
    assert positions.formula == channels.formula == "mean |output| / mean |input| of Halved"
    assert positions.values.shape == (2, 1, 4, 4)
    assert torch.allclose(channels.values, torch.linspace(0, 0.5, 256).expand(2, -1), atol=1e-5)


def test_gates_that_started_as_the_identity() -> None:
    """What is shown is the gate inside, and what becomes of its output."""
    net = add_gates(create_model("resnet18", num_classes=3), "se", stages=[1])
    start_as_identity(net)
    gates = shown(net, torch.randn(1, 3, SIDE, SIDE))
    assert {(gate.module, gate.place) for gate in gates} == {(f"layer1.{i}.se", "standard") for i in range(2)}
    assert {gate.formula for gate in gates} == {"out = x * gate, times the factor 2"}
    assert all(torch.equal(gate.values, torch.full((1, 64), 0.5)) for gate in gates)
    net = start_as_identity(add_gates(create_model("resnet18", num_classes=3), Halved, stages=[1]))
    formulas = {gate.formula for gate in shown(net, torch.randn(1, 3, SIDE, SIDE))}
    assert formulas == {"mean |output| / mean |input| of Halved, mixed: x + 0 * (out - x)"}


@pytest.mark.parametrize("arch", ["oct_resnet26", "oct_mobilenet"])
def test_the_energy_of_octaves(arch: str) -> None:
    torch.manual_seed(0)
    net = create_model(arch, num_classes=5).eval()
    images = torch.randn(1, 3, SIDE, SIDE)
    with torch.no_grad():
        stages = net.forward_octaves(images)  # type: ignore[operator]
    for octave, maps in zip(record(net, images).shown, stages, strict=True):
        assert isinstance(octave, Octave)
        assert torch.equal(octave.high, maps[0].square().mean(1))
        assert (octave.low is None) == (len(maps) == 1)
        energies = [maps[0].square().sum(), 4 * maps[1].square().sum() if len(maps) > 1 else 0]
        assert float(octave.shares[0, 0]) == pytest.approx(float(energies[0] / sum(energies)), rel=1e-4)


def test_what_is_drawn_are_the_numbers_of_the_gates() -> None:
    for arch in ("cbam_resnet18", "sge_resnet18"):
        image = torch.rand(3, SIDE, SIDE)
        recorded = record(stirred(arch), image[None])
        gates = last_of_each_stage([gate for gate in recorded.shown if isinstance(gate, Gate)])
        assert [gate.stage for gate in gates] == sorted(gate.stage for gate in gates)
        figure = draw(image, gates, "title $a", "text", by_size=True)
        arrays = [picture.get_array() for axes in figure.axes for picture in axes.images]
        steps = [patch.get_data().values for axes in figure.axes for patch in axes.patches]
        for gate in gates:
            for _, values in maps_of(gate):
                assert any(values.shape == array.shape and np.allclose(values, array) for array in arrays)
            if gate.values.dim() == 2:
                bars = bars_of(gate, by_size=True)
                assert any(len(bars) == len(step) and np.array_equal(bars, step) for step in steps)
                assert sorted(gate.values[0].tolist(), reverse=True) == bars.tolist()


def one_map(low: float, high: float, bounded: bool = True) -> tuple[np.ndarray, str]:
    """The colours (H, W, RGBA) of a gate of positions between two values, and the text above it."""
    values = torch.linspace(low, high, 49).view(1, 1, 7, 7)
    gate = Gate("layer1.0.sge", 1, "out = x * gate", Seen("gate", values, bounded))
    figure = draw(torch.rand(3, SIDE, SIDE), [gate], "title", "text")
    ((axes, picture),) = [
        (axes, image) for axes in figure.axes for image in axes.images if image.get_array().shape == (7, 7)
    ]
    return picture.to_rgba(picture.get_array(), alpha=1), axes.get_title()


def test_a_gate_that_hardly_differs_looks_flat() -> None:
    """And every picture states its range."""
    for low, high, bounded, text in (
        (0.7310, 0.7312, True, "0.731 to 0.7312"),
        (0.99999, 1.0, True, "0.99999 to 1"),
        (0.0, 0.0, False, "all 0"),
        (5000.0, 5001.0, False, "5000 to 5001"),
    ):
        colours, title = one_map(low, high, bounded)
        assert np.ptp(colours, axis=(0, 1)).max() < 0.02
        assert title.endswith(text)
    whole = [
        np.ptp(one_map(*values)[0], axis=(0, 1)) for values in ((0.0, 1.0), (0.2, 0.4), (0.001, 0.004, False))
    ]
    assert np.allclose(whole[0], whole[1])
    assert np.allclose(whole[0], whole[2])
    assert whole[0].max() > 0.5


def test_numbers_tell_apart() -> None:
    assert numbers(0.5, 0.50001) == ["0.5", "0.50001"]
    assert numbers(0.5) == ["0.5"]
    assert numbers(1e-28, 0.5, 1) == ["0", "0.5", "1"]
    assert numbers(1030, 9760) == ["1030", "9760"]
    assert numbers(0.0, 0.0) == ["0", "0"]


def test_stages_by_name_or_size() -> None:
    assert [stage_of(name, 28, 224) for name in ("layer2.0.se", "bam3", "features.4")] == [2, 3, 2]
    assert [stage_of("features.0", side, 224) for side in (112, 56, 28, 14, 7)] == [1, 1, 2, 3, 4]


class Links(HTMLParser):
    """Collects what a page shows."""

    def __init__(self) -> None:
        super().__init__()
        self.images: list[dict[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.images.append(dict(attrs))


def test_the_command(tmp_path: Path, show: Run) -> None:
    write_images(tmp_path / "in", 2)
    odd = tmp_path / "in" / "a <b> & 'c' %.JPEG"
    (tmp_path / "in" / "1.JPEG").rename(odd)
    net = stirred("sge_resnet18")
    state = {"state_dict": net.state_dict(), "arch": "sge_resnet18"}
    names = {"classes": ["ant", "bee", "cat", "<dog>", "$owl"], "epoch": 1, "images": 0}
    saved = save({**state, **names}, tmp_path)
    flags = ("-a", "sge_resnet18", "--resume", saved, "--img-size", SIDE)
    result = show(*flags, "in/0.JPEG", odd, "-o", "out/pictures")
    assert result.returncode == 0, result.stderr
    assert "wrote out/pictures/: 2 pictures, index.html" in result.stdout
    links = Links()
    links.feed((tmp_path / "out" / "pictures" / "index.html").read_text())
    assert len(links.images) == 2
    for image in links.images:
        assert re.fullmatch(r"[\w.-]+\.png", image["src"] or "")
        with Image.open(tmp_path / "out" / "pictures" / (image["src"] or "")) as picture:
            assert picture.width > 1000
        assert "predicted: " in (image["alt"] or "")
    assert "a <b> & 'c' %" in (links.images[1]["alt"] or "")
    recorded = record(net, show_gates.normalised(show_gates.pixels_of("in/0.JPEG", ValTransform(SIDE))))
    page = (tmp_path / "out" / "pictures" / "index.html").read_text()
    for gate in last_of_each_stage([gate for gate in recorded.shown if isinstance(gate, Gate)]):
        low, high = numbers(gate.values.min().item(), gate.values.max().item())
        assert f"{gate.module}, gate {low} to {high}, mean " in page


class OfAPlace(nn.Module):
    """Its logit of class 1 is what the first channel has in the lower right quarter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 8, 8, bias=False)
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return torch.cat([0 * self.pool(x[:, :1, :4]).flatten(1), self.pool(x[:, :1, 4:, 4:]).flatten(1)], 1)


def test_where_a_class_is_seen() -> None:
    """Grad-CAM by its formula: maps weighted by the mean gradient, what lowers the logit left out."""
    torch.manual_seed(0)
    net, image = OfAPlace(), torch.rand(1, 3, SIDE, SIDE)
    nn.init.constant_(net.conv.weight[1], 7.0)  # no class depends on it
    cam = grad_cam(net, image)
    maps = net.conv(image).detach()
    weight = 1 / 64  # each of 16 of 64 positions has a gradient of 1 / 16
    assert cam.layer == "conv"
    assert cam.label == int(net(image).argmax())
    assert torch.allclose(grad_cam(net, image, 1).heat, (weight * maps[0, 0]).relu(), atol=1e-6)
    assert not grad_cam(net, image, 0).heat.any()
    gated = stirred("sge_resnet18")
    before = {name: value.clone() for name, value in gated.state_dict().items()}
    assert grad_cam(gated, image).layer == "layer4"
    assert all(parameter.grad is None for parameter in gated.parameters())
    assert all(torch.equal(before[name], value) for name, value in gated.state_dict().items())
    assert not any(module._forward_hooks for module in gated.modules())


def test_several_networks_on_the_same_images(tmp_path: Path, show: Run) -> None:
    """One page: Grad-CAM side by side, and the gates of those that have gates."""
    write_images(tmp_path / "in", 2)
    files = []
    for arch, size in (("tiny", SIDE), ("tiny_gated", SIDE), ("tiny_gated", 32)):
        state = {"state_dict": WITH_TINY[arch](num_classes=3).state_dict(), "arch": arch}
        content = {**state, "epoch": 1, "images": 0, "arguments": {"img_size": size}}
        (folder := tmp_path / f"{arch}-{size}").mkdir()
        files += ["--resume", save(content, folder)]
    result = show(*files[:4], "--cam", "in/0.JPEG", "in/1.JPEG", "-o", "both")
    assert result.returncode == 0, result.stderr
    assert result.stdout == (
        "note: tiny has no gates: its Grad-CAM is drawn only\nwrote both/: 4 pictures, index.html\n"
    )
    names = ["001_0_2.png", "001_0_cam.png", "002_1_2.png", "002_1_cam.png", "index.html"]
    assert sorted(path.name for path in (tmp_path / "both").iterdir()) == names
    page = (tmp_path / "both" / "index.html").read_text()
    assert page.index("001_0_cam.png") < page.index("001_0_2.png") < page.index("002_1_cam.png")
    assert_one_line_error(show(*files, "--cam", "in/0.JPEG"), "see images of other sizes or crops")
    assert_one_line_error(show(*files[:4], "in/0.JPEG"), "this network has no attention to draw")


def test_photos_are_turned_upright(tmp_path: Path) -> None:
    first, *others = [
        show_gates.pixels_of(str(path), ValTransform(64))
        for path in write_held(tmp_path, photograph(), ".png")
    ]
    assert len(others) == 7
    assert all(torch.equal(first, other) for other in others)


def test_a_checkpoint_says_what_it_holds(tmp_path: Path, show: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its architecture, the size of its images, its number of outputs."""
    write_images(tmp_path / "in", 1)
    state = {
        "state_dict": tiny_gated(num_classes=5).state_dict(),
        "arch": "tiny_gated",
        "epoch": 1,
        "images": 0,
    }
    saved = save({**state, "arguments": {"img_size": 64}}, tmp_path)
    sizes: list[int] = []
    record_gates = show_gates.record

    def spy(net: nn.Module, images: torch.Tensor) -> Recorded:
        sizes.append(images.shape[-1])
        return record_gates(net, images)

    monkeypatch.setattr(show_gates, "record", spy)
    assert show("--resume", saved, "in/0.JPEG").returncode == 0
    (tmp_path / "gates" / "index.html").write_text("mine")
    again = ("--resume", saved, "--img-size", 96, "in/0.JPEG")
    assert_one_line_error(show(*again), "-o gates is not empty: give another folder, or --overwrite")
    assert (tmp_path / "gates" / "index.html").read_text() == "mine"
    assert show(*again, "--overwrite").returncode == 0
    assert sizes == [64, 96]
    assert show("-a", "tiny_gated", "--num-classes", 2, "in/0.JPEG", "-o", "two").returncode == 0
    assert sizes[-1] == 224
    page = (tmp_path / "two" / "index.html").read_text()
    assert set(re.findall(r"% class (\d)", page)) == {"0", "1"}
    assert_one_line_error(show("--resume", saved, "--num-classes", 2, "in/0.JPEG"), "not allowed with")


@pytest.mark.slow
def test_names_of_what_is_predicted(tmp_path: Path, show: Run) -> None:
    """ImageNet's for a thousand outputs without names, or those of a list."""
    write_images(tmp_path / "in", 1)
    torch.save(create_model("sge_resnet18").state_dict(), tmp_path / "bare.pth")
    flags = ("-a", "sge_resnet18", "--resume", "bare.pth", "--img-size", SIDE, "in/0.JPEG", "-o")
    result = show(*flags, "imagenet")
    assert "note: bare.pth names no classes: its outputs are taken for ImageNet's" in result.stdout
    (tmp_path / "names.txt").write_text("\n".join(f"thing {label}" for label in range(1000)))
    result = show(*flags, "listed", "--class-list", "names.txt")
    assert "note" not in result.stdout
    pages = [(tmp_path / name / "index.html").read_text() for name in ("imagenet", "listed")]
    labels = [int(label) for label in re.findall(r"% thing (\d+)", pages[1])]
    names = list(imagenet_classes().values())
    assert len(labels) >= 3
    assert all(f"% {names[label]}" in pages[0] for label in labels)


def test_bad_input(tmp_path: Path, show: Run) -> None:
    write_images(tmp_path / "in", 1)
    (tmp_path / "text.JPEG").write_text("no image")
    (tmp_path / "file").write_text("")
    no_files = write_no_files(tmp_path)
    net = ("-a", "se_resnet18", "--img-size", "32")
    assert_one_line_error(show(*net, "none.JPEG"), "none.JPEG: No such file")
    assert_one_line_error(show(*net, "text.JPEG"), "text.JPEG: no image")
    for name in no_files:
        assert_one_line_error(show(*net, name), f"{name}: no image")
    assert_one_line_error(show(*net, "in"), "in is a folder: name images")
    assert_one_line_error(show(*net, "in/0.JPEG", "-o", "file"), "-o file: Not a directory")
    assert_one_line_error(show("-a", "resnet18", "in/0.JPEG"), "no attention to draw", "--gate", "is_gate")
    assert_one_line_error(show("in/0.JPEG"), "Give --resume FILE, or -a ARCH")
    assert_one_line_error(show(*net, "in/0.JPEG", "--resume", "text.JPEG"), "--resume text.JPEG")
    with pytest.raises(UserError, match="no attention"):
        record(create_model("sk_resnet18"), torch.zeros(1, 3, 32, 32))
