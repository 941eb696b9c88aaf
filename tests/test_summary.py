"""scripts/summary.py: every parameter and every multiply-add once, and what training does to them."""

import re

import pytest
from conftest import Run, assert_one_line_error
from test_robustness import SHALLOW

from models import create_model
from utils.networks.complexity import count, trace
from utils.training.optim import WeightDecay, classify, create_optimizer, decaying_kinds

SCRIPT = "scripts/summary.py"
NETS = ("sge_resnet18", "oct_mobilenet", "ws_resnet18", "shufflenetv2_05x", "squeezenet1_1")


@pytest.fixture
def summary(call: Run) -> Run:
    """The script within this process."""
    return lambda *arguments: call(*arguments, script=SCRIPT)


def cells(line: str) -> list[str]:
    return re.split(r" {2,}", line.strip())


def number(text: str) -> int:
    return int(text.replace(",", ""))


@pytest.mark.parametrize("arch", NETS)
def test_the_rows_sum_up_to_the_complexity(summary: Run, arch: str) -> None:
    result = summary("-a", arch, "--num-classes", 7, "--wd-all", "--wd", "1.23457e-05")
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 110
    rows = [cells(line) for line in lines[1 : lines.index("")]]
    *layers, total = rows
    net = create_model(arch, num_classes=7)
    expected = count(net, (3, 224, 224))
    assert (number(total[1]), number(total[2])) == expected
    assert sum(number(row[3]) for row in layers) == expected.parameters
    assert sum(number(row[4]) for row in layers) == expected.multiply_adds
    assert lines[-1] == f"{arch}: {expected} at 224 px, 7 classes"


def test_a_row(summary: Run) -> None:
    lines = [cells(line) for line in summary("-a", "sge_resnet18", "--img-size", 64).stdout.splitlines()]
    rows = {row[0]: row[1:] for row in lines if len(row) > 4}
    assert rows["conv1"] == ["Conv2d", "64x32x32", "9,408", "9,633,792", "conv 0.0001"]
    assert rows["layer1.0.relu"] == ["ReLU", "2 * 64x16x16", "0", "32,768"]
    assert rows["layer1.0.sge"] == ["SpatialGroupEnhance", "64x16x16", "128", "0", "norm 0.0001, bias 0"]
    assert rows["fc"] == ["Linear", "1000", "513,000", "512,000", "fc 0.0001, bias 0"]


def test_a_convolution_over_the_channels(summary: Run) -> None:
    lines = [cells(line) for line in summary("-a", "eca_resnet18", "--img-size", 64).stdout.splitlines()]
    rows = {row[0]: row[1:] for row in lines if len(row) > 4}
    assert rows["layer1.0.eca.conv"] == ["Conv1d", "1x64", "3", "192", "conv 0.0001"]


@pytest.mark.parametrize(
    ("flags", "decays"),
    [
        ((), {"conv": "0.0001", "norm": "0.0001", "bias": "0", "fc": "0.0001"}),
        (("--wd", "0.5", "--wd-all"), dict.fromkeys(("conv", "norm", "bias", "fc"), "0.5")),
        (("--nowd-bn", "--nowd-fc"), {"conv": "0.0001", "norm": "0", "bias": "0", "fc": "0"}),
        (
            ("--nowd-conv", "--el2", "--mineps", "0.01"),
            {"conv": "e-shifted L2", "norm": "0.0001", "bias": "0", "fc": "0.0001"},
        ),
    ],
)
def test_the_decay_is_that_of_training(
    summary: Run, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], decays: dict[str, str]
) -> None:
    output = summary("-a", "ws_resnet18", "--num-classes", 5, *flags).stdout
    net = create_model("ws_resnet18", num_classes=5)
    rows = {row[0]: row[-1] for row in map(cells, output.splitlines()) if len(row) == 6}
    for one in classify(net):
        assert f"{one.kind} {decays[one.kind]}" in rows[one.name.rpartition(".")[0]].split(", ")
    switches = {f"nowd_{kind}": f"--nowd-{kind}" in flags for kind in ("bn", "fc", "conv")}
    kinds = decaying_kinds("--wd-all" in flags, **switches)
    strength = 0.5 if "--wd" in flags else 1e-4
    decay = WeightDecay(strength, kinds, 1e-4 if "--el2" in flags else None, 0.01)
    create_optimizer(net, decay, lr=0.1, momentum=0.9)
    assert capsys.readouterr().out.strip() in output


@pytest.mark.slow
def test_every_kind_of_net(summary: Run) -> None:
    for arch in (*SHALLOW, "vit_b_16", "ws_densenet201"):
        lines = summary("-a", arch).stdout.splitlines()
        assert max(map(len, lines)) <= 110
        total = next(cells(line) for line in lines if line.startswith("total"))
        expected = count(create_model(arch), (3, 224, 224))
        assert (number(total[1]), number(total[2])) == expected


def test_trace_names_calls() -> None:
    calls = trace(create_model("sge_resnet18"), (3, 64, 64))
    assert [call.name for call in calls][-2:] == ["fc", ""]
    assert calls[-1].shape == (1, 1000)


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        ((), "-a"),
        (("-a", "sge_resnet"), "did you mean"),
        (("-a", "vit_b_16", "--img-size", "100"), "-a vit_b_16 does not take --img-size 100"),
        (("-a", "sge_resnet18", "--base-width", "8"), "does not take --base-width 8"),
        (("-a", "sge_resnet18", "--el2"), "give --nowd-conv"),
        (("-a", "sge_resnet18", "--lam", "1"), "--lam goes with --el2"),
        (("-a", "sge_resnet18", "--wd-all", "--nowd-bn"), "contradict each other"),
        (("-a", "sge_resnet18", "--num-classes", "0"), "at least 1"),
    ],
)
def test_bad_usage(summary: Run, arguments: tuple[str, ...], fragment: str) -> None:
    assert_one_line_error(summary(*arguments), "summary.py: error: ", fragment)


def test_help_has_an_example(summary: Run) -> None:
    assert "\n    python scripts/summary.py -a " in summary("--help").stdout
