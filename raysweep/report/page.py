"""The page `report.html`: the report of a sweep in one file, which needs no network.

Everything that a user gave is escaped. As a second line of defence, the page's own Content-Security-Policy allows only
its own scripts, by their hashes, and no access to the network.
"""

from __future__ import annotations

import json
import re
import warnings
from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysweep.config import METRICS, SETTINGS, about, default_of
from raysweep.errors import masked, printable
from raysweep.report.contents import Report
from raysweep.report.method_words import method
from raysweep.report.page_curves import bokeh_script, point_title, read_curves, script_data
from raysweep.report.page_pictures import figures_in, pictures_of
from raysweep.report.sentences import NAMES, numbers_and_count, verdict
from raysweep.report.summary import averages, controls_of, how_to_read, marked_names, notes, warnings_of
from raysweep.report.tables import cell, encoded, name_columns, trial_rows
from raysweep.results.result import Result
from raysweep.results.sweep_file import history
from raysweep.space import Sweep, Trial
from raysweep.system.files import write_atomically
from raysweep.system.terminal import duration

if TYPE_CHECKING:
    from jinja2 import Environment

PAGE = "report.html"
MOST_TRIALS = 2000
"""Most trials in the table and in the curves. Browsers become slow with more rows."""
MOST_SHOWN = 12
"""Most values of a varied setting that are listed."""


@dataclass(frozen=True)
class Table:
    """A table of the page."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    bold: Sequence[int] = ()
    """The numbers of the rows in bold type."""
    verdicts: Sequence[int] = ()
    """The numbers of the columns with verdicts, which the page's filter does not search."""


@dataclass(frozen=True)
class Origin:
    """The settings of one sweep, and what made it."""

    label: str
    varied: Table
    common: Table
    records: Sequence[Sequence[tuple[str, str]]]
    """For each start or change of the sweep: names and values, such as the command."""


def write_page(report: Report, directory: Path) -> None:
    """Write `report.html` into `directory`, whose figures are embedded.

    Raises:
        OSError: The page cannot be written, or a figure cannot be read.
    """
    write_atomically(directory / PAGE, encoded(page(report, directory)))


def page(report: Report, directory: Path) -> str:
    """Return the page as HTML."""
    rows = [
        (member.label, trial, row)
        for member in report.members
        for trial, row in zip(
            member.sweep.trials, trial_rows(member.store, member.sweep, member.results)[1], strict=True
        )
    ]
    stores = {member.label: member.store for member in report.members}
    trials = [(label, trial) for label, trial, _ in rows[:MOST_TRIALS]]
    curves, without_curves = read_curves([stores[label].trial(trial.name) for label, trial in trials])
    pictures, without_pictures = pictures_of(report)
    left_out = [*without_curves, *without_pictures]
    for line in left_out:
        warnings.warn(line, stacklevel=2)
    points = points_table(report)
    script = resource("page.js")
    bokeh = bokeh_script() if curves else ""
    results = [
        (f"{member.label}/" if report.several else "", result) for member in report.members for result in member.results
    ]
    return str(
        environment()
        .from_string(resource("page.html"))
        .render(
            report=report,
            sections=report.sections(),
            notes=notes(report),
            reading=how_to_read(report),
            method=method(report) if report.groups and not report.single else "",
            averages=averages(report),
            time=duration(report.seconds()),
            points=points,
            bold=bold_words(report, len(points.bold)),
            trials=trials_table(report, rows[:MOST_TRIALS]),
            left_out=max(0, len(rows) - MOST_TRIALS),
            figures=figures_in(directory, report),
            metrics={name: METRICS.get(name, "") for name in ordered(curves)},
            titles=[printable(point.exact_title) for point in report.points],
            trial_points=[point_title(label, trial) for label, trial in trials],
            data=embedded(script_data(trials, curves, short_titles(report))) if curves else "",
            pictures=pictures,
            origins=[origin_of(report, number, rows) for number in range(len(report.members))],
            failed=ended(results, "failed"),
            stopped=ended(results, "stopped"),
            warnings=[*warnings_of(results), *report.not_drawn, *left_out],
            style=safe(resource("page.css")),
            script=safe(script),
            bokeh=safe(bokeh),
            hashes=" ".join(f"'sha256-{hash_of(text)}'" for text in (bokeh, script) if text),
        )
    )


def ordered(curves: Any) -> list[str]:
    """Return the metrics that have curves, in the order of the tables, and then the metrics that no part declares."""
    return [*(name for name in METRICS if name in curves), *(name for name in curves if name not in METRICS)]


def points_table(report: Report) -> Table:
    """Return the table of the points: n, scores, and the differences from the controls with their verdicts."""
    scores = report.columns
    pairs = [(score, control) for score in report.scores for control in controls_of(report)]
    families = {point.title: group.families for group in report.groups for point in group.points}
    header = [*name_columns(report), "n", *scores]
    for score, control in pairs:
        header += [f"{score} minus {NAMES.get(control, control)}", f"{score} against {control}"]
    rows = []
    for point in report.points:
        row = [*marked_names(report, point), str(len(point.by_seed))]
        row += [cell(point, score) for score in scores]
        for score, control in pairs:
            family = families.get(point.experiment, {}).get(score)
            difference = family.from_control(point, control) if family is not None else None
            numbers = numbers_and_count(difference, score, len(point.by_seed))
            row += [numbers, "–" if difference is None else verdict(difference, control)]
        rows.append(row)
    best = () if report.single else report.best
    bold = [number for number, point in enumerate(report.points) if point.title in best]
    verdicts = range(len(header) - 2 * len(pairs) + 1, len(header), 2)
    return Table(header, rows, bold, verdicts)


