"""A sweep in this process, trial after trial, without Ray: for debugging, and for machines that have no Ray."""

from __future__ import annotations

from raysweep import experiment, store
from raysweep.inputs import Datasets, pick
from raysweep.space import Sweep, Trial
from raysweep.stopping import Stopping
from raysweep.view import View


def run(
    sweep: Sweep, pending: list[Trial], results: store.Store, datasets: Datasets, view: View, stopping: Stopping
) -> None:
    """Run the pending trials; each leaves its result in its directory.

    Computes bit for bit what the same trials compute on Ray. A trial that raises is recorded as failed, its traceback
    in its `error.txt`, and the next one runs. Returns early, the trial at work saved, when the sweep is to end.
    """
    for trial in pending:
        if stopping.asked():
            return
        view.begin(trial)
        directory = results.trial(trial.name)
        try:
            result = experiment.run(
                trial,
                datasets,
                directory,
                threads=sweep.resources.cpu,
                gpu=sweep.resources.gpu > 0,
                checkpoint_seconds=sweep.tune.checkpoint_seconds,
                collapse=sweep.tune.collapse,
                report=lambda at, trial=trial: view.progress(trial, at.share),  # type: ignore[misc]
                stop=stopping.asked,
            )
            if result is None:
                return
        except Exception:
            # The trial's traceback is in its error.txt already.
            result = store.record_failure(trial, pick(trial.settings, datasets).probe.digest, directory)
        view.end(result)
