"""Figures of the differences between points and the random encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raysweep.report.drawing import Figure, add_legend, own_style, panel_grid
from raysweep.report.figures import best_lines, lines_of
from raysweep.report.heatmaps import headed, in_order_of_size, is_numeric, title
from raysweep.report.marks import (
    BELOW,
    COLOURS,
    MARKERS,
    MOST_ENTRIES,
    SIDE_BY_SIDE,
    legend_columns,
    scale_axis,
    side_by_side,
    tick_at,
)
from raysweep.report.points import percent
from raysweep.report.statistics import Difference
from raysweep.report.verdicts import Group
from raysweep.space import Sweep

CONTROL = "random"


@own_style()
def draw_differences(sweep: Sweep, groups: Sequence[Group], scores: Sequence[str], name: str) -> Figure | None:
    """Draw the differences between points and the random encoder against one setting, with adjusted intervals.

    There is a panel for each score and a line for each combination of the other searched settings, or for the best
    combinations if a legend cannot name all.

    Args:
        sweep: The sweep.
        groups: The verdicts about its points.
        scores: The metrics, all of them accuracies.
        name: The setting along the x axis.

    Returns:
        The figure; None if fewer than two values of the setting have an interval.
    """
    by_point = {
        point.title: {score: group.families[score].from_control(point, CONTROL) for score in scores}
        for group in groups
        for point in group.points
        if name in point.varied
    }
    points = [
        point
        for group in groups
        for point in group.points
        if any(each is not None and each.low is not None for each in by_point.get(point.title, {}).values())
    ]
    values = list(dict.fromkeys(point.varied[name] for point in points))
    if len(values) < 2 or not scores:
        return None
    numeric = is_numeric(values)
    values = in_order_of_size(values)
    lines, kept = best_lines(sweep, lines_of(points, name, values), MOST_ENTRIES)
    figure, panels = panel_grid(len(scores), (4.2, 3.6), margin=(0, 0.4 + 0.18 * len(lines)))
    is_moved = False
    for axes, score in zip(panels, scores, strict=True):
        scale_axis(axes, name, values, numeric)
        if numeric:
            tick_at(axes, values)
        places = {value: float(value) if numeric else float(n) for n, value in enumerate(values)}
        axes.axhline(0, color="0.4", linestyle="--", linewidth=1)
        drawn = [[point for point in line if by_point[point.title][score] is not None] for line in lines.values()]
        every = [[places[point.varied[name]] for point in line] for line in drawn]
        positions = side_by_side(axes, every)
        is_moved = is_moved or positions != every
        for place, (label, line) in enumerate(zip(lines, drawn, strict=True)):
            differences = [each for point in line if (each := by_point[point.title][score]) is not None]
            draw_line(axes, positions[place], differences, label, place, joined=numeric)
        axes.set_title(title(score), fontsize=10)
        axes.set_ylabel("difference of accuracy")
        axes.grid(alpha=0.25)
    words = f"minus the random encoder, mean over seeds; bars: adjusted {percent(points)} intervals"
    figure.suptitle(headed(sweep.name, words + kept + (SIDE_BY_SIDE if is_moved else "")), fontsize=11)
    entries = {
        label: handle for handle, label in zip(*figure.axes[0].get_legend_handles_labels(), strict=True) if label
    }
    if len(lines) > 1:
        add_legend(figure, entries, ncols=legend_columns(entries, figure.get_figwidth()), **BELOW)
    return figure


def draw_line(
    axes: Any, positions: Sequence[Any], differences: Sequence[Difference], label: str, place: int, joined: bool
) -> None:
    """Draw the differences of one line with their intervals. `place`, its index among the lines, gives its style."""
    colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
    means = [difference.mean for difference in differences]
    style = "-" if joined else ""
    axes.plot(positions, means, linestyle=style, color=colour, marker=marker, markersize=4, label=label)
    for x, difference in zip(positions, differences, strict=True):
        if difference.mean is not None and difference.high is not None:
            half = difference.high - difference.mean
            axes.errorbar(x, difference.mean, yerr=half, color=colour, capsize=3, linewidth=1.2)
