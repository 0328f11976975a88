"""Callbacks of Tune: they show the progress of trials, record failures, and end the run of a sweep."""

from __future__ import annotations

import pickle
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ray import tune
from ray.exceptions import RayError, RayTaskError

from raysweep.backends.progress import TrialProgress
from raysweep.backends.ray.capacity import CapacityMonitor, alive_nodes
from raysweep.backends.ray.cluster import own_session
from raysweep.backends.ray.health import StartWatch, explain_late_workers
from raysweep.backends.ray.schedulers import ByEvaluation
from raysweep.backends.ray.trainable import LOW_ON_MEMORY, STATUS, WorkerFailure, died
from raysweep.backends.stopping import Stopping
from raysweep.config import METRICS
from raysweep.data.selection import Datasets, data_of
from raysweep.errors import InputError
from raysweep.results.result import Result, attempts, describe_error, make_result, write_result
from raysweep.results.store import Store
from raysweep.results.trial_directory import ABSENT, record_failure, recording
from raysweep.space import Trial
from raysweep.system.files import read_json
from raysweep.trial_progress import Status


class SweepStopper(tune.Stopper):
    """Ends Tune's run when the sweep must end and its running trials have saved or have had enough time for it.

    Args:
        stopping: Tells whether the sweep must end.
        watch: Knows the running trials.
        monitor: Tells whether a node has room for a trial.
    """

    def __init__(self, stopping: Stopping, watch: TrialEvents, monitor: CapacityMonitor) -> None:
        self.stopping, self.watch, self.monitor = stopping, watch, monitor
        self.start = StartWatch()
        self.leaving: set[str] = set()
        """The trials that must save a checkpoint before the sweep ends."""
        self.all_told = False
        """Whether every trial that may have started without seeing the flag is in `leaving`."""

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing to pickle, as in `TrialEvents`."""
        return {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Return False: no report of a trial stops the trial."""
        return False

    def stop_all(self) -> bool:
        """Return whether the run ends. Tune calls this again and again."""
        # A trial in several processes counts as running while it waits for them.
        if self.start.is_late(bool(self.watch.running or self.watch.done)):
            self.watch.display.note(explain_late_workers(own_session()))
        if self.monitor.begins_to_wait(bool(self.watch.running) and self.monitor.resources.workers == 1):
            self.watch.display.note("no running node has room for a trial; waiting for another node")
        if not self.stopping.must_stop():
            return False
        # A trial that starts before the flag is set computes until it checks the flag. A trial that starts later stops
        # at once. The run does not wait for such trials, because Tune starts new ones until no trial is left. The flag
        # is set by a thread, which may be done before the first call of this method, so this call still adds the
        # running trials.
        is_told = self.stopping.trials_are_told.is_set()
        if not self.all_told:
            self.leaving |= self.watch.running.keys()
            self.all_told = is_told
        self.leaving &= self.watch.running.keys()
        return ((is_told or not self.watch.running) and not self.leaving) or self.stopping.is_overdue()


