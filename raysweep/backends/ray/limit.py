"""Searchers of Tune whose state is not saved, and the limit of trials at a time for a searcher."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ray.tune.search import Searcher

LOOK_SECONDS = 5.0  # seconds between two looks at the limit, which may ask the cluster for its nodes


class UnsavedSearcher(Searcher):
    """A searcher whose state Tune does not save, because the store has all state.

    Tune pickles searchers to restore a run, which never happens here.
    """

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing to pickle."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Save nothing."""


class AtMost(UnsavedSearcher):
    """Asks a searcher for a trial only while fewer of its trials are alive than allowed at this time.

    With `max_concurrent_trials`, Tune would ask the searcher for that many trials in advance, even if the nodes hold
    fewer. A searcher that uses results would then have chosen many points before the first result.

    Args:
        searcher: The searcher.
        most: Returns the number of trials that may wait or run at present; None for no limit.
    """

    def __init__(self, searcher: Searcher, most: Callable[[], int | None]) -> None:
        super().__init__()
        self.inner = searcher  # an attribute `searcher` would have a meaning for Tune
        self.most, self.limit, self.looked = most, most(), time.monotonic()
        self.alive: set[str] = set()
        """The trials that wait or run, by Tune's id."""

    def suggest(self, trial_id: str) -> Any:
        """Return what the searcher suggests; None if as many trials as allowed are alive."""
        if time.monotonic() - self.looked >= LOOK_SECONDS:
            self.limit, self.looked = self.most(), time.monotonic()
        if self.limit is not None and len(self.alive) >= self.limit:
            return None
        suggestion: Any = self.inner.suggest(trial_id)
        if suggestion is not None and suggestion != Searcher.FINISHED:
            self.alive.add(trial_id)
        return suggestion

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Note that the trial has ended, and tell the searcher."""
        self.alive.discard(trial_id)
        self.inner.on_trial_complete(trial_id, result, error)
