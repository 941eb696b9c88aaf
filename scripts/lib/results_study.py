"""The table of a study: a row of figures for each of its rows, from the logs beside its file.

All figures are those of the last epoch: the best one would have been chosen on the validation images.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from scripts.lib.results_tables import latex, markdown
from scripts.lib.study_file import Study, read_study
from scripts.lib.study_records import Recorded, read_records
from scripts.lib.study_speed import Speed, read_speed
from scripts.lib.study_statistics import (
    LEVEL,
    POWER,
    Difference,
    detectable,
    paired,
    standard_error,
    typical_deviation,
    with_error,
)
from utils.common.errors import UserError
from utils.common.text import plural


class Cost(NamedTuple):
    """What a row costs."""

    parameters: int
    multiply_adds: int
    step: float | None  # the time of a training step, as a multiple of the baseline's; None: not measured


@dataclass(frozen=True)
class Results:
    """A study with its recorded runs by row; a row may have none."""

    study: Study
    rows: Mapping[str, Sequence[Recorded]]
    speed: Speed | None = None

    @property
    def runs(self) -> list[Recorded]:
        return [run for row in self.rows.values() for run in row]

    def top1(self, row: str, column: str = "Valid Acc.") -> dict[int, float]:
        """Return the top-1 of a row's runs in percent, by seed."""
        return {run.seed: run.last(column) for run in self.rows[row]}

    def mean_with_error(self, row: str) -> tuple[float, float]:
        """Return the mean top-1 of a row that has runs, and its standard error; 0 for a single run."""
        values = list(self.top1(row).values())
        return mean(values), standard_error(values) or 0.0

    def difference(self, row: str) -> Difference:
        """Return the differences of a row's top-1 to the baseline's, paired by seed."""
        return paired(self.top1(row), self.top1(self.study.baseline))

    def cost(self, row: str) -> Cost | None:
        """Return what a row costs; None before a run of it is recorded."""
        if not self.rows[row]:
            return None
        facts = self.rows[row][0].facts
        step = self.speed.ratios[row].median if self.speed and row in self.speed.ratios else None
        return Cost(facts["parameters"], facts["multiply_adds"], step)


def read_results(path: Path) -> Results:
    """Read a study and all that is recorded of it.

    Raises:
        UserError: the study or a record cannot be read, or a run is not of the study.
    """
    study = read_study(path)
    return Results(study, read_records(study), read_speed(study))


def read_all(folder: Path) -> list[Results]:
    """Read the studies of a folder in the order of their names, those without any run left out.

    Raises:
        UserError: one cannot be read, or a folder has logs of no study.
    """
    if not folder.is_dir():
        raise UserError(f"--logs {folder}: no such folder")
    for logs in sorted(path for path in folder.iterdir() if path.is_dir()):
        if any(logs.iterdir()) and not (study := logs.with_name(f"{logs.name}.toml")).exists():
            raise UserError(f"{logs}: there is no {study.name} beside it, which says the rows of the study")
    found = [read_results(path) for path in sorted(folder.glob("*.toml"))]
    return [results for results in found if results.runs]


def table(results: Results) -> Iterator[Sequence[str]]:
    """Yield the table's head and a line for each row."""
    baseline, speed = results.study.baseline, results.speed
    head = ["net", "flags", "#P", "GFLOPs", *(["step ratio"] if speed else []), "epochs", "seeds"]
    yield [*head, "valid top-1 %", "train top-1 %", f"valid top-1, difference to {baseline}", "p"]
    for row, runs in results.rows.items():
        flags = " ".join(results.study.rows[row]) or "-"
        epochs = str(runs[0].curves.epochs) if runs else "-"
        top1 = [with_error(list(results.top1(row, name).values())) for name in ("Valid Acc.", "Train Acc.")]
        cells = [row, flags, *_costs(results, row), epochs, _seeds(results, row), *top1]
        yield [*cells, *(("baseline", "") if row == baseline else _compared(results, row))]


def _costs(results: Results, row: str) -> list[str]:
    cost = results.cost(row)
    measured = [] if not results.speed else ["-" if not cost or cost.step is None else f"{cost.step:.2f}"]
    if not cost:
        return ["-", "-", *measured]
    return [f"{cost.parameters / 1e6:.2f}M", f"{cost.multiply_adds / 1e9:.3f}", *measured]


def _seeds(results: Results, row: str) -> str:
    has, wanted = len(results.rows[row]), len(results.study.seeds)
    return str(has) if has == wanted else f"{has} of {wanted}"


def _compared(results: Results, row: str) -> tuple[str, str]:
    """Return the difference to the baseline and its p; seeds that only one of the two has are noted."""
    one = results.difference(row)
    text = with_error(one.values, "+")
    if len(one.values) not in (0, len(results.rows[row])):
        text += f" ({plural(len(one.values), 'seed')})"
    return text, "-" if one.p is None else f"{one.p:.3f}" if one.p >= 0.001 else "< 0.001"


def caption(results: Results) -> list[str]:
    """Return what all rows have in common (recipe, data, code, versions), and what the columns are."""
    study, runs = results.study, results.runs
    facts = runs[0].facts
    commits = sorted({run.facts["commit"][:10] for run in runs})
    words = [study.script, "--data", Path(study.data).name, *study.flags]
    level = f", {facts['opt_level']}" if "opt_level" in facts else ""
    of_runs = (
        f"`{' '.join(words)}` with the flags of the row and `--manualSeed`; "
        f"{facts['training_images']:,} training images, {facts['classes']} classes; "
        f"{plural(facts['processes'], 'process')}{level}; "
        f"commit {', '.join(commits)}; torch {facts['versions'].get('torch', 'unknown')}."
    )
    return [of_runs, *_of_the_test(results), *([results.speed.caption] if results.speed else [])]


def _of_the_test(results: Results) -> list[str]:
    """Say what p is, and which difference the study would have shown."""
    others = [row for row in results.rows if row != results.study.baseline]
    differences = [results.difference(row) for row in others]
    deviation = typical_deviation(differences)
    if deviation is None:
        return []
    tested = sum(one.p is not None for one in differences)
    seeds = max(len(one.values) for one in differences)
    found = detectable(deviation, seeds)
    text = (
        "p: two-sided paired t-test over the seeds, which takes their differences for independent and "
        f"normally distributed; not corrected for {plural(tested, 'comparison')}."
    )
    if found:
        text += (
            f" The differences of a typical row's seeds have a standard deviation of {deviation:.2f} points: "
            f"with {plural(seeds, 'seed')} the test at {100 * LEVEL:.0f} % finds a true difference of "
            f"{found:.1f} points with a probability of {100 * POWER:.0f} %."
        )
    return [text]


def section(results: Results) -> str:
    """Return a study's section in Markdown."""
    text = "\n\n".join(caption(results))
    return f"### {results.study.name}\n\n{text}\n\n{markdown(table(results))}"


def as_latex(results: Results) -> str:
    """Return a study's table in LaTeX."""
    return latex(table(results), [line.replace("`", "") for line in caption(results)])
