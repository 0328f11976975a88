"""Evaluations: sweeps whose trials evaluate trained encoders under other evaluation settings, without pretraining."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from raysweep import parts
from raysweep.config import (
    METRICS,
    SETTINGS,
    Settings,
    about,
    default_of,
    has_effect,
    has_metric,
    make_settings,
    suggest,
)
from raysweep.config.conditions import PRETRAINED
from raysweep.config.part_settings import network_parameters
from raysweep.errors import InputError
from raysweep.plugins import Plugin
from raysweep.space.building import Content, build, check_distribution, read_content
from raysweep.space.checking import check_meant, check_metric, replaced_settings
from raysweep.space.controls import RANDOM, ordered
from raysweep.space.encoder_entry import Agreement
from raysweep.space.encoder_reading import read_agreement, read_encoders, read_missing, read_trained_search
from raysweep.space.expansion import MAX_TRIALS, computed, make_control, make_controls, make_trial, point_name
from raysweep.space.model import Resources, Sweep, Trial, Tune
from raysweep.space.unlabelled import (
    IsUnlabelled,
    check_evaluates,
    check_labels,
    evaluated_datasets,
    needs_no_labels,
    never_unlabelled,
)
from raysweep.system.terminal import counted

DATA = ("probe_dataset", "probe_labels", "data_dir", "skip_bad_images")
"""The settings of the data that an evaluation may change."""
BUILT = (RANDOM, "pixels")
"""The controls that can be built without a file."""
TUNE = ("metric", "mode", "max_concurrent", "max_failures", "checkpoint_seconds", "time_budget")
"""The entries of `tune` that have an effect on an evaluation."""


def build_evaluation(
    raw: Mapping[str, Any],
    overrides: Mapping[str, Any],
    where: str,
    encoders: Sequence[Trial],
    *,
    controls: Sequence[str] = (),
    seeds: bool = False,
    recorded: bool = False,
    plugins: tuple[Plugin, ...] = (),
    trained_search: tuple[Mapping[str, Mapping[str, Any]], ...] = (),
    agreement: Agreement | str | None = None,
    missing: Sequence[Trial] = (),
    trained_tune: Tune | None = None,
    is_unlabelled: IsUnlabelled = never_unlabelled,
) -> Sweep:
    """Check a search space of evaluation settings and expand it: every encoder under every combination of settings.

    Args:
        raw: The search space, which may have only evaluation settings.
        overrides: See `raysweep.space.build`.
        where: The start of every message.
        encoders: The trials that trained the encoders, each with its `source`, controls included.
        controls: The controls of the sweep, which are evaluated unless the search space has an entry `baseline`.
        seeds: Whether the seed of the evaluation may be set.
        recorded: Whether a results directory holds this evaluation; see `raysweep.space.build`.
        plugins: The plugins of the evaluation, which the caller has read and activated.
        trained_search: The search of the sweep that trained the encoders.
        agreement: See `Sweep.agreement`.
        missing: The trials of the points that have no encoder; see `Sweep.missing_encoders`.
        trained_tune: How the sweep that trained the encoders was run. The evaluation chooses by the same metric,
            unless it has another one or does not report this one.
        is_unlabelled: See `raysweep.space.build`.

    Raises:
        InputError: The search space is invalid. The message is one line.
    """
    content = read_content(raw, overrides, where)
    base, tune = content.base, content.tune
    points = [encoder for encoder in encoders if not encoder.baseline]
    if not points:
        raise InputError(f"{where}: none of the trained encoders belongs to a point of the search")
    if not recorded:
        for name in dict.fromkeys([*content.base, *(name for space in content.spaces for name in space)]):
            prefix = f"--set {name}" if name in overrides else f"{where}: {name}"
            check_setting(name, points, seeds, prefix)
        check_run(content, where)
    asks_for_labels = "probe_labels" in base
    if not all(encoder.settings.probe_labels for encoder in encoders):
        base.setdefault("probe_labels", True)  # how the encoders were evaluated before does not matter
    search = tuple(
        {key: check_grid(key, spec, points[0], base, where, len(space) == 1) for key, spec in space.items()}
        for space in content.spaces
    )
    if not recorded:
        settings = evaluated(points[0].settings, base, where)
        pairs = (datasets_of(encoder, settings, base) for encoder in points)
        datasets = evaluated_datasets(pairs, search)
        if settings.probe_labels and needs_no_labels(settings, datasets, search, is_unlabelled, where, asks_for_labels):
            base["probe_labels"] = False
            settings = evaluated(points[0].settings, base, where)
        check_labels(settings, base, content.spaces, where)
    trials, sources = expand_evaluation(points, base, search, where, strict=not recorded)
    if not recorded:
        changed = [key for key in base if getattr(settings, key) != default_of(key)]
        alone = functools.partial(build_evaluation, raw, {}, where, encoders, recorded=True, plugins=plugins)
        replaced = replaced_settings(changed, overrides, trials, alone)
        if replaced:
            for name in replaced:
                del base[name]
            trials, sources = expand_evaluation(points, base, search, where, strict=True)
        check_meant([*overrides, *(key for key in changed if key in base)], trials, where)
        check_evaluates(trials, where)
        tune = tune if trained_tune is None else with_metric(tune, trained_tune, trials)
    wanted = controls if content.controls is None else content.controls
    control_trials = list(make_evaluated_controls(trials, sources, wanted, encoders))
    for name in content.controls or ():
        if not any(trial.control == name for trial in control_trials) and not recorded:
            valid = ordered([*BUILT, *(encoder.control for encoder in encoders if encoder.baseline)])
            raise InputError(
                f"{where}: baseline: {name}: no trained encoder is this control; valid: {', '.join(valid)}"
            )
    kinds = tuple(name for name in wanted if any(trial.control == name for trial in control_trials))
    all_trials = (*control_trials, *trials)
    sweep = Sweep(
        name=content.name,
        base=base,
        search=search,
        baseline=kinds,
        tune=tune,
        resources=content.resources,
        trials=all_trials,
        examples=all_trials,
        plugins=plugins,
        encoders=tuple(encoders),
        trained_search=trained_search,
        agreement=agreement,
        missing_encoders=tuple(missing),
        missing_trials=tuple(expand_missing(missing, trials, base, search, where)),
        race=content.race if recorded else None,
    )
    check_metric(sweep, where)
    return sweep


def rebuild(content: Mapping[str, Any], where: str, plugins: tuple[Plugin, ...] = ()) -> Sweep:
    """Return the sweep or the evaluation that the `sweep.yaml` of a results directory describes.

    Raises:
        InputError: The content is invalid.
    """
    if "encoders" not in content:
        return build(content, {}, where, recorded=True, plugins=plugins)
    encoders = read_encoders(content["encoders"], f"{where}: encoders")
    return build_evaluation(
        content,
        {},
        where,
        encoders,
        recorded=True,
        plugins=plugins,
        trained_search=read_trained_search(content["encoders"].get("search", []), f"{where}: encoders: search"),
        agreement=read_agreement(content["encoders"].get("agreement"), f"{where}: encoders: agreement"),
        missing=read_missing(content["encoders"], f"{where}: encoders"),
    )


def check_setting(name: str, encoders: Sequence[Trial], seeds: bool, where: str) -> None:
    """Raise InputError unless an evaluation of these encoders may change the setting `name`."""
    if name not in SETTINGS:
        raise InputError(f"{where}: unknown setting{suggest(name, SETTINGS)}")
    if name == "seed" and not seeds:
        raise InputError(f"{where}: an encoder is evaluated with the seed of its trial, so that results are paired")
    if name != "seed" and not is_evaluation(name, encoders):
        valid = ", ".join(each for each in SETTINGS if is_evaluation(each, encoders))
        raise InputError(
            f"{where}: is a setting of pretraining, and the encoders are trained already; an evaluation can set {valid}"
        )


def is_evaluation(name: str, encoders: Sequence[Trial]) -> bool:
    """Return whether the setting `name` belongs to the evaluation of these encoders, not to their pretraining.

    A dataset may share a parameter with a part of pretraining, such as a policy. It then belongs to pretraining.
    """
    if name in parts.declared_parameters(("dataset",)):
        trained_on = {encoder.settings.dataset for encoder in encoders} & set(parts.dataset)
        others = tuple(kind for kind in parts.TABLES if kind not in ("dataset", "probe"))
        is_trained = any(name in parts.dataset[dataset].parameters for dataset in trained_on)
        return not is_trained and name not in parts.declared_parameters(others)
    return name in DATA or (about(name).group == "Evaluation" and about(name).effect != PRETRAINED)


def check_run(content: Content, where: str) -> None:
    """Raise InputError if an entry of `tune` or `resources` has no effect on an evaluation."""
    for name, entry in Tune.model_fields.items():
        if name not in TUNE and getattr(content.tune, name) != entry.default:
            raise InputError(f"{where}: tune.{name}: has no effect on an evaluation, which runs its whole grid")
    if content.race is not None:
        raise InputError(f"{where}: seeds: an evaluation has the seeds of its encoders; leave it out")
    if content.resources.workers != Resources.model_fields["workers"].default:
        raise InputError(f"{where}: resources.workers: an evaluation runs in one process; give it more with cpu")
    metric = content.tune.metric
    if metric in METRICS and not any(metric in part.metrics for part in parts.probe.values()):
        raise InputError(f"{where}: tune.metric: {metric} is a metric of pretraining, which an evaluation lacks")


def check_grid(
    name: str, spec: Any, encoder: Trial, base: Mapping[str, Any], where: str, is_alone: bool
) -> Mapping[str, Sequence[Any]]:
    """Return a checked entry of `search`, which must be a grid; for `is_alone` see `check_distribution`."""
    settings = evaluated(encoder.settings, base, where)
    checked = check_distribution(name, spec, settings, f"{where}: search.{name}", is_alone)
    if "grid" not in checked:
        raise InputError(f"{where}: search.{name}: an evaluation runs every combination; write {{grid: [...]}}")
    return checked


def evaluated(settings: Settings, base: Mapping[str, Any], where: str) -> Settings:
    """Return the settings of a trial with the evaluation settings in `base`."""
    return make_settings({**settings.model_dump(), **base}, where)


def expand_evaluation(
    encoders: Sequence[Trial],
    base: Mapping[str, Any],
    search: Sequence[Mapping[str, Mapping[str, Any]]],
    where: str,
    strict: bool,
) -> tuple[list[Trial], dict[str, Trial]]:
    """Evaluate each encoder under each combination of settings. What is computed twice is left out.

    The encoders of a point stay next to each other, so that the trials are ordered as in a sweep.

    Returns:
        The trials, and for each trial's name the trial that trained its encoder.
    """
    count = len(encoders) * sum(math.prod(len(spec["grid"]) for spec in space.values()) for space in search)
    if count > MAX_TRIALS:
        raise InputError(f"{where}: {count} trials; at most {MAX_TRIALS} in one evaluation")
    trials: dict[Settings, Trial] = {}
    sources: dict[str, Trial] = {}
    for space in search:
        for _, members in itertools.groupby(encoders, key=lambda encoder: point_name(encoder.varied)):
            members_of_point = list(members)
            for combination in itertools.product(*(spec["grid"] for spec in space.values())):
                for encoder in members_of_point:
                    settings = evaluated(encoder.settings, base, where)
                    searched = dict(zip(space, combination, strict=True))
                    kept = kept_values(encoder, settings.model_copy(update=searched), base)
                    varied = {**kept, **searched}
                    trial = replace(make_trial(settings, varied, where, strict), source=encoder.source)
                    if trials.setdefault(computed(trial.settings), trial) is trial:
                        sources[trial.name] = encoder
    return list(trials.values()), sources


def expand_missing(
    missing: Sequence[Trial],
    trials: Sequence[Trial],
    base: Mapping[str, Any],
    search: Sequence[Mapping[str, Mapping[str, Any]]],
    where: str,
) -> Iterator[Trial]:
    """Yield the trials that would evaluate the missing encoders; see `Sweep.missing_trials`.

    A trial that another encoder makes possible is left out. This happens if the sweep varied the evaluation, and this
    evaluation sets the same value for all. A point that these settings do not fit would have no trial.

    Args:
        missing: The trials that have no encoder.
        trials: The trials of the points whose encoders are evaluated.
        base: The settings that were given.
        search: The checked sub-spaces.
        where: The start of every message.
    """
    names, possible = {trial.name for trial in trials}, {computed(trial.settings) for trial in trials}
    for _, members in itertools.groupby(missing, key=lambda encoder: point_name(encoder.varied)):
        try:
            expanded, _ = expand_evaluation(list(members), base, search, where, strict=False)
        except InputError:
            continue
        for trial in expanded:
            key = computed(trial.settings)
            if trial.name not in names and key not in possible:
                names.add(trial.name)
                possible.add(key)
                yield trial


def missing_words(sweep: Sweep) -> str:
    """Return how many encoders an evaluation lacks, for the plan; empty if each planned trial has its encoder."""
    count = len(sweep.missing_encoders)
    if not sweep.missing_trials:
        return ""
    return (
        f"{counted(count, 'trial')} of the sweep {'has' if count == 1 else 'have'} no encoder, because the trial "
        "failed, was stopped or has not finished, or its encoder was removed. A point that lacks a seed is not ranked."
    )


def kept_values(encoder: Trial, settings: Settings, base: Mapping[str, Any]) -> dict[str, Any]:
    """Return the varied values of the sweep that the evaluation does not set and that have an effect in the evaluation.

    For example, a sweep that varied `knn_k` may be evaluated without labels.
    """
    values = encoder.varied.items()
    return {name: value for name, value in values if name not in base and has_effect(name, settings)}


def datasets_of(encoder: Trial, settings: Settings, base: Mapping[str, Any]) -> tuple[str, str | None]:
    """Return the `dataset` and the `probe_dataset` of an encoder's evaluation; `settings` has the checked `base`."""
    given = settings.probe_dataset if "probe_dataset" in base else encoder.settings.probe_dataset
    return encoder.settings.dataset, given


