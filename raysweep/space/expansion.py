"""Expansion of a search space into trials: grids, random draws, names and controls."""

from __future__ import annotations

import hashlib
import itertools
import math
import random
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from raysweep import parts
from raysweep.config import SETTINGS, Settings, about, default_of, has_effect, make_base, make_settings
from raysweep.config.part_settings import example_of
from raysweep.errors import InputError
from raysweep.part_functions import trait_of
from raysweep.space.controls import CONTROLS, SUPERVISED
from raysweep.space.model import FrozenDict, Proposal, Sweep, Trial

MAX_TRIALS = 100_000
UNTRAINED: Mapping[str, Any] = {"usl_epochs": 0, "layerwise": "none"}
"""The settings of a trial whose encoder cannot be trained, such as `pixels`, whatever was given."""
WITHOUT_VIEWS: Mapping[str, Any] = {"strength": 0.0}
"""The `views` of a control whose points differ in their augmentation. They leave out LiDAR."""
MAX_NAME = 160  # characters; file systems allow 255 bytes, and a checkpoint's path adds to the name


def propose(sweep: Sweep, point: Proposal, strict: bool = True) -> Sweep | None:
    """Add one point to a sweep: its trials, one per seed, and any new controls.

    Returns None if the point adds nothing: it is not in the search space, it was proposed before, or, if `strict`, one
    of its settings has no effect.
    """
    if not 0 <= point.space < len(sweep.search):
        return None
    searched = {name: spec for name, spec in sweep.search[point.space].items() if name != "seed"}
    if set(point.values) != set(searched) or not all(holds(searched[n], v) for n, v in point.values.items()):
        return None
    base = make_base(sweep.base, sweep.name)
    values = {name: point.values[name] for name in searched}
    try:
        new = [make_trial(base, {**values, "seed": seed}, sweep.name, strict) for seed in sweep.seeds]
    except InputError:
        return None
    if new[0].point in sweep.proposed:
        return None
    controls = [trial for trial in sweep.trials if trial.baseline]
    controls = list(dict.fromkeys([*controls, *make_controls(new, sweep.baseline)]))
    points = [trial for trial in sweep.trials if not trial.baseline]
    return replace(sweep, trials=(*controls, *points, *new))


def holds(spec: Mapping[str, Any], value: Any) -> bool:
    """Return whether an entry of `search` contains the value."""
    distribution, values = next(iter(spec.items()))
    if distribution in ("grid", "choice"):
        return value in values
    if isinstance(value, bool) or not isinstance(value, int if distribution == "randint" else float):
        return False
    return bool(values[0] <= value <= values[1]) and (distribution != "randint" or value < values[1])


def distinct(spec: Mapping[str, Any]) -> float:
    """Return the number of values of an entry of `search`."""
    distribution, values = next(iter(spec.items()))
    if distribution in ("grid", "choice"):
        return len(values)
    return values[1] - values[0] if distribution == "randint" else math.inf


def draw(name: str, distribution: str, values: list[Any], sample: int) -> Any:
    """Return the `sample`-th draw of a setting, which depends only on the setting's name and the sample's number.

    So all points of a grid and all seeds share their draws, and more samples extend a sweep instead of changing it.
    """
    source = random.Random(f"{name}/{sample}")
    if distribution == "choice":
        return source.choice(values)
    low, high = values
    if distribution == "randint":
        return source.randrange(low, high)
    if distribution == "uniform":
        return source.uniform(low, high)
    return min(max(math.exp(source.uniform(math.log(low), math.log(high))), low), high)


