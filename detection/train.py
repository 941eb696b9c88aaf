#!/usr/bin/env python
"""Train or evaluate Faster, Mask or Cascade R-CNN on COCO, the backbone any residual network of models/.

torchrun --nproc_per_node=8 detection/train.py --recipe cascade_rcnn_sge_r50 --data COCO --backbone FILE
torchrun --nproc_per_node=8 detection/train.py --model mask_rcnn -a cbam_resnet50 --data COCO -c DIR
python detection/train.py --recipe cascade_rcnn_sge_r50 --data COCO -e --resume FILE

`python -m torch.distributed.launch` and `srun` start it as well as torchrun does.
"""

import argparse
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import SGD

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from detection.backbone import create_backbone
from detection.coco import coco_training_loader, coco_validation_loader, read_coco
from detection.detectors import create_detector
from detection.evaluate import evaluate, write_results
from detection.options import IMAGES, parse_arguments, settle
from detection.task import Detection
from utils.command_line import cli
from utils.common import distributed
from utils.common.randomness import configure_torch
from utils.common.text import plural
from utils.networks import weights as fitting
from utils.runs.folder import check_folder
from utils.runs.resume import check_start, choose_seed, resumed
from utils.runs.run import Run
from utils.training.dry_run import rehearse
from utils.training.engine import Trainer
from utils.training.precision import choose_precision
from utils.training.schedule import Schedule


def create_net(args: argparse.Namespace, saved: Mapping[str, Any], classes: int) -> nn.Module:
    """The detector, started from ``--backbone``, from ``--pretrained`` or from the resumed checkpoint."""
    backbone = create_backbone(args.arch, None if saved else args.backbone, args.pretrained and not saved)
    net = create_detector(args.model, backbone, 1 + classes, args.min_size, args.max_size)
    if saved:
        model, _, arch = saved.get("arch", "").partition(" ")
        remedy = f"give --model {model} -a {arch}" if arch else "a classification network goes to --backbone"
        fitting.load_other(net, saved, f"{args.model} {args.arch}", args.resume, remedy)
    return net


def create_optimizer(net: nn.Module, args: argparse.Namespace) -> SGD:
    """Everything that is trained decays, as published."""
    trained = [(name, value) for name, value in net.named_parameters() if value.requires_grad]
    print(f"{sum(value.numel() for _, value in trained) / 1e6:.2f}M parameters are trained")
    return SGD(trained, args.lr, args.momentum, weight_decay=args.weight_decay, fused=True)


def main() -> None:
    args = parse_arguments(__doc__)
    with distributed.start(args.device, args.local_rank) as ranks:
        saved = resumed(args, ranks)
        with ranks.agree():
            if args.evaluate and (taken := settle(args, saved)):
                print(f"as in {args.resume}: {taken}")
            task = Detection(masks=args.model == "mask_rcnn")
            args.opt_level = args.opt_level or ("O1" if ranks.device.type == "cuda" else "O0")
            precision = choose_precision(args, ranks.device.type)
            if not (args.evaluate or args.dry_run):
                check_start(args, saved)
                check_folder(args)
            root = Path(args.data)
            val = read_coco(root, "val", False, task.masks, saved.get("classes", ()))
            train = None if args.evaluate else read_coco(root, "train", True, task.masks, val.classes)
        ranks.same(f"{train}, {val}", f"--data {args.data}")
        seed = ranks.gather(choose_seed(args.manualSeed, saved.get("seed")))[0]
        configure_torch(args.deterministic, seed, one_size=False)
        with ranks.agree():
            net = create_net(args, saved, len(val.classes)).to(ranks.device)
        classes = plural(len(val.classes), "class")
        size = f"{args.min_size} px, long sides at most {args.max_size}"
        print(f"{args.model} on {args.arch} at {size}, {classes}, on {ranks}, {precision}")

        val_loader = coco_validation_loader(val, args, seed, ranks)
        if train is None:
            scores, results = evaluate(net, val_loader, val, ranks, precision, args.print_freq)
            print(scores)
            with ranks.agree():
                if args.detections and ranks.main:
                    write_results(results, Path(args.detections))
            return

        with ranks.agree():
            train_loader = coco_training_loader(train, args, seed, ranks, args.accum_steps)
        print(f"{train_loader}, {val_loader}")
        rate = args.lr * train_loader.batches.samples_per_step / IMAGES
        schedule = Schedule(rate, args.epochs, 0, args.schedule, args.gamma, warmup_steps=args.warmup_steps)
        print(schedule)
        optimizer = create_optimizer(net, args)

        def state() -> dict[str, Any]:
            reached = {"optimizer": optimizer.state_dict(), "precision": precision.state_dict()}
            return {"state_dict": net.state_dict(), **reached}

        with ranks.agree():
            if saved and not args.fresh_optimizer:
                fitting.load_optimizer(optimizer, saved.get("optimizer"), net, args.resume)
                precision.load_state_dict(saved.get("precision", {}))
        model = precision.distribute(net, ranks)
        steps = {"accumulate": args.accum_steps, "clip": args.clip_grad, "print_every": args.print_freq}
        steps["skip_nan"] = args.on_nan == "skip"
        trainer = Trainer(model, optimizer, task, schedule, seed, ranks, precision, **steps)
        check = partial(evaluate, net, val_loader, val, ranks, precision, args.print_freq)
        if args.dry_run:
            rehearse(args, trainer, train_loader, val_loader, check, ranks)
            return
        with ranks.agree():
            fields = {"arch": f"{args.model} {args.arch}", "seed": seed, "classes": list(val.classes)}
            run = Run(args, saved, train_loader.batches, fields, state, task.form, ranks)
        with run:
            for begin in run.epochs():
                trained, speed = trainer.epoch(train_loader, begin, run)
                ranks.share_buffers(net)
                scores, _ = check(run)
                run.finish_epoch(begin.epoch, task.row(trainer.rate, trained, scores), scores.best, speed)
        run.finish()


if __name__ == "__main__":
    cli.run(main)
