"""The conclusions of a sweep in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from raysweep.report.points import (
    CONFIDENCE,
    NO_SPREAD,
    PERCENT,
    SCORES,
    Comparison,
    Point,
    compare,
    experiment_key,
    mean_of,
    metric_by_seed,
    rank_points,
    shown_scores,
)


def conclusions(points: Sequence[Point], metric: str | None, mode: str, scores: Sequence[str] = SCORES) -> list[str]:
    """In words: does the best point differ from the second best, and from the random encoder, in the test scores?

    The points are ranked by the mean of `metric`, which has not seen the test images; the differences are of `scores`.
    The best is one of m points, so it counts as m comparisons with the random encoder, and as m(m − 1)/2 with another.
    """
    texts = []
    groups = rank_points(points, metric, mode)
    for ranked in groups:
        best = ranked[0]
        # Two sweeps may hold the same experiment; its repetition is no second.
        keys = [experiment_key(point.settings.model_copy(update={"seed": 0})) for point in ranked]
        others = [point for point, key in zip(ranked, keys, strict=True) if key != keys[0]]
        m = len(set(keys))
        chosen = f"the best point, {best.title} (by mean {metric}),"
        names = shown_scores(ranked, scores)
        if others:
            tied = mean_of(best, str(metric)) == mean_of(others[0], str(metric))
            second = f"the second, {others[0].title}{' (equal by that metric)' if tied else ''},"
            pairs = {s: compare(best.scores(s), others[0].scores(s), m * (m - 1) // 2) for s in names}
            texts += sentences(chosen, second, pairs, "pair")
        if best.random_by_seed:
            pairs = {s: compare(best.scores(s), metric_by_seed(best.random_by_seed, s), m) for s in names}
            texts += sentences(chosen, "the random encoder", pairs, "comparison")
        else:
            texts.append("There is no random encoder to compare with; add `--set baseline=true`.")
    return texts


def sentences(first: str, second: str, by_score: Mapping[str, Comparison], what: str) -> list[str]:
    """What comparisons of two points say: of the first score in full, of the others in short, on one line."""
    words: list[str] = []
    for score, comparison in by_score.items():
        short = f"In {score}: {finding(comparison)}."
        words.append(short if words else sentence(first, second, score, comparison, what))
    return [" ".join(words)] if words else []


def numbers(comparison: Comparison) -> str:
    """`+0.0120 [+0.0040, +0.0200]`; the mean alone where there is no interval."""
    mean = round(comparison.mean or 0.0, 4) + 0.0  # never -0.0000
    return f"{mean:+.4f}" + (f" [{comparison.low:+.4f}, {comparison.high:+.4f}]" if comparison.low is not None else "")


def reason_for_no_verdict(comparison: Comparison) -> str | None:
    """Why nothing can be said; None where something can."""
    if comparison.mean is None or comparison.n < 2:
        shared = "no seed" if comparison.n == 0 else "only one seed"
        return f"they share {shared}, and an interval needs at least two"
    if comparison.low is None and abs(comparison.mean) >= NO_SPREAD:
        difference = f"the difference is {numbers(comparison)} for each of {comparison.n} seeds"
        return f"{difference}, and without spread there is no interval"
    return None


def finding(comparison: Comparison) -> str:
    """What a comparison says, in short."""
    because = reason_for_no_verdict(comparison)
    if because is not None:
        return f"cannot be said ({because})"
    return f"{'they differ' if comparison.differs else 'no difference is shown'}, {numbers(comparison)}"


def sentence(first: str, second: str, score: str, comparison: Comparison, what: str) -> str:
    """What one comparison says; `what` the comparisons are that it is corrected for."""
    because = reason_for_no_verdict(comparison)
    if because is not None:
        return f"Whether {first} differs from {second} in {score} cannot be said: {because}."
    corrected = f", Bonferroni-corrected for {comparison.comparisons} {what}s" if comparison.comparisons > 1 else ""
    method = f"paired over {comparison.n} seeds, {PERCENT} interval{corrected}"
    method = method if comparison.low is not None else f"equal for each of {comparison.n} seeds"
    if comparison.differs:
        return f"{first[0].upper()}{first[1:]} differs from {second} in {score}: {numbers(comparison)} ({method})."
    return f"No difference is shown between {first} and {second} in {score}: {numbers(comparison)} ({method})."


METHOD = (
    f"The differences are of test scores, the first point minus the second, paired by seed, with the Student-t "
    f"interval of their mean at {PERCENT}. The best point was chosen among m points, so its difference from the second "
    f"counts as one of all m(m − 1)/2 pairs, and its difference from the random encoder as one of m comparisons. With "
    f"k comparisons each interval is taken at 1 − {1 - CONFIDENCE:.2f}/k (Bonferroni). Each score is corrected for "
    f"itself. All seeds share one fit/val/test division: the intervals cover what differs between runs, not what "
    f"another choice of test images would change. With three seeds they are wide: no difference shown is not none."
)
