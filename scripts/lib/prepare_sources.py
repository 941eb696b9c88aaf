"""ImageNet as it comes: its images, and where each belongs in class folders.

A source is what ``--data`` takes (class folders, ImageNet's archives, other tars), the same with a flat
``val/``, Kaggle's folders, or Parquet shards (:mod:`scripts.lib.prepare_parquet`).
"""

import csv
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple, Protocol

from scripts.lib.data_contents import TRAIN_IMAGES, VAL_IMAGES, Split, without_flag
from scripts.lib.data_files import kind_of
from utils.common.errors import UserError
from utils.common.text import plural, shown
from utils.data.archive_index import ArchiveIndex
from utils.data.content import content, place_of, size_of
from utils.data.labels import wordnet_id
from utils.data.splits import TRAIN_NAMES, VAL_NAMES, MissingSplitError, find_split
from utils.data.truth import DEVKIT, read_truth, truth_files

KAGGLE, SOLUTION = "ILSVRC/Data/CLS-LOC", "LOC_val_solution.csv"
SPLITS = (("train", TRAIN_NAMES, TRAIN_IMAGES), ("val", VAL_NAMES, VAL_IMAGES))


class Image(NamedTuple):
    """An image of a source."""

    place: str  # CLASS/NAME
    size: int  # bytes
    read: Callable[[], bytes | bytearray]


class Source(Protocol):
    """The images of a split."""

    name: str  # train or val
    split: Split  # its counts and troubles
    bytes: int  # of all images, about
    digest: str  # of names and sizes, in hexadecimal digits

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Image]:
        """Yield the images; in the same order each time."""


class Files:
    """Images that are files or members of archives, in the order of their places.

    Args:
        name: train or val.
        split: its counts and troubles.
        paths: of each image, by its place, CLASS/NAME.

    Raises:
        UserError: a place leads out of the folder of the images.
        OSError: a file cannot be read.
    """

    def __init__(self, name: str, split: Split, paths: dict[str, str]) -> None:
        self.name, self.split = name, split
        check_places(paths)
        places = sorted(paths, key=lambda place: place.split("/"))
        self.images = [(place, paths[place], size_of(paths[place])) for place in places]
        self.bytes = sum(size for *_, size in self.images)
        digest = sha256()
        for place, _, size in self.images:
            digest.update(os.fsencode(f"{place}\0{size}\n"))
        self.digest = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[Image]:
        for place, path, size in self.images:
            yield Image(place, size, partial(content, path))


def check_places(places: Iterable[str]) -> None:
    """Refuse names that lead elsewhere; archives are searched for such names when they are indexed.

    Raises:
        UserError: there is one.
    """
    for place in places:
        if {"", ".", ".."} & set(place.split("/")) or "\0" in place:
            raise UserError(f"{shown(place)} is no name of a class and an image: rename it")


def read_files(source: Path) -> tuple[list[Source], list[str]]:
    """Return the splits of a source of files or archives, and a line for one that is missing.

    Raises:
        UserError: there is none, or the class of an image cannot be known.
    """
    kaggle = source / KAGGLE
    root = kaggle if kaggle.is_dir() else source
    found: list[Source] = []
    missing = []
    try:
        for name, names, full in SPLITS:
            try:
                at = find_split(root, names, use_cache=False)
            except MissingSplitError as error:
                missing.append(without_flag(error))
                continue
            found.append(_read_split(name, at, full, source))
    except OSError as error:
        raise UserError(f"{shown(str(error.filename or source))}: {error.strerror or error}") from None
    except UserError as error:
        raise UserError(without_flag(error)) from None
    if not found:
        what = f"no train/ or val/, no tar archives, no {KAGGLE}, no train-*.parquet"
        raise UserError(f"{shown(str(source))}: {what}: give the folder that ImageNet was downloaded to")
    return found, missing


