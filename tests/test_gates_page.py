"""docs/gates.md: its tables are those of the code."""

import re

import pytest
import torch
from conftest import REPOSITORY
from torch import nn
from torchvision.models import convnext, mobilenetv2, regnet, resnet

from models import create_model
from models.gates import POSITIONS, add_gates, knobs, list_gates
from models.gates.identity import _CONSTANT
from models.gates.registry import kind_of
from models.gates.sites import places_of
from utils.networks.complexity import count

PAGE = (REPOSITORY / "docs" / "gates.md").read_text()


def table(head: str) -> list[list[str]]:
    """The cells of the rows of the table whose first line begins so, without backquotes."""
    lines = PAGE[PAGE.index(f"| {head} |") :].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip().replace("`", "") for cell in line.strip("|").split("|")] for line in lines]


def test_every_gate_has_its_row() -> None:
    rows = {row[0]: row for row in table("name | paper")}
    assert list(rows) == list_gates()
    for gate, row in rows.items():
        assert row[3] == " ".join(f"{knob}={value}" for knob, value in knobs(gate).items())
    places = {row[0]: row[1] for row in table("name | place")}
    assert places == {gate: kind_of(gate).places[0] for gate in list_gates()}


@pytest.mark.parametrize(
    "gate",
    [pytest.param(gate, marks=() if gate in ("se", "bam") else pytest.mark.slow) for gate in list_gates()],
)
def test_what_a_gate_adds(gate: str) -> None:
    (row,) = (row for row in table("name | place") if row[0] == gate)
    with torch.device("meta"):
        plain, net = (create_model("resnet50") for _ in range(2))
        add_gates(net, gate)
    before, after = (count(one, (3, 224, 224)) for one in (plain, net))
    said = [int(cell.replace(",", "")) for cell in row[2:4]]
    assert said == [after.parameters - before.parameters, after.multiply_adds - before.multiply_adds]


def test_the_places_of_blocks() -> None:
    names = [row[0] for row in table("place | where")]
    assert sorted([*names, "paper"]) == sorted(POSITIONS)
    inverted = mobilenetv2.InvertedResidual
    blocks: dict[str, list[tuple[nn.Module, set[str]]]] = {  # what holds of a block, beside "yes"
        "ResNet's basic block": [(resnet.BasicBlock(8, 8), set())],
        "ResNet's bottleneck (ResNeXt, Wide-ResNet)": [(resnet.Bottleneck(32, 8), set())],
        "RegNet": [(regnet.ResBottleneckBlock(8, 8, 1, nn.BatchNorm2d, nn.ReLU, 8), set())],
        "MobileNetV2 and V3, EfficientNet": [
            (inverted(8, 8, 1, 6), {"with a shortcut", "with an expansion"}),
            (inverted(8, 16, 1, 6), {"with an expansion"}),
            (inverted(8, 8, 1, 1), {"with a shortcut"}),
        ],
        "ConvNeXt": [(convnext.CNBlock(8, 1e-6, 0.0), set())],
    }
    rows = table("block | standard")
    assert [row[0] for row in rows] == list(blocks)
    head = PAGE[PAGE.index("| block |") :].splitlines()[0].strip("| ").split(" | ")[1:]
    for kind, *cells in rows:
        for block, holds in blocks[kind]:
            said = {place for place, cell in zip(head, cells, strict=True) if cell in {"yes", *holds}}
            assert said == set(places_of(block)), kind


def test_the_identity_start_of_each() -> None:
    rows = [(re.split(r"[ ,]+", row[0]), row[1]) for row in table("gate | how")]
    how = {gate: text for gates, text in rows for gate in gates if gate in list_gates()}
    assert set(how) == set(list_gates())
    with_constant = {gate for gate in list_gates() if kind_of(gate).module in _CONSTANT}
    assert {gate for gate, text in how.items() if "share" not in text} == with_constant
