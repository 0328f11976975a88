"""The progress of a sweep on a console: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from raysweep.backends.tally import Tally
from raysweep.errors import printable
from raysweep.results.result import Result
from raysweep.space import Sweep, Trial
from raysweep.system.terminal import redraws

SILENCE = 60.0  # seconds without output after which plain output reports the progress
SHOWN = 8  # running trials listed by name; more would push the view off a small terminal


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
        self.last_output = time.monotonic()
        self.live = Live(get_renderable=self._render, console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> ProgressDisplay:
        if self.redraws:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.redraws:
            self.live.stop()

    def begin(self, trial: Trial) -> None:
        """A worker has started the trial."""
        self.tally.begin(trial)

    def progress(self, trial: Trial, share: float) -> None:
        """The fraction `share` of the trial is done, in [0, 1]."""
        self.tally.running[trial.name] = share
        if not self.redraws and time.monotonic() - self.last_output >= SILENCE:
            self.note(self.tally.words())

    def retry(self, trial: Trial, attempt: int, reason: str) -> None:
        """The trial's worker died, and the trial resumes elsewhere."""
        self.tally.leave(trial)
        self.note(f"{trial.name}: attempt {attempt} broke off; resuming from its last checkpoint ({reason})")

    def leave(self, trial: Trial) -> None:
        """The trial has left its worker, to be resumed another time."""
        self.tally.leave(trial)

    def end(self, result: Result) -> None:
        """The trial has ended."""
        self.tally.end(result)
        outcome = self.tally.outcome(result)
        if self.redraws:
            if result.status == "failed":
                self.note(f"{result.trial} {outcome}")
        else:
            best = self.tally.best()
            more = self.tally.left() + (f"; best so far: {best}" if best else "")
            self.note(f"[{len(self.tally.shares)}/{self.tally.total}] {result.trial}  {outcome}  ({more})")

    def note(self, text: str) -> None:
        """Show one line that stays."""
        self.last_output = time.monotonic()
        self.console.print(printable(text), highlight=False, markup=False, emoji=False, soft_wrap=True)

    def _render(self) -> Group:
        tally = self.tally
        head = Table.grid(padding=(0, 1))
        ended = ((tally.stopped, "stopped early"), (tally.failed, "failed"))
        which = "".join(f", {count} {words}" for count, words in ended if count)
        head.add_row(
            Text(tally.sweep.name, style="bold"),
            ProgressBar(total=tally.rest() + tally.whole, completed=tally.done + tally.under_way(), width=30),
            Text(f"{len(tally.shares)}/{tally.total} done{which}, {tally.left()}"),
        )
        rows = Table.grid(padding=(0, 1))
        for name, part in list(tally.running.items())[:SHOWN]:
            rows.add_row(" ", ProgressBar(total=1.0, completed=part, width=10), Text(name, no_wrap=True))
        if len(tally.running) > SHOWN:
            rows.add_row(" ", "", Text(f"and {len(tally.running) - SHOWN} more"))
        best = tally.best()
        return Group(head, rows, *([Text(f"best so far: {best}")] if best else []))
