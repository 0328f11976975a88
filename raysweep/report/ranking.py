"""The order of points: which of them compete, and which of these is best."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from raysweep.report.points import Point, divisor_of, matrix
from raysweep.report.statistics import fit_blocks

ROUNDING = 1e-9
"""Two means are equal if they differ by at most this fraction of the largest value."""


def rank_points(points: Sequence[Point], metric: str | None, mode: str) -> list[list[Point]]:
    """Return the points that compete, best first, in a list for each protocol.

    A point competes if all its planned seeds have finished, because the seeds that failed or were stopped may be the
    bad ones. Points are ranked by their mean over the seeds that all of them have, or over all their seeds if there is
    no such seed. In a race of seeds they are ranked by their means in the block model, which uses all seeds and adjusts
    for seeds that a point lacks. Scores of different protocols are not comparable, so a sweep that varies the
    evaluation has several best points. Without a metric no point competes.

    Args:
        points: points and controls; controls never compete.
        metric: the metric that ranks the points; None without one.
        mode: "max" or "min", whichever is better in the metric.
    """
    groups: dict[str, list[Point]] = {}
    for point in points:
        if metric and not point.baseline and not point.missing and point.values(metric):
            groups.setdefault(point.protocol, []).append(point)
    return [ranked(group, str(metric), mode) for group in groups.values()]


def ranked(group: Sequence[Point], metric: str, mode: str) -> list[Point]:
    """Return the points of one protocol, best first."""
    values = ranking_values(group, metric)
    return sorted(group, key=lambda point: values[point.title], reverse=mode == "max")


def ranking_values(group: Sequence[Point], metric: str) -> dict[str, float]:
    """Return the values by which the points of one protocol are ranked, by their titles; see `rank_points`."""
    if divisor_of(group) > 1:
        effects = fit_blocks(matrix([point.scores(metric) for point in group])).effects
        return {point.title: float(effect) for point, effect in zip(group, effects, strict=True)}
    shared = shared_seeds(group, metric)
    return {
        point.title: fmean(value for seed, value in point.scores(metric).items() if seed in shared or not shared)
        for point in group
    }


def shared_seeds(group: Sequence[Point], metric: str) -> set[int]:
    """Return the seeds for which all points have the metric."""
    return set.intersection(*(set(point.scores(metric)) for point in group))


def tied(ranked: Sequence[Point], metric: str) -> list[Point]:
    """Return the first ranked point, and all points that have the same ranking value, apart from rounding."""
    values = ranking_values(ranked, metric)
    most = max(abs(value) for point in ranked for value in point.values(metric))
    return [point for point in ranked if abs(values[point.title] - values[ranked[0].title]) <= ROUNDING * most]
