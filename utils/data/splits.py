"""The splits of an image folder: which files, of which classes."""

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from utils.common.errors import UserError
from utils.common.text import plural
from utils.data.digits import write_digits
from utils.data.folders import is_image
from utils.data.index import read_index
from utils.data.labels import NOTHING_KNOWN, Outputs, in_order, order_classes

TRAIN_NAMES = ("train",)
VAL_NAMES = ("val", "valf", "valid", "validation")


class ImageSplit(NamedTuple):
    """The files of one split and their labels."""

    samples: Sequence[tuple[str, int]]
    classes: tuple[str, ...]


def data_root(name: str) -> Path:
    """The folder that ``--data`` means: ``digits`` is the embedded data, written to ``data/digits`` once."""
    return write_digits(Path("data") / "digits") if name == "digits" else Path(name)


class MissingSplitError(UserError):
    """The data set has no folder of the names that a split may have."""


def find_split(root: Path, names: Sequence[str]) -> Path:
    """The split folder below ``root``: of several the one that has class folders.

    Raises:
        MissingSplitError: there is none.
        UserError: several have class folders, and are not links to one.
    """
    if not root.is_dir():
        what = "not a folder" if root.exists() else "no such folder"
        raise UserError(f"--data {root}: {what}; give an ImageNet folder (train/ and val/), or 'digits'")
    there = [root / name for name in names if (root / name).is_dir()]
    if not there:
        found = ", ".join(sorted(path.name + "/" for path in root.iterdir() if path.is_dir())[:5])
        looked_for = " or ".join(f"{name}/" for name in names)
        raise MissingSplitError(
            f"--data {root}: looked for {looked_for} in it and found {found or 'no folders'}: "
            "add a folder of that name"
        )
    usable = [path for path in there if len(there) == 1 or any(map(Path.is_dir, path.iterdir()))]
    if len({path.resolve() for path in usable}) > 1:
        both = " and ".join(f"{path.name}/" for path in usable)
        raise UserError(
            f"--data {root}: {both} have class folders: which is to be used? Rename or remove the other"
        )
    return [*usable, *there][0]


def class_names(split: Path) -> tuple[str, ...]:
    """Names of a split's class folders, in order.

    Raises:
        UserError: there are none.
    """
    names = in_order(path.name for path in split.iterdir() if path.is_dir())
    if names:
        return names
    if any(is_image(path.name) for path in split.iterdir()):
        raise UserError(
            f"{split} has no class folders, and an image's label is the name of its folder: move each image "
            "into a folder of its class (ImageNet's archives: torchvision.datasets.ImageNet unpacks them so)"
        )
    raise UserError(f"{split} has no class folders; put each class's images in a folder of its own")


def read_split(
    split: Path, classes: Sequence[str], use_cache: bool = True, source: str = "the training split"
) -> ImageSplit:
    """Index a split by the class order of ``classes``, which is that of every split, so labels can't shift.

    Args:
        split: the folder.
        classes: the names of its folders, by label; some may have no folder.
        use_cache: whether the list of its files may be that of an earlier start.
        source: what the classes are from, for messages.

    Raises:
        UserError: a class folder is empty, or is not among ``classes``.
    """
    present = class_names(split)
    unknown = [name for name in present if name not in set(classes)]
    if unknown:
        raise UserError(
            f"{split} has class folders that {source} lacks: {', '.join(unknown[:5])}; "
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


def open_data(name: str, evaluate: bool, outputs: Outputs = NOTHING_KNOWN, use_cache: bool = True) -> Splits:
    """Index the splits of ``--data``.

    Classes are those of the training folder; evaluation goes without one.

    Args:
        name: the folder, or ``digits``.
        evaluate: whether the validation split is enough.
        outputs: what is known of the network's outputs, and with that of the order of the classes.
        use_cache: whether the list of a folder's files may be that of an earlier start.

    Raises:
        UserError: a split is missing or unusable, or its classes are not those of the outputs.
    """
    try:
        return _open_splits(data_root(name), evaluate, outputs, use_cache)
    except OSError as error:
        raise UserError(f"--data {name}: {error.strerror} ({error.filename})") from None


def _open_splits(root: Path, evaluate: bool, outputs: Outputs, use_cache: bool) -> Splits:
    val = find_split(root, VAL_NAMES)
    alone = evaluate and (bool(outputs.listed) or not (root / TRAIN_NAMES[0]).is_dir())
    train = val if alone else find_split(root, TRAIN_NAMES)
    classes = order_classes(class_names(train), outputs, evaluate)
    source = "--class-list" if outputs.listed else "the checkpoint" if outputs.saved else "the training split"
    training = None if evaluate else read_split(train, classes, use_cache, source)
    return Splits(training, read_split(val, classes, use_cache, source))
