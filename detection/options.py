"""The command line of detection/train.py."""

import argparse
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from detection.detectors import DETECTORS
from detection.recipes import CLIP, GAMMA, MOMENTUM, RECIPES, WARMUP_STEPS, WEIGHT_DECAY
from utils.command_line import arguments, cli, settings
from utils.common.errors import UserError

IMAGES = 16  # per step, that --lr is for
NAMES = {recipe.name: recipe for recipe in RECIPES}
DETECTOR: Mapping[str, Any] = MappingProxyType(
    {"model": "faster_rcnn", "arch": "resnet50", "min_size": 800, "max_size": 1333}
)


def create_parser(description: str | None) -> cli.Parser:
    parser = cli.Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    group = parser.add_argument_group("data and detector")
    text = f"published values, where no flag says otherwise: {', '.join(NAMES)}"
    group.add_argument("--recipe", choices=NAMES, metavar="NAME", help=text)
    text = (
        "folder with annotations/instances_train*.json, ..._val*.json, and their images in train*/ and val*/"
    )
    group.add_argument("-d", "--data", required=True, type=cli.name_of_file, metavar="PATH", help=text)
    arguments.add_reading_arguments(group)
    of_file = "with -e as the checkpoint was trained"
    text = f"pixels that the short side of an image is resized to (default: 800; {of_file}), ..."
    group.add_argument("--min-size", type=cli.count_of, help=text)
    text = f"... unless the long side would exceed this many (default: 1333; {of_file})"
    group.add_argument("--max-size", type=cli.count_of, help=text)
    text = "(default: faster_rcnn; with -e that of the checkpoint)"
    group.add_argument("--model", choices=DETECTORS, help=text)
    text = "the backbone, a residual network: see models/ (default: resnet50; with -e that of the checkpoint)"
    group.add_argument("-a", "--arch", type=cli.architecture, help=text)
    text = "classification checkpoint that the backbone starts from, ours or published"
    group.add_argument("--backbone", type=cli.name_of_file, metavar="FILE", help=text)
    text = "the backbone starts from torchvision's ImageNet weights"
    group.add_argument("--pretrained", action="store_true", help=text)
    text = "with -e: write the detections to this file, in COCO's result format"
    group.add_argument("--detections", type=cli.name_of_file, metavar="FILE", help=text)
    arguments.add_training_arguments(parser)
    group = parser.add_argument_group("step")
    text = f"first steps of the run, in which the rate rises from a third of it (default: {WARMUP_STEPS})"
    group.add_argument("--warmup-steps", type=cli.whole, default=WARMUP_STEPS, metavar="N", help=text)
    arguments.add_step_arguments(group)
    text = "O0: float32, O1: autocast (default: O1 on CUDA, O0 on a CPU)"
    group.add_argument("--opt-level", choices=("O0", "O1"), help=text)
    arguments.add_half_arguments(group)
    arguments.add_process_arguments(group)
    arguments.add_run_arguments(parser)
    # More test images at a time are padded to one size, which changes their features.
    parser.set_defaults(**published("faster_rcnn_r50"))
    parser.set_defaults(model=None, arch=None, lr=0.02, test_batch=1, clip_grad=CLIP, gamma=GAMMA)
    parser.set_defaults(momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    parser.set_defaults(finetune=None, zero_gamma=False, keep_batchnorm_fp32=None, amp_backend="native")
    return parser


def published(name: str) -> dict[str, Any]:
    """The arguments of a recipe."""
    _, model, arch, epochs, steps, images, _ = NAMES[name]
    return {"model": model, "arch": arch, "epochs": epochs, "schedule": list(steps), "train_batch": images}


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
    if not args.evaluate:
        try:
            settle(args, {})
        except UserError as error:
            parser.error(str(error))
    if (args.backbone or args.pretrained) and args.resume not in (None, "auto"):
        parser.error("--backbone and --pretrained are for a start: without --resume FILE")
    arguments.check_run(parser, args)
    return args


def settle(args: argparse.Namespace, saved: Mapping[str, Any]) -> str:
    """Set what the command line leaves open of detector, backbone and image sizes, and check the sizes.

    Args:
        args: the command line; changed.
        saved: the checkpoint that is evaluated, which says them; nothing: they are the defaults.

    Returns:
        What the checkpoint said, as flags.

    Raises:
        UserError: it holds no detector, or the sizes contradict each other.
    """
    model, _, arch = saved.get("arch", "").partition(" ")
    if saved and model not in DETECTORS:
        holds = saved.get("arch", "a network without a name")
        remedy = "give a checkpoint of detection/train.py"
        raise UserError(f"--resume {args.resume} holds {holds}, no detector: {remedy}")
    said = {**saved.get("arguments", {}), "model": model, "arch": arch} if saved else {}
    taken = settings.fill(args, DETECTOR, said)
    if args.min_size > args.max_size:
        raise UserError(f"--min-size {args.min_size} is above --max-size {args.max_size}")
    return taken
