"""The argument groups of the three scripts, and the combinations that are refused at once."""

import argparse
import os
from collections.abc import Mapping
from types import MappingProxyType

from utils.command_line.cli import (
    Parser,
    architecture,
    below_one,
    count_of,
    fraction,
    name_of_file,
    non_negative,
    positive,
    seed,
    whole,
)
from utils.command_line.settings import NETWORK, fill
from utils.data.decoding import DECODERS, choose_decoder
from utils.data.transforms import AUTO_AUGMENT


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the images are and how they are read."""
    group = parser.add_argument_group("data")
    group.add_argument(
        "-d",
        "--data",
        required=True,
        type=name_of_file,
        metavar="PATH",
        help="folder with train/ and val/ (or valf/, valid/, validation/), a folder per class in each; "
        "'digits' is embedded: 1,797 handwritten digits, written to data/digits on first use",
    )
    add_reading_arguments(group)
    group.add_argument(
        "--no-cache",
        action="store_false",
        dest="cache",
        help="list the images at every start; else the list is kept in ~/.cache/pytorch-insight until a "
        "folder changes",
    )
    group.add_argument(
        "--decoder",
        choices=DECODERS,
        default="auto",
        help="pil decodes and resizes as published; the others are faster and within one level of it "
        "(default: simplejpeg if it is installed)",
    )
    group.add_argument(
        "--img-size",
        type=count_of,
        help="side of the square input in pixels (default: 224; with -e as the checkpoint was trained)",
    )
    group.add_argument(
        "--scale",
        type=fraction,
        nargs=2,
        metavar=("LEAST", "MOST"),
        help="share of the image's area that a training crop covers (default: 0.08 1)",
    )
    group.add_argument(
        "--auto-augment",
        choices=AUTO_AUGMENT,
        help="ra: RandAugment, ta: TrivialAugment, imagenet: AutoAugment's policy for ImageNet",
    )
    group.add_argument(
        "--random-erase",
        type=fraction,
        default=0.0,
        metavar="P",
        help="probability of random erasing (default: 0)",
    )
    group.add_argument(
        "--num-classes", type=count_of, help="outputs of the network (default: the number of class folders)"
    )
    group.add_argument(
        "--class-list",
        type=name_of_file,
        metavar="FILE",
        help="the class folders in the order of the network's outputs, one per line (default: as the "
        "checkpoint says, or sorted)",
    )


def add_reading_arguments(group: argparse._ArgumentGroup) -> None:
    """How images are read, whatever is learned from them."""
    group.add_argument(
        "-j",
        "--workers",
        type=whole,
        default=min(32, os.cpu_count() or 1),
        help="processes that decode images; does not change the result (default: one per core, at most 32)",
    )
    group.add_argument(
        "--max-bad",
        type=fraction,
        default=0.01,
        metavar="SHARE",
        help="share of the images that may be undecodable before the run stops (default: 0.01)",
    )
    group.add_argument(
        "--hflip",
        type=fraction,
        default=0.5,
        help="probability of a horizontal flip in training (default: 0.5)",
    )


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Which network."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "-a",
        "--arch",
        type=architecture,
        help="see models/ and torchvision.models (default: resnet18; with -e that of the checkpoint)",
    )
    group.add_argument("--cardinality", type=count_of, help="groups of the 3x3 convolutions (resnext: 32)")
    group.add_argument("--base-width", type=count_of, help="width of each group (resnext: 4)")
    group.add_argument("--pretrained", action="store_true", help="start from torchvision's ImageNet weights")
    group.add_argument(
        "--finetune",
        type=name_of_file,
        metavar="FILE",
        help="start from this checkpoint's weights, where they fit",
    )
    group.add_argument("--zero-gamma", action="store_true", help="residual branches start at 0")


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """How long, in which batches, by which optimizer."""
    group = parser.add_argument_group("training")
    group.add_argument("--epochs", type=count_of, help="(default: %(default)s)")
    group.add_argument(
        "--start-epoch", type=whole, default=0, help="first epoch, from 0; a resumed file's own goes first"
    )
    group.add_argument(
        "--train-batch",
        type=count_of,
        default=256,
        help="images per batch: in imagenet.py over all GPUs, in the others of each process "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--test-batch", type=count_of, help="images per batch of evaluation (default: %(default)s)"
    )
    group.add_argument(
        "--lr",
        "--learning-rate",
        type=positive,
        default=0.1,
        help="learning rate; in imagenet_fast.py and imagenet_mobile.py for 256 images per step, in "
        "detection/train.py for 16, scaled linearly with the images of all processes and of --accum-steps "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--schedule",
        type=whole,
        nargs="+",
        metavar="EPOCH",
        help="epochs, from 0, at whose start the rate is multiplied by --gamma; those within --warmup do not "
        "count (default: 150 225 in imagenet.py, 30 60 90 in imagenet_fast.py, cosine in imagenet_mobile.py, "
        "16 22 in detection/train.py)",
    )
    group.add_argument(
        "--gamma", type=positive, default=0.1, help="the factor at each epoch of --schedule (default: 0.1)"
    )
    group.add_argument("--momentum", type=below_one, default=0.9, help="(default: 0.9)")
    group.add_argument("--weight-decay", "--wd", type=non_negative, default=1e-4, help="(default: 1e-4)")
    group.add_argument(
        "--on-nan",
        choices=("stop", "skip"),
        default="stop",
        help="a step whose loss is not finite: stop, saved as before it, or skip it (default: stop)",
    )


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the run is kept, how it continues, what it runs on."""
    group = parser.add_argument_group("run")
    group.add_argument(
        "-c",
        "--checkpoint",
        type=name_of_file,
        metavar="DIR",
        help="folder of the run's files (default: checkpoint; with --resume, that file's folder)",
    )
    group.add_argument("--overwrite", action="store_true", help="replace the run that DIR holds already")
    group.add_argument(
        "--resume",
        type=name_of_file,
        metavar="FILE",
        help="checkpoint to continue from or to evaluate; 'auto': the newest of DIR, or a start without any",
    )
    group.add_argument(
        "--save-every",
        type=count_of,
        metavar="N",
        help="save every N steps, besides after every epoch; the resumed run is exact (default: epochs only)",
    )
    group.add_argument(
        "--keep", type=count_of, default=2, metavar="N", help="newest checkpoints that are kept (default: 2)"
    )
    group.add_argument(
        "--fresh-optimizer", action="store_true", help="resume the weights but not the momentum"
    )
    group.add_argument(
        "--dry-run",
        action="store_true",
        help="show steps, rate, memory, speed and the hours to be expected, and train nothing; with -c the "
        "rate is drawn there",
    )
    group.add_argument("-e", "--evaluate", action="store_true", help="evaluate only: writes nothing")
    group.add_argument(
        "--manualSeed", type=seed, help="seed of everything random (default: drawn, and printed)"
    )
    group.add_argument(
        "-p",
        "--print-freq",
        type=count_of,
        metavar="N",
        help="batches between two lines of progress, each a point in TensorBoard (default: ten seconds)",
    )
    group.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: CUDA if there is one"
    )


