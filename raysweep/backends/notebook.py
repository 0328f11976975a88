"""The progress of a sweep in a notebook: one display that is updated in place."""

from __future__ import annotations

import html
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Any

from raysweep.backends.progress import retry_words
from raysweep.backends.tally import Tally
from raysweep.errors import printable
from raysweep.results.result import Result
from raysweep.space import Sweep, Trial
from raysweep.trial_progress import Status

EVERY_SECONDS = 0.5
"""Least number of seconds between two updates, because each is a message to the browser."""
SHOWN = 8
"""Running trials that are listed by name."""
KEPT_LINES = 20
"""The newest remarks, up to this many, stay visible."""


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook (Jupyter, VS Code, Colab)."""
    module = sys.modules.get("IPython")
    shell = module.get_ipython() if module is not None and hasattr(module, "get_ipython") else None
    return shell is not None and hasattr(shell, "kernel")


class NotebookProgress:
    """A `Progress` in a notebook. Everything except warnings appears in one display."""

    def __init__(self) -> None:
        self.plan: list[str] = []
        self._handle: Any = None

    @contextmanager
    def _waiting(self, text: str) -> Iterator[None]:
        self.show([text])
        yield

    def waiting(self, text: str) -> AbstractContextManager[object]:
        """Show what the sweep is waiting for."""
        return self._waiting(text)

    def tell(self, text: str) -> None:
        """Show one line above the trials."""
        self.plan.append(text)
        self.show([])

    def warn(self, text: str) -> None:
        """Warn as Python does, below the display."""
        warnings.warn(text.removeprefix("warning: "), stacklevel=2)

    def trials(self, sweep: Sweep, kept: list[Result]) -> NotebookTrials:
        """Show the progress of all trials together."""
        return NotebookTrials(sweep, kept, self.show)

    def show(self, lines: list[str]) -> None:
        """Show the plan and these lines, in place of what was shown before."""
        from IPython.display import HTML, display

        text = "\n".join(html.escape(printable(line)) for line in [*self.plan, *lines])
        content = HTML(f"<pre>{text}</pre>")  # type: ignore[no-untyped-call]
        if self._handle is None:
            self._handle = display(content, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._handle.update(content)


class NotebookTrials:
    """The progress of all trials of a sweep in a notebook; see `TrialProgress`.

    Args:
        sweep: The sweep.
        kept: Results of earlier runs, which count as done.
        show: A function that shows lines in place of the previous lines.
    """

    def __init__(self, sweep: Sweep, kept: list[Result], show: Callable[[list[str]], None]) -> None:
        self.tally, self.show = Tally(sweep, kept), show
        self.notes: deque[str] = deque(maxlen=KEPT_LINES)
        self.shown = 0.0

    def __enter__(self) -> NotebookTrials:
        self._update(at_once=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._update(at_once=True)

    def begin(self, trial: Trial) -> None:
        """A worker has started the trial."""
        self.tally.begin(trial)
        self._update()

    def progress(self, trial: Trial, status: Status) -> None:
        """The trial has reported its state."""
        self.tally.progress(trial, status)
        self._update()

    def retry(self, trial: Trial, attempt: int, reason: str) -> None:
        """The trial's worker died, and the trial resumes elsewhere."""
        self.tally.leave(trial)
        self.note(retry_words(trial, attempt, reason))

    def leave(self, trial: Trial) -> None:
        """The trial has left its worker, to be resumed another time."""
        self.tally.leave(trial)
        self._update()

    def end(self, result: Result) -> None:
        """The trial has ended."""
        self.tally.end(result)
        if result.status != "finished":
            self.notes.append(f"{result.trial}  {self.tally.outcome(result)}")
        self._update()

    def extend(self, sweep: Sweep) -> None:
        """The sweep has more trials than before."""
        self.tally.extend(sweep)

    def note(self, text: str) -> None:
        """Show one line that stays."""
        self.notes.append(text)
        self._update(at_once=True)

    def _update(self, at_once: bool = False) -> None:
        if not at_once and time.monotonic() - self.shown < EVERY_SECONDS:
            return
        self.shown = time.monotonic()
        running = list(self.tally.running.items())
        lines = [self.tally.words(), *(row(name, status) for name, status in running[:SHOWN])]
        if len(running) > SHOWN:
            lines.append(f"  and {len(running) - SHOWN} more")
        self.show([*lines, *self.notes])


def row(name: str, status: Status) -> str:
    """Return the line of a running trial."""
    epoch = f" {status.epoch}/{status.epochs}" if status.epochs else ""
    loss = "" if status.loss is None else f", loss {status.loss:.4g}"
    online = "" if status.online is None else f", kNN {status.online:.4f}"
    return f"  {status.fraction:4.0%}  {name}  {status.phase}{epoch}{loss}{online}"
