"""The function trainable, which runs one trial in a worker."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any

from ray import cloudpickle, tune

from raysweep.backends.ray.schedulers import EPOCH
from raysweep.backends.stopping import StopFlag, watch
from raysweep.config import Collapse
from raysweep.data.selection import Datasets
from raysweep.plugins import activate
from raysweep.results.encoders import source_file
from raysweep.results.final_state import final_state_of
from raysweep.results.mirror import Replaced
from raysweep.results.store import PUSH_SECONDS, Store
from raysweep.results.trial_directory import at_work
from raysweep.space import Trial
from raysweep.space.sharing import Role
from raysweep.system.memory import keep_memory

if TYPE_CHECKING:  # it imports torch, which the driver does not need
    from raysweep.training.distributed import DistributedContext

keep_memory()  # in a worker, this module is imported before the thread of the first trial starts
STATUS = "status"
"""The key of a report under which the display finds the fields of a `Status` after `fraction`, as one tuple.

Tune keeps 2 KB for each number of each trial, but nothing for a tuple.
"""
LOW_ON_MEMORY = "low on memory"
"""Words in the text of Ray's OutOfMemoryError."""
MOUNT_SECONDS = 30.0
"""Seconds for which a trial that begins waits until its node sees the results directory."""
REPORT_SECONDS = 1.0
"""Least number of seconds between two reports of a trial.

The interval is a time, not an epoch, because each report waits for the driver, which accepts about 1,000 reports a
second from all trials together.
"""
REPORT_COST = 50  # reports take at most 2 % of a trial's time
REPORT_LATEST = 30.0
"""Longest time in seconds between two reports, even if a report takes longer than 0.6 s."""


@dataclass(frozen=True)
class TrialOptions:
    """The options with which every trial of a sweep is run."""

    place: str
    """The results directory of the sweep."""
    threads: int
    """The number of threads of each process of a trial."""
    gpu: bool
    """Whether a trial uses CUDA.

    A trial without a GPU must not use CUDA: Ray hides no GPU from it, and every trial would take the first one.
    """
    checkpoint_seconds: float | None
    """Least number of seconds between two checkpoints; see `raysweep.trial.run_trial`."""
    collapse: Collapse | None
    """The condition for stopping a trial whose embedding has collapsed; None means never."""
    compared: bool
    """Whether a scheduler compares trials with one another."""
    token: str
    """The token of the flag that tells trials to stop."""
    plugins: bytes = b""
    """The plugins of the sweep as a pickle, which the worker loads before it reads a trial; empty for none."""

    def load_plugins(self) -> None:
        """Make the tables of parts hold the plugins of the sweep."""
        activate(cloudpickle.loads(self.plugins) if self.plugins else ())


def trial_function(config: Mapping[str, Any], datasets: Datasets, options: TrialOptions) -> None:
    """Run one trial in a worker (the function trainable).

    A trial that a scheduler compares with others reports every online evaluation, and waits for the decision. If the
    trial must stop, Ray ends this thread inside the report by SystemExit, once it needs the worker for another trial.
    """
    attempt(config["trial"], datasets, options, tune.report, role=config.get("role"))


def attempt(
    trial: Trial,
    datasets: Datasets,
    options: TrialOptions,
    tell: Callable[[dict[str, Any]], None],
    context: DistributedContext | None = None,
    role: Role | None = None,
) -> None:
    """Run a trial in this process, which is the main process if there are several.

    Args:
        trial: The trial.
        datasets: The datasets of the sweep.
        options: The options of the run.
        tell: A function that passes reports on to Tune.
        context: The processes of the trial; None means only this one.
        role: The trial's part in a shared pretraining; None if it shares none.
    """
    from raysweep.training.distributed import SINGLE_PROCESS
    from raysweep.trial import run_trial
    from raysweep.trial_progress import ProgressReport
    from raysweep.trial_sharing import sharing_of

    options.load_plugins()

    results = Store(options.place)
    stop = watch(StopFlag(results, options.token))
    end = time.monotonic() + MOUNT_SECONDS
    while not stop() and not results.present() and time.monotonic() < end:  # a new node may still mount it
        time.sleep(0.5)
    if stop():  # Tune fills free slots to the end; it would print a warning about a trial that reported nothing
        tell({"fraction": 0.0})
        return

    pace = Pace(tell)

    phase = ""

    def report(moment: ProgressReport) -> None:
        nonlocal phase
        is_new_phase, phase = moment.phase != phase, moment.phase
        status = {"fraction": moment.fraction, STATUS: astuple(moment.status())[1:]}
        if options.compared and moment.evaluated:
            push()  # the report may be the last thing that this process does for the trial
            told = {"seconds": moment.seconds, "precision": moment.precision}
            pace.tell({**status, **told, EPOCH: moment.epoch, **moment.metrics})
        elif pace.due() or is_new_phase:  # the next report may come long after the start of a phase
            push(every=PUSH_SECONDS)
            pace.tell(status)

    # Another process may have taken the trial over; then that process says how the trial ends.
    with suppress(Replaced), at_work(results, trial.name) as push:
        run_trial(
            trial,
            datasets,
            results.trial(trial.name),
            threads=options.threads,
            gpu=options.gpu,
            checkpoint_seconds=options.checkpoint_seconds,
            collapse=options.collapse,
            report=report,
            stop=stop,
            saved=push,
            context=context or SINGLE_PROCESS,
            encoder=source_file(results, trial),
            sharing=sharing_of(trial, role, results, datasets),
            shorter=final_state_of(results, trial),
        )
    tell({"fraction": 1.0})


class Pace:
    """The pace of a trial's reports: every `REPORT_SECONDS`, or less often if the driver is too busy to answer at once.

    Args:
        report: A function that passes a report on to the driver and waits for it.
    """

    def __init__(self, report: Callable[[dict[str, Any]], None]) -> None:
        self._report = report
        self._every, self._last = REPORT_SECONDS, time.monotonic()

    def due(self) -> bool:
        """Return whether it is time for the next report."""
        return time.monotonic() - self._last >= self._every

    def tell(self, values: dict[str, Any]) -> None:
        """Report, and adapt the pace to the time that this takes."""
        start = time.monotonic()
        self._report(values)
        self._last = time.monotonic()
        self._every = min(max(REPORT_SECONDS, REPORT_COST * (self._last - start)), REPORT_LATEST)


def died(text: str, who: str = "its process") -> str:
    """Describe from Ray's message why a process ended that could not report the reason.

    Args:
        text: Ray's message.
        who: The process, in words with which the sentence starts.
    """
    if LOW_ON_MEMORY in text:  # only the text of Ray's OutOfMemoryError is kept
        return f"out of memory: Ray ended {who} as its node ran low on memory"
    return f"{who} died (killed, out of memory, or its node was lost)"


class WorkerFailure(Exception):
    """A worker of a data-parallel trial broke off; the message is the reason in one line."""