def add_schedule_arguments(parser: argparse.ArgumentParser) -> None:
    """How the rate changes, beyond ``--schedule``."""
    group = parser.add_argument_group("schedule")
    group.add_argument("--cos", action="store_true", help="cosine in place of the steps of --schedule")
    group.add_argument(
        "--warmup", "--wp", type=whole, default=5, help="epochs of linear warm-up (default: 5)"
    )
    group.add_argument(
        "--per-iter",
        action=argparse.BooleanOptionalAction,
        help="warm-up and cosine change with every step, not with every epoch (default: %(default)s)",
    )


def add_decay_arguments(group: argparse._ArgumentGroup) -> None:
    """Which parameters decay, and how."""
    group.add_argument(
        "--wd-all", dest="wdall", action="store_true", help="everything decays (default: biases do not)"
    )
    for kind, what in (("bn", "norm layers'"), ("fc", "linear layers'"), ("conv", "convolutions'")):
        group.add_argument(f"--nowd-{kind}", action="store_true", help=f"{what} weights do not decay")
    group.add_argument(
        "--el2", action="store_true", help="e-shifted L2 on convolutions in place of decay; with --nowd-conv"
    )
    group.add_argument("--mineps", type=non_negative, help="e of --el2 (default: 1e-3, mobile: 1e-8)")
    group.add_argument("--lam", type=non_negative, help="strength of --el2 (default: 1e-4, mobile: 4e-5)")


def add_step_arguments(group: argparse._ArgumentGroup) -> None:
    """What a step consists of."""
    group.add_argument(
        "--clip-grad",
        type=positive,
        metavar="NORM",
        help="largest norm of the gradient (default: any; in detection/train.py 35)",
    )
    group.add_argument(
        "--accum-steps", type=count_of, default=1, metavar="N", help="batches per step (default: 1)"
    )


