"""Combinations of flags that are refused before anything is read, and defaults that depend on other flags."""

import argparse
from collections.abc import Mapping
from types import MappingProxyType

from utils.command_line.cli import Parser
from utils.command_line.gate_arguments import check_gates
from utils.data.cifar import usual_pad


def check(parser: Parser, args: argparse.Namespace) -> None:
    """Refuse combinations of flags that make no sense."""
    if args.evaluate and not (args.resume or args.pretrained):
        parser.error("-e evaluates a checkpoint: give --resume FILE, or --pretrained")
    check_images(parser, args)
    check_gates(parser, args)
    check_run(parser, args)
    check_evaluation(parser, args)
    file = args.resume if args.resume != "auto" else None  # auto goes with whatever the first start is from
    if args.finetune and (file or args.pretrained):
        parser.error("--finetune FILE starts anew: without --resume FILE and --pretrained")
    if file and args.pretrained:
        parser.error("--resume and --pretrained are two different weights: give one of them")
    if args.zero_gamma and (file or args.pretrained):
        parser.error("--zero-gamma is for new weights: without --resume FILE and --pretrained")
    if args.freeze and not (file or args.finetune or args.pretrained):
        parser.error("--freeze keeps weights that are trained: give --finetune FILE or --pretrained")


def check_images(parser: Parser, args: argparse.Namespace) -> None:
    """Refuse contradictions about what is made of an image, and fill in the ``--pad`` of the data set."""
    if args.scale and not 0 < args.scale[0] <= args.scale[1]:
        parser.error("--scale takes the least share of the area, above 0, and then the largest")
    other = "--scale" if args.scale else "--modelsize" if getattr(args, "modelsize", None) else None
    if other and args.pad is not None:
        parser.error(f"{other} and --pad are two ways to crop: give one of them")
    if (args.mean is None) != (args.std is None):
        parser.error("--mean and --std go together: give both")
    if args.pad is None and not other:
        args.pad = usual_pad(args.data)


def check_evaluation(parser: Parser, args: argparse.Namespace) -> None:
    """Refuse what an evaluation counts where there is none, and what cannot be counted together."""
    for name in ("outputs", "real", "per_class", "confusion"):
        if getattr(args, name) is None:
            continue
        flag = f"--{name.replace('_', '-')}"
        if not args.evaluate:
            parser.error(f"{flag} goes with -e")
        if args.real and name != "real" and (name, args.outputs) != ("outputs", "all"):
            parser.error(f"{flag} counts by class folder, --real does not: evaluate once for each")


def check_run(parser: Parser, args: argparse.Namespace) -> None:
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
    parser: Parser, args: argparse.Namespace, companions: Mapping[str, tuple[str, float | None]]
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


def check_tricks(
    parser: Parser, args: argparse.Namespace, e_shift: float, e_lambda: float, cosine: bool = False
) -> None:
    """Refuse combinations of imagenet_fast.py's flags, and fill in what companions leave open.

    Args:
        parser: complains.
        args: the command line; what is None and depends on other flags is set.
        e_shift: ``--mineps`` where it is not given.
        e_lambda: ``--lam`` where it is not given.
        cosine: whether ``--cos`` holds where ``--schedule`` is not given.
    """
    _fill_companions(parser, args, {**_COMPANIONS, "--cutout_size": ("cutout", None)})
    check_decay(parser, args, e_shift, e_lambda)
    if args.print_always and not args.el2:
        parser.error("--print-always goes with --el2")
    if args.cutout and (args.mixup or args.cutmix):
        parser.error("--cutout does not go with --mixup or --cutmix")
    if args.nesterov and args.momentum == 0:
        parser.error("--nesterov needs --momentum above 0")
    if args.cos and args.schedule:
        parser.error("--cos and --schedule contradict each other")
    args.cos = args.cos or (cosine and not args.schedule)
    if args.ema is not None and args.opt_level == "O3":
        parser.error("--ema averages float32 weights, which --opt-level O3 does not have: use O2")
    if args.amp_backend == "apex" and (args.ema is not None or args.teacher):
        parser.error("--amp-backend apex takes one network only: not with --ema and --teacher")
