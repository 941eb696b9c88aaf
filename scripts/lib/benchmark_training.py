"""imagenet_fast.py's training step on random images, for the subcommands that time it."""

import argparse
from typing import Any, cast

import torch

import imagenet_fast
from scripts.lib.benchmark_measure import Watch
from utils.command_line import arguments, cli
from utils.common import distributed
from utils.common.distributed import Ranks
from utils.common.randomness import configure_torch
from utils.data.decoding import choose_decoder
from utils.data.loading import Batch, DeviceLoader, training_loader
from utils.data.sampling import Position, TrainBatches
from utils.data.splits import ImageSplit
from utils.data.transforms import TrainTransform
from utils.networks import building as network
from utils.training.classification import Classification
from utils.training.dry_run import Clock
from utils.training.ema import create_average
from utils.training.engine import Trainer
from utils.training.losses import LabelSmoothing
from utils.training.optim import create_optimizer
from utils.training.precision import choose_precision

CLASSES = 1000
SEED = 0
Loader = DeviceLoader[TrainBatches]


def at_least_two(text: str) -> int:
    """An argparse type: steps, of which the first is not counted."""
    return cli.number(int, lambda value: value >= 2, "a whole number of at least 2")(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The network, its batches, and the flags of imagenet_fast.py that change its step."""
    parser.add_argument("arch", type=cli.architecture, metavar="ARCH")
    text = "images of a process and batch (default: 32)"
    parser.add_argument("--batch", dest="train_batch", type=cli.count_of, default=32, metavar="N", help=text)
    parser.add_argument("--img-size", type=cli.count_of, default=224, help="pixels (default: 224)")
    text = "steps of each turn; the first is not counted (default: %(default)s)"
    parser.add_argument("--steps", type=at_least_two, default=8, metavar="N", help=text)
    arguments.add_optimizer_arguments(parser)
    arguments.add_precision_arguments(parser)
    arguments.add_loss_arguments(parser)
    arguments.add_running_arguments(parser)


def complete(args: argparse.Namespace) -> argparse.Namespace:
    """All arguments of imagenet_fast.py: its defaults where the subcommand has no such flag."""
    defaults = vars(imagenet_fast.create_parser().parse_args(["--data", "none"]))
    whole = argparse.Namespace(**{**defaults, **vars(args)})
    complain = cli.Parser(prog=f"benchmark.py {args.kind}")
    published = imagenet_fast.DEFAULTS
    arguments.check_tricks(complain, whole, published["mineps"], published["lam"])
    whole.decoder = choose_decoder(whole.decoder)
    return whole


def create_trainer(args: argparse.Namespace, ranks: Ranks, batches: TrainBatches) -> Trainer:
    """The same as in imagenet_fast.py, of ``complete`` arguments."""
    precision = choose_precision(args, ranks.device.type)
    configure_torch(args.deterministic, SEED)
    net, _ = network.build_model(args, CLASSES)
    net = network.place(net, args, ranks.device)
    distillation = network.create_distillation(args, CLASSES, [""] * CLASSES, ranks.device, precision)
    with distributed.silence(True):
        optimizer = create_optimizer(net, args)
    local = precision.prepare(net, optimizer)
    settings = {**imagenet_fast.step_settings(args), "average": create_average(net, args.ema, {})}
    model = precision.distribute(local, ranks)
    schedule = imagenet_fast.create_schedule(args, batches.samples_per_step)
    criterion = LabelSmoothing(args.label_smoothing, CLASSES)
    task = Classification(criterion, imagenet_fast.create_mixer(args), distillation)
    return Trainer(model, optimizer, task, schedule, SEED, ranks, precision, **settings)


def images_of_an_epoch(args: argparse.Namespace, ranks: Ranks) -> int:
    return args.steps * args.accum_steps * args.train_batch * ranks.size


def folder_loader(args: argparse.Namespace, ranks: Ranks, split: ImageSplit) -> Loader:
    """Batches of ``--steps`` steps from files."""
    transform, layout = TrainTransform(args, args.scale or (0.08, 1.0)), network.layout(args)
    return training_loader(split, transform, args, SEED, ranks, layout, args.accum_steps)


def resident_loader(args: argparse.Namespace, ranks: Ranks) -> Loader:
    """As many, of random uint8 images that lie on the device; it casts and normalises them as always."""
    split = ImageSplit([("", 0)] * images_of_an_epoch(args, ranks), ("",))
    loader = folder_loader(argparse.Namespace(**{**vars(args), "workers": 0}), ranks, split)
    shape = (args.train_batch, 3, args.img_size, args.img_size)
    images = torch.randint(256, shape, dtype=torch.uint8, device=ranks.device)
    labels = torch.randint(CLASSES, (args.train_batch,), device=ranks.device)
    cast(Any, loader).loader = [Batch(images, labels, ())] * (args.steps * args.accum_steps)
    return loader


def time_epoch(trainer: Trainer, loader: Loader, epoch: int, steps: int, watch: Watch | None = None) -> float:
    """Seconds of a step of the Trainer's loop."""
    # What a watch has seen in the first step is not counted either.
    clock = Clock(trainer.ranks.device, steps, watch.seconds.clear if watch else None)
    with distributed.silence(True):  # its lines of progress
        trainer.epoch(loader, Position(epoch), clock)
    return clock.seconds
