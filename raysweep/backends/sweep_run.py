"""What a backend needs to run the trials of a sweep. Every backend has the same two functions.

`prepare(sweep, store, address)` connects to whatever runs the trials, checks that it can hold them, and returns the
plan in words. `run(sweep_run)` runs the pending trials, each of which leaves its result in its directory, and returns
the sweep, with the points that a searcher has proposed meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass

from raysweep.backends.progress import TrialProgress
from raysweep.backends.stopping import Stopping
from raysweep.data.selection import Datasets
from raysweep.results.result import Result
from raysweep.results.store import Store
from raysweep.space import Sweep, Trial


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep."""

    sweep: Sweep
    pending: list[Trial]
    """The trials to run."""
    kept: list[Result]
    """The results of earlier runs that stay."""
    store: Store
    datasets: Datasets
    progress: TrialProgress
    """Told what happens to each trial."""
    stopping: Stopping
    """Says when the sweep is to end early."""
