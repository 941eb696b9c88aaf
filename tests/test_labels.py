"""Which output a class folder belongs to: the numbers must not depend on what the folders are called."""

import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from conftest import Run, assert_one_line_error, write_images
from small_checkpoint import ARCH, SIZE, calibrated
from tiny_net import TinyNet
from torch import nn

from models import create_model
from utils.data.decoding import choose_decoder, read_image
from utils.data.labels import imagenet_classes
from utils.data.transforms import MEAN, STD, ValTransform

FAST = "imagenet_fast.py"
EVALUATE = ("-a", ARCH, "--img-size", SIZE, "--test-batch", 5, "--data", "data", "-e")
TRAIN = ("-a", "tiny", "--img-size", 32, "--data", "data", "--train-batch", 4, "--manualSeed", 7)
TWELVE = tuple(str(number) for number in range(12))
AS_TEXT = tuple(sorted(TWELVE))  # 0, 1, 10, 11, 2, ...
WORDNET = {"n02129165_lion": 291, "n01443537": 1, "n15075141": 999}  # labels of folders


def write_folders(root: Path, names: Sequence[str], *splits: str) -> None:
    """An image for every class, whose colour depends on its place in ``names``."""
    for split in splits or ("val",):
        for place, name in enumerate(names):
            write_images(root / split / name, 1, place)


def write_bare(folder: Path, outputs: int, name: str = "bare.pth") -> nn.Module:
    """A file as published ones and torchvision's are, without class names."""
    net = calibrated(outputs=outputs)
    torch.save({"epoch": 9, "state_dict": net.state_dict()}, folder / name)
    return net


def write_list(folder: Path, names: Sequence[str], name: str = "classes.txt") -> None:
    (folder / name).write_text("".join(f"{line}\n" for line in names))


@torch.no_grad()
def direct_loss(net: nn.Module, folder: Path, labels: Mapping[str, int]) -> float:
    """The mean cross-entropy of the images below a folder, by the labels of its class folders."""
    transform = ValTransform(SIZE)
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    losses = []
    for name, label in labels.items():
        for path in (folder / name).iterdir():
            pixels = transform(*read_image(str(path), choose_decoder("auto"), transform.box))
            logits = net(((pixels.float() / 255 - mean) / std)[None])
            losses.append(nn.functional.cross_entropy(logits, torch.tensor([label])).item())
    return sum(losses) / len(losses)


def loss_of(result: subprocess.CompletedProcess[str]) -> float:
    assert result.returncode == 0, result.stderr
    return float(re.findall(r"Test Loss:  ([\d.]+)", result.stdout)[0])


