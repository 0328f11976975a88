"""The signals that end a command before and after its trials run."""

from __future__ import annotations

import signal
import time
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
REPEATED_SECONDS = 1.0
"""Seconds within which a second signal counts as a repetition of the first.

A user may press Ctrl-C several times. Slurm sends SIGTERM to a batch script, which passes it on to its children, and
Slurm sends it to these children too. A second KeyboardInterrupt would interrupt the code that handles the first one
and prints the last line.
"""

is_ending = False
"""Whether the process ends, so that signals are ignored. An assignment takes effect at once, unlike a call."""
_received: float | None = None
"""The monotonic time of the signal that interrupted the command; None before."""


def interrupt(number: int, frame: FrameType | None) -> None:
    """Signal handler: end like Ctrl-C does, and remember that a signal has arrived. Repetitions are ignored."""
    global _received
    if is_ending or (_received is not None and time.monotonic() - _received < REPEATED_SECONDS):
        return
    _received = time.monotonic()
    raise KeyboardInterrupt


def handle_interrupts() -> None:
    """Let SIGINT, SIGTERM and SIGHUP interrupt this process. Signals that are ignored, as by `nohup`, stay ignored."""
    global _received
    _received = None
    for number in SIGNALS:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, interrupt)


def ignore_interrupts() -> None:
    """Ignore SIGINT, SIGTERM and SIGHUP from now on, because the process ends."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def check_interrupted() -> None:
    """Raise KeyboardInterrupt if a signal has arrived.

    C code may swallow the exception that a signal handler raises, for example while it imports a library. Without this
    check the command would then go on as if there had been no signal.
    """
    if _received is not None:
        raise KeyboardInterrupt
