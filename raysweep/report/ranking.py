"""The order of points: which of them compete, and which of these is best."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import numpy as np

from raysweep.report.points import Point, divisor_of, matrix
from raysweep.report.statistics import fit_blocks


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
    scores = {point.title: point.scores(metric) for point in group}
    if divisor_of(group) > 1:
        effects = fit_blocks(matrix([point.scores(metric) for point in group])).effects
        order = np.argsort(-effects if mode == "max" else effects, kind="stable")
        return [group[index] for index in order]
    shared = set.intersection(*(set(by_seed) for by_seed in scores.values()))
    means = {
        title: fmean(value for seed, value in by_seed.items() if seed in shared or not shared)
        for title, by_seed in scores.items()
    }
    return sorted(group, key=lambda point: means[point.title], reverse=mode == "max")
