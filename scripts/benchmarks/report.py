"""What was measured: as a table, as JSON, as a chart."""

import argparse
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
from typing import IO, Any, NamedTuple

import torch

from utils.command_line import cli
from utils.common.errors import UserError
from utils.common.files import write_atomically
from utils.common.text import plural
from utils.runs import provenance

WIDTH = 110  # characters of a line
SPREAD = "median of {} rounds; ±: half of the distance between their quartiles"
RATIO = (
    "ratio: to the first row, the median of the rounds' ratios; from, to: the least and the largest; "
    "best: of the best rounds, which a busy machine disturbs least"
)


class Ratio(NamedTuple):
    """Of one candidate's rounds to those of the baseline."""

    median: float
    least: float
    most: float
    best: float


@dataclass(frozen=True)
class Result:
    """One candidate: its figure of every round, and further columns by their heading."""

    name: str
    rounds: Sequence[float]
    further: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and the third; of one round that round."""
        if len(self.rounds) == 1:
            return self.rounds[0], self.rounds[0]
        first, _, third = statistics.quantiles(self.rounds, n=4, method="inclusive")
        return first, third

    @property
    def spread(self) -> float:
        """Half of the distance between the quartiles."""
        first, third = self.quartiles
        return (third - first) / 2


@dataclass(frozen=True)
class Table:
    """Candidates side by side.

    Args:
        title: what was measured.
        unit: of the rounds' figures, such as ``ms/step``.
        results: a row each, the baseline first.
        best: ``min`` or ``max``: which round is the best.
        ratios: whether the rows are compared with the first.
        notes: lines that say how columns are meant.
    """

    title: str
    unit: str
    results: Sequence[Result]
    best: Callable[[Sequence[float]], float] = min
    ratios: bool = True
    notes: Sequence[str] = ()

    def ratio(self, result: Result) -> Ratio:
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
        """For a JSON file."""
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
    """Lines of columns, the first to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows]
    return ["  ".join(cells).rstrip() for cells in aligned]


def number(value: float | None) -> str:
    """Three significant digits or more, all of a whole number, ``-`` for none."""
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    size = abs(value)
    return f"{value:,.{0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3}f}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the figures go besides the terminal."""
    text = "write all rounds, with the machine and the command"
    parser.add_argument("--json", type=cli.name_of_file, metavar="FILE", help=text)
    text = "draw the medians and their quartiles (needs matplotlib)"
    parser.add_argument("--png", type=cli.name_of_file, metavar="FILE", help=text)


def check(args: argparse.Namespace) -> None:
    """Refuse before anything is measured what would fail after it.

    Raises:
        UserError: a file cannot be written, or matplotlib is missing.
    """
    for flag, name in (("--json", args.json), ("--png", args.png)):
        if name:
            cli.check_output(Path(name), flag)
    if args.png:
        cli.check_libraries("--png", "matplotlib")


def machine(args: argparse.Namespace) -> dict[str, str]:
    """What the figures belong to, in words."""
    cpu = f"{_processor()} ({torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores)"
    gpu = torch.cuda.is_available() and getattr(args, "device", "cpu") != "cpu"
    devices = {"gpu": torch.cuda.get_device_name()} if gpu else {}
    # Elsewhere other processes compute, and the table says on how many threads.
    threads = {"threads": plural(torch.get_num_threads(), "thread")} if "threads" in args else {}
    versions = {"torch": f"torch {torch.__version__}", "commit": f"commit {provenance.commit()[:12] or '-'}"}
    return {**devices, "cpu": cpu, **threads, **versions}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def publish(args: argparse.Namespace, tables: Sequence[Table]) -> None:
    """Print the tables and write the files that are wanted."""
    where = machine(args)
    print(", ".join(where.values()), *(f"\n{table}" for table in tables), sep="\n")
    if args.json:
        command = {"command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])}
        fields = {**command, "machine": where, "tables": [table.fields() for table in tables]}
        text = json.dumps(fields, indent=1) + "\n"
        _write("--json", args.json, lambda file: file.write(text.encode()))
    if args.png:
        content = chart(", ".join(where.values()), tables)
        _write("--png", args.png, lambda file: file.write(content))


def _write(flag: str, name: str, write: Callable[[IO[bytes]], object]) -> None:
    try:
        write_atomically(Path(name), write)
    except OSError as error:
        raise UserError(f"{flag} {name}: {error.strerror}") from error


STYLE = MappingProxyType({"ecolor": "0.25", "capsize": 3, "height": 0.6})


def chart(where: str, tables: Sequence[Table]) -> bytes:
    """A PNG with a panel of bars for each table."""
    from matplotlib.figure import Figure  # takes a second, and is not needed for the tables

    heights = [1.5 + 0.4 * len(table.results) for table in tables]
    figure = Figure(figsize=(9, sum(heights) + 0.5), layout="constrained")
    panels = figure.subplots(len(tables), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, table in zip(panels, tables, strict=True):
        _draw(axes, table)
    figure.suptitle(textwrap.fill(where, 110), fontsize=8, color="0.35")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def _draw(axes: Any, table: Table) -> None:
    """Bars from top to bottom, with the distance to the quartiles and the median in figures."""
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
