"""Building of a checked sweep from a search space and the settings of the command line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raysweep.config import (
    SETTINGS,
    Settings,
    about,
    check_model,
    default_of,
    is_number,
    make_base,
    make_settings,
    suggest,
    with_present_names,
)
from raysweep.errors import InputError
from raysweep.plugins import Plugin
from raysweep.space.checking import (
    COLLAPSE_SETTINGS,
    SCHEDULER_SETTINGS,
    check_collapse,
    check_figure_names,
    check_final_states,
    check_meant,
    check_metric,
    check_name,
    check_objective,
    check_scheduler,
    check_searcher,
    check_workers,
    replaced_settings,
)
from raysweep.space.controls import read_controls
from raysweep.space.expansion import UNTRAINED, expand
from raysweep.space.hints import suggest_setting
from raysweep.space.model import Resources, Sweep, Tune
from raysweep.space.race import check_race, check_racers
from raysweep.space.race_settings import Race
from raysweep.space.reading import mapping
from raysweep.space.storage import database_url
from raysweep.space.unlabelled import (
    IsUnlabelled,
    check_evaluates,
    check_labels,
    evaluated_datasets,
    needs_no_labels,
    never_unlabelled,
)

EXAMPLES = 100
"""Number of points drawn to check a search space whose points a searcher will propose."""
DISTRIBUTIONS = ("grid", "choice", "uniform", "loguniform", "randint")
SECTIONS = ("name", "plugins", "base", "search", "seeds", "baseline", "tune", "resources")
"""The keys of a search-space file."""
RECORDS = ("made_by", "changed_by", "parts", "encoders")
"""Keys that a results directory's `sweep.yaml` has in addition to the search space."""


@dataclass(frozen=True)
class Content:
    """The content of a search space with the settings of the command line, before they are checked together."""

    name: str
    base: dict[str, Any]
    spaces: list[dict[str, Any]]
    """The sub-spaces of `search`."""
    controls: tuple[str, ...] | None
    """The controls that the entry `baseline` lists; None if there is no such entry."""
    tune: Tune
    resources: Resources
    race: Race | None
    """The entry `seeds`; None if there is none."""


def build(
    raw: Mapping[str, Any],
    overrides: Mapping[str, Any],
    where: str,
    *,
    recorded: bool = False,
    has_begun: bool = False,
    plugins: tuple[Plugin, ...] = (),
    is_unlabelled: IsUnlabelled = never_unlabelled,
) -> Sweep:
    """Check a search space and expand it.

    Args:
        raw: The file's content.
        overrides: Settings by name (a list becomes a grid), `baseline`, `tune.NAME`, `seeds.NAME`, `resources.NAME`.
        where: The start of every message.
        recorded: Whether a results directory holds this sweep. If so, the checks for a meaningless sweep are skipped:
            it passed them when it started, perhaps in an older version with fewer checks.
        has_begun: Whether the search space is an existing sweep with new points. Its `base` may then have values that
            no trial reads. This also holds for the `sweep.yaml` of a results directory.
        plugins: The plugins of the sweep, which the caller has read and activated.
        is_unlabelled: Says which datasets have no labels. If the evaluated ones have none, and a probe needs none, the
            sweep is evaluated without labels.

    Raises:
        InputError: The search space is invalid. The message is one line with the key, the given and the valid values.
    """
    content = read_content(raw, overrides, where)
    is_begun = has_begun or not set(RECORDS).isdisjoint(raw)
    base, spaces, tune, resources = content.base, content.spaces, content.tune, content.resources
    controls = content.controls or ()
    if "encoders" in raw:
        raise InputError(
            f"{where}: describes an evaluation of trained encoders; give it to raysweep evaluate, or resume it"
        )
    is_layerwise = any(
        one != "none" for space in (base, *spaces) for one in values_of_entry(space.get("layerwise", "none"))
    )
    where_base = f"{where}: base" if raw.get("base") else where
    typed = {key: f"command line: {key}" for key in overrides}
    resolved = make_base(base, where_base, typed)
    if not all(set(space) - {"seed"} for space in spaces):
        make_settings(base, where_base, typed)  # it has the settings of a trial
    search = tuple(
        {
            key: check_distribution(
                key, spec, resolved, typed.get(key, f"{where}: search.{key}"), is_alone=not set(space) - {key, "seed"}
            )
            for key, spec in space.items()
        }
        for space in spaces
    )
    if not recorded and resolved.probe_labels:
        datasets = evaluated_datasets([(resolved.dataset, resolved.probe_dataset)], search)
        if needs_no_labels(resolved, datasets, search, is_unlabelled, where, "probe_labels" in base):
            base["probe_labels"] = False
    if is_layerwise and base.get("probe_labels", True) and not any("per_layer" in space for space in (base, *spaces)):
        base["per_layer"] = True  # for all trials, so that they and the controls are evaluated alike
    resolved = make_base(base, where_base, typed)
    if not recorded:
        check_labels(resolved, base, spaces, where)
    seeded = search
    if content.race is not None:
        check_race(content.race, tune, base, search, where)
        seeded = tuple({**space, "seed": {"grid": list(range(content.race.least))}} for space in search)
    if tune.searcher != "none":
        check_searcher(tune, search, where)
    elif tune.storage is not None:
        raise InputError(f"{where}: tune.storage: keeps the study of a searcher; it needs tune.searcher: optuna")
    samples = EXAMPLES if tune.searcher != "none" else tune.num_samples
    examples = tuple(expand(resolved, seeded, samples, controls, where, strict=not recorded))
    if not recorded:
        off = [key for key, value in UNTRAINED.items() if getattr(resolved, key) == value]
        changed = [key for key in base if getattr(resolved, key) != default_of(key)]
        replaced = replaced_settings(
            changed, overrides, examples, lambda: build(raw, {}, where, recorded=True, plugins=plugins)
        )
        if replaced:
            base = {key: value for key, value in base.items() if key not in replaced}
            resolved = make_base(base, where_base, typed)
            examples = tuple(expand(resolved, seeded, samples, controls, where))
        given = [] if is_begun else [key for key in changed if key in base]
        check_meant([key for key in (*overrides, *given) if key not in off], examples, where)
        if not is_begun:
            check_figure_names(search, where)
        if not is_begun and (not overrides or "keep" in overrides):
            check_final_states(examples, where)
        check_evaluates(examples, where)
        check_objective(tune.metric, search, examples, where)
    check_workers(resources, examples, where)
    trials = examples
    if tune.searcher != "none":  # a control that all points share is known before any point is proposed
        points = {control: {trial.point for trial in examples if trial.control == control} for control in controls}
        trials = tuple(trial for trial in examples if trial.baseline and len(points[trial.control]) == 1)
    sweep = Sweep(content.name, base, search, controls, tune, resources, trials, examples, plugins, race=content.race)
    check_metric(sweep, where)
    if content.race is not None:
        check_racers(sweep, where)
    check_scheduler(sweep, where)
    is_changed = bool(overrides) and not any(name.startswith("tune.collapse") for name in overrides)
    is_lenient = recorded or is_begun or is_changed
    check_collapse(tune, examples, where, is_lenient)
    return sweep


