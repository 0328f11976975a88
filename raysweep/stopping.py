"""Ending a sweep early so that nothing is lost: by signal, or because its time is up.

The process that drives a sweep sets a mark in the results directory. Every trial at work looks for it between two
steps, saves a checkpoint and leaves. A mark there, because trials may run in other processes and on other nodes.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from raysweep.errors import printable
from raysweep.store import Store, reason

LOOK_SECONDS, LOOK_SECONDS_BUCKET = 1.0, 5.0  # between two looks for the mark; in a bucket each is a request
GRACE_SECONDS = 20.0
"""How long trials may take to leave. Clusters kill 30 s after their SIGTERM by default (Slurm's KillWait, Kubernetes'
terminationGracePeriodSeconds), and Ray needs some of them to end."""


ENDING_SECONDS = 5.0  # that Ray gets after them
TWICE_SECONDS = 1.0
"""In which a second SIGTERM is the first: Slurm sends it to a batch script, which passes it on, and to its children."""


class Mark:
    """What tells the trials of one run of a sweep to leave: a file beside them, and an object in their bucket.

    It is that run's alone: a driver to which the sweep was lost must not stop the trials of the one that has it now.

    Args:
        results: where it is.
        token: the run's.
    """

    def __init__(self, results: Store, token: str) -> None:
        self.bucket, self.root, self.name = results.bucket, results.root, f".leave-{token}"

    def place(self) -> None:
        """Make the file, not set yet: NFS tells of a change in a file at once, but of a new one only after a while."""
        for old in self.root.glob(".leave-*"):  # of runs that were killed
            old.unlink()
        (self.root / self.name).write_text("")

    def set(self) -> None:
        """Have the trials leave; raises OSError where they cannot be told."""
        (self.root / self.name).write_text("leave")
        if self.bucket is not None:
            self.bucket.write(self.name, b"leave")

    def is_set(self) -> bool:
        """Whether trials are to leave."""
        with suppress(OSError):  # of a disk that is lost, or a directory that this node does not have: a bucket's copy
            if (self.root / self.name).read_text() == "leave":
                return True
        return self.bucket is not None and self.bucket.has(self.name)

    def remove(self, was_set: bool) -> None:
        """Leave nothing behind."""
        with suppress(OSError):
            (self.root / self.name).unlink()
            if self.bucket is not None and was_set:
                self.bucket.remove(self.name)


class Stopping:
    """Whether a sweep is to end early.

    Args:
        results: where its trials look for the mark.
        seconds: time from now after which the sweep ends early; None is never.
    """

    def __init__(self, results: Store, seconds: float | None = None) -> None:
        self.token = uuid.uuid4().hex
        self.mark = Mark(results, self.token)
        self.deadline = time.monotonic() + seconds if seconds is not None else None
        self.interrupted = False
        """By a signal; otherwise the time was up."""
        self.since: float | None = None

    def ask(self) -> None:
        """Have every trial save a checkpoint and leave."""
        if self.since is None:
            self.since = time.monotonic()
            # A thread, for this is done in a signal's handler, and a bucket may take its time.
            threading.Thread(target=self._set, daemon=True).start()

    def _set(self) -> None:
        try:
            self.mark.set()
        except OSError as fault:
            print(printable(f"warning: trials cannot be told to leave: {reason(fault)}"), file=sys.stderr)

    def asked(self) -> bool:
        """Whether the sweep is to end."""
        if self.deadline is not None and time.monotonic() >= self.deadline:
            self.ask()
        return self.since is not None

    def overdue(self) -> bool:
        """Whether the trials have had the time they get to leave."""
        return self.since is not None and time.monotonic() - self.since > GRACE_SECONDS

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run trials: ask on the first SIGINT (Ctrl-C) or SIGTERM, raise KeyboardInterrupt on the second.

        A SIGTERM that arrives twice, by two ways, counts once.

        In the main thread only. SIGTERM is what a cluster's scheduler sends before it takes a machine away.
        """
        terminated = float("-inf")

        def handle(number: int, frame: FrameType | None) -> None:
            nonlocal terminated
            if number == signal.SIGTERM:
                if time.monotonic() - terminated < TWICE_SECONDS:
                    return
                terminated = time.monotonic()
            if self.interrupted:
                raise KeyboardInterrupt
            self.interrupted = True
            print("stopping: trials save a checkpoint; once more to stop without", file=sys.stderr)
            self.ask()
            # A signal to the whole process group ends Ray's servers too, and Ray looks for them for long.
            last = threading.Timer(GRACE_SECONDS + ENDING_SECONDS, leave_at_once)
            last.daemon = True
            last.start()

        self.mark.place()
        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            try:
                # Trials may leave faster than the second one arrives, which would then kill this process as it ends.
                time.sleep(max(0.0, terminated + TWICE_SECONDS - time.monotonic()))
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)
                self.mark.remove(was_set=self.since is not None)


def leave_at_once() -> None:
    """End this process where it stands: the trials have saved what they could, and whatever hangs is not needed."""
    print("interrupted, though trials did not leave in time; go on with --resume", file=sys.stderr)
    os._exit(130)


def watch(mark: Mark) -> Callable[[], bool]:
    """A trial's look for the mark, cheap enough to be taken between any two steps."""
    every = LOOK_SECONDS if mark.bucket is None else LOOK_SECONDS_BUCKET
    looked, found = time.monotonic() - every, False

    def stop() -> bool:
        nonlocal looked, found
        if not found and time.monotonic() - looked >= every:
            found, looked = mark.is_set(), time.monotonic()
        return found

    return stop
