"""How well measures without labels rank the points of a sweep: Kendall's τ, and the point that each measure chooses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from scipy import stats

from raysweep.config import SETTINGS, Settings, changes_losses, is_objective
from raysweep.config.images import side_of
from raysweep.config.part_settings import OBJECTIVE_KINDS
from raysweep.report.points import LEAST_SEEDS, Estimate, Point, divisor_of, estimate
from raysweep.report.ranking import adjusted_means, connected
from raysweep.report.sentences import digits_of, named
from raysweep.report.verdicts import Group
from raysweep.space import Agreement, computed

if TYPE_CHECKING:
    from raysweep.report.contents import Report

LEAST_POINTS = 3
"""With fewer points than this, there is nothing to rank."""
PREFIX = "label_free/"
Scale = Callable[[float], float]
"""Turns a measure into a number that is greater for a better encoder."""
MEASURES: Mapping[str, Scale] = {
    **{f"{PREFIX}{layer}_{name}": float for name in ("lidar", "rankme") for layer in ("trunk", "embedding")},
    **{f"{PREFIX}{layer}_alpha_req": lambda value: -abs(value - 1) for layer in ("trunk", "embedding")},
    "pretrain/rankme": float,
    "pretrain/loss": lambda value: -value,
}
"""Each measure with its scale: a small loss is good, and α-ReQ is best at 1. LiDAR comes first, because its authors
found that it ranks hyperparameters better than RankMe (Thilak et al. 2024)."""


@dataclass(frozen=True)
class Ranking:
    """How well one measure ranks the points of one evaluation protocol."""

    measure: str
    count: int
    """The number of points that have the measure; LiDAR, for example, needs an augmentation strength above 0."""
    agreement: Estimate
    """Kendall's τ between the measure and the test score over points: mean and interval over seeds."""
    chosen: Sequence[Point]
    """The point whose mean of the measure is best; several points if their means are equal; see `best_by`."""
    score: float | None
    """The mean test score of the chosen points; None without chosen points."""
    loss: float | None
    """The mean test score of the best point, which may lack the measure, minus `score`."""


def rankings(group: Group, score: str) -> list[Ranking]:
    """Return how well each measure without labels ranks the points by a test score.

    τ is computed over the points separately for each seed. The seeds give the interval. Losses are left out if the
    points differ in a setting that changes what the loss measures. Points that lack the score in a planned seed are
    left out.

    Args:
        group: The points of one evaluation protocol.
        score: The test score.

    Returns:
        The rankings, LiDAR first. The list is empty if no point reported measures without labels, or if there are too
        few points.
    """
    points = [point for point in group.points if not point.lacks(score)]
    has_measures = any(name.startswith(PREFIX) for point in points for result in point.by_seed.values()
                       for name in result.metrics)  # fmt: skip
    if len(points) < LEAST_POINTS or not has_measures:
        return []
    scores = [point.scores(score) for point in points]
    means = dict(zip((point.title for point in points), adjusted_means(scores), strict=True))
    ranked = []
    for measure, scale in usable(points).items():
        measured = [point for point in points if not point.lacks(measure)]
        values = [
            each for seed in seeds_of(measured) if (each := tau(measured, measure, scale, score, seed)) is not None
        ]
        agreement = estimate(values, divisor_of(points))
        if agreement is not None:
            chosen = best_by(measured, measure, scale) if all(connected(scores)) else []
            reached = fmean(means[point.title] for point in chosen) if chosen else None
            loss = None if reached is None else max(means.values()) - reached
            ranked.append(Ranking(measure, len(measured), agreement, chosen, reached, loss))
    return ranked


def best_by(points: Sequence[Point], measure: str, scale: Scale) -> list[Point]:
    """Return the points whose mean of a measure is best: one, or several with equal means. All points have it.

    Means are adjusted for missing seeds. No point is best if no shared seeds connect the points.
    """
    scores = [{seed: scale(value) for seed, value in point.scores(measure).items()} for point in points]
    if not all(connected(scores)):
        return []
    means = adjusted_means(scores)
    return [point for point, mean in zip(points, means, strict=True) if mean == max(means)]


def usable(points: Sequence[Point]) -> dict[str, Scale]:
    """Return the measures that any point has, each with its scale.

    Losses are left out if the points differ in a setting that changes what the loss measures.
    """
    return {
        measure: scale
        for measure, scale in MEASURES.items()
        if any(point.values(measure) for point in points) and not differing_objective(measure, points)
    }


