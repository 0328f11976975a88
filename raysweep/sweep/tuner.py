"""A sweep as one Ray Tune run of a function trainable, over points that are finished already."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ray import tune

from raysweep import store
from raysweep.inputs import Datasets, pick
from raysweep.space import Sweep, Trial
from raysweep.view import View

REPORT_SECONDS = 1.0  # tune.report waits for the driver: reports go by time, not by epoch


def run(sweep: Sweep, pending: list[Trial], results: store.Store, datasets: Datasets, view: View) -> None:
    """Run the pending trials on the connected cluster; each leaves its result in its directory.

    A trial whose worker dies, or that raises, is begun again up to `max_failures` times and goes on from its own
    checkpoint; after that it is recorded as failed. KeyboardInterrupt passes through.
    """
    trials = {trial.name: trial for trial in pending}
    parameters = {
        "trials": trials,
        "datasets": dict(datasets),
        "place": results.place,
        "threads": sweep.resources.cpu,
        "gpu": sweep.resources.gpu > 0,  # with 0 Ray hides no GPU, and every trial would take the first one
        "checkpoint_seconds": sweep.tune.checkpoint_seconds,
    }
    watch = Watch(trials, datasets, results, view)
    make_tuner(run_trial, parameters, sweep, results.root, [watch]).fit()


def make_tuner(
    trainable: Callable[..., None],
    parameters: Mapping[str, Any],
    sweep: Sweep,
    root: Path,
    callbacks: list[tune.Callback],
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
            failure_config=tune.FailureConfig(max_failures=sweep.tune.max_failures),
            callbacks=callbacks,
        ),
    )


def run_trial(
    config: Mapping[str, Any],
    trials: Mapping[str, Trial],
    datasets: Datasets,
    place: str,
    threads: int,
    gpu: bool,
    checkpoint_seconds: float,
) -> None:
    """The function trainable: one trial in a worker."""
    from raysweep import experiment

    trial = trials[config["trial"]]
    results = store.Store(place)
    reported = time.monotonic()

    def report(at: experiment.Progress) -> None:
        nonlocal reported
        push(every=store.PUSH_SECONDS)
        if time.monotonic() - reported >= REPORT_SECONDS:
            tune.report({"share": at.share, **at.metrics})
            reported = time.monotonic()

    with results.at_work(trial.name) as push:
        result = experiment.run(
            trial,
            datasets,
            results.trial(trial.name),
            threads=threads,
            gpu=gpu,
            checkpoint_seconds=checkpoint_seconds,
            report=report,
            saved=push,
        )
    tune.report({"share": 1.0, **result.metrics})


class Watch(tune.Callback):
    """Passes on to the view what Tune sees of the trials."""

    def __init__(self, trials: Mapping[str, Trial], datasets: Datasets, results: store.Store, view: View) -> None:
        self.trials, self.datasets, self.results, self.view = trials, datasets, results, view

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
        self._pull(of)
        self.view.retry(of, store.attempts(self.results.trial(of.name)))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """It wrote its result."""
        self.results.pull(self._of(trial).name)
        result = self.results.result(self._of(trial).name)
        assert result is not None, "a trial that completes has written its result"
        self.view.end(result)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """It broke off for the last time."""
        of = self._of(trial)
        self._pull(of)
        result = self.results.result(of.name)
        if result is None:
            result = self.results.failed(of, pick(of.settings, self.datasets).probe.digest)
        self.view.end(result)

    def _pull(self, trial: Trial) -> None:
        """How a trial that broke off stands; where its bucket is the reason, by the copy on this machine."""
        try:
            self.results.pull(trial.name)
        except OSError as fault:
            warnings.warn(f"{fault.filename}: {fault.strerror}", stacklevel=2)

    def _of(self, trial: Any) -> Trial:
        return self.trials[trial.config["trial"]]
