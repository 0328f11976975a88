"""Ray Tune's schedulers that stop trials early, given what they can compare and nothing else."""

from __future__ import annotations

import math
from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from raysweep.space import Sweep

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
            mode=tune.mode,
            max_t=sweep.longest,
            grace_period=sweep.grace_epochs,
            reduction_factor=tune.reduction_factor,
            stop_last_trials=False,  # or a trial that has pretrained to the end would not be evaluated
        )
    else:
        scheduler = MedianStoppingRule(
            time_attr=EPOCH,
            metric=sweep.stop_metric,
            mode=tune.mode,
            grace_period=sweep.grace_epochs,
            # Or it would pause trials until there are others, by ending their workers.
            min_time_slice=math.inf,  # type: ignore[arg-type]
        )
    return ByEvaluation(tune.scheduler, scheduler, sweep.stop_metric)


class ByEvaluation(FIFOScheduler):
    """Passes on to a scheduler the online evaluations of trials that pretrain, each once, and what it decides.

    A random encoder is never evaluated online, so never compared. Nor is a trial stopped at its last epoch, when little
    of it is left.

    Args:
        name: the scheduler's, as the search space has it.
        scheduler: decides.
        metric: what it goes by.
    """

    def __init__(self, name: str, scheduler: FIFOScheduler, metric: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.name, self.scheduler, self.measure = name, scheduler, metric
        self.newest: dict[str, dict[str, Any]] = {}
        self.reasons: dict[str, str] = {}
        """Why a trial was stopped, by its name."""

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles it to restore a run, which is never done here (the store is the truth)."""
        return {}

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """It waits."""
        self.scheduler.on_trial_add(tune_controller, trial)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """It broke off for the last time."""
        self.scheduler.on_trial_error(tune_controller, trial)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """It ended without running."""
        self.scheduler.on_trial_remove(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """It reported: whether it goes on."""
        of = trial.config["trial"]
        before = self.newest.get(of.name, {}).get(EPOCH, 0)
        if result.get(EPOCH, 0) <= before:  # no evaluation; or one that a trial repeats since its last checkpoint
            return str(TrialScheduler.CONTINUE)
        self.newest[of.name] = result
        if result[EPOCH] >= of.settings.pretrain_epochs:
            return str(TrialScheduler.CONTINUE)
        decision = str(self.scheduler.on_trial_result(tune_controller, trial, result))
        if decision == TrialScheduler.STOP:
            value = f"{self.measure} {result[self.measure]:.4f}"
            self.reasons[of.name] = f"stopped by {self.name} after epoch {result[EPOCH]}: {value}"
        return decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """It ended, or was stopped."""
        newest = self.newest.get(trial.config["trial"].name)
        if newest is not None:
            self.scheduler.on_trial_complete(tune_controller, trial, newest)
