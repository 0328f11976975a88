"""The figure that compares points one below another, for categories and for several sweeps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from raysweep.errors import shortened_value
from raysweep.report.control_styles import DASH_LENGTHS, TINTS, in_order, label_of
from raysweep.report.drawing import Figure, Line2D, add_legend, own_style, panel_grid, wrapped
from raysweep.report.experiments import join_experiments
from raysweep.report.figures import has_line
from raysweep.report.heatmaps import MOST_ROWS, headed, kind_of_metric, title
from raysweep.report.marks import BELOW, COLOURS, MARKERS, dot_style, legend_columns, seeds_and_bars
from raysweep.report.points import LEAST_SEEDS, Estimate, Point, percent, shown_scores
from raysweep.report.ranking import rank_points
from raysweep.report.statistics import Difference
from raysweep.report.verdicts import Group
from raysweep.space import RANDOM

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@own_style()
def draw_comparison(
    name: str, points: Sequence[Point], metric: str | None, mode: str, groups: Sequence[Group] = ()
) -> Figure | None:
    """Draw points one below another: mean, interval and seeds of every score.

    The means of the controls are dashed lines through the rows of their points, unless the points differ in protocol.
    A last panel shows the differences from the random encoder in the first score, with adjusted intervals. If there are
    more than `MOST_ROWS` points, only the best ones by `metric` are drawn, and the figure says so.

    Args:
        name: The name of the sweep or of the comparison.
        points: The points and controls of all sweeps.
        metric: The metric that chooses the best points; None if there is none, then the first points are drawn.
        mode: "max" or "min", whichever is better in the metric.
        groups: The verdicts about the points, which have the differences. Without them the last panel is left out.

    Returns:
        The figure; None if no point has a score.
    """
    scores = shown_scores(points)
    if not scores:
        return None
    sweeps = list(dict.fromkeys(point.sweep for point in points))
    rows, words = most_rows(points, metric, mode)
    from_random = differences_of(groups, scores[0])
    size = (3.4, 1.2 + 0.3 * len(rows))
    figure, panels = panel_grid(len(scores) + bool(from_random), size, margin=(3.2, 0.6), sharey=True)
    for axes, score in zip(panels, scores, strict=False):
        for place, point in enumerate(rows):
            number = sweeps.index(point.sweep)
            colour = COLOURS[number % len(COLOURS)] if point.sweep or not point.baseline else TINTS[point.control]
            marker = MARKERS[number % len(MARKERS)]
            draw_row(axes, place, point.estimate(score), point.values(score), colour, marker)
        if len({point.protocol for point in points}) == 1:
            draw_control_means(axes, rows, score, sweeps)
        axes.set_title(title(score), fontsize=10)
        axes.set_xlabel(kind_of_metric(score))
        if kind_of_metric(score) == "accuracy":
            low, high = axes.get_xlim()
            axes.set_xlim(max(low, -0.02), min(high, 1.02))
        axes.grid(axis="x", alpha=0.25)
    if from_random:
        draw_differences_by_row(panels[-1], rows, from_random, sweeps)
        panels[-1].set_title(f"{title(scores[0])}\nminus the random encoder", fontsize=10)
    panels[0].set_yticks(
        range(len(rows)), [wrapped(shortened_value(row_label(point)), 48) for point in rows], fontsize=8
    )
    panels[0].set_ylim(len(rows) - 0.4, -0.6)
    adjusted = f"\nlast panel: adjusted {percent(points)} intervals" if from_random else ""
    figure.suptitle(headed(name, f"{seeds_and_bars(points, 'bars')}{words}{adjusted}"), fontsize=11)
    if sweeps != [""]:
        entries = legend_of(points, sweeps)
        add_legend(figure, entries, ncols=legend_columns(entries, figure.get_figwidth()), **BELOW)
    return figure


def row_label(point: Point) -> str:
    """Return the name of a point for people. A directory's name has escape sequences in place of some characters."""
    if "%" not in point.name:
        return point.short_name
    values = ", ".join(f"{name}={value}" for name, value in point.varied.items())
    return f"{point.control}, {values}" if point.baseline else values


