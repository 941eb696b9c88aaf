"""The parts of imagenet_fast.py's training step, and what its loop costs more than a bare one.

    python scripts/benchmark.py step sge_resnet50 --batch 32
    python scripts/benchmark.py step resnet50 --data /path/to/imagenet -j 8 --opt-level O1 --ema

Without --data or --synthetic the images are on the device already. The bare loop (the baseline) is forward,
loss, backward, the optimizer's step and zero_grad with the same network and loader, and nothing else.
"""

import argparse
import copy
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, cast

from torch import Tensor

from scripts.lib import benchmark_images as images
from scripts.lib import benchmark_measure as measure
from scripts.lib import benchmark_training as training
from scripts.lib.benchmark_report import Result, Table
from scripts.lib.benchmark_training import Loader
from utils.command_line import arguments, cli
from utils.common.distributed import Ranks
from utils.data.sampling import Position
from utils.training.classification import Classification
from utils.training.engine import Trainer

PARTS = ("data", "forward", "backward", "optimizer")


def add_arguments(parser: cli.Parser) -> None:
    training.add_arguments(parser)
    source = parser.add_mutually_exclusive_group()
    text = "read the training images of this folder"
    source.add_argument("--data", dest="folder", type=cli.name_of_file, metavar="PATH", help=text)
    text = "read JPEGs of ImageNet's most frequent size, written for the run"
    source.add_argument("--synthetic", action="store_true", help=text)
    images.add_worker_arguments(parser)
    text = "decoder of the files (default: auto, the fastest that is installed)"
    parser.add_argument("--decoder", type=arguments.decoder, default="auto", help=text)
    measure.add_round_arguments(parser, rounds=5)
    measure.add_device_arguments(parser)


class WatchedLoader:
    """A loader whose waiting times are counted as the part ``data``."""

    def __init__(self, loader: Loader, watch: measure.Watch) -> None:
        self.loader, self.watch = loader, watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        batches = iter(self.loader)
        following = self.watch.around("data", lambda: next(batches, None))
        while (batch := following()) is not None:
            yield batch


def watched(trainer: Trainer, watch: measure.Watch) -> Trainer:
    """Return a copy of a Trainer, with the parts of its step timed."""
    own = copy.copy(trainer)
    own.precision, own.task = copy.copy(trainer.precision), copy.copy(trainer.task)
    parts = [
        (own.precision, "forward", "forward"),
        (own.task, "criterion", "forward"),
        (own.precision, "backward", "backward"),
        (own, "_update", "optimizer"),
    ]
    if cast(Classification, own.task).distillation is not None:
        parts.append((own.task, "distillation", "forward"))
    for owner, method, part in parts:
        setattr(owner, method, watch.around(part, getattr(owner, method)))
    return own


def bare_seconds(trainer: Trainer, loader: Loader, epoch: int, steps: int) -> float:
    """Return the seconds of a step of the bare loop."""
    precision, optimizer, accumulate = trainer.precision, trainer.optimizer, trainer.accumulate
    criterion = cast(Classification, trainer.task).criterion
    trainer.model.train()
    loader.batches.set_position(Position(epoch))
    began = 0.0
    for position, (pictures, labels) in enumerate(loader, 1):
        loss = criterion(precision.forward(trainer.model, pictures), labels)
        precision.backward(loss / accumulate, optimizer)
        if position % accumulate == 0:
            precision.unscale(optimizer)
            precision.step(optimizer)
            optimizer.zero_grad()
            if position == accumulate:  # the first step is not counted
                measure.wait(trainer.ranks.device)
                began = time.perf_counter()
    measure.wait(trainer.ranks.device)
    return (time.perf_counter() - began) / (steps - 1)


def part_seconds(trainer: Trainer, loader: Loader, epoch: int, steps: int) -> dict[str, float]:
    """Return the seconds of each part of a step; ``rest`` is all that no part counts."""
    watch = measure.Watch(trainer.ranks.device)
    timed = cast(Loader, WatchedLoader(loader, watch))
    whole = training.time_epoch(watched(trainer, watch), timed, epoch, steps, watch)
    parts = {part: watch.seconds[part] / (steps - 1) for part in PARTS}
    return {**parts, "rest": whole - sum(parts.values())}


def main(args: argparse.Namespace) -> list[Table]:
    training.check(args)
    ranks, steps = Ranks(device=measure.choose_device(args.device, args.threads)), args.steps
    count = training.images_of_an_epoch(args.train_batch, args.accum_steps, steps, ranks)
    from_files = bool(args.folder or args.synthetic)
    files = images.open_images(args.folder, args.synthetic, count) if from_files else nullcontext()
    with files as split:
        trainer, loader = training.create(args, split, ranks)
        measures: list[Callable[[int], Any]] = [
            lambda turn: bare_seconds(trainer, loader, turn, steps),
            lambda turn: training.time_epoch(trainer, loader, turn, steps),
            lambda turn: part_seconds(trainer, loader, turn, steps),
        ]
        bare, loop, parts = measure.interleave(measures, args.rounds, args.warmup_rounds, "step")
    data = f"images of {args.folder or 'synthetic JPEGs'}" if from_files else "images on the device"
    what = f"{args.arch}, batch {args.train_batch}, {args.img_size} px, {trainer.precision}, {data}"
    return [overhead(what, bare, loop), shares(what, parts)]


def overhead(what: str, bare: list[float], loop: list[float]) -> Table:
    """Compare the Trainer's loop with the bare one, both in seconds of a step."""
    results = [Result(name, milliseconds(own)) for name, own in (("bare loop", bare), ("Trainer", loop))]
    return Table(f"training step of {what}", "ms/step", results)


def shares(what: str, rounds: list[dict[str, float]]) -> Table:
    """Return a row for each part; its share is that of the sums over all rounds."""
    total = sum(sum(one.values()) for one in rounds)
    results = [
        Result(
            part,
            milliseconds([one[part] for one in rounds]),
            {"% of step": 100 * sum(one[part] for one in rounds) / total},
        )
        for part in rounds[0]
    ]
    note = (
        "forward: with the loss; rest: metrics, checks, exchange between processes, schedule; the device is "
        "waited for after each part"
    )
    return Table(f"parts of the training step of {what}", "ms/step", results, ratios=False, notes=[note])


def milliseconds(seconds: list[float]) -> list[float]:
    return [1e3 * value for value in seconds]
