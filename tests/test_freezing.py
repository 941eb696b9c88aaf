"""--freeze backbone and --lr-gates: what is frozen stays bit for bit, and gates learn at their own rate."""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY, Run, assert_one_line_error
from forks import Job
from killer import fingerprint
from tiny_net import tiny_gated
from torch import Tensor, nn

from detection import train
from detection.backbone import Backbone
from models import create_model
from models.gates import add_gates
from utils.common.errors import UserError
from utils.training.freezing import freeze
from utils.training.optim import WeightDecay, create_optimizer, plain_groups

PLAIN, FAST, MOBILE = "imagenet.py", "imagenet_fast.py", "imagenet_mobile.py"
SMALL = ("-a", "tiny_gated", "--data", "images", "--img-size", 32, "--test-batch", 21, "--train-batch", 8)
RUN = (*SMALL, "--manualSeed", 7, "--epochs", 1, "-c", "out", "--overwrite")
FROZEN = ("--freeze", "backbone", "--finetune", "start.pth")
TRAINED = ("branch.cbam.", "fc.")
EL2 = ("--nowd-conv", "--el2", "--lam", 1, "--mineps", 0.1)


@pytest.fixture
def start_weights(tmp_path: Path, images: Path) -> dict[str, Tensor]:
    """The weights of a network that is fine-tuned; its batch norms have statistics."""
    torch.manual_seed(0)
    net = tiny_gated(num_classes=3)
    net(torch.randn(8, 3, 32, 32))
    nn.init.ones_(net.get_parameter("branch.cbam.ChannelGate.mlp.1.bias"))  # all its ReLUs let gradients pass
    torch.save(net.state_dict(), tmp_path / "start.pth")
    return net.state_dict()


def assert_frozen(before: dict[str, Tensor], after: dict[str, Tensor]) -> None:
    """Weights and buffers are the same, but those of the gates and the classifier."""
    assert before.keys() == after.keys()
    other = {name for name, value in after.items() if not torch.equal(before[name].to(value.dtype), value)}
    assert all(name.startswith(TRAINED) for name in other)
    norm = "branch.cbam.SpatialGate.spatial.bn"
    assert {"fc.weight", "branch.cbam.ChannelGate.mlp.3.weight", f"{norm}.running_mean"} <= other


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        (PLAIN, ()),
        (PLAIN, ("--lr-gates", 3)),
        (FAST, ("--accum-steps", 2, "--train-batch", 4, "--clip-grad", 1, "--wd", 1, "--wd-all")),
        (FAST, (*EL2, "--print-always")),
        (FAST, ("--ema", 0.5)),
        (FAST, ("--opt-level", "O1", "--channels-last")),
        (FAST, ("--opt-level", "O2")),
        (FAST, ("--opt-level", "O3", "--lr", 30, "--warmup", 0)),
        (MOBILE, ("--warmup", 0, "--mixup")),
        pytest.param(FAST, ("--compile",), marks=pytest.mark.slow),
    ],
)
def test_the_backbone_stays(
    call: Run, start_weights: dict[str, Tensor], tmp_path: Path, script: str, flags: tuple[object, ...]
) -> None:
    result = call(*RUN, *FROZEN, *flags, script=script)
    assert result.returncode == 0, result.stderr
    assert "frozen: all but 1 gate and fc; " in result.stdout
    saved = torch.load(tmp_path / "out" / "checkpoint.pth.tar", weights_only=True)
    assert_frozen(start_weights, saved["state_dict"])
    names = [name for group in saved["optimizer"]["param_groups"] for name in group["param_names"]]
    assert {name.startswith(TRAINED) for name in names} == {True}
    if "--ema" in flags:
        assert_frozen(start_weights, saved["training_state_dict"])
    assert saved["arguments"]["freeze"] == "backbone"


@pytest.mark.slow
def test_several_processes(launch: Run, call: Run, start_weights: dict[str, Tensor], tmp_path: Path) -> None:
    """The frozen part stays in each, and the others learn the same."""
    flags = (*RUN, *FROZEN, "--train-batch", 4, "--lr-gates", 2)
    result = launch(FAST, *flags)
    assert result.returncode == 0, result.stderr
    saved = torch.load(tmp_path / "out" / "checkpoint.pth.tar", weights_only=True)
    assert_frozen(start_weights, saved["state_dict"])


