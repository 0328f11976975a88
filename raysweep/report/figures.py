"""The figures of a report: means over seeds, with intervals and the seeds themselves where there are several."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from raysweep import parts
from raysweep.report.control_styles import DASH_LENGTHS, DASHES, TINTS, in_order, label_of
from raysweep.report.drawing import Figure, Line2D, add_legend, label_powers_of_ten, own_style, wrapped
from raysweep.report.heatmaps import MOST_ROWS, axis_label, headed, is_numeric, seeds, title
from raysweep.report.points import (
    LEAST_SEEDS,
    PERCENT,
    Point,
    block_scores,
    estimate,
    mean_of,
    rank_points,
    shown_scores,
)
from raysweep.space import Sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Distinct with any colour vision (Okabe and Ito 2008). Their yellow is left out, because it is too pale for a line.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("D", "o", "s", "^", "v", "P", "X", "p", "<", ">")
MOST_LINES = 10
LEGEND_WIDTH = 60  # most characters of a line in a legend
BELOW: dict[str, Any] = {"width": LEGEND_WIDTH, "loc": "outside lower center", "fontsize": 8}
"""The style of a legend below a whole figure."""


@own_style()
def draw(sweep: Sweep, points: Sequence[Point], name: str) -> Figure | None:
    """Draw the scores against one setting: mean and interval over seeds, with a dot for each seed.

    There is a panel for each score and a line for each combination of the other searched settings. A control is a
    horizontal line with its interval as a band, or a line of its own if it varies with the setting.

    Args:
        sweep: the sweep.
        points: its points and controls.
        name: the setting along the x axis.

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
    lines: dict[str, list[Point]] = {}
    for point in points:
        if not point.baseline:
            others = {key: value for key, value in point.varied.items() if key != name}
            lines.setdefault(", ".join(f"{key} = {value}" for key, value in others.items()), []).append(point)
    for line in lines.values():
        line.sort(key=lambda point: values.index(point.varied[name]))
    if "" in lines:  # points that vary in no other setting
        lines = {
            label or ("mean over seeds" if len(lines) == 1 else f"only {name}"): line for label, line in lines.items()
        }
    span = float(values[-1] - values[0]) if numeric else len(values) - 1.0
    baselines = in_order(point for point in points if point.baseline)
    names = {point.name: label_of(point.control, point.name) for point in baselines}
    labels = [*lines, *names.values(), *(interval_label(name) for name in names.values())]
    width = 4.2 * len(scores)
    columns = legend_columns(labels, width)
    rows = math.ceil(sum(len(wrapped_lines(label)) for label in labels) / columns)
    figure = Figure(figsize=(width, 4.0 + 0.18 * rows), layout="constrained")
    for axes, score in zip(figure.subplots(1, len(scores), squeeze=False)[0], scores, strict=True):
        scale_axis(axes, name, values, numeric)
        for place, (label, line) in enumerate(lines.items()):
            positions = [point.varied[name] if numeric else values.index(point.varied[name]) for point in line]
            positions = dodge(positions, place - (len(lines) - 1) / 2, axes.get_xscale(), len(lines), span)
            draw_line(axes, positions, line, score, label, place, joined=numeric)
        for point in baselines:
            if name not in point.varied:
                index = next((n for n, line in enumerate(lines.values()) if belongs(point, line[0], name)), None)
                is_of_one_line = len(lines) > 1 and index is not None and point.varied
                colour = COLOURS[(index or 0) % len(COLOURS)] if is_of_one_line else TINTS[point.control]
                draw_baseline(axes, point, score, colour)
        swept_baselines = [p for p in baselines if name in p.varied and p.varied[name] in values]
        controls = dict.fromkeys(point.control for point in swept_baselines)
        for control, line in itertools.product(controls, lines.values()):
            matching = [p for p in swept_baselines if p.control == control and belongs(p, line[0], name)]
            matching.sort(key=lambda point: values.index(point.varied[name]))
            x = [point.varied[name] if numeric else values.index(point.varied[name]) for point in matching]
            y = [mean_of(point, score) if point.values(score) else math.nan for point in matching]
            axes.plot(
                x,
                y,
                "s",
                linestyle=DASHES[control],
                color=TINTS[control],
                markersize=4,
                linewidth=1,
                label=label_of(control),
            )
        axes.set_title(title(score), fontsize=10)
        axes.set_ylabel("accuracy")
        clip(axes)
        axes.grid(alpha=0.25)
    figure.suptitle(headed(sweep.name, seeds_and_bars(points)), fontsize=11)
    entries = {label: handle for handle, label in zip(*figure.axes[0].get_legend_handles_labels(), strict=True)}
    add_legend(figure, entries, ncols=columns, **BELOW)
    return figure