def _read_split(name: str, at: Path | ArchiveIndex, full: int, source: Path) -> Files:
    if isinstance(at, ArchiveIndex):
        split = Split(at.split, full, at)
    else:
        split = Split(at, full)
        if _is_flat(at):
            return Files(name, split, _read_flat(name, split, source))
    root = split.folder.parent
    paths = {place_of(path, root).partition("/")[2]: path for path in split.scan()}
    if not paths:
        raise UserError(f"{shown(str(split.folder))} has no images in class folders: give another SOURCE")
    return Files(name, split, paths)


def _is_flat(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        seen = [entry for entry in entries if not entry.name.startswith(".")]
        kinds = {"folder" if entry.is_dir() else kind_of(entry) for entry in seen}
    return "image" in kinds and "folder" not in kinds


def _read_flat(name: str, split: Split, source: Path) -> dict[str, str]:
    """Return the path of each image of a folder without class folders, by its place; count its classes."""
    folder = split.folder
    if name == "train":
        raise UserError(f"{shown(str(folder))} has no class folders: training images need them")
    images = dict[str, str]()
    with os.scandir(folder) as entries:
        for entry in entries:
            kind = kind_of(entry)
            if kind == "image":
                images[entry.name] = entry.path
            elif kind == "dead link":
                split.note(kind, entry.name)
            else:
                split.other += 1
    names = sorted(images)
    solution = source / SOLUTION
    if (source / KAGGLE).is_dir() or solution.is_file():
        labels = _of_solution(solution, names, split)
    else:
        labels = read_truth(folder, len(names))
        _check_numbers(folder, names)
    split.classes.update(labels)
    return {f"{label}/{name}": images[name] for name, label in zip(names, labels, strict=True)}


def _check_numbers(folder: Path, names: list[str]) -> None:
    """Refuse names that are not the devkit's: its labels have the order of the numbers in the names."""
    if truth_files(folder)[0].exists():
        return
    for number, name in enumerate(names, 1):
        if Path(name).stem != f"ILSVRC2012_val_{number:08d}":
            what = f"image {number:,} of {DEVKIT} is ILSVRC2012_val_{number:08d}.JPEG, here {name}"
            raise UserError(f"{shown(str(folder))}: {shown(what)}: restore the images' names")


def _of_solution(file: Path, names: list[str], split: Split) -> list[str]:
    """Return the class of each image, from Kaggle's list."""
    classes = read_solution(file)
    stems = {Path(name).stem: name for name in names}
    if lost := sorted(stems.keys() - classes.keys()):
        what = f"no line for {plural(len(lost), 'image')} of {split.folder} ({stems[lost[0]]})"
        raise UserError(f"{shown(str(file))}: {shown(what)}: download it again, or remove what is not of it")
    if len(stems) < len(names):
        raise UserError(f"{shown(str(split.folder))}: two images have the same number: remove one")
    for stem in classes.keys() - stems.keys():
        split.note("missing image", stem)
    return [classes[Path(name).stem] for name in names]


def read_solution(file: Path) -> dict[str, str]:
    """Return the WordNet id of each image of Kaggle's list.

    Raises:
        UserError: it cannot be read.
    """
    name, classes = shown(str(file)), dict[str, str]()
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            rows = csv.reader(lines)
            if next(rows, []) != ["ImageId", "PredictionString"]:
                raise UserError(f"{name}: its first line must be ImageId,PredictionString: download it again")
            for row in rows:
                label = (row[1].split() or [""])[0] if len(row) == 2 else ""
                if wordnet_id(label) != label or not label:
                    raise UserError(f"{name}: line {rows.line_num} names no class: download it again")
                if classes.setdefault(row[0], label) != label:
                    raise UserError(f"{name}: line {rows.line_num}: {shown(row[0])} has two classes")
    except FileNotFoundError:
        raise UserError(f"{name} is missing: it says the classes of Kaggle's val/; put it there") from None
    except OSError as error:
        raise UserError(f"{name}: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{name}: no CSV file in UTF-8 ({shown(str(error))}): download it again") from None
    return classes
