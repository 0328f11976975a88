"""The curves of `report.html`: the metrics of every trial by epoch, and the Bokeh plot that shows them."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from raysweep.errors import InputError, printable
from raysweep.report.colours import COLOURS
from raysweep.report.control_styles import TINTS
from raysweep.results.result import describe_error
from raysweep.space import Trial
from raysweep.system.files import is_occupied, open_regular

MOST_STEPS = 200
"""Most values of one curve. A longer curve shows evenly spaced values, among them its first and its last one."""
MOST_VALUES = 1_000_000
"""Most values of all curves together. Each takes about 9 bytes of the page."""
LINE_DASHES = ("solid", "dashed", "dotted")
"""The dashes of lines, by their names in both Bokeh and CSS."""
DIGITS = 5
"""Significant digits of a value."""

Item = TypeVar("Item")
Curves = dict[str, list[tuple[int, dict[int, float]]]]
"""For each metric: the number of the trial, and the values by step."""


def read_curves(directories: Sequence[Path]) -> tuple[Curves, list[str]]:
    """Read the curves of trials. A trial that has not ended has no `curves.csv`, so its event files are read.

    Args:
        directories: The directories of the trials.

    Returns:
        For each metric that some trial measured at two steps or more: its curves. A curve has two finite values or
        more. The second part is a line for each trial whose curves are left out because its file is damaged or cannot
        be read.
    """
    curves: Curves = {}
    left_out = []
    for number, directory in enumerate(directories):
        try:
            measured = read_trial(directory)
        except (InputError, OSError) as fault:
            why = describe_error(fault) if isinstance(fault, OSError) else str(fault)
            left_out.append(f"the curves of the trial {directory.name} are left out of the page: {why}")
            continue
        for metric, values in measured.items():
            if sum(map(math.isfinite, values.values())) > 1:
                curves.setdefault(metric, []).append((number, values))
    return curves, left_out


def read_trial(directory: Path) -> dict[str, dict[int, float]]:
    """Return the values of one trial by metric and step, from `curves.csv` or the event files; empty without both.

    Raises:
        InputError: The `curves.csv` is damaged.
        OSError: A file cannot be read.
    """
    metrics: dict[str, dict[int, float]] = {}
    path = directory / "curves.csv"
    if is_occupied(path):
        try:
            with io.TextIOWrapper(open_regular(path), newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    step = int(row.pop("step"))
                    for metric, text in row.items():
                        if text:
                            metrics.setdefault(metric, {})[step] = float(text)
        except (KeyError, TypeError, ValueError, csv.Error):
            raise InputError(f"{path}: is damaged; remove it, and raysweep report writes it again") from None
    elif any(directory.glob("events.out.tfevents.*")):
        from raysweep.results.events import read_scalars  # TensorBoard and scikit-learn take a second to import

        for step, values in read_scalars(directory).items():
            for metric, value in values.items():
                metrics.setdefault(metric, {})[step] = value
    return metrics


def thinned(values: Mapping[int, float], most: int) -> dict[int, float | None]:
    """Return at most `most` evenly spaced values, rounded to `DIGITS`, with None for a value that is not finite."""
    return {step: rounded(values[step]) for step in spread(sorted(values), most)}


def spread(items: Sequence[Item], most: int) -> list[Item]:
    """Return at most `most` evenly spaced items, including the first and the last item.

    For `most` = 1, return the last item.
    """
    if len(items) <= most:
        return list(items)
    if most == 1:
        return [items[-1]]
    return [items[round(place * (len(items) - 1) / (most - 1))] for place in range(most)]


def rounded(value: float) -> float | None:
    """Return the value with `DIGITS` significant digits; None if it is not finite, because JSON has no such number."""
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None


def compact(curves: Curves) -> dict[str, Any]:
    """Return the curves for the page's script. Curves with the same steps share one list of steps.

    Returns:
        `steps`: lists of steps; `metrics`: for each metric a list of `[trial, number of its list of steps, values]`.
    """
    count = sum(map(len, curves.values()))
    most = max(2, min(MOST_STEPS, MOST_VALUES // max(1, count)))
    numbers: dict[tuple[int, ...], int] = {}
    metrics: dict[str, list[list[Any]]] = {}
    for metric, lines in curves.items():
        for trial, values in lines:
            shown = thinned(values, most)
            place = numbers.setdefault(tuple(shown), len(numbers))
            metrics.setdefault(metric, []).append([trial, place, list(shown.values())])
    return {"steps": list(numbers), "metrics": metrics}


def styles_of(trials: Sequence[tuple[str, Trial]]) -> list[tuple[str, str]]:
    """Return the colour and the dash of each trial, given with the name of its sweep. The trials of a point share them.

    So points have different lines until all colours have been used with all dashes.
    """
    points: dict[tuple[str, str], int] = {}
    styles = []
    for sweep, trial in trials:
        if trial.baseline:
            styles.append((TINTS[trial.control], LINE_DASHES[0]))
        else:
            place = points.setdefault((sweep, trial.point), len(points))
            styles.append((COLOURS[place % len(COLOURS)], LINE_DASHES[place // len(COLOURS) % len(LINE_DASHES)]))
    return styles


def first_metric(metrics: Sequence[str]) -> str:
    """Return the metric that the page shows first: the loss of pretraining if it has one."""
    return "pretrain/loss" if "pretrain/loss" in metrics else metrics[0]


def plot() -> dict[str, Any]:
    """Return an empty Bokeh plot as JSON. The page's script fills its data source, which is called `curves`."""
    from bokeh.embed import json_item
    from bokeh.models import ColumnDataSource, HoverTool
    from bokeh.plotting import figure

    source = ColumnDataSource({"xs": [], "ys": [], "trial": [], "color": [], "dash": []}, name="curves")
    axes = figure(
        height=420, sizing_mode="stretch_width", x_axis_label="epoch", tools="pan,box_zoom,wheel_zoom,reset,save"
    )
    lines = axes.multi_line(
        "xs", "ys", source=source, line_color="color", line_dash="dash", line_width=1.4, line_alpha=0.8
    )
    lines.hover_glyph = lines.glyph.clone(line_width=4.0, line_alpha=1.0)
    axes.add_tools(
        HoverTool(
            renderers=[lines],
            tooltips=[("trial", "@trial"), ("epoch", "$snap_x{0}"), ("value", "$snap_y{%.5g}")],
            formatters={"$snap_y": "printf"},
            line_policy="nearest",
            limit=3,
        )
    )
    axes.toolbar.logo = None
    return dict(json_item(axes))


