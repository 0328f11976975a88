"""Adapters for Ray Tune's early-stopping schedulers, which pass on only comparable evaluations."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from raysweep.results.result import describe_error
from raysweep.results.store import Store
from raysweep.space import Sweep, Trial

EPOCH = "epoch"
"""The key in a trial's report for the pretraining epoch that was just evaluated. Other reports lack it."""


def make_scheduler(sweep: Sweep) -> ByEvaluation | None:
    """Return the sweep's scheduler; None for first in, first out."""
    tune = sweep.tune
    if tune.scheduler == "fifo":
        return None
    scheduler: FIFOScheduler
    if tune.scheduler == "asha":
        scheduler = ASHAScheduler(
            time_attr=EPOCH,
            metric=sweep.stop_metric,
            mode=sweep.mode,
            max_t=sweep.longest,
            grace_period=sweep.grace_epochs,
            reduction_factor=tune.reduction_factor,
            stop_last_trials=False,  # otherwise a trial that has pretrained to the end would not be evaluated
        )
    else:
        scheduler = MedianStoppingRule(
            time_attr=EPOCH,
            metric=sweep.stop_metric,
            mode=sweep.mode,
            grace_period=sweep.grace_epochs,
            # Otherwise it would pause trials until there are others, by ending their workers.
            min_time_slice=math.inf,  # type: ignore[arg-type]
        )
    return ByEvaluation(tune.scheduler, scheduler, sweep.stop_metric)


@dataclass(frozen=True)
class Competitor:
    """A trial as Ray's schedulers know it: by its name, because Tune gives it a new id in every resume."""

    trial_id: str


class ByEvaluation(FIFOScheduler):
    """Passes each online evaluation of a pretraining trial to a scheduler once, and returns the scheduler's decisions.

    Trials are compared after the same number of epochs. ASHA puts an evaluation into the highest rung (an epoch at
    which it compares trials) that its epoch has passed, and the median rule averages over all evaluations that it gets.
    So the scheduler must get every evaluation of a trial, and a trial that lacks an earlier evaluation is no longer
    compared. An evaluation after a last epoch that is not a multiple of `probe_every` is not compared either, because
    longer trials have none at that epoch. A control is neither compared nor stopped. No trial is stopped at its last
    epoch, when little of it is left.

    Args:
        name: The scheduler's name in the search space.
        scheduler: The scheduler that decides.
        metric: The metric that it compares.
    """

    def __init__(self, name: str, scheduler: FIFOScheduler, metric: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.name, self.scheduler, self.measure = name, scheduler, metric
        self.newest: dict[str, int] = {}
        """By trial name, the epoch of the newest evaluation that the scheduler was told."""
        self.reasons: dict[str, str] = {}
        """By trial name, why a trial was stopped."""

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing to pickle. Tune pickles schedulers to restore a run, which never happens here."""
        return {}

    def recall(self, trial: Trial, evaluations: Mapping[int, float]) -> None:
        """Tell the scheduler a trial's scores from earlier runs of the sweep. This stops no trial.

        Args:
            trial: A trial that has ended or that will resume.
            evaluations: The metric after each evaluated epoch.
        """
        for epoch, value in sorted(evaluations.items()):
            if self._is_next(trial, epoch):
                self._record(trial, self._evaluation(epoch, value))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Decide whether a trial continues after its report."""
        ours: Trial = trial.config["trial"]
        epoch = result.get(EPOCH, 0)
        if ours.baseline or self.measure not in result or not self._is_next(ours, epoch):
            return str(TrialScheduler.CONTINUE)
        evaluation = self._evaluation(epoch, result[self.measure])
        if epoch >= ours.settings.pretrain_epochs:
            self._record(ours, evaluation)
            return str(TrialScheduler.CONTINUE)
        competitor = Competitor(ours.name)
        self.scheduler.on_trial_add(tune_controller, competitor)  # type: ignore[arg-type]
        decision = str(self.scheduler.on_trial_result(tune_controller, competitor, evaluation))  # type: ignore[arg-type]
        if decision == TrialScheduler.STOP:
            value = f"{self.measure} {result[self.measure]:.4f}"
            self.reasons[ours.name] = f"stopped by {self.name} after epoch {epoch}: {value}"
        return decision

    def _is_next(self, trial: Trial, epoch: int) -> bool:
        """Return whether this evaluation directly follows the trial's last one. If so, record it.

        This is False for a report without an evaluation, for an evaluation that a resumed trial repeats since its last
        checkpoint, and for an evaluation after a missing one.
        """
        if epoch == 0 or epoch != self.newest.get(trial.name, 0) + trial.settings.probe_every:
            return False
        self.newest[trial.name] = epoch
        return True

    def _evaluation(self, epoch: int, value: float) -> dict[str, Any]:
        """Return an evaluation for the scheduler, rounded as in event files so that equal scores stay equal."""
        return {EPOCH: epoch, self.measure: float(np.float32(value))}

    def _record(self, trial: Trial, evaluation: dict[str, Any]) -> None:
        """Tell the scheduler an evaluation that needs no decision, for example one at the end of a trial."""
        competitor: Any = Competitor(trial.name)
        self.scheduler.on_trial_add(None, competitor)  # type: ignore[arg-type]
        self.scheduler.on_trial_complete(None, competitor, evaluation)  # type: ignore[arg-type]


def recall_evaluations(scheduler: ByEvaluation, sweep: Sweep, results: Store) -> None:
    """Tell a scheduler the scores of earlier runs of the sweep, from the trials' event files.

    Otherwise a resumed trial at a late epoch would be compared with scores of others after an early epoch. If the
    evaluations cannot be read, trials of earlier runs are not compared, and a warning says so.
    """
    try:
        results.pull_events()
        for trial in sweep.trials:
            directory = results.trial(trial.name)
            if trial.settings.probe_every and not trial.baseline and any(directory.glob("events.out.tfevents.*")):
                from raysweep.results.events import read_scalar  # takes a second, which a new sweep saves

                scheduler.recall(trial, read_scalar(directory, scheduler.measure, trial.settings.probe_every))
    except OSError as fault:
        warnings.warn(
            f"the scheduler cannot compare with trials of earlier runs: {describe_error(fault)}", stacklevel=2
        )