def drop_replaced_settings(tune: dict[str, Any], overrides: Mapping[str, Any]) -> None:
    """Drop the `tune` settings of a scheduler, searcher or collapse rule that the command line turns off or replaces.

    A setting that the command line gives stays.
    """
    if overrides.get("tune.searcher") == "none" and "tune.storage" not in overrides:
        tune.pop("storage", None)
    if overrides.get("tune.collapse_stop", 0) in (None, "none"):
        for name in COLLAPSE_SETTINGS:
            if f"tune.{name}" not in overrides:
                tune.pop(name, None)
    if "tune.scheduler" in overrides:
        for name, schedulers in SCHEDULER_SETTINGS.items():
            if tune["scheduler"] not in schedulers and f"tune.{name}" not in overrides:
                tune.pop(name, None)


def read_content(raw: Mapping[str, Any], overrides: Mapping[str, Any], where: str) -> Content:
    """Read a search space and put the settings of the command line into it; see `build`.

    Raises:
        InputError: A key is unknown, or an entry has the wrong form.
    """
    for key in raw:
        if key not in SECTIONS and key not in RECORDS:
            hint = (
                f"; it is a setting: put it under base or search, as 'base: {{{key}: ...}}'" if key in SETTINGS else ""
            )
            raise InputError(f"{where}: unknown key {key!r}{hint or suggest(key, SECTIONS)}")
    name = raw.get("name", "sweep")
    check_name(name, f"{where}: name")
    base = with_present_names(mapping(raw.get("base"), f"{where}: base"))
    spaces = [with_present_names(space) for space in subspaces(raw.get("search"), f"{where}: search")]
    sections = {
        "tune": mapping(raw.get("tune"), f"{where}: tune"),
        "resources": mapping(raw.get("resources"), f"{where}: resources"),
        "seeds": mapping(raw.get("seeds"), f"{where}: seeds"),
    }
    has_baseline, baseline = "baseline" in raw, raw.get("baseline")

    for key, value in overrides.items():
        section, dot, rest = key.partition(".")
        if key == "baseline":
            has_baseline, baseline = True, value
        elif dot and section in sections:
            sections[section][rest] = value
        elif key not in SETTINGS:
            hint = "; a sweep is named by --name" if key == "name" else suggest_setting(key, value)
            raise InputError(f"--set {key}: unknown setting{hint}")
        elif isinstance(value, list) and (about(key).search or not about(key).composed):
            base.pop(key, None)
            for space in spaces:
                space[key] = {"grid": value}
        else:
            base[key] = value
            for space in spaces:
                space.pop(key, None)

    drop_replaced_settings(sections["tune"], overrides)
    controls = read_controls(baseline, where) if has_baseline else None
    unknown = next((key for key in base if key not in SETTINGS), None)
    if unknown is not None:
        hint = f"; {unknown} stands beside base, not in it" if unknown in SECTIONS else suggest_setting(unknown)
        raise InputError(f"{where}: base: unknown key {unknown!r}{hint}")
    for key, value in base.items():
        if isinstance(value, (list, dict)) and not about(key).composed:
            if key in overrides:
                raise InputError(f"command line: {key}: expected a value or a list; write distributions in a file")
            raise InputError(f"{where}: base.{key}: expected one value; to sweep it, write it under search")
    typed = {key.partition(".")[2]: f"command line: {key}" for key in overrides if "." in key}
    tune = check_model(Tune, sections["tune"], f"{where}: tune", typed)
    if tune.storage is not None:
        tune = tune.model_copy(update={"storage": database_url(tune.storage, f"{where}: tune.storage")})
    resources = check_model(Resources, sections["resources"], f"{where}: resources", typed)
    has_race = raw.get("seeds") is not None or bool(sections["seeds"])
    race = check_model(Race, sections["seeds"], f"{where}: seeds", typed) if has_race else None
    return Content(name, base, spaces, controls, tune, resources, race)


