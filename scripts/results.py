"""Write the tables of results in README.md and docs/results.md.

    python scripts/results.py           rewrite the tables between the markers
    python scripts/results.py --check   only print whether they are up to date (exit code 1 if not)

A table stands between <!-- results NAME --> and <!-- end NAME -->. README.md shows sizes computed from the
code and published accuracies from pretrain_log/published.csv. docs/results.md shows the studies made with
this code: a table for every STUDY.toml of pretrain_log/, from the logs in the folder of that name.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from scripts.lib import results_published as published
from scripts.lib import results_study as study
from scripts.lib.results_tables import markdown
from utils.command_line import cli
from utils.common.errors import UserError
from utils.common.files import write_output

ROOT = Path(__file__).resolve().parent.parent
LOGS = ROOT / "pretrain_log"


def replaced(text: str, name: str, table: str, file: str = "README.md") -> str:
    """Return the text with the table between its markers.

    Raises:
        UserError: the markers are missing.
    """
    begin, end = f"<!-- results {name} -->\n", f"<!-- end {name} -->\n"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        lines = f"'{begin.strip()}' and '{end.strip()}'"
        raise UserError(f"{file} needs the lines {lines}, once each, in this order")
    before, rest = text.split(begin)
    return f"{before}{begin}\n{table}\n{end}{rest.split(end)[1]}"


def published_tables() -> dict[str, str]:
    """Return the tables of README.md by name."""
    figures = published.read_published(LOGS / "published.csv")
    return {name: markdown(rows_of(figures[name])) for name, rows_of in published.TABLES.items()}


def studies(logs: Path) -> str:
    """Return a section for each study that has recorded runs.

    Raises:
        UserError: ``logs`` is no folder, or a recorded run is not of its study.
    """
    return "\n".join(map(study.section, study.read_all(logs))) or "No study has been recorded yet.\n"


def read_text(path: Path, flag: str) -> str:
    """Return the text of the file of a flag.

    Raises:
        UserError: it cannot be read, or is no text.
    """
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{flag} {path}: {getattr(error, 'strerror', None) or 'it is no text'}") from None


def bring_up_to_date(path: Path, flag: str, before: str, tables: Mapping[str, str], check: bool) -> bool:
    """Rewrite the tables of a file, unless ``check``, and return whether they were up to date.

    Args:
        path: the file.
        flag: that names it.
        before: its text.
        tables: by the name in their markers.
        check: whether to write nothing.

    Raises:
        UserError: the file cannot be written, or a marker is missing.
    """
    after = before
    for name, table in tables.items():
        after = replaced(after, name, table, path.name)
    if after != before and not check:
        write_output(path, after.encode(), f"{flag} {path}")
    stale = "are stale; python scripts/results.py rewrites them" if check else "rewritten"
    print(f"{path.name}: tables {'are up to date' if after == before else stale}")
    return after == before


def main() -> None:
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing")
    where = "the file with the markers (default: %(default)s)"
    for flag, file in (("--readme", "README.md"), ("--results", "docs/results.md")):
        parser.add_argument(flag, type=Path, default=ROOT / file, metavar="FILE", help=where)
    what = "folder with the studies, a .toml file and a folder of logs each (default: %(default)s)"
    parser.add_argument("--logs", type=Path, default=LOGS, metavar="DIR", help=what)
    args = parser.parse_args()
    results, readme = read_text(args.results, "--results"), read_text(args.readme, "--readme")
    up_to_date = [
        bring_up_to_date(args.results, "--results", results, {"studies": studies(args.logs)}, args.check),
        bring_up_to_date(args.readme, "--readme", readme, published_tables(), args.check),
    ]
    sys.exit(1 if args.check and not all(up_to_date) else 0)


if __name__ == "__main__":
    cli.run(main)
