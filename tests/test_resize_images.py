"""scripts/resize_images.py: what the copy holds, and that a start that was cut short can be resumed."""

import errno
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
from torchvision.datasets.folder import IMG_EXTENSIONS

from utils.data.decoding import decode
from utils.data.splits import open_data

SCRIPT = "scripts/resize_images.py"


@pytest.fixture
def large(images: Path) -> Path:
    """``images`` with 8 training and 7 validation images of 100 x 80 pixels in cat/."""
    for split, count in (("train", 8), ("valf", 7)):
        write_images(images / split / "cat", count, size=(80, 100))
    return images


@pytest.fixture
def resize(call: Run, large: Path) -> Run:
    """The script within this process, from ``images`` to ``copy``."""
    return lambda *flags: call("images", "copy", "--side", 64, "-j", 0, *flags, script=SCRIPT)


def files(folder: Path) -> dict[str, bytes]:
    """The content of all files but the note, hidden files too."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != "resized.txt"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def last_line(result: subprocess.CompletedProcess[str], code: int = 0) -> str:
    assert (result.returncode, result.stderr) == (code, "")
    return result.stdout.splitlines()[-1]


def test_large_training_images_are_resized_and_the_rest_is_copied(
    resize: Run, large: Path, tmp_path: Path
) -> None:
    before = files(large)
    expected = "45 images: 8 resized, 37 copied, 0 there before; 0.00 GB before, 0.00 GB after"
    assert last_line(resize()) == expected
    after = files(tmp_path / "copy")
    assert files(large) == before
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} == {
        f"train/cat/{i}.JPEG" for i in range(8)
    }
    for name in after:
        assert (tmp_path / "copy" / name).stat().st_nlink == 1
    with Image.open(tmp_path / "copy" / "train" / "cat" / "0.JPEG") as image:
        assert (image.format, image.size) == ("JPEG", (80, 64))
        with Image.open(large / "train" / "cat" / "0.JPEG") as original:
            exact = original.resize((80, 64), Image.Resampling.LANCZOS)
        assert np.abs(np.asarray(image, float) - np.asarray(exact, float)).mean() < 6
    assert open_data(str(tmp_path / "copy"), evaluate=False).train is not None


def test_validation_images_on_demand(resize: Run, tmp_path: Path) -> None:
    assert last_line(resize("--val")).startswith("45 images: 15 resized, 30 copied")
    assert decode(str(tmp_path / "copy" / "valf" / "cat" / "6.JPEG")).size == (80, 64)


def test_quality(resize: Run, tmp_path: Path) -> None:
    resize()
    size = (tmp_path / "copy" / "train" / "cat" / "0.JPEG").stat().st_size
    shutil.rmtree(tmp_path / "copy")
    resize("--quality", 75)
    assert (tmp_path / "copy" / "train" / "cat" / "0.JPEG").stat().st_size < 0.6 * size


def test_formats_follow_the_suffix(resize: Run, large: Path, tmp_path: Path) -> None:
    folder = large / "train" / "cat"
    for suffix in IMG_EXTENSIONS:
        shutil.copy(folder / "0.JPEG", folder / f"a{suffix}")
    noise = np.random.default_rng(0).integers(0, 256, (90, 1900, 3), np.uint8)
    Image.fromarray(noise).save(folder / "noise.png")
    shutil.copy(folder / "noise.png", folder / "png.JPEG")  # ImageNet has such a file
    assert " 19 resized" in last_line(resize("--quality", 100))
    kinds = {}
    for suffix in IMG_EXTENSIONS:
        with Image.open(tmp_path / "copy" / "train" / "cat" / f"a{suffix}") as image:
            kinds[suffix] = image.format
            assert image.size == (80, 64)
    special = {".jpg": "JPEG", ".pgm": "PPM", ".tif": "TIFF"}
    assert kinds == {suffix: special.get(suffix, suffix[1:].upper()) for suffix in IMG_EXTENSIONS}
    with Image.open(tmp_path / "copy" / "train" / "cat" / "png.JPEG") as image:
        assert (image.format, image.size) == ("JPEG", (1351, 64))
    exact = Image.fromarray(noise).resize((1351, 64), Image.Resampling.LANCZOS)
    assert decode(str(tmp_path / "copy" / "train" / "cat" / "noise.png")).tobytes() == exact.tobytes()


def test_odd_images_look_as_training_sees_them(resize: Run, large: Path, tmp_path: Path) -> None:
    folder = large / "train" / "cat"
    Image.new("CMYK", (100, 80), (0, 255, 255, 0)).save(folder / "cmyk.jpg")
    Image.fromarray(np.full((80, 100), 30000, np.uint16)).save(folder / "sixteen.png")
    Image.new("P", (100, 80)).save(folder / "palette.png", transparency=bytes([0] * 256))  # PIL warns
    Image.new("L", (100, 80), 77).save(folder / "grey.jpg")
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter turn, which training does not see
    Image.new("RGB", (100, 80)).save(folder / "turned.jpg", exif=turned)
    assert " 13 resized" in last_line(resize())
    for name in ("cmyk.jpg", "sixteen.png", "palette.png", "grey.jpg", "turned.jpg"):
        copy = decode(str(tmp_path / "copy" / "train" / "cat" / name))
        assert copy.size == (80, 64)
        difference = np.asarray(copy, float)[0, 0] - np.asarray(decode(str(folder / name)), float)[0, 0]
        assert np.abs(difference).max() <= 2, name
    with Image.open(tmp_path / "copy" / "train" / "cat" / "turned.jpg") as image:
        assert not image.getexif()


def test_trouble_in_the_source(resize: Run, large: Path, tmp_path: Path) -> None:
    folder = large / "train" / "cat"
    whole = (folder / "0.JPEG").read_bytes()
    (folder / "0.JPEG").write_bytes(whole[: len(whole) // 2])
    (large / "train" / "owl" / "0.JPEG").write_bytes(b"<html>404</html>")  # small ones are looked at too
    (large / "valf" / "owl" / "0.JPEG").write_bytes(b"<html>404</html>")  # as it is: nothing is decoded
    (folder / "dead.jpg").symlink_to("nowhere.jpg")
    (folder / "note.txt").touch()
    write_no_files(large / "valf" / "cat")
    for how in ("7 resized, 36 copied, 0 there before", "0 resized, 0 copied, 43 there before"):
        result = resize()
        assert last_line(result, code=1).startswith(f"43 images: {how};")
        first, links, second, *broken = result.stdout.splitlines()[:-1]
        assert first.startswith("trouble: train/ has 1 dead link (train/cat/dead.jpg)")
        assert "2 dead links (valf/cat/endless.JPEG, valf/cat/pipe.JPEG)" in links
        assert second == "trouble: 3 files cannot be decoded: not copied"
        names = [line.split(": ")[0].strip() for line in broken]
        assert names == ["train/cat/0.JPEG", "train/owl/0.JPEG", "valf/cat/sparse.JPEG"]
    for name in ("endless", "pipe", "sparse"):
        (large / "valf" / "cat" / f"{name}.JPEG").unlink()
    left_out = {"train/cat/0.JPEG", "train/owl/0.JPEG", "train/cat/note.txt"}
    assert files(tmp_path / "copy").keys() == files(large).keys() - left_out


def test_names_that_are_no_text_and_links(run: Run, large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also from outside, with workers."""
    large = large.rename(large.with_name("images\udcff"))
    odd = os.fsdecode(b"caf\xe9\n.jpg")
    shutil.copy(large / "train" / "cat" / "0.JPEG", large / "train" / "cat" / odd)
    (large / "train" / "cat" / os.fsdecode(b"broken\xe9.jpg")).touch()
    (large / "train" / "cat").rename(large.parent / "elsewhere")
    (large / "train" / "cat").symlink_to(large.parent / "elsewhere")
    (large / "train" / "owl" / "linked.jpg").symlink_to(large.parent / "elsewhere" / "0.JPEG")
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    arguments = ("images\udcff", "copy\udcff", "--side", 64, "-j", 2)
    result = run(*arguments, script=SCRIPT)
    assert last_line(result, code=1).startswith("47 images: 10 resized, 37 copied")
    assert r"  train/cat/broken\xe9.jpg: " in result.stdout
    copy = large.parent / "copy\udcff"
    assert decode(str(copy / "train" / "cat" / odd)).size == (80, 64)
    assert not any(path.is_symlink() for path in copy.rglob("*"))
    assert (copy / "train" / "owl" / "linked.jpg").is_file()


