#!/usr/bin/env python
"""Train or evaluate an ImageNet network in one process per GPU, in mixed precision, with every trick.

torchrun --nproc_per_node=8 imagenet_fast.py -a sge_resnet101 --data /path/to/imagenet --train-batch 32
torchrun --nproc_per_node=2 imagenet_fast.py -a sge_resnet101 --data /path/to/imagenet -e --resume FILE
python imagenet_fast.py -a sge_resnet18 --data digits --img-size 64 --epochs 10 -c checkpoints/digits

`python -m torch.distributed.launch` and `srun` start it as well as torchrun does.
"""

import argparse
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from utils.command_line import arguments, cli
from utils.common import distributed
from utils.common.randomness import configure_torch
from utils.data.labels import ends
from utils.data.loading import training_loader, validation_loader
from utils.data.splits import open_data
from utils.data.transforms import TrainTransform
from utils.networks import building as network
from utils.networks import weights as fitting
from utils.runs.folder import check_folder
from utils.runs.resume import check_start, choose_seed, resumed
from utils.runs.run import Run
from utils.training.classification import FORM, Classification, evaluate, row
from utils.training.dry_run import rehearse
from utils.training.ema import create_average, weights
from utils.training.engine import Trainer
from utils.training.losses import LabelSmoothing
from utils.training.mixing import Mixer
from utils.training.optim import create_optimizer
from utils.training.precision import choose_precision
from utils.training.schedule import Schedule

DEFAULTS = MappingProxyType(
    {"epochs": 100, "test_batch": 125, "per_iter": False, "cosine": False, "mineps": 1e-3, "lam": 1e-4}
)
MILESTONES = (30, 60, 90)


def create_parser(description: str | None = __doc__, defaults: Mapping[str, Any] = DEFAULTS) -> cli.Parser:
    parser = cli.Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_data_arguments(parser)
    arguments.add_model_arguments(parser)
    arguments.add_training_arguments(parser)
    arguments.add_schedule_arguments(parser)
    arguments.add_optimizer_arguments(parser)
    arguments.add_precision_arguments(parser)
    arguments.add_loss_arguments(parser)
    arguments.add_running_arguments(parser)
    arguments.add_run_arguments(parser)
    parser.set_defaults(**{name: defaults[name] for name in ("epochs", "test_batch", "per_iter")})
    return parser


def parse_arguments(description: str | None, defaults: Mapping[str, Any]) -> argparse.Namespace:
    """The command line, with what can be checked before anything is read."""
    parser = create_parser(description, defaults)
    args = parser.parse_args()
    arguments.check(parser, args)
    arguments.check_tricks(parser, args, defaults["mineps"], defaults["lam"])
    args.cos = args.cos or (defaults["cosine"] and not args.schedule)
    return args


def create_schedule(args: argparse.Namespace, images_per_step: int) -> Schedule:
    """``--lr`` is for 256 images per step: Goyal et al., arXiv 1706.02677."""
    base = args.lr * images_per_step / 256
    milestones = args.schedule or MILESTONES
    return Schedule(base, args.epochs, args.warmup, milestones, args.gamma, args.cos, args.per_iter)


def create_mixer(args: argparse.Namespace) -> Mixer:
    return Mixer(
        args.alpha if args.mixup else None,
        args.cutmix_prob if args.cutmix else None,
        args.cutout_size if args.cutout else None,
    )


def step_settings(args: argparse.Namespace) -> dict[str, Any]:
    """What flags say of a step, as arguments of the Trainer."""
    return {
        "accumulate": args.accum_steps,
        "clip": args.clip_grad,
        "print_every": args.print_freq,
        "print_filters": args.print_always,
        "skip_nan": args.on_nan == "skip",
    }


def main(description: str | None = __doc__, defaults: Mapping[str, Any] = DEFAULTS) -> None:
    args = parse_arguments(description, defaults)
    with distributed.start(args.device, args.local_rank) as ranks:
        saved = resumed(args, ranks)
        with ranks.agree():
            if args.evaluate:
                network.settle(args, saved)
            precision = choose_precision(args, ranks.device.type)
            if not (args.evaluate or args.dry_run):
                check_start(args, saved)
                check_folder(args)
            outputs = network.outputs_of(args, saved)
            splits = open_data(args.data, args.evaluate, outputs, args.cache)
        ranks.same(str(splits), f"--data {args.data}")
        seed = ranks.gather(choose_seed(args.manualSeed, saved.get("seed")))[0]
        configure_torch(args.deterministic, seed)
        with ranks.agree():
            classes = network.class_count(args.num_classes, outputs, splits.val.classes)
            net, complexity = network.build_model(args, classes)
            network.load_weights(net, args, saved)
            net = network.place(net, args, ranks.device)
        size = f"{complexity} at {args.img_size} px, {classes} classes ({ends(splits.val.classes)})"
        print(f"{args.arch}: {size}, on {ranks}, {precision}")

        layout = network.layout(args)
        val_loader = validation_loader(splits.val, args, seed, ranks, layout)
        if splits.train is None:
            model = precision.prepare(net)
            print(evaluate(model, val_loader, ranks, precision, args.print_freq).published())
            return

        with ranks.agree():
            criterion = LabelSmoothing(args.label_smoothing, classes)
            distillation = network.create_distillation(
                args, classes, splits.train.classes, ranks.device, precision
            )
            task = Classification(criterion, create_mixer(args), distillation)
            transform = TrainTransform(args, args.scale or (0.08, 1.0))
            train_loader = training_loader(
                splits.train, transform, args, seed, ranks, layout, args.accum_steps
            )
        print(f"{train_loader}, {val_loader}")
        schedule = create_schedule(args, train_loader.batches.samples_per_step)
        print(schedule)
        optimizer = create_optimizer(net, args)
        local = precision.prepare(net, optimizer)
        average = create_average(net, args.ema, saved)

        def state() -> dict[str, Any]:
            reached = {"optimizer": optimizer.state_dict(), "precision": precision.state_dict()}
            return {**weights(net, average), **reached}

        with ranks.agree():
            if saved and not args.fresh_optimizer:
                fitting.load_optimizer(optimizer, saved.get("optimizer"), net, args.resume)
                precision.load_state_dict(saved.get("precision", {}))
        model = precision.distribute(local, ranks)
        settings = {**step_settings(args), "average": average}
        trainer = Trainer(model, optimizer, task, schedule, seed, ranks, precision, **settings)
        evaluated = precision.prepare(average.module) if average else local
        if args.dry_run:
            check = partial(evaluate, evaluated, val_loader, ranks, precision, None)
            rehearse(args, trainer, train_loader, val_loader, check, ranks)
            return
        with ranks.agree():
            fields = {"arch": args.arch, "seed": seed, "classes": list(splits.val.classes)}
            run = Run(args, saved, train_loader.batches, fields, state, FORM, ranks)
        with run:
            for begin in run.epochs():
                trained, speed = trainer.epoch(train_loader, begin, run)
                ranks.share_buffers(average or net)
                validated = evaluate(evaluated, val_loader, ranks, precision, args.print_freq, run)
                run.finish_epoch(begin.epoch, row(trainer.rate, trained, validated), validated.top1, speed)
        run.finish()


if __name__ == "__main__":
    cli.run(main)
