"""Every mistake of the user ends in one line that names the fix, code 2, and nothing written."""

import io
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, Run, assert_one_line_error
from forks import Job
from tiny_net import TinyNet

from models import create_model
from utils.common.text import shown
from utils.runs.provenance import changes


@pytest.mark.parametrize(
    ("flags", "fragments"),
    [
        (("--data", "nowhere"), ("nowhere: no such folder", "digits")),
        (("--data", "."), ("looked for val/ or valf/ or valid/ or validation/", "found images/")),
        (("--data", "images/train"), ("looked for", "found cat/, dog/, owl/")),
        (("-a", "sge_resnt50"), ("unknown architecture 'sge_resnt50'", "sge_resnet50")),
        (("-a", "list_models"), ("unknown architecture",)),
        (("--lr", "-0.1"), ("--lr", "above 0", "-0.1")),
        (("--lr", "nan"), ("--lr", "above 0")),
        (("--epochs", "0"), ("--epochs", "at least 1")),
        (("--train-batch", "1.5"), ("--train-batch", "whole number")),
        (("--scale", "0.9", "0.2"), ("--scale",)),
        (("--start-epoch", "9", "--epochs", "9"), ("--start-epoch 9",)),
        (("--gpu-id", "first"), ("--gpu-id", "0,1")),
        (("--device", "cuda"), ("--device cpu",)),
        (("-e",), ("--resume FILE",)),
        (("--fresh-optimizer",), ("--resume FILE",)),
        (("--num-classes", "2"), ("--num-classes 2", "3 class folders")),
        (("-a", "resnet18", "--cardinality", "32"), ("resnet18 does not take --cardinality 32",)),
        (("-a", "mobilenet_v2", "--base-width", "4"), ("mobilenet_v2 does not take --base-width 4",)),
        (("-a", "ws_resnet50", "--pretrained"), ("no weights of ws_resnet50", "--resume")),
        (("-a", "resnet18", "-e", "--pretrained", "--num-classes", "3"), ("1000 classes", "3")),
        (("--resume", "missing.pth.tar"), ("missing.pth.tar: no such file",)),
        (("--resume", "images"), ("images: is a folder",)),
        (("--no-such-flag",), ("unrecognized arguments: --no-such-flag", "--help")),
        (("--warmpu", "3", "--epohcs", "2"), ("unrecognized arguments: --warmpu",)),
        (("--epohcs", "2"), ("unrecognized arguments: --epohcs 2", "did you mean --epochs?")),
        (("--epoch", "2"), ("unrecognized arguments: --epoch 2", "did you mean --epochs?")),
        (("--data", ""), ("--data: is empty",)),
        (("--resume", ""), ("--resume: is empty",)),
        (("-c", ""), ("--checkpoint: is empty",)),
        (("--data", "images/train/cat/0.JPEG"), ("0.JPEG: not a folder",)),
        (("--manualSeed", "9" * 30), ("--manualSeed", "below 2^63")),
        (("--epochs", "9" * 5000), ("--epochs", "whole number")),
        (("--momentum", "1.5"), ("--momentum", "below 1")),
        (("--scale", "0.5", "1", "-ms", "small"), ("--scale and --modelsize",)),
        (("--zero-gamma", "--resume", "a.pth"), ("--zero-gamma is for new weights",)),
        (("--pretrained", "--resume", "a.pth"), ("give one of them",)),
    ],
    ids=lambda value: " ".join(value) if value and value[0].startswith("-") else "",
)
def test_command_line(
    call: Run, images: Path, tmp_path: Path, flags: tuple[str, ...], fragments: tuple[str, ...]
) -> None:
    assert_one_line_error(call("--data", "images", "--img-size", 64, *flags), *fragments)
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


