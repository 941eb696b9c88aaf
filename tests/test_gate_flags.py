"""The flags of gates: in training, in checkpoints, in the tools, and with weights of plain networks."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run, assert_one_line_error
from small_checkpoint import calibrated
from tiny_net import WITH_TINY
from torch import Tensor, nn

from detection.backbone import create_backbone
from models import create_model, list_models
from models.gates import base_of, gates_of, list_gates, renamed
from utils.common.errors import UserError
from utils.networks import building, checkpoint, weights
from utils.networks.building import NetworkSpec, build_model, choose_network
from utils.networks.gating import GateSpec, gate_fields, gates_taken, put_gates
from utils.networks.parts import PartSpec
from utils.training.distillation import build_teacher

FAST = "imagenet_fast.py"
ARCH = "tiny_resnet"
NET = ("-a", ARCH, "--img-size", 32)
SMALL = ("--train-batch", 8, "--manualSeed", 7)
SGE = ("--gate", "sge", "--gate-at", "pre", "--gate-stages", 3, 4, "--gate-args", "groups=1,2,8,4")
OWN_FILE = """
import torch

class MyGate(torch.nn.Module):
    def __init__(self, channels, bias=1.0):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(channels, 1, 1))
        self.bias = bias

    def forward(self, x):
        return x * torch.sigmoid(self.weight + self.bias)

def wider(channels):
    return torch.nn.Conv2d(channels, channels + 1, 1)

def failing(channels):
    raise KeyError("no luck")

class small(torch.nn.Module):
    def __init__(self, channels):
        super().__init__()

    def forward(self, x):
        if x.shape[-1] < 2:
            raise LookupError("no map is so small")
        return x

def number(channels):
    return channels
"""


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models._OWN", WITH_TINY)


@pytest.fixture
def own(tmp_path: Path) -> str:
    """Gates of a user, as the flag names them."""
    (tmp_path / "my_gate.py").write_text(OWN_FILE)
    return "my_gate.py:MyGate"


def state(path: Path) -> dict[str, Tensor]:
    return checkpoint.load(str(path))["state_dict"]


def save_net(path: Path, net: nn.Module, arch: str | None = None, **said: object) -> Path:
    """A checkpoint; with an architecture it names it and its flags, as ours do."""
    content: dict[str, Any] = {"state_dict": net.state_dict()}
    if arch:
        content |= {"arch": arch, "arguments": {"img_size": 32, **said}}
    torch.save(content, path)
    return path


def gated(flags: dict[str, Any], arch: str = ARCH, classes: int = 3) -> nn.Module:
    net = create_model(arch, num_classes=classes)
    put_gates(net, GateSpec(**flags), arch)
    return net


# Training, and what a checkpoint says


@pytest.mark.parametrize(
    ("script", "gates"),
    [
        (FAST, SGE),
        ("imagenet.py", ("--gate-file", "my_gate.py:MyGate", "--gate-args", "bias=2.5")),
        ("imagenet.py", ("--gate", "se", "--gate-start", "identity", "--gate-stages", 4)),
    ],
    ids=["gate", "file", "identity"],
)
def test_a_run_goes_on_bit_for_bit_with_nothing_but_the_file(
    call: Run, images: Path, tmp_path: Path, own: str, script: str, gates: tuple[object, ...]
) -> None:
    """Also the half of the images' side that --cutout takes by default."""
    data = ("--data", images, *(("--cutout",) if script == FAST else ()))
    flags = (*data, *NET, *gates, *SMALL, "--epochs", 2, "--save-every", 1, "--keep", 9, "-c", "whole")
    result = call(*flags, script=script)
    assert result.returncode == 0, result.stderr
    middle = "whole/checkpoint-0001-0000008.pth.tar"
    file = ("--gate-file", own) if "--gate-file" in gates else ()
    going_on = (*data, "--resume", middle, "--train-batch", 8, "--epochs", 2, "-c", "rest")
    result = call(*going_on, *file, script=script)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"as in {middle}: --arch {ARCH} --img-size 32 --gate")
    assert "has changed" not in result.stdout
    assert "other than in that run: " not in result.stdout.replace("--save-every", "")
    expected = state(tmp_path / "whole" / "checkpoint.pth.tar")
    found = state(tmp_path / "rest" / "checkpoint.pth.tar")
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, found[key]) for key, value in expected.items())
    log = (tmp_path / "whole" / "log.txt").read_text()
    assert (tmp_path / "rest" / "log.txt").read_text() == log

    result = call("--data", images, "-e", "--resume", "rest/checkpoint.pth.tar", *file, script=script)
    accuracy = checkpoint.load(str(tmp_path / "rest" / "checkpoint.pth.tar"))["acc"]
    assert f"Test Acc:  {accuracy:.2f}" in result.stdout
    if file:
        refused = "its gates are of my_gate.py:MyGate: give --gate-file FILE:MyGate"
        for evaluate in ((), ("-e",), ("-a", ARCH)):
            assert_one_line_error(call(*going_on, *evaluate, script=script), middle, refused)
        digest = hashlib.sha256((tmp_path / "my_gate.py").read_bytes()).hexdigest()
        assert checkpoint.load(str(tmp_path / middle))["gate_code"] == digest
        (tmp_path / "my_gate.py").write_text(f"{OWN_FILE}# other\n")
        result = call(*going_on[:-1], "changed", *file, script=script)
        assert "note: the file of --gate-file has changed since that run began\n" in result.stdout


