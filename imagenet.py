#!/usr/bin/env python
"""Train or evaluate an ImageNet network in one process, with DataParallel over --gpu-id.

python imagenet.py -a sge_resnet18 --data digits --img-size 64 --epochs 10 -c checkpoints/digits
python imagenet.py -a sge_resnet101 --data /path/to/imagenet --epochs 100 --schedule 30 60 90 --gpu-id 0,1,2,3
python imagenet.py -a sge_resnet101 --data /path/to/imagenet -e --resume sge_resnet101.pth.tar
"""

import utils.common.early  # noqa: F401  # before torch: signals in the first second

# isort: split
import argparse
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from torch import nn
from torch.optim import SGD

from utils.command_line import arguments, cli
from utils.command_line.checks import check
from utils.command_line.gate_arguments import network_given
from utils.common.devices import describe, parallelize, select_devices
from utils.common.distributed import Ranks
from utils.common.errors import UserError
from utils.common.launch import refuse_several_processes
from utils.common.randomness import configure_torch
from utils.data.cifar import usual
from utils.data.labels import ends, names_of_all
from utils.data.loading import Reading, training_loader, validation_loader
from utils.data.real_labels import real_labels
from utils.data.splits import Splits, compared_outputs, open_data
from utils.data.transforms import TrainTransform
from utils.networks import checkpoint
from utils.networks.building import (
    NetworkSpec,
    build_model,
    choose_network,
    finetune,
    load_checkpoint,
    new_stem,
    note_stem,
    scaling_said,
)
from utils.networks.gating import gates_in
from utils.networks.outputs import class_count, outputs_of
from utils.runs.provenance import origin
from utils.runs.resume import Resumed, choose_seed, find_checkpoint
from utils.runs.run import Run
from utils.training.classification import Classification, ImageEvaluation
from utils.training.dry_run import dry_run
from utils.training.engine import Trainer
from utils.training.freezing import freeze
from utils.training.optim import plain_groups
from utils.training.precision import Precision
from utils.training.schedule import Schedule
from utils.training.test_sets import ClassEvaluation, Files, RealEvaluation

CROP_SCALES = {"large": (0.08, 1.0), "small": (0.2, 1.0)}  # share of the area that a training crop covers


def create_parser() -> cli.Parser:
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_data_arguments(parser)
    images = arguments.add_image_arguments(parser)
    text = "large: --scale 0.08 1, small: --scale 0.2 1 (default: large)"
    images.add_argument("-ms", "--modelsize", choices=CROP_SCALES, help=text)
    arguments.add_evaluation_arguments(parser)
    arguments.add_model_arguments(parser)
    arguments.add_training_arguments(parser)
    arguments.add_finetuning_arguments(parser)
    arguments.add_determinism(parser.add_recorded_group("running"))
    run = arguments.add_run_arguments(parser)
    run.add_argument("--gpu-id", default="0", help="GPUs to use, such as 0,1,2,3 (default: 0)")
    parser.set_defaults(epochs=90, test_batch=200, schedule=[150, 225])
    return parser


def parse_arguments() -> tuple[argparse.Namespace, dict[str, Any]]:
    """Return the command line, and what of it a checkpoint records."""
    parser = create_parser()
    args = parser.parse_args()
    check(parser, args)
    if args.scale and args.modelsize:
        parser.error("--scale and --modelsize say the same: give one of them")
    return args, parser.recorded(args)


class Opened(NamedTuple):
    """The network of a command line and its data."""

    spec: NetworkSpec
    net: nn.Module  # on the CPU
    classes: int  # outputs of the network
    splits: Splits


def open_network(args: argparse.Namespace, resumed: Resumed, where: str) -> Opened:
    """Index the data and build the network, with the weights that it starts from; print what it is.

    Args:
        args: the command line.
        resumed: the checkpoint of ``--resume``.
        where: what the network computes on, for the line that is printed.

    Raises:
        UserError: flags, files, and data do not fit each other.
    """
    saved, file = resumed.saved, resumed.file
    spec = choose_network(network_given(args), saved, file, usual=usual(args.data))
    if not (args.evaluate or args.dry_run):
        resumed.check_start(args.epochs, args.overwrite)
    new = file is None  # with --resume auto the flags of a first start stay on the command line
    started = checkpoint.load(args.finetune, "--finetune") if args.finetune and new else {}
    outputs = outputs_of(spec.arch, args.num_classes, args.class_list, args.evaluate, saved, started, file)
    splits = open_data(args.data, args.evaluate, outputs, args.cache)
    if not args.evaluate:
        resumed.check_archives(splits.archives())
    classes = class_count(args.num_classes, outputs, splits.val.classes)
    started_from = (args.pretrained and new, args.zero_gamma and new)
    net, complexity = build_model(spec, classes, *started_from, args.evaluate)
    if args.freeze and new and new_stem(net, started.get("state_dict", {})):
        raise UserError("--freeze keeps weights that are trained, and the stem is new: leave out --freeze")
    if started:
        if (theirs := scaling_said(started)) not in (None, spec.scaling):
            print(
                f"note: {args.finetune} was trained with {theirs.flags}, this run takes {spec.scaling.flags}"
            )
        new_gates = spec.gate_start == "identity" and not spec.same_as(gates_in(started, spec.arch))
        finetune(net, started["state_dict"], args.finetune, spec.arch, new_gates)
    if file is not None:
        load_checkpoint(net, saved, spec, file, args.evaluate)
    elif usual(args.data) and not args.evaluate:
        note_stem(net, spec)
    size = f"{complexity} at {spec.val_transform}, {classes} classes ({ends(splits.val.classes)})"
    print(f"{spec.arch}{spec.flags}: {size}, on {where}")
    return Opened(spec, net, classes, splits)


