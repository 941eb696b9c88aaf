"""scripts/convert_checkpoint.py: clean files whose weights are those of the checkpoint, or their mean."""

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run, assert_one_line_error
from safetensors import safe_open
from safetensors.torch import save_file
from small_checkpoint import ARCH, CLASSES, SIZE, calibrated, fields, write_checkpoint
from torch import Tensor, nn

from models import create_model
from utils.networks import checkpoint

SCRIPT = "scripts/convert_checkpoint.py"
KEPT = ("arch", "classes", "epoch", "acc", "seed", "command", "arguments", "versions", "commit")
FORMATS = pytest.mark.parametrize("out", ["out.pth", "out.safetensors"])


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with checkpoints of three seeds, ``a.pth.tar`` to ``c.pth.tar``."""
    folder = tmp_path_factory.mktemp("three")
    for seed, name in enumerate("abc"):
        write_checkpoint(folder, calibrated(seed=seed), epoch=seed).rename(folder / f"{name}.pth.tar")
    return folder


@pytest.fixture
def convert(call: Run, three: Path, tmp_path: Path) -> Run:
    """The script within this process, beside those checkpoints."""
    for path in three.glob("?.pth.tar"):
        shutil.copy(path, tmp_path)
    return lambda *arguments: call(*arguments, script=SCRIPT)


def weights(path: Path) -> dict[str, Tensor]:
    return checkpoint.load(str(path))["state_dict"]


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert (found[key].dtype, found[key].shape) == (value.dtype, value.shape)
        assert torch.equal(found[key], value), key


@FORMATS
def test_of_ours(convert: Run, call: Run, images: Path, tmp_path: Path, out: str) -> None:
    result = convert("a.pth.tar", out)
    data = (tmp_path / out).read_bytes()
    assert (result.returncode, result.stderr) == (0, "")
    assert f"wrote {out}: {len(data):,} bytes, SHA-256 {hashlib.sha256(data).hexdigest()}" in result.stdout
    assert "left out: images, best_acc, optimizer" in result.stdout
    saved, expected = checkpoint.load(str(tmp_path / out)), fields(calibrated())
    assert_equal(saved["state_dict"], expected["state_dict"])
    assert saved.keys() - {"version", "checksum"} == {*KEPT, "state_dict"}
    assert {key: saved[key] for key in KEPT} == {key: expected[key] for key in KEPT} | {"epoch": 0}
    evaluation = ("-d", "images", "-a", ARCH, "--img-size", SIZE, "-j", 0, "-e", "--resume")
    lines = [call(*evaluation, name).stdout.splitlines()[-1] for name in ("a.pth.tar", out)]
    assert lines[0] == lines[1]
    assert "top" in lines[0].lower()


@FORMATS
def test_of_a_published_file(convert: Run, tmp_path: Path, out: str) -> None:
    net = calibrated()
    state = {f"module.{key}": value for key, value in net.state_dict().items()}
    published = {"epoch": 1, "state_dict": state, "best_acc": torch.tensor(1.0), "acc": torch.tensor(71.5)}
    torch.save({**published, "optimizer": {"state": {}, "param_groups": []}}, tmp_path / "published.pth.tar")
    assert convert("published.pth.tar", out, "-a", ARCH).returncode == 0
    saved = checkpoint.load(str(tmp_path / out))
    assert_equal(saved["state_dict"], net.state_dict())
    assert {key: saved.get(key) for key in ("arch", "epoch", "acc")} == {
        "arch": ARCH,
        "epoch": 1,
        "acc": 71.5,
    }
    assert type(saved["acc"]) is float
    assert "optimizer" not in saved


@FORMATS
def test_class_names_are_written_into_a_published_file(
    convert: Run, call: Run, images: Path, tmp_path: Path, out: str
) -> None:
    torch.save(calibrated().state_dict(), tmp_path / "bare.pth")
    (tmp_path / "classes.txt").write_text("owl\ncat\ndog\n")
    listed = ("--class-list", "classes.txt")
    assert convert("bare.pth", out, "-a", ARCH, *listed).returncode == 0
    assert checkpoint.load(str(tmp_path / out))["classes"] == ["owl", "cat", "dog"]
    evaluation = ("-d", "images", "-a", ARCH, "--img-size", SIZE, "-e", "--resume")
    lines = [call(*evaluation, *rest).stdout.splitlines()[-1] for rest in ((out,), ("bare.pth", *listed))]
    assert lines[0] == lines[1]
    assert "Test Acc" in lines[0]
    (tmp_path / "classes.txt").write_text("owl\ncat\ncat\n")
    assert_one_line_error(convert("bare.pth", "o.pth", "-a", ARCH, *listed), "cat stands there twice")


def test_the_average_of_ema_is_what_is_kept(convert: Run, tmp_path: Path) -> None:
    training = calibrated(seed=5).state_dict()
    write_checkpoint(tmp_path, training_state_dict=training).rename(tmp_path / "ema.pth.tar")
    assert (
        "left out: images, best_acc, optimizer, training_state_dict" in convert("ema.pth.tar", "o.pth").stdout
    )
    assert_equal(weights(tmp_path / "o.pth"), calibrated().state_dict())


@FORMATS
def test_the_mean_of_several(convert: Run, tmp_path: Path, out: str) -> None:
    assert convert("--average", "a.pth.tar", "b.pth.tar", "c.pth.tar", out).returncode == 0
    states = [calibrated(seed=seed).state_dict() for seed in range(3)]
    expected = {
        key: torch.stack([state[key].double() for state in states]).mean(0).float()
        if value.is_floating_point()
        else value
        for key, value in states[-1].items()
    }
    saved = checkpoint.load(str(tmp_path / out))
    for key, value in expected.items():
        assert torch.allclose(saved["state_dict"][key], value, rtol=1e-7, atol=0), key
    assert "acc" not in saved
    assert "epoch" not in saved
    assert (saved["arch"], saved["classes"], saved["seed"]) == (ARCH, list(CLASSES), 7)


def published_groups(net: nn.Module, *undecayed: int) -> list[list[str]]:
    """As the published scripts tell them apart: by the name and the number of dimensions."""
    off = [name for name, value in net.named_parameters() if "bias" in name or value.dim() in undecayed]
    return [off, [name for name, _ in net.named_parameters() if name not in off]]


def momenta(optimizer: dict[str, Any], names: list[str]) -> dict[str, Tensor]:
    return {name: optimizer["state"][number]["momentum_buffer"] for number, name in enumerate(names)}


def test_the_form_of_the_published_scripts(convert: Run, call: Run, images: Path, tmp_path: Path) -> None:
    """Their SGD takes the momentum; SGE's weights are convolutions to their rule and norm layers to ours."""
    size = ("-a", "sge_resnet18", "--img-size", 32, "--train-batch", 8, "--epochs", 1, "-c", "run")
    recipe = ("--nowd-bn", "--wd", 0.01, "--lr", 0.32, "--warmup", 0)
    assert call("-d", images, *size, *recipe, script="imagenet_fast.py").returncode == 0
    result = convert("--published", "run/checkpoint.pth.tar", "published.pth.tar")
    assert (result.returncode, result.stderr) == (0, "")
    assert (tmp_path / "published.pth.tar").read_bytes()[:2] != b"PK"  # torch before 1.6 knows no archives
    ours = torch.load(tmp_path / "run" / "checkpoint.pth.tar", weights_only=True)
    theirs = torch.load(tmp_path / "published.pth.tar", weights_only=True)
    assert list(theirs["state_dict"]) == [f"module.{key}" for key in ours["state_dict"]]
    assert_equal(theirs["state_dict"], {f"module.{key}": value for key, value in ours["state_dict"].items()})
    assert [theirs[key] for key in ("epoch", "acc", "best_acc")] == [1, ours["acc"], ours["best_acc"]]

    net = create_model("sge_resnet18", num_classes=3)
    first, second = published_groups(net, 1)
    parameters = [list(map(net.get_parameter, group)) for group in (first, second)]
    sgd = torch.optim.SGD([{"params": group} for group in parameters], 0.1, 0.9)
    sgd.load_state_dict(theirs["optimizer"])
    assert [group["weight_decay"] for group in sgd.param_groups] == [0, 0.01]
    assert [group["initial_lr"] for group in sgd.param_groups] == [0.01, 0.01]
    named = [name for group in ours["optimizer"]["param_groups"] for name in group["param_names"]]
    assert named != [*first, *second]
    assert_equal(momenta(sgd.state_dict(), [*first, *second]), momenta(ours["optimizer"], named))

    files = ("run/checkpoint.pth.tar", "published.pth.tar")
    lines = [call("-d", images, "-e", "--resume", name).stdout.splitlines()[1:] for name in files]
    assert lines[0] == lines[1]


