"""Checks of a sweep's settings against each other."""

from __future__ import annotations

import datetime
import difflib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from raysweep import parts
from raysweep.config import (
    METRICS,
    SETTINGS,
    Settings,
    about,
    changes_losses,
    choices,
    default_of,
    has_effect,
    has_metric,
    is_objective,
    metrics_by_name,
    online_metrics,
    shown,
    suggest,
)
from raysweep.config.parameters import FIGURES
from raysweep.config.part_settings import changes_data
from raysweep.config.prefix import obstacle
from raysweep.errors import InputError
from raysweep.space.expansion import MAX_TRIALS, deciding_settings, distinct, needs_of
from raysweep.space.model import Resources, Sweep, Trial, Tune
from raysweep.space.reading import kind
from raysweep.space.unlabelled import check_reported
from raysweep.system.terminal import counted

SCHEDULER_SETTINGS: Mapping[str, tuple[str, ...]] = {"grace_epochs": ("asha", "median"), "reduction_factor": ("asha",)}
"""For each setting of `tune` that only some schedulers read: these schedulers."""
COLLAPSE_SETTINGS = ("collapse_rankme", "collapse_std")
"""The settings of `tune` that only `collapse_stop` reads."""
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")


def check_workers(resources: Resources, trials: Iterable[Trial], where: str) -> None:
    """Raise InputError if a trial cannot be divided among its workers."""
    if resources.workers == 1:
        return
    if resources.gpu != int(resources.gpu):
        raise InputError(
            f"{where}: resources.gpu: {resources.gpu:g} for each of {resources.workers} workers; several workers need "
            "whole GPUs"
        )
    for trial in trials:
        settings = trial.settings
        normalised = next(parts.with_batch_norm(settings), None)
        if normalised is not None and settings.usl_epochs and not resources.gpu:
            raise InputError(
                f"{where}: resources.workers: {normalised.kind} {normalised.name} has batch norm, which PyTorch "
                f"synchronises only between GPUs; use workers: 1, or gpu: 1"
            )
        if settings.batch_size < resources.workers:
            raise InputError(
                f"{where}: resources.workers: batch_size {settings.batch_size} cannot be divided among "
                f"{resources.workers} workers"
            )


def check_figure_names(search: Sequence[Mapping[str, Any]], where: str) -> None:
    """Raise InputError if a searched parameter of a plugin has the name of a figure that shows several settings."""
    name = next((name for space in search for name in space if name in FIGURES), None)
    if name is not None:
        raise InputError(
            f"{where}: search.{name}: the figure of a searched parameter has its name, but the report has another "
            "figure of this name; give the parameter another name"
        )


def check_meant(given: Iterable[str], trials: Sequence[Trial], where: str) -> None:
    """Raise InputError if a setting that changes scores was given, but no trial reads it."""
    for name in without_effect(given, trials):
        settings = settings_as_if_trained(next(trial for trial in trials if not trial.baseline))
        raise InputError(
            f"{where}: {name}: has no effect in any trial{deciding_settings(name, settings)}; it needs "
            f"{needs_of(name, settings)}"
        )


def without_effect(names: Iterable[str], trials: Sequence[Trial]) -> list[str]:
    """Return the settings that change scores elsewhere, but that no trial reads."""
    wanted = [name for name in names if name in SETTINGS and about(name).changes_scores]
    return [
        name
        for name in wanted
        if not about(name).may_be_unused
        and not any(has_effect(name, settings_as_if_trained(trial)) for trial in trials)
    ]


def settings_as_if_trained(trial: Trial) -> Settings:
    """Return the settings that decide whether a trial reads a setting.

    A point counts as if it had pretraining and labels. A single flag can turn off either, so a file may have settings
    of both. An encoder that is no network has no pretraining, but LiDAR draws the views of pretraining.
    """
    settings = trial.settings
    if trial.baseline:
        return settings
    has_views = parts.trains(settings) or parts.probe["label_free"] in parts.probes_in_use(settings)
    epochs = (settings.usl_epochs or default_of("usl_epochs")) if has_views else 0
    update = {"usl_epochs": epochs, "probe_labels": True}
    return settings.model_copy(update=update)


def replaced_settings(
    names: Iterable[str], overrides: Mapping[str, Any], trials: Sequence[Trial], alone: Callable[[], Sweep]
) -> list[str]:
    """Return the settings of a file that have an effect in the file alone, but none with the command line.

    Example:
        A file has `usl_type: simclr` and `temperature: 0.2`, and the command line gives `usl_type=vicreg`. Then the
        result is `["temperature"]`.

    Args:
        names: The settings in `base` of the file.
        overrides: The settings of the command line.
        trials: The trials with the settings of the command line.
        alone: A function that builds the sweep of the file alone.
    """
    unused = without_effect([name for name in names if name not in overrides], trials)
    if not unused or not overrides:
        return []
    try:
        before = without_effect(unused, alone().examples)
    except InputError:  # the file needs the settings of the command line
        return []
    return [name for name in unused if name not in before]


