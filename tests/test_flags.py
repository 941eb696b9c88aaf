"""Every flag of the three scripts changes something that a user can see."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run, assert_one_line_error
from tiny_net import TinyNet

import imagenet
import imagenet_fast
import imagenet_mobile
from utils.runs.log import RunLog
from utils.training.classification import LOG_FORMAT

FAST, MOBILE, PLAIN = "imagenet_fast.py", "imagenet_mobile.py", "imagenet.py"
SMALL = ("-j", 0, "--epochs", 1, "--img-size", 32, "--train-batch", 8, "--test-batch", 21, "--manualSeed", 7)
NET = ("-a", "tiny")
EL2 = ("--el2", "--nowd-conv", "--lam", 1)

Flags = tuple[object, ...]

# For a network with residual blocks.
GATED = ("-a", "tiny_resnet")
OF_GATES: dict[str, tuple[Flags, Flags]] = {
    "--gate": (GATED, ("se",)),
    "--gate-at": ((*GATED, "--gate", "gc"), ("post",)),
    "--gate-stages": ((*GATED, "--gate", "gc"), (3, 4)),
    "--gate-args": ((*GATED, "--gate", "sge", "--gate-args", "groups=8"), ("groups=4",)),
    "--gate-file": (GATED, ("my_gate.py:halved",)),
    "--gate-start": ((*GATED, "--gate", "se"), ("identity",)),
}

# A flag and its value, after the flags of the run that it changes.
OF_ALL: dict[str, tuple[Flags, Flags]] = {
    **OF_GATES,
    "--lr": ((), (0.5,)),
    "--momentum": ((), (0.5,)),
    "--weight-decay": ((), (0.1,)),
    "--train-batch": ((), (6,)),
    "--scale": ((), (0.5, 0.6)),
    "--hflip": ((), (0,)),
    "--manualSeed": ((), (8,)),
    "--img-size": ((), (40,)),
    "--crop-pct": ((), (1,)),
    "--interpolation": ((), ("bicubic",)),
    "--num-classes": ((), (5,)),
    "--class-list": ((), ("classes.txt",)),
    "--arch": ((), ("shufflenetv2_05x",)),
    "--epochs": ((), (2,)),
    "--auto-augment": ((), ("ra",)),
    "--random-erase": ((), (1,)),
    "--mean": (("--std", 0.3, 0.3, 0.3, "--mean", 0.5, 0.5, 0.5), (0.4, 0.5, 0.5)),
    "--std": (("--mean", 0.5, 0.5, 0.5, "--std", 0.3, 0.3, 0.3), (0.2, 0.3, 0.3)),
    "--pad": ((), (4,)),
    "--stem": (("-a", "narrow"), ("small",)),
    "--zero-gamma": ((), ()),
    "--cardinality": ((), (2,)),
    "--base-width": ((), (4,)),
    "--schedule": ((), (0,)),
    "--gamma": (("--schedule", 0), (0.5,)),
    "--start-epoch": (("--epochs", 2, "--schedule", 1), (1,)),
    "--freeze": (("--finetune", "teacher.pth"), ("backbone",)),
    "--lr-gates": (("-a", "tiny_gated"), (3,)),
}
OF_PLAIN: dict[str, tuple[Flags, Flags]] = {
    **OF_ALL,
    "--modelsize": ((), ("small",)),
    "--finetune": ((), ("teacher.pth",)),
}
# All others do the same in imagenet_fast.py, by the same functions.
OF_PLAIN_ALONE = {"--modelsize", "--finetune", "--lr", "--schedule", "--lr-gates"}
# They change the rate: it is compared too. For all others the first column is left out.
OF_THE_RATE = {
    "--schedule",
    "--gamma",
    "--start-epoch",
    "--cos",
    "--warmup",
    "--per-iter",
    "--lr",
    "--epochs",
}
# No warm-up, so that the schedule and its flags show in the first epoch.
OF_FAST: dict[str, tuple[Flags, Flags]] = {
    **OF_ALL,
    "--schedule": (("--warmup", 0), (0,)),
    "--gamma": (("--warmup", 0, "--schedule", 0), (0.5,)),
    "--start-epoch": (("--epochs", 2, "--warmup", 0, "--schedule", 1), (1,)),
    "--cos": (("--epochs", 2, "--warmup", 0, "--no-per-iter"), ()),
    "--warmup": ((), (2,)),
    "--per-iter": ((), ()),
    "--wd-all": (("--wd", 1), ()),
    "--nowd-bn": (("--wd", 1), ()),
    "--nowd-fc": (("--wd", 1), ()),
    "--nowd-conv": (("--wd", 1), ()),
    "--el2": (("--nowd-conv",), ("--lam", 1)),
    "--mineps": (EL2, (0.1,)),
    "--lam": (EL2, (2,)),
    "--nesterov": ((), ()),
    "--clip-grad": ((), (0.01,)),
    "--accum-steps": (("--lr", 0.1), (2, "--lr", 0.05)),  # the same rate
    "--train-batch": (("--lr", 0.1), (4, "--lr", 0.2)),
    "--ema": ((), (0.5,)),
    "--opt-level": ((), ("O2",)),
    "--amp-dtype": (("--opt-level", "O1", "-a", "squeezenet1_1"), ("float16",)),
    "--keep-batchnorm-fp32": (("--opt-level", "O3"), ()),
    "--loss-scale": (("--opt-level", "O3"), (3,)),
    "--label-smoothing": ((), (0.3,)),
    "--mixup": ((), ()),
    "--alpha": (("--mixup",), (5,)),
    "--cutmix": ((), ()),
    "--cutmix_prob": (("--cutmix",), (0,)),
    "--cutout": ((), ()),
    "--cutout_size": (("--cutout",), (6,)),
    "--teacher": ((), ("tiny:teacher.pth",)),
    "--distill-alpha": (("--teacher", "tiny:teacher.pth"), (0.9,)),
    "--distill-temp": (("--teacher", "tiny:teacher.pth"), (1,)),
    "--finetune": ((), ("teacher.pth",)),
}
# What shows in another way than in the log: the tests below.
ELSEWHERE_ALL = {"--help", "--print-freq", "--data", "--workers", "--test-batch", "--pretrained", "--device"}
ELSEWHERE_ALL |= {"--checkpoint", "--overwrite", "--resume", "--fresh-optimizer", "--evaluate"}
ELSEWHERE_ALL |= {"--save-every", "--keep", "--on-nan", "--max-bad"}  # tests/test_resume.py, test_faults.py
ELSEWHERE_ALL |= {"--dry-run"}  # tests/test_dry_run.py
ELSEWHERE_ALL |= {"--deterministic"}  # below; on a GPU, tests/test_gpu.py
ELSEWHERE_ALL |= {"--decoder", "--no-cache"}  # tests/test_decoding.py, test_index.py
ELSEWHERE_ALL |= {"--outputs", "--real", "--per-class", "--confusion"}  # tests/test_evaluation.py
ELSEWHERE_PLAIN = ELSEWHERE_ALL | {"--gpu-id"}  # of CUDA; a wrong one: tests/test_bad_input.py
ELSEWHERE_FAST = ELSEWHERE_ALL | {
    "--print-always",
    "--amp-backend",
    "--sync-bn",
    "--compile",
    "--channels-last",
}
ELSEWHERE_FAST |= {"--local-rank", "--timeout"}  # tests/test_distributed.py, test_meeting.py


def names(parser: argparse.ArgumentParser) -> set[str]:
    """The flags of a parser, each by its first long name."""
    flags = (action.option_strings for action in parser._actions)
    return {next(name for name in names if name.startswith("--")) for names in flags}


def test_every_flag_is_tested() -> None:
    assert names(imagenet.create_parser()) == set(OF_PLAIN) | ELSEWHERE_PLAIN
    assert names(imagenet_fast.create_parser()) == set(OF_FAST) | ELSEWHERE_FAST
    mobile = imagenet_fast.create_parser(imagenet_mobile.__doc__, imagenet_mobile.DEFAULTS)
    assert names(mobile) == names(imagenet_fast.create_parser())


@pytest.fixture(scope="module")
def known_rows() -> dict[tuple[object, ...], str]:
    """Last log rows by command line: many flags change the same run."""
    return {}


@pytest.fixture
def last_row(
    call: Run, images: Path, tmp_path: Path, known_rows: dict[tuple[object, ...], str]
) -> Callable[..., str]:
    """Train by a script and read the last row of log.txt."""
    torch.manual_seed(0)
    torch.save(TinyNet(num_classes=3).state_dict(), tmp_path / "teacher.pth")
    (tmp_path / "classes.txt").write_text("owl\ncat\ndog\n")
    halved = "from torch import nn\ndef halved(channels): return nn.Sequential(nn.Dropout(0.5))\n"
    (tmp_path / "my_gate.py").write_text(halved)

    def train(script: str, *flags: object) -> str:
        key = (script, *flags)
        if key not in known_rows:
            where = ("--data", images, "-c", "out", "--overwrite")
            result = call(*where, *NET, *SMALL, *flags, script=script)
            assert result.returncode == 0, result.stderr
            known_rows[key] = (tmp_path / "out" / "log.txt").read_text().splitlines()[-1]
        return known_rows[key]

    return train


@pytest.mark.parametrize(
    ("script", "flag"),
    [
        *(
            pytest.param(PLAIN, flag, marks=() if flag in OF_PLAIN_ALONE else pytest.mark.slow)
            for flag in OF_PLAIN
        ),
        *((FAST, flag) for flag in OF_FAST),
        *((MOBILE, flag) for flag in ("--schedule", "--gamma", "--cos", "--warmup", "--mineps", "--lam")),
    ],
)
def test_the_log_changes(last_row: Callable[..., str], script: str, flag: str) -> None:
    context, value = (OF_PLAIN if script == PLAIN else OF_FAST)[flag]
    if script == MOBILE and flag == "--cos":
        context = ("--epochs", 2, "--warmup", 0, "--schedule", 1)  # without it a cosine is the default
        assert last_row(script, *context) != last_row(script, *context[:-2])
        return
    before, after = last_row(script, *context), last_row(script, *context, flag, *value)
    if flag in OF_THE_RATE:
        assert before != after
    else:
        assert before.split("\t")[1:] != after.split("\t")[1:]
        assert before.split("\t")[0] == after.split("\t")[0]


def test_no_per_iter_in_imagenet_mobile(last_row: Callable[..., str]) -> None:
    assert last_row(MOBILE) != last_row(MOBILE, "--no-per-iter")
    assert last_row(MOBILE, "--no-per-iter", "--cos") == last_row(FAST, "--cos")
    assert last_row(MOBILE, "--no-per-iter", "--schedule", 9) == last_row(FAST)


@pytest.fixture
def answer(call: Run, images: Path) -> Callable[..., Any]:
    def start(*flags: object, script: str = FAST) -> Any:
        return call("--data", images, *NET, *SMALL, "-c", "out", *flags, script=script)

    return start


def test_lines_of_progress(answer: Callable[..., Any]) -> None:
    assert "batch" not in answer().stdout
    evaluation = ("-e", "--resume", "out/checkpoint.pth.tar", "--test-batch", 7, "--print-freq", 3)
    for script in (FAST, PLAIN):
        assert "evaluate: batch 3/3" in answer(*evaluation, script=script).stdout
        assert "epoch 1/1: batch 3/3" in answer("--overwrite", "--print-freq", 3, script=script).stdout
    spoken = answer("--overwrite", "--print-freq", 2).stdout
    assert "epoch 1/1: batch 2/3" in spoken
    assert "batch 1/3" not in spoken
    assert "standard deviation" not in answer("--overwrite", *EL2).stdout
    assert answer("--overwrite", *EL2, "--print-always").stdout.count("standard deviation") == 3


def test_the_table_of_epochs_fits_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of 100 columns, in the long runs of large machines and with any loss."""
    log = RunLog(tmp_path, 300, LOG_FORMAT.columns, [], 0, 0)
    log.header()
    log.started -= 5 * 24 * 3600
    for loss in (1.0, 123.4567, 2.5e13, float("inf"), float("nan")):
        log.show(120, [0.1, loss, loss, 100.0, 100.0, 100.0, 100.0], 23456.7)
    log.close()
    lines = capsys.readouterr().out.splitlines()
    assert {len(line) for line in lines} <= {98, 100}
    assert {len(line.replace("train ", "train_").replace("valid ", "valid_").split()) for line in lines} == {
        10
    }


