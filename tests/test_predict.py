"""scripts/predict.py: the classes of a direct forward pass, for every image that can be decoded."""

import csv
import io
import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import Run, assert_one_line_error, write_no_files
from small_checkpoint import ARCH, CLASSES, SIZE, calibrated, write_checkpoint
from test_decoding import photograph, write_held
from torch import Tensor
from torchvision.models import ResNet50_Weights

from utils.data.decoding import read_image
from utils.data.transforms import MEAN, STD, ValTransform

SCRIPT = "scripts/predict.py"


@pytest.fixture
def predict(call: Run, images: Path) -> Run:
    """The script within this process, on a checkpoint ``net.pth.tar``."""
    write_checkpoint(images.parent).rename(images.parent / "net.pth.tar")
    return lambda *arguments: call("--resume", "net.pth.tar", "-j", 0, *arguments, script=SCRIPT)


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def direct(path: Path) -> Tensor:
    """The probabilities of one image by a forward pass, (3,)."""
    transform = ValTransform(SIZE)
    pixels = transform(*read_image(str(path), "simplejpeg", transform.box)).float() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    with torch.inference_mode():
        return calibrated()(((pixels - mean) / std)[None])[0].softmax(0)


def test_predictions_are_those_of_a_forward_pass(predict: Run, images: Path) -> None:
    result = predict("images/valf", "--batch", 4, "--decoder", "simplejpeg")
    assert (result.returncode, result.stderr) == (0, "")
    found = rows(result.stdout)
    names = [f"images/valf/{name}/{i}.JPEG" for name in CLASSES for i in range(7)]
    assert [row["path"] for row in found[::3]] == names
    for i, name in enumerate(names):
        expected = direct(images.parent / name)
        order = expected.argsort(descending=True).tolist()
        for rank, (row, label) in enumerate(zip(found[3 * i : 3 * i + 3], order, strict=True), 1):
            assert (row["rank"], row["label"], row["class"]) == (str(rank), str(label), CLASSES[label])
            assert float(row["probability"]) == pytest.approx(float(expected[label]), abs=2e-5)


@pytest.mark.parametrize("decoder", ["pil", "auto"])
def test_photos_are_turned_upright(predict: Run, tmp_path: Path, decoder: str) -> None:
    (tmp_path / "photos").mkdir()
    write_held(tmp_path / "photos", photograph(80, 120), ".png")
    found = rows(predict("photos", "--decoder", decoder).stdout)
    answers = {tuple((row["class"], row["probability"]) for row in found[i : i + 3]) for i in range(0, 24, 3)}
    assert len(found) == 24
    assert len(answers) == 1
    assert "EXIF" in predict("--help").stdout


def test_files_csv_and_json(predict: Run, images: Path, tmp_path: Path) -> None:
    shutil.copy(images / "valf/cat/0.JPEG", tmp_path / "no suffix")
    arguments = ("no suffix", "images/train/owl", "-k", 1, "-a", ARCH, "--csv", "a.csv", "--json", "a.json")
    result = predict(*arguments, "-j", 2)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    table, content = rows((tmp_path / "a.csv").read_text()), json.loads((tmp_path / "a.json").read_text())
    assert len(table) == 9
    assert (content["arch"], content["img_size"], content["undecodable"]) == (ARCH, SIZE, [])
    for row, image in zip(table, content["images"], strict=True):
        (best,) = image["classes"]
        assert (row["path"], row["class"]) == (image["path"], best["class"])
        assert float(row["probability"]) == best["probability"]
    before = (tmp_path / "a.csv").read_bytes()
    assert_one_line_error(predict(*arguments), "predict.py: error: --csv a.csv is there", "--overwrite")
    assert (tmp_path / "a.csv").read_bytes() == before
    assert predict(*arguments, "--overwrite").returncode == 0
    for flags in (("--csv", "one", "--json", "one"), ("--csv", "one", "--json", "./one", "--overwrite")):
        assert_one_line_error(predict("no suffix", *flags), "--csv and --json are both one: give each")


def test_files_that_cannot_be_decoded_are_named(predict: Run, images: Path) -> None:
    folder = images / "valf" / "cat"
    (folder / "3.JPEG").write_bytes(b"no image")
    (folder / "link.jpg").symlink_to("nowhere.jpg")
    (folder / "up").symlink_to("..")
    (folder / "note.txt").touch()
    no_files = write_no_files(folder)
    result = predict("images/valf/cat", "--json", "a.json")
    lines = result.stderr.splitlines()
    assert (result.returncode, lines[0]) == (
        1,
        "trouble: 6 files cannot be decoded: no predictions for",
    )
    assert {line.split(":")[0] for line in lines[1:]} == {
        f"  images/valf/cat/{name}" for name in ("3.JPEG", *no_files, "link.jpg", "up")
    }
    content = json.loads((images.parent / "a.json").read_text())
    assert len(content["images"]) == 6
    assert len(content["undecodable"]) == 6
    alone = predict("images/valf/cat/pipe.JPEG")
    assert (alone.returncode, "pipe.JPEG: OSError: a pipe" in alone.stderr) == (1, True)


