"""What lies in an image folder, as training would meet it, and what is wrong with it."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from torchvision.datasets.folder import IMG_EXTENSIONS

from utils.common.errors import UserError
from utils.common.text import plural, shown
from utils.data.labels import IMAGENET_CLASSES, wordnet_id
from utils.data.splits import TRAIN_NAMES, VAL_NAMES, MissingSplitError, data_root, find_split

TRAIN_IMAGES, VAL_IMAGES = 1_281_167, 50_000  # ImageNet's
NAMES = 5  # how many are listed
REMEDIES = MappingProxyType(
    {
        "loose image": "move each into the folder of its class",
        "dead link": "let each lead to a file, or to a folder elsewhere, or remove it",
        "unreadable folder": "give yourself the permission, chmod u+rx",
        "empty class folder": "add images or remove it",
        "missing class": "give both splits the same folders",
        "unlisted class": "add it to the --class-list, or remove the folder",
        "empty split": "put a folder with images into it for each class",
    }
)


@dataclass
class Split:
    """What lies in a split's folder; ``full`` is the number of images that ImageNet has there."""

    folder: Path
    full: int
    classes: Counter[str] = field(default_factory=Counter)  # images by class
    other: int = 0  # files without the suffix of an image
    troubles: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # names by kind

    def scan(self) -> Iterator[str]:
        """Yield the images and count them; links and nested folders are followed, as in training."""
        waiting = [(str(self.folder), "")]
        while waiting:
            folder, label = waiting.pop()
            try:
                with os.scandir(folder) as entries:
                    if not os.access(folder, os.X_OK):  # names can be listed, files not opened
                        raise PermissionError
                    for entry in entries:
                        kind = kind_of(entry)
                        if kind == "folder":
                            waiting.append((entry.path, label or entry.name))
                            self.classes[label or entry.name] += 0
                        elif kind == "image" and label:
                            self.classes[label] += 1
                            yield entry.path
                        elif kind == "other":
                            self.other += 1
                        else:
                            self.note("loose image" if kind == "image" else kind, entry.path)
            except OSError:
                self.note("unreadable folder", folder)
        empty = {f"{self.folder.name}/{label}" for label, count in self.classes.items() if not count}
        self.troubles["empty class folder"] = list(empty.difference(self.troubles["unreadable folder"]))
        if not self.classes and not any(self.troubles.values()):
            self.note("empty split", str(self.folder))

    def note(self, kind: str, path: str) -> None:
        self.troubles[kind].append(os.path.relpath(path, self.folder.parent))

    def row(self) -> str:
        """Its line of the table: the classes, the images, the classes with fewest and most."""
        ordered = sorted(self.classes, key=lambda name: (self.classes[name], name))
        ends = " to ".join(f"{name} ({self.classes[name]:,})" for name in (*ordered[:1], *ordered[1:][-1:]))
        numbers = f"{len(self.classes):>9,}{self.classes.total():>12,}"
        return f"{self.folder.name + '/':<12}{numbers}  {ends}".rstrip()


def kind_of(entry: "os.DirEntry[str]") -> str:
    """What training sees in an entry: ``folder``, ``image``, ``other`` (file), or a ``dead link``."""
    try:
        if entry.is_dir():
            here = Path(entry.path)
            around = entry.is_symlink() and here.parent.resolve().is_relative_to(here.resolve())
            return "dead link" if around else "folder"
        if entry.is_file():
            return "image" if entry.name.lower().endswith(IMG_EXTENSIONS) else "other"
    except OSError:  # a link to itself, for one
        pass
    return "dead link"


def troubles_of(splits: Sequence[Split], imagenet: bool, listed: Sequence[str] = ()) -> Iterator[str]:
    """A line for each kind of trouble in a split; ImageNet's numbers are expected where its names are.

    Args:
        splits: that have been scanned.
        imagenet: whether they are ImageNet's, whatever their names.
        listed: the classes that may be there; all if there are none.
    """
    names = {name for split in splits for name in split.classes}
    ids = sum(1 for name in names if wordnet_id(name))
    # ImageNet-21k has such names too, but many more.
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
    """The splits that are there, and a line of trouble for one that is not.

    Raises:
        UserError: none is, or two folders may be the same split.
    """
    splits, missing = [], []
    try:
        root = data_root(name)
        for names, full in ((TRAIN_NAMES, TRAIN_IMAGES), (VAL_NAMES, VAL_IMAGES)):
            try:
                splits.append(Split(find_split(root, names), full))
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
    """Its message: the data set is no ``--data`` here, but an argument."""
    return shown(str(error).removeprefix("--data "))