@pytest.fixture
def gated_file(tmp_path: Path) -> Path:
    """A checkpoint whose gates flags have put in."""
    torch.manual_seed(0)
    flags = {"gate": "sge", "gate_args": ["groups=8"], "gate_stages": [3, 4], "gate_start": "identity"}
    return save_net(tmp_path / "gated.pth.tar", gated(flags), ARCH, **flags)


FLAGS_OF_FILE = "--gate sge --gate-stages 3 4 --gate-args groups=8 --gate-start identity"


def test_the_tools_take_the_gates_of_the_file(
    call: Run, images: Path, tmp_path: Path, gated_file: Path
) -> None:
    image, named = images / "valf" / "cat" / "0.JPEG", ("--resume", gated_file)
    predicted = call(*named, image, script="scripts/predict.py")
    assert predicted.returncode == 0, predicted.stderr
    assert call(*named, image, *FLAGS_OF_FILE.split(), script="scripts/predict.py").stdout == predicted.stdout
    summary = call(*named, script="scripts/summary.py").stdout
    assert summary.splitlines()[-1].startswith(f"{ARCH} {FLAGS_OF_FILE}: ")
    assert summary.splitlines()[-1].endswith(" at 32 px, 3 classes")
    assert "layer3.0.sge.gate" in summary
    drawn = call(*named, image, "-o", "pictures", script="scripts/show_gates.py")
    assert drawn.returncode == 0, drawn.stderr
    table = call(
        "model",
        *named,
        "--baseline",
        "resnet18",
        "--img-size",
        32,
        "--batch",
        2,
        "--rounds",
        1,
        script="scripts/benchmark.py",
    )
    assert f"gated.pth.tar: {ARCH} with sge" in table.stdout, table.stderr
    hint = (f"does not fit {ARCH} --gate se: ", f"the file fits -a {ARCH} {FLAGS_OF_FILE}")
    for script, further in (
        ("scripts/predict.py", (image,)),
        ("scripts/show_gates.py", (image,)),
        ("scripts/summary.py", ()),
        ("scripts/export.py", ("net.pt2",)),
        ("imagenet.py", ("--data", images, "-e")),
    ):
        other = call(*named, *further, "--gate", "se", script=script)
        assert_one_line_error(other, *hint)
    assert not (tmp_path / "net.pt2").exists()


def test_a_network_with_gates_is_exported(call: Run, tmp_path: Path, gated_file: Path) -> None:
    result = call("--resume", gated_file, "net.pt2", script="scripts/export.py")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"{ARCH} {FLAGS_OF_FILE}: images (B, 3, 32, 32), 3 logits")