def bokeh_script() -> str:
    """Return the JavaScript of Bokeh, which the page contains, so that it needs no network."""
    from bokeh.resources import Resources

    (script,) = Resources(mode="inline", minified=True, components=["bokeh"], log_level="error").js_raw[:1]
    return str(script)


def point_title(sweep: str, trial: Trial) -> str:
    """Return the exact name of a trial's point, with the sweep in front if several sweeps are compared."""
    return printable(f"{sweep}/{trial.point}" if sweep else trial.point)


def script_data(trials: Sequence[tuple[str, Trial]], curves: Curves, labels: Mapping[str, str]) -> dict[str, Any]:
    """Return what the page's script needs to draw the curves.

    Args:
        trials: The trials, each with the name of its sweep.
        curves: Their curves.
        labels: The short names of points by their exact titles, for points that have one.
    """
    metrics, styles = list(curves), styles_of(trials)
    return {
        "plot": plot(),
        "first": first_metric(metrics),
        "names": [printable(f"{sweep}/{trial.name}" if sweep else trial.name) for sweep, trial in trials],
        "points": [point_title(sweep, trial) for sweep, trial in trials],
        "labels": {title: printable(label) for title, label in labels.items()},
        "colors": [colour for colour, _ in styles],
        "dashes": [dash for _, dash in styles],
        "most_named": len(COLOURS) * len(LINE_DASHES),
        **compact(curves),
    }