def check_final_states(trials: Iterable[Trial], where: str) -> None:
    """Raise InputError if trials would keep final states, but no longer trial could continue any of them."""
    trained = [trial.settings for trial in trials if trial.settings.usl_epochs and trial.settings.keep == "final_state"]
    reasons = [obstacle(settings) for settings in trained]
    if reasons and None not in reasons:
        raise InputError(
            f"{where}: keep: final_state: no longer trial could continue a trial with {reasons[0]}; write keep: encoder"
        )


def check_collapse(tune: Tune, trials: Iterable[Trial], where: str, is_lenient: bool) -> None:
    """Raise InputError if the settings for stopping collapsed trials could stop none.

    Args:
        tune: How the sweep is run.
        trials: Its trials.
        where: The start of the message.
        is_lenient: Whether rules that do nothing are accepted. They may come from an older version that refused less,
            or from a file whose other settings the command line changes.
    """
    unused = next((n for n in COLLAPSE_SETTINGS if getattr(tune, n) != Tune.model_fields[n].default), None)
    if tune.collapse_stop is None:
        if unused is not None and not is_lenient:
            raise InputError(
                f"{where}: tune.{unused}: has no effect, because nothing is stopped; it needs tune.collapse_stop"
            )
        return
    settings = [trial.settings for trial in trials if trial.settings.probe_every and not trial.baseline]
    most = max((math.ceil(each.pretrain_epochs / each.probe_every) for each in settings), default=0)
    if most == 0:
        raise InputError(f"{where}: tune.collapse_stop: needs evaluations during pretraining; set probe_every above 0")
    if most < tune.collapse_stop and not is_lenient:
        raise InputError(
            f"{where}: tune.collapse_stop: {tune.collapse_stop} could not stop any trial, because no trial has more "
            f"than {counted(most, 'evaluation')} during pretraining; lower it, or probe_every"
        )


def check_name(name: object, where: str) -> None:
    """Check that a sweep's name is one plain directory name."""
    if name is None or isinstance(name, (bool, int, float, datetime.date)):
        given = "nothing" if name is None else f"{kind(name)} ({shown(name)})"
        raise InputError(f'{where}: must be text, not {given}; put it in quotes, such as name: "12"')
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise InputError(
            f"{where}: {shown(name)} cannot name a directory: use at most 100 of a-z, A-Z, 0-9, '_', '-' and '.'; the "
            "first one must not be '-' or '.'"
        )


def check_metric(sweep: Sweep, where: str) -> None:
    """Check that every trial reports the metric for choosing, and that it does not depend on the test split."""
    tune, metric = sweep.tune, sweep.tune.metric
    if metric is None:
        if tune.mode == "min":
            raise InputError(f"{where}: tune.mode: min needs a tune.metric for which less is better")
        if sweep.metric is None and sweep.tune.searcher != "none":
            raise InputError(
                f"{where}: tune.searcher: {sweep.tune.searcher} chooses by validation images, and val_fraction is 0; "
                "set it above 0"
            )
        return
    if metric not in METRICS:
        close = difflib.get_close_matches(metric, choices(), n=1, cutoff=0.4)
        hint = f"did you mean {close[0]}?" if close else f"valid: {', '.join(choices())}"
        raise InputError(f"{where}: tune.metric: unknown metric {metric!r}; {hint}")
    if metric not in choices():
        hint = suggest(metric.replace("test", "val"), choices())
        why = (
            "test images must not choose"
            if metrics_by_name()[metric].uses_test
            else "it is a diagnosis, which only describes how a trial went"
        )
        raise InputError(f"{where}: tune.metric: {metric!r} cannot be used, because {why}{hint}")
    better = metrics_by_name()[metric].better
    if tune.mode is not None and better is not None and tune.mode != better:
        words = "more" if better == "max" else "less"
        raise InputError(f"{where}: tune.mode: {tune.mode} contradicts tune.metric: {words} {metric} is better")
    for trial in sweep.examples:
        if not trial.baseline and not has_metric(metric, trial.settings):
            check_reported(metric, trial, where)
            names = ("usl_type", "usl_epochs", "probe_every", "val_fraction", "per_layer", "encoder", "strength")
            values = ", ".join(f"{name}: {getattr(trial.settings, name)}" for name in names)
            raise InputError(f"{where}: tune.metric: {trial.name} does not report {metric!r} ({values})")


def check_objective(
    metric: str | None, search: tuple[Mapping[str, Mapping[str, Any]], ...], trials: Iterable[Trial], where: str
) -> None:
    """Raise InputError if points would be compared by a loss that measures something else in each of them."""
    if metric is None or not is_objective(metric):
        return
    pretrained = [trial.settings for trial in trials if trial.settings.usl_epochs and not trial.baseline]
    differing = [name for name in varying(search) if any(changes_losses(name, settings) for settings in pretrained)]
    if differing:
        raise InputError(
            f"{where}: tune.metric: {metric} cannot be compared between points that differ in {differing[0]}; choose "
            f"by online/knn_val_accuracy or linear/val_accuracy"
        )


