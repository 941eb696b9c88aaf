#!/usr/bin/env python
"""Train or evaluate an ImageNet network in one process per GPU, in mixed precision, with every trick.

torchrun --nproc_per_node=8 imagenet_fast.py -a sge_resnet101 --data /path/to/imagenet --train-batch 32
torchrun --nproc_per_node=2 imagenet_fast.py -a sge_resnet101 --data /path/to/imagenet -e --resume FILE
python imagenet_fast.py -a sge_resnet18 --data digits --img-size 64 --epochs 10 -c checkpoints/digits

`python -m torch.distributed.launch` and `srun` start it as well as torchrun does.
"""

import utils.common.early  # noqa: F401  # before torch: signals in the first second

# isort: split
import argparse
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.optim import SGD

from imagenet import Opened, create_evaluation, open_network, saving_flags, train_transform
from utils.command_line import arguments, cli
from utils.command_line.checks import check, check_tricks
from utils.command_line.sameness import compared
from utils.common import distributed
from utils.common.distributed import Ranks
from utils.common.randomness import configure_torch
from utils.data.loading import DeviceLoader, Reading, training_loader
from utils.data.sampling import TrainBatches
from utils.networks.building import layout, place
from utils.runs.provenance import origin
from utils.runs.resume import Resumed, choose_seed, find_checkpoint
from utils.runs.run import Run
from utils.training.apex import choose_apex
from utils.training.classification import Classification
from utils.training.distillation import Distillation, build_teacher
from utils.training.dry_run import dry_run
from utils.training.ema import create_average
from utils.training.engine import Trainer
from utils.training.freezing import freeze
from utils.training.losses import LabelSmoothing
from utils.training.mixing import Mixer
from utils.training.optim import WeightDecay, create_optimizer, decaying_kinds
from utils.training.precision import Precision, choose_precision
from utils.training.schedule import Schedule

DEFAULTS = MappingProxyType(
    {"epochs": 100, "test_batch": 125, "per_iter": False, "cosine": False, "mineps": 1e-3, "lam": 1e-4}
)
MILESTONES = (30, 60, 90)


def create_parser(description: str | None = __doc__, defaults: Mapping[str, Any] = DEFAULTS) -> cli.Parser:
    parser = cli.Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_data_arguments(parser)
    arguments.add_image_arguments(parser)
    arguments.add_evaluation_arguments(parser)
    arguments.add_model_arguments(parser)
    arguments.add_training_arguments(parser)
    arguments.add_schedule_arguments(parser)
    arguments.add_finetuning_arguments(parser)
    arguments.add_optimizer_arguments(parser)
    arguments.add_precision_arguments(parser)
    arguments.add_loss_arguments(parser)
    arguments.add_running_arguments(parser)
    run = arguments.add_run_arguments(parser)
    arguments.add_process_arguments(run)
    text = "print the filters' spread after every step of --el2"
    run.add_argument("--print-always", action="store_true", help=text)
    parser.set_defaults(**{name: defaults[name] for name in ("epochs", "test_batch", "per_iter")})
    return parser


def parse_arguments(
    description: str | None, defaults: Mapping[str, Any]
) -> tuple[argparse.Namespace, cli.Parser]:
    """Return the command line, and the parser, which knows what a checkpoint records of it."""
    parser = create_parser(description, defaults)
    args = parser.parse_args()
    check(parser, args)
    check_tricks(parser, args, defaults["mineps"], defaults["lam"], defaults["cosine"])
    return args, parser


def opt_level(args: argparse.Namespace, device: str) -> str:
    """Return ``--opt-level``, by default O2 on CUDA and O0 on a CPU."""
    return args.opt_level or ("O2" if device == "cuda" else "O0")


def create_precision(args: argparse.Namespace, level: str, device: str) -> Precision:
    """Choose torch's mixed precision or Apex's."""
    choose = choose_apex if args.amp_backend == "apex" else choose_precision
    return choose(level, device, args.amp_dtype, args.loss_scale, args.keep_batchnorm_fp32)


def on_device(args: argparse.Namespace, net: nn.Module, device: torch.device) -> nn.Module:
    """Put a network on the device of this process, as the flags of running say."""
    return place(net, device, args.channels_last, args.sync_bn, args.compile)


def cutout_size(args: argparse.Namespace, img_size: int) -> int:
    """Return ``--cutout_size``, by default half the side of the images."""
    return args.cutout_size or img_size // 2


def create_task(
    args: argparse.Namespace, opened: Opened, device: torch.device, precision: Precision
) -> Classification:
    """Create the loss, with a teacher on demand, and the mixing of images."""
    distillation = None
    if args.teacher:
        spec, _, classes, splits = opened
        teacher = build_teacher(args.teacher, classes, splits.val.classes, spec.img_size, spec.scaling)
        predict = partial(precision.forward, precision.prepare(on_device(args, teacher, device)))
        distillation = Distillation(predict, args.distill_alpha, args.distill_temp)
    mixer = Mixer(
        args.alpha if args.mixup else None,
        args.cutmix_prob if args.cutmix else None,
        cutout_size(args, opened.spec.img_size) if args.cutout else None,
    )
    return Classification(LabelSmoothing(args.label_smoothing, opened.classes), mixer, distillation)