@own_style()
def draw_layers(sweep: Sweep, points: Sequence[Point]) -> Figure | None:
    """Draw the accuracy of a linear probe on every block of the encoder.

    There is a panel for each evaluation protocol and a line for each point. If a panel has more than `MOST_LINES`
    points, only the best ones by the sweep's metric are drawn, and the figure says so.

    Returns:
        The figure; None if no point has such accuracies.
    """
    points = [point for point in points if shown_scores([point], block_scores())]
    if not points:
        return None
    panels: dict[str, list[Point]] = {}
    for point in points:
        panels.setdefault(point.protocol, []).append(point)
    figure = Figure(figsize=(6.4 * len(panels), 5.6), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.values(), strict=True):
        lines, words = at_most(sweep, [point for point in panel if not point.baseline], MOST_LINES)
        for position, point in enumerate(lines):
            dashes = "-" if position < len(COLOURS) else "-."
            step = 0.03 * (position - len(lines) / 2)
            draw_blocks(axes, point, step, COLOURS[position % len(COLOURS)], MARKERS[position % len(MARKERS)], dashes)
        for position, point in enumerate(in_order(point for point in panel if point.baseline), len(lines)):
            step = 0.03 * (position - len(lines) / 2)
            draw_blocks(axes, point, step, TINTS[point.control], "*", DASHES[point.control])
        axes.set_xticks(range(1, parts.most_blocks() + 1))
        axes.set_xlabel("block")
        axes.set_ylabel("linear test accuracy")
        axes.set_title(words, fontsize=10)
        clip(axes)
        axes.grid(alpha=0.25)
        entries = {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        columns = 2 if len(lines) > 4 else 1
        add_legend(axes, entries, width=40, loc="upper center", bbox_to_anchor=(0.5, -0.13), fontsize=8, ncols=columns)
    figure.suptitle(headed(sweep.name, f"linear probe on every block\n{seeds_and_bars(points)}"), fontsize=11)
    return figure


def draw_blocks(axes: Axes, point: Point, step: float, colour: str, marker: str, dashes: Any) -> None:
    """Draw one point's accuracy by block: mean and interval over seeds, with a dot for each seed.

    `step` moves the point to the right, in units of the distance between two blocks, so that intervals do not overlap.
    """
    scores = [
        (block + step, point.values(score)) for block, score in enumerate(block_scores(), 1) if point.values(score)
    ]
    label = label_of(point.control, point.title) if point.baseline else point.title
    means = [float(np.mean(values)) for _, values in scores]
    axes.plot([x for x, _ in scores], means, linestyle=dashes, color=colour, marker=marker, markersize=5, label=label)
    for x, values in scores:
        add_seeds(axes, x, values, colour)


@own_style()
def draw_comparison(name: str, points: Sequence[Point], metric: str | None, mode: str) -> Figure | None:
    """Draw the points of several sweeps, one below another: mean, interval and seeds of every score.

    The means of the controls are dashed lines through all rows. If there are more than `MOST_ROWS` points, only the
    best ones by `metric` are drawn, and the figure says so.

    Args:
        name: the name of the comparison.
        points: the points and controls of all sweeps.
        metric: the metric that chooses the best points; None if there is none, then the first points are drawn.
        mode: "max" or "min", whichever is better in the metric.

    Returns:
        The figure; None if no point has a score.
    """
    scores = shown_scores(points)
    if not scores:
        return None
    sweeps = list(dict.fromkeys(point.sweep for point in points))
    trained = [point for point in points if not point.baseline]
    rows, words = list(points), ""
    if len(trained) > MOST_ROWS:
        ranked = [point.title for group in rank_points(points, metric, mode) for point in group]
        kept = set((ranked or [point.title for point in trained])[:MOST_ROWS])
        rows = [point for point in points if point.baseline or point.title in kept]
        words = f"; {len(kept)} of {len(trained)} points, {f'the best by mean {metric}' if ranked else 'the first'}"
    width = 3.2 + 3.4 * len(scores)
    figure = Figure(figsize=(width, 1.8 + 0.3 * len(rows)), layout="constrained")
    panels = figure.subplots(1, len(scores), squeeze=False, sharey=True)[0]
    for axes, score in zip(panels, scores, strict=True):
        for place, point in enumerate(rows):
            value = estimate(point.values(score))
            if value is None:
                continue
            number = sweeps.index(point.sweep)
            colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
            if point.baseline:  # the dashes of equal controls of several sweeps alternate
                length = DASH_LENGTHS[point.control]
                dashes = (length * number, (length, length * max(1, len(sweeps) - 1)))
                axes.axvline(value.mean, color=colour, linestyle=dashes, linewidth=1.2, zorder=1, gid=point.control)
            axes.plot(value.mean, place, marker, color=colour, markersize=6, linestyle="", zorder=2)
            if value.high is not None and value.n >= LEAST_SEEDS:
                axes.errorbar(value.mean, place, xerr=value.high - value.mean, color=colour, capsize=3, linewidth=1.2)
            if value.n > 1:
                axes.plot(
                    point.values(score), [place] * value.n, linestyle="", zorder=3, gid="seeds", **dot_style(colour)
                )
        axes.set_title(title(score), fontsize=10)
        axes.set_xlabel("accuracy")
        low, high = axes.get_xlim()
        axes.set_xlim(max(low, -0.02), min(high, 1.02))
        axes.grid(axis="x", alpha=0.25)
    panels[0].set_yticks(range(len(rows)), [wrapped(point.short_name, 48) for point in rows], fontsize=8)
    panels[0].set_ylim(len(rows) - 0.4, -0.6)
    entries = {
        sweep: Line2D([], [], color=COLOURS[n % len(COLOURS)], marker=MARKERS[n % len(MARKERS)], linestyle="")
        for n, sweep in enumerate(sweeps)
    }
    for control in dict.fromkeys(point.control for point in in_order(point for point in points if point.baseline)):
        dashes = (0, (DASH_LENGTHS[control], DASH_LENGTHS[control]))
        entries[f"{label_of(control)} of the sweep of that colour"] = Line2D([], [], color="0.4", linestyle=dashes)
    figure.suptitle(headed(name, f"{seeds_and_bars(points)}{words}"), fontsize=11)
    add_legend(figure, entries, ncols=legend_columns(entries, width), **BELOW)
    return figure


def at_most(sweep: Sweep, points: Sequence[Point], most: int) -> tuple[list[Point], str]:
    """Return at most `most` points, the best ones by the sweep's metric, and words that say which ("" for all)."""
    if len(points) <= most:
        return list(points), ""
    ranked = [point for group in rank_points(points, sweep.metric, sweep.mode) for point in group]
    kept = (ranked or list(points))[:most]
    which = f"the {len(kept)} best of {len(points)} points by mean {sweep.metric}" if ranked else (
        f"the first {len(kept)} of {len(points)} points"
    )  # fmt: skip
    return [point for point in points if point in kept], which


def add_seeds(axes: Axes, x: float, values: Sequence[float], colour: str) -> None:
    """Draw each seed as a dot at `x`, and the interval of the mean for `LEAST_SEEDS` seeds or more.

    Nothing is drawn for a single seed, because its dot would hide the mean.
    """
    value = estimate(values)
    if value is not None and value.n > 1:
        if value.high is not None and value.n >= LEAST_SEEDS:
            axes.errorbar(x, value.mean, yerr=value.high - value.mean, color=colour, capsize=3, linewidth=1.2)
        axes.plot([x] * value.n, values, linestyle="", zorder=3, gid="seeds", **dot_style(colour))


def draw_line(
    axes: Axes, positions: list[Any], line: Sequence[Point], score: str, label: str, position: int, joined: bool
) -> None:
    """Draw mean, interval and seeds of a line's points. `position`, its index among the lines, gives its style."""
    colour, marker = COLOURS[position % len(COLOURS)], MARKERS[position % len(MARKERS)]
    scores = [(x, point.values(score)) for x, point in zip(positions, line, strict=True) if point.values(score)]
    means = [float(np.mean(values)) for _, values in scores]
    style = "-" if joined else ""
    axes.plot([x for x, _ in scores], means, linestyle=style, color=colour, marker=marker, markersize=4, label=label)
    for x, values in scores:
        add_seeds(axes, x, values, colour)


def dot_style(colour: str) -> dict[str, Any]:
    """Return the style of a seed's dot: hollow, so that it is visible on the line of its interval."""
    return {"marker": "o", "markersize": 4, "markerfacecolor": "white", "markeredgecolor": colour}


def draw_baseline(axes: Axes, point: Point, score: str, colour: str) -> None:
    """Draw a control: its mean as a horizontal line, its interval as a band."""
    value = estimate(point.values(score))
    if value is None:
        return
    label = label_of(point.control, point.name)
    axes.axhline(value.mean, color=colour, linestyle=DASHES[point.control], linewidth=1, label=label)
    if value.low is not None and value.high is not None and value.n >= LEAST_SEEDS:
        axes.axhspan(value.low, value.high, color=colour, alpha=0.15, linewidth=0, label=interval_label(label))


def interval_label(control: str) -> str:
    """Return the label of the band of a control."""
    return f"{PERCENT} interval of {control}"


def belongs(baseline: Point, point: Point, name: str) -> bool:
    """Return whether a control has the same searched settings as the line of a point, except `name`, the x axis."""
    return all(point.varied.get(key) == value for key, value in baseline.varied.items() if key != name)


def dodge(positions: list[Any], step: float, scale: str, lines: int, span: float) -> list[Any]:
    """Return positions moved a little sideways, so that the intervals of several lines do not hide one another.

    Args:
        positions: the positions of a line's points on the axis.
        step: the index of the line, counted from the middle of all lines; a positive one moves to the right.
        scale: the scale of the axis, by Matplotlib's name.
        lines: the number of lines.
        span: the distance between the ends of the axis.
    """
    if step == 0:
        return positions
    narrow = min(1.0, 8 / lines)
    if scale == "log":
        return [x * 1.08 ** (step * narrow) for x in positions]
    return [x + 0.012 * step * narrow * span for x in positions]


def scale_axis(axes: Axes, name: str, values: Sequence[Any], numeric: bool) -> None:
    """Label the x axis, and make it logarithmic if the values span a factor of 100 or more.

    If zero is among the values, the axis is linear up to the smallest positive value.
    """
    axes.set_xlabel(axis_label(name))
    if not numeric:
        rotate = max(len(str(value)) for value in values) * len(values) > 36
        axes.set_xticks(
            range(len(values)),
            [wrapped(value, 24) for value in values],
            rotation=25 if rotate else 0,
            ha="right" if rotate else "center",
        )
        return
    positive = [value for value in values if value > 0]
    if positive and max(positive) / min(positive) >= 100 and min(values) >= 0:
        if len(positive) == len(values):
            axes.set_xscale("log")
        else:
            axes.set_xscale("symlog", linthresh=min(positive))
        label_powers_of_ten(axes)


def clip(axes: Axes) -> None:
    """Limit the y axis to possible accuracies, because an interval may exceed them."""
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -0.02), min(high, 1.02))


def seeds_and_bars(points: Sequence[Point]) -> str:
    """Return the number of seeds in words, and what the dots, bars and bands of the figure mean."""
    most = max(len(point.by_seed) for point in points)
    bars = f", bars and bands: {PERCENT} interval of the mean" if most >= LEAST_SEEDS else ""
    return seeds(points) + (f" (dots){bars}" if most > 1 else "")


def wrapped_lines(label: str) -> list[str]:
    """Return the lines of an entry in the legend below a figure."""
    return wrapped(label, LEGEND_WIDTH).split("\n")


def legend_columns(labels: Iterable[str], width: float) -> int:
    """Return the number of columns of the legend below a figure of `width` inches: three, or fewer for long labels."""
    longest = max(len(line) for label in labels for line in wrapped_lines(label))
    # 0.061 inches for a character, 0.45 for the handle and the gaps. Most columns are narrower than the widest one.
    return max(1, min(3, int(1.1 * width / (0.061 * longest + 0.45))))
