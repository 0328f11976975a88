"""Running a sweep as one or several runs of Ray Tune with a function trainable."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle, tune
from ray.exceptions import RayError
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from raysweep.backends.handout import PretrainingQueue, cut
from raysweep.backends.ray import capacity
from raysweep.backends.ray.callbacks import SweepStopper, TrialEvents
from raysweep.backends.ray.capacity import CapacityMonitor, alive_nodes
from raysweep.backends.ray.cluster import check_bucket, check_shared, connect, own_session
from raysweep.backends.ray.handout import Dispenser
from raysweep.backends.ray.health import HeadWatch
from raysweep.backends.ray.limit import AtMost
from raysweep.backends.ray.schedulers import ByEvaluation, make_scheduler, recall_evaluations
from raysweep.backends.ray.trainable import TrialOptions, trial_function
from raysweep.backends.sweep_run import SweepRun
from raysweep.plugins import Plugin
from raysweep.results.credentials import hidden_credentials
from raysweep.results.store import Store
from raysweep.space import Sweep, Trial
from raysweep.space.sharing import taking_over
from raysweep.system.files import existing_ancestor
from raysweep.system.temporary import temporary_directory

PART = 500
"""Number of trials in one run of Tune, or 20 times the number of trials that run at once, if that is more.

Tune keeps 60 KB of each trial until its run ends. At the end of each such part, idle slots wait for its last trial,
and new workers import torch.
"""
AHEAD = 2
"""Number of shared pretrainings for each trial at a time that may have unfinished trials while another one starts.