def varying(search: tuple[Mapping[str, Mapping[str, Any]], ...]) -> Iterator[str]:
    """Yield the searched settings that have more than one value, be it in different sub-spaces."""
    for name in dict.fromkeys(name for space in search for name in space):
        if len({repr(space.get(name)) for space in search}) > 1 or any(distinct(space[name]) > 1 for space in search):
            yield name


def check_searcher(tune: Tune, search: tuple[Mapping[str, Mapping[str, Any]], ...], where: str) -> None:
    """Raise InputError if a searcher has nothing to search, or could not compare the points."""
    who = f"tune.searcher: {tune.searcher}"
    if tune.num_samples == 1:
        raise InputError(f"{where}: {who} learns from earlier points; set tune.num_samples above 1")
    seeds = [space.get("seed", {"grid": []}) for space in search]
    if any("grid" not in spec for spec in seeds) or any(spec != seeds[0] for spec in seeds):
        raise InputError(f"{where}: {who} scores a point by its mean over seeds: give one grid of seeds for all points")
    for space in search:
        for name, spec in space.items():
            if name != "seed" and len(spec.get("grid", [])) > 1:
                raise InputError(
                    f"{where}: search.{name}: a grid is run as a whole, but {who} chooses; write {{choice: "
                    f"{spec['grid']}}}, or a range"
                )
    check_comparable(search, who, where)
    points = sum(math.prod(distinct(spec) for name, spec in space.items() if name != "seed") for space in search)
    if points < tune.num_samples:
        raise InputError(
            f"{where}: {who} cannot propose {tune.num_samples} points (tune.num_samples), because only {points} exist; "
            "search a range (uniform, loguniform, randint) or more choices, or run them all as a grid"
        )
    trials = tune.num_samples * len(seeds[0]["grid"] or [0])
    if trials > MAX_TRIALS:
        raise InputError(f"{where}: search: {trials} trials; at most {MAX_TRIALS} in one sweep")


def check_comparable(search: tuple[Mapping[str, Mapping[str, Any]], ...], who: str, where: str) -> None:
    """Raise InputError if points that are evaluated differently would be compared."""
    for name in varying(search):
        if about(name).protocol or changes_data(name):
            raise InputError(
                f"{where}: search.{name}: {who} compares scores, but scores with different {name} are not comparable; "
                "leave one of the two out"
            )


def check_scheduler(sweep: Sweep, where: str) -> None:
    """Raise InputError if a scheduler could stop no trial, or would compare trials that are not comparable."""
    tune, who = sweep.tune, f"tune.scheduler: {sweep.tune.scheduler}"
    for name, schedulers in SCHEDULER_SETTINGS.items():
        if getattr(tune, name) != Tune.model_fields[name].default and tune.scheduler not in schedulers:
            raise InputError(f"{where}: tune.{name}: has no effect with {who}; it needs {' or '.join(schedulers)}")
    if tune.scheduler == "fifo":
        return
    pretrained = [trial for trial in sweep.examples if trial.settings.usl_epochs and not trial.baseline]
    if not pretrained:
        raise InputError(f"{where}: {who} stops trials during pretraining; set usl_epochs above 0")
    metric, settings = sweep.stop_metric, pretrained[0].settings
    if metric not in online_metrics():
        raise InputError(
            f"{where}: {who} needs a tune.metric that is reported during pretraining, and {metric!r} is not; leave "
            f"tune.metric out (it is then online/knn_val_accuracy), or choose from: {', '.join(online_metrics())}"
        )
    if not settings.probe_every:
        raise InputError(f"{where}: {who} needs evaluations during pretraining; set probe_every above 0")
    lacks = next((trial for trial in pretrained if not has_metric(metric, trial.settings)), None)
    if lacks is not None and not lacks.settings.probe_labels and tune.metric is None:
        raise InputError(
            f"{where}: {who} uses {metric}, which is not reported without labels; choose by another metric, for "
            "example by tune.metric: pretrain/rankme"
        )
    if lacks is not None:
        raise InputError(
            f"{where}: {who} uses {metric}, which {lacks.name} does not report (usl_type: {lacks.settings.usl_type}"
            f", val_fraction: {lacks.settings.val_fraction:g})"
        )
    check_comparable(sweep.search, who, where)
    # In layerwise training, the same epoch belongs to different stages if the stages differ in length.
    schedules = {
        (trial.settings.layerwise, trial.settings.usl_epochs if trial.settings.layerwise == "greedy" else None)
        for trial in pretrained
    }
    if len(schedules) > 1:
        raise InputError(
            f"{where}: {who} compares trials at the same epoch, but these trials are at different stages then; "
            "use one value of layerwise, and with greedy one value of usl_epochs"
        )
    first = math.ceil(sweep.grace_epochs / settings.probe_every) * settings.probe_every
    if first >= sweep.longest:
        raise InputError(
            f"{where}: {who} could not stop any trial: the first evaluation after grace_epochs: "
            f"{sweep.grace_epochs} is at epoch {min(first, sweep.longest)} of {sweep.longest}; lower probe_every: "
            f"{settings.probe_every} or grace_epochs"
        )
