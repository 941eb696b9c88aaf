#!/usr/bin/env python
"""Train or evaluate Faster, Mask or Cascade R-CNN on COCO, the backbone any residual network of models/.

torchrun --nproc_per_node=8 detection/train.py --recipe cascade_rcnn_sge_r50 --data COCO --backbone FILE
torchrun --nproc_per_node=8 detection/train.py --model mask_rcnn -a cbam_resnet50 --data COCO -c DIR
python detection/train.py --recipe cascade_rcnn_sge_r50 --data COCO -e --resume FILE

`python -m torch.distributed.launch` and `srun` start it as well as torchrun does.
"""

import argparse
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn
from torch.optim import SGD

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from detection.backbone import create_backbone
from detection.coco import CocoSplit, read_coco
from detection.detectors import create_detector
from detection.evaluate import CocoEvaluation, write_results
from detection.loading import RaggedLoader, coco_training_loader, coco_validation_loader
from detection.options import IMAGES, DetectorSpec, choose_detector, parse_arguments
from detection.task import Detection
from imagenet import saving_flags
from utils.command_line import cli
from utils.common import distributed
from utils.common.distributed import Ranks
from utils.common.randomness import configure_torch
from utils.common.text import plural
from utils.data.loading import Reading
from utils.data.sampling import TrainBatches
from utils.networks import weights
from utils.networks.optimizer_state import load_optimizer
from utils.runs.folder import check_folder
from utils.runs.provenance import origin
from utils.runs.resume import Resumed, choose_seed, find_checkpoint
from utils.runs.run import Run
from utils.training.dry_run import dry_run
from utils.training.engine import Trainer
from utils.training.precision import Precision, choose_precision
from utils.training.schedule import Schedule


def create_net(args: argparse.Namespace, spec: DetectorSpec, resumed: Resumed, classes: int) -> nn.Module:
    """Build the detector, started from ``--backbone``, from ``--pretrained`` or from the checkpoint."""
    new = resumed.file is None
    backbone = create_backbone(spec.arch, args.backbone if new else None, args.pretrained and new)
    net = create_detector(spec.model, backbone, 1 + classes, spec.min_size, spec.max_size)
    if resumed.file is not None:
        model, _, arch = resumed.saved.get("arch", "").partition(" ")
        remedy = f"give --model {model} -a {arch}" if arch else "a classification network goes to --backbone"
        name = f"{spec.model} {spec.arch}"
        weights.load_other(net, resumed.saved, name, resumed.file, remedy)
    return net


def create_optimizer(net: nn.Module, args: argparse.Namespace) -> SGD:
    """Create SGD; everything that is trained decays, as published."""
    trained = [(name, value) for name, value in net.named_parameters() if value.requires_grad]
    print(f"{sum(value.numel() for _, value in trained) / 1e6:.2f}M parameters are trained")
    return SGD(trained, args.lr, args.momentum, weight_decay=args.weight_decay, fused=True)


def state_of(net: nn.Module, optimizer: SGD, precision: Precision) -> dict[str, Any]:
    """Return what training has reached, for a checkpoint."""
    reached = {"optimizer": optimizer.state_dict(), "precision": precision.state_dict()}
    return {"state_dict": net.state_dict(), **reached}


class Opened(NamedTuple):
    """The detector of a command line and the images that it is evaluated on."""

    spec: DetectorSpec
    net: nn.Module
    val: CocoSplit


def open_detector(args: argparse.Namespace, resumed: Resumed, ranks: Ranks, precision: Precision) -> Opened:
    """Read the validation split and build the detector, with its weights; print what it is."""
    given = {name: getattr(args, name) for name in ("model", "arch", "min_size", "max_size")}
    spec = choose_detector(given, resumed.saved if args.evaluate else {}, resumed.file)
    if not (args.evaluate or args.dry_run):
        resumed.check_epochs(args.epochs)
        check_folder(resumed.folder, resumed.in_place, args.overwrite)
    known = resumed.saved.get("classes", ())
    val = read_coco(Path(args.data), "val", False, spec.masks, known)
    net = create_net(args, spec, resumed, len(val.classes)).to(ranks.device)
    size = f"{spec.min_size} px, long sides at most {spec.max_size}"
    classes = plural(len(val.classes), "class")
    print(f"{spec.model} on {spec.arch} at {size}, {classes}, on {ranks}, {precision}")
    return Opened(spec, net, val)


