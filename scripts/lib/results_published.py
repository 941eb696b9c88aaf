"""The tables of README.md: sizes computed from the code, accuracies from pretrain_log/published.csv."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

import torch

from models import create_model
from utils.common.errors import UserError
from utils.networks.complexity import Complexity, count

DETECTION_SHAPE = (3, 800, 1333)  # images of the published detection table
Figures = dict[str, str]  # value by name, such as "top-1"
Rows = Mapping[tuple[str, str, str], Figures]  # by row, architecture and detector


def read_published(path: Path) -> dict[str, dict[tuple[str, str, str], Figures]]:
    """Read the published figures: by table, then by row, architecture and detector.

    Raises:
        UserError: the file is missing or damaged.
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


@cache
def whole_size(arch: str) -> Complexity:
    """Return the size of a classification network at 224 pixels."""
    with torch.device("meta"):
        net = create_model(arch)
    return count(net, (3, 224, 224))


@cache
def backbone_size(arch: str) -> Complexity:
    """Return the size of the convolutional part for images of the published detection table's size."""
    with torch.device("meta"):
        net = create_model(arch, num_classes=1)
    net.avgpool, net.fc = torch.nn.Identity(), torch.nn.Identity()
    return count(net, DETECTION_SHAPE)


def classification(rows: Rows) -> Iterator[Sequence[str]]:
    yield "published row", "`-a`", "#P", "GFLOPs", "top-1 %", "top-5 %"
    for (row, arch, _), figures in rows.items():
        size = whole_size(arch)
        yield row, arch, millions(size), f"{size.multiply_adds / 1e9:.3f}", figures["top-1"], figures["top-5"]


def shifted(rows: Rows) -> Iterator[Sequence[str]]:
    yield "published row", "`-a`", "#P", "GFLOPs", "top-1 %"
    for (row, arch, _), figures in rows.items():
        size = whole_size(arch)
        yield row, arch, millions(size), f"{size.multiply_adds / 1e9:.3f}", figures["top-1"]


def detection(rows: Rows) -> Iterator[Sequence[str]]:
    yield "backbone", "detector, FPN", "#P", "GFLOPs", "AP", "AP50", "AP75"
    for (row, arch, detector), figures in rows.items():
        size = backbone_size(arch)
        cost = f"{size.multiply_adds / 1e9:.1f}"
        yield row, detector, millions(size), cost, *(figures[name] for name in ("AP", "AP50", "AP75"))


def later(rows: Rows) -> Iterator[Sequence[str]]:
    """The gates after 2019; "-" where their authors give no figure."""
    yield "published row", "`-a`", "#P", "GFLOPs", "top-1 %", "top-5 %", "COCO box AP"
    for (row, arch, detector), figures in rows.items():
        if not detector:
            size = whole_size(arch)
            precision = rows.get((row, arch, "Faster R-CNN"), {}).get("AP", "-")
            cost = f"{size.multiply_adds / 1e9:.3f}"
            yield row, arch, millions(size), cost, figures["top-1"], figures.get("top-5", "-"), precision


def millions(size: Complexity) -> str:
    return f"{size.parameters / 1e6:.2f}M"


TABLES = {
    "classification": classification,
    "e-shifted L2": shifted,
    "detection": detection,
    "later gates": later,
}
