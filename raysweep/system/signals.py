"""The signals that end a command before its trials run."""

from __future__ import annotations

import signal
from types import FrameType

_received = False


def interrupt(number: int, frame: FrameType | None) -> None:
    """Signal handler: end like Ctrl-C does, and remember that a signal has arrived."""
    global _received
    _received = True
    raise KeyboardInterrupt


def handle_interrupts() -> None:
    """Let SIGINT, SIGTERM and SIGHUP interrupt this process. Signals that are ignored, as by `nohup`, stay ignored."""
    global _received
    _received = False
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, interrupt)


def check_interrupted() -> None:
    """Raise KeyboardInterrupt if a signal has arrived.

    C code may swallow the exception that a signal handler raises, for example while it imports a library. Without this
    check the command would then go on as if there had been no signal.
    """
    if _received:
        raise KeyboardInterrupt
