"""The flags of the training scripts, in groups.

A checkpoint records the groups that decide what is computed. The others say where data and results are and
how the process runs; these may differ when a run goes on.
"""

import argparse
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from utils.command_line.cli import (
    Parser,
    below_one,
    count_of,
    fraction,
    name_of_file,
    non_negative,
    number,
    positive,
    seed,
    whole,
)
from utils.command_line.gate_arguments import add_gate_arguments, add_stem
from utils.common.distributed import TIMEOUT
from utils.common.errors import UserError
from utils.data.decoding import DECODERS, choose_decoder
from utils.data.transforms import AUTO_AUGMENT, INTERPOLATIONS, LEAST_CROP, LEAST_STD
from utils.networks.building import check_architecture

Group = argparse._ArgumentGroup
deviation = number(float, lambda value: LEAST_STD <= value <= 1, f"a number from {LEAST_STD} to 1")
crop_share = number(float, lambda value: LEAST_CROP <= value <= 1, f"a number from {LEAST_CROP} to 1")


def architecture(name: str) -> str:
    """An argparse type: the name of a registered architecture."""
    try:
        return check_architecture(name)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def decoder(name: str) -> str:
    """An argparse type: a decoder that is installed; ``auto`` is the fastest of these."""
    if name not in DECODERS:
        raise argparse.ArgumentTypeError(f"must be one of {', '.join(DECODERS)}, not '{name}'")
    try:
        return choose_decoder(name)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def file_of(suffix: str) -> Callable[[str], Path]:
    """Return an argparse type: a path that ends in ``suffix``."""

    def parse(text: str) -> Path:
        path = Path(name_of_file(text))
        if path.suffix.lower() != suffix:
            raise argparse.ArgumentTypeError(f"must end in {suffix}, not '{path.name}'")
        return path

    return parse


def minutes(text: str) -> timedelta:
    """An argparse type: a time above 0, in minutes."""
    try:
        return timedelta(minutes=positive(text))
    except OverflowError:
        raise argparse.ArgumentTypeError(f"must be less than a billion days, not '{text}' minutes") from None


def loss_scale(text: str) -> float | str:
    """An argparse type: a factor above 0, or ``dynamic``."""
    return text if text == "dynamic" else positive(text)


def add_data_arguments(parser: Parser) -> None:
    """Add where the images are and how they are read."""
    group = parser.add_argument_group("data")
    text = "folder with train/ and val/ (or valf/, valid/, validation/), in each a folder per class; "
    text += "'digits' is embedded: 1,797 handwritten digits, written to data/digits on first use; 'cifar10' "
    text += "and 'cifar100' are their binary archives, or what these unpack to, in data/ or this folder"
    group.add_argument("-d", "--data", required=True, type=name_of_file, metavar="PATH", help=text)
    add_reading_arguments(group)
    text = "list the images at every start; else the list is kept in ~/.cache/pytorch-insight"
    group.add_argument("--no-cache", action="store_false", dest="cache", help=text)
    text = "the class folders in the order of the outputs, a line each (default: as the checkpoint says)"
    group.add_argument("--class-list", type=name_of_file, metavar="FILE", help=text)


def add_reading_arguments(group: Group) -> None:
    """Add how files are read, whatever is learned from them."""
    text = "processes that decode images; does not change the result (default: one per core, at most 32)"
    group.add_argument("-j", "--workers", type=whole, default=min(32, os.cpu_count() or 1), help=text)
    text = "share of the images that may be undecodable before the run stops (default: 0.01)"
    group.add_argument("--max-bad", type=fraction, default=0.01, metavar="SHARE", help=text)
    text = "images per batch of evaluation (default: %(default)s)"
    group.add_argument("--test-batch", type=count_of, help=text)


def add_image_arguments(parser: Parser) -> Group:
    """Add what is made of an image; return the group."""
    group = parser.add_recorded_group("images")
    text = "pil resizes as published, the others within one level of it (default: simplejpeg if installed)"
    names = "{" + ",".join(DECODERS) + "}"
    group.add_argument("--decoder", type=decoder, metavar=names, default="auto", help=text)
    text = (
        "side of the square input in pixels (default: 224, of CIFAR 32; with --resume as the checkpoint was "
    )
    text += "trained)"
    group.add_argument("--img-size", type=count_of, help=text)
    add_validation_images(group)
    add_scaling(group)
    text = "share of the image's area that a training crop covers (default: 0.08 1)"
    group.add_argument("--scale", type=fraction, nargs=2, metavar=("LEAST", "MOST"), help=text)
    text = (
        "in place of --scale: the shorter side is resized to --img-size, N black pixels are added on every "
    )
    text += "side, and a square is cut out at random (default: not; of CIFAR 4)"
    group.add_argument("--pad", type=whole, metavar="N", help=text)
    add_flip(group)
    text = "ra: RandAugment, ta: TrivialAugment, imagenet: AutoAugment's policy for ImageNet"
    group.add_argument("--auto-augment", choices=AUTO_AUGMENT, help=text)
    text = "probability of random erasing (default: 0)"
    group.add_argument("--random-erase", type=fraction, default=0.0, metavar="P", help=text)
    return group


