"""How many digits of a metric a reader sees."""

from __future__ import annotations

import math

from raysweep.config import metrics_by_name

USUAL = 4
"""Decimals of a score, and significant digits of a small value of another metric."""
MOST = 12
"""Most decimals."""


def decimals_of(metric: str, *values: float | None) -> int:
    """Return the number of decimals for values that stand together, such as a mean and its interval.

    A metric whose highest value is 1, such as an accuracy, has `USUAL` decimals. Small values of other metrics have as
    many significant digits, because a loss may be 0.00008.

    Args:
        metric: The metric; empty for a score.
        values: The values; None is ignored.
    """
    most = max((abs(value) for value in values if value is not None and math.isfinite(value)), default=0.0)
    known = metrics_by_name().get(metric)
    if known is None or known.highest == 1 or most == 0 or most >= 0.1:
        return USUAL
    return min(MOST, USUAL - 1 - math.floor(math.log10(most)))
