"""The order of points: which of them compete, and which of these is best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np

from raysweep.report.points import Point, matrix
from raysweep.report.statistics import fit_blocks

ROUNDING = 1e-9
"""Two means are equal if they differ by at most this fraction of the largest value."""


def rank_points(points: Sequence[Point], metric: str | None, mode: str) -> list[list[Point]]:
    """Return the points that compete, best first, in a list for each protocol.

    A point competes if all its planned seeds have the metric. A seed lacks it if its trial failed, was stopped or does
    not report the metric, and such seeds may have the worst scores. Points are ranked by their means, which are
    adjusted for the seeds that a point lacks; see `adjusted_means`. Scores of different protocols are not comparable,
    so a sweep that varies the evaluation has several best points. Without a metric no point competes.

    Args:
        points: points and controls; controls never compete.
        metric: the metric that ranks the points; None without one.
        mode: "max" or "min", whichever is better in the metric.
    """
    groups: dict[str, list[Point]] = {}
    for point in points:
        if metric and not point.baseline and not point.lacks(metric):
            groups.setdefault(point.protocol, []).append(point)
    return [ranked(group, str(metric), mode) for group in groups.values()]


def ranked(group: Sequence[Point], metric: str, mode: str) -> list[Point]:
    """Return the points of one protocol, best first."""
    values = ranking_values(group, metric)
    return sorted(group, key=lambda point: values[point.title], reverse=mode == "max")


def ranking_values(group: Sequence[Point], metric: str) -> dict[str, float]:
    """Return the values by which the points of one protocol are ranked, by their titles; see `rank_points`."""
    means = adjusted_means([point.scores(metric) for point in group])
    return {point.title: mean for point, mean in zip(group, means, strict=True)}


def adjusted_means(scores: Sequence[Mapping[int, float]]) -> list[float]:
    """Return the mean of each point, from its scores by seed.

    If some points lack seeds of others, the means are effects in the block model, which uses all seeds and adjusts for
    the seeds that a point lacks. They can be compared if the points are connected; see `connected`.
    """
    values = matrix(scores)
    if np.isnan(values).any():
        return [float(effect) for effect in fit_blocks(values).effects]
    return [fmean(by_seed.values()) for by_seed in scores]


def connected(scores: Sequence[Mapping[int, float]]) -> list[bool]:
    """Return which points share seeds with the first one, directly or through other points, from scores by seed."""
    seeds, before = set(scores[0]), 0
    while len(seeds) > before:
        before = len(seeds)
        seeds.update(*(by_seed for by_seed in scores if not seeds.isdisjoint(by_seed)))
    return [not seeds.isdisjoint(by_seed) for by_seed in scores]


def tied(ranked: Sequence[Point], metric: str) -> list[Point]:
    """Return the first ranked point, and all points that have the same ranking value, apart from rounding."""
    values = ranking_values(ranked, metric)
    most = max(abs(value) for point in ranked for value in point.values(metric))
    return [point for point in ranked if abs(values[point.title] - values[ranked[0].title]) <= ROUNDING * most]
