"""Draw what the attention of a network does to images: a PNG for each, and an index.html over all.

    python scripts/show_gates.py -a sge_resnet50 --resume sge_resnet50.pth.tar cat.JPEG dog.JPEG -o gates
    python scripts/show_gates.py -a se_resnet50 --resume checkpoints/se/model_best.pth.tar val/*/1.JPEG --sort
    python scripts/show_gates.py --resume plain.pth.tar --resume se.pth.tar --cam cat.JPEG dog.JPEG -o both

For the last block of every stage it draws the gates of the channels as bars, the gates of the positions over
the image, and of Octave nets the energy in the two resolutions. Of a gate class that it does not know it
draws the sigmoids and softmaxes, or the ratio of output to input where none can be read. Photos are turned
upright according to their EXIF orientation.

The colours of a map span its range, which is written above it, but at least 0.1 for a gate from 0 to 1, and
at least a tenth of the largest value for others. So a map that hardly varies looks flat.

--cam draws Grad-CAM too, of each network's most probable class: for several networks (--resume for each) side
by side on the same image, a network without gates among them.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from scripts.lib.curves import rendered
from scripts.lib.gates_draw import draw, ranges_of
from scripts.lib.gates_record import Gate, Recorded, has_attention, last_of_each_stage, record
from scripts.lib.grad_cam import Seen, draw_cams, grad_cam
from scripts.lib.pictures import Entry, make_folder, picture_name, write_page, write_picture
from scripts.lib.restored import Restored, names_to_show, open_network
from utils.command_line import arguments, cli
from utils.command_line.gate_arguments import add_part_arguments, check_gates, network_given
from utils.common.checks import check_folder_of_output, check_libraries
from utils.common.errors import UserError
from utils.common.text import drawable, plural
from utils.data.decoding import decode
from utils.data.transforms import IMAGENET, Scaling, ValTransform

TOP = 3  # predictions that are shown


def pixels_of(path: str, transform: ValTransform) -> Tensor:
    """Read an image upright, then resize and crop it as in evaluation: (3, S, S) in [0, 1].

    Raises:
        UserError: it cannot be read.
    """
    if Path(path).is_dir():
        raise UserError(f"{path} is a folder: name images, such as {path.rstrip('/')}/*.JPEG")
    try:
        image = decode(path, upright=True)
    except Exception as error:  # decoders raise exceptions of many types
        reason = getattr(error, "strerror", None) or f"no image ({type(error).__name__})"
        raise UserError(f"{path}: {reason}; name files that are images") from None
    return transform(image, transform.box(image.height, image.width)) / 255


def normalised(pixels: Tensor, scaling: Scaling = IMAGENET) -> Tensor:
    """Normalise an image (3, S, S) for the network: (1, 3, S, S)."""
    mean, std = scaling.tensors()
    return ((pixels - mean) / std)[None]


def predictions(logits: Tensor, names: Sequence[str]) -> list[str]:
    """Return the most probable classes of one image, such as ``57.1 % tabby``."""
    shares, classes = logits[0].softmax(0).topk(min(TOP, logits.shape[1]))
    called = [drawable(names[i]) if i < len(names) else f"class {i}" for i in classes.tolist()]
    return [f"{100 * share:.1f} % {name}" for share, name in zip(shares.tolist(), called, strict=True)]


def chosen(recorded: Recorded, all_blocks: bool) -> Sequence[Any]:
    """Return what is drawn: the last block of every stage, or all blocks."""
    gates = [one for one in recorded.shown if isinstance(one, Gate)]
    return last_of_each_stage(gates) if gates and not all_blocks else recorded.shown


def create_parser() -> cli.Parser:
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=cli.name_of_file, nargs="+", metavar="IMAGE", help="an image file")
    what = "the network, see models/ (default: what the checkpoint says)"
    parser.add_argument("-a", "--arch", type=arguments.architecture, help=what)
    weights = parser.add_mutually_exclusive_group()
    what = "checkpoint of the network (default: random weights); may be given several times, for several"
    weights.add_argument("--resume", type=cli.name_of_file, action="append", metavar="FILE", help=what)
    what = "outputs of the network of random weights (default: 1000)"
    weights.add_argument("--num-classes", type=cli.count_of, metavar="N", help=what)
    what = "names of the classes, one a line, in the order of the outputs (default: as the checkpoint says)"
    parser.add_argument("--class-list", type=cli.name_of_file, metavar="FILE", help=what)
    size = cli.number(int, lambda value: value >= 32, "a whole number of at least 32")
    what = "side of the square input in pixels (default: as in training; 224 if the checkpoint does not say)"
    parser.add_argument("--img-size", type=size, metavar="S", help=what)
    parser.add_argument("--sort", action="store_true", help="sort the channels by their gate")
    what = "draw every block (default: the last of each stage)"
    parser.add_argument("--all-blocks", action="store_true", help=what)
    what = "draw Grad-CAM of the most probable class too"
    parser.add_argument("--cam", action="store_true", help=what)
    arguments.add_folder_arguments(parser, "gates")
    add_part_arguments(parser, "stem and gates (default: what the checkpoint says)")
    return parser


class Shown(NamedTuple):
    """A network whose attention is drawn."""

    opened: Restored
    names: Sequence[str]  # of its classes
    called: str
    gates: bool  # whether it has any


def open_all(args: argparse.Namespace) -> list[Shown]:
    """Open the networks of ``--resume``, or one of random weights.

    Raises:
        UserError: one cannot be opened, or has neither gates nor ``--cam``.
    """
    given, shown = network_given(args), []
    for path in args.resume or [None]:
        opened = open_network(path, given, args.num_classes or 1000)
        names, told = names_to_show(opened, path, args.class_list)
        if told:
            print(f"note: {told}")
        gates = has_attention(opened.net)
        if not gates and args.cam:
            print(f"note: {opened.name} has no gates: its Grad-CAM is drawn only")
        shown.append(
            Shown(opened, names, f"{opened.name}, {path or 'random weights'}", gates or not args.cam)
        )
    return shown


def check_same_crops(nets: Sequence[Shown]) -> None:
    """Check that all networks see the same part of an image, which a picture of several shows once.

    Raises:
        UserError: they do not.
    """
    for one in nets[1:]:
        if str(one.opened.val_transform) != str(nets[0].opened.val_transform):
            both = f"{nets[0].called} and {one.called}"
            raise UserError(
                f"--cam: {both} see images of other sizes or crops: give --img-size, or draw them apart"
            )


def draw_gates(net: Shown, path: str, all_blocks: bool, by_size: bool) -> tuple[Any, Entry]:
    """Return the figure of a network's gates on an image, and what the page says of it; its name follows."""
    pixels = pixels_of(path, net.opened.val_transform)
    recorded = record(net.opened.net, normalised(pixels, net.opened.val_transform.scaling))
    likeliest = predictions(recorded.logits, net.names)
    title = drawable(f"{net.called}: {Path(path).name}")
    drawn = chosen(recorded, all_blocks)
    figure = draw(pixels, drawn, title, "\n".join(["predicted:", *likeliest]), by_size)
    return figure, Entry("", drawable(path), f"predicted: {', '.join(likeliest)}", ranges_of(drawn))


