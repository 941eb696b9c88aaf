"""The results of a benchmark as a table, as JSON, as a chart."""

import io
import json
import os
import platform
import shlex
import statistics
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from utils.command_line import cli
from utils.common.checks import check_libraries, check_output
from utils.common.files import write_output
from utils.common.text import plural
from utils.runs import provenance

WIDTH = 110  # characters of a line
SPREAD = "median of {} rounds; ±: half of the interquartile range"
RATIO = (
    "ratio: to the first row, the median of the rounds' ratios; from, to: the least and the largest of them; "
    "best: ratio of the best rounds, which a busy machine disturbs least"
)


class Ratio(NamedTuple):
    """The ratio of one candidate to the baseline, compared round by round."""

    median: float
    least: float
    most: float
    best: float  # of the two best rounds


@dataclass(frozen=True)
class Result:
    """One candidate: its value of every round, and further columns by their heading."""

    name: str
    rounds: Sequence[float]
    further: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and the third quartile; for a single round both are its value."""
        if len(self.rounds) == 1:
            return self.rounds[0], self.rounds[0]
        first, _, third = statistics.quantiles(self.rounds, n=4, method="inclusive")
        return first, third

    @property
    def spread(self) -> float:
        """Half of the interquartile range."""
        first, third = self.quartiles
        return (third - first) / 2


@dataclass(frozen=True)
class Table:
    """Candidates side by side.

    Args:
        title: what was measured.
        unit: of the rounds' values, such as ``ms/step``.
        results: one for each row, the baseline first.
        best: ``min`` or ``max``, whichever gives the best round.
        ratios: whether the rows are compared with the first.
        notes: lines that explain columns.
    """

    title: str
    unit: str
    results: Sequence[Result]
    best: Callable[[Sequence[float]], float] = min
    ratios: bool = True
    notes: Sequence[str] = ()

    def ratio(self, result: Result) -> Ratio:
        """Compare a row with the first one."""
        baseline = self.results[0].rounds
        each = [own / base for own, base in zip(result.rounds, baseline, strict=True)]
        best = self.best(result.rounds) / self.best(baseline)
        return Ratio(statistics.median(each), min(each), max(each), best)

    def __str__(self) -> str:
        further = self.results[0].further
        heads = ["", self.unit, "±", *(("ratio", "from", "to", "best") if self.ratios else ()), *further]
        rows = [heads, *(self._cells(result) for result in self.results)]
        aligned = align(rows)
        if max(map(len, aligned)) > WIDTH:
            at = len(heads) - len(further)
            aligned = [*align([row[:at] for row in rows]), *align([[row[0], *row[at:]] for row in rows])]
        notes = [SPREAD.format(len(self.results[0].rounds)), *[RATIO] * self.ratios, *self.notes]
        return "\n".join([self.title, *aligned, *(textwrap.fill(note, WIDTH) for note in notes)])

    def _cells(self, result: Result) -> list[str]:
        ratios = [f"{value:.3f}" for value in self.ratio(result)] if self.ratios else []
        figures = [result.median, result.spread]
        return [result.name, *map(number, figures), *ratios, *map(number, result.further.values())]

    def fields(self) -> dict[str, Any]:
        """Return the table for a JSON file."""
        results = [
            {
                "name": result.name,
                "rounds": list(result.rounds),
                "median": result.median,
                "quartiles": result.quartiles,
                **({"ratio": self.ratio(result)._asdict()} if self.ratios else {}),
                **result.further,
            }
            for result in self.results
        ]
        return {"title": self.title, "unit": self.unit, "results": results, "notes": list(self.notes)}


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a line for each row, the first column aligned to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows]
    return ["  ".join(cells).rstrip() for cells in aligned]


def number(value: float | None) -> str:
    """Format with at least three significant digits, a whole number with all, None as ``-``."""
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    size = abs(value)
    return f"{value:,.{0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3}f}"


def add_arguments(parser: cli.Parser) -> None:
    """Add the flags that name the files of the results."""
    text = "write all rounds, with the machine and the command"
    parser.add_argument("--json", type=cli.name_of_file, metavar="FILE", help=text)
    text = "draw the medians and the quartiles (needs matplotlib)"
    parser.add_argument("--png", type=cli.name_of_file, metavar="FILE", help=text)


def check(json: str | None, png: str | None) -> None:
    """Refuse files that cannot be written before anything is measured.

    Raises:
        UserError: a file cannot be written, or matplotlib is missing.
    """
    for flag, name in (("--json", json), ("--png", png)):
        if name:
            check_output(Path(name), flag)
    if png:
        check_libraries("--png", "matplotlib")


def machine(device: str, threads: bool) -> dict[str, str]:
    """Describe the machine and the software.

    Args:
        device: ``auto``, ``cuda`` or ``cpu``, as the command says.
        threads: whether this process computes; its number of threads is then named.
    """
    cpu = f"{_processor()} ({torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores)"
    gpu = torch.cuda.is_available() and device != "cpu"
    devices = {"gpu": torch.cuda.get_device_name()} if gpu else {}
    own = {"threads": plural(torch.get_num_threads(), "thread")} if threads else {}
    versions = {"torch": f"torch {torch.__version__}", "commit": f"commit {provenance.commit()[:12] or '-'}"}
    return {**devices, "cpu": cpu, **own, **versions}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def publish(
    tables: Sequence[Table], machine: Mapping[str, str], json_file: str | None, png_file: str | None
) -> None:
    """Print the tables, and write the files that are named.

    Raises:
        UserError: a file cannot be written.
    """
    print(", ".join(machine.values()), *(f"\n{table}" for table in tables), sep="\n")
    if json_file:
        command = {"command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])}
        fields = {**command, "machine": dict(machine), "tables": [table.fields() for table in tables]}
        text = json.dumps(fields, indent=1) + "\n"
        write_output(Path(json_file), text.encode(), f"--json {json_file}")
    if png_file:
        content = chart(", ".join(machine.values()), tables)
        write_output(Path(png_file), content, f"--png {png_file}")


STYLE = MappingProxyType({"ecolor": "0.25", "capsize": 3, "height": 0.6})


def chart(caption: str, tables: Sequence[Table]) -> bytes:
    """Return a PNG with a panel of bars for each table."""
    from matplotlib.figure import Figure  # takes a second, and is not needed for the tables

    heights = [1.5 + 0.4 * len(table.results) for table in tables]
    figure = Figure(figsize=(9, sum(heights) + 0.5), layout="constrained")
    panels = figure.subplots(len(tables), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, table in zip(panels, tables, strict=True):
        _draw(axes, table)
    figure.suptitle(textwrap.fill(caption, WIDTH), fontsize=8, color="0.35")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def _draw(axes: Any, table: Table) -> None:
    """Draw a bar for each row with its median in figures; the whiskers end at the quartiles."""
    results = table.results
    medians = [result.median for result in results]
    ends = [result.quartiles for result in results]
    below = [median - first for median, (first, _) in zip(medians, ends, strict=True)]
    above = [third - median for median, (_, third) in zip(medians, ends, strict=True)]
    colours = ["0.6" if table.ratios and not i else "tab:blue" for i in range(len(results))]
    places = range(len(results))
    axes.barh(places, medians, xerr=(below, above), color=colours, **STYLE)
    for place, median, (_, third) in zip(places, medians, ends, strict=True):
        axes.annotate(
            number(median), (third, place), xytext=(6, 0), textcoords="offset points", va="center", fontsize=9
        )
    axes.set_yticks(places, [result.name for result in results])
    axes.invert_yaxis()
    axes.margins(x=0.12)  # for the figures beside the bars
    axes.set_xlim(left=0)
    axes.set_xlabel(f"{table.unit} (median; whiskers: first and third quartile)")
    axes.set_title(textwrap.fill(table.title, 90), fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
