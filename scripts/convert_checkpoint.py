"""Convert checkpoints, of this or the published code, to a file of weights: .pth or .safetensors.

    python scripts/convert_checkpoint.py checkpoints/demo/model_best.pth.tar sge_resnet18.safetensors
    python scripts/convert_checkpoint.py ../pretrain/sge_resnet101.pth.tar sge_resnet101.pth -a sge_resnet101
    python scripts/convert_checkpoint.py --average checkpoints/run/checkpoint-00*.pth.tar mean.pth
    python scripts/convert_checkpoint.py --published checkpoints/run/checkpoint.pth.tar to_2019.pth.tar

OUT's suffix says its format. It holds the weights that an evaluation uses (the EMA of a run with --ema),
without "module." in their names, and of everything else only architecture, classes, epoch, top-1, seed,
command, arguments, versions and commit: .pth as fields, .safetensors as JSON in the metadata under
"checkpoint". The optimizer and the position in the epoch are left out. OUT can be given to --resume wherever
weights are read.

--average takes the mean of the weights and of batch norm's statistics, computed in float64. Counters are
those of the last file, and other fields are kept only if they are the same in all files.

--published writes what the published scripts of 2019 read with --resume, in the format of torch before 1.6:
names with "module."; epoch, top-1, best top-1; an optimizer with their parameter groups and the run's
momentum (without momentum for a mean or an EMA). The published scripts then need an architecture that they
have, the run's flags of weight decay (if the file does not say them, imagenet.py's, or --wd-all), and a
log.txt beside OUT, which may be empty for -e. Of them only imagenet_fast.py reads alexnet and vgg. They
repeat an unfinished epoch from its start.
"""

import argparse
import hashlib
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from scripts.lib import published_form
from scripts.lib.restored import names_of_outputs, restore
from utils.command_line import arguments, cli
from utils.command_line.gate_arguments import add_part_arguments, check_gates, network_given
from utils.common.checks import check_output
from utils.common.errors import UserError
from utils.common.files import write_atomically
from utils.common.text import plural
from utils.networks import archive, checkpoint
from utils.networks.parts import part_fields

FIELDS = ("arch", "classes", "epoch", "acc", "seed", "command", "arguments", "versions", "commit")
SUFFIXES = (".pth", ".safetensors")
PUBLISHED = (".pth.tar", ".pth")

Weights = Mapping[str, Tensor]


def mean(paths: Sequence[str], states: Sequence[Weights]) -> dict[str, Tensor]:
    """Return the mean of every floating-point tensor, in its type; other tensors are those of the last file.

    Raises:
        UserError: keys, shapes or types differ.
    """
    first = states[0]
    for path, state in zip(paths, states, strict=True):
        if other := sorted(state.keys() ^ first.keys()):
            raise UserError(f"--average: {path} has other keys than {paths[0]}: {listed(other)}")
        if other := [key for key in first if described(state[key]) != described(first[key])]:
            difference = f"{other[0]} {described(state[other[0]])}, not {described(first[other[0]])}"
            raise UserError(f"--average: {path} has other shapes or types than {paths[0]}: {difference}")
    return {key: mean_of([state[key] for state in states]) for key in first}