@pytest.mark.parametrize(
    ("flags", "fragments"),
    [
        (("--alpha", "1"), ("--alpha goes with --mixup",)),
        (("--cutmix_prob", "0.5"), ("--cutmix_prob goes with --cutmix",)),
        (("--cutout_size", "8"), ("--cutout_size goes with --cutout",)),
        (("--cutout", "--cutout_size", "8.5"), ("--cutout_size", "whole number")),
        (("--distill-temp", "8"), ("--distill-temp goes with --teacher",)),
        (("--mineps", "1e-3"), ("--mineps goes with --el2",)),
        (("--print-always",), ("--print-always goes with --el2",)),
        (("--el2",), ("--nowd-conv",)),
        (("--el2", "--nowd-conv", "--wd-all"), ("not --wd-all",)),
        (("--wd-all", "--nowd-bn"), ("--wd-all and --nowd-bn contradict",)),
        (("--cutout", "--mixup"), ("--cutout does not go with",)),
        (("--cos", "--schedule", "3"), ("--cos and --schedule contradict",)),
        (("--nesterov", "--momentum", "0"), ("--nesterov needs --momentum",)),
        (("--label-smoothing", "1"), ("--label-smoothing", "below 1")),
        (("--label-smoothing", "0.7"), ("--label-smoothing 0.7 is too much for 3 classes",)),
        (("--ema", "1"), ("--ema", "below 1")),
        (("--teacher", ""), ("--teacher: is empty",)),
        (("--loss-scale", "0"), ("--loss-scale", "above 0")),
        (("--loss-scale", "128"), ("--loss-scale does nothing in --opt-level O0",)),
        (("--opt-level", "O1", "--keep-batchnorm-fp32"), ("for --opt-level O2 and O3",)),
        (("--ema", "--opt-level", "O3"), ("--ema averages float32 weights",)),
        (("--amp-backend", "apex", "--opt-level", "O1"), ("CUDA only",)),
        (("--finetune", "a.pth", "--resume", "b.pth"), ("without --resume",)),
        (("--finetune", "a.pth"), ("--finetune a.pth: no such file",)),
        (("--zero-gamma", "-a", "mobilenetv1"), ("mobilenetv1 does not take --zero-gamma",)),
        (
            ("--accum-steps", "30"),
            ("24 training images cannot fill 30 batches per step in 1 process", "--accum-steps"),
        ),
        (("--device", "cuda"), ("no CUDA GPU is available",)),
    ],
    ids=lambda value: " ".join(value) if value and value[0].startswith("-") else "",
)
def test_command_line_of_the_fast_scripts(
    call: Run, images: Path, tmp_path: Path, flags: tuple[str, ...], fragments: tuple[str, ...]
) -> None:
    assert_one_line_error(
        call("--data", "images", "--img-size", 64, *flags, script="imagenet_fast.py"), *fragments
    )
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


@pytest.mark.parametrize(
    "script",
    ["imagenet.py", "imagenet_fast.py", "imagenet_mobile.py", "detection/train.py", "scripts/check_data.py"],
)
def test_blank_arguments_are_ignored(call: Run, script: str) -> None:
    r"""As lines that end in ``\`` and a blank leave them, in the published README among others."""
    data = ("nowhere",) if script.startswith("scripts") else ("--data", "nowhere")
    expected = call(*data, script=script)
    for words in ((" ", *data), (*data, "-j", 1, " ", "\t")):
        result = call(*words, script=script)
        note, error = result.stderr.splitlines()
        assert (result.returncode, error) == (2, expected.stderr.strip())
        assert note.startswith("note: a blank argument is ignored; ")


def test_a_run_with_a_blank_argument(call: Run, images: Path) -> None:
    flags = ("--data", "images", " ", "-a", "tiny", "--img-size", 32, "--epochs", 2, "")
    result = call(*flags, "--schedule", 1, " ", script="imagenet_fast.py")
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("note: a blank argument is ignored") == 1
    assert " 2/2 " in result.stdout


def test_blank_values_of_flags_are_values(call: Run, images: Path) -> None:
    flags = ("--data", "images")
    for flag, said in (("--resume", "is empty"), ("--schedule", "whole number"), ("--lr", "not ' '")):
        assert_one_line_error(call(*flags, flag, " " if "'" in said else ""), flag, said)
    assert_one_line_error(call(*flags, "--scale", 0.5, " "), "argument --scale: must be a number", "not ' '")
    predict = ("--resume", "none.pth")
    assert_one_line_error(call(*predict, "", script="scripts/predict.py"), "argument IMAGE: is empty")
    extra = call("a", "--study", "b", "", script="scripts/record_run.py")
    assert_one_line_error(extra, "unrecognized arguments")


def test_from_outside(run: Run, tmp_path: Path) -> None:
    mistake = run("--data", "nowhere")
    assert_one_line_error(mistake, "imagenet.py: error: --data nowhere: no such folder")
    assert_one_line_error(run("--data", "nowhere", "--lr", "-1"), "imagenet.py: error: argument --lr")
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_leaves(images: Path, tmp_path: Path) -> None:
    """As ``python imagenet.py ... | head -1`` does."""
    script, flags = REPOSITORY / "imagenet.py", f"--data {images} -a mobilenetv1 --img-size 32 --epochs 1"
    command = f"set -o pipefail; '{sys.executable}' '{script}' {flags} -j 0 | head -0"
    result = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 141
    assert result.stderr == ""


