"""A sweep in this process, trial after trial, without Ray: for debugging, and for machines that have no Ray."""

from __future__ import annotations

from collections.abc import Callable

from raysweep import experiment, store
from raysweep.inputs import Datasets, pick
from raysweep.space import Sweep, Trial
from raysweep.view import View


def run(sweep: Sweep, pending: list[Trial], results: store.Store, datasets: Datasets, view: View) -> None:
    """Run the pending trials; each leaves its result in its directory.

    Computes bit for bit what the same trials compute on Ray. A trial that raises is recorded as failed, its traceback
    in its `error.txt`, and the next one runs.
    """
    for trial in pending:
        view.begin(trial)
        directory = results.trial(trial.name)
        try:
            with results.at_work(trial.name) as push:

                def report(at: experiment.Progress, trial: Trial = trial, push: Callable[..., None] = push) -> None:
                    view.progress(trial, at.share)
                    push(every=store.PUSH_SECONDS)

                result = experiment.run(
                    trial,
                    datasets,
                    directory,
                    threads=sweep.resources.cpu,
                    gpu=sweep.resources.gpu > 0,
                    checkpoint_seconds=sweep.tune.checkpoint_seconds,
                    report=report,
                    saved=push,
                )
        except Exception:
            # The trial's traceback is in its error.txt already.
            result = results.failed(trial, pick(trial.settings, datasets).probe.digest)
        view.end(result)
