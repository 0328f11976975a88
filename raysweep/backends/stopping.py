"""Ending a sweep early so that nothing is lost: by signal, or because its time is up.

The process that drives a sweep sets a mark in the results directory. Every trial at work looks for it between two
steps, saves a checkpoint and leaves. A mark there, because trials may run in other processes and on other nodes.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from raysweep.errors import printable
from raysweep.results.result import describe_error
from raysweep.results.store import Store
from raysweep.system.terminal import INTERRUPTED, end_process, say_at_once

LOOK_SECONDS, LOOK_SECONDS_BUCKET = 1.0, 5.0  # between two looks for the mark; in a bucket each is a request
GRACE_SECONDS = 20.0
"""How long trials may take to leave. Clusters kill 30 s after their SIGTERM by default (Slurm's KillWait, Kubernetes'
terminationGracePeriodSeconds), and Ray needs some of them to end."""
ENDING_SECONDS = 5.0
"""How long Ray may take to end afterwards."""
TWICE_SECONDS = 1.0
"""Within this time a second SIGTERM is the first one again: Slurm sends it to a batch script, which passes it on to its
children, and to these children as well."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopFlag:
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
        if self.bucket is not None:
            self.bucket.write(self.name, b"leave")
        with open(self.root / self.name, "r+") as file:  # not a new file where the directory is another one by now
            file.write("leave")

    def is_set(self) -> bool:
        """Whether trials must stop."""
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
    """Whether a sweep must end early.

    Args:
        results: where its trials look for the mark.
        seconds: time from now after which the sweep ends early; None is never.
        resume: the command that resumes the sweep, for messages.
    """

    def __init__(self, results: Store, seconds: float | None = None, resume: str = "--resume") -> None:
        self.token = uuid.uuid4().hex
        self.mark = StopFlag(results, self.token)
        self.results, self.looked = results, time.monotonic()
        self.deadline = time.monotonic() + seconds if seconds is not None else None
        self.resume = resume
        self.interrupted = False
        """Whether a signal ends the sweep; otherwise its time is up."""
        self.since: float | None = None
        """When the sweep was asked to end, by the monotonic clock."""
        self.told = threading.Event()
        """Set once every trial that begins from now on sees the mark."""
        self._quitting = False
        self._terminated = False
        self._responsive: float | None = None
        """When the main thread first came back to its work after SIGTERM or SIGHUP."""

    def ask(self) -> None:
        """Have every trial save a checkpoint and leave."""
        if self.since is None:
            self.since = time.monotonic()
            # In a thread, because a signal handler calls this, and a bucket may take its time.
            threading.Thread(target=self._set, daemon=True).start()

    def _set(self) -> None:
        try:
            self.mark.set()
            self.told.set()
        except OSError as fault:
            print(printable(f"warning: trials cannot be told to leave: {describe_error(fault)}"), file=sys.stderr)

    def asked(self) -> bool:
        """Whether the sweep must end. It also ends once its results directory is gone.

        The main thread asks this over and over while it runs trials.
        """
        if self._terminated and self._responsive is None:
            self._responsive = time.monotonic()
        if self.since is None and time.monotonic() - self.looked >= LOOK_SECONDS:
            self.looked = time.monotonic()
            if not self.results.present():
                self.since = self.looked
                self.told.set()  # the mark is gone too: trials break off when they next write
        if self.deadline is not None and time.monotonic() >= self.deadline:
            self.ask()
        return self.since is not None

    def overdue(self) -> bool:
        """Whether the trials have had the time they get to leave."""
        return self.since is not None and time.monotonic() - self.since > GRACE_SECONDS

    def _is_same_signal(self) -> bool:
        """Whether a SIGTERM or SIGHUP only repeats the one before, which arrived by another way.

        The time counts from when the main thread came back to its work. Python delivers a signal only then, so a second
        one that arrived at once may be seen seconds later, after a long call into a library.
        """
        before, self._terminated = self._terminated, True
        return before and (self._responsive is None or time.monotonic() - self._responsive < TWICE_SECONDS)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Signal handler: the first signal asks the trials to leave, the second one quits, later ones are ignored."""
        if self._quitting or (number != signal.SIGINT and self._is_same_signal()):
            return
        if self.interrupted:
            self._quitting = True
            self._end_process_in(ENDING_SECONDS)
            raise KeyboardInterrupt
        self.interrupted = True
        say_at_once("stopping: trials are saving checkpoints; press Ctrl-C again to quit without saving")
        self.ask()
        # A signal to the whole process group ends Ray's servers too, and Ray looks for them for long.
        self._end_process_in(GRACE_SECONDS + ENDING_SECONDS)

    def _end_process_in(self, seconds: float) -> None:
        timer = threading.Timer(seconds, leave_at_once, [self.resume])
        timer.daemon = True
        timer.start()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run trials: ask on the first SIGINT (Ctrl-C), SIGTERM or SIGHUP, raise KeyboardInterrupt on the second.

        A SIGTERM that arrives twice, by two ways, counts once. SIGTERM is what a cluster's scheduler sends before it
        takes a machine away, SIGHUP what a terminal sends that is closed. A SIGHUP that `nohup` ignores stays ignored.

        To be used in the main thread only.
        """
        self.mark.place()
        numbers = [n for n in SIGNALS if n != signal.SIGHUP or signal.getsignal(n) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self._handle) for number in numbers}
        try:
            yield
        finally:
            try:
                # Trials may leave before a repeated SIGTERM arrives, which would then kill this process as it ends.
                if self._terminated:
                    time.sleep(max(0.0, (self._responsive or time.monotonic()) + TWICE_SECONDS - time.monotonic()))
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)
                self.mark.remove(was_set=self.since is not None)


def leave_at_once(resume: str) -> None:
    """End this process where it stands: the trials have saved what they could, and whatever hangs is not needed."""
    end_process(INTERRUPTED, f"interrupted before all trials could save a checkpoint; resume with: {resume}")


def watch(mark: StopFlag) -> Callable[[], bool]:
    """A trial's look for the mark, cheap enough to be taken between any two steps."""
    every = LOOK_SECONDS if mark.bucket is None else LOOK_SECONDS_BUCKET
    looked, is_set = time.monotonic() - every, False

    def stop() -> bool:
        nonlocal looked, is_set
        if not is_set and time.monotonic() - looked >= every:
            is_set, looked = mark.is_set(), time.monotonic()
        return is_set

    return stop
