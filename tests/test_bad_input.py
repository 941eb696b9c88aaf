"""Every mistake of the user ends in one line that names the fix, code 2, and nothing written."""

from pathlib import Path

import pytest
import torch
from conftest import Run, assert_one_line_error

from models import create_model


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
        (("-a", "resnet18", "--cardinality", "32"), ("resnet18 does not take", "groups=32")),
        (("-a", "mobilenet_v2", "--base-width", "4"), ("mobilenet_v2 does not take", "width_per_group=4")),
        (("-a", "se_resnet50", "--pretrained"), ("no weights of se_resnet50", "--resume")),
        (("-a", "resnet18", "--pretrained"), ("1000 classes", "3")),
        (("--resume", "missing.pth.tar"), ("missing.pth.tar: no such file",)),
        (("--resume", "images"), ("images: no such file",)),
        (("--no-such-flag",), ("unrecognized arguments: --no-such-flag",)),
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
        (("--loss-scale", "0"), ("--loss-scale", "above 0")),
        (("--loss-scale", "128"), ("--loss-scale does nothing in --opt-level O0",)),
        (("--opt-level", "O1", "--keep-batchnorm-fp32"), ("for --opt-level O2 and O3",)),
        (("--ema", "--opt-level", "O3"), ("--ema averages float32 weights",)),
        (("--amp-backend", "apex", "--opt-level", "O1"), ("CUDA only",)),
        (("--finetune", "a.pth", "--resume", "b.pth"), ("without --resume",)),
        (("--finetune", "a.pth"), ("--finetune a.pth: no such file",)),
        (("--zero-gamma", "-a", "mobilenetv1"), ("mobilenetv1 does not take", "zero_init_residual=True")),
        (("--accum-steps", "30"), ("24 training images are too few for 1 processes x 30 batches",)),
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


def test_from_outside(run: Run, tmp_path: Path) -> None:
    assert_one_line_error(run("--data", "nowhere"), "imagenet.py: error: --data nowhere: no such folder")
    assert_one_line_error(run("--data", "nowhere", "--lr", "-1"), "imagenet.py: error: argument --lr")
    assert list(tmp_path.iterdir()) == []


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
            "se_resnet18 --num-classes 3",
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
    result = call("--data", images, "-a", "se_resnet18", "-e", "--resume", "thousand.pth", "--img-size", 64)
    assert_one_line_error(result, "fc.weight (1000, 512) instead of (3, 512)", "-a se_resnet18")
    result = call(
        "--data",
        images,
        "-a",
        "se_resnet18",
        "-e",
        "--resume",
        "thousand.pth",
        "--img-size",
        64,
        "--num-classes",
        1000,
    )
    assert result.returncode == 0, result.stderr


def test_a_run_is_not_overwritten(call: Run, images: Path, tmp_path: Path) -> None:
    flags = ("--data", images, "-a", "resnet18", "--img-size", 64, "--train-batch", 8, "--epochs", 1)
    assert call(*flags).returncode == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "checkpoint").iterdir()}
    assert_one_line_error(call(*flags), "checkpoint holds a run already", "--resume", "--overwrite")
    assert {path.name: path.read_bytes() for path in (tmp_path / "checkpoint").iterdir()} == before

    finished = call(*flags, "--resume", "checkpoint/checkpoint.pth.tar")
    assert_one_line_error(finished, "1 epochs are done", "--epochs")
    assert {path.name: path.read_bytes() for path in (tmp_path / "checkpoint").iterdir()} == before

    other = call(*flags, "--epochs", 2, "--resume", "checkpoint/checkpoint.pth.tar", "-a", "se_resnet18")
    assert_one_line_error(other, "the file fits -a resnet18 --num-classes 3")
    assert call(*flags, "--overwrite").returncode == 0


def test_optimizer_state_that_is_missing(call: Run, images: Path, tmp_path: Path) -> None:
    torch.save(create_model("resnet18", num_classes=3).state_dict(), tmp_path / "weights.pth")
    flags = (
        "--data",
        images,
        "-a",
        "resnet18",
        "--img-size",
        64,
        "--train-batch",
        8,
        "--epochs",
        1,
        "-c",
        "out",
    )
    assert_one_line_error(call(*flags, "--resume", "weights.pth"), "no optimizer state", "--fresh-optimizer")
    assert not (tmp_path / "out").exists()
    assert call(*flags, "--resume", "weights.pth", "--fresh-optimizer").returncode == 0


def test_a_folder_that_cannot_be_made(call: Run, images: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = call("--data", images, "-a", "resnet18", "--img-size", 64, "-c", "file/out")
    assert_one_line_error(result, "-c file/out", "cannot make this folder")
