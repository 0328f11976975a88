"""Points: the results of trials that differ only in their seed, with means, intervals and ranking."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from raysweep import parts
from raysweep.config import SETTINGS, Settings, about, fingerprint, has_effect
from raysweep.config.part_settings import changes_data
from raysweep.errors import InputError
from raysweep.report.statistics import FEWEST_SEEDS
from raysweep.results.result import Result, complete_protocol, protocol_difference
from raysweep.space import RANDOM, Sweep, Trial, complete_rounds, make_control, short_names

CONFIDENCE = 0.95
LEAST_SEEDS = FEWEST_SEEDS
"""With fewer seeds than this there is no verdict, and no interval is shown."""
LINEAR = "linear/test_accuracy"
SCORES = (LINEAR, "knn/test_accuracy", "kmeans/accuracy")
COLUMNS = ("linear/val_accuracy", *SCORES)


def confidence(divisor: int = 1) -> float:
    """Return the confidence of every interval: `CONFIDENCE`, or more in a race, which divides the error."""
    return 1 - (1 - CONFIDENCE) / divisor


def percent(points: Iterable[Point] = ()) -> str:
    """Return the confidence of the intervals of these points in words: `95 %`, or more in a race of seeds."""
    return f"{100 * confidence(divisor_of(points)):.5g} %"


def divisor_of(points: Iterable[Point]) -> int:
    """Return the number by which the familywise error is divided: 1, or more in a race of seeds."""
    return max((point.divisor for point in points), default=1)


def block_scores() -> tuple[str, ...]:
    """Return the metrics of linear probes on single blocks, in the order of the blocks."""
    return tuple(f"linear/layer{block}/test_accuracy" for block in range(1, parts.most_blocks() + 1))


def has_block_scores(point: Point) -> bool:
    """Return whether a point has scores of linear probes on single blocks."""
    return any(point.values(name) for name in block_scores())


def further_scores() -> tuple[str, ...]:
    """Return the scores on the test split of the probes that are off by default, and of the probes of plugins.

    Tables show them after the others. A metric without a better direction is no score.
    """
    return tuple(
        name
        for part in parts.probe.values()
        if part.traits["switch"] is not None or part.plugin
        for name, metric in part.metrics.items()
        if metric.uses_test and metric.better is not None and not metric.is_diagnosis
    )


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds."""

    n: int
    """The number of seeds."""
    mean: float
    std: float | None
    """The standard deviation over seeds, with n − 1 degrees of freedom; None for one seed."""
    low: float | None
    high: float | None
    """`low` and `high` are the bounds of the mean's Student-t interval at `confidence`; None for one seed."""


