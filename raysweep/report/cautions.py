"""Reasons to doubt the scores of points, in words."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from raysweep.config.metrics import WATCHED_IMAGES
from raysweep.report.points import Point
from raysweep.report.sentences import named
from raysweep.report.verdicts import Group
from raysweep.system.terminal import counted

STILL_FALLING = 0.05
"""A loss has not levelled off if more than this fraction of its whole fall was in the last tenth of the epochs."""
LOW_RANK = 0.05
"""RankMe is low below this fraction of its greatest possible value, and below 2 in any case."""
COLLAPSED_STD = 1e-4
"""An embedding has collapsed if the mean standard deviation of its dimensions is below this."""


def cautions(groups: Sequence[Group]) -> list[str]:
    """Return a sentence for each reason to doubt the scores of some points, or not to rank them."""
    points, lines = [point for group in groups for point in group.points], not_ranked(groups)
    checks: tuple[tuple[str, Callable[[Point], bool]], ...] = (
        ("The embedding has collapsed in", has_collapsed),
        ("RankMe, the effective rank of the embedding, is low in", has_low_rank),
        ("The loss had not levelled off in", is_still_falling),
    )
    for words, check in checks:
        doubtful = [point for point in points if check(point)]
        if doubtful:
            lines.append(f"{words} {named(doubtful)}.")
    return lines


def not_ranked(groups: Sequence[Group]) -> list[str]:
    """Return a sentence for each reason why points are not ranked.

    If a protocol has no ranked point at all, the conclusions say whether its points lack the metric.
    """
    by_reason: dict[tuple[str, ...], list[Point]] = {}
    for group in groups:
        for point in group.points:
            one, several = (why_not_ranked(point, group, whose) for whose in ("its {}", "the {} of each point"))
            if one:
                by_reason.setdefault((one, several), []).append(point)
    return [
        f"{named(points)} {f'is not ranked: {one}' if len(points) == 1 else f'are not ranked: {several}'}."
        for (one, several), points in by_reason.items()
    ]


def why_not_ranked(point: Point, group: Group, whose: str) -> str:
    """Say how many planned seeds of a point are missing or lack the metric, and why; empty for none.

    Args:
        point: The point.
        group: The points of its protocol.
        whose: What the sentence calls the seeds: `{}` stands for their number and the word `seeds`.
    """
    seeds, lost = whose.format(counted(len(point.planned), "seed")), len(point.without_encoder)
    unfinished = len(point.missing) - lost
    lacking = len(point.by_seed) - len(point.values(group.metric)) if group.ranked else 0
    why = "had no encoder when the evaluation started"
    if unfinished:
        return f"{unfinished} of {seeds} did not finish{f', and {lost} {why}' if lost else ''}"
    if lost:
        return f"{lost} of {seeds} {why}"
    if lacking == len(point.by_seed):
        return f"no seed has {group.metric}"
    return f"{lacking} of {seeds} {'has' if lacking == 1 else 'have'} no {group.metric}" if lacking else ""


def has_collapsed(point: Point) -> bool:
    """Return whether the embedding has collapsed in any seed."""
    return any(value < COLLAPSED_STD for value in point.values("pretrain/embedding_std"))


def has_low_rank(point: Point) -> bool:
    """Return whether the effective rank of the embedding is low in any seed, and no embedding has collapsed."""
    least = max(2.0, LOW_RANK * min(point.settings.embedding_dim, WATCHED_IMAGES))
    return not has_collapsed(point) and any(value < least for value in point.values("pretrain/rankme"))


def is_still_falling(point: Point) -> bool:
    """Return whether the loss was still falling at the end, in the mean over seeds."""
    values = point.values("pretrain/last_fall")
    return bool(values) and sum(values) / len(values) > STILL_FALLING
