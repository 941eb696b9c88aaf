"""The networks of a study's rows: their flags as the training script reads them, and the network they say."""

import argparse
from typing import NoReturn

import torch
from torch import nn

import imagenet
import imagenet_fast
import imagenet_mobile
from scripts.lib.study_file import Study
from utils.command_line.checks import check
from utils.command_line.gate_arguments import network_given
from utils.common.errors import UserError
from utils.networks.building import NetworkSpec, build_model, choose_network


def parse_row(study: Study, row: str) -> argparse.Namespace:
    """Read the flags of a row as its training script does.

    Raises:
        UserError: the script does not take them.
    """
    if study.script == "imagenet.py":
        parser = imagenet.create_parser()
    elif study.script == "imagenet_fast.py":
        parser = imagenet_fast.create_parser()
    else:
        parser = imagenet_fast.create_parser(defaults=imagenet_mobile.DEFAULTS)

    def refuse(message: str) -> NoReturn:
        raise UserError(f"{study.path}: row '{row}': {message}")

    setattr(parser, "error", refuse)  # noqa: B010  (mypy: a method)
    args = parser.parse_args(list(study.words(row)))
    check(parser, args)
    return args


def spec_of(args: argparse.Namespace) -> NetworkSpec:
    """Return the network that a row's flags say."""
    return choose_network(network_given(args), {}, None)


def build_row(spec: NetworkSpec, classes: int) -> nn.Module:
    """Build a row's network with new weights."""
    return build_model(spec, classes)[0]


def check_rows(study: Study) -> None:
    """Check before the first run that the script takes the flags of all rows, and that their networks exist.

    Raises:
        UserError: one does not.
    """
    for row in study.rows:
        spec = spec_of(parse_row(study, row))
        try:
            with torch.device("meta"):
                build_row(spec, 2)
        except UserError as error:
            raise UserError(f"{study.path}: row '{row}': {error}") from None