With 1, workers idle at the end of a sweep, because the trials that take over have ended before the last pretraining:
the sweep in `tests/test_sharing.py` takes 10 % longer. With more than 2 it ends no earlier.
"""


def prepare(sweep: Sweep, store: Store, address: str | None) -> str:
    """Connect to Ray, and check that its nodes can hold the trials and see the results.

    Args:
        sweep: The sweep.
        store: The sweep's results, which may not exist yet.
        address: The address of a Ray cluster; None takes `RAY_ADDRESS`, else starts Ray on this machine.

    Returns:
        The plan in words.

    Raises:
        InputError: The cluster cannot be reached or lacks something, or the study of the searcher cannot be kept.
    """
    if sweep.tune.storage is not None:
        from raysweep.backends.ray.study import check_study  # Optuna need not be installed

        check_study(sweep, store)
    plan = connect(address, sweep.resources, sweep.tune.max_concurrent)
    if store.bucket is None:
        check_shared(existing_ancestor(store.root))
    else:
        check_bucket(store.place)
    return plan


def run(sweep_run: SweepRun) -> Sweep:
    """Run the pending trials on the connected cluster; with a searcher, also the trials of the points that it proposes.

    A trial that raises or whose worker dies is restarted up to `max_failures` times and resumes from its own
    checkpoint. After that it is recorded as failed. Tune ends its whole run when Ray's memory monitor kills a worker,
    and it gives up the next trial of a worker that died while it was idle. In both cases, a new run of Tune continues
    with the remaining trials. If the sweep must end early, the running trials are saved first. A race of seeds
    continues with its next round as soon as all trials of the present one have ended.
    """
    sweep, pending, kept, results = sweep_run.sweep, sweep_run.pending, sweep_run.kept, sweep_run.store
    datasets, stopping = sweep_run.datasets, sweep_run.stopping
    parallel = sweep.resources.workers > 1
    parameters = {
        # In a data-parallel trial only the workers need the data, and they fetch it from the object store themselves.
        "datasets": [ray.put(dict(datasets))] if parallel else dict(datasets),
        "options": TrialOptions(
            place=results.place,
            threads=sweep.resources.cpu,
            gpu=sweep.resources.gpu > 0,
            checkpoint_seconds=sweep.tune.checkpoint_seconds,
            collapse=sweep.tune.collapse,
            compared=sweep.tune.scheduler != "fifo",
            token=stopping.token,
            plugins=pickled(sweep.plugins),
        ),
    }
    ended = None  # kept only for a searcher: the results of 100,000 trials would take 1 GB
    if sweep.tune.searcher == "optuna":
        ended = {result.trial: result for result in kept}
    earlier = {result.trial: result.attempts for result in results.results(sweep) if result.status == "failed"}
    seen = TrialEvents(datasets, results, ended, earlier, sweep_run.progress, sweep.tune.max_failures)
    stop = SweepStopper(stopping, seen, CapacityMonitor(sweep.resources))
    callbacks: list[tune.Callback] = [seen]
    if parallel:
        from raysweep.backends.ray.workers import Freeing, run_parallel_trial

        callbacks.append(Freeing(stopping.token, sweep.resources))
        trainable = shared(run_parallel_trial, {**parameters, "resources": sweep.resources}, sweep)
    else:
        trainable = shared(trial_function, parameters, sweep)
    broken: Counter[str] = Counter()
    study = None
    if sweep.tune.storage is not None:
        from raysweep.backends.ray.study import open_study  # Optuna need not be installed

        study = open_study(sweep, results)
    while True:
        scheduler = make_scheduler(sweep)
        if scheduler is not None:
            recall_evaluations(scheduler, sweep, results)
        seen.scheduler, seen.must_run_again = scheduler, False
        proposer = None
        if ended is not None:
            from raysweep.backends.ray.searcher import Proposer, Queue  # Optuna need not be installed

            queue = Queue(sweep, pending, ended, results, study)
            queue.write_study()
            seen.ending = queue.write_study
            proposer = Proposer(queue, stopping)
        try:
            with HeadWatch(stopping, lambda: not seen.running, own_session() is not None):
                run_parts(trainable, sweep_run, sweep, pending, scheduler, proposer, stop, callbacks)
        except RuntimeError as fault:  # Tune raises this for any of Ray's errors that it does not expect
            if not isinstance(fault.__cause__, RayError) or not seen.running:
                raise
            seen.break_off(fault.__cause__, broken, sweep.tune.max_failures)
        else:
            if not seen.must_run_again:
                if proposer is not None:
                    return proposer.queue.sweep
                sweep, pending = sweep_run.next_round(sweep)
                if not pending:
                    return sweep
                continue
        if proposer is not None:
            sweep = proposer.queue.sweep
            pending = list(sweep.trials)
        over = seen.done if ended is None else ended.keys()
        pending = [trial for trial in pending if trial.name not in over]
        if not pending and proposer is None:
            sweep, pending = sweep_run.next_round(sweep)
            if not pending:
                return sweep


def pickled(plugins: Sequence[Plugin]) -> bytes:
    """Pickle plugins for the workers. Parts that a program passes by value need no module in a worker."""
    if not plugins:
        return b""
    modules = {sys.modules[plugin.part.function.__module__] for plugin in plugins if plugin.part is not None}
    modules -= {sys.modules["__main__"]}  # what a program or a notebook defines is pickled by value anyway
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        return bytes(cloudpickle.dumps(tuple(plugins)))
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)


def run_parts(
    trainable: Any,
    sweep_run: SweepRun,
    sweep: Sweep,
    pending: list[Trial],
    scheduler: ByEvaluation | None,
    proposer: Searcher | None,
    stop: SweepStopper,
    callbacks: Sequence[tune.Callback],
) -> None:
    """Run the pending trials in runs of about `PART` trials, or in one run if trials are compared with one another.

    If trials share pretrainings or have several workers, a dispenser gives Tune the trials of each run, instead of a
    grid.
    """
    alone = scheduler is None and proposer is None
    size = max(PART, 20 * slots(sweep)) if alone else max(len(pending), 1)
    shares = sweep_run.shares and bool(taking_over(sweep))
    dispenses = shares or (proposer is None and sweep.resources.workers > 1)
    for part in cut(pending, size, shares) if alone else [pending]:
        if stop.stopping.must_stop():
            break
        if dispenses:
            queue = PretrainingQueue(part, sweep_run.store, shares, ahead(sweep, slots(sweep)))
            proposer = Dispenser(queue, stop.stopping, stop.watch.done, stop.watch.failed, stop.watch.fail)
            stop.watch.fail_dependents = proposer.fail_dependents
        # Tune's own state is never read again. On the disk of the results it would fail with them if the disk is full.
        with temporary_directory() as state, hidden_credentials():
            make_tuner(trainable, sweep, part, state, scheduler, proposer, stop, callbacks).fit()


def slots(sweep: Sweep) -> int:
    """Return how many trials the running nodes hold at a time, at least one."""
    return max(1, capacity.room([node["Resources"] for node in alive_nodes()], sweep.resources))


def ahead(sweep: Sweep, room: int) -> int:
    """Return how many shared pretrainings may have unfinished trials while another one starts.

    A sweep with a time budget has more finished trials at its end if trials take over before other trials pretrain.

    Args:
        sweep: The sweep.
        room: The number of trials that the running nodes hold at a time.
    """
    at_a_time = min(room, sweep.tune.max_concurrent or room)
    return at_a_time if sweep.tune.time_budget is not None else AHEAD * at_a_time


def most_at_a_time(sweep: Sweep) -> int | None:
    """Return how many trials may run at present; None leaves the limit to their resources.

    A data-parallel trial requests no resources for itself. Without a limit all such trials would start, and most would
    wait for their workers in vain. The limit changes as nodes join and leave.
    """
    most = sweep.tune.max_concurrent
    return most if sweep.resources.workers == 1 else min(most or sys.maxsize, slots(sweep))


def shared(trainable: Callable[..., None], parameters: Mapping[str, Any], sweep: Sweep) -> Any:
    """Return `trainable(config, **parameters)` with the resources of a trial.

    The parameters go through the object store once. NumPy arrays in them are mapped read-only into every worker on a
    node, not copied. Call this once per sweep, because Ray keeps the parameters until it ends.
    """
    resources = {"cpu": sweep.resources.cpu, "gpu": sweep.resources.gpu}
    if sweep.resources.workers > 1:  # the workers request their resources themselves; the trial only waits for them
        resources = {"cpu": 0, "memory": 1}  # Tune requires a resource, and every node has a byte
    return tune.with_resources(tune.with_parameters(trainable, **parameters), resources)


class SilentReporter(tune.ProgressReporter):
    """Reports nothing. In a notebook Tune's own reporter would clear the output of the cell, even with `verbose=0`."""

    def should_report(self, trials: list[Any], done: bool = False) -> bool:
        """Return False."""
        return False

    def report(self, trials: list[Any], done: bool, *sys_info: str) -> None:
        """Report nothing."""