def add_scaling(group: Group) -> None:
    """Add how pixels become the network's input."""
    colours = ("RED", "GREEN", "BLUE")
    text = "is subtracted from pixels in [0, 1] (default: ImageNet's, of CIFAR its own, or as the checkpoint)"
    group.add_argument("--mean", type=fraction, nargs=3, metavar=colours, help=text)
    text = "they are divided by it (default: as of --mean)"
    group.add_argument("--std", type=deviation, nargs=3, metavar=colours, help=text)


def add_validation_images(group: Group) -> None:
    """Add how images are resized and cropped for validation."""
    text = "validation resizes the shorter side to --img-size / SHARE (default: 0.875, of CIFAR 1, or as the "
    text += "checkpoint)"
    group.add_argument("--crop-pct", type=crop_share, metavar="SHARE", help=text)
    text = "by which validation resizes (default: bilinear, or as the checkpoint)"
    group.add_argument("--interpolation", choices=INTERPOLATIONS, help=text)


def add_folder_arguments(parser: Parser, default: str) -> None:
    """Add the flags that say the folder of what is drawn, and whether files in it may be replaced."""
    text = "folder of what is written; made if missing (default: %(default)s)"
    parser.add_argument("-o", dest="output", type=name_of_file, default=default, metavar="DIR", help=text)
    text = "write into DIR although it is not empty; files of the same names are replaced"
    parser.add_argument("--overwrite", action="store_true", help=text)


def add_evaluation_arguments(parser: Parser) -> None:
    """Add what ``-e`` counts beside loss and accuracy, and which outputs it compares."""
    group = parser.add_argument_group("evaluation, with -e")
    text = "of-data: compare the outputs of the classes in the data only, as the papers of ImageNet-A and -R "
    text += "do (default: all)"
    group.add_argument("--outputs", choices=("all", "of-data"), help=text)
    text = "count by ReaL labels too: the published real.json; for ImageNet's validation images"
    group.add_argument("--real", type=name_of_file, metavar="FILE.json", help=text)
    text = "write images, accuracies and the largest confusion of each class (--overwrite replaces the file)"
    group.add_argument("--per-class", type=file_of(".csv"), metavar="FILE.csv", help=text)
    text = "draw which classes are taken for which, up to 1,000 (--overwrite replaces the file)"
    group.add_argument("--confusion", type=file_of(".png"), metavar="FILE.png", help=text)


def add_flip(group: Group) -> None:
    """Add the horizontal flip."""
    text = "probability of a horizontal flip in training (default: 0.5)"
    group.add_argument("--hflip", type=fraction, default=0.5, help=text)


def add_model_arguments(parser: Parser) -> None:
    """Add which network, and what its weights start from."""
    group = parser.add_recorded_group("model")
    text = "see models/ and torchvision.models (default: resnet18; with --resume that of the checkpoint)"
    group.add_argument("-a", "--arch", type=architecture, help=text)
    group.add_argument("--cardinality", type=count_of, help="groups of the 3x3 convolutions (resnext: 32)")
    group.add_argument("--base-width", type=count_of, help="width of each group (resnext: 4)")
    text = "outputs of the network (default: the number of class folders)"
    group.add_argument("--num-classes", type=count_of, help=text)
    group.add_argument("--zero-gamma", action="store_true", help="residual branches start at 0")
    add_stem(group)
    add_gate_arguments(group)
    group = parser.add_argument_group("start")
    text = "start from torchvision's ImageNet weights, a network with gates from those of its plain network"
    group.add_argument("--pretrained", action="store_true", help=text)
    text = "start from this checkpoint's weights, where they fit"
    group.add_argument("--finetune", type=name_of_file, metavar="FILE", help=text)


