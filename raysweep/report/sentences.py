"""The conclusions of a sweep in words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from raysweep import parts
from raysweep.report.points import LEAST_SEEDS, SCORES, Point, divisor_of, mean_of
from raysweep.report.race_words import NAMES as NAMES
from raysweep.report.race_words import listed as listed
from raysweep.report.seeds import seeds_to_show
from raysweep.report.statistics import Difference
from raysweep.report.verdicts import Family, Group, same_experiment
from raysweep.system.terminal import counted

MOST_NAMED = 3
"""A sentence names up to this many points, and gives the number of the others."""
MOST_SEEDS = 50
"""More seeds than this are not recommended."""
STILL_FALLING = 0.05
"""A loss has not levelled off if more than this fraction of its whole fall was in the last tenth of the epochs."""
LOW_RANK = 0.05
"""RankMe is low below this fraction of the embedding's width, and below 2 in any case."""
COLLAPSED_STD = 1e-4
"""An embedding has collapsed if the mean standard deviation of its dimensions is below this."""


def conclusions(group: Group, metric: str, scores: Sequence[str], is_evaluation: bool = False) -> list[str]:
    """Return the conclusions about the points of one evaluation protocol.

    The sentences say, in this order: which point is best and whether it beats the random encoder, from which points it
    shows no difference, how it compares with the other controls, how the scores depend on each numeric setting, and
    what to do next.

    Args:
        group: the points, of which at least one competes.
        metric: the metric that ranks the points; it does not use the test images.
        scores: the scores to speak about; only the first one gets all sentences. The sentences about settings cover
            all test scores.
        is_evaluation: whether the points are evaluations of trained encoders, whose seeds are fixed.
    """
    families = [group.families[score] for score in scores if score in group.families]
    if not families:
        return []
    main, best = families[0], group.ranked[0]
    others = [point for point in group.ranked[1:] if not same_experiment(point, best)]
    if len(best.by_seed) < LEAST_SEEDS:
        return few_seeds_sentences(group, metric, main, is_evaluation)
    if others and all_equal([best, *others], (metric, main.score)):
        lines = [f"No point is best: {equal_sentence(len(others) + 1, (metric, main.score))}"]
        difference = main.from_control(best)
        if difference is not None:
            lines.append(f"Each of them minus the random encoder in {main.score}: {numbers(difference)}.")
    else:
        lines = [f"{best_sentence(group, metric, alone=not others)}{random_sentence(group, families)}"]
        lines += [tie_sentence(best, others, metric)] if others else []
        lines += [others_sentence(best, others, main)] if others else []
        lines += control_sentences(best, main)
    tests = [family for family in group.families.values() if family.score in SCORES]
    lines += [shape_sentence(name, tests, others_vary(name, group.points)) for name in main.shapes]
    return [line for line in [*lines, *next_steps(group, main)] if line]


def best_sentence(group: Group, metric: str, alone: bool) -> str:
    """Say which point is best; the sentence has no full stop yet."""
    best = group.ranked[0]
    value = value_words(best, metric)
    if alone:
        return f"{best.title} is the only point that can be ranked ({metric} {value})"
    return f"{best.title} is best by {metric} ({value})"


def value_words(point: Point, metric: str) -> str:
    """Return the mean of a metric in a point, and of how many seeds: `0.7297, mean of 5 seeds`."""
    count = len(point.by_seed)
    return f"{mean_of(point, metric):.4f}, {'one seed' if count == 1 else f'mean of {count} seeds'}"


def more_seeds(is_evaluation: bool) -> str:
    """Say how to get enough seeds for a verdict."""
    if is_evaluation:
        return "Next: pretrain at least three seeds; an evaluation has the seeds of its encoders."
    return "Next: run at least three seeds. `--resume DIR/NAME --set 'seed=[0,1,2]'` adds them to this sweep."


