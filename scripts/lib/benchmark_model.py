"""Training or evaluation steps of networks on random images.

    python scripts/benchmark.py model se_resnet50 'sge_*50' --batch 16
    python scripts/benchmark.py model timm:convnext_tiny --mode eval --precision bf16 --channels-last
    python scripts/benchmark.py model resnet50 --gate sge --gate-stages 3 4

A training step is the forward and the backward pass, without the optimizer. A name may be a shell pattern.
timm:NAME is a network of timm (which must be installed), torchvision:NAME one of torchvision. The gates of
--gate and the stem of --stem are put into the networks that are named, not into the baseline.
"""

import argparse
import difflib
import fnmatch
import importlib.util
import statistics
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from models import create_model, list_models
from scripts.lib import benchmark_measure as measure
from scripts.lib.benchmark_gpus import peak_of
from scripts.lib.benchmark_report import Result, Table
from scripts.lib.restored import restore
from utils.command_line import cli
from utils.command_line.gate_arguments import add_part_arguments, check_gates
from utils.common.checks import check_libraries
from utils.common.errors import UserError
from utils.networks.compilation import compile_blocks
from utils.networks.complexity import Complexity, count
from utils.networks.parts import PART_FIELDS, SMALL_STEM, PartSpec, part_fields, put_parts

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def add_arguments(parser: cli.Parser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="a network, or a shell pattern of names")
    text = "a checkpoint: measure its network, with its gates (without NAME, gate flags are for it)"
    parser.add_argument("--resume", type=cli.name_of_file, metavar="FILE", help=text)
    text = "the network that the others are compared with (default: %(default)s)"
    parser.add_argument("--baseline", default="resnet50", metavar="NAME", help=text)
    parser.add_argument("--mode", choices=("train", "eval"), default="train", help="(default: train)")
    text = "bf16 and fp16: autocast, without loss scaling (default: fp32)"
    parser.add_argument("--precision", choices=TYPES, default="fp32", help=text)
    parser.add_argument("--batch", type=cli.count_of, default=16, help="images (default: 16)")
    parser.add_argument("--img-size", type=cli.count_of, default=224, help="pixels (default: 224)")
    parser.add_argument("--channels-last", action="store_true", help="NHWC layout of images and weights")
    parser.add_argument("--compile", action="store_true", help="compile the blocks with torch.compile")
    text = "steps that each measurement runs (default: 1 on a CPU, 10 on CUDA)"
    parser.add_argument("--steps", type=cli.count_of, metavar="N", help=text)
    add_part_arguments(parser, "stem and gates of the networks that are named")
    measure.add_round_arguments(parser, rounds=7)
    measure.add_device_arguments(parser)