def add_training_arguments(parser: Parser) -> None:
    """Add how long, in which batches, by which optimizer."""
    group = parser.add_recorded_group("training")
    group.add_argument("--epochs", type=count_of, help="(default: %(default)s)")
    text = (
        "images per batch: in imagenet.py over all GPUs, in the others of each process (default: %(default)s)"
    )
    group.add_argument("--train-batch", type=count_of, default=256, help=text)
    text = "learning rate; in imagenet_fast.py and imagenet_mobile.py for 256 images per step, in "
    text += (
        "detection/train.py for 16, scaled linearly with the images of all processes and of --accum-steps "
    )
    text += "(default: %(default)s)"
    group.add_argument("--lr", "--learning-rate", type=positive, default=0.1, help=text)
    text = (
        "epochs, from 0, at whose start the learning rate is multiplied by --gamma; those within --warmup do "
    )
    text += "not count (default: 150 225 in imagenet.py, 30 60 90 in imagenet_fast.py, cosine in "
    text += "imagenet_mobile.py, 16 22 in detection/train.py)"
    group.add_argument("--schedule", type=whole, nargs="+", metavar="EPOCH", help=text)
    text = "the factor at each epoch of --schedule (default: 0.1)"
    group.add_argument("--gamma", type=positive, default=0.1, help=text)
    group.add_argument("--momentum", type=below_one, default=0.9, help="(default: 0.9)")
    group.add_argument("--weight-decay", "--wd", type=non_negative, default=1e-4, help="(default: 1e-4)")


def add_finetuning_arguments(parser: Parser) -> None:
    """Add what of the network is trained, and how fast."""
    group = parser.add_recorded_group("fine-tuning")
    text = "all but the gates and the classifier keeps its weights and its batch norm statistics; with "
    text += "--finetune, --pretrained or --resume"
    group.add_argument("--freeze", choices=("backbone",), help=text)
    add_lr_gates(group)


def add_lr_gates(group: Group) -> None:
    """Add the learning rate of the gates."""
    text = "the learning rate of the gates is that of the schedule times this (default: 1)"
    group.add_argument("--lr-gates", type=positive, metavar="FACTOR", help=text)


def add_run_arguments(parser: Parser) -> Group:
    """Add where the run is kept, how it continues, what it runs on; return the group."""
    group = parser.add_argument_group("run")
    text = "folder of the run's files (default: checkpoint; with --resume, that file's folder)"
    group.add_argument("-c", "--checkpoint", type=name_of_file, metavar="DIR", help=text)
    group.add_argument("--overwrite", action="store_true", help="replace the run that DIR holds already")
    text = "checkpoint to continue from or to evaluate; 'auto': the newest of DIR, or a start without any"
    group.add_argument("--resume", type=name_of_file, metavar="FILE", help=text)
    text = "first epoch, from 0; where a resumed checkpoint says it, that is taken (default: 0)"
    group.add_argument("--start-epoch", type=whole, default=0, help=text)
    text = "resume the weights but not the momentum"
    group.add_argument("--fresh-optimizer", action="store_true", help=text)
    text = "save every N steps, besides after every epoch; the resumed run is exact (default: epochs only)"
    group.add_argument("--save-every", type=count_of, metavar="N", help=text)
    text = "newest checkpoints that are kept (default: 2)"
    group.add_argument("--keep", type=count_of, default=2, metavar="N", help=text)
    text = "at a step whose loss is not finite: stop, saved as before it, or skip it (default: stop)"
    group.add_argument("--on-nan", choices=("stop", "skip"), default="stop", help=text)
    text = (
        "show steps, learning rate, memory, speed and the hours to be expected, and train nothing; with -c "
    )
    text += "the learning rate is drawn there"
    group.add_argument("--dry-run", action="store_true", help=text)
    group.add_argument("-e", "--evaluate", action="store_true", help="evaluate only: begins no run")
    text = "seed of everything random (default: drawn, and printed)"
    group.add_argument("--manualSeed", type=seed, help=text)
    text = "batches between two lines of progress, each a point in TensorBoard (default: ten seconds); with "
    text += "--accum-steps at the end of a step"
    group.add_argument("-p", "--print-freq", type=count_of, metavar="N", help=text)
    text = "auto: CUDA if there is one"
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help=text)
    return group


def add_process_arguments(group: Group) -> None:
    """Add what ``torch.distributed.launch`` gives each process, and how long they wait for each other."""
    group.add_argument("--local-rank", "--local_rank", type=whole, help=argparse.SUPPRESS)
    text = "minutes that processes wait for each other, at the start and in a step (default: 10)"
    group.add_argument("--timeout", type=minutes, default=TIMEOUT, metavar="MINUTES", help=text)


def add_schedule_arguments(parser: Parser) -> None:
    """Add how the learning rate changes, beyond ``--schedule``."""
    group = parser.add_recorded_group("schedule")
    group.add_argument("--cos", action="store_true", help="cosine in place of the steps of --schedule")
    text = "epochs of linear warm-up (default: 5)"
    group.add_argument("--warmup", "--wp", type=whole, default=5, help=text)
    text = "warm-up and cosine change with every step, not with every epoch (default: %(default)s)"
    group.add_argument("--per-iter", action=argparse.BooleanOptionalAction, help=text)


