"""Sentences about a race of seeds: which points got more seeds, and why it ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from raysweep.space import Sweep, short_names
from raysweep.space.race import largest

NAMES = {"random": "the random encoder", "pixels": "raw pixels", "pca": "PCA", "supervised": "supervised training"}
"""The controls in a sentence."""
REASONS = {
    "settled": "more seeds could not settle any further comparison",
    "most": "the points that are not separated have all their seeds",
    "incomparable": "no two points can be compared",
}
"""Why a race ended by itself."""
ENDS = {
    **{end: f"The race ended because {reason}" for end, reason in REASONS.items()},
    "budget": "The time budget stopped the race; a resume continues it",
    "": "The race has not ended; a resume continues it",
}


def name_of(sweep: Sweep, point: str) -> str:
    """Return the name of a point or a control for a sentence."""
    return NAMES.get(point) or short_names(sweep).get(point, point)


def race_sentences(sweep: Sweep, most_named: int, best: Collection[str]) -> list[str]:
    """Return which points of a race got more seeds, and why the race ended; empty without a race.

    Args:
        sweep: the sweep, with the rounds so far.
        most_named: most points that are named; the others are counted.
        best: the names of the points that are called best.
    """
    if sweep.race is None or sweep.encoders:
        return []
    counts = Counter(trial.point for trial in sweep.trials)
    more = sorted((name for name in counts if counts[name] > sweep.race.least), key=lambda name: -counts[name])
    start = f"Every point started with {sweep.race.least} seeds"
    if more:
        words = {name: f"{name_of(sweep, name)} ({counts[name]})" for name in more}
        ahead, behind = ([words[name] for name in more if (name in best) == is_best] for is_best in (True, False))
        if ahead and behind:
            which = "the best point" if len(ahead) == 1 else "the best points"
            to = f"{which}, {first_names(ahead, most_named)}, and to {first_names(behind, most_named)}"
            gained = f"; more seeds went to {to}, whose comparison with the best point was open"
        else:
            gained = f"; more seeds went to {first_names([*ahead, *behind], most_named)}, whose comparisons were open"
    else:
        gained = ", and none got more"
    trials = f"{len(sweep.trials)} of at most {largest(sweep)} trials"
    return [f"{start}{gained}. {ENDS[sweep.race_end]} ({trials})."]


def first_names(names: Sequence[str], most: int) -> str:
    """Return names for a sentence: the first `most` ones, and the number of the others if there are several."""
    if len(names) > most + 1:
        names = [*names[:most], f"{len(names) - most} others"]
    return joined_words(names)


def joined_words(words: Sequence[str]) -> str:
    """Return words for a sentence: `a`, `a and b`, `a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