def few_seeds_sentences(group: Group, metric: str, family: Family, is_evaluation: bool) -> list[str]:
    """Return the conclusions from one or two seeds: means and differences without any verdict."""
    best = group.ranked[0]
    count = len(best.by_seed)
    lines = [
        f"{few_seeds(count)} which differences are real. {best.title} has the best {metric} "
        f"({mean_of(best, metric):.4f}, {'one seed' if count == 1 else 'mean of two seeds'})."
    ]
    differences = [
        f"{numbers_alone(difference)} from {NAMES.get(control, control)}"
        for control in family.controls
        if (difference := family.from_control(best, control)) is not None and difference.mean is not None
    ]
    if differences:
        lines.append(f"In {family.score} it differs by {listed(differences)}.")
    return [*lines, more_seeds(is_evaluation)]


def all_equal(points: Sequence[Point], scores: Iterable[str]) -> bool:
    """Return whether all points have the same scores, seed by seed."""
    return all(point.scores(score) == points[0].scores(score) for score in scores for point in points)


def equal_sentence(count: int, scores: Iterable[str]) -> str:
    """Say that `count` points have the same scores."""
    return f"all {count} points are equal in {' and '.join(dict.fromkeys(scores))}, seed by seed."


def tie_sentence(best: Point, others: Sequence[Point], metric: str) -> str:
    """Say which other points have the same mean of the metric that ranks the points; empty if there are none."""
    ties = [point for point in others if mean_of(point, metric) == mean_of(best, metric)]
    return f"{named(ties)} {'has' if len(ties) == 1 else 'have'} exactly the same mean {metric}." if ties else ""


def random_sentence(group: Group, families: Sequence[Family]) -> str:
    """Return the end of the first sentence: whether the best point, or another one, beats the random encoder."""
    best, main = group.ranked[0], families[0]
    difference = main.from_control(best)
    if difference is None and not parts.trains(best.settings):
        encoder = best.settings.encoder
        return f". There is no random encoder to compare with, because encoder {encoder} is not a network."
    if difference is None:
        return ". There is no random encoder to compare with; add `--set baseline=true`."
    if difference.low is None:
        return f"; minus the random encoder in {main.score}: {numbers(difference)}. {no_verdict(difference)}."
    text = f" and {compared(difference)} the random encoder in {main.score}: {numbers(difference)}."
    for family in families[1:]:
        other = family.from_control(best)
        if other is not None and other.low is not None:
            text += f" In {family.score} it {compared(other)} it: {numbers(other)}."
    if is_above(difference):
        return text
    winners = [point for point in group.points if is_above(main.from_control(point))]
    return (
        f"{text} {named(winners)} {'beats' if len(winners) == 1 else 'beat'} it."
        if winners
        else f"{text} No point beats it."
    )


def others_sentence(best: Point, others: Sequence[Point], family: Family, mode: str = "max") -> str:
    """Say from which points the best point differs, and from which it shows no difference.

    Args:
        best: The best point.
        others: The other points that are ranked.
        family: The comparisons in one score.
        mode: Whether a greater ("max") or a smaller ("min") score is better.
    """
    score, is_less_better = family.score, mode == "min"
    if all_equal([best, *others], [score]):
        return f"But {equal_sentence(len(others) + 1, [score])}"
    differences = {point.title: family.between(best, point) for point in others}
    above = [point for point in others if is_above(differences[point.title])]
    below = [point for point in others if is_below(differences[point.title])]
    unjudged = [point for point in others if (pair := differences[point.title]) is None or pair.low is None]
    unclear = [point for point in others if point not in above and point not in below and point not in unjudged]
    worse, better = (below, above) if is_less_better else (above, below)
    side, other_side = ("below", "above") if is_less_better else ("above", "below")
    score += " (less is better)" if is_less_better else ""
    rest = f" Nothing is shown about {named(unjudged)}, because no interval can be computed." if unjudged else ""
    if better:
        return f"In {score}, however, it is {other_side} {named(better)}.{rest}"
    if not unclear and not worse:
        return f"In {score} nothing is shown about {named(unjudged)}, because no interval can be computed."
    if not unclear:
        closest = min(worse, key=lambda point: size(differences[point.title]))
        difference = numbers(differences[closest.title])
        if len(worse) == 1:
            return f"In {score} it is {side} {closest.title}: {difference}.{rest}"
        each = "every other point that can be compared" if unjudged else "every other ranked point"
        return f"In {score} it is {side} {each}; the closest is {closest.title}, {difference}.{rest}"
    ahead = f", and it is {side} {named(worse)}" if worse else ""
    which = f" from {unclear[0].title}" if len(unclear) > 1 else ""
    first = f" ({numbers(differences[unclear[0].title])}{which})"
    return f"In {score} it shows no difference from {named(unclear)}{first}{ahead}.{rest}"


