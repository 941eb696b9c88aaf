"""Optimizer steps on a network's parameters, with the same gradients in every step.

    python scripts/benchmark.py optimizer --arch ws_resnet50 --threads 1

Compared are torch's SGD, fused (the baseline) and with default settings, and the SGD with the e-shifted L2
regularizer: layer by layer, as on a CPU, and all layers together in few kernels, as on a GPU.
"""

import argparse
from dataclasses import dataclass
from typing import Any

import torch

from models import create_model
from scripts.lib import benchmark_measure as measure
from scripts.lib.benchmark_report import Result, Table
from utils.command_line import arguments, cli
from utils.training.optim import EShiftedSGD, classify


@dataclass(frozen=True)
class Stepper:
    """An optimizer and what it is called in the table."""

    name: str
    optimizer: torch.optim.Optimizer
    device: torch.device

    def __call__(self, turn: int) -> float:
        """Return the milliseconds of a step."""
        return 1e3 * measure.seconds(self.optimizer.step, self.device)


def add_arguments(parser: cli.Parser) -> None:
    text = "(default: %(default)s)"
    parser.add_argument("--arch", type=arguments.architecture, default="ws_resnet50", help=text)
    measure.add_round_arguments(parser, rounds=15)
    measure.add_device_arguments(parser)


def main(args: argparse.Namespace) -> list[Table]:
    device = measure.choose_device(args.device, args.threads)
    torch.manual_seed(0)
    net = create_model(args.arch).to(device)
    for parameter in net.parameters():
        parameter.grad = 1e-3 * torch.randn_like(parameter)
    owned = classify(net)
    group = {"params": [one.parameter for one in owned], "weight_decay": 1e-4}
    shifted = {**group, "weight_decay": 0.0, "shifted": [one.kind == "conv" for one in owned]}
    settings: dict[str, Any] = {"lr": 1e-6, "momentum": 0.9}
    each, together = (EShiftedSGD([dict(shifted)], 1e-4, 1e-3, way, **settings) for way in (False, True))
    steppers = [
        Stepper("SGD, fused", torch.optim.SGD([dict(group)], fused=True, **settings), device),
        Stepper("SGD, default", torch.optim.SGD([dict(group)], **settings), device),
        Stepper("e-shifted SGD by layers", each, device),
        Stepper("e-shifted SGD together", together, device),
    ]
    times = measure.interleave(steppers, args.rounds, args.warmup_rounds, "optimizer")
    results = [Result(stepper.name, own) for stepper, own in zip(steppers, times, strict=True)]
    return [Table(f"optimizer step on {args.arch}'s parameters", "ms/step", results)]
