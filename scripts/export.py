"""Export a network with a checkpoint's weights to ONNX or to torch.export's .pt2, according to OUT's suffix.

    python scripts/export.py -a sge_resnet50 --resume sge_resnet50.pth.tar sge_resnet50.onnx
    python scripts/export.py --resume checkpoints/demo/model_best.pth.tar digits.pt2

OUT maps "images" (B, 3, S, S), float32, RGB normalised as in validation, for any B, to "logits" (B, K). It
also holds architecture, S, mean, standard deviation and class names: .onnx as metadata, .pt2 as the extra
file network.json. Before OUT is written, it is run (.onnx by onnxruntime) on random images in batches of
several sizes. Its outputs may differ from the network's by at most 1e-4 of the largest output.

Exit code: 0 OUT is written, 1 it differs more and is not written, 2 the command is wrong.
"""

import argparse
import io
import json
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from scripts.lib.restored import Restored, names_of_outputs, restore
from utils.command_line import arguments, cli
from utils.command_line.gate_arguments import add_part_arguments, check_gates, network_given
from utils.common.checks import check_libraries, check_output
from utils.common.errors import UserError
from utils.common.files import write_atomically

SUFFIXES = (".onnx", ".pt2")
NOTES = "network.json"  # the extra file of .pt2
BATCHES = (1, 2, 5)  # sizes of the batches that are compared
TOLERANCE = 1e-4  # of the largest output
LARGEST = 2**31 - 2**20  # bytes of weights in .onnx: a protocol buffer holds at most 2 GiB

Network = Callable[[Tensor], Tensor]


def random_images(batch: int, size: int) -> Tensor:
    """Return random images (B, 3, S, S) with mean 0 and standard deviation 1, as normalised images have."""
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(batch))


def export(restored: Restored) -> ExportedProgram:
    """Trace the network's graph for any batch size.

    Raises:
        UserError: torch cannot trace it.
    """
    images = random_images(2, restored.img_size)  # a batch of 1 would be traced as a constant
    try:
        return torch.export.export(restored.net, (images,), dynamic_shapes=({0: Dim("batch")},))
    except Exception as error:  # each of its many stages raises its own types
        raise UserError(f"torch cannot export {restored.name}: {str(error)[:200]}") from error


def notes_of(restored: Restored, classes: list[str]) -> dict[str, str]:
    """Return what a user of the file needs to know, as text."""
    known = {"arch": restored.name, "img_size": str(restored.img_size), "classes": json.dumps(classes)}
    images = restored.val_transform
    known |= {"crop_pct": str(images.crop_pct), "interpolation": images.interpolation}
    return {**known, "mean": json.dumps(images.scaling.mean), "std": json.dumps(images.scaling.std)}


def to_onnx(program: ExportedProgram, notes: Mapping[str, str]) -> tuple[bytes, Network]:
    """Return the file's content, and the network as onnxruntime runs it."""
    import onnx  # needed for .onnx files only
    import onnxruntime

    settings = {"input_names": ["images"], "output_names": ["logits"], "dynamic_shapes": ({0: "batch"},)}
    made = torch.onnx.export(program, dynamo=True, verbose=False, **settings)  # type: ignore[arg-type]
    assert made is not None
    proto = made.model_proto
    onnx.helper.set_model_props(proto, dict(notes))
    data = proto.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return data, lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def to_pt2(program: ExportedProgram, notes: Mapping[str, str]) -> tuple[bytes, Network]:
    """Return the file's content, and the network that is read from it."""
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={NOTES: json.dumps(notes)})
    data = file.getvalue()
    return data, torch.export.load(io.BytesIO(data)).module()


@torch.inference_mode()
def largest_difference(net: nn.Module, exported: Network, size: int) -> float:
    """Return the largest difference of two networks' outputs, divided by the largest output; may be NaN."""
    shares = []
    for batch in BATCHES:
        images = random_images(batch, size)
        expected = net(images)
        shares.append((exported(images) - expected).abs().max() / expected.abs().max())
    return float(torch.stack(shares).max())


def check_out(out: Path, overwrite: bool) -> None:
    """Refuse a file that cannot be written.

    Raises:
        UserError: its suffix is unknown, it exists and may not be replaced, its folder is missing, or a
            library is not installed.
    """
    if out.suffix not in SUFFIXES:
        raise UserError(f"{out}: the suffix says the format; give one of {' '.join(SUFFIXES)}")
    check_output(out, overwrite=overwrite)
    if out.suffix == ".onnx":
        check_libraries(str(out), "onnx", "onnxscript", "onnxruntime")


def export_checked(restored: Restored, classes: list[str], out: Path) -> bool:
    """Export a network and compare the outputs; write the file if they agree, and return whether they do.

    Raises:
        UserError: the network cannot be exported, or the file cannot be written.
    """
    weights = sum(tensor.numel() * tensor.element_size() for tensor in restored.net.state_dict().values())
    if out.suffix == ".onnx" and weights > LARGEST:
        raise UserError(f"{out}: an .onnx file holds at most 2 GiB, the weights are more: give a .pt2 file")
    with tqdm(desc="exporting", total=3, unit=" steps", leave=False, disable=None) as bar:
        program = export(restored)
        bar.update()
        convert = to_onnx if out.suffix == ".onnx" else to_pt2
        data, exported = convert(program, notes_of(restored, classes))
        bar.update()
        share = largest_difference(restored.net, exported, restored.img_size)
    if not share <= TOLERANCE:
        line = f"differs by {share:.1e} of the largest output, more than {TOLERANCE:g}: not written"
        print(f"{out}: {line}", file=sys.stderr)
        return False
    try:
        write_atomically(out, lambda file: file.write(data))
    except OSError as error:
        raise UserError(f"{out}: {error.strerror}") from error
    print(
        f"{restored.name}: images (B, 3, {restored.img_size}, {restored.img_size}), {restored.outputs} logits"
    )
    print(f"wrote {out}: {len(data):,} bytes; differs by at most {share:.1e} of the largest output")
    return True


def create_parser() -> cli.Parser:
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=cli.name_of_file, metavar="OUT", help="an .onnx or .pt2 file")
    parser.add_argument("--resume", required=True, type=cli.name_of_file, metavar="FILE", help="checkpoint")
    what = "its architecture (default: what the checkpoint says)"
    parser.add_argument("-a", "--arch", type=arguments.architecture, help=what)
    what = "names of the classes, one a line, in the order of the outputs (default: as the checkpoint says)"
    parser.add_argument("--class-list", type=cli.name_of_file, metavar="FILE", help=what)
    what = "S, the side of the input in pixels (default: as in training; 224 if the checkpoint does not say)"
    parser.add_argument("--img-size", type=cli.count_of, metavar="S", help=what)
    parser.add_argument("--overwrite", action="store_true", help="replace OUT")
    add_part_arguments(parser, "stem and gates (default: what the checkpoint says)")
    return parser


def main() -> None:
    parser = create_parser()
    args = parser.parse_args()
    check_gates(parser, args)
    warnings.simplefilter("ignore")  # torch's exporters warn about their own internals
    out = Path(args.out)
    check_out(out, args.overwrite)
    restored = restore(args.resume, network_given(args))
    classes = names_of_outputs(restored, args.class_list)
    if not export_checked(restored, classes, out):
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main)
