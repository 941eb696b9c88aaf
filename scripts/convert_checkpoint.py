"""Make a clean file of weights from checkpoints, published or ours: .pth, or .safetensors by OUT's suffix.

    python scripts/convert_checkpoint.py checkpoints/demo/model_best.pth.tar sge_resnet18.safetensors
    python scripts/convert_checkpoint.py ../pretrain/sge_resnet101.pth.tar sge_resnet101.pth -a sge_resnet101
    python scripts/convert_checkpoint.py --average checkpoints/run/checkpoint-00*.pth.tar mean.pth
    python scripts/convert_checkpoint.py --published checkpoints/run/checkpoint.pth.tar to_2019.pth.tar

OUT holds the weights that an evaluation uses (with --ema their average) without "module." in their names, and
of the rest architecture, classes, epoch, top-1, seed, command, arguments, versions and commit: as fields in
.pth, as JSON under "checkpoint" of the metadata in .safetensors. Optimizer and position are left out. It goes
with --resume wherever weights are read.

--average takes the mean of the weights and of batch norm's statistics, computed in float64; counters are
those of the last file, and of the rest only what is the same in all files is kept.

--published writes what the published scripts of 2019 read with --resume, in the format of torch before 1.6:
"module." in the names; epoch, top-1, best top-1; an optimizer in their groups, with the momentum of the run
(not of a mean, nor of an average of --ema). They need architectures of their own, the run's flags of weight
decay (of a file that does not say them imagenet.py's, or --wd-all), and a log.txt beside OUT, which may be
empty for -e. alexnet and vgg are for their imagenet_fast.py only. They begin an unfinished epoch anew.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from utils.command_line import cli
from utils.common.errors import UserError
from utils.common.files import write_atomically
from utils.common.text import plural
from utils.networks import archive, checkpoint, published
from utils.networks import building as network

FIELDS = ("arch", "classes", "epoch", "acc", "seed", "command", "arguments", "versions", "commit")
SUFFIXES = (".pth", ".safetensors")
PUBLISHED = (".pth.tar", ".pth")

Weights = Mapping[str, Tensor]


def mean(paths: Sequence[str], states: Sequence[Weights]) -> dict[str, Tensor]:
    """The mean of every floating-point tensor, in its type; other tensors are those of the last file.

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
    """Of tensors of one shape and type; counters cannot be averaged."""
    if not tensors[0].is_floating_point():
        return tensors[-1]
    total = torch.zeros_like(tensors[0], dtype=torch.float64)
    for tensor in tensors:
        total += tensor
    return (total / len(tensors)).to(tensors[0].dtype)


def clean(weights: Weights, source: str) -> dict[str, Tensor]:
    """Copies in plain memory: a part of a larger storage would bring all of it along.

    Raises:
        UserError: a value is not finite.
    """
    for key, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise UserError(f"{source}: {key} holds values that are not finite: take another checkpoint")
    copied = {key: torch.empty(tensor.shape, dtype=tensor.dtype) for key, tensor in weights.items()}
    return {key: tensor.copy_(weights[key].detach()) for key, tensor in copied.items()}


