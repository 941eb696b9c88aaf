#!/usr/bin/env python
"""Train or evaluate an ImageNet network in one process, with DataParallel over --gpu-id.

python imagenet.py -a sge_resnet18 --data digits --img-size 64 --epochs 10 -c checkpoints/digits
python imagenet.py -a sge_resnet101 --data /path/to/imagenet --epochs 100 --schedule 30 60 90 --gpu-id 0,1,2,3
python imagenet.py -a sge_resnet101 --data /path/to/imagenet -e --resume sge_resnet101.pth.tar
"""

import argparse
from functools import partial
from typing import Any

from torch import nn
from torch.optim import SGD

from utils.command_line import arguments, cli
from utils.common.distributed import (
    ONE_PROCESS,
    Ranks,
    describe,
    parallelize,
    refuse_several_processes,
    select_devices,
)
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
from utils.training.engine import Trainer
from utils.training.schedule import Schedule

CROP_SCALES = {"large": (0.08, 1.0), "small": (0.2, 1.0)}  # share of the area that a training crop covers


def create_parser() -> cli.Parser:
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_data_arguments(parser)
    arguments.add_model_arguments(parser)
    arguments.add_training_arguments(parser)
    arguments.add_run_arguments(parser)
    parser.add_argument(
        "-ms",
        "--modelsize",
        choices=CROP_SCALES,
        help="large: --scale 0.08 1, small: --scale 0.2 1 (default: large)",
    )
    arguments.add_determinism(parser)
    parser.add_argument("--gpu-id", default="0", help="GPUs to use, such as 0,1,2,3 (default: 0)")
    parser.set_defaults(epochs=90, test_batch=200, schedule=[150, 225])
    return parser


def main() -> None:
    parser = create_parser()
    args = parser.parse_args()
    arguments.check(parser, args)
    if args.scale and args.modelsize:
        parser.error("--scale and --modelsize say the same: give one of them")
    refuse_several_processes("imagenet.py")
    device, gpu_ids = select_devices(args.device, args.gpu_id)
    ranks = Ranks(device=device)
    saved = resumed(args)
    if args.evaluate:
        network.settle(args, saved)
    seed = choose_seed(args.manualSeed, saved.get("seed"))
    configure_torch(args.deterministic, seed)

    if not (args.evaluate or args.dry_run):
        check_start(args, saved)
        check_folder(args)
    outputs = network.outputs_of(args, saved)
    splits = open_data(args.data, args.evaluate, outputs, args.cache)
    classes = network.class_count(args.num_classes, outputs, splits.val.classes)
    net, complexity = network.build_model(args, classes)
    network.load_weights(net, args, saved)
    size = f"{complexity} at {args.img_size} px, {classes} classes ({ends(splits.val.classes)})"
    print(f"{args.arch}: {size}, on {describe(device, gpu_ids)}")
    model = parallelize(net.to(device), gpu_ids)

    val_loader = validation_loader(splits.val, args, seed, ranks)
    if splits.train is None:
        print(evaluate(model, val_loader, print_every=args.print_freq).published())
        return

    transform = TrainTransform(args, args.scale or CROP_SCALES[args.modelsize or "large"])
    train_loader = training_loader(splits.train, transform, args, seed, ranks)
    print(f"{train_loader}, {val_loader}")
    settings = {"momentum": args.momentum, "weight_decay": args.weight_decay}
    optimizer = SGD(net.named_parameters(), args.lr, fused=True, **settings)
    if saved and not args.fresh_optimizer:
        fitting.load_optimizer(optimizer, saved.get("optimizer"), net, args.resume)

    schedule = Schedule(args.lr, args.epochs, milestones=args.schedule, gamma=args.gamma)
    print(schedule)
    task = Classification(nn.CrossEntropyLoss())
    trainer = Trainer(model, optimizer, task, schedule, seed, print_every=args.print_freq)
    trainer.skip_nan = args.on_nan == "skip"
    fields = {"arch": args.arch, "seed": seed, "classes": list(splits.val.classes)}

    def state() -> dict[str, Any]:
        return {"state_dict": net.state_dict(), "optimizer": optimizer.state_dict()}

    if args.dry_run:
        check = partial(evaluate, model, val_loader, ONE_PROCESS, None, None)
        rehearse(args, trainer, train_loader, val_loader, check)
        return
    with Run(args, saved, train_loader.batches, fields, state, FORM) as run:
        for begin in run.epochs():
            trained, speed = trainer.epoch(train_loader, begin, run)
            validated = evaluate(model, val_loader, print_every=args.print_freq, keeper=run)
            run.finish_epoch(begin.epoch, row(trainer.rate, trained, validated), validated.top1, speed)
    run.finish()


if __name__ == "__main__":
    cli.run(main)
