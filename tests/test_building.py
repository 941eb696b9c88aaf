"""The network of a run: started from other weights, averaged, taught."""

import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from conftest import Run, assert_one_line_error
from small_checkpoint import ARCH, SIZE, fields, write_checkpoint
from tiny_net import TinyNet

import imagenet_fast
from models import create_model
from utils.common.errors import UserError
from utils.networks import checkpoint
from utils.networks.building import choose_network, finetune
from utils.training.ema import create_average

FAST = "imagenet_fast.py"
SMALL = ("-j", 0, "--epochs", 1, "--img-size", 32, "--train-batch", 8, "--manualSeed", 7, "-c", "out")


def test_plain_weights_start_an_attention_net(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain, net = create_model("resnet18", num_classes=10), create_model("se_resnet18", num_classes=3)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    torch.save({f"module.{key}": value for key, value in plain.state_dict().items()}, tmp_path / "plain.pth")
    path = str(tmp_path / "plain.pth")
    finetune(net, checkpoint.load(path)["state_dict"], path)
    said = capsys.readouterr().out
    for key, value in net.state_dict().items():
        known = key in plain.state_dict() and not key.startswith("fc.")
        assert torch.equal(value, plain.state_dict()[key] if known else before[key]), key
    fitting = len(plain.state_dict()) - 2
    assert f"{fitting} of {len(before)} tensors are from it" in said
    assert f"new: {len(before) - fitting} (layer1.0.se.fc.0.weight, " in said
    assert "not used from the file: 2 (fc.weight, fc.bias)" in said


def test_weights_of_another_kind_are_refused(tmp_path: Path) -> None:
    torch.save(create_model("mobilenetv1", num_classes=3).state_dict(), tmp_path / "other.pth")
    path = str(tmp_path / "other.pth")
    state = checkpoint.load(path)["state_dict"]
    with pytest.raises(UserError, match=r"--finetune .*other\.pth: no layer"):
        finetune(create_model("resnet18", num_classes=3), state, path)


def test_the_average_is_evaluated_and_saved_and_continued(call: Run, images: Path, tmp_path: Path) -> None:
    flags = ("--data", images, "-a", "tiny", *SMALL, "--ema", 0.5)
    assert call(*flags, "--epochs", 2, script=FAST).returncode == 0
    whole = torch.load(tmp_path / "out" / "checkpoint.pth.tar", weights_only=True)
    assert whole["averaged_steps"] == 6
    raw, averaged = whole["training_state_dict"], whole["state_dict"]
    assert not torch.equal(raw["fc.weight"], averaged["fc.weight"])

    evaluate = ("--data", images, "-a", "tiny", "--img-size", 32, "-e", "--resume")
    for script in (FAST, "imagenet.py"):
        result = call(*evaluate, "out/checkpoint.pth.tar", script=script)
        assert f"Test Acc:  {whole['acc']:.2f}" in result.stdout

    assert call(*flags, "-c", "half", script=FAST).returncode == 0
    resumed = ("--resume", "half/checkpoint.pth.tar", "--epochs", 2, "-c", "half")
    assert call(*flags, *resumed, script=FAST).returncode == 0
    half = torch.load(tmp_path / "half" / "checkpoint.pth.tar", weights_only=True)
    for part in ("state_dict", "training_state_dict"):
        assert all(torch.equal(value, half[part][key]) for key, value in whole[part].items()), part


def test_the_first_average_is_the_weights_after_the_first_step(
    call: Run, images: Path, tmp_path: Path
) -> None:
    flags = ("--data", images, "-a", "tiny", *SMALL, "--train-batch", 24)  # one step
    assert call(*flags, "--ema", 0.5, script=FAST).returncode == 0
    saved = torch.load(tmp_path / "out" / "checkpoint.pth.tar", weights_only=True)
    raw = saved["training_state_dict"]
    assert all(torch.equal(value, raw[key]) for key, value in saved["state_dict"].items())


def test_the_average_forgets_the_first_weights_soon() -> None:
    """At step n the decay is (1 + n) / (10 + n), until it is the one asked for."""
    net = torch.nn.Linear(1, 1, bias=False)
    average = create_average(net, 0.5, {})
    assert average is not None
    expected = 0.0
    for step in range(20):
        torch.nn.init.constant_(net.weight, float(step))
        average.update(net)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step if step else 0.0
        assert next(average.module.parameters()).item() == pytest.approx(expected, rel=1e-5)


def test_what_changes_at_a_resume_is_said(call: Run, images: Path) -> None:
    flags = ("--data", images, "-a", "tiny", *SMALL)
    assert call(*flags, "--ema", 0.5, script=FAST).returncode == 0
    resume = ("--resume", "out/checkpoint.pth.tar", "--epochs", 2, "--manualSeed", 8)
    said = call(*flags, *resume, script=FAST).stdout
    assert "continuing out/checkpoint.pth.tar after epoch 1" in said
    assert "note: that run's seed is 7" in said
    assert "note: without --ema the average of the resumed run" in said


@pytest.mark.parametrize("script", [FAST, "imagenet.py"])
def test_an_evaluation_takes_what_is_not_given_from_the_checkpoint(
    call: Run, images: Path, tmp_path: Path, script: str
) -> None:
    file = write_checkpoint(tmp_path)
    given, evaluate = ("-a", ARCH, "--img-size", SIZE), ("--data", images, "-e", "--resume", file)
    first, second, *_, found = call(*evaluate, script=script).stdout.splitlines()
    assert first == f"as in {file}: --arch {ARCH} --img-size {SIZE}"
    typed = call(*evaluate, *given, script=script).stdout.splitlines()
    assert [second, found] == [typed[0], typed[-1]]
    assert f"at {SIZE} px" in second
    first, second, *_, other = call(*evaluate, "--img-size", 32, script=script).stdout.splitlines()
    assert first == f"as in {file}: --arch {ARCH}"
    assert "at 32 px" in second
    assert other != found


def test_an_evaluation_takes_the_widths_of_the_checkpoint(call: Run, images: Path, tmp_path: Path) -> None:
    arguments = {"img_size": 32, "cardinality": 2, "base_width": 8}
    net = create_model("resnet50", num_classes=3, groups=2, width_per_group=8)
    torch.save({**fields(net), "arch": "resnet50", "arguments": arguments}, tmp_path / "net.pth")
    result = call("--data", images, "-e", "--resume", "net.pth")
    assert result.returncode == 0, result.stderr
    flags = "--arch resnet50 --img-size 32 --cardinality 2 --base-width 8"
    assert result.stdout.startswith(f"as in net.pth: {flags}\n")
    other = call("--data", images, "-e", "--resume", "net.pth", "-a", "resnet18")
    assert_one_line_error(other, "the file fits -a resnet50 --cardinality 2 --base-width 8\n")


def test_an_architecture_that_nobody_says_is_not_guessed(
    call: Run, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a published file, of which the default would be one that fits, and of a detector."""
    some = ["mobilenetv1", "ws_resnet18", "resnet18", "old_resnet18"]
    monkeypatch.setattr("utils.networks.weights.list_models", lambda: some)  # all take seconds
    torch.save(create_model("resnet18", num_classes=3).state_dict(), tmp_path / "net.pth")
    evaluate = ("--data", images, "--img-size", 32, "-e", "--resume", "net.pth")
    refused = "net.pth does not say which architecture it holds: give -a resnet18 or -a ws_resnet18 (same"
    for script in (FAST, "imagenet.py"):
        assert_one_line_error(call(*evaluate, script=script), refused)
    result = call(*evaluate, "-a", "resnet18")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("resnet18: ")
    torch.save({"rpn.head.weight": torch.ones(1)}, tmp_path / "net.pth")
    for flags in ((), ("-a", "resnet18")):
        assert_one_line_error(call(*evaluate, *flags), "a whole detector: give it to detection/train.py")


def test_a_training_goes_on_with_the_network_of_the_checkpoint(
    call: Run, images: Path, tmp_path: Path
) -> None:
    file = write_checkpoint(tmp_path)
    going_on = ("--data", images, "--resume", file, "--epochs", 4, "--train-batch", 8, "-c", "out")
    result = call(*going_on, "--fresh-optimizer")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"as in {file}: --arch {ARCH} --img-size {SIZE}\n")
    saved = checkpoint.load(str(tmp_path / "out" / "checkpoint.pth.tar"))
    assert (saved["arch"], saved["arguments"]["img_size"]) == (ARCH, SIZE)
    other = call(*going_on, "--overwrite", "-a", "resnet18", "--img-size", 32)
    assert_one_line_error(other, "does not fit resnet18", f"the file fits -a {ARCH}\n")
    assert "default: resnet18" in call("--help").stdout
    assert "default: 224" in call("--help").stdout


def test_the_defaults_are_among_the_arguments_that_are_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", [FAST, "--data", "digits"])
    args, parser = imagenet_fast.parse_arguments(None, imagenet_fast.DEFAULTS)
    given = {name: getattr(args, name) for name in ("arch", "img_size", "cardinality", "base_width")}
    spec = choose_network(given, {}, None)
    saved = {**parser.recorded(args), **asdict(spec)}
    kept = {name: saved[name] for name in ("arch", "img_size", "cardinality", "gate")}
    assert kept == {"arch": "resnet18", "img_size": 224, "cardinality": None, "gate": None}


def test_evaluation_asks_for_nothing_that_only_training_needs(
    call: Run, images: Path, tmp_path: Path
) -> None:
    """One class cannot be smoothed in training."""
    for split in ("train", "valf"):
        for name in ("dog", "owl"):
            shutil.rmtree(images / split / name)
    torch.save(TinyNet(num_classes=1).state_dict(), tmp_path / "one.pth")
    flags = ("--data", images, "-a", "tiny", "--img-size", 32, "-e", "--resume", "one.pth")
    result = call(*flags, script=FAST)
    assert result.returncode == 0, result.stderr
    assert "Test Acc:  100.00" in result.stdout


@pytest.mark.parametrize(
    ("teacher", "fragments"),
    [
        ("resnet81", ("--teacher: unknown architecture 'resnet81'",)),
        ("sge_resnet18", ("--teacher sge_resnet18: there are no weights", "sge_resnet18:FILE")),
        ("resnet18", ("--teacher resnet18: ImageNet's weights have 1000 classes",)),
        ("resnet18:nowhere.pth", ("--teacher nowhere.pth: no such file",)),
        ("resnet18:small.pth", ("--teacher small.pth does not fit resnet18",)),
    ],
)
def test_teachers_that_cannot_teach(
    call: Run, images: Path, tmp_path: Path, teacher: str, fragments: tuple[str, ...]
) -> None:
    saved = {"state_dict": TinyNet(num_classes=3).state_dict(), "arch": "tiny"}
    torch.save(saved, tmp_path / "small.pth")
    flags = ("--data", images, "-a", "tiny", *SMALL, "--teacher", teacher)
    assert_one_line_error(call(*flags, script=FAST), *fragments)
    assert not (tmp_path / "out").exists()
