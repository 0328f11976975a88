"""A sweep as one Ray Tune run of a function trainable, over points that are finished already."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayError
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from raysweep.backends.ray import capacity
from raysweep.backends.ray.callbacks import Stop, Watch
from raysweep.backends.ray.capacity import CapacityMonitor, alive_nodes
from raysweep.backends.ray.cluster import check_bucket, check_shared, connect, own_session
from raysweep.backends.ray.health import HeadWatch
from raysweep.backends.ray.schedulers import ByEvaluation, make_scheduler, recall_evaluations
from raysweep.backends.ray.trainable import TrialOptions, trial_function
from raysweep.backends.sweep_run import SweepRun
from raysweep.results.credentials import hidden_credentials
from raysweep.results.store import Store
from raysweep.space import Sweep, Trial
from raysweep.system.files import existing_ancestor
from raysweep.system.temporary import temporary_directory

PART = 500
"""Trials of one run of Tune, which keeps 60 KB of each until it ends, but at least 20 for each that runs at a time: at
the end of a part slots wait for its last trial, and workers import torch anew."""


def prepare(sweep: Sweep, store: Store, address: str | None) -> str:
    """Connect to Ray, and check that its nodes can hold the trials and see the results.

    Args:
        sweep: the sweep.
        store: its results, which may not exist yet.
        address: the address of a Ray cluster; None takes `RAY_ADDRESS`, else starts Ray on this machine.

    Returns:
        The plan in words.

    Raises:
        InputError: the cluster cannot be reached, or lacks something.
    """
    plan = connect(address, sweep.resources, sweep.tune.max_concurrent)
    if store.bucket is None:
        check_shared(existing_ancestor(store.root))
    else:
        check_bucket(store.place)
    return plan


def run(sweep_run: SweepRun) -> Sweep:
    """Run the pending trials on the connected cluster, and with a searcher the trials of the points that it proposes.

    A trial whose worker dies, or that raises, is started again up to `max_failures` times and resumes from its own
    checkpoint; after that it is recorded as failed. Tune ends its whole run when Ray's memory monitor kills a worker;
    then a new run of Tune continues with the trials that are left. If the sweep is to end early, the running trials
    are saved first.
    """
    sweep, pending, kept, results = sweep_run.sweep, sweep_run.pending, sweep_run.kept, sweep_run.store
    datasets, stopping = sweep_run.datasets, sweep_run.stopping
    parallel = sweep.resources.workers > 1
    parameters = {
        # Of a trial in several processes they alone need the data, and get it from the same place.
        "datasets": [ray.put(dict(datasets))] if parallel else dict(datasets),
        "options": TrialOptions(
            place=results.place,
            threads=sweep.resources.cpu,
            gpu=sweep.resources.gpu > 0,
            checkpoint_seconds=sweep.tune.checkpoint_seconds,
            collapse=sweep.tune.collapse,
            compared=sweep.tune.scheduler != "fifo",
            token=stopping.token,
        ),
    }
    ended = None  # kept for a searcher alone: those of 100,000 trials would take 1 GB
    if sweep.tune.searcher == "optuna":
        ended = {result.trial: result for result in kept}
    earlier = {result.trial: result.attempts for result in results.results(sweep) if result.status == "failed"}
    seen = Watch(datasets, results, ended, earlier, sweep_run.progress)
    stop = Stop(stopping, seen, CapacityMonitor(sweep.resources))
    callbacks: list[tune.Callback] = [seen]
    if parallel:
        from raysweep.backends.ray.workers import Freeing, run_parallel_trial

        callbacks.append(Freeing(stopping.token, sweep.resources))
        trainable = shared(run_parallel_trial, {**parameters, "resources": sweep.resources}, sweep)
    else:
        trainable = shared(trial_function, parameters, sweep)
    broken: Counter[str] = Counter()
    while True:
        scheduler = make_scheduler(sweep)
        if scheduler is not None:
            recall_evaluations(scheduler, sweep, results)
        seen.scheduler = scheduler
        proposer = None
        if ended is not None:
            from raysweep.backends.ray.searcher import Proposer, Queue  # Optuna need not be installed

            proposer = Proposer(Queue(sweep, pending, ended, results), stopping)
        try:
            with HeadWatch(stopping, lambda: not seen.running, own_session() is not None):
                run_parts(trainable, sweep, pending, scheduler, proposer, stop, callbacks)
        except RuntimeError as fault:  # Tune raises this one from any of Ray's errors that it does not expect
            if not isinstance(fault.__cause__, RayError) or not seen.running:
                raise
            seen.break_off(fault.__cause__, broken, sweep.tune.max_failures)
        else:
            return sweep if proposer is None else proposer.queue.sweep
        if proposer is not None:
            sweep = proposer.queue.sweep
            pending = list(sweep.trials)
        over = seen.done if ended is None else ended.keys()
        pending = [trial for trial in pending if trial.name not in over]
        if not pending and proposer is None:
            return sweep


def run_parts(
    trainable: Any,
    sweep: Sweep,
    pending: list[Trial],
    scheduler: ByEvaluation | None,
    proposer: Searcher | None,
    stop: Stop,
    callbacks: Sequence[tune.Callback],
) -> None:
    """Run the pending trials, `PART` of them in one run of Tune, or all where trials are compared with one another."""
    alone = scheduler is None and proposer is None
    size = max(PART, 20 * slots(sweep)) if alone else max(len(pending), 1)
    for start in range(0, max(len(pending), 1), size):
        if stop.stopping.asked():
            break
        part = pending[start : start + size]
        # Tune's own state is never read again; on the disk of the results, full or lost, it would fail with them.
        with temporary_directory() as state, hidden_credentials():
            make_tuner(trainable, sweep, part, state, scheduler, proposer, stop, callbacks).fit()


def slots(sweep: Sweep) -> int:
    """How many trials the nodes that are up hold at a time, at least one."""
    return max(1, capacity.room([node["Resources"] for node in alive_nodes()], sweep.resources))


def most_at_a_time(sweep: Sweep) -> int | None:
    """How many trials may run at a time; None leaves it to their resources.

    Those in several processes ask for nothing themselves: all would start, and most wait for their workers in vain.
    """
    most = sweep.tune.max_concurrent
    return most if sweep.resources.workers == 1 else min(most or sys.maxsize, slots(sweep))


def shared(trainable: Callable[..., None], parameters: Mapping[str, Any], sweep: Sweep) -> Any:
    """`trainable(config, **parameters)`, with what a trial of it needs.

    The parameters go through the object store once: NumPy arrays in them are mapped read-only into every worker on a
    node, not copied. To be called once for a sweep: Ray keeps what it is given until it ends.
    """
    resources = {"cpu": sweep.resources.cpu, "gpu": sweep.resources.gpu}
    if sweep.resources.workers > 1:  # they ask for their own beside the trial's, which waits for them
        resources = {"cpu": 0, "memory": 1}  # Tune wants something, and every node has a byte
    return tune.with_resources(tune.with_parameters(trainable, **parameters), resources)


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
    """A Tuner that runs what `shared` gave, with config `{"trial": trial}`, for every trial, or all of the proposer's.

    Workers are kept from trial to trial, so that each imports torch once.
    """
    return tune.Tuner(
        trainable,
        param_space={"trial": tune.grid_search(list(trials))} if proposer is None else None,
        # No metric here: Tune raises when a first report lacks it, and what is best is read from the store.
        tune_config=tune.TuneConfig(
            scheduler=scheduler,
            search_alg=proposer,
            num_samples=1 if proposer is None else -1,  # it says itself when it ends
            max_concurrent_trials=most_at_a_time(sweep),
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name=".ray",
            storage_path=str(root),
            verbose=0,
            stop=stop,
            failure_config=tune.FailureConfig(max_failures=sweep.tune.max_failures),
            callbacks=list(callbacks),
        ),
    )