def test_a_converted_file_keeps_its_gates(call: Run, tmp_path: Path, gated_file: Path) -> None:
    bare = save_net(tmp_path / "bare.pth", gated({"gate": "se"}))
    for source, flags, said in (
        (gated_file, (), "sge"),
        (bare, ("-a", ARCH, "--gate", "se"), "se"),
    ):
        result = call(
            source, "out.safetensors", "--overwrite", *flags, script="scripts/convert_checkpoint.py"
        )
        assert result.returncode == 0, result.stderr
        saved = checkpoint.load(str(tmp_path / "out.safetensors"))
        assert saved["arguments"]["gate"] == said
        spec = choose_network(dict.fromkeys(building.NETWORK_FIELDS), saved, "out.safetensors", quiet=True)
        assert (spec.arch, spec.gate) == (ARCH, said)


def test_gates_of_a_file_are_never_taken_from_a_checkpoint(
    call: Run, images: Path, tmp_path: Path, own: str
) -> None:
    flags = {"gate_file": own, "gate_at": "post"}
    net = gated({})
    (tmp_path / "evil.py").write_text("raise SystemExit('code of a checkpoint has run')\n")
    saved = save_net(tmp_path / "net.pth", net, ARCH, gate_file="evil.py:MyGate", gate_at="post")
    image = images / "valf" / "cat" / "0.JPEG"
    for script, further in (
        ("imagenet.py", ("--data", images, "-e")),
        ("imagenet.py", ("--data", images, "-c", "out")),
        (FAST, ("--data", images, "-a", ARCH, "-e")),
        ("scripts/predict.py", (image,)),
        ("scripts/show_gates.py", (image,)),
        ("scripts/summary.py", ()),
        ("scripts/export.py", ("net.pt2",)),
        ("scripts/benchmark.py", ()),
    ):
        words = (*(("model",) if "benchmark" in script else ()), "--resume", saved, *further)
        refused = "its gates are of evil.py:MyGate: give --gate-file FILE:MyGate"
        assert_one_line_error(call(*words, script=script), "net.pth", refused)
    with pytest.raises(UserError, match=r"--teacher .*: its gates are of evil\.py:MyGate: a teacher"):
        build_teacher(f"{ARCH}:{saved}", 3, ("a", "b", "c"), 32)
    given = {name: flags.get(name) for name in gate_fields(GateSpec())}
    assert gates_taken(given, checkpoint.load(str(saved)), "x")["gate_at"] == "post"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("gate", 3),
        ("gate", "se\x1b[2J"),
        ("gate_at", "nowhere"),
        ("gate_stages", [0]),
        ("gate_stages", ["1"]),
        ("gate_stages", 3),
        ("gate_args", ["groups"]),
        ("gate_args", ["a=b c"]),
        ("gate_args", ["a=\x1b[2J"]),
        ("gate", True),
        ("gate_args", "groups=3"),
        ("gate_file", 7.5),
        ("gate_file", "x\ny:Z"),
        ("gate_start", "sometime"),
    ],
)
def test_what_a_file_says_of_gates_is_checked(tmp_path: Path, name: str, value: object) -> None:
    path = save_net(tmp_path / "net.pth", nn.Linear(1, 1), "resnet18", **{name: value})
    with pytest.raises(UserError, match=r"damaged \(arguments not of the kind expected\)"):
        checkpoint.load(str(path))


# Files that do not fit


PLAIN: dict[str, Any] = {}
SAID = {"gate": "sge", "gate_args": ["groups=4"]}
EIGHT = {"gate": "sge", "gate_args": ["groups=8"]}
FITS = "the file fits -a {arch} --gate sge --gate-args groups=4$"


