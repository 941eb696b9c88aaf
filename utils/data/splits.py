"""The splits of an image data set: their folders, their classes, their files."""

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from utils.common.errors import UserError
from utils.common.text import plural, shown
from utils.data.archive_index import ArchiveIndex
from utils.data.archives import find_archives, read_archives
from utils.data.cifar import cifar_in, cifar_of, cifar_root, read_cifar
from utils.data.digits import write_digits
from utils.data.folders import is_image
from utils.data.index import read_index
from utils.data.labels import NOTHING_KNOWN, Outputs, are_classes, in_order, order_classes

TRAIN_NAMES = ("train",)
VAL_NAMES = ("val", "valf", "valid", "validation")


class ImageSplit(NamedTuple):
    """The files of one split and their labels."""

    samples: Sequence[tuple[str, int]]
    classes: tuple[str, ...]


def data_root(name: str) -> Path:
    """Return the folder of ``--data``.

    ``digits`` is the embedded data, written to ``data/digits`` once; ``cifar10`` and ``cifar100`` are the
    binary files in ``data/`` or the working folder, unpacked once.

    Raises:
        UserError: there are no such files.
    """
    if name == "digits":
        return write_digits(Path("data") / "digits")
    form = cifar_of(name)
    return cifar_root(name, form) if form else Path(name)


class MissingSplitError(UserError):
    """A data set lacks a split: it has no folder of one of the split's names."""


def find_split(root: Path, names: Sequence[str], use_cache: bool = True) -> Path | ArchiveIndex:
    """Return the folder of a split within ``root``, of several the one with class folders; else its archives.

    Args:
        root: the data set.
        names: of the split.
        use_cache: whether to use the index that an earlier run made of the archives.

    Raises:
        MissingSplitError: there is none.
        UserError: several different folders have class folders, or ``root`` is no folder, or the archives
            cannot be read.
    """
    if not root.is_dir():
        what = "not a folder" if root.exists() else "no such folder"
        known = "an ImageNet folder (train/ and val/), or 'digits', 'cifar10', 'cifar100'"
        raise UserError(f"--data {root}: {what}; give {known}")
    if form := cifar_in(root):
        return read_cifar(root, form, names[0])
    there = [root / name for name in names if (root / name).is_dir()]
    has_classes = any(path.is_dir() for folder in there for path in folder.iterdir())
    if not has_classes and (archives := find_archives(root, names)):
        return read_archives(root / names[0], archives, use_cache)
    if not there:
        found = ", ".join(sorted(path.name + "/" for path in root.iterdir() if path.is_dir())[:5])
        looked_for = " or ".join(f"{name}/" for name in names)
        what = f"--data {root}: looked for {looked_for} in it and found {found or 'no folders'}"
        raise MissingSplitError(f"{what}: add a folder of that name, or {names[0]}.tar")
    usable = [path for path in there if len(there) == 1 or any(map(Path.is_dir, path.iterdir()))]
    if len({path.resolve() for path in usable}) > 1:
        both = " and ".join(f"{path.name}/" for path in usable)
        raise UserError(f"--data {root}: {both} have class folders: rename or remove the one not to be used")
    return [*usable, *there][0]


def find_evaluated(root: Path, outputs: Outputs, use_cache: bool) -> Path | ArchiveIndex:
    """Return the validation split, or ``root`` itself if it holds class folders, as other test sets come.

    Raises:
        UserError: there is neither, or more than one validation split.
    """
    try:
        return find_split(root, VAL_NAMES, use_cache)
    except MissingSplitError:
        folders = in_order(path.name for path in root.iterdir() if path.is_dir())
        if not are_classes(folders, outputs):
            raise
        print(f"note: {shown(str(root))} has no val/; the class folders in it are evaluated")
        return root


def has_split(root: Path, names: Sequence[str]) -> bool:
    """Whether there is a folder or archive of the split, or both splits in CIFAR's binary files."""
    return (
        cifar_in(root) is not None
        or any((root / name).is_dir() for name in names)
        or bool(find_archives(root, names))
    )


def class_names(split: Path | ArchiveIndex) -> tuple[str, ...]:
    """Return the names of a split's class folders, in order.

    Raises:
        UserError: there are none.
    """
    if isinstance(split, ArchiveIndex):
        return in_order(split.contents.classes)
    names = in_order(path.name for path in split.iterdir() if path.is_dir())
    if names:
        return names
    if any(is_image(path.name) for path in split.iterdir()):
        raise UserError(
            f"{split} has no class folders, and an image's label is the name of its folder: move each image "
            "into a folder of its class; ImageNet's: python scripts/prepare_imagenet.py "
            f"{split.parent} TARGET"
        )
    raise UserError(f"{split} has no class folders; put each class's images in a folder of its own")


