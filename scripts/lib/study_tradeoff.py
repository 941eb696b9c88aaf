"""The trade-off plot of a study: top-1 against what a row costs, every point with its name."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from scripts.lib.curves import spans_decades
from scripts.lib.results_study import Results
from utils.common.text import plural

AXES: Mapping[str, str] = MappingProxyType(
    {
        "parameters": "parameters (millions)",
        "gflops": "GFLOPs (multiply-adds of one image, billions)",
        "step": "time of a training step, as a multiple of the baseline's",
    }
)
_SIZE = 8  # points of the names
_GAP = 5  # points between a point and its name
_LINE = 0.17  # inches of a line of names in the margin
_BELOW, _ABOVE = 0.6, 0.5  # inches of the picture below and above the axes


class Point(NamedTuple):
    """A row of the plot."""

    name: str
    cost: float
    top1: float  # mean, in percent
    error: float  # standard error; 0 for one seed
    baseline: bool


def points_of(results: Results, axis: str) -> list[Point]:
    """Return the rows that have runs, and for ``step`` a measured step, in the order of the table."""
    points = []
    for row in results.rows:
        if (cost := results.cost(row)) is None:
            continue
        value = {"parameters": cost.parameters / 1e6, "gflops": cost.multiply_adds / 1e9, "step": cost.step}[
            axis
        ]
        if value is not None:
            top1, error = results.mean_with_error(row)
            points.append(Point(row, value, top1, error, row == results.study.baseline))
    return points


def draw(results: Results, axis: str) -> Any:
    """Draw a matplotlib figure; names stand beside their points, or in the margin where these are too close.

    Args:
        results: of the study, with at least one run.
        axis: a key of ``AXES``.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # takes a second
    from matplotlib.figure import Figure

    points = points_of(results, axis)
    figure = Figure(figsize=(8, max(4.5, _LINE * len(points) + _BELOW + _ABOVE)))
    FigureCanvasAgg(figure)
    axes = figure.add_axes(_area(figure, 0.86))
    for point in points:
        colour, marker = ("black", "D") if point.baseline else ("tab:blue", "o")
        axes.errorbar(
            point.cost,
            point.top1,
            point.error or None,
            ms=5,
            capsize=3,
            lw=1,
            ls="",
            color=colour,
            marker=marker,
        )
    _decorate(figure, axes, results, points, axis)
    if not _place_beside(figure, axes, points):
        _place_in_margin(figure, axes, points)
    return figure


def _area(figure: Any, width: float) -> tuple[float, float, float, float]:
    """Return the place of axes of a width that is a share of the picture's."""
    height = figure.get_figheight()
    return 0.1, _BELOW / height, width, 1 - (_BELOW + _ABOVE) / height


def _decorate(figure: Any, axes: Any, results: Results, points: Sequence[Point], axis: str) -> None:
    log = spans_decades(np.array([point.cost for point in points]))
    if log:
        axes.set_xscale("log")
    axes.margins(0.12)
    axes.set_xlabel(AXES[axis] + (", log scale" if log else ""))
    axes.set_ylabel("validation top-1 of the last epoch (%)")
    for point in points:
        if point.baseline:
            axes.axhline(point.top1, color="0.6", lw=0.8, ls=":", zorder=0)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    seeds = {len(runs) for runs in results.rows.values() if runs}
    of = plural(max(seeds), "seed") if len(seeds) == 1 else f"{min(seeds)} to {max(seeds)} seeds"
    text = f"{results.study.name}: mean of {of}, bars: ± standard error; diamond and dotted line: baseline"
    figure.suptitle(text, fontsize=9, parse_math=False, y=1 - 0.15 / figure.get_figheight())


def _label(axes: Any, point: Point, **place: Any) -> Any:
    return axes.annotate(
        point.name,
        (point.cost, point.top1),
        fontsize=_SIZE,
        parse_math=False,
        weight="bold" if point.baseline else "normal",
        annotation_clip=False,
        **place,
    )


def _place_beside(figure: Any, axes: Any, points: Sequence[Point]) -> bool:
    """Write each name beside its point; write none, and return False, if one finds no room."""
    figure.draw_without_rendering()
    taken = [_box_of(figure, axes, point) for point in points]
    labels: list[Any] = []
    for point in points:
        for right, up in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1)):
            sides = {"ha": ("center", "left", "right")[right], "va": ("center", "bottom", "top")[up]}
            gap = (_GAP * right * (1 if not up else 0.6), _GAP * up)
            label = _label(axes, point, xytext=gap, textcoords="offset points", **sides)
            box = label.get_window_extent()
            if _inside(box, axes.bbox) and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                labels.append(label)
                break
            label.remove()
        else:
            for label in labels:
                label.remove()
            return False
    return True


def _box_of(figure: Any, axes: Any, point: Point) -> Any:
    """Return the box of a point and its bar, in pixels."""
    from matplotlib.transforms import Bbox

    ends = [(point.cost, point.top1 - point.error), (point.cost, point.top1 + point.error)]
    (x, low), (_, high) = axes.transData.transform(ends)
    radius = 4 * figure.dpi / 72
    return Bbox([[x - radius, low - radius], [x + radius, high + radius]])


def _inside(box: Any, around: Any) -> bool:
    return bool(
        box.x0 >= around.x0 and box.x1 <= around.x1 + 1 and box.y0 >= around.y0 and box.y1 <= around.y1
    )


def _place_in_margin(figure: Any, axes: Any, points: Sequence[Point]) -> None:
    """Write all names in a column beside the axes, in the order of their points, with lines to these."""
    longest = max(len(point.name) for point in points)
    share = min(0.5, 0.03 + longest * _SIZE * 0.6 / 72 / figure.get_figwidth())
    axes.set_position(_area(figure, 0.82 - share))
    low, high = axes.get_ylim()
    order = sorted(points, key=lambda point: point.top1)
    wanted = [(point.top1 - low) / (high - low) for point in order]
    heights = apart(wanted, _LINE / (figure.get_figheight() - _BELOW - _ABOVE))
    for point, height in zip(order, heights, strict=True):
        line = {"arrowstyle": "-", "color": "0.7", "lw": 0.6, "shrinkA": 1, "shrinkB": 3, "relpos": (0, 0.5)}
        place = {"xytext": (1.06, height), "textcoords": "axes fraction", "va": "center"}
        _label(axes, point, **place, arrowprops=line, zorder=0)


def apart(wanted: Sequence[float], gap: float) -> list[float]:
    """Return places near the ascending ones that are wanted, at least a gap from each other, from 0 to 1.

    There must be room for all of them.
    """
    places = list(wanted)
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + gap)
    limit = 1.0
    for i in range(len(places) - 1, -1, -1):  # what was pushed above 1 pushes the others down
        places[i] = min(places[i], limit)
        limit = places[i] - gap
    return places
