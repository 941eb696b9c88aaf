"""The splits of an image folder: which files, of which classes."""

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from utils.digits import write_digits
from utils.errors import UserError
from utils.index import read_index
from utils.text import plural

TRAIN_NAMES = ("train",)
VAL_NAMES = ("val", "valf", "valid", "validation")


class ImageSplit(NamedTuple):
    """The files of one split and their labels."""

    samples: Sequence[tuple[str, int]]
    classes: tuple[str, ...]


def data_root(name: str) -> Path:
    """The folder that ``--data`` means: ``digits`` is the embedded data, written to ``data/digits`` once."""
    return write_digits(Path("data") / "digits") if name == "digits" else Path(name)


def find_split(root: Path, names: Sequence[str]) -> Path:
    """The first existing split folder below ``root``.

    Raises:
        UserError: there is none.
    """
    if not root.is_dir():
        what = "not a folder" if root.exists() else "no such folder"
        raise UserError(f"--data {root}: {what}; give an ImageNet folder (train/ and val/), or 'digits'")
    for name in names:
        if (root / name).is_dir():
            return root / name
    found = ", ".join(sorted(path.name + "/" for path in root.iterdir() if path.is_dir())[:5]) or "no folders"
    looked_for = " or ".join(f"{name}/" for name in names)
    raise UserError(f"--data {root}: looked for {looked_for} in it and found {found}")


def class_names(split: Path) -> tuple[str, ...]:
    """Sorted names of a split's class folders.

    Raises:
        UserError: there are none.
    """
    names = tuple(sorted(path.name for path in split.iterdir() if path.is_dir()))
    if not names:
        raise UserError(f"{split} has no class folders; put each class's images in a folder of its own")
    return names


def read_split(split: Path, classes: Sequence[str], use_cache: bool = True) -> ImageSplit:
    """Index a split by the class order of ``classes`` (the training folder's, so labels can't shift).

    Raises:
        UserError: a class folder is empty, or is not among ``classes``.
    """
    present = class_names(split)
    unknown = [name for name in present if name not in set(classes)]
    if unknown:
        raise UserError(
            f"{split} has class folders that the training split lacks: {', '.join(unknown[:5])}; "
            "both need the same names"
        )
    samples = read_index(split, classes, use_cache)
    empty = sorted(set(present) - {classes[label] for label in np.unique(samples.labels)})
    if empty:
        raise UserError(
            f"class folder {split / empty[0]} has no images ({' '.join(IMG_EXTENSIONS)}): "
            "add some or remove the folder"
        )
    return ImageSplit(samples, tuple(classes))


class Splits(NamedTuple):
    """What a command reads: no training split when it only evaluates."""

    train: ImageSplit | None
    val: ImageSplit

    def __str__(self) -> str:
        training = plural(len(self.train.samples), "training image") + ", " if self.train else ""
        digest = zlib.crc32("/".join(self.val.classes).encode("utf-8", "surrogateescape"))
        of_classes = f"{plural(len(self.val.classes), 'class')} (names {digest:08x})"
        return f"{training}{plural(len(self.val.samples), 'validation image')}, {of_classes}"


def open_data(name: str, evaluate: bool, known: Sequence[str] = (), use_cache: bool = True) -> Splits:
    """Index the splits of ``--data``.

    Classes are those of the training folder; evaluation goes without one.

    Args:
        name: the folder, or ``digits``.
        evaluate: whether the validation split is enough.
        known: class names of the resumed checkpoint, in order; none if it does not say.
        use_cache: whether the list of a folder's files may be that of an earlier start.

    Raises:
        UserError: a split is missing or unusable, or its classes are not the known ones.
    """
    try:
        return _open_splits(data_root(name), evaluate, known, use_cache)
    except OSError as error:
        raise UserError(f"--data {name}: {error.strerror} ({error.filename})") from None


def _open_splits(root: Path, evaluate: bool, known: Sequence[str], use_cache: bool) -> Splits:
    val = find_split(root, VAL_NAMES)
    if evaluate and not (root / TRAIN_NAMES[0]).is_dir():
        train, classes = None, class_names(val)
        if set(classes) < set(known):  # some classes have no images here; labels count all
            classes = tuple(known)
    else:
        train = find_split(root, TRAIN_NAMES)
        classes = class_names(train)
    if known and classes != tuple(known):
        theirs, ours = (
            ", ".join(sorted(set(a) - set(b))[:3]) for a, b in ((known, classes), (classes, known))
        )
        raise UserError(
            f"--data {root} has other classes than the checkpoint was trained on: "
            f"{theirs or 'none'} missing, {ours or 'none'} new; give the data of that run"
        )
    training = None if evaluate or train is None else read_split(train, classes, use_cache)
    return Splits(training, read_split(val, classes, use_cache))
