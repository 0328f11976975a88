"""Running a sweep in this process, trial by trial, without Ray: for debugging, and for machines without Ray."""

from __future__ import annotations

from raysweep.backends.sweep_run import SweepRun
from raysweep.data.selection import data_of
from raysweep.results.encoders import source_file
from raysweep.results.final_state import final_state_of
from raysweep.results.mirror import Replaced
from raysweep.results.result import describe_error
from raysweep.results.store import PUSH_SECONDS, Store
from raysweep.results.trial_directory import at_work, record_failure
from raysweep.space import Sweep, Trial
from raysweep.trial import run_trial
from raysweep.trial_progress import Progress


def prepare(sweep: Sweep, store: Store, address: str | None) -> str:
    """Return the plan in words. Nothing needs to be prepared; see `raysweep.backends.sweep_run`."""
    return "one at a time in this process"


def run(sweep_run: SweepRun) -> Sweep:
    """Run the pending trials, one after the other.

    Their results are bit for bit the same as on Ray. A trial that raises is recorded as failed, with its traceback in
    its `error.txt`, and the next one runs. If the sweep must end early, the running trial is saved first.
    """
    for trial in sweep_run.pending:
        if sweep_run.stopping.asked() or not run_one(sweep_run, trial):
            break
    return sweep_run.sweep


def run_one(sweep_run: SweepRun, trial: Trial) -> bool:
    """Run one trial. Return whether the next one may run."""
    sweep, store, progress = sweep_run.sweep, sweep_run.store, sweep_run.progress
    progress.begin(trial)
    try:
        with at_work(store, trial.name) as push:

            def report(moment: Progress) -> None:
                progress.progress(trial, moment.status())
                push(every=PUSH_SECONDS)

            result = run_trial(
                trial,
                sweep_run.datasets,
                store.trial(trial.name),
                threads=sweep.resources.cpu,
                gpu=sweep.resources.gpu > 0,
                checkpoint_seconds=sweep.tune.checkpoint_seconds,
                collapse=sweep.tune.collapse,
                report=report,
                stop=sweep_run.stopping.asked,
                saved=push,
                encoder=source_file(store, trial),
                shorter=final_state_of(store, trial),
            )
    except Replaced:  # another process has taken the trial over and records how it ends
        result = None
    except Exception as fault:
        if not store.present():
            return False  # the command reports it
        # The trial's traceback is in its error.txt. An existing result stays valid, whatever failed after it.
        result = store.result(trial.name)
        if result is None:
            digest = data_of(trial, sweep_run.datasets).probe.digest
            result = record_failure(store, trial, digest, describe_error(fault))
    if result is None:
        return False
    progress.end(result)
    return True
