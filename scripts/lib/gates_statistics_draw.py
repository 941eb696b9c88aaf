"""Pictures of the statistics of gates: by class for some channels, and by depth."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from scripts.lib.gates_draw import entitle, numbers, scale_of
from scripts.lib.gates_statistics import HIGH, LOW, Collected, Statistics
from utils.common.text import drawable

_CHANNELS = 50  # that are drawn of each gate, evenly spaced, as in the SENet paper
_ROW = 2.3  # inches


def draw_classes(shown: Sequence[Statistics], collected: Collected, kinds: Sequence[int], title: str) -> Any:
    """Draw the mean gate of some channels, a panel for each gate and a line for each class.

    Args:
        shown: the gates.
        collected: all of the network's.
        kinds: the labels of the classes.
        title: of the figure.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, _ROW * len(shown) + 0.9), layout="constrained")
    entitle(figure, title)
    panels = figure.subplots(len(shown), 1, squeeze=False)[:, 0]
    for axes, one in zip(panels, shown, strict=True):
        count = len(one.means(None))
        channels = np.unique(np.linspace(0, count - 1, min(count, _CHANNELS)).round().astype(int))
        places = np.arange(len(channels))
        mean, deviation = (values.numpy()[channels] for values in (one.means(None), one.deviations(None)))
        band = {"color": "0.6", "alpha": 0.3, "lw": 0, "label": "all images, ± standard deviation"}
        axes.fill_between(places, mean - deviation, mean + deviation, **band)
        axes.plot(places, mean, color="black", lw=1.6, label="all images")
        drawn = [mean - deviation, mean + deviation]
        for number, kind in enumerate(kinds):
            values = one.means(kind).numpy()[channels]
            name = drawable(collected.classes[kind])
            axes.plot(places, values, color=colormaps["tab10"](number), lw=1.1, label=name)
            drawn.append(values)
        low, high = float(np.min(drawn)), float(np.max(drawn))
        start, end = scale_of(low, high, one.gate.seen.bounded)
        room = 0.04 * (end - start)
        axes.set_ylim(start - room, end + room)
        axes.set_xlim(-0.5, len(channels) - 0.5)
        least, most = numbers(float(one.least.min()), float(one.most.max()))
        what = _called(one)
        axes.set_title(f"{what}; all values from {least} to {most}", fontsize=8, loc="left", parse_math=False)
        part = "channel" if one.gate.values.dim() == 2 else one.gate.seen.part
        axes.set_ylabel("mean over images", fontsize=8)
        some = (
            f"{len(channels)} of {count} {part}s, evenly spaced"
            if len(channels) < count
            else f"{count} {part}s"
        )
        axes.set_xlabel(some, fontsize=8)
        _finish(axes)
    handles, labels = panels[0].get_legend_handles_labels()
    legend = figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def _called(one: Statistics) -> str:
    gate = one.gate
    place = f" ({gate.place})" if gate.place else ""
    return f"stage {gate.stage}: {gate.module}{place}, {gate.seen.title}"


def draw_depth(collected: Collected, title: str) -> Any:
    """Draw mean and spreads, saturation and variance between classes of all gates in their order."""
    from matplotlib.figure import Figure

    gates = list(collected.gates.values())
    names = [
        one.gate.module if _alone(one, gates) else f"{one.gate.module}\n{one.gate.seen.title}"
        for one in gates
    ]
    places, summaries = np.arange(len(gates)), [one.summary() for one in gates]
    figure = Figure(figsize=(max(7.0, 2 + 0.42 * len(gates)), 8.5), layout="constrained")
    entitle(figure, title)
    above, middle, below = figure.subplots(3, 1, sharex=True)
    _draw_means(above, places, summaries)
    if any(one.gate.seen.bounded for one in gates):
        shares = [[100 * (one[at] or 0.0) for one in summaries] for at in (5, 6)]
        middle.bar(places, shares[0], color="tab:blue", width=0.6, label=f"below {LOW}")
        middle.bar(places, shares[1], bottom=shares[0], color="tab:orange", width=0.6, label=f"above {HIGH}")
        middle.set_ylim(0, max(5.0, 1.1 * max(map(sum, zip(*shares, strict=True)))))
        middle.legend(fontsize=8, frameon=False)
        if not any(map(any, shares)):
            middle.text(0.02, 0.85, "no value is saturated", fontsize=8, transform=middle.transAxes)
    middle.set_ylabel("saturated values (%)", fontsize=8)
    between = [one.between_classes() for one in gates]
    below.bar(places, [100 * (value or 0.0) for value in between], color="tab:green", width=0.6)
    below.set_ylim(min(0.0, *(110 * (value or 0.0) for value in between)), 100)
    if all(value is None for value in between):
        text = "no share: no gate's mean over positions varies over images, or there is one class"
        below.text(0.02, 0.85, text, fontsize=8, transform=below.transAxes)
    below.set_ylabel("variance over images that\nlies between classes (%)", fontsize=8)
    below.set_xticks(places, names, rotation=90, fontsize=7)
    for axes in (above, middle, below):
        _finish(axes)
    return figure


def _draw_means(axes: Any, places: np.ndarray, summaries: Sequence[Any]) -> None:
    """Draw the mean of every gate with three spreads side by side."""
    means = [one.mean for one in summaries]
    axes.plot(places, means, "k.", ms=7, label="mean")
    kinds = (("of channels", "tab:blue"), ("of images", "tab:orange"), ("of positions", "tab:green"))
    for number, (name, colour) in enumerate(kinds):
        spreads = [one[2 + number] for one in summaries]
        if any(spreads):
            at = places + 0.18 * (number - 1)
            axes.errorbar(at, means, spreads, fmt="none", ecolor=colour, lw=2, label=f"± spread {name}")
    axes.set_ylabel("gate", fontsize=8)
    axes.legend(fontsize=8, frameon=False, ncols=4, loc="lower left", bbox_to_anchor=(0, 1.0))


def _alone(one: Statistics, gates: Sequence[Statistics]) -> bool:
    return sum(other.gate.module == one.gate.module for other in gates) == 1


def _finish(axes: Any) -> None:
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
