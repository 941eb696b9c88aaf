"""The results of gpu_check.sh in one JSON file, and as Markdown tables for docs/performance.md.

python -m scripts.lib.gpu_tables FOLDER
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scripts.lib.benchmark_report import number
from scripts.lib.results_tables import markdown as as_table
from utils.common.files import write_atomically

RESULTS, TABLES = "results.json", "tables.md"


def read_results(folder: Path) -> dict[str, Any]:
    """Return what ``benchmark.py --json`` wrote, by the names of the parts."""
    files = [path for path in sorted(folder.glob("*.json")) if path.name != RESULTS]
    return {path.stem: json.loads(path.read_text()) for path in files}


def markdown(results: Mapping[str, Any]) -> str:
    """Return a table of networks, a column for each setting, and then a table for each other part."""
    machines = dict.fromkeys(", ".join(part["machine"].values()) for part in results.values())
    models = {name: part for name, part in results.items() if part["command"].split()[1] == "model"}
    others = [part for name, part in results.items() if name not in models]
    tables = [_networks(models)] * bool(models) + [
        _one(table, part) for part in others for table in part["tables"]
    ]
    return "\n\n".join([*machines, *tables]) + "\n"


def _networks(parts: Mapping[str, Any]) -> str:
    """Return the ratios of all networks, the median and (in the best rounds), in every setting."""
    tables = {name: part["tables"][0] for name, part in parts.items()}
    columns = {name: {row["name"]: row for row in table["results"]} for name, table in tables.items()}
    rows = dict.fromkeys(row for column in columns.values() for row in column)
    cells = [[row, *(_ratio(column.get(row)) for column in columns.values())] for row in rows]
    baseline = [f"{number(table['results'][0]['median'])} {table['unit']}" for table in tables.values()]
    titles = [f"- {name}: {table['title']}" for name, table in tables.items()]
    rows_of_text = [["network", *columns], ["first row", *baseline], *cells]
    return "\n".join([*titles, "", as_table(rows_of_text).rstrip()])


def _one(table: Mapping[str, Any], part: Mapping[str, Any]) -> str:
    rows = [[row["name"], number(row["median"]), _ratio(row)] for row in table["results"]]
    return (
        f"{table['title']} (`{part['command']}`)\n\n"
        + as_table([["", table["unit"], "ratio"], *rows]).rstrip()
    )


def _ratio(row: Mapping[str, Any] | None) -> str:
    ratio = row and row.get("ratio")
    return f"{ratio['median']:.2f} ({ratio['best']:.2f})" if ratio else "-"


def main() -> None:
    folder = Path(sys.argv[1])
    results = read_results(folder)
    if not results:
        raise SystemExit(f"error: no part has left results in {folder}")
    write_atomically(folder / RESULTS, lambda file: file.write(json.dumps(results, indent=1).encode()))
    text = markdown(results)
    write_atomically(folder / TABLES, lambda file: file.write(text.encode()))
    print(f"wrote {folder / RESULTS}, {folder / TABLES}:\n\n{text}", end="")


if __name__ == "__main__":
    main()
