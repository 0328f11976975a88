"""The conclusions about the points of one evaluation protocol, in words."""

from __future__ import annotations

from collections.abc import Sequence

from raysweep import parts
from raysweep.report.points import LEAST_SEEDS, SCORES, Point, divisor_of, mean_of
from raysweep.report.seeds import seeds_to_show
from raysweep.report.sentences import (
    NAMES,
    all_equal,
    best_sentence,
    compared,
    equal_sentence,
    few_seeds,
    is_above,
    listed,
    more_seeds,
    named,
    no_verdict,
    numbers,
    numbers_alone,
    others_sentence,
    tie_sentence,
)
from raysweep.report.verdicts import Family, Group, same_experiment

MOST_SEEDS = 50
"""More seeds than this are not recommended."""


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


def p_value(p: float | None) -> str:
    """Return a p-value in words, such as `p = 0.003` or `p < 0.001`."""
    assert p is not None
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
