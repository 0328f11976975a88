"""Figures of a search whose values are drawn at random or proposed by Optuna: each point has its own values."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from raysweep.report.control_styles import TINTS, in_order, label_of
from raysweep.report.drawing import SHADES, Figure, Normalize, add_legend, own_style, panel_grid
from raysweep.report.figures import draw_baseline, shown
from raysweep.report.heatmaps import axis_label, headed, is_numeric, kind_of_metric, title
from raysweep.report.marks import BELOW, clip, dot_style, scale_axis, seeds_and_bars
from raysweep.report.points import Point, mean_of, shown_scores
from raysweep.space import Sweep

LEAST_POINTS = 3
"""With fewer points than this, there is no figure of a search."""
LEAST_FOR_IMPORTANCE = 8
"""With fewer points than this, the importance of a setting cannot be estimated."""
MOST_TICKS = 8
"""Most values that an axis of the parallel coordinates names."""


def is_drawn(sweep: Sweep) -> bool:
    """Return whether the values of any setting are drawn at random or proposed, so that points form no grid."""
    return any(kind != "grid" for name, kind in sweep.distributions if name != "seed")


@own_style()
def draw_scatter(sweep: Sweep, points: Sequence[Point], name: str) -> Figure | None:
    """Draw each point's scores against one setting, with a colour for the other setting that matters most.

    There is a panel for each score. A filled dot is the mean of a point over its seeds, and hollow dots are the seeds.
    The colour shows the numeric setting whose rank correlation with the first score is strongest (Spearman).

    Args:
        sweep: The sweep.
        points: Its points and controls.
        name: The setting along the x axis.

    Returns:
        The figure; None if fewer than `LEAST_POINTS` points have the setting and a score.
    """
    trained = [point for point in points if not point.baseline and name in point.varied]
    scores = shown_scores(trained)
    values = list(dict.fromkeys(point.varied[name] for point in trained))
    if len(trained) < LEAST_POINTS or len(values) < 2 or not scores:
        return None
    numeric = is_numeric(values)
    values = sorted(values) if numeric else values
    colour_by = strongest(trained, [each for each in sweep.searched if each != name], scores[0])
    tints = [0.3] * len(trained)
    if colour_by:
        shades, is_even = [point.varied[colour_by] for point in trained], colour_by in sweep.evenly_drawn
        tints = [scaled(value, shades, is_even) for value in shades]
    colours = SHADES(tints)
    figure, panels = panel_grid(len(scores), (4.2, 3.8), margin=(0.8 if colour_by else 0, 0.4))
    for axes, score in zip(panels, scores, strict=True):
        scale_axis(axes, name, values, numeric, name in sweep.evenly_drawn)
        for point, colour in zip(trained, colours, strict=True):
            if point.values(score):
                x = point.varied[name] if numeric else values.index(point.varied[name])
                if len(point.by_seed) > 1:
                    count = len(point.values(score))
                    axes.plot([x] * count, point.values(score), linestyle="", gid="seeds", **dot_style(colour))
                axes.plot(x, mean_of(point, score), "o", color=colour, markersize=6, zorder=3, gid="point")
        for control in in_order(point for point in points if point.baseline):
            draw_baseline(axes, control, score, TINTS[control.control], label_of(control.control))
        axes.set_title(title(score), fontsize=10)
        axes.set_ylabel(kind_of_metric(score))
        clip(axes, score)
        axes.grid(alpha=0.25)
    if colour_by:
        add_colour_bar(figure, panels, quarter_values(shades, is_even), axis_label(colour_by))
    colour = f", colour: {axis_label(colour_by)}" if colour_by else ""
    figure.suptitle(headed(sweep.name, f"a filled dot for each point{colour}; {seeds_and_bars(points)}"), fontsize=11)
    entries = {label: handle for handle, label in zip(*panels[0].get_legend_handles_labels(), strict=True)}
    if entries:
        add_legend(figure, entries, ncols=3, **BELOW)
    return figure


def strongest(points: Sequence[Point], names: Sequence[str], score: str) -> str | None:
    """Return the numeric setting that all points have and whose rank correlation with the score is strongest."""
    scored = [point for point in points if point.values(score)]
    strengths = {}
    for name in names:
        values = [point.varied.get(name) for point in scored]
        if is_numeric(values) and len(set(values)) > 1 and all(name in point.varied for point in points):
            correlation = float(stats.spearmanr(values, [mean_of(point, score) for point in scored]).statistic)
            strengths[name] = 0.0 if math.isnan(correlation) else abs(correlation)
    return max(strengths, key=lambda name: strengths[name]) if strengths else None


def is_logarithmic(values: Sequence[float], is_even: bool) -> bool:
    """Return whether values are shown on a logarithmic scale: if they are positive and span a factor of 100.

    Values that were drawn evenly from a range (`is_even`) have a linear scale.
    """
    return not is_even and min(values) > 0 and max(values) / min(values) >= 100


def scaled(value: Any, values: Sequence[Any], is_even: bool) -> float:
    """Return the place of a value among `values` in [0, 1]: by size for numbers, else by first occurrence."""
    if not is_numeric(values):
        different = list(dict.fromkeys(values))
        return different.index(value) / max(1, len(different) - 1)
    low, high = min(values), max(values)
    if low == high:
        return 0.5
    if is_logarithmic(values, is_even):
        return math.log(value / low) / math.log(high / low)
    return float((value - low) / (high - low))


def add_colour_bar(figure: Figure, panels: Any, quarters: Sequence[float], label: str) -> None:
    """Add a colour bar with numbers at five places, which `quarter_values` returns."""
    image = panels[-1].scatter([], [], c=[], norm=Normalize(0, 1), cmap=SHADES)
    bar = figure.colorbar(image, ax=list(panels), ticks=[0, 0.25, 0.5, 0.75, 1])
    bar.ax.set_yticklabels([shown(float(value)) for value in quarters])
    bar.set_label(label)


def quarter_values(values: Sequence[float], is_even: bool) -> list[float]:
    """Return the values at 0, 1/4, 1/2, 3/4 and 1 of the scale of `values`."""
    low, high = float(min(values)), float(max(values))
    if is_logarithmic(values, is_even):
        return [low * (high / low) ** share for share in (0, 0.25, 0.5, 0.75, 1)]
    return [low + (high - low) * share for share in (0, 0.25, 0.5, 0.75, 1)]


@own_style()
def draw_parallel(sweep: Sweep, points: Sequence[Point]) -> Figure | None:
    """Draw the points in parallel coordinates: an axis for each searched setting, and one for the first score.

    A line is a point, and its colour is the mean of the score over seeds. Points that lack one of the settings are left
    out, and the figure says how many.

    Returns:
        The figure; None with fewer than two settings, or fewer than `LEAST_POINTS` points that have all of them.
    """
    trained = [point for point in points if not point.baseline]
    names = [name for name in sweep.searched if len({str(point.varied.get(name)) for point in trained}) > 1]
    scores = shown_scores(trained)
    complete = [p for p in trained if scores and p.values(scores[0]) and all(name in p.varied for name in names)]
    if len(names) < 2 or len(complete) < LEAST_POINTS:
        return None
    score = scores[0]
    complete.sort(key=lambda point: mean_of(point, score))  # the best lines lie on top
    columns: dict[str, list[Any]] = {name: [point.varied[name] for point in complete] for name in names}
    columns[score] = [mean_of(point, score) for point in complete]
    figure = Figure(figsize=(1.5 + 1.6 * len(columns), 4.4), layout="constrained")
    axes = figure.subplots()
    even = {*sweep.evenly_drawn, score}
    tints = [scaled(value, columns[score], is_even=True) for value in columns[score]]
    for row, tint in enumerate(tints):
        places = [scaled(values[row], values, name in even) for name, values in columns.items()]
        axes.plot(range(len(columns)), places, color=SHADES(tint), linewidth=1.2)
    for place, (name, values) in enumerate(columns.items()):
        axes.axvline(place, color="0.3", linewidth=0.8)
        ticks = tick_places(values, name in even)
        for height, words in ticks:
            axes.text(place, height, f" {words}", fontsize=7, va="center", bbox={"facecolor": "white", "pad": 0.6,
                      "edgecolor": "none", "alpha": 0.7})  # fmt: skip
    axes.set_xticks(range(len(columns)), [axis_label(name) if name != score else title(name) for name in columns])
    axes.set_yticks([])
    axes.set_xlim(-0.1, len(columns) - 0.5)
    for side in axes.spines.values():
        side.set_visible(False)
    absent = len(trained) - len(complete)
    words = f"; {absent} of {len(trained)} points lack a setting or the score" if absent else ""
    figure.suptitle(headed(sweep.name, f"a line for each point, mean over seeds{words}"), fontsize=11)
    return figure


def tick_places(values: Sequence[Any], is_even: bool) -> list[tuple[float, str]]:
    """Return the heights in [0, 1] at which an axis of the parallel coordinates names values, and their words."""
    if is_numeric(values):
        if len(set(values)) <= MOST_TICKS:
            return [(scaled(value, values, is_even), shown(value)) for value in dict.fromkeys(values)]
        return [(share, shown(float(f"{value:.3g}"))) for share, value in zip((0, 0.25, 0.5, 0.75, 1),
                quarter_values(values, is_even), strict=True)]  # fmt: skip
    different = list(dict.fromkeys(values))
    step = math.ceil(len(different) / MOST_TICKS)
    return [(scaled(value, values, is_even), str(value)[:24]) for value in different[::step]]


@own_style()
def draw_importance(sweep: Sweep, points: Sequence[Point]) -> Figure | None:
    """Draw how much of the variance between points each setting explains, for each score.

    The shares are those of fANOVA (Hutter, Hoos and Leyton-Brown 2014) with a random forest, as Optuna computes them.
    The title of a panel says how much of the variance of single trials lies between seeds, which no setting explains.

    Returns:
        The figure; None with fewer than two settings or `LEAST_FOR_IMPORTANCE` points, or if Optuna is not installed.
    """
    trained = [point for point in points if not point.baseline]
    names = [name for name in sweep.searched if len({str(point.varied.get(name)) for point in trained}) > 1]
    trained = [point for point in trained if all(name in point.varied for name in names)]
    scores = shown_scores(trained)
    if len(names) < 2 or len(trained) < LEAST_FOR_IMPORTANCE or not scores or find_spec("optuna") is None:
        return None
    figure, panels = panel_grid(len(scores), (3.2, 1.0 + 0.35 * len(names)), margin=(1.8, 0.6), sharey=True)
    order: list[str] = []
    for axes, score in zip(panels, scores, strict=True):
        shares = importances(trained, names, score, sweep.evenly_drawn)
        order = order or sorted(names, key=lambda name: shares[name])
        axes.barh([axis_label(name) for name in order], [shares[name] for name in order], color="#0072B2")
        noise = seed_share(trained, score)
        words = "" if noise is None else f"\n{100 * noise:.0f} % of the variance of trials is between seeds"
        axes.set_title(f"{title(score)}{words}", fontsize=9)
        axes.set_xlabel("share of the variance between points")
        axes.set_xlim(0, 1)
        axes.grid(axis="x", alpha=0.25)
    figure.suptitle(headed(sweep.name, f"importance of the settings (fANOVA, {len(trained)} points)"), fontsize=11)
    return figure


def importances(
    points: Sequence[Point], names: Sequence[str], score: str, even: Collection[str] = ()
) -> dict[str, float]:
    """Return for each setting the share of the variance between points that it explains alone, in [0, 1].

    Args:
        points: The points.
        names: The settings.
        score: The score.
        even: The settings whose values were drawn evenly from a range.
    """
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    columns: dict[str, list[Any]] = {}
    distributions: dict[str, Any] = {}
    for name in names:
        values = [point.varied[name] for point in points]
        if is_numeric(values):
            # Optuna's forest is averaged evenly over the range, also if the distribution is logarithmic.
            columns[name] = [scaled(value, values, name in even) for value in values]
            distributions[name] = FloatDistribution(0, 1)
        else:
            columns[name] = list(map(str, values))
            distributions[name] = CategoricalDistribution(list(dict.fromkeys(columns[name])))
    study = optuna.create_study()
    for row, point in enumerate(points):
        if point.values(score):
            params = {name: columns[name][row] for name in names}
            trial = optuna.trial.create_trial(params=params, distributions=distributions, value=mean_of(point, score))
            study.add_trial(trial)
    if len({trial.value for trial in study.trials}) < 2:
        return dict.fromkeys(names, 0.0)
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    # `get_param_importances` would divide the shares by their sum, and so hide what settings explain only together.
    return dict(evaluator.evaluate(study, params=list(names)))


def seed_share(points: Sequence[Point], score: str) -> float | None:
    """Return the share of the sum of squares of all trials that lies within points, in [0, 1].

    Points differ within themselves only by the seed. None if no point has several seeds, or if all trials are equal.
    """
    groups: list[NDArray[np.float64]] = [np.array(point.values(score)) for point in points if point.values(score)]
    if all(len(group) < 2 for group in groups):
        return None
    within = sum(float(((group - group.mean()) ** 2).sum()) for group in groups)
    every = np.concatenate(groups)
    total = float(((every - every.mean()) ** 2).sum())
    return within / total if total > 0 else None
