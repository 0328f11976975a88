"""Trials on Ray that wait for a shared pretraining: they start after it, so that no worker waits."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any

from ray.tune.search import Searcher

from raysweep.backends.handout import PretrainingQueue, failure
from raysweep.backends.ray.limit import UnsavedSearcher
from raysweep.backends.stopping import Stopping
from raysweep.space import Trial


class Dispenser(UnsavedSearcher):
    """Gives Tune the next trial of a queue whenever Tune has room.

    Tune starts the trials of a grid as they come. Only a searcher can say that no trial may start yet.

    Args:
        queue: The trials.
        stopping: Tells when the sweep must end early.
        done: The names of the trials that have a result; the set grows while the sweep runs.
        failed: Why trials have failed in this run, by name; the mapping grows while the sweep runs.
        fail: Records the failure of a trial that could not start, with the reason.
    """

    def __init__(
        self,
        queue: PretrainingQueue,
        stopping: Stopping,
        done: Container[str],
        failed: Mapping[str, str],
        fail: Callable[[Trial, str], None],
    ) -> None:
        super().__init__()
        self.queue, self.stopping, self.done, self.failed, self.fail = queue, stopping, done, failed, fail
        self.running: dict[str, Trial] = {}
        """The trials that run, by Tune's id."""
        self.over: list[Trial] = []
        """The trials that have ended since Tune last asked for a trial."""

    def suggest(self, trial_id: str) -> Any:
        """Return the next trial; None if all have to wait; FINISHED if there is none or the sweep must end."""
        self._tell_queue()
        if self.stopping.must_stop() or self.queue.is_empty():
            return Searcher.FINISHED
        start = self.queue.next()
        if start is None:
            return None
        self.running[trial_id] = start.trial
        return {"trial": start.trial, "role": start.role}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Note that the trial has ended. How it ended is read later, when it is recorded."""
        trial = self.running.pop(trial_id, None)
        if trial is not None:
            self.over.append(trial)

    def fail_dependents(self, failed: Iterable[Trial]) -> None:
        """Record the failure of the trials that wait for a trial in `failed`. These failed as the run of Tune ended."""
        self.over += failed
        self._tell_queue()

    def _tell_queue(self) -> None:
        """Tell the queue which trials have ended. Record the failure of the trials that can no longer run."""
        over, self.over = self.over, []
        for trial in over:
            error = self.failed.get(trial.name)
            for dependent in self.queue.ended(trial, error is not None, trial.name not in self.done):
                self.fail(dependent, failure(trial.name, error))