@dataclass(frozen=True)
class Point:
    """The finished trials of one point, which differ only in their seed."""

    name: str
    control: str
    """The kind of control, such as `random`; empty for a point of the search."""
    varied: Mapping[str, Any]
    """The values of the searched settings, without the seed."""
    by_seed: Mapping[int, Result]
    """The result of each finished seed."""
    controls: Mapping[str, Mapping[int, Result]] = field(default_factory=dict)
    """The results by seed of each control that was evaluated in the same way. Empty if the point is a control."""
    settings: Settings = field(default_factory=Settings)
    """The settings of the first seed."""
    sweep: str = ""
    """The name of its sweep if several sweeps are compared, else empty."""
    planned: Sequence[int] = ()
    """The seeds of all its trials, including unfinished trials, and trials whose encoder an evaluation lacks."""
    without_encoder: Sequence[int] = ()
    """The planned seeds that have no trial, because the evaluation lacks their encoder."""
    label: str = ""
    """The name with drawn values rounded; empty if the name has none."""
    encoder: str = ""
    """The digest of an evaluated encoder that the settings do not tell; see `unknown_encoder`. Else empty."""
    divisor: int = 1
    """The number by which the familywise error is divided; 1 unless the seeds of its sweep are a race."""
    images: str = ""
    """The digest of the pretraining images if the compared sweeps differ in it; see `with_images`."""
    code: Mapping[str, str] = field(default_factory=dict)
    """The digests of the plugins of its parts if the compared sweeps differ in them; see `with_code`."""
    same_as: str = ""
    """The title of the first point that is the same experiment, in another sweep; empty if the point is the first."""

    @property
    def baseline(self) -> bool:
        """Whether the point is a control."""
        return bool(self.control)

    @property
    def random_by_seed(self) -> Mapping[int, Result]:
        """The results of the random encoder that was evaluated in the same way; empty without one."""
        return self.controls.get(RANDOM, {})

    @property
    def short_name(self) -> str:
        """The name for people, in which drawn values are rounded."""
        return self.label or self.name

    @property
    def title(self) -> str:
        """The short name, with the sweep in front if several sweeps are compared. It is unique in a report."""
        return f"{self.sweep}/{self.short_name}" if self.sweep else self.short_name

    @property
    def exact_title(self) -> str:
        """The exact name, with the sweep in front if several sweeps are compared."""
        return f"{self.sweep}/{self.name}" if self.sweep else self.name

    @property
    def experiment(self) -> str:
        """The title of its experiment, which is the title of the experiment's first point; see `join_experiments`."""
        return self.same_as or self.title

    @property
    def missing(self) -> list[int]:
        """The planned seeds without a finished trial."""
        return [seed for seed in self.planned if seed not in self.by_seed]

    @property
    def protocol(self) -> str:
        """The fingerprint of the evaluation. Points with different fingerprints are never compared."""
        return fingerprint(complete_protocol(next(iter(self.by_seed.values())).protocol))

    def scores(self, metric: str) -> dict[int, float]:
        """Return the metric by seed, for the seeds that have it."""
        return metric_by_seed(self.by_seed, metric)

    def values(self, metric: str) -> list[float]:
        """Return the metric of every seed that has it."""
        return list(self.scores(metric).values())

    def lacks(self, metric: str) -> bool:
        """Return whether any planned seed lacks the metric."""
        return bool(self.missing) or len(self.scores(metric)) < len(self.by_seed)

    def is_incomplete(self, metric: str) -> bool:
        """Return whether a planned seed has not finished, or lacks the metric although another seed has it."""
        return bool(self.missing) or 0 < len(self.scores(metric)) < len(self.by_seed)

    def estimate(self, metric: str) -> Estimate | None:
        """Return the mean of the metric with its interval; None without the metric."""
        return estimate(self.values(metric), self.divisor)

    def control_scores(self, control: str, metric: str) -> dict[int, float]:
        """Return the metric of a control by seed; empty without that control."""
        return metric_by_seed(self.controls.get(control, {}), metric)

    def differences(self, metric: str, control: str = RANDOM) -> list[float]:
        """Return this point minus a control in the metric, for every seed that both have."""
        return differences(self.scores(metric), metric_by_seed(self.controls.get(control, {}), metric))


def metric_by_seed(results: Mapping[int, Result], metric: str) -> dict[int, float]:
    """Return the metric by seed, for the results that have it."""
    return {seed: result.metrics[metric] for seed, result in results.items() if metric in result.metrics}


def differences(first: Mapping[int, float], second: Mapping[int, float]) -> list[float]:
    """Return first minus second, for every seed that both have."""
    return [value - second[seed] for seed, value in first.items() if seed in second]


def estimate(values: Sequence[float], divisor: int = 1) -> Estimate | None:
    """Return mean, standard deviation and interval of independent values; None without values.

    Args:
        values: The values.
        divisor: The number by which the error of the interval is divided.
    """
    n = len(values)
    if n == 0:
        return None
    mean = float(np.mean(values))
    if n == 1:
        return Estimate(1, mean, None, None, None)
    std = float(np.std(values, ddof=1))
    half = float(stats.t.ppf((1 + confidence(divisor)) / 2, n - 1)) * std / math.sqrt(n)
    return Estimate(n, mean, std, mean - half, mean + half)


def check_comparable(sweep: Sweep, results: Sequence[Result]) -> None:
    """Raise InputError if two results differ in an evaluation setting that the sweep does not vary."""
    varied = set(sweep.searched)
    if any(map(changes_data, varied)):
        varied |= {"probe_dataset", "probe_data", "image_size", "version"}
    is_complete = False  # computing the rest takes 4 s for 10,000 points, so it waits until protocols differ
    for result in results[1:]:
        if not is_complete and protocol_difference(results[0].protocol, result.protocol, varied) is not None:
            varied, is_complete = varied | sometimes_without_effect(sweep), True
        check_alike(results[0], result, results[0].trial, result.trial, varied)


def sometimes_without_effect(sweep: Sweep) -> set[str]:
    """Return the evaluation settings that some points do not read; their protocols have the default. It is slow."""
    points = {trial.point: trial.settings for trial in sweep.trials}.values()
    names = [name for name in SETTINGS if about(name).protocol]
    return {name for name in names if len({has_effect(name, settings) for settings in points}) > 1}


def check_alike(one: Result, other: Result, name: str, other_name: str, varied: Iterable[str] = ()) -> None:
    """Raise InputError if two results were not evaluated alike. The settings in `varied` may differ."""
    differs = protocol_difference(one.protocol, other.protocol, set(varied))
    if differs is not None:
        key, value, other_value = differs
        raise InputError(
            f"{name} and {other_name} were not evaluated alike and cannot be compared: {key} is {value!r} in one, "
            f"{other_value!r} in the other"
        )