def expand(
    base: Settings,
    search: tuple[Mapping[str, Mapping[str, Any]], ...],
    samples: int,
    controls: tuple[str, ...],
    where: str,
    strict: bool = True,
) -> Iterator[Trial]:
    """Yield all trials: the controls first, then point by point, with the seeds of a point next to each other.

    A trial that occurs in several sub-spaces is yielded once. If `strict`, every searched setting must have an effect,
    and no two trials may compute the same.
    """
    trials: list[Trial] = []
    seen: dict[Settings, Trial] = {}  # keyed by `computed`, so that equal computations match
    if samples > 1 and all("grid" in spec for space in search for spec in space.values()):
        raise InputError(f"{where}: tune.num_samples: {samples} has no effect, because no setting is drawn at random")
    grids = [[len(spec["grid"]) for spec in space.values() if "grid" in spec] for space in search]
    count = sum(
        math.prod(sizes) * (samples if len(sizes) < len(space) else 1)
        for sizes, space in zip(grids, search, strict=True)
    )
    if count > MAX_TRIALS:
        raise InputError(f"{where}: search: {count} trials; at most {MAX_TRIALS} in one sweep")
    for space in search:
        names = sorted(space, key=lambda name: name == "seed")  # the seed comes last
        random_ones = any("grid" not in space[name] for name in names)
        for sample in range(samples if random_ones else 1):
            axes = []
            for name in names:
                distribution, values = next(iter(space[name].items()))
                axes.append(values if distribution == "grid" else [draw(name, distribution, values, sample)])
            for combination in itertools.product(*axes):
                varied = dict(zip(names, combination, strict=True))
                trial = make_trial(base, varied, where, strict)
                key = computed(trial.settings)
                same = seen.get(key)
                if same is not None and same.name == trial.name:  # a choice was drawn again, or sub-spaces overlap
                    continue
                if strict and same is not None:
                    differ = canonical(trial.settings) != canonical(same.settings)
                    why = f"; policy {trial.settings.policy} draws the same views in both" if differ else ""
                    raise InputError(f"{where}: search: {trial.name} is the same trial as {same.name}{why}")
                seen[key] = trial
                trials.append(trial)
    added = make_controls(trials, controls)
    for name in controls:
        if not any(control.control == name for control in added):
            if any(parts.trains(trial.settings) for trial in trials):
                raise InputError(f"{where}: baseline: {name} needs training; set usl_epochs above 0")
            raise InputError(
                f"{where}: baseline: {name} needs a network, and encoder: {trials[0].settings.encoder} is none"
            )
    for control in added:
        same = seen.get(computed(control.settings))
        if same is not None:
            raise InputError(
                f"{where}: search: {same.name} is the trial that baseline: {control.control} adds; leave out one of "
                f"the two"
            )
        yield control
    yield from trials


def canonical(settings: Settings) -> Settings:
    """Set every setting without effect to its default, so that experiments that compute the same are equal."""
    without = [name for name in SETTINGS if not has_effect(name, settings)]
    update = {name: UNTRAINED.get(name, default_of(name)) for name in without}
    return settings.model_copy(update={**update, "probe_dataset": settings.evaluated_dataset})


def computed(settings: Settings) -> Settings:
    """Return settings that are equal for two experiments exactly if both compute the same. Use them only to compare."""
    return canonical(settings).model_copy(update=acting_values(settings))


def acting_values(settings: Settings) -> dict[str, Any]:
    """Return the smallest strength, and the parameters of the policies, that draw the same views as these settings.

    The result is empty for a trial without augmentation.
    """
    if settings.usl_epochs == 0 or settings.strength == 0:
        return {}
    values: dict[str, Any] = {}
    strengths = []
    for name in settings.policies:
        part = parts.policy[name]
        acting = {} if part.traits["acts_as"] is None else trait_of(part, "acts_as", settings, dict[str, Any])
        strengths.append(acting.pop("strength", settings.strength))
        values |= acting
    return {"strength": max(strengths), **values}


def make_trial(base: Settings, varied: dict[str, Any], where: str, strict: bool = True) -> Trial:
    """Make the trial with `varied` over `base`; if `strict`, every searched setting must have an effect in it."""
    settings = make_settings({**base.model_dump(), **varied}, where)
    if not parts.trains(settings):
        settings = settings.model_copy(update=UNTRAINED)
    varied = {**{name: value for name, value in varied.items() if name != "seed"}, "seed": settings.seed}
    for name in varied:
        if strict and not has_effect(name, settings):
            raise InputError(
                f"{where}: search.{name}: has no effect in {trial_name(varied)}{deciding_settings(name, settings)}; "
                f"it needs {needs_of(name, settings)}; {how_to_sweep(name)}"
            )
    return Trial(trial_name(varied), point_name(varied), settings, FrozenDict(varied))


def needs_of(name: str, settings: Settings) -> str:
    """Return in words what a setting without effect needs.

    This is pretraining if pretraining is missing and would help.
    """
    return marked_needs(name, settings).replace("`", "")


def marked_needs(name: str, settings: Settings) -> str:
    """Return `needs_of` with backticks around settings."""
    encoder = settings.encoder if parts.trains(settings) else default_of("encoder")
    trained = settings.model_copy(update={"usl_epochs": 1, "encoder": encoder})
    is_of_pretraining = about(name).group not in ("Data", "Evaluation") or has_effect(name, trained)
    if settings.usl_epochs or not is_of_pretraining:
        return about(name).effect.words
    return "`usl_epochs` > 0" if parts.trains(settings) else "an `encoder` that is a network"


