"""Tests of how a score depends on one numeric setting: whether it rises, falls or has an optimum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import special, stats

from raysweep.report.statistics import (
    ALPHA,
    FEWEST_SEEDS,
    SPREAD_LEVEL,
    Array,
    BlockFit,
    Difference,
    compare_pairs,
    fit_blocks,
    spread_test,
)

Kind = Literal["optimum", "rises", "falls", "flat", "unknown"]


@dataclass(frozen=True)
class Shape:
    """How the score depends on one numeric setting; `pairs` is the result of `compare_pairs`."""

    kind: Kind
    best: int | None
    """The index of the value with the best estimated score; None without scores."""
    p_rises: float | None
    p_falls: float | None
    p_curved: float | None
    """The p-values of Page's test in both directions and of the quadratic contrast. Each is multiplied by three, the
    number of tests, and by the divisor of a race. It is at most 1. None where a test is impossible."""
    within: float | None
    """For "flat", the largest absolute bound of the intervals of all pairs that have one. Else None."""
    pairs: dict[tuple[int, int], Difference]


def average(scores: Array) -> Array:
    """Return the scores averaged over combinations of the other settings, shape (values, seeds).

    Only the seeds are the blocks of the tests, because trials of one seed are not independent. Two trials that differ
    only in a setting of little effect have nearly equal residuals.

    All means are over the same combinations. So a missing trial does not distort the comparison of two values. A
    combination is complete in a seed if the trials of all its values have finished. First, seeds in which no
    combination is complete are ignored. Then the means are over the combinations that are complete in every remaining
    seed. If there is no such combination, the means are over the combinations that are complete in at least one seed. A
    cell is then NaN if one of these combinations lacks it.

    Args:
        scores: shape (combinations, values, seeds), NaN where a cell is missing.
    """
    complete = ~np.isnan(scores.sum(1))
    used = complete[:, complete.any(0)].all(1)
    return np.asarray(scores[used if used.any() else complete.any(1)].mean(0))


def compare_shape(values: Array, better: Literal["max", "min"] = "max", divisor: int = 1) -> Shape:
    """Test whether the score rises, falls or has an optimum over the ordered values of one setting.

    Three tests share the familywise error by Bonferroni: Page's trend test in both directions (Page 1963, "Ordered
    hypotheses for multiple treatments"), which uses the complete blocks, and the quadratic contrast over the positions
    of the values in the block model. "optimum" means that the best value is an inner one, that the contrast is
    significant with the sign of an optimum, and that the best value differs from both end values in `compare_pairs`.
    It precedes "rises" and "falls", which do not depend on `better`. "flat" means that nothing is shown. "unknown"
    means fewer than three values or three complete blocks, or that nothing is shown and no pair has an interval.

    Args:
        values: scores, shape (values in order, seeds), NaN where a cell is missing. The seeds are the blocks; `average`
            gives such scores if other settings vary too.
        better: "max" where high scores are good.
        divisor: the error is divided by this number (see `raysweep.report.statistics`). P-values are multiplied by it,
            and the intervals of `pairs` have the corresponding level.
    """
    fit, pairs = fit_blocks(values), compare_pairs(values, divisor=divisor)
    sign, last = (1 if better == "max" else -1), len(values) - 1
    best = int(np.nanargmax(sign * fit.effects)) if np.isfinite(fit.effects).any() else None
    blocks = values[:, ~np.isnan(values).any(0)].T
    if last < 2 or len(blocks) < FEWEST_SEEDS or best is None:
        return Shape("unknown", best, None, None, None, None, pairs)
    ranks = stats.rankdata(blocks, axis=1)
    p_rises, p_falls = (
        min(1.0, 3 * divisor * float(stats.page_trend_test(x, True).pvalue)) for x in (ranks, ranks[:, ::-1])
    )
    curvature, p_curved = _curvature(values, fit, blocks, divisor)
    ends = [pairs[0, best].differs, pairs[best, last].differs] if 0 < best < last else [False]
    bounds = [abs(x) for pair in pairs.values() for x in (pair.low, pair.high) if x is not None]
    kind: Kind = "flat" if bounds else "unknown"
    if all(ends) and p_curved is not None and p_curved < ALPHA and sign * curvature < 0:
        kind = "optimum"
    elif min(p_rises, p_falls) < ALPHA:
        kind = "rises" if p_rises < p_falls else "falls"
    return Shape(kind, best, p_rises, p_falls, p_curved, max(bounds) if kind == "flat" else None, pairs)


def _curvature(values: Array, fit: BlockFit, blocks: Array, divisor: int) -> tuple[float, float | None]:
    """Return the quadratic contrast, and its two-sided p-value times the number of tests, three at each look.

    The spread test decides about the standard error as in the comparison of points.
    """
    position = np.arange(len(values)) - (len(values) - 1) / 2
    contrast = position**2 - (position**2).mean()
    estimate, p = float(contrast @ fit.effects), spread_test(values) or 1.0
    if not fit.spreads:
        return estimate, None
    if p < SPREAD_LEVEL:
        by_block = blocks @ contrast
        return float(by_block.mean()), min(1.0, 3 * divisor * float(stats.ttest_1samp(by_block, 0).pvalue))
    variance = max(float(contrast @ covariance @ contrast) for covariance in fit.covariances(p))
    return estimate, min(1.0, 6 * divisor * float(special.stdtr(fit.df, -abs(estimate) / np.sqrt(variance))))
