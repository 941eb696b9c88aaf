"""scripts/check_data.py: what it finds in an image folder, and that nothing it finds makes it stumble."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, Run, assert_one_line_error, write_images, write_no_files
from forks import Job
from PIL import Image

from utils.data.splits import VAL_NAMES, open_data

SCRIPT = "scripts/check_data.py"


@pytest.fixture
def check(call: Run, images: Path) -> Run:
    """The script within this process, on the folder ``images``."""
    return lambda *flags: call("images", "-j", 0, *flags, script=SCRIPT)


def troubles(result: subprocess.CompletedProcess[str]) -> list[str]:
    """The lines of trouble; the code and the last line must say the same."""
    lines = result.stdout.splitlines()
    found = [line.removeprefix("trouble: ") for line in lines if line.startswith("trouble: ")]
    assert result.returncode == bool(found)
    assert lines[-1].startswith(f"{len(found)} trouble" if found else "sound: ")
    assert result.stderr == ""
    return found


def test_a_sound_folder(check: Run, images: Path) -> None:
    write_images(images / "train" / "owl" / "nested", 1)
    (images / "train" / "owl" / "0.JPEG").rename(images / "train" / "owl" / "0.jPg")
    (images / "train" / "owl" / "note.txt").touch()
    (images / "train" / "list.csv").touch()
    assert check().stdout.splitlines() == [
        "              classes      images  smallest to largest class",
        "train/              3          25  cat (8) to owl (9)",
        "valf/               3          21  cat (7) to owl (7)",
        "note: 2 files without the suffix of an image: not read",
        "sound: 46 images in 3 classes",
    ]
    splits = open_data(str(images), evaluate=False)
    assert splits.train is not None
    assert len(splits.train.samples) == 25


def empty_class(images: Path) -> None:
    (images / "train" / "yak").mkdir()
    (images / "valf" / "yak").mkdir()
    (images / "valf" / "yak" / "readme.txt").touch()


def other_classes(images: Path) -> None:
    (images / "train" / "cat").rename(images / "train" / "lynx")
    for i in range(7):
        write_images(images / "valf" / f"z{i}", 1)


def loose_images(images: Path) -> None:
    for name in ("a.jpg", "b.png"):
        (images / "train" / name).touch()


def flat_validation(images: Path) -> None:
    """As ImageNet's archive unpacks."""
    shutil.rmtree(images / "valf")
    write_images(images / "valf", 6)


def dead_links(images: Path) -> None:
    (images / "train" / "cat" / "x.jpg").symlink_to("nowhere.jpg")
    (images / "train" / "emu").symlink_to("/nowhere/emu")


def circles(images: Path) -> None:
    (images / "train" / "cat" / "self").symlink_to("self")
    (images / "train" / "cat" / "up").symlink_to("..")
    (images / "train" / "cat" / "here").symlink_to(images / "train" / "cat")
    os.mkfifo(images / "train" / "cat" / "pipe.jpg")


def missing_validation(images: Path) -> None:
    (images / "valf").rename(images / "test")


