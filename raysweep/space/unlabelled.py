"""Evaluations that read no labels: when a sweep is evaluated so, and what it then refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from raysweep import parts
from raysweep.config import Settings, choices, default_of, has_metric
from raysweep.errors import InputError
from raysweep.space.model import Sweep, Trial

IsUnlabelled = Callable[[str], bool]
"""Says of the name of a dataset whether its images are meant to be evaluated without labels."""
DIVISION = ("val_fraction", "split_seed")
"""The settings of the experiment as a whole that only an evaluation with labels reads."""
Search = Sequence[Mapping[str, Mapping[str, Any]]]


def never_unlabelled(name: str) -> bool:
    """Return False for every dataset, for a sweep that says itself whether it reads labels."""
    return False


def evaluated_datasets(pairs: Iterable[tuple[str, str | None]], search: Search) -> list[str]:
    """Return the datasets that a checked search evaluates on, each once.

    Args:
        pairs: The settings `dataset` and `probe_dataset` of each experiment to which the search applies.
        search: The sub-spaces.
    """
    names: dict[str, None] = {}
    for dataset, probe_dataset in dict.fromkeys(pairs):
        for space in search:
            datasets = values_of(space, "dataset", dataset)
            for name in values_of(space, "probe_dataset", probe_dataset):
                names |= dict.fromkeys([name] if name else datasets)
    return list(names)


def values_of(space: Mapping[str, Mapping[str, Any]], name: str, default: Any) -> Sequence[Any]:
    """Return the values of a setting in a checked sub-space; only the default if it is not searched there."""
    values: Sequence[Any] = next(iter(space[name].values())) if name in space else [default]
    return values


def needs_no_labels(
    settings: Settings, datasets: Iterable[str], search: Search, is_unlabelled: IsUnlabelled, where: str, is_asked: bool
) -> bool:
    """Return whether to evaluate without labels, because the images have none and a probe needs none.

    Without such a probe, the images are refused later, with the advice to turn one on.

    Args:
        settings: The settings of the experiment as a whole.
        datasets: The evaluated datasets.
        search: The sub-spaces.
        is_unlabelled: Says which datasets have no labels.
        where: The start of the message.
        is_asked: Whether the user asked for labels by `probe_labels: true`.

    Raises:
        InputError: Only some of the datasets have labels, or the user asked for them.
    """
    names = list(datasets)
    unlabelled = [name for name in names if is_unlabelled(name)]
    if not unlabelled or not has_label_free_probe(settings, search):
        return False
    labelled = next((name for name in names if name not in unlabelled), None)
    if labelled is not None:
        raise InputError(
            f"{where}: probe_dataset: {unlabelled[0]} has no labels, and {labelled} has; evaluate them separately"
        )
    if is_asked:
        raise InputError(
            f"{where}: probe_labels: true, but {unlabelled[0]} has no labels; leave it out, or set it to false"
        )
    return True


def has_label_free_probe(settings: Settings, search: Search) -> bool:
    """Return whether a probe that needs no labels is on, or is turned on by the search."""
    searched = {name for space in search for name in space}
    on = parts.probes_in_use(settings)
    return any(
        not part.traits["needs_labels"] and (part in on or part.traits["switch"] in searched)
        for part in parts.probe.values()
    )


def is_off(value: Any) -> bool:
    """Return whether a probe, or a part of it, is turned off by this value of a setting."""
    return value is None or value is False


def check_labels(settings: Settings, given: Iterable[str], search: Iterable[Mapping[str, Any]], where: str) -> None:
    """Check that nothing which needs labels was asked for if the evaluation reads none.

    Other settings of probes that need labels may be given, and have no effect. So one search-space file serves labelled
    and unlabelled images.

    Args:
        settings: The settings of the experiment as a whole.
        given: The names of the settings that were given one value.
        search: The sub-spaces.
        where: The start of the message.

    Raises:
        InputError: A probe that needs labels was turned on, or one of its settings is searched.
    """
    if settings.probe_labels:
        return
    label_free = [part for part in parts.probe.values() if not part.traits["needs_labels"]]
    read_anyway = {name for part in label_free for name in part.parameters}
    labelled = {*parts.declared_parameters(("probe",)), *DIVISION} - read_anyway
    turned_on = [name for name in given if is_off(default_of(name)) and not is_off(getattr(settings, name))]
    searched = [name for space in search for name in space]
    refused = next((name for name in [*turned_on, *searched] if name in labelled), None)
    if refused is not None:
        raise InputError(f"{where}: {refused}: needs labels, and the evaluation reads none; leave it out")


def check_evaluates(trials: Iterable[Trial], where: str) -> None:
    """Raise InputError if a trial reads no labels and has no probe that needs none."""
    for trial in trials:
        if not trial.settings.probe_labels and not parts.probes_in_use(trial.settings):
            raise InputError(
                f"{where}: probe_labels: false: nothing would be evaluated in {trial.name}; set label_free=true"
            )


def check_reported(metric: str, trial: Trial, where: str) -> None:
    """Raise InputError if a trial does not report a metric only because it reads no labels."""
    settings = trial.settings
    if settings.probe_labels or not has_metric(metric, settings.model_copy(update={"probe_labels": True})):
        return
    probed = {name for part in parts.probes_in_use(settings) for name in part.metrics}
    valid = [name for name in choices() if name in probed and has_metric(name, settings)]
    raise InputError(f"{where}: tune.metric: {metric} is not reported without labels; choose from: {', '.join(valid)}")


def words_without_labels(sweep: Sweep) -> str:
    """Return which images are evaluated without labels, for the plan; empty if all are evaluated with labels."""
    trials = [trial for trial in sweep.examples if not trial.settings.probe_labels]
    names = dict.fromkeys(trial.settings.evaluated_dataset for trial in trials)
    return f"{', '.join(names)}: evaluated without labels, so there are measures and no accuracies." if names else ""
