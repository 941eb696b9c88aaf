"""Measure what the gates of a network do, over validation images and by class: CSV and pictures.

    python scripts/analyse_gates.py --resume se.pth.tar --data /path/to/imagenet1k/ -o gates
    python scripts/analyse_gates.py --resume se.pth.tar --data digits --classes 3 8 --images 20 -o gates

As in section 7 of the SENet paper (arXiv 1709.01507): do the gates depend on the class, do they depend on
the image at all, are they saturated, and how does that change with depth? Of any gate at any place.

    gates.csv      a line for each gate and class: mean, spreads, saturated shares, range
    channels.csv   mean and spread of every channel, over all images and for the classes that are drawn
    classes.png    the last gate of each stage: the mean of some channels, a line for each class
    depth.png      all gates: mean and spreads, saturation, and the share of variance between classes
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from scripts.lib.curves import rendered
from scripts.lib.gates_record import Gate, last_of_each_stage, record
from scripts.lib.gates_statistics import Collected, as_csv
from scripts.lib.gates_statistics_draw import draw_classes, draw_depth
from scripts.lib.pictures import make_folder, write_picture
from scripts.lib.restored import Restored, restore
from utils.command_line import arguments, cli
from utils.command_line.gate_arguments import add_part_arguments, check_gates, network_given
from utils.common.checks import check_folder_of_output, check_libraries
from utils.common.devices import select_devices
from utils.common.distributed import Ranks
from utils.common.errors import UserError
from utils.common.text import drawable, plural, shown
from utils.data.labels import Outputs
from utils.data.loading import DeviceLoader, Reading, validation_loader
from utils.data.sampling import EvalBatches
from utils.data.splits import ImageSplit, open_data

DRAWN = 5  # classes that are drawn unless --classes names them; ten colours can be told apart
MOST_DRAWN = 10


def choose_images(split: ImageSplit, images: int) -> ImageSplit:
    """Return the first images of every class."""
    taken: dict[int, int] = {}
    samples = []
    for path, label in split.samples:
        taken[label] = taken.get(label, 0) + 1
        if taken[label] <= images:
            samples.append((path, label))
    return ImageSplit(samples, split.classes)


def choose_classes(split: ImageSplit, named: Sequence[str] | None) -> list[int]:
    """Return the labels of the classes that are drawn.

    Raises:
        UserError: a name is none of the split's, or they are too many to be told apart.
    """
    there = sorted({label for _, label in split.samples})
    if named is None:
        return there[:DRAWN]
    labels = {split.classes[label]: label for label in there}
    if unknown := [name for name in named if name not in labels]:
        some = ", ".join(map(shown, list(labels)[:10]))
        raise UserError(
            f"--classes {shown(unknown[0])}: no class folder of --data with images; there are {some}"
        )
    if len(named) > MOST_DRAWN:
        raise UserError(f"--classes: more than {MOST_DRAWN} lines in a picture cannot be told apart")
    return [labels[name] for name in dict.fromkeys(named)]


def collect(restored: Restored, loader: DeviceLoader[EvalBatches], classes: Sequence[str]) -> Collected:
    """Record the gates of all images.

    Raises:
        UserError: the network has no gates, or no image can be read.
    """
    collected = Collected(classes)
    with tqdm(desc="images", total=len(loader.dataset), leave=False, disable=None) as bar:
        for images, labels in loader:
            if len(labels):
                collected.add(gates_in(restored, images), labels)
            bar.update(len(labels))
    if not collected.gates:
        raise UserError("no image of --data can be decoded")
    return collected


def gates_in(restored: Restored, images: Tensor) -> list[Gate]:
    """Return the gates of a batch.

    Raises:
        UserError: the network has none.
    """
    gates = [one for one in record(restored.net, images).shown if isinstance(one, Gate)]
    if not gates:
        raise UserError(f"{restored.name} has two resolutions and no gates: show_gates.py draws these")
    return gates


def create_parser() -> cli.Parser:
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resume", required=True, type=cli.name_of_file, metavar="FILE", help="checkpoint")
    text = "image folder, whose validation images are taken, or 'digits'"
    parser.add_argument("-d", "--data", required=True, type=cli.name_of_file, metavar="PATH", help=text)
    text = "images of each class at most (default: %(default)s)"
    parser.add_argument("--images", type=cli.count_of, default=50, metavar="N", help=text)
    text = f"class folders that are drawn (default: the first {DRAWN}); the figures are of all classes"
    parser.add_argument("--classes", nargs="+", metavar="NAME", help=text)
    text = "draw every gate by class (default: the last block of each stage)"
    parser.add_argument("--all-blocks", action="store_true", help=text)
    arguments.add_folder_arguments(parser, "gates")
    text = "its architecture (default: what the checkpoint says)"
    parser.add_argument("-a", "--arch", type=arguments.architecture, help=text)
    text = "side of the square input in pixels (default: as in training; 224 if the checkpoint does not say)"
    parser.add_argument("--img-size", type=cli.count_of, metavar="S", help=text)
    parser.add_argument("--test-batch", type=cli.count_of, default=32, metavar="N", help="images at a time")
    text = "processes that decode (default: one per core, at most 32)"
    cores = min(32, os.cpu_count() or 1)
    parser.add_argument("-j", "--workers", type=cli.whole, default=cores, metavar="N", help=text)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: auto)")
    add_part_arguments(parser, "stem and gates (default: what the checkpoint says)")
    return parser


def main() -> None:
    parser = create_parser()
    args = parser.parse_args()
    check_gates(parser, args)
    check_libraries("pictures", "matplotlib")
    check_folder_of_output(Path(args.output), "-o", args.overwrite)
    device, _ = select_devices(args.device, "0")
    restored = restore(args.resume, network_given(args))
    restored.net.to(device)
    known = Outputs(restored.outputs, saved=tuple(restored.saved.get("classes", ())))
    split = choose_images(open_data(args.data, True, known).val, args.images)
    kinds = choose_classes(split, args.classes)
    reading, ranks = Reading(args.workers), Ranks(device=device)
    loader = validation_loader(split, restored.val_transform, args.test_batch, reading, ranks)
    with torch.inference_mode():
        collected = collect(restored, loader, split.classes)
    loader.report(ranks)
    write(Path(args.output), collected, kinds, args.all_blocks, f"{restored.name}, {args.resume}")


def write(folder: Path, collected: Collected, kinds: Sequence[int], all_blocks: bool, name: str) -> None:
    """Write the tables and the pictures, and say so.

    Raises:
        UserError: one cannot be written.
    """
    gates = [one.gate for one in collected.gates.values()]
    last = {(gate.module, gate.seen.title) for gate in (gates if all_blocks else last_of_each_stage(gates))}
    drawn = [one for key, one in collected.gates.items() if key in last]
    count = int(next(iter(collected.gates.values())).images.sum())
    of = f"{plural(count, 'image')} of {plural(len(collected.labels), 'class')}"
    title = drawable(f"{name}; {of}")
    contents = {
        "gates.csv": as_csv(collected.rows()).encode(),
        "channels.csv": as_csv(collected.channels(kinds)).encode(),
        "classes.png": rendered(draw_classes(drawn, collected, kinds, title)),
        "depth.png": rendered(draw_depth(collected, title)),
    }
    make_folder(folder)
    for file, content in contents.items():
        write_picture(folder / file, content)
    print(f"wrote {folder}/: {plural(len(gates), 'gate')} on {of}; {', '.join(contents)}")


if __name__ == "__main__":
    cli.run(main)
