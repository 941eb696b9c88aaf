"""CIFAR-10 and -100 from their binary files: exact pixels, defaults, resuming, and what is refused."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run, assert_one_line_error
from small_cifar import NAMES_10, SMALL, TESTS, TRAINING, files_of, write_archive, write_folder
from test_flags import NET
from tiny_net import Narrow, TinyNet
from torch.nn import functional

from models import put_small_stem
from scripts import export
from scripts.lib.restored import restore
from utils.common.distributed import Ranks
from utils.data import cifar
from utils.data.loading import Reading, validation_loader
from utils.data.splits import ImageSplit, open_data
from utils.data.transforms import Box, TrainTransform, ValTransform
from utils.networks import checkpoint

FAST, PLAIN = "imagenet_fast.py", "imagenet.py"
RUN = (*NET, "--epochs", 2, "--train-batch", 20, "--manualSeed", 3)
FORMS_OF_TEN = ("data", ".", "folder in data", "folder in .")


@pytest.fixture(autouse=True)
def few_images(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The data sets have few images; commands run in ``tmp_path``."""
    monkeypatch.setattr("utils.data.cifar.FORMS", SMALL)
    monkeypatch.chdir(tmp_path)


def images_of(name: str, split: str) -> dict[str, list[np.ndarray[Any, Any]]]:
    """The images (32, 32, 3) of each class, in the order of the files."""
    form, files = SMALL[name], files_of(name)
    names = files[form.names].decode().split()
    found: dict[str, list[Any]] = {label: [] for label in names}
    for file in form.files[split]:
        for row in np.frombuffer(files[file], np.uint8).reshape(-1, form.record):
            planes = row[form.labels :].reshape(3, 32, 32)
            found[names[row[form.labels - 1]]].append(planes.transpose(1, 2, 0))
    return found


def pixels_of(split: ImageSplit, decoder: str) -> torch.Tensor:
    """The images as a validation sees them before they are normalised, (N, 3, 32, 32)."""
    loader = validation_loader(split, ValTransform(32, 1.0), 64, Reading(decoder=decoder), Ranks())
    return torch.cat([batch.images for batch in loader.loader])


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("decoder", ["pil", "simplejpeg"])
def test_the_pixels_are_those_of_the_files(tmp_path: Path, name: str, decoder: str) -> None:
    write_archive(tmp_path / "data", name)
    splits = open_data(name, evaluate=False)
    assert splits.train is not None
    for split, key in ((splits.train, "train"), (splits.val, "val")):
        expected = images_of(name, key)
        assert split.classes == tuple(sorted(expected))
        shown = [split.classes[label] for _, label in split.samples]
        assert shown == [label for label in split.classes for _ in expected[label]]
        pixels = np.stack([image for label in split.classes for image in expected[label]])
        assert np.array_equal(pixels_of(split, decoder).permute(0, 2, 3, 1).numpy(), pixels)
    path = splits.val.samples[0][0]
    assert path.startswith(f"data/{SMALL[name].folder}/{SMALL[name].files['val'][0]}:")


def test_classes_go_by_name(tmp_path: Path) -> None:
    """Not by the order in the file of names, which is sorted in the official one."""
    files = files_of("cifar10")
    backwards = files | {"batches.meta.txt": "\n".join(NAMES_10[::-1]).encode()}
    pixels = []
    for place, content in (("a", files), ("b", backwards)):
        folder = write_folder(tmp_path / place, "cifar10", content)
        split = open_data(str(folder), evaluate=True).val
        assert split.classes == tuple(NAMES_10)
        pixels.append([pixels_of(ImageSplit([one], split.classes), "pil") for one in split.samples])
    assert all(map(torch.equal, pixels[0], pixels[1][::-1]))  # one test image of each class


