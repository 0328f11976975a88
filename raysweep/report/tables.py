"""The tables of a report, as CSV and as Markdown."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from raysweep import parts
from raysweep.config import METRICS, SETTINGS, about, has_effect
from raysweep.errors import printable
from raysweep.report.contents import Report
from raysweep.report.points import (
    COLUMNS,
    LINEAR,
    NO_SPREAD,
    PERCENT,
    Estimate,
    Point,
    block_scores,
    differences,
    estimate,
    shown_scores,
)
from raysweep.report.sentences import METHOD
from raysweep.results.result import Result, attempts
from raysweep.results.store import Store
from raysweep.space import RANDOM, Sweep

MOST_PAIRED = 50
"""Of more points than this, only the pairs with the best one are written down."""

STOPPED = (
    "Trials that were stopped early have no test score and are in no mean. Where only some seeds of a point were "
    "stopped, its mean is over the others, which did better: it is too good, by how much nobody knows."
)
SATURATED = (
    "digits is nearly saturated: a random encoder with a linear probe on all labels already reaches 0.97 to 0.98, so "
    "differences in linear accuracy are small here, and none says anything about natural images."
)


def encoded(text: str) -> bytes:
    """Text as the content of a file. The bytes of a path that are no text become escape sequences."""
    return text.encode(errors="backslashreplace")


def to_csv(header: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV; floats as `repr` writes them, exactly; what a row lacks stays empty."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, header, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def results_csv(store: Store, sweep: Sweep, results: Sequence[Result]) -> str:
    """One row per trial of the sweep, in its order; a setting without effect in a trial stays empty."""
    by_name = {result.trial: result for result in results}
    metrics = [name for name in METRICS if any(name in result.metrics for result in results)]
    kept = ("status", "linear_probe", "fingerprint", "attempts", "device", "error")
    header = ["trial", "point", "status", *SETTINGS, *metrics, "linear_probe", "fingerprint", "wall_s", *kept[3:]]
    rows = []
    for trial in sweep.trials:
        row: dict[str, Any] = {"trial": trial.name, "point": trial.point}
        row |= {name: getattr(trial.settings, name) for name in SETTINGS if has_effect(name, trial.settings)}
        row["probe_dataset"] = trial.settings.evaluated_dataset
        result = by_name.get(trial.name)
        if result is None:
            row["status"] = "unfinished" if attempts(store.trial(trial.name)) else "waiting"
        else:
            row |= result.metrics
            row |= {key: getattr(result, key) for key in kept}
            row |= {"precision": result.precision} if result.precision else {}
            row["wall_s"] = round(result.wall_s, 3)
        rows.append(row)
    return to_csv(header, rows)


def interval_columns(name: str, of: Estimate | None) -> dict[str, Any]:
    """An estimate as columns of a CSV."""
    if of is None:
        return {}
    return {f"{name} mean": of.mean, f"{name} std": of.std, f"{name} ci95_low": of.low, f"{name} ci95_high": of.high}


def summary_csv(report: Report) -> str:
    """One row per point: n, and for each metric mean, std and interval, and the paired difference from random."""
    metrics = [name for name in METRICS if any(point.values(name) for point in report.points)]
    varied = [*differing(report)] if report.several else [*report.members[0].sweep.searched]
    header = [*(["sweep"] if report.several else []), "point", *varied, "n"]
    header += [f"{metric} {part}" for metric in metrics for part in ("mean", "std", "ci95_low", "ci95_high")]
    compared = [name for name in COLUMNS if name in metrics and any(point.random_by_seed for point in report.points)]
    header += [f"{metric} minus random {part}" for metric in compared for part in ("mean", "ci95_low", "ci95_high")]
    rows = []
    for point in report.points:
        row: dict[str, Any] = {"sweep": point.sweep, "point": point.name, "n": len(point.by_seed)}
        row |= {name: effective(point, name) for name in varied} if report.several else point.varied
        for metric in metrics:
            row |= interval_columns(metric, estimate(point.values(metric)))
        for metric in compared:
            difference = estimate(point.differences(metric))
            row |= interval_columns(f"{metric} minus random", difference)
        rows.append({key: value for key, value in row.items() if key in header})
    return to_csv(header, rows)


def effective(point: Point, name: str) -> Any:
    """A setting's value in a point; empty where it has no effect there."""
    return getattr(point.settings, name) if has_effect(name, point.settings) else ""


def differing(report: Report) -> dict[str, list[list[Any]]]:
    """The settings, the seed aside, that are not the same in all points; for each sweep its values with an effect."""
    values = {}
    for name in SETTINGS:
        if about(name).search and name != "seed":
            by_sweep: dict[str, list[Any]] = {member.label: [] for member in report.members}
            for point in report.points:
                value = effective(point, name)
                if not point.baseline and value != "" and value not in by_sweep[point.sweep]:
                    by_sweep[point.sweep].append(value)
            if len({repr(value) for values in by_sweep.values() for value in values}) > 1:
                values[name] = list(by_sweep.values())
    return values


