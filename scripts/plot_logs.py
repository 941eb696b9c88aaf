"""Draw the curves of runs from their log.txt: loss, top-1 (for detectors AP) and learning rate by epoch.

    python scripts/plot_logs.py checkpoints/sge_resnet50
    python scripts/plot_logs.py checkpoints/* -o all.svg
    python scripts/plot_logs.py checkpoints/sge-1 checkpoints/sge-2 checkpoints/se-1 checkpoints/se-2
    python scripts/plot_logs.py run_a0 run_b0 run_a1 run_b1 --seeds '[01]$' --band error

Runs whose names differ only in a seed at the end (sge-1 and sge-2) are drawn as one curve, their mean, with a
band. A log.txt may be of this code or of the published code. Dashed: training, solid: validation.
"""

import argparse
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from scripts.lib.curves import BANDS, SEEDS, Group, RunCurves, draw, grouped, read_curves, rendered
from scripts.lib.pictures import check_picture, picture_file, write_picture
from utils.command_line import cli
from utils.common.errors import UserError
from utils.common.text import plural
from utils.runs.log import CURVES, LOG


def expression(text: str) -> str:
    """An argparse type: a regular expression."""
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"is no regular expression: {error}") from None
    return text


def read_runs(names: Sequence[str]) -> list[RunCurves]:
    """Read the log.txt of every run; a run is named after its folder, or by its path if two have that name.

    Raises:
        UserError: a log is missing, damaged or empty, or a run is given twice.
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
    """Return the run's name: its folder's, or that of a log with a name of its own (sge-1.log.txt: sge-1)."""
    return log.parent.name if log.name == LOG else log.name.removesuffix(f".{LOG}").removesuffix(".txt")


def say(groups: Sequence[Group]) -> None:
    """Print a line for every run, and a note where runs of one curve differ in their epochs."""
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
    parser.add_argument(
        "-o", dest="output", type=picture_file, default=Path(CURVES), metavar="FILE", help=what
    )
    parser.add_argument("--overwrite", action="store_true", help="replace FILE")
    what = "the part of a run's name that is its seed; '': draw each run alone (default: %(default)s)"
    parser.add_argument("--seeds", type=expression, default=SEEDS, metavar="REGEX", help=what)
    what = (
        "range: from the least to the largest seed; error: standard error of the mean (default: %(default)s)"
    )
    parser.add_argument("--band", choices=BANDS, default=BANDS[0], help=what)
    args = parser.parse_args()
    check_picture(args.output, args.overwrite)
    groups = grouped(read_runs(args.runs), args.seeds, args.band)
    say(groups)
    write_picture(args.output, rendered(draw(groups), args.output.suffix[1:].lower()))
    print(f"wrote {args.output}: {plural(len(groups), 'curve')}")


if __name__ == "__main__":
    cli.run(main)
