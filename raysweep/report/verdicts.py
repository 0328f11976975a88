"""The comparisons of a report: adjusted differences between points, from controls and along a setting.

A *family* consists of one score of all points that share an evaluation protocol. All differences of a family are
adjusted together, so that all its intervals hold at once with a probability of 95 %, or more in a race (see
`raysweep.report.statistics`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysweep.config import SETTINGS, about, default_of, metrics_by_name
from raysweep.config.values import is_plain_number
from raysweep.report.experiments import changed_inputs_of_control
from raysweep.report.points import Point, divisor_of, matrix
from raysweep.report.ranking import connected, tied
from raysweep.report.shapes import Shape, average, compare_shape
from raysweep.report.statistics import Difference, compare_pairs, compare_with_control, fit_blocks
from raysweep.results.result import Result

MOST_PAIRED = 50
"""In a family with more points than this, only the pairs with the best point are compared. They are adjusted for all
pairs, because the scores choose the best point."""
LEAST_VALUES = 3
"""The shape of a score over a setting is tested if the setting has at least this many values."""


@dataclass(frozen=True)
class Family:
    """The comparisons of the points of one evaluation protocol in one score."""

    score: str
    pairs: Mapping[tuple[str, str], Difference]
    """The first point minus the second, by the titles of both."""
    controls: Mapping[str, Mapping[str, Difference]]
    """For each control, the points minus the control, by the title of the point."""
    shapes: Mapping[str, tuple[Shape, Sequence[Any]]]
    """For each numeric setting, the shape of the score over the setting's values, and the sorted values. The score is
    averaged over the other searched settings."""
    variance: float | None
    """The variance of the residuals of the block model; None where there are too few cells."""
    points: int
    """The number of points."""
    mode: str
    """Whether a greater ("max") or a smaller ("min") score is better."""

    def between(self, first: Point, second: Point) -> Difference | None:
        """Return the first experiment minus the second; None if the pair was not compared."""
        if (first.experiment, second.experiment) in self.pairs:
            return self.pairs[first.experiment, second.experiment]
        other = self.pairs.get((second.experiment, first.experiment))
        return None if other is None else negated(other)

    def from_control(self, point: Point, control: str = "random") -> Difference | None:
        """Return the experiment of a point minus the control; None without that control."""
        return self.controls.get(control, {}).get(point.experiment)


@dataclass(frozen=True)
class Group:
    """The experiments of one evaluation protocol, and the verdicts about them."""

    points: Sequence[Point]
    ranked: Sequence[Point]
    """The points that compete, best first; empty if nothing can be called best."""
    families: Mapping[str, Family]
    """The family of each score. The score of the chosen metric comes first."""
    metric: str = ""
    """The metric that ranks the points; empty without one."""
    heading: str = ""
    """What sets this protocol apart, such as `With labels_per_class=10`; empty if the report has one protocol."""

    @property
    def rivals(self) -> Sequence[Point]:
        """The ranked points after the first one."""
        return self.ranked[1:]

    @cached_property
    def best(self) -> list[Point]:
        """The points that are called best: the first one, and all points that tie with it.

        It is empty if no point competes, if all points that compete tie, or if no shared seeds connect them.
        """
        if not self.ranked or self.apart:
            return []
        first = tied(self.ranked, self.metric)
        return [] if self.rivals and len(first) == len(self.ranked) else first

    @cached_property
    def apart(self) -> list[Point]:
        """The ranked points that no shared seeds connect with the first one. Their means cannot be compared with it."""
        together = connected([point.scores(self.metric) for point in self.ranked])
        return [point for point, is_together in zip(self.ranked, together, strict=True) if not is_together]

    @property
    def complete(self) -> list[Point]:
        """The points whose planned seeds have all finished, and whose seeds all have the metric or all lack it."""
        return [point for point in self.points if not point.is_incomplete(self.metric)]

    @property
    def incomplete(self) -> list[Point]:
        """The points that do not compete, because planned seeds have not finished or lack the metric."""
        return [point for point in self.points if point.is_incomplete(self.metric)]


def judge(
    points: Sequence[Point],
    ranked: Sequence[Sequence[Point]],
    scores: Sequence[str],
    settings: Sequence[str],
    with_controls: bool = True,
    metric: str | None = None,
    mode: str = "max",
) -> list[Group]:
    """Return the verdicts about the points: a group for each evaluation protocol.

    Args:
        points: the experiments of the report; see `join_experiments`. Controls are ignored.
        ranked: the points that compete, best first, a list for each protocol; see `rank_points`.
        scores: the metrics that are compared.
        settings: the searched settings.
        with_controls: whether points are compared with controls. A measure without labels cannot show that a point
            beats a control.
        metric: the metric that ranks the points; None without one.
        mode: whether a greater ("max") or a smaller ("min") value of the metric is better.
    """
    groups: dict[str, list[Point]] = {}
    for point in points:
        if not point.baseline:
            groups.setdefault(point.protocol, []).append(point)
    modes = {score: mode if score == metric else metrics_by_name()[score].better or "max" for score in scores}
    best_first = {order[0].protocol: order for order in ranked}
    return [
        Group(
            group,
            best_first.get(protocol, ()),
            {
                score: make_family(score, group, best_first.get(protocol, ())[:1], settings, with_controls, better)
                for score, better in modes.items()
            },
            metric or "",
        )
        for protocol, group in groups.items()
    ]


def make_family(
    score: str, points: Sequence[Point], best: Sequence[Point], settings: Sequence[str], with_controls: bool, mode: str
) -> Family:
    """Compare the points that have the score; see `judge`. `best` holds the best point, or nothing."""
    points = [point for point in points if point.scores(score)]
    values = matrix([point.scores(score) for point in points])
    return Family(
        score,
        pairs_of(points, values, [point.title for point in best if point.scores(score)]),
        {name: differences_from(name, score, points) for name in (controls_of(points) if with_controls else ())},
        {name: shape for name in settings if (shape := shape_of(name, score, points, mode)) is not None},
        fit_blocks(values).variance if points else None,
        len(points),
        mode,
    )


def pairs_of(
    points: Sequence[Point], values: NDArray[np.float64], best: Sequence[str]
) -> dict[tuple[str, str], Difference]:
    """Return the differences of all pairs; with more than `MOST_PAIRED` points, only of the pairs with the best point.

    Args:
        points: the points.
        values: their scores, shape (points, seeds); NaN where a point lacks a seed.
        best: the titles of the best points. Only the first one is used.
    """
    titles = [point.title for point in points]
    only = titles.index(best[0]) if best and len(points) > MOST_PAIRED else None
    if len(points) < 2 or (len(points) > MOST_PAIRED and only is None):
        return {}
    pairs = compare_pairs(values, only, divisor_of(points))
    return {(titles[first], titles[second]): difference for (first, second), difference in pairs.items()}


def controls_of(points: Sequence[Point]) -> list[str]:
    """Return the names of the controls that any point has."""
    return list(dict.fromkeys(name for point in points for name, by_seed in point.controls.items() if by_seed))


def differences_from(control: str, score: str, points: Sequence[Point]) -> dict[str, Difference]:
    """Return each point minus the control, by the title of the point.

    Points may have several controls of one name, such as the random encoders of two architectures. The points of each
    such control are adjusted together.
    """
    families: dict[Any, list[Point]] = {}
    for point in points:
        if point.control_scores(control, score):
            key = changed_inputs_of_control(point, control), experiment_of(point.controls[control])
            families.setdefault(key, []).append(point)
    result: dict[str, Difference] = {}
    for members in families.values():
        shared: dict[int, float] = {}
        for point in members:
            shared |= point.control_scores(control, score)
        values = matrix([shared, *(point.scores(score) for point in members)])
        compared = compare_with_control(values, 0, divisor_of(members))
        result |= {members[row - 1].title: difference for row, difference in compared.items()}
    return result


def experiment_of(results: Mapping[int, Result]) -> tuple[Any, ...]:
    """Return all settings that decide what a control computes, except the seed."""
    settings = next(iter(results.values())).settings
    return tuple(
        (name, settings.get(name, default_of(name)))
        for name in SETTINGS
        if about(name).changes_scores and name != "seed"
    )


def shape_of(name: str, score: str, points: Sequence[Point], better: str = "max") -> tuple[Shape, Sequence[Any]] | None:
    """Return the shape of the score over a numeric setting, averaged over the other searched settings.

    It is None if the setting has fewer than `LEAST_VALUES` values, or if no combination of values of the other settings
    was tried with all of them.
    """
    values, whole = whole_combinations(name, points)
    if len(values) < LEAST_VALUES or not whole:
        return None
    scores = [[by_value[value].scores(score) for value in values] for by_value in whole.values()]
    seeds = sorted({seed for row in scores for by_seed in row for seed in by_seed})
    cells = [[[by_seed.get(seed, np.nan) for seed in seeds] for by_seed in row] for row in scores]
    table = average(np.array(cells, dtype=float))
    return compare_shape(table, "min" if better == "min" else "max", divisor_of(points)), values


def whole_combinations(
    name: str, points: Sequence[Point]
) -> tuple[list[Any], dict[tuple[tuple[str, Any], ...], dict[Any, Point]]]:
    """Return the sorted values of a numeric setting, and the combinations of the others that were tried with them all.

    For each combination, which consists of names and values, it returns the point of each value.
    """
    points = [point for point in points if is_plain_number(point.varied.get(name))]
    values = sorted({point.varied[name] for point in points})
    combinations: dict[Any, dict[Any, Point]] = {}
    for point in points:
        others = tuple((key, value) for key, value in point.varied.items() if key != name)
        combinations.setdefault(others, {})[point.varied[name]] = point
    return values, {others: by_value for others, by_value in combinations.items() if len(by_value) == len(values)}


def negated(difference: Difference) -> Difference:
    """Return the difference with the opposite sign: the second point minus the first."""
    mean, low, high = difference.mean, difference.low, difference.high
    return replace(
        difference,
        mean=None if mean is None else -mean,
        low=None if high is None else -high,
        high=None if low is None else -low,
        paired=tuple(-each for each in difference.paired),
    )
