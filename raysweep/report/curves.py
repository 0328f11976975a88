"""The figure of one metric against the step, a line for each trial."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from raysweep.report.drawing import Figure, add_legend, own_style
from raysweep.report.heatmaps import headed
from raysweep.report.marks import BELOW, COLOURS, MOST_ENTRIES, legend_columns

if TYPE_CHECKING:
    from matplotlib.artist import Artist

STYLES = ("-", "--")


@own_style()
def draw_curves(title: str, metric: str, curves: Mapping[tuple[str, str], Mapping[int, float]]) -> Figure:
    """Draw the metric of every trial against the step; trials of one point share colour and style.

    Args:
        title: The name of the sweep or sweeps.
        metric: The metric's name.
        curves: The values by step, for each pair of point and trial. At least one pair has values.
    """
    points = list(dict.fromkeys(point for point, _ in curves))
    width = 6.4
    named = len(points) <= MOST_ENTRIES  # with more, colours and line styles would repeat
    figure = Figure(figsize=(width, 4.0 + (0.18 * len(points) if named else 0)), layout="constrained")
    axes = figure.subplots()
    entries: dict[str, Artist] = {}
    for (point, _), values in curves.items():
        place = points.index(point)
        style: dict[str, Any] = {
            "color": COLOURS[place % len(COLOURS)],
            "linestyle": STYLES[place // len(COLOURS) % len(STYLES)],
        }
        steps = sorted(values)
        marker = "o" if len(steps) == 1 else ""
        (line,) = axes.plot(steps, [values[step] for step in steps], linewidth=1.2, marker=marker, **style)
        entries.setdefault(point, line)
    axes.set_xlabel("step")
    axes.set_ylabel(metric)
    axes.grid(alpha=0.25)
    figure.suptitle(headed(title, f"{metric}, a line for each trial"), fontsize=11)
    if named:
        add_legend(figure, entries, ncols=legend_columns(entries, width), **BELOW)
    return figure
