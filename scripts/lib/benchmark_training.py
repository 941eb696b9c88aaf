"""imagenet_fast.py's training step on random images or files, for the subcommands that time it."""

import argparse
import time
from pathlib import Path
from typing import Any, cast

import torch

import imagenet_fast
from imagenet import Opened
from scripts.lib.benchmark_measure import Watch, wait
from utils.command_line import arguments, cli
from utils.command_line.checks import check_tricks
from utils.common import distributed
from utils.common.distributed import Ranks
from utils.common.randomness import configure_torch
from utils.data.loading import Batch, DeviceLoader
from utils.data.sampling import Position, TrainBatches
from utils.data.splits import ImageSplit, Splits
from utils.networks.building import NetworkSpec, build_model
from utils.runs.resume import Resumed
from utils.training.engine import Trainer

CLASSES = 1000
SEED = 0
Loader = DeviceLoader[TrainBatches]


def at_least_two(text: str) -> int:
    """An argparse type: steps, of which the first is not counted."""
    return cli.number(int, lambda value: value >= 2, "a whole number of at least 2")(text)


def add_arguments(parser: cli.Parser) -> None:
    """Add the network, its batches, and the flags of imagenet_fast.py that change its step.

    The other arguments of imagenet_fast.py have its defaults, so that its functions can be called.
    """
    parser.set_defaults(**vars(imagenet_fast.create_parser().parse_args(["--data", "none"])))
    parser.add_argument("arch", type=arguments.architecture, metavar="ARCH")
    text = "images of a process and batch (default: 32)"
    parser.add_argument("--batch", dest="train_batch", type=cli.count_of, default=32, metavar="N", help=text)
    parser.add_argument("--img-size", type=cli.count_of, default=224, help="pixels (default: 224)")
    text = "steps of each measurement; the first is not counted (default: %(default)s)"
    parser.add_argument("--steps", type=at_least_two, default=8, metavar="N", help=text)
    arguments.add_optimizer_arguments(parser)
    arguments.add_precision_arguments(parser)
    arguments.add_loss_arguments(parser)
    arguments.add_running_arguments(parser)


def check(args: argparse.Namespace) -> None:
    """Refuse combinations of flags as imagenet_fast.py does, and complete defaults that depend on others."""
    published = imagenet_fast.DEFAULTS
    parser = cli.Parser(prog=f"benchmark.py {args.kind}")
    check_tricks(parser, args, published["mineps"], published["lam"])


def create(args: argparse.Namespace, split: ImageSplit | None, ranks: Ranks) -> tuple[Trainer, Loader]:
    """Create the Trainer and its batches with the functions of imagenet_fast.py.

    Args:
        args: the command line after :func:`check`, which those functions take.
        split: the files; None: random images that are on the device already.
        ranks: the processes that train together.
    """
    level = imagenet_fast.opt_level(args, ranks.device.type)
    precision = imagenet_fast.create_precision(args, level, ranks.device.type)
    configure_torch(args.deterministic, SEED)
    spec = NetworkSpec(args.arch, args.img_size)
    net, _ = build_model(spec, CLASSES)
    net = imagenet_fast.on_device(args, net, ranks.device)
    images = images_of_an_epoch(args.train_batch, args.accum_steps, args.steps, ranks)
    train = ImageSplit([("", 0)] * images, ("",)) if split is None else split
    opened = Opened(spec, net, CLASSES, Splits(train, ImageSplit((), ("",) * CLASSES)))
    new = Resumed(Path())
    with distributed.silence(True):  # prints a table of the weight decay
        loader, trainer = imagenet_fast.prepare_training(args, new, opened, precision, SEED, ranks)
    if split is None:
        put_on_device(loader, args.img_size)
    trainer.model = precision.distribute(trainer.model, ranks)
    return trainer, loader


def images_of_an_epoch(batch: int, accumulate: int, steps: int, ranks: Ranks) -> int:
    """Return how many images all processes read in so many steps of ``accumulate`` batches."""
    return batch * accumulate * steps * ranks.size


def put_on_device(loader: Loader, size: int) -> None:
    """Replace a loader's batches by random uint8 images on the device.

    The loader still casts and normalises them.
    """
    batch, device = loader.batches.batch, loader.device
    images = torch.randint(256, (batch, 3, size, size), dtype=torch.uint8, device=device)
    labels = torch.randint(CLASSES, (batch,), device=device)
    cast(Any, loader).loader = [Batch(images, labels, ())] * (loader.batches.steps * loader.batches.parts)


def time_epoch(trainer: Trainer, loader: Loader, epoch: int, steps: int, watch: Watch | None = None) -> float:
    """Return the seconds of a step of the Trainer's loop, the mean of all but the first.

    What a watch has counted in the first step is dropped too.
    """
    device = trainer.ranks.device
    began = ended = 0.0
    with distributed.silence(True):  # prints lines of progress
        for step in trainer.epoch(loader, Position(epoch)):
            if step.number == 1:
                wait(device)
                if watch:
                    watch.seconds.clear()
                began = time.perf_counter()
            elif step.number == steps:
                wait(device)
                ended = time.perf_counter()
    return (ended - began) / (steps - 1)