def with_metric(tune: Tune, trained: Tune, trials: Sequence[Trial]) -> Tune:
    """Return `tune` with the metric of the sweep that trained the encoders.

    The metric stays as it is if another one is given, or if not every trial of the evaluation reports it.
    """
    metric = trained.metric
    if metric is None or "metric" in tune.model_fields_set or not all(reports(metric, trial) for trial in trials):
        return tune
    mode = tune.mode if "mode" in tune.model_fields_set else trained.mode
    return tune.model_copy(update={"metric": metric, "mode": mode})


def make_evaluated_controls(
    trials: Sequence[Trial], sources: Mapping[str, Trial], controls: Sequence[str], encoders: Sequence[Trial]
) -> Iterator[Trial]:
    """Yield the controls of the trials, each once. A control reads its file if it has one that fits.

    Args:
        trials: The trials of the points.
        sources: For each trial's name the trial that trained its encoder.
        controls: The names of the controls.
        encoders: The trials whose encoders were kept, controls included.
    """
    kept = {encoder.name: encoder for encoder in encoders}
    views = {trial.name: trial.views for trial in make_controls(trials, tuple(controls))}
    yielded = set()
    for control in controls:
        for trial in trials:
            control_trial, original = make_control(trial, control), make_control(sources[trial.name], control)
            if control_trial is None or control_trial.name in yielded:
                continue
            assert trial.source is not None
            trained = None if original is None else kept.get(original.name)
            if trained is not None and same_network(trained.settings, control_trial.settings):
                source = trained.source
            elif control in BUILT:
                source = replace(trial.source, file="", digest="")
            else:
                continue
            yielded.add(control_trial.name)
            yield replace(control_trial, source=source, views=views[control_trial.name])


def same_network(one: Settings, other: Settings) -> bool:
    """Return whether two experiments have the same network, with the same head and initial weights."""
    names = ["encoder", "embedding_dim", "seed", "head", *network_parameters(one)]
    return all(getattr(one, name) == getattr(other, name) for name in names)


def reports(metric: str, trial: Trial) -> bool:
    """Return whether the evaluation of a trial's encoder reports the metric. It reports no metrics of pretraining."""
    return any(metric in part.metrics for part in parts.probe.values()) and has_metric(metric, trial.settings)
