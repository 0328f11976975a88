"""Sentences about a race of seeds: which points got more seeds, and why it ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from raysweep.space import Sweep, short_names
from raysweep.space.race import largest

NAMES = {"random": "the random encoder", "pixels": "raw pixels", "pca": "PCA", "supervised": "supervised training"}
"""The controls in a sentence."""
ENDS = {
    "settled": "The race ended because the best point is separated from every other point and control that it is "
    "compared with",
    "most": "The race ended because the points that are not separated from the best one have all their seeds",
    "budget": "The time budget stopped the race; a resume continues it",
    "incomparable": "The race ended because no two points can be compared",
    "": "The race has not ended; a resume continues it",
}


def name_of(sweep: Sweep, point: str) -> str:
    """Return the name of a point or a control for a sentence."""
    return NAMES.get(point) or short_names(sweep).get(point, point)


def race_sentences(sweep: Sweep, most_named: int) -> list[str]:
    """Return which points of a race got more seeds, and why the race ended; empty without a race.

    Args:
        sweep: the sweep, with the rounds so far.
        most_named: most points that are named; the others are counted.
    """
    if sweep.race is None or sweep.encoders:
        return []
    counts = Counter(trial.point for trial in sweep.trials)
    more = sorted((name for name in counts if counts[name] > sweep.race.least), key=lambda name: -counts[name])
    start = f"Every point started with {sweep.race.least} seeds"
    if more:
        words = [f"{name_of(sweep, name)} ({counts[name]})" for name in more[:most_named]]
        words += [f"{len(more) - most_named} others"] if len(more) > most_named else []
        gained = f"; more seeds went to {listed(words)}, whose comparison with the best point was open"
    else:
        gained = ", and none got more"
    trials = f"{len(sweep.trials)} of at most {largest(sweep)} trials"
    return [f"{start}{gained}. {ENDS[sweep.race_end]} ({trials})."]


def listed(words: Sequence[str]) -> str:
    """Return words for a sentence: `a`, `a and b`, `a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