@pytest.mark.parametrize(
    ("held", "named", "asked", "told"),
    [
        # A file that names its network: refused too where keys and shapes are the same.
        (SAID, True, {**SAID, "gate_at": "post"}, "holds .* give -a {arch} --gate sge --gate-args groups=4$"),
        (SAID, True, PLAIN, f"does not fit {{arch}}: .* unexpected .*{FITS}"),
        (PLAIN, True, SAID, "does not fit {arch} --gate .* fits -a {arch} without --gate sge --gate-args"),
        (SAID, True, {**SAID, "gate_stages": [3]}, f"unexpected .*{FITS}"),
        (SAID, True, EIGHT, f"another shape .*{FITS}"),
        (SAID, True, {"gate": "se"}, f"does not fit {{arch}} --gate se: .*{FITS}"),
        (SAID, True, {**SAID, "gate_start": "identity"}, f"missing .*{FITS}"),
        # One that names nothing.
        (SAID, False, PLAIN, "but it has gates: give --gate sge .and --gate-at, --gate-stages, --gate-args"),
        (SAID, False, EIGHT, "its gates have other arguments: give --gate-args"),
        (PLAIN, False, SAID, "the file fits -a {arch} without --gate sge --gate-args groups=4$"),
    ],
)
def test_a_file_with_other_gates_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    held: dict[str, Any],
    named: bool,
    asked: dict[str, Any],
    told: str,
) -> None:
    monkeypatch.setattr("utils.networks.weights.list_models", lambda: [ARCH, "tiny"])
    path = str(save_net(tmp_path / "net.pth", gated(held), ARCH if named else None, **held))
    saved = checkpoint.load(path)
    with pytest.raises(UserError, match=told.format(arch=ARCH)):
        weights.load_weights(gated(asked), saved, ARCH, path, parts=PartSpec(**asked))


def test_the_same_gates_in_other_words() -> None:
    sge = GateSpec(gate="sge")
    for same in (
        {"gate_at": "paper"},
        {"gate_at": "standard"},
        {"gate_args": ["groups=64"]},
        {"gate_start": "published"},
    ):
        assert GateSpec(gate="sge", **same).same_as(sge), same
    for other in (
        {"gate_at": "pre"},
        {"gate_args": ["groups=32"]},
        {"gate_stages": [1]},
        {"gate_start": "identity"},
    ):
        assert not GateSpec(gate="sge", **other).same_as(sge), other
    assert GateSpec(gate="se", gate_stages=[4, 3]).same_as(GateSpec(gate="se", gate_stages=[3, 4]))
    assert not GateSpec(gate="bam", gate_at="standard").same_as(GateSpec(gate="bam"))
    assert not GateSpec(gate_file="a.py:se").same_as(GateSpec(gate="se"))
    assert GateSpec(gate_file="a.py:X").same_as(GateSpec(gate_file="b/a.py:X"))


def test_what_the_command_line_leaves_open_is_as_in_the_file(gated_file: Path, capsys: Any) -> None:
    saved, silent = checkpoint.load(str(gated_file)), dict.fromkeys(building.NETWORK_FIELDS)
    said = {name: saved["arguments"].get(name) for name in gate_fields(GateSpec())}
    for given in ({}, {"arch": ARCH}, {"gate": "sge"}):
        assert gate_fields(choose_network({**silent, **given}, saved, "x.pth")) == said
    assert capsys.readouterr().out.startswith(f"as in x.pth: --arch {ARCH} --img-size 32 {FLAGS_OF_FILE}\n")
    spec = choose_network({**silent, "gate_at": "post"}, saved, "x.pth")
    assert (spec.gate, spec.gate_at, spec.gate_args) == ("sge", "post", ["groups=8"])
    for other in ({"gate": "se"}, {"arch": "tiny"}, {"gate_file": "a.py:B"}):
        spec = choose_network({**silent, **other}, saved, "x.pth")
        assert spec.flags == GateSpec(gate=other.get("gate"), gate_file=other.get("gate_file")).flags


# Weights of plain networks


def test_bases() -> None:
    for arch, base in (
        ("sge_resnet50", "resnet50"),
        ("se_resnext50_32x4d", "resnext50_32x4d"),
        ("bam_resnet18", "resnet18"),
        ("resnet18", "resnet18"),
        ("densenet121", "densenet121"),
        ("sk_resnet18", None),
        ("oct_resnet50", None),
        ("ws_resnet50", None),
        ("resnet50_d", None),
        ("shufflenetv2_1x", None),
        ("mobilenetv1", None),
        ("sknet50", None),
    ):
        assert base_of(arch) == base, arch
    if "ca" in list_gates():
        assert base_of("ca_mobilenetv2") == "mobilenet_v2"