def differences_csv(report: Report) -> str:
    """One row per pair of points and score: the paired difference over the seeds that both have, with its interval.

    Points of different protocols are no pair. Each interval stands for itself.
    """
    groups: dict[str, list[Point]] = {}
    for point in report.points:
        if not point.baseline:
            groups.setdefault(point.protocol, []).append(point)
    best = {ranked[0].title for ranked in report.ranked}
    rows = []
    for group in groups.values():
        for first, second in itertools.combinations(group, 2):
            if len(group) <= MOST_PAIRED or {first.title, second.title} & best:
                for score in report.scores:
                    difference = estimate(differences(first.scores(score), second.scores(score)))
                    if difference is not None:
                        row = {"first": first.title, "second": second.title, "score": score, "n": difference.n}
                        rows.append(
                            row | {"mean": difference.mean, "ci95_low": difference.low, "ci95_high": difference.high}
                        )
    return to_csv(["first", "second", "score", "n", "mean", "ci95_low", "ci95_high"], rows)


def cell(value: Estimate | None, signed: bool = False) -> str:
    """`0.9821 ± 0.0043`: the mean and half the interval; the mean alone for one seed."""
    if value is None:
        return "–"
    mean = f"{value.mean:+.4f}" if signed else f"{value.mean:.4f}"
    return mean if value.high is None else f"{mean} ± {value.high - value.mean:.4f}"


def difference_cell(difference: Estimate | None) -> str:
    """`+0.0123 [+0.0040, +0.0206]`; the mean alone for one seed, and where all differences are equal."""
    if difference is None:
        return "–"
    if difference.low is None or difference.std is None or difference.std < NO_SPREAD:
        return f"{difference.mean:+.4f}"
    return f"{difference.mean:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]"


def verdict(difference: Estimate | None, than: str = "random") -> str:
    """What an interval of a difference says."""
    if difference is None or difference.low is None or difference.high is None or difference.std is None:
        return "one seed: no interval"
    if difference.std < NO_SPREAD and abs(difference.mean) >= NO_SPREAD:
        return "no spread: no interval"
    if difference.std >= NO_SPREAD and difference.low > 0:
        return f"above {than}"
    return f"below {than}" if difference.std >= NO_SPREAD and difference.high < 0 else "no difference shown"


