"""The rows of the live display: one row for each running trial, in columns that fit the width of the terminal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import Group
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from raysweep.backends.tally import fit_to_width
from raysweep.errors import printable
from raysweep.trial_progress import Status

SHOWN = 8
"""Most running trials with a row of their own. More would push the display off a small terminal."""
SHORTEST_NAME = 20
"""The width that the name of a trial keeps before columns are dropped."""
MORE_BAR = 20
"""The bar may be wider by this much on a wide terminal."""
SPEED_SECONDS = 24 * 3600.0
"""The time over which rich measures the speed of a trial. Its default of 30 s is shorter than a long epoch."""


@dataclass(frozen=True)
class LiveColumn:
    """A column of the live display."""

    title: str
    column: ProgressColumn
    width: int
    importance: int
    """The column with the least importance is dropped first."""


COLUMNS = (
    LiveColumn("", BarColumn(bar_width=None), 10, 7),
    LiveColumn("phase", TextColumn("{task.fields[phase]}", markup=False), 12, 6),
    LiveColumn("epoch", TextColumn("{task.fields[epoch]}", markup=False, justify="right"), 9, 5),
    LiveColumn("loss", TextColumn("{task.fields[loss]}", markup=False, justify="right"), 7, 3),
    LiveColumn("kNN", TextColumn("{task.fields[online]}", markup=False, justify="right"), 6, 2),
    LiveColumn("elapsed", TimeElapsedColumn(), 7, 1),
    LiveColumn("left", TimeRemainingColumn(), 7, 4),
)
"""The columns after the trial's name, from left to right."""


class LiveTable:
    """The running trials of a sweep, each as a task of `rich.progress`, whose columns draw the rows."""

    def __init__(self) -> None:
        self.progress = Progress(auto_refresh=False, speed_estimate_period=SPEED_SECONDS)
        self.tasks: dict[str, TaskID] = {}

    def begin(self, name: str, status: Status) -> None:
        """Add a row for a trial."""
        self.leave(name)
        self.tasks[name] = self.progress.add_task(name, total=1.0, **cells(status))
        self.progress.update(self.tasks[name], completed=status.fraction)

    def update(self, name: str, status: Status) -> None:
        """Show the new state of a trial."""
        if name in self.tasks:
            self.progress.update(self.tasks[name], completed=status.fraction, **cells(status))

    def leave(self, name: str) -> None:
        """Remove the row of a trial, if there is one."""
        if name in self.tasks:
            self.progress.remove_task(self.tasks.pop(name))

    def render(self, width: int) -> Group:
        """Return the rows as a table of at most `width` characters, and the number of trials that have no row."""
        tasks = self.progress.tasks
        shown = tasks[:SHOWN]
        longest = max((len(task.description) for task in shown), default=0)
        columns = fitting(width, min(longest, SHORTEST_NAME))
        used = sum(column.width + 1 for column in columns)
        name_width = max(1, min(longest, width - used))
        bar_width = COLUMNS[0].width + max(0, min(MORE_BAR, width - used - name_width))
        table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
        table.add_column("trial", width=name_width, no_wrap=True)
        for column in columns:
            right = column.title in ("epoch", "loss", "kNN", "elapsed", "left")
            column_width = bar_width if column is COLUMNS[0] else column.width
            table.add_column(column.title, width=column_width, no_wrap=True, justify="right" if right else "left")
        for task in shown:
            table.add_row(Text(fit_to_width(task.description, name_width)), *(each.column(task) for each in columns))
        hidden = len(tasks) - SHOWN
        return Group(table, *([Text(f"and {hidden} more", style="dim")] if hidden > 0 else []))


def cells(status: Status) -> dict[str, Any]:
    """Return the texts of a row by column."""
    return {
        "phase": fit_to_width(printable(status.phase), 12),
        "epoch": f"{status.epoch}/{status.epochs}" if status.epochs else "",
        "loss": "" if status.loss is None else f"{status.loss:.4g}",
        "online": "" if status.online is None else f"{status.online:.4f}",
    }


def fitting(width: int, name_width: int) -> list[LiveColumn]:
    """Return the columns that fit beside a name of this width; the least important ones are dropped first."""
    columns = list(COLUMNS)
    while columns and name_width + sum(column.width + 1 for column in columns) > width:
        columns.remove(min(columns, key=lambda column: column.importance))
    return columns
