"""Ending a sweep early without losing work, because of a signal or of the time budget.

The process that drives a sweep sets a flag in the results directory. Every running trial checks the flag between two
steps, saves a checkpoint and stops. The flag is a file, because trials may run in other processes and on other nodes.
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
from raysweep.system.signals import REPEATED_SECONDS, SIGNALS, check_interrupted
from raysweep.system.terminal import INTERRUPTED, end_process, say_at_once

LOOK_SECONDS, LOOK_SECONDS_BUCKET = 1.0, 5.0  # seconds between two checks of the flag; in a bucket each is a request
GRACE_SECONDS = 20.0
"""Seconds that trials have to stop.

By default clusters kill a process 30 s after their SIGTERM (Slurm's KillWait, Kubernetes'
terminationGracePeriodSeconds), and Ray needs a part of this time to end.
"""
ENDING_SECONDS = 5.0
"""Seconds that Ray has to end after the trials have stopped."""


class StopFlag:
    """The flag that tells the trials of one run of a sweep to stop: a file beside them, and an object in their bucket.

    Each run has its own flag, so that a driver that has lost the sweep cannot stop the trials of the present driver.

    Args:
        results: The results directory that contains the flag.
        token: The token of the run.
    """

    def __init__(self, results: Store, token: str) -> None:
        self.bucket, self.root, self.name = results.bucket, results.root, f".leave-{token}"

    def place(self) -> None:
        """Create the file before it is set: NFS shows a change of a file at once, but a new file only after a while."""
        for old in self.root.glob(".leave-*"):  # left by runs that were killed
            old.unlink()
        (self.root / self.name).write_text("")

    def set(self) -> None:
        """Tell the trials to stop; raises OSError if they cannot be told."""
        if self.bucket is not None:
            self.bucket.write(self.name, b"leave")
        with open(self.root / self.name, "r+") as file:  # creates no new file if the directory was replaced
            file.write("leave")

    def is_set(self) -> bool:
        """Return whether trials must stop."""
        with suppress(OSError):  # the disk may be lost, or this node may lack the bucket's local copy
            if (self.root / self.name).read_text() == "leave":
                return True
        return self.bucket is not None and self.bucket.has(self.name)

    def remove(self, was_set: bool) -> None:
        """Remove the flag."""
        with suppress(OSError):
            (self.root / self.name).unlink()
            if self.bucket is not None and was_set:
                self.bucket.remove(self.name)


class Stopping:
    """Tells whether and why a sweep must end early, and handles the signals that end it.

    Args:
        results: The results directory in which the trials check the flag.
        seconds: Seconds from now after which the sweep ends early; None means never.
        resume: The command that resumes the sweep, for messages.
        owns_process: Whether the process ends with the sweep. If not, as in a notebook, nothing here ends the process.
    """

    def __init__(
        self, results: Store, seconds: float | None = None, resume: str = "--resume", owns_process: bool = True
    ) -> None:
        self.token = uuid.uuid4().hex
        self.flag = StopFlag(results, self.token)
        self.results, self.looked = results, time.monotonic()
        self.deadline = time.monotonic() + seconds if seconds is not None else None
        self.resume, self.owns_process = resume, owns_process
        self.number: int | None = None
        """The number of the signal that ends the sweep; None if there was none."""
        self.since: float | None = None
        """The monotonic time at which the sweep was asked to end; None before."""
        self.trials_are_told = threading.Event()
        """Set once every trial that starts from now on sees the flag."""
        self._first_is_handled = False
        self._quitting = False
        self._trials_ended = False
        self._terminated = False
        self._responsive: float | None = None
        """The monotonic time at which the main thread first resumed its work after SIGTERM or SIGHUP."""

    @property
    def interrupted(self) -> bool:
        """Whether a signal ends the sweep; otherwise the time budget does."""
        return self.number is not None

    def request_stop(self) -> None:
        """Tell every trial to save a checkpoint and stop."""
        if self.since is None:
            self.since = time.monotonic()
            # A signal handler calls this and must not wait for a slow bucket, so a thread sets the flag.
            threading.Thread(target=self._set, daemon=True).start()

    def _set(self) -> None:
        try:
            self.flag.set()
            self.trials_are_told.set()
        except OSError as fault:
            if self._trials_ended:  # they no longer need the flag, and this run may have removed it
                return
            print(printable(f"warning: trials cannot be told to stop: {describe_error(fault)}"), file=sys.stderr)

    def must_stop(self) -> bool:
        """Return whether the sweep must end, also because its results directory is gone.

        The main thread calls this again and again while it runs trials.
        """
        if self._terminated and self._responsive is None:
            self._responsive = time.monotonic()
        if self.since is None and time.monotonic() - self.looked >= LOOK_SECONDS:
            self.looked = time.monotonic()
            if not self.results.present():
                self.since = self.looked
                self.trials_are_told.set()  # the flag is gone too, and trials fail at their next write
        if self.deadline is not None and time.monotonic() >= self.deadline:
            self.request_stop()
        return self.since is not None

    def is_overdue(self) -> bool:
        """Return whether the trials have had enough time to stop."""
        return self.since is not None and time.monotonic() - self.since > GRACE_SECONDS

    def _is_same_signal(self) -> bool:
        """Return whether a SIGTERM or SIGHUP repeats an earlier one, because another process passed it on as well.

        The time counts from the moment when the main thread resumed its work. Python delivers a signal only then, so a
        second signal that arrived at once may be seen seconds later, after a long call into a library.
        """
        before, self._terminated = self._terminated, True
        return before and (self._responsive is None or time.monotonic() - self._responsive < REPEATED_SECONDS)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Signal handler: the first signal stops the trials, the second one quits, later ones are ignored.

        Another signal can interrupt this function. Until the first signal is handled, it counts as its repetition.
        After the trials have ended, no signal raises an exception here, because it would interrupt the code that
        prints the last line.
        """
        if self._quitting or (number != signal.SIGINT and self._is_same_signal()):
            return
        if self._trials_ended:
            self.number = number if self.number is None else self.number
            return
        if self.interrupted:
            if not self._first_is_handled:
                return
            self._quitting = True
            self._end_process_in(ENDING_SECONDS)
            raise KeyboardInterrupt
        self.number = number
        again = "press Ctrl-C again" if self.owns_process else "interrupt again"
        say_at_once(f"stopping: trials are saving checkpoints; {again} to quit without saving")
        self.request_stop()
        # A signal to the whole process group ends Ray's servers too, and Ray tries to reach them for a long time.
        self._end_process_in(GRACE_SECONDS + ENDING_SECONDS)
        self._first_is_handled = True

    def _end_process_in(self, seconds: float) -> None:
        if not self.owns_process:
            return
        timer = threading.Timer(seconds, self._leave_at_once)
        timer.daemon = True
        timer.start()

    def _leave_at_once(self) -> None:
        """End this process at once, because the trials had time to save and the process still hangs."""
        words = "interrupted" if self._trials_ended else "interrupted before all trials could save a checkpoint"
        end_process(INTERRUPTED, f"{words}; resume with: {self.resume}")

    @contextmanager
    def running(self) -> Iterator[None]:
        """Handle signals while trials run: the first SIGINT (Ctrl-C), SIGTERM or SIGHUP stops the trials.

        The second one raises KeyboardInterrupt. A SIGTERM that arrives from two processes counts once. The scheduler
        of a cluster sends SIGTERM before it takes a machine away, and a closed terminal sends SIGHUP. A SIGHUP that
        `nohup` ignores stays ignored.

        In another thread than the main one, where Python allows no signal handlers, signals are handled as before.
        Afterwards signals are handled as before. There is one exception: if a signal ended the sweep of a command, the
        command has only its last line to print. Further signals then do not interrupt it.
        """
        self.flag.place()
        numbers = [n for n in SIGNALS if n != signal.SIGHUP or signal.getsignal(n) is not signal.SIG_IGN]
        if threading.current_thread() is not threading.main_thread():
            numbers = []
        before = {number: signal.signal(number, self._handle) for number in numbers}
        try:
            check_interrupted()
            yield
        finally:
            self._trials_ended = True
            try:
                # Trials may stop before a repeated SIGTERM arrives, which would then kill a program that goes on.
                if self._terminated and not self.owns_process:
                    time.sleep(max(0.0, (self._responsive or time.monotonic()) + REPEATED_SECONDS - time.monotonic()))
            finally:
                if not (self.owns_process and self.interrupted):
                    for number, handler in before.items():
                        signal.signal(number, handler)
                self.flag.remove(was_set=self.since is not None)


def watch(flag: StopFlag) -> Callable[[], bool]:
    """Return a function that checks the flag for a trial. It is cheap enough to be called between any two steps."""
    every = LOOK_SECONDS if flag.bucket is None else LOOK_SECONDS_BUCKET
    looked, is_set = time.monotonic() - every, False

    def stop() -> bool:
        nonlocal looked, is_set
        if not is_set and time.monotonic() - looked >= every:
            is_set, looked = flag.is_set(), time.monotonic()
        return is_set

    return stop