def bold_words(report: Report, count: int) -> str:
    """Say what bold type means in the table of the points; empty if no row is bold."""
    word = "best" if report.has_labels else "chosen"
    return f" The {word} point{' is' if count == 1 else 's are'} in bold type." if count else ""


def short_titles(report: Report) -> dict[str, str]:
    """Return the short titles of the points whose drawn values are rounded, by their exact titles."""
    return {printable(point.exact_title): point.title for point in report.points if point.title != point.exact_title}


def trials_table(report: Report, rows: Sequence[tuple[str, Trial, dict[str, Any]]]) -> Table:
    """Return the table of the trials: status, what varies, metrics, time and error. Empty columns are left out."""
    varied = dict.fromkeys([*(name for member in report.members for name in member.sweep.searched), "seed"])
    columns = ["trial", "status", *varied, *METRICS, "linear_probe", "wall_s", "attempts", "device", "error"]
    columns = [name for name in columns if any(row.get(name) not in (None, "") for _, _, row in rows)]
    header = [*(["sweep"] if report.several else []), *columns]
    return Table(
        header,
        [
            [*([label] if report.several else []), *(shown(name, row.get(name)) for name in columns)]
            for label, _, row in rows
        ],
    )


def shown(name: str, value: Any) -> str:
    """Return a value for a cell: a setting as it is, a measured number with six digits, and `–` for a missing value."""
    if value is None or value == "":
        return "–"
    return f"{value:.6g}" if isinstance(value, float) and name not in SETTINGS else masked(str(value))


def origin_of(report: Report, number: int, rows: Sequence[tuple[str, Trial, dict[str, Any]]]) -> Origin:
    """Return the settings of the sweep with this number, and what made it.

    A setting without effect in a trial does not count there. Controls count only if there are no other trials.
    """
    member = report.members[number]
    of_member = [(trial, row) for label, trial, row in rows if label == member.label]
    points = [row for trial, row in of_member if not trial.baseline] or [row for _, row in of_member]
    varied, common = [], []
    for name in SETTINGS:
        values = list(dict.fromkeys(exact(row[name]) for row in points if name in row))
        if len(values) > 1:
            varied.append([name, first_values(values), about(name).text])
        elif values:
            common.append([name, values[0], exact(default_of(name)), about(name).text])
    differs = [number for number, row in enumerate(common) if row[1] != row[2]]
    common += [[name, value, "", ""] for name, value in run_settings(member.sweep)]
    return Origin(
        member.label,
        Table(["setting", "values", "meaning"], varied),
        Table(["setting", "value", "default", "meaning"], common, differs),
        [list(lines_of(record)) for record in history(member.store.root)],
    )


def exact(value: Any) -> str:
    """Return a setting's value as text: every digit of a number, and `none` for None."""
    return "none" if value is None else masked(str(value))


def first_values(values: Sequence[str]) -> str:
    """Return the values of a varied setting: the first ones, and the number of the others."""
    more = len(values) - MOST_SHOWN
    return ", ".join([*values[:MOST_SHOWN], f"and {more} others"] if more > 1 else values)


def run_settings(sweep: Sweep) -> Iterator[tuple[str, str]]:
    """Yield the names and values of `resources`, and of `tune` where it differs from its defaults."""
    for name, value in sweep.resources.model_dump().items():
        yield f"resources.{name}", exact(value)
    usual = type(sweep.tune)().model_dump()
    for name, value in sweep.tune.model_dump().items():
        if value != usual[name]:
            yield f"tune.{name}", exact(value)


def lines_of(record: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the names and values of a record in `sweep.yaml`, such as the command and the versions."""
    for name, value in record.items():
        if isinstance(value, dict):
            yield name, masked(", ".join(f"{key} {exact(each)}" for key, each in value.items()))
        else:
            yield name, exact(value)


def ended(results: Sequence[tuple[str, Result]], status: str) -> list[tuple[str, str]]:
    """Return the trials with this status, and why they ended."""
    return [
        (f"{prefix}{result.trial}", masked(str(result.error))) for prefix, result in results if result.status == status
    ]


@cache
def environment() -> Environment:
    """Return the environment of the template, which escapes every value."""
    from jinja2 import Environment, StrictUndefined

    def finalize(value: object) -> object:
        # For example, no character reverses the direction of the text.
        return printable(value) if type(value) is str else value

    escaping = Environment(
        autoescape=True, undefined=StrictUndefined, finalize=finalize, trim_blocks=True, lstrip_blocks=True
    )
    escaping.filters["breakable"] = breakable
    return escaping


def breakable(text: str) -> Any:
    """Return the text as HTML in which a line may end after a comma, a slash or an underscore."""
    from markupsafe import Markup

    return Markup("<wbr>").join(re.split(r"(?<=[,/_])", printable(text)))


def resource(name: str) -> str:
    """Return the text of a file of this package."""
    return (files("raysweep.report") / name).read_text(encoding="utf-8")


def safe(text: str) -> Any:
    """Mark text of the package itself as HTML, so that it is not escaped."""
    from markupsafe import Markup

    assert "</script" not in text
    assert "</style" not in text
    return Markup(text)


def embedded(data: Any) -> Any:
    """Return data as JSON that can stand in a `<script>` element: it contains no `<`, `>` or `&`."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return safe(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def hash_of(script: str) -> str:
    """Return the hash by which the page's policy allows a script."""
    return b64encode(sha256(script.encode()).digest()).decode()
