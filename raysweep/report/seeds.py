"""How many seeds would show a difference between two points."""

from __future__ import annotations

import math

import numpy as np

from raysweep.report.statistics import FEWEST_SEEDS, Difference, tukey_critical


def seeds_needed(
    difference: float, residual_variance: float, points: int, most: int = 50, divisor: int = 1
) -> int | None:
    """Return the least number of seeds with which a pooled Tukey interval would exclude zero; None above `most`.

    This assumes that the estimates stay the same. If the true difference is `difference`, that many seeds show it with
    a probability of about one half.

    Args:
        difference: the difference of two points' means.
        residual_variance: the variance of single scores, as `fit_blocks` estimates it.
        points: the number of points, at least 2, with complete cells.
        most: the largest number of seeds to consider.
        divisor: see `raysweep.report.statistics`.
    """
    for seeds in range(FEWEST_SEEDS, most + 1):
        critical = tukey_critical(points, (points - 1) * (seeds - 1), divisor)
        if abs(difference) > critical * np.sqrt(2 * residual_variance / seeds):
            return seeds
    return None


def seeds_to_show(
    difference: Difference, residual_variance: float, points: int, most: int = 50, divisor: int = 1
) -> int | None:
    """Return about how many seeds would show a difference whose interval contains zero; None if more than `most`.

    `seeds_needed` gives the number, as if no cell were missing. It uses the variance of the interval, which is above
    the pooled variance if the interval uses the larger spread of the two points. There are two exceptions: Holm's
    method, and points that already have that many seeds. Then the width of the interval gives the number, because it
    shrinks about with the square root of the number of seeds.
    """
    assert difference.mean is not None
    assert difference.low is not None
    assert difference.high is not None
    if difference.method != "holm":
        seeds = seeds_needed(difference.mean, residual_variance * difference.widened, points, most, divisor)
        if seeds is None or seeds > difference.n:
            return seeds
    ratio = (difference.high - difference.low) / 2 / abs(difference.mean) if difference.mean else math.inf
    needed = difference.n * ratio * ratio
    return max(math.ceil(needed), difference.n + 1) if max(needed, difference.n + 1) <= most else None
