"""Extension of an existing sweep by new points."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from raysweep.config import SETTINGS, about, has_effect, make_base
from raysweep.errors import InputError
from raysweep.space.building import build
from raysweep.space.controls import ordered, written
from raysweep.space.expansion import draw, expand
from raysweep.space.model import Sweep


def extend(sweep: Sweep, by: Sweep, where: str) -> Sweep:
    """Extend an existing sweep by new points.

    The trials of `by` come first, in its order. The trials that it no longer contains follow. Controls stay, and
    the controls of `by` are added. `tune`, `resources` and settings that change no score are taken from `by`. A larger
    `usl_epochs` in the base of `by` gives new trials, and their names contain it. A setting that no trial of `by` reads
    keeps its value.

    Args:
        sweep: The existing sweep.
        by: The sweep that is requested now.
        where: The start of every message.

    Raises:
        InputError: A setting changed, or moved between `base` and `search`, so that the trials would not form one
            sweep.
    """
    if sweep.race is not None or by.race is not None:
        return resumed_race(sweep, by, where)
    was, now = make_base(sweep.base, where), make_base(by.base, where)
    existing, search = with_seed(drawn(sweep), was.seed), with_seed(by.search, now.seed)
    grows = now.usl_epochs > was.usl_epochs and sweep.tune.searcher == by.tune.searcher == "none"
    named = {trial.name for trial in by.trials}
    if grows and not all("usl_epochs" in space for space in existing):
        search = with_epochs(search, now.usl_epochs)
        named = {trial.name for trial in expand(now, tuple(search), by.tune.num_samples, (), where)}
    base = now.model_dump()
    for name in SETTINGS:
        if not about(name).changes_scores:
            continue
        before, after = [name in space for space in existing], [name in space for space in search]
        if all(before) and not any(after):
            raise InputError(
                f"{where}: {name}: is no longer under search, as it was when the sweep was started; keep it there, as "
                f"'{name}: {{grid: [{getattr(now, name)}]}}', or start a new sweep"
            )
        if all(after) and not any(before) and not (grows and name == "usl_epochs"):
            raise InputError(
                f"{where}: {name}: is under search now, but when the sweep was started it was {getattr(was, name)!r} "
                f"for all trials, and their names do not contain it; start a new sweep"
            )
        if not all(before):  # if every sub-space searches the setting, its value in base is never read
            base[name] = getattr(was, name)
            differs = not all(after) and base[name] != getattr(now, name)
            if differs and any(has_effect(name, trial.settings) for trial in by.examples):
                is_labelled_now = name == "probe_labels" and now.probe_labels
                hint = ", or set probe_labels=false to go on without labels" if is_labelled_now else ""
                raise InputError(
                    f"{where}: {name}: is {getattr(now, name)!r}, but the sweep was started with {base[name]!r}; start "
                    f"a new sweep for other settings{hint}"
                )
    if sweep.tune.searcher != "none" or by.tune.searcher != "none":
        # The proposed points are in the results directory, and each refers to its sub-space by number.
        for name, before_, after_ in (
            ("tune.searcher", sweep.tune.searcher, by.tune.searcher),
            ("search", sweep.to_dict()["search"], by.to_dict()["search"]),
        ):
            if before_ != after_:
                raise InputError(f"{where}: {name}: cannot change in a sweep with a searcher; start a new sweep")
        search = list(by.search)
    for space in existing if by.tune.searcher == "none" else ():
        if any(trial.name not in named for trial in expand(was, (space,), 1, (), where)):
            search.append(space)
    controls = written(ordered([*sweep.baseline, *by.baseline]))
    raw = {**by.to_dict(), "name": sweep.name, "base": base, "search": search, "baseline": controls}
    return build(raw, {}, where, has_begun=True, plugins=by.plugins)


def resumed_race(sweep: Sweep, by: Sweep, where: str) -> Sweep:
    """Return the race with the `tune`, the `resources` and the settings of `by` that change no score.

    Raises:
        InputError: something changed that the correction of the race depends on.
    """
    before, after = sweep.to_dict(), by.to_dict()
    for name, was, now in (
        *((key, before.get(key), after.get(key)) for key in ("seeds", "search", "baseline")),
        *((f"tune.{key}", before["tune"][key], after["tune"][key]) for key in ("metric", "mode")),
        *((key, before["base"].get(key), after["base"].get(key)) for key in SETTINGS if about(key).changes_scores),
    ):
        if was != now:
            raise InputError(
                f"{where}: {name}: cannot change in a race of seeds, because its intervals count all rounds from the "
                "start; start a new sweep"
            )
    return replace(by, name=sweep.name)


def with_seed(spaces: Iterable[Mapping[str, Mapping[str, Any]]], seed: int) -> list[Mapping[str, Mapping[str, Any]]]:
    """Add the seed to each sub-space without one. As trial names contain the seed, it may move in and out of `base`."""
    return [space if "seed" in space else {**space, "seed": {"grid": [seed]}} for space in spaces]


def with_epochs(spaces: Iterable[Mapping[str, Mapping[str, Any]]], epochs: int) -> list[Mapping[str, Any]]:
    """Add `usl_epochs` to each sub-space without it, so that the names of its trials contain the number."""
    grown = [space if "usl_epochs" in space else {**space, "usl_epochs": {"grid": [epochs]}} for space in spaces]
    return [space for number, space in enumerate(grown) if space not in grown[:number]]


def drawn(sweep: Sweep) -> Iterator[Mapping[str, Mapping[str, Any]]]:
    """Yield the sub-spaces as grids only; a sub-space with random settings gives one grid for each draw."""
    for space in sweep.search:
        random_ones = any("grid" not in spec for spec in space.values())
        for sample in range(sweep.tune.num_samples if random_ones else 1):
            specs = {name: next(iter(spec.items())) for name, spec in space.items()}
            yield {
                name: {"grid": values if distribution == "grid" else [draw(name, distribution, values, sample)]}
                for name, (distribution, values) in specs.items()
            }
