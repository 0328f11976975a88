"""Figures of a search whose values are drawn at random or proposed by Optuna: each point has its own values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
from scipy import stats

from raysweep.report.control_styles import TINTS, in_order, label_of
from raysweep.report.drawing import SHADES, Figure, Normalize, add_legend, own_style, panel_grid
from raysweep.report.figures import control_style, draw_baseline, has_line, shown
from raysweep.report.heatmaps import axis_label, headed, in_order_of_size, is_numeric, kind_of_metric, title
from raysweep.report.marks import BELOW, clip, dot_style, scale_axis, seeds_and_bars
from raysweep.report.points import Point, matrix, mean_of, shown_scores
from raysweep.report.scales import Scale, places_of, scale_of, values_at
from raysweep.report.statistics import fit_blocks
from raysweep.space import Sweep

LEAST_POINTS = 3
"""With fewer points than this, there is no figure of a search."""
LEAST_FOR_IMPORTANCE = 8
"""With fewer points than this, the importance of a setting cannot be estimated."""
QUARTERS = (0.0, 0.25, 0.5, 0.75, 1.0)
MOST_TICKS = 8
"""Most values that an axis of the parallel coordinates names."""
LEAST_GAP = 0.035
"""Least distance of two labels on such an axis, as a share of the axis. With a smaller distance they would overlap."""


@own_style()
def draw_scatter(sweep: Sweep, points: Sequence[Point], name: str) -> Figure | None:
    """Draw each point's scores against one setting, with a colour for the other setting that matters most.

    There is a panel for each score. A filled dot is the mean of a point over its seeds, and hollow dots are the seeds.
    The colour shows the numeric setting whose rank correlation with the first score is strongest (Spearman). A control
    that all points share is a horizontal line with its interval as a band. Another control has marks where its own
    points stand.

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
    values = in_order_of_size(values)
    colour_by = strongest(trained, [each for each in sweep.searched if each != name], scores[0])
    tints = [0.3] * len(trained)
    if colour_by:
        shades = [point.varied[colour_by] for point in trained]
        tints = places_of(shades, scale_of(sweep, colour_by, shades))
    colours = SHADES(tints)
    controls = [(control, [point for point in trained if has_line(control, [[point]], "")])
                for control in in_order(point for point in points if point.baseline)]  # fmt: skip

    def place_of(point: Point) -> Any:
        return point.varied[name] if numeric else values.index(point.varied[name])

    figure, panels = panel_grid(len(scores), (4.2, 3.8), margin=(0.8 if colour_by else 0, 0.4))
    for axes, score in zip(panels, scores, strict=True):
        scale_axis(axes, name, values, numeric, scale_of(sweep, name, values) if numeric else None)
        for point, colour in zip(trained, colours, strict=True):
            if point.values(score):
                x = place_of(point)
                if len(point.by_seed) > 1:
                    count = len(point.values(score))
                    axes.plot([x] * count, point.values(score), linestyle="", gid="seeds", **dot_style(colour))
                axes.plot(x, mean_of(point, score), "o", color=colour, markersize=6, zorder=3, gid="point")
        for control, alike in controls:
            tint, label = TINTS[control.control], label_of(control.control)
            if len(alike) == len(trained):
                draw_baseline(axes, control, score, tint, label)
            elif alike and control.values(score):
                marked, style = list(dict.fromkeys(map(place_of, alike))), control_style(control.control, joined=False)
                axes.plot(marked, [mean_of(control, score)] * len(marked), color=tint, label=label, **style)
        axes.set_title(title(score), fontsize=10)
        axes.set_ylabel(kind_of_metric(score))
        clip(axes, score)
        axes.grid(alpha=0.25)
    if colour_by:
        add_colour_bar(
            figure, panels, values_at(QUARTERS, shades, scale_of(sweep, colour_by, shades)), axis_label(colour_by)
        )
    marks = "bands" if any(len(alike) == len(trained) for _, alike in controls) else ""
    colour = f", colour: {axis_label(colour_by)}" if colour_by else ""
    figure.suptitle(
        headed(sweep.name, f"a filled dot for each point{colour}; {seeds_and_bars(points, marks)}"), fontsize=11
    )
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


def heights(sweep: Sweep, name: str, values: Sequence[Any]) -> list[float]:
    """Return the places of a setting's values in [0, 1]: on their scale for numbers, else by first occurrence."""
    if is_numeric(values):
        return places_of(values, scale_of(sweep, name, values))
    different = list(dict.fromkeys(values))
    return [different.index(value) / max(1, len(different) - 1) for value in values]


