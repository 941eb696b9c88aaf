"""Draw what the attention of a network does to images: a PNG for each, and an index.html over all.

    python scripts/show_gates.py -a sge_resnet50 --resume sge_resnet50.pth.tar cat.JPEG dog.JPEG -o gates
    python scripts/show_gates.py -a se_resnet50 --resume checkpoints/se/model_best.pth.tar val/*/1.JPEG --sort

Drawn are the channel gates of SE, SK, SRM, CBAM and GC, the spatial ones of SGE, CBAM, BAM and GC over the
image, and the energy in the two resolutions of Octave nets: of the last block of every stage.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from models import create_model
from scripts.gallery import Entry, make_folder, picture_name, write_page
from scripts.gates.draw import draw
from scripts.gates.record import Gate, Recorded, last_of_each_stage, record
from scripts.plot_logs import write_picture
from utils import checkpoint, cli, fitting
from utils.curves import rendered
from utils.decoding import decode
from utils.errors import UserError
from utils.text import drawable, plural
from utils.transforms import MEAN, STD, ValTransform

TOP = 3  # predictions that are named


def pixels_of(path: str, size: int) -> Tensor:
    """The middle of an image as in evaluation, (3, S, S) in [0, 1].

    Raises:
        UserError: it cannot be read.
    """
    if Path(path).is_dir():
        raise UserError(f"{path} is a folder: name images, such as {path.rstrip('/')}/*.JPEG")
    transform = ValTransform(size)
    try:
        image = decode(path)
    except Exception as error:  # decoders raise anything
        reason = getattr(error, "strerror", None) or f"no image ({type(error).__name__})"
        raise UserError(f"{path}: {reason}; name files that are images") from None
    return transform(image, transform.box(image.height, image.width)) / 255


def normalised(pixels: Tensor) -> Tensor:
    """As the network takes them, (1, 3, S, S)."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return ((pixels - mean) / std)[None]


def open_network(args: argparse.Namespace) -> tuple[nn.Module, Sequence[str]]:
    """The network of ``-a`` with the weights of ``--resume``, and the names of its classes, if known.

    Raises:
        UserError: the file cannot be read or does not fit.
    """
    saved: Mapping[str, Any] = checkpoint.load(args.resume) if args.resume else {}
    names = saved.get("classes", ())
    torch.manual_seed(0)
    net = create_model(args.arch, num_classes=args.num_classes or len(names) or 1000)
    if saved:
        fitting.load_weights(net, saved, args.arch, args.resume)
    else:
        print("note: without --resume FILE the weights are random, and so is what is drawn")
    return net.eval(), names


def predictions(logits: Tensor, names: Sequence[str]) -> list[str]:
    """The likeliest classes of one image, ``57.1 % tabby``."""
    shares, classes = logits[0].softmax(0).topk(min(TOP, logits.shape[1]))
    called = [drawable(names[i]) if i < len(names) else f"class {i}" for i in classes.tolist()]
    return [f"{100 * share:.1f} % {name}" for share, name in zip(shares.tolist(), called, strict=True)]


def chosen(recorded: Recorded, all_blocks: bool) -> Sequence[Any]:
    """What is drawn of a pass."""
    gates = [one for one in recorded.shown if isinstance(one, Gate)]
    return last_of_each_stage(gates) if gates and not all_blocks else recorded.shown


def main() -> None:
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=cli.name_of_file, nargs="+", metavar="IMAGE", help="an image file")
    parser.add_argument("-a", "--arch", type=cli.architecture, required=True, help="see models/")
    what = "checkpoint of the network (default: random weights)"
    parser.add_argument("--resume", type=cli.name_of_file, metavar="FILE", help=what)
    what = "outputs of the network (default: as many as FILE names classes, else 1000)"
    parser.add_argument("--num-classes", type=cli.count_of, metavar="N", help=what)
    size = cli.number(int, lambda value: value >= 32, "a whole number of at least 32")
    what = "side of the square input in pixels (default: 224)"
    parser.add_argument("--img-size", type=size, default=224, metavar="S", help=what)
    parser.add_argument("--sort", action="store_true", help="sort the channels by their gate")
    what = "draw every block (default: the last of each stage)"
    parser.add_argument("--all-blocks", action="store_true", help=what)
    what = "folder of the pictures; made if missing, files of the same names are replaced (default: gates)"
    parser.add_argument("-o", dest="output", type=cli.name_of_file, default="gates", metavar="DIR", help=what)
    args = parser.parse_args()
    cli.check_libraries("pictures", "matplotlib")
    folder = Path(args.output)
    net, names = open_network(args)
    weights = args.resume or "random weights"
    entries = []
    for number, path in enumerate(tqdm(args.images, "drawing", unit="image", leave=False, disable=None), 1):
        pixels = pixels_of(path, args.img_size)
        recorded = record(net, normalised(pixels))
        likeliest = predictions(recorded.logits, names)
        title = drawable(f"{args.arch}, {weights}: {Path(path).name}")
        text = "\n".join(["predicted:", *likeliest])
        figure = draw(pixels, chosen(recorded, args.all_blocks), title, text, args.sort)
        make_folder(folder)
        entry = Entry(picture_name(number, path), drawable(path), f"predicted: {', '.join(likeliest)}")
        write_picture(folder / entry.name, rendered(figure))
        entries.append(entry)
    title = drawable(f"Attention of {args.arch}, {weights}")
    write_page(folder, entries, title, "Attention of every stage on")
    print(f"wrote {folder}/: {plural(len(entries), 'picture')}, index.html")


if __name__ == "__main__":
    cli.run(main)
