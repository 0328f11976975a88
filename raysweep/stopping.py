"""Ending a sweep early so that nothing is lost: by signal, or because its time is up.

The process that drives a sweep leaves a mark in the results directory. Every trial at work looks for it between two
steps, saves a checkpoint and leaves. A mark there, because trials may run in other processes and on other nodes.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from raysweep.store import Store

LOOK_SECONDS, LOOK_SECONDS_BUCKET = 1.0, 5.0  # between two looks for the mark; in a bucket each is a request
GRACE_SECONDS = 20.0
"""How long trials may take to leave. Clusters kill 30 s after their SIGTERM by default (Slurm's KillWait, Kubernetes'
terminationGracePeriodSeconds), and Ray needs some of them to end."""


class Stopping:
    """Whether a sweep is to end early.

    Args:
        results: where trials look for the mark; one that an earlier run left is removed.
        seconds: time from now after which the sweep ends early; None is never.
    """

    def __init__(self, results: Store, seconds: float | None = None) -> None:
        self.results, self.deadline = results, time.monotonic() + seconds if seconds is not None else None
        self.interrupted = False
        """By a signal; otherwise the time was up."""
        self.since: float | None = None
        results.let_stay()

    def ask(self) -> None:
        """Have every trial save a checkpoint and leave."""
        if self.since is None:
            self.since = time.monotonic()
            self.results.ask_to_leave()

    def asked(self) -> bool:
        """Whether the sweep is to end."""
        if self.deadline is not None and time.monotonic() >= self.deadline:
            self.ask()
        return self.since is not None

    def overdue(self) -> bool:
        """Whether the trials have had the time they get to leave."""
        return self.since is not None and time.monotonic() - self.since > GRACE_SECONDS

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Ask on the first SIGINT (Ctrl-C) or SIGTERM, raise KeyboardInterrupt on the second. In the main thread only.

        SIGTERM is what a cluster's scheduler sends before it takes a machine away.
        """

        def handle(number: int, frame: FrameType | None) -> None:
            if self.interrupted:
                raise KeyboardInterrupt
            self.interrupted = True
            print("stopping: trials save a checkpoint; once more to stop without", file=sys.stderr)
            self.ask()

        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def watch(results: Store) -> Callable[[], bool]:
    """A trial's look for the mark, cheap enough to be taken between any two steps."""
    every = LOOK_SECONDS if results.bucket is None else LOOK_SECONDS_BUCKET
    looked, found = time.monotonic() - every, False

    def stop() -> bool:
        nonlocal looked, found
        if not found and time.monotonic() - looked >= every:
            found, looked = results.asked_to_leave(), time.monotonic()
        return found

    return stop
