"""The tables of a report, as CSV and as Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from raysweep.config import METRICS, SETTINGS, about, has_effect
from raysweep.errors import printable
from raysweep.report.contents import Report
from raysweep.report.digits import decimals_of
from raysweep.report.points import LEAST_SEEDS, Estimate, Point, confidence, divisor_of, estimate
from raysweep.report.sentences import verdict, with_count
from raysweep.report.statistics import Difference
from raysweep.results.result import Result, attempts
from raysweep.results.store import Store
from raysweep.space import Sweep


def encoded(text: str) -> bytes:
    """Return text as the content of a file. Bytes of a path that are not valid text become escape sequences."""
    return text.encode(errors="backslashreplace")


def to_csv(header: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as CSV. Floats are exact, as `repr` writes them. A value that a row lacks stays empty."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, header, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def results_csv(store: Store, sweep: Sweep, results: Sequence[Result]) -> str:
    """Return a row per trial as CSV; see `trial_rows`. A setting without effect in a trial stays empty."""
    header, rows = trial_rows(store, sweep, results)
    return to_csv(header, [row | {"wall_s": round(row["wall_s"], 3)} if "wall_s" in row else row for row in rows])


def trial_rows(store: Store, sweep: Sweep, results: Sequence[Result]) -> tuple[list[str], list[dict[str, Any]]]:
    """Return the columns and a row for each trial, in the order of the sweep. A row omits what its trial lacks.

    The first columns say what varies, the next ones what was measured. The other settings follow. A metric that this
    version does not know, which a later version may have written, has no column.
    """
    by_name = {result.trial: result for result in results}
    metrics = [name for name in METRICS if any(name in result.metrics for result in results)]
    kept = ("status", "linear_probe", "fingerprint", "attempts", "device", "error")
    varied = [*sweep.searched, "seed"]
    same = [name for name in SETTINGS if name not in varied]
    header = ["trial", "point", "status", *varied, *metrics, "linear_probe", "fingerprint", "wall_s", *kept[3:], *same]
    rows = []
    for trial in sweep.trials:
        row: dict[str, Any] = {"trial": trial.name, "point": trial.point}
        row |= {name: getattr(trial.settings, name) for name in SETTINGS if has_effect(name, trial.settings)}
        row["probe_dataset"] = trial.settings.evaluated_dataset
        result = by_name.get(trial.name)
        if result is None:
            row["status"] = "unfinished" if attempts(store.trial(trial.name)) else "waiting"
        else:
            row |= {name: result.metrics[name] for name in metrics if name in result.metrics}
            row |= {key: getattr(result, key) for key in kept}
            row |= {"precision": result.precision} if result.precision else {}
            row["wall_s"] = result.wall_s
        rows.append(row)
    return header, rows


def level(divisor: int) -> str:
    """Return the confidence of the intervals as a part of a column's name: `95`, or `99.375` for a divisor of 8."""
    return f"{100 * confidence(divisor):.5g}"


def mean_names(divisor: int) -> tuple[str, ...]:
    """Return the names of the columns of a mean: seeds, mean, standard deviation, and the bounds of the interval."""
    return ("n", "mean", "std", f"ci{level(divisor)}_low", f"ci{level(divisor)}_high")


def difference_names(divisor: int) -> tuple[str, ...]:
    """Return the names of the columns of a difference: seeds, mean, and the bounds of both intervals."""
    return (
        "n",
        "mean",
        *(f"{kind}{level(divisor)}_{end}" for kind in ("adjusted", "unadjusted") for end in ("low", "high")),
    )


def interval_columns(name: str, value: Estimate | None, divisor: int) -> dict[str, Any]:
    """Return an estimate as columns of a CSV; empty for None."""
    if value is None:
        return {}
    columns = zip(mean_names(divisor), (value.n, value.mean, value.std, value.low, value.high), strict=True)
    return {f"{name} {part}": number for part, number in columns}


def summary_csv(report: Report) -> str:
    """Return a row per point as CSV: n, mean, std and interval of each metric, and differences from the controls."""
    return to_csv(*point_rows(report))