def test_an_empty_class_folder(call: Run, images: Path) -> None:
    (images / "train" / "yak").mkdir()
    assert_one_line_error(call("--data", images), "train/yak has no images", ".jpg")


def test_no_class_folders(call: Run, tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / "flat" / split).mkdir(parents=True)
        (tmp_path / "flat" / split / "x.jpg").touch()
    assert_one_line_error(call("--data", "flat"), "has no class folders")


def broken_checkpoints(folder: Path) -> dict[str, tuple[str, ...]]:
    whole = folder / "whole.pth.tar"
    torch.save(
        {"state_dict": create_model("se_resnet18", num_classes=3).state_dict(), "arch": "se_resnet18"}, whole
    )
    content = whole.read_bytes()
    (folder / "truncated.pth.tar").write_bytes(content[: len(content) // 2])
    (folder / "empty.pth.tar").write_bytes(b"")
    (folder / "text.pth.tar").write_text("this is not a checkpoint\n")
    torch.save({"epoch": 3}, folder / "nothing.pth.tar")
    torch.save([1, 2], folder / "list.pth.tar")
    torch.save(
        {"state_dict": create_model("resnet18", num_classes=3).state_dict(), "arch": "old_resnet18"},
        folder / "same_keys.pth.tar",
    )
    return {
        "truncated.pth.tar": ("damaged or not a checkpoint",),
        "empty.pth.tar": ("damaged or not a checkpoint",),
        "text.pth.tar": ("not a checkpoint",),
        "nothing.pth.tar": ("no network weights",),
        "list.pth.tar": ("no network weights",),
        "whole.pth.tar": (
            "does not fit sge_resnet18",
            "32 keys unexpected",
            "16 keys missing",
            "the file fits -a se_resnet18\n",
        ),
    }


def test_unusable_checkpoints(call: Run, images: Path, tmp_path: Path) -> None:
    for name, fragments in broken_checkpoints(tmp_path).items():
        before = (tmp_path / name).read_bytes()
        result = call("--data", images, "-a", "sge_resnet18", "-e", "--resume", name, "--img-size", 64)
        assert_one_line_error(result, name, *fragments)
        assert (tmp_path / name).read_bytes() == before


def test_a_checkpoint_with_other_classes(call: Run, images: Path, tmp_path: Path) -> None:
    saved = {"state_dict": create_model("se_resnet18").state_dict(), "arch": "se_resnet18"}
    torch.save(saved, tmp_path / "thousand.pth")
    flags = ("--data", images, "-a", "se_resnet18", "--img-size", 64, "--resume", "thousand.pth")
    result = call(*flags)
    assert_one_line_error(result, "fc.weight (1000, 512) instead of (3, 512)", "give --num-classes 1000\n")
    assert_one_line_error(call(*flags, "-e"), "1,000 outputs, the data has 3 class folders", "--class-list")


def test_a_run_is_not_overwritten(call: Run, images: Path, tmp_path: Path) -> None:
    flags = ("--data", images, "-a", "tiny", "--img-size", 64, "--train-batch", 8, "--epochs", 1)
    assert call(*flags).returncode == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "checkpoint").iterdir()}
    assert_one_line_error(call(*flags), "checkpoint holds a run already", "--resume", "--overwrite")
    assert {path.name: path.read_bytes() for path in (tmp_path / "checkpoint").iterdir()} == before

    finished = call(*flags, "--resume", "checkpoint/checkpoint.pth.tar")
    assert_one_line_error(finished, "1 epoch is done", "--epochs")
    assert {path.name: path.read_bytes() for path in (tmp_path / "checkpoint").iterdir()} == before

    other = call(*flags, "--epochs", 2, "--resume", "checkpoint/checkpoint.pth.tar", "-a", "se_resnet18")
    assert_one_line_error(other, "does not fit se_resnet18", "the file fits -a tiny\n")
    assert call(*flags, "--overwrite").returncode == 0


def test_optimizer_state_that_is_missing(call: Run, images: Path, tmp_path: Path) -> None:
    torch.save(TinyNet(num_classes=3).state_dict(), tmp_path / "weights.pth")
    flags = ("--data", images, "-a", "tiny", "--img-size", 64, "--train-batch", 8, "--epochs", 1, "-c", "out")
    assert_one_line_error(call(*flags, "--resume", "weights.pth"), "no optimizer state", "--fresh-optimizer")
    assert not (tmp_path / "out").exists()
    assert call(*flags, "--resume", "weights.pth", "--fresh-optimizer").returncode == 0


