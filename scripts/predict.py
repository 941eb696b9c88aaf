"""Classify images: write the most probable classes of each as CSV, to stdout or to a file, or as JSON.

    python scripts/predict.py -a sge_resnet50 --resume sge_resnet50.pth.tar photo.jpg
    python scripts/predict.py --resume checkpoints/demo/model_best.pth.tar -k 3 data/digits/val --csv a.csv
    python scripts/predict.py -a se_resnet50 --resume se.pth --class-list names.txt photos/ --json found.json

Images are decoded, resized, cropped and normalised as in validation. Before that, photos are turned upright
according to their EXIF orientation, which training and evaluation ignore. Folders are searched with all
folders in them. Class names are those of --class-list, else the checkpoint's, else for 1000 outputs
ImageNet's, else numbers from 0.

Exit code: 0 all images were classified, 1 some could not be decoded, 2 the command is wrong.
"""

import argparse
import csv
import io
import json
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from scripts.lib.data_files import find_images
from scripts.lib.data_reading import listed
from scripts.lib.restored import Restored, names_to_show, restore
from utils.command_line import arguments, cli
from utils.command_line.gate_arguments import add_part_arguments, check_gates, network_given
from utils.common.checks import check_output
from utils.common.devices import select_devices
from utils.common.distributed import Ranks
from utils.common.errors import UserError
from utils.common.files import write_atomically
from utils.common.text import plural, shown
from utils.data.loading import Broken, DeviceLoader, Reading, validation_loader
from utils.data.sampling import EvalBatches
from utils.data.splits import ImageSplit

TOP = 5  # classes for an image


class Predictions(NamedTuple):
    """The classes of the highest probability of N images, the most probable first."""

    files: Tensor  # (N,), int64: indices into the list of files
    probabilities: Tensor  # (N, k), float32
    labels: Tensor  # (N, k), int64


def class_names(restored: Restored, checkpoint: str, listed: str | None, flag: str) -> list[str]:
    """Return a name for every output of the network.

    Args:
        restored: the network.
        checkpoint: its file.
        listed: the file with the names, if one is given.
        flag: the flag that gave it.

    Raises:
        UserError: that file cannot be read, or does not have one line for each output.
    """
    names, told = names_to_show(restored, checkpoint, listed, flag)
    if len(names) < restored.outputs:
        which = "names no classes" if not names else f"names only {len(names)} of {restored.outputs} classes"
        told = f"{checkpoint} {which}: the others are numbers from 0 (--class-list FILE names all)"
    if told:
        note(told)
    return names + [str(label) for label in range(len(names), restored.outputs)]


def note(text: str) -> None:
    """Print a note on stderr, because stdout is for the CSV."""
    print(f"note: {shown(text)}", file=sys.stderr, flush=True)


@torch.inference_mode()
def predict(net: nn.Module, loader: DeviceLoader[EvalBatches], k: int) -> Predictions:
    """Return the ``k`` most probable classes of every image that could be decoded.

    The loader's labels must be the images' indices.

    Raises:
        UserError: an output is not finite.
    """
    parts: list[tuple[Tensor, ...]] = []
    total = len(loader.dataset)
    with tqdm(desc="predicting", total=total, unit=" images", leave=False, disable=None) as bar:
        for images, files in loader:
            if len(files):
                best = net(images).float().softmax(dim=1).topk(k)
                if not torch.isfinite(best.values).all():
                    raise UserError("the network's outputs are not finite: its weights are of no use")
                parts.append((files.cpu(), best.values.cpu(), best.indices.cpu()))
            bar.update(loader.read + len(loader.broken) - bar.n)
    empty = (torch.empty(0, dtype=torch.int64), torch.empty(0, k), torch.empty(0, k, dtype=torch.int64))
    return Predictions(*map(torch.cat, zip(*(parts or [empty]), strict=True)))


def as_json(
    facts: Mapping[str, object],
    found: Predictions,
    paths: Sequence[str],
    names: Sequence[str],
    broken: Sequence[Broken],
) -> str:
    """Return JSON with the facts, the classes of every image, and the files that could not be decoded."""
    images = []
    for file, probabilities, labels in zip(*(part.tolist() for part in found), strict=True):
        classes = [
            {"class": names[label], "label": label, "probability": round(probability, 6)}
            for label, probability in zip(labels, probabilities, strict=True)
        ]
        images.append({"path": paths[file], "classes": classes})
    files = [{"path": path, "reason": reason} for path, reason in broken]
    return json.dumps({**facts, "images": images, "undecodable": files}, indent=1) + "\n"


