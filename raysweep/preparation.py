"""What happens before the trials of a sweep run: checks, provenance, and the loading of the data."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING, Any

from raysweep import __version__, parts, space
from raysweep.backends.ray.environment import check_address
from raysweep.config import Settings, protocol
from raysweep.errors import InputError
from raysweep.plugins import Plugin, activate, find, with_existing
from raysweep.results.credentials import is_uri
from raysweep.results.result import Result, protocol_difference
from raysweep.results.store import Store, candidates, check_writable, shown_place
from raysweep.results.sweep_file import check_version, recorded_datasets, with_proposals
from raysweep.space import Sweep
from raysweep.space.checking import NAME
from raysweep.space.seen_labels import reads_labels
from raysweep.space.storage import database_file

if TYPE_CHECKING:
    from raysweep.data.dataset import Dataset
    from raysweep.data.selection import Datasets

REPORT_IMPORT_SECONDS = 10.0

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".pdf", ".svg")

Space = Path | Mapping[str, Any] | Sweep
"""A search space: a file, its content, or a checked sweep."""


@cache  # parsing the arguments of a sweep asks three times
def shipped_spaces() -> dict[str, Path]:
    """The search spaces that come with raysweep: inside the package once installed, beside it in a checkout.

    Their names are the paths below the folder without `.yaml`: `alpha`, `published/solo-byol`.
    """
    package = Path(__file__).parent
    folder = package / "search_spaces" if (package / "search_spaces").is_dir() else package.parent / "search_spaces"
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in folder.rglob("*.yaml")}


def build_sweep(
    source: Space | None, overrides: Mapping[str, Any], given: Sequence[Plugin] = (), existing: Sweep | None = None
) -> Sweep:
    """The checked sweep of a search space.

    Args:
        source: a search-space file, its content, or a sweep; None: only what `overrides` says.
        overrides: settings by name (a list becomes a grid), `baseline`, `tune.NAME`, `seeds.NAME`, `resources.NAME`.
        given: plugins that the caller names; the search space may list more of them.
        existing: the existing sweep that this one extends; its plugins are used, and must not have changed.

    Raises:
        InputError: one line that names the key, what was given and what is valid.
    """
    name = overrides.get("usl_type", Settings().usl_type)
    is_name = isinstance(name, str) and NAME.fullmatch(name)  # a text that names no method is refused as such
    raw, where, listed = read_space(source, name if is_name else "sweep")
    plugins = with_existing(existing.plugins if existing is not None else (), (*listed, *given))
    activate(plugins)
    if isinstance(source, Sweep) and not overrides and plugins == source.plugins:
        return source
    from raysweep.data.folders import is_meant_unlabelled

    return space.build(raw, overrides, where, plugins=plugins, is_unlabelled=is_meant_unlabelled)


def read_space(source: Space | None, default: str) -> tuple[Mapping[str, Any], str, tuple[Plugin, ...]]:
    """Return the content of a search space, the start of messages about it, and the plugins that it lists.

    Without a search space, the content is only the name `default`.

    Raises:
        InputError: the file or a plugin cannot be read.
    """
    if isinstance(source, Sweep):
        return source.to_dict(), source.name, source.plugins
    raw: Mapping[str, Any]
    folder = Path.cwd()
    if isinstance(source, Mapping):
        raw, where = source, str(source.get("name", "search space"))
    elif source is not None:
        raw, where, folder = space.read(source), str(source), source.parent
        where = source.name if source in shipped_spaces().values() else where
    else:
        raw, where = {"name": default}, "command line"
    return raw, where, find(raw.get("plugins") or (), folder, f"{where}: plugins")


def check_paths(sweep: Sweep, is_evaluated: bool = True) -> None:
    """Check the datasets of a sweep by the names of their files, before anything heavy is imported.

    With `is_evaluated`, the datasets must have the labels that trials are evaluated or trained with.

    Raises:
        InputError: a dataset does not exist or lacks labels, or a searched setting has no effect on it.
    """
    from raysweep.data.folders import check_exists, labels_all_pretraining_images
    from raysweep.data.layout import has_val_folder
    from raysweep.data.selection import check_validation, refuse_unlabelled

    pretrains = [trial for trial in sweep.examples if trial.source is None]
    for name in dict.fromkeys(trial.settings.dataset for trial in pretrains):
        check_exists(name)
    trained = {trial.settings.dataset: trial for trial in pretrains if reads_labels(trial.settings)}
    for name, trial in trained.items() if is_evaluated else ():
        if not labels_all_pretraining_images(name):
            refuse_unlabelled(trial.settings, "baseline" if trial.baseline else "usl_type")
    with_labels = {trial.settings.evaluated_dataset for trial in sweep.examples if trial.settings.probe_labels}
    for name in dict.fromkeys(trial.settings.evaluated_dataset for trial in sweep.examples):
        check_exists(name, labelled=is_evaluated and name in with_labels)
        if has_val_folder(name):
            check_validation(name, [t.settings for t in sweep.examples if t.settings.evaluated_dataset == name])


def comparison_directories(
    places: Sequence[str], stores: Sequence[Store], output: str | None
) -> Callable[[str], Iterable[Path]]:
    """Return a function that turns the name of a comparison into the directories that it may take, in order.

    Raises:
        InputError: no directory can be made.
    """
    if output is not None:
        if is_uri(output):
            raise InputError(f"-o {output}: a comparison must be in a local directory")
        if os.path.lexists(output):
            raise InputError(f"-o {output}: exists; choose another directory")
        check_writable(Path(output))
        return lambda name: [Path(output)]
    if stores[0].bucket is not None:
        raise InputError(f"{places[0]}: is in a bucket; name a local directory for the comparison with -o DIR")
    check_writable(stores[0].root.resolve().parent)
    return lambda name: (stores[0].root.resolve().parent / candidate for candidate in candidates(None, name))


def check_requirements(sweep: Sweep, local: bool, address: str | None, is_new: bool = True) -> None:
    """Raise InputError if a sweep needs something that is absent: Ray, an optional package, or a directory.

    A resume may lack the directory of the study, because it does not depend on the study.
    """
    if not local and address is None:
        try:
            check_address(os.environ.get("RAY_ADDRESS", ""))
        except InputError as fault:
            raise InputError(f"RAY_ADDRESS: {fault}") from None
    tune = sweep.tune
    needs_ray = [f"tune.scheduler: {tune.scheduler}"] if tune.scheduler != "fifo" else []
    needs_ray += [f"tune.searcher: {tune.searcher}"] if tune.searcher != "none" else []
    if local and needs_ray:
        raise InputError(f"--local runs trials one after the other, without Ray, but {needs_ray[0]} needs Ray")
    if local and sweep.resources.workers > 1:
        raise InputError(
            f"--local runs each trial in one process, but resources.workers is {sweep.resources.workers}; set "
            "resources.workers=1"
        )
    if tune.searcher == "optuna" and find_spec("optuna") is None:
        raise InputError(
            f"tune.searcher: {tune.searcher} needs a package that is not installed: pip install 'optuna>=5'"
        )
    study = database_file(tune.storage) if is_new and tune.storage is not None else None
    if study is not None and not study.parent.is_dir():
        raise InputError(f"tune.storage: {tune.storage}: there is no directory {str(study.parent)!r}")


def load_datasets(sweep: Sweep, recorded: Mapping[str, str]) -> Datasets:
    """Load the datasets of a sweep, and check every trial against them.

    Args:
        sweep: the sweep.
        recorded: the digests of the datasets with which the sweep was started; empty for a new one.

    Raises:
        InputError: a dataset cannot be loaded, does not fit the settings, or has changed; or a part of a plugin fails.
    """
    from raysweep.data.selection import (
        check_data,
        check_evaluation,
        check_unchanged,
        check_unseen,
        check_validation,
        data_of,
        refuse_unlabelled,
    )

    trained = {encoder.source: encoder.settings for encoder in sweep.encoders}
    datasets: Datasets = {}
    validated: dict[str, list[Settings]] = {}
    for trial in sweep.examples:
        data = data_of(trial, datasets, load=True)
        if not recorded and trial.source is None and data.probe.val_images is not None:
            validated.setdefault(trial.settings.evaluated_dataset, []).append(trial.settings)
        if trial.source is not None:
            check_evaluation(trial.settings, data)
            if trial.source in trained:  # a control without an encoder file is not
                check_unseen(trained[trial.source], trial, data)
            continue
        if reads_labels(trial.settings) and data.labels is None:
            refuse_unlabelled(trial.settings, "baseline" if trial.baseline else "usl_type")
        check_data(trial.settings, data)
    for name, trials in validated.items():
        check_validation(name, trials)
    check_unchanged(datasets, recorded)
    if sweep.plugins:
        from raysweep.part_checks import check_parts

        check_parts(sweep, datasets)
    if sweep.tune.metric is not None and sweep.tune.metric.endswith("_lidar"):
        from raysweep.probes.label_free import check_lidar

        points = (trial for trial in sweep.examples if not trial.baseline)
        shapes = ((trial.settings, data_of(trial, datasets).pretrain.shape[1:3]) for trial in points)
        check_lidar(sweep.tune.metric, shapes)
    return datasets


def digests(datasets: Datasets) -> dict[str, str]:
    """The digest of each dataset; see `raysweep.data.selection.digests`."""
    from raysweep.data import selection

    return selection.digests(datasets)


def extended(
    existing: Sweep, store: Store, source: Space | None, overrides: Mapping[str, Any], extra: Sequence[Plugin]
) -> Sweep:
    """The existing sweep extended by the new points of `source` and `overrides`, and by the plugins `extra`.

    Raises:
        InputError: the new points do not fit the existing sweep.
    """
    if source is None and not overrides and not extra:
        return existing
    if existing.encoders:
        has_new = len(with_existing(existing.plugins, extra)) > len(existing.plugins)
        if source is not None or overrides or has_new:
            raise InputError(f"{shown_place(store)}: an evaluation takes no new settings; start another one")
        return existing
    by = build_sweep(store.root / "sweep.yaml" if source is None else source, overrides, extra, existing)
    name = source if isinstance(source, Path) else "search space" if source is not None else "command line"
    return with_proposals(store.root, space.extend(existing, by, f"{name} for {shown_place(store)}"))


def check_resumable(store: Store, sweep: Sweep) -> list[Result]:
    """Return the results that a resume would keep. Nothing is written.

    Raises:
        InputError: the existing trials do not fit the sweep that would be resumed.
    """
    store.pull()
    store.check_settings_of_attempts(sweep)
    kept = [result for result in store.results(sweep, skip_damaged=True) if result.status != "failed"]
    if len(kept) < sweep.total:
        check_version(sweep, store.root, store.place)
        recorded_datasets(store.root)
        check_kept(sweep, kept)
    return kept


def check_kept(sweep: Sweep, kept: Sequence[Result], datasets: Datasets | None = None) -> None:
    """Raise InputError if a kept result was evaluated on other data or with another version than the remaining trials.

    Without `datasets`, the data are assumed not to have changed since the results were computed.
    """
    from raysweep.data.selection import data_of

    trials = {trial.name: trial for trial in sweep.trials}
    for result in kept:
        trial = trials[result.trial]
        digest = str(result.protocol.get("probe_data"))
        if datasets is not None:
            digest = data_of(trial, datasets).probe.digest
        now = protocol(trial.settings, digest)
        differs = protocol_difference(result.protocol, now)
        if differs is not None:
            key, was, value = differs
            raise InputError(
                f"{result.trial} was evaluated with {key} {was!r}, but the remaining trials would use {value!r}; "
                f"their scores could not be compared; start a new sweep"
            )


def provenance() -> dict[str, Any]:
    """What made a sweep: versions, the commit of a checkout, the command, the time."""
    versions: dict[str, Any] = {"raysweep": __version__, "python": sys.version.split()[0]}
    for package in ("torch", "torchvision", "ray", "scikit-learn", "numpy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # --local runs without Ray
            versions[package] = None
    source = Path(__file__).parent
    has_git = which("git") is not None and (source.parent / ".git").exists()
    git = ["git", "-C", str(source), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False) if has_git else None
    return {
        "versions": versions,
        "commit": commit.stdout.strip() if commit is not None and commit.returncode == 0 else None,
        "id": uuid.uuid4().hex,  # tells the sweep from others, even if its directory is renamed
        "command": shlex.join(sys.argv),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def check_picture(output: Path) -> None:
    """Raise InputError if no picture can be written to `output`, without writing."""
    if output.suffix.lower() not in PICTURES:
        raise InputError(f"{output}: the name of a picture ends with one of {' '.join(PICTURES)}")
    if os.path.lexists(output):
        raise InputError(f"{output}: exists; give another name, or remove it")
    if not output.parent.is_dir():
        raise InputError(f"{output}: there is no directory {str(output.parent)!r}")
    check_writable(output.parent)


def dataset_of(settings: Settings) -> Dataset:
    """The dataset that an experiment pretrains on, for a picture of its views.

    Raises:
        InputError: the dataset cannot be loaded, or a policy of a plugin fails.
    """
    from raysweep.data import loading

    name = settings.dataset
    dataset = loading.load(
        name,
        data_dir=Path(settings.data_dir),
        image_size=settings.image_size,
        skip_bad_images=settings.skip_bad_images,
        pretraining=False,
        parameters=parts.dataset[name].arguments(settings) if name in parts.dataset else None,
    )
    plugin_policies = [parts.policy[policy] for policy in settings.policies if parts.policy[policy].plugin]
    if plugin_policies:
        from raysweep.part_checks import check_policies

        check_policies(plugin_policies, settings, dataset)
    return dataset


@contextmanager
def importing_report() -> Iterator[None]:
    """Import the report's modules while trials run, because its reader would wait 2 s for them.

    The import starts after a delay, because workers import PyTorch first. If an import fails, it fails again at the
    report, which says so.
    """

    def import_report() -> None:
        for name in ("building", "figures"):
            with suppress(Exception):
                import_module(f"raysweep.report.{name}")

    timer = threading.Timer(REPORT_IMPORT_SECONDS, import_report)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