def add_colour_bar(figure: Figure, panels: Any, quarters: Sequence[float], label: str) -> None:
    """Add a colour bar with numbers at the places `QUARTERS`."""
    image = panels[-1].scatter([], [], c=[], norm=Normalize(0, 1), cmap=SHADES)
    bar = figure.colorbar(image, ax=list(panels), ticks=QUARTERS)
    bar.ax.set_yticklabels([shown(float(value)) for value in quarters])
    bar.set_label(label)


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
    tints = places_of(columns[score], "linear")
    places = [tints if name == score else heights(sweep, name, values) for name, values in columns.items()]
    for tint, line in zip(tints, zip(*places, strict=True), strict=True):
        axes.plot(range(len(columns)), line, color=SHADES(tint), linewidth=1.2)
    for place, (name, values) in enumerate(columns.items()):
        axes.axvline(place, color="0.3", linewidth=0.8)
        scale = scale_of(sweep, name, values) if name != score and is_numeric(values) else "linear"
        ticks = tick_places(values, places[place], scale)
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


def tick_places(values: Sequence[Any], places: Sequence[float], scale: Scale) -> list[tuple[float, str]]:
    """Return the heights in [0, 1] at which an axis of the parallel coordinates names values, and their words."""
    different = dict(zip(values, places, strict=True))
    if is_numeric(values):
        if len(different) <= MOST_TICKS:
            ticks: list[tuple[float, str]] = []
            for value, place in sorted(different.items(), key=lambda item: item[1]):
                if not ticks or place - ticks[-1][0] >= LEAST_GAP:
                    ticks.append((place, shown(value)))
            return ticks
        return [(share, shown(float(f"{value:.3g}")))
                for share, value in zip(QUARTERS, values_at(QUARTERS, values, scale), strict=True)]  # fmt: skip
    step = math.ceil(len(different) / MOST_TICKS)
    return [(place, str(value)[:24]) for value, place in list(different.items())[::step]]


@own_style()
def draw_importance(sweep: Sweep, points: Sequence[Point]) -> Figure | None:
    """Draw how much of the variance between points each setting explains, for each score.

    Optuna computes the shares by fANOVA (Hutter, Hoos and Leyton-Brown 2014) with a random forest.
    The title of a panel says how much of this variance comes from the seeds: it would differ with other seeds.

    Returns:
        The figure; None with fewer than two settings or `LEAST_FOR_IMPORTANCE` points, or if Optuna is not installed.
    """
    trained = [point for point in points if not point.baseline]
    names = [name for name in sweep.searched if len({str(point.varied.get(name)) for point in trained}) > 1]
    trained = [point for point in trained if all(name in point.varied for name in names)]
    scores = shown_scores(trained)
    if len(names) < 2 or len(trained) < LEAST_FOR_IMPORTANCE or not scores or find_spec("optuna") is None:
        return None
    figure, panels = panel_grid(len(scores), (3.2, 1.2 + 0.35 * len(names)), margin=(1.8, 0.6), sharey=True)
    order: list[str] = []
    for axes, score in zip(panels, scores, strict=True):
        shares = importances(sweep, trained, names, score)
        order = order or sorted(names, key=lambda name: shares[name])
        axes.barh([axis_label(name) for name in order], [shares[name] for name in order], color="#0072B2")
        part = seed_share(trained, score)
        words = (
            f"\nabout {100 * part:.0f} % of the variance between points\ncomes from the seeds"
            if part is not None
            else ""
        )
        axes.set_title(f"{title(score)}{words}", fontsize=9)
        axes.set_xlabel("share of the variance between points")
        axes.set_xlim(0, 1)
        axes.grid(axis="x", alpha=0.25)
    figure.suptitle(headed(sweep.name, f"importance of the settings (fANOVA, {len(trained)} points)"), fontsize=11)
    return figure


def importances(sweep: Sweep, points: Sequence[Point], names: Sequence[str], score: str) -> dict[str, float]:
    """Return for each setting the share of the variance between points that it explains alone, in [0, 1].

    Args:
        sweep: The sweep, which says how the values were drawn.
        points: The points.
        names: The settings.
        score: The score.
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
            columns[name] = heights(sweep, name, values)
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
    """Return the share of the variance between the means of points that comes from the seeds, estimated in [0, 1].

    An effect of a seed that all points share does not count, because it changes no difference between points. None if
    no point has several seeds, or if all means are equal.
    """
    fit = fit_blocks(matrix([point.scores(score) for point in points if point.values(score)]))
    between = float(np.var(fit.effects, ddof=1)) if len(fit.effects) > 1 else 0.0
    if not fit.df or between <= 0:
        return None
    count = len(fit.effects)
    from_seeds = float(np.trace(fit.covariance) - fit.covariance.sum() / count) / (count - 1)
    return min(1.0, from_seeds / between)
