"""What ``-e`` counts, and how validation images are made: other test sets, ReaL labels, files per class."""

import csv
import json
import re
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, Run, assert_one_line_error
from PIL import Image
from tiny_net import TinyNet
from torch import Tensor, nn

from utils.data.decoding import Box, choose_decoder, read_image
from utils.data.labels import imagenet_classes
from utils.data.real_labels import _number
from utils.data.transforms import MEAN, STD, ValTransform
from utils.training.confusion_picture import draw, largest
from utils.training.per_class import Confusion

FAST = "imagenet_fast.py"
TRAIN = ("-a", "tiny", "--img-size", 32, "--data", "images", "--train-batch", 8, "--manualSeed", 7)
EVALUATE = ("-a", "tiny", "--img-size", 32, "--test-batch", 5, "--data", "data", "-e", "--resume", "bare.pth")
IDS = {"n01443537": 1, "n02129165": 291, "n15075141": 999}  # labels of folders


def photograph(height: int, width: int) -> Image.Image:
    """Smooth colours with some noise."""
    generator = np.random.default_rng(0)
    small = Image.fromarray(generator.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    smooth = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    noisy = smooth + generator.integers(-20, 21, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("crop_pct", [0.875, 0.95, 1.0])
def test_validation_images_are_what_pil_makes(tmp_path: Path, interpolation: str, crop_pct: float) -> None:
    """Bit for bit with PIL's decoder; by the others within one level."""
    photograph(300, 400).save(tmp_path / "x.JPEG", quality=95)
    transform = ValTransform(96, crop_pct, interpolation)
    image = Image.open(tmp_path / "x.JPEG")
    short = round(96 / crop_pct)
    resized = image.resize((int(short * 400 / 300), short), Image.Resampling[interpolation.upper()])
    left, top = round((resized.width - 96) / 2), round((short - 96) / 2)
    expected = torch.from_numpy(np.array(resized.crop((left, top, left + 96, top + 96)))).permute(2, 0, 1)
    for decoder in ("pil", choose_decoder("auto")):
        found = transform(*read_image(str(tmp_path / "x.JPEG"), decoder, transform.box))
        assert (found.int() - expected.int()).abs().max() <= int(decoder != "pil")


def test_the_published_crop_is_as_before(tmp_path: Path) -> None:
    """Its resized side is 256/224 of the crop, to the pixel; and it is what is taken if nothing is said."""
    for size in range(1, 1025):
        assert round(size / 0.875) == round(size * 256 / 224)
    pixels = torch.from_numpy(np.array(photograph(90, 120))).permute(2, 0, 1)

    def made(*arguments: float | str) -> Tensor:
        return ValTransform(64, *arguments)(pixels, Box(0, 0, 90, 120))  # type: ignore[arg-type]

    assert torch.equal(made(), made(0.875, "bilinear"))
    assert not torch.equal(made(), made(0.9))
    assert not torch.equal(made(), made(0.875, "bicubic"))


def test_a_checkpoint_keeps_its_crop(call: Run, images: Path, tmp_path: Path) -> None:
    """-e takes it, says so in its line, and finds what training found; what is given goes before it."""
    other = ("--crop-pct", 0.6, "--interpolation", "bicubic")
    trained = call(*TRAIN, *other, "--epochs", 1, "-c", "out", script=FAST)
    assert trained.returncode == 0, trained.stderr
    assert " at 32 px (crop 0.6, bicubic), 3 classes" in trained.stdout
    logged = float((tmp_path / "out" / "log.txt").read_text().splitlines()[-1].split("\t")[2])
    evaluate = (*TRAIN[4:6], "-e", "--resume", "out/checkpoint.pth.tar")
    for script in (FAST, "imagenet.py"):
        taken = call(*evaluate, script=script)
        assert "as in out/checkpoint.pth.tar:" in taken.stdout
        assert "--crop-pct 0.6 --interpolation bicubic" in taken.stdout
        assert " at 32 px (crop 0.6, bicubic), 3 classes" in taken.stdout
        assert loss_in(taken.stdout) == pytest.approx(logged, abs=1e-4)
    published = call(*evaluate, "--crop-pct", 0.875, "--interpolation", "bilinear")
    assert " at 32 px, 3 classes" in published.stdout
    assert loss_in(published.stdout) != pytest.approx(logged, abs=1e-4)
    assert call(*TRAIN, "--epochs", 2, "-c", "out", "--resume", "auto").returncode == 0
    saved = torch.load(tmp_path / "out" / "checkpoint.pth.tar", weights_only=True)["arguments"]
    assert (saved["crop_pct"], saved["interpolation"]) == (0.6, "bicubic")


def test_predict_takes_the_crop_of_a_checkpoint(call: Run, images: Path, tmp_path: Path) -> None:
    other = ("--crop-pct", 0.4, "--interpolation", "bicubic")
    for name, flags in (("other", other), ("published", ())):
        assert call(*TRAIN, *flags, "--epochs", 1, "-c", name).returncode == 0
    asked = ("images/valf/cat/0.JPEG", "-j", 0, "--resume")
    found = [
        call(*asked, f"{name}/checkpoint.pth.tar", script="scripts/predict.py").stdout
        for name in ("other", "published")
    ]
    assert found[0] != found[1]
    assert found[0].count("\n") == found[1].count("\n") == 4


@pytest.mark.parametrize(
    ("flags", "fragments"),
    [
        (("--crop-pct", 0), ("--crop-pct", "from 0.1 to 1")),
        (("--crop-pct", 1.1), ("--crop-pct", "from 0.1 to 1")),
        (("--crop-pct", "nan"), ("--crop-pct", "from 0.1 to 1")),
        (("--interpolation", "lanczos"), ("--interpolation", "'bilinear', 'bicubic'")),
    ],
)
def test_unusable_crops(call: Run, images: Path, flags: tuple[object, ...], fragments: tuple[str]) -> None:
    assert_one_line_error(call(*TRAIN, *flags), *fragments)


@pytest.mark.parametrize("wrong", [{"crop_pct": 7}, {"crop_pct": "x"}, {"interpolation": "x"}])
def test_a_checkpoint_with_an_unusable_crop(
    call: Run, images: Path, tmp_path: Path, wrong: dict[str, object]
) -> None:
    state = {"x": torch.zeros(1)}
    torch.save({"state_dict": state, "arguments": wrong}, tmp_path / "x.pth")
    assert_one_line_error(call(*TRAIN, "-e", "--resume", "x.pth"), "x.pth: damaged (arguments")


def loss_in(text: str) -> float:
    return float(text.split("Test Loss:")[1].split(",")[0])


# From here on: what -e counts. The network knows its images' size, so that its answers differ.


def network(outputs: int = 1000) -> nn.Module:
    torch.manual_seed(0)
    net = TinyNet(num_classes=outputs)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        net.train()(torch.randn(8, 3, 32, 32))
        net.fc.weight *= 20
    return net.eval()


def write_named(root: Path, names: Sequence[str], each: int = 4) -> list[Path]:
    """Images in folders of these names, which are called as ImageNet's validation images are."""
    files: list[Path] = []
    for place, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for i in range(each):
            generator = np.random.default_rng(len(files))
            pixels = generator.integers(0, 90, (36, 36, 3)) + generator.integers(0, 166, 3)
            files.append(root / name / f"ILSVRC2012_val_{10 * i + place + 1:08d}.JPEG")
            Image.fromarray(pixels.astype(np.uint8)).save(files[-1])
    return files


@pytest.fixture
def part(tmp_path: Path) -> Path:
    """Four images of each of three of ImageNet's classes, and bare weights of 1,000 outputs."""
    write_named(tmp_path / "data" / "val", list(IDS))
    torch.save(network().state_dict(), tmp_path / "bare.pth")
    return tmp_path


@torch.no_grad()
def logits_of(net: nn.Module, files: Sequence[Path]) -> Tensor:
    transform = ValTransform(32)
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    pixels = [transform(*read_image(str(path), choose_decoder("auto"), transform.box)) for path in files]
    return net((torch.stack(pixels).float() / 255 - mean) / std)


def line(result: subprocess.CompletedProcess[str]) -> str:
    """The line of the result."""
    assert result.returncode == 0, result.stderr
    return next(one for one in result.stdout.splitlines() if "Test Acc" in one)


def files_and_labels(part: Path) -> tuple[list[Path], Tensor]:
    files, ids = sorted((part / "data" / "val").glob("*/*")), list(imagenet_classes())
    return files, torch.tensor([ids.index(path.parent.name) for path in files])


@pytest.fixture
def partly_right(part: Path) -> Path:
    """The same, and every third image is in the folder of the class that the network takes it for."""
    files, _ = files_and_labels(part)
    ids = list(imagenet_classes())
    for path, label in list(zip(files, logits_of(network(), files).argmax(1).tolist(), strict=True))[::3]:
        folder = part / "data" / "val" / ids[label]
        folder.mkdir(exist_ok=True)
        path.rename(folder / path.name)
    return part


@pytest.mark.parametrize("script", [FAST, "imagenet.py"])
def test_a_part_of_the_outputs(call: Run, part: Path, script: str) -> None:
    """Loss, top-1 and top-5 are over the outputs of the data's classes; by default over all."""
    files, labels = files_and_labels(part)
    logits = logits_of(network(), files)
    kept = sorted(IDS.values())
    expected = nn.functional.cross_entropy(logits[:, kept], torch.tensor([kept.index(i) for i in labels]))
    right = (logits[:, kept].argmax(1) == torch.tensor([kept.index(i) for i in labels])).float().mean()
    found = call(*EVALUATE, "--outputs", "of-data", script=script)
    assert "3 of 1,000 outputs are compared, those of the data's classes\n" in found.stdout
    assert f"Test Acc:  {100 * right:.2f}, Top-5 Acc:  100.00, over 3 of 1,000 outputs" in line(found)
    assert loss_in(found.stdout) == pytest.approx(expected.item(), rel=1e-3)
    whole, said = call(*EVALUATE, script=script), call(*EVALUATE, "--outputs", "all", script=script)
    assert line(whole) == line(said) != line(found)
    expected = nn.functional.cross_entropy(logits, labels)
    assert loss_in(whole.stdout) == pytest.approx(expected.item(), rel=1e-3)
    told = "note: all 1,000 outputs are compared, the data has 3 classes; the papers of ImageNet-A and -R "
    assert told + "compare theirs only: --outputs of-data" in whole.stdout
    assert "are compared" not in said.stdout


def test_a_test_set_as_it_comes(call: Run, part: Path) -> None:
    """ImageNet-A, -R and -Sketch are class folders, not in a folder val/; a folder of other things is not."""
    expected = line(call(*EVALUATE))
    (part / "data" / "val").rename(part / "imagenet-a")
    (part / "imagenet-a" / "README.txt").write_text("x")
    found = call(*EVALUATE, "--data", "imagenet-a")
    assert line(found) == expected
    assert "note: imagenet-a has no val/; the class folders in it are evaluated" in found.stdout
    refused = "--data imagenet-a: looked for val/ or valf/"
    assert_one_line_error(call("-a", "tiny", "--data", "imagenet-a"), refused)
    (part / "imagenet-a" / "others").mkdir()
    assert_one_line_error(call(*EVALUATE, "--data", "imagenet-a"), refused)
    (part / "empty").mkdir()
    assert_one_line_error(call(*EVALUATE, "--data", "empty"), "--data empty: looked for", "found no folders")


def test_imagenetv2(call: Run, tmp_path: Path) -> None:
    """Folders 0 to 999 are the outputs, also of a checkpoint that names them by WordNet ids."""
    ids = list(imagenet_classes())
    write_named(tmp_path / "ids", ids, each=1)
    (tmp_path / "numbers").mkdir()
    for number, name in enumerate(ids):
        (tmp_path / "numbers" / str(number)).symlink_to(tmp_path / "ids" / name)
    state = network().state_dict()
    torch.save(state, tmp_path / "bare.pth")
    torch.save({"state_dict": state, "classes": ids}, tmp_path / "named.pth")
    flags = (*EVALUATE[:4], "--test-batch", 500, "-e", "--data")
    expected = call(*flags, "ids", "--resume", "named.pth")
    named = call(*flags, "numbers", "--resume", "named.pth")
    assert line(expected) == line(named) == line(call(*flags, "numbers", "--resume", "bare.pth"))
    assert "are ImageNet's classes by number, as in ImageNetV2" in named.stdout
    assert "1000 classes (0 to 999)" in named.stdout
    assert line(call(*flags, "ids", "--resume", "named.pth", "--outputs", "of-data")) == line(expected)
    (tmp_path / "numbers" / "7").unlink()
    refused = call(*flags, "numbers", "--resume", "named.pth")
    assert_one_line_error(refused, "--data numbers: looked for val/")
    (tmp_path / "numbers" / "7").symlink_to(tmp_path / "ids" / ids[7])
    torch.save({"state_dict": state, "classes": ids[::-1]}, tmp_path / "other.pth")
    refused = call(*flags, "numbers", "--resume", "other.pth")
    assert_one_line_error(refused, "other classes than the checkpoint")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("flags", [(), ("--outputs", "of-data")])
def test_the_accuracy_of_each_class(call: Run, partly_right: Path, flags: tuple[str, ...]) -> None:
    """Its sums are those of all images; a class without images has a line too."""
    found = call(*EVALUATE, *flags, "--per-class", "out.csv")
    table = rows(partly_right / "out.csv")
    files, labels = files_and_labels(partly_right)
    assert len(set(labels.tolist())) > 4
    logits = logits_of(network(), files)
    classes = list(imagenet_classes())
    if flags:
        kept = sorted(set(labels.tolist()))
        classes = [classes[label] for label in kept]
        logits, labels = logits[:, kept], torch.tensor([kept.index(label) for label in labels.tolist()])
    predicted = logits.argmax(1)
    assert [row["class"] for row in table] == classes
    for label, row in enumerate(table):
        own = predicted[labels == label]
        assert int(row["images"]) == len(own)
        wrong = Counter(own[own != label].tolist())
        assert int(row["confused"]) == max(wrong.values(), default=0)
        assert wrong[classes.index(row["most_confused_with"])] if wrong else not row["most_confused_with"]
        if len(own):
            assert float(row["top-1"]) == pytest.approx(100 * (own == label).float().mean().item(), abs=1e-3)
        else:
            assert row["top-1"] == row["top-5"] == ""
    seen = [row for row in table if row["images"] != "0"]
    for name, words in (("top-1", "Test Acc:  "), ("top-5", "Top-5 Acc:  ")):
        mean = sum(int(row["images"]) * float(row[name]) for row in seen) / len(files)
        assert f"{words}{mean:.2f}" in line(found)
    assert "Test Acc:  0.00" not in line(found) != line(call(*EVALUATE, *flags, "--img-size", 40))
    assert line(found) == line(call(*EVALUATE, *flags))
    assert "--per-class: written to out.csv" in found.stdout


@pytest.mark.parametrize("processes", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_any_number_of_processes_writes_the_same(
    call: Run, launch: Run, partly_right: Path, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """imagenet.py, and imagenet_fast.py in several processes, of which one has an empty batch."""
    files_and_labels(partly_right)[0][-1].unlink()
    flags = (*EVALUATE, "-j", 0, "--per-class")
    expected = line(call(*flags, "one.csv")).split(", ", 1)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    for rank in range(processes):  # each process in a folder of its own
        (partly_right / str(rank)).mkdir()
        for name in ("data", "bare.pth"):
            (partly_right / str(rank) / name).symlink_to(partly_right / name)
    script = partly_right / "own_folder.py"
    script.write_text(
        "import os, imagenet_fast\n"
        "from utils.command_line import cli\n"
        "os.chdir(os.environ['RANK'])\n"
        "cli.run(imagenet_fast.main)\n"
    )
    found = launch(script, *flags, "out.csv", "--test-batch", 3, processes=processes)
    assert line(found).split(", ", 1)[1] == expected[1]  # the loss is a sum in another order
    assert found.stdout.count("written to") == 1
    (written,) = partly_right.glob("*/*.csv")
    assert written == partly_right / "0" / "out.csv"
    assert written.read_bytes() == (partly_right / "one.csv").read_bytes()


def test_a_picture_of_what_is_confused(run: Run, part: Path) -> None:
    result = run(*EVALUATE, "-j", 0, "--outputs", "of-data", "--confusion", "out.png")
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("--confusion: written to out.png\n")
    with Image.open(part / "out.png") as image:
        assert image.format == "PNG"
        assert len(image.convert("RGB").getcolors(2**24)) > 100


def test_the_picture_holds_every_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names where there is room; else at least a pixel for each; the largest confusions below."""
    counts = np.zeros((1000, 1000), np.int64)
    counts[0, :3], counts[999, 998] = (5, 2, 4), 7
    ids = list(imagenet_classes())
    many = Confusion(ids, counts, np.zeros(1000, np.int64))
    assert largest(many) == [
        "Largest confusions:",
        "toilet tissue taken for ear: 7 of 7 (100.0 %)",
        "tench taken for great white shark: 4 of 11 (36.4 %)",
        "tench taken for goldfish: 2 of 11 (18.2 %)",
    ]
    figure = draw(many, "many")
    figure.draw_without_rendering()
    axes = figure.subfigs[0].axes[0]
    assert min(axes.get_window_extent().width, axes.get_window_extent().height) >= 1000
    shares = axes.images[0].get_array()
    assert shares[0, :3].tolist() == pytest.approx([5 / 11, 2 / 11, 4 / 11])
    assert shares.mask[1].all()
    few = draw(Confusion(["a$b$", "\udcff", "c"], counts[:3, :3], counts[:3, 0]), "few")
    assert [text.get_text() for text in few.subfigs[0].axes[0].get_xticklabels()] == ["a$b$", "\\udcff", "c"]
    few.draw_without_rendering()
    assert largest(Confusion(["a"], np.ones((1, 1), np.int64), np.ones(1, np.int64))) == [
        "No image is taken for another class."
    ]


def test_files_are_not_overwritten(call: Run, part: Path) -> None:
    """And nothing is evaluated before that is known."""
    for flag, name in (("--per-class", "out.csv"), ("--confusion", "out.png")):
        (part / name).write_text("kept")
        for script in (FAST, "imagenet.py"):
            refused = call(*EVALUATE, flag, name, script=script)
            assert_one_line_error(refused, f"{flag} {name} is there already", "--overwrite")
            assert "Test Acc" not in refused.stdout
        assert (part / name).read_text() == "kept"
    assert call(*EVALUATE, "--per-class", "out.csv", "--overwrite").returncode == 0
    assert (part / "out.csv").read_text().startswith("class,images,top-1,top-5,most_confused_with,confused\n")


@pytest.mark.parametrize(
    ("flags", "fragment"),
    [
        (("--per-class", "out.txt"), "must end in .csv, not 'out.txt'"),
        (("--confusion", "out.svg"), "must end in .png, not 'out.svg'"),
        (("--per-class", ""), "is empty"),
        (("--per-class", "none/out.csv"), "no folder none"),
        (("--outputs", "some"), "--outputs"),
        (("--real", "none.json"), "--real none.json: No such file"),
        (("--real", "x.json", "--per-class", "out.csv"), "--per-class counts by class folder"),
        (("--real", "x.json", "--confusion", "out.png"), "--confusion counts by class folder"),
        (("--real", "x.json", "--outputs", "of-data"), "--outputs counts by class folder"),
    ],
)
def test_unusable_flags(call: Run, part: Path, flags: tuple[str, ...], fragment: str) -> None:
    assert_one_line_error(call(*EVALUATE, *flags), fragment)
    if "counts by" not in fragment and "must" not in fragment and flags[1] not in ("", "some"):
        training = call("-a", "tiny", "--data", "data", *flags)
        assert_one_line_error(training, f"{flags[0]} goes with -e")


def test_too_many_classes_for_a_picture(call: Run, tmp_path: Path) -> None:
    write_named(tmp_path / "data" / "val", ["a", "b"], each=1)
    torch.save({"state_dict": network(1001).state_dict(), "classes": ["a", "b"]}, tmp_path / "bare.pth")
    refused = call(*EVALUATE, "--confusion", "out.png")
    assert_one_line_error(refused, "--confusion draws up to 1,000 classes, 1,001 outputs are compared")
    assert line(call(*EVALUATE, "--per-class", "out.csv"))
    assert rows(tmp_path / "out.csv")[1000]["class"] == "output 1000"


def write_real(part: Path, of_number: Mapping[int, Sequence[int]]) -> None:
    """ReaL labels of the images of these numbers, from 1."""
    (part / "real.json").write_text(json.dumps([of_number.get(number, []) for number in range(1, 50_001)]))


def numbers(files: Sequence[Path]) -> list[int]:
    return [int(path.stem[-8:]) for path in files]


@pytest.mark.parametrize("script", [FAST, "imagenet.py"])
def test_real_labels(call: Run, part: Path, script: str) -> None:
    """Any label is a hit, images without any are left out; the ordinary line stays as it is."""
    files, _ = files_and_labels(part)
    predicted = logits_of(network(), files).argmax(1).tolist()
    real = {number: [5, 6, predicted[i]] for i, number in enumerate(numbers(files))}
    for i, number in enumerate(numbers(files)):
        real[number] = [[], [(predicted[i] + 1) % 1000], real[number]][i % 3]
    write_real(part, real)
    found = call(*EVALUATE, "--real", "real.json", script=script)
    assert line(found) == line(call(*EVALUATE, script=script))
    assert found.stdout.endswith(" ReaL Acc:  50.00, over 8 images; 4 without ReaL labels are left out\n")


def test_real_labels_of_one_label_are_the_ordinary_ones(call: Run, launch: Run, partly_right: Path) -> None:
    """In any number of processes."""
    files, labels = files_and_labels(partly_right)
    labelled = zip(numbers(files), labels.tolist(), strict=True)
    write_real(partly_right, {number: [label] for number, label in labelled})
    found = call(*EVALUATE, "--real", "real.json")
    accuracy = re.findall(r"Test Acc:  ([\d.]+)", found.stdout)[0]
    assert 0 < float(accuracy) < 100
    told = f" ReaL Acc:  {accuracy}, over 12 images; 0 without ReaL labels are left out\n"
    assert found.stdout.endswith(told)
    together = launch(FAST, *EVALUATE, "-j", 0, "--real", "real.json", "--test-batch", 2)
    assert together.stdout.endswith(told)


def test_no_image_has_real_labels(call: Run, part: Path) -> None:
    write_real(part, {})
    found = call(*EVALUATE, "--real", "real.json").stdout
    assert found.endswith(" ReaL Acc:  none, over 0 images; 12 without ReaL labels are left out\n")
    files, labels = files_and_labels(part)
    write_real(part, {numbers(files)[0]: labels[:1].tolist(), numbers(files)[1]: [0]})
    files[1].write_bytes(b"x")  # what cannot be decoded counts nowhere
    found = call(*EVALUATE, "--real", "real.json", "--max-bad", 0.5).stdout
    assert ", over 1 image; 10 without ReaL labels are left out\n" in found


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        ("[[1]]", "1 entries; give a list with a list of labels for each of 50,000 images"),
        ("{}", "no list; give"),
        ("[[1", "not JSON"),
        ("\u00e4", "not JSON"),
        ("[" * 100_000, "not JSON"),
        (json.dumps([[1]] * 49_999 + [[1000]]), "entry 50000 is [1000], no list of whole numbers from 0 to"),
        (json.dumps([[-1]] * 50_000), "entry 1 is [-1]"),
        (json.dumps([[True]] * 50_000), "entry 1 is [true]"),
        (json.dumps([[1.0]] * 50_000), "entry 1 is [1.0]"),
        (json.dumps([7] * 50_000), "entry 1 is 7"),
    ],
    ids=str.__len__,
)
def test_unusable_real_labels(call: Run, part: Path, content: str, fragment: str) -> None:
    (part / "real.json").write_text(content, encoding="latin-1")
    refused = call(*EVALUATE, "--real", "real.json")
    assert_one_line_error(refused, f"--real real.json: {fragment}")
    assert "Test Acc" not in refused.stdout


@pytest.mark.parametrize("name", ["0.JPEG", "ILSVRC2012_val_00050001.JPEG", "ILSVRC2012_val_00000000.JPEG"])
def test_images_that_are_not_imagenets(call: Run, part: Path, name: str) -> None:
    write_real(part, {})
    image = files_and_labels(part)[0][-1]
    image.rename(image.with_name(name))
    for script in (FAST, "imagenet.py"):
        refused = call(*EVALUATE, "--real", "real.json", script=script)
        assert_one_line_error(refused, f"/{name} is not named ILSVRC2012_val_0000NNNN")


def test_classes_that_are_not_imagenets(call: Run, tmp_path: Path) -> None:
    write_named(tmp_path / "data" / "val", ["a", "b"])
    write_real(tmp_path, {})
    torch.save({"state_dict": network(2).state_dict(), "classes": ["a", "b"]}, tmp_path / "bare.pth")
    assert_one_line_error(call(*EVALUATE, "--real", "real.json"), "ImageNet's 1,000 outputs in order")


@pytest.mark.parametrize(
    ("path", "number"),
    [
        ("val/n01440764/ILSVRC2012_val_00000007.JPEG", 7),
        ("val/n01440764/ILSVRC2012_val_00000007_n01440764.JPEG", 7),
        ("data/ILSVRC2012_img_val.tar:ILSVRC2012_val_00050000.JPEG", 50_000),
        ("val.tar:n01440764/ILSVRC2012_val_00000003.JPEG", 3),
    ],
)
def test_the_number_of_a_validation_image(path: str, number: int) -> None:
    """In a class folder, in a flat archive, in one with class folders."""
    assert _number(path) == number
