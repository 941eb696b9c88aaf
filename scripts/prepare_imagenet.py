"""Put ImageNet, as it was downloaded, into class folders or into two tar archives that --data reads.

    python scripts/prepare_imagenet.py /path/to/downloads /fast/imagenet1k --check
    python scripts/prepare_imagenet.py /path/to/downloads /fast/imagenet1k --tar

SOURCE is a folder with one of these:

    ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar, and ILSVRC2012_devkit_t12.tar.gz (or a list of labels)
    ILSVRC/Data/CLS-LOC/ and LOC_val_solution.csv, as Kaggle gives them
    train-*.parquet and validation-*.parquet, as on Hugging Face (also in data/; pip install pyarrow)
    train/ with class folders, val/ without, and the devkit or val.txt, a list of labels
    anything else that --data takes

TARGET gets train/CLASS/NAME and val/CLASS/NAME, or with --tar train.tar and val.tar. Images are copied byte
for byte. Training reads tar archives as they are: this is for what it cannot read, and for who wants folders.

The same command goes on where it was stopped. SOURCE is not changed.

Exit code: 0 all is there, 1 images are missing or were left out, 2 the command or SOURCE is wrong.
"""

import argparse
import hashlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from torchvision.datasets.imagenet import ARCHIVE_META
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from scripts.lib.data_contents import troubles_of
from scripts.lib.data_reading import say
from scripts.lib.prepare_parquet import find_shards, read_shards
from scripts.lib.prepare_sources import Source, read_files
from scripts.lib.prepare_target import check_space, claimed, naming, write_folders, write_tar
from utils.command_line import cli
from utils.common.errors import UserError
from utils.common.text import plural, shown

CHUNK = 2**22  # bytes that are read at once


def check_sums(source: Path) -> None:
    """Compare ImageNet's archives with their published MD5 sums.

    Raises:
        UserError: one differs.
    """
    for name, published in ARCHIVE_META.values():
        file = source / name
        if not file.is_file():
            continue
        digest = hashlib.md5(usedforsecurity=False)
        options = {"unit": "B", "unit_scale": True, "leave": False, "disable": None}
        with naming(file), file.open("rb") as content, tqdm(desc=f"MD5 of {name}", **options) as bar:
            bar.reset(file.stat().st_size)
            while chunk := content.read(CHUNK):
                digest.update(chunk)
                bar.update(len(chunk))
        if digest.hexdigest() != published:
            what = f"its MD5 sum is {digest.hexdigest()}, published is {published}"
            raise UserError(f"{shown(str(file))}: {what}: download it again, or leave out --check")


def described(source: Path, sources: Sequence[Source], tar: bool) -> str:
    """Return what a target is made from, and how."""
    parts = [f"{plural(len(part), f'{part.name} image')} ({part.digest[:16]})" for part in sources]
    return f"{source.resolve()}{' by --tar' * tar}: {', '.join(parts)}\n"


def notes(sources: Sequence[Source], missing: Sequence[str]) -> Iterator[str]:
    """Yield what is not an error of the source, but perhaps not expected."""
    yield from missing
    for part in sources:
        if part.split.other:
            what = f"{plural(part.split.other, 'file')} without the suffix of an image"
            yield f"{part.name}: {what}: left out"


def write(sources: Sequence[Source], target: Path, tar: bool) -> None:
    """Write the splits, and print what was done."""
    for source in sources:
        counts = (write_tar if tar else write_folders)(source, target)
        how = ", ".join(f"{counts[way]:,} {way}" for way in ("written", "there before"))
        say(
            f"{source.name}: {plural(len(source), 'image')} in "
            f"{plural(len(source.split.classes), 'class')}, {source.bytes / 1e9:.2f} GB: {how}"
        )


def create_parser() -> cli.Parser:
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = "the folder that ImageNet was downloaded to"
    parser.add_argument("source", type=cli.name_of_file, metavar="SOURCE", help=what)
    parser.add_argument("target", type=cli.name_of_file, metavar="TARGET", help="a new folder")
    what = "write train.tar and val.tar, with members CLASS/NAME, in place of folders"
    parser.add_argument("--tar", action="store_true", help=what)
    what = "expect ImageNet's numbers of classes and images, and its archives' MD5 sums"
    parser.add_argument("--check", action="store_true", help=what)
    return parser


def main() -> None:
    args = create_parser().parse_args()
    source, target = Path(args.source), Path(args.target)
    if not source.is_dir():
        what = "not a folder" if source.exists() else "no such folder"
        raise UserError(f"{shown(str(source))}: {what}: give the folder that ImageNet was downloaded to")
    if target.resolve().is_relative_to(source.resolve()):
        raise UserError(f"{shown(str(target))} lies in SOURCE: give another TARGET")
    shards = find_shards(source)
    sources, missing = read_shards(source, shards) if shards else read_files(source)
    for part in sources:  # its folder may be a link to another place
        if target.resolve().is_relative_to(part.split.folder.resolve()):
            raise UserError(f"{shown(str(target))} lies in SOURCE: give another TARGET")
    check_space(target, sources, args.tar)
    for line in notes(sources, missing):
        say(f"note: {line}")
    with claimed(target, described(source, sources, args.tar)):
        if args.check:
            check_sums(source)
        write(sources, target, args.tar)
    splits = [part.split for part in sources]
    troubles = [*troubles_of(splits, args.check), *(missing if args.check else [])]
    if troubles:
        say(*(f"trouble: {line}" for line in troubles))
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main)
