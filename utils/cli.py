"""Command lines: argument groups that the scripts share, and checks that end in one clear line."""

import argparse
import difflib
import math
import os
import random
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from torch import nn

from models import create_model, is_own, list_models
from utils.checkpoint import BEST, LAST
from utils.complexity import Complexity, count
from utils.errors import UserError
from utils.logger import LOG, read_rows


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line (argparse prints the usage of fifty flags before it)."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")


def run(main: Callable[[], None]) -> NoReturn:
    """Call a script's ``main``; a mistake of the user ends in one line on stderr and exit code 2."""
    try:
        main()
    except UserError as error:
        print(f"{Path(sys.argv[0]).name}: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def number(kind: type, accepts: Callable[[float], bool], description: str) -> Callable[[str], Any]:
    """An argparse type: an ``int`` or ``float`` that passes a test."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
            good = math.isfinite(value) and accepts(value)
        except ValueError:
            good = False
        if not good:
            raise argparse.ArgumentTypeError(f"must be {description}, not '{text}'")
        return value

    return parse


count_of = number(int, lambda value: value >= 1, "a whole number of at least 1")
whole = number(int, lambda value: value >= 0, "a whole number of at least 0")
positive = number(float, lambda value: value > 0, "a number above 0")
non_negative = number(float, lambda value: value >= 0, "a number of at least 0")
fraction = number(float, lambda value: 0 <= value <= 1, "a number from 0 to 1")


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the images are and how they are read."""
    group = parser.add_argument_group("data")
    group.add_argument(
        "-d",
        "--data",
        required=True,
        metavar="PATH",
        help="folder with train/ and val/ (or valf/, valid/, validation/), a folder per class in each; "
        "'digits' is embedded: 1,797 handwritten digits, written to data/digits on first use",
    )
    group.add_argument(
        "-j",
        "--workers",
        type=whole,
        default=min(32, os.cpu_count() or 1),
        help="processes that decode images; does not change the result (default: one per core, at most 32)",
    )
    group.add_argument("--img-size", type=count_of, default=224, help="side of the square input in pixels")
    group.add_argument(
        "--scale",
        type=fraction,
        nargs=2,
        metavar=("LEAST", "MOST"),
        help="share of the image's area that a training crop covers (default: 0.08 1)",
    )
    group.add_argument(
        "--hflip", type=fraction, default=0.5, help="probability of a horizontal flip in training"
    )
    group.add_argument(
        "--num-classes", type=count_of, help="outputs of the network (default: the number of class folders)"
    )


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Which network."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "-a", "--arch", default="resnet18", type=architecture, help="see models/ and torchvision.models"
    )
    group.add_argument("--cardinality", type=count_of, help="groups of the 3x3 convolutions (resnext: 32)")
    group.add_argument("--base-width", type=count_of, help="width of each group (resnext: 4)")
    group.add_argument("--pretrained", action="store_true", help="start from torchvision's ImageNet weights")


