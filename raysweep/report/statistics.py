"""Which points of a sweep differ beyond chance: intervals from the block model that hold together.

The model is `score[point, seed] = point + seed + residual`. The seeds are the blocks. The residuals are independent and
normal, and all points have the same residual spread, so all points together estimate the spread: with 7 points and 3
seeds it has 12 degrees of freedom, and a paired difference of two points has only 2.

Points may break the assumption of equal spread. A test of the spread therefore decides how the intervals are computed:

- The test gives no hint (p of at least `DOUBT_LEVEL`): the standard errors come from the pooled spread.
- The test leaves a doubt (p between the two levels): each standard error is the larger of two estimates, the pooled one
  and the one from the estimated spreads of the two points.
- The spread clearly differs (p below `SPREAD_LEVEL`): the differences are paired by seed, each has its own standard
  error, and Holm's method corrects for their number.

A simulation chose both levels. Its results are the familywise error (the chance of one or more false differences, for
all controls and for all pairs) of 7 equal points: at most 5 % where the spreads are equal; where one point has 5 times
the spread of the others, or the spread rises from 1 to 4, up to 11 % with 3 seeds, 8 % with 5 seeds and 5 % with 10
seeds. The pooled intervals alone reach 24 % there, with any number of seeds. Three seeds cannot tell reliably that
spreads differ, so no method keeps 5 % there and also finds small differences.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, sparse, special, stats

Array = NDArray[np.float64]
Indices = NDArray[np.intp]
Method = Literal["dunnett", "tukey", "holm"]

ALPHA = 0.05
"""The familywise error: all intervals of one family hold together with probability 1 − ALPHA."""
SPREAD_LEVEL = 0.04
"""Below this p-value of `spread_test` the spread clearly differs."""
DOUBT_LEVEL = 0.5
"""At or above this p-value of `spread_test` the pooled spread stands alone."""
FEWEST_SEEDS = 3
"""Two points that share fewer seeds get no interval."""
NO_SPREAD = 1e-9
"""Residuals that are smaller differ only by rounding: scores are counts of images, divided."""


@dataclass(frozen=True)
class Difference:
    """The score of one point minus the score of another, as one of a family of differences."""

    n: int
    """The number of seeds that both points have."""
    mean: float | None
    """The least-squares difference in the block model; for complete cells the mean of the paired differences. None
    where the points share no seed."""
    low: float | None
    high: float | None
    """The interval, adjusted for the whole family. None for fewer than three shared seeds and for no spread."""
    method: Method

    @property
    def differs(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class Shape:
    """How the score depends on one numeric setting."""

    kind: Literal["optimum", "rises", "falls", "flat", "unknown"]
    best: int | None
    """The index of the value with the best estimated score; None without scores."""
    p_rises: float | None
    p_falls: float | None
    p_curved: float | None
    """The p-values of Page's test in both directions and of the quadratic contrast. Each is multiplied by three, the
    number of tests, and is at most 1. None where a test is impossible."""
    within: float | None
    """For "flat", the largest absolute bound of the intervals of all pairs: no two values differ by more. Else None."""
    pairs: dict[tuple[int, int], Difference]
    """The result of `compare_pairs`."""


@dataclass(frozen=True, eq=False)
class Design:
    """All that follows from the pattern of the present cells, without the scores."""

    point: Indices
    """The point of each cell, shape (cells,). The cells are in row-major order."""
    weights: Array
    """The weights of the cells in each point's estimated mean, shape (points, cells)."""
    covariance: Array
    """The covariance of the estimated means for a residual variance of 1, shape (points, points)."""
    group: Indices
    """Points with the same number are connected through shared seeds, shape (points,); −1 without cells."""
    hat: tuple[Array, Array]
    """Two factors: their product turns scores into fitted scores, shapes (cells, points + seeds), transposed."""
    moments: Array
    """Turns the points' residual sums of squares into unbiased estimates of their variances, shape (points, points)."""
    share: Array
    """The residual degrees of freedom of each point, shape (points,). Their sum is `df`."""
    df: int

    def residuals(self, scores: Array) -> Array:
        """Residuals of scores of shape (cells, ...)."""
        left, right = self.hat
        return np.asarray(scores - left @ (right @ scores))

    def squares(self, residuals: Array) -> Array:
        """The sum of squares of each point, shape (points, ...), from residuals of shape (cells, ...)."""
        starts = np.flatnonzero(np.diff(self.point, prepend=-1))
        sums = np.zeros((len(self.group), *residuals.shape[1:]))
        if len(starts):
            sums[self.point[starts]] = np.add.reduceat(residuals**2, starts, axis=0)
        return sums

    def unevenness(self, squares: Array) -> Array:
        """The statistic of `spread_test`, shape (...), from sums of squares of shape (points, ...)."""
        has = self.share > 1e-9
        share = self.share[has].reshape(-1, *[1] * (squares.ndim - 1))
        ratio = squares[has] / share / (squares.sum(0) / self.df)
        return np.asarray((share * (ratio - 1) ** 2).sum(0))


