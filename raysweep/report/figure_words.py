"""The figures that a report can have, in words. This module needs no Matplotlib."""

from __future__ import annotations

from raysweep.report.contents import Report
from raysweep.report.points import LEAST_SEEDS
from raysweep.space import Sweep


def is_drawn(sweep: Sweep) -> bool:
    """Return whether the values of any setting are drawn at random or proposed, so that points form no grid."""
    return any(kind != "grid" for name, kind in sweep.distributions if name != "seed")


def figure_words(report: Report) -> dict[str, str]:
    """Return, for each possible figure of the report, what it shows. The keys are the names of the figures."""
    searched = list(dict.fromkeys(name for member in report.members for name in member.sweep.searched))
    has_intervals = any(len(point.by_seed) >= LEAST_SEEDS for point in report.points)
    mean = f"the mean over seeds{' with its interval' if has_intervals else ''}"
    is_scatter = any(is_drawn(member.sweep) for member in report.members)
    marks = "a dot for each point, at its mean over seeds" if is_scatter else mean
    words = {
        "comparison": f"the scores of the points one below another: {mean}",
        "parallel_coordinates": "a line for each point through its values of all settings and its score",
        "importance": "the share of the variance of each score that each setting explains",
        "layers": "the test accuracy of a linear probe on every block of the encoder, in a panel for each drawn point",
    }
    for setting in searched:
        words[setting] = f"the scores against {setting}: {marks}"
        words[f"{setting}_minus_random"] = f"the scores minus the scores of the random encoder, against {setting}"
        for other in searched:
            words[f"{setting}_x_{other}"] = f"the mean scores as colours over {setting} and {other}"
    return words
