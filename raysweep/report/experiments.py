"""Experiments in several sweeps: which points are the same experiment, and which controls they lend each other.

A point is what one sweep knows about an experiment. Points of several sweeps that are the same experiment count as one
point in the order and in all comparisons; it has the seeds of all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from raysweep import parts
from raysweep.config import SETTINGS, Settings, about
from raysweep.config.images import pretraining_images
from raysweep.plugins import Plugin
from raysweep.report.points import Point
from raysweep.results.result import Result
from raysweep.space import CONTROLS, computed, control_settings


def with_images(points: Sequence[Point], recorded: Mapping[str, Mapping[str, str]]) -> list[Point]:
    """Return the points of several sweeps, with the digests of their pretraining images where the sweeps differ.

    Images of one name may have changed between two sweeps. Older sweeps did not record digests. Their images count as
    the same ones if all recorded digests agree.

    Args:
        points: The points.
        recorded: For the label of each sweep, the digests of its datasets by name; see `recorded_datasets`.
    """
    names = [pretraining_images(point.settings) for point in points]
    known = {name: {digests[name] for digests in recorded.values() if name in digests} for name in set(names)}
    return [
        replace(point, images=recorded[point.sweep].get(name, "")) if len(known[name]) > 1 else point
        for point, name in zip(points, names, strict=True)
    ]


def with_code(points: Sequence[Point], plugins: Mapping[str, Sequence[Plugin]]) -> list[Point]:
    """Return the points of several sweeps, with the digests of the plugins of their parts where the sweeps differ.

    A plugin may have changed between two sweeps. The plugins of probes and datasets do not count here, because the
    protocol has the plugins of the probes, and a dataset is identified by its content.

    Args:
        points: The points.
        plugins: The plugins of each sweep, by its label.
    """
    names = {plugin.digest: plugin.name for each in plugins.values() for plugin in each}
    digests = {label: {plugin.name: plugin.digest for plugin in each} for label, each in plugins.items()}
    codes = []
    for point in points:
        used = [part for part in parts.in_use(point.settings) if part.plugin and part.kind not in ("probe", "dataset")]
        codes.append({f"{part.kind} {part.name}": digests[point.sweep].get(names[part.plugin], "") for part in used})
    known: dict[str, set[str]] = {}
    for code in codes:
        for part, digest in code.items():
            known.setdefault(part, set()).add(digest)
    return [
        replace(point, code={part: digest for part, digest in code.items() if len(known[part]) > 1})
        for point, code in zip(points, codes, strict=True)
    ]


def reads_images(settings: Settings) -> bool:
    """Return whether the encoder of an experiment depends on the pretraining images.

    It is trained or fitted on them. The encoder of a plugin may have a method `fit` without saying so.
    """
    encoder = parts.encoder[settings.encoder]
    return settings.pretrain_epochs > 0 or bool(encoder.traits["fits"] or encoder.plugin)


def changed_inputs(settings: Settings, point: Point) -> tuple[str, ...]:
    """Return `Point.images` and `Point.code` of a point or of its control, as far as its settings depend on them."""
    images = point.images if reads_images(settings) else ""
    return (images, *(point.code.get(f"{part.kind} {part.name}", "") for part in parts.in_use(settings)))


def experiment_key(settings: Settings, point: Point, encoder: str = "") -> tuple[Any, ...]:
    """Return a key of an experiment. It is equal for settings that differ only where they have no effect.

    Args:
        settings: The settings of the experiment, which is the point or its control, with any seed.
        point: The point.
        encoder: The digest of the evaluated encoder if its training is unknown, because the settings do not tell it.
    """
    plain = computed(settings)
    values = (getattr(plain, name) for name in SETTINGS if about(name).changes_scores)
    return (encoder, changed_inputs(plain, point), *values)


def key_without_seed(point: Point) -> tuple[Any, ...]:
    """Return a key of a point that is equal for the same experiment in two sweeps, whatever its seeds."""
    return experiment_key(point.settings.model_copy(update={"seed": 0}), point, point.encoder)


def mark_experiments(points: Sequence[Point]) -> list[Point]:
    """Return the points of several sweeps. A point whose experiment an earlier point has refers to that point."""
    first_of: dict[Any, str] = {}
    marked = []
    for point in points:
        first = point.title if point.baseline else first_of.setdefault(key_without_seed(point), point.title)
        marked.append(point if first == point.title else replace(point, same_as=first))
    return marked


def join_experiments(points: Sequence[Point]) -> list[Point]:
    """Return a point for each experiment, without the controls. It has the title of the experiment's first point."""
    experiments: dict[str, Point] = {}
    for point in points:
        if not point.baseline:
            first = experiments.get(point.experiment)
            experiments[point.experiment] = point if first is None else joined(first, point)
    return list(experiments.values())


def joined(first: Point, other: Point) -> Point:
    """Return the first one of two points of the same experiment in several sweeps, with the seeds of both."""
    by_seed = both(first.by_seed, other.by_seed)
    names = dict.fromkeys((*first.controls, *other.controls))
    without = dict.fromkeys((*first.without_encoder, *other.without_encoder))
    return replace(
        first,
        by_seed=by_seed,
        controls={name: both(first.controls.get(name, {}), other.controls.get(name, {})) for name in names},
        planned=list(dict.fromkeys((*first.planned, *other.planned))),
        without_encoder=[seed for seed in without if seed not in by_seed],
    )


def both(first: Mapping[int, Result], other: Mapping[int, Result]) -> dict[int, Result]:
    """Return the results of two sweeps by seed. Where both have a seed, the first one counts, with further metrics."""
    merged = {**first, **other}
    for seed, result in first.items():
        merged[seed] = replace(result, metrics={**merged[seed].metrics, **result.metrics})
    return merged


def changed_inputs_of_control(point: Point, control: str) -> tuple[str, ...]:
    """Return the changed inputs of a point's control; see `changed_inputs`."""
    settings = control_settings(point.settings, control)
    return () if settings is None else changed_inputs(settings, point)


def lend_baselines(points: Sequence[Point]) -> list[Point]:
    """Return the points of several sweeps. A point that lacks a control for a seed borrows it from another sweep.

    The two controls must be the same: equal in the seed, in every setting that has an effect on them and on their
    evaluation, in the plugins of their parts, and in the images that they were trained or fitted on.
    """
    lent: dict[tuple[str, Any], Result] = {
        (point.control, experiment_key(point.settings.model_copy(update={"seed": seed}), point)): result
        for point in points
        if point.baseline
        for seed, result in point.by_seed.items()
    }
    available = {control for control, _ in lent}
    complete = []
    for point in points:
        if not point.baseline:
            controls: dict[str, Mapping[int, Result]] = {}
            for control in (name for name in CONTROLS if name in available or name in point.controls):
                borrowed = {}
                for seed in point.by_seed:
                    settings = control_settings(point.settings.model_copy(update={"seed": seed}), control)
                    key = None if settings is None else experiment_key(settings, point)
                    if (control, key) in lent:
                        borrowed[seed] = lent[control, key]
                controls[control] = {**borrowed, **point.controls.get(control, {})}
            point = replace(point, controls={name: results for name, results in controls.items() if results})
        complete.append(point)
    return complete
