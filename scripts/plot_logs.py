"""Draw the curves of one or many runs from their log.txt: loss, top-1 (of detectors AP) and rate over the
epochs.

    python scripts/plot_logs.py checkpoints/sge_resnet50
    python scripts/plot_logs.py checkpoints/* -o all.svg
    python scripts/plot_logs.py checkpoints/sge-1 checkpoints/sge-2 checkpoints/se-1 checkpoints/se-2
    python scripts/plot_logs.py run_a0 run_b0 run_a1 run_b1 --seeds '[01]$' --band error

Runs whose names differ by a seed at the end only (sge-1 and sge-2) are drawn as their mean within a band.
A log.txt may be ours or a published one. Dashed: training, solid: validation.
"""

import argparse
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from utils.command_line import cli
from utils.common.errors import UserError
from utils.common.files import write_atomically
from utils.common.text import plural
from utils.runs.curves import BANDS, CURVES, SEEDS, Group, RunCurves, draw, grouped, read_curves, rendered
from utils.runs.log import LOG

KINDS = ("png", "svg")


def picture(text: str) -> Path:
    """An argparse type: the file of a picture, by its suffix PNG or SVG."""
    path = Path(cli.name_of_file(text))
    if path.suffix[1:].lower() not in KINDS:
        raise argparse.ArgumentTypeError(f"must end in .png or .svg, not '{path.name}'")
    return path


def expression(text: str) -> str:
    """An argparse type: a regular expression."""
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"is no regular expression: {error}") from None
    return text


def check_picture(path: Path, flag: str = "-o") -> None:
    """Refuse at once what would fail after the work.

    Raises:
        UserError: the file cannot be written there, or matplotlib is missing.
    """
    cli.check_output(path, flag)
    cli.check_libraries("pictures", "matplotlib")


def write_picture(path: Path, content: bytes, flag: str = "-o") -> None:
    """Write a picture's file.

    Raises:
        UserError: it cannot be written.
    """
    try:
        write_atomically(path, lambda file: file.write(content))
    except OSError as error:
        raise UserError(f"{flag} {path}: {error.strerror}") from error


def read_runs(names: Sequence[str]) -> list[RunCurves]:
    """The log.txt of every run; a run goes by its folder or file, by the whole path where these share a name.

    Raises:
        UserError: one is missing, damaged, empty or named twice.
    """
    paths = [Path(name) / LOG if Path(name).is_dir() else Path(name) for name in names]
    places = [path.resolve() for path in paths]
    called = [name_of(place) for place in places]
    twice = [str(path) for path, count in Counter(places).items() if count > 1]
    if twice:
        raise UserError(f"{twice[0]} is given twice: name it once")
    of_name = Counter(called)
    runs = []
    for path, name in tqdm(list(zip(paths, called, strict=True)), "reading", leave=False, disable=None):
        whole = str(path.parent if path.name == LOG else path.parent / name)
        runs.append(read_curves(path, name if of_name[name] == 1 else whole))
    return runs


def name_of(log: Path) -> str:
    """What a run is called: as its folder, or, where a log has a name of its own (sge-1.log.txt), as that."""
    return log.parent.name if log.name == LOG else log.name.removesuffix(f".{LOG}").removesuffix(".txt")


def say(groups: Sequence[Group]) -> None:
    """A line for every run, and which of them are drawn as one."""
    width = max(len(run.name) for group in groups for run in group.runs)
    for group in groups:
        for run in group.runs:
            score, epoch = run.best
            what = run.kind.score
            best = f"best {what} {score:.2f} % (epoch {epoch})" if epoch else f"no {what} that is a number"
            print(f"{run.name:<{width}}  {plural(run.epochs, 'epoch')}, {best}")
        if len({run.epochs for run in group.runs}) > 1:
            print(f"note: {group.name} is drawn to epoch {group.epochs}, where its shortest run ends")


def main() -> None:
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = f"a run's folder, or a {LOG}"
    parser.add_argument("runs", type=cli.name_of_file, nargs="+", metavar="RUN", help=what)
    what = f"the picture, .png or .svg (default: {CURVES})"
    parser.add_argument("-o", dest="output", type=picture, default=Path(CURVES), metavar="FILE", help=what)
    what = "what names of runs that belong together differ by; '': draw each run alone (default: %(default)s)"
    parser.add_argument("--seeds", type=expression, default=SEEDS, metavar="REGEX", help=what)
    what = "of runs drawn as one: range, from the least to the largest, or error, the mean's standard error"
    parser.add_argument("--band", choices=BANDS, default=BANDS[0], help=f"{what} (default: %(default)s)")
    args = parser.parse_args()
    check_picture(args.output)
    groups = grouped(read_runs(args.runs), args.seeds, args.band)
    say(groups)
    write_picture(args.output, rendered(draw(groups), args.output.suffix[1:].lower()))
    print(f"wrote {args.output}: {plural(len(groups), 'curve')}")


if __name__ == "__main__":
    cli.run(main)
