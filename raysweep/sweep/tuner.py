"""A sweep as one Ray Tune run of a function trainable, over points that are finished already."""

from __future__ import annotations

import json
import pickle
import re
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray import tune
from ray.exceptions import RayError, RayTaskError
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from raysweep import store
from raysweep.bucket import Replaced, hidden_credentials
from raysweep.config import METRICS, Collapse
from raysweep.errors import InputError
from raysweep.inputs import Datasets, pick
from raysweep.memory import keep_memory
from raysweep.space import Sweep, Trial
from raysweep.stopping import Mark, Stopping, watch
from raysweep.store import Result
from raysweep.sweep import cluster
from raysweep.sweep.health import HeadWatch, StartWatch, explain_late_workers
from raysweep.sweep.schedulers import EPOCH, ByEvaluation, make_scheduler, recall_evaluations
from raysweep.temporary import temporary_directory
from raysweep.view import View

if TYPE_CHECKING:  # it imports torch, which the driver does not need
    from raysweep.ranks import Ranks

keep_memory()  # in a worker this module is imported before the thread of its first trial begins

PART = 500
"""Trials of one run of Tune, which keeps 60 KB of each until it ends, but at least 20 for each that runs at a time: at
the end of a part slots wait for its last trial, and workers import torch anew."""
LOW_ON_MEMORY = "low on memory"
"""Words in the text of Ray's OutOfMemoryError."""
REPORT_SECONDS = 1.0  # a report waits for the driver: they go by time, not by epoch,
REPORT_COST = 50  # take at most 2 % of a trial's time (the driver takes some 1,000 a second, of all together),
REPORT_LATEST = 30.0  # and are no further apart than this, even where one takes longer than 0.6 s.