@pytest.mark.parametrize("where", FORMS_OF_TEN)
def test_where_the_files_are_found(tmp_path: Path, where: str, capsys: Any) -> None:
    place = tmp_path / where.rpartition(" ")[2]
    write = write_folder if "folder" in where else write_archive
    given = write(place, "cifar10")
    for name in ("cifar10", str(given), str(given.with_name("cifar-10-batches-bin"))):
        splits = open_data(name, evaluate=False)
        assert splits.train is not None
        assert (len(splits.train.samples), len(splits.val.samples)) == (5 * TRAINING, TESTS)
        assert cifar.usual(name)["img_size"] == 32
    assert capsys.readouterr().out.count("unpacking ") == (write is write_archive)
    kept = {"cifar-10-batches-bin"} | ({"cifar-10-binary.tar.gz"} if write is write_archive else set())
    assert {path.name for path in place.iterdir()} - {"data"} == kept
    assert cifar.usual(str(tmp_path)) == {}
    assert cifar.usual("digits") == {}


def test_what_a_run_takes_and_its_checkpoint_says(call: Run, tmp_path: Path) -> None:
    """Side, crop, mean and deviation of CIFAR; they go with the checkpoint, whatever the evaluation names."""
    folder = write_folder(tmp_path / "data", "cifar10")
    documented = ("-a", "narrow", "--data", "cifar10", "--stem", "small", "--lr", 0.2, "--wd", 5e-4, "--cos")
    result = call(*documented, "--train-batch", 20, "--epochs", 1, "-c", "out", script=FAST)
    assert result.returncode == 0, result.stderr
    ours = "at 32 px (crop 1, mean 0.491 0.482 0.447, std 0.247 0.243 0.262), 10 classes (airplane to truck)"
    assert ours in result.stdout.splitlines()[0]
    saved = checkpoint.load("out/checkpoint.pth.tar")
    form, arguments = SMALL["cifar10"], saved["arguments"]
    assert (arguments["img_size"], arguments["crop_pct"], arguments["pad"]) == (32, 1, 4)
    assert (arguments["mean"], arguments["std"]) == (list(form.mean), list(form.std))
    assert saved["classes"] == NAMES_10

    net = put_small_stem(Narrow(num_classes=10)).eval()
    net.load_state_dict(saved["state_dict"])
    expected = images_of("cifar10", "val")
    images = torch.tensor(np.stack([image for label in NAMES_10 for image in expected[label]]))
    scaled = (images / 255 - torch.tensor(form.mean)) / torch.tensor(form.std)
    logits = net(scaled.permute(0, 3, 1, 2))
    loss = functional.cross_entropy(logits, torch.arange(10).repeat_interleave(TESTS // 10)).item()
    for data, script in (("cifar10", FAST), (folder, PLAIN)):
        evaluated = call("-e", "--resume", "out/checkpoint.pth.tar", "--data", data, script=script)
        assert evaluated.stdout.startswith("as in out/checkpoint.pth.tar: --arch narrow --img-size 32 ")
        said = evaluated.stdout.splitlines()[-1]
        assert float(said.split()[2].rstrip(",")) == pytest.approx(loss, rel=1e-4)

    notes = export.notes_of(restore("out/checkpoint.pth.tar", {}), [])
    assert (notes["arch"], notes["img_size"], notes["crop_pct"]) == ("narrow --stem small", "32", "1.0")
    assert (json.loads(notes["mean"]), json.loads(notes["std"])) == (list(form.mean), list(form.std))
    probabilities = predicted(call, images[0])
    assert probabilities == pytest.approx(logits[0].softmax(0).tolist(), abs=2e-6)


def predicted(call: Run, image: torch.Tensor) -> list[float]:
    """What predict.py says of an image (32, 32, 3), in the order of the outputs."""
    from PIL import Image

    Image.fromarray(image.numpy()).save("one.png")
    flags = ("-k", 10, "--json", "one.json", "--resume", "out/checkpoint.pth.tar", "-j", 0)
    assert call("one.png", *flags, script="scripts/predict.py").returncode == 0
    (found,) = json.loads(Path("one.json").read_text())["images"]
    return [one["probability"] for one in sorted(found["classes"], key=lambda one: one["label"])]


def weights(folder: str) -> list[torch.Tensor]:
    return list(checkpoint.load(f"{folder}/checkpoint.pth.tar")["state_dict"].values())


def test_a_network_that_could_have_the_small_stem(call: Run, tmp_path: Path) -> None:
    """A note says what the stem leaves of the images, unless a flag says which stem is wanted."""
    write_folder(tmp_path / "data", "cifar10")
    for flags, told in (
        (
            ("-a", "narrow"),
            "note: of 32 px images, behind the published stem the last maps are 1x1, with --stem",
        ),
        (("-a", "narrow", "--stem", "published"), ""),
        (("-a", "tiny"), ""),
    ):
        result = call("--data", "cifar10", *RUN[2:], *flags, "--dry-run", "--device", "cpu")
        assert result.returncode == 0, result.stderr
        assert ("note: of" in result.stdout) is bool(told)
        assert told in result.stdout


def test_a_run_is_the_same_with_workers_and_goes_on(call: Run, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data", "cifar100")
    assert call("--data", "cifar100", *RUN, "-c", "whole", script=FAST).returncode == 0
    assert call("--data", folder, *RUN, "-c", "workers", "-j", 2, script=FAST).returncode == 0
    half = ("--epochs", 1, "-c", "half")
    assert call("--data", "cifar100", *RUN, *half, script=FAST).returncode == 0
    rest = ("--resume", "half/checkpoint.pth.tar")
    assert call("--data", "cifar100", *RUN[2:], *rest, script=FAST).returncode == 0
    for other in ("workers", "half"):
        assert all(map(torch.equal, weights("whole"), weights(other))), other

    content = (folder / "train.bin").read_bytes()
    os.utime(folder / "train.bin", (1, 1))  # the same content, as unpacked anew
    assert call("--data", folder, *RUN, "--resume", "auto", "-c", "half", "--epochs", 3).returncode == 0
    (folder / "train.bin").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    changed = call("--data", folder, *RUN, "--resume", "auto", "-c", "half", "--epochs", 4)
    assert_one_line_error(changed, "train is read from another archive than in that run", "or bytes of")


def test_a_checkpoint_of_this_code_that_says_nothing_is_of_imagenets_mean(call: Run, tmp_path: Path) -> None:
    """One that was trained on CIFAR in class folders; a file of weights alone takes what is usual."""
    write_folder(tmp_path / "data", "cifar10")
    state = TinyNet(num_classes=10).state_dict()
    torch.save({"state_dict": state, "arch": "tiny", "arguments": {"img_size": 32}}, "said.pth")
    torch.save(state, "bare.pth")
    classes = ("--class-list", "names.txt")
    Path("names.txt").write_text("\n".join(NAMES_10))
    flags = ("--data", "cifar10", "-a", "tiny", "-e", *classes, "--resume")
    said, bare = (call(*flags, file).stdout for file in ("said.pth", "bare.pth"))
    assert " at 32 px, 10 classes" in said
    assert " at 32 px (crop 1, mean 0.491 0.482 0.447, std" in bare


def test_the_tools_read_it(call: Run, tmp_path: Path) -> None:
    write_archive(tmp_path / "data", "cifar10")
    result = call("cifar10", "-j", 0, script="scripts/check_data.py")
    assert (result.returncode, result.stderr) == (0, "")
    assert "sound: 110 images in 10 classes" in result.stdout
    flags = ("--train-batch", 8, "--manualSeed", 1, "-o", "batch.png")
    result = call("-d", "cifar10", *flags, script="scripts/show_batch.py")
    assert result.returncode == 0, result.stderr
    result = call("cifar10", "copy", "--side", 64, "-j", 0, script="scripts/resize_images.py")
    assert "110 images: 0 resized, 110 copied" in result.stdout
    for split in ("train", "val"):
        expected = images_of("cifar10", split)
        for label, images in expected.items():
            copies = sorted((tmp_path / "copy" / split / label).iterdir())
            headless = [path.read_bytes()[-3072:] for path in copies]
            assert headless == [image.tobytes() for image in images]


def wrong(file: str, change: Callable[[bytes], bytes | None]) -> dict[str, bytes]:
    """The files of CIFAR-10, one of them changed or removed."""
    files = files_of("cifar10")
    changed = change(files.pop(file))
    return files if changed is None else files | {file: changed}


BATCH, META = "data_batch_2.bin", "batches.meta.txt"
DAMAGED: list[tuple[str, Callable[[bytes], bytes | None], str]] = [
    (BATCH, lambda data: data[:-1], "data_batch_2.bin has 61,459 bytes, not 61,460: "),
    (BATCH, lambda data: data[: -cifar.PIXELS - 1], "data_batch_2.bin has 58,387 bytes, not 61,460: "),
    (BATCH, lambda data: data + data, "data_batch_2.bin has 122,920 bytes, not 61,460: "),
    (BATCH, lambda _: None, "data_batch_2.bin"),
    (BATCH, lambda data: b"\x0a" + data[1:], "data_batch_2.bin: image 1 has the label 10, the last is 9: "),
    (META, lambda _: None, "batches.meta.txt"),
    (META, lambda data: data + b"a whale\n", "must name 10 classes, a line each, and does not: "),
    (META, lambda data: data.replace(b"cat", b"dog"), "must name 10 classes, a line each, and does not: "),
    (META, lambda data: data.replace(b"cat", b"../cat"), "must name 10 classes, a line each, and does not: "),
]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("file", "change", "fragment"), DAMAGED)
def test_damaged_files(
    call: Run, tmp_path: Path, packed: bool, file: str, change: Callable[[bytes], bytes | None], fragment: str
) -> None:
    """A message names the remedy; an archive of wrong files is not unpacked."""
    write = write_archive if packed else write_folder
    write(tmp_path / "data", "cifar10", wrong(file, change))
    result = call("--data", "cifar10", *RUN, "-c", "out")
    assert_one_line_error(result, fragment, ": ")
    assert not (tmp_path / "out").exists()
    there = {path.name for path in (tmp_path / "data").iterdir()}
    assert not any(name.startswith(".") for name in there)
    if "bytes" in fragment or change(b"x") is None:
        remedy = "download it again from www.cs.toronto.edu" if packed else "remove the folder and unpack"
        assert remedy in result.stderr
        assert ("cifar-10-batches-bin" in there) is not packed


@pytest.mark.parametrize("damage", ["cut", "flipped", "no archive", "empty", "checksum"])
def test_damaged_archives(call: Run, tmp_path: Path, damage: str) -> None:
    path = write_archive(tmp_path / "data", "cifar10")
    data = path.read_bytes()
    half = len(data) // 2
    path.write_bytes(
        {
            "cut": data[:half],
            "flipped": data[:half]
            + bytes(value ^ 0xFF for value in data[half : half + 99])
            + data[half + 99 :],
            "no archive": b"<html>404",
            "empty": b"",
            "checksum": data[:-8] + b"\0" * 8,
        }[damage]
    )
    for name in ("cifar10", path):
        refused = call("--data", name, *RUN, "-c", "out")
        assert_one_line_error(refused, f"{path.name}: damaged or cut off (", "again from www.cs.toronto.edu")
    assert [one.name for one in (tmp_path / "data").iterdir()] == [path.name]


def test_missing_files(call: Run, tmp_path: Path) -> None:
    refused = call("--data", "cifar100", *RUN)
    assert_one_line_error(
        refused,
        "--data cifar100: neither cifar-100-binary.tar.gz nor cifar-100-binary/ is in data/ or in this fold",
        "get the binary version of CIFAR-100 from www.cs.toronto.edu/~kriz/cifar.html and put the archive in",
    )
    (tmp_path / "cifar-100-python.tar.gz").touch()
    assert_one_line_error(call("--data", "cifar100", *RUN), "; the pickled form is not read: get")
    (tmp_path / "cifar100").mkdir()
    assert_one_line_error(
        call("--data", "cifar100", *RUN), "(the folder cifar100/ is given as ./cifar100): get"
    )
    named = call("--data", "elsewhere/cifar-10-binary.tar.gz", *RUN)
    assert_one_line_error(named, "--data elsewhere/cifar-10-binary.tar.gz: no such file")
    assert_one_line_error(call("cifar10", script="scripts/check_data.py"), "cifar10: neither cifar-10-binary")


def test_a_folder_that_cannot_be_written(call: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_archive(tmp_path / "there", "cifar10")

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    refused = call("--data", path, *RUN)
    assert_one_line_error(refused, "cannot be unpacked beside itself: Read-only file system; unpack it else")


def test_another_process_that_unpacks_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_archive(tmp_path / "data", "cifar10")
    rename = Path.rename

    def late(path: Path, target: Path) -> Path:
        shutil.copytree(path, target)
        return rename(path, target)

    monkeypatch.setattr("pathlib.Path.rename", late)
    assert len(open_data("cifar10", evaluate=True).val.samples) == TESTS
    there = {path.name for path in (tmp_path / "data").iterdir()}
    assert there == {"cifar-10-batches-bin", "cifar-10-binary.tar.gz"}


def test_the_padded_crop() -> None:
    """A shift of the image by up to the border, in every direction alike; what comes in is black."""
    image = torch.randint(1, 256, (3, 32, 32), dtype=torch.uint8)
    transform = TrainTransform(32, hflip=0, pad=4)
    assert transform.box(32, 32) == Box(0, 0, 32, 32)
    bordered = functional.pad(image, [4] * 4)
    windows = bordered.unfold(1, 32, 1).unfold(2, 32, 1).permute(1, 2, 0, 3, 4)  # (9, 9, 3, 32, 32)
    torch.manual_seed(0)
    seen = torch.zeros(9, 9)
    for _ in range(300):
        crop = transform(image, transform.box(32, 32))
        match = (windows == crop).flatten(2).all(2)
        assert match.sum() == 1
        seen += match
    for places in (seen.sum(0), seen.sum(1)):
        assert 15 < places.min() < 300 / 9 < places.max() < 55
    assert torch.equal(TrainTransform(32, hflip=1, pad=0)(image, Box(0, 0, 32, 32)), image.flip(2))


def test_the_padded_crop_of_other_sizes() -> None:
    """The shorter side is resized, by both decoders within one level."""
    from PIL import Image

    smooth = np.linspace(0, 255, 40 * 60 * 3).reshape(40, 60, 3).astype(np.uint8)
    crops = []
    for image in (Image.fromarray(smooth), torch.tensor(smooth).permute(2, 0, 1)):
        torch.manual_seed(1)
        crops.append(TrainTransform(20, pad=2)(image, Box(0, 0, 40, 60)).int())
    assert crops[0].shape == (3, 20, 20)
    assert (crops[0] - crops[1]).abs().max() <= 1


def test_flags_that_contradict_each_other(call: Run, tmp_path: Path) -> None:
    write_folder(tmp_path / "data", "cifar10")
    flags = ("--data", "cifar10", *RUN)
    crop = "and --pad are two ways to crop: give one of them"
    assert_one_line_error(call(*flags, "--pad", 2, "--scale", 0.5, 1), f"--scale {crop}")
    assert_one_line_error(call(*flags, "--pad", 2, "--modelsize", "small"), f"--modelsize {crop}")
    assert_one_line_error(call(*flags, "--mean", 0.5, 0.5, 0.5), "--mean and --std go together")
    assert_one_line_error(
        call(*flags, "--std", 0, 0.5, 0.5), "--std: must be a number from 0.001 to 1, not '0'"
    )
    assert_one_line_error(
        call(*flags, "--pad", 33, script=FAST), "--pad 33 is more than the 32 px of an image"
    )
    assert_one_line_error(call("--data", "x" * 5000, *RUN), "File name too long")
    scaled = call(*flags, "--scale", 0.5, 1, "--epochs", 1, "-c", "out", script=FAST)
    assert scaled.returncode == 0, scaled.stderr
    assert checkpoint.load("out/checkpoint.pth.tar")["arguments"]["pad"] is None
