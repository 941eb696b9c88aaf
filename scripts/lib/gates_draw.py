"""The picture of a network's gates on one image: a row for every module."""

import math
import textwrap
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scripts.lib.gates_record import Gate, Octave

_GROUPS = 3  # groups whose maps are drawn beside the mean: those that vary most
_ROW, _SIDE = 2.4, 2.6  # inches: height of a row, width of the image
_COLOURS = "viridis"
_LETTERS = 11  # of a title that fit into an inch
# Least range of the colours: of a gate from 0 to 1 absolute, of others as a share of the largest value.
_LEAST = 0.1


def draw(
    image: Tensor, shown: Sequence[Gate] | Sequence[Octave], title: str, text: str, by_size: bool = False
) -> Any:
    """Draw a matplotlib figure.

    Args:
        image: the network's input before normalisation, (3, H, W) in [0, 1].
        shown: what was recorded for this image (a batch of one), in the order of the network.
        title: of the figure.
        text: below the image.
        by_size: whether to sort the channels by their gate, the largest first.
    """
    from matplotlib.figure import Figure

    rows = [list(of) for _, of in groupby(shown, lambda one: one.module)]
    figure = Figure(figsize=(13, max(2 * _ROW, _ROW * len(rows)) + 0.4), layout="constrained")
    entitle(figure, title)
    halves: Any = figure.subfigures(1, 2, width_ratios=(_SIDE, 13 - _SIDE))
    left, right = halves
    _draw_image(left, image, text, len(rows))
    grey = image.mean(0).numpy()
    for part, row in zip(np.atleast_1d(right.subfigures(len(rows), 1)), rows, strict=True):
        _draw_row(part, row, grey, by_size)
    return figure


def entitle(figure: Any, title: str) -> None:
    """Write the title in as many lines as it takes: it may hold the long path of a checkpoint."""
    lines = textwrap.wrap(title, round(_LETTERS * figure.get_figwidth()))
    figure.suptitle("\n".join(lines), fontsize=10, parse_math=False)


def _draw_image(part: Any, image: Tensor, text: str, rows: int) -> None:
    above, below, *rest = part.subplots(max(2, rows), 1)
    above.imshow(image.permute(1, 2, 0).numpy())
    above.set_title(f"input, {image.shape[2]} x {image.shape[1]} px", fontsize=9)
    below.text(0, 1, text, va="top", fontsize=9, transform=below.transAxes, parse_math=False)
    for axes in (above, below, *rest):
        axes.axis("off")


def _draw_row(part: Any, row: Sequence[Any], grey: np.ndarray, by_size: bool) -> None:
    first = row[0]
    if isinstance(first, Octave):
        _draw_octave(part, first, grey)
        return
    where = f" ({first.place})" if first.place else ""
    title = f"stage {first.stage}: {first.module}{where}, {first.formula}"
    part.suptitle(title, fontsize=9, x=0.01, ha="left", weight="bold")
    maps = [one for gate in row for one in maps_of(gate)]
    bars = [gate for gate in row if gate.values.dim() == 2]
    widths = [2] * len(maps) + [max(3, 7 - 2 * len(maps))] * len(bars)
    panels = part.subplots(1, len(widths), squeeze=False, width_ratios=widths)[0]
    for axes, (title, values) in zip(panels, maps, strict=False):
        _draw_map(part, axes, title, values, grey, first.seen.bounded)
    for axes, gate in zip(panels[len(maps) :], bars, strict=True):
        _draw_bars(axes, gate, by_size, fontsize=9 if len(bars) == 1 else 8)


def maps_of(gate: Gate) -> list[tuple[str, np.ndarray]]:
    """Return the titles and maps (H, W) of a spatial gate: the mean and those that vary most."""
    if gate.values.dim() == 2:
        return []
    maps, title, what = gate.values[0].float(), gate.seen.title, gate.seen.part
    if len(maps) == 1:
        return [(title, maps[0].numpy())]
    spread = maps.flatten(1).amax(1) - maps.flatten(1).amin(1)
    most = torch.argsort(spread, descending=True, stable=True)[:_GROUPS].tolist()
    mean = (f"mean of {len(maps)} {what}s", maps.mean(0).numpy())
    return [mean, *((f"{what} {one}", maps[one].numpy()) for one in most)]


def bars_of(gate: Gate, by_size: bool) -> np.ndarray:
    """Return the values (C,) of a channel gate in the order in which they are drawn."""
    values = gate.values[0].float().numpy()
    return np.sort(values)[::-1] if by_size else values