def make_tuner(
    trainable: Any,
    sweep: Sweep,
    trials: Sequence[Trial],
    root: Path,
    scheduler: TrialScheduler | None = None,
    proposer: Searcher | None = None,
    stop: tune.Stopper | None = None,
    callbacks: Sequence[tune.Callback] = (),
) -> tune.Tuner:
    """Return a Tuner that runs the trainable that `shared` returned, for these trials or the proposer's trials.

    The trainable is called with config `{"trial": trial}`. Workers are reused, so that each imports torch only once.
    """
    return tune.Tuner(
        trainable,
        param_space={"trial": tune.grid_search(list(trials))} if proposer is None else None,
        # No metric here: Tune raises if a first report lacks it, and the best point is computed from the store.
        tune_config=tune.TuneConfig(
            scheduler=scheduler,
            search_alg=None if proposer is None else AtMost(proposer, partial(most_at_a_time, sweep)),
            num_samples=1 if proposer is None else -1,  # the proposer tells when it has finished
            max_concurrent_trials=sweep.tune.max_concurrent if proposer is None else None,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name=".ray",
            storage_path=str(root),
            verbose=0,
            progress_reporter=SilentReporter(),
            stop=stop,
            failure_config=tune.FailureConfig(max_failures=sweep.tune.max_failures),
            callbacks=list(callbacks),
        ),
    )