def most_rows(points: Sequence[Point], metric: str | None, mode: str) -> tuple[list[Point], str]:
    """Return the points of at most `MOST_ROWS` rows with all controls, and words that say which ("" for all)."""
    trained = [point for point in points if not point.baseline]
    if len(trained) <= MOST_ROWS:
        return list(points), ""
    order = [point.title for group in rank_points(join_experiments(points), metric, mode) for point in group]
    place = {title: number for number, title in enumerate(order)}
    competing = [point for point in trained if point.experiment in place]
    ranked = [point.title for point in sorted(competing, key=lambda point: place[point.experiment])]
    kept = set((ranked or [point.title for point in trained])[:MOST_ROWS])
    rows = [point for point in points if point.baseline or point.title in kept]
    return rows, f"; {len(kept)} of {len(trained)} points, {f'the best by mean {metric}' if ranked else 'the first'}"


def draw_row(axes: Axes, place: int, value: Estimate | None, values: Sequence[float], colour: str, marker: str) -> None:
    """Draw mean, interval and seeds of one point at the height `place`. `value` is the mean of `values`."""
    if value is None:
        return
    axes.plot(value.mean, place, marker, color=colour, markersize=6, linestyle="", zorder=2)
    if value.high is not None and value.n >= LEAST_SEEDS:
        axes.errorbar(value.mean, place, xerr=value.high - value.mean, color=colour, capsize=3, linewidth=1.2)
    if value.n > 1:
        axes.plot(values, [place] * value.n, linestyle="", zorder=3, gid="seeds", **dot_style(colour))


def draw_control_means(axes: Axes, points: Sequence[Point], score: str, sweeps: Sequence[str]) -> None:
    """Draw the mean of each control as a line through all rows. Dashes of several sweeps alternate.

    If a sweep has several controls of one kind, such as one for each encoder, the line of each goes only through its
    own row and the rows of points with its settings.
    """
    kinds = Counter((point.sweep, point.control) for point in points if point.baseline)
    for point in points:
        value = point.estimate(score) if point.baseline else None
        if value is not None:
            number, length = sweeps.index(point.sweep), DASH_LENGTHS[point.control]
            dashes: Any = (length * number, (length, length * max(1, len(sweeps) - 1)))
            colour = COLOURS[number % len(COLOURS)] if point.sweep else TINTS[point.control]
            style: dict[str, Any] = {"color": colour, "linestyle": dashes, "linewidth": 1.2, "zorder": 1}
            if kinds[point.sweep, point.control] == 1:
                axes.axvline(value.mean, gid=point.control, **style)
                continue
            for place, row in enumerate(points):
                is_alike = row.sweep == point.sweep and not row.baseline and has_line(point, [[row]], "")
                if row is point or is_alike:
                    axes.plot([value.mean] * 2, [place - 0.5, place + 0.5], gid=point.control, **style)


def differences_of(groups: Sequence[Group], score: str) -> dict[str, Difference]:
    """Return the differences between points and the random encoder that have an interval, by the point's title."""
    every = {
        point.title: group.families[score].from_control(point, RANDOM) for group in groups for point in group.points
    }
    return {title: each for title, each in every.items() if each is not None and each.low is not None}


def draw_differences_by_row(
    axes: Axes, rows: Sequence[Point], from_random: Mapping[str, Difference], sweeps: Sequence[str]
) -> None:
    """Draw the difference of each point from the random encoder, with its adjusted interval."""
    axes.axvline(0, color="0.4", linestyle="--", linewidth=1)
    for place, point in enumerate(rows):
        each = from_random.get(point.title)
        if each is not None and each.mean is not None and each.high is not None:
            number = sweeps.index(point.sweep)
            colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
            axes.plot(each.mean, place, marker, color=colour, markersize=6, linestyle="")
            axes.errorbar(each.mean, place, xerr=each.high - each.mean, color=colour, capsize=3, linewidth=1.2)
    axes.set_xlabel("difference of accuracy")
    axes.grid(axis="x", alpha=0.25)


def legend_of(points: Sequence[Point], sweeps: Sequence[str]) -> dict[str, Line2D]:
    """Return the entries of the legend: a marker for each sweep, and a line for each kind of control."""
    entries = {
        sweep: Line2D([], [], color=COLOURS[n % len(COLOURS)], marker=MARKERS[n % len(MARKERS)], linestyle="")
        for n, sweep in enumerate(sweeps)
    }
    for control in dict.fromkeys(point.control for point in in_order(point for point in points if point.baseline)):
        dashes = (0, (DASH_LENGTHS[control], DASH_LENGTHS[control]))
        entries[f"{label_of(control)} (colour: the sweep)"] = Line2D([], [], color="0.4", linestyle=dashes)
    return entries