def values_of_entry(spec: Any) -> list[Any]:
    """Return the values of an unchecked entry of `search` or `base`."""
    if isinstance(spec, dict):
        spec = next(iter(spec.values()), None)
    return spec if isinstance(spec, list) else [spec]


def subspaces(value: Any, where: str) -> list[dict[str, Any]]:
    """Return the sub-spaces of `search`.

    A mapping is a single sub-space. A missing entry is a sub-space without settings.
    """
    if isinstance(value, list):
        if not value:
            raise InputError(f"{where}: the list of sub-spaces is empty")
        return [mapping(space, f"{where}[{number}]") for number, space in enumerate(value)]
    return [mapping(value, where)]


def check_distribution(name: str, spec: Any, base: Settings, where: str, is_alone: bool = True) -> dict[str, Any]:
    """Check one `search` entry and return `{distribution: values}`; a list or a single value becomes a grid.

    With `is_alone`, its sub-space searches no other setting, so that each value must fit `base`.
    """
    if name not in SETTINGS:
        raise InputError(f"{where}: unknown setting{suggest_setting(name)}")
    if not about(name).search:
        why = "scores with different values are not comparable" if about(name).protocol else "it changes no score"
        raise InputError(f"{where}: {name} cannot be swept ({why}); put it under base")
    if not isinstance(spec, dict):
        spec = {"grid": spec if isinstance(spec, list) else [spec]}
    if len(spec) != 1:
        raise InputError(f"{where}: give one of {', '.join(DISTRIBUTIONS)}, such as {{grid: [1, 2, 3]}}")
    distribution, values = next(iter(spec.items()))
    if distribution not in DISTRIBUTIONS:
        raise InputError(f"{where}: unknown distribution {distribution!r}{suggest(distribution, DISTRIBUTIONS)}")
    if not isinstance(values, list):
        raise InputError(f"{where}: {distribution}: expected a list, not {values!r}")

    is_drawn_below = distribution == "randint" and len(values) == 2 and all(type(value) is int for value in values)
    is_drawn_below = is_drawn_below and values[0] < values[1]
    if is_drawn_below:  # the bound itself is no value
        values = [values[0], values[1] - 1]
    check = make_settings if is_alone and name != "seed" else make_base
    checked = [getattr(check({**base.model_dump(), name: value}, where, {name: where}), name) for value in values]
    if is_drawn_below:
        checked[1] += 1
    if distribution in ("grid", "choice"):
        if not checked:
            raise InputError(f"{where}: {distribution}: the list is empty")
        twice = [value for value, count in Counter(checked).items() if count > 1]
        if twice:
            raise InputError(f"{where}: {distribution}: {twice[0]!r} is listed twice")
        return {distribution: checked}
    if len(checked) != 2 or None in checked or not is_number(name):
        raise InputError(f"{where}: {distribution}: needs two bounds [low, high], and a setting that is a number")
    if checked[0] >= checked[1]:
        raise InputError(f"{where}: {distribution}: low must be below high, not [{checked[0]}, {checked[1]}]")
    whole = isinstance(checked[0], int)
    if whole != (distribution == "randint"):
        raise InputError(f"{where}: {distribution}: {name} is {'a whole' if whole else 'a real'} number; use "
                         f"{'randint' if whole else 'uniform or loguniform'}")  # fmt: skip
    if distribution == "loguniform" and checked[0] <= 0:
        raise InputError(f"{where}: loguniform: low must be above 0, not {checked[0]}")
    return {distribution: checked}