def control_sentences(best: Point, family: Family) -> list[str]:
    """Say how the best point compares with the controls other than the random encoder."""
    lines = []
    for control in family.controls:
        difference, name = family.from_control(best, control), NAMES.get(control, control)
        if control == "random" or difference is None:
            continue
        if difference.low is None:
            lines.append(
                f"{best.title} minus {name} in {family.score}: {numbers(difference)}. {no_verdict(difference)}."
            )
        else:
            lines.append(f"{best.title} {compared(difference)} {name} in {family.score}: {numbers(difference)}.")
    return lines


def shape_sentence(name: str, families: Sequence[Family], averaged: bool) -> str:
    """Say how the scores depend on a numeric setting; empty if there are too few values or seeds.

    `averaged` says whether other settings vary too. The scores are then averaged over them.
    """
    words = [text for family in families if name in family.shapes and (text := shape_words(name, family))]
    start = f"With {name}, averaged over the other settings" if averaged else f"With {name}"
    return f"{start}: {'; '.join(words)}." if words else ""


def others_vary(name: str, points: Sequence[Point]) -> bool:
    """Return whether the points differ in other searched settings than this one."""
    return len({tuple((key, value) for key, value in point.varied.items() if key != name) for point in points}) > 1


def shape_words(name: str, family: Family) -> str | None:
    """Say how one score depends on a numeric setting; None if nothing can be said."""
    shape, values = family.shapes[name]
    if shape.kind == "optimum":
        assert shape.best is not None
        return f"{family.score} has an optimum near {values[shape.best]} (both ends are worse)"
    if shape.kind in ("rises", "falls"):
        p = shape.p_rises if shape.kind == "rises" else shape.p_falls
        return f"{family.score} {shape.kind} (Page's trend test, {p_value(p)})"
    if shape.kind == "flat" and any(difference.differs for difference in shape.pairs.values()):
        return f"{family.score} differs between values, but it neither rises nor falls throughout"
    if shape.kind == "flat" and shape.within is not None:
        return f"{family.score} shows no trend (all values lie within ±{shape.within:.4f} of each other)"
    return None


def next_steps(group: Group, family: Family) -> list[str]:
    """Say what to do next: run more seeds or try other values; empty if neither would help."""
    best = group.ranked[0]
    lines = []
    others = [point for point in group.ranked[1:] if not same_experiment(point, best)]
    rivals = [(point, d) for point in others if (d := family.between(best, point)) is not None and d.low is not None]
    unclear = [(point, difference) for point, difference in rivals if not difference.differs]
    if unclear and family.variance is not None:
        rival, difference = unclear[0]
        divisor = divisor_of(group.points)
        count = seeds_to_show(difference, family.variance, family.points, MOST_SEEDS, divisor)
        if count is None:
            lines.append(
                f"Next: even {MOST_SEEDS} seeds would hardly show a difference between {best.title} and {rival.title}, "
                f"if it stays {numbers_alone(difference)}."
            )
        else:
            lines.append(
                f"Next: about {count} seeds in all would show a difference between {best.title} and {rival.title}, if "
                f"it stays {numbers_alone(difference)}."
            )
    for name, (shape, values) in family.shapes.items():
        end = {"rises": values[-1], "falls": values[0]}.get(shape.kind)
        if end is not None and best.varied.get(name) == end:
            which, more = ("largest", "larger") if shape.kind == "rises" else ("smallest", "smaller")
            lines.append(f"Next: {name} = {end} is the {which} that was tried; try {more} values.")
    return lines


