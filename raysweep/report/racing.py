"""Decisions of a race of seeds: which points get more seeds, why the race ends, and both in words."""

from __future__ import annotations

from dataclasses import replace

from raysweep.report.contents import Report
from raysweep.report.race_words import REASONS, name_of
from raysweep.report.sentences import first_names
from raysweep.report.statistics import FEWEST_SEEDS, Difference
from raysweep.report.verdicts import Group
from raysweep.space import Round, Sweep, add_round


def is_open(difference: Difference | None) -> bool:
    """Return whether more seeds could settle a comparison.

    They cannot where two points have the same score in every seed, or where one of them lacks the score.
    """
    if difference is None:
        return False
    return difference.n < FEWEST_SEEDS or (difference.low is not None and not difference.differs)


def open_points(group: Group, score: str) -> list[str]:
    """Return the points and controls that get more seeds: the best point and all from which it is not separated.

    Args:
        group: the points of one evaluation protocol.
        score: the score that the verdicts are about.

    Returns:
        Names, the best point first; empty if every comparison of the best point is settled.
    """
    if not group.ranked or score not in group.families:
        return []
    best, family = group.ranked[0], group.families[score]
    rivals = [point.name for point in group.rivals if is_open(family.between(best, point))]
    controls = [
        next(iter(best.controls[control].values())).point
        for control in family.controls
        if control in best.controls and is_open(family.from_control(best, control))
    ]
    return [best.name, *rivals, *controls] if rivals or controls else []


def compares(group: Group) -> bool:
    """Return whether the best point of a group has another point or a control to be compared with."""
    return len(group.ranked) > 1 or (len(group.ranked) == 1 and bool(group.ranked[0].controls))


def decide(report: Report) -> Sweep:
    """Return the sweep of a race after a look at its complete rounds: with one more round, or with its end.

    The next round gives one more seed to the best point and to every point and control from which it is not separated.
    A point that was separated earlier and no longer is also gets the seeds that it lacks. So the number of seeds grows
    with every look, and there are at most `Race.looks` of them.

    Args:
        report: the report of the race. All its trials have ended.
    """
    sweep = replace(report.members[0].sweep, race_end="")
    race = sweep.race
    assert race is not None
    names = dict.fromkeys(
        name for group in report.groups for score in report.scores[:1] for name in open_points(group, score)
    )
    count = sweep.rounds[-1].seeds if sweep.rounds else race.least
    if not names:
        is_settled = bool(report.scores) and any(map(compares, report.groups))
        return replace(sweep, race_end="settled" if is_settled else "incomparable")
    if count >= race.most:
        return replace(sweep, race_end="most")
    return add_round(sweep, Round(count + 1, tuple(names)))


def round_words(sweep: Sweep) -> str:
    """Return the newest round of a race, or its end, in one line for the display."""
    if sweep.race_end == "budget":
        return "the race was stopped by its time budget"
    if sweep.race_end:
        return f"the race has ended: {REASONS[sweep.race_end]}"
    newest = sweep.rounds[-1]
    names = [name_of(sweep, name) for name in newest.points]
    return f"round {len(sweep.rounds) + 1}: {newest.seeds} seeds for {first_names(names)}, which are not separated yet"
