"""The figure of the scores against one setting."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from raysweep.report.control_styles import DASHES, TINTS, in_order, label_of
from raysweep.report.drawing import Figure, Line2D, add_legend, own_style, panel_grid, panels_in_a_row
from raysweep.report.heatmaps import headed, in_order_of_size, is_numeric, kind_of_metric, title
from raysweep.report.marks import (
    BELOW,
    COLOURS,
    MARKERS,
    MOST_ENTRIES,
    SIDE_BY_SIDE,
    add_seeds,
    clip,
    legend_columns,
    scale_axis,
    seeds_and_bars,
    side_by_side,
    tick_at,
    wrapped_lines,
)
from raysweep.report.points import LEAST_SEEDS, Point, divisor_of, shown_scores
from raysweep.report.ranking import rank_points
from raysweep.space import Sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Lines = Mapping[str, Sequence[Point]]
"""The points of each line, by the line's label."""
MOST_NAMED_CONTROLS = 3
"""With more lines of controls than this, the legend has one entry for each kind of control."""


@dataclass(frozen=True)
class ControlLine:
    """The line of a control in the figure of one setting."""

    points: Sequence[Point]
    """Its points: one, or one for each value of the setting if the control varies with it."""
    label: str
    colour: str
    swept: bool
    """Whether the control varies with the setting. If not, it is a horizontal line."""

    @property
    def control(self) -> str:
        """The kind of control."""
        return self.points[0].control


@own_style()
def draw(sweep: Sweep, points: Sequence[Point], name: str) -> Figure | None:
    """Draw the scores against one setting: mean and interval over seeds, with a dot for each seed.

    There is a panel for each score and a line for each combination of the other searched settings. If there are more
    lines than a legend can name, only the lines with the best points are drawn, and the figure says so. A control is a
    horizontal line with its interval as a band, or a line of its own with bars if it varies with the setting.

    Args:
        sweep: The sweep.
        points: Its points and controls.
        name: The setting along the x axis. Values that are not all numbers are drawn at equal distances.

    Returns:
        The figure; None if fewer than two values of the setting have results.
    """
    points = [point for point in points if point.baseline or name in point.varied]
    values = list(dict.fromkeys(point.varied[name] for point in points if not point.baseline))
    scores = shown_scores(points)
    if len(values) < 2 or not scores:
        return None
    numeric = is_numeric(values)
    values = in_order_of_size(values)
    baselines = [point for point in points if point.baseline and point.varied.get(name, values[0]) in values]
    baselines = in_order(sorted(baselines, key=lambda point: values.index(point.varied.get(name, values[0]))))
    every = lines_of([point for point in points if not point.baseline], name, values)
    entries_of_controls = {control.label for control in control_lines(name, every, baselines)}
    lines, words = best_lines(sweep, every, MOST_ENTRIES - len(entries_of_controls))
    absent = [line for label, line in every.items() if label not in lines]
    baselines = [point for point in baselines if has_line(point, lines.values(), name)
                 or not has_line(point, absent, name)]  # fmt: skip
    controls = control_lines(name, lines, baselines)
    labels = list(dict.fromkeys([*(lines if len(lines) > 1 else ()), *(control.label for control in controls)]))
    width = 4.2 * panels_in_a_row(len(scores))
    columns = legend_columns(labels, width) if labels else 1
    rows = math.ceil(sum(len(wrapped_lines(label)) for label in labels) / columns)
    figure, panels = panel_grid(len(scores), (4.2, 3.6), margin=(0, 0.4 + 0.18 * rows))
    for axes, score in zip(panels, scores, strict=True):
        scale_axis(axes, name, values, numeric)
        places = {value: float(value) if numeric else float(n) for n, value in enumerate(values)}
        swept = [control for control in controls if control.swept]
        drawn = [[places[p.varied[name]] for p in line] for line in (*lines.values(), *(c.points for c in swept))]
        positions = side_by_side(axes, drawn)
        if numeric:
            tick_at(axes, values)
        for place, (label, line) in enumerate(lines.items()):
            draw_line(axes, positions[place], line, score, label, place, joined=numeric)
        for control in controls:
            if not control.swept:
                draw_baseline(axes, control.points[0], score, control.colour, control.label)
        for control, moved in zip(swept, positions[len(lines) :], strict=True):
            draw_swept(axes, control, score, moved, joined=numeric)
        axes.set_title(title(score), fontsize=10)
        axes.set_ylabel(kind_of_metric(score))
        clip(axes, score)
        axes.grid(alpha=0.25)
    marks = "bars" if all(control.swept for control in controls) else "bars and bands"
    words += SIDE_BY_SIDE if positions != drawn else ""
    figure.suptitle(headed(sweep.name, seeds_and_bars(points, marks) + words), fontsize=11)
    entries = {label: handle for handle, label in zip(*figure.axes[0].get_legend_handles_labels(), strict=True)}
    for control in controls:
        if len({other.colour for other in controls if other.label == control.label}) > 1:
            style = control_style(control.control, numeric) if control.swept else {"linestyle": DASHES[control.control]}
            entries[control.label] = Line2D([], [], color=TINTS[control.control], **style)
    shown = {label: entries[label] for label in labels if label in entries}
    if shown:
        add_legend(figure, shown, ncols=columns, **BELOW)
    return figure