def read(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize(
    "names",
    [
        TWELVE,
        ("0", "00", "1", *(str(number) for number in range(2, 10)), "0010"),
        tuple(str(number) for number in range(90, 102)),
    ],
    ids=lambda names: names[-1],
)
def test_whole_numbers_sort_by_number(call: Run, tmp_path: Path, names: tuple[str, ...]) -> None:
    """Those of one value, as 0 and 00, by their text."""
    net = write_bare(tmp_path, 12)
    write_folders(tmp_path / "data", names)
    expected = direct_loss(net, tmp_path / "data" / "val", {name: label for label, name in enumerate(names)})
    assert loss_of(call(*EVALUATE, "--resume", "bare.pth")) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("odd", ["-1", "²", "\u0663"])
def test_other_names_sort_as_text(call: Run, tmp_path: Path, odd: str) -> None:
    names = (*TWELVE[:11], odd)
    net = write_bare(tmp_path, 12)
    write_folders(tmp_path / "data", names)
    labels = {name: label for label, name in enumerate(sorted(names))}
    expected = direct_loss(net, tmp_path / "data" / "val", labels)
    assert loss_of(call(*EVALUATE, "--resume", "bare.pth")) == pytest.approx(expected, rel=1e-4)


def test_training_and_evaluation_agree(call: Run, tmp_path: Path) -> None:
    """The checkpoint names the classes in the order of its labels; without them the accuracy is the same."""
    write_folders(tmp_path / "data", TWELVE, "train", "val")
    assert call(*TRAIN, "--epochs", 1, "-c", "out").returncode == 0
    saved = read(tmp_path / "out" / "checkpoint.pth.tar")
    assert saved["classes"] == list(TWELVE)
    torch.save(saved["state_dict"], tmp_path / "bare.pth")
    evaluate = (*TRAIN[:6], "-e", "--resume")
    logged = float((tmp_path / "out" / "log.txt").read_text().splitlines()[-1].split("\t")[2])
    for file in ("out/checkpoint.pth.tar", "bare.pth"):
        assert loss_of(call(*evaluate, file, script=FAST)) == pytest.approx(logged, abs=1e-4)


def test_a_checkpoint_keeps_its_order(call: Run, tmp_path: Path) -> None:
    """A run of an earlier version, whose classes are sorted as text, goes on as if it was never stopped."""
    write_folders(tmp_path / "data", TWELVE, "train", "val")
    write_list(tmp_path, AS_TEXT)
    assert call(*TRAIN, "--epochs", 2, "-c", "whole", "--class-list", "classes.txt").returncode == 0
    assert call(*TRAIN, "--epochs", 1, "-c", "half", "--class-list", "classes.txt").returncode == 0
    assert call(*TRAIN, "--epochs", 2, "-c", "half", "--resume", "auto").returncode == 0
    whole, half = (read(tmp_path / name / "checkpoint.pth.tar") for name in ("whole", "half"))
    assert whole["classes"] == half["classes"] == list(AS_TEXT)
    assert whole["rows"] == half["rows"]
    for key, value in whole["state_dict"].items():
        assert torch.equal(value, half["state_dict"][key]), key
    found = loss_of(call(*TRAIN[:6], "-e", "--resume", "half/checkpoint.pth.tar"))
    assert found == pytest.approx(float(whole["rows"][-1].split("\t")[2]), abs=1e-4)


def test_fine_tuning_keeps_the_order_of_its_file(call: Run, tmp_path: Path) -> None:
    """Otherwise the classifier that it starts from would stand for other classes."""
    write_folders(tmp_path / "data", TWELVE, "train", "val")
    net = TinyNet(num_classes=12)
    torch.save({"state_dict": net.state_dict(), "classes": list(AS_TEXT)}, tmp_path / "old.pth")
    flags = (*TRAIN, "--epochs", 1, "--finetune", "old.pth")
    assert call(*flags, "-c", "out").returncode == 0
    assert read(tmp_path / "out" / "checkpoint.pth.tar")["classes"] == list(AS_TEXT)
    (tmp_path / "data" / "train" / "11").rename(tmp_path / "data" / "train" / "12")
    (tmp_path / "data" / "val" / "11").rename(tmp_path / "data" / "val" / "12")
    assert call(*flags, "-c", "other").returncode == 0
    assert read(tmp_path / "other" / "checkpoint.pth.tar")["classes"] == [*TWELVE[:11], "12"]


@pytest.mark.parametrize("script", ["imagenet.py", FAST])
@pytest.mark.parametrize("flags", [(), ("--num-classes", 1000)])
def test_a_part_of_imagenet(call: Run, tmp_path: Path, script: str, flags: tuple[object, ...]) -> None:
    net = write_bare(tmp_path, 1000)
    write_folders(tmp_path / "data", list(WORDNET))
    expected = direct_loss(net, tmp_path / "data" / "val", WORDNET)
    result = call(*EVALUATE, "--resume", "bare.pth", *flags, script=script)
    assert loss_of(result) == pytest.approx(expected, rel=1e-4)
    assert "note: the labels are ImageNet's; 3 of its 1,000 classes have a folder here" in result.stdout


def test_a_part_of_imagenet_by_torchvisions_weights(
    call: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = calibrated("shufflenet_v2_x0_5", 1000)
    weights = net.state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: weights)
    write_folders(tmp_path / "data", list(WORDNET))
    expected = direct_loss(net, tmp_path / "data" / "val", WORDNET)
    flags = ("-a", "shufflenet_v2_x0_5", *EVALUATE[2:], "--pretrained")
    assert loss_of(call(*flags)) == pytest.approx(expected, rel=1e-4)
    (tmp_path / "data" / "val" / "n01443537").rename(tmp_path / "data" / "val" / "goldfish")
    assert_one_line_error(call(*flags), "--pretrained does not name", "(goldfish is none of ", "--class-list")


def test_fine_tuning_on_a_part_of_imagenet(call: Run, tmp_path: Path) -> None:
    write_folders(tmp_path / "data", list(WORDNET), "train", "val")
    torch.save(TinyNet().state_dict(), tmp_path / "bare.pth")
    flags = (*TRAIN, "--num-classes", 1000, "--train-batch", 3)
    assert call(*flags, "--epochs", 1, "-c", "out", "--finetune", "bare.pth").returncode == 0
    classes = read(tmp_path / "out" / "checkpoint.pth.tar")["classes"]
    assert len(classes) == 1000
    assert {name: classes.index(name) for name in WORDNET} == WORDNET
    assert call(*flags, "--epochs", 2, "-c", "out", "--resume", "auto").returncode == 0


@pytest.mark.parametrize(
    ("outputs", "names", "stranger"),
    [
        (1000, ("n01443537", "n02129165", "n99999999"), " (n99999999 is none of ImageNet's)"),
        (1000, ("0", "1", "2"), " (0 is none of ImageNet's)"),
        (1000, ("n01443537", "n01443537_goldfish"), ""),
        (5, ("n01443537", "n02129165", "n15075141"), ""),
    ],
)
def test_a_guess_is_refused(
    call: Run, tmp_path: Path, outputs: int, names: tuple[str, ...], stranger: str
) -> None:
    torch.save(create_model(ARCH, num_classes=outputs).state_dict(), tmp_path / "bare.pth")
    write_folders(tmp_path / "data", names)
    told = f"does not name the classes of its {outputs:,} outputs, the data has {len(names)} class folders"
    for counted in ((), ("--num-classes", outputs)):
        result = call(*EVALUATE, "--resume", "bare.pth", *counted)
        assert_one_line_error(result, f"--resume bare.pth {told}{stranger}: say with --class-list FILE")


@pytest.mark.parametrize(
    "content", ["x\ncat\ny\ndog\nowl\n", "\ufeffx \t\r\ncat\r\n y\r\ndog \r\nowl\r\n\r\n \r\n"]
)
def test_a_class_list(call: Run, tmp_path: Path, content: str) -> None:
    """Of more classes than have folders; a training folder of others is not looked at in evaluation."""
    net = write_bare(tmp_path, 5)
    (tmp_path / "classes.txt").write_bytes(content.encode())
    write_folders(tmp_path / "data", ("cat", "dog", "owl"))
    write_folders(tmp_path / "data", ("emu",), "train")
    expected = direct_loss(net, tmp_path / "data" / "val", {"cat": 1, "dog": 3, "owl": 4})
    result = call(*EVALUATE, "--resume", "bare.pth", "--class-list", "classes.txt")
    assert loss_of(result) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("script", ["imagenet.py", FAST])
def test_the_first_and_the_last_class_are_named(call: Run, tmp_path: Path, script: str) -> None:
    """So that the log shows in which order folders were taken of which nobody says it."""
    write_bare(tmp_path, 3)
    write_folders(tmp_path / "data", ("cat", "dog", "owl"))
    assert "3 classes (cat to owl), on " in call(*EVALUATE, "--resume", "bare.pth", script=script).stdout


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (b"cat\ndog\n", "2 lines for 3 outputs of the network; give a class in a line for each"),
        (b"cat\ndog\nowl\nyak\n", "4 lines for 3 outputs"),
        (b"cat\n\nowl\n", "line 2 is empty"),
        (b"", "line 1 is empty"),
        (b"cat\ndog\ncat\n", "cat stands there twice"),
        (b"cat\ndog\nyak\n", "data/val has class folders that --class-list lacks: owl"),
        ("cat\ndog\nowl\n".encode("utf-16"), "not UTF-8"),
        (None, "No such file"),
    ],
)
def test_unusable_lists(call: Run, tmp_path: Path, content: bytes | None, fragment: str) -> None:
    torch.save(create_model(ARCH, num_classes=3).state_dict(), tmp_path / "bare.pth")
    write_folders(tmp_path / "data", ("cat", "dog", "owl"), "train", "val")
    if content is not None:
        (tmp_path / "classes.txt").write_bytes(content)
    listed = ("--class-list", "classes.txt")
    assert_one_line_error(call(*EVALUATE, "--resume", "bare.pth", *listed), fragment)
    training = call(*TRAIN, "--num-classes", 3, "-c", "out", *listed)
    assert_one_line_error(training, fragment.replace("/val", "/train"))
    assert not (tmp_path / "out").exists()