class InSequence(nn.Module):
    """A gate as SimAM's published names have it, in a sequence with the convolution."""

    is_gate = True

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def test_layers_that_gates_have_renamed_get_the_plain_weights() -> None:
    plain, net = gated({}), gated({}, classes=5)
    for i in range(1, 5):
        block = net.get_submodule(f"layer{i}.0")
        block.conv2 = nn.Sequential(block.get_submodule("conv2"), InSequence())
    found = renamed(net, plain.state_dict())
    assert set(net.state_dict()) - set(found) == {f"layer{i}.0.conv2.1.weight" for i in range(1, 5)}
    for key, value in plain.state_dict().items():
        assert torch.equal(found[key.replace("conv2.weight", "conv2.0.weight")], value)
    fewer = {key: value for key, value in plain.state_dict().items() if key != "layer1.0.conv2.weight"}
    assert renamed(net, fewer).keys() == fewer.keys()


SMALLEST = [name for name in list_models() if name.endswith(("_resnet18", "fca_resnet34", "mobilenetv2"))]


@pytest.mark.parametrize("arch", SMALLEST)
def test_every_network_with_gates_takes_all_weights_of_its_base(arch: str) -> None:
    if (base := base_of(arch)) is None:
        assert arch.partition("_")[0] not in list_gates()
        return
    with torch.device("meta"):
        net, plain = create_model(arch, num_classes=7), create_model(base)
    found, own = renamed(net, plain.state_dict()), net.state_dict()
    heads = {key for key in found if key in own and found[key].shape != own[key].shape}
    assert found.keys() <= own.keys()
    assert {found[key].shape[0] for key in heads} == {1000}
    assert len(heads) == 2
    gates = tuple(f"{name}." for name in gates_of(net))
    assert all(key.startswith(gates) for key in own.keys() - found.keys())


@pytest.fixture
def torchvisions(monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """The weights of resnet18 that torchvision would download."""
    state = calibrated("resnet18", 1000).state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: state)
    return state


@pytest.mark.parametrize(
    ("flags", "arch", "classes", "new"),
    [
        ({}, "resnet18", 1000, "none"),
        ({}, "resnet18", 3, "2 (fc.weight, fc.bias)"),
        ({}, "sge_resnet18", 1000, "16 (layer1.0.sge.weight, "),
        ({"gate": "se", "gate_stages": [4]}, "resnet18", 3, "10 (layer4.0.se.fc.0.weight, "),
    ],
)
def test_pretrained_weights_start_any_network_with_gates(
    torchvisions: dict[str, Tensor], capsys: Any, flags: dict[str, Any], arch: str, classes: int, new: str
) -> None:
    net, _ = build_model(NetworkSpec(arch, 32, **flags), classes, pretrained=True)
    said = capsys.readouterr().out
    assert said.startswith("starting from torchvision's resnet18: ")
    assert f"\n  new: {new}" in said
    own = net.state_dict()
    for key, value in torchvisions.items():
        assert torch.equal(own[key], value) or (key.startswith("fc.") and classes == 3), key


def test_gates_that_start_as_the_identity_leave_the_pretrained_network_as_it_is(
    torchvisions: dict[str, Tensor], capsys: Any
) -> None:
    images, plain = torch.randn(2, 3, 64, 64), calibrated("resnet18", 1000)
    for arch, gate in (("resnet18", "cbam"), ("se_resnet18", None)):
        spec = NetworkSpec(arch, 32, gate=gate, gate_start="identity")
        net, _ = build_model(spec, 1000, pretrained=True)
        assert torch.allclose(net.eval()(images), plain(images), atol=1e-4), arch


def test_what_has_no_pretrained_weights(torchvisions: dict[str, Tensor]) -> None:
    for spec, evaluate in (
        (NetworkSpec("ws_resnet18"), False),
        (NetworkSpec("sk_resnet18"), False),
        (NetworkSpec("sge_resnet18"), True),
        (NetworkSpec("resnet18", gate="sge"), True),
    ):
        with pytest.raises(UserError, match=rf"there are no weights of {spec.arch}{spec.flags} to download"):
            build_model(spec, 1000, True, False, evaluate)
    with pytest.raises(UserError, match="ImageNet's weights have 1000 classes, the data has 3"):
        build_model(NetworkSpec("resnet18", 32), 3, True, False, True)


