"""Write the model tables of README.md: sizes from the code, accuracies from pretrain_log/published.csv.

    python scripts/results.py           rewrite the tables between the markers
    python scripts/results.py --check   only say whether they are up to date (exit code 1 if not)

A table stands between <!-- results NAME --> and <!-- end NAME -->. Accuracies are others' until a run with
this code has its log in pretrain_log/; every row says whose it is.
"""

import argparse
import csv
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from models import create_model
from utils import cli
from utils.complexity import Complexity, count
from utils.errors import UserError
from utils.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = ROOT / "pretrain_log" / "published.csv"
DETECTION_SHAPE = (3, 800, 1333)  # of the published detection table; the backbone alone
Figures = dict[str, str]  # by the figure's name


def read_published(path: Path) -> dict[str, dict[tuple[str, str, str], Figures]]:
    """Others' figures: by table, then by row, architecture and detector.

    Raises:
        UserError: the file is missing or of another form.
    """
    tables: dict[str, dict[tuple[str, str, str], Figures]] = {}
    try:
        with path.open(newline="") as file:
            for line in csv.DictReader(file):
                row = (line["row"], line["arch"], line["detector"])
                tables.setdefault(line["table"], {}).setdefault(row, {})[line["figure"]] = line["value"]
    except (OSError, KeyError) as error:
        raise UserError(f"{path}: cannot be read as the table of published figures ({error})") from None
    return tables


def whole_size(arch: str) -> Complexity:
    """Of a classification network at 224 pixels."""
    with torch.device("meta"):
        return count(create_model(arch), (3, 224, 224))


def backbone_size(arch: str) -> Complexity:
    """Of the convolutional part at the size of the published detection table."""
    with torch.device("meta"):
        net = create_model(arch, num_classes=1)
    net.avgpool, net.fc = torch.nn.Identity(), torch.nn.Identity()
    return count(net, DETECTION_SHAPE)


def classification(rows: Mapping[tuple[str, str, str], Figures]) -> Iterator[Sequence[str]]:
    yield "published row", "`-a`", "#P", "GFLOPs", "top-1 %", "top-5 %"
    for (row, arch, _), figures in rows.items():
        size = whole_size(arch)
        yield row, arch, millions(size), f"{size.multiply_adds / 1e9:.3f}", figures["top-1"], figures["top-5"]


def shifted(rows: Mapping[tuple[str, str, str], Figures]) -> Iterator[Sequence[str]]:
    yield "published row", "`-a`", "#P", "GFLOPs", "top-1 %"
    for (row, arch, _), figures in rows.items():
        size = whole_size(arch)
        yield row, arch, millions(size), f"{size.multiply_adds / 1e9:.3f}", figures["top-1"]


def detection(rows: Mapping[tuple[str, str, str], Figures]) -> Iterator[Sequence[str]]:
    yield "backbone", "detector, FPN", "#P", "GFLOPs", "AP", "AP50", "AP75"
    sizes = {arch: backbone_size(arch) for arch in dict.fromkeys(arch for _, arch, _ in rows)}
    for (row, arch, detector), figures in rows.items():
        size = sizes[arch]
        cost = f"{size.multiply_adds / 1e9:.1f}"
        yield row, detector, millions(size), cost, *(figures[name] for name in ("AP", "AP50", "AP75"))


def millions(size: Complexity) -> str:
    return f"{size.parameters / 1e6:.2f}M"


TABLES = {"classification": classification, "e-shifted L2": shifted, "detection": detection}


def markdown(rows: Iterator[Sequence[str]]) -> str:
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def replaced(text: str, name: str, table: str) -> str:
    """The text with the table between its markers.

    Raises:
        UserError: they are not there.
    """
    begin, end = f"<!-- results {name} -->\n", f"<!-- end {name} -->\n"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise UserError(f"README.md needs the lines '{begin.strip()}' and '{end.strip()}', once each")
    before, rest = text.split(begin)
    return f"{before}{begin}\n{table}\n{end}{rest.split(end)[1]}"


def main() -> None:
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing")
    readme = "the file with the markers (default: README.md beside scripts/)"
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", metavar="FILE", help=readme)
    args = parser.parse_args()
    try:
        before = after = args.readme.read_text()
    except OSError as error:
        raise UserError(f"--readme {args.readme}: {error.strerror}") from None
    published = read_published(PUBLISHED)
    for name, rows_of in TABLES.items():
        after = replaced(after, name, markdown(rows_of(published[name])))
    if after == before:
        print(f"{args.readme.name}: tables are up to date")
        return
    if args.check:
        print(f"{args.readme.name}: tables are stale; python scripts/results.py rewrites them")
        sys.exit(1)
    write_atomically(args.readme, lambda file: file.write(after.encode()))
    print(f"{args.readme.name}: tables rewritten")


if __name__ == "__main__":
    cli.run(main)