def test_layout_compilation_and_determinism(
    answer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    layouts, compiled = [], []
    conv2d = torch.nn.functional.conv2d

    def spy(x: torch.Tensor, *rest: Any) -> torch.Tensor:
        # Not the count of multiply-adds; and of other shapes both layouts are the same.
        if not x.is_meta and x.shape[1] > 3 and x.shape[2] > 1:
            layouts.append(x.is_contiguous(memory_format=torch.channels_last))
        return conv2d(x, *rest)

    def spy_compile(call: Callable[..., Any], dynamic: bool) -> Callable[..., Any]:
        compiled.append((call, dynamic))
        return call

    monkeypatch.setattr(torch.nn.functional, "conv2d", spy)
    monkeypatch.setattr(torch, "compile", spy_compile)
    assert answer().returncode == 0
    assert not compiled
    assert not torch.are_deterministic_algorithms_enabled()
    assert not any(layouts)
    layouts.clear()
    assert (
        answer(
            "-a", "mobilenetv1", "--overwrite", "--channels-last", "--compile", "--deterministic"
        ).returncode
        == 0
    )
    assert len(compiled) == 14  # the stem and the blocks of a MobileNetV1
    assert not any(dynamic for _, dynamic in compiled)
    assert torch.are_deterministic_algorithms_enabled()
    assert all(layouts)
    torch.use_deterministic_algorithms(False)
    assert answer("--overwrite", "--deterministic", script=PLAIN).returncode == 0
    assert torch.are_deterministic_algorithms_enabled()


def test_what_needs_another_machine(answer: Callable[..., Any]) -> None:
    assert_one_line_error(answer("--sync-bn"), "--sync-bn", "CUDA only")
    assert_one_line_error(answer("--amp-backend", "apex"), "--amp-backend apex")
    for script in (FAST, PLAIN):
        assert_one_line_error(answer("--device", "cuda", script=script), "no CUDA GPU is available")
        assert_one_line_error(answer("--pretrained", "-a", "resnet18", script=script), "--pretrained")


@pytest.mark.parametrize("script", [FAST, PLAIN])
def test_batches_and_workers(
    answer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, script: str, images: Path
) -> None:
    loaders = []

    class Spy(torch.utils.data.DataLoader[Any]):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            loaders.append((self.num_workers, len(kwargs["batch_sampler"])))

    monkeypatch.setattr("utils.data.loading.DataLoader", Spy)
    assert answer("--test-batch", 4, "-j", 1, script=script).returncode == 0
    assert sorted(loaders) == [(1, 3), (1, 6)]


@pytest.mark.parametrize("script", [FAST, PLAIN])
def test_a_run_continued(
    answer: Callable[..., Any], last_row: Callable[..., str], script: str, tmp_path: Path
) -> None:
    """--checkpoint, --overwrite, --resume, --fresh-optimizer, --evaluate."""
    expected = last_row(script, "--epochs", 2)
    assert answer("--overwrite", script=script).returncode == 0
    assert_one_line_error(answer(script=script), "--overwrite")
    (tmp_path / "out").rename(tmp_path / "half")
    resume = ("--epochs", 2, "--resume", "half/checkpoint.pth.tar")
    assert answer(*resume, script=script).returncode == 0
    assert (tmp_path / "out" / "log.txt").read_text().splitlines()[-1] == expected
    assert answer(*resume, "--overwrite", "--fresh-optimizer", script=script).returncode == 0
    assert (tmp_path / "out" / "log.txt").read_text().splitlines()[-1] != expected
    evaluated = answer("-e", "--resume", "out/checkpoint.pth.tar", script=script)
    assert " Test Loss:  " in evaluated.stdout


@pytest.mark.slow
def test_compile_and_channels_last_and_bfloat16_go_together(run: Run, images: Path, tmp_path: Path) -> None:
    together = ("--compile", "--channels-last", "--opt-level", "O1", "--amp-dtype", "bfloat16", "--ema")
    flags = ("-a", "sge_resnet18", "--data", images, "--img-size", 32, "--epochs", 1, "-j", 0)
    result = run(*flags, *together, "-c", "out", script=FAST)
    assert result.returncode == 0, result.stderr
    assert len((tmp_path / "out" / "log.txt").read_text().splitlines()) == 2