def test_a_safetensors_file(predict: Run, call: Run, tmp_path: Path) -> None:
    """Its keys are sorted, so that the classifier's are not the last; its metadata hold the classes."""
    converted = call("net.pth.tar", "net.safetensors", script="scripts/convert_checkpoint.py")
    assert converted.returncode == 0
    expected = predict("images/valf/owl")
    result = predict("images/valf/owl", "--resume", "net.safetensors")
    assert (result.returncode, result.stdout, result.stderr) == (0, expected.stdout, "")


def test_only_a_broken_image(predict: Run, tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    result = predict("a.png")
    assert (result.returncode, result.stdout) == (1, "path,rank,class,label,probability\n")


def test_outputs_that_are_not_finite(predict: Run, tmp_path: Path) -> None:
    net = calibrated()
    next(net.parameters()).data.fill_(float("nan"))
    broken = write_checkpoint(tmp_path, net)
    result = predict("images", "--resume", broken, "--csv", "a.csv")
    assert_one_line_error(result, "outputs are not finite")
    assert not (tmp_path / "a.csv").exists()


def names_of(result: subprocess.CompletedProcess[str]) -> set[str]:
    assert result.returncode == 0, result.stderr
    return {row["class"] for row in rows(result.stdout)}


def test_class_names(predict: Run, call: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("utils.networks.weights.list_models", lambda: ["sge_resnet18", ARCH])
    (tmp_path / "names.txt").write_text("Katze\nHund\nEule, graue\n")
    image = "images/valf/cat/0.JPEG"
    assert names_of(predict(image, "--classes", "names.txt")) == {"Katze", "Hund", "Eule, graue"}
    few = write_checkpoint(tmp_path, classes=["cat"])
    result = call("--resume", few, "-j", 0, image, script=SCRIPT)
    assert "names only 1 of 3 classes" in result.stderr
    assert names_of(result) == {"cat", "1", "2"}
    bare = write_checkpoint(tmp_path, classes=None, arch=None, arguments=None)
    result = call("--resume", bare, "-a", ARCH, "--img-size", 64, "-j", 0, image, script=SCRIPT)
    assert "names no classes" in result.stderr
    assert names_of(result) == {"0", "1", "2"}
    result = call("--resume", bare, "-j", 0, image, script=SCRIPT)
    assert_one_line_error(result, f"does not say which architecture it holds: give -a {ARCH}")


def test_imagenets_names(call: Run, images: Path, tmp_path: Path) -> None:
    """Of published files: a thousand outputs, no class names."""
    torch.save(calibrated(outputs=1000).state_dict(), tmp_path / "bare.pth")
    flags = ("--resume", "bare.pth", "-a", ARCH, "--img-size", SIZE, "-j", 0, "images/valf/cat/0.JPEG")
    result = call(*flags, script=SCRIPT)
    assert result.stderr.startswith("note: bare.pth names no classes: its outputs are taken for ImageNet's")
    names = ResNet50_Weights.IMAGENET1K_V1.meta["categories"]
    assert [names[int(row["label"])] for row in rows(result.stdout)] == [
        row["class"] for row in rows(result.stdout)
    ]
    (tmp_path / "names.txt").write_text("\n".join(f"thing {label}" for label in range(1000)))
    named = call(*flags, "--class-list", "names.txt", script=SCRIPT)
    assert (named.returncode, named.stderr) == (0, "")
    assert all(row["class"] == f"thing {row['label']}" for row in rows(named.stdout))


def test_the_checkpoints_names_in_another_order(predict: Run, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\nowl\ndog\n")
    result = predict("images", "--class-list", "names.txt")
    assert_one_line_error(result, "--class-list names.txt: output 1 is owl there, dog in the checkpoint")


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        ((), ("IMAGE", "--help")),
        (("nowhere",), ("nowhere: no such file or folder",)),
        (("empty",), ("no images in empty",)),
        (("images", "--resume", "none.pth"), ("--resume none.pth: no such file",)),
        (("images", "-a", "sge_resnet18"), ("does not fit sge_resnet18", f"-a {ARCH}")),
        (("images", "-a", "sge_resnet"), ("did you mean",)),
        (("images", "-k", "4"), ("-k 4 is too many: the network has 3 classes",)),
        (("images", "-k", "0"), ("at least 1",)),
        (("images", "--classes", "none.txt"), ("--classes none.txt", "No such file")),
        (("images", "--classes", "two.txt"), ("2 lines for 3 outputs",)),
        (("images", "--class-list", "two.txt"), ("--class-list two.txt: 2 lines for 3 outputs",)),
        (("images", "--csv", "nowhere/a.csv"), ("--csv nowhere/a.csv", "folder")),
        (("images", "--json", "two.txt"), ("--json two.txt is there already",)),
        (("images", "--device", "cuda"), ("--device cuda: no CUDA GPU",)),
    ],
)
def test_bad_usage(
    predict: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    fragments: tuple[str, ...],
) -> None:
    monkeypatch.setattr("utils.common.devices.gpu_count", lambda: 0)
    (tmp_path / "empty").mkdir()
    (tmp_path / "two.txt").write_text("cat\ndog\n")
    result = predict(*arguments)
    assert_one_line_error(result, "predict.py: error: ", *fragments)
    assert result.stdout == ""


def test_help_has_an_example(predict: Run) -> None:
    result = predict("--help")
    assert (result.returncode, "\n    python scripts/predict.py -a " in result.stdout) == (0, True)