def test_a_second_start_writes_only_what_is_missing(resize: Run, tmp_path: Path) -> None:
    resize()
    copy = tmp_path / "copy"
    whole = files(copy)
    written = {path: path.stat().st_mtime_ns for path in copy.rglob("*.JPEG")}
    for split in ("train", "valf"):
        (copy / split / "cat" / "0.JPEG").unlink()
        (copy / split / "cat" / ".0.JPEG.unfinished-abcd1234").write_bytes(b"half a file")
    (copy / ".resized.txt.unfinished-abcd1234").touch()
    assert "1 resized, 1 copied, 43 there before;" in last_line(resize())
    assert files(copy) == whole
    changed = {path for path, moment in written.items() if path.stat().st_mtime_ns != moment}
    assert changed == {copy / split / "cat" / "0.JPEG" for split in ("train", "valf")}


@pytest.mark.parametrize("flags", [("--side", 80), ("--quality", 94), ("--val",)])
def test_a_copy_made_otherwise_is_refused(resize: Run, tmp_path: Path, flags: tuple[str, ...]) -> None:
    resize()
    before = files(tmp_path)
    made = f"copy was made from {tmp_path}/images by --side 64 --quality 95: give the same"
    assert_one_line_error(resize(*flags), "resize_images.py: error: ", made)
    assert files(tmp_path) == before


