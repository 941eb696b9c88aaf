"""The command line of detection/train.py."""

import argparse
from typing import Any

from detection.detectors import DETECTORS
from detection.recipes import CLIP, GAMMA, MOMENTUM, RECIPES, WARMUP_STEPS, WEIGHT_DECAY
from utils import arguments, cli

IMAGES = 16  # per step, that --lr is for


def create_parser(description: str | None) -> cli.Parser:
    parser = cli.Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [recipe.name for recipe in RECIPES]
    text = f"published values, where no flag says otherwise: {', '.join(names)}"
    parser.add_argument("--recipe", choices=names, metavar="NAME", help=text)
    add_data_arguments(parser.add_argument_group("data"))
    add_detector_arguments(parser.add_argument_group("detector"))
    arguments.add_training_arguments(parser)
    group = parser.add_argument_group("step")
    text = f"first steps of the run, in which the rate rises from a third of it (default: {WARMUP_STEPS})"
    group.add_argument("--warmup-steps", type=cli.whole, default=WARMUP_STEPS, metavar="N", help=text)
    arguments.add_step_arguments(group)
    group.add_argument(
        "--opt-level",
        choices=("O0", "O1"),
        help="O0: float32, O1: autocast (default: O1 on CUDA, O0 on a CPU)",
    )
    arguments.add_half_arguments(group)
    arguments.add_process_arguments(group)
    arguments.add_run_arguments(parser)
    text = "with -e: write the detections to this file, in COCO's result format"
    parser.add_argument("--detections", type=cli.name_of_file, metavar="FILE", help=text)
    parser.set_defaults(**published("faster_rcnn_r50"), **COMMON)
    return parser


def add_data_arguments(group: argparse._ArgumentGroup) -> None:
    text = (
        "COCO's folder: annotations/instances_train*.json and ..._val*.json, the images in train*/ and val*/"
    )
    group.add_argument("-d", "--data", required=True, type=cli.name_of_file, metavar="PATH", help=text)
    arguments.add_reading_arguments(group)
    text = "pixels that the short side of an image is resized to (default: 800)"
    group.add_argument("--min-size", type=cli.count_of, default=800, help=text)
    text = "unless the long side would exceed this many (default: 1333)"
    group.add_argument("--max-size", type=cli.count_of, default=1333, help=text)


def add_detector_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--model", choices=DETECTORS, help="(default: faster_rcnn)")
    text = "the backbone, a residual network: see models/ (default: resnet50)"
    group.add_argument("-a", "--arch", type=cli.architecture, help=text)
    text = "classification checkpoint that the backbone starts from, ours or published"
    group.add_argument("--backbone", type=cli.name_of_file, metavar="FILE", help=text)
    text = "the backbone starts from torchvision's ImageNet weights"
    group.add_argument("--pretrained", action="store_true", help=text)


# What the shared code looks at and no flag of detection sets.
COMMON: dict[str, Any] = {
    "momentum": MOMENTUM,
    "weight_decay": WEIGHT_DECAY,
    "gamma": GAMMA,
    "clip_grad": CLIP,
    "lr": 0.02,
    "test_batch": 1,  # more at a time are padded to one size, which changes their features
    "finetune": None,
    "zero_gamma": False,
    "keep_batchnorm_fp32": None,
    "amp_backend": "native",
}


def published(name: str) -> dict[str, Any]:
    """The arguments of a recipe."""
    (recipe,) = (recipe for recipe in RECIPES if recipe.name == name)

    return {
        "model": recipe.detector,
        "arch": recipe.arch,
        "epochs": recipe.epochs,
        "schedule": list(recipe.steps),
        "train_batch": recipe.images,
    }


def parse_arguments(description: str | None) -> argparse.Namespace:
    """The command line, with what can be checked before anything is read."""
    parser = create_parser(description)
    args = parser.parse_args()
    if args.recipe:
        parser.set_defaults(**published(args.recipe))
        args = parser.parse_args()  # again: what the command line says goes before the recipe
    if args.evaluate and not args.resume:
        parser.error("-e evaluates a checkpoint: give --resume FILE")
    if args.detections and not args.evaluate:
        parser.error("--detections goes with -e")
    if args.min_size > args.max_size:
        parser.error(f"--min-size {args.min_size} is above --max-size {args.max_size}")
    if args.backbone and args.pretrained:
        parser.error("--backbone and --pretrained are two different weights: give one of them")
    if (args.backbone or args.pretrained) and args.resume not in (None, "auto"):
        parser.error("--backbone and --pretrained are for a start: without --resume FILE")
    arguments.check_run(parser, args)
    return args
