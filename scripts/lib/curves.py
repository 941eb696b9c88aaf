"""The curves of one or many runs, from their log.txt: loss, top-1 or AP, and learning rate."""

import io
import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from utils.common.errors import UserError
from utils.common.text import drawable, plural
from utils.runs.log import LOG

SEEDS = r"[-_.](?:seed|run|s)?\d+$"  # what the names of runs that differ by their seed end in
BANDS = ("range", "error")
_DECADES = 1.5  # values that span as much are drawn on a logarithmic axis
_MARKED = 30  # epochs up to which each is marked by a dot
_MARKERS = "o^sDvPX*<>"  # where the colours do not suffice
_LEGEND = 165  # characters that fit into a line of the legend
_LABEL = 60  # characters of a run's name in the legend
_RATE = "Learning Rate"
_STYLES = ("--", "-")  # of training and of validation


class Kind(NamedTuple):
    """The panels that are drawn of a run, and its score."""

    panels: Sequence[tuple[str, Sequence[str]]]  # titles and columns
    column: str  # the epoch of its largest value is the best
    score: str  # what that value is, in percent

    @property
    def columns(self) -> list[str]:
        return [_RATE, *(column for _, columns in self.panels for column in columns)]


_CLASSIFICATION = Kind(
    (("loss", ("Train Loss", "Valid Loss")), ("top-1 (%)", ("Train Acc.", "Valid Acc."))),
    "Valid Acc.",
    "top-1",
)
_DETECTION = Kind((("loss", ("Train Loss",)), ("AP (%)", ("AP",))), "AP", "AP")


class RunCurves(NamedTuple):
    """The content of a log.txt: for each column a value per epoch, NaN where there is none."""

    name: str
    columns: dict[str, np.ndarray]
    kind: Kind = _CLASSIFICATION

    @property
    def epochs(self) -> int:
        return len(self.columns[_RATE])

    @property
    def best(self) -> tuple[float, int]:
        """Return the best score in percent and its epoch, from 1; NaN and 0 if none is finite."""
        score = self.columns[self.kind.column]
        if not np.isfinite(score).any():
            return math.nan, 0
        at = int(np.nanargmax(np.where(np.isfinite(score), score, -np.inf)))
        return float(score[at]), at + 1


