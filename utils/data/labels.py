"""Which output of a network stands for which class.

The classes are the class folders in order, unless the outputs have names already: those of the checkpoint, of
``--class-list``, or of ImageNet.

``imagenet_classes.txt`` holds the 1,000 classes of ILSVRC2012, a line each, in the order of the outputs of
all networks that were trained on them: the WordNet ids, sorted, and after a tab the names in the meta data of
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
WORDNET_ID = re.compile(r"n[0-9]{8}(?![0-9A-Za-z])")  # more may follow, as in n02129165_lion


@dataclass(frozen=True)
class Outputs:
    """What is known of a network's outputs before the class folders are looked at."""

    count: int | None = None  # None: one for each class folder
    listed: tuple[str, ...] = ()  # their classes by --class-list
    saved: tuple[str, ...] = ()  # their classes by the checkpoint, of the first outputs at least
    started: tuple[str, ...] = ()  # the same of --finetune: of use if they are the folders
    unnamed: str = ""  # where the weights are from, if the checkpoint does not say their classes


NOTHING_KNOWN = Outputs()


def in_order(folders: Iterable[str]) -> tuple[str, ...]:
    """Sort class folders: by number if all are whole numbers (0, 1, 2, 10), otherwise as text."""
    names = sorted(folders)
    if all(name.isascii() and name.isdigit() for name in names):
        names.sort(key=int)  # 01 and 1 stay in the order of the text
    return tuple(names)


def order_classes(folders: Sequence[str], outputs: Outputs, partial: bool) -> tuple[str, ...]:
    """The class of each output, by the name of its folder; it may have none, and the last outputs no class.

    Args:
        folders: the class folders, in order.
        outputs: what else is known of them.
        partial: whether the checkpoint may know classes that have no folder.

    Raises:
        UserError: the folders are not those of the checkpoint, or nobody says which is which output.
    """
    if outputs.listed:
        return outputs.listed
    imagenet = _among_imagenet(folders) if outputs.count == IMAGENET_CLASSES else ()
    if outputs.saved and outputs.saved != imagenet:
        _check_saved(set(folders), set(outputs.saved), partial)
        return outputs.saved
    if imagenet:
        if len(folders) < len(imagenet):
            print(f"note: the labels are ImageNet's; {len(folders)} of its 1,000 classes have a folder here")
        return imagenet
    if outputs.unnamed and outputs.count and outputs.count > len(folders):
        raise UserError(
            f"{outputs.unnamed} does not name the classes of its {plural(outputs.count, 'output')}, the data "
            f"has {plural(len(folders), 'class folder')}{_strangers(folders, outputs.count)}: say with "
            "--class-list FILE which is which, a class per line in the order of the outputs"
        )
    return outputs.started if set(outputs.started) == set(folders) else tuple(folders)


def ends(classes: Sequence[str]) -> str:
    """The classes of the first and the last output, so that a reader of the log sees their order."""
    return shown(" to ".join((*classes[:1], *classes[1:][-1:])))


def _among_imagenet(folders: Sequence[str]) -> tuple[str, ...]:
    """ImageNet's 1,000 classes by WordNet id, or by their folder; none if a folder is of another class."""
    imagenet = imagenet_classes()
    folder_of = {wordnet_id(name): name for name in folders}
    if len(folder_of) < len(folders) or not folder_of.keys() <= imagenet.keys():
        return ()
    return tuple(folder_of.get(key, key) for key in imagenet)


def wordnet_id(folder: str) -> str:
    """The WordNet id that a folder's name begins with, or nothing."""
    found = WORDNET_ID.match(folder)
    return found.group() if found else ""


def _strangers(folders: Sequence[str], outputs: int) -> str:
    """Why ImageNet's 1,000 classes were not taken, for a message."""
    others = [name for name in folders if wordnet_id(name) not in imagenet_classes()]
    return f" ({others[0]} is none of ImageNet's)" if others and outputs == IMAGENET_CLASSES else ""


def _check_saved(folders: set[str], saved: set[str], partial: bool) -> None:
    """Refuse other folders than the checkpoint's classes; with ``partial`` some may be missing."""
    if folders == saved or (partial and folders < saved):
        return
    missing, new = (", ".join(sorted(names)[:3]) or "none" for names in (saved - folders, folders - saved))
    raise UserError(
        f"--data has other classes than the checkpoint was trained on: {missing} missing, {new} new; "
        "give the data of that run, and its --class-list or --num-classes if it had one"
    )


def imagenet_classes() -> dict[str, str]:
    """ImageNet's names by WordNet id, in the order of the outputs."""
    lines = IMAGENET_FILE.read_text(encoding="utf-8").splitlines()
    return dict(line.split("\t") for line in lines)


def read_class_list(
    path: str, outputs: int | None = None, flag: str = "--class-list", distinct: bool = True
) -> tuple[str, ...]:
    """The classes of ``--class-list``: one per line, in the order of the outputs.

    Space around a name is no part of it; empty lines at the end do not count.

    Args:
        path: the file, UTF-8.
        outputs: how many the network has, if that is known.
        flag: what named the file, for messages.
        distinct: whether a name may stand there once only, as those of folders.

    Raises:
        UserError: it cannot be read, or has other than one name for each output.
    """
    flag = f"{flag} {shown(path)}"
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{flag}: not UTF-8; save it as UTF-8 text, a class per line") from None
    except OSError as error:
        raise UserError(f"{flag}: {error.strerror}") from None
    names = tuple(line.strip() for line in text.rstrip().split("\n"))
    if "" in names:
        raise UserError(f"{flag}: line {names.index('') + 1} is empty; give a class in each line")
    if distinct and (twice := [name for name, count in Counter(names).items() if count > 1]):
        raise UserError(f"{flag}: {shown(twice[0])} stands there twice; give each class once")
    if outputs not in (None, len(names)):
        lines = f"{plural(len(names), 'line')} for {plural(outputs or 0, 'output')} of the network"
        raise UserError(f"{flag}: {lines}; give a class in a line for each")
    return names


def check_agreement(
    listed: Sequence[str], saved: Sequence[str], path: str, flag: str = "--class-list"
) -> None:
    """Compare a class list with the checkpoint's classes, of the first outputs at least.

    Raises:
        UserError: an output is of another class.
    """
    for label, (ours, theirs) in enumerate(zip_longest(listed[: len(saved)], saved)):
        if ours != theirs:
            raise UserError(
                f"{flag} {shown(path)}: output {label} is {shown(ours or 'missing')} there, {shown(theirs)} "
                "in the checkpoint; give the list that it was trained with, or none: it has its own"
            )