class Settings(NamedTuple):
    """What a step computes, the same for every network."""

    batch: int  # images
    img_size: int  # pixels
    training: bool
    precision: str  # a key of TYPES
    layout: torch.memory_format
    compiled: bool  # the blocks, by torch.compile

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the images."""
        return self.batch, 3, self.img_size, self.img_size

    def __str__(self) -> str:
        mode = "train" if self.training else "eval"
        layout = "channels_last" if self.layout == torch.channels_last else "contiguous"
        compiled = ", compiled" if self.compiled else ""
        return f"{mode}, batch {self.batch}, {self.img_size} px, {self.precision}, {layout}{compiled}"


def known(source: str) -> Sequence[str]:
    """Return all names that ``timm``, ``torchvision`` or (for an empty ``source``) the registry has.

    Raises:
        UserError: timm is not installed, or there is no such source.
    """
    if source == "timm":
        check_libraries("timm:NAME", "timm")
        return importlib.import_module("timm").list_models()
    if source == "torchvision":
        return torchvision.models.list_models(module=torchvision.models)
    if source:
        raise UserError(f"unknown prefix '{source}:'; networks are NAME, timm:NAME or torchvision:NAME")
    return list_models()


def expand(pattern: str) -> list[str]:
    """Return the names that match a pattern, with the pattern's prefix.

    Raises:
        UserError: none does.
    """
    source, colon, wanted = pattern.rpartition(":")
    names = known(source)
    found = fnmatch.filter(names, wanted)
    if not found:
        near = ", ".join(difflib.get_close_matches(wanted, names, n=3, cutoff=0.5))
        raise UserError(f"unknown architecture '{pattern}'" + (f"; did you mean {near}?" if near else ""))
    return [source + colon + name for name in found]


def build(name: str, parts: PartSpec) -> nn.Module:
    """Create a network of 1000 classes with new weights, this stem and these gates."""
    source, _, short = name.rpartition(":")
    timm = source == "timm"
    # The registry has torchvision's networks too.
    net = importlib.import_module("timm").create_model(short) if timm else create_model(short)
    put_parts(net, parts, name)
    return net


class Candidate(NamedTuple):
    """What is measured: a network by its name, or that of a checkpoint."""

    name: str
    build: Callable[[], nn.Module]
    outputs: int = 1000


def candidates(args: argparse.Namespace) -> list[Candidate]:
    """Return the networks of a command line, the baseline first, each once.

    Raises:
        UserError: there is no such network, or the checkpoint cannot be read.
    """
    check_gates(cli.Parser(prog="benchmark.py model"), args)
    baseline = expand(args.baseline)
    if len(baseline) > 1:
        raise UserError(f"--baseline {args.baseline}: {len(baseline)} networks; name one")
    if not args.names and not args.resume:
        raise UserError("which network? Give NAME, or --resume FILE")
    parts = PartSpec(**{field: getattr(args, field) for field in PART_FIELDS})
    named = [(name, PartSpec()) for name in baseline]
    named += [(name, parts) for pattern in args.names for name in expand(pattern)]
    found = [Candidate(f"{name}{of.flags}", partial(build, name, of)) for name, of in named]
    if args.resume:  # without names the flags are of its stem and gates
        restored = restore(args.resume, {} if args.names else part_fields(parts))
        added = f" with {restored.parts.name}" if restored.parts.name else ""
        stem = SMALL_STEM * (restored.parts.stem == "small")
        name = f"{Path(args.resume).name}: {restored.arch}{stem}{added}"
        found.append(Candidate(name, lambda: restored.net, restored.outputs))
    return list({one.name: one for one in found}.values())


class Network:
    """A network with its input, and what is measured of its step."""

    def __init__(self, candidate: Candidate, settings: Settings, device: torch.device) -> None:
        torch.manual_seed(0)
        self.name, self.settings, self.device = candidate.name, settings, device
        self.dtype, self.training = TYPES[settings.precision], settings.training
        net = candidate.build()
        self.complexity: Complexity = count(net, settings.shape[1:])
        self.net = net.to(device).to(memory_format=settings.layout).train(self.training)
        self.forward = compile_blocks(self.net) if settings.compiled else self.net
        self.images = torch.randn(settings.shape, device=device).to(memory_format=settings.layout)
        self.labels = torch.randint(candidate.outputs, (settings.batch,), device=device)

    def loss(self, forward: nn.Module) -> Tensor:
        autocast = torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)
        with autocast, torch.set_grad_enabled(self.training):
            return nn.functional.cross_entropy(forward(self.images).float(), self.labels)

    def step(self, forward: nn.Module | None = None) -> None:
        """Run the forward pass and, in training, the backward pass."""
        self.net.zero_grad(set_to_none=True)
        loss = self.loss(forward or self.forward)
        if self.training:
            loss.backward()

    def milliseconds(self, repeats: int) -> float:
        """Return the milliseconds of a step; the gradients are freed for the other networks' sake."""
        taken = 1e3 * measure.seconds(self.step, self.device, repeats)
        self.net.zero_grad(set_to_none=True)
        return taken

    def peak_memory(self) -> float | None:
        """Return the MB of the network, its input and all that a step allocates."""
        own = (*self.net.parameters(), *self.net.buffers(), self.images)
        further = measure.step_memory(self.step, self.device)
        self.net.zero_grad(set_to_none=True)
        return None if further is None else (further + sum(tensor.nbytes for tensor in own)) / 2**20

    def kept_megabytes(self) -> float:
        """Return the MB that the forward pass keeps for the backward pass, parameters not counted."""
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
        """Return the FLOPs of a step's convolutions and matrix products, and the bytes of its operators."""
        with FlopCounterMode(display=False) as flops, measure.Traffic() as traffic:
            self.step(self.net)
        self.net.zero_grad(set_to_none=True)
        return flops.get_total_flops(), traffic.bytes