def create_schedule(args: argparse.Namespace, images_per_step: int) -> Schedule:
    """Create the schedule; ``--lr`` is for 256 images per step: Goyal et al., arXiv 1706.02677."""
    shape = (args.schedule or MILESTONES, args.gamma, args.cos, args.per_iter)
    return Schedule(args.lr * images_per_step / 256, args.epochs, args.warmup, *shape)


def create_sgd(args: argparse.Namespace, net: nn.Module) -> SGD:
    """Create the optimizer, with the groups of parameters that decay and that do not."""
    kinds = decaying_kinds(args.wdall, args.nowd_bn, args.nowd_fc, args.nowd_conv)
    decay = WeightDecay(args.weight_decay, kinds, args.lam if args.el2 else None, args.mineps)
    return create_optimizer(net, decay, args.lr, args.momentum, args.nesterov, args.lr_gates)


def prepare_training(
    args: argparse.Namespace, resumed: Resumed, opened: Opened, precision: Precision, seed: int, ranks: Ranks
) -> tuple[DeviceLoader[TrainBatches], Trainer]:
    """Create the batches and the trainer, with what a checkpoint holds of it; exchanges nothing."""
    spec, net, _, splits = opened
    assert splits.train is not None
    task = create_task(args, opened, ranks.device, precision)
    transform = train_transform(args, spec)
    reading = Reading(args.workers, args.max_bad, args.decoder, layout(args.channels_last))
    batches = (args.train_batch, seed, reading, ranks, args.accum_steps)
    loader = training_loader(splits.train, transform, *batches)
    schedule = create_schedule(args, loader.batches.samples_per_step)
    frozen = freeze(net, args.freeze)
    optimizer = create_sgd(args, net)
    local = precision.prepare(net, optimizer)
    trainer = Trainer(local, optimizer, task, schedule, seed, ranks, precision, frozen=frozen)
    trainer.accumulate, trainer.clip = args.accum_steps, args.clip_grad
    trainer.print_every, trainer.print_filters = args.print_freq, args.print_always
    trainer.skip_nan = args.on_nan == "skip"
    trainer.average = create_average(net, args.ema, resumed.saved)
    if resumed.file is not None and not args.fresh_optimizer:
        trainer.load_state(resumed.saved, net, resumed.file)
    return loader, trainer


def main(description: str | None = __doc__, defaults: Mapping[str, Any] = DEFAULTS) -> None:
    args, parser = parse_arguments(description, defaults)
    shared = partial(compared, parser, args)
    with distributed.start(args.device, args.local_rank, shared, args.timeout) as ranks:
        resumed = find_checkpoint(args.resume, args.checkpoint, args.evaluate, ranks)
        seed = ranks.gather(choose_seed(args.manualSeed, resumed.saved.get("seed")))[0]
        configure_torch(args.deterministic, seed)
        level = opt_level(args, ranks.device.type)
        reading = Reading(args.workers, args.max_bad, args.decoder, layout(args.channels_last))

        with ranks.agree() as same:  # what one process refuses ends all of them, in one line
            precision = create_precision(args, level, ranks.device.type)
            opened = open_network(args, resumed, f"{ranks}, {precision}")
            same["--data"] = str(opened.splits)
            spec, net, _, splits = opened = opened._replace(net=on_device(args, opened.net, ranks.device))
            if splits.train is not None:
                loader, trainer = prepare_training(args, resumed, opened, precision, seed, ranks)
                average = trainer.average
                evaluated = precision.prepare(average.module) if average else trainer.model
            else:
                evaluated = precision.prepare(net)
            evaluation = create_evaluation(args, opened, evaluated, reading, ranks, precision)
        if splits.train is None:
            evaluation.report()
            return

        print(f"{loader}, {evaluation.loader}\n{trainer.schedule}")
        trainer.model = precision.distribute(trainer.model, ranks)
        if args.dry_run:
            dry_run(trainer, loader, evaluation, args.checkpoint, ranks)
            return

        fields = {"arch": spec.arch, **splits.recorded()}
        chosen = {"opt_level": level, "cutout_size": cutout_size(args, spec.img_size)}
        fields |= origin({**parser.recorded(args), **asdict(spec), **chosen})
        with Run(resumed, trainer, net, loader.batches, fields, **saving_flags(args)) as run:
            while not run.finished:
                for step in trainer.epoch(loader, run.position, run.signals):
                    run.after_step(step)
                ranks.share_buffers(average or net)
                for _ in evaluation:
                    run.stop_if_asked()
                run.finish_epoch(evaluation.result())
            run.finish()


if __name__ == "__main__":
    cli.run(main)
