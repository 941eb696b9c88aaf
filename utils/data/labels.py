"""The class of each output of a network.

The outputs are the class folders in order, unless their classes are already known: from the checkpoint, from
``--class-list``, or because they are ImageNet's.

``imagenet_classes.txt`` holds the 1,000 classes of ILSVRC2012, one per line, in the order of the outputs of
all networks trained on them: sorted by WordNet id, which is followed by a tab and the name in the metadata of
torchvision's weights.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from utils.common.errors import UserError
from utils.common.text import plural, shown

IMAGENET_FILE = Path(__file__).with_name("imagenet_classes.txt")
IMAGENET_CLASSES = 1000
WORDNET_ID = re.compile(r"n[0-9]{8}(?![0-9A-Za-z])")  # a suffix may follow, as in n02129165_lion


@dataclass(frozen=True)
class Outputs:
    """What is known about a network's outputs before the class folders are listed."""

    count: int | None = None  # None: one per class folder
    listed: tuple[str, ...] = ()  # their classes in --class-list
    saved: tuple[str, ...] = ()  # the classes of the first outputs, or of all, in the checkpoint
    started: tuple[str, ...] = ()  # the classes in the file of --finetune; used if they are the folders
    unnamed: str = ""  # where the weights come from, for the message if their classes are unknown


NOTHING_KNOWN = Outputs()


def in_order(folders: Iterable[str]) -> tuple[str, ...]:
    """Sort class folders: by number if all are whole numbers (0, 1, 2, 10), otherwise as text."""
    names = sorted(folders)
    if all(name.isascii() and name.isdigit() for name in names):
        names.sort(key=int)  # stable: 01 stays before 1
    return tuple(names)


def order_classes(folders: Sequence[str], outputs: Outputs, partial: bool) -> tuple[str, ...]:
    """Return the class of each output, named by its folder.

    A class may have no folder, and the last outputs may have no class.

    Args:
        folders: the class folders, in order.
        outputs: what else is known about the outputs.
        partial: whether classes of the checkpoint may have no folder.

    Raises:
        UserError: the folders are not the checkpoint's classes, or the order of its outputs is unknown.
    """
    if outputs.listed:
        return outputs.listed
    imagenet = _among_imagenet(folders) if outputs.count == IMAGENET_CLASSES else ()
    if outputs.saved and outputs.saved != imagenet:
        if partial and are_numbers(folders) and are_imagenet(outputs.saved):
            print("note: the class folders 0 to 999 are ImageNet's classes by number, as in ImageNetV2")
            return tuple(folders)
        _check_saved(set(folders), set(outputs.saved), partial)
        return outputs.saved
    if imagenet:
        if len(folders) < len(imagenet):
            print(f"note: the labels are ImageNet's; {len(folders)} of its 1,000 classes have a folder here")
        return imagenet
    if outputs.unnamed and outputs.count and outputs.count > len(folders):
        raise UserError(
            f"{outputs.unnamed} does not name the classes of its {plural(outputs.count, 'output')}, the data "
            f"has {plural(len(folders), 'class folder')}{_not_imagenet(folders, outputs.count)}: say with "
            "--class-list FILE which output is which class, one per line in the order of the outputs"
        )
    return outputs.started if set(outputs.started) == set(folders) else tuple(folders)


def are_numbers(folders: Sequence[str]) -> bool:
    """Return whether class folders, in order, are the numbers 0 to 999 of ImageNet's outputs."""
    return list(folders) == [str(number) for number in range(IMAGENET_CLASSES)]


def are_imagenet(classes: Sequence[str]) -> bool:
    """Return whether the classes of outputs are ImageNet's in its order, by WordNet id or by number."""
    return [wordnet_id(name) for name in classes] == list(imagenet_classes()) or are_numbers(classes)


def are_classes(folders: Sequence[str], outputs: Outputs) -> bool:
    """Return whether folders, in order, can only be classes: ImageNet's, or those that the outputs have."""
    known = {*outputs.listed, *outputs.saved}
    ids = {wordnet_id(name) for name in folders}
    return bool(folders) and (
        ids <= imagenet_classes().keys() or are_numbers(folders) or known.issuperset(folders)
    )


def readable(name: str) -> str:
    """Return a class folder's name, of one named by a WordNet id of ImageNet the class's English name."""
    return imagenet_classes().get(wordnet_id(name), name)


