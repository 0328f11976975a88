"""Reasons to doubt the scores of points, in words."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from raysweep.report.points import Point
from raysweep.report.sentences import named
from raysweep.system.terminal import counted

STILL_FALLING = 0.05
"""A loss has not levelled off if more than this fraction of its whole fall was in the last tenth of the epochs."""
LOW_RANK = 0.05
"""RankMe is low below this fraction of the embedding's width, and below 2 in any case."""
COLLAPSED_STD = 1e-4
"""An embedding has collapsed if the mean standard deviation of its dimensions is below this."""


def cautions(points: Sequence[Point]) -> list[str]:
    """Return a sentence for each reason to doubt the scores of some points."""
    lines = [f"{point.title} is not ranked: {missing_seeds(point)}." for point in points if point.missing]
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
