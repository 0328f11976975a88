"""A sweep as one Ray Tune run of a function trainable, over points that are finished already."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from raysweep import store
from raysweep.config import METRICS
from raysweep.inputs import Datasets, pick
from raysweep.space import Sweep, Trial
from raysweep.store import Result
from raysweep.sweep.schedulers import EPOCH, ByEvaluation, make_scheduler
from raysweep.view import View

REPORT_SECONDS = 1.0  # tune.report waits for the driver: reports go by time, not by epoch


def run(
    sweep: Sweep, pending: list[Trial], kept: list[Result], results: store.Store, datasets: Datasets, view: View
) -> None:
    """Run the pending trials on the connected cluster; each leaves its result in its directory.

    With a searcher, also those of the points that it proposes; they are known to the store.

    A trial whose worker dies, or that raises, is begun again up to `max_failures` times and goes on from its own
    checkpoint; after that it is recorded as failed. KeyboardInterrupt passes through.
    """
    parameters = {
        "datasets": dict(datasets),
        "root": results.root,
        "threads": sweep.resources.cpu,
        "gpu": sweep.resources.gpu > 0,  # with 0 Ray hides no GPU, and every trial would take the first one
        "checkpoint_seconds": sweep.tune.checkpoint_seconds,
        "compared": sweep.tune.scheduler != "fifo",
    }
    ended = {result.trial: result for result in kept}
    scheduler = make_scheduler(sweep)
    proposer = None
    if sweep.tune.searcher == "optuna":
        from raysweep.sweep.searcher import Proposer, Queue  # Optuna need not be installed

        proposer = Proposer(Queue(sweep, pending, ended, results))
    watch = Watch(datasets, results, ended, scheduler, view)
    make_tuner(run_trial, parameters, sweep, pending, results.root, scheduler, proposer, [watch]).fit()


def make_tuner(
    trainable: Callable[..., None],
    parameters: Mapping[str, Any],
    sweep: Sweep,
    trials: Sequence[Trial],
    root: Path,
    scheduler: TrialScheduler | None = None,
    proposer: Searcher | None = None,
    callbacks: Sequence[tune.Callback] = (),
) -> tune.Tuner:
    """A Tuner that runs `trainable({"trial": trial}, **parameters)` for every trial, or all that the proposer gives.

    The parameters go through the object store once: NumPy arrays in them are mapped read-only into every worker on a
    node, not copied. Workers are kept from trial to trial, so that each imports torch once.
    """
    resources = {"cpu": sweep.resources.cpu, "gpu": sweep.resources.gpu}
    return tune.Tuner(
        tune.with_resources(tune.with_parameters(trainable, **parameters), resources),
        param_space={"trial": tune.grid_search(list(trials))} if proposer is None else None,
        # No metric here: Tune raises when a first report lacks it, and what is best is read from the store.
        tune_config=tune.TuneConfig(
            scheduler=scheduler,
            search_alg=proposer,
            num_samples=1 if proposer is None else -1,  # it says itself when it ends
            max_concurrent_trials=sweep.tune.max_concurrent,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name=".ray",
            storage_path=str(root),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=sweep.tune.max_failures),
            callbacks=list(callbacks),
        ),
    )


def run_trial(
    config: Mapping[str, Any],
    datasets: Datasets,
    root: Path,
    threads: int,
    gpu: bool,
    checkpoint_seconds: float,
    compared: bool,
) -> None:
    """The function trainable: one trial in a worker.

    A trial that a scheduler compares with others reports every online evaluation, and waits for what is decided. If it
    is to stop, Ray ends this thread in that report by SystemExit, once it needs the worker for another trial.
    """
    from raysweep import experiment

    trial = config["trial"]
    directory = root / trial.name
    reported = time.monotonic()

    def report(at: experiment.Progress) -> None:
        nonlocal reported
        if compared and at.evaluated:
            tune.report({"share": at.share, EPOCH: at.epoch, **at.metrics})
        elif time.monotonic() - reported >= REPORT_SECONDS:
            tune.report({"share": at.share})
        else:
            return
        reported = time.monotonic()

    experiment.run(
        trial,
        datasets,
        directory,
        threads=threads,
        gpu=gpu,
        checkpoint_seconds=checkpoint_seconds,
        report=report,
    )
    tune.report({"share": 1.0})


class Watch(tune.Callback):
    """Passes on to the view what Tune sees of the trials."""

    def __init__(
        self,
        datasets: Datasets,
        results: store.Store,
        ended: dict[str, Result],
        scheduler: ByEvaluation | None,
        view: View,
    ) -> None:
        self.datasets, self.results, self.ended, self.scheduler, self.view = datasets, results, ended, scheduler, view

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its callbacks to restore a run, which is never done here (the store is the truth)."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A worker has it."""
        self.view.begin(self._of(trial))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """It reported."""
        self.view.progress(self._of(trial), result["share"])

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Its worker died; it will go on."""
        of = self._of(trial)
        self.view.retry(of, store.attempts(self.results.trial(of.name)))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """It wrote its result, or was stopped."""
        of = self._of(trial)
        result = self.results.result(of.name)
        if result is None:
            assert self.scheduler is not None, "a trial that completes has written its result"
            result = self._record_stop(of, self.scheduler.reasons[of.name], trial.last_result)
        self._end(result)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """It broke off for the last time."""
        of = self._of(trial)
        result = self.results.result(of.name)
        if result is None:
            result = store.record_failure(of, self._digest(of), self.results.trial(of.name))
        self._end(result)

    def _record_stop(self, of: Trial, reason: str, report: Mapping[str, Any]) -> Result:
        """Record what a trial had reported when it was stopped, which its process cannot do: it waits for its end."""
        from raysweep.events import end_stopped

        directory = self.results.trial(of.name)
        end_stopped(directory, store.attempts(directory))
        return store.record_stop(
            of,
            self._digest(of),
            directory,
            reason=reason,
            metrics={name: report[name] for name in METRICS if name in report},
            wall_s=report["time_total_s"],
        )

    def _end(self, result: Result) -> None:
        self.ended[result.trial] = result
        self.view.end(result)

    def _digest(self, of: Trial) -> str:
        return pick(of.settings, self.datasets).probe.digest

    def _of(self, trial: Any) -> Trial:
        of: Trial = trial.config["trial"]
        return of
