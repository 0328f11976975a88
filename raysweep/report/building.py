"""Build a report: tables, sentences and figures. It reads only the store, so a report can be rebuilt at any time."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from raysweep.errors import InputError
from raysweep.report.choosing import differing_objective
from raysweep.report.contents import Member, Report, labels
from raysweep.report.experiments import lend_baselines, mark_experiments, with_code, with_images
from raysweep.report.figure_words import figure_words, is_drawn
from raysweep.report.points import Point, check_alike, check_comparable, gather, shown_scores
from raysweep.report.summary import summary_md
from raysweep.report.tables import differences_csv, encoded, results_csv, summary_csv
from raysweep.results.result import Result, describe_error
from raysweep.results.store import Store
from raysweep.results.sweep_file import recorded_datasets
from raysweep.space import Sweep, count_tables, shorten
from raysweep.system.files import is_occupied, make_directory, set_aside, write_atomically

if TYPE_CHECKING:
    from raysweep.report.drawing import Figure


def read(store: Store, sweep: Sweep, skip_damaged: bool = False) -> Report:
    """Read the results that one sweep has so far; `skip_damaged` leaves out damaged ones.

    Raises:
        InputError: two results differ in an evaluation setting that the sweep does not vary.
    """
    results = store.results(sweep, skip_damaged=skip_damaged)
    check_comparable(sweep, results)
    points = gather(sweep, results)
    return Report(sweep.name, [Member(store, sweep, results, "")], points, sweep.metric, sweep.mode)


def read_several(opened: Sequence[tuple[Store, Sweep]]) -> Report:
    """Read the results that several sweeps have so far. All of them must have been evaluated alike.

    Raises:
        InputError: two trials differ in the evaluation protocol, or a sweep has no finished trial.
    """
    members = []
    for (store, sweep), label in zip(opened, labels([store.root for store, _ in opened]), strict=True):
        results = store.results(sweep)
        if not any(result.status == "finished" for result in results):
            raise InputError(f"{store.root}: no trial has finished, so there is nothing to compare")
        members.append(Member(store, sweep, results, label))
    everything = [(f"{member.label}/{result.trial}", result) for member in members for result in member.results]
    for name, result in everything[1:]:
        check_alike(everything[0][1], result, everything[0][0], name)
    points = [point for member in members for point in gather(member.sweep, member.results, member.label)]
    points = with_images(points, {member.label: recorded_datasets(member.store.root) for member in members})
    points = with_code(points, {member.label: member.sweep.plugins for member in members})
    has_changed_inputs = any(point.images or point.code for point in points)
    divisor = divisor_of_several([member.sweep for member in members], has_changed_inputs)
    points = [replace(point, divisor=divisor) for point in points]
    choices = {(member.sweep.metric, member.sweep.mode) for member in members}
    metric, mode = choices.pop() if len(choices) == 1 else (None, "max")
    if differing_objective(metric, points):
        metric = None
    name = "+".join(member.label.replace(os.sep, "-") for member in members)
    return Report(shorten(name), members, mark_experiments(lend_baselines(points)), metric, mode)


def divisor_of_several(sweeps: Sequence[Sweep], has_changed_inputs: bool) -> int:
    """Return the number by which the error is divided in a report about several sweeps; 1 unless one is a race.

    The report compares the points of all sweeps with each other, and with the controls of all sweeps. If pretraining
    images or the plugins of parts changed between the sweeps, no two sweeps count as having the same control.
    """
    looks = [sweep.race.looks for sweep in sweeps if sweep.race is not None]
    if not looks:
        return 1
    if has_changed_inputs:
        return max(looks) * sum(count_tables(sweep.trials) for sweep in sweeps)
    return max(looks) * count_tables(trial for sweep in sweeps for trial in sweep.trials)


def build_report(store: Store, sweep: Sweep) -> Report:
    """Write the tables, `summary.md`, `figures/` and `report.html` from the results so far.

    Raises:
        InputError: the results were not all evaluated alike; nothing is written.
    """
    return with_page(with_figures(build_tables(store, sweep), store.root), store.root)


def build_tables(store: Store, sweep: Sweep) -> Report:
    """Write `results.csv`, `summary.csv`, `differences.csv` and `summary.md`, but no figures, which take most time.

    Raises:
        InputError: The results were not all evaluated alike; nothing is written.
    """
    report = read(store, sweep)
    write_atomically(store.root / "results.csv", encoded(results_csv(store, sweep, report.members[0].results)))
    write_tables(report, store.root)
    add_missing_curves(store, report.members[0].results)
    return report


def add_missing_curves(store: Store, results: Sequence[Result]) -> None:
    """Write the `curves.csv` of each ended trial that has none and whose event files are here.

    A trial writes its own file at its end. A trial that was ended from outside, by a scheduler or because its worker
    died, could not. A trial whose event files cannot be read stays without the file, with a warning.
    """
    for directory in (store.trial(result.trial) for result in results):
        if not is_occupied(directory / "curves.csv") and any(directory.glob("events.out.tfevents.*")):
            from raysweep.results.curves import write_curves  # TensorBoard and scikit-learn take a second to import

            try:
                write_curves(directory)
            except OSError as fault:
                warnings.warn(f"{directory / 'curves.csv'} cannot be written: {describe_error(fault)}", stacklevel=2)


def build_comparison(report: Report, directories: Iterable[Path]) -> tuple[Report, Path]:
    """Write the report of several sweeps into a new directory: the files of `build_report` except `results.csv`.

    Returns:
        The report with the figures that could not be drawn, and the first of `directories` that did not exist.

    Raises:
        InputError: all of `directories` exist.
    """
    tried = directory = None
    for tried in directories:
        if make_directory(tried):
            directory = tried
            break
    if directory is None:
        raise InputError(f"{tried}: exists; choose another directory")
    write_tables(report, directory)
    return with_page(with_figures(report, directory), directory), directory


def write_tables(report: Report, directory: Path) -> None:
    """Write `summary.csv`, `differences.csv` and `summary.md` into `directory`."""
    write_atomically(directory / "summary.csv", encoded(summary_csv(report)))
    write_atomically(directory / "differences.csv", encoded(differences_csv(report)))
    write_atomically(directory / "summary.md", encoded(summary_md(report)))


def with_figures(report: Report, directory: Path) -> Report:
    """Write the figures into `directory`, and return the report with the figures that could not be drawn."""
    if is_occupied(directory / "figures") and not (directory / "figures").is_dir():
        set_aside(directory / "figures")
    (directory / "figures").mkdir(exist_ok=True)
    return replace(report, not_drawn=write_figures(report, directory / "figures"))


def with_page(report: Report, directory: Path) -> Report:
    """Write `report.html` into `directory`. Return the report, with a line more if the page could not be written."""
    try:
        from raysweep.report.page import write_page  # Bokeh takes 0.7 s to import

        write_page(report, directory)
    except Exception as fault:
        why = str(fault) if isinstance(fault, InputError) else describe_error(fault)
        return replace(report, not_drawn=[*report.not_drawn, f"report.html could not be written: {why}"])
    return report


def write_figures(report: Report, directory: Path) -> list[str]:
    """Draw and write the figures. Return a line for each figure that failed; the others are drawn nevertheless.

    Figures of an earlier report that are not drawn now are removed. Pictures with other names stay.

    Raises:
        OSError: a figure cannot be written or removed. A fault in the drawing does not raise.
    """
    outdated, failed = set(figure_words(report)), []
    drawings: dict[str, Callable[[], bytes | None]] = {}
    try:
        drawings = figures_of(report)
    except Exception as fault:
        failed.append(f"the figures could not be drawn: {describe_error(fault)}")
    for name, draw in drawings.items():
        try:
            picture = draw()
        except Exception as fault:
            failed.append(f"the figure {name}.png could not be drawn: {describe_error(fault)}")
            continue
        if picture is not None:
            write_atomically(directory / f"{name}.png", picture)
            outdated.discard(name)
    for path in (directory / f"{name}.png" for name in outdated):
        if path.is_file():
            path.unlink(missing_ok=True)  # another process may have removed it
    return failed


def figures_of(report: Report) -> dict[str, Callable[[], bytes | None]]:
    """Return, by name, functions that draw the report's figures as PNG, or return None if there is nothing to draw."""
    from raysweep.report import drawing  # the tables must not need Matplotlib

    def png(draw: Callable[[], Figure | None]) -> bytes | None:
        figure = draw()
        return None if figure is None else drawing.save(figure)

    return {name: partial(png, draw) for name, draw in drawings_of(report).items()}