def add_optimizer_arguments(parser: argparse.ArgumentParser) -> None:
    """Which parameters decay, and the optimizer."""
    group = parser.add_argument_group("weight decay and optimizer")
    add_decay_arguments(group)
    group.add_argument(
        "--print-always", action="store_true", help="print the filters' spread after every step of --el2"
    )
    group.add_argument("--nesterov", action="store_true", help="Nesterov momentum")
    add_step_arguments(group)
    group.add_argument(
        "--ema",
        type=below_one,
        nargs="?",
        const=0.9999,
        metavar="DECAY",
        help="evaluate and save a moving average of the weights (0.9999; less in the first steps)",
    )


def loss_scale(text: str) -> float | str:
    """An argparse type: a factor above 0, or ``dynamic``."""
    return text if text == "dynamic" else positive(text)


def add_half_arguments(group: argparse._ArgumentGroup) -> None:
    """The half type and its loss scale."""
    group.add_argument(
        "--amp-dtype",
        choices=("float16", "bfloat16"),
        help="the half type (default: float16 on CUDA, bfloat16 on a CPU)",
    )
    group.add_argument(
        "--loss-scale",
        type=loss_scale,
        help="a number, or 'dynamic' (default: dynamic for float16 in O1 and O2, otherwise 1)",
    )


def add_precision_arguments(parser: argparse.ArgumentParser) -> None:
    """What is computed in which type."""
    group = parser.add_argument_group("precision")
    group.add_argument(
        "--opt-level",
        choices=("O0", "O1", "O2", "O3"),
        help="O0: float32, O1: autocast, O2: half with float32 batch norm and master weights, O3: half "
        "(default: O2 on CUDA, O0 on a CPU)",
    )
    add_half_arguments(group)
    group.add_argument(
        "--keep-batchnorm-fp32",
        action=argparse.BooleanOptionalAction,
        help="batch norm in float32, in O2 and O3 (default: in O2)",
    )
    group.add_argument(
        "--amp-backend",
        choices=("native", "apex"),
        default="native",
        help="apex: NVIDIA Apex's amp, where an Apex that still has it is installed",
    )


def add_loss_arguments(parser: argparse.ArgumentParser) -> None:
    """What the network is to say, about which images."""
    group = parser.add_argument_group("loss and mixing")
    group.add_argument(
        "--label-smoothing",
        "--ls",
        type=below_one,
        default=0.1,
        help="share of a label given to the other classes; the training loss is then the divergence from the "
        "smoothed label (default: 0.1)",
    )
    group.add_argument("--mixup", action="store_true", help="mix pairs of images")
    group.add_argument("--alpha", type=non_negative, help="of mixup's Beta distribution (default: 0.2)")
    group.add_argument("--cutmix", action="store_true", help="paste a box of another image")
    group.add_argument(
        "--cutmix_prob", "--cutmix-prob", type=fraction, help="probability for a batch (default: 1)"
    )
    group.add_argument("--cutout", action="store_true", help="set a square to the mean colour")
    group.add_argument(
        "--cutout_size",
        "--cutout-size",
        type=count_of,
        help="its side in pixels (default: half of --img-size)",
    )
    group.add_argument(
        "--teacher",
        type=name_of_file,
        metavar="ARCH[:FILE]",
        help="distil from this network (no FILE: torchvision's weights)",
    )
    group.add_argument("--distill-alpha", type=fraction, help="the teacher's weight (default: 0.5)")
    group.add_argument("--distill-temp", type=positive, help="temperature (default: 20)")


def add_running_arguments(parser: argparse.ArgumentParser) -> None:
    """How the network runs."""
    group = parser.add_argument_group("running")
    group.add_argument("--sync-bn", action="store_true", help="batch norm over all processes (CUDA only)")
    group.add_argument(
        "--compile",
        action="store_true",
        help="compile each block of the network with torch.compile; for GPUs, on a CPU slower than without",
    )
    group.add_argument("--channels-last", action="store_true", help="NHWC layout of images and weights")
    add_process_arguments(group)


def add_determinism(group: argparse._ActionsContainer) -> None:
    """What a GPU needs to do the same twice."""
    group.add_argument("--deterministic", action="store_true", help="deterministic algorithms only")