def draw_several(nets: Sequence[Shown], path: str) -> tuple[Any, Entry]:
    """Return the figure of the Grad-CAM of networks on an image, and what the page says of it."""
    pixels = pixels_of(path, nets[0].opened.val_transform)
    seen, said = [], []
    for net in nets:
        cam = grad_cam(net.opened.net, normalised(pixels, net.opened.val_transform.scaling))
        likeliest = predictions(cam.logits, net.names)
        text = "\n".join(["of the first class:", *likeliest])
        seen.append(Seen(drawable(net.called), text, cam))
        said.append(f"{drawable(net.called)}: Grad-CAM of {likeliest[0]}")
    figure = draw_cams(pixels, seen, drawable(f"Grad-CAM: {Path(path).name}"))
    return figure, Entry("", drawable(path), "; ".join(said))


def main() -> None:
    parser = create_parser()
    args = parser.parse_args()
    check_gates(parser, args)
    check_libraries("pictures", "matplotlib")
    folder = Path(args.output)
    check_folder_of_output(folder, "-o", args.overwrite)
    if not args.resume and args.arch:
        print("note: without --resume FILE the weights are random, and so is what is drawn")
        torch.manual_seed(0)
    nets = open_all(args)
    if args.cam:
        check_same_crops(nets)
    entries = []
    for number, path in enumerate(tqdm(args.images, "drawing", unit="image", leave=False, disable=None), 1):
        stem = Path(path).stem
        pictures = [(f"{stem}_cam.png", *draw_several(nets, path))] if args.cam else []
        for at, net in enumerate(nets, 1):
            if net.gates:
                name = f"{stem}_{at}.png" if len(nets) > 1 else path
                pictures.append((name, *draw_gates(net, path, args.all_blocks, args.sort)))
        make_folder(folder)
        for name, figure, entry in pictures:
            entries.append(entry._replace(name=picture_name(number, name)))
            write_picture(folder / entries[-1].name, rendered(figure))
    title = drawable(f"Attention of {' and '.join(net.called for net in nets)}")
    write_page(folder, entries, title, "Attention of every stage on")
    print(f"wrote {folder}/: {plural(len(entries), 'picture')}, index.html")


if __name__ == "__main__":
    cli.run(main)
