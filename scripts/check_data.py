"""Inspect an image folder before a training run: its classes, its links, and whether every image decodes.

    python scripts/check_data.py /path/to/imagenet1k
    python scripts/check_data.py /path/to/imagenet1k --workers 16 --list broken.txt
    python scripts/check_data.py digits --quick

Exit code: 0 the data are sound, 1 trouble was found, 2 the command is wrong.
"""

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from torch.utils.data import Dataset

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from scripts.lib.data_contents import open_splits, troubles_of
from scripts.lib.data_reading import broken_file, by_workers, listed, say
from utils.command_line import cli
from utils.common.errors import UserError
from utils.common.text import plural, shown
from utils.data.decoding import decode
from utils.data.labels import read_class_list
from utils.data.loading import Broken


class Decoding(Dataset[Broken | None]):
    """Indexed by path: what is wrong with a file, None if training can read it."""

    def __getitem__(self, path: str) -> Broken | None:
        try:
            decode(path)
        except Exception as error:  # decoders raise anything: OSError, SyntaxError, struct.error, ...
            return broken_file(path, error)
        return None


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
    classes = read_class_list(args.class_list) if args.class_list else ()
    if args.list:
        write_list(args.list, [])  # so that a name that cannot be written shows now, not after hours
    paths = sorted(path for split in splits for path in split.scan())
    troubles += troubles_of(splits, args.imagenet, classes)
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
    what = "the classes that training is told of, one per line: no other may have a folder"
    parser.add_argument("--class-list", type=cli.name_of_file, metavar="FILE", help=what)
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