def fields_of(saved: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept besides the weights; published files have the top-1 as a tensor."""
    kept = {key: saved[key] for key in FIELDS if key in saved}
    return {key: value.item() if isinstance(value, Tensor) else value for key, value in kept.items()}


def common(fields: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What all files agree on; the top-1 of a mean is nobody's.

    Raises:
        UserError: they are of other architectures or classes.
    """
    for key in ("arch", "classes"):
        if any(one[key] != fields[0][key] for one in fields if key in one and key in fields[0]):
            raise UserError(f"--average: the files have other {key}: average those of one network")
    first = {key: value for key, value in fields[0].items() if key != "acc"}
    return {key: value for key, value in first.items() if all(one.get(key) == value for one in fields)}


def fields_of_published(saved: Mapping[str, Any], parameters: Weights) -> dict[str, Any]:
    """What the published scripts read besides the weights; 0, as at a start, where the file says nothing."""
    best = float(saved.get("best_acc", saved.get("acc", 0)))
    optimizer = published.optimizer_state(saved, parameters)
    return {"epoch": saved.get("epoch", 0), "best_acc": best, "optimizer": optimizer}


def write(out: Path, fields: Mapping[str, Any], weights: dict[str, Tensor], zipped: bool) -> None:
    """Write the file in the format of its suffix; ``zipped`` as of :func:`checkpoint.write`.

    Raises:
        UserError: the system refuses.
    """
    try:
        if out.suffix != ".safetensors":
            checkpoint.write({**fields, "state_dict": weights}, out, zipped)
        else:
            from safetensors.torch import save  # only those who want such files need the library

            data = save(weights, {"format": "pt", archive.NOTES: json.dumps(fields)})
            write_atomically(out, lambda file: file.write(data))
    except OSError as error:
        raise UserError(f"{out}: {error.strerror}") from error


def check_out(args: argparse.Namespace) -> Path:
    """The file to be written.

    Raises:
        UserError: it has an unknown suffix, is there already, is one of the sources, or has no folder.
    """
    out, suffixes = Path(args.out), PUBLISHED if args.published else SUFFIXES
    if not out.name.endswith(suffixes):
        raise UserError(f"{out}: the suffix says the format; give one of {' '.join(suffixes)}")
    if out.resolve() in (Path(name).resolve() for name in args.sources):
        raise UserError(f"{out} is one of the files to be read: give another name for what is written")
    cli.check_output(out, overwrite=args.overwrite)
    return out


def convert(args: argparse.Namespace) -> None:
    """Read, average, write, and say what was written."""
    out = check_out(args)
    reading = tqdm(args.sources, desc="reading", unit=" files", leave=False, disable=None)
    loaded = [checkpoint.load(path, "IN") for path in reading]
    fields = fields_of(loaded[0])
    weights: Weights = loaded[0]["state_dict"]
    if args.average:
        fields = common([fields_of(saved) for saved in loaded])
        weights = mean(args.sources, [saved["state_dict"] for saved in loaded])
    weights = clean(weights, args.sources[0])
    if args.arch or args.published or args.class_list:
        restored = network.restore(args.sources[0], args.arch, None, "IN")  # complains of another one
        fields["arch"] = restored.arch
        if args.class_list:
            fields["classes"] = network.names_of_outputs(restored, args.class_list, distinct=True)
    if args.published:
        parameters = dict(restored.net.named_parameters())
        fields |= fields_of_published(fields if args.average else loaded[0], parameters)
        weights = published.wrapped(weights)
    write(out, fields, weights, zipped=not args.published)
    data = out.read_bytes()
    left_out = [key for key in loaded[0] if key not in (*fields, "state_dict", "version", "checksum")]
    numbers = sum(tensor.numel() for tensor in weights.values())
    print(f"weights: {plural(len(weights), 'tensor')}, {plural(numbers, 'number')}")
    print(f"kept: {', '.join(fields) or 'nothing else (-a ARCH adds the architecture)'}")
    print(f"left out: {', '.join(left_out) or 'nothing'}")
    print(f"wrote {out}: {len(data):,} bytes, SHA-256 {hashlib.sha256(data).hexdigest()}")


def main() -> None:
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", type=cli.name_of_file, metavar="IN", help="checkpoints")
    parser.add_argument("out", type=cli.name_of_file, metavar="OUT", help="a .pth or .safetensors file")
    parser.add_argument("--average", action="store_true", help="the mean of several checkpoints")
    what = "the form that the published scripts read, in a .pth.tar or .pth file"
    parser.add_argument("--published", action="store_true", help=what)
    what = "check that the weights are of this architecture, and note it in OUT"
    parser.add_argument("-a", "--arch", type=cli.architecture, help=what)
    what = "classes to note in OUT, one a line, in the order of the outputs (default: as IN says)"
    parser.add_argument("--class-list", type=cli.name_of_file, metavar="FILE", help=what)
    parser.add_argument("--overwrite", action="store_true", help="replace OUT")
    args = parser.parse_args()
    if args.average != (len(args.sources) > 1):
        raise UserError("one IN and OUT; several IN with --average, which takes their mean")
    convert(args)


if __name__ == "__main__":
    cli.run(main)