def test_a_file_that_does_not_say_its_architecture(
    convert: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which of the tensors are parameters is known of an architecture only."""
    monkeypatch.setattr("utils.networks.weights.list_models", lambda: [ARCH])  # all take seconds
    torch.save(calibrated().state_dict(), tmp_path / "bare.pth")
    result = convert("--published", "bare.pth", "o.pth")
    assert_one_line_error(result, f"IN bare.pth does not say which architecture it holds: give -a {ARCH}\n")


@pytest.mark.parametrize(
    ("sources", "best"),
    [(("bare.pth",), 0), (("ema.pth.tar",), 72.5), (("--average", "a.pth.tar", "b.pth.tar"), 0)],
)
def test_weights_alone_in_the_form_of_the_published_scripts(
    convert: Run, tmp_path: Path, sources: tuple[str, ...], best: float
) -> None:
    """They load an optimizer in any case; a mean, or an average of --ema, has no momentum of its own."""
    net = calibrated()
    torch.save(net.state_dict(), tmp_path / "bare.pth")
    group = {"params": [0], "param_names": [next(iter(net.state_dict()))], "lr": 0.1}
    momentum = {"state": {0: {"momentum_buffer": next(net.parameters())}}, "param_groups": [group]}
    ema = {**fields(net), "training_state_dict": net.state_dict(), "optimizer": momentum}
    torch.save(ema, tmp_path / "ema.pth.tar")
    assert convert("--published", *sources, "out.pth", "-a", ARCH).returncode == 0
    saved = torch.load(tmp_path / "out.pth", weights_only=True)
    assert (saved["best_acc"], saved["optimizer"]["state"]) == (best, {})
    torch.optim.SGD(net.parameters(), 0.1, 0.9).load_state_dict(saved["optimizer"])


def test_metadata_of_safetensors_are_text(convert: Run, tmp_path: Path) -> None:
    assert convert("a.pth.tar", "out.safetensors").returncode == 0
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt"
    assert json.loads(metadata["checkpoint"])["classes"] == list(CLASSES)


@pytest.mark.parametrize("notes", ["[1]", "{", "[" * 100_000, '{"epoch": "x"}', '{"classes": [1]}', "NaN"])
def test_damaged_metadata_are_refused(call: Run, tmp_path: Path, notes: str) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "x.safetensors", {"checkpoint": notes})
    result = call("-d", "x", "-e", "--resume", "x.safetensors")
    assert_one_line_error(result, "--resume x.safetensors: damaged")


def test_a_part_of_a_large_storage_is_written_alone(convert: Run, tmp_path: Path) -> None:
    large = torch.randn(1000, 1000)
    torch.save({"a": large[:2, :2], "b": large[0, :3]}, tmp_path / "parts.pth")
    assert convert("parts.pth", "out.pth").returncode == 0
    assert (tmp_path / "out.pth").stat().st_size < 10_000
    assert torch.equal(weights(tmp_path / "out.pth")["a"], large[:2, :2])


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files that cannot be averaged with ``a.pth.tar``, or not be taken at all."""
    folder = tmp_path_factory.mktemp("spoiled")

    def write(name: str, **changes: Any) -> None:
        write_checkpoint(folder, **changes).rename(folder / name)

    state = calibrated().state_dict()
    first = next(iter(state))
    write("keys", state_dict={**state, "more": torch.ones(1)})
    write("shapes", state_dict={**state, first: torch.ones(1)})
    write("types", state_dict={**state, first: state[first].half()})
    write("nan", state_dict={**state, first: state[first] * float("nan")})
    write("arch", arch="sge_resnet18")
    write("classes", classes=["cat", "dog", "yak"])
    (folder / "text.pth").write_text("text")
    return folder


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        ((), "IN, OUT"),
        (("a.pth.tar", "b.pth.tar", "o.pth"), "several IN with --average"),
        (("--average", "a.pth.tar", "o.pth"), "several IN with --average"),
        (("a.pth.tar", "o.onnx"), "o.onnx: the suffix says the format; give one of .pth .safetensors"),
        (("a.pth.tar", "nowhere/o.pth"), "nowhere/o.pth: its folder is not there"),
        (("--published", "a.pth.tar", "o.safetensors"), "give one of .pth.tar .pth"),
        (("none", "o.pth"), "IN none: no such file"),
        (("text.pth", "o.pth"), "IN text.pth: damaged or not a checkpoint"),
        (("text.pth", "text.pth", "--overwrite"), "text.pth is one of the files to be read"),
        (("a.pth.tar", "text.pth"), "text.pth is there already: give another name, or --overwrite"),
        (("a.pth.tar", "o.pth", "-a", "sge_resnet18"), f"the file fits -a {ARCH}"),
        (("nan", "o.pth"), "holds values that are not finite"),
        (("--average", "a.pth.tar", "keys", "o.pth"), "keys has other keys than a.pth.tar: more (1 key)"),
        (("--average", "a.pth.tar", "shapes", "o.pth"), "(1,) torch.float32, not (24, 3, 3, 3)"),
        (("--average", "a.pth.tar", "types", "o.pth"), "types has other shapes or types than a.pth.tar"),
        (("--average", "a.pth.tar", "arch", "o.pth"), "the files have other arch"),
        (("--average", "a.pth.tar", "classes", "o.pth"), "the files have other classes"),
    ],
)
def test_bad_usage(
    convert: Run, spoiled: Path, tmp_path: Path, arguments: tuple[str, ...], fragment: str
) -> None:
    shutil.copytree(spoiled, tmp_path, dirs_exist_ok=True)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert_one_line_error(convert(*arguments), "convert_checkpoint.py: error: ", fragment)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_overwrite(convert: Run, tmp_path: Path) -> None:
    (tmp_path / "o.pth").write_text("old")
    assert convert("a.pth.tar", "o.pth", "--overwrite").returncode == 0
    assert_equal(weights(tmp_path / "o.pth"), calibrated().state_dict())


def test_help_has_an_example(convert: Run) -> None:
    assert re.search(
        r"\n    python scripts/convert_checkpoint\.py .*\.safetensors\n", convert("--help").stdout
    )
