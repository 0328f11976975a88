"""Headings for the evaluation protocols of a report: the settings in which the protocols differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raysweep.config import has_effect
from raysweep.report.points import Point
from raysweep.report.sentences import named
from raysweep.space.expansion import point_name


def headings(groups: Sequence[Sequence[Point]]) -> list[str]:
    """Return a heading for the points of each protocol, such as `With labels_per_class=10`; empty for one protocol.

    A heading has the searched settings that have one value in each protocol, and not the same value in all. If these do
    not tell the protocols apart, the headings name the points.
    """
    if len(groups) < 2:
        return [""] * len(groups)
    names = dict.fromkeys(name for points in groups for point in points for name in point.varied)
    by_name = {name: [values_of(name, points) for points in groups] for name in names}
    telling = {
        name: values
        for name, values in by_name.items()
        if all(len(each) == 1 for each in values) and any(each != values[0] for each in values)
    }
    words = []
    for number in range(len(groups)):
        value_of = {name: values[number][0] for name, values in telling.items() if values[number] != [WITHOUT_EFFECT]}
        words.append(f"With {point_name(value_of)}" if value_of else "")
    if "" in words or len(set(words)) < len(words):
        return [f"Points {named(points)}" if len(points) > 1 else f"Point {named(points)}" for points in groups]
    return words


WITHOUT_EFFECT = object()
"""Stands for the value of a setting in a point in which it has no effect."""


def values_of(name: str, points: Sequence[Point]) -> list[Any]:
    """Return the different values of a searched setting in these points."""
    values: list[Any] = []
    for point in points:
        is_used = name in point.varied and has_effect(name, point.settings)
        value = point.varied[name] if is_used else WITHOUT_EFFECT
        if value not in values:
            values.append(value)
    return values