@lru_cache(maxsize=64)
def _design(cells: bytes, points: int, seeds: int) -> Design:
    """The design of a mask of cells, as bytes of a Boolean array of shape (points, seeds)."""
    mask = np.frombuffer(cells, dtype=bool).reshape(points, seeds)
    point, seed = np.nonzero(mask)
    count = len(point)
    columns = np.zeros((count, points + seeds))
    columns[np.arange(count), point] = columns[np.arange(count), points + seed] = 1
    # The pseudo-inverse serves designs of several unconnected groups as well; no estimable difference depends on it.
    solve = np.linalg.pinv(columns.T @ columns, hermitian=True) @ columns.T
    graph = sparse.coo_array((np.ones(count), (point, points + seed)), shape=(points + seeds, points + seeds))
    groups, label = sparse.csgraph.connected_components(graph, directed=False)
    weights = solve[:points].copy()
    for number in range(groups):
        members, its_seeds = label[:points] == number, label[points:] == number
        if members.any() and its_seeds.any():
            weights[members] += solve[points:][its_seeds].mean(0)
    size = np.zeros((points, points))
    share = np.zeros(points)
    for index in range(points):
        own = np.flatnonzero(point == index)
        block = -columns[own] @ solve
        block[np.arange(len(own)), own] += 1
        share[index] = block[np.arange(len(own)), own].sum()
        size[index] = np.bincount(point, (block**2).sum(0), points)
    df = count - int(np.linalg.matrix_rank(columns)) if count else 0
    moments = np.linalg.pinv(size, rcond=1e-9, hermitian=True)
    group = np.where(mask.any(1), label[:points], -1)
    return Design(point, weights, weights @ weights.T, group, (columns, solve), moments, share, df)


