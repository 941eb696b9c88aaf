"""Training or evaluation steps of networks on random images.

    python scripts/benchmark.py model se_resnet50 'sge_*50' --batch 16
    python scripts/benchmark.py model timm:convnext_tiny --mode eval --precision bf16 --channels-last

A training step is forward and backward, without optimizer. Names may be shell patterns; timm:NAME is one of
timm's networks, where timm is installed, torchvision:NAME one of torchvision's.
"""

import argparse
import difflib
import fnmatch
import importlib.util
import statistics
from collections.abc import Collection, Sequence
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from models import create_model, list_models
from scripts.benchmarks import measure
from scripts.benchmarks.gpus import peak_of
from scripts.benchmarks.report import Result, Table
from utils.command_line import cli
from utils.common.errors import UserError
from utils.networks import building as network
from utils.networks.compilation import compile_blocks
from utils.networks.complexity import Complexity, count

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="+", metavar="NAME", help="a network, or a shell pattern of names")
    text = "the network of the ratios (default: %(default)s)"
    parser.add_argument("--baseline", default="resnet50", metavar="NAME", help=text)
    parser.add_argument("--mode", choices=("train", "eval"), default="train", help="(default: train)")
    text = "bf16 and fp16 by autocast, without loss scale (default: fp32)"
    parser.add_argument("--precision", choices=TYPES, default="fp32", help=text)
    parser.add_argument("--batch", type=cli.count_of, default=16, help="images (default: 16)")
    parser.add_argument("--img-size", type=cli.count_of, default=224, help="pixels (default: 224)")
    parser.add_argument("--channels-last", action="store_true", help="NHWC layout of images and weights")
    parser.add_argument("--compile", action="store_true", help="compile the blocks with torch.compile")
    text = "steps in a row of each turn (default: 1 on a CPU, 10 on CUDA)"
    parser.add_argument("--steps", type=cli.count_of, metavar="N", help=text)
    measure.add_round_arguments(parser, rounds=7)
    measure.add_device_arguments(parser)


def known(source: str) -> Sequence[str]:
    """All names of ``timm``, of ``torchvision``, or of the registry (an empty ``source``).

    Raises:
        UserError: timm is not installed, or there is no such source.
    """
    if source == "timm":
        cli.check_libraries("timm:NAME", "timm")
        return importlib.import_module("timm").list_models()
    if source == "torchvision":
        return torchvision.models.list_models(module=torchvision.models)
    if source:
        raise UserError(f"unknown prefix '{source}:'; networks are NAME, timm:NAME or torchvision:NAME")
    return list_models()


def expand(pattern: str) -> list[str]:
    """The names that a pattern stands for, with its prefix.

    Raises:
        UserError: there are none.
    """
    source, colon, wanted = pattern.rpartition(":")
    names = known(source)
    found = fnmatch.filter(names, wanted)
    if not found:
        near = ", ".join(difflib.get_close_matches(wanted, names, n=3, cutoff=0.5))
        raise UserError(f"unknown architecture '{pattern}'" + (f"; did you mean {near}?" if near else ""))
    return [source + colon + name for name in found]


def build(name: str) -> nn.Module:
    """A network of 1000 classes with new weights."""
    source, _, short = name.rpartition(":")
    if source == "timm":
        return importlib.import_module("timm").create_model(short)
    return create_model(short)  # the registry has torchvision's too, under names of their own


class Network:
    """One network with its input, and one step of it."""

    def __init__(self, name: str, args: argparse.Namespace, device: torch.device) -> None:
        torch.manual_seed(0)
        self.name, self.device, self.batch = name, device, args.batch
        self.dtype, self.training = TYPES[args.precision], args.mode == "train"
        layout = network.layout(args)
        net = build(name)
        self.complexity: Complexity = count(net, (3, args.img_size, args.img_size))
        self.net = net.to(device).to(memory_format=layout).train(self.training)
        self.forward = compile_blocks(self.net) if args.compile else self.net
        shape = (args.batch, 3, args.img_size, args.img_size)
        self.images = torch.randn(shape, device=device).to(memory_format=layout)
        self.labels = torch.randint(1000, (args.batch,), device=device)

    def loss(self, forward: nn.Module) -> Tensor:
        autocast = torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)
        with autocast, torch.set_grad_enabled(self.training):
            return nn.functional.cross_entropy(forward(self.images).float(), self.labels)

    def step(self, forward: nn.Module | None = None) -> None:
        """One forward pass and, in training, one backward pass."""
        self.net.zero_grad(set_to_none=True)
        loss = self.loss(forward or self.forward)
        if self.training:
            loss.backward()

    def milliseconds(self, repeats: int) -> float:
        """Of a step; afterwards the gradients of this network no longer take memory from the others."""
        taken = 1e3 * measure.seconds(self.step, self.device, repeats)
        self.net.zero_grad(set_to_none=True)
        return taken

    def peak_memory(self) -> float | None:
        """MB of the network, its input and what a step needs besides."""
        own = (*self.net.parameters(), *self.net.buffers(), self.images)
        further = measure.step_memory(self.step, self.device)
        self.net.zero_grad(set_to_none=True)
        return None if further is None else (further + sum(tensor.nbytes for tensor in own)) / 2**20

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
            self.loss(self.net)
        return sum(sizes.values()) / 2**20

    def work(self) -> tuple[int, int]:
        """Floating-point operations of a step's convolutions and products, and the bytes of its operators."""
        with FlopCounterMode(display=False) as flops, measure.Traffic() as traffic:
            self.step(self.net)
        self.net.zero_grad(set_to_none=True)
        return flops.get_total_flops(), traffic.bytes