def run(
    sweep: Sweep,
    pending: list[Trial],
    kept: list[Result],
    results: store.Store,
    datasets: Datasets,
    view: View,
    stopping: Stopping,
) -> Sweep:
    """Run the pending trials on the connected cluster; each leaves its result in its directory.

    With a searcher, also those of the points that it proposes; returns the sweep with them.

    A trial whose worker dies, or that raises, is begun again up to `max_failures` times and goes on from its own
    checkpoint; after that it is recorded as failed. Tune ends its whole run where Ray's memory monitor ends a worker;
    then a new run of Tune goes on with the trials that are left. Returns early, the trials at work saved, when the
    sweep is to end.
    """
    parallel = sweep.resources.workers > 1
    parameters = {
        # Of a trial in several processes they alone need the data, and get it from the same place.
        "datasets": [ray.put(dict(datasets))] if parallel else dict(datasets),
        "how": How(
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
    seen = Watch(datasets, results, ended, earlier, view)
    stop = Stop(stopping, seen, cluster.Lookout(sweep.resources))
    callbacks: list[tune.Callback] = [seen]
    if parallel:
        from raysweep.sweep.workers import Freeing, run_parallel_trial

        callbacks.append(Freeing(stopping.token, sweep.resources))
        trainable = shared(run_parallel_trial, {**parameters, "resources": sweep.resources}, sweep)
    else:
        trainable = shared(run_trial, parameters, sweep)
    broken: Counter[str] = Counter()
    while True:
        scheduler = make_scheduler(sweep)
        if scheduler is not None:
            recall_evaluations(scheduler, sweep, results)
        seen.scheduler = scheduler
        proposer = None
        if ended is not None:
            from raysweep.sweep.searcher import Proposer, Queue  # Optuna need not be installed

            proposer = Proposer(Queue(sweep, pending, ended, results), stopping)
        try:
            with HeadWatch(stopping, lambda: not seen.running, cluster.own_session() is not None):
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
    return max(1, cluster.room([node["Resources"] for node in cluster.alive_nodes()], sweep.resources))


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


@dataclass(frozen=True)
class How:
    """How every trial of a sweep is run."""

    place: str
    """Of the sweep's results."""
    threads: int
    """Of each of its processes."""
    gpu: bool
    """Whether it uses CUDA: given no GPU, Ray hides none, and every trial would take the first one."""
    checkpoint_seconds: float | None
    collapse: Collapse | None
    compared: bool
    """Whether a scheduler compares it with others."""
    token: str
    """Of the mark by which it is told to leave."""


def run_trial(config: Mapping[str, Any], datasets: Datasets, how: How) -> None:
    """The function trainable: one trial in a worker.

    A trial that a scheduler compares with others reports every online evaluation, and waits for what is decided. If it
    is to stop, Ray ends this thread in that report by SystemExit, once it needs the worker for another trial.
    """
    attempt(config["trial"], datasets, how, tune.report)


def attempt(
    trial: Trial,
    datasets: Datasets,
    how: How,
    tell: Callable[[dict[str, Any]], None],
    ranks: Ranks | None = None,
) -> None:
    """Run a trial in this process, or lead those that run it; `tell` passes its reports on to Tune."""
    from raysweep import experiment
    from raysweep.ranks import ALONE

    results = store.Store(how.place)
    stop = watch(Mark(results, how.token))
    if stop():  # Tune fills a free slot as long as it can; it would print that a trial reported nothing
        tell({"share": 0.0})
        return

    pace = Pace(tell)

    def report(at: experiment.Progress) -> None:
        if how.compared and at.evaluated:
            push()  # it may be the last that this process does for the trial
            pace.tell({"share": at.share, "seconds": at.seconds, EPOCH: at.epoch, **at.metrics})
        elif pace.due():
            push(every=store.PUSH_SECONDS)
            pace.tell({"share": at.share})  # Tune would keep 2 KB for each metric of each trial

    # A process that was replaced leaves: the one that has the trial now says how it ends.
    with suppress(Replaced), results.at_work(trial.name) as push:
        experiment.run(
            trial,
            datasets,
            results.trial(trial.name),
            threads=how.threads,
            gpu=how.gpu,
            checkpoint_seconds=how.checkpoint_seconds,
            collapse=how.collapse,
            report=report,
            stop=stop,
            saved=push,
            ranks=ranks or ALONE,
        )
    tell({"share": 1.0})


class Pace:
    """How often a trial reports: every `REPORT_SECONDS`, less often where the driver is too busy to answer at once.

    Args:
        report: passes a report on to the driver and waits for it.
    """

    def __init__(self, report: Callable[[dict[str, Any]], None]) -> None:
        self._report = report
        self._every, self._last = REPORT_SECONDS, time.monotonic()

    def due(self) -> bool:
        """Whether it is time for the next report."""
        return time.monotonic() - self._last >= self._every

    def tell(self, values: dict[str, Any]) -> None:
        """Report, and see how long that takes."""
        begun = time.monotonic()
        self._report(values)
        self._last = time.monotonic()
        self._every = min(max(REPORT_SECONDS, REPORT_COST * (self._last - begun)), REPORT_LATEST)


class Stop(tune.Stopper):
    """Ends Tune's run once the sweep is to end and the trials at work then have left, or had their time to."""

    def __init__(self, stopping: Stopping, watch: Watch, lookout: cluster.Lookout) -> None:
        self.stopping, self.watch, self.lookout = stopping, watch, lookout
        self.start = StartWatch()
        self.leaving: set[str] = set()
        """The trials that must save a checkpoint before the sweep ends."""

    def __getstate__(self) -> dict[str, Any]:
        """Nothing, as for `Watch`."""
        return {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No trial is stopped by what it reports."""
        return False

    def stop_all(self) -> bool:
        """Asked by Tune over and over."""
        # Those in several processes count as running while they wait for them.
        if self.start.is_late(bool(self.watch.running or self.watch.done)):
            self.watch.view.note(explain_late_workers(cluster.own_session()))
        if self.lookout.begins_to_wait(bool(self.watch.running) and self.lookout.resources.workers == 1):
            self.watch.view.note("no node that is up has room for a trial: waiting until one joins")
        if not self.stopping.asked():
            return False
        # A trial that begins before the others are told computes until it is told too. One that begins later sees the
        # mark at once; waiting for those as well would take as long as trials are left.
        if not self.stopping.told.is_set():
            self.leaving |= self.watch.running.keys()
        self.leaving &= self.watch.running.keys()
        is_told = self.stopping.told.is_set() or not self.watch.running
        return (is_told and not self.leaving) or self.stopping.overdue()


class Watch(tune.Callback):
    """Passes on to the view what Tune sees of the trials."""

    def __init__(
        self,
        datasets: Datasets,
        results: store.Store,
        ended: dict[str, Result] | None,
        earlier: Mapping[str, int],
        view: View,
    ) -> None:
        self.datasets, self.results, self.ended, self.view = datasets, results, ended, view
        self.scheduler: ByEvaluation | None = None
        """The scheduler of the present run of Tune."""
        self.done: set[str] = set()
        """The names of the trials that have ended while the sweep runs here."""
        self.earlier = earlier
        """At how many attempts earlier runs of the sweep gave a trial up."""
        self.running: dict[str, Trial] = {}
        """The trials that a worker has, by name."""

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its callbacks to restore a run, which is never done here (the store is the truth)."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A worker has it."""
        self.running[self._of(trial).name] = self._of(trial)
        self.view.begin(self._of(trial))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """It reported."""
        self.view.progress(self._of(trial), result["share"])

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Its worker died; it will go on."""
        of = self._of(trial)
        self.running.pop(of.name, None)
        if self.scheduler is not None:  # it goes on though it was to stop, if that could not be recorded
            self.scheduler.reasons.pop(of.name, None)
        self.results.pull(of.name)
        self.view.retry(of, store.attempts(self.results.trial(of.name)), broke_off(trial))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """It wrote its result, was stopped, or left because the sweep is to end."""
        of = self._of(trial)
        self.running.pop(of.name, None)
        result = self._result(of)
        if result is None and self.scheduler is not None and of.name in self.scheduler.reasons:
            result = self._record_stop(of, self.scheduler.reasons[of.name], trial.last_result)
        if result is not None:
            self._end(result)
        else:
            self.view.leave(of)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """It broke off for the last time."""
        of = self._of(trial)
        self.running.pop(of.name, None)
        result = self._result(of)
        if result is None:
            result = self.results.record_failure(of, self._digest(of), broke_off(trial))
        self._end(result)

    def break_off(self, fault: RayError, broken: Counter[str], max_failures: int) -> None:
        """Take note of the trials that a run of Tune leaves behind because of one of Ray's errors.

        The trial in the process that the error names has broken off, or all where it names none. After more than
        `max_failures` times it is recorded as failed. The others go on from their checkpoints in the next run.

        Args:
            fault: the error.
            broken: how often each trial broke off so before; counted up.
            max_failures: of the sweep.
        """
        named = re.search(r"\bpid=(\d+)", str(fault))
        pid = int(named[1]) if named is not None else None
        hit = [name for name in self.running if pid is not None and last_pid(self.results.trial(name)) == pid]
        why = died(str(fault)) if LOW_ON_MEMORY in str(fault) else store.reason(fault)
        for name, trial in list(self.running.items()):
            del self.running[name]
            self.results.pull(name)
            result = self._result(trial)
            if result is None and name in (hit or [name]):
                broken[name] += 1
                if broken[name] > max_failures:
                    result = self.results.record_failure(trial, self._digest(trial), why)
                else:
                    self.view.retry(trial, store.attempts(self.results.trial(name)), why)
            if result is not None:
                self._end(result)
            else:
                self.view.leave(trial)

    def _result(self, of: Trial) -> Result | None:
        """How a trial ended in this run; a failure of an earlier one is what it was begun again for."""
        self.results.pull(of.name)
        try:
            result = self.results.result(of.name)
        except InputError as fault:  # damaged since it was written: Tune would end the sweep for an exception here
            warnings.warn(str(fault), stacklevel=2)
            return None
        if result is not None and result.status == "failed" and result.attempts <= self.earlier.get(of.name, 0):
            return None
        return result

    def _record_stop(self, of: Trial, reason: str, report: Mapping[str, Any]) -> Result:
        """Record what a trial had reported when it was stopped, which its process cannot do: it waits for its end."""
        from raysweep.events import end_stopped

        directory = self.results.trial(of.name)
        result = store.make_result(
            of,
            self._digest(of),
            directory,
            status="stopped",
            error=reason,
            metrics={name: report[name] for name in METRICS if name in report},
            wall_s=report["seconds"],
            device="unknown",
            warnings=[],
        )
        with self.results.recording(of.name):
            end_stopped(directory, store.attempts(directory))
            store.write_result(directory, result)
            self.results.forget_checkpoints(of.name)
        return result

    def _end(self, result: Result) -> None:
        self.done.add(result.trial)
        if self.ended is not None:
            self.ended[result.trial] = result
        self.view.end(result)

    def _digest(self, of: Trial) -> str:
        return pick(of.settings, self.datasets).probe.digest

    def _of(self, trial: Any) -> Trial:
        of: Trial = trial.config["trial"]
        return of


def last_pid(directory: Path) -> int | None:
    """The process that began the last attempt of the trial in `directory`; None where that is not known."""
    try:
        return int(json.loads((directory / "attempt.json").read_text())["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def broke_off(trial: Any) -> str:
    """Why Tune's trial broke off last, in one line, from what Tune keeps of it on the driver's own disk."""
    last = Path(trial.error_file).read_text().rpartition("Failure #")[2]  # one after the other
    if trial.pickled_error_file is not None:
        with open(trial.pickled_error_file, "rb") as file:
            fault = pickle.load(file)
        if isinstance(fault, RayTaskError) and type(fault.cause).__name__ in last:  # raised in the worker, and the last
            return str(fault.cause) if isinstance(fault.cause, Broken) else store.reason(fault.cause)
    return died(last)


def died(text: str, who: str = "its process") -> str:
    """How a process came to its end without a word of its own, from what Ray says of it.

    Args:
        text: what Ray says.
        who: the process, in a word that begins the sentence.
    """
    if LOW_ON_MEMORY in text:  # of Ray's OutOfMemoryError only the text is kept
        return f"out of memory: Ray ended {who} as its node ran low on memory"
    return f"{who} died (killed, out of memory, or its node was lost)"


class Broken(Exception):
    """A worker of a data-parallel trial broke off; the message is the reason in one line."""