def test_finetuning(call: Run, images: Path, tmp_path: Path) -> None:
    """From a plain file, and from one with gates, which do not start as the identity."""
    flags = ("--data", images, *NET, *SMALL, "--epochs", 1, "--lr", "1e-30", "--overwrite", "-c", "out")
    save_net(tmp_path / "plain.pth", gated({}, classes=5))
    torch.manual_seed(1)
    other, key = gated({"gate": "gc"}), "layer2.0.gc.channel_add_conv.3.weight"
    nn.init.normal_(other.get_parameter(key))
    save_net(tmp_path / "gated.pth", other, ARCH, gate="gc")
    for file, gates, used in (
        ("plain.pth", ("--gate", "gc"), False),
        ("gated.pth", ("--gate", "gc"), True),
        ("gated.pth", ("--gate", "gc", "--gate-start", "identity"), False),
    ):
        result = call(*flags, *gates, "--finetune", file)
        assert result.returncode == 0, result.stderr
        assert f"fine-tuning {file}: " in result.stdout
        assert ("the gates start as the identity" in result.stdout) == ("identity" in gates)
        found, expected = state(tmp_path / "out" / "checkpoint.pth.tar"), state(tmp_path / file)
        assert torch.equal(found["layer3.0.conv1.weight"], expected["layer3.0.conv1.weight"])
        assert (key in expected and torch.equal(found[key], expected[key])) == used
        if "identity" in gates:
            assert found[key].abs().max() < 1e-20
    save_net(tmp_path / "identity.pth", other, ARCH, gate="gc", gate_start="identity")
    result = call(*flags, "--gate", "gc", "--gate-start", "identity", "--finetune", "identity.pth")
    assert "new: none" in result.stdout
    assert torch.equal(state(tmp_path / "out" / "checkpoint.pth.tar")[key], other.state_dict()[key])
    save_net(tmp_path / "conv.pth", nn.Conv2d(1, 1, 1))
    assert_one_line_error(
        call(*flags, "--finetune", "conv.pth"), "--finetune conv.pth: no layer of this network"
    )


def test_a_teacher_with_gates(call: Run, images: Path, tmp_path: Path, gated_file: Path) -> None:
    flags = ("--data", images, *NET, *SMALL, "--epochs", 1, "-c", "out")
    result = call(*flags, "--teacher", f"{ARCH}:{gated_file}", script=FAST)
    assert result.returncode == 0, result.stderr
    teacher = build_teacher(f"{ARCH}:{gated_file}", 3, ("cat", "dog", "owl"), 32)
    assert list(gates_of(teacher)) == ["layer3.0.sge", "layer4.0.sge"]
    assert all(torch.equal(value, state(gated_file)[key]) for key, value in teacher.state_dict().items())


# Detectors


def test_backbones_with_gates(tmp_path: Path, torchvisions: dict[str, Tensor], capsys: Any) -> None:
    """Their gates are those of the file, or those of flags, which are new."""
    flags: dict[str, Any] = {"gate": "sge", "gate_stages": [1, 4]}
    torch.manual_seed(0)
    net = gated(flags, "resnet18", 5)
    nn.init.normal_(net.get_parameter("layer1.0.sge.weight"))
    named = str(save_net(tmp_path / "gated.pth", net, "resnet18", **flags))
    plain = str(save_net(tmp_path / "plain.pth", create_model("resnet18", num_classes=5), "resnet18"))
    backbone = create_backbone("resnet18", named, False)
    said = capsys.readouterr().out
    assert said.startswith(f"as in {named}: --gate sge --gate-stages 1 4\n")
    assert "backbone resnet18 --gate sge --gate-stages 1 4 from" in said
    assert gate_fields(backbone.gates) == gate_fields(GateSpec(**flags))
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in backbone.body.state_dict().items())
    key = "layer2.0.conv1.weight"
    for file, pretrained in ((plain, False), (None, True)):
        backbone = create_backbone("resnet18", file, pretrained, GateSpec(**flags))
        assert "\n  new: 8 (layer1.0.sge.weight, " in capsys.readouterr().out
        expected = torchvisions if pretrained else state(Path(plain))
        assert torch.equal(backbone.body.state_dict()[key], expected[key])
        frozen = {name for name, value in backbone.body.named_parameters() if not value.requires_grad}
        assert "layer1.0.conv1.weight" in frozen
        assert not any("sge" in name for name in frozen)
    assert create_backbone("resnet18", named, False, GateSpec(gate="sge")).gates.gate_stages == [1, 4]
    for other in (GateSpec(gate="se"), GateSpec(gate="sge", gate_stages=[1, 3])):
        with pytest.raises(
            UserError, match=r"--backbone .* file fits -a resnet18 --gate sge --gate-stages 1 4$"
        ):
            create_backbone("resnet18", named, False, other)
    with pytest.raises(UserError, match=r"no weights of sge_resnet18 .* -a resnet18 --gate sge, or a file"):
        create_backbone("sge_resnet18", None, True)


