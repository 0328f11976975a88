"""Settings that no trial reads: which are refused, and which values of a file a flag drops."""

import pytest

from raysweep import parts, space
from raysweep.config import Settings
from raysweep.errors import InputError
from raysweep.preparation import shipped_spaces

CHOOSERS = {
    "usl_type": parts.method,
    "optimizer": parts.optimizer,
    "schedule": parts.schedule,
    "head": parts.head,
    "policy": parts.policy,
    "encoder": parts.encoder,
}
SPACES = [name for name in shipped_spaces() if name.startswith(("published/", "quickstart", "layerwise", "methods"))]


def build(raw, **overrides):
    return space.build(raw, overrides, "file.yaml")


def refused(raw, **overrides):
    """Return the message with which a sweep is refused."""
    with pytest.raises(InputError) as fault:
        build(raw, **overrides)
    return str(fault.value)


def computed(sweep):
    return [(trial.name, trial.control, space.computed(trial.settings)) for trial in sweep.trials]


@pytest.mark.parametrize("name", SPACES)
def test_a_flag_that_replaces_a_part_drops_the_values_that_only_this_part_reads(name):
    """With `recorded`, no value is dropped or refused, so these trials are the reference."""
    raw = space.read(shipped_spaces()[name])
    for each in raw["search"] if isinstance(raw["search"], list) else [raw["search"]]:
        each["seed"] = [0]
    refusals, accepted = [], 0
    for setting, value in ((setting, value) for setting, values in CHOOSERS.items() for value in values):
        try:
            sweep = build(raw, **{setting: value})
        except InputError as fault:
            refusals.append(str(fault))
            continue
        accepted += 1
        assert computed(sweep) == computed(space.build(raw, {setting: value}, "file.yaml", recorded=True))
        assert build(sweep.to_dict()).trials == sweep.trials, "a dry run prints a file that is accepted"
    assert accepted > 10
    assert not [refusal for refusal in refusals if "has no effect in any trial" in refusal]


def test_a_dropped_value_is_a_default_in_the_sweep():
    raw = {"base": {"usl_type": "simclr", "temperature": 0.2, "usl_lr": 0.01}, "search": {"seed": [0, 1]}}
    sweep = build(raw, usl_type="vicreg")
    assert [(t.settings.temperature, t.settings.usl_lr) for t in sweep.trials] == [(Settings().temperature, 0.01)] * 2
    assert build(raw, **{"tune.max_failures": 1}).trials == build(raw).trials
    more = space.extend(sweep, build(raw, usl_type="vicreg", seed=[0, 1, 2]), "here")
    assert more.trials[:2] == sweep.trials
    assert more == space.extend(sweep, build(sweep.to_dict(), seed=[0, 1, 2]), "here")


def test_a_sweep_that_began_with_a_value_that_no_trial_reads_gets_more_points():
    content = {"made_by": {}, "base": {"usl_type": "vicreg", "temperature": 0.2}, "search": {"seed": [0]}}
    begun = space.rebuild(content, "sweep.yaml")
    flags = {"usl_type": "vicreg", "seed": [0, 1]}
    file = {"base": {"usl_type": "simclr", "temperature": 0.2}}
    for by in (build(content, seed=[0, 1]), build(file, **flags), build({}, **flags)):
        sweep = space.extend(begun, by, "here")
        assert sweep.trials[0] == begun.trials[0]
        assert [trial.name for trial in sweep.trials] == ["seed=0", "seed=1"]
    by = build({"base": {"usl_type": "vicreg", "vicreg_variance": 3}})
    with pytest.raises(InputError, match=r"vicreg_variance: is 3\.0, but the sweep was started with 25\.0"):
        space.extend(begun, by, "here")


@pytest.mark.parametrize(
    ("base", "overrides", "words"),
    [
        ({"usl_type": "simclr"}, {"usl_type": "vicreg", "temperature": 0.2}, "temperature: has no effect in any trial"),
        ({"usl_type": "vicreg", "temperature": 0.2}, {"usl_lr": 0.1}, "temperature: has no effect in any trial"),
        ({"usl_type": "vicreg", "temperature": 0.2}, {"usl_type": "byol"}, "temperature: has no effect in any trial"),
        ({"optimizer": "sgd", "trust_coefficient": 0.1}, {}, "in any trial (optimizer: sgd); it needs optimizer: lars"),
    ],
)
def test_a_value_that_had_no_effect_before_is_refused(base, overrides, words):
    assert words in refused({"base": base}, **overrides)
