"""Planning of an evaluation: the trained encoders that it reads, its trials, and the place of its results."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from raysweep import space
from raysweep.config import make_settings
from raysweep.config.images import dataset_name, labelled_name
from raysweep.config.protocol import LABELS_LEFT_OUT
from raysweep.errors import InputError
from raysweep.plugins import Plugin, activate, active, merged, with_existing
from raysweep.preparation import Space, read_space
from raysweep.results.bucket import Bucket
from raysweep.results.checkpoints import digest_of
from raysweep.results.credentials import is_uri, join, resolve
from raysweep.results.encoders import (
    ENCODER,
    OLD_ENCODER,
    SavedEncoder,
    encoder_file,
    load_encoder,
    source_file,
    to_safetensors,
)
from raysweep.results.mirror import local_encoder, trial_place
from raysweep.results.store import Store
from raysweep.results.sweep_file import explanation, history, recorded_datasets
from raysweep.space import Agreement, EncoderSource, FrozenDict, Sweep, Trial, complete_rounds
from raysweep.space.seen_labels import reads_labels
from raysweep.system.files import unwritable

EVALUATIONS = "evaluations"
"""The folder of a sweep's results directory that holds its evaluations."""


@dataclass(frozen=True)
class PlannedEvaluation:
    """A checked evaluation before anything starts."""

    sweep: Sweep
    of_sweep: str | None
    """The results directory of the sweep whose encoders are evaluated; None for a single encoder."""
    encoder: bytes | None = None
    """The content of the encoder file, for a single encoder."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """The digests, by name, of the datasets on which the encoders were evaluated before."""

    def directory(self, output: str | None) -> str:
        """Return the directory in which the results directory is created.

        Raises:
            InputError: The user gives a directory for the evaluation of a sweep, or may not write to the sweep.
        """
        if self.of_sweep is None:
            return output or "runs"
        if output is not None:
            raise InputError(
                f"--output {output}: the evaluation of a sweep is written to {EVALUATIONS}/ in the sweep; leave the "
                "option out, or evaluate a single encoder"
            )
        if is_uri(self.of_sweep):
            return join(self.of_sweep, EVALUATIONS)
        directory = Path(self.of_sweep, EVALUATIONS)
        reason = unwritable(directory)
        if reason:
            raise InputError(
                f"{self.of_sweep}: {reason}; the evaluation is written to {EVALUATIONS}/ in the sweep, so evaluate a "
                "copy of the sweep's directory, or single encoders with --output"
            )
        return str(directory)


def plan_evaluation(
    place: str, source: Space | None, overrides: Mapping[str, Any], extra: Sequence[Plugin]
) -> PlannedEvaluation:
    """Plan the evaluation of a sweep's encoders, or of a single encoder; see `raysweep.api.evaluate`.

    Raises:
        InputError: There is no encoder, an encoder is damaged, a bucket cannot be reached, or the search space is
            invalid.
    """
    raw, where, listed = read_space(source, "evaluation")
    raw = {"name": "evaluation", **raw}
    extra = merged(listed, extra)
    if is_uri(place):
        Bucket(place).check(write=False)
    if is_sweep(place):
        return plan_for_sweep(place, raw, where, overrides, extra)
    whole = place.rstrip("/") if is_uri(place) else str(Path(place).absolute())
    trial_directory = trial_place(whole)
    parent = parent_of(trial_directory)
    if is_sweep(parent):
        store, sweep = Store.open(parent, copies="reports", given=extra, beside=extra)
        name = (trial_directory.partition("?")[0] if is_uri(place) else trial_directory).rpartition("/")[2]
        trial = next((trial for trial in sweep.trials if trial.name == name), None)
        if trial is not None:
            plugins = with_existing(sweep.plugins, extra)
            store.pull(trial.name)
            return plan_for_one(place, trial, raw, where, overrides, plugins, (store, sweep))
    directory = Path(place)
    encoders = [f"{inside}{name}" for name in (ENCODER, OLD_ENCODER) for inside in ("", "*/")]
    if directory.is_dir() and not any(any(directory.glob(name)) for name in (*encoders, "checkpoints/*.pt")):
        what = explanation(place, directory / "sweep.yaml")
        raise InputError(f"{place}: there is no encoder (no {ENCODER}) and no sweep {what}")
    activate(extra)
    return plan_for_one(place, None, raw, where, overrides, extra)


def plan_for_sweep(
    place: str, raw: Mapping[str, Any], where: str, overrides: Mapping[str, Any], extra: Sequence[Plugin]
) -> PlannedEvaluation:
    """Plan the evaluation of every encoder that a sweep has kept so far; see `plan_evaluation`."""
    from raysweep.data.folders import is_meant_unlabelled

    store, sweep = Store.open(place, copies="reports", given=extra, beside=extra)
    if sweep.encoders:
        raise InputError(f"{place}: is an evaluation itself and has no encoders; give the sweep that trained them")
    plugins = with_existing(sweep.plugins, extra)
    store.pull()
    encoders = with_labels(store, [checked(store, trial) for trial in kept_encoders(store, sweep)])
    if not encoders:
        raise InputError(f"{place}: no trial has kept an encoder ({ENCODER}) yet, so there is nothing to evaluate")
    evaluation = space.build_evaluation(
        with_resources(raw, sweep, where),
        overrides,
        where,
        encoders,
        controls=sweep.baseline or (space.RANDOM,),
        plugins=plugins,
        trained_search=sweep.search,
        missing=missing_encoders(store, sweep, {encoder.name for encoder in encoders}),
        trained_tune=sweep.tune,
        is_unlabelled=is_meant_unlabelled,
    )
    evaluation = replace(evaluation, race=sweep.race)  # a race looks at results and adds seeds, so intervals are wider
    if not evaluation.examples[0].settings.probe_labels:
        evaluation = replace(evaluation, agreement=agreement_in(store, sweep, evaluation.metric))
    return PlannedEvaluation(evaluation, store.place, digests=evaluated_before(store, sweep, encoders))


def plan_for_one(
    place: str,
    trial: Trial | None,
    raw: Mapping[str, Any],
    where: str,
    overrides: Mapping[str, Any],
    plugins: Sequence[Plugin],
    opened: tuple[Store, Sweep] | None = None,
) -> PlannedEvaluation:
    """Plan the evaluation of one encoder; see `plan_evaluation`.

    If it is known that `trial` of a sweep trained the encoder, `opened` has the store and the sweep.
    """
    from raysweep.data.folders import is_meant_unlabelled
    from raysweep.portable import check_fit

    sweep = None if opened is None else opened[1]
    saved = load_encoder(encoder_file(local_encoder(place)))
    check_fit(saved)
    if trial is None:
        plugins = with_existing(active(), plugins)  # the file may lie in a sweep with plugins
        activate(plugins)
        trial = trial_of_unknown_encoder(saved, probe_dataset_in(raw, overrides), place)
    content = content_of(saved)
    source = EncoderSource(ENCODER, saved.channels, saved.image_size, digest_of(content))
    encoder = replace(trial, control="", source=source)
    if opened is not None:
        (encoder,) = with_labels(opened[0], [encoder])
    evaluation = space.build_evaluation(
        raw if sweep is None else with_resources(raw, sweep, where),
        overrides,
        where,
        [encoder],
        controls=(space.RANDOM,),
        seeds=True,
        plugins=tuple(plugins),
        trained_search=() if sweep is None else sweep.search,
        trained_tune=None if sweep is None else sweep.tune,
        is_unlabelled=is_meant_unlabelled,
    )
    digests = {} if opened is None else evaluated_before(*opened, [encoder])
    return PlannedEvaluation(evaluation, None, encoder=content, digests=digests)


def is_sweep(place: str) -> bool:
    """Return whether a place has the `sweep.yaml` of a sweep."""
    return "sweep.yaml" in Bucket(place).names() if is_uri(place) else Path(place, "sweep.yaml").is_file()


def parent_of(place: str) -> str:
    """Return the directory that contains a path or a URI."""
    return resolve(place, "..") if is_uri(place) else str(Path(place).absolute().parent)


def kept_encoders(store: Store, sweep: Sweep) -> Iterator[Trial]:
    """Yield the trials of a sweep that have kept an encoder, each with a source without sizes."""
    files = set(store.bucket.files()) if store.bucket is not None else set()
    for trial in sweep.trials:
        for file in (ENCODER, OLD_ENCODER):
            name = f"{trial.name}/{file}"
            if name in files or (store.bucket is None and (store.root / name).is_file()):
                yield replace(trial, source=EncoderSource(name, 0, 0))
                break


def missing_encoders(store: Store, sweep: Sweep, kept: Collection[str]) -> list[Trial]:
    """Return the trials of points that have no encoder.

    Such a trial failed, was stopped or has not finished, or its file was removed.

    In a race of seeds, a trial that has not ended counts only if its round is complete or the first one, because each
    round gives more seeds only to the points that may be the best. See `complete_rounds`.

    Args:
        store: The results directory of the sweep.
        sweep: The sweep.
        kept: The names of the trials that have an encoder.
    """
    ended = {result.trial for result in store.results(sweep, skip_damaged=True)} if sweep.rounds else set()
    planned = {trial.name for trial in complete_rounds(sweep, ended).trials} | ended
    return [trial for trial in sweep.trials if not trial.baseline and trial.name in planned - set(kept)]


def checked(store: Store, trial: Trial) -> Trial:
    """Return a trial with the sizes of its encoder, and with its file relative to the directory of the evaluation.

    Raises:
        InputError: The file is damaged, or is the encoder of another experiment.
    """
    from raysweep.portable import check_fit

    file = source_file(store, trial)
    assert file is not None
    assert trial.source is not None
    saved = load_encoder(file)
    check_fit(saved)
    if (saved.architecture, saved.embedding_dim) != (trial.settings.encoder, trial.settings.embedding_dim):
        raise InputError(f"{file}: is not the encoder of its trial: it is a {saved.architecture}")
    digest = digest_of(saved.file.read_bytes())
    source = EncoderSource(f"../../{trial.source.file}", saved.channels, saved.image_size, digest)
    return replace(trial, source=source)


def evaluated_before(store: Store, sweep: Sweep, encoders: Sequence[Trial]) -> dict[str, str]:
    """Return the digests of the datasets on which a sweep evaluated its encoders, as `digests` names them."""
    digests = dict(recorded_datasets(store.root))
    results = {result.trial: result for result in store.results(sweep, skip_damaged=True)}
    for trial in encoders:
        if trial.name in results:
            assert trial.source is not None
            name = recorded_name(trial, trial.settings.evaluated_dataset, trial.source.channels)
            digests[name] = str(results[trial.name].protocol.get("probe_data"))
    return digests


def with_labels(store: Store, encoders: Sequence[Trial]) -> list[Trial]:
    """Return the trials that trained encoders, with what is known about the labels that they read.

    A sweep records the digests of its datasets. If the record of an older version lacks them, names are compared.

    Args:
        store: The results directory of their sweep.
        encoders: The trials, each with its source.
    """
    begun, recorded = history(store.root)[0].get("protocol", 1), recorded_datasets(store.root)
    trials = []
    for trial in encoders:
        settings, source = trial.settings, trial.source
        if reads_labels(settings):
            assert source is not None
            trained = recorded.get(recorded_name(trial, settings.dataset, None), "")
            evaluated = recorded.get(recorded_name(trial, settings.evaluated_dataset, source.channels))
            is_divided = settings.evaluated_dataset == settings.dataset or trained == evaluated
            source = replace(source, labels_of=trained, leaves_out=is_divided and begun >= LABELS_LEFT_OUT)
        trials.append(replace(trial, source=source))
    return trials


def recorded_name(trial: Trial, dataset: str, channels: int | None) -> str:
    """Return the name under which the sweep of a trial recorded the digest of a dataset; see `dataset_name`."""
    assert trial.source is not None
    return dataset_name(labelled_name(dataset, trial.settings), trial.source.image_size, channels)


def agreement_in(store: Store, sweep: Sweep, measure: str | None) -> Agreement | str | None:
    """Return how well a measure without labels ranked the points of a sweep by its score; see `Sweep.agreement`."""
    from raysweep.report import building, choosing  # SciPy takes time

    try:
        report = building.read(store, sweep, skip_damaged=True)
    except InputError:  # this evaluation itself does not need that the sweep's results are comparable
        return "its results were not evaluated alike"
    return choosing.agreement(report, measure)


def with_resources(raw: Mapping[str, Any], sweep: Sweep, where: str) -> dict[str, Any]:
    """Return a search space whose trials get the resources of the sweep, unless the search space gives others."""
    resources = {"cpu": sweep.resources.cpu, "gpu": sweep.resources.gpu}
    return {**raw, "resources": {**resources, **space.mapping(raw.get("resources"), f"{where}: resources")}}


def trial_of_unknown_encoder(saved: SavedEncoder, dataset: object, place: str) -> Trial:
    """Return a trial that stands for the unknown pretraining of an encoder.

    It has the strength 0, because LiDAR needs the augmentation of pretraining.

    Raises:
        InputError: No dataset for the evaluation is given.
    """
    if not isinstance(dataset, str):
        raise InputError(f"{place}: the file does not say on which images to evaluate it; set probe_dataset")
    values = {
        **saved.arguments,
        "encoder": saved.architecture,
        "embedding_dim": saved.embedding_dim,
        "dataset": dataset,
        "usl_epochs": 0,
        "strength": 0.0,
    }
    settings = make_settings(values, place)
    return Trial("seed=0", "default", settings, FrozenDict({"seed": settings.seed}))


def probe_dataset_in(raw: Mapping[str, Any], overrides: Mapping[str, Any]) -> object:
    """Return the first dataset on which a search space evaluates; None if it names none."""
    searched = raw.get("search") or {}
    places = [overrides, raw.get("base") or {}, *(searched if isinstance(searched, list) else [searched])]
    given = next((each["probe_dataset"] for each in places if isinstance(each, dict) and "probe_dataset" in each), None)
    if isinstance(given, dict):
        given = next(iter(given.values()), None)
    return given[0] if isinstance(given, list) and given else given


def content_of(saved: SavedEncoder) -> bytes:
    """Return an encoder as the content of a safetensors file."""
    if saved.file.suffix == ".safetensors":
        return saved.file.read_bytes()
    description = {
        "architecture": saved.architecture,
        "channels": saved.channels,
        "image_size": saved.image_size,
        "embedding_dim": saved.embedding_dim,
        "arguments": dict(saved.arguments),
    }
    return to_safetensors(saved.weights, description)
