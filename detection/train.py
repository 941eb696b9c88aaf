#!/usr/bin/env python
"""Train or evaluate Faster, Mask or Cascade R-CNN on COCO, the backbone any residual network of models/.

torchrun --nproc_per_node=8 detection/train.py --recipe cascade_rcnn_sge_r50 --data COCO --backbone FILE
torchrun --nproc_per_node=8 detection/train.py --model mask_rcnn -a cbam_resnet50 --data COCO -c DIR
python detection/train.py --recipe cascade_rcnn_sge_r50 --data COCO -e --resume FILE

`python -m torch.distributed.launch` and `srun` start it as well as torchrun does.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import utils.common.early  # noqa: F401  # before torch: signals in the first second

# isort: split
import argparse
from dataclasses import asdict, replace
from functools import partial
from typing import NamedTuple

from torch import nn
from torch.optim import SGD

from detection.backbone import create_backbone
from detection.coco import CocoSplit, read_coco
from detection.detectors import create_detector
from detection.evaluate import CocoEvaluation, write_results
from detection.loading import RaggedLoader, coco_training_loader, coco_validation_loader
from detection.options import DETECTOR_FIELDS, IMAGES, DetectorSpec, choose_detector, parse_arguments
from detection.task import Detection
from imagenet import saving_flags
from utils.command_line import cli
from utils.command_line.sameness import compared
from utils.common import distributed
from utils.common.checks import check_output
from utils.common.distributed import Ranks
from utils.common.randomness import configure_torch
from utils.common.text import plural
from utils.data.loading import Reading
from utils.data.sampling import TrainBatches
from utils.networks import weights
from utils.networks.gating import gate_fields, gates_said
from utils.runs.provenance import origin
from utils.runs.resume import Resumed, choose_seed, find_checkpoint
from utils.runs.run import Run
from utils.training.dry_run import dry_run
from utils.training.engine import Trainer
from utils.training.optim import plain_groups
from utils.training.precision import Precision, choose_precision
from utils.training.schedule import Schedule


def create_net(
    args: argparse.Namespace, spec: DetectorSpec, resumed: Resumed, classes: int
) -> tuple[DetectorSpec, nn.Module]:
    """Build the detector, started from ``--backbone``, from ``--pretrained`` or from the checkpoint.

    Returns:
        What it is, with the gates that ``--backbone`` says, and the network.
    """
    new = resumed.file is None
    backbone = create_backbone(spec.arch, args.backbone if new else None, args.pretrained and new, spec)
    spec = replace(spec, **gate_fields(backbone.gates))
    net = create_detector(spec.model, backbone, 1 + classes, spec.min_size, spec.max_size)
    if resumed.file is not None:
        model, _, arch = resumed.saved.get("arch", "").partition(" ")
        said = gates_said(resumed.saved)
        remedy = f"give --model {model} -a {arch}{said.flags}"
        name = f"{spec.model} {spec.arch}"
        weights.load_other(net, resumed.saved, name, resumed.file, remedy, gates=spec)
    return spec, net


def create_optimizer(net: nn.Module, args: argparse.Namespace) -> SGD:
    """Create SGD; everything that is trained decays, as published."""
    trained = [value.numel() for value in net.parameters() if value.requires_grad]
    print(f"{sum(trained) / 1e6:.2f}M parameters are trained")
    groups = plain_groups(net, args.lr_gates)
    return SGD(groups, args.lr, args.momentum, weight_decay=args.weight_decay, fused=True)


class Opened(NamedTuple):
    """The detector of a command line and the images that it is evaluated on."""

    spec: DetectorSpec
    net: nn.Module
    val: CocoSplit


def open_detector(args: argparse.Namespace, resumed: Resumed, ranks: Ranks, precision: Precision) -> Opened:
    """Read the validation split and build the detector, with its weights; print what it is."""
    given = {name: getattr(args, name) for name in DETECTOR_FIELDS}
    spec = choose_detector(given, resumed.saved, resumed.file)
    if not (args.evaluate or args.dry_run):
        resumed.check_start(args.epochs, args.overwrite)
    val = read_coco(Path(args.data), "val", False, spec.masks, resumed.saved.get("classes", ()))
    spec, net = create_net(args, spec, resumed, len(val.classes))
    net = net.to(ranks.device)
    size = f"{spec.min_size} px, long sides at most {spec.max_size}"
    classes = plural(len(val.classes), "class")
    print(f"{spec.model} on {spec.arch}{spec.flags} at {size}, {classes}, on {ranks}, {precision}")
    return Opened(spec, net, val)


def prepare_training(
    args: argparse.Namespace, resumed: Resumed, opened: Opened, precision: Precision, seed: int, ranks: Ranks
) -> tuple[CocoSplit, RaggedLoader[TrainBatches], Trainer]:
    """Read the training split, create the trainer with its state in the checkpoint; exchanges nothing."""
    split = read_coco(Path(args.data), "train", True, opened.spec.masks, opened.val.classes)
    reading = Reading(args.workers, args.max_bad)
    batches = (args.train_batch, seed, reading, ranks, args.accum_steps)
    loader = coco_training_loader(split, args.hflip, *batches)
    base = args.lr * loader.batches.samples_per_step / IMAGES  # --lr is for IMAGES images per step
    schedule = Schedule(base, args.epochs, 0, args.schedule, args.gamma, warmup_steps=args.warmup_steps)
    optimizer, task = create_optimizer(opened.net, args), Detection(opened.spec.masks)
    trainer = Trainer(opened.net, optimizer, task, schedule, seed, ranks, precision)
    trainer.accumulate, trainer.clip = args.accum_steps, args.clip_grad
    trainer.print_every, trainer.skip_nan = args.print_freq, args.on_nan == "skip"
    if resumed.file is not None and not args.fresh_optimizer:
        trainer.load_state(resumed.saved, opened.net, resumed.file)
    return split, loader, trainer


def main() -> None:
    args, parser = parse_arguments(__doc__)
    shared = partial(compared, parser, args)
    with distributed.start(args.device, args.local_rank, shared, args.timeout) as ranks:
        resumed = find_checkpoint(args.resume, args.checkpoint, args.evaluate, ranks)
        seed = ranks.gather(choose_seed(args.manualSeed, resumed.saved.get("seed")))[0]
        configure_torch(args.deterministic, seed, one_size=False)
        level = args.opt_level or ("O1" if ranks.device.type == "cuda" else "O0")

        with ranks.agree() as same:  # what one process refuses ends all of them, in one line
            if args.detections and ranks.main:
                check_output(Path(args.detections), "--detections", args.overwrite)
            precision = choose_precision(level, ranks.device.type, args.amp_dtype, args.loss_scale)
            spec, net, val = opened = open_detector(args, resumed, ranks, precision)
            same["--data for evaluation"] = str(val)
            reading = Reading(args.workers, args.max_bad)
            val_loader = coco_validation_loader(val, args.test_batch, reading, ranks)
            if not args.evaluate:
                split, loader, trainer = prepare_training(args, resumed, opened, precision, seed, ranks)
                same["--data for training"] = str(split)
        evaluation = CocoEvaluation(val, net, val_loader, ranks, precision, args.print_freq)
        if args.evaluate:
            print(evaluation.run())
            with ranks.agree():
                if args.detections and ranks.main:
                    write_results(evaluation.records, Path(args.detections))
            return

        print(f"{loader}, {val_loader}\n{trainer.schedule}")
        trainer.model = precision.distribute(net, ranks)
        if args.dry_run:
            dry_run(trainer, loader, evaluation, args.checkpoint, ranks)
            return
        fields = {"arch": f"{spec.model} {spec.arch}", "classes": list(val.classes)}
        fields |= origin({**parser.recorded(args), **asdict(spec), "opt_level": level})
        with Run(resumed, trainer, net, loader.batches, fields, **saving_flags(args)) as run:
            while not run.finished:
                for step in trainer.epoch(loader, run.position, run.signals):
                    run.after_step(step)
                ranks.share_buffers(net)
                for _ in evaluation:
                    run.stop_if_asked()
                run.finish_epoch(evaluation.result())
            run.finish()


if __name__ == "__main__":
    cli.run(main)
