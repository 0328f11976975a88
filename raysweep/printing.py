"""What the commands print: the end of a sweep, its report, warnings and faults."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from raysweep.errors import masked, printable
from raysweep.results.store import Store, shown_place
from raysweep.system.files import is_occupied
from raysweep.system.places import shown_path
from raysweep.system.terminal import duration, output_is_lost, quoted, redraws, resume_command

if TYPE_CHECKING:
    from rich.console import Console

    from raysweep import api
    from raysweep.report.contents import Report

FINISHED, SOME_FAILED = 0, 1


def tell(console: Console, text: str) -> None:
    """Print one line on standard output, without wrapping. Control characters become escape sequences."""
    console.print(printable(text), highlight=False, markup=False, emoji=False, soft_wrap=True)


def tell_words(console: Console, text: str) -> None:
    """Print a sentence. On a terminal, lines break at spaces; elsewhere the sentence is one line."""
    console.print(printable(text), highlight=False, markup=False, emoji=False, soft_wrap=not redraws(console))


def resume_of(store: Store) -> str:
    """Return the command that resumes a sweep, without options."""
    return resume_command(shown_place(store))


def show_outcome(
    outcome: api.Outcome, console: Console, started: float | None = None, resume_of: Callable[[Store], str] = resume_of
) -> int:
    """Print the report of a sweep and return the exit status.

    Args:
        outcome: The sweep, its directory and its report.
        console: Where to print.
        started: The monotonic time at which the sweep began; None for one that ended before.
        resume_of: Returns the command that resumes the sweep.
    """
    store = outcome.store
    show_report(outcome.report, store.root, console, started)
    tell(console, f"TensorBoard tensorboard --logdir {quoted(shown_place(store).partition('?')[0])}")
    if output_is_lost():
        say(f"standard output was closed before the end; the report is in {shown_path(store.root / 'summary.md')}")
    return tell_state(outcome.report, store.root, resume_of)


def show_report(report: Report, directory: Path, console: Console, started: float | None = None) -> None:
    """Print the conclusions, the table, the number of trials, and the paths of the report's files."""
    from raysweep.report.final_table import summary_table
    from raysweep.report.page import PAGE
    from raysweep.report.summary import notes

    for line in [*report.in_words(scores=1), *(f"Note: {line}" for line in notes(report))]:
        tell_words(console, line)
    if report.points and not report.single:
        table, left_out = summary_table(report, console.width)
        console.print(table)
        if left_out:
            tell_words(console, f"… in summary.md: {', '.join(left_out)}")
    elapsed = "" if started is None else f" in {duration(time.monotonic() - started)}"
    tell(console, f"trials      {report.counts()}{elapsed}; the trials took {duration(report.seconds())} in all")
    for figure in sorted((directory / "figures").glob("*.png")):
        tell(console, f"figure      {shown_path(figure)}")
    tell(console, f"summary     {shown_path(directory / 'summary.md')}")
    if is_occupied(directory / PAGE):
        tell(console, f"page        {shown_path(directory / PAGE)}")


def open_page(directory: Path) -> None:
    """Open the report's page in the browser. Without a browser, print the page's path on standard error."""
    import webbrowser

    from raysweep.report.page import PAGE

    page = directory / PAGE
    if is_occupied(page) and not webbrowser.open(page.absolute().as_uri()):
        say(f"there is no browser on this machine; the page is {shown_path(page)}")


def tell_state(report: Report, directory: Path, resume_of: Callable[[Store], str] = resume_of) -> int:
    """Print which figures are missing, and which trials and races have not finished. Return the exit status."""
    for line in report.not_drawn:
        say(f"warning: {line}")
    status = FINISHED
    for member in report.members:
        for result in member.results:
            if result.status == "failed":
                say(f"failed: {result.trial}: {result.error}")
                status = SOME_FAILED
        unfinished = member.sweep.total - len(member.results)
        if unfinished or member.sweep.races:
            what = f"{unfinished} of {member.sweep.total} trials have" if unfinished else "the race of seeds has"
            say(f"{what} not finished; resume with: {resume_of(member.store)}")
            status = SOME_FAILED
    remarks = {warning for member in report.members for result in member.results for warning in result.warnings}
    if remarks:
        say(f"{len(remarks)} warning(s), listed in {shown_path(directory / 'summary.md')}")
    return status


def show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print the text of a warning, without its place in the code."""
    say(f"warning: {' '.join(str(message).split())}")


def say(text: str) -> None:
    """Print one line on standard error, without secrets. Control characters become escape sequences."""
    print(printable(masked(text)), file=sys.stderr)