def empty_training(images: Path) -> None:
    shutil.rmtree(images / "train")
    (images / "train").mkdir()


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (
            empty_class,
            [
                "train/ has 1 empty class folder (train/yak): add images or remove it",
                "valf/ has 1 empty class folder (valf/yak): add images or remove it",
            ],
        ),
        (
            other_classes,
            [
                "train/ has 8 missing classes (cat, z0, z1, z2, z3, ...): give both splits the same folders",
                "valf/ has 1 missing class (lynx): give both splits the same folders",
            ],
        ),
        (
            loose_images,
            ["train/ has 2 loose images (train/a.jpg, train/b.png): move each into the folder of its class"],
        ),
        (
            flat_validation,
            [
                "valf/ has 6 loose images (valf/0.JPEG, valf/1.JPEG, valf/2.JPEG, valf/3.JPEG, valf/4.JPEG, "
                "...): move each into the folder of its class"
            ],
        ),
        (
            dead_links,
            [
                "train/ has 2 dead links (train/cat/x.jpg, train/emu): "
                "let each lead to a file, or to a folder elsewhere, or remove it"
            ],
        ),
        (
            circles,
            [
                "train/ has 4 dead links (train/cat/here, train/cat/pipe.jpg, train/cat/self, train/cat/up): "
                "let each lead to a file, or to a folder elsewhere, or remove it"
            ],
        ),
        (
            missing_validation,
            [
                "images: looked for val/ or valf/ or valid/ or validation/ in it and found test/, train/: "
                "add a folder of that name, or val.tar"
            ],
        ),
        (
            empty_training,
            ["train/ has 1 empty split (train): put a folder with images into it for each class"],
        ),
    ],
)
def test_trouble(check: Run, images: Path, spoil: Callable[[Path], None], expected: list[str]) -> None:
    spoil(images)
    assert troubles(check("--quick")) == expected
    assert troubles(check()) == expected


@pytest.mark.parametrize("name", VAL_NAMES)
def test_names_of_the_validation_split(check: Run, images: Path, name: str) -> None:
    (images / "valf").rename(images / name)
    result = check("--quick")
    assert not troubles(result)
    assert f"\n{name}/ " in result.stdout
    assert result.stdout.splitlines()[-1] == "sound: 45 images in 3 classes, not decoded"


@pytest.mark.parametrize("mode", [0o000, 0o444, 0o300])
def test_folders_that_cannot_be_read(check: Run, images: Path, mode: int) -> None:
    folder = images / "train" / "cat"
    folder.chmod(mode)
    try:
        if os.access(folder, os.R_OK | os.X_OK):
            pytest.skip("this user may read anything")
        expected = ["train/ has 1 unreadable folder (train/cat): give yourself the permission, chmod u+rx"]
        assert troubles(check()) == expected
    finally:
        folder.chmod(0o755)


def test_links_that_lead_somewhere_are_followed(check: Run, images: Path, tmp_path: Path) -> None:
    (images / "train" / "cat").rename(tmp_path / "cat")
    (images / "train" / "cat").symlink_to(tmp_path / "cat")
    (images / "valf" / "cat" / "linked.jpg").symlink_to(tmp_path / "cat" / "0.JPEG")
    result = check()
    assert not troubles(result)
    assert "sound: 46 images" in result.stdout


def test_every_image_that_training_reads_is_sound(check: Run, images: Path) -> None:
    folder = images / "train" / "cat"
    Image.new("CMYK", (9, 9)).save(folder / "cmyk.jpg")
    Image.fromarray(np.zeros((5, 5), np.uint16)).save(folder / "sixteen.png")
    frames = [Image.new("RGB", (9, 9), (i, 0, 0)) for i in range(3)]
    frames[0].save(folder / "animated.webp", save_all=True, append_images=frames[1:])
    Image.new("P", (9, 9)).save(folder / "palette.png", transparency=bytes([0] * 256))  # PIL warns
    assert not troubles(check())