def lines_of(points: Sequence[Point], name: str, values: Sequence[Any]) -> dict[str, list[Point]]:
    """Return the points of each line by its label: the values of the other searched settings.

    The points of a line are in the order of `values`, which are the values of the setting `name`.
    """
    lines: dict[str, list[Point]] = {}
    for point in points:
        others = {key: value for key, value in point.varied.items() if key != name}
        lines.setdefault(", ".join(f"{key} = {shown(value)}" for key, value in others.items()), []).append(point)
    for line in lines.values():
        line.sort(key=lambda point: values.index(point.varied[name]))
    # The label of points that vary in no other setting is empty.
    empty = points[0].settings.usl_type if len(lines) == 1 else f"only {name}"
    return {label or empty: line for label, line in lines.items()}


def shown(value: Any) -> str:
    """Return a value for a legend, a number with at most four digits."""
    return f"{value:.4g}" if isinstance(value, float) else f"{value}"


def best_lines(sweep: Sweep, lines: Lines, most: int) -> tuple[dict[str, Sequence[Point]], str]:
    """Return at most `most` lines, the ones with the best points by the sweep's metric, and words that say so."""
    if len(lines) <= most:
        return dict(lines), ""
    ranked = [point.title for group in rank_points(list(itertools.chain(*lines.values())), sweep.metric, sweep.mode)
              for point in group]  # fmt: skip
    places = {label: min([ranked.index(p.title) for p in line if p.title in ranked], default=len(ranked))
              for label, line in lines.items()}  # fmt: skip
    kept = sorted(lines, key=lambda label: places[label])[:most]
    words = f"\nthe {most} of {len(lines)} lines with the best points by {sweep.metric}" if ranked else (
        f"\nthe first {most} of {len(lines)} lines"
    )  # fmt: skip
    return {label: line for label, line in lines.items() if label in kept}, words


def draw_line(
    axes: Axes, positions: Sequence[float], line: Sequence[Point], score: str, label: str, place: int, joined: bool
) -> None:
    """Draw mean, interval and seeds of a line's points. `place`, its index among the lines, gives its style."""
    colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
    scores = [(x, point.values(score)) for x, point in zip(positions, line, strict=True) if point.values(score)]
    means = [float(np.mean(values)) for _, values in scores]
    style = "-" if joined else ""
    axes.plot([x for x, _ in scores], means, linestyle=style, color=colour, marker=marker, markersize=4, label=label)
    for x, values in scores:
        add_seeds(axes, x, values, colour, divisor_of(line))


def control_lines(name: str, lines: Lines, controls: Sequence[Point]) -> list[ControlLine]:
    """Return the lines of the controls. The control points of a line differ only in the setting `name`.

    A control that only some lines of points share has the colour of the first of these lines.

    Args:
        name: The setting along the x axis.
        lines: The lines of the points.
        controls: The controls, in the order of the legend.
    """
    grouped: dict[tuple[Any, ...], list[Point]] = {}
    for point in controls:
        others = [(key, repr(value)) for key, value in point.varied.items() if key != name]
        grouped.setdefault((point.control, name in point.varied, *others), []).append(point)
    drawn = []
    for first, *more in grouped.values():
        owners = [number for number, line in enumerate(lines.values()) if has_line(first, [line], name)]
        words = ",".join([first.control, *(f"{key}={each}" for key, each in first.varied.items() if key != name)])
        colour = COLOURS[owners[0] % len(COLOURS)] if 0 < len(owners) < len(lines) else TINTS[first.control]
        drawn.append(ControlLine([first, *more], label_of(first.control, words), colour, name in first.varied))
    counts = Counter(line.control for line in drawn)
    kinds = {control: label_of(control) for control in counts if counts[control] == 1}
    if len(drawn) > MOST_NAMED_CONTROLS:
        kinds |= {control: f"{label_of(control)} (colour: the line of its points)" for control in counts.keys() - kinds}
    return [replace(line, label=kinds.get(line.control, line.label)) for line in drawn]


def control_style(control: str, joined: bool) -> dict[str, Any]:
    """Return the style of a control that varies with the setting along the x axis. No line of points has its marker."""
    marker = {"marker": "s", "markersize": 5, "markerfacecolor": "white"}
    return {"linestyle": DASHES[control] if joined else "", "linewidth": 1, **marker}


def draw_swept(axes: Axes, control: ControlLine, score: str, positions: Sequence[float], joined: bool) -> None:
    """Draw a control that varies with the setting along the x axis: mean, interval and seeds of each of its points."""
    scores = [(x, p.values(score)) for x, p in zip(positions, control.points, strict=True) if p.values(score)]
    style = control_style(control.control, joined)
    means = [float(np.mean(values)) for _, values in scores]
    axes.plot([x for x, _ in scores], means, color=control.colour, label=control.label, **style)
    for x, values in scores:
        add_seeds(axes, x, values, control.colour, divisor_of(control.points))


def draw_baseline(axes: Axes, point: Point, score: str, colour: str, label: str) -> None:
    """Draw a control: its mean as a horizontal line, its interval as a band."""
    value = point.estimate(score)
    if value is None:
        return
    axes.axhline(value.mean, color=colour, linestyle=DASHES[point.control], linewidth=1, label=label)
    if value.low is not None and value.high is not None and value.n >= LEAST_SEEDS:
        axes.axhspan(value.low, value.high, color=colour, alpha=0.15, linewidth=0)


def has_line(control: Point, lines: Iterable[Sequence[Point]], name: str) -> bool:
    """Return whether a control has the searched settings of any of the lines, except `name`, the x axis."""
    others = {key: value for key, value in control.varied.items() if key != name}
    return any(all(line[0].varied.get(key) == value for key, value in others.items()) for line in lines)