class Training(NamedTuple):
    """What training computes with, before the processes have exchanged anything."""

    split: CocoSplit
    loader: RaggedLoader[TrainBatches]
    optimizer: SGD


def prepare_training(
    args: argparse.Namespace, resumed: Resumed, opened: Opened, precision: Precision, seed: int, ranks: Ranks
) -> Training:
    """Read the training split, and create the optimizer with its state in the checkpoint."""
    split = read_coco(Path(args.data), "train", True, opened.spec.masks, opened.val.classes)
    reading = Reading(args.workers, args.max_bad)
    batches = (args.train_batch, seed, reading, ranks, args.accum_steps)
    loader = coco_training_loader(split, args.hflip, *batches)
    optimizer = create_optimizer(opened.net, args)
    if resumed.file is not None and not args.fresh_optimizer:
        load_optimizer(optimizer, resumed.saved.get("optimizer"), opened.net, resumed.file)
        precision.load_state_dict(resumed.saved.get("precision", {}))
    return Training(split, loader, optimizer)


def create_schedule(args: argparse.Namespace, images_per_step: int) -> Schedule:
    """Create the schedule; ``--lr`` is for ``IMAGES`` images per step."""
    base = args.lr * images_per_step / IMAGES
    return Schedule(base, args.epochs, 0, args.schedule, args.gamma, warmup_steps=args.warmup_steps)


def main() -> None:
    args, recorded = parse_arguments(__doc__)
    with distributed.start(args.device, args.local_rank) as ranks:
        resumed = find_checkpoint(args.resume, args.checkpoint, args.evaluate, ranks)
        seed = ranks.gather(choose_seed(args.manualSeed, resumed.saved.get("seed")))[0]
        configure_torch(args.deterministic, seed, one_size=False)
        level = args.opt_level or ("O1" if ranks.device.type == "cuda" else "O0")
        training = None

        with ranks.agree():  # what one process refuses ends all of them, in one line
            precision = choose_precision(level, ranks.device.type, args.amp_dtype, args.loss_scale)
            spec, net, val = opened = open_detector(args, resumed, ranks, precision)
            val_loader = coco_validation_loader(
                val, args.test_batch, Reading(args.workers, args.max_bad), ranks
            )
            if not args.evaluate:
                training = prepare_training(args, resumed, opened, precision, seed, ranks)
        ranks.same(f"{training and training.split}, {val}", f"--data {args.data}")
        evaluation = CocoEvaluation(val, net, val_loader, ranks, precision, args.print_freq)
        if training is None:
            print(evaluation.run())
            with ranks.agree():
                if args.detections and ranks.main:
                    write_results(evaluation.records, Path(args.detections))
            return

        _, loader, optimizer = training
        task, schedule = Detection(spec.masks), create_schedule(args, loader.batches.samples_per_step)
        print(f"{loader}, {val_loader}\n{schedule}")
        model, parts = precision.distribute(net, ranks), (args.accum_steps, args.clip_grad)
        trainer = Trainer(model, optimizer, task, schedule, seed, ranks, precision, *parts)
        trainer.print_every, trainer.skip_nan = args.print_freq, args.on_nan == "skip"
        if args.dry_run:
            dry_run(trainer, loader, evaluation, args.checkpoint, ranks)
            return
        fields = {"arch": f"{spec.model} {spec.arch}", "seed": seed, "classes": list(val.classes)}
        fields |= origin({**recorded, **asdict(spec), "opt_level": level})
        state = partial(state_of, net, optimizer, precision)
        with Run(resumed, task, loader.batches, fields, state, ranks, **saving_flags(args)) as run:
            while not run.finished:
                for step in trainer.epoch(loader, run.position, run.signals):
                    run.after_step(step)
                ranks.share_buffers(net)
                for _ in evaluation:
                    run.stop_if_asked()
                run.finish_epoch(trainer, evaluation.result())
            run.finish()


if __name__ == "__main__":
    cli.run(main)