def test_one_class_and_label_smoothing(call: Run, images: Path) -> None:
    for split in ("train", "valf"):
        for name in ("dog", "owl"):
            shutil.rmtree(images / split / name)
    result = call("--data", images, "--img-size", 64, script="imagenet_fast.py")
    assert_one_line_error(result, "--label-smoothing 0.1 is too much for 1 class")


def test_a_teacher_of_another_size(call: Run, images: Path, tmp_path: Path) -> None:
    with torch.device("meta"):
        state = create_model("vit_b_32", num_classes=3).state_dict()  # to initialise it takes seconds
    zeros = {key: torch.zeros_like(value, device="cpu") for key, value in state.items()}
    torch.save(zeros, tmp_path / "vit.pth")
    flags = ("--data", images, "--img-size", 64, "--teacher", "vit_b_32:vit.pth")
    assert_one_line_error(
        call(*flags, script="imagenet_fast.py"), "--teacher vit_b_32 does not take --img-size 64"
    )


@pytest.mark.parametrize(
    "damage",
    [
        {"epoch": None},
        {"epoch": True},
        {"seed": "x"},
        {"seed": -1},
        {"seed": 2**63},
        {"averaged_steps": 2**70},
        {"arch": 3},
        {"acc": "high"},
        {"best_acc": [1.0]},
        {"best_acc": float("nan")},
        {"classes": [1, 2, 3]},
        {"rows": ["a\nb"]},
        {"sums": [["a", 1.0, 1.0, 1.0]]},
        {"sums": [[1.0, 2.0]]},
        {"sums": 3},
        {"training_state_dict": {"a": 1}},
        {"arguments": {"lr": torch.zeros(2)}},
        {"arguments": {"img_size": "x"}},
        {"arguments": {"img_size": 0}},
        {"optimizer": [1]},
        {"optimizer": {"state": {}, "param_groups": [{"params": [[1]]}]}},
        {"optimizer": {"state": {}, "param_groups": [{"params": [0], "param_names": [1]}]}},
        {"optimizer": {"state": {0: "x"}, "param_groups": []}},
    ],
    ids=str,
)
def test_fields_of_the_wrong_kind(call: Run, images: Path, tmp_path: Path, damage: dict[str, object]) -> None:
    saved = {"state_dict": TinyNet(num_classes=3).state_dict(), **damage}
    torch.save(saved, tmp_path / "odd.pth")
    resume = ("--resume", "odd.pth", "--fresh-optimizer")  # it holds no state of one
    result = call("--data", images, "-a", "tiny", "--img-size", 32, *resume)
    assert_one_line_error(result, f"--resume odd.pth: damaged ({next(iter(damage))}")


def test_a_log_that_is_no_text(call: Run, images: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "log.txt").write_bytes("Rate\n1\n".encode("utf-16"))
    flags = ("--data", images, "-a", "tiny", "--img-size", 32, "-c", "out")
    assert_one_line_error(call(*flags), "-c out holds the log.txt of a run")
    assert_one_line_error(call(*flags[:-1], "x" * 300), "File name too long")
    assert_one_line_error(call(*flags, "--resume", "x" * 300), "File name too long")