def as_csv(found: Predictions, paths: Sequence[str], names: Sequence[str]) -> str:
    """Return CSV with a line for every image and class: path, rank (from 1), class, index, probability."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("path", "rank", "class", "label", "probability"))
    for file, probabilities, labels in zip(*(part.tolist() for part in found), strict=True):
        for rank, (label, probability) in enumerate(zip(labels, probabilities, strict=True), 1):
            writer.writerow((paths[file], rank, names[label], label, f"{probability:.6f}"))
    return text.getvalue()


def write(name: str, text: str) -> None:
    """Write a file of results; paths that are no UTF-8 keep their bytes.

    Raises:
        UserError: it cannot be written.
    """
    try:
        write_atomically(Path(name), lambda file: file.write(text.encode("utf-8", "surrogateescape")))
    except OSError as error:
        raise UserError(f"{shown(name)}: {error.strerror}") from error


def check_outputs(csv_file: str | None, json_file: str | None, overwrite: bool) -> None:
    """Refuse, before hours of work, files of results that cannot be written.

    Raises:
        UserError: a file exists and may not be replaced, its folder is missing, or both are one file.
    """
    if csv_file and json_file and Path(csv_file).resolve() == Path(json_file).resolve():
        raise UserError(f"--csv and --json are both {shown(csv_file)}: give each a file of its own")
    for flag, name in (("--csv", csv_file), ("--json", json_file)):
        if name:
            check_output(Path(name), flag, overwrite)


def create_parser() -> cli.Parser:
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", type=cli.name_of_file, metavar="IMAGE", help="files or folders")
    parser.add_argument("--resume", required=True, type=cli.name_of_file, metavar="FILE", help="checkpoint")
    what = "its architecture (default: what the checkpoint says)"
    parser.add_argument("-a", "--arch", type=arguments.architecture, help=what)
    what = f"classes for an image (default: {TOP}, or all if there are fewer)"
    parser.add_argument("-k", type=cli.count_of, help=what)
    names = parser.add_mutually_exclusive_group()
    what = "names of the classes, one a line, in the order of the outputs"
    names.add_argument("--class-list", type=cli.name_of_file, metavar="FILE", help=what)
    names.add_argument("--classes", type=cli.name_of_file, metavar="FILE", help="the same")
    parser.add_argument("--csv", type=cli.name_of_file, metavar="FILE", help="write CSV there, not to stdout")
    parser.add_argument("--json", type=cli.name_of_file, metavar="FILE", help="write JSON there")
    parser.add_argument("--overwrite", action="store_true", help="replace these files")
    what = "side of the square input in pixels (default: as in training; 224 if the checkpoint does not say)"
    parser.add_argument("--img-size", type=cli.count_of, metavar="S", help=what)
    what = "images at a time (default: 64)"
    parser.add_argument(
        "--batch", "--test-batch", dest="test_batch", type=cli.count_of, default=64, metavar="N", help=what
    )
    what = "processes that decode (default: one per core, at most 32)"
    cores = min(32, os.cpu_count() or 1)
    parser.add_argument("-j", "--workers", type=cli.whole, default=cores, metavar="N", help=what)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: auto)")
    what = "(default: the fastest that is installed)"
    parser.add_argument("--decoder", type=arguments.decoder, default="auto", help=what)
    add_part_arguments(parser, "stem and gates (default: what the checkpoint says)")
    return parser


def main() -> None:
    parser = create_parser()
    args = parser.parse_args()
    check_gates(parser, args)
    warnings.simplefilter("ignore")  # PIL warns of odd metadata; workers inherit the filter
    check_outputs(args.csv, args.json, args.overwrite)
    device, _ = select_devices(args.device, "0")
    paths, dead = find_images(args.images)
    restored = restore(args.resume, network_given(args))
    flag, listed_in = ("--classes", args.classes) if args.classes else ("--class-list", args.class_list)
    names = class_names(restored, args.resume, listed_in, flag)
    if args.k is not None and args.k > restored.outputs:
        raise UserError(f"-k {args.k} is too many: the network has {plural(restored.outputs, 'class')}")
    split = ImageSplit([(path, file) for file, path in enumerate(paths)], ())
    reading, ranks = Reading(args.workers, decoder=args.decoder), Ranks(device=device)
    loader = validation_loader(split, restored.val_transform, args.test_batch, reading, ranks, upright=True)
    found = predict(restored.net.to(device), loader, args.k or min(TOP, restored.outputs))
    broken = sorted(loader.broken) + dead
    if args.json:
        facts = {"arch": restored.name, "checkpoint": args.resume, "img_size": restored.img_size}
        write(args.json, as_json(facts, found, paths, names, broken))
    if args.csv:
        write(args.csv, as_csv(found, paths, names))
    if not args.csv and not args.json:
        print(as_csv(found, paths, names), end="", flush=True)
    if broken:
        what = f"{plural(len(broken), 'file')} cannot be decoded: no predictions for"
        print("\n".join([f"trouble: {what}", *map(shown, listed(broken, Path.cwd()))]), file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main)