def point_rows(report: Report) -> tuple[list[str], list[dict[str, Any]]]:
    """Return the columns and a row for each point; see `summary_csv`. A row omits what its point lacks."""
    divisor = divisor_of(report.points)
    metrics = [name for name in METRICS if any(point.values(name) for point in report.points)]
    varied = [*differing(report)] if report.several else [*report.members[0].sweep.searched]
    header = [*(["sweep"] if report.several else []), "point", *varied, "n"]
    header += [f"{metric} {part}" for metric in metrics for part in mean_names(divisor)]
    families = {point.title: group.families for group in report.groups for point in group.points}
    controls = {
        (score, control): None
        for group in report.groups
        for score, f in group.families.items()
        for control in f.controls
    }
    header += [f"{score} minus {control} {part}" for score, control in controls for part in difference_names(divisor)]
    rows = []
    for point in report.points:
        row: dict[str, Any] = {"sweep": point.sweep, "point": point.name, "n": len(point.by_seed)}
        row |= {name: effective(point, name) for name in varied} if report.several else point.varied
        for metric in metrics:
            row |= interval_columns(metric, point.estimate(metric), divisor)
        for score, control in controls:
            family = families.get(point.experiment, {}).get(score)
            difference = family.from_control(point, control) if family is not None else None
            if difference is not None:
                row |= difference_columns(f"{score} minus {control} ", difference, divisor)
        rows.append({key: value for key, value in row.items() if key in header})
    return header, rows


def effective(point: Point, name: str) -> Any:
    """Return a setting's value in a point; empty if it has no effect there."""
    return getattr(point.settings, name) if has_effect(name, point.settings) else ""


def differing(report: Report) -> dict[str, list[list[Any]]]:
    """Return settings (not the seed) that differ between points, with the values that have an effect in each sweep."""
    values = {}
    for name in SETTINGS:
        if about(name).changes_scores and name != "seed":
            by_sweep: dict[str, list[Any]] = {member.label: [] for member in report.members}
            for point in report.points:
                value = effective(point, name)
                if not point.baseline and value != "" and value not in by_sweep[point.sweep]:
                    by_sweep[point.sweep].append(value)
            if len({repr(value) for values in by_sweep.values() for value in values}) > 1:
                values[name] = list(by_sweep.values())
    return values


def differences_csv(report: Report) -> str:
    """Return a row per pair of points and score as CSV: the difference with its intervals.

    Points of different protocols are not paired. If there are more than `MOST_PAIRED` points, only the pairs with the
    best point are listed.
    """
    rows, divisor = [], divisor_of(report.points)
    for group in report.groups:
        by_title = {point.title: point for point in group.points}
        titles = dict.fromkeys(pair for score in report.compared for pair in group.families[score].pairs)
        for first, second in titles:
            one, other = by_title[first], by_title[second]
            for score in report.compared:
                difference = group.families[score].pairs.get((first, second))
                if difference is not None and difference.mean is not None:
                    row = {"first": one.exact_title, "second": other.exact_title, "score": score}
                    rows.append(
                        {**row, **difference_columns("", difference, divisor), "verdict": verdict(difference, "second")}
                    )
    return to_csv(["first", "second", "score", *difference_names(divisor), "verdict"], rows)


def difference_columns(prefix: str, difference: Difference, divisor: int) -> dict[str, Any]:
    """Return a difference as columns of a CSV: its adjusted interval, and its paired, unadjusted Student-t interval."""
    alone = estimate(difference.paired, divisor)
    low, high = (alone.low, alone.high) if alone is not None else (None, None)
    values = (difference.n, difference.mean, difference.low, difference.high, low, high)
    return {f"{prefix}{name}": value for name, value in zip(difference_names(divisor), values, strict=True)}


def cell(point: Point, metric: str) -> str:
    """Return `0.9821 ± 0.0043`: the mean and half of its interval; only the mean for one or two seeds.

    The number of seeds follows if only some seeds of the point have the metric.
    """
    value = point.estimate(metric)
    if value is None:
        return "–"
    wide = value.high is None or value.n < LEAST_SEEDS  # the interval of two seeds is 12.7 times their standard error
    digits = decimals_of(metric, value.mean)
    mean = f"{value.mean:.{digits}f}"
    text = mean if wide or value.high is None else f"{mean} ± {value.high - value.mean:.{digits}f}"
    return with_count(text, value.n, len(point.by_seed))


def markdown(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    cells = [[printable(str(item)).replace("|", "\\|") for item in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


def names_of(report: Report, point: Point) -> list[str]:
    """Return a point's name for a table, after the name of its sweep if there are several sweeps."""
    return [point.sweep, point.short_name] if report.several else [point.short_name]


def name_columns(report: Report) -> list[str]:
    """Return the header of `names_of`."""
    return ["sweep", "point"] if report.several else ["point"]
