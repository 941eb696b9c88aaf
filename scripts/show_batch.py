"""Draw the batch that a command of imagenet_fast.py trains on in a step: augmented, mixed, with its labels.

    python scripts/show_batch.py -d /path/to/imagenet --cutmix --manualSeed 1
    python scripts/show_batch.py -d digits --img-size 64 --mixup --auto-augment ra --manualSeed 1 \\
        --show-epoch 3 --show-step 10 -o batch.png
    python scripts/show_batch.py -d digits --img-size 64 --resume checkpoint/checkpoint.pth.tar --epochs 20

It takes every flag of imagenet_fast.py, and reads the images of one step only. With the seed of a run it
draws exactly the batch of that run. For a run of several processes, give their number as --processes, and the
process whose batch is drawn as --rank.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from imagenet import train_transform
from imagenet_fast import DEFAULTS, create_parser, cutout_size
from scripts.lib.curves import rendered
from scripts.lib.pictures import check_picture, picture_file, write_picture
from utils.command_line import cli
from utils.command_line.checks import check, check_tricks
from utils.common.distributed import Ranks
from utils.common.errors import UserError
from utils.common.randomness import derive_seed
from utils.common.text import drawable, plural
from utils.data.cifar import usual
from utils.data.loading import DeviceLoader, Reading, training_loader
from utils.data.sampling import Position, TrainBatches
from utils.data.splits import open_data
from utils.data.transforms import IMAGENET, Scaling
from utils.networks import checkpoint
from utils.networks.building import NetworkSpec, complete, layout, says_images
from utils.networks.outputs import outputs_of
from utils.runs.resume import choose_seed, find_checkpoint
from utils.training.metrics import Meter
from utils.training.mixing import MixedBatch, Mixer

COLUMNS = 8  # of the grid
TILE, LINE = 1.55, 0.13  # inches: width of an image, height of a line of text
NAME = 20  # characters of a class name


def parse_arguments() -> argparse.Namespace:
    """Parse and check the flags of imagenet_fast.py, as it does, and those of the picture."""
    parser = create_parser(__doc__)
    group = parser.add_argument_group("picture")
    what = "epoch, from 1 as training prints it (default: the one where training starts)"
    group.add_argument("--show-epoch", type=cli.count_of, metavar="N", help=what)
    what = "step of the epoch, from 1 (default: the first)"
    group.add_argument("--show-step", type=cli.count_of, metavar="N", help=what)
    what = "images that are drawn at most (default: 32)"
    group.add_argument("--images", type=cli.count_of, default=32, metavar="N", help=what)
    what = "number of processes of the training (default: 1)"
    group.add_argument("--processes", type=cli.count_of, default=1, metavar="N", help=what)
    what = "process whose batch is drawn, from 0 (default: 0)"
    group.add_argument("--rank", type=cli.whole, default=0, metavar="R", help=what)
    what = "the picture, .png or .svg; --overwrite replaces it (default: batch.png)"
    group.add_argument(
        "-o", dest="output", type=picture_file, default=Path("batch.png"), metavar="FILE", help=what
    )
    args = parser.parse_args()
    check(parser, args)
    check_tricks(parser, args, DEFAULTS["mineps"], DEFAULTS["lam"])
    if args.evaluate:
        parser.error("-e trains on no batch: leave it out")
    if args.rank >= args.processes:
        parser.error(f"--rank {args.rank} is not below --processes {args.processes}")
    if (args.show_epoch or 1) > args.epochs:
        parser.error(f"--show-epoch {args.show_epoch} is beyond --epochs {args.epochs}")
    return args


def chosen_step(
    start: Position, batches: TrainBatches, show_epoch: int | None, show_step: int | None
) -> tuple[Position, int]:
    """Return where the step that is drawn begins, and its number in the epoch, from 0.

    Args:
        start: where training starts.
        batches: of the training.
        show_epoch: the wanted epoch, from 1; None: the one where training starts.
        show_step: the wanted step of it, from 1; None: the first.

    Raises:
        UserError: the epoch has no such step, or the resumed run has already done it.
    """
    epoch = show_epoch - 1 if show_epoch else start.epoch
    batches.set_position(start if epoch == start.epoch else Position(epoch))
    first, last = batches.first_step, batches.steps - 1
    step = show_step - 1 if show_step else first
    if not first <= step <= last:
        has = f"steps {first + 1} to {last + 1}" if last >= first else "no step left"
        raise UserError(f"--show-step {step + 1}: epoch {epoch + 1} has {has}; choose one of them")
    return Position(epoch, batches.images + (step - first) * batches.samples_per_step), step


def batches_of_step(
    loader: DeviceLoader[TrainBatches], mixer: Mixer, seed: int, begin: Position, step: int
) -> list[MixedBatch]:
    """Return the network's inputs of a step, a batch for each of its ``--accum-steps`` parts.

    Args:
        loader: of the process.
        mixer: of the training.
        seed: of the run.
        begin: where the step begins.
        step: its number in the epoch, from 0.
    """
    batches = loader.batches
    batches.set_position(begin)
    mixed = []
    for position, (images, labels) in zip(
        range(step * batches.parts, (step + 1) * batches.parts), loader, strict=False
    ):
        mixed.append(mixer(images, labels, derive_seed(seed, "mix", begin.epoch, position, batches.rank)))
    return mixed


def pixels(images: Tensor, scaling: Scaling = IMAGENET) -> Tensor:
    """Undo the normalisation of images (B, 3, H, W): (B, H, W, 3) in [0, 1]."""
    mean, std = scaling.tensors()
    return (images * std + mean).clamp(0, 1).permute(0, 2, 3, 1)


def captions(batch: MixedBatch, classes: Sequence[str]) -> list[str]:
    """Return the text of every image: its label, and for a mixed one both labels with their weights."""
    names = [name if len(name) <= NAME else f"{name[: NAME - 3]}..." for name in map(drawable, classes)]
    own, partners = batch.labels.tolist(), batch.partners.tolist()
    if batch.weight == 1:
        return [names[label] for label in own]
    rest = 1 - batch.weight
    pairs = zip(own, partners, strict=True)
    return [f"{names[label]}: {batch.weight:.3f}\n{names[other]}: {rest:.3f}" for label, other in pairs]


def draw(tiles: Tensor, texts: Sequence[str], title: str) -> Any:
    """Draw a matplotlib figure with a grid of images (N, S, S, 3), each above its text."""
    from matplotlib.figure import Figure

    columns = min(COLUMNS, max(4, math.ceil(math.sqrt(len(tiles)))))
    rows, side = math.ceil(len(tiles) / columns), tiles.shape[1]
    gap = round(side * (0.1 + LINE / TILE * (1 + max(text.count("\n") for text in texts))))
    between = max(2, side // 30)
    canvas = np.ones((rows * (side + gap), columns * (side + between) - between, 3))
    figure = Figure(figsize=(columns * TILE, rows * (TILE * (side + gap) / side) + 0.4), layout="constrained")
    axes = figure.subplots()
    for i, (tile, text) in enumerate(zip(tiles, texts, strict=True)):
        top, left = i // columns * (side + gap), i % columns * (side + between)
        canvas[top : top + side, left : left + side] = tile.numpy()
        place = (left + side / 2, top + side * 1.03)
        axes.text(*place, text, ha="center", va="top", fontsize=7, parse_math=False)
    axes.imshow(canvas)
    axes.axis("off")
    figure.suptitle(title, fontsize=9, parse_math=False)
    return figure


def main() -> None:
    args = parse_arguments()
    check_picture(args.output, args.overwrite)
    ranks = Ranks(args.rank, args.processes)
    resumed = find_checkpoint(args.resume, args.checkpoint)
    seed = choose_seed(args.manualSeed, resumed.saved.get("seed"))
    said = {**resumed.saved.get("arguments", {}), "arch": resumed.saved.get("arch")}
    given = {name: getattr(args, name) for name in ("arch", "img_size", "mean", "std")}
    of_data = {} if says_images(resumed.saved) else usual(args.data)
    spec = NetworkSpec(**of_data | complete(given, said, resumed.file))
    started = checkpoint.load(args.finetune, "--finetune") if args.finetune and resumed.file is None else {}
    classes = (spec.arch, args.num_classes, args.class_list)
    outputs = outputs_of(*classes, False, resumed.saved, started, resumed.file)
    splits = open_data(args.data, False, outputs, args.cache)
    resumed.check_archives(splits.archives())
    split = splits.train
    assert split is not None  # it is missing in evaluation only
    transform = train_transform(args, spec)
    memory = layout(args.channels_last)
    reading = Reading(0, args.max_bad, args.decoder, memory)  # data workers would read further batches
    batches = (args.train_batch, seed, reading, ranks, args.accum_steps)
    loader = training_loader(split, transform, *batches)
    start = resumed.position(args.start_epoch, len(Meter(ranks.device).sums), ranks)
    begin, step = chosen_step(start, loader.batches, args.show_epoch, args.show_step)
    steps = loader.batches.steps
    size = loader.batches.batch * args.accum_steps
    where = f"epoch {begin.epoch + 1}, step {step + 1} of {steps:,}, seed {seed}"
    print(f"{where}: reading {plural(size, 'image')}", flush=True)
    mixup, cutmix = args.alpha if args.mixup else None, args.cutmix_prob if args.cutmix else None
    mixer = Mixer(mixup, cutmix, cutout_size(args, spec.img_size) if args.cutout else None)
    mixed = batches_of_step(loader, mixer, seed, begin, step)
    tiles = torch.cat([pixels(batch.images, spec.scaling) for batch in mixed])[: args.images]
    texts = [text for batch in mixed for text in captions(batch, split.classes)][: args.images]
    of = f"process {args.rank} of {args.processes}, " if args.processes > 1 else ""
    title = f"{drawable(args.data)}, {where}, {of}{len(tiles)} of {plural(size, 'image')}"
    content = rendered(draw(tiles, texts, title), args.output.suffix[1:].lower())
    write_picture(args.output, content)
    for number, batch in enumerate(mixed, 1):
        part = f" in part {number}" * (len(mixed) > 1)
        mixing = f"its own label counts {batch.weight:.3f}" if batch.weight != 1 else "no image is mixed"
        print(f"{plural(len(batch.labels), 'image')}{part}: {mixing}")
    print(f"wrote {args.output}: {plural(len(tiles), 'image')}")


if __name__ == "__main__":
    cli.run(main)
