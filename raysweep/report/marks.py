"""Colours, marks, axes and legends that several figures share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raysweep.report.colours import COLOURS as COLOURS
from raysweep.report.drawing import label_powers_of_ten, power_of_ten, wrapped
from raysweep.report.heatmaps import axis_label, kind_of_metric, number, seeds
from raysweep.report.points import LEAST_SEEDS, Point, estimate, percent
from raysweep.report.ranking import rank_points
from raysweep.report.scales import WIDE, Scale, suitable
from raysweep.space import Sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS = ("D", "o", "s", "^", "v", "P", "X", "p", "<", ">")
MOST_ENTRIES = 10
"""Most entries of a legend. A figure with more lines shows the best ones."""
LEGEND_WIDTH = 60  # most characters of a line in a legend
BELOW: dict[str, Any] = {"width": LEGEND_WIDTH, "loc": "outside lower center", "fontsize": 8}
"""The style of a legend below a whole figure."""
APART = 0.03
"""Greatest distance between the bars of two lines at one value, as a share of the axis. A bar is 0.025 wide."""
LABEL_WIDTH = 0.022
"""Width of a character in the label of a tick, as a share of the axis of a panel that is 4.2 inches wide."""
FARTHEST = 0.04
"""Greatest distance of a bar from its value on the axis, as a share of the axis."""
SIDE_BY_SIDE = "\npoints at the same value stand side by side"
"""The words of a heading if points were moved sideways."""


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


def add_seeds(axes: Axes, x: float, values: Sequence[float], colour: str, divisor: int) -> None:
    """Draw each seed as a dot at `x`, and the interval of the mean for `LEAST_SEEDS` seeds or more.

    Nothing is drawn for a single seed, because its dot would hide the mean. `divisor` is the same as for the points.
    """
    value = estimate(values, divisor)
    if value is not None and value.n > 1:
        if value.high is not None and value.n >= LEAST_SEEDS:
            axes.errorbar(x, value.mean, yerr=value.high - value.mean, color=colour, capsize=3, linewidth=1.2)
        axes.plot([x] * value.n, values, linestyle="", zorder=3, gid="seeds", **dot_style(colour))


def dot_style(colour: str) -> dict[str, Any]:
    """Return the style of a seed's dot: hollow, so that it is visible on the line of its interval."""
    return {"marker": "o", "markersize": 4, "markerfacecolor": "white", "markeredgecolor": colour}


def side_by_side(axes: Axes, lines: Sequence[Sequence[float]]) -> list[list[float]]:
    """Return the positions of several lines, moved a little sideways where they are equal in two lines or more.

    So intervals do not hide one another. A position that one line alone has stays as it is.

    Args:
        axes: The axes, whose scale has been set.
        lines: For each line, the positions of its points on the x axis.
    """
    every = sorted({position for line in lines for position in line})
    if len(every) < 2:
        return [list(line) for line in lines]
    scale = axes.xaxis.get_transform()
    even: NDArray[Any] = scale.transform(np.array(every, dtype=float))
    moved = [list(line) for line in lines]
    for position, centre in zip(every, even, strict=True):
        sharing = [number for number, line in enumerate(lines) if position in line]
        if len(sharing) > 1:
            apart = min(APART, 2 * FARTHEST / (len(sharing) - 1)) * float(np.ptp(even))
            apart = min(apart, 0.7 / len(sharing) * float(np.diff(even).min()))
            for place, number in enumerate(sharing):
                shifted = centre + (place - (len(sharing) - 1) / 2) * apart
                moved[number][lines[number].index(position)] = float(scale.inverted().transform(shifted))
    return moved


def scale_axis(axes: Axes, name: str, values: Sequence[Any], numeric: bool, scale: Scale | None = None) -> None:
    """Label the x axis, and give it the scale that suits its values.

    If zero is among the values of a logarithmic axis, it is linear up to the smallest positive value.

    Args:
        axes: The axes.
        name: The setting.
        values: Its values.
        numeric: Whether they are numbers.
        scale: The scale; None for the scale that suits numbers.
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
    scale = scale or suitable(values)
    if scale != "linear":
        positive = [value for value in values if value > 0]
        options = {"linthresh": min(positive)} if scale == "symlog" else {}
        axes.set_xscale(scale, **options)
        label_powers_of_ten(axes, is_narrow=scale == "log" and max(positive) / min(positive) < WIDE)


def tick_at(axes: Axes, values: Sequence[float]) -> None:
    """Put the ticks of a numeric x axis at these sorted values. A label for which there is no room is left out.

    The scale of the axis must have been set before.
    """
    places = axes.xaxis.get_transform().transform(np.array(values, dtype=float))
    width = float(np.ptp(places)) or 1.0
    is_linear = axes.get_xscale() == "linear"
    labels, end = [], -math.inf
    for value, place in zip(values, (places - places[0]) / width, strict=True):
        label = number(value) if is_linear else power_of_ten(value)
        half = LABEL_WIDTH * (len(label) + 1) / 2
        labels.append(label if place - half > end else "")
        end = place + half if labels[-1] else end
    axes.set_xticks(values, labels)
    axes.set_xticks([], minor=True)


def clip(axes: Axes, score: str) -> None:
    """Limit the y axis to possible accuracies, because an interval may exceed them. Other metrics have no limit."""
    low, high = axes.get_ylim()
    if kind_of_metric(score) == "accuracy":
        axes.set_ylim(max(low, -0.02), min(high, 1.02))


def seeds_and_bars(points: Sequence[Point], marks: str = "bars and bands") -> str:
    """Return the number of seeds in words, and what the dots and the `marks` of the figure mean."""
    most = max(len(point.by_seed) for point in points)
    bars = f", {marks}: {percent(points)} interval of the mean" if most >= LEAST_SEEDS and marks else ""
    return seeds(points) + (f" (dots){bars}" if most > 1 else "")


def wrapped_lines(label: str) -> list[str]:
    """Return the lines of an entry in the legend below a figure."""
    return wrapped(label, LEGEND_WIDTH).split("\n")


def legend_columns(labels: Iterable[str], width: float) -> int:
    """Return the number of columns of the legend below a figure of `width` inches: three, or fewer for long labels."""
    longest = max(len(line) for label in labels for line in wrapped_lines(label))
    # 0.061 inches for a character, 0.45 for the handle and the gaps. Most columns are narrower than the widest one.
    return max(1, min(3, int(1.1 * width / (0.061 * longest + 0.45))))