def differing_objective(metric: str | None, points: Sequence[Point]) -> str:
    """Return the name of a setting in which the points differ and that changes what a metric measures, else "".

    Only the losses of pretraining have such settings. Values without effect do not count, nor do controls, which do
    not compete. If the images of a dataset changed between two sweeps, the result names the pretraining images. If a
    plugin changed, it names the plugin of a part that the loss depends on.
    """
    if metric is None or not is_objective(metric):
        return ""
    measured = [point for point in points if not point.baseline and point.values(metric)]
    settings = [point.settings for point in measured]
    for name in SETTINGS:
        # Computing which values have an effect takes long for many points, so it waits until the values differ.
        if len({getattr(each, name) for each in settings}) > 1 and any(changes_losses(name, each) for each in settings):
            first, *others = (acting_value(name, each) for each in settings)
            if any(other != first for other in others):
                return name
    if len({point.images for point in measured}) > 1:
        return "the pretraining images"
    codes = {(part, digest) for point in measured for part, digest in point.code.items()}
    names = [part for part, _ in codes if part.startswith(OBJECTIVE_KINDS)]
    return next((f"the plugin of {part}" for part in sorted(names) if names.count(part) > 1), "")


def acting_value(name: str, settings: Settings) -> Any:
    """Return the value of a setting; the default if it has no effect. For `image_size` it is the size of the images."""
    return side_of(settings) if name == "image_size" else getattr(computed(settings), name)


def agreement(report: Report, measure: str | None) -> Agreement | str | None:
    """Return how well a measure without labels ranks the points of one sweep.

    A text says why the sweep cannot tell it. The result is None if the sweep did not report the measure.
    """
    if measure is None or measure not in MEASURES or not report.has_labels:
        return None
    if not any(point.values(measure) for point in report.points):
        return None
    if len(report.groups) != 1:
        return "its points were evaluated in different ways, whose scores cannot be compared"
    if not report.test_score:
        return "it has no test score"
    group = report.groups[0]
    ranked = rankings(group, report.test_score)
    ranking = next((each for each in ranked if each.measure == measure), None)
    complete = [point for point in group.points if not point.lacks(measure) and not point.lacks(report.test_score)]
    if ranking is None and len(complete) < LEAST_POINTS:
        scores = f"{measure} and {report.test_score}"
        return f"fewer than {LEAST_POINTS} of its points have {scores} in all their planned seeds"
    if ranking is None:
        return f"no seed has {LEAST_POINTS} points that differ in {measure} and in {report.test_score}"
    value, dataset = ranking.agreement, group.points[0].settings.evaluated_dataset
    unfinished = sum(member.sweep.total - len(member.results) for member in report.members)
    return Agreement(
        measure=ranking.measure,
        score=report.test_score,
        dataset=dataset,
        points=ranking.count,
        seeds=value.n,
        tau=value.mean,
        low=value.low,
        high=value.high,
        divisor=divisor_of(group.points),
        unfinished=unfinished,
    )


def seeds_of(points: Sequence[Point]) -> list[int]:
    """Return the seeds of any point, in the order of the sweep."""
    return list(dict.fromkeys(seed for point in points for seed in point.by_seed))


def tau(points: Sequence[Point], measure: str, scale: Scale, score: str, seed: int) -> float | None:
    """Return Kendall's τ-b over points for one seed, in [-1, 1]; None for too few points or no differences."""
    pairs = [
        (scale(point.scores(measure)[seed]), point.scores(score)[seed])
        for point in points
        if seed in point.scores(measure) and seed in point.scores(score)
    ]
    if len(pairs) < LEAST_POINTS or any(len(set(column)) < 2 for column in zip(*pairs, strict=True)):
        return None
    return float(stats.kendalltau(*zip(*pairs, strict=True)).statistic)


def tau_words(tau: float, low: float | None, high: float | None, seeds: int) -> str:
    """Return Kendall's τ and its interval, which needs `LEAST_SEEDS` seeds: `+0.67 [+0.10, +1.00]`."""
    if low is None or high is None or seeds < LEAST_SEEDS:
        return f"{tau:+.2f}"
    return f"{tau:+.2f} [{max(-1, low):+.2f}, {min(1, high):+.2f}]"


def words_of(ranking: Ranking, score: str) -> list[str]:
    """Return the cells of a ranking: measure, number of points, τ with its interval, chosen point, score and loss.

    Args:
        ranking: The ranking.
        score: The name of the test score.
    """
    value = ranking.agreement
    return [
        ranking.measure,
        str(ranking.count),
        tau_words(value.mean, value.low, value.high, value.n),
        named(ranking.chosen) if ranking.chosen else "–",
        *("–" if value is None else digits_of(value, score) for value in (ranking.score, ranking.loss)),
    ]