def deciding_settings(name: str, settings: Settings) -> str:
    """Return, in parentheses, the settings that decide whether the setting `name` has an effect."""
    words = re.findall(r"`(\w+)", marked_needs(name, settings))
    deciding = dict.fromkeys(word for word in words if word in SETTINGS and word != name) or ("usl_type", "encoder")
    values = ", ".join(f"{each}: {getattr(settings, each)}" for each in deciding)
    return f" ({values})"


def how_to_sweep(name: str) -> str:
    """Describe how to sweep a setting that has no effect in some points."""
    example = example_of(name)
    if example is None:
        return f"sweep it in a sub-space of its own: search: [{{{name}: [...], ...}}, {{...}}]"
    part, settings = example
    return f"sweep it only for {part}: search: [{{{settings}, {name}: [...]}}]"


def make_controls(trials: Iterable[Trial], controls: tuple[str, ...]) -> list[Trial]:
    """Make the controls of some trials, each once, in the order of `controls`."""
    trials = list(trials)
    merged: dict[Trial, Trial] = {}
    for each in (make_control(trial, control) for control in controls for trial in trials):
        if each is not None and merged.setdefault(each, each).views != each.views:
            merged[each] = replace(each, views=WITHOUT_VIEWS)
    return list(merged.values())


def control_settings(settings: Settings, control: str) -> Settings | None:
    """Return the settings of a point's control: the same seed and evaluation, without settings that have no effect.

    The result is None for the supervised control of a point without pretraining, because it would have no epochs. It is
    also None for a control with the encoder of the point if this encoder is not a network.
    """
    forced = CONTROLS[control]
    if "encoder" not in forced and not parts.trains(settings):
        return None
    changed = settings.model_copy(update=dict(forced))
    if control == SUPERVISED and not changed.usl_epochs:
        return None
    plain = canonical(changed)
    if "encoder" not in forced:
        return plain
    # A setting of the linear probes may count only because blocks are probed too. It stays as it is in the point.
    return plain.model_copy(update={"per_layer": changed.model_dump()["per_layer"]})


def make_control(trial: Trial, control: str) -> Trial | None:
    """Make a control of a trial. Its name says what varies in it beside the control's own settings."""
    settings = control_settings(trial.settings, control)
    if settings is None:
        return None
    forced = CONTROLS[control]
    varying = [name for name in SETTINGS if name in trial.varied and name not in forced and has_effect(name, settings)]
    varied = {name: trial.varied[name] for name in varying}
    rest = {name: value for name, value in varied.items() if name != "seed"}
    point = ",".join([control, *([point_name(rest)] if rest else [])])
    name = shorten(f"{point},seed={settings.seed}")
    return Trial(name, shorten(point), settings, FrozenDict(varied), control, views=views_of_points(trial, settings))


def views_of_points(trial: Trial, settings: Settings) -> Mapping[str, Any]:
    """Return the settings with which LiDAR of a control draws the views that it draws for the points.

    The settings of a control without pretraining have no augmentation. If the sweep varies the augmentation, the points
    have no common one, and LiDAR is left out.

    Args:
        trial: A point of the control.
        settings: The settings of the control.
    """
    names = [name for name in SETTINGS if about(name).group == "Augmentation"]
    if settings.usl_epochs:
        return {}
    if any(name in trial.varied for name in names):
        return WITHOUT_VIEWS
    acting = trial.settings.model_copy(update={"usl_epochs": max(1, trial.settings.usl_epochs)})
    values = {name: getattr(acting, name) for name in names if has_effect(name, acting)}
    return {name: value for name, value in values.items() if value != getattr(settings, name)}


def trial_name(varied: Mapping[str, Any]) -> str:
    """Return a name like `alpha=1e-05,seed=0`: floats exact, unsafe characters percent-encoded, long names hashed."""
    # A path that is not valid text contains surrogates.
    values = {name: quote(str(value), safe="+", errors="surrogatepass") for name, value in varied.items()}
    return shorten(",".join(f"{name}={value}" for name, value in values.items()))


def point_name(varied: Mapping[str, Any]) -> str:
    """Return the trial's name without the seed; `default` if nothing else varies."""
    return trial_name({name: value for name, value in varied.items() if name != "seed"}) or "default"


def shorten(name: str) -> str:
    """Shorten a name that is too long for a file system to its start and a hash of the whole name."""
    if len(name) <= MAX_NAME:
        return name
    return f"{name[: MAX_NAME - 20]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
