"""The small stem: in the networks, in checkpoints, and what is refused."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run, assert_one_line_error
from test_gate_flags import torchvisions  # noqa: F401 (a fixture)
from tiny_net import Narrow
from torch import Tensor, nn

import hubconf
from detection.backbone import create_backbone
from models import create_model, list_models, put_small_stem, resolve
from models.resnet_ws import WSConv2d
from models.stems import has_small_stem, of_stem
from utils.common.errors import UserError
from utils.networks import checkpoint, weights
from utils.networks.building import NetworkSpec, build_model
from utils.networks.complexity import count, trace
from utils.networks.parts import PartSpec, put_parts

FAST, PLAIN = "imagenet_fast.py", "imagenet.py"
NET = ("-a", "narrow", "-j", 0, "--img-size", 32, "--train-batch", 8, "--manualSeed", 1)
SMALL = ("--stem", "small")

# Of those that have the stem; with --slow all.
FAMILIES = (
    "se_resnet18", "sknet50", "bam_resnet18", "simam_resnet18", "oct_resnet26", "resnet50_c", "resnet50_d",
    "ws_resnet18", "resnet18", "resnext50_32x4d", "wide_resnet50_2", "densenet121",
)  # fmt: skip
REFUSED = (
    "mobilenetv1", "shufflenetv1_1x", "shufflenetv2_1x", "ca_mobilenetv2", "oct_mobilenet", "mobilenet_v2",
    "convnext_tiny", "squeezenet1_1", "googlenet", "vgg11",
)  # fmt: skip


def on_meta(name: str) -> nn.Module:
    """A network without values."""
    with torch.device("meta"), weights._NoValues():
        return create_model(name)


def check_shapes(name: str) -> None:
    net = on_meta(name)
    before = {key: value.shape for key, value in net.state_dict().items()}
    after = {key: value.shape for key, value in put_small_stem(net).state_dict().items()}
    assert [item for item in after.items() if not of_stem(item[0])] == [
        item for item in before.items() if not of_stem(item[0])
    ]
    (weight,) = (key for key in after if of_stem(key))
    place = [key for key in before if not (of_stem(key) and key != weight)]
    if weight in before:  # it has the name and the place of the published one
        assert list(after) == place
    shapes = {call.name: call.shape for call in trace(net, (3, 32, 32))}
    first, last = ("layer1", "layer4") if "layer1" in shapes else ("features.denseblock1", "features.norm5")
    assert shapes[weight.removesuffix(".weight")][2:] == shapes[first][2:] == (32, 32)
    assert shapes[last][2:] == (4, 4)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_first_stage_has_the_size_of_the_image_and_the_keys_stay(name: str) -> None:
    check_shapes(name)


@pytest.mark.slow
def test_all_networks() -> None:
    names = [name for name in list_models() if resolve(name) == name]
    for name in (name for name in names if not name.startswith("regnet")):
        if any(part in name for part in ("resne", "sknet", "densenet")):
            check_shapes(name)
        else:
            with pytest.raises(ValueError, match="its stem is no 7x7 convolution"):
                put_small_stem(on_meta(name))


def test_the_cost_beyond_the_stem_is_that_of_an_image_of_four_times_the_side() -> None:
    """The published stem leaves the same maps of 128 px; by the rules of the published counts."""
    for gate in ("", "sge_"):
        published, small = on_meta(f"{gate}resnet18"), put_small_stem(on_meta(f"{gate}resnet18"))
        convolutions = 64 * 64 * 64 * 7 * 7 * 3, 64 * 32 * 32 * 3 * 3 * 3
        norm_and_relu = 3 * 64 * 64 * 64, 3 * 64 * 32 * 32
        pool = 64 * 64 * 64
        ours, theirs = count(small, (3, 32, 32)), count(published, (3, 128, 128))
        stems = convolutions[0] + norm_and_relu[0] + pool, convolutions[1] + norm_and_relu[1]
        assert ours.multiply_adds - stems[1] == theirs.multiply_adds - stems[0]
        assert ours.parameters == theirs.parameters - 64 * 3 * (7 * 7 - 3 * 3)


def test_the_values_of_the_new_convolution() -> None:
    torch.manual_seed(0)
    assert type(put_small_stem(on_meta("ws_resnet18")).get_submodule("conv1")) is WSConv2d
    net = put_small_stem(Narrow().double())
    conv: Any = net.get_submodule("conv1")
    assert conv.weight.dtype == torch.float64
    assert float(conv.weight.detach().std()) == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.1)  # as of fan_out
    images = torch.randn(2, 3, 32, 32).double()
    net.eval()
    x = nn.functional.relu(net.get_submodule("bn1")(conv(images)))
    for stage in range(1, 5):
        x = net.get_submodule(f"layer{stage}")(x)
    assert torch.equal(net(images), net.get_submodule("fc")(x.mean((2, 3))))
    net.train()(images).sum().backward()
    assert conv.weight.grad is not None


@pytest.mark.parametrize("name", REFUSED)
def test_networks_with_other_stems(name: str) -> None:
    net = on_meta(name)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(UserError, match=f"-a {name} does not take --stem small: its stem is no 7x7"):
        put_parts(net, PartSpec(stem="small"), name)
    assert net.state_dict().keys() == before.keys()


def test_twice() -> None:
    with pytest.raises(ValueError, match="already"):
        put_small_stem(put_small_stem(Narrow()))


def test_gates_are_the_same_by_a_flag_and_by_the_name() -> None:
    """FcaNet's are made for the maps of 224 px behind the published stem."""
    for gate, depth in (("fca", 34), ("simam", 18)):
        named = on_meta(f"{gate}_resnet{depth}")
        put_parts(named, PartSpec(stem="small"), "x")
        with torch.device("meta"), weights._NoValues():
            added = create_model(f"resnet{depth}")
        put_parts(added, PartSpec(stem="small", gate=gate), "x")
        shapes = [[value.shape for value in net.state_dict().values()] for net in (named, added)]
        assert sorted(shapes[0]) == sorted(shapes[1])


