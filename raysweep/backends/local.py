"""A sweep in this process, trial after trial, without Ray: for debugging, and for machines that have no Ray."""

from __future__ import annotations

from collections.abc import Callable

from raysweep.backends.progress import ProgressDisplay
from raysweep.backends.stopping import Stopping
from raysweep.data.selection import Datasets, select_data
from raysweep.results.mirror import Replaced
from raysweep.results.result import describe_error
from raysweep.results.store import PUSH_SECONDS, Store
from raysweep.results.trial_directory import at_work, record_failure
from raysweep.space import Sweep, Trial
from raysweep.trial import Progress, run_trial


def run_locally(
    sweep: Sweep, pending: list[Trial], results: Store, datasets: Datasets, view: ProgressDisplay, stopping: Stopping
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
            with at_work(results, trial.name) as push:

                def report(at: Progress, trial: Trial = trial, push: Callable[..., None] = push) -> None:
                    view.progress(trial, at.share)
                    push(every=PUSH_SECONDS)

                result = run_trial(
                    trial,
                    datasets,
                    directory,
                    threads=sweep.resources.cpu,
                    gpu=sweep.resources.gpu > 0,
                    checkpoint_seconds=sweep.tune.checkpoint_seconds,
                    collapse=sweep.tune.collapse,
                    report=report,
                    stop=stopping.asked,
                    saved=push,
                )
        except Replaced:  # by another process, which says how it ends
            result = None
        except Exception as fault:
            if not results.present():
                return  # the command says so
            # The trial's traceback is in its error.txt already. What came after its result takes nothing from that.
            result = results.result(trial.name)
            if result is None:
                digest = select_data(trial.settings, datasets).probe.digest
                result = record_failure(results, trial, digest, describe_error(fault))
        if result is None:
            return
        view.end(result)