def test_the_classifier_of_a_network_without_gates_is_trained(capsys: pytest.CaptureFixture[str]) -> None:
    net = create_model("mobilenet_v3_small", num_classes=5)
    norms = freeze(net, "backbone")
    assert "frozen: all but 0 gates and classifier.3; 5,125 of " in capsys.readouterr().out
    assert [name for name, value in net.named_parameters() if value.requires_grad] == [
        "classifier.3.weight",
        "classifier.3.bias",
    ]
    assert len(norms) == sum(isinstance(module, nn.BatchNorm2d) for module in net.modules())


def test_what_stays_in_evaluation_mode() -> None:
    """The norms of the backbone, and not those of the gates."""
    net = tiny_gated(num_classes=3)
    frozen = freeze(net, "backbone")
    inner = [module for module in net.get_submodule("branch.cbam").modules() if module in frozen]
    assert (len(frozen), inner) == (4, [])
    assert freeze(net, None) == []


FLAGS: dict[str, tuple[object, ...]] = {
    PLAIN: (*FROZEN, "--lr-gates", 3),
    FAST: (*FROZEN, "--lr-gates", 3, "--ema", 0.9, *EL2, "--accum-steps", 2, "--train-batch", 4),
}


@pytest.mark.parametrize("script", FLAGS)
def test_a_resumed_run_is_the_uninterrupted_one(
    call: Run, start_weights: dict[str, Tensor], tmp_path: Path, script: str
) -> None:
    """From the middle of an epoch and from its end."""
    flags = (*RUN, *FLAGS[script], "--epochs", 2, "--save-every", 1, "--keep", 9)
    assert call(*flags, "-c", "whole", script=script).returncode == 0
    for name in ("checkpoint-0000-0000016", "checkpoint-0001-0000000"):
        result = call(*without(flags, "--finetune"), "--resume", f"whole/{name}.pth.tar", script=script)
        assert result.returncode == 0, result.stderr
        assert fingerprint("out") == fingerprint("whole")
    other = without(flags, "--finetune", "--freeze")
    refused = call(
        *other, "-c", "other", "--resume", "whole/checkpoint.pth.tar", "--epochs", 3, script=script
    )
    assert_one_line_error(refused, "it trained fewer parameters than this command: give its --freeze")


def without(flags: tuple[object, ...], *names: str) -> tuple[object, ...]:
    """The command line without these flags and their values."""
    kept = list(flags)
    for name in names:
        at = kept.index(name)
        del kept[at : at + 2]
    return tuple(kept)


@pytest.mark.slow
def test_killed_at_any_moment(start: Callable[..., Job], start_weights: dict[str, Tensor]) -> None:
    flags = (*SMALL, "--manualSeed", 7, "--epochs", 2, "--save-every", 1, *FROZEN, "--lr-gates", 3)
    result = start(REPOSITORY / "tests" / "killer.py", "imagenet_fast", "--kills", 5, "--rest", *flags)
    complete = result.complete()
    assert complete.returncode == 0, complete.stderr
    assert '"differing": []' in complete.stdout


def steps_of(call: Run, folder: Path, script: str, *flags: object) -> tuple[dict[str, Any], str]:
    """The checkpoint and the log of a run of one step of plain gradient descent."""
    one = ("--train-batch", 24, "--momentum", 0, "--wd", 0, "--finetune", "start.pth")
    result = call(*RUN, *one, *flags, script=script)
    assert result.returncode == 0, result.stderr
    saved = torch.load(folder / "out" / "checkpoint.pth.tar", weights_only=True)
    return saved, (folder / "out" / "log.txt").read_text()


@pytest.mark.parametrize("script", [PLAIN, FAST])
def test_the_gates_learn_at_their_own_rate(
    call: Run, start_weights: dict[str, Tensor], tmp_path: Path, script: str
) -> None:
    """Times a power of two, so that no step is rounded otherwise; the log has the schedule's rate."""
    plain, log = steps_of(call, tmp_path, script)
    faster, other_log = steps_of(call, tmp_path, script, "--lr-gates", 4)
    (rate,) = {group["lr"] for group in plain["optimizer"]["param_groups"]}
    for group in faster["optimizer"]["param_groups"]:
        of_gates = {name.startswith("branch.cbam.") for name in group["param_names"]}
        assert of_gates == {group["lr"] == 4 * rate}
        assert group.get("lr_factor") == (4 if True in of_gates else None)
    moved: set[int] = set()
    for name, before in start_weights.items():
        step, fast = (saved["state_dict"][name] - before for saved in (plain, faster))
        factor = 4 if name.startswith("branch.cbam.") else 1
        if not name.endswith(("running_mean", "running_var", "tracked")) and fast.any():
            moved.add(factor)
            rounding = 4e-7 * max(1, float(before.abs().max()))
            assert torch.allclose(fast, factor * step, rtol=0, atol=rounding), name
    assert moved == {1, 4}
    assert log.splitlines()[-1].split("\t")[0] == other_log.splitlines()[-1].split("\t")[0]
    assert "lr_factor" not in plain["optimizer"]["param_groups"][0]


