"""Removing files of a sweep that no trial needs any more, such as files that a killed process has left."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from raysweep.results.handout import remove_unneeded
from raysweep.results.result import Result, describe_error
from raysweep.results.store import Store
from raysweep.results.trial_directory import forget_checkpoints
from raysweep.space import Sweep
from raysweep.system.files import check_held


def clean_up(store: Store, sweep: Sweep, kept: Sequence[Result]) -> None:
    """Remove the states and checkpoints that no unfinished trial of a sweep needs.

    If that fails, a warning says so; the sweep has its results all the same.

    Args:
        store: The results directory of the sweep.
        sweep: The sweep.
        kept: The results of trials that will not be resumed.
    """
    remove_unneeded(store, sweep)
    try:
        for name in left_checkpoints(store, kept) if kept else ():
            forget_checkpoints(store, name)
    except OSError as fault:
        warnings.warn(f"checkpoints of finished trials cannot be removed: {describe_error(fault)}", stacklevel=2)


def left_checkpoints(store: Store, kept: Sequence[Result]) -> list[str]:
    """Return the names of the trials that have a result and checkpoints: their process was killed in between."""
    if store.bucket is None:
        check_held(store.root)
        return [result.trial for result in kept if (store.trial(result.trial) / "checkpoints").is_dir()]
    folders = {name.partition("/checkpoints/")[0] for name in store.bucket.files() if "/checkpoints/" in name}
    return [result.trial for result in kept if result.trial in folders]
