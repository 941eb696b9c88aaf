"""Copy the log of a finished run to pretrain_log/, with everything that its result can be traced back to.

    python scripts/record_run.py checkpoints/study/digits/sge_resnet18-1 --study digits

writes pretrain_log/digits/sge_resnet18-1.log.txt and beside it sge_resnet18-1.json with architecture, seed,
command, commit and versions, as the run's checkpoint says them. scripts/results.py makes the tables; NAME-1,
NAME-2, ... are one row. A recorded run is never replaced: to record another one under its name, remove both
files.
"""

import argparse
import functools
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from scripts.lib.results_study import COMMIT, LOG
from utils.command_line import cli
from utils.common.errors import UserError
from utils.common.files import write_atomically
from utils.networks import checkpoint
from utils.runs.folder import LAST

LOGS = Path(__file__).resolve().parent.parent / "pretrain_log"
FACTS = ("arch", "seed", "classes", "training_images", "command", "commit", "versions")


def finished(folder: Path) -> dict[str, Any]:
    """Load the last checkpoint of a run, and check that the run is complete and can be repeated.

    Raises:
        UserError: there is no checkpoint of this code, an epoch is missing, or the code was at no commit.
    """
    saved = checkpoint.load(str(folder / LAST), "RUN")
    if missing := [name for name in (*FACTS, "arguments", "rows") if name not in saved]:
        raise UserError(f"RUN {folder}: its checkpoint does not say its {missing[0]}: not one of this code")
    epochs = saved["arguments"].get("epochs")
    if not isinstance(epochs, int) or saved.get("epoch", 0) < epochs:
        done = f"{saved.get('epoch', 0)} of {epochs} epochs are done"
        raise UserError(f"RUN {folder}: {done}; go on with --resume auto first")
    if not COMMIT.fullmatch(str(saved["commit"])):
        raise UserError(
            f"RUN {folder}: its code is of no commit ({saved['commit'] or 'no git'}): commit it, train again"
        )
    return saved


def study_name(text: str) -> str:
    """An argparse type: the name of a folder, which is no path."""
    if not re.fullmatch(r"\w[\w.-]*", text):
        raise argparse.ArgumentTypeError(f"must be a name, not '{text}'")
    return text


def write(log: Path, saved: Mapping[str, Any]) -> None:
    """Write the facts of a checkpoint, and then its log.

    Raises:
        UserError: another run is recorded there, or a file cannot be written.
    """
    facts = {name: saved[name] for name in FACTS} | {"classes": len(saved["classes"])}
    path = log.with_name(f"{log.name.removesuffix(LOG)}.json")
    rows = "".join(f"{row}\n" for row in saved["rows"])
    contents = {path: f"{json.dumps(facts, indent=2)}\n", log: rows}
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        if log.exists() and log.read_text() != rows:
            raise UserError(f"{log}: another run is recorded there; remove it, or name this one otherwise")
        for file, text in contents.items():
            write_atomically(file, functools.partial(_write_text, text))
    except OSError as error:
        raise UserError(f"cannot write {log}: {error.strerror}") from None
    print(f"wrote {log}")


def _write_text(text: str, file: IO[bytes]) -> None:
    file.write(text.encode())


def main() -> None:
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of the run, named NAME-SEED")
    what = "folder of pretrain_log/ for runs that compare"
    parser.add_argument("--study", required=True, type=study_name, metavar="NAME", help=what)
    what = "(default: pretrain_log/ of this code)"
    parser.add_argument("--logs", type=Path, default=LOGS, metavar="DIR", help=what)
    args = parser.parse_args()
    saved = finished(args.run)
    name = args.run.resolve().name
    if not re.fullmatch(rf".+-{saved['seed']}", name):
        raise UserError(f"RUN {args.run}: the folder's name must end in the seed: NAME-{saved['seed']}")
    write(args.logs / args.study / f"{name}{LOG}", saved)


if __name__ == "__main__":
    cli.run(main)
