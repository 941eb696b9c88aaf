#!/usr/bin/env python
"""Time networks, optimizers, the training step, several processes and the reading of images.

    python scripts/benchmark.py model se_resnet50 'sge_*50' --batch 16
    python scripts/benchmark.py loader /path/to/imagenet -j 8

Each subcommand has an example in its own --help. Every round runs each candidate once, so that a machine
whose speed drifts is fair to all; what is printed are medians of the rounds, and ratios to the first row.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from scripts.benchmarks import decode, growth, loader, model, optimizer, report, scaling, step
from utils.command_line import cli

SUBCOMMANDS = (model, loader, decode, growth, optimizer, step, scaling)


def main() -> None:
    lines = argparse.RawDescriptionHelpFormatter
    parser = cli.Parser(description=__doc__, formatter_class=lines)
    kinds = parser.add_subparsers(dest="kind", required=True, parser_class=cli.Parser)
    for module in SUBCOMMANDS:
        name, text = module.__name__.rpartition(".")[2], module.__doc__ or ""
        help_line = text.splitlines()[0].rstrip(".").replace("%", "%%")
        kind = kinds.add_parser(name, help=help_line, description=text, formatter_class=lines)
        module.add_arguments(kind)
        report.add_arguments(kind)
        kind.set_defaults(run=module.run)
    args = parser.parse_args()
    report.check(args)
    if tables := args.run(args):
        report.publish(args, tables)


if __name__ == "__main__":
    cli.run(main)