def test_a_copy_of_other_images_is_refused(call: Run, resize: Run, large: Path) -> None:
    resize()
    large.rename(large.with_name("others"))
    result = call("others", "copy", "--side", 64, "-j", 0, script=SCRIPT)
    assert_one_line_error(result, "copy was made from", "/images by")


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        ((), "--help"),
        (("images", "copy"), "--side"),
        (("images", "", "--side", 64), "TARGET: is empty"),
        (("nowhere", "copy", "--side", 64), "nowhere: no such folder"),
        (("images", "images", "--side", 64), "images lies in SOURCE"),
        (("images", "images/../images/copy", "--side", 64), "lies in SOURCE"),
        (("images", "link/copy", "--side", 64), "link/copy lies in SOURCE"),
        (("linked", "images/valf/copy", "--side", 64), "lies in SOURCE"),
        (("images", ".", "--side", 64), ". is not empty and has no resized.txt: give a new folder"),
        (("images", "images/train/cat/0.JPEG/copy", "--side", 64), "lies in SOURCE"),
        (("images", "file/copy", "--side", 64), "file/copy: Not a directory"),
        (("images", "copy", "--side", 63), "at least 64"),
        (("images", "copy", "--side", 64, "--quality", 74), "from 75 to 100"),
        (("images", "copy", "--side", 64, "-j", -1), "at least 0"),
    ],
)
def test_bad_usage(call: Run, resize: Run, tmp_path: Path, arguments: tuple[str, ...], fragment: str) -> None:
    (tmp_path / "link").symlink_to("images")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "val").symlink_to(tmp_path / "images" / "valf")
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    assert_one_line_error(call(*arguments, script=SCRIPT), "resize_images.py: error: ", fragment)
    assert sorted(tmp_path.rglob("*")) == before


def failing(after: int, number: int) -> Callable[[int], None]:
    """An ``os.fsync`` for a disk that is full after so many calls."""
    calls = iter(range(after))

    def fsync(_: int) -> None:
        if next(calls, None) is None:
            raise OSError(number, os.strerror(number))

    return fsync


@pytest.mark.parametrize("after", [0, 3, 21])
def test_a_full_disk(resize: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    with monkeypatch.context() as full:
        full.setattr("utils.common.files.os.fsync", failing(after, errno.ENOSPC))
        assert_one_line_error(resize(), "copy", "No space left on device")
    assert not [name for name in files(tmp_path / "copy") if "/." in name or name.startswith(".")]
    assert last_line(resize()).startswith("45 images: ")
    assert len(files(tmp_path / "copy")) == 45


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_cut_short(
    resize: Run, start: Callable[..., Job], large: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """A terminal's Ctrl-C reaches the whole group; after either signal no half file bears a final name."""
    Image.effect_noise((400, 400), 50).save(tmp_path / "large.jpg")
    for i in range(2000):
        (large / "train" / "cat" / f"many{i}.jpg").symlink_to(tmp_path / "large.jpg")
    job = start(REPOSITORY / SCRIPT, "images", "copy", "--side", 64, "-j", 2)
    while not list(tmp_path.glob("copy/train/cat/many*")):
        assert job.running
        time.sleep(0.01)
    os.killpg(job.pid, number)
    output, errors = job.communicate(timeout=30)
    assert output == ""
    if number == signal.SIGINT:
        assert (job.returncode, errors.strip()) == (130, "interrupted")
    for path in tmp_path.glob("copy/train/cat/many*"):
        assert decode(str(path)).size == (64, 64)
    for path in large.glob("train/cat/many*"):
        if not (tmp_path / "copy" / "train" / "cat" / path.name).exists():
            path.unlink()  # the rest would take long
    assert " 0 resized, 0 copied," not in last_line(resize())
    assert files(tmp_path / "copy").keys() == files(large).keys()