def test_refusals(call: Run, start_weights: dict[str, Tensor]) -> None:
    for script in (PLAIN, FAST):
        refused = call(*RUN, "-a", "tiny", "--lr-gates", 3, script=script)
        assert_one_line_error(refused, "--lr-gates 3: this network has no gates")
        assert_one_line_error(call(*RUN, "--lr-gates", 0, script=script), "a number above 0")
        refused = call(*RUN, "--freeze", "backbone", script=script)
        assert_one_line_error(refused, "--freeze keeps weights that are trained: give --finetune FILE")
        assert_one_line_error(call(*RUN, "--freeze", "all", script=script), "--freeze", "backbone")
    refused = call(*RUN, "-a", "tiny", *FROZEN, *EL2, script=FAST)
    assert_one_line_error(refused, "--el2: no convolution is trained")


def test_the_table_of_weight_decay(capsys: pytest.CaptureFixture[str]) -> None:
    net = tiny_gated(num_classes=3)
    freeze(net, "backbone")
    capsys.readouterr()
    optimizer = create_optimizer(net, WeightDecay(0.01), 0.1, 0.9, lr_gates=2.5)
    rows = [line.split(maxsplit=3) for line in capsys.readouterr().out.splitlines()[1:]]
    assert sum(int(row[1]) for row in rows) == len(list(net.parameters()))
    assert sum(int(row[2].replace(",", "")) for row in rows) == sum(p.numel() for p in net.parameters())
    frozen = [value.numel() for value in net.parameters() if not value.requires_grad]
    assert ["frozen", str(len(frozen)), f"{sum(frozen):,}", "not trained"] in rows
    assert ["fc", "1", "48", "0.01"] in rows
    of_gates = [row for row in rows if row[3] == "0.01, learning rate of gates times 2.5"]
    assert {row[0] for row in of_gates} == {"fc", "bias", "conv", "norm"}
    assert sum(int(row[1]) for row in of_gates) == len(optimizer.param_groups[1]["params"])


def test_summary_and_dry_run(call: Run, start_weights: dict[str, Tensor]) -> None:
    summary = ("-a", "tiny_gated", "--freeze", "backbone", "--lr-gates", 2, "--img-size", 32)
    result = call(*summary, script="scripts/summary.py")
    lines = result.stdout.splitlines()
    assert any(line.startswith("stem.0.0 ") and line.endswith("conv frozen") for line in lines)
    assert any(line.startswith("fc ") and line.endswith("fc 0.0001, bias 0") for line in lines)
    assert "not trained" in result.stdout
    assert "0.0001, learning rate of gates times 2" in result.stdout
    refused = call(*summary, "-a", "tiny", script="scripts/summary.py")
    assert_one_line_error(refused, "--lr-gates 2")
    for script, text in ((PLAIN, "learning rate of the gates (7 tensors): times 2"), (FAST, "not trained")):
        result = call(*RUN, *FROZEN, "--lr-gates", 2, "--dry-run", script=script)
        assert result.returncode == 0, result.stderr
        assert "frozen: all but 1 gate and fc; " in result.stdout
        assert text in result.stdout


def test_detectors_have_a_rate_of_their_gates() -> None:
    """Those of the frozen first stage are trained at none."""
    backbone = Backbone(create_model("sge_resnet18"))
    settings = Namespace(lr=0.1, momentum=0.9, weight_decay=1e-4, lr_gates=3.0)
    others, gates = train.create_optimizer(backbone, settings).param_groups
    assert {name.split(".")[1] for name in gates["param_names"]} == {"layer2", "layer3", "layer4"}
    assert all(".sge." in name for name in gates["param_names"])
    assert not any(".sge." in name for name in others["param_names"])
    assert (gates["lr_factor"], "lr_factor" in others) == (3.0, False)


def test_gates_that_are_frozen_have_no_rate() -> None:
    net = add_gates(create_model("resnet18"), "sge", groups=8, stages=[1])
    assert len(plain_groups(net, 2.0)) == 2
    net.get_submodule("layer1").requires_grad_(False)
    with pytest.raises(UserError, match="no gates that are trained"):
        plain_groups(net, 2.0)
