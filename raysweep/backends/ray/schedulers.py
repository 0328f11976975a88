"""Ray Tune's schedulers that stop trials early, given what they can compare and nothing else."""

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
"""In a trial's report: the pretraining epoch that it has just been evaluated after. Other reports lack it."""


def make_scheduler(sweep: Sweep) -> ByEvaluation | None:
    """The scheduler that the sweep names; None for first in, first out."""
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
            stop_last_trials=False,  # or a trial that has pretrained to the end would not be evaluated
        )
    else:
        scheduler = MedianStoppingRule(
            time_attr=EPOCH,
            metric=sweep.stop_metric,
            mode=sweep.mode,
            grace_period=sweep.grace_epochs,
            # Or it would pause trials until there are others, by ending their workers.
            min_time_slice=math.inf,  # type: ignore[arg-type]
        )
    return ByEvaluation(tune.scheduler, scheduler, sweep.stop_metric)


@dataclass(frozen=True)
class Competitor:
    """A trial as Ray's schedulers know it: by its name, which a resume keeps, where Tune gives it another id."""

    trial_id: str


class ByEvaluation(FIFOScheduler):
    """Passes the online evaluations of trials that pretrain on to a scheduler, each once, and returns its decisions.

    Trials are compared after equally many epochs. The scheduler puts an evaluation into the highest rung that its epoch
    has passed, and averages over all evaluations that it was told. So it must be told all of them, from the first on: a
    trial of which an earlier evaluation is unknown is no longer compared. Nor is an evaluation after a last epoch that
    is not a multiple of `probe_every`, since longer trials have none of that epoch. A random encoder is never evaluated
    online. No trial is stopped at its last epoch, when little of it is left.

    Args:
        name: the scheduler's, as the search space has it.
        scheduler: decides.
        metric: what it goes by.
    """

    def __init__(self, name: str, scheduler: FIFOScheduler, metric: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.name, self.scheduler, self.measure = name, scheduler, metric
        self.newest: dict[str, int] = {}
        """The epoch of each trial's newest evaluation that the scheduler was told, by the trial's name."""
        self.reasons: dict[str, str] = {}
        """Why a trial was stopped, by its name."""

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles it to restore a run, which is never done here (the store is the truth)."""
        return {}

    def recall(self, trial: Trial, evaluations: Mapping[int, float]) -> None:
        """Tell the scheduler what a trial scored in earlier runs of the sweep. This stops no trial.

        Args:
            trial: one that ended, or one that is to go on.
            evaluations: the metric after each evaluated epoch.
        """
        for epoch, value in sorted(evaluations.items()):
            if self._is_next(trial, epoch):
                self._record(trial, self._evaluation(epoch, value))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Decide whether a trial that has reported goes on."""
        ours: Trial = trial.config["trial"]
        epoch = result.get(EPOCH, 0)
        if self.measure not in result or not self._is_next(ours, epoch):
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
        """Whether a trial's evaluation follows the one before, and note it.

        False for a report without an evaluation, for an evaluation that a trial repeats since its last checkpoint, and
        for one before which others are missing.
        """
        if epoch == 0 or epoch != self.newest.get(trial.name, 0) + trial.settings.probe_every:
            return False
        self.newest[trial.name] = epoch
        return True

    def _evaluation(self, epoch: int, value: float) -> dict[str, Any]:
        """An evaluation as the scheduler is told it: in the precision of event files, or equal scores would differ."""
        return {EPOCH: epoch, self.measure: float(np.float32(value))}

    def _record(self, trial: Trial, evaluation: dict[str, Any]) -> None:
        """Tell the scheduler an evaluation about which nothing is to be decided, as that of a trial that ends there."""
        competitor: Any = Competitor(trial.name)
        self.scheduler.on_trial_add(None, competitor)  # type: ignore[arg-type]
        self.scheduler.on_trial_complete(None, competitor, evaluation)  # type: ignore[arg-type]


def recall_evaluations(scheduler: ByEvaluation, sweep: Sweep, results: Store) -> None:
    """Tell a scheduler what the trials of a sweep scored in its earlier runs, from their event files.

    Without that a trial that goes on would be compared by a late epoch with what others scored after an early one.
    Where the evaluations cannot be read, trials of earlier runs are not compared, and a warning says so.
    """
    try:
        results.pull_events()
        for trial in sweep.trials:
            directory = results.trial(trial.name)
            if trial.settings.probe_every and any(directory.glob("events.out.tfevents.*")):
                from raysweep.results.events import read_scalar  # which takes a second, and a new sweep does without

                scheduler.recall(trial, read_scalar(directory, scheduler.measure, trial.settings.probe_every))
    except OSError as fault:
        warnings.warn(f"trials of earlier runs are not compared: {describe_error(fault)}", stacklevel=2)
