#!/usr/bin/env python
"""Train or evaluate an ImageNet network in one process, with DataParallel over --gpu-id.

python imagenet.py -a sge_resnet18 --data digits --img-size 64 --epochs 10 -c checkpoints/digits
python imagenet.py -a sge_resnet101 --data /path/to/imagenet --epochs 100 --schedule 30 60 90 --gpu-id 0,1,2,3
python imagenet.py -a sge_resnet101 --data /path/to/imagenet -e --resume sge_resnet101.pth.tar
"""

import argparse

import torch
from torch import nn
from torch.optim import SGD

from utils import checkpoint, cli
from utils.data import DeviceLoader, ImageDataset, open_data, train_transform, val_transform
from utils.distributed import describe, parallelize, select_devices, unwrap
from utils.engine import evaluate, train_epoch
from utils.logger import RunLog
from utils.sampling import EvalBatches, TrainBatches
from utils.schedule import set_learning_rate, step_decay

CROP_SCALES = {"large": (0.08, 1.0), "small": (0.2, 1.0)}  # share of the area that a training crop covers


def parse_arguments() -> argparse.Namespace:
    """The command line, with what can be checked before anything is read."""
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_data_arguments(parser)
    cli.add_model_arguments(parser)
    cli.add_training_arguments(parser, epochs=90)
    cli.add_run_arguments(parser)
    parser.add_argument(
        "--schedule",
        type=cli.whole,
        nargs="+",
        default=[150, 225],
        metavar="EPOCH",
        help="epochs, counted from 0, at whose start the rate is multiplied by --gamma (default: 150 225)",
    )
    parser.add_argument(
        "-ms",
        "--modelsize",
        choices=CROP_SCALES,
        default="large",
        help="large: --scale 0.08 1, small: --scale 0.2 1",
    )
    parser.add_argument("--gpu-id", default="0", help="GPUs to use, such as 0,1,2,3 (default: 0)")
    args = parser.parse_args()
    cli.check(parser, args)
    return args


def main() -> None:
    args = parse_arguments()
    device, gpu_ids = select_devices(args.device, args.gpu_id)
    saved = checkpoint.load(args.resume) if args.resume else {}
    seed = cli.choose_seed(args.manualSeed, saved.get("seed"))
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = True

    splits = open_data(args.data, args.evaluate)
    classes = cli.class_count(args.num_classes, splits.val.classes)
    model, complexity = cli.build_model(args, classes)
    if saved:
        checkpoint.load_weights(model, saved, args.arch, args.resume)
    print(
        f"{args.arch}: {complexity} at {args.img_size} px, {classes} classes, on {describe(device, gpu_ids)}"
    )
    model = parallelize(model.to(device), gpu_ids)
    criterion = nn.CrossEntropyLoss()

    val_set = ImageDataset(splits.val, val_transform(args.img_size), seed)
    val_loader = DeviceLoader(
        val_set, EvalBatches(len(val_set), args.test_batch), args.img_size, args.workers, device
    )
    if splits.train is None:
        result = evaluate(model, val_loader, criterion)
        print(f" Test Loss:  {result.loss:.8f}, Test Acc:  {result.top1:.2f}, Top-5 Acc:  {result.top5:.2f}")
        return

    crop_scale = tuple(args.scale or CROP_SCALES[args.modelsize])
    train_set = ImageDataset(splits.train, train_transform(args.img_size, crop_scale, args.hflip), seed)
    batches = TrainBatches(len(train_set), args.train_batch, seed)
    train_loader = DeviceLoader(train_set, batches, args.img_size, args.workers, device)
    optimizer = SGD(model.parameters(), args.lr, momentum=args.momentum, weight_decay=args.weight_decay)
    start, best = cli.start_of_training(args, saved)
    if saved and not args.fresh_optimizer:
        checkpoint.load_optimizer(optimizer, saved.get("optimizer"), args.resume)

    folder = cli.run_folder(args)
    if args.train_batch > len(train_set):
        print(f"note: --train-batch {args.train_batch} is more than the training set: one step per epoch")
    print(
        f"{len(train_set):,} training images in steps of {batches.batch}, {len(val_set):,} validation images"
    )
    print(f"seed {seed}, writing to {folder}/")
    log = RunLog(folder, args.epochs, cli.previous_rows(args, start), start)
    for epoch in range(start, args.epochs):
        rate = step_decay(args.lr, epoch, args.schedule, args.gamma)
        set_learning_rate(optimizer, rate)
        trained, images_per_second = train_epoch(model, train_loader, optimizer, criterion, seed, epoch)
        validated = evaluate(model, val_loader, criterion)
        log.epoch(epoch + 1, rate, trained, validated, images_per_second)

        is_best, best = validated.top1 > best, max(validated.top1, best)
        state = {
            "epoch": epoch + 1,
            "arch": args.arch,
            "state_dict": unwrap(model).state_dict(),
            "acc": validated.top1,
            "best_acc": best,
            "optimizer": optimizer.state_dict(),
            "seed": seed,
            "classes": list(splits.val.classes),
        }
        checkpoint.save(state, folder, is_best)
    log.close()
    print(f"best top-1: {best:.2f} %")
    print(f"wrote {folder}/: log.txt, {checkpoint.LAST}, {checkpoint.BEST}, TensorBoard events")


if __name__ == "__main__":
    cli.run(main)