def markdown(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    cells = [[printable(str(item)).replace("|", "\\|") for item in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


def names_of(report: Report, point: Point) -> list[str]:
    """A point's name in a table, after the name of its sweep if there are several sweeps."""
    return [point.sweep, point.name] if report.several else [point.name]


def name_columns(report: Report) -> list[str]:
    """The header over `names_of`."""
    return ["sweep", "point"] if report.several else ["point"]


def difference_table(report: Report, rows: Sequence[tuple[Point, Mapping[str, list[float]]]], than: str) -> str:
    """Differences by point and score, each with its verdict."""
    scores = list(rows[0][1])
    lines = []
    for point, by_score in rows:
        parts: list[object] = [*names_of(report, point), len(by_score[scores[0]])]
        for score in scores:
            difference = estimate(by_score[score])
            parts += [
                difference_cell(difference),
                verdict(difference, than) if difference is not None else "no shared seed",
            ]
        lines.append(parts)
    return markdown([*name_columns(report), "n", *(part for name in scores for part in (name, ""))], lines)


def summary_md(report: Report) -> str:
    """The summary in words and tables."""
    text = [f"# {report.name}", *overview(report)]
    columns = shown_scores(report.points, COLUMNS)
    of_points = [
        [*names_of(report, point), len(point.by_seed), *(cell(estimate(point.values(name))) for name in columns)]
        for point in report.points
    ]
    text.append(markdown([*name_columns(report), "n", *columns], of_points))
    text += best_section(report) + random_section(report) + blocks_section(report)
    results = [(member, result) for member in report.members for result in member.results]
    prefix = {id(member): f"{member.label}/" if report.several else "" for member in report.members}
    for status, title in (("failed", "## Failed"), ("stopped", "## Stopped early")):
        ended = [(prefix[id(member)], result) for member, result in results if result.status == status]
        if ended:
            text += [
                title,
                "\n".join(f"- {before}{result.trial}: {printable(str(result.error))}" for before, result in ended),
            ]
    if any(result.status == "stopped" for _, result in results):
        text.append(STOPPED)
    remarks = dict.fromkeys(
        f"{printable(warning)} ({prefix[id(member)]}{result.trial})"
        for member, result in results
        for warning in result.warnings
    )
    if remarks:
        text += ["## Warnings", *(f"- {remark}" for remark in remarks)]
    came_to = {result_of.precision for _, result_of in results if result_of.settings.get("precision") == "auto"} - {""}
    if len(came_to) > 1:
        text.append(
            "Note: `precision: auto` came to bf16 on some machines and to fp32 on others (`results.csv` says where); "
            "set it to one of them for points that are to be compared closely."
        )
    if any(
        trial.settings.evaluated_dataset == "digits" for member in report.members for trial in member.sweep.examples
    ):
        text.append(f"Note: {SATURATED}")
    return "\n\n".join(text) + "\n"


def overview(report: Report) -> list[str]:
    """How many trials have run, how to read the table, and how the settings of several sweeps differ."""
    lines = []
    for member in report.members:
        ended = [result.status for result in member.results]
        stopped = f", {ended.count('stopped')} stopped early" if "stopped" in ended else ""
        lines.append(
            f"{f'{member.label}: ' if report.several else ''}{ended.count('finished')} of {member.sweep.total} "
            f"trials finished{stopped}, {ended.count('failed')} failed."
        )
    reading = f"Mean over seeds ± half of the {PERCENT} Student-t interval of the mean; one seed has no interval."
    if not report.several:
        return [f"{lines[0]} {reading}"]
    rows = [
        [name, *(str(values[0]) if len(values) == 1 else "varies" if values else "–" for values in by_sweep)]
        for name, by_sweep in differing(report).items()
    ]
    differ = ["Where the sweeps' settings differ:", markdown(["setting", *(m.label for m in report.members)], rows)]
    own = {(point.sweep, seed) for point in report.points if point.control == RANDOM for seed in point.by_seed}
    lent = {p.sweep for p in report.points for seed in p.random_by_seed if (p.sweep, seed) not in own}
    borrowed = [
        f"{name} is compared with the random encoder of another sweep, which is the same one: equal in seed and in "
        "every setting that has an effect on it."
        for name in sorted(lent)
    ]
    return ["\n".join(f"- {line}" for line in lines), *(differ if rows else []), *borrowed, reading]


def best_section(report: Report) -> list[str]:
    """The best points, the conclusions about them, and the difference of every other point from them."""
    groups = report.ranked
    words = report.in_words()
    if not groups:
        return words
    names = ", ".join(f"**{ranked[0].title}**" for ranked in groups)
    each = " (one for each evaluation protocol: their scores are not comparable)" if len(groups) > 1 else ""
    text = [
        f"Best by mean {report.metric}{each}: {names}.",
        "## What can be concluded",
        "\n".join(f"- {line}" for line in words),
        METHOD,
    ]
    tables = []
    for best, *others in groups:
        rows = [
            (point, {score: differences(point.scores(score), best.scores(score)) for score in report.scores})
            for point in report.points
            if any(point is other for other in others)
        ]
        if rows and report.scores:
            caption = f"Each point minus {best.title}, paired by seed:" if len(groups) > 1 else ""
            tables += [*([caption] if caption else []), difference_table(report, rows, "best")]
    if tables:
        text += [
            "## Difference from the best point",
            f"Paired by seed: mean difference [{PERCENT} interval]. Each interval stands for itself; none is corrected "
            "for the number of comparisons. Pairs of points are in `differences.csv`: all of "
            f"them, or of more than {MOST_PAIRED} points those with the best.",
            *tables,
        ]
    return text


def random_section(report: Report) -> list[str]:
    """Every point's difference from the random encoder; empty without one."""
    scores = shown_scores(report.points)
    compared = [point for point in report.points if point.random_by_seed]
    if not compared or not scores:
        return []
    rows = [(point, {score: point.differences(score) for score in scores}) for point in compared]
    return [
        "## Difference from the random encoder",
        f"Paired by seed: mean difference [{PERCENT} interval]. Each interval stands for itself; none is "
        "corrected for the number of comparisons in the table.",
        difference_table(report, rows, "random"),
    ]


def blocks_section(report: Report) -> list[str]:
    """The linear probes on the encoder's blocks; empty where there were none."""
    points = [point for point in report.points if shown_scores([point], block_scores())]
    if not points:
        return []
    rows = [
        [*names_of(report, point), len(point.by_seed), *(cell(estimate(point.values(name))) for name in block_scores())]
        for point in points
    ]
    header = [*name_columns(report), "n", *(f"block {block}" for block in range(1, parts.most_blocks() + 1))]
    return ["## Linear probe on every block", "Test accuracy.", markdown(header, rows)]


def summary_table(report: Report) -> Table:
    """The summary for a terminal."""
    columns = shown_scores(report.points, COLUMNS)
    compared = any(point.differences(LINEAR) for point in report.points)
    best = {ranked[0].title for ranked in report.ranked}
    # Names are `Text`: in plain strings rich would take brackets for its markup, and leave them out.
    title = Text(f"{report.name}: mean over seeds ± half of the {PERCENT} interval", style="table.title")
    table = Table(title=title)
    for name in name_columns(report):
        table.add_column(name, overflow="fold")
    table.add_column("n", justify="right")
    for name in columns:
        table.add_column(name.replace("_", " ").replace("/", "\n"), justify="right", no_wrap=True)
    if compared:
        table.add_column("linear test accuracy\nminus random, paired", justify="right", no_wrap=True)
    for point in report.points:
        row: list[str | Text] = [*(Text(printable(name)) for name in names_of(report, point)), str(len(point.by_seed))]
        row += [cell(estimate(point.values(name))) for name in columns]
        if compared:
            row.append(difference_cell(estimate(point.differences(LINEAR))))
        table.add_row(*row, style="bold" if point.title in best else None)
    return table
