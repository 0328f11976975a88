"""The verdicts of `raysweep.report.statistics` about many simulated tables at once.

Tables that lack the same cells share their design and their critical values. So one pass of NumPy judges all of them,
where the module's functions judge one table. `test_statistics` compares the two on the first tables of each simulation.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from scipy import special, stats

from raysweep.report import statistics
from raysweep.report.statistics import fit_blocks


class Simulation:
    """Verdicts about tables of shape (tables, points, seeds), all with the same missing cells (NaN).

    The familywise error is divided by `divisor`.
    """

    def __init__(self, tables, divisor=1):
        self.tables = tables
        self.alpha = statistics.ALPHA / divisor
        self.points = tables.shape[1]
        present = ~np.isnan(tables[0])
        self.design = fit_blocks(tables[0]).design
        self.scores = tables[:, present].T
        self.residuals = self.scores - self.design.columns @ (self.design.solve @ self.scores)
        self.effects = self.design.weights @ self.scores
        self.df = round(float(self.design.share.sum()))
        self.pooled = (self.residuals**2).sum(0) / self.df

    @cached_property
    def spread_p(self):
        """The p-value of the test of equal spread for each table."""
        even = self.design.even
        above = len(even) - np.searchsorted(even, self.design.unevenness(self.residuals))
        return (1 + above) / (1 + len(even))

    def standard_errors(self, contrasts):
        """Standard errors of contrasts of the points, shape (contrasts, tables), unless the spread clearly differs."""
        squared = (contrasts @ self.design.weights) ** 2
        pooled = squared.sum(1)[:, None] * self.pooled
        own = np.maximum(self.design.moments @ self.design.squares(self.residuals), 0)
        doubtful = np.maximum(pooled, squared @ own[self.design.point])
        return np.sqrt(np.where(self.spread_p < statistics.DOUBT_LEVEL, doubtful, pooled))

    def judged(self, first, second):
        """Whether each pair of points shares enough seeds, shape (pairs,)."""
        shared = ~np.isnan(self.tables[0][first] - self.tables[0][second])
        return shared.sum(1) >= statistics.FEWEST_SEEDS

    def differ(self, first, second, critical):
        """Whether each pair of points differs, shape (pairs, tables)."""
        errors = self.standard_errors(np.eye(self.points)[first] - np.eye(self.points)[second])
        difference = self.effects[first] - self.effects[second]
        paired = self.tables[:, first] - self.tables[:, second]
        shared = (~np.isnan(paired)).sum(2)
        judged = self.judged(first, second)[:, None]
        with np.errstate(invalid="ignore"):
            t = np.nanmean(paired, 2) / np.nanstd(paired, 2, ddof=1) * np.sqrt(shared)
        p = np.where(judged, 2 * special.stdtr(shared - 1, -np.abs(t)).T, 1.0)
        order = p.argsort(0)
        levels = self.alpha / np.arange(judged.sum(), 0, -1)
        levels = np.r_[levels, np.zeros(len(first) - len(levels))][:, None]
        rejected = np.logical_and.accumulate(np.take_along_axis(p, order, 0) < levels)
        holm = np.zeros_like(judged & rejected)
        np.put_along_axis(holm, order, rejected, 0)
        return judged & np.where(self.spread_p < statistics.SPREAD_LEVEL, holm, np.abs(difference) > critical * errors)

    def from_control(self, control):
        """Whether each other point differs from the control, shape (points - 1, tables)."""
        others = np.delete(np.arange(self.points), control)
        controls = np.full(len(others), control)
        weights = self.design.weights[[control, *others[self.judged(others, controls)]]]
        critical = statistics._dunnett_critical((weights @ weights.T).tobytes(), len(weights), self.df, self.alpha)
        return self.differ(others, controls, critical)

    @cached_property
    def pairs(self):
        """Whether the points of each pair differ, shape (pairs, tables)."""
        first, second = np.triu_indices(self.points, 1)
        judged = self.judged(first, second)
        points = len(np.union1d(first[judged], second[judged]))
        return self.differ(first, second, statistics._quadrature_critical("tukey", points, self.df, self.alpha))

    def p_of_trends(self):
        """Three times the p-values of Page's test that the scores rise, and that they fall, shape (2, tables)."""
        blocks = self.tables[:, :, ~np.isnan(self.tables[0]).any(0)].swapaxes(1, 2)
        ranks = blocks.argsort(2).argsort(2) + 1.0
        known = {}
        result = []
        for each in (ranks, ranks[:, :, ::-1]):
            statistic = (each.sum(1) @ np.arange(1, self.points + 1)).round().astype(int)
            for value, place in zip(*np.unique(statistic, return_index=True), strict=True):
                if value not in known:  # the p-value depends on the statistic alone
                    known[value] = stats.page_trend_test(each[place], ranked=True).pvalue
            result.append([min(1.0, 3 * known[value]) for value in statistic])
        return np.array(result)

    def kinds(self):
        """The kind of shape of each table, as `compare_shape` names it, where high scores are good."""
        if (~np.isnan(self.tables[0]).any(0)).sum() < statistics.FEWEST_SEEDS:
            return np.full(len(self.tables), "unknown")  # Page's test needs more complete blocks
        p_rises, p_falls = self.p_of_trends()
        position = np.arange(self.points) - (self.points - 1) / 2
        contrast = position**2 - (position**2).mean()
        curvature = contrast @ self.effects
        p_curved = 6 * special.stdtr(self.df, -np.abs(curvature) / self.standard_errors(contrast[None])[0])
        by_block = np.einsum("tps,p->ts", self.tables[:, :, ~np.isnan(self.tables[0]).any(0)], contrast)
        uneven = self.spread_p < statistics.SPREAD_LEVEL
        p_curved = np.where(uneven, 3 * stats.ttest_1samp(by_block, 0, axis=1).pvalue, p_curved)
        curvature = np.where(uneven, by_block.mean(1), curvature)
        best, last = self.effects.argmax(0), self.points - 1
        number = np.full((self.points, self.points), -1)
        number[np.triu_indices(self.points, 1)] = range(len(self.pairs))
        table = np.arange(len(best))
        ends = (best > 0) & (best < last)
        ends &= self.pairs[number[0, best], table] & self.pairs[number[best, last], table]
        trend = np.where(p_rises < p_falls, "rises", "falls")
        kinds = np.where(np.minimum(p_rises, p_falls) < statistics.ALPHA, trend, "flat")
        return np.where(ends & (p_curved < statistics.ALPHA) & (curvature < 0), "optimum", kinds)
