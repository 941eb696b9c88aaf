"""Check an image data set before training: its classes, its links, and whether every image can be decoded.

    python scripts/check_data.py /path/to/imagenet1k
    python scripts/check_data.py /path/to/imagenet1k --workers 16 --list broken.txt
    python scripts/check_data.py digits --quick

Exit code: 0 no trouble was found, 1 trouble was found, 2 the command is wrong.
"""

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from torch.utils.data import Dataset

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from scripts.lib.data_contents import Split, open_splits, troubles_of
from scripts.lib.data_reading import broken_file, by_workers, listed, say
from utils.command_line import cli
from utils.common.checks import check_output
from utils.common.errors import UserError
from utils.common.files import write_atomically
from utils.common.text import plural, shown
from utils.data.decoding import decode
from utils.data.labels import read_class_list
from utils.data.loading import Broken


class Decoding(Dataset[Broken | None]):
    """Maps the path of an image to what is wrong with it, or None if it can be decoded."""

    def __getitem__(self, path: str) -> Broken | None:
        try:
            decode(path)
        except Exception as error:  # decoders raise OSError, SyntaxError, struct.error and others
            return broken_file(path, error)
        return None


def write_list(name: str, broken: Sequence[Broken]) -> None:
    """Write the paths of broken files, one a line; a newline within a path is escaped.

    Raises:
        UserError: the file cannot be written.
    """
    paths = [os.fsencode(file.path).replace(b"\n", b"\\n") + b"\n" for file in broken]
    try:
        write_atomically(Path(name), lambda file: file.write(b"".join(paths)))
    except OSError as error:
        raise UserError(f"--list {shown(name)}: {error.strerror}") from error


def check_folders(
    splits: Sequence[Split], missing: Sequence[str], imagenet: bool, classes: Sequence[str]
) -> int:
    """Print the table of the splits and the troubles of their folders, and return how many there are.

    Args:
        splits: they have been scanned.
        missing: a line for each split that is missing.
        imagenet: whether to expect as many images as ImageNet has.
        classes: the only classes that may be there; if it is empty, any.
    """
    troubles = [*missing, *troubles_of(splits, imagenet, classes)]
    say(f"{'classes':>21}{'images':>12}  smallest to largest class", *(split.row() for split in splits))
    other = sum(split.other for split in splits)
    if other:
        say(f"note: {plural(other, 'file')} without the suffix of an image: not read")
    if troubles:
        say(*(f"trouble: {line}" for line in troubles))
    return len(troubles)


def decode_all(paths: list[str], workers: int, root: Path) -> list[Broken]:
    """Decode every image; print (by their paths within ``root``) and return those that cannot be decoded."""
    broken = [file for file in by_workers(Decoding(), paths, workers, "decoding") if file]
    if broken:
        what = f"{plural(len(broken), 'file')} cannot be decoded: replace or remove them"
        say(f"trouble: {what}", *listed(broken, root))
    return broken


def create_parser() -> cli.Parser:
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=cli.name_of_file, metavar="PATH", help="what --data takes in training")
    parser.add_argument("--quick", action="store_true", help="check names only, decode nothing")
    what = "the classes of the training, one per line; a folder of any other class is trouble"
    parser.add_argument("--class-list", type=cli.name_of_file, metavar="FILE", help=what)
    parser.add_argument("--imagenet", action="store_true", help="expect as many images as ImageNet has")
    parser.add_argument(
        "--list", type=cli.name_of_file, metavar="FILE", help="write the paths of broken files"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the file of --list")
    workers = min(32, os.cpu_count() or 1)
    what = "processes that decode (default: one per core, at most 32)"
    parser.add_argument("-j", "--workers", type=cli.whole, default=workers, metavar="N", help=what)
    return parser


def main() -> None:
    args = create_parser().parse_args()
    if args.quick and args.list:
        raise UserError("--list names files that do not decode: give it without --quick")
    # PIL warns of odd metadata, torch of more workers than cores; forked workers inherit the filter.
    warnings.simplefilter("ignore")
    if args.list:
        check_output(Path(args.list), "--list", args.overwrite)
    splits, missing = open_splits(args.path)
    classes = read_class_list(args.class_list) if args.class_list else ()
    paths = sorted(path for split in splits for path in split.scan())
    troubles = check_folders(splits, missing, args.imagenet, classes)
    broken = [] if args.quick else decode_all(paths, args.workers, splits[0].folder.parent)
    if args.list:
        write_list(args.list, broken)
    troubles += bool(broken)
    total = f"{plural(len(paths), 'image')} in {plural(len(splits[0].classes), 'class')}"
    end = f"sound: {total}{', not decoded' * args.quick}"
    say(f"{plural(troubles, 'trouble')} found" if troubles else end)
    if troubles:
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main)