def test_numbers_of_a_launcher(call: Run, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "a", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    flags = ("--data", images, "-a", "tiny", "--img-size", 32)
    assert_one_line_error(call(*flags, script="imagenet_fast.py"), "WORLD_SIZE")
    assert_one_line_error(call(*flags), "WORLD_SIZE=a in the environment is not a number")
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2(x3)")
    result = call(*flags, script="imagenet_fast.py")
    assert_one_line_error(result, "SLURM_STEP_NUM_TASKS=2(x3) in the environment is not a number")


def test_a_checkpoint_of_an_unknown_architecture_names_none(
    call: Run, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("utils.networks.weights.list_models", lambda: ["mobilenetv1", "resnet18"])
    saved = {"state_dict": create_model("mobilenetv1", num_classes=3).state_dict(), "arch": "nonet50"}
    torch.save(saved, tmp_path / "odd.pth")
    result = call("--data", images, "-a", "resnet18", "--img-size", 32, "-e", "--resume", "odd.pth")
    assert_one_line_error(result, "the file fits -a mobilenetv1\n")


def test_classes_are_those_of_the_checkpoint(call: Run, images: Path, tmp_path: Path) -> None:
    """A validation folder that lacks a class keeps the labels; other names are refused."""
    torch.manual_seed(0)
    net = TinyNet(num_classes=3)
    saved = {"state_dict": net.state_dict(), "arch": "tiny", "classes": ["cat", "dog", "owl"]}
    torch.save(saved, tmp_path / "net.pth")
    flags = ("--data", images, "-a", "tiny", "--img-size", 32, "-e", "--resume", "net.pth")
    shutil.rmtree(images / "valf" / "cat")
    expected = call(*flags).stdout.splitlines()[-1]
    (images / "train").rename(tmp_path / "train")
    assert call(*flags).stdout.splitlines()[-1] == expected
    (tmp_path / "train").rename(images / "train")
    (images / "train" / "cat").rename(images / "train" / "yak")
    for evaluate in (flags, tuple(flag for flag in flags if flag != "-e")):
        assert_one_line_error(call(*evaluate), "other classes than the checkpoint", "cat missing, yak new")


def test_a_launcher_is_not_for_imagenet_py(call: Run, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert_one_line_error(call("--data", images), "imagenet.py is one process", "imagenet_fast.py")


def test_a_folder_in_use(call: Run, start: Callable[..., Job], images: Path, tmp_path: Path) -> None:
    (tmp_path / "holds.py").write_text(
        "import pathlib, time; from utils.runs.folder import RunFolder\n"
        "held = RunFolder(pathlib.Path('out'), False, False, 2); print('held', flush=True); time.sleep(300)"
    )
    holder = start(tmp_path / "holds.py")
    holder.wait_for("held")
    flags = ("--data", images, "-a", "tiny", "--img-size", 32, "-c", "out", "--epochs", 1)
    assert_one_line_error(call(*flags), "-c out: another process is training into it")
    holder.kill()
    holder.communicate()
    assert call(*flags).returncode == 0


def test_overwriting_begins_with_the_first_complete_epoch(call: Run, images: Path, tmp_path: Path) -> None:
    flags = ("--data", images, "-a", "tiny", "--img-size", 32, "-c", "out", "--epochs", 1)
    assert call(*flags).returncode == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    for path in images.rglob("*.JPEG"):
        path.write_bytes(b"")
    assert_one_line_error(call(*flags, "--overwrite"), "cannot be decoded")
    after = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert {name: after[name] for name in before} == before


def test_another_checkpoint_in_the_folder_of_a_run(call: Run, images: Path, tmp_path: Path) -> None:
    """Only checkpoint.pth.tar is continued in place: an earlier one would undo what came after it."""
    flags = ("--data", images, "-a", "tiny", "--img-size", 32, "--epochs", 2)
    assert call(*flags, "--epochs", 1, "-c", "out").returncode == 0
    best = ("--resume", "out/model_best.pth.tar")
    assert_one_line_error(call(*flags, *best), "-c out holds a run already")
    result = call(*flags, *best, "-c", "new")
    assert result.returncode == 0
    assert (tmp_path / "new" / "model_best.pth.tar").exists()
    assert "continuing out/model_best.pth.tar after epoch 1" in result.stdout


def test_a_folder_that_cannot_be_made(call: Run, images: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = call("--data", images, "-a", "resnet18", "--img-size", 64, "-c", "file/out")
    assert_one_line_error(result, "-c file/out", "cannot make this folder")


def test_a_folder_with_a_log_alone(call: Run, images: Path, tmp_path: Path) -> None:
    """--resume auto finds nothing to go on from there, and does not replace the log."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "log.txt").write_text("Learning Rate\tTrain Loss\n0.1\t2.0\n0.1\t1.9\n")
    flags = ("-a", "tiny", "--img-size", 64, "--train-batch", 8, "--data", images, "--epochs", 1, "-c", "out")
    for resume in ((), ("--resume", "auto")):
        refused = call(*flags, *resume)
        what = "-c out holds the log.txt of a run of 2 epochs, but no checkpoint to go on from"
        assert_one_line_error(refused, what, "give --overwrite (without --resume auto) to replace it")
    assert call(*flags, "--overwrite").returncode == 0


def test_a_folder_that_is_removed_in_mid_run(
    call: Run, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it can be resumed, and that is said."""

    def remove(*_: object) -> None:
        shutil.rmtree(tmp_path / "out")
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr("utils.runs.folder.save", remove)

    result = call(
        "-a", "tiny", "--img-size", 64, "--train-batch", 8, "--data", images, "--epochs", 1, "-c", "out"
    )
    assert_one_line_error(result, "-c out was removed while the run wrote to it", "start again")


def test_what_a_file_says_is_escaped_on_the_terminal(call: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert changes({"lr": "\x1b[31m"}, {"lr": 1}) == ["--lr \\x1b[31m -> 1"]
    result = call("--data", "\x1b[31m", "--epochs", 1)
    assert_one_line_error(result, "\\x1b[31m")
    monkeypatch.setattr(sys, "stdout", io.StringIO())  # has no encoding
    assert shown("caf\N{LATIN SMALL LETTER E WITH ACUTE}") == "café"
