"""The tables of a report as pandas DataFrames, with exact values and with dtypes that depend on the columns alone."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin

import pandas

from raysweep.config import SETTINGS, Settings
from raysweep.report.contents import Report
from raysweep.report.tables import point_rows, trial_rows

DTYPES = {bool: "boolean", int: "Int64", float: "float64", str: "string"}
"""The dtype of each type of value. All of them can hold missing values, so that integers stay integers."""
TEXTS = ("sweep", "trial", "point", "control", "status", "linear_probe", "fingerprint", "device", "error")
COUNTS = ("n", "attempts")


def trial_frame(report: Report) -> pandas.DataFrame:
    """Return one row per trial: settings, metrics and status. A setting without effect in a trial is missing there."""
    columns: dict[str, None] = {"sweep": None} if report.several else {}
    rows = []
    for member in report.members:
        header, member_rows = trial_rows(member.store, member.sweep, member.results)
        columns |= dict.fromkeys(header)
        for trial, row in zip(member.sweep.trials, member_rows, strict=True):
            rows.append({"sweep": member.label, **row, "control": trial.control or None})
    names = list(columns)
    names.insert(names.index("point") + 1, "control")
    return frame(names, rows)


def point_frame(report: Report) -> pandas.DataFrame:
    """Return one row per point: n, mean, std and interval of each metric, and the differences from every control."""
    header, rows = point_rows(report)
    missing_as_none = [{name: None if value == "" else value for name, value in row.items()} for row in rows]
    return frame(header, missing_as_none)


def curve_frame(rows: Sequence[Mapping[str, Any]], several: bool) -> pandas.DataFrame:
    """Return one row per trial and step, with a column `sweep` if there are several sweeps."""
    table = frame([*(["sweep"] if several else []), "trial", "step", "value"], rows)
    return table.astype({"step": "int64", "value": "float64"})  # they are never missing; a setting may have their names


def frame(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> pandas.DataFrame:
    """Return the rows as a DataFrame. A value that a row lacks, or that is None, is missing."""
    series = {
        name: pandas.Series([row.get(name) for row in rows], dtype=dtype_of(name, [row.get(name) for row in rows]))
        for name in columns
    }
    return pandas.DataFrame(series, columns=list(columns))


def dtype_of(name: str, values: Sequence[Any]) -> str:
    """Return the dtype of a column: from the type of a setting, else from the name of the column."""
    if name in TEXTS:
        return "string"
    if name in COUNTS or name.endswith(" n"):  # such as the number of seeds of one metric
        return "Int64"
    if name not in SETTINGS:
        return "float64"  # a metric, a time, or a statistic
    kinds = types_of(Settings.model_fields[name].annotation)
    fits = len(kinds) == 1 and all(value is None or isinstance(value, tuple(kinds)) for value in values)
    return DTYPES.get(next(iter(kinds)), "object") if fits else "object"


def types_of(annotation: Any) -> set[type]:
    """Return the types of the values of a setting, except None."""
    if get_origin(annotation) in (Union, types.UnionType):
        return {kind for each in get_args(annotation) for kind in types_of(each)}
    if get_origin(annotation) is Literal:
        return {type(value) for value in get_args(annotation)}
    return set() if annotation is type(None) else {get_origin(annotation) or annotation}
