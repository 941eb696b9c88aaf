"""The command line of detection/train.py."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from detection.detectors import DETECTORS
from detection.recipes import CLIP, GAMMA, MOMENTUM, RECIPES, WARMUP_STEPS, WEIGHT_DECAY
from models import resolve
from utils.command_line import arguments, cli
from utils.command_line.checks import check_run
from utils.command_line.gate_arguments import add_gate_arguments, check_gates
from utils.common.errors import UserError
from utils.networks.building import complete
from utils.networks.gating import GATE_FIELDS, GateSpec, gates_taken

IMAGES = 16  # per step, that --lr is for
DETECTOR_FIELDS = ("model", "arch", "min_size", "max_size", *GATE_FIELDS)
NAMES = {recipe.name: recipe for recipe in RECIPES}


@dataclass(frozen=True)
class DetectorSpec(GateSpec):
    """Which detector, for which images; the fields of :class:`GateSpec` say the gates of its backbone.

    Args:
        model: one of ``DETECTORS``.
        arch: of the backbone.
        min_size: the shorter side that images are resized to, in pixels, ...
        max_size: ... unless the longer one would exceed this.
    """

    model: str = "faster_rcnn"
    arch: str = "resnet50"
    min_size: int = 800
    max_size: int = 1333

    @property
    def masks(self) -> bool:
        """Whether it finds masks beside boxes."""
        return self.model == "mask_rcnn"


def create_parser(description: str | None) -> cli.Parser:
    parser = cli.Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    group = parser.add_argument_group("data")
    text = f"published values, where no flag says otherwise: {', '.join(NAMES)}"
    group.add_argument("--recipe", choices=NAMES, metavar="NAME", help=text)
    text = "folder with annotations/instances_train*.json, ..._val*.json, "
    text += "and their images in train*/ and val*/"
    group.add_argument("-d", "--data", required=True, type=cli.name_of_file, metavar="PATH", help=text)
    arguments.add_reading_arguments(group)
    text = "classification checkpoint that the backbone starts from, ours or published"
    group.add_argument("--backbone", type=cli.name_of_file, metavar="FILE", help=text)
    text = "the backbone starts from torchvision's ImageNet weights"
    group.add_argument("--pretrained", action="store_true", help=text)
    text = "with -e: write the detections to this file, in COCO's result format (--overwrite replaces it)"
    group.add_argument("--detections", type=cli.name_of_file, metavar="FILE", help=text)
    group = parser.add_recorded_group("images and detector")
    of_file = "with --resume as the checkpoint was trained"
    text = f"pixels that the short side of an image is resized to (default: 800; {of_file}), ..."
    group.add_argument("--min-size", type=cli.count_of, help=text)
    text = f"... unless the long side would exceed this many (default: 1333; {of_file})"
    group.add_argument("--max-size", type=cli.count_of, help=text)
    arguments.add_flip(group)
    text = "(default: faster_rcnn; with --resume that of the checkpoint)"
    group.add_argument("--model", choices=DETECTORS, help=text)
    text = "the backbone, a residual network: see models/ (default: resnet50; with --resume that of the "
    text += "checkpoint)"
    group.add_argument("-a", "--arch", type=arguments.architecture, help=text)
    add_gate_arguments(group)
    arguments.add_training_arguments(parser)
    group = parser.add_recorded_group("step")
    text = f"first steps of the run, in which the learning rate rises from a third (default: {WARMUP_STEPS})"
    group.add_argument("--warmup-steps", type=cli.whole, default=WARMUP_STEPS, metavar="N", help=text)
    arguments.add_step_arguments(group)
    arguments.add_lr_gates(group)
    text = "O0: float32, O1: autocast (default: O1 on CUDA, O0 on a CPU)"
    group.add_argument("--opt-level", choices=("O0", "O1"), help=text)
    arguments.add_half_arguments(group)
    arguments.add_determinism(group)
    arguments.add_process_arguments(arguments.add_run_arguments(parser))
    # More test images at a time are padded to one size, which changes their features.
    parser.set_defaults(**published("faster_rcnn_r50"))
    parser.set_defaults(model=None, arch=None, lr=0.02, test_batch=1, clip_grad=CLIP, gamma=GAMMA)
    parser.set_defaults(momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    return parser


def published(name: str) -> dict[str, Any]:
    """Return the arguments of a recipe."""
    _, model, arch, epochs, steps, images, _ = NAMES[name]
    return {"model": model, "arch": arch, "epochs": epochs, "schedule": list(steps), "train_batch": images}


def parse_arguments(description: str | None) -> tuple[argparse.Namespace, cli.Parser]:
    """Return the command line, and the parser, which knows what a checkpoint records of it."""
    parser = create_parser(description)
    args = parser.parse_args()
    if args.recipe:
        parser.set_defaults(**published(args.recipe))
        args = parser.parse_args()  # again: what the command line says wins over the recipe
    if args.evaluate and not args.resume:
        parser.error("-e evaluates a checkpoint: give --resume FILE")
    if args.detections and not args.evaluate:
        parser.error("--detections goes with -e")
    if (args.backbone or args.pretrained) and args.resume not in (None, "auto"):
        parser.error("--backbone and --pretrained are for a start: without --resume FILE")
    check_gates(parser, args)
    check_run(parser, args)
    return args, parser


def choose_detector(given: Mapping[str, Any], saved: Mapping[str, Any], file: str | None) -> DetectorSpec:
    """Complete what the command line says of a detector by what a checkpoint says, or else by the defaults.

    Prints what it takes from the checkpoint.

    Args:
        given: the fields of :class:`DetectorSpec`, None where the command line leaves them open.
        saved: the checkpoint that is evaluated or goes on; empty for a new detector.
        file: its path.

    Raises:
        UserError: the checkpoint holds no detector, its gates are of a user's file that the command line does
            not name, or the sizes contradict each other.
    """
    said: dict[str, Any] = {}
    if saved:
        model, _, arch = saved.get("arch", "").partition(" ")
        if model not in DETECTORS:
            holds = saved.get("arch", "a network without a name")
            remedy = "give a checkpoint of detection/train.py (a classification network goes to --backbone)"
            raise UserError(f"--resume {file} holds {holds}, no detector: {remedy}")
        said = {name: saved.get("arguments", {}).get(name) for name in ("min_size", "max_size")}
        said |= {"model": model, "arch": arch}
        if given["arch"] is None or resolve(given["arch"]) == resolve(arch):
            said |= gates_taken(given, saved, f"--resume {file}")
    spec = DetectorSpec(**complete(given, said, file))
    if spec.min_size > spec.max_size:
        raise UserError(f"--min-size {spec.min_size} is above --max-size {spec.max_size}")
    return spec
