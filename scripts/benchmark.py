#!/usr/bin/env python
"""Time networks, optimizers, the training step, several processes and the reading of images.

    python scripts/benchmark.py model se_resnet50 'sge_*50' --batch 16
    python scripts/benchmark.py loader /path/to/imagenet -j 8

Each subcommand has an example in its own --help. Every round measures each candidate once, so that a machine
whose speed drifts is fair to all. Printed are the medians of the rounds, and ratios to the first row.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from scripts.lib import (
    benchmark_decode,
    benchmark_growth,
    benchmark_loader,
    benchmark_model,
    benchmark_optimizer,
    benchmark_scaling,
    benchmark_step,
)
from scripts.lib import benchmark_report as report
from utils.command_line import cli

# Each has a docstring (its --help), add_arguments(parser), and main(args), which returns tables.
SUBCOMMANDS = {
    "model": benchmark_model,
    "loader": benchmark_loader,
    "decode": benchmark_decode,
    "growth": benchmark_growth,
    "optimizer": benchmark_optimizer,
    "step": benchmark_step,
    "scaling": benchmark_scaling,
}


def create_parser() -> cli.Parser:
    lines = argparse.RawDescriptionHelpFormatter
    parser = cli.Parser(description=__doc__, formatter_class=lines)
    kinds = parser.add_subparsers(dest="kind", required=True, parser_class=cli.Parser)
    for name, module in SUBCOMMANDS.items():
        text = module.__doc__ or ""
        help_line = text.splitlines()[0].rstrip(".").replace("%", "%%")
        kind = kinds.add_parser(name, help=help_line, description=text, formatter_class=lines)
        module.add_arguments(kind)
        report.add_arguments(kind)
    return parser


def main() -> None:
    args = create_parser().parse_args()
    report.check(args.json, args.png)
    if tables := SUBCOMMANDS[args.kind].main(args):
        machine = report.machine(getattr(args, "device", "cpu"), "threads" in args)
        report.publish(tables, machine, args.json, args.png)


if __name__ == "__main__":
    cli.run(main)
