"""What raysweep does, as functions: the command line and Python call the same ones.

They take typed arguments, return objects and raise; they never print. The caller may pass a `Progress` (see
`raysweep.backends.progress`), which is told what happens meanwhile.

Example:
    >>> outcome = run({"base": {"dataset": "digits"}, "search": {"alpha": [0.1, 1], "seed": [0, 1]}}, local=True)
    >>> [point.name for point in outcome.report.points]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysweep import evaluations, preparation
from raysweep import parts as tables
from raysweep.backends.progress import Progress, Silence
from raysweep.config import Settings
from raysweep.evaluations import PlannedEvaluation
from raysweep.plugins import Plugin, check_origin, given
from raysweep.preparation import Space, check_picture, dataset_of
from raysweep.results.cleaning import clean_up
from raysweep.results.continuing import planned_continuations, with_continuations
from raysweep.results.encoders import check_encoders
from raysweep.results.mirror import local_encoder
from raysweep.results.opening import open_sweeps
from raysweep.results.store import Store
from raysweep.results.sweep_file import check_version, recorded_datasets
from raysweep.running import DEFAULT, conclude, describe_for_tensorboard, explaining, finish, prepare, pretrainings
from raysweep.running import Outcome as Outcome
from raysweep.running import RunOptions as RunOptions
from raysweep.running import run_new as run_new
from raysweep.running import run_trials as run_trials
from raysweep.space import Sweep, race_words
from raysweep.system.terminal import counted

if TYPE_CHECKING:
    from raysweep.data.dataset import Dataset
    from raysweep.estimate import Estimate
    from raysweep.report.contents import Report
    from raysweep.report.preview import Panel


def plan(
    source: Space | None,
    overrides: Mapping[str, Any],
    options: RunOptions = DEFAULT,
    *,
    plugins: Sequence[str | Path] = (),
    parts: Sequence[Callable[..., Any]] = (),
) -> Sweep:
    """The checked sweep of a search space, without loading data or starting anything.

    Args:
        source: a search space; None: only what `overrides` says.
        overrides: settings by name (a list becomes a grid), `baseline`, `tune.NAME`, `seeds.NAME`, `resources.NAME`.
        options: how and where it will run.
        plugins: files or installed modules with parts; the search space may list more of them.
        parts: decorated functions and classes, which are passed to the workers by value.

    Raises:
        InputError: one line that names what is wrong.

    Example:
        >>> plan(None, {"usl_type": "simclr", "temperature": [0.1, 0.5]}).total
        2
    """
    sweep = preparation.build_sweep(source, overrides, given(plugins, parts))
    preparation.check_paths(sweep)
    preparation.check_requirements(sweep, options.local, options.address)
    return sweep


def estimate(sweep: Sweep, *, local: bool = False, share: bool = True) -> Estimate:
    """Load the data of a sweep, time a few steps of each kind of trial on this machine, and estimate the sweep's time.

    Args:
        sweep: the sweep, from `plan`.
        local: whether the trials would run one after the other in one process.
        share: whether trials would share pretrainings.

    Raises:
        InputError: a dataset cannot be loaded or does not fit the settings.

    Example:
        >>> estimate(plan(None, {"dataset": "digits"})).total  # seconds
    """
    datasets = preparation.load_datasets(sweep, {})
    from raysweep import estimate as timing

    return timing.estimate(sweep, datasets, local, share)


def run(
    source: Space | None,
    overrides: Mapping[str, Any] | None = None,
    *,
    output: str = "runs",
    name: str | None = None,
    options: RunOptions = DEFAULT,
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
        options: how and where the trials run.
        progress: told what happens; None: nothing is shown.
        plugins: see `plan`.
        parts: see `plan`.

    Raises:
        InputError: the input is faulty; nothing was left behind.
        SweepInterrupted: the user interrupted the sweep; its trials are saved.
        SweepBrokeOff: something unexpected happened; the results so far are kept.
    """
    progress = progress or Silence()
    sweep = plan(source, overrides or {}, options, plugins=plugins, parts=parts)
    return run_new(sweep, Store.plan(output, name, sweep.name), options, progress)


