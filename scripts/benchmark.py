#!/usr/bin/env python
"""Time networks against each other on synthetic images.

    python scripts/benchmark.py model se_resnet50 sge_resnet50
    python scripts/benchmark.py model sge_resnet50 --dtype bfloat16 --channels-last --batch 32
    python scripts/benchmark.py model mobilenetv1 --baseline mobilenet_v2 --mode eval

Every round runs each network once, so that a machine whose speed drifts is fair to all; the ratio is the
median of the rounds' ratios to the baseline.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from models import create_model
from utils import cli


class Candidate:
    """One network with its input, and one step of it."""

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        torch.manual_seed(0)
        layout = torch.channels_last if args.channels_last else torch.contiguous_format
        self.name = name
        self.device = torch.device(args.device)
        self.dtype = getattr(torch, args.dtype)
        self.training = args.mode == "train"
        self.net = create_model(name).to(self.device).to(memory_format=layout).train(self.training)
        self.forward = torch.compile(self.net) if args.compile else self.net
        shape = (args.batch, 3, args.img_size, args.img_size)
        self.images = torch.randn(shape, device=self.device).to(memory_format=layout)
        self.labels = torch.randint(1000, (args.batch,), device=self.device)
        self.seconds: list[float] = []

    def loss(self) -> Tensor:
        autocast = torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)
        with autocast, torch.set_grad_enabled(self.training):
            return nn.functional.cross_entropy(self.forward(self.images), self.labels)

    def step(self) -> float:
        """Seconds of one forward pass and, in training, one backward pass."""
        self.net.zero_grad(set_to_none=True)
        self._wait()
        started = time.perf_counter()
        loss = self.loss()
        if self.training:
            loss.backward()
        self._wait()
        return time.perf_counter() - started

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

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def benchmark_models(args: argparse.Namespace) -> None:
    """Print a row per network: time and speed of a step, ratio to the baseline, memory kept."""
    names = [args.baseline, *(name for name in args.names if name != args.baseline)]
    candidates = [Candidate(name, args) for name in names]
    for _ in tqdm(range(args.warmup), desc="warm-up", leave=False):
        for candidate in candidates:
            candidate.step()
    for _ in tqdm(range(args.rounds), desc="rounds", leave=False):
        for candidate in candidates:
            candidate.seconds.append(candidate.step())

    layout = "channels_last" if args.channels_last else "contiguous"
    cpu = f"CPU, {torch.get_num_threads()} threads"
    machine = torch.cuda.get_device_name() if args.device == "cuda" else cpu
    print(
        f"{args.mode}, batch {args.batch}, {args.img_size} px, {args.dtype}, {layout}, compile {args.compile}"
    )
    print(f"{machine}, {args.rounds} rounds")
    print(f"{'network':>24} {'ms/step':>9} {'images/s':>9} {'ratio':>7} {'from':>7} {'to':>7} {'kept MB':>9}")
    for candidate in candidates:
        ratios = [own / base for own, base in zip(candidate.seconds, candidates[0].seconds, strict=True)]
        spread = (statistics.median(ratios), min(ratios), max(ratios))
        median = statistics.median(candidate.seconds)
        measured = candidate.training and not args.compile  # a compiled net keeps what its compiler likes
        kept = f"{candidate.kept_megabytes():.0f}" if measured else "-"
        print(
            f"{candidate.name:>24} {1e3 * median:9.1f} {args.batch / median:9.1f} "
            f"{spread[0]:7.3f} {spread[1]:7.3f} {spread[2]:7.3f} {kept:>9}"
        )


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
    model.add_argument("--rounds", type=cli.count_of, default=7)
    model.add_argument("--warmup", type=cli.whole, default=1, help="rounds not counted")
    model.add_argument("--threads", type=cli.count_of, help="threads of the CPU (default: torch's)")
    model.add_argument(
        "--device", choices=("cpu", "cuda"), default=("cpu", "cuda")[torch.cuda.is_available()]
    )
    model.set_defaults(run=benchmark_models)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    args.run(args)


if __name__ == "__main__":
    cli.run(main)