def state(path: Path) -> dict[str, Tensor]:
    return checkpoint.load(str(path))["state_dict"]


@pytest.fixture
def trained(call: Run, images: Path, tmp_path: Path) -> Path:
    """A run of an epoch with the small stem."""
    result = call("--data", images, *NET, *SMALL, "--epochs", 1, "-c", "out", script=FAST)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("narrow --stem small: ")
    return tmp_path / "out" / "checkpoint.pth.tar"


def test_the_checkpoint_says_the_stem(call: Run, images: Path, tmp_path: Path, trained: Path) -> None:
    """To evaluations, to a training that goes on, and to the tools."""
    evaluate = ("--data", images, "-j", 0, "-e", "--resume", trained)
    results = [call(*evaluate, *flags, script=PLAIN) for flags in ((), SMALL, ("-a", "narrow"))]
    assert results[0].stdout.startswith(f"as in {trained}: --arch narrow --img-size 32 --stem small\n")
    assert len({result.stdout.splitlines()[-1] for result in results}) == 1
    going_on = ("--data", images, *NET[2:], "--epochs", 2, "-c", "more")
    assert call(*going_on, "--resume", trained, script=FAST).returncode == 0
    whole = ("--data", images, *NET, *SMALL, "--epochs", 2, "-c", "whole")
    assert call(*whole, script=FAST).returncode == 0
    two = [state(tmp_path / name / "checkpoint.pth.tar") for name in ("more", "whole")]
    assert all(torch.equal(two[0][key], two[1][key]) for key in two[1])
    summary = call("--resume", trained, script="scripts/summary.py")
    assert "narrow --stem small: " in summary.stdout
    picture = next((images / "valf" / "cat").iterdir())
    assert call(picture, "--resume", trained, "-j", 0, script="scripts/predict.py").returncode == 0
    published = call(*evaluate, "--stem", "published")
    assert_one_line_error(published, "does not fit narrow", "the file fits -a narrow --stem small\n")