def gather(sweep: Sweep, results: Sequence[Result], label: str = "") -> list[Point]:
    """Return the points with finished results, in the order of the sweep.

    In a comparison of several sweeps, `label` is the sweep's name. The last round of a race of seeds is left out until
    all its trials have ended, and so are the results of its controls.
    """
    complete = complete_rounds(sweep, {result.trial for result in results}).trials
    names = {trial.name for trial in complete}
    finished = {result.trial: result for result in results if result.status == "finished" and result.trial in names}
    trials: dict[str, list[Trial]] = {}
    planned: dict[str, list[int]] = {}
    for trial in complete:
        planned.setdefault(trial.point, []).append(trial.settings.seed)
        if trial.name in finished:
            trials.setdefault(trial.point, []).append(trial)
    without_encoder: dict[str, list[int]] = {}
    for trial in sweep.missing_trials:
        without_encoder.setdefault(trial.point, []).append(trial.settings.seed)
    points = []
    labels = short_names(sweep)
    for name, members in trials.items():
        points.append(
            Point(
                name=name,
                control=members[0].control,
                varied={key: value for key, value in members[0].varied.items() if key != "seed"},
                by_seed={trial.settings.seed: finished[trial.name] for trial in members},
                controls={} if members[0].baseline else controls_of(members, sweep.baseline, finished),
                settings=members[0].settings,
                sweep=label,
                planned=[*planned[name], *without_encoder.get(name, ())],
                without_encoder=without_encoder.get(name, ()),
                label=labels.get(name, ""),
                encoder=unknown_encoder(members[0], evaluates_one(sweep) and len(planned[name]) > 1),
                divisor=sweep.divisor,
            )
        )
    return points


def controls_of(
    members: Sequence[Trial], controls: Iterable[str], finished: Mapping[str, Result]
) -> dict[str, dict[int, Result]]:
    """Return the finished results of a point's controls, by control and seed. Controls without results are left out."""
    results: dict[str, dict[int, Result]] = {}
    for control in controls:
        for trial in members:
            control_trial = make_control(trial, control)
            if control_trial is not None and control_trial.name in finished:
                results.setdefault(control, {})[trial.settings.seed] = finished[control_trial.name]
    return results


def evaluates_one(sweep: Sweep) -> bool:
    """Return whether a sweep evaluates one encoder, so that a seed decides only the labels and the training of probes.

    The encoders of a sweep stay in the directories of its trials. A single encoder lies beside its evaluation.
    """
    return any(encoder.source is not None and "/" not in encoder.source.file for encoder in sweep.encoders)


def unknown_encoder(trial: Trial, has_other_seeds: bool) -> str:
    """Return the digest of the encoder that a trial evaluates, if the settings do not tell the encoder.

    They do not say how an encoder file without a sweep was trained. If one encoder is evaluated with several seeds
    (`has_other_seeds`), the seed is not always the seed of its pretraining.
    """
    is_unknown = has_other_seeds or not trial.settings.pretrain_epochs
    return trial.source.digest if trial.source is not None and not trial.baseline and is_unknown else ""


def matrix(scores: Sequence[Mapping[int, float]]) -> NDArray[np.float64]:
    """Return scores by seed as an array (points, seeds), with sorted seeds; NaN where a point lacks a seed."""
    seeds = sorted({seed for by_seed in scores for seed in by_seed})
    return np.array([[by_seed.get(seed, np.nan) for seed in seeds] for by_seed in scores], dtype=float)


def mean_of(point: Point, metric: str) -> float:
    """Return the mean of a metric over seeds."""
    return float(np.mean(point.values(metric)))


def have_labels(points: Iterable[Point]) -> bool:
    """Return whether the points were evaluated with labels."""
    return all(point.settings.probe_labels for point in points)


def measures() -> tuple[str, ...]:
    """Return the metrics of the probes that need no labels."""
    return tuple(name for part in parts.probe.values() if not part.traits["needs_labels"] for name in part.metrics)


def shown_scores(points: Sequence[Point], names: Sequence[str] = SCORES) -> list[str]:
    """Return the metrics in `names` that any point has, and after them the further scores that any point has.

    Points that were evaluated without labels have measures in place of scores.
    """
    names = names if have_labels(points) else measures()
    reported = {name for point in points for result in point.by_seed.values() for name in result.metrics}
    return [name for name in dict.fromkeys((*names, *further_scores())) if name in reported]