def read_split(
    split: Path | ArchiveIndex,
    classes: Sequence[str],
    use_cache: bool = True,
    source: str = "the training split",
) -> ImageSplit:
    """Index a split with the labels of ``classes``, the same for all splits.

    Args:
        split: the folder, or the index of the archives.
        classes: the names of the class folders by label; a folder may be missing.
        use_cache: whether to use the index of an earlier run.
        source: where the classes come from, for messages.

    Raises:
        UserError: a class folder is empty, or is not among ``classes``.
    """
    present = class_names(split)
    unknown = [name for name in present if name not in set(classes)]
    if unknown:
        names = ", ".join(unknown[:5])
        raise UserError(f"{split} has class folders that {source} lacks: {names}; both need the same names")
    if isinstance(split, ArchiveIndex):
        return ImageSplit(split.relabelled(classes), tuple(classes))
    samples = read_index(split, classes, use_cache)
    empty = sorted(set(present) - {classes[label] for label in np.unique(samples.labels)})
    if empty:
        what = f"class folder {split / empty[0]} has no images ({' '.join(IMG_EXTENSIONS)})"
        raise UserError(f"{what}: add some or remove the folder")
    return ImageSplit(samples, tuple(classes))


def compared_outputs(split: ImageSplit, outputs: int, which: str | None) -> Sequence[int]:
    """Return the outputs that an evaluation compares; print how many if not all have images.

    Args:
        split: what is evaluated.
        outputs: of the network.
        which: ``of-data``: those of the split's classes only; ``all``: all; None: all, with a note.
    """
    present = sorted({label for _, label in split.samples})
    if len(present) == outputs:
        return present
    if which == "of-data":
        print(f"{len(present):,} of {outputs:,} outputs are compared, those of the data's classes")
        return present
    if which is None:
        told = f"all {outputs:,} outputs are compared, the data has {plural(len(present), 'class')}"
        print(f"note: {told}; the papers of ImageNet-A and -R compare theirs only: --outputs of-data")
    return range(outputs)


class Splits(NamedTuple):
    """The splits that a command reads; an evaluation has no training split."""

    train: ImageSplit | None
    val: ImageSplit

    def archives(self) -> dict[str, str]:
        """Return a digest of the images of each split that is read from archives, by the split's name."""
        found = {"train": self.train and self.train.samples, "val": self.val.samples}
        return {name: of.contents.digest for name, of in found.items() if isinstance(of, ArchiveIndex)}

    def recorded(self) -> dict[str, Any]:
        """Return what checkpoints hold of the data: the classes, and digests of archives."""
        archives = self.archives()
        return {"classes": list(self.val.classes), **({"archives": archives} if archives else {})}

    def __str__(self) -> str:
        training = plural(len(self.train.samples), "training image") + ", " if self.train else ""
        digest = zlib.crc32("/".join(self.val.classes).encode("utf-8", "surrogateescape"))
        of_classes = f"{plural(len(self.val.classes), 'class')} (names {digest:08x})"
        return f"{training}{plural(len(self.val.samples), 'validation image')}, {of_classes}"


def open_data(name: str, evaluate: bool, outputs: Outputs = NOTHING_KNOWN, use_cache: bool = True) -> Splits:
    """Index the splits of ``--data``.

    The classes are those of the training split. An evaluation takes them from the validation split if there
    is no training split, or if ``outputs`` lists the classes.

    Args:
        name: the folder, ``digits``, ``cifar10`` or ``cifar100``.
        evaluate: whether to leave out the training split.
        outputs: what is known of the network's outputs, and so of the order of the classes.
        use_cache: whether to use the index of an earlier run.

    Raises:
        UserError: a split is missing or unusable, or its classes are not those of the outputs.
    """
    try:
        return _open_splits(data_root(name), evaluate, outputs, use_cache)
    except OSError as error:
        raise UserError(f"--data {name}: {error.strerror} ({error.filename})") from None


def _open_splits(root: Path, evaluate: bool, outputs: Outputs, use_cache: bool) -> Splits:
    val = find_evaluated(root, outputs, use_cache) if evaluate else find_split(root, VAL_NAMES, use_cache)
    alone = evaluate and (bool(outputs.listed) or not has_split(root, TRAIN_NAMES))
    train = val if alone else find_split(root, TRAIN_NAMES, use_cache)
    classes = order_classes(class_names(train), outputs, evaluate)
    source = "--class-list" if outputs.listed else "the checkpoint" if outputs.saved else "the training split"
    for split in (val,) if evaluate else (train, val):
        if isinstance(split, ArchiveIndex) and (left_out := split.notes()):
            print(f"note: {shown(str(split))}: left out {left_out}")
    training = None if evaluate else read_split(train, classes, use_cache, source)
    return Splits(training, read_split(val, classes, use_cache, source))
