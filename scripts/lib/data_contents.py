"""What an image data set holds, as training would read it, and what is wrong with it."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from scripts.lib.data_files import kind_of
from utils.common.errors import UserError
from utils.common.text import plural, shown
from utils.data.archive_index import ArchiveIndex
from utils.data.folders import walk
from utils.data.labels import IMAGENET_CLASSES, wordnet_id
from utils.data.splits import TRAIN_NAMES, VAL_NAMES, MissingSplitError, data_root, find_split

TRAIN_IMAGES, VAL_IMAGES = 1_281_167, 50_000  # ImageNet's
NAMES = 5  # listed of each kind of trouble
REMEDIES = MappingProxyType(
    {
        "loose image": "move each into the folder of its class",
        "dead link": "let each lead to a file, or to a folder elsewhere, or remove it",
        "unreadable folder": "give yourself the permission, chmod u+rx",
        "empty class folder": "add images or remove it",
        "missing image": "they are listed but not there; copy or download them again",
        "missing class": "give both splits the same folders",
        "archive with links": "links are not read; pack it anew with the files (tar --dereference)",
        "unlisted class": "add it to the --class-list, or remove the folder",
        "empty split": "put a folder with images into it for each class",
    }
)


@dataclass
class Split:
    """The folder of a split and what it holds."""

    folder: Path
    full: int  # images that ImageNet has in this split
    archives: ArchiveIndex | None = None  # where the images are, in place of the folder
    classes: Counter[str] = field(default_factory=Counter)  # number of images by class
    other: int = 0  # files without the suffix of an image
    troubles: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # paths by kind

    def scan(self) -> Iterator[str]:
        """Yield the images, and count all that lies in the folder; links are followed as in training."""
        if self.archives is None:
            yield from self._scan_folder()
        else:
            self.other = self.archives.contents.left_out.get("other file", 0)
            if self.archives.contents.left_out.get("link"):
                self.troubles["archive with links"] = [Path(str(self.archives)).name]
            for path, label in self.archives:
                self.classes[self.archives.classes[label]] += 1
                yield path

    def _scan_folder(self) -> Iterator[str]:
        for folder in walk(self.folder, self._note_unreadable):
            label = class_of(folder.path)
            if folder.is_loop:
                self.note("dead link", folder.path)
                continue
            if not os.access(self.folder / folder.path, os.X_OK):  # names can be listed, files not opened
                self._note_unreadable(folder.path)
                folder.folders.clear()
                continue
            if label:
                self.classes[label] += 0
            for entry in folder.files:
                kind = kind_of(entry)
                if kind == "image" and label:
                    self.classes[label] += 1
                    yield entry.path
                elif kind == "other":
                    self.other += 1
                else:
                    self.note("loose image" if kind == "image" else kind, folder.path + entry.name)
        empty = {f"{self.folder.name}/{label}" for label, count in self.classes.items() if not count}
        self.troubles["empty class folder"] = list(empty.difference(self.troubles["unreadable folder"]))
        if not self.classes and not any(self.troubles.values()):
            self.note("empty split", "")

    def note(self, kind: str, path: str) -> None:
        """Note a trouble of a file or folder, by its path within the split."""
        self.troubles[kind].append(f"{self.folder.name}/{path}".removesuffix("/"))

    def _note_unreadable(self, path: str, error: OSError | None = None) -> None:
        if label := class_of(path):
            self.classes[label] += 0
        self.note("unreadable folder", path)

    def row(self) -> str:
        """Return the split's line of the table: classes, images, the smallest and the largest class."""
        ordered = sorted(self.classes, key=lambda name: (self.classes[name], name))
        ends = " to ".join(f"{name} ({self.classes[name]:,})" for name in (*ordered[:1], *ordered[1:][-1:]))
        numbers = f"{len(self.classes):>9,}{self.classes.total():>12,}"
        return f"{self.folder.name + '/':<12}{numbers}  {ends}".rstrip()


def class_of(path: str) -> str:
    """Return the class folder that a folder within the split belongs to, or nothing for the split itself."""
    return path.partition("/")[0]


def troubles_of(splits: Sequence[Split], imagenet: bool, listed: Sequence[str] = ()) -> Iterator[str]:
    """Yield a line for each kind of trouble in a split.

    Args:
        splits: they have been scanned.
        imagenet: whether to expect as many classes and images as ImageNet has; in any case they are expected
            if nearly all names of classes are WordNet's and there are about 1,000.
        listed: the only classes that may be there; if it is empty, any.
    """
    names = {name for split in splits for name in split.classes}
    ids = sum(1 for name in names if wordnet_id(name))
    # ImageNet-21k has names of WordNet too, but many more.
    imagenet = imagenet or (
        0.9 * len(names) <= ids and 0.9 * IMAGENET_CLASSES <= ids <= 1.1 * IMAGENET_CLASSES
    )
    for split in splits:
        if split.classes:  # another line says why there are none
            split.troubles["missing class"] = list(names - split.classes.keys())
        if listed:
            split.troubles["unlisted class"] = list(split.classes.keys() - set(listed))
        for kind, found in split.troubles.items():
            if found:
                first = ", ".join(sorted(found)[:NAMES]) + ", ..." * (len(found) > NAMES)
                yield f"{split.folder.name}/ has {plural(len(found), kind)} ({first}): {REMEDIES[kind]}"
        classes, images = len(split.classes), split.classes.total()
        if imagenet and classes and (classes, images) != (IMAGENET_CLASSES, split.full):
            yield (
                f"{split.folder.name}/ has {plural(classes, 'class')} and {plural(images, 'image')}, "
                f"ImageNet {IMAGENET_CLASSES:,} and {split.full:,}: unpack its archives again"
            )


def open_splits(name: str) -> tuple[list[Split], list[str]]:
    """Return the splits of a data set, and a line of trouble for one that is missing.

    Raises:
        UserError: both are missing, or two folders might be the same split.
    """
    splits, missing = [], []
    try:
        root = data_root(name)
        for names, full in ((TRAIN_NAMES, TRAIN_IMAGES), (VAL_NAMES, VAL_IMAGES)):
            try:
                split = find_split(root, names)
                if isinstance(split, ArchiveIndex):
                    splits.append(Split(split.split, full, split))
                else:
                    splits.append(Split(split, full))
            except MissingSplitError as error:
                missing.append(without_flag(error))
    except OSError as error:
        raise UserError(f"{shown(name)}: {error.strerror}") from error
    except UserError as error:
        raise UserError(without_flag(error)) from None
    if not splits:
        raise UserError(missing[0])
    return splits, missing


def without_flag(error: UserError) -> str:
    """Return the error's message without ``--data``: here the data set is an argument of its own."""
    return shown(str(error).removeprefix("--data "))