def cautions(group: Group) -> list[str]:
    """Return a sentence for each reason to doubt the scores of some points."""
    lines = []
    for point in group.incomplete:
        lines.append(f"{point.title} is not ranked: {missing_seeds(point)}.")
    checks: tuple[tuple[str, Callable[[Point], bool]], ...] = (
        ("The embedding has collapsed in", has_collapsed),
        ("RankMe, the effective rank of the embedding, is low in", has_low_rank),
        ("The loss had not levelled off in", is_still_falling),
    )
    for words, check in checks:
        points = [point for point in group.points if check(point)]
        if points:
            lines.append(f"{words} {named(points)}.")
    return lines


def missing_seeds(point: Point) -> str:
    """Say how many of the planned seeds of a point are missing, and why."""
    lost, planned = len(point.without_encoder), counted(len(point.planned), "seed")
    unfinished = len(point.missing) - lost
    why = "had no encoder when the evaluation started"
    if not unfinished:
        return f"{lost} of its {planned} {why}"
    text = f"{unfinished} of its {planned} did not finish"
    return f"{text}, and {lost} {why}" if lost else text


def has_collapsed(point: Point) -> bool:
    """Return whether the embedding has collapsed in any seed."""
    return any(value < COLLAPSED_STD for value in point.values("pretrain/embedding_std"))


def has_low_rank(point: Point) -> bool:
    """Return whether the effective rank of the embedding is low in any seed, and no embedding has collapsed."""
    least = max(2.0, LOW_RANK * point.settings.embedding_dim)
    return not has_collapsed(point) and any(value < least for value in point.values("pretrain/rankme"))


def is_still_falling(point: Point) -> bool:
    """Return whether the loss was still falling at the end, in the mean over seeds."""
    values = point.values("pretrain/last_fall")
    return bool(values) and sum(values) / len(values) > STILL_FALLING


def is_above(difference: Difference | None) -> bool:
    """Return whether the interval of the difference is above zero."""
    return difference is not None and difference.low is not None and difference.low > 0


def is_below(difference: Difference | None) -> bool:
    """Return whether the interval of the difference is below zero."""
    return difference is not None and difference.high is not None and difference.high < 0


def size(difference: Difference | None) -> float:
    """Return the absolute value of the difference; 0 if it is unknown."""
    return abs(difference.mean) if difference is not None and difference.mean is not None else 0.0


def compared(difference: Difference) -> str:
    """Return the verb between a point and what it is compared with."""
    return "beats" if is_above(difference) else "is below" if is_below(difference) else "shows no difference from"


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


def numbers(difference: Difference | None) -> str:
    """Return `+0.0120 [+0.0040, +0.0200]`: mean and interval, only the mean without an interval, `–` without a mean."""
    if difference is None or difference.mean is None:
        return "–"
    if difference.low is None:
        return numbers_alone(difference)
    return f"{numbers_alone(difference)} [{difference.low:+.4f}, {difference.high:+.4f}]"


def numbers_alone(difference: Difference) -> str:
    """Return the mean, such as `+0.0120`; never `-0.0000`."""
    return f"{round(difference.mean or 0.0, 4) + 0.0:+.4f}"


def p_value(p: float | None) -> str:
    """Return a p-value in words, such as `p = 0.003` or `p < 0.001`."""
    assert p is not None
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def named(points: Iterable[Point]) -> str:
    """Return the points for a sentence: `a`, `a and b`, `a, b, c and 4 others`."""
    return shortened([point.title for point in points])


def shortened(names: Sequence[str]) -> str:
    """Return names for a sentence: the first `MOST_NAMED` ones, and the number of the others."""
    if len(names) > MOST_NAMED + 1:
        names = [*names[:MOST_NAMED], f"{len(names) - MOST_NAMED} others"]
    return listed(names)