# Bad input


@pytest.mark.parametrize(
    ("flags", "fragments"),
    [
        ("--gate seg", ("unknown gate 'seg'", "did you mean se")),
        ("--gate sge --gate-args group=4", ("group=4: gate sge takes groups, not group",)),
        ("--gate sge --gate-args groups=7", ("7 groups do not divide 16 channels",)),
        ("--gate sge --gate-args groups=many", ("groups is a whole number, not 'many'",)),
        ("--gate sge --gate-args groups=2.0", ("groups is a whole number, not '2.0'",)),
        ("--gate sge --gate-args groups=0", ("groups must be at least 1, not 0",)),
        ("--gate sge --gate-args groups=1,2", ("groups has 2 values, and the network 4 stages",)),
        ("--gate sge --gate-args groups", ("NAME=VALUE",)),
        ("--gate sge --gate-args groups=1 groups=2", ("--gate-args says groups twice",)),
        ("--gate sge --gate-stages 5", ("the network has stages 1 to 4, not 5",)),
        ("--gate sge --gate-stages 0", ("--gate-stages", "at least 1")),
        ("--gate se --gate-at 3x3", ("no block has the place '3x3'",)),
        ("--gate se --gate-at nowhere", ("--gate-at",)),
        ("--gate-at pre", ("--gate-at goes with --gate or --gate-file",)),
        ("--gate-stages 1", ("--gate-stages goes with --gate or --gate-file",)),
        ("--gate-args a=1", ("--gate-args goes with --gate or --gate-file",)),
        ("--gate se --gate-file my_gate.py:MyGate", ("give one of them",)),
        ("--gate-start identity", ("--gate-start identity: there are no gates",)),
        ("--gate se -a tiny", ("--gate se: TinyNet has no residual blocks of torchvision or timm\n",)),
        ("--gate-file nowhere.py:MyGate", ("there is no file nowhere.py",)),
        ("--gate-file my_gate.py", ("FILE:CLASS",)),
        ("--gate-file my_gate.py:YourGate", ("has no YourGate, but MyGate, wider, failing, small, number",)),
        ("--gate-file my_gate.py:wider", ("the gate maps (2, 16, 8, 8) to (2, 17, 8, 8)",)),
        ("--gate-file my_gate.py:failing", ("KeyError: 'no luck'",)),
        ("--gate-file my_gate.py:small", ("does not take --gate-file my_gate.py:small --img-size 32: no",)),
        ("--gate-file my_gate.py:number", ("number makes a int",)),
        ("--gate-file my_gate.py:MyGate --gate-args size=1", ("unexpected keyword argument 'size'",)),
        ("--gate-file broken.py:MyGate", ("broken.py raises SyntaxError",)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input(
    call: Run, images: Path, tmp_path: Path, own: str, flags: str, fragments: tuple[str, ...]
) -> None:
    (tmp_path / "broken.py").write_text("def")
    before = sorted(tmp_path.iterdir())
    assert_one_line_error(call("--data", images, *NET, *flags.split(), script=FAST), *fragments)
    assert sorted(tmp_path.iterdir()) == before