def _draw_bars(axes: Any, gate: Gate, by_size: bool, fontsize: int) -> None:
    values = bars_of(gate, by_size)
    axes.stairs(values, fill=True, color="tab:blue", baseline=0)
    axes.axhline(values.mean(), color="0.2", lw=0.8, ls=":")
    axes.set_xlim(0, len(values))
    if gate.seen.bounded:
        axes.set_ylim(0, 1)
    low, mean, high = numbers(values.min(), values.mean(), values.max())
    axes.set_title(f"{gate.seen.title}: {low} to {high}, mean {mean} (dotted)", fontsize=fontsize)
    axes.set_xlabel(f"{len(values)} channels{', sorted' if by_size else ''}", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def scale_of(low: float, high: float, bounded: bool) -> tuple[float, float]:
    """Return the range of the colours for values from ``low`` to ``high``: theirs, widened if it is small.

    Otherwise a gate from 0.7310 to 0.7312 would look like a strong pattern.
    """
    least = _LEAST if bounded else max(_LEAST * max(abs(low), abs(high)), 1e-9)
    if high - low >= least:
        return low, high
    start = (low + high - least) / 2
    start = min(max(start, 0.0), 1 - least) if bounded else start
    return start, start + least


def _draw_map(
    part: Any, axes: Any, title: str, values: np.ndarray, grey: np.ndarray, bounded: bool = False
) -> None:
    """Draw a map over the image."""
    height, width = grey.shape
    low, high = float(values.min()), float(values.max())
    start, end = scale_of(low, high, bounded)
    axes.imshow(grey, cmap="gray", vmin=0, vmax=1)
    colours = axes.imshow(
        values,
        cmap=_COLOURS,
        alpha=0.6,
        vmin=start,
        vmax=end,
        extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        interpolation="bilinear",
    )
    axes.set_title(f"{title} ({values.shape[1]} x {values.shape[0]})\n{span(values)}", fontsize=8)
    axes.axis("off")
    ticks = [start, (start + end) / 2, end]
    bar = part.colorbar(colours, ax=axes, ticks=ticks, fraction=0.05, pad=0.02)
    bar.set_ticklabels(numbers(*ticks), fontsize=8)
    bar.solids.set_alpha(1)


def span(values: np.ndarray) -> str:
    """Return the range of the values as text, such as ``0.731 to 0.7312``."""
    low, high = numbers(float(values.min()), float(values.max()))
    return f"{low} to {high}" if low != high else f"all {low}"


def ranges_of(shown: Sequence[Gate] | Sequence[Octave]) -> list[str]:
    """Return the numbers of the picture, a line for each gate."""
    lines = []
    for one in shown:
        where = f"stage {one.stage}: {one.module}"
        if isinstance(one, Octave):
            high, low = (100 * one.shares[0]).tolist()
            lines.append(f"{where}, {high:.1f} % of the energy in high frequencies, {low:.1f} % in low ones")
        else:
            values = one.values[0].float().numpy()
            lines.append(f"{where}, {one.seen.title} {span(values)}, mean {numbers(float(values.mean()))[0]}")
    return lines


def numbers(*values: float) -> list[str]:
    """Format numbers with as many digits as tell them apart, at least three.

    A number below a 100,000th of their range is 0.
    """
    spread, size = max(values) - min(values), max(map(abs, values))
    digits = 3 if spread <= 0 else 2 + math.ceil(math.log10(size / spread))
    whole = math.floor(math.log10(size)) + 1 if size > 0 else 1  # digits before the point
    digits = min(7, max(3, digits, whole))
    return [f"{0 if abs(value) < spread / 1e5 else value:.{digits}g}" for value in values]


def _draw_octave(part: Any, octave: Octave, grey: np.ndarray) -> None:
    part.suptitle(f"stage {octave.stage}: {octave.module}", fontsize=9, x=0.01, ha="left", weight="bold")
    high, low, bars = part.subplots(1, 3, width_ratios=(2, 2, 3))
    _draw_map(part, high, f"high frequencies, {octave.channels[0]} channels", octave.high[0].numpy(), grey)
    if octave.low is None:
        low.text(0.5, 0.5, "no low frequencies here", ha="center", va="center", fontsize=9)
        low.axis("off")
    else:
        _draw_map(part, low, f"low, {octave.channels[1]} channels", octave.low[0].numpy(), grey)
    shares = (100 * octave.shares[0]).tolist()
    bars.barh(("high", "low"), shares, color=("tab:orange", "tab:blue"), height=0.5)
    for place, share in enumerate(shares):
        bars.annotate(f"{share:.1f} %", (share, place), (4, 0), textcoords="offset points", va="center")
    bars.set_xlim(0, 118)
    bars.set_xticks(range(0, 101, 25))
    bars.invert_yaxis()
    bars.tick_params(labelsize=8)
    bars.set_title("share of the energy (maps: mean square of the channels)", fontsize=9)
    bars.set_xlabel("% of the sum of squares; a low position counts as four", fontsize=8)
    bars.spines[["top", "right"]].set_visible(False)