def test_files_that_cannot_be_decoded(
    check: Run, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = images / "train" / "cat"
    whole = (folder / "0.JPEG").read_bytes()
    (folder / "0.JPEG").write_bytes(whole[: len(whole) // 2])
    (folder / "1.JPEG").write_bytes(b"")
    (images / "valf" / "owl" / "0.JPEG").write_bytes(b"<html>404</html>")
    Image.new("1", (100, 100)).save(folder / "giga.png")
    Image.new("1", (90, 70)).save(folder / "half_giga.png")  # PIL warns, and reads it
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4900)
    write_no_files(images / "valf" / "owl")
    result = check("--list", "broken.txt")
    links = "valf/ has 2 dead links (valf/owl/endless.JPEG, valf/owl/pipe.JPEG)"
    remedy = "let each lead to a file, or to a folder elsewhere, or remove it"
    assert troubles(result) == [f"{links}: {remedy}", "5 files cannot be decoded: replace or remove them"]
    head, *files = result.stdout.splitlines()[4:-1]
    assert head.startswith("trouble: 5 files")
    assert [line.split(": ")[0] for line in files] == [
        "  train/cat/0.JPEG",
        "  train/cat/1.JPEG",
        "  train/cat/giga.png",
        "  valf/owl/0.JPEG",
        "  valf/owl/sparse.JPEG",
    ]
    reasons = ("truncated", "cannot identify", "exceeds limit", "identify", "more than the 100,000,000")
    for line, reason in zip(files, reasons, strict=True):
        assert reason in line
    names = [line.split(": ")[0].strip() for line in files]
    assert (tmp_path / "broken.txt").read_text().splitlines() == [f"images/{name}" for name in names]
    assert len(troubles(check("--quick"))) == 1


def test_many_broken_files_are_listed_in_part(check: Run, images: Path, tmp_path: Path) -> None:
    for i in range(32):
        (images / "train" / "cat" / f"b{i:02}.png").touch()
    result = check("--list", "broken.txt")
    assert troubles(result) == ["32 files cannot be decoded: replace or remove them"]
    lines = result.stdout.splitlines()
    assert sum(line.startswith("  train/cat/b") for line in lines) == 20
    assert lines[-2:] == ["  ... and 12 more", "1 trouble found"]
    assert len((tmp_path / "broken.txt").read_text().splitlines()) == 32
    (tmp_path / "broken.txt").write_text("mine")
    refused = check("--list", "broken.txt")
    assert_one_line_error(refused, "--list broken.txt is there already: give another name, or --overwrite")
    assert (tmp_path / "broken.txt").read_text() == "mine"
    assert len(troubles(check("--list", "broken.txt", "--overwrite"))) == 1
    assert len((tmp_path / "broken.txt").read_text().splitlines()) == 32


def test_names_that_are_no_text(run: Run, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = os.fsencode(images / "train" / "cat")
    for name in (b"caf\xe9.jpg", b"new\nline.jpg", b"red\x1b[31m.jpg", "\N{OWL}.jpg".encode()):
        Path(os.fsdecode(folder + b"/" + name)).touch()
    for split in ("train", "valf"):
        (images / split / "owl").rename(images / split / os.fsdecode(b"owl\xff"))
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    result = run("images", "-j", 2, "--list", "broken.txt", script=SCRIPT)
    assert troubles(result) == ["4 files cannot be decoded: replace or remove them"]
    listed = [line.split(": ")[0] for line in result.stdout.splitlines() if line.startswith("  train")]
    assert listed == [
        r"  train/cat/caf\xe9.jpg",
        r"  train/cat/new\nline.jpg",
        r"  train/cat/red\x1b[31m.jpg",
        r"  train/cat/\U0001f989.jpg",
    ]
    assert r"cat (7) to owl\xff (7)" in result.stdout
    written = (images.parent / "broken.txt").read_bytes().splitlines()
    assert written[:2] == [b"images/train/cat/caf\xe9.jpg", rb"images/train/cat/new\nline.jpg"]


def test_classes_that_a_list_lacks(check: Run, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("cat\ndog\nowl\nyak\n")
    assert not troubles(check("--quick", "--class-list", "classes.txt"))
    (tmp_path / "classes.txt").write_text("cat\ndog\nyak\n")
    assert troubles(check("--quick", "--class-list", "classes.txt")) == [
        f"{split}/ has 1 unlisted class (owl): add it to the --class-list, or remove the folder"
        for split in ("train", "valf")
    ]


def test_two_validation_folders(check: Run, images: Path) -> None:
    shutil.copytree(images / "valf", images / "val")
    assert_one_line_error(check("--quick"), "error: images: val/ and valf/ have class folders")


def wordnet_folders(root: Path, count: int) -> None:
    for split, name in ((split, f"n{i:08}") for split in ("train", "val") for i in range(count)):
        (root / split / name).mkdir(parents=True)
        (root / split / name / "x.JPEG").touch()


@pytest.mark.parametrize(
    ("count", "flags", "expected"), [(20, (), 0), (20, ("--imagenet",), 2), (950, (), 2), (1150, (), 0)]
)
def test_imagenets_numbers(
    check: Run, images: Path, count: int, flags: tuple[str, ...], expected: int
) -> None:
    shutil.rmtree(images)
    wordnet_folders(images, count)
    found = troubles(check("--quick", *flags))
    assert len(found) == expected
    if expected:
        numbers = f"train/ has {count} classes and {count} images, ImageNet 1,000 and 1,281,167: unpack"
        assert found[0].startswith(numbers)
        assert "ImageNet 1,000 and 50,000" in found[1]


def test_a_complete_imagenet(check: Run, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(images)
    wordnet_folders(images, 1000)
    monkeypatch.setattr("scripts.lib.data_contents.VAL_IMAGES", 1000)
    assert len(troubles(check("--quick"))) == 1
    monkeypatch.setattr("scripts.lib.data_contents.TRAIN_IMAGES", 1000)
    assert not troubles(check("--quick", "--imagenet"))


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        ((), ("PATH", "--help")),
        (("",), ("PATH: is empty",)),
        (("nowhere",), ("error: nowhere: no such folder", "'digits'")),
        (("images/train/cat/0.JPEG",), ("0.JPEG: not a folder",)),
        (("images/train",), ("error: images/train: looked for train/ in it and found cat/, dog/, owl/",)),
        (("images", "--list", "nowhere/list.txt"), ("--list nowhere/list.txt: its folder is not there",)),
        (("images", "--list", "images"), ("--list images: is a folder",)),
        (("images", "--list", "list.txt", "--quick"), ("without --quick",)),
        (("images", "-j", "-1"), ("--workers", "at least 0")),
        (("images", "--quik"), ("did you mean --quick?",)),
    ],
)
def test_bad_usage(
    call: Run, check: Run, tmp_path: Path, arguments: tuple[str, ...], fragments: tuple[str, ...]
) -> None:
    assert_one_line_error(call(*arguments, script=SCRIPT), "check_data.py: error: ", *fragments)
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_digits(call: Run, check: Run) -> None:
    result = call("digits", "-j", 1, script=SCRIPT)
    assert not troubles(result)
    assert result.stdout.splitlines()[-1] == "sound: 1,797 images in 10 classes"


@pytest.fixture
def decoding(images: Path, start: Callable[..., Job]) -> Job:
    """The script from outside, in a process group of its own and in the midst of many large images."""
    Image.new("1", (2000, 2000)).save(images / "large.png")
    for i in range(2000):
        (images / "train" / "cat" / f"{i:04}.png").symlink_to(images / "large.png")
    job = start(REPOSITORY / SCRIPT, images, "-j", 2)
    job.wait_for("(?m)^valf/.*\n")
    time.sleep(0.5)
    return job


def worker_of(job: Job) -> int:
    return int(Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()[0])


def test_ctrl_c(decoding: Job) -> None:
    """A terminal sends it to the whole group; workers must leave the answer to the script."""
    worker = worker_of(decoding)
    os.kill(worker, signal.SIGINT)
    time.sleep(0.5)
    assert "zombie" not in Path(f"/proc/{worker}/status").read_text()
    before = decoding.read()[0]
    os.killpg(decoding.pid, signal.SIGINT)
    output, errors = decoding.communicate(timeout=30)
    assert (decoding.returncode, output, errors.strip()) == (130, before, "interrupted")


def test_a_worker_that_dies(decoding: Job) -> None:
    os.kill(worker_of(decoding), signal.SIGKILL)
    _, errors = decoding.communicate(timeout=30)
    assert decoding.returncode == 2
    assert len(errors.strip().splitlines()) == 1
    assert "check_data.py: error: a worker died on one of the 128 files from " in errors
    assert "lower --workers" in errors
