"""List the layers of a network: output, parameters, multiply-adds, and the weight decay in training.

    python scripts/summary.py -a sge_resnet50
    python scripts/summary.py -a resnet50 --gate sge --gate-args groups=32 --gate-stages 3 4
    python scripts/summary.py --resume checkpoints/demo/model_best.pth.tar
    python scripts/summary.py -a ws_resnet18 --img-size 128 --num-classes 10 --nowd-conv --el2 --nowd-bn

Multiply-adds are those of one image, counted as utils/networks/complexity.py describes; functions that are
not modules are not counted. The flags of weight decay are those of imagenet_fast.py.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from scripts.lib.restored import open_network
from utils.command_line import arguments, cli
from utils.command_line.checks import check_decay
from utils.command_line.gate_arguments import add_part_arguments, check_gates, network_given
from utils.networks.complexity import count, parts_of, trace
from utils.training.freezing import freeze
from utils.training.optim import (
    Owned,
    WeightDecay,
    check_rate_of_gates,
    classify,
    decaying_kinds,
    describe_groups,
)

WIDTH, KIND = 110, 20  # characters of a line, and of the kind in it at most
E_SHIFT, E_LAMBDA = 1e-3, 1e-4  # as in imagenet_fast.py


class Row(NamedTuple):
    """A layer: a module without parts, or with parameters of its own."""

    layer: str
    kind: str  # the class of the module
    output: str  # shape without the batch dimension; the last call's if there are several
    parameters: int
    multiply_adds: int
    decay: str  # weight decay of its parameters, by their kind

    def cells(self) -> tuple[str, ...]:
        return (*self[:3], f"{self.parameters:,}", f"{self.multiply_adds:,}", self.decay)


def rows_of(net: nn.Module, arch: str, img_size: int, decay: WeightDecay) -> Iterator[Row]:
    """Yield the layers in the order in which the network defines them.

    Args:
        net: the network.
        arch: its name.
        img_size: side of the square input in pixels.
        decay: of the training.
    """
    calls = defaultdict(list)
    for call in trace(net, (3, img_size, img_size)):
        calls[call.name].append(call)
    owned = defaultdict(list)
    for one in classify(net):
        owned[one.name.rpartition(".")[0]].append(one)
    for name, module in net.named_modules():
        own, called = owned[name], calls[name]
        if own or (called and not parts_of(module)):
            times = f"{len(called)} * " * (len(called) > 1)
            output = times + "x".join(map(str, called[-1].shape[1:])) if called else "not called"
            parameters = sum(one.parameter.numel() for one in own)
            multiply_adds = sum(call.multiply_adds for call in called)
            yield Row(
                name or arch,
                type(module).__name__,
                output,
                parameters,
                multiply_adds,
                decay_of(own, decay),
            )


def decay_of(owned: Sequence[Owned], decay: WeightDecay) -> str:
    """Return the kinds of a layer's parameters and their weight decay: ``conv 0.0001, bias 0``."""
    texts = {one.kind: decay.text(one.kind).split(",")[0] if one.trained else "frozen" for one in owned}
    return ", ".join(f"{kind} {text}" for kind, text in texts.items())


def table(rows: Sequence[Row]) -> list[str]:
    """Return lines of at most ``WIDTH`` characters; a long name loses its beginning, a long kind its end."""
    total = Row("total", "", "", sum(row.parameters for row in rows), sum(row[4] for row in rows), "")
    lines = [
        ("layer", "kind", "output", "parameters", "multiply-adds", "weight decay"),
        *(row.cells() for row in (*rows, total)),
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    widths[1] = min(widths[1], KIND)
    widths[0] = min(widths[0], WIDTH - sum(widths[1:]) - 2 * len(widths[1:]))
    return [line_of(cells, widths) for cells in lines]


def line_of(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Return a line with text aligned to the left and numbers to the right."""
    layer, kind, *others = cells
    layer = layer if len(layer) <= widths[0] else ".." + layer[2 - widths[0] :]
    kind = kind if len(kind) <= widths[1] else kind[: widths[1] - 2] + ".."
    aligned = [
        text.rjust(width) if i in (3, 4) else text.ljust(width)
        for i, (text, width) in enumerate(zip((layer, kind, *others), widths, strict=True))
    ]
    return "  ".join(aligned).rstrip()


def create_parser() -> cli.Parser:
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = "see models/ and torchvision.models (default: what the checkpoint says)"
    parser.add_argument("-a", "--arch", type=arguments.architecture, help=what)
    what = "side of the square input in pixels (default: 224, or as the checkpoint was trained)"
    parser.add_argument("--img-size", type=cli.count_of, metavar="S", help=what)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--resume", type=cli.name_of_file, metavar="FILE", help="checkpoint of the network")
    what = "outputs of the network (default: 1000)"
    source.add_argument("--num-classes", type=cli.count_of, default=1000, metavar="N", help=what)
    parser.add_argument(
        "--cardinality", type=cli.count_of, metavar="N", help="groups of the 3x3 convolutions"
    )
    parser.add_argument("--base-width", type=cli.count_of, metavar="N", help="width of each group")
    add_part_arguments(parser, "stem and gates (default: what the checkpoint says)")
    group = parser.add_argument_group("weight decay")
    group.add_argument("--weight-decay", "--wd", type=cli.non_negative, default=1e-4, help="(default: 1e-4)")
    arguments.add_decay_arguments(group)
    arguments.add_finetuning_arguments(parser)
    return parser


def main() -> None:
    parser = create_parser()
    args = parser.parse_args()
    check_decay(parser, args, E_SHIFT, E_LAMBDA)
    check_gates(parser, args)
    opened = open_network(args.resume, network_given(args), args.num_classes)
    net, complexity = opened.net, count(opened.net, (3, opened.img_size, opened.img_size))
    kinds = decaying_kinds(args.wdall, args.nowd_bn, args.nowd_fc, args.nowd_conv)
    decay = WeightDecay(args.weight_decay, kinds, args.lam if args.el2 else None, args.mineps)
    freeze(net, args.freeze)
    check_rate_of_gates(classify(net), args.lr_gates)
    print(*table(list(rows_of(net, opened.arch, opened.img_size, decay))), sep="\n")
    print(f"\n{describe_groups(classify(net), decay, args.lr_gates)}")
    print(f"\n{opened.name}: {complexity} at {opened.img_size} px, {opened.outputs} classes")


if __name__ == "__main__":
    cli.run(main)