def add_training_arguments(parser: argparse.ArgumentParser, epochs: int) -> None:
    """How long, in which batches, by which optimizer."""
    group = parser.add_argument_group("training")
    group.add_argument("--epochs", type=count_of, default=epochs)
    group.add_argument(
        "--start-epoch", type=whole, default=0, help="first epoch, from 0; a resumed file's own goes first"
    )
    group.add_argument("--train-batch", type=count_of, default=256, help="images per step, over all GPUs")
    group.add_argument("--test-batch", type=count_of, default=200, help="images per step of evaluation")
    group.add_argument("--lr", "--learning-rate", type=positive, default=0.1)
    group.add_argument(
        "--gamma", type=positive, default=0.1, help="factor on the rate at each epoch of --schedule"
    )
    group.add_argument("--momentum", type=non_negative, default=0.9)
    group.add_argument("--weight-decay", "--wd", type=non_negative, default=1e-4)


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the run is kept, how it continues, what it runs on."""
    group = parser.add_argument_group("run")
    group.add_argument(
        "-c",
        "--checkpoint",
        metavar="DIR",
        help="folder of the run's files (default: checkpoint; with --resume, that file's folder)",
    )
    group.add_argument("--overwrite", action="store_true", help="replace the run that DIR holds already")
    group.add_argument(
        "--resume", default="", metavar="FILE", help="checkpoint to continue from or to evaluate"
    )
    group.add_argument(
        "--fresh-optimizer", action="store_true", help="resume the weights but not the momentum"
    )
    group.add_argument("-e", "--evaluate", action="store_true", help="evaluate only: writes nothing")
    group.add_argument(
        "--manualSeed", type=whole, help="seed of everything random (default: drawn, and printed)"
    )
    group.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: CUDA if there is one"
    )


def architecture(name: str) -> str:
    """An argparse type: the name of a registered architecture."""
    names = list_models()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else "see models.list_models()"
        raise argparse.ArgumentTypeError(f"unknown architecture '{name}'; {hint}")
    return name


def class_count(requested: int | None, classes: tuple[str, ...]) -> int:
    """The number of outputs: ``--num-classes``, or as many as there are class folders.

    Raises:
        UserError: fewer outputs than folders.
    """
    if requested is not None and requested < len(classes):
        raise UserError(f"--num-classes {requested}: the data has {len(classes)} class folders")
    return requested or len(classes)


def build_model(args: argparse.Namespace, classes: int) -> tuple[nn.Module, Complexity]:
    """The network of ``-a`` and its size and cost at ``--img-size``.

    Raises:
        UserError: the builder refuses the arguments, or there are no weights to download.
    """
    kwargs: dict[str, Any] = {"num_classes": classes}
    if args.cardinality is not None:
        kwargs["groups"] = args.cardinality
    if args.base_width is not None:
        kwargs["width_per_group"] = args.base_width
    try:
        model = create_model(args.arch, **kwargs, **_pretrained(args, classes))
        return model, count(model, (3, args.img_size, args.img_size))
    except (TypeError, ValueError, NotImplementedError, RuntimeError, AssertionError) as error:
        settings = ", ".join(f"{key}={value}" for key, value in kwargs.items())
        raise UserError(f"-a {args.arch} does not take {settings} at {args.img_size} px: {error}") from None
    except OSError as error:
        raise UserError(f"--pretrained: the weights of {args.arch} cannot be downloaded: {error}") from None


def _pretrained(args: argparse.Namespace, classes: int) -> dict[str, str]:
    if not args.pretrained:
        return {}
    if is_own(args.arch):
        raise UserError(
            f"--pretrained: there are no weights of {args.arch} to download; give a file with --resume"
        )
    if classes != 1000:
        raise UserError(f"--pretrained: those weights have 1000 classes, the data has {classes}")
    return {"weights": "IMAGENET1K_V1"}


def run_folder(args: argparse.Namespace) -> Path:
    """The folder of a training run, made if it is not there; with ``--overwrite`` the run in it is removed.

    Raises:
        UserError: it holds another run, or cannot be written to.
    """
    resumed = Path(args.resume).parent if args.resume else None
    folder = Path(args.checkpoint) if args.checkpoint else resumed or Path("checkpoint")
    continued = resumed is not None and folder.resolve() == resumed.resolve()
    if not continued and holds_run(folder):
        if not args.overwrite:
            raise UserError(
                f"-c {folder} holds a run already: go on with --resume {folder / LAST}, "
                "choose another folder, or give --overwrite"
            )
        for path in (folder / LAST, folder / BEST, *folder.glob("events.out.tfevents.*")):
            path.unlink(missing_ok=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"-c {folder}: cannot make this folder ({error.strerror})") from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"-c {folder}: no permission to write there")
    return folder


def holds_run(folder: Path) -> bool:
    """Whether a folder has a checkpoint or a log.txt with epochs in it."""
    return (folder / LAST).exists() or (folder / BEST).exists() or bool(read_rows(folder / LOG))


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse combinations of flags that make no sense, before anything is read."""
    if args.evaluate and not (args.resume or args.pretrained):
        parser.error("-e evaluates a checkpoint: give --resume FILE, or --pretrained")
    if args.start_epoch >= args.epochs:
        parser.error(f"--start-epoch {args.start_epoch} leaves nothing of --epochs {args.epochs}")
    if args.scale and not 0 < args.scale[0] <= args.scale[1]:
        parser.error("--scale takes the least share of the area, above 0, and then the largest")
    if args.fresh_optimizer and not args.resume:
        parser.error("--fresh-optimizer goes with --resume FILE")


def choose_seed(requested: int | None, resumed: int | None) -> int:
    """The run's seed: as requested, else the resumed run's, else a random one of 1 to 10,000."""
    if requested is not None:
        return requested
    return resumed if resumed is not None else random.SystemRandom().randint(1, 10_000)


def start_of_training(args: argparse.Namespace, saved: Mapping[str, Any]) -> tuple[int, float]:
    """The first epoch, from 0, and the best top-1 so far (-1 for none).

    Raises:
        UserError: the resumed run is finished.
    """
    start, best = int(saved.get("epoch", args.start_epoch)), float(saved.get("best_acc", -1.0))
    if start >= args.epochs:
        raise UserError(f"--resume {args.resume}: {start} epochs are done; give --epochs above that to go on")
    return start, best


def previous_rows(args: argparse.Namespace, start: int) -> list[str]:
    """log.txt rows of the epochs before ``start``, from beside the resumed file."""
    if not args.resume:
        return []
    rows = read_rows(Path(args.resume).parent / LOG)[:start]
    if len(rows) < start:
        print(f"note: {len(rows)} of {start} earlier epochs are in a log.txt beside {args.resume}")
    return rows