def drawings_of(report: Report) -> dict[str, Callable[[], Figure | None]]:
    """Return, by name, functions that draw the report's figures, or return None if there is nothing to draw."""
    from raysweep.report import comparison, figures, search_figures
    from raysweep.report.difference_figures import draw_differences
    from raysweep.report.heatmaps import draw_heatmap, heatmap_settings
    from raysweep.report.layers import draw_layers

    compared = (report.name, report.points, report.metric, report.mode)
    if report.several:
        return {"comparison": partial(comparison.draw_comparison, *compared)}
    drawings: dict[str, Callable[[], Figure | None]] = {}
    sweep = report.members[0].sweep
    shown = shown_scores(report.points) if report.has_labels else []
    groups = report.groups if report.has_labels else ()  # a measure has no difference from a control
    categories = [name for name in sweep.searched if is_category(name, report.points)]
    if categories:
        drawings["comparison"] = partial(comparison.draw_comparison, *compared, groups)
    if is_drawn(sweep):
        for name in sweep.searched:
            drawings[name] = partial(search_figures.draw_scatter, sweep, report.points, name)
        drawings["parallel_coordinates"] = partial(search_figures.draw_parallel, sweep, report.points)
        drawings["importance"] = partial(search_figures.draw_importance, sweep, report.points)
    else:
        for name in sweep.searched:
            if name not in categories:
                drawings[name] = partial(figures.draw, sweep, report.points, name)
                drawings[f"{name}_minus_random"] = partial(draw_differences, sweep, groups, shown, name)
    pair = heatmap_settings(sweep)
    if pair is not None:
        drawings["_x_".join(pair)] = partial(draw_heatmap, sweep, report.points)
    drawings["layers"] = partial(draw_layers, sweep, report.points)
    return drawings


def needs_of(name: str) -> str:
    """Return in words what a figure needs to have something to draw."""
    from raysweep.report.search_figures import LEAST_FOR_IMPORTANCE, LEAST_POINTS

    if name == "importance" and find_spec("optuna") is None:
        return "the package optuna, which the extra raysweep[optuna] installs"
    if name == "comparison":
        return "results with a test score"
    if name == "layers":
        return "results of linear probes on blocks of the encoder"
    if name in ("importance", "parallel_coordinates"):
        least = LEAST_FOR_IMPORTANCE if name == "importance" else LEAST_POINTS
        return f"two settings that vary, and results of {least} points that have both settings"
    if name.endswith("_minus_random"):
        return "two values with at least three seeds of the point and of the random encoder"
    if "_x_" in name:
        return "results with a test score, and the same evaluation protocol for all points"
    return f"results of at least two values, and of {LEAST_POINTS} points if values are drawn"


def is_category(name: str, points: Sequence[Point]) -> bool:
    """Return whether any value of a setting is a text or a truth value, so that its values have no order."""
    return any(isinstance(point.varied.get(name), (str, bool)) for point in points if not point.baseline)
