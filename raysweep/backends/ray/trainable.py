"""The function trainable: one trial in a worker."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ray import tune

from raysweep.backends.ray.schedulers import EPOCH
from raysweep.backends.stopping import StopFlag, watch
from raysweep.config import Collapse
from raysweep.data.selection import Datasets
from raysweep.results.mirror import Replaced
from raysweep.results.store import PUSH_SECONDS, Store
from raysweep.results.trial_directory import at_work
from raysweep.space import Trial
from raysweep.system.memory import keep_memory

if TYPE_CHECKING:  # it imports torch, which the driver does not need
    from raysweep.training.distributed import DistributedContext

keep_memory()  # in a worker this module is imported before the thread of its first trial begins
LOW_ON_MEMORY = "low on memory"
"""Words in the text of Ray's OutOfMemoryError."""
REPORT_SECONDS = 1.0  # a report waits for the driver: they go by time, not by epoch,
REPORT_COST = 50  # take at most 2 % of a trial's time (the driver takes some 1,000 a second, of all together),
REPORT_LATEST = 30.0  # and are no further apart than this, even where one takes longer than 0.6 s.


@dataclass(frozen=True)
class TrialOptions:
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


def trial_function(config: Mapping[str, Any], datasets: Datasets, how: TrialOptions) -> None:
    """The function trainable: one trial in a worker.

    A trial that a scheduler compares with others reports every online evaluation, and waits for what is decided. If it
    is to stop, Ray ends this thread in that report by SystemExit, once it needs the worker for another trial.
    """
    attempt(config["trial"], datasets, how, tune.report)


def attempt(
    trial: Trial,
    datasets: Datasets,
    how: TrialOptions,
    tell: Callable[[dict[str, Any]], None],
    context: DistributedContext | None = None,
) -> None:
    """Run a trial in this process, or lead those that run it; `tell` passes its reports on to Tune."""
    from raysweep.training.distributed import SINGLE_PROCESS
    from raysweep.trial import run_trial
    from raysweep.trial_progress import Progress

    results = Store(how.place)
    stop = watch(StopFlag(results, how.token))
    if stop():  # Tune fills a free slot as long as it can; it would print that a trial reported nothing
        tell({"share": 0.0})
        return

    pace = Pace(tell)

    def report(at: Progress) -> None:
        if how.compared and at.evaluated:
            push()  # it may be the last that this process does for the trial
            pace.tell({"share": at.share, "seconds": at.seconds, EPOCH: at.epoch, **at.metrics})
        elif pace.due():
            push(every=PUSH_SECONDS)
            pace.tell({"share": at.share})  # Tune would keep 2 KB for each metric of each trial

    # A process that was replaced leaves: the one that has the trial now says how it ends.
    with suppress(Replaced), at_work(results, trial.name) as push:
        run_trial(
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
            context=context or SINGLE_PROCESS,
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


def died(text: str, who: str = "its process") -> str:
    """How a process came to its end without a word of its own, from what Ray says of it.

    Args:
        text: what Ray says.
        who: the process, in a word that begins the sentence.
    """
    if LOW_ON_MEMORY in text:  # of Ray's OutOfMemoryError only the text is kept
        return f"out of memory: Ray ended {who} as its node ran low on memory"
    return f"{who} died (killed, out of memory, or its node was lost)"


class WorkerFailure(Exception):
    """A worker of a data-parallel trial broke off; the message is the reason in one line."""
