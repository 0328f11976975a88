"""The table at the end of a sweep. It fits every terminal: it loses columns before it loses a name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import accumulate

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from raysweep.errors import printable
from raysweep.report.contents import Report
from raysweep.report.points import LINEAR, Point, percent
from raysweep.report.sentences import numbers_and_count
from raysweep.report.tables import cell, name_columns, names_of
from raysweep.report.verdicts import Family

IMPORTANT = (LINEAR, "linear/val_accuracy", "n", "minus random")
"""The columns that stay longest, the most important one first."""
BORDER = 3
"""Columns of a terminal between two cells of the table: a line with a space on each side."""
NAMES_SHARE = 0.5
"""Names that are wider than this part of the terminal are continued on the next line, so that a score fits."""


@dataclass(frozen=True)
class Column:
    """A column of the table with numbers."""

    name: str
    header: str
    cells: list[str]

    @property
    def width(self) -> int:
        """The widest cell, in columns of a terminal."""
        return max(cell_len(line) for text in (self.header, *self.cells) for line in text.splitlines() or [""])


def summary_table(report: Report, width: int) -> tuple[Table, list[str]]:
    """Return the table for a terminal, and the names of the columns for which it has no room.

    Columns are left out until the others fit, the least important one first. A name that is too long is continued on
    the next line, after a comma if possible.

    Args:
        report: The report, with at least one point.
        width: The columns of the terminal.
    """
    names = [[printable(name) for name in names_of(report, point)] for point in report.points]
    longest = [max(map(cell_len, column)) for column in zip(name_columns(report), *names, strict=True)]
    columns = number_columns(report)
    order = [column.name for column in columns]
    kept = sorted(order, key=lambda name: IMPORTANT.index(name) if name in IMPORTANT else len(IMPORTANT))
    by_name = {column.name: column for column in columns}
    borders = BORDER * len(longest)
    least = sum(name_widths(longest, int(width * NAMES_SHARE) + borders)) + borders + 1
    used = list(accumulate((by_name[name].width + BORDER for name in kept), initial=least))
    kept = kept[: sum(total <= width for total in used[1:])]
    room = width - 1 - sum(by_name[name].width + BORDER for name in kept)
    widths = name_widths(longest, room)

    # Names are `Text`, because rich would read brackets in plain strings as its markup and omit them.
    title = Text(f"{report.name}: mean over seeds ± half of the {percent(report.points)} interval", style="table.title")
    table = Table(title=title)
    for name, most in zip(name_columns(report), widths, strict=True):
        table.add_column(name, width=most, overflow="fold")
    shown = [by_name[name] for name in order if name in kept]
    for column in shown:
        table.add_column(column.header, justify="right", no_wrap=True)
    for number, point in enumerate(report.points):
        row: list[Text | str] = [Text(at_commas(name, most)) for name, most in zip(names[number], widths, strict=True)]
        row += [column.cells[number] for column in shown]
        table.add_row(*row, style="bold" if point.title in report.best else None)
    return table, [name for name in order if name not in kept]


def number_columns(report: Report) -> list[Column]:
    """Return the columns after the names: the number of seeds, the scores, and the difference from the control."""
    points = report.points
    columns = [Column("n", "n", [str(len(point.by_seed)) for point in points])]
    for name in report.columns:
        header = name.replace("_", " ").replace("/", "\n")
        columns.append(Column(name, header, [cell(point, name) for point in points]))
    if report.scores:
        score = report.scores[0]
        families = {point.title: group.families[score] for group in report.groups for point in group.points}
        if any("random" in family.controls for family in families.values()):
            header = f"{score.replace('_', ' ').replace('/', ' ')}\nminus random, adjusted"
            columns.append(Column("minus random", header, [from_random(point, families) for point in points]))
    return columns


def from_random(point: Point, families: dict[str, Family]) -> str:
    """Return the difference of a point from the random encoder; `–` without one."""
    family = families.get(point.experiment)
    return "–" if family is None else numbers_and_count(family.from_control(point), family.score, len(point.by_seed))


def name_widths(longest: list[int], room: int) -> list[int]:
    """Divide the room among the columns of names: each gets its width, or an equal part of the room if it is wider.

    Args:
        longest: The width of the longest name in each column.
        room: The columns of the terminal for the names and their borders.
    """
    room -= BORDER * len(longest)
    widths: dict[int, int] = {}
    for place in sorted(range(len(longest)), key=lambda place: longest[place]):
        left = len(longest) - len(widths)
        widths[place] = max(1, min(longest[place], (room - sum(widths.values())) // left))
    return [widths[place] for place in range(len(longest))]


def at_commas(name: str, width: int) -> str:
    """Return the name with line breaks after commas, so that lines have at most `width` columns where possible."""
    lines = [""]
    for part in re.split(r"(?<=,)", name):
        if lines[-1] and cell_len(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)
