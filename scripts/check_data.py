"""Inspect an image folder before a training run: its classes, its links, and whether every image decodes.

    python scripts/check_data.py /path/to/imagenet1k
    python scripts/check_data.py /path/to/imagenet1k --workers 16 --list broken.txt
    python scripts/check_data.py digits --quick

Exit code: 0 the data are sound, 1 trouble was found, 2 the command is wrong.
"""

import argparse
import os
import re
import signal
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch.utils.data import DataLoader, Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from utils import cli
from utils.data import Broken
from utils.decoding import decode
from utils.errors import UserError
from utils.splits import TRAIN_NAMES, VAL_NAMES, data_root, find_split
from utils.text import plural, shown

CLASSES, TRAIN_IMAGES, VAL_IMAGES = 1000, 1_281_167, 50_000  # ImageNet's
WORDNET_ID = re.compile(r"n\d{8}(?!\d)")
BATCH = 32  # images that a worker decodes at a time
NAMES, FILES = 5, 20  # how many are listed
REMEDIES = MappingProxyType(
    {
        "loose image": "move each into the folder of its class",
        "dead link": "let each lead to a file, or to a folder elsewhere, or remove it",
        "unreadable folder": "give yourself the permission, chmod u+rx",
        "empty class folder": "add images or remove it",
        "missing class": "give both splits the same folders",
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


def troubles_of(splits: Sequence[Split], imagenet: bool) -> Iterator[str]:
    """A line for each kind of trouble in a split; ImageNet's numbers are expected where its names are."""
    names = {name for split in splits for name in split.classes}
    ids = sum(1 for name in names if WORDNET_ID.match(name))
    # ImageNet-21k has such names too, but many more.
    imagenet = imagenet or (0.9 * len(names) <= ids and 0.9 * CLASSES <= ids <= 1.1 * CLASSES)
    for split in splits:
        if split.classes:  # another line says why there are none
            split.troubles["missing class"] = list(names - split.classes.keys())
        for kind, found in split.troubles.items():
            if found:
                first = ", ".join(sorted(found)[:NAMES]) + ", ..." * (len(found) > NAMES)
                yield f"{split.folder.name}/ has {plural(len(found), kind)} ({first}): {REMEDIES[kind]}"
        classes, images = len(split.classes), split.classes.total()
        if imagenet and classes and (classes, images) != (CLASSES, split.full):
            yield (
                f"{split.folder.name}/ has {plural(classes, 'class')} and {plural(images, 'image')}, "
                f"ImageNet {CLASSES:,} and {split.full:,}: unpack its archives again"
            )


def broken_file(path: str, error: Exception) -> Broken:
    """A file and, without the path, what its decoder said."""
    reason = getattr(error, "strerror", None) or str(error).replace(repr(path), "")
    return Broken(path, f"{type(error).__name__}: {reason.strip()}")


class Decoding(Dataset[Broken | None]):
    """Indexed by path: what is wrong with a file, None if training can read it."""

    def __getitem__(self, path: str) -> Broken | None:
        try:
            decode(path)
        except Exception as error:  # decoders raise anything: OSError, SyntaxError, struct.error, ...
            return broken_file(path, error)
        return None


def by_workers(work: Dataset[Any], paths: list[str], workers: int, title: str) -> Generator[Any, None, None]:
    """What ``work``, indexed by path, makes of each file, in their order, under a progress bar.

    Raises:
        UserError: a worker died.
    """
    batches = (paths[i : i + BATCH] for i in range(0, len(paths), BATCH))
    fork: dict[str, Any] = {"num_workers": workers, "multiprocessing_context": "fork" if workers else None}
    loader = DataLoader(work, batch_sampler=batches, collate_fn=list, **fork)
    # Forked workers inherit the block, so that Ctrl-C reaches this process alone.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    results = iter(loader)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    done = 0
    with tqdm(desc=title, total=len(paths), unit=" images", leave=False, disable=None) as bar:
        try:
            for batch in results:
                yield from batch
                done += len(batch)
                bar.update(len(batch))
        except RuntimeError as error:  # how torch says that a worker is dead
            suspects = paths[done : done + 2 * workers * BATCH]
            where = f"one of the {plural(len(suspects), 'file')} from {shown(suspects[0])} on"
            raise UserError(f"a worker died on {where}; if for want of memory, lower --workers") from error


def listed(broken: Sequence[Broken], root: Path) -> list[str]:
    """A line for each of the first files, and how many more there are."""
    lines = [f"  {os.path.relpath(path, root)}: {reason}" for path, reason in broken[:FILES]]
    return lines + [f"  ... and {len(broken) - FILES:,} more"] * (len(broken) > FILES)


def say(*lines: str) -> None:
    """Print at once: the decoding that follows may take hours."""
    print(*map(shown, lines), sep="\n", flush=True)


def open_splits(name: str) -> tuple[list[Split], list[str]]:
    """The splits that are there, and a line of trouble for one that is not.

    Raises:
        UserError: none is.
    """
    splits, missing = [], []
    try:
        root = data_root(name)
        for names, full in ((TRAIN_NAMES, TRAIN_IMAGES), (VAL_NAMES, VAL_IMAGES)):
            try:
                splits.append(Split(find_split(root, names), full))
            except UserError as error:
                missing.append(shown(str(error).removeprefix("--data ")))
    except OSError as error:
        raise UserError(f"{shown(name)}: {error.strerror}") from error
    if not splits:
        raise UserError(missing[0])
    return splits, [f"{line}: add a folder of that name" for line in missing]


def write_list(name: str, broken: Sequence[Broken]) -> None:
    """A path a line, as the system has it; a newline within one is escaped."""
    paths = [os.fsencode(file.path).replace(b"\n", b"\\n") + b"\n" for file in broken]
    try:
        Path(name).write_bytes(b"".join(paths))
    except OSError as error:
        raise UserError(f"--list {shown(name)}: {error.strerror}") from error


def check(args: argparse.Namespace) -> int:
    """Print what was found, and return the number of troubles."""
    splits, troubles = open_splits(args.path)
    if args.list:
        write_list(args.list, [])  # so that a name that cannot be written shows now, not after hours
    paths = sorted(path for split in splits for path in split.scan())
    troubles += troubles_of(splits, args.imagenet)
    say(f"{'classes':>21}{'images':>12}  smallest to largest class", *(split.row() for split in splits))
    other = sum(split.other for split in splits)
    if other:
        say(f"note: {plural(other, 'file')} without the suffix of an image: not read")
    if troubles:
        say(*(f"trouble: {line}" for line in troubles))
    decoded = () if args.quick else by_workers(Decoding(), paths, args.workers, "decoding")
    broken = [file for file in decoded if file]
    if broken:
        what = f"{plural(len(broken), 'file')} cannot be decoded: replace or remove them"
        say(f"trouble: {what}", *listed(broken, splits[0].folder.parent))
    if args.list:
        write_list(args.list, broken)
    found = len(troubles) + bool(broken)
    total = f"{plural(len(paths), 'image')} in {plural(len(splits[0].classes), 'class')}"
    say(f"{plural(found, 'trouble')} found" if found else f"sound: {total}{', not decoded' * args.quick}")
    return found


def main() -> None:
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=cli.name_of_file, metavar="PATH", help="what --data takes in training")
    parser.add_argument("--quick", action="store_true", help="look at names only, decode nothing")
    parser.add_argument("--imagenet", action="store_true", help="demand as many images as ImageNet has")
    parser.add_argument(
        "--list", type=cli.name_of_file, metavar="FILE", help="write the paths of broken files"
    )
    workers = min(32, os.cpu_count() or 1)
    what = "processes that decode (default: one per core, at most 32)"
    parser.add_argument("-j", "--workers", type=cli.whole, default=workers, metavar="N", help=what)
    args = parser.parse_args()
    if args.quick and args.list:
        raise UserError("--list names files that do not decode: give it without --quick")
    # PIL's of odd metadata, torch's of more workers than cores; forked workers inherit the filter.
    warnings.simplefilter("ignore")
    if check(args):
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main)