def train_transform(
    args: argparse.Namespace, spec: NetworkSpec, scale: Sequence[float] = CROP_SCALES["large"]
) -> TrainTransform:
    """Create what is done to a training image; ``scale`` holds where the command line says no other.

    Raises:
        UserError: more pixels are to be added than the image has.
    """
    if (args.pad or 0) > spec.img_size:
        raise UserError(f"--pad {args.pad} is more than the {spec.img_size} px of an image")
    crop = (args.scale or scale, args.hflip, args.auto_augment, args.random_erase, args.pad)
    return TrainTransform(spec.img_size, *crop, spec.scaling)


def create_evaluation(
    args: argparse.Namespace,
    opened: Opened,
    model: nn.Module,
    reading: Reading,
    ranks: Ranks,
    precision: Precision | None = None,
) -> ImageEvaluation:
    """Create the evaluation of the validation images, with what ``-e`` counts beside the accuracy.

    Args:
        args: the command line.
        opened: the network and its data.
        model: the network, in its wrappers.
        reading: how the files are read.
        ranks: the processes that share the images.
        precision: in which the model computes; None: float32.

    Raises:
        UserError: a file of labels does not fit, or one that is to be written cannot be.
    """
    spec, _, outputs, splits = opened
    real = real_labels(args.real, splits.val) if args.real else None
    views = (spec.val_transform, args.test_batch, reading, ranks)
    loader = validation_loader(splits.val, *views, numbered=real is not None)
    common = (model, loader, ranks, precision or Precision(), args.print_freq)
    if real is not None:
        return RealEvaluation(*common, real)
    files, of_data = Files(args.per_class, args.confusion), args.outputs == "of-data"
    compared = compared_outputs(splits.val, outputs, args.outputs) if args.evaluate else range(outputs)
    if not (files or of_data):
        return ImageEvaluation(*common)
    if ranks.main:
        files.check(len(compared), args.overwrite)
    title = f"{spec.arch}{spec.flags} on {args.data}"
    return ClassEvaluation(*common, names_of_all(splits.val.classes, outputs), compared, files, title)


def main() -> None:
    args, recorded = parse_arguments()
    refuse_several_processes("imagenet.py")
    device, gpu_ids = select_devices(args.device, args.gpu_id)
    ranks, reading = Ranks(device=device), Reading(args.workers, args.max_bad, args.decoder)
    resumed = find_checkpoint(args.resume, args.checkpoint, args.evaluate)
    seed = choose_seed(args.manualSeed, resumed.saved.get("seed"))
    configure_torch(args.deterministic, seed)

    spec, net, _, splits = opened = open_network(args, resumed, describe(device, gpu_ids))
    model = parallelize(net.to(device), gpu_ids)
    evaluation = create_evaluation(args, opened, model, reading, ranks)
    if splits.train is None:
        evaluation.report()
        return

    transform = train_transform(args, spec, CROP_SCALES[args.modelsize or "large"])
    train_loader = training_loader(splits.train, transform, args.train_batch, seed, reading, ranks)
    schedule = Schedule(args.lr, args.epochs, milestones=args.schedule, gamma=args.gamma)
    print(f"{train_loader}, {evaluation.loader}\n{schedule}")
    settings = {"momentum": args.momentum, "weight_decay": args.weight_decay}
    frozen = freeze(net, args.freeze)
    optimizer = SGD(plain_groups(net, args.lr_gates), args.lr, fused=True, **settings)
    trainer = Trainer(model, optimizer, Classification(nn.CrossEntropyLoss()), schedule, seed, frozen=frozen)
    trainer.print_every, trainer.skip_nan = args.print_freq, args.on_nan == "skip"
    if resumed.file is not None and not args.fresh_optimizer:
        trainer.load_state(resumed.saved, net, resumed.file)
    if args.dry_run:
        dry_run(trainer, train_loader, evaluation, args.checkpoint)
        return

    fields = {"arch": spec.arch, **splits.recorded(), **origin({**recorded, **asdict(spec)})}
    with Run(resumed, trainer, net, train_loader.batches, fields, **saving_flags(args)) as run:
        while not run.finished:
            for step in trainer.epoch(train_loader, run.position, run.signals):
                run.after_step(step)
            for _ in evaluation:
                run.stop_if_asked()
            run.finish_epoch(evaluation.result())
        run.finish()


def saving_flags(args: argparse.Namespace) -> dict[str, Any]:
    """Return what the command line says of where a run starts and of its folder."""
    return {name: getattr(args, name) for name in ("start_epoch", "save_every", "keep", "overwrite")}


if __name__ == "__main__":
    cli.run(main)
