"""Record the finished run of a study that was trained by hand, on another machine say.

    python scripts/record_run.py checkpoints/sge-1 --study ablation.toml

writes ablation/sge-1.log.txt and beside it sge-1.json with architecture, seed, command, commit and versions,
as the run's checkpoint says them, and its size. scripts/study.py does so for the runs that it trains, and
makes the tables. The run must be exactly what the row 'sge' of the study says. A recorded run is never
replaced: to record another one under its name, remove both files.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from scripts.lib.study_file import read_study
from scripts.lib.study_recording import record
from utils.command_line import cli


def main() -> None:
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of the run, named NAME-SEED")
    text = "the study's file, which has a row of this name"
    parser.add_argument("--study", required=True, type=cli.name_of_file, metavar="STUDY.toml", help=text)
    args = parser.parse_args()
    print(f"wrote {record(read_study(Path(args.study)), args.run)}")


if __name__ == "__main__":
    cli.run(main)