def names_of_all(classes: Sequence[str], outputs: int) -> tuple[str, ...]:
    """Return a name for each output; one that has no class is named by its number."""
    return (*classes, *(f"output {number}" for number in range(len(classes), outputs)))


def ends(classes: Sequence[str]) -> str:
    """Name the first and the last class, to show the order of the outputs in the log."""
    return shown(" to ".join((*classes[:1], *classes[1:][-1:])))


def _among_imagenet(folders: Sequence[str]) -> tuple[str, ...]:
    """ImageNet's 1,000 classes by folder name, or else WordNet id; empty if a folder is of another class."""
    imagenet = imagenet_classes()
    folder_of = {wordnet_id(name): name for name in folders}
    if len(folder_of) < len(folders) or not folder_of.keys() <= imagenet.keys():
        return ()
    return tuple(folder_of.get(key, key) for key in imagenet)


def wordnet_id(folder: str) -> str:
    """Return the WordNet id at the start of a folder's name, or an empty string."""
    found = WORDNET_ID.match(folder)
    return found.group() if found else ""


def _not_imagenet(folders: Sequence[str], outputs: int) -> str:
    """Say, for a message, which folder is not a class of ImageNet."""
    others = [name for name in folders if wordnet_id(name) not in imagenet_classes()]
    return f" ({others[0]} is none of ImageNet's)" if others and outputs == IMAGENET_CLASSES else ""


def _check_saved(folders: set[str], saved: set[str], partial: bool) -> None:
    """Refuse folders that are not the checkpoint's classes; with ``partial`` some may be missing."""
    if folders == saved or (partial and folders < saved):
        return
    missing, new = (", ".join(sorted(names)[:3]) or "none" for names in (saved - folders, folders - saved))
    what = f"--data has other classes than the checkpoint was trained on: {missing} missing, {new} new"
    remedy = "give the data of that run, and its --class-list or --num-classes if it had one"
    raise UserError(f"{what}; {remedy}")


def imagenet_classes() -> dict[str, str]:
    """Return ImageNet's class names by WordNet id, in the order of the outputs."""
    lines = IMAGENET_FILE.read_text(encoding="utf-8").splitlines()
    return dict(line.split("\t") for line in lines)


def read_class_list(
    path: str, outputs: int | None = None, flag: str = "--class-list", distinct: bool = True
) -> tuple[str, ...]:
    """Read the classes of ``--class-list``: one per line, in the order of the outputs.

    White space around a name and empty lines at the end are ignored.

    Args:
        path: the file, UTF-8.
        outputs: number of outputs of the network, if known.
        flag: the flag that named the file, for messages.
        distinct: refuse a name that is listed twice; folders cannot share a name.

    Raises:
        UserError: it cannot be read, or does not have one name per output.
    """
    flag = f"{flag} {shown(path)}"
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{flag}: not UTF-8; save it as UTF-8 text, one class per line") from None
    except OSError as error:
        raise UserError(f"{flag}: {error.strerror}") from None
    names = tuple(line.strip() for line in text.rstrip().split("\n"))
    if "" in names:
        raise UserError(f"{flag}: line {names.index('') + 1} is empty; give one class per line")
    if distinct and (twice := [name for name, count in Counter(names).items() if count > 1]):
        raise UserError(f"{flag}: {shown(twice[0])} stands there twice; give each class once")
    if outputs not in (None, len(names)):
        lines = f"{plural(len(names), 'line')} for {plural(outputs or 0, 'output')} of the network"
        raise UserError(f"{flag}: {lines}; give a class in a line for each")
    return names


def check_agreement(
    listed: Sequence[str], saved: Sequence[str], path: str, flag: str = "--class-list"
) -> None:
    """Compare a class list with the checkpoint's classes, which may be those of the first outputs only.

    Raises:
        UserError: they differ for an output.
    """
    for label, (ours, theirs) in enumerate(zip_longest(listed[: len(saved)], saved)):
        if ours != theirs:
            here = f"{flag} {shown(path)}: output {label} is {shown(ours or 'missing')} there"
            remedy = "give the list that it was trained with, or leave the list out"
            raise UserError(f"{here}, {shown(theirs)} in the checkpoint; {remedy}")
