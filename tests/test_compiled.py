"""Training with --compile: the blocks' graphs, run by torch's eager kernels, are the network.

So this shows what is traced, together with all that training wraps around it; whole compiled networks, with
the kernels that are generated for them, are in test_transformations.py.
"""

from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, Run, write_classes
from killer import fingerprint

SMALL = (
    "-a",
    "tiny_resnet",
    "--img-size",
    32,
    "--manualSeed",
    7,
    "--train-batch",
    8,
    "-j",
    0,
    "--data",
    "images",
)
TRACED = """
import sys
from torch import nn
import imagenet_fast
from utils.command_line import cli

begin = nn.Module.compile

def traced(module, **settings):
    print("a block is compiled", file=sys.stderr)
    begin(module, backend="aot_eager", **settings)

nn.Module.compile = traced
cli.run(imagenet_fast.main)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "flags"),
    [
        (1, ()),
        (1, ("--opt-level", "O1", "--amp-dtype", "bfloat16", "--channels-last", "--ema", 0.5)),
        (1, ("--opt-level", "O2", "--amp-dtype", "bfloat16", "--accum-steps", 2, "--clip-grad", 1)),
        (2, ("--opt-level", "O2", "--amp-dtype", "bfloat16", "--channels-last", "--ema", 0.5)),
        (2, ("--gate", "cbam", "--el2", "--nowd-conv")),
    ],
)
def test_compiled_blocks_train_as_eager_ones(
    launch: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int, flags: tuple[object, ...]
) -> None:
    """The same weights up to rounding; and bit for bit, if the compiled run is interrupted."""
    write_classes(tmp_path / "images", 16, size=(32, 36))
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    script = tmp_path / "imagenet_fast_traced.py"
    script.write_text(TRACED)
    given = (*SMALL, *flags)
    eager = launch("imagenet_fast.py", *given, "--epochs", 2, "-c", "eager", processes=processes)
    whole = launch(script, *given, "--epochs", 2, "--compile", "-c", "whole", processes=processes)
    assert (eager.returncode, whole.returncode) == (0, 0), whole.stderr
    assert whole.stderr.count("a block is compiled") >= 4 * processes
    for epochs in (1, 2):
        resumed = ("--epochs", epochs, "--compile", "-c", "parts", "--resume", "auto")
        assert launch(script, *given, *resumed, processes=processes).returncode == 0
    monkeypatch.chdir(tmp_path)
    assert fingerprint("parts") == fingerprint("whole")
    ours, theirs = (
        torch.load(f"{name}/checkpoint.pth.tar", weights_only=True)["state_dict"]
        for name in ("whole", "eager")
    )
    assert ours.keys() == theirs.keys()
    rounding = 1e-5 if "--opt-level" not in flags else 1e-2
    for key, value in ours.items():
        assert torch.allclose(value.float(), theirs[key].float(), rtol=rounding, atol=rounding), key
