"""The conclusions about the points of one evaluation protocol, in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain

from raysweep.config import make_settings
from raysweep.errors import InputError
from raysweep.report.points import LEAST_SEEDS, SCORES, Point, divisor_of
from raysweep.report.seeds import seeds_to_show
from raysweep.report.sentences import (
    NAMES,
    all_equal,
    alone_words,
    best_titles,
    compared,
    few_seeds,
    first_names,
    is_better,
    joined_words,
    named,
    no_verdict,
    numbers,
    numbers_alone,
    others_sentence,
    score_words,
    subject_of,
    tie_words,
    value_words,
)
from raysweep.report.verdicts import Family, Group, whole_combinations
from raysweep.space.expansion import point_name

MOST_SEEDS = 50
"""More seeds than this are not recommended."""


def conclusions(group: Group, scores: Sequence[str], more: str, without_random: str = "") -> list[str]:
    """Return the conclusions about the points of one evaluation protocol.

    The sentences say, in this order: which point is best and whether it beats the random encoder, from which points it
    shows no difference, how it compares with the other controls, how the scores depend on each numeric setting, and
    what to do next.

    Args:
        group: the points. At least one point competes.
        scores: the scores to speak about; only the first one gets all sentences. The sentences about settings cover
            all test scores.
        more: the sentence that says how to get enough seeds for a verdict.
        without_random: the sentence that says why a point has no random encoder to be compared with.
    """
    families = [group.families[score] for score in scores if score in group.families]
    if not families:
        return []
    main, first = families[0], group.ranked[0]
    if len(first.by_seed) < LEAST_SEEDS:
        return few_seeds_sentences(group, main, more)
    if group.best:
        lines = [f"{best_words(group)}{random_sentence(group, main, without_random)}"]
        lines += further_sentences(group, families[1:])
        lines += [others_sentence(group, main, subject_of(group))] if group.rivals else []
        lines += control_sentences(first, main)
    else:
        lines = no_best_sentences(group, main)
    tests = [family for family in group.families.values() if family.score in SCORES]
    lines += [shape_sentence(name, tests, group.points) for name in main.shapes]
    return [line for line in [*lines, *next_steps(group, main)] if line]


def best_words(group: Group) -> str:
    """Say which point is best; the sentence has no full stop yet."""
    if not group.rivals:
        return alone_words(group)
    names = best_titles(group)
    return f"{first_names(names)} {'is' if len(names) == 1 else 'are'} best by {group.metric} ({value_words(group)})"


def few_seeds_sentences(group: Group, family: Family, more: str) -> list[str]:
    """Return the conclusions from one or two seeds: means and differences without any verdict."""
    first = group.ranked[0]
    if not group.best:
        return [*no_best_sentences(group, family), more]
    if group.rivals:
        names = best_titles(group)
        have = "has" if len(names) == 1 else "have"
        lines = [f"{first_names(names)} {have} the best {group.metric} ({value_words(group)})."]
    else:
        lines = [f"{alone_words(group)}."]
    differences = [
        f"{numbers_alone(difference, family.score)} from {NAMES.get(control, control)}"
        for control in family.controls
        if (difference := family.from_control(first, control)) is not None and difference.mean is not None
    ]
    if differences:
        lines.append(f"In {family.score} {subject_of(group)} differs by {joined_words(differences)}.")
    if group.rivals or differences:
        lines.insert(1, f"{few_seeds(len(first.by_seed))} which differences are real.")
    return [*lines, more]


def no_best_sentences(group: Group, family: Family) -> list[str]:
    """Say why no point is best, and how the points compare with the random encoder."""
    lines = [f"No point is best: {tie_words(group, (group.metric, family.score))}"]
    difference = family.from_control(group.ranked[0])
    if not all_equal([group.ranked[0], *group.rivals], [family.score]):
        lines[0] += "" if group.apart else f" `differences.csv` compares the points in {family.score}."
        lines += [winners_sentence(group, family)] if difference is not None and difference.low is not None else []
    elif difference is not None:
        value = numbers(difference, family.score)
        lines.append(f"Each of these points minus the random encoder in {family.score}: {value}.")
    return lines


def winners_sentence(group: Group, family: Family) -> str:
    """Say which points beat the random encoder. Points that lack the score in a planned seed are left out."""
    complete = [point for point in group.points if not point.lacks(family.score)]
    winners = [point for point in complete if is_better(family.from_control(point), family)]
    which = f"point that has {family.score} in all its planned seeds" if len(complete) < len(group.points) else "point"
    start = f"{named(winners)} {'beats' if len(winners) == 1 else 'beat'}" if winners else f"No {which} beats"
    return f"{start} the random encoder in {score_words(family)}."


def random_sentence(group: Group, main: Family, without_random: str) -> str:
    """Return the end of the first sentence: whether the best point, or another one, beats the random encoder."""
    difference = main.from_control(group.ranked[0])
    if difference is None:
        return f". {lacking_score(group.ranked[0], main.score) or without_random}"
    if difference.low is None:
        minus = f"{capital(subject_of(group))} minus the random encoder in {main.score}"
        return f". {minus}: {numbers(difference, main.score)}. {no_verdict(difference)}."
    joined = " and" if len(best_titles(group)) == 1 else f". {group.ranked[0].title}"
    value = numbers(difference, main.score)
    text = f"{joined} {compared(difference, main)} the random encoder in {score_words(main)}: {value}."
    return text if is_better(difference, main) else f"{text} {winners_sentence(group, main)}"


def lacking_score(point: Point, score: str) -> str:
    """Say whether the point or its random encoder lacks the score; empty without a random encoder."""
    if not point.random_by_seed:
        return ""
    return f"{'The random encoder' if point.values(score) else point.title} has no {score}."


def further_sentences(group: Group, families: Sequence[Family]) -> list[str]:
    """Say how the first point compares with the random encoder in further scores: a sentence for each verdict."""
    scores: dict[str, list[str]] = {}
    for family in families:
        difference = family.from_control(group.ranked[0])
        if difference is not None and difference.low is not None:
            less = "; less is better" if family.mode == "min" else ""
            value = numbers(difference, family.score)
            scores.setdefault(compared(difference, family), []).append(f"{family.score} ({value}{less})")
    subject = capital(subject_of(group))
    return [f"{subject} {verb} the random encoder in {joined_words(words)}." for verb, words in scores.items()]


def capital(subject: str) -> str:
    """Return the subject of a sentence as its beginning. Titles of points stay as they are."""
    return subject.replace("the best point", "The best point")


def control_sentences(best: Point, family: Family) -> list[str]:
    """Say how the best point compares with the controls other than the random encoder."""
    lines = []
    for control in family.controls:
        difference, name = family.from_control(best, control), NAMES.get(control, control)
        if control == "random" or difference is None:
            continue
        value = numbers(difference, family.score)
        if difference.low is None:
            lines.append(f"{best.title} minus {name} in {family.score}: {value}. {no_verdict(difference)}.")
        else:
            verb = compared(difference, family)
            lines.append(f"{best.title} {verb} {name} in {score_words(family)}: {value}.")
    return lines


def shape_sentence(name: str, families: Sequence[Family], points: Sequence[Point]) -> str:
    """Say how the scores depend on a numeric setting; empty if there are too few values or seeds.

    The scores are averaged over the combinations of the other settings that were tried with all values. If no
    combination is complete, a second sentence names the points that lack planned seeds.
    """
    words = [text for family in families if name in family.shapes and (text := shape_words(name, family))]
    if not words:
        return ""
    _, whole = whole_combinations(name, points)
    first, *others = map(dict, whole)
    fixed = {
        key: value
        for key, value in first.items()
        if all(other.get(key) == value for other in others)
        and any(key not in point.varied or point.varied[key] != value for point in points)
    }
    where = f" ({point_name(fixed)})" if fixed else ""
    averaged = ", averaged over the other settings" if others else ""
    remark = lacking_words([list(by_value.values()) for by_value in whole.values()])
    return f"With {name}{where}{averaged}: {'; '.join(words)}.{remark}"


def lacking_words(combinations: Sequence[Sequence[Point]]) -> str:
    """Say which points of a trend lack planned seeds; empty if any combination is complete and is thus used alone."""
    lacking = [[point for point in combination if point.missing] for combination in combinations]
    if not all(lacking):
        return ""
    points = list(chain.from_iterable(lacking))
    lack = "lacks" if len(points) == 1 else "lack"
    return f" {named(points)} {lack} planned seeds, and the missing seeds may have worse scores."


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
    if shape.kind == "flat" and all(difference.low is not None for difference in shape.pairs.values()):
        most = f"{shape.within:.4f} between two values of {name}"
        return f"{family.score} shows no trend (the intervals allow a difference of up to {most})"
    return f"{family.score} shows no trend" if shape.kind == "flat" else None


def next_steps(group: Group, family: Family) -> list[str]:
    """Say what to do next: run more seeds or try other values; empty if neither would help."""
    if not group.best:
        return []
    best, lines = group.ranked[0], []
    differences = [(point, family.between(best, point)) for point in group.rivals]
    unclear = [(point, d) for point, d in differences if d is not None and d.low is not None and not d.differs]
    if unclear and family.variance is not None:
        rival, difference = unclear[0]
        divisor = divisor_of(group.points)
        count = seeds_to_show(difference, family.variance, family.points, MOST_SEEDS, divisor)
        what = f"show a difference between {best.title} and {rival.title}"
        if_true = f"if the true difference is {numbers_alone(difference, family.score)}"
        if count is None:
            lines.append(f"Next: even {MOST_SEEDS} seeds would probably not {what}, {if_true}.")
        else:
            chance = f"about {count} seeds in all have an even chance to {what}"
            lines.append(f"Next: {chance}, {if_true}. Twice as many seeds will probably show it.")
    for name, (shape, values) in family.shapes.items():
        if shape.kind not in ("rises", "falls"):
            continue
        upward = (shape.kind == "rises") == (family.mode == "max")
        end = values[-1] if upward else values[0]
        if best.varied.get(name) == end and can_go_beyond(name, end, upward):
            which, more = ("largest", "larger") if upward else ("smallest", "smaller")
            lines.append(f"Next: {name} = {end} is the {which} that was tried; try {more} values.")
    return lines


def can_go_beyond(name: str, value: float, upward: bool) -> bool:
    """Return whether a setting can have a greater value (`upward`) or a smaller one."""
    if isinstance(value, int):
        beyond: float = value + 1 if upward else value - 1
    else:
        beyond = math.nextafter(value, math.inf if upward else -math.inf)
    try:
        make_settings({name: beyond}, name)
    except InputError:
        return False
    return True


def p_value(p: float | None) -> str:
    """Return a p-value in words, such as `p = 0.003` or `p < 0.001`."""
    assert p is not None
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
