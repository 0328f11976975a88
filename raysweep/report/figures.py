"""The figure of the scores against one setting."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from raysweep.report.control_styles import DASHES, TINTS, in_order, label_of
from raysweep.report.drawing import Figure, add_legend, own_style, panel_grid, panels_in_a_row
from raysweep.report.heatmaps import headed, is_numeric, kind_of_metric, title
from raysweep.report.marks import (
    BELOW,
    COLOURS,
    MARKERS,
    MOST_ENTRIES,
    add_seeds,
    clip,
    dodge,
    legend_columns,
    scale_axis,
    seeds_and_bars,
    wrapped_lines,
)
from raysweep.report.points import LEAST_SEEDS, Point, divisor_of, mean_of, shown_scores
from raysweep.report.ranking import rank_points
from raysweep.space import Sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Lines = Mapping[str, Sequence[Point]]
"""The points of each line, by the line's label."""
MOST_NAMED_CONTROLS = 3
"""With more controls than this, the legend has one entry for each kind of control."""


@own_style()
def draw(sweep: Sweep, points: Sequence[Point], name: str) -> Figure | None:
    """Draw the scores against one setting: mean and interval over seeds, with a dot for each seed.

    There is a panel for each score and a line for each combination of the other searched settings. If there are more
    lines than a legend can name, only the lines with the best points are drawn, and the figure says so. A control is a
    horizontal line with its interval as a band, or a line if it varies with the setting.

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
    values = sorted(values) if numeric else values
    baselines = in_order(point for point in points if point.baseline)
    names = {point.name: label_of(point.control, point.name) for point in baselines}
    if len(names) > MOST_NAMED_CONTROLS:
        names = {point.name: label_of(point.control) for point in baselines}
    every = lines_of([point for point in points if not point.baseline], name, values)
    lines, words = best_lines(sweep, every, MOST_ENTRIES - len(set(names.values())))
    labels = [*(lines if len(lines) > 1 else ()), *names.values()]
    width = 4.2 * panels_in_a_row(len(scores))
    columns = legend_columns(labels, width) if labels else 1
    rows = math.ceil(sum(len(wrapped_lines(label)) for label in labels) / columns)
    figure, panels = panel_grid(len(scores), (4.2, 3.6), margin=(0, 0.4 + 0.18 * rows))
    for axes, score in zip(panels, scores, strict=True):
        scale_axis(axes, name, values, numeric)
        places = {value: float(value) if numeric else float(n) for n, value in enumerate(values)}
        for place, (label, line) in enumerate(lines.items()):
            positions = dodge(
                axes, [places[point.varied[name]] for point in line], place, len(lines), list(places.values())
            )
            draw_line(axes, positions, line, score, label, place, joined=numeric)
        draw_controls(axes, name, score, lines, [(point, names[point.name]) for point in baselines], places)
        axes.set_title(title(score), fontsize=10)
        axes.set_ylabel(kind_of_metric(score))
        clip(axes, score)
        axes.grid(alpha=0.25)
    figure.suptitle(headed(sweep.name, seeds_and_bars(points) + words), fontsize=11)
    entries = {label: handle for handle, label in zip(*figure.axes[0].get_legend_handles_labels(), strict=True)}
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


def draw_controls(
    axes: Axes, name: str, score: str, lines: Lines, controls: Sequence[tuple[Point, str]], places: Mapping[Any, float]
) -> None:
    """Draw the controls: as horizontal lines with bands, or as lines where they vary with the setting `name`.

    Args:
        axes: The axes.
        name: The setting along the x axis.
        score: The metric.
        lines: The lines of the points.
        controls: Each control with its label.
        places: The position of each value of the setting on the x axis.
    """
    for point, label in controls:
        if name not in point.varied:
            index = next((n for n, line in enumerate(lines.values()) if belongs(point, line[0], name)), None)
            is_of_one_line = len(lines) > 1 and index is not None and point.varied
            colour = COLOURS[(index or 0) % len(COLOURS)] if is_of_one_line else TINTS[point.control]
            draw_baseline(axes, point, score, colour, label)
    swept = [(point, label) for point, label in controls if name in point.varied and point.varied[name] in places]
    for control, line in itertools.product(dict.fromkeys(point.control for point, _ in swept), lines.values()):
        matching = [(p, label) for p, label in swept if p.control == control and belongs(p, line[0], name)]
        matching.sort(key=lambda pair: places[pair[0].varied[name]])
        means = [mean_of(point, score) if point.values(score) else math.nan for point, _ in matching]
        axes.plot(
            [places[point.varied[name]] for point, _ in matching],
            means,
            "s",
            linestyle=DASHES[control],
            color=TINTS[control],
            markersize=4,
            linewidth=1,
            label=label_of(control),
        )


def draw_baseline(axes: Axes, point: Point, score: str, colour: str, label: str) -> None:
    """Draw a control: its mean as a horizontal line, its interval as a band."""
    value = point.estimate(score)
    if value is None:
        return
    axes.axhline(value.mean, color=colour, linestyle=DASHES[point.control], linewidth=1, label=label)
    if value.low is not None and value.high is not None and value.n >= LEAST_SEEDS:
        axes.axhspan(value.low, value.high, color=colour, alpha=0.15, linewidth=0)


def belongs(baseline: Point, point: Point, name: str) -> bool:
    """Return whether a control has the same searched settings as the line of a point, except `name`, the x axis."""
    return all(point.varied.get(key) == value for key, value in baseline.varied.items() if key != name)
