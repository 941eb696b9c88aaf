"""Draw what a detector finds on images: a PNG with boxes, masks and names for each, an index.html over all.

    python scripts/show_detections.py --resume checkpoints/mask_rcnn/model_best.pth.tar street.jpg kitchen.jpg
    python scripts/show_detections.py --resume FILE coco/val2017/ -o found --threshold 0.3

The checkpoint is one of detection/train.py and says which detector it is. Images are resized as in its
training (if the file does not say, to 800 pixels and at most 1333). Folders are searched with all folders in
them. Photos are turned upright according to their EXIF orientation.
"""

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import nn
from torchvision.transforms.functional import pil_to_tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from detection.backbone import create_backbone
from detection.detectors import create_detector
from detection.options import DETECTOR_FIELDS, choose_detector
from scripts.lib.data_files import find_images
from scripts.lib.detections_draw import Found, drawn
from scripts.lib.pictures import Entry, make_folder, picture_name, write_page, write_picture
from utils.command_line import arguments, cli
from utils.command_line.gate_arguments import file_and_class
from utils.common.checks import check_folder_of_output, check_libraries
from utils.common.devices import select_devices
from utils.common.errors import UserError
from utils.common.text import drawable, plural, shown
from utils.data.decoding import decode
from utils.networks import checkpoint
from utils.networks import weights as fitting


class Detector(NamedTuple):
    """A checkpoint's detector, in evaluation mode."""

    net: nn.Module
    name: str  # of detector and backbone
    classes: Sequence[str]  # names of the labels 1, 2, ...


def restore(path: str, gate_file: str | None = None) -> Detector:
    """Restore the detector of a checkpoint of detection/train.py.

    Args:
        path: the file.
        gate_file: ``FILE:CLASS``, the gates of its backbone if they are of a user's file.

    Raises:
        UserError: the file cannot be read, or is no such checkpoint.
    """
    saved = checkpoint.load(path)
    spec = choose_detector({**dict.fromkeys(DETECTOR_FIELDS), "gate_file": gate_file}, saved, path)
    if "classes" not in saved:
        raise UserError(f"--resume {path} names no classes: give a checkpoint of detection/train.py")
    backbone, classes = create_backbone(spec.arch, None, False, spec), saved["classes"]
    net = create_detector(spec.model, backbone, 1 + len(classes), spec.min_size, spec.max_size)
    fitting.load_other(net, saved, saved["arch"], path, "it is damaged", gates=spec)
    return Detector(net.eval(), f"{saved['arch']}{spec.flags}", classes)


@torch.inference_mode()
def detect(
    net: nn.Module, image: Image.Image, classes: Sequence[str], threshold: float, device: torch.device
) -> Found:
    """Return the detections with a score of ``threshold`` or more."""
    pixels = pil_to_tensor(image).to(device).float() / 255
    (found,) = net([pixels])
    found = {key: value[found["scores"] >= threshold].cpu() for key, value in found.items()}
    labels = found["labels"].tolist()
    names = [drawable(classes[label - 1]) for label in labels]
    masks = found["masks"][:, 0] > 0.5 if "masks" in found else None
    return Found(found["boxes"], labels, names, found["scores"].tolist(), masks)


def create_parser() -> cli.Parser:
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = "an image file, or a folder of some"
    parser.add_argument("images", type=cli.name_of_file, nargs="+", metavar="IMAGE", help=what)
    what = "checkpoint of a detector"
    parser.add_argument("--resume", type=cli.name_of_file, required=True, metavar="FILE", help=what)
    what = "the gates of its backbone, if they are of a file of yours"
    parser.add_argument("--gate-file", type=file_and_class, metavar="FILE:CLASS", help=what)
    what = "least score of a detection that is drawn (default: 0.5)"
    parser.add_argument("--threshold", type=cli.fraction, default=0.5, metavar="SCORE", help=what)
    arguments.add_folder_arguments(parser, "detections")
    what = "auto: CUDA if there is one"
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help=what)
    return parser


def main() -> None:
    args = create_parser().parse_args()
    check_libraries("pictures", "matplotlib")
    check_folder_of_output(Path(args.output), "-o", args.overwrite)
    images, dead = find_images(args.images)
    device, _ = select_devices(args.device, "0")
    net, name, classes = restore(args.resume, args.gate_file)
    net.to(device)
    entries: list[Entry] = []
    broken = [f"{file.path} ({file.reason})" for file in dead]
    for path in tqdm(images, "drawing", unit="image", leave=False, disable=None):
        try:
            image = decode(path, upright=True)
        except Exception as error:  # decoders raise exceptions of many types
            broken.append(f"{path} ({getattr(error, 'strerror', None) or type(error).__name__})")
            continue
        found = detect(net, image, classes, args.threshold, device)
        make_folder(Path(args.output))
        entry = Entry(picture_name(len(entries) + 1, path), drawable(path), f"found: {found}")
        picture = io.BytesIO()
        drawn(image, found).save(picture, "png")
        write_picture(Path(args.output) / entry.name, picture.getvalue())
        entries.append(entry)
    for file in broken:
        print(f"note: cannot decode {shown(file)}: left out")
    if not entries:
        raise UserError(f"none of {plural(len(broken), 'image')} can be decoded: give others")
    title = drawable(f"Detections of {name}, {args.resume}, score {args.threshold:g} or more")
    write_page(Path(args.output), entries, title, "Detections on")
    print(f"wrote {args.output}/: {plural(len(entries), 'picture')}, index.html")


if __name__ == "__main__":
    cli.run(main)
