"""Trials that share one pretraining: they differ only in their evaluation, or in their number of epochs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raysweep import parts
from raysweep.config import PROTOCOL_VERSION, SETTINGS, Settings, about
from raysweep.config.prefix import SHOWN, obstacle
from raysweep.space.evaluation import is_evaluation
from raysweep.space.expansion import computed
from raysweep.space.model import FrozenDict, Sweep, Trial
from raysweep.space.seen_labels import held_out


@dataclass(frozen=True)
class Pretraining:
    """One pretraining, and the trials that need it.

    Example:
        The trials `labels_per_class=1,seed=0` and `labels_per_class=10,seed=0` need the same pretraining.
    """

    digest: str
    """A hash of everything that decides the pretraining: 16 hexadecimal digits."""
    trials: tuple[Trial, ...]
    """The trials, in the order of the sweep."""


@dataclass(frozen=True)
class HandsOut:
    """A trial pretrains, and hands out its state to the trials that share the pretraining."""

    digest: str
    """The digest of the pretraining."""
    epochs: tuple[int, ...]
    """The epochs after which the state is handed out, in increasing order; the last one may be the trial's own."""
    variants: tuple[Trial, ...] = ()
    """A trial for each way in which the online measures of the other trials differ from this trial's measures."""

    def __str__(self) -> str:
        """Return a short text, from which Tune makes tags."""
        return f"hands out {self.digest}"


@dataclass(frozen=True)
class TakesOver:
    """A trial takes over the state of a pretraining that another trial has handed out."""

    digest: str
    """The digest of the pretraining."""

    def __str__(self) -> str:
        """Return a short text, from which Tune makes tags."""
        return f"takes over {self.digest}"


Role = HandsOut | TakesOver
"""The part that a trial has in a shared pretraining."""


def can_share(sweep: Sweep) -> bool:
    """Return whether trials of the sweep may share a pretraining.

    Trials do not share a pretraining if a scheduler compares them while they pretrain, or if a searcher chooses points
    by the results. Each trial is then judged by its own reports. Trials that run in several processes do not share a
    pretraining either.
    """
    alone = sweep.tune.scheduler == "fifo" and sweep.tune.searcher == "none"
    return not sweep.encoders and alone and sweep.resources.workers == 1


def pretrainings_of(trials: Iterable[Trial]) -> list[Pretraining]:
    """Return the distinct pretrainings of some trials, in the order of the trials. Trials without one are left out.

    Args:
        trials: The trials, each with its settings.

    Returns:
        Each pretraining with its trials; a pretraining that nobody shares has one trial.

    Example:
        For a grid of two values of `alpha` and two of `labels_per_class` there are two pretrainings, each of two
        trials.
    """
    groups: dict[FrozenDict, list[Trial]] = {}
    names: dict[str, list[str]] = {}
    for trial in trials:
        if trial.source is None and trial.settings.pretrain_epochs:
            dataset = trial.settings.dataset
            if dataset not in names:
                names[dataset] = [
                    name
                    for name in SETTINGS
                    if not is_evaluation(name, [trial]) and (about(name).changes_scores or name in SHOWN)
                ]
            values = computed(trial.settings)
            decides = [name for name in names[dataset] if name != "usl_epochs" or obstacle(trial.settings) is not None]
            # A point may be stopped because its embedding has collapsed, and a control may not.
            others = {"control": trial.control, "held_out": held_out(values)}
            key = FrozenDict({name: getattr(values, name) for name in decides} | others)
            groups.setdefault(key, []).append(trial)
    return [Pretraining(digest_of(key), tuple(members)) for key, members in groups.items()]


def digest_of(values: Mapping[str, Any]) -> str:
    """Return the digest of a pretraining from the settings that decide it."""
    content = json.dumps([PROTOCOL_VERSION, values], sort_keys=True)
    return hashlib.sha256(content.encode(errors="surrogatepass")).hexdigest()[:16]


def online_key(settings: Settings) -> str:
    """Return what decides the online measures of a trial beside its pretraining; empty if nothing is measured.

    Two trials that share a pretraining have the same measures if their keys are equal. The measures read the
    validation split of the evaluated dataset and the arguments of kNN.
    """
    if not settings.probe_every:
        return ""
    data = settings.evaluated_dataset
    read = dict(parts.probe["knn"].arguments(settings))
    if data in parts.dataset:
        read |= parts.dataset[data].arguments(settings)
    split = (settings.val_fraction, settings.split_seed if settings.val_fraction else 0)
    return json.dumps([data, split, read], sort_keys=True)


def hands_out(trial: Trial, pretraining: Pretraining, others: Sequence[Trial]) -> HandsOut:
    """Return the role of the trial that pretrains for the others.

    Args:
        trial: The trial that pretrains.
        pretraining: Its pretraining.
        others: The trials that wait for the state.
    """
    variants = {online_key(other.settings): other for other in others}
    variants.pop(online_key(trial.settings), None)
    epochs = sorted({other.settings.pretrain_epochs for other in others})
    return HandsOut(pretraining.digest, tuple(epochs), tuple(variants.values()))


def taking_over(sweep: Sweep, done: Collection[str] = ()) -> frozenset[str]:
    """Return the names of the trials of a sweep that take over the pretraining of another trial.

    Args:
        sweep: The sweep.
        done: The names of the trials that do not run, because they have a result.
    """
    if not can_share(sweep):
        return frozenset()
    epochs = {trial.name: trial.settings.pretrain_epochs for trial in sweep.trials}
    names: set[str] = set()
    for pretraining in pretrainings_of(trial for trial in sweep.trials if trial.name not in done):
        waiting = list(pretraining.trials)
        while waiting:
            leader = max(waiting, key=lambda trial: (trial.settings.pretrain_epochs, bool(trial.continues)))
            able = {trial.name for trial in waiting if trial is not leader and is_covered(trial, leader, epochs)}
            names |= able
            waiting = [trial for trial in waiting if trial is not leader and trial.name not in able]
    return frozenset(names)


def is_covered(trial: Trial, leader: Trial, epochs: Mapping[str, int]) -> bool:
    """Return whether a trial can take over the state that the leader of its pretraining hands out.

    A leader that continues a shorter trial has no state of the epochs before, and no online measures of other trials.

    Args:
        trial: The trial.
        leader: The trial that pretrains, at least as long.
        epochs: The number of pretraining epochs of each trial, by name.
    """
    if not leader.continues:
        return True
    is_later = trial.settings.pretrain_epochs >= epochs[leader.continues]
    return is_later and online_key(trial.settings) == online_key(leader.settings)


def count_pretrainings(sweep: Sweep, share: bool = True, done: Collection[str] = ()) -> int:
    """Return how often a sweep pretrains.

    Args:
        sweep: The sweep.
        share: Whether trials share pretrainings where they can.
        done: The names of the trials that do not run, because they have a result.
    """
    trials = [trial for trial in sweep.trials if trial.name not in done]
    count = sum(1 for trial in trials if trial.source is None and trial.settings.pretrain_epochs)
    return count - len(taking_over(sweep, done)) if share else count
