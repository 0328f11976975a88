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
    said = []
    groups = rank_points(points, metric, mode)
    for ranked in groups:
        best = ranked[0]
        # Two sweeps may hold the same experiment; its repetition is no second.
        keys = [experiment_key(point.settings.model_copy(update={"seed": 0})) for point in ranked]
        others = [point for point, key in zip(ranked, keys, strict=True) if key != keys[0]]
        m = len(set(keys))
        chosen = f"the best point, {best.title} (by mean {metric}),"
        there = shown_scores(ranked, scores)
        if others:
            tied = mean_of(best, str(metric)) == mean_of(others[0], str(metric))
            second = f"the second, {others[0].title}{' (equal by that metric)' if tied else ''},"
            pairs = {s: compare(best.scores(s), others[0].scores(s), m * (m - 1) // 2) for s in there}
            said += sentences(chosen, second, pairs, "pair")
        if best.random_by_seed:
            pairs = {s: compare(best.scores(s), metric_by_seed(best.random_by_seed, s), m) for s in there}
            said += sentences(chosen, "the random encoder", pairs, "comparison")
        else:
            said.append("There is no baseline to compare with; add `--set baseline=true`.")
    return said


def sentences(first: str, second: str, by_score: Mapping[str, Comparison], what: str) -> list[str]:
    """What comparisons of two points say: of the first score in full, of the others in short, on one line."""
    words: list[str] = []
    for score, of in by_score.items():
        short = f"In {score}: {finding(of)}."
        words.append(short if words else sentence(first, second, score, of, what))
    return [" ".join(words)] if words else []


def numbers(of: Comparison) -> str:
    """`+0.0120 [+0.0040, +0.0200]`; the mean alone where there is no interval."""
    mean = round(of.mean or 0.0, 4) + 0.0  # never -0.0000
    return f"{mean:+.4f}" + (f" [{of.low:+.4f}, {of.high:+.4f}]" if of.low is not None else "")


def reason_for_no_verdict(of: Comparison) -> str | None:
    """Why nothing can be said; None where something can."""
    if of.mean is None or of.n < 2:
        shared = "no seed" if of.n == 0 else "only one seed"
        return f"they share {shared}, and an interval needs at least two"
    if of.low is None and abs(of.mean) >= NO_SPREAD:
        return f"the difference is {numbers(of)} for each of {of.n} seeds, and without spread there is no interval"
    return None


def finding(of: Comparison) -> str:
    """What a comparison says, in short."""
    because = reason_for_no_verdict(of)
    if because is not None:
        return f"cannot be said ({because})"
    return f"{'they differ' if of.differs else 'no difference is shown'}, {numbers(of)}"


def sentence(first: str, second: str, score: str, of: Comparison, what: str) -> str:
    """What one comparison says; `what` the comparisons are that it is corrected for."""
    because = reason_for_no_verdict(of)
    if because is not None:
        return f"Whether {first} differs from {second} in {score} cannot be said: {because}."
    corrected = f", Bonferroni-corrected for {of.comparisons} {what}s" if of.comparisons > 1 else ""
    how = f"paired over {of.n} seeds, {PERCENT} interval{corrected}"
    how = how if of.low is not None else f"equal for each of {of.n} seeds"
    if of.differs:
        return f"{first[0].upper()}{first[1:]} differs from {second} in {score}: {numbers(of)} ({how})."
    return f"No difference is shown between {first} and {second} in {score}: {numbers(of)} ({how})."


METHOD = (
    f"The differences are of test scores, the first point minus the second, paired by seed, with the Student-t "
    f"interval of their mean at {PERCENT}. The best point was chosen among m points, so its difference from the second "
    f"counts as one of all m(m − 1)/2 pairs, and its difference from the random encoder as one of m comparisons. With "
    f"k comparisons each interval is taken at 1 − {1 - CONFIDENCE:.2f}/k (Bonferroni). Each score is corrected for "
    f"itself. All seeds share one fit/val/test division: the intervals cover what differs between runs, not what "
    f"another choice of test images would change. With three seeds they are wide: no difference shown is not none."
)
