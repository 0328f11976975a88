"""What raysweep does, as functions: the command line and Python call the same ones.

They take typed arguments, return objects and raise; they never print. Whoever calls them may pass a `Progress` (see
`raysweep.backends.progress`), which is told what happens meanwhile.

Example:
    >>> outcome = run({"base": {"dataset": "digits"}, "search": {"alpha": [0.1, 1], "seed": [0, 1]}}, local=True)
    >>> [point.name for point in outcome.report.points]
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysweep import preparation
from raysweep.backends.progress import Progress, Silence
from raysweep.backends.stopping import Stopping
from raysweep.errors import InputError, ResultsLost, SweepBrokeOff, SweepInterrupted
from raysweep.plugins import Plugin, check_origin, given
from raysweep.preparation import Space, check_picture, dataset_of, importing_report
from raysweep.results.mirror import local_encoder
from raysweep.results.result import Result, describe_error, note_traceback
from raysweep.results.store import TAKE_SECONDS, Store, open_sweeps, shown_place
from raysweep.results.sweep_file import check_version, recorded_datasets
from raysweep.space import Sweep
from raysweep.system.places import settle_ray_directory, shown_path

if TYPE_CHECKING:
    from raysweep.data.selection import Datasets
    from raysweep.report.contents import Report
    from raysweep.report.preview import Panel


@dataclass(frozen=True)
class Outcome:
    """A sweep whose trials have run, or were found finished, and its report."""

    store: Store
    sweep: Sweep
    report: Report


@dataclass(frozen=True)
class Where:
    """How and where a sweep runs."""

    local: bool = False
    """Run the trials one after the other in this process, without Ray."""
    address: str | None = None
    """The address of a Ray cluster; None takes `RAY_ADDRESS`, else Ray is started on this machine."""
    resume_command: Callable[[Store], str] = lambda store: f"raysweep.resume({store.place!r})"
    """The command that resumes the sweep, for messages."""
    owns_process: bool = True
    """Whether this process ends with the sweep, as the process of a command does, and that of a notebook does not."""


def plan(
    source: Space | None,
    overrides: Mapping[str, Any],
    where: Where = Where(),
    *,
    plugins: Sequence[str | Path] = (),
    parts: Sequence[Callable[..., Any]] = (),
) -> Sweep:
    """The checked sweep of a search space, without loading data or starting anything.

    Args:
        source: a search space; None: only what `overrides` says.
        overrides: settings by name (a list becomes a grid), `baseline`, and `tune.NAME` or `resources.NAME`.
        where: how it is to run.
        plugins: files or installed modules with parts; the search space may list more of them.
        parts: decorated functions and classes, which are passed to the workers by value.

    Raises:
        InputError: one line that names what is wrong.
    """
    sweep = preparation.build_sweep(source, overrides, given(plugins, parts))
    preparation.check_paths(sweep)
    preparation.check_means(sweep, where.local)
    return sweep


def run(
    source: Space | None,
    overrides: Mapping[str, Any] | None = None,
    *,
    output: str = "runs",
    name: str | None = None,
    where: Where = Where(),
    progress: Progress | None = None,
    plugins: Sequence[str | Path] = (),
    parts: Sequence[Callable[..., Any]] = (),
) -> Outcome:
    """Run a new sweep and write its report.

    Args:
        source: see `plan`.
        overrides: see `plan`.
        output: the directory in which the results directory is made, or the URI of one in a bucket.
        name: the name of the results directory, which must not exist; None takes the space's name, with a
            suffix if it exists.
        where: how and where the trials run.
        progress: told what happens; None: nothing is shown.
        plugins: see `plan`.
        parts: see `plan`.

    Raises:
        InputError: the input is faulty; nothing was left behind.
        SweepInterrupted: the user interrupted the sweep; its trials are saved.
        SweepBrokeOff: something unexpected happened; the results so far are kept.
    """
    progress = progress or Silence()
    sweep = plan(source, overrides or {}, where, plugins=plugins, parts=parts)
    store = Store.plan(output, name, sweep.name)
    datasets, words = _prepare(sweep, store, {}, where, progress)
    # Another process may have taken the name in the meantime: from here on the store is the one that was created.
    store = store.create(sweep, {**preparation.provenance(), "datasets": preparation.digests(datasets)})
    with store.lock(wait=TAKE_SECONDS), _explaining(store, where):
        progress.tell(f"{store.place}: {sweep.total} trials, {words}")
        return _finish(_run_trials(sweep, store, datasets, [], where, progress), store, where)


def plan_resume(
    place: str, source: Space | None, overrides: Mapping[str, Any], where: Where, extra: Sequence[Plugin] = ()
) -> tuple[Sweep, Sweep]:
    """The existing sweep at `place`, and the sweep that would be resumed with the plugins `extra`; see `resume`.

    Raises:
        InputError: `resume` would refuse to resume the sweep, for a reason that needs neither data nor Ray.
    """
    store, before, sweep = _planned(place, source, overrides, where, extra)
    preparation.check_resumable(store, sweep)
    return before, sweep


def resume(
    place: str,
    source: Space | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    where: Where = Where(),
    progress: Progress | None = None,
    plugins: Sequence[str | Path] = (),
    parts: Sequence[Callable[..., Any]] = (),
) -> Outcome:
    """Resume an existing sweep: run the trials that have not finished, and write its report.

    Args:
        place: its results directory, or the URI of one in a bucket.
        source: a search space whose points are added; None: no points are added.
        overrides: settings that change the search space; see `plan`.
        where: how and where the trials run.
        progress: told what happens; None: nothing is shown.
        plugins: see `plan`; the existing plugins of the sweep are in its results directory.
        parts: see `plan`; the existing parts of the sweep are needed again.

    Raises:
        InputError, SweepInterrupted, SweepBrokeOff: see `run`.
    """
    progress, overrides, extra = progress or Silence(), overrides or {}, given(plugins, parts)
    _planned(place, source, overrides, where, extra)
    store = Store(place)
    with store.lock():
        _, before = Store.open(store.place, given=extra)  # another process may have resumed it in the meantime
        sweep = preparation.extended(before, store, source, overrides, extra)
        added, changed = sweep.total - before.total, sweep.to_dict() != before.to_dict()
        store.check_settings_of_attempts(sweep)
        store.set_damaged_aside(sweep)
        kept = [result for result in store.results(sweep) if result.status != "failed"]
        if len(kept) == sweep.total:
            if changed:
                store.extend(sweep, preparation.provenance())
            progress.tell(f"{store.place}: all {len(kept)} trials have finished")
            return conclude(store, sweep)
        check_version(store.root, store.place)
        datasets, words = _prepare(sweep, store, recorded_datasets(store.root), where, progress)
        preparation.check_kept(sweep, kept, datasets)
        if changed:
            store.extend(sweep, {**preparation.provenance(), "datasets": preparation.digests(datasets)})
        if before.resources != sweep.resources:
            progress.warn(
                "warning: the resources changed; with other threads or a GPU, results differ in their last digits"
            )
        new = f" ({added} new)" if added else ""
        progress.tell(f"{store.place}: {sweep.total} trials{new}, {len(kept)} finished before, {words}")
        with _explaining(store, where):
            return _finish(_run_trials(sweep, store, datasets, kept, where, progress), store, where)


def conclude(store: Store, sweep: Sweep) -> Outcome:
    """Write the report of a sweep from its present results.

    Raises:
        InputError: the results were not all evaluated alike; nothing is written.
        OSError: the report cannot be written.
    """
    from raysweep.report.building import build_report

    report = build_report(store, sweep)
    store.push()
    return Outcome(store, sweep, report)


def rebuild_report(place: str) -> Outcome:
    """Write the report of the existing sweep at `place` again."""
    store, sweep = Store.open(place, copies="reports")
    store.pull()
    return conclude(store, sweep)


def compare(places: Sequence[str], output: str | None = None) -> tuple[Report, Path]:
    """Write a report that sets several sweeps side by side.

    Args:
        places: their results directories.
        output: the directory of the report, which must not exist; None: `NAME+NAME` beside the first sweep.

    Returns:
        The report and its directory.

    Raises:
        InputError: a sweep is given twice, the sweeps were not evaluated alike, or the directory cannot be made.
    """
    opened = open_sweeps(places)
    directories = preparation.comparison_directories(places, [store for store, _ in opened], output)
    from raysweep.report.building import build_comparison, read_several

    report = read_several(opened)
    return build_comparison(report, directories(report.name))


def preview(
    source: Space,
    overrides: Mapping[str, Any],
    output: Path,
    progress: Progress | None = None,
    *,
    plugins: Sequence[str | Path] = (),
    parts: Sequence[Callable[..., Any]] = (),
) -> list[Panel]:
    """Draw the views that a sweep would train on into the new file `output`; returns the panels of the picture.

    Raises:
        InputError: the search space is faulty, or no picture can be written there.
    """
    check_picture(output)
    sweep = preparation.build_sweep(source, overrides, given(plugins, parts))
    preparation.check_paths(sweep, is_evaluated=False)
    from raysweep.report import preview as drawing

    with (progress or Silence()).waiting("loading the data; what is not there yet is downloaded"):
        figure = drawing.draw(sweep, dataset_of)
    drawing.save(figure, output)
    return drawing.panels_of(sweep)


def embed(
    checkpoint: str,
    images: Path,
    output: Path,
    *,
    layer: str = "trunk",
    batch_size: int | None = None,
    skip_bad_images: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[int, int]:
    """Write the features that a trained encoder gives for images; see `raysweep.portable.embed`."""
    from raysweep import portable

    return portable.embed(
        local_encoder(checkpoint),
        images,
        output,
        layer=layer,
        batch_size=batch_size,
        skip_bad_images=skip_bad_images,
        progress=progress,
    )


def export(checkpoint: str, output: Path) -> dict[str, Any]:
    """Write the weights of a trained encoder for other programs; see `raysweep.portable.export`."""
    from raysweep import portable

    return dict(portable.export(local_encoder(checkpoint), output))


def _planned(
    place: str, source: Space | None, overrides: Mapping[str, Any], where: Where, extra: Sequence[Plugin]
) -> tuple[Store, Sweep, Sweep]:
    """The store of the sweep at `place` for reading, the existing sweep, and the one that would be resumed."""
    # The copy for reports, because another process may be at work in the copy of a bucket.
    store, before = Store.open(place, copies="reports", given=extra)
    for plugin in before.plugins:
        check_origin(plugin)
    sweep = preparation.extended(before, store, source, overrides, extra)
    preparation.check_paths(sweep)
    preparation.check_means(sweep, where.local)
    return store, before, sweep


def _prepare(
    sweep: Sweep, store: Store, recorded: Mapping[str, str], where: Where, progress: Progress
) -> tuple[Datasets, str]:
    """Load and check the data and prepare the backend, leaving nothing behind; the datasets and the plan in words."""
    with progress.waiting("loading the data; what is not there yet is downloaded"):
        datasets = preparation.load_datasets(sweep, recorded)
    if where.local:
        from raysweep.backends import local

        return datasets, local.prepare(sweep, store, None)
    with progress.waiting("starting Ray"):
        # These must come before Ray is imported, which reads the environment.
        from raysweep.backends.ray.authentication import present_token
        from raysweep.backends.ray.environment import prepare_environment
        from raysweep.backends.ray.session import is_initialized

        address = where.address or os.environ.get("RAY_ADDRESS")
        if not is_initialized():  # a Ray that the user has initialised is used as it is
            prepare_environment(address)
            present_token(address)
            if address is None:
                settle_ray_directory()
        from raysweep.backends.ray import tuner

        return datasets, tuner.prepare(sweep, store, where.address)


def _run_trials(
    sweep: Sweep, store: Store, datasets: Datasets, kept: list[Result], where: Where, progress: Progress
) -> Sweep:
    """Run the trials that have no result in `kept`; returns the sweep with the points that were proposed meanwhile."""
    from raysweep.backends.sweep_run import SweepRun

    done = {result.trial for result in kept}
    pending = [trial for trial in sweep.trials if trial.name not in done]
    stopping = Stopping(store, sweep.tune.time_budget, where.resume_command(store), where.owns_process)
    with stopping.running(), progress.trials(sweep, kept) as trials, importing_report():
        sweep_run = SweepRun(sweep, pending, kept, store, datasets, trials, stopping)
        if where.local:
            from raysweep.backends import local

            sweep = local.run(sweep_run)
        else:
            from raysweep.backends.ray import tuner

            sweep = tuner.run(sweep_run)
        if stopping.number is not None:
            raise interrupted(store, where, stopping.number)
    if not store.present():
        raise ResultsLost(
            f"{shown_place(store)}: the results directory was removed, renamed or replaced while its trials ran, so "
            f"nothing more was written; if it has another name now, resume with: --resume and that name"
        )
    if stopping.since is not None and sweep.tune.time_budget is not None:
        progress.warn(f"the time budget of {sweep.tune.time_budget:g} s is used up")
    return sweep


def _finish(sweep: Sweep, store: Store, where: Where) -> Outcome:
    """Write the report after trials have run; if it cannot be written, the results of the trials are still present."""
    try:
        return conclude(store, sweep)
    except OSError as fault:
        raise ResultsLost(
            f"the report cannot be written: {describe_error(fault)}; resume with: {where.resume_command(store)}"
        ) from None


def interrupted(store: Store, where: Where, number: int) -> SweepInterrupted:
    """The exception for a sweep that the signal of this number interrupted."""
    return SweepInterrupted(f"interrupted; resume with: {where.resume_command(store)}", store.place, number)


@contextmanager
def _explaining(store: Store, where: Where) -> Iterator[None]:
    """Turn what ends a running sweep into an exception that says how the sweep is resumed.

    The traceback of an exception that nobody expected goes into the sweep's `error.txt`.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise interrupted(store, where, signal.SIGINT) from None
    except (InputError, ResultsLost, SweepInterrupted):
        raise
    except Exception as fault:
        note_traceback(store.root)
        raise SweepBrokeOff(
            f"the sweep broke off: {describe_error(fault)} (traceback in {shown_path(store.root / 'error.txt')}); "
            f"resume with: {where.resume_command(store)}"
        ) from None