def test_a_list_beside_a_checkpoint_with_names(call: Run, tmp_path: Path) -> None:
    write_folders(tmp_path / "data", ("cat", "dog", "owl"))
    named = {"state_dict": calibrated().state_dict(), "classes": ["dog", "cat", "owl"]}
    torch.save(named, tmp_path / "named.pth")
    flags = (*EVALUATE, "--resume", "named.pth")
    expected = loss_of(call(*flags))
    write_list(tmp_path, ("dog", "cat", "owl"))
    assert loss_of(call(*flags, "--class-list", "classes.txt")) == expected
    write_list(tmp_path, ("dog", "owl", "cat"))
    assert_one_line_error(
        call(*flags, "--class-list", "classes.txt"),
        "--class-list classes.txt: output 1 is owl there, cat in the checkpoint",
    )


def test_training_with_a_class_list(call: Run, tmp_path: Path) -> None:
    """A class without a folder has an output; to go on without the list would be another run."""
    write_folders(tmp_path / "data", ("cat", "dog", "owl"), "train", "val")
    write_list(tmp_path, ("owl", "yak", "dog", "cat"))
    flags, listed = (*TRAIN, "--train-batch", 3, "-c", "out"), ("--class-list", "classes.txt")
    assert call(*flags, *listed, "--epochs", 1).returncode == 0
    saved = read(tmp_path / "out" / "checkpoint.pth.tar")
    assert saved["classes"] == ["owl", "yak", "dog", "cat"]
    assert saved["state_dict"]["fc.bias"].shape == (4,)
    resume = ("--epochs", 2, "--resume", "auto")
    assert_one_line_error(call(*flags, *resume), "yak missing, none new", "its --class-list")
    assert call(*flags, *listed, *resume).returncode == 0
    logged = read(tmp_path / "out" / "checkpoint.pth.tar")["rows"][-1].split("\t")[2]
    found = loss_of(call(*TRAIN[:6], "-e", "--resume", "out/checkpoint.pth.tar"))
    assert found == pytest.approx(float(logged), abs=1e-4)


