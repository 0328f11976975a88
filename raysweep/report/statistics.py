"""Tests of which points of a sweep differ: simultaneous intervals from a model with the seeds as blocks.

The model is `score[point, seed] = point + seed + residual`; the seeds are the blocks. The residuals are normal with the
same spread at all points, so all points together estimate it: 7 points with 3 seeds give 12 degrees of freedom, and a
paired difference gives 2. A test of equal spread decides which standard error a difference has:

- p of at least `DOUBT_LEVEL`: the standard error from the pooled spread.
- p between the levels: the larger of two standard errors: the pooled standard error, and the standard error from the
  spreads of the two points.
- p below `SPREAD_LEVEL`: the standard error of the differences paired by seed, with Holm's correction.

A simulation chose the levels. With 7 equal points the familywise error, the chance of any false difference, is at most
5 % for equal spreads. Where one point has 5 times the spread of the others, or the spread rises from 1 to 4, the error
is up to 11 % with 3 seeds, 8 % with 5 and 5 % with 10. Pooled intervals alone reach 24 % with any number of seeds.

A race of seeds looks at its results several times, at the pairs of points and at the differences from each control. The
looks and these tables divide the familywise error equally: every interval and test has the level `ALPHA / divisor`, and
`divisor` is the planned number of looks times the number of tables. By Bonferroni's inequality the chance of any false
difference at any look is then at most the error of one look at one table. Looks with equal levels are Pocock's design
(1977, "Group sequential methods in the design and analysis of clinical trials"). His levels are less strict, but they
hold for one comparison with a known spread.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, sparse, special, stats
from scipy.sparse import csgraph

Array = NDArray[np.float64]
Indices = NDArray[np.intp]
Method = Literal["dunnett", "tukey", "holm"]

ALPHA = 0.05
"""The familywise error."""
SPREAD_LEVEL, DOUBT_LEVEL = 0.04, 0.5
"""P-values of `spread_test`: below the first the spreads clearly differ, from the second on they count as equal."""
FEWEST_SEEDS = 3  # two points that share fewer seeds get no interval
NO_SPREAD = 1e-9  # smaller residuals are rounding errors, because scores are fractions of a number of images


@dataclass(frozen=True)
class Difference:
    """The score of one point minus the score of another, as one of a family of differences."""

    n: int
    """The number of seeds that both points have."""
    mean: float | None
    """The least-squares difference in the block model, or the mean of the paired differences for "holm"; the two are
    equal for complete cells. None where the points share no seed."""
    low: float | None
    high: float | None
    """The bounds of the interval, adjusted for the family; None for fewer than three shared seeds or no spread."""
    method: Method
    paired: tuple[float, ...] = ()
    """The difference in each seed that both points have, first minus second."""
    widened: float = 1.0
    """The squared standard error of the interval, divided by the squared standard error from the pooled spread. It is
    above 1 if the test of equal spread is unclear and the two points have the larger spread."""

    @property
    def differs(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True, eq=False)
class Design:
    """The part of the fit that depends only on which cells are present. The cells are in row-major order."""

    point: Indices
    """The point of each cell, shape (cells,)."""
    columns: Any  # a sparse array with one column for each point and each seed, shape (cells, points + seeds)
    solve: Array
    """Turns scores into least-squares effects of points and seeds, shape (points + seeds, cells)."""
    weights: Array
    """The weights of the cells in the adjusted mean of each point, shape (points, cells)."""
    group: Indices
    """The group of each point, shape (points,); shared seeds connect the points of a group. −1 without cells."""
    share: Array
    """The residual degrees of freedom of each point, shape (points,)."""

    @cached_property
    def moments(self) -> Array:
        """Turns the points' residual sums of squares into unbiased estimates of their variances, (points, points)."""
        cells, points = len(self.point), len(self.group)
        indicator, products = self.columns[:, :points], np.zeros((points, points))
        # A block of rows at a time, because the matrix that makes residuals has the shape (cells, cells).
        for rows in np.array_split(np.arange(cells), cells // 256 + 1):
            maker = -(self.columns[rows] @ self.solve)
            maker[np.arange(len(rows)), rows] += 1
            products += indicator[rows].T @ (maker**2 @ indicator)
        return np.asarray(np.linalg.pinv(products, rcond=1e-9, hermitian=True))

    def squares(self, scores: Array) -> Array:
        """Return the residual sums of squares, shape (points, draws), from scores of shape (cells, draws)."""
        return np.asarray(self.columns[:, : len(self.group)].T @ (scores - self.columns @ (self.solve @ scores)) ** 2)

    def unevenness(self, scores: Array) -> Array:
        """Return the statistic of `spread_test`, shape (draws,), from scores of shape (cells, draws)."""
        squares, has = self.squares(scores), self.share > 1e-9
        ratio = squares[has].T / self.share[has] / (squares.sum(0) / self.share.sum())[:, None]
        return np.asarray((ratio - 1) ** 2 @ self.share[has])

    @cached_property
    def even(self) -> Array:
        """The sorted statistic of `spread_test` for simulated scores of equal spread, shape (draws,)."""
        draws = int(np.clip(2_000_000 // len(self.point), 999, 3999))
        return np.sort(self.unevenness(np.random.default_rng(0).standard_normal((len(self.point), draws))))


def _solution(mask: NDArray[np.bool_], point: Indices, seed: Indices) -> tuple[Array, Array]:
    """Return two matrices that turn scores into least-squares effects: of points, and of seeds.

    Their shapes are (points, cells) and (seeds, cells). `mask` has the shape (points, seeds), and says which cells are
    present. `point` and `seed` have the shape (cells,), and say where each present cell is.
    """
    points, seeds = mask.shape
    if points < seeds:
        by_seed, by_point = _solution(mask.T, seed, point)
        return by_point, by_seed
    # The normal equations of the point effects are diagonal. Without them, one equation for each seed is left.
    parts = mask / np.maximum(mask.sum(1, keepdims=True), 1)
    reduced = np.diag(mask.sum(0)) - mask.T @ parts
    by_seed = np.linalg.pinv(reduced, rcond=1e-10, hermitian=True) @ (np.eye(seeds)[:, seed] - parts[point].T)
    by_point = -parts @ by_seed
    by_point[point, np.arange(len(point))] += parts[point, seed]
    return by_point, by_seed


@lru_cache(maxsize=64)
def _design(cells: bytes, points: int, seeds: int) -> Design:
    """Return the design of a mask of present cells: the bytes of a Boolean array of shape (points, seeds)."""
    mask = np.frombuffer(cells, dtype=bool).reshape(points, seeds)
    point, seed = np.nonzero(mask)
    cell = np.arange(len(point))
    places = np.tile(cell, 2), np.concatenate([point, points + seed])
    columns = sparse.csr_array((np.ones(2 * len(cell)), places), shape=(len(cell), points + seeds))
    by_point, by_seed = _solution(mask, point, seed)
    _, label = csgraph.connected_components(columns.T @ columns, directed=False)
    together = label[:points, None] == label[points:]
    weights = by_point + together / np.maximum(together.sum(1, keepdims=True), 1) @ by_seed
    share = np.asarray(columns[:, :points].T @ (1 - by_point[point, cell] - by_seed[seed, cell]))
    group = np.where(mask.any(1), label[:points], -1)
    return Design(point, columns, np.vstack([by_point, by_seed]), weights, group, share)


@dataclass(frozen=True, eq=False)
class BlockFit:
    """The least-squares fit of the block model."""

    design: Design
    effects: Array
    """The mean score of each point, adjusted for the seeds that it lacks, shape (points,); NaN without cells."""
    residuals: Array
    """The residual of each cell, shape (cells,)."""
    df: int  # the residual degrees of freedom
    variance: float
    """The pooled residual variance; NaN without degrees of freedom."""
    covariance: Array
    """The covariance of `effects` from the pooled variance, shape (points, points)."""
    spreads: bool
    """Whether the residuals differ from zero by more than rounding."""

    def difference_variance(self, first: int, second: int) -> float | None:
        """Return the variance of a difference of two points; None if the difference cannot be estimated."""
        comparable = self.design.group[first] == self.design.group[second] >= 0
        return float(_of_differences(self.covariance, first, second)) if comparable and self.df else None

    def covariances(self, p: float) -> list[Array]:
        """Return the covariances of `effects` to use for a p-value of `spread_test`, each of shape (points, points).

        If `p` is below `DOUBT_LEVEL`, the second covariance uses a separate residual variance for each point. These
        variances equate the points' sums of squares with their expectations (Rao 1970, "Estimation of heteroscedastic
        variances in linear models"); a negative one counts as zero.
        """
        if p >= DOUBT_LEVEL:
            return [self.covariance]
        variances = np.maximum(self.design.moments @ self.design.squares(self.residuals), 0)
        return [self.covariance, (self.design.weights * variances[self.design.point]) @ self.design.weights.T]


def _of_differences(covariance: Array, first: Any, second: Any) -> Array:
    """Return the variances of differences between means, from the covariance of the means."""
    return np.asarray(covariance[first, first] + covariance[second, second] - 2 * covariance[first, second])


def fit_blocks(values: Array) -> BlockFit:
    """Fit point and seed effects by least squares.

    Args:
        values: scores, shape (points, seeds), NaN where a cell is missing.

    Example:
        >>> fit_blocks(np.array([[0.1, 0.2, 0.4], [0.2, 0.4, 0.5]])).effects.round(4).tolist()
        [0.2333, 0.3667]
    """
    present = ~np.isnan(values)
    if present.ndim != 2 or np.isinf(values).any():
        raise ValueError(f"the scores must be finite or NaN, with shape (points, seeds), not {values.shape}")
    design, scores = _design(present.tobytes(), *present.shape), values[present]
    effects = np.where(design.group >= 0, design.weights @ scores, np.nan)
    residuals = scores - design.columns @ (design.solve @ scores)
    df = round(float(design.share.sum()))
    variance = float(residuals @ residuals) / df if df else float("nan")
    spreads = df > 0 and float(np.abs(residuals).max()) >= NO_SPREAD
    return BlockFit(design, effects, residuals, df, variance, variance * design.weights @ design.weights.T, spreads)


def spread_test(values: Array) -> float | None:
    """Return the p-value for equal residual spread of all points; None if there are too few cells.

    The score test of Cook and Weisberg (1983, "Diagnostics for heteroscedasticity in regression") with one group per
    point compares the points' residual mean squares with the pooled one. For equal normal spreads the distribution of
    its statistic depends only on the pattern of cells, so 999 to 3999 simulated tables with a fixed random state give
    the p-value (Dufour et al. 2004, "Simulation-based finite-sample tests for heteroskedasticity and ARCH effects").

    Args:
        values: scores, shape (points, seeds), NaN where a cell is missing. The test needs three points with three cells
            each, because the residuals of two points are equal in size.
    """
    fit = fit_blocks(values)
    if ((~np.isnan(values)).sum(1) >= FEWEST_SEEDS).sum() < 3 or not fit.spreads:
        return None
    even, statistic = fit.design.even, fit.design.unevenness(fit.residuals[:, None])[0]
    above = len(even) - np.searchsorted(even, statistic)
    return float((1 + above) / (1 + len(even)))


def _root(excess: Callable[[float], float], differences: int, df: int, alpha: float) -> float:
    """Return the critical value for the error `alpha`, which lies between Student's t without and with Bonferroni."""
    low, high = stats.t.isf([alpha / 2, alpha / 2 / differences], df)
    return float(optimize.brentq(excess, low * 0.99, high * 1.01, xtol=1e-6))


@lru_cache(maxsize=256)
def _quadrature_critical(method: Method, points: int, df: int, alpha: float = ALPHA) -> float:
    """Return the critical value for differences of independent means of equal variance, in standard errors.

    Gauss-Legendre quadrature integrates over the estimated spread s and over the mean z that the differences share: the
    control's (Dunnett 1964, "New tables for multiple comparisons with a control") or the largest mean (Tukey's range).
    The largest of many means has a narrow distribution, which needs more nodes. The error is below 1e-7 in both cases.
    """
    node, weight = np.polynomial.legendre.leggauss(80)
    ends = np.sqrt(special.chdtri(df, [1 - 1e-10, 1e-10]) / df)
    s = ends[0] + (node + 1) / 2 * (ends[1] - ends[0])
    density = weight * stats.chi.pdf(s * np.sqrt(df), df)
    if method == "tukey" and points > 30:
        node, weight = np.polynomial.legendre.leggauss(240)
    z, normal = 9 * node, 9 * weight * stats.norm.pdf(9 * node)

    def excess(critical: float) -> float:
        reach = np.sqrt(2) * critical * s[:, None]
        above = special.ndtr(z + reach) if method == "dunnett" else special.ndtr(z)
        inside = (above - special.ndtr(z - reach)) ** (points - 1) * (1 if method == "dunnett" else points)
        return float(density / density.sum() @ inside @ normal) - (1 - alpha)

    return _root(excess, points - 1 if method == "dunnett" else points * (points - 1) // 2, df, alpha)


def tukey_critical(points: int, df: int, divisor: int = 1) -> float:
    """Return the critical value for all pairs of points with complete cells, in standard errors of a difference."""
    return _quadrature_critical("tukey", points, df, ALPHA / divisor)


@lru_cache(maxsize=256)
def _dunnett_critical(covariance: bytes, points: int, df: int, alpha: float = ALPHA) -> float:
    """Return Dunnett's critical value for any covariance of the means, up to a factor; the first mean is the control's.

    Two means have one difference, so their value is Student's t. More means are simulated where cells are missing, with
    a fixed random state; the integral over the spread is exact. The same random numbers also give a critical value for
    complete cells. Its error is known, and is subtracted.
    """
    if points == 2:
        return float(special.stdtrit(df, 1 - alpha / 2))
    matrix = np.frombuffer(covariance).reshape(points, points)
    exact = _quadrature_critical("dunnett", points, df, alpha)
    if np.allclose(matrix, np.eye(points) * matrix[0, 0]):
        return exact
    normal = np.random.default_rng(0).standard_normal((2**14, points))

    def critical(means: Array, variances: Array | int) -> float:
        largest = df / 2 * ((means[:, 1:] - means[:, :1]) ** 2 / variances).max(1)
        return _root(lambda c: float(special.gammainc(df / 2, largest / c**2).mean()) - alpha, 10 * points, df, alpha)

    variances = _of_differences(matrix, np.arange(1, points), 0)
    return exact + critical(normal @ np.linalg.cholesky(matrix).T, variances) - critical(normal, 2)


def _compare(values: Array, first: Indices, second: Indices, method: Method, divisor: int) -> list[Difference]:
    """Return the differences of points, first minus second. `method` is used unless the spreads clearly differ.

    For "tukey" the adjustment counts all pairs of points, even if `first` and `second` have only some of them.
    """
    fit, p, alpha = fit_blocks(values), spread_test(values) or 1.0, ALPHA / divisor
    paired, present = values[first] - values[second], (~np.isnan(values)).astype(int)
    shared = present @ present.T
    n = shared[first, second]
    mean = np.where(n > 0, fit.effects[first] - fit.effects[second], np.nan)
    half, widened = np.full(len(first), np.nan), np.ones(len(first))
    judged = np.flatnonzero(n >= FEWEST_SEEDS)
    i, j = first[judged], second[judged]
    family = np.nonzero(np.triu(shared >= FEWEST_SEEDS, 1)) if method == "tukey" else (i, j)
    if len(judged) and fit.spreads and p < SPREAD_LEVEL:
        method = "holm"
        mean[judged], half[judged] = _holm(paired[judged], n[judged], alpha, len(family[0]) - len(judged))
    elif len(judged) and fit.spreads:
        pooled, *doubtful = (_of_differences(covariance, i, j) for covariance in fit.covariances(p))
        variance = np.max([pooled, *doubtful], 0)
        widened[judged] = variance / pooled
        if method == "tukey":
            critical = tukey_critical(len(np.union1d(*family)), fit.df, divisor)
        else:
            weights = fit.design.weights[np.concatenate([j[:1], i])]
            critical = _dunnett_critical((weights @ weights.T).tobytes(), len(weights), fit.df, alpha)
        half[judged] = critical * np.sqrt(variance)
    means, lows, highs = ([None if math.isnan(x) else x for x in y.tolist()] for y in (mean, mean - half, mean + half))
    by_seed = [tuple(row[~np.isnan(row)].tolist()) for row in paired]
    rows = zip(n.tolist(), means, lows, highs, [method] * len(n), by_seed, widened.tolist(), strict=True)
    return [Difference(*row) for row in rows]


def _holm(paired: Array, n: Indices, alpha: float, others: int) -> tuple[Array, Array]:
    """Return the means of paired differences, shape (differences, seeds), and the half-widths of their intervals.

    Each interval has the level at which Holm tests its difference (1979, "A simple sequentially rejective multiple test
    procedure"). All differences after the first one that is not shown use the level of that one, so an interval
    excludes zero exactly if Holm's method rejects. The intervals do not cover all true differences with 95 %.

    Args:
        paired: the paired differences.
        n: the number of seeds of each difference.
        alpha: the familywise error.
        others: the number of further differences of the family. They count as tests that do not reject, because the
            scores may have chosen which differences are compared.
    """
    mean, error = np.nanmean(paired, 1), np.nanstd(paired, 1, ddof=1) / np.sqrt(n)
    half = np.full(len(n), np.nan)
    tested = np.flatnonzero(np.nanmax(paired, 1) - np.nanmin(paired, 1) >= NO_SPREAD)
    p = 2 * special.stdtr(n[tested] - 1, -np.abs(mean[tested]) / error[tested])
    order = np.argsort(p, kind="stable")
    levels = alpha / (others + np.arange(len(tested), 0, -1))
    for stop in np.flatnonzero(p[order] >= levels)[:1]:
        levels[stop:] = levels[stop]
    chosen = tested[order]
    half[chosen] = -special.stdtrit(n[chosen] - 1, levels / 2) * error[chosen]
    return mean, half


def compare_with_control(values: Array, control: int, divisor: int = 1) -> dict[int, Difference]:
    """Return every other point minus the control, by the index of the other point.

    The pooled intervals are Dunnett's (1955, "A multiple comparison procedure for comparing several treatments with a
    control"), two-sided. The critical value uses the actual correlation of the differences: it is exact for complete
    cells, where the correlation is 1/2, and simulated with an error of about 0.001 otherwise.

    Args:
        values: scores, shape (points, seeds), NaN where a cell is missing.
        control: the index of the control.
        divisor: the error is divided by this number; 1 unless the seeds are a race.
    """
    others = np.delete(np.arange(len(values)), control)
    differences = _compare(values, others, np.full(len(others), control), "dunnett", divisor)
    return dict(zip(others.tolist(), differences, strict=True))


def compare_pairs(values: Array, only: int | None = None, divisor: int = 1) -> dict[tuple[int, int], Difference]:
    """Return the first minus the second point of every pair of points, by their indices, the lower index first.

    The pooled intervals are Tukey's (studentised range). With missing cells they are Tukey and Kramer's (Kramer 1956).

    Args:
        values: scores, shape (points, seeds), NaN where a cell is missing.
        only: return the pairs with this point only. Tukey's and Holm's methods count all pairs nevertheless, because
            the scores may have chosen the point.
        divisor: see `compare_with_control`.
    """
    pairs = np.transpose(np.triu_indices(len(values), 1))
    first, second = pairs[(pairs == only).any(axis=1) | (only is None)].T
    keys = zip(first.tolist(), second.tolist(), strict=True)
    return dict(zip(keys, _compare(values, first, second, "tukey", divisor), strict=True))
