#!/usr/bin/env python
"""Time networks, or optimizers, against each other on synthetic images.

    python scripts/benchmark.py model se_resnet50 sge_resnet50
    python scripts/benchmark.py model sge_resnet50 --dtype bfloat16 --channels-last --batch 32
    python scripts/benchmark.py model mobilenetv1 --baseline mobilenet_v2 --mode eval
    python scripts/benchmark.py optimizer --arch ws_resnet50

Every round runs each candidate once, so that a machine whose speed drifts is fair to all. Ratios to the
baseline: the median of the rounds' ratios with its range, and that of the fastest rounds, which a busy
machine disturbs least.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from models import create_model
from utils import cli, network
from utils.optim import EShiftedSGD, classify


class Network:
    """One network with its input, and one step of it."""

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        torch.manual_seed(0)
        layout = network.layout(args)
        self.name = name
        self.device = torch.device(args.device)
        self.dtype = getattr(torch, args.dtype)
        self.training = args.mode == "train"
        self.net = create_model(name).to(self.device).to(memory_format=layout).train(self.training)
        self.forward = torch.compile(self.net) if args.compile else self.net
        shape = (args.batch, 3, args.img_size, args.img_size)
        self.images = torch.randn(shape, device=self.device).to(memory_format=layout)
        self.labels = torch.randint(1000, (args.batch,), device=self.device)

    def loss(self) -> Tensor:
        autocast = torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)
        with autocast, torch.set_grad_enabled(self.training):
            return nn.functional.cross_entropy(self.forward(self.images), self.labels)

    def step(self) -> None:
        """One forward pass and, in training, one backward pass."""
        self.net.zero_grad(set_to_none=True)
        loss = self.loss()
        if self.training:
            loss.backward()

    def kept_megabytes(self) -> float:
        """What the forward pass keeps for the backward pass, parameters not counted."""
        own = {p.untyped_storage().data_ptr() for p in self.net.parameters()}
        sizes: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            self.loss()
        return sum(sizes.values()) / 2**20


class Stepper(NamedTuple):
    """An optimizer on a network's parameters, whose gradients stay the same."""

    name: str
    optimizer: torch.optim.Optimizer

    def step(self) -> None:
        self.optimizer.step()


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def interleave(candidates: Sequence[Network | Stepper], args: argparse.Namespace) -> list[list[float]]:
    """Seconds of every candidate's steps, taken in turns."""
    seconds: list[list[float]] = [[] for _ in candidates]
    for turn in tqdm(range(args.warmup + args.rounds), desc="rounds", leave=False):
        for candidate, own in zip(candidates, seconds, strict=True):
            wait(args.device)
            started = time.perf_counter()
            candidate.step()
            wait(args.device)
            if turn >= args.warmup:
                own.append(time.perf_counter() - started)
    return seconds


def report(names: Sequence[str], seconds: list[list[float]], further: dict[str, Sequence[str]]) -> None:
    """Print a row per candidate, the baseline first."""
    heads = ("", "ms/step", "ratio", "from", "to", "fastest", *further)
    print(f"{heads[0]:>24}" + "".join(f"{head:>10}" for head in heads[1:]))
    for i, (name, own) in enumerate(zip(names, seconds, strict=True)):
        ratios = [mine / base for mine, base in zip(own, seconds[0], strict=True)]
        fastest = min(own) / min(seconds[0])
        numbers = (statistics.median(ratios), min(ratios), max(ratios), fastest)
        cells = [f"{1e3 * statistics.median(own):.1f}", *(f"{value:.3f}" for value in numbers)]
        print(f"{name:>24}" + "".join(f"{cell:>10}" for cell in (*cells, *(c[i] for c in further.values()))))


def machine(args: argparse.Namespace) -> str:
    if args.device == "cuda":
        return f"{torch.cuda.get_device_name()}, {args.rounds} rounds"
    return f"CPU, {torch.get_num_threads()} threads, {args.rounds} rounds"


def benchmark_models(args: argparse.Namespace) -> None:
    """Print a row per network: time and speed of a step, ratios to the baseline, memory kept."""
    names = [args.baseline, *(name for name in args.names if name != args.baseline)]
    networks = [Network(name, args) for name in names]
    seconds = interleave(networks, args)
    layout = "channels_last" if args.channels_last else "contiguous"
    what = f"{args.mode}, batch {args.batch}, {args.img_size} px, {args.dtype}, {layout}"
    print(f"{what}{', compiled' if args.compile else ''}, {machine(args)}")
    speeds = [f"{args.batch / statistics.median(own):.1f}" for own in seconds]
    further: dict[str, Sequence[str]] = {"images/s": speeds}
    if args.mode == "train" and not args.compile:  # a compiled net keeps what its compiler likes
        further["kept MB"] = [f"{network.kept_megabytes():.0f}" for network in networks]
    report(names, seconds, further)


def benchmark_optimizers(args: argparse.Namespace) -> None:
    """Print a row per optimizer: torch's SGD, fused and by default, and that with the e-shifted L2."""
    torch.manual_seed(0)
    net = create_model(args.arch).to(args.device)
    for parameter in net.parameters():
        parameter.grad = 1e-3 * torch.randn_like(parameter)
    owned = classify(net)
    group = {"params": [one.parameter for one in owned], "weight_decay": 1e-4}
    shifted = {**group, "weight_decay": 0.0, "shifted": [one.kind == "conv" for one in owned]}
    settings: dict[str, Any] = {"lr": 1e-6, "momentum": 0.9}
    steppers = [
        Stepper("SGD, fused", torch.optim.SGD([dict(group)], fused=True, **settings)),
        Stepper("SGD, default", torch.optim.SGD([dict(group)], **settings)),
        Stepper("e-shifted SGD", EShiftedSGD([shifted], lam=1e-4, shift=1e-3, **settings)),
    ]
    seconds = interleave(steppers, args)
    print(f"optimizer step on {args.arch}'s parameters, {machine(args)}")
    report([stepper.name for stepper in steppers], seconds, {})


def add_common_arguments(parser: argparse.ArgumentParser, rounds: int) -> None:
    parser.add_argument("--rounds", type=cli.count_of, default=rounds)
    parser.add_argument("--warmup", type=cli.whole, default=1, help="rounds not counted")
    parser.add_argument("--threads", type=cli.count_of, help="threads of the CPU (default: torch's)")
    devices = ("cpu", "cuda")
    parser.add_argument("--device", choices=devices, default=devices[torch.cuda.is_available()])


def main() -> None:
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True, parser_class=cli.Parser)
    model = kinds.add_parser("model", help="training or evaluation steps of networks")
    model.add_argument("names", nargs="+", type=cli.architecture, metavar="ARCH")
    model.add_argument("--baseline", type=cli.architecture, default="resnet50", metavar="ARCH")
    model.add_argument("--mode", choices=("train", "eval"), default="train")
    model.add_argument("--batch", type=cli.count_of, default=16)
    model.add_argument("--img-size", type=cli.count_of, default=224)
    model.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    model.add_argument("--channels-last", action="store_true")
    model.add_argument("--compile", action="store_true")
    add_common_arguments(model, rounds=7)
    model.set_defaults(run=benchmark_models)
    optimizer = kinds.add_parser("optimizer", help="optimizer steps on a network's parameters")
    optimizer.add_argument("--arch", type=cli.architecture, default="ws_resnet50")
    add_common_arguments(optimizer, rounds=15)
    optimizer.set_defaults(run=benchmark_optimizers)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    args.run(args)


if __name__ == "__main__":
    cli.run(main)
