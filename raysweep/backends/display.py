"""The progress of a sweep on a console: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from statistics import fmean
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

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
        self.sweep, self.console, self.redraws = sweep, console, redraws(console)
        self.metric = sweep.metric  # stored, because the property looks at all trials
        self.weights = {trial.name: weight(trial) for trial in sweep.trials}
        self.usual = fmean(weight(trial) for trial in sweep.examples)  # weight of a trial that is not proposed yet
        self.shares: dict[str, float] = {result.trial: 1.0 for result in kept}
        # Stored, because adding it up at the end of every trial took 5 ms each time for 10,000 trials.
        self.whole = sum(self.weights.values())
        self.kept = self.done = sum(self.weights[name] for name in self.shares)
        self.running: dict[str, float] = {}
        self.failed = self.stopped = 0
        self.planned = Counter(trial.point for trial in sweep.trials)
        self.values: dict[str, list[float]] = defaultdict(list)
        self.means: dict[str, float] = {}  # stored, because `best` needs them at the end of every trial
        self.protocols: set[str] = set()
        for result in kept:
            self._count(result)
        self.started = self.said = time.monotonic()
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
        if trial.name not in self.weights:
            self.weights[trial.name] = weight(trial)
            self.whole += self.weights[trial.name]
            self.planned[trial.point] = len(self.sweep.seeds)  # a searcher proposes a point with every seed
        self.running[trial.name] = self.shares.get(trial.name, 0.0)

    def progress(self, trial: Trial, share: float) -> None:
        """The fraction `share` of the trial is done, in [0, 1]."""
        self.running[trial.name] = share
        if not self.redraws and time.monotonic() - self.said >= SILENCE:
            self.note(f"[{len(self.shares)}/{self.total}] {self._left()}{self._best()}")

    def retry(self, trial: Trial, attempt: int, reason: str) -> None:
        """The trial's worker died, and the trial resumes elsewhere."""
        self.running.pop(trial.name, None)
        self.note(f"{trial.name}: attempt {attempt} broke off; resuming from its last checkpoint ({reason})")

    def leave(self, trial: Trial) -> None:
        """The trial has left its worker, to be resumed another time."""
        self.running.pop(trial.name, None)

    def end(self, result: Result) -> None:
        """The trial has ended."""
        share = self.running.pop(result.trial, 1.0)
        if result.status == "stopped":  # the rest of the trial does not count as work done
            self.whole -= self.weights[result.trial] * (1 - share)
            self.weights[result.trial] *= share
        self.done += self.weights[result.trial]
        self.shares[result.trial] = 1.0
        self._count(result)
        metric = self.metric
        score = f"  {metric} {result.metrics[metric]:.4f}" if metric in result.metrics else ""
        outcome = f"{result.wall_s:.1f} s{score}"
        if result.status != "finished":
            outcome = f"FAILED: {result.error}" if result.status == "failed" else str(result.error)
        if self.redraws:
            if result.status == "failed":
                self.note(f"{result.trial} {outcome}")
        else:
            counts = f"[{len(self.shares)}/{self.total}]"
            self.note(f"{counts} {result.trial}  {outcome}  ({self._left()}{self._best()})")

    def note(self, text: str) -> None:
        """Show one line that stays."""
        self.said = time.monotonic()
        self.console.print(printable(text), highlight=False, markup=False, emoji=False, soft_wrap=True)

    def _count(self, result: Result) -> None:
        self.failed += result.status == "failed"
        self.stopped += result.status == "stopped"
        metric = self.metric
        if metric in result.metrics and not result.baseline and result.status == "finished":
            self.values[result.point].append(result.metrics[metric])
            if len(self.values[result.point]) == self.planned[result.point]:
                self.means[result.point] = fmean(self.values[result.point])
            self.protocols.add(result.fingerprint)

    def best(self) -> str | None:
        """Return the best point so far, of those whose planned seeds have all finished; None if protocols differ."""
        if not self.means or len(self.protocols) > 1:
            return None
        choose = max if self.sweep.mode == "max" else min
        point = choose(self.means, key=self.means.__getitem__)
        count = len(self.values[point])
        return f"{point}  {self.metric} {self.means[point]:.4f} ({count} seed{'s' if count > 1 else ''})"

    def _best(self) -> str:
        best = self.best()
        return f"; best so far: {best}" if best else ""

    @property
    def total(self) -> int:
        """The number of trials at the end, as far as it is known."""
        return max(self.sweep.total, len(self.weights))

    def _rest(self) -> float:
        """Return the total weight of the trials that are not proposed yet."""
        return self.usual * (self.total - len(self.weights))

    def _under_way(self) -> float:
        """Return the weight of the finished parts of the running trials."""
        return sum(self.weights[name] * share for name, share in self.running.items())

    def _left(self) -> str:
        waiting = self.total - len(self.shares) - len(self.running)
        return f"{len(self.running)} running, {waiting} waiting, ETA {self._eta()}"

    def _eta(self) -> str:
        """Return the time left, if the rest runs as fast as this run did so far, weighing trials by their epochs."""
        done = self.done - self.kept + self._under_way()
        total = self._rest() + self.whole - self.kept
        if done < 0.02 * total:  # until now the time was mostly spent on starting up
            return "unknown"
        seconds = round((time.monotonic() - self.started) * (total - done) / done)
        if seconds < 60:
            return f"{seconds} s"
        if seconds < 3600:
            return f"{seconds // 60} min {seconds % 60:02} s"
        return f"{seconds // 3600} h {seconds % 3600 // 60:02} min"

    def _render(self) -> Group:
        head = Table.grid(padding=(0, 1))
        ended = ((self.stopped, "stopped early"), (self.failed, "failed"))
        which = "".join(f", {count} {words}" for count, words in ended if count)
        head.add_row(
            Text(self.sweep.name, style="bold"),
            ProgressBar(total=self._rest() + self.whole, completed=self.done + self._under_way(), width=30),
            Text(f"{len(self.shares)}/{self.total} done{which}, {self._left()}"),
        )
        rows = Table.grid(padding=(0, 1))
        for name, part in list(self.running.items())[:SHOWN]:
            rows.add_row(" ", ProgressBar(total=1.0, completed=part, width=10), Text(name, no_wrap=True))
        if len(self.running) > SHOWN:
            rows.add_row(" ", "", Text(f"and {len(self.running) - SHOWN} more"))
        best = self.best()
        return Group(head, rows, *([Text(f"best so far: {best}")] if best else []))


def weight(trial: Trial) -> float:
    """Return a trial's cost: its pretraining epochs, plus one for the evaluation."""
    return trial.settings.pretrain_epochs + 1.0
