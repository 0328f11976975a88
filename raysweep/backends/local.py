"""Running a sweep in this process, trial by trial, without Ray: for debugging, and for machines without Ray."""

from __future__ import annotations

from raysweep.backends.handout import PretrainingQueue, failure
from raysweep.backends.sweep_run import SweepRun
from raysweep.data.selection import data_of
from raysweep.results.encoders import source_file
from raysweep.results.final_state import final_state_of
from raysweep.results.mirror import Replaced
from raysweep.results.result import Result, attempts, describe_error
from raysweep.results.store import PUSH_SECONDS, Store
from raysweep.results.trial_directory import at_work, record_failure
from raysweep.space import Sweep, Trial
from raysweep.space.sharing import Role
from raysweep.trial import run_trial
from raysweep.trial_progress import ProgressReport
from raysweep.trial_sharing import sharing_of


def prepare(sweep: Sweep, store: Store, address: str | None) -> str:
    """Return the plan in words. Nothing needs to be prepared; see `raysweep.backends.sweep_run`."""
    return "one at a time in this process"


def run(sweep_run: SweepRun) -> Sweep:
    """Run the pending trials, one after the other.

    Their results are bit for bit the same as on Ray. A trial that raises is recorded as failed, with its traceback in
    its `error.txt`, and the next one runs. If the sweep must end early, the running trial is saved first.
    """
    sweep, pending = sweep_run.sweep, sweep_run.pending
    while pending:
        queue = PretrainingQueue(pending, sweep_run.store, sweep_run.shares)
        while not queue.is_empty():
            if sweep_run.stopping.must_stop():
                return sweep
            start = queue.next()
            assert start is not None, "no trial runs, so none has to wait"
            result = run_one(sweep_run, start.trial, start.role)
            if result is None:
                return sweep
            for dependent in queue.ended(start.trial, result.status == "failed"):
                sweep_run.progress.begin(dependent)
                sweep_run.progress.end(fail(sweep_run, dependent, failure(start.trial.name, result.error)))
        sweep, pending = sweep_run.next_round(sweep)
    return sweep


def run_one(sweep_run: SweepRun, trial: Trial, role: Role | None = None) -> Result | None:
    """Run one trial. Return its result; None if the next trial may not run.

    Args:
        sweep_run: The run of the sweep.
        trial: The trial.
        role: Its part in a shared pretraining.
    """
    sweep, store, progress = sweep_run.sweep, sweep_run.store, sweep_run.progress
    progress.begin(trial)
    before = 0
    try:
        before = attempts(store.trial(trial.name))
        with at_work(store, trial.name) as push:

            def report(moment: ProgressReport) -> None:
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
                stop=sweep_run.stopping.must_stop,
                saved=push,
                encoder=source_file(store, trial),
                sharing=sharing_of(trial, role, store, sweep_run.datasets),
                shorter=final_state_of(store, trial),
            )
    except Replaced:  # another process has taken the trial over and records how it ends
        result = None
    except Exception as fault:
        if not store.present():
            return None  # the command reports it
        # The trial's traceback is in its error.txt. An existing result stays valid, whatever failed after it. But a
        # failure of an earlier run, which is still there if this attempt has not begun, does not count.
        result = store.result(trial.name)
        if result is None or (result.status == "failed" and result.attempts <= before):
            result = fail(sweep_run, trial, describe_error(fault))
    if result is not None:
        progress.end(result)
    return result


def fail(sweep_run: SweepRun, trial: Trial, error: str) -> Result:
    """Record that a trial failed, and why."""
    digest = data_of(trial, sweep_run.datasets).probe.digest
    return record_failure(sweep_run.store, trial, digest, error)