def add_decay_arguments(group: Group) -> None:
    """Add which parameters decay, and how."""
    text = "everything decays (default: biases do not)"
    group.add_argument("--wd-all", dest="wdall", action="store_true", help=text)
    for kind, what in (("bn", "norm layers'"), ("fc", "linear layers'"), ("conv", "convolutions'")):
        group.add_argument(f"--nowd-{kind}", action="store_true", help=f"{what} weights do not decay")
    text = "e-shifted L2 on convolutions in place of decay; with --nowd-conv"
    group.add_argument("--el2", action="store_true", help=text)
    group.add_argument("--mineps", type=non_negative, help="e of --el2 (default: 1e-3, mobile: 1e-8)")
    group.add_argument("--lam", type=non_negative, help="strength of --el2 (default: 1e-4, mobile: 4e-5)")


def add_step_arguments(group: Group) -> None:
    """Add what a step consists of."""
    text = "largest norm of the gradient (default: any; in detection/train.py 35)"
    group.add_argument("--clip-grad", type=positive, metavar="NORM", help=text)
    text = "batches per step (default: 1)"
    group.add_argument("--accum-steps", type=count_of, default=1, metavar="N", help=text)


def add_optimizer_arguments(parser: Parser) -> None:
    """Add which parameters decay, and the optimizer."""
    group = parser.add_recorded_group("weight decay and optimizer")
    add_decay_arguments(group)
    group.add_argument("--nesterov", action="store_true", help="Nesterov momentum")
    add_step_arguments(group)
    text = "evaluate and save a moving average of the weights (0.9999; less in the first steps)"
    group.add_argument("--ema", type=below_one, nargs="?", const=0.9999, metavar="DECAY", help=text)


def add_half_arguments(group: Group) -> None:
    """Add the half type and its loss scale."""
    text = "the half type (default: float16 on CUDA, bfloat16 on a CPU)"
    group.add_argument("--amp-dtype", choices=("float16", "bfloat16"), help=text)
    text = "a number, or 'dynamic' (default: dynamic for float16 in O1 and O2, otherwise 1)"
    group.add_argument("--loss-scale", type=loss_scale, help=text)


def add_precision_arguments(parser: Parser) -> None:
    """Add what is computed in which type."""
    group = parser.add_recorded_group("precision")
    text = "O0: float32, O1: autocast, O2: half with float32 batch norm and master weights, O3: half "
    text += "(default: O2 on CUDA, O0 on a CPU)"
    group.add_argument("--opt-level", choices=("O0", "O1", "O2", "O3"), help=text)
    add_half_arguments(group)
    text = "batch norm in float32, in O2 and O3 (default: in O2)"
    group.add_argument("--keep-batchnorm-fp32", action=argparse.BooleanOptionalAction, help=text)
    text = "apex: NVIDIA Apex's amp, where an Apex that still has it is installed"
    group.add_argument("--amp-backend", choices=("native", "apex"), default="native", help=text)


def add_loss_arguments(parser: Parser) -> None:
    """Add what the network is to learn of which images."""
    group = parser.add_recorded_group("loss and mixing")
    text = "share of a label given to the other classes; the training loss is then the divergence from the "
    text += "smoothed label (default: 0.1)"
    group.add_argument("--label-smoothing", "--ls", type=below_one, default=0.1, help=text)
    group.add_argument("--mixup", action="store_true", help="mix pairs of images")
    group.add_argument("--alpha", type=non_negative, help="of mixup's Beta distribution (default: 0.2)")
    group.add_argument("--cutmix", action="store_true", help="paste a box of another image")
    text = "probability for a batch (default: 1)"
    group.add_argument("--cutmix_prob", "--cutmix-prob", type=fraction, help=text)
    group.add_argument("--cutout", action="store_true", help="set a square to the mean colour")
    text = "its side in pixels (default: half of --img-size)"
    group.add_argument("--cutout_size", "--cutout-size", type=count_of, help=text)
    text = "distil from this network (no FILE: torchvision's weights)"
    group.add_argument("--teacher", type=name_of_file, metavar="ARCH[:FILE]", help=text)
    group.add_argument("--distill-alpha", type=fraction, help="the teacher's weight (default: 0.5)")
    group.add_argument("--distill-temp", type=positive, help="temperature (default: 20)")


def add_running_arguments(parser: Parser) -> None:
    """Add how the network runs."""
    group = parser.add_recorded_group("running")
    group.add_argument("--sync-bn", action="store_true", help="batch norm over all processes (CUDA only)")
    text = "compile each block of the network with torch.compile; for GPUs, on a CPU slower than without"
    group.add_argument("--compile", action="store_true", help=text)
    text = "NHWC layout of images and weights"
    group.add_argument("--channels-last", action="store_true", help=text)
    add_determinism(group)


def add_determinism(group: Group) -> None:
    """Add what a GPU needs to do the same twice."""
    group.add_argument("--deterministic", action="store_true", help="deterministic algorithms only")
