"""The labels of a flat archive of images, such as ImageNet's of validation, from files beside it."""

import io
import re
import tarfile
from pathlib import Path

from utils.common.errors import UserError
from utils.common.text import plural, shown

DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
TRUTH, META = "data/ILSVRC2012_validation_ground_truth.txt", "data/meta.mat"  # in the devkit
LARGEST = 2**26  # bytes of a file of the devkit


def truth_files(archive: Path) -> list[Path]:
    """Return the files that may say the labels of an archive; the first that exists is taken."""
    return [archive.with_suffix(".txt"), archive.parent / DEVKIT]


def read_truth(archive: Path, images: int) -> list[str]:
    """Return the class of each image, in the order of the names of the images.

    Args:
        archive: of the images.
        images: how many it has.

    Raises:
        UserError: nothing beside the archive says it, or it is damaged, or it is of another number of images.
    """
    listed, devkit = truth_files(archive)
    source = listed if listed.exists() else devkit
    try:
        if not source.exists():
            raise UserError(
                f"{shown(str(archive))} has no folders: put {DEVKIT} beside it, or "
                f"{shown(listed.name)} with the class (WordNet id) of each image, one a line, in the order "
                "of the images' names"
            )
        classes = _read_list(listed) if source is listed else _read_devkit(devkit)
    except OSError as error:
        raise UserError(f"{shown(str(source))}: {error.strerror or error}") from None
    if len(classes) != images:
        what = f"{plural(len(classes), 'label')} for {plural(images, 'image')} of {archive.name}"
        raise UserError(f"{shown(str(source))}: {shown(what)}; give the labels of these images")
    return classes


def _read_list(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8-sig").rstrip().split("\n")
    except UnicodeDecodeError:
        raise UserError(f"{shown(str(file))}: not UTF-8; save it as UTF-8 text, one class a line") from None
    for number, line in enumerate(lines, 1):
        if not re.fullmatch(r"\s*[^\s/]+\s*", line):
            what = f"line {number} ('{line[:40].strip()}') is no class; give one class a line, nothing else"
            raise UserError(f"{shown(str(file))}: {shown(what)}")
    return [line.strip() for line in lines]


def _read_devkit(file: Path) -> list[str]:
    """Return the WordNet ids of the validation images."""
    name = shown(str(file))
    try:
        from scipy.io import loadmat  # an optional dependency
    except ImportError:
        beside = "or list the classes in a .txt beside the archive of the images"
        raise UserError(f"{name}: reading its meta.mat needs scipy: pip install scipy, {beside}") from None
    try:
        with tarfile.open(file) as devkit:
            truth, meta = (_member(devkit, wanted) for wanted in (TRUTH, META))
        synsets = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
        ids = zip(synsets["ILSVRC2012_ID"].tolist(), synsets["WNID"].tolist(), strict=True)
        wordnet_id = {int(number): str(identifier) for number, identifier in ids}
        return [wordnet_id[int(line)] for line in truth.decode().split()]
    except Exception as error:  # tarfile, gzip, and scipy raise errors of many types
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        what = f"{name}: damaged, or no devkit of ILSVRC2012 ({shown(reason)})"
        raise UserError(f"{what}; download it again") from None


def _member(devkit: tarfile.TarFile, wanted: str) -> bytes:
    for member in devkit:
        if member.isfile() and f"/{member.name}".endswith(f"/{wanted}") and member.size < LARGEST:
            file = devkit.extractfile(member)
            return file.read() if file else b""
    raise ValueError(f"{wanted} is missing")
