"""The heat map of a sweep over two settings, and words that all figures share."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from raysweep.config import metrics_by_name
from raysweep.config.values import is_plain_number
from raysweep.report.control_styles import BAR_DASHES, BAR_WORDS, in_order, label_of
from raysweep.report.drawing import (
    Figure,
    Normalize,
    colormaps,
    literal,
    own_style,
    panel_grid,
    panels_in_a_row,
    wrapped,
)
from raysweep.report.points import LEAST_SEEDS, Estimate, Point, mean_of, percent, shown_scores
from raysweep.space import Sweep

MOST_ROWS = 60


def heatmap_settings(sweep: Sweep) -> tuple[str, str] | None:
    """Return the two settings of the sweep's heat map, first the one along the x axis; None without a heat map.

    A sweep has a heat map if exactly two settings vary, every point has both, and the points fill more than half of the
    grid. Settings that are drawn at random independently fill only a diagonal.
    """
    points = {trial.point: trial.varied for trial in sweep.trials if not trial.baseline}
    values = {name: {varied.get(name, ...) for varied in points.values()} for name in sweep.searched}
    varying = [name for name in sweep.searched if len(values[name]) > 1]
    if len(varying) != 2 or any(... in values[name] for name in varying):
        return None
    x, y = varying
    return (x, y) if 2 * len(points) > len(values[x]) * len(values[y]) else None


@own_style()
def draw_heatmap(sweep: Sweep, points: Sequence[Point]) -> Figure | None:
    """Draw the scores over two settings: the mean over seeds as colour and number, with a panel for each score.

    A point without results stays blank. A control is a line on the colour bar.

    Returns:
        The figure; None if the sweep has no heat map (`heatmap_settings`), or if the points differ in protocol, because
        one colour scale would compare them.
    """
    names = heatmap_settings(sweep)
    trained = [point for point in points if not point.baseline]
    scores = shown_scores(trained)
    if names is None or not scores or len({point.protocol for point in points}) > 1:
        return None
    planned = [trial.varied for trial in sweep.trials if not trial.baseline]
    axis = [list(dict.fromkeys(varied[name] for varied in planned)) for name in names]
    x_values, y_values = (in_order_of_size(values) for values in axis)
    beside, below = (0.08 * max(map(longest_line, values)) for values in (y_values, x_values))
    slanted = max(map(longest_line, x_values)) > 7
    width, height = max(4.0, 0.72 * len(x_values) + 1.4), max(2.8, 0.5 * len(y_values) + 1.6)
    if below > 1.2:  # such long labels need extra room
        height += 0.6 * below
    figure, panels = panel_grid(len(scores), (width, height), margin=(beside, 0), sharey=True)
    for place, (axes, score) in enumerate(zip(panels, scores, strict=True)):
        grid: list[list[Estimate | None]] = [[None] * len(x_values) for _ in y_values]
        for point in trained:
            row, column = y_values.index(point.varied[names[1]]), x_values.index(point.varied[names[0]])
            grid[row][column] = point.estimate(score)
        means = np.array([[math.nan if value is None else value.mean for value in row] for row in grid])
        controls: dict[str, list[float]] = {}
        for point in in_order(point for point in points if point.baseline and point.values(score)):
            controls.setdefault(point.control, []).append(mean_of(point, score))
        shown_means = [np.nanmin(means), np.nanmax(means), *itertools.chain.from_iterable(controls.values())]
        low, high = min(shown_means), max(shown_means)
        spare = 0.02 * (high - low) or 0.005  # so that no line lies on the end of the bar
        norm, colours = Normalize(low - spare, high + spare), colormaps["viridis"]
        image = axes.imshow(means, norm=norm, cmap=colours, origin="lower", aspect="auto")
        size = max(4.0, min(9.0, 90 / max(len(x_values), len(y_values))))
        for row, estimates in enumerate(grid):
            for column, estimated in enumerate(estimates):
                if estimated is not None:
                    colour = "black" if norm(estimated.mean) > 0.55 else "white"
                    axes.text(column, row, cell_text(estimated), ha="center", va="center", fontsize=size, color=colour)
        axes.set_xticks(range(len(x_values)), [number(value) for value in x_values])
        axes.set_yticks(range(len(y_values)), [number(value) for value in y_values])
        axes.set_xlabel(axis_label(names[0]))
        if place % panels_in_a_row(len(scores)) == 0:
            axes.set_ylabel(axis_label(names[1]))
        if slanted:
            axes.tick_params(axis="x", labelrotation=35)
        bar = figure.colorbar(image, ax=axes)
        shown = ""
        for control, values in controls.items():
            for value in values:
                bar.ax.axhline(value, color="white", linewidth=4)
                bar.ax.axhline(value, color="black", linestyle=BAR_DASHES[control], linewidth=2, gid=control)
            numbers = [f"{min(values):.4f} to {max(values):.4f}"] if len(values) > 3 else [f"{v:.4f}" for v in values]
            shown += f"\n{label_of(control)} ({BAR_WORDS[control]}): {', '.join(numbers)}"
        axes.set_title(title(score) + shown, fontsize=10)
    several = any(len(point.by_seed) >= LEAST_SEEDS for point in trained)
    half = f" (± half of its {percent(trained)} interval)" if several else ""
    figure.suptitle(headed(sweep.name, f"mean over {seeds(trained)}{half}"), fontsize=11)
    return figure


def number(value: Any) -> str:
    """Return a value as the label of a tick: in short form if that is exact, else with three digits."""
    if not isinstance(value, float):
        return wrapped(value, 24)
    return f"{value:g}" if float(f"{value:g}") == value else f"{value:.3g}"


def cell_text(value: Estimate) -> str:
    """Return the mean, and half of its interval for at least `LEAST_SEEDS` seeds."""
    if value.high is None or value.n < LEAST_SEEDS:
        return f"{value.mean:.3f}"
    return f"{value.mean:.3f}\n±{value.high - value.mean:.3f}"


def seeds(points: Sequence[Point]) -> str:
    """Return the number of seeds in words, such as `3 seeds` or `1–3 seeds`."""
    counts = sorted({len(point.by_seed) for point in points})
    n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]}–{counts[-1]}"
    return f"{n} seed{'s' if n != '1' else ''}"


def headed(name: str, words: str) -> str:
    """Return a figure's heading: a sweep's name, on separate lines if it is long, and words that say what is shown."""
    return f"{literal(name)}: {words}" if len(literal(name)) <= 60 else f"{wrapped(name, 60)}:\n{words}"


def title(score: str) -> str:
    """Return a metric's name in words."""
    return score.replace("_", " ").replace("/", " ")


def kind_of_metric(score: str) -> str:
    """Return what a metric measures, for an axis: `accuracy` if it is at most 1, else `measure`."""
    return "accuracy" if metrics_by_name()[score].highest == 1 else "measure"


def axis_label(name: str) -> str:
    """Return a setting's name for an axis."""
    return "α" if name == "alpha" else name


def is_numeric(values: Sequence[Any]) -> bool:
    """Return whether all values are numbers."""
    return all(map(is_plain_number, values))


def in_order_of_size(values: Sequence[Any]) -> list[Any]:
    """Return numbers in the order of their size, and None after them. Other values keep their order."""
    numbers = [value for value in values if value is not None]
    return [*sorted(numbers), *(None for value in values if value is None)] if is_numeric(numbers) else list(values)


def longest_line(value: Any) -> int:
    """Return the number of characters in the longest line of a value's tick label."""
    return max(map(len, number(value).split("\n")))
