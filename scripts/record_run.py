"""Keep the log of a finished run in pretrain_log/, with what the result can be traced back to.

    python scripts/record_run.py checkpoints/study/digits/sge_resnet18-1 --study digits

writes pretrain_log/digits/sge_resnet18-1.log.txt and, beside it, .json: architecture, seed, command, commit and
versions, as the run's checkpoint has them. scripts/results.py makes the tables; NAME-1, NAME-2, ... are one row.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from utils import checkpoint, cli
from utils.checkpoint import LAST
from utils.errors import UserError
from utils.files import write_atomically

LOGS = Path(__file__).resolve().parent.parent / "pretrain_log"
FACTS = ("arch", "seed", "classes", "training_images", "command", "commit", "versions")


def finished(folder: Path) -> dict[str, Any]:
    """The newest checkpoint of a run that has done all its epochs, at a commit that names its code.

    Raises:
        UserError: there is none, it is not one of this code, or it could not be repeated.
    """
    saved = checkpoint.load(str(folder / LAST), "RUN")
    if missing := [name for name in (*FACTS, "arguments", "rows") if name not in saved]:
        raise UserError(f"RUN {folder}: its checkpoint does not say its {missing[0]}: not one of this code")
    epochs = saved["arguments"]["epochs"]
    if saved["epoch"] < epochs:
        raise UserError(
            f"RUN {folder}: {saved['epoch']} of {epochs} epochs are done; go on with --resume auto first"
        )
    if not re.fullmatch(r"[0-9a-f]{40}", saved["commit"]):
        raise UserError(
            f"RUN {folder}: its code is of no commit ({saved['commit'] or 'no git'}): commit it, train again"
        )
    return saved


def main() -> None:
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of the run, named NAME-SEED")
    parser.add_argument(
        "--study", required=True, metavar="NAME", help="folder of pretrain_log/ for runs that compare"
    )
    parser.add_argument(
        "--logs", type=Path, default=LOGS, metavar="DIR", help="(default: pretrain_log/ of this code)"
    )
    args = parser.parse_args()
    saved = finished(args.run)
    if args.run.name.rpartition("-")[2] != str(saved["seed"]):
        raise UserError(f"RUN {args.run}: the folder's name must end in the seed: NAME-{saved['seed']}")
    facts = {name: saved[name] for name in FACTS} | {"classes": len(saved["classes"])}
    log = args.logs / args.study / f"{args.run.name}.log.txt"
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(facts, indent=2) + "\n"
        write_atomically(log.with_name(f"{args.run.name}.json"), lambda file: file.write(text.encode()))
        rows = "".join(f"{row}\n" for row in saved["rows"])
        write_atomically(log, lambda file: file.write(rows.encode()))
    except OSError as error:
        raise UserError(f"cannot write {log}: {error.strerror}") from None
    print(f"wrote {log}")


if __name__ == "__main__":
    cli.run(main)
