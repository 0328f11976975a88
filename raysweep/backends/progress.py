"""The interface through which a sweep shows its progress: a live display, plain lines, or nothing.

The caller of a sweep passes a `Progress`. Its methods are called when something happens in the sweep, and the methods
of a `TrialProgress` when something happens to a trial.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Protocol

from raysweep.results.result import Result
from raysweep.space import Sweep, Trial
from raysweep.trial_progress import Status


class TrialProgress(Protocol):
    """Shows the progress of the trials of a sweep. Each method is called when its event has happened."""

    def begin(self, trial: Trial) -> None:
        """A worker has started the trial."""

    def progress(self, trial: Trial, status: Status) -> None:
        """The trial has reported its state."""

    def retry(self, trial: Trial, attempt: int, reason: str) -> None:
        """An attempt of the trial broke off, and the trial resumes."""

    def leave(self, trial: Trial) -> None:
        """The trial has left its worker, to be resumed another time."""

    def end(self, result: Result) -> None:
        """The trial has ended."""

    def extend(self, sweep: Sweep) -> None:
        """The sweep has more trials than before, because a race of seeds has a new round."""

    def note(self, text: str) -> None:
        """Show one line that stays."""


class Progress(Protocol):
    """Shows the progress of a sweep to the user."""

    def waiting(self, text: str) -> AbstractContextManager[object]:
        """Show `text` inside the context, in which something takes a while."""

    def tell(self, text: str) -> None:
        """Show one line to the user, such as the plan of the sweep."""

    def warn(self, text: str) -> None:
        """Show one line that warns the user."""

    def trials(self, sweep: Sweep, kept: list[Result]) -> AbstractContextManager[TrialProgress]:
        """Return a context in which the trials of the sweep run. Trials with a result in `kept` count as done."""


class SilentTrials:
    """A `TrialProgress` that shows nothing."""

    def __enter__(self) -> SilentTrials:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Do nothing."""

    def begin(self, trial: Trial) -> None:
        """Show nothing."""

    def progress(self, trial: Trial, status: Status) -> None:
        """Show nothing."""

    def retry(self, trial: Trial, attempt: int, reason: str) -> None:
        """Show nothing."""

    def leave(self, trial: Trial) -> None:
        """Show nothing."""

    def end(self, result: Result) -> None:
        """Show nothing."""

    def extend(self, sweep: Sweep) -> None:
        """Show nothing."""

    def note(self, text: str) -> None:
        """Show nothing."""


class Silence:
    """A `Progress` that shows nothing."""

    def waiting(self, text: str) -> AbstractContextManager[object]:
        """Show nothing."""
        return nullcontext()

    def tell(self, text: str) -> None:
        """Show nothing."""

    def warn(self, text: str) -> None:
        """Show nothing."""

    def trials(self, sweep: Sweep, kept: list[Result]) -> SilentTrials:
        """Show nothing."""
        return SilentTrials()


def retry_words(trial: Trial, attempt: int, reason: str) -> str:
    """Return the message that an attempt of a trial has broken off, and that the trial runs again.

    Args:
        trial: The trial.
        attempt: The number of the attempt; 0 if the trial's process died before its first attempt began.
        reason: Why it broke off.
    """
    if not attempt:
        return f"{trial.name}: the trial did not begin; starting it again ({reason})"
    return f"{trial.name}: attempt {attempt} broke off; resuming from its last checkpoint ({reason})"
