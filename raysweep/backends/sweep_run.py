"""The data that a backend needs to run the trials of a sweep. Every backend has the same two functions.

`prepare(sweep, store, address)` connects to Ray if the backend needs it, checks that the trials can run, and returns
the plan in words. `run(sweep_run)` runs the pending trials. Each trial writes its result into its directory. `run`
returns the sweep, which includes the points that a searcher has proposed in the meantime.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from raysweep.backends.progress import TrialProgress
from raysweep.backends.stopping import Stopping
from raysweep.data.selection import Datasets
from raysweep.results.result import Result
from raysweep.results.store import Store
from raysweep.space import Sweep, Trial
from raysweep.space.sharing import can_share


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep."""

    sweep: Sweep
    pending: list[Trial]
    """The trials to run."""
    kept: list[Result]
    """The results of earlier runs that remain valid."""
    store: Store
    datasets: Datasets
    progress: TrialProgress
    """The display of the progress of trials."""
    stopping: Stopping
    """Tells when the sweep must end early."""
    share: bool = True
    """Whether trials share pretrainings where they can."""
    next_round: Callable[[Sweep], tuple[Sweep, list[Trial]]] = lambda sweep: (sweep, [])
    """Called when all trials of the sweep have ended. Returns the sweep with the next round of a race of seeds, and the
    new trials. There are none without a race, or if the race or the sweep must end."""

    @property
    def shares(self) -> bool:
        """Whether trials of this sweep share pretrainings."""
        return self.share and can_share(self.sweep)
