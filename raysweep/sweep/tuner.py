"""A sweep as one Ray Tune run of a function trainable, over points that are finished already."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ray import tune

from raysweep import store
from raysweep.config import Collapse
from raysweep.inputs import Datasets, pick
from raysweep.space import Sweep, Trial
from raysweep.stopping import Stopping, watch
from raysweep.view import View

REPORT_SECONDS = 1.0  # tune.report waits for the driver: reports go by time, not by epoch


def run(
    sweep: Sweep, pending: list[Trial], results: store.Store, datasets: Datasets, view: View, stopping: Stopping
) -> None:
    """Run the pending trials on the connected cluster; each leaves its result in its directory.

    A trial whose worker dies, or that raises, is begun again up to `max_failures` times and goes on from its own
    checkpoint; after that it is recorded as failed. Returns early, the trials at work saved, when the sweep is to end.
    """
    trials = {trial.name: trial for trial in pending}
    parameters = {
        "trials": trials,
        "datasets": dict(datasets),
        "root": results.root,
        "threads": sweep.resources.cpu,
        "gpu": sweep.resources.gpu > 0,  # with 0 Ray hides no GPU, and every trial would take the first one
        "checkpoint_seconds": sweep.tune.checkpoint_seconds,
        "collapse": sweep.tune.collapse,
        "stop_marker": results.stop_marker,
    }
    seen = Watch(trials, datasets, results, view)
    make_tuner(run_trial, parameters, sweep, results.root, [seen], Stop(stopping, seen)).fit()


def make_tuner(
    trainable: Callable[..., None],
    parameters: Mapping[str, Any],
    sweep: Sweep,
    root: Path,
    callbacks: list[tune.Callback],
    stop: tune.Stopper | None = None,
) -> tune.Tuner:
    """A Tuner that runs `trainable(config, **parameters)` for every name in `parameters["trials"]`.

    The parameters go through the object store once: NumPy arrays in them are mapped read-only into every worker on a
    node, not copied. Workers are kept from trial to trial, so that each imports torch once.
    """
    resources = {"cpu": sweep.resources.cpu, "gpu": sweep.resources.gpu}
    return tune.Tuner(
        tune.with_resources(tune.with_parameters(trainable, **parameters), resources),
        param_space={"trial": tune.grid_search(list(parameters["trials"]))},
        # No metric here: Tune raises when a first report lacks it, and what is best is read from the store.
        tune_config=tune.TuneConfig(reuse_actors=True, trial_dirname_creator=lambda trial: trial.trial_id),
        run_config=tune.RunConfig(
            name=".ray",
            storage_path=str(root),
            verbose=0,
            stop=stop,
            failure_config=tune.FailureConfig(max_failures=sweep.tune.max_failures),
            callbacks=callbacks,
        ),
    )


def run_trial(
    config: Mapping[str, Any],
    trials: Mapping[str, Trial],
    datasets: Datasets,
    root: Path,
    threads: int,
    gpu: bool,
    checkpoint_seconds: float | None,
    collapse: Collapse | None,
    stop_marker: Path,
) -> None:
    """The function trainable: one trial in a worker."""
    from raysweep import experiment

    stop = watch(stop_marker)
    if stop():  # Tune fills a free slot as long as it can; it would print that a trial reported nothing
        tune.report({"share": 0.0})
        return

    trial = trials[config["trial"]]
    directory = root / trial.name
    reported = time.monotonic()

    def report(at: experiment.Progress) -> None:
        nonlocal reported
        if time.monotonic() - reported >= REPORT_SECONDS:
            tune.report({"share": at.share})  # Tune would keep 2 KB for each metric of each trial
            reported = time.monotonic()

    experiment.run(
        trial,
        datasets,
        directory,
        threads=threads,
        gpu=gpu,
        checkpoint_seconds=checkpoint_seconds,
        collapse=collapse,
        report=report,
        stop=stop,
    )
    tune.report({"share": 1.0})


class Stop(tune.Stopper):
    """Ends Tune's run once the sweep is to end and the trials at work then have left, or had their time to."""

    def __init__(self, stopping: Stopping, watch: Watch) -> None:
        self.stopping, self.watch = stopping, watch
        self.leaving: set[str] | None = None
        """Those trials at work when the sweep was to end that have not left yet."""

    def __getstate__(self) -> dict[str, Any]:
        """Nothing, as for `Watch`."""
        return {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No trial is stopped by what it reports."""
        return False

    def stop_all(self) -> bool:
        """Asked by Tune over and over."""
        if not self.stopping.asked():
            return False
        if self.leaving is None:
            self.leaving = set(self.watch.running)
        self.leaving &= self.watch.running
        return not self.leaving or self.stopping.overdue()


class Watch(tune.Callback):
    """Passes on to the view what Tune sees of the trials."""

    def __init__(self, trials: Mapping[str, Trial], datasets: Datasets, results: store.Store, view: View) -> None:
        self.trials, self.datasets, self.results, self.view = trials, datasets, results, view
        self.running: set[str] = set()
        """The trials that a worker has."""

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its callbacks to restore a run, which is never done here (the store is the truth)."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A worker has it."""
        self.running.add(self._of(trial).name)
        self.view.begin(self._of(trial))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """It reported."""
        self.view.progress(self._of(trial), result["share"])

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Its worker died; it will go on."""
        of = self._of(trial)
        self.running.discard(of.name)
        self.view.retry(of, store.attempts(self.results.trial(of.name)))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """It wrote its result, or left because the sweep is to end."""
        of = self._of(trial)
        self.running.discard(of.name)
        result = self.results.result(of.name)
        if result is not None:
            self.view.end(result)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """It broke off for the last time."""
        of = self._of(trial)
        self.running.discard(of.name)
        result = self.results.result(of.name)
        if result is None:
            digest = pick(of.settings, self.datasets).probe.digest
            result = store.record_failure(of, digest, self.results.trial(of.name))
        self.view.end(result)

    def _of(self, trial: Any) -> Trial:
        return self.trials[trial.config["trial"]]