def test_weights_are_not_loaded_into_another_stem(
    call: Run, images: Path, tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("utils.networks.weights.list_models", lambda: ["narrow", "tiny"])
    torch.save(state(trained), tmp_path / "small.pth")
    torch.save(Narrow(num_classes=3).state_dict(), tmp_path / "published.pth")
    evaluate = ("--data", images, "-j", 0, "--img-size", 32, "-e", "-a", "narrow", "--resume")
    assert_one_line_error(call(*evaluate, "small.pth"), "the file fits -a narrow --stem small\n")
    assert call(*evaluate, "small.pth", *SMALL).returncode == 0
    refused = call(*evaluate, "published.pth", *SMALL)
    assert_one_line_error(refused, "does not fit narrow --stem small", "-a narrow without --stem small\n")
    unnamed = call(*(word for word in evaluate if word not in ("-a", "narrow")), "small.pth")
    assert_one_line_error(unnamed, "give -a narrow --stem small\n")
    converted = call("small.pth", "out.pth", "-a", "narrow", *SMALL, script="scripts/convert_checkpoint.py")
    assert converted.returncode == 0, converted.stderr
    assert checkpoint.load("out.pth")["arguments"]["stem"] == "small"
    to_2019 = call("--published", trained, "2019.pth", script="scripts/convert_checkpoint.py")
    assert_one_line_error(to_2019, "--published: the published scripts have no network with --stem small")


def test_a_stem_that_a_file_cannot_say(tmp_path: Path) -> None:
    for wrong in ({"stem": "large"}, {"mean": [0.5, 0.5]}, {"std": [0.2, 0.2, 0]}, {"mean": [1, 2, 0.5]}):
        torch.save({"state_dict": {"a": torch.ones(1)}, "arguments": wrong}, tmp_path / "x.pth")
        with pytest.raises(UserError, match="damaged"):
            checkpoint.load(str(tmp_path / "x.pth"))


def test_finetuning_a_published_file_and_the_reverse(
    call: Run, images: Path, tmp_path: Path, trained: Path
) -> None:
    torch.save(Narrow(num_classes=5).state_dict(), tmp_path / "published.pth")
    base = ("--data", images, *NET, "--epochs", 1, "--overwrite")
    for file, flags in (("published.pth", SMALL), (trained, ("-c", "again"))):
        result = call(*base, *flags, "--finetune", file)
        assert result.returncode == 0, result.stderr
        new = [line for line in result.stdout.splitlines() if line.startswith("  new: ")]
        assert "conv1.weight" in new[0]
        assert new[0].endswith("; the stem is another")
        frozen = call(*base, *flags, "--finetune", file, "--freeze", "backbone")
        assert_one_line_error(frozen, "--freeze keeps weights that are trained, and the stem is new")
    scaled = ("--mean", 0.5, 0.5, 0.5, "--std", 0.25, 0.25, 0.25, "-c", "scaled")
    other = call(*base, *SMALL, *scaled, "--finetune", trained).stdout
    assert f"note: {trained} was trained with --mean 0.485 0.456 0.406 --std 0.229 0.224 0.225, this" in other
    same = call(*base, *SMALL, "--finetune", trained, "--freeze", "backbone", "-c", "again")
    assert same.returncode == 0, same.stderr
    assert "another" not in same.stdout
    assert "was trained with" not in same.stdout


@pytest.mark.parametrize("arch", ["resnet18", "simam_resnet18"])
def test_torchvisions_weights_start_all_but_the_stem(
    torchvisions: dict[str, Tensor],  # noqa: F811
    capsys: Any,
    arch: str,
) -> None:
    net, _ = build_model(NetworkSpec(arch, 32, stem="small"), 1000, pretrained=True)
    assert "\n  new: 1 (conv1.weight); the stem is another\n" in capsys.readouterr().out
    values = list(net.state_dict().values())[1:]
    assert all(map(torch.equal, values, list(torchvisions.values())[1:]))
    with pytest.raises(UserError, match=f"no weights of {arch} --stem small to download"):
        build_model(NetworkSpec(arch, 32, stem="small"), 1000, pretrained=True, evaluate=True)


def test_detectors_refuse_it(tmp_path: Path) -> None:
    net = put_small_stem(create_model("resnet18", num_classes=3))
    torch.save(net.state_dict(), tmp_path / "small.pth")
    with pytest.raises(UserError, match=r"--backbone .*small.pth has the small stem .*: a detector takes"):
        create_backbone("resnet18", str(tmp_path / "small.pth"), False)
    said = {"img_size": 32, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    torch.save({"state_dict": {"a": torch.ones(1)}, "arguments": said}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"was trained with --mean 0.5 0.5 0.5 --std 0.25 0.25 0.25: a detec"):
        create_backbone("resnet18", str(tmp_path / "other.pth"), False)


def test_a_teacher_and_torch_hub_take_it_from_the_file(
    call: Run, images: Path, tmp_path: Path, trained: Path
) -> None:
    taught = ("--data", images, "-a", "tiny", *NET[2:], "--epochs", 1, "-c", "taught", "--teacher")
    result = call(*taught, f"narrow:{trained}", script=FAST)
    assert result.returncode == 0, result.stderr
    torch.save(state(trained), tmp_path / "bare.pth")
    result = call(*taught, "narrow:bare.pth", "--overwrite", script=FAST)
    assert result.returncode == 0, result.stderr
    other = ("--mean", 0.5, 0.5, 0.5, "--std", 0.25, 0.25, 0.25, "--overwrite")
    refused = call(*taught, f"narrow:{trained}", *other, script=FAST)
    assert_one_line_error(refused, "was trained with --mean 0.485 0.456 0.406 --std 0.229 0.224 0.225: give")
    net = put_small_stem(create_model("se_resnet18", num_classes=3))
    fields = {"state_dict": net.state_dict(), "arch": "se_resnet18", "arguments": {"stem": "small"}}
    path = tmp_path / "se.pth"
    torch.save(fields, path)
    bare = tmp_path / "bare.pth"
    torch.save(fields["state_dict"], bare)
    for file, classes in ((path, 3), (path, 5), (bare, 3)):
        loaded = hubconf.se_resnet18(checkpoint=str(file), num_classes=classes)  # type: ignore[attr-defined]
        assert has_small_stem(loaded.state_dict())
        assert torch.equal(loaded.conv1.weight, net.get_parameter("conv1.weight"))