def plan_evaluation(
    place: str,
    source: Space | None,
    overrides: Mapping[str, Any],
    options: RunOptions = DEFAULT,
    *,
    plugins: Sequence[str | Path] = (),
    parts: Sequence[Callable[..., Any]] = (),
) -> PlannedEvaluation:
    """Return the checked evaluation of trained encoders, without loading data or starting anything; see `evaluate`.

    Raises:
        InputError: one line that names what is wrong.

    Example:
        >>> plan_evaluation("runs/alpha", None, {"labels_per_class": [1, 10]}).sweep.total
    """
    planned = evaluations.plan_evaluation(place, source, overrides, given(plugins, parts))
    preparation.check_paths(planned.sweep)
    preparation.check_requirements(planned.sweep, options.local, options.address)
    return planned


def evaluate(
    place: str,
    source: Space | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    output: str | None = None,
    name: str | None = None,
    options: RunOptions = DEFAULT,
    progress: Progress | None = None,
    plugins: Sequence[str | Path] = (),
    parts: Sequence[Callable[..., Any]] = (),
) -> Outcome:
    """Evaluate trained encoders under other evaluation settings, without pretraining, and write a report.

    Args:
        place: the results directory of a sweep, whose encoders are all evaluated; or one encoder: its file, or the
            directory of its trial. Each may be in a bucket.
        source: a search space of evaluation settings; None: only what `overrides` says.
        overrides: evaluation settings by name; see `plan`.
        output: for one encoder, the directory in which the results directory is made; None: `runs`. The results of a
            sweep's encoders are in its directory, below `evaluations`.
        name: see `run`.
        options: how and where the trials run.
        progress: told what happens; None: nothing is shown.
        plugins: see `plan`; the plugins of the sweep are in its results directory.
        parts: see `plan`.

    Raises:
        InputError, SweepInterrupted, SweepBrokeOff: see `run`.

    Example:
        >>> evaluate("runs/alpha", None, {"probe_dataset": "cifar10"}).report.in_words()
    """
    planned = plan_evaluation(place, source, overrides or {}, options, plugins=plugins, parts=parts)
    store = Store.plan(planned.directory(output), name, planned.sweep.name)
    return run_new(planned.sweep, store, options, progress or Silence(), planned.digests, planned.encoder)


def plan_resume(
    place: str, source: Space | None, overrides: Mapping[str, Any], options: RunOptions, extra: Sequence[Plugin] = ()
) -> tuple[Sweep, Sweep, frozenset[str]]:
    """Return what would be resumed with the plugins `extra`; see `resume`.

    Returns:
        The existing sweep at `place`, the sweep that would be resumed, and the names of the trials that have ended.

    Raises:
        InputError: `resume` would refuse to resume the sweep, for a reason that needs neither data nor Ray.
    """
    store, before, sweep = _planned(place, source, overrides, options, extra)
    kept = preparation.check_resumable(store, sweep)
    done = frozenset(result.trial for result in kept)
    return before, planned_continuations(store, sweep, kept, options.share), done


