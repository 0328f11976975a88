"""Figures of the differences between points and the random encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raysweep.report.drawing import Figure, add_legend, own_style
from raysweep.report.figures import BELOW, COLOURS, MARKERS, dodge, legend_columns, scale_axis
from raysweep.report.heatmaps import headed, is_numeric, title
from raysweep.report.points import PERCENT, Point
from raysweep.report.statistics import Difference
from raysweep.report.verdicts import Group
from raysweep.space import Sweep

MOST_LINES = 10
CONTROL = "random"


@own_style()
def draw_differences(sweep: Sweep, groups: Sequence[Group], scores: Sequence[str], name: str) -> Figure | None:
    """Draw the differences between points and the random encoder against one setting, with adjusted intervals.

    There is a panel for each score and a line for each combination of the other searched settings.

    Args:
        sweep: the sweep.
        groups: the verdicts about its points.
        scores: the metrics, all of them accuracies.
        name: the setting along the x axis.

    Returns:
        The figure; None if fewer than two values of the setting have an interval, or if there are more than
        `MOST_LINES` lines.
    """
    rows = [
        (point, {score: group.families[score].from_control(point, CONTROL) for score in scores})
        for group in groups
        for point in group.points
        if name in point.varied
    ]
    rows = [(point, by_score) for point, by_score in rows if any(d and d.low is not None for d in by_score.values())]
    values = list(dict.fromkeys(point.varied[name] for point, _ in rows))
    lines: dict[str, list[tuple[Point, dict[str, Difference | None]]]] = {}
    for point, by_score in rows:
        others = ", ".join(f"{key} = {value}" for key, value in point.varied.items() if key != name)
        lines.setdefault(others, []).append((point, by_score))
    if len(values) < 2 or not scores or len(lines) > MOST_LINES:
        return None
    numeric = is_numeric(values)
    values = sorted(values) if numeric else values
    span = float(values[-1] - values[0]) if numeric else len(values) - 1.0
    width = 4.2 * len(scores)
    figure = Figure(figsize=(width, 4.0 + 0.18 * len(lines)), layout="constrained")
    for axes, score in zip(figure.subplots(1, len(scores), squeeze=False)[0], scores, strict=True):
        scale_axis(axes, name, values, numeric)
        axes.axhline(0, color="0.4", linestyle="--", linewidth=1)
        for place, (label, members) in enumerate(lines.items()):
            drawn = [(point, d) for point, by_score in members if (d := by_score[score]) is not None]
            drawn.sort(key=lambda pair: values.index(pair[0].varied[name]))
            positions: list[Any] = [p.varied[name] if numeric else values.index(p.varied[name]) for p, _ in drawn]
            positions = dodge(positions, place - (len(lines) - 1) / 2, axes.get_xscale(), len(lines), span)
            draw_line(axes, positions, [difference for _, difference in drawn], label, place, joined=numeric)
        axes.set_title(title(score), fontsize=10)
        axes.set_ylabel("difference of accuracy")
        axes.grid(alpha=0.25)
    words = f"minus the random encoder, mean over seeds; bars: adjusted {PERCENT} intervals"
    figure.suptitle(headed(sweep.name, words), fontsize=11)
    entries = {
        label: handle for handle, label in zip(*figure.axes[0].get_legend_handles_labels(), strict=True) if label
    }
    if len(lines) > 1:
        add_legend(figure, entries, ncols=legend_columns(entries, width), **BELOW)
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