def described(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {tensor.dtype}"


def listed(keys: Sequence[str]) -> str:
    return f"{', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''} ({plural(len(keys), 'key')})"


def mean_of(tensors: Sequence[Tensor]) -> Tensor:
    """Return the mean of tensors of one shape and type; of counters the last, as they cannot be averaged."""
    if not tensors[0].is_floating_point():
        return tensors[-1]
    total = torch.zeros_like(tensors[0], dtype=torch.float64)
    for tensor in tensors:
        total += tensor
    return (total / len(tensors)).to(tensors[0].dtype)


def clean(weights: Weights, source: str) -> dict[str, Tensor]:
    """Copy the weights; saved as a part of a larger storage, a tensor would bring all of it along.

    Raises:
        UserError: a value is not finite.
    """
    for key, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise UserError(f"{source}: {key} holds values that are not finite: take another checkpoint")
    copied = {key: torch.empty(tensor.shape, dtype=tensor.dtype) for key, tensor in weights.items()}
    return {key: tensor.copy_(weights[key].detach()) for key, tensor in copied.items()}


def fields_of(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is kept besides the weights; published files have the top-1 as a tensor."""
    kept = {key: saved[key] for key in FIELDS if key in saved}
    return {key: value.item() if isinstance(value, Tensor) else value for key, value in kept.items()}


def common(fields: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the fields that all files have in common, without top-1, which is not that of the mean.

    Raises:
        UserError: architectures or classes differ.
    """
    for key in ("arch", "classes"):
        if any(one[key] != fields[0][key] for one in fields if key in one and key in fields[0]):
            raise UserError(f"--average: the files have other {key}: average those of one network")
    first = {key: value for key, value in fields[0].items() if key != "acc"}
    return {key: value for key, value in first.items() if all(one.get(key) == value for one in fields)}


def fields_of_published(saved: Mapping[str, Any], parameters: Weights) -> dict[str, Any]:
    """Return what the published scripts read besides the weights; epoch and top-1 are 0 if unknown."""
    best = float(saved.get("best_acc", saved.get("acc", 0)))
    optimizer = published_form.optimizer_state(saved, parameters)
    return {"epoch": saved.get("epoch", 0), "best_acc": best, "optimizer": optimizer}


def write(out: Path, fields: Mapping[str, Any], weights: dict[str, Tensor], zipped: bool) -> None:
    """Write the file in the format of its suffix; ``zipped`` as in :func:`checkpoint.write`.

    Raises:
        UserError: it cannot be written.
    """
    try:
        if out.suffix != ".safetensors":
            checkpoint.write({**fields, "state_dict": weights}, out, zipped)
        else:
            from safetensors.torch import save  # needed for .safetensors files only

            data = save(weights, archive.metadata(fields, weights))
            write_atomically(out, lambda file: file.write(data))
    except OSError as error:
        raise UserError(f"{out}: {error.strerror}") from error


def check_out(out: Path, suffixes: Sequence[str], sources: Sequence[str], overwrite: bool) -> None:
    """Refuse a file that cannot be written.

    Raises:
        UserError: it has none of the suffixes, is one of the sources, exists and may not be replaced, or its
            folder is missing.
    """
    if not out.name.endswith(tuple(suffixes)):
        raise UserError(f"{out}: the suffix says the format; give one of {' '.join(suffixes)}")
    if out.resolve() in (Path(name).resolve() for name in sources):
        raise UserError(f"{out} is one of the files to be read: give another name for what is written")
    check_output(out, overwrite=overwrite)


def convert(
    sources: Sequence[str], out: Path, given: Mapping[str, Any], class_list: str | None, to_published: bool
) -> None:
    """Read the sources, take the mean of several, write it, and print what was written.

    Args:
        sources: the checkpoints.
        out: the file to be written.
        given: what the command line says of the network; None: as the first checkpoint says.
        class_list: file with the classes; None: those of the first checkpoint.
        to_published: whether the file is for the published scripts.

    Raises:
        UserError: a checkpoint cannot be read or does not fit, or the file cannot be written.
    """
    average = len(sources) > 1
    reading = tqdm(sources, desc="reading", unit=" files", leave=False, disable=None)
    loaded = [checkpoint.load(path, "IN") for path in reading]
    fields = fields_of(loaded[0])
    weights: Weights = loaded[0]["state_dict"]
    if average:
        fields = common([fields_of(saved) for saved in loaded])
        weights = mean(sources, [saved["state_dict"] for saved in loaded])
    weights = clean(weights, sources[0])
    if any(given.values()) or to_published or class_list:
        restored = restore(sources[0], given, "IN")  # refuses weights that do not fit
        if to_published and restored.parts.stem == "small":
            raise UserError("--published: the published scripts have no network with --stem small")
        fields["arch"] = restored.arch
        if restored.parts.flags:
            fields["arguments"] = {**fields.get("arguments", {}), **part_fields(restored.parts)}
        if class_list:
            fields["classes"] = names_of_outputs(restored, class_list, distinct=True)
    if to_published:
        parameters = dict(restored.net.named_parameters())
        fields |= fields_of_published(fields if average else loaded[0], parameters)
        weights = published_form.wrapped(weights)
    write(out, fields, weights, zipped=not to_published)
    left_out = [key for key in loaded[0] if key not in (*fields, "state_dict", "version", "checksum")]
    report(out, weights, fields, left_out)


def report(out: Path, weights: Weights, kept: Collection[str], left_out: Collection[str]) -> None:
    """Print what the file holds, and which fields of the source it does not."""
    data = out.read_bytes()
    numbers = sum(tensor.numel() for tensor in weights.values())
    print(f"weights: {plural(len(weights), 'tensor')}, {plural(numbers, 'number')}")
    print(f"kept: {', '.join(kept) or 'nothing else (-a ARCH adds the architecture)'}")
    print(f"left out: {', '.join(left_out) or 'nothing'}")
    print(f"wrote {out}: {len(data):,} bytes, SHA-256 {hashlib.sha256(data).hexdigest()}")


def create_parser() -> cli.Parser:
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", type=cli.name_of_file, metavar="IN", help="checkpoints")
    parser.add_argument("out", type=cli.name_of_file, metavar="OUT", help="a .pth or .safetensors file")
    parser.add_argument("--average", action="store_true", help="take the mean of several checkpoints")
    what = "write a .pth.tar or .pth file that the published scripts read"
    parser.add_argument("--published", action="store_true", help=what)
    what = "check that the weights are of this architecture, and store its name in OUT"
    parser.add_argument("-a", "--arch", type=arguments.architecture, help=what)
    what = "classes to store in OUT, one a line, in the order of the outputs (default: as IN says)"
    parser.add_argument("--class-list", type=cli.name_of_file, metavar="FILE", help=what)
    parser.add_argument("--overwrite", action="store_true", help="replace OUT")
    add_part_arguments(parser, "stem and gates to check and store with -a (default: as IN says)")
    return parser


def main() -> None:
    parser = create_parser()
    args = parser.parse_args()
    check_gates(parser, args)
    if args.average != (len(args.sources) > 1):
        raise UserError("give one IN and OUT, or several IN with --average, which takes their mean")
    out = Path(args.out)
    check_out(out, PUBLISHED if args.published else SUFFIXES, args.sources, args.overwrite)
    convert(args.sources, out, network_given(args), args.class_list, args.published)


if __name__ == "__main__":
    cli.run(main)