def resume(
    place: str,
    source: Space | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    options: RunOptions = DEFAULT,
    progress: Progress | None = None,
    plugins: Sequence[str | Path] = (),
    parts: Sequence[Callable[..., Any]] = (),
) -> Outcome:
    """Resume an existing sweep: run the trials that have not finished, and write its report.

    Args:
        place: its results directory, or the URI of one in a bucket.
        source: a search space whose points are added; None: no points are added.
        overrides: settings that change the search space; see `plan`.
        options: how and where the trials run.
        progress: told what happens; None: nothing is shown.
        plugins: see `plan`; the existing plugins of the sweep are in its results directory.
        parts: see `plan`; the existing parts of the sweep are needed again.

    Raises:
        InputError, SweepInterrupted, SweepBrokeOff: see `run`.

    Example:
        >>> resume("runs/alpha", None, {"alpha": [0.1, 1, 10]}).sweep.total
    """
    progress, overrides, extra = progress or Silence(), overrides or {}, given(plugins, parts)
    _planned(place, source, overrides, options, extra)
    store = Store(place)
    with store.lock():
        _, before = Store.open(store.place, given=extra)  # another process may have resumed it in the meantime
        sweep = preparation.extended(before, store, source, overrides, extra)
        added, changed = sweep.total - before.total, sweep.to_dict() != before.to_dict()
        store.check_settings_of_attempts(sweep)
        store.set_damaged_aside(sweep)
        kept = [result for result in store.results(sweep) if result.status != "failed"]
        if len(kept) == sweep.total and not sweep.races:
            if changed:
                store.extend(sweep, preparation.provenance())
                describe_for_tensorboard(store, sweep)
            clean_up(store, sweep, kept)
            done = "the trial has" if len(kept) == 1 else f"all {len(kept)} trials have"
            progress.tell(f"{store.place}: {done} finished")
            return conclude(store, sweep)
        check_version(sweep, store.root, store.place)
        datasets, words = prepare(sweep, store, recorded_datasets(store.root), options, progress)
        preparation.check_kept(sweep, kept, datasets)
        if changed:
            store.extend(sweep, {**preparation.provenance(), "datasets": preparation.digests(datasets)})
            describe_for_tensorboard(store, sweep)
        if before.resources != sweep.resources:
            progress.warn(
                "warning: the resources changed; with other threads or a GPU, results differ in their last digits"
            )
        new = f" ({added} new)" if added else ""
        sweep, continued = with_continuations(store, sweep, kept, options.share)
        planned = race_words(sweep) if sweep.races else counted(sweep.total, "trial")
        planned += f"{new}{continued}{pretrainings(sweep, options.share, {result.trial for result in kept})}"
        progress.tell(f"{store.place}: {planned}, {len(kept)} finished before, {words}")
        with explaining(store, options):
            return finish(run_trials(sweep, store, datasets, kept, options, progress), store, options)


def rebuild_report(place: str) -> Outcome:
    """Write the report of the existing sweep at `place` again; raises InputError if it cannot be read."""
    return conclude(*open_sweeps([place])[0])


def compare(places: Sequence[str], output: str | None = None) -> tuple[Report, Path]:
    """Write a report that sets several sweeps side by side.

    Args:
        places: their results directories.
        output: the directory of the report, which must not exist; None: `NAME+NAME` beside the first sweep.

    Returns:
        The report and its directory.

    Raises:
        InputError: a sweep is given twice, the sweeps were not evaluated alike, or the directory cannot be made.

    Example:
        >>> compare(["runs/alpha", "runs/simclr"])[1]
        PosixPath('runs/alpha+simclr')
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

    with (progress or Silence()).waiting("loading the data; missing datasets are downloaded"):
        figure = drawing.draw(sweep, dataset_of)
    drawing.save(figure, output)
    return drawing.panels_of(sweep)


def fetch(name: str, data_dir: Path) -> Dataset:
    """Read a dataset. If it is missing it is downloaded, so that a node without a network can use it later.

    Args:
        name: the name of a dataset, or `folder:PATH`, which is only read.
        data_dir: the folder of downloaded datasets, as in the setting `data_dir`.

    Returns:
        The dataset as a trial reads it, with the defaults of the dataset's own parameters.

    Raises:
        InputError: the name is unknown, the files are damaged, or the dataset cannot be downloaded.

    Example:
        >>> len(fetch("cifar10", Path("data")).train_images)
        50000
    """
    from raysweep.data import loading
    from raysweep.data.folders import check_exists

    check_exists(name)
    parameters = tables.dataset[name].arguments(Settings()) if name in tables.dataset else None
    return loading.load(name, data_dir=data_dir, parameters=parameters)


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
    """Write the features that a trained encoder gives for images; see `raysweep.portable.embed`.

    Returns:
        The number of images, and the number of features of each.
    """
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
    place: str, source: Space | None, overrides: Mapping[str, Any], options: RunOptions, extra: Sequence[Plugin]
) -> tuple[Store, Sweep, Sweep]:
    """Return the store of the sweep at `place` for reading, the existing sweep, and the sweep to resume."""
    # The copy for reports, because another process may be at work in the copy of a bucket.
    store, before = Store.open(place, copies="reports", given=extra)
    for plugin in before.plugins:
        check_origin(plugin)
    sweep = preparation.extended(before, store, source, overrides, extra)
    preparation.check_paths(sweep)
    check_encoders(store, sweep)
    preparation.check_requirements(sweep, options.local, options.address, is_new=False)
    return store, before, sweep