def add_process_arguments(group: argparse._ArgumentGroup) -> None:
    """How each process runs."""
    add_determinism(group)
    group.add_argument("--local-rank", "--local_rank", type=whole, help=argparse.SUPPRESS)


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse combinations of flags that make no sense, before anything is read.

    Changes ``args``: settles the decoder and, but for ``-e``, the network.
    """
    args.decoder = choose_decoder(args.decoder)
    if not args.evaluate:
        fill(args, NETWORK)
    if args.evaluate and not (args.resume or args.pretrained):
        parser.error("-e evaluates a checkpoint: give --resume FILE, or --pretrained")
    if args.scale and not 0 < args.scale[0] <= args.scale[1]:
        parser.error("--scale takes the least share of the area, above 0, and then the largest")
    check_run(parser, args)
    file = args.resume if args.resume != "auto" else None  # auto goes with whatever the first start is from
    if args.finetune and (file or args.pretrained):
        parser.error("--finetune FILE starts anew: without --resume FILE and --pretrained")
    if file and args.pretrained:
        parser.error("--resume and --pretrained are two different weights: give one of them")
    if args.zero_gamma and (file or args.pretrained):
        parser.error("--zero-gamma is for new weights: without --resume FILE and --pretrained")


def check_run(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse combinations of flags that say where a run starts and what becomes of it."""
    if args.start_epoch >= args.epochs:
        parser.error(f"--start-epoch {args.start_epoch} leaves nothing of --epochs {args.epochs}")
    if args.dry_run and (args.evaluate or args.resume):
        parser.error("--dry-run is of a training from its start: without -e and --resume")
    if args.fresh_optimizer and not args.resume:
        parser.error("--fresh-optimizer goes with --resume FILE")
    if args.fresh_optimizer and args.resume == "auto":
        parser.error("--fresh-optimizer would drop the momentum at every start of --resume auto: name a FILE")
    if args.overwrite and args.resume == "auto":
        parser.error("--overwrite and --resume auto contradict each other: auto continues what DIR holds")


# A flag that says more about another one: that other one, and what holds when it is not given.
_COMPANIONS = MappingProxyType(
    {
        "--alpha": ("mixup", 0.2),
        "--cutmix_prob": ("cutmix", 1.0),
        "--distill-alpha": ("teacher", 0.5),
        "--distill-temp": ("teacher", 20.0),
    }
)


def _fill_companions(
    parser: Parser, args: argparse.Namespace, companions: Mapping[str, tuple[str, float]]
) -> None:
    for flag, (owner, default) in companions.items():
        name = flag.strip("-").replace("-", "_")
        if getattr(args, name) is None:
            setattr(args, name, default)
        elif not getattr(args, owner):
            parser.error(f"{flag} goes with --{owner}")


def check_decay(parser: Parser, args: argparse.Namespace, e_shift: float, e_lambda: float) -> None:
    """Refuse combinations of the flags of weight decay, and fill in ``--mineps`` and ``--lam``.

    Arguments as of :func:`check_tricks`.
    """
    _fill_companions(parser, args, {"--mineps": ("el2", e_shift), "--lam": ("el2", e_lambda)})
    if args.el2 and (args.wdall or not args.nowd_conv):
        parser.error("--el2 takes the place of the convolutions' decay: give --nowd-conv, and not --wd-all")
    for kind in ("bn", "fc", "conv"):
        if args.wdall and getattr(args, f"nowd_{kind}"):
            parser.error(f"--wd-all and --nowd-{kind} contradict each other")


def check_tricks(parser: Parser, args: argparse.Namespace, e_shift: float, e_lambda: float) -> None:
    """Refuse combinations of imagenet_fast.py's flags, and fill in what companions leave open.

    Args:
        parser: complains.
        args: the command line; changed.
        e_shift: ``--mineps`` where it is not given.
        e_lambda: ``--lam`` where it is not given.
    """
    side = (args.img_size or NETWORK["img_size"]) // 2  # no size yet with -e, which cuts nothing out
    _fill_companions(parser, args, {**_COMPANIONS, "--cutout_size": ("cutout", side)})
    check_decay(parser, args, e_shift, e_lambda)
    if args.print_always and not args.el2:
        parser.error("--print-always goes with --el2")
    if args.cutout and (args.mixup or args.cutmix):
        parser.error("--cutout does not go with --mixup or --cutmix")
    if args.nesterov and args.momentum == 0:
        parser.error("--nesterov needs --momentum above 0")
    if args.cos and args.schedule:
        parser.error("--cos and --schedule contradict each other")
    if args.ema is not None and args.opt_level == "O3":
        parser.error("--ema averages float32 weights, which --opt-level O3 does not have: use O2")
    if args.amp_backend == "apex" and (args.ema is not None or args.teacher):
        parser.error("--amp-backend apex takes one network only: not with --ema and --teacher")
