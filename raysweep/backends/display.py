"""The progress of a sweep on a console: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from raysweep.backends.live_table import LiveTable
from raysweep.backends.progress import retry_words
from raysweep.backends.tally import Tally, fit_to_width, rough
from raysweep.errors import printable
from raysweep.results.result import Result
from raysweep.space import Sweep, Trial
from raysweep.system.terminal import duration, redraws
from raysweep.trial_progress import Status

SILENCE = 60.0  # seconds without output after which plain output reports the progress
ESTIMATE = 60.0  # plain output does not announce an estimated time below this many seconds
BAR, NAME = 20, 20  # widths in the line of the whole sweep
WIDE = 100  # a narrower terminal has half the bar
LEAST_NAME = 20  # the name of an ended trial is not shortened below this width


class ConsoleProgress:
    """A `Progress` on a console: a live display on a terminal, plain lines elsewhere.

    Args:
        console: The console to write to.
        warn: A function that shows a warning line to the user.
    """

    def __init__(self, console: Console, warn: Callable[[str], None]) -> None:
        self.console, self.warn = console, warn

    def waiting(self, text: str) -> AbstractContextManager[object]:
        """Show on a terminal what the sweep is waiting for."""
        return self.console.status(text) if redraws(self.console) else nullcontext()

    def tell(self, text: str) -> None:
        """Print one line, however long; control characters become escape sequences."""
        self.console.print(printable(text), highlight=False, markup=False, emoji=False, soft_wrap=True)

    def trials(self, sweep: Sweep, kept: list[Result]) -> ProgressDisplay:
        """Show the progress of all trials together."""
        return ProgressDisplay(sweep, kept, self.console)


class ProgressDisplay:
    """The progress of all trials of a sweep, on a console; see `TrialProgress`.

    Args:
        sweep: The sweep.
        kept: Results of earlier runs, which count as done.
        console: The console to write to.
    """

    def __init__(self, sweep: Sweep, kept: list[Result], console: Console) -> None:
        self.tally, self.console, self.redraws = Tally(sweep, kept), console, redraws(console)
        self.last_output = self.started = time.monotonic()
        self.table = LiveTable()
        self.has_estimate = False
        """Whether plain output has shown an estimate of the time left."""
        self.closing = threading.Event()
        self.live = Live(get_renderable=self._render, console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> ProgressDisplay:
        if self.redraws:
            self.live.start()
        else:
            threading.Thread(target=self._report_silence, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        if self.redraws:
            self.live.stop()

    def begin(self, trial: Trial) -> None:
        """A worker has started the trial."""
        self.tally.begin(trial)
        self.table.begin(trial.name, self.tally.running[trial.name])

    def progress(self, trial: Trial, status: Status) -> None:
        """The trial has reported its state."""
        self.tally.progress(trial, status)
        self.table.update(trial.name, status)
        if not self.redraws and not self.has_estimate:
            seconds = self.tally.seconds_left()
            self.has_estimate = seconds is not None
            if seconds is not None and seconds >= ESTIMATE:
                self.note(f"about {rough(seconds)} left (an estimate from the first epochs)")

    def retry(self, trial: Trial, attempt: int, reason: str) -> None:
        """The trial's worker died, and the trial resumes elsewhere."""
        self.leave(trial)
        self.note(retry_words(trial, attempt, reason))

    def leave(self, trial: Trial) -> None:
        """The trial has left its worker, to be resumed another time."""
        self.tally.leave(trial)
        self.table.leave(trial.name)

    def end(self, result: Result) -> None:
        """The trial has ended."""
        self.tally.end(result)
        self.table.leave(result.trial)
        start, end = f"[{len(self.tally.fractions)}/{self.tally.total}] ", f"  {self.tally.outcome(result)}"
        if self.redraws:  # the rest is in the live display
            room = max(LEAST_NAME, self.console.width - len(start + end))
            self.note(start + fit_to_width(result.trial, room) + end)
        else:
            self.has_estimate = True
            self.note(f"{start}{result.trial}{end}  ({self.tally.state()})")

    def extend(self, sweep: Sweep) -> None:
        """The sweep has more trials than before."""
        self.tally.extend(sweep)

    def note(self, text: str) -> None:
        """Show one line that stays."""
        self.last_output = time.monotonic()
        self.console.print(printable(text), highlight=False, markup=False, emoji=False, soft_wrap=True)

    def _report_silence(self) -> None:
        """Write the state of the sweep in one line whenever there was no output for `SILENCE` seconds."""
        while not self.closing.wait(max(0.1, self.last_output + SILENCE - time.monotonic())):
            if time.monotonic() - self.last_output >= SILENCE:
                self.note(self.tally.words())

    def _render(self) -> Group:
        tally, width = self.tally, self.console.width
        rows: list[RenderableType] = [self.table.render(width)] if tally.running else []
        bar = BAR if width >= WIDE else BAR // 2
        name = fit_to_width(tally.sweep.name, NAME)
        line = Table.grid(padding=(0, 1))
        line.add_row(
            Text(name, style="bold", no_wrap=True),
            ProgressBar(total=tally.rest() + tally.whole, completed=tally.done + tally.under_way(), width=bar),
            Text(self._counts(width - len(name) - bar - 2), no_wrap=True, overflow="ellipsis"),
        )
        rows.append(line)
        best = tally.best()
        if best is not None:
            point, score = f"best so far: {best[0]}", best[1]
            is_short = len(point) + 2 + len(score) <= width
            lines = [f"{point}  {score}"] if is_short else [fit_to_width(point, width), f"  {score}"]
            rows += [Text(text, no_wrap=True, overflow="ellipsis") for text in lines]
        return Group(*rows)

    def _counts(self, width: int) -> str:
        """Return the state of the sweep in words, as far as they fit. The most important ones come first."""
        tally, seconds = self.tally, self.tally.seconds_left()
        waiting = tally.total - len(tally.fractions) - len(tally.running)
        parts = [
            f"about {rough(seconds)} left" if seconds else "",
            f"{tally.failed} failed" if tally.failed else "",
            f"{tally.stopped} stopped early" if tally.stopped else "",
            f"{duration(time.monotonic() - self.started)} elapsed",
            f"{len(tally.running)} running, {waiting} waiting",
        ]
        text = f"{len(tally.fractions)}/{tally.total} trials"
        for part in filter(None, parts):
            if len(text) + 2 + len(part) > width:
                break
            text += f", {part}"
        return text