@dataclass(frozen=True)
class Group:
    """Runs that are drawn as one: their mean, within a band if they are several.

    Args:
        name: in the legend.
        runs: of one recipe; what goes beyond the epochs of the shortest is not drawn.
        band: ``range`` from the least to the largest, or ``error``, the standard error of the mean.
    """

    name: str
    runs: Sequence[RunCurves]
    band: str = "range"

    @property
    def epochs(self) -> int:
        return min(run.epochs for run in self.runs)

    @property
    def label(self) -> str:
        """Return the text of the legend."""
        name = drawable(self.name)
        if len(name) > _LABEL:  # names may differ at either end
            name = f"{name[: _LABEL // 2 - 3]}...{name[-_LABEL // 2 :]}"
        if len(self.runs) == 1:
            return name
        shade = {"range": "least to largest", "error": "± standard error"}[self.band]
        return f"{name} (mean of {plural(len(self.runs), 'run')}, shade: {shade})"

    def curve(self, column: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the mean and the lower and upper end of the band, with a value per epoch each."""
        values = np.stack([run.columns[column][: self.epochs] for run in self.runs])
        mean = values.mean(0)
        if self.band == "range" or len(values) == 1:
            return mean, values.min(0), values.max(0)
        error = values.std(0, ddof=1) / math.sqrt(len(values))
        return mean, mean - error, mean + error


def read_curves(path: Path, name: str) -> RunCurves:
    """Read a log.txt, ours or published: tab-separated below a header.

    Raises:
        UserError: it cannot be read, holds no epoch, or is something else.
    """
    try:
        lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give the folder of a run, or its {LOG}") from None
    heads = [cell.strip() for cell in lines[0].split("\t")] if lines else []
    kind = _DETECTION if set(_DETECTION.columns) <= set(heads) else _CLASSIFICATION
    wanted = kind.columns
    if missing := [column for column in wanted if column not in heads]:
        raise UserError(f"{path}: no {LOG} of a training run (it has no column '{missing[0]}')")
    if len(lines) == 1:
        raise UserError(f"{path}: it holds no epoch yet; wait for the first")
    places = [heads.index(column) for column in wanted]
    rows = [_values(line, places, f"{path}, line {number}") for number, line in enumerate(lines[1:], 2)]
    return RunCurves(name, dict(zip(wanted, np.array(rows).T, strict=True)), kind)


def _values(line: str, places: Sequence[int], where: str) -> list[float]:
    cells = line.split("\t")
    try:
        return [float(cells[place]) for place in places]
    except (ValueError, IndexError):
        raise UserError(f"{where}: not a row of numbers: '{line[:60].strip()}'; mend or remove it") from None


def grouped(runs: Sequence[RunCurves], seeds: str, band: str = "range") -> list[Group]:
    """Group runs whose names are equal once the matches of the regular expression ``seeds`` are removed.

    A run that is alone keeps its whole name; an empty expression leaves every run alone.
    """
    together: dict[str, list[RunCurves]] = {}
    for run in runs:
        together.setdefault(re.sub(seeds, "", run.name) if seeds else run.name, []).append(run)
    return [Group(name if len(of) > 1 else of[0].name, of, band) for name, of in together.items()]


def spans_decades(values: np.ndarray) -> bool:
    """Return whether values need a logarithmic axis: all are above 0, and they differ by factors."""
    finite = values[np.isfinite(values)]
    return bool(finite.size) and finite.min() > 0 and math.log10(finite.max() / finite.min()) >= _DECADES


def draw(groups: Sequence[Group]) -> Any:
    """Draw a matplotlib figure of three panels with the legend below.

    Raises:
        UserError: some runs are of classification and some of detection.
    """
    kind = groups[0].runs[0].kind
    if other := next((run for group in groups for run in group.runs if run.kind != kind), None):
        raise UserError(
            f"{groups[0].runs[0].name} logs {kind.score} and {other.name} {other.kind.score}: "
            "draw runs of classification and of detection apart"
        )
    from matplotlib.figure import Figure  # takes a second, and most of a run does without
    from matplotlib.lines import Line2D

    looks = _looks(len(groups))
    # matplotlib leaves out labels that begin with "_", as a run's name may: the texts come afterwards.
    entries = [Line2D([], [], color="0.3", ls=ls) for ls in _STYLES]
    entries += [Line2D([], [], color=look.colour, lw=3, marker=look.marker, ms=6) for look in looks]
    labels = ["training (dashed)", "validation (solid)", *(group.label for group in groups)]
    columns = max(1, min(len(labels), _LEGEND // (max(map(len, labels)) + 7)))
    lines = math.ceil(len(labels) / columns)
    figure = Figure(figsize=(13, 4 + 0.2 * lines), layout="constrained")
    panels = figure.subplots(1, 3)
    for axes, (title, names) in zip(panels, (*kind.panels, ("learning rate", (_RATE,))), strict=True):
        _draw_panel(axes, title, names, groups, looks)
    legend = figure.legend(
        entries,
        list(map(str, range(len(labels)))),
        loc="outside lower center",
        ncols=columns,
        fontsize=8,
        frameon=False,
    )
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set_parse_math(False)  # a name may hold a "$"
        text.set_text(label)
    return figure


class Look(NamedTuple):
    """How a group is drawn."""

    colour: Any
    marker: str


def _looks(count: int) -> list[Look]:
    """Return ten colours, and for more groups the same ones again, each ten with another marker."""
    from matplotlib import colormaps

    return [
        Look(colormaps["tab10"](i % 10), _MARKERS[i // 10 % len(_MARKERS)] if count > 10 else "")
        for i in range(count)
    ]


def _draw_panel(
    axes: Any, title: str, names: Sequence[str], groups: Sequence[Group], looks: Sequence[Look]
) -> None:
    """Draw the columns ``names`` of all groups."""
    drawn = []
    for group, look in zip(groups, looks, strict=True):
        epochs = np.arange(1, group.epochs + 1)
        marker = look.marker or ("." if group.epochs <= _MARKED else "")
        marks = {
            "marker": marker,
            "ms": 4 if look.marker else 6,
            "markevery": math.ceil(group.epochs / _MARKED),
        }
        for name in names:
            style = _STYLES[0] if name.startswith("Train") else _STYLES[1]
            mean, lower, upper = group.curve(name)
            axes.plot(epochs, mean, style, color=look.colour, lw=1.3, **marks)
            if len(group.runs) > 1:
                axes.fill_between(epochs, lower, upper, color=look.colour, alpha=0.2, lw=0)
            drawn += [lower, upper]
    if not title.endswith("(%)") and spans_decades(np.concatenate(drawn)):
        axes.set_yscale("log")
        title += " (log scale)"
    elif names == (_RATE,):
        axes.set_ylim(bottom=0)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)  # 1: a run may have one epoch
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def rendered(figure: Any, kind: str = "png") -> bytes:
    """Return a figure as the bytes of a file; the same figure gives the same PNG."""
    buffer = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name in letters that the font lacks is drawn as boxes
        figure.savefig(buffer, format=kind, dpi=130, metadata=metadata)
    return buffer.getvalue()