class TrialEvents(tune.Callback):
    """Passes the events of trials from Tune to the progress display, and records failures.

    Args:
        datasets: The datasets of the sweep.
        results: The store of the sweep.
        ended: The results by trial, to which new results are added; None if no searcher needs them.
        earlier: For each trial that failed in an earlier run of the sweep, its number of attempts then.
        display: The progress display.
        max_failures: The number of failures that a trial may have.
    """

    def __init__(
        self,
        datasets: Datasets,
        results: Store,
        ended: dict[str, Result] | None,
        earlier: Mapping[str, int],
        display: TrialProgress,
        max_failures: int = 0,
    ) -> None:
        self.datasets, self.results, self.ended, self.display = datasets, results, ended, display
        self.scheduler: ByEvaluation | None = None
        """The scheduler of the current run of Tune."""
        self.ending: Callable[[], None] = lambda: None
        """Called after a trial has ended and its result is in `ended`."""
        self.fail_dependents: Callable[[Iterable[Trial]], None] = lambda failed: None
        """Called with the trials that failed as a run of Tune ended, so that no trial waits for them."""
        self.done: set[str] = set()
        """The names of the trials that have ended since the sweep was started or resumed."""
        self.earlier = earlier
        self.running: dict[str, Trial] = {}
        """The running trials, by name."""
        self.processes: dict[str, tuple[str | None, int | None]] = {}
        """The address of the node and the id of the process of each running trial that has reported, by name."""
        self.max_failures = max_failures
        self.recovered: dict[str, int] = {}
        """The iteration of Tune in which it last recovered each of its trials, by Tune's id."""
        self.given_up: Counter[str] = Counter()
        """How often Tune has given each trial up too early, by name."""
        self.must_run_again = False
        """Whether Tune has given a trial up too early in this run of Tune."""
        self.failed: dict[str, str] = {}
        """Why trials have failed, by name."""

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing to pickle. Tune pickles its callbacks to restore a run, which never happens here."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A worker has started the trial."""
        started = self._trial_of(trial)
        self.running[started.name] = started
        self.processes.pop(started.name, None)
        self.display.begin(started)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """The trial has reported."""
        self.processes[self._trial_of(trial).name] = result["node_ip"], result["pid"]
        self.display.progress(self._trial_of(trial), Status(result["fraction"], *result.get(STATUS, ())))

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The worker of the trial died; the trial resumes."""
        recovered = self._trial_of(trial)
        self.recovered[trial.trial_id] = iteration
        self.running.pop(recovered.name, None)
        if self.scheduler is not None:  # a trial that should stop resumes if its stop could not be recorded
            self.scheduler.reasons.pop(recovered.name, None)
        self.results.pull(recovered.name)
        self.display.retry(recovered, attempts(self.results.trial(recovered.name)), broke_off(trial))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The trial wrote its result, was stopped, or left because the sweep ends."""
        completed = self._trial_of(trial)
        self.running.pop(completed.name, None)
        result = self._result(completed)
        if result is None and self.scheduler is not None and completed.name in self.scheduler.reasons:
            result = self._record_stop(completed, self.scheduler.reasons[completed.name], trial.last_result)
        if result is not None:
            self._end(result)
        else:
            self.display.leave(completed)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The last attempt of the trial failed.

        If Tune gives a trial to a worker that died while it was idle, Tune handles this failure twice in one
        iteration: it recovers the trial, and then gives it up. A node that does not see the results directory has room
        for each new attempt at once. In both cases the next run of Tune runs the trial again.
        """
        failed = self._trial_of(trial)
        self.running.pop(failed.name, None)
        result, why = self._result(failed), broke_off(trial)
        if result is None and (self.recovered.get(trial.trial_id) == iteration or ABSENT in why):
            self.given_up[failed.name] += 1
            if self.given_up[failed.name] <= self.max_failures:
                self.must_run_again = True
                self.display.leave(failed)
                return
        if result is None:
            result = record_failure(self.results, failed, self._digest(failed), why)
        self._end(result)

    def fail(self, trial: Trial, error: str) -> None:
        """Record the failure of a trial that could not start, with the reason."""
        self.display.begin(trial)
        self._end(record_failure(self.results, trial, self._digest(trial), error))

    def break_off(self, fault: RayError, broken: Counter[str], max_failures: int) -> None:
        """Handle the trials that were running when one of Ray's errors ended the run of Tune.

        If the error names the process of a running trial, only this trial has failed; else all running trials have. A
        trial that failed more than `max_failures` times is recorded as failed. The others resume from their checkpoints
        in the next run.

        Args:
            fault: The error.
            broken: How often each trial has failed in this way; it is updated.
            max_failures: The number of failures that a trial may have.
        """
        for name in self.running:  # the node of a trial may have written its process into a bucket
            self.results.pull(name)
        hit = self._trials_in_process(str(fault))
        why = died(str(fault)) if LOW_ON_MEMORY in str(fault) else describe_error(fault)
        interrupted = list(self.running.items())
        for name, trial in interrupted:
            del self.running[name]
            result = self._result(trial)
            if result is None and name in (hit or [name]):
                broken[name] += 1
                if broken[name] > max_failures:
                    result = record_failure(self.results, trial, self._digest(trial), why)
                else:
                    self.display.retry(trial, attempts(self.results.trial(name)), why)
            if result is not None:
                self._end(result)
            else:
                self.display.leave(trial)
        self.fail_dependents([trial for name, trial in interrupted if name in self.failed])

    def _trials_in_process(self, text: str) -> list[str]:
        """Return the running trials whose process an error of Ray names; none if it names no process.

        Processes on different nodes may have the same id, so the node must be the same too.
        """
        pid, address = re.search(r"\bpid=(\d+)", text), re.search(r"\b(?:IP: |ip=)([^\s,)]+)", text)
        if pid is None:
            return []
        hosts: set[str | None] = {None}  # of an attempt whose host is unknown
        if address is not None:
            names = [node["NodeManagerHostname"] for node in alive_nodes() if node["NodeManagerAddress"] == address[1]]
            hosts |= {address[1], *names}
        trials = []
        for name in self.running:
            # A trial in several processes reports through the process that Ray Tune started, which Ray names.
            host, number = self.processes.get(name) or last_process(self.results.trial(name))
            if number == int(pid[1]) and (address is None or host in hosts):
                trials.append(name)
        return trials

    def _result(self, trial: Trial) -> Result | None:
        """Return how a trial ended in this run, None if it has not. Failures of earlier runs do not count."""
        self.results.pull(trial.name)
        try:
            result = self.results.result(trial.name)
        except InputError as fault:  # the file was damaged later; Tune would end the sweep if this method raised
            warnings.warn(str(fault), stacklevel=2)
            return None
        if result is not None and result.status == "failed" and result.attempts <= self.earlier.get(trial.name, 0):
            return None
        return result

    def _record_stop(self, trial: Trial, reason: str, report: Mapping[str, Any]) -> Result:
        """Record the last report of a stopped trial. Its process cannot do so, because it waits to be ended."""
        from raysweep.results.events import end_stopped

        directory = self.results.trial(trial.name)
        result = make_result(
            trial,
            self._digest(trial),
            directory,
            status="stopped",
            error=reason,
            metrics={name: report[name] for name in METRICS if name in report},
            wall_s=report["seconds"],
            precision=report.get("precision", ""),
            device="unknown",
            warnings=[],
        )
        with recording(self.results, trial.name, resumes=False):
            end_stopped(directory, attempts(directory))
            write_result(directory, result)
        return result

    def _end(self, result: Result) -> None:
        self.done.add(result.trial)
        if result.status == "failed":
            self.failed[result.trial] = str(result.error)
        if self.ended is not None:
            self.ended[result.trial] = result
            self.ending()
        self.display.end(result)

    def _digest(self, trial: Trial) -> str:
        return data_of(trial, self.datasets).probe.digest

    def _trial_of(self, trial: Any) -> Trial:
        ours: Trial = trial.config["trial"]
        return ours


def last_process(directory: Path) -> tuple[str | None, int | None]:
    """Return the host and the id of the process of the last attempt of the trial in `directory`; None if unknown."""
    try:
        attempt = read_json(directory / "attempt.json")
        return attempt.get("host"), int(attempt["pid"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None, None


def broke_off(trial: Any) -> str:
    """Return in one line why the last attempt of Tune's trial failed, read from Tune's files on the driver's disk."""
    last = Path(trial.error_file).read_text().rpartition("Failure #")[2]  # the file lists all failures in order
    if trial.pickled_error_file is not None:
        with open(trial.pickled_error_file, "rb") as file:
            fault = pickle.load(file)
        if isinstance(fault, RayTaskError) and type(fault.cause).__name__ in last:  # the last failure was raised there
            return str(fault.cause) if isinstance(fault.cause, WorkerFailure) else describe_error(fault.cause)
    return died(last)