@lru_cache(maxsize=64)
def _even(cells: bytes, points: int, seeds: int) -> Array:
    """The sorted statistic of `spread_test` for simulated scores of equal spread, shape (draws,)."""
    design = _design(cells, points, seeds)
    draws = int(np.clip(2_000_000 // len(design.point), 999, 3999))
    scores = np.random.default_rng(0).standard_normal((len(design.point), draws))
    return np.sort(design.unevenness(design.squares(design.residuals(scores))))


@dataclass(frozen=True, eq=False)
class BlockFit:
    """The least-squares fit of the block model."""

    design: Design
    effects: Array
    """The mean score of each point, adjusted for the seeds that it misses, shape (points,). NaN without cells. Means of
    points that are not connected through shared seeds are not comparable."""
    residuals: Array
    """Shape (cells,)."""
    variance: float | None
    """The pooled residual variance; None without degrees of freedom."""
    df: int
    """The residual degrees of freedom."""

    def comparable(self, first: int, second: int) -> bool:
        """Whether the difference of two points can be estimated: shared seeds connect them, directly or not."""
        return bool(self.design.group[first] == self.design.group[second] >= 0)

    def difference_variance(self, first: int, second: int) -> float | None:
        """The variance of the estimated difference of two points; None where it cannot be estimated."""
        if self.variance is None or not self.comparable(first, second):
            return None
        return self.variance * float(_of_differences(self.design.covariance, first, second))

    def own_covariance(self) -> Array:
        """The covariance of `effects` from an own residual variance of each point, shape (points, points).

        The variances solve the equations that set the points' sums of squares equal to their expectations (Rao 1970,
        "Estimation of heteroscedastic variances in linear models", MINQUE); a negative solution counts as zero.
        """
        variances = np.maximum(self.design.moments @ self.design.squares(self.residuals), 0)
        return np.asarray((self.design.weights * variances[self.design.point]) @ self.design.weights.T)


def _of_differences(covariance: Array, first: Any, second: Any) -> Array:
    """The variances of differences, from the covariance of the means."""
    return np.asarray(covariance[first, first] + covariance[second, second] - 2 * covariance[first, second])


def _key(values: Array) -> tuple[bytes, int, int]:
    """The pattern of present cells, as `_design` takes it. Raises ValueError for what is no table of scores."""
    if values.ndim != 2 or np.isinf(values).any():
        raise ValueError(f"the scores must be finite or NaN, with shape (points, seeds), not {values.shape}")
    return (~np.isnan(values)).tobytes(), *values.shape


def fit_blocks(values: Array) -> BlockFit:
    """Fits point and seed effects by least squares.

    Args:
        values: scores, shape (points, seeds), NaN where a cell is missing.

    Example:
        >>> fit_blocks(np.array([[0.1, 0.2, 0.4], [0.2, 0.4, 0.5]])).effects.round(4).tolist()
        [0.2333, 0.3667]
    """
    design = _design(*_key(values))
    scores = values[~np.isnan(values)]
    residuals = design.residuals(scores)
    effects = np.where(design.group >= 0, design.weights @ scores, np.nan)
    variance = float(residuals @ residuals) / design.df if design.df else None
    return BlockFit(design, effects, residuals, variance, design.df)


def spread_test(values: Array) -> float | None:
    """The p-value that the residual spread differs between points; None where there are too few cells.

    The statistic is the score statistic of Cook and Weisberg (1983, "Diagnostics for heteroscedasticity in
    regression") with one group per point: the weighted squared deviations of the points' residual mean squares from the
    pooled one. For equal normal spreads its distribution depends on nothing but the present cells, so 999 to 3999
    simulated tables with a fixed random state give its p-value (Dufour et al. 2004, "Simulation-based finite-sample
    tests for heteroskedasticity and ARCH effects"). Among Bartlett's, Cochran's and two other statistics this one found
    one noisy point as often as Cochran's, and a rising spread more often.

    Args:
        values: scores, shape (points, seeds), NaN where a cell is missing. The test needs three points with three cells
            each: the residuals of two points are equal in size.
    """
    fit = fit_blocks(values)
    if ((~np.isnan(values)).sum(1) >= FEWEST_SEEDS).sum() < 3 or _no_spread(fit):
        return None
    even = _even(*_key(values))
    statistic = float(fit.design.unevenness(fit.design.squares(fit.residuals)))
    return float((1 + len(even) - np.searchsorted(even, statistic)) / (1 + len(even)))


def _no_spread(fit: BlockFit) -> bool:
    """Whether all residuals are equal but for rounding, or no degrees of freedom are left."""
    return fit.df == 0 or float(np.abs(fit.residuals).max()) < NO_SPREAD


@lru_cache(maxsize=256)
def _quadrature_critical(method: Method, points: int, df: int) -> float:
    """The critical value for differences of independent means with equal variances, in standard errors.

    Two-dimensional Gauss-Legendre quadrature over the estimated spread s and over one mean z that the differences
    share: the control's mean (Dunnett 1964, "New tables for multiple comparisons with a control"), or the largest mean
    (Tukey's studentised range, divided by √2).
    """
    node, weight = np.polynomial.legendre.leggauss(96)
    ends = np.sqrt(stats.chi2.ppf([1e-10, 1 - 1e-10], df) / df)
    s = ends[0] + (node + 1) / 2 * (ends[1] - ends[0])
    density = weight * stats.chi.pdf(s * np.sqrt(df), df)
    density /= density.sum()
    z = 9 * node
    normal = 9 * weight * stats.norm.pdf(z)

    def excess(critical: float) -> float:
        reach = np.sqrt(2) * critical * s[:, None]
        if method == "dunnett":
            inside = (special.ndtr(z + reach) - special.ndtr(z - reach)) ** (points - 1)
        else:
            inside = points * (special.ndtr(z) - special.ndtr(z - reach)) ** (points - 1)
        return float(density @ inside @ normal) - (1 - ALPHA)

    return float(optimize.brentq(excess, 0.5, 200, xtol=1e-6))


@lru_cache(maxsize=256)
def _simulated_critical(covariance: bytes, points: int, df: int) -> float:
    """Dunnett's critical value for any covariance of the estimated means; the first mean is the control's.

    A fixed random state makes the result deterministic. The chance over the estimated spread is exact. The same random
    numbers give the critical value of equal variances too, and its known error is subtracted: the two errors are nearly
    the same, because the means of a design with some missing cells are nearly independent.
    """
    matrix = np.frombuffer(covariance).reshape(points, points)
    normal = np.random.default_rng(0).standard_normal((2**14, points))

    def critical(means: Array, variances: Array) -> float:
        largest = ((means[:, 1:] - means[:, :1]) ** 2 / variances).max(1)

        def excess(value: float) -> float:
            return float(special.gammainc(df / 2, df / 2 * largest / value**2).mean()) - ALPHA

        return float(optimize.brentq(excess, 0.5, 200, xtol=1e-5))

    rest = np.arange(1, points)
    actual = critical(normal @ np.linalg.cholesky(matrix).T, _of_differences(matrix, rest, 0))
    return actual - critical(normal, np.full(points - 1, 2.0)) + _quadrature_critical("dunnett", points, df)


def _compare(
    values: Array, first: Indices, second: Indices, method: Method, critical: Callable[[BlockFit, Indices], float]
) -> list[Difference]:
    """The differences first minus second.

    Args:
        values: scores, shape (points, seeds), NaN where a cell is missing.
        first: points, shape (differences,).
        second: points, shape (differences,).
        method: the method that the pooled spread serves.
        critical: gives its critical value, from the fit and the indices of the differences that get an interval.
    """
    fit = fit_blocks(values)
    paired = values[first] - values[second]
    n = (~np.isnan(paired)).sum(1)
    mean = fit.effects[first] - fit.effects[second]
    half = np.full(len(first), np.nan)
    judged = np.flatnonzero(n >= FEWEST_SEEDS)
    if len(judged) and not _no_spread(fit):
        p = spread_test(values)
        if p is not None and p < SPREAD_LEVEL:
            method = "holm"
            mean, half[judged] = _holm(paired, n, mean, judged)
        else:
            assert fit.variance is not None
            i, j = first[judged], second[judged]
            variance = fit.variance * _of_differences(fit.design.covariance, i, j)
            if p is not None and p < DOUBT_LEVEL:
                variance = np.maximum(variance, _of_differences(fit.own_covariance(), i, j))
            half[judged] = critical(fit, judged) * np.sqrt(variance)
    low, high = mean - half, mean + half
    return [
        Difference(
            int(n[k]), *(None if n[k] == 0 or np.isnan(x[k]) else float(x[k]) for x in (mean, low, high)), method
        )
        for k in range(len(first))
    ]


def _holm(paired: Array, n: Indices, mean: Array, judged: Indices) -> tuple[Array, Array]:
    """Means of all paired differences, and half-widths of the judged ones: each at the level at which Holm tests it.

    Holm (1979, "A simple sequentially rejective multiple test procedure") stops at the first difference that is not
    shown. The later differences take its level, so an interval excludes zero exactly where Holm rejects.
    """
    mean = mean.copy()
    for k in np.flatnonzero(n):
        mean[k] = np.nanmean(paired[k])
    error = np.nanstd(paired[judged], axis=1, ddof=1) / np.sqrt(n[judged])
    spread = np.nanmax(paired[judged], 1) - np.nanmin(paired[judged], 1) >= NO_SPREAD
    half = np.full(len(judged), np.nan)
    tested = np.flatnonzero(spread)
    p = 2 * stats.t.sf(np.abs(mean[judged][tested]) / error[tested], n[judged][tested] - 1)
    order = np.argsort(p, kind="stable")
    levels = ALPHA / np.arange(len(tested), 0, -1)
    failed = np.flatnonzero(p[order] >= levels)
    if len(failed):
        levels[failed[0] :] = levels[failed[0]]
    chosen = tested[order]
    half[chosen] = stats.t.isf(levels / 2, n[judged][chosen] - 1) * error[chosen]
    return mean, half


def compare_with_control(values: Array, control: int) -> dict[int, Difference]:
    """Every other point minus the control, by the index of the other point.

    The pooled intervals are Dunnett's (1955, "A multiple comparison procedure for comparing several treatments with a
    control"), two-sided. The critical value uses the actual correlation of the differences: it is exact for complete
    cells, where the correlation is 1/2, and simulated with an error of about 0.001 otherwise.

    Args:
        values: scores, shape (points, seeds), NaN where a cell is missing.
        control: the index of the control.

    Example:
        >>> rows = np.array([[0.10, 0.12, 0.20], [0.31, 0.32, 0.41], [0.11, 0.14, 0.20]])
        >>> [difference.differs for difference in compare_with_control(rows, 0).values()]
        [True, False]
    """
    others = np.delete(np.arange(len(values)), control)

    def critical(fit: BlockFit, judged: Indices) -> float:
        members = np.concatenate([[control], others[judged]])
        matrix = fit.design.covariance[np.ix_(members, members)]
        differences = matrix[1:, 1:] - matrix[1:, :1] - matrix[:1, 1:] + matrix[0, 0]
        scale = np.sqrt(np.diag(differences))
        correlation = differences / np.outer(scale, scale)
        if np.allclose(correlation, (np.eye(len(judged)) + 1) / 2):
            return _quadrature_critical("dunnett", len(members), fit.df)
        return _simulated_critical(np.ascontiguousarray(matrix).tobytes(), len(members), fit.df)

    found = _compare(values, others, np.full(len(others), control), "dunnett", critical)
    return {int(other): difference for other, difference in zip(others, found, strict=True)}


def compare_pairs(values: Array) -> dict[tuple[int, int], Difference]:
    """The first minus the second point of every pair of points, by their indices, the lower index first.

    The pooled intervals are Tukey's (studentised range). With missing cells they are those of Tukey and Kramer (Kramer
    1956, "Extension of multiple range tests to group means with unequal numbers of replications").

    Args:
        values: scores, shape (points, seeds), NaN where a cell is missing.
    """

    def critical(fit: BlockFit, judged: Indices) -> float:
        return _quadrature_critical("tukey", len(np.union1d(first[judged], second[judged])), fit.df)

    first, second = np.triu_indices(len(values), 1)
    found = _compare(values, first, second, "tukey", critical)
    return dict(zip(zip(first.tolist(), second.tolist(), strict=True), found, strict=True))


def compare_shape(values: Array, better: Literal["max", "min"] = "max") -> Shape:
    """Whether the score rises, falls or has an optimum over the ordered values of one setting.

    Three tests share the familywise error by Bonferroni: Page's trend test in both directions (Page 1963, "Ordered
    hypotheses for multiple treatments"), which uses the complete blocks, and the quadratic contrast over the positions
    of the values in the block model. "optimum" means: the best value is an inner one, the contrast is significant with
    the sign of an optimum, and the best value differs from both end values in `compare_pairs`. It takes precedence over
    "rises" and "falls", which describe the score whatever `better` is. "flat" means that none of them is shown.

    Args:
        values: scores, shape (values of the setting in order, blocks), NaN where a cell is missing. Blocks are seeds,
            or combinations of seeds and other settings.
        better: "max" where high scores are good.

    Returns:
        The shape. Its kind is "unknown" for fewer than three values or three complete blocks, and where nothing is
        shown and no pair has an interval.
    """
    pairs = compare_pairs(values)
    fit = fit_blocks(values)
    sign = 1 if better == "max" else -1
    best = int(np.nanargmax(sign * fit.effects)) if np.isfinite(fit.effects).any() else None
    blocks = values[:, ~np.isnan(values).any(0)].T
    last = len(values) - 1
    if last < 2 or len(blocks) < FEWEST_SEEDS or best is None:
        return Shape("unknown", best, None, None, None, None, pairs)
    p_rises = min(1.0, 3 * float(stats.page_trend_test(blocks).pvalue))
    p_falls = min(1.0, 3 * float(stats.page_trend_test(blocks[:, ::-1]).pvalue))
    curvature, p = _curvature(values, fit, blocks)
    p_curved = None if p is None else min(1.0, 3 * p)
    ends = [pairs[0, best].differs, pairs[best, last].differs] if 0 < best < last else [False]
    bounds = [abs(x) for pair in pairs.values() for x in (pair.low, pair.high) if x is not None]
    kind: Literal["optimum", "rises", "falls", "flat", "unknown"]
    if all(ends) and p_curved is not None and p_curved < ALPHA and sign * curvature < 0:
        kind = "optimum"
    elif min(p_rises, p_falls) < ALPHA:
        kind = "rises" if p_rises < p_falls else "falls"
    else:
        kind = "flat" if bounds else "unknown"
    return Shape(kind, best, p_rises, p_falls, p_curved, max(bounds) if kind == "flat" else None, pairs)


def _curvature(values: Array, fit: BlockFit, blocks: Array) -> tuple[float, float | None]:
    """The quadratic contrast and its two-sided p-value, judged by the spread as `_compare` judges a difference."""
    position = np.arange(len(values)) - (len(values) - 1) / 2
    contrast = position**2 - (position**2).mean()
    if _no_spread(fit):
        return float(contrast @ fit.effects), None
    p = spread_test(values)
    if p is not None and p < SPREAD_LEVEL:
        by_block = blocks @ contrast
        result = stats.ttest_1samp(by_block, 0)
        return float(by_block.mean()), float(result.pvalue)
    assert fit.variance is not None
    estimate = float(contrast @ fit.effects)
    variance = fit.variance * float(contrast @ fit.design.covariance @ contrast)
    if p is not None and p < DOUBT_LEVEL:
        variance = max(variance, float(contrast @ fit.own_covariance() @ contrast))
    return estimate, float(2 * stats.t.sf(abs(estimate) / np.sqrt(variance), fit.df))


def seeds_needed(difference: float, residual_variance: float, points: int, most: int = 50) -> int | None:
    """The smallest number of seeds, three or more, with which a pooled Tukey interval would exclude zero.

    The estimates are taken to stay as they are. If the true difference is `difference`, that many seeds show it with a
    probability of about one half, not with certainty.

    Args:
        difference: of two points' means.
        residual_variance: of single scores, as `fit_blocks` estimates it.
        points: the number of points, at least 2, with complete cells.
        most: the largest number of seeds to consider.

    Returns:
        The number of seeds; None where `most` seeds are too few.
    """
    for seeds in range(FEWEST_SEEDS, most + 1):
        # The critical value is at least 1.96 for any number of seeds, so that most numbers need no quadrature.
        error = float(np.sqrt(2 * residual_variance / seeds))
        if abs(difference) > 1.95 * error:
            df = (points - 1) * (seeds - 1)
            if abs(difference) > _quadrature_critical("tukey", points, df) * error:
                return seeds
    return None