def speeds(net: Network, seconds: float, copy: float) -> dict[str, float | None]:
    """Return FLOP/s and bytes/s of a step that takes so many seconds, and their shares of what is possible.

    ``copy`` is the bandwidth of a copy, in bytes per second.
    """
    operations, moved = net.work()
    achieved: dict[str, float | None] = {"GFLOP/s": operations / seconds / 1e9}
    if peak := peak_of(net.device):
        most = peak.single if net.dtype == torch.float32 else peak.half
        achieved["% of peak"] = operations / seconds / most / 1e10
    if not net.settings.compiled:  # a compiled network moves less than its operators would
        achieved |= {"GB/s": moved / seconds / 1e9, "% of copy": 100 * moved / seconds / copy}
    return achieved


def columns(net: Network, milliseconds: Sequence[float], copy: float) -> dict[str, float | None]:
    """Return the columns beside the times."""
    seconds = statistics.median(milliseconds) / 1e3
    speed = net.settings.batch / seconds
    further: dict[str, float | None] = {"images/s": speed, "peak MB": net.peak_memory()}
    if net.training and not net.settings.compiled:  # a compiler chooses what is kept
        further["kept MB"] = net.kept_megabytes()
    size: dict[str, Any] = {
        "M params": net.complexity.parameters / 1e6,
        "GFLOPs": net.complexity.multiply_adds / 1e9,
    }
    return {**further, **size, **speeds(net, seconds, copy)}


def notes(device: torch.device, heads: Collection[str], copy: float) -> list[str]:
    """Return a line for each of these columns that needs an explanation."""
    how = "by torch's allocator" if device.type == "cuda" else "by the growth of resident memory"
    peak = peak_of(device)
    published = f", {100 * copy / 1e9 / peak.bandwidth:.0f} % of the published peak" if peak else ""
    meanings = {
        "peak MB": f"weights, input and the most that a step holds at a time, measured {how}",
        "kept MB": "what the forward pass keeps for the backward pass",
        "GFLOPs": "multiply-adds of the forward pass of one image, as in the published tables",
        "GFLOP/s": "convolutions and matrix products of the whole step, two for each multiply-add",
        "% of peak": "share of this GPU's published peak",
        "GB/s": "operands and results of all operators, as if there were no cache",
        "% of copy": f"share of the bandwidth of a copy here, {copy / 1e9:.1f} GB/s{published}",
    }
    return [f"{head}: {meaning}" for head, meaning in meanings.items() if head in heads]


def main(args: argparse.Namespace) -> list[Table]:
    device = measure.choose_device(args.device, args.threads)
    found = candidates(args)
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    training = args.mode == "train"
    settings = Settings(args.batch, args.img_size, training, args.precision, layout, args.compile)
    torch.backends.cudnn.benchmark = True  # as in training
    networks = [create(one, settings, device) for one in found]
    repeats = args.steps or (10 if device.type == "cuda" else 1)
    turns = [lambda turn, net=net: net.milliseconds(repeats) for net in networks]
    times = measure.interleave(turns, args.rounds, args.warmup_rounds, "model")
    copy = measure.copy_bandwidth(device)
    results = [
        Result(net.name, own, columns(net, own, copy)) for net, own in zip(networks, times, strict=True)
    ]
    return [Table(str(settings), "ms/step", results, notes=notes(device, results[0].further, copy))]


def create(candidate: Candidate, settings: Settings, device: torch.device) -> Network:
    """Create a network and run one step of it.

    Raises:
        UserError: the network does not take images of this size, or the memory is too small.
    """
    try:
        net = Network(candidate, settings, device)
        net.milliseconds(repeats=1)  # compiles it
        return net
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        raise UserError(
            f"{candidate.name} at --img-size {settings.img_size}: {str(error).splitlines()[0]}"
        ) from error