def speeds(net: Network, seconds: float, args: argparse.Namespace, copy: float) -> dict[str, float | None]:
    """What a step achieves: operations per second, bytes per second, and their shares of what is possible."""
    operations, moved = net.work()
    achieved: dict[str, float | None] = {"GFLOP/s": operations / seconds / 1e9}
    if peak := peak_of(net.device):
        most = peak.single if net.dtype == torch.float32 else peak.half
        achieved["% of peak"] = operations / seconds / most / 1e10
    if not args.compile:  # a compiled network moves less than its operators would
        achieved |= {"GB/s": moved / seconds / 1e9, "% of copy": 100 * moved / seconds / copy}
    return achieved


def columns(
    net: Network, milliseconds: Sequence[float], args: argparse.Namespace, copy: float
) -> dict[str, float | None]:
    """The columns beside the times."""
    seconds = statistics.median(milliseconds) / 1e3
    further: dict[str, float | None] = {"images/s": args.batch / seconds, "peak MB": net.peak_memory()}
    if net.training and not args.compile:  # a compiled net keeps what its compiler likes
        further["kept MB"] = net.kept_megabytes()
    size: dict[str, Any] = {
        "M params": net.complexity.parameters / 1e6,
        "GFLOPs": net.complexity.multiply_adds / 1e9,
    }
    return {**further, **size, **speeds(net, seconds, args, copy)}


def notes(device: torch.device, heads: Collection[str], copy: float) -> list[str]:
    """What the columns mean that are there."""
    how = "by torch's allocator" if device.type == "cuda" else "by the growth of resident memory"
    peak = peak_of(device)
    published = f", {100 * copy / 1e9 / peak.bandwidth:.0f} % of the published peak" if peak else ""
    meanings = {
        "peak MB": f"weights, input and all that a step adds at a time, {how}",
        "kept MB": "what forward keeps for backward",
        "GFLOPs": "multiply-adds of an image, forward, as in the published tables",
        "GFLOP/s": "two for each multiply-add of convolutions and products, in all of the step",
        "% of peak": "of the published one of this GPU",
        "GB/s": "operands and results of all operators, as if nothing stayed in a cache",
        "% of copy": f"of what a copy kernel moves here, {copy / 1e9:.1f} GB/s{published}",
    }
    return [f"{head}: {meaning}" for head, meaning in meanings.items() if head in heads]


def run(args: argparse.Namespace) -> list[Table]:
    device = measure.choose_device(args)
    baseline = expand(args.baseline)
    if len(baseline) > 1:
        raise UserError(f"--baseline {args.baseline}: {len(baseline)} networks; name one")
    names = list(dict.fromkeys([*baseline, *(name for pattern in args.names for name in expand(pattern))]))
    torch.backends.cudnn.benchmark = True  # as in training
    networks = [create(name, args, device) for name in names]
    repeats = args.steps or (10 if device.type == "cuda" else 1)
    turns = [lambda turn, net=net: net.milliseconds(repeats) for net in networks]
    times = measure.interleave(turns, args)
    copy = measure.copy_bandwidth(device)
    results = [
        Result(net.name, own, columns(net, own, args, copy)) for net, own in zip(networks, times, strict=True)
    ]
    layout = "channels_last" if args.channels_last else "contiguous"
    what = f"{args.mode}, batch {args.batch}, {args.img_size} px, {args.precision}, {layout}"
    title = f"{what}{', compiled' if args.compile else ''}"
    return [Table(title, "ms/step", results, notes=notes(device, results[0].further, copy))]


def create(name: str, args: argparse.Namespace, device: torch.device) -> Network:
    """A network that takes images of this size and has done a step.

    Raises:
        UserError: it does not, or has no memory for it.
    """
    try:
        net = Network(name, args, device)
        net.milliseconds(repeats=1)  # compiles it
        return net
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        raise UserError(f"{name} at --img-size {args.img_size}: {str(error).splitlines()[0]}") from error