def test_a_teacher_speaks_of_the_same_classes(call: Run, tmp_path: Path) -> None:
    write_folders(tmp_path / "data", TWELVE, "train", "val")
    weights = {outputs: TinyNet(num_classes=outputs).state_dict() for outputs in (12, 13)}
    torch.save({"state_dict": weights[12], "classes": list(AS_TEXT)}, tmp_path / "old.pth")
    torch.save(weights[13], tmp_path / "bare.pth")
    write_list(tmp_path, AS_TEXT)
    flags = (*TRAIN, "--epochs", 1, "--teacher")
    refused = call(*flags, "tiny:old.pth", script=FAST)
    assert_one_line_error(refused, "old.pth has the classes in another order than the data", "--class-list")
    refused = call(*flags, "tiny:bare.pth", "--num-classes", 13, script=FAST)
    assert_one_line_error(refused, "bare.pth does not name the classes of its 13 outputs", "--class-list")
    listed = call(*flags, "tiny:old.pth", "--class-list", "classes.txt", script=FAST)
    assert listed.returncode == 0, listed.stderr


def test_imagenets_classes() -> None:
    """Ids as in ILSVRC2012's folders, sorted; names as in torchvision's weights; some pairs by hand."""
    classes = imagenet_classes()
    names = torchvision.models.ResNet50_Weights.IMAGENET1K_V1.meta["categories"]
    assert list(classes.values()) == names
    assert len(classes) == 1000
    assert list(classes) == sorted(classes)
    assert all(re.fullmatch(r"n\d{8}", key) for key in classes)
    pairs = {
        "n01440764": "tench",
        "n02012849": "crane bird",
        "n03126707": "crane",
        "n15075141": "toilet tissue",
    }
    pairs |= {"n01641577": "bullfrog", "n02129165": "lion", "n03710637": "maillot", "n07753592": "banana"}
    pairs |= {"n02056570": "king penguin", "n04285008": "sports car", "n09193705": "alp", "n02110958": "pug"}
    assert {key: classes[key] for key in pairs} == pairs
