"""Parts of sentences: points, differences and verdicts in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean

from raysweep.report import race_words
from raysweep.report.digits import decimals_of
from raysweep.report.points import LEAST_SEEDS, Point, divisor_of
from raysweep.report.race_words import NAMES as NAMES
from raysweep.report.race_words import joined_words as joined_words
from raysweep.report.ranking import ranking_values
from raysweep.report.statistics import Difference
from raysweep.report.verdicts import Family, Group

MOST_NAMED = 3
"""A sentence names up to this many points, and gives the number of the others."""


def alone_words(group: Group) -> str:
    """Say that only one point competes; the sentence has no full stop yet."""
    which = "point of this protocol" if group.heading else "point"
    return f"{group.ranked[0].title} is the only {which} that can be ranked ({group.metric} {value_words(group)})"


def value_words(group: Group) -> str:
    """Return the mean by which the first point is ranked, and its seeds: `0.7297, mean of 5 seeds`.

    The words say if means are adjusted for missing seeds. A race always adjusts them, and its method is described in
    the report. There the value is the plain mean of the point.
    """
    first = group.ranked[0]
    scores = first.scores(group.metric)
    seeds = "one seed" if len(scores) == 1 else f"mean of {len(scores)} seeds"
    other_seeds = {seed for point in group.ranked for seed in point.scores(group.metric)}
    value, words = fmean(scores.values()), ""
    if divisor_of(group.ranked) == 1 and len(scores) < len(other_seeds):
        value, words = ranking_values(group.ranked, group.metric)[first.title], ", adjusted for missing seeds"
    elif divisor_of(group.ranked) == 1 and any(len(point.scores(group.metric)) < len(scores) for point in group.ranked):
        words = "; other means are adjusted for missing seeds"
    return f"{digits_of(value, group.metric)}, {seeds}{words}"


def digits_of(value: float, metric: str) -> str:
    """Return a value of a metric with the digits that a reader sees."""
    return f"{value:.{decimals_of(metric, value)}f}"


def best_titles(group: Group) -> list[str]:
    """Return the titles of the best points."""
    return [point.title for point in group.best]


def subject_of(group: Group) -> str:
    """Return what a sentence calls the first point: `the best point` if there is one and others compete with it."""
    return "the best point" if len(best_titles(group)) == 1 and group.rivals else group.ranked[0].title


def more_seeds(is_evaluation: bool, is_race: bool, is_one_encoder: bool) -> str:
    """Say how to get enough seeds for a verdict.

    Args:
        is_evaluation: Whether the points are evaluations of trained encoders, whose seeds are fixed.
        is_race: Whether the seeds of the sweep are a race, which refuses the setting `seed`.
        is_one_encoder: Whether each sweep is the evaluation of one encoder, which may have any seeds.
    """
    if is_race:
        return "Next: resume the race; a verdict needs three seeds."
    if is_one_encoder:
        return (
            "Next: `--set 'seed=[0,1,2]'` evaluates the encoder with three seeds. For a verdict about its pretraining, "
            "pretrain at least three seeds."
        )
    if is_evaluation:
        return "Next: pretrain at least three seeds; an evaluation has the seeds of its encoders."
    return "Next: run at least three seeds. `--resume DIR/NAME --set 'seed=[0,1,2]'` adds them to this sweep."


def all_equal(points: Sequence[Point], scores: Iterable[str]) -> bool:
    """Return whether all points have the same scores, seed by seed."""
    return all(point.scores(score) == points[0].scores(score) for score in scores for point in points)


def equal_words(points: Sequence[Point], scores: Iterable[str]) -> str:
    """Say that points have the same scores."""
    return f"{named(points)} are equal in {' and '.join(dict.fromkeys(scores))}, seed by seed."


def tie_words(group: Group, scores: Sequence[str]) -> str:
    """Say why no point is best: no shared seeds connect the points, or all have the same scores or the same mean."""
    if group.apart:
        apart = f"no shared seeds connect {group.ranked[0].title} with {named(group.apart)}"
        return f"{apart}, so their means cannot be compared."
    points = [group.ranked[0], *group.rivals]
    if all_equal(points, scores):
        return equal_words(points, scores)
    return f"{named(points)} have the same {group.metric} ({value_words(group)})."


def others_sentence(group: Group, family: Family, subject: str) -> str:
    """Say from which points the first one differs in a score, and from which it shows no difference.

    Args:
        group: The points. At least two points compete.
        family: The comparisons in the score.
        subject: What the sentence calls the first point.
    """
    best, others = group.ranked[0], group.rivals
    score, is_less_better = score_words(family), family.mode == "min"
    if all_equal([best, *others], [family.score]):
        return f"But {equal_words([best, *others], [family.score])}"
    differences = {point.title: family.between(best, point) for point in others}
    above = [point for point in others if is_above(differences[point.title])]
    below = [point for point in others if is_below(differences[point.title])]
    unjudged = [point for point in others if (pair := differences[point.title]) is None or pair.low is None]
    unclear = [point for point in others if point not in above and point not in below and point not in unjudged]
    worse, better = (below, above) if is_less_better else (above, below)
    side, other_side = ("below", "above") if is_less_better else ("above", "below")
    rest = f" Nothing is shown about {named(unjudged)}, because no interval can be computed." if unjudged else ""
    if better:
        return f"In {score}, however, {subject} is {other_side} {named(better)}.{rest}"
    if not unclear and not worse:
        return f"In {score} nothing is shown about {named(unjudged)}, because no interval can be computed."
    if not unclear:
        closest = min(worse, key=lambda point: size(differences[point.title]))
        difference = numbers(differences[closest.title], family.score)
        if len(worse) == 1:
            return f"In {score} {subject} is {side} {closest.title}: {difference}.{rest}"
        each = "every other point that can be compared" if unjudged else "every other ranked point"
        return f"In {score} {subject} is {side} {each}; the closest is {closest.title}, {difference}.{rest}"
    ahead = f", and is {side} {named(worse)}" if worse else ""
    which = f" from {unclear[0].title}" if len(unclear) > 1 else ""
    first = f" ({numbers(differences[unclear[0].title], family.score)}{which})"
    return f"In {score} {subject} shows no difference from {named(unclear)}{first}{ahead}.{rest}"


def is_above(difference: Difference | None) -> bool:
    """Return whether the interval of the difference is above zero."""
    return difference is not None and difference.low is not None and difference.low > 0


def is_below(difference: Difference | None) -> bool:
    """Return whether the interval of the difference is below zero."""
    return difference is not None and difference.high is not None and difference.high < 0


def size(difference: Difference | None) -> float:
    """Return the absolute value of the difference; 0 if it is unknown."""
    return abs(difference.mean) if difference is not None and difference.mean is not None else 0.0


def is_better(difference: Difference | None, family: Family) -> bool:
    """Return whether a difference in a score shows that the first point is better."""
    return is_below(difference) if family.mode == "min" else is_above(difference)


def compared(difference: Difference, family: Family) -> str:
    """Return the verb between a point and what it is compared with."""
    if is_better(difference, family):
        return "beats"
    return "is above" if is_above(difference) else "is below" if is_below(difference) else "shows no difference from"


def score_words(family: Family) -> str:
    """Return the name of a score, with a remark if less is better."""
    return f"{family.score} (less is better)" if family.mode == "min" else family.score


def verdict(difference: Difference | None, than: str) -> str:
    """Return the verdict of a difference in a table; `than` is what the point is compared with."""
    if difference is None or difference.mean is None:
        return "no seed has both"
    if difference.low is None:
        return no_verdict(difference).lower()
    if is_above(difference):
        return f"above {than}"
    return f"below {than}" if is_below(difference) else "no difference shown"


def no_verdict(difference: Difference) -> str:
    """Say why a difference has no interval."""
    if difference.mean is None:
        return "No seed has both scores"
    return few_seeds(difference.n) if difference.n < LEAST_SEEDS else "Without spread there is no interval"


def few_seeds(count: int) -> str:
    """Return the beginning of the sentence that so few seeds give no verdict."""
    return f"{'One seed' if count == 1 else 'Two seeds'} cannot tell"


def numbers(difference: Difference | None, score: str = "") -> str:
    """Return `+0.0120 [+0.0040, +0.0200]`: mean and interval, only the mean without an interval, `–` without a mean."""
    if difference is None or difference.mean is None:
        return "–"
    if difference.low is None:
        return numbers_alone(difference, score)
    digits = decimals_of(score, difference.mean, difference.low, difference.high)
    return f"{numbers_alone(difference, score)} [{difference.low:+.{digits}f}, {difference.high:+.{digits}f}]"


def numbers_alone(difference: Difference, score: str = "") -> str:
    """Return the mean, such as `+0.0120`; never `-0.0000`."""
    digits = decimals_of(score, difference.mean, difference.low, difference.high)
    return f"{round(difference.mean or 0.0, digits) + 0.0:+.{digits}f}"


def with_count(text: str, count: int, usual: int) -> str:
    """Return a number with its count of seeds, such as `0.91 (n = 3)`, if the count differs from the table's `n`."""
    return text if count == usual else f"{text} (n = {count})"


def numbers_and_count(difference: Difference | None, score: str, usual: int) -> str:
    """Return `numbers`, and the count of shared seeds if it differs from the table's `n`; see `with_count`."""
    text = numbers(difference, score)
    return text if difference is None or difference.mean is None else with_count(text, difference.n, usual)


def named(points: Iterable[Point]) -> str:
    """Return the points for a sentence: `a`, `a and b`, `a, b, c and 4 others`."""
    return first_names([point.title for point in points])


def first_names(names: Sequence[str]) -> str:
    """Return names for a sentence: the first `MOST_NAMED` ones, and the number of the others."""
    return race_words.first_names(names, MOST_NAMED)
