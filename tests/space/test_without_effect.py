"""Settings that no trial reads: which are refused, and which values of a file a flag drops."""

import pytest

from raysweep import parts, plugins, space
from raysweep.config import Settings, about
from raysweep.errors import InputError
from raysweep.preparation import shipped_spaces
from tests.support import ROOT

CHOOSERS = {
    "usl_type": parts.method,
    "optimizer": parts.optimizer,
    "schedule": parts.schedule,
    "head": parts.head,
    "policy": parts.policy,
    "encoder": parts.encoder,
}
SPACES = [name for name in shipped_spaces() if name.startswith(("published/", "quickstart", "layerwise", "methods"))]


@pytest.fixture
def stripes():
    """The dataset of an example, whose parameter is `noise`."""
    plugins.activate([plugins.Plugin("my_dataset.py", (ROOT / "examples" / "my_dataset.py").read_text())])
    yield
    plugins.activate(())


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


HEAD = {"head": "mlp"}
UNUSED = [
    ({"head_layers": 2}, "head_layers: has no effect in any trial (head: linear); it needs head: mlp", HEAD),
    ({"head_batch_norm": False}, "(head: linear); it needs head: mlp", HEAD),
    ({"encoder": "resnet18", "init": "kaiming"}, "(encoder: resnet18); it needs encoder: conv6", {"encoder": "conv6"}),
    ({"encoder": "pixels", "embedding_dim": 16}, "(encoder: pixels); it needs an encoder that", {"encoder": "pca"}),
    ({"encoder": "pixels", "usl_lr": 0.1}, "(encoder: pixels); it needs an encoder that is a", {"encoder": "conv6"}),
    ({"encoder": "pixels", "usl_epochs": 4}, "(encoder: pixels); it needs an encoder th", {"encoder": "conv6"}),
    (
        {"encoder": "pixels", "policy": "noise"},
        "(encoder: pixels); it needs an encoder that is a",
        {"label_free": True},
    ),
    ({"finetune_epochs": 3}, "(finetune: False); it needs finetune", {"finetune": True}),
    ({"logistic_c": [1]}, "(logistic: False); it needs logistic", {"logistic": True}),
    ({"few_shot_draws": 3}, "(few_shot: None); it needs few_shot", {"few_shot": [1]}),
    ({"mlp_width": 8}, "(mlp_probe: False); it needs mlp_probe", {"mlp_probe": True}),
    ({"blur_probability": 0.1}, "blur: False); it needs policy with simclr, and strength > 0, with bl", {"blur": True}),
    (
        {"usl_type": "ae_single", "solarize_probability_second": 0.2},
        "(policy: simclr, strength: 0.5, usl_type: ae_single); it needs policy with simclr",
        {"usl_type": "simclr"},
    ),
    ({"strength": 0, "policy": "noise"}, "(strength: 0.0); it needs strength > 0", {"strength": 1}),
    ({"strength": 0, "crop_strength": 0.5}, "(policy: simclr, strength: 0.0); it needs", {"strength": 1}),
    (
        {"probe_grid": {"lr": [1, 2]}, "le_lr": 0.1},
        "it needs per_layer, mlp_probe, or no lr in probe_grid",
        {"mlp_probe": True},
    ),
    (
        {"probe_grid": {"weight_decay": [0, 1]}, "le_weight_decay": 0.1},
        "it needs per_layer, mlp_probe, or no weight_decay in probe_grid",
        {"per_layer": True},
    ),
    ({"val_fraction": 0, "split_seed": 1}, "(val_fraction: 0.0, probe_labels: True); it needs", {"val_fraction": 0.2}),
    ({"noise": 50.0}, "noise: has no effect in any trial (dataset: digits); it needs data", {"dataset": "stripes"}),
]


@pytest.mark.parametrize(("base", "words", "cure"), UNUSED, ids=[",".join(base) for base, _, _ in UNUSED])
def test_a_setting_that_no_trial_reads_is_refused(base, words, cure, stripes):
    assert words in refused({"base": base})
    *rest, name = base
    if name != "logistic_c":  # as a flag, a list is a grid
        assert words in refused({"base": {key: base[key] for key in rest}}, **{name: base[name]})
    assert build({"base": {**base, **cure}}).trials
    if all(about(key).search for key in cure):
        search = [{"seed": [0]}, {key: [value] for key, value in cure.items()}]
        assert len(build({"base": base, "search": search}).trials) == 2, "one trial reads it"


PROBE = """\
from typing import Annotated

import raysweep


@raysweep.probe(metrics={"mine/score": raysweep.Metric("A score.")})
def mine(
    evaluation,
    *,
    kernel: Annotated[float, raysweep.Condition("no `flip`, and `blur`", lambda s: s.blur > s.flip), "Width."] = 1.0,
    margin: Annotated[float, raysweep.Condition("a wide margin", lambda s: s.blur), "Margin."] = 1.0,
):
    '''A probe whose parameters have conditions.'''
"""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("kernel", "kernel: has no effect in any trial (flip: True, blur: False); it needs no flip, and blur"),
        (
            "margin",
            "margin: has no effect in any trial (usl_type: ae_parallel, encoder: conv6); it needs a wide margin",
        ),
    ],
)
def test_a_parameter_of_a_plugin_is_refused_by_its_own_condition(name, words):
    try:
        plugins.activate([plugins.Plugin("mine.py", PROBE)])
        assert words in refused({"base": {name: 2}})
        assert build({"base": {name: 2, "blur": True, "flip": False}}).trials
    finally:
        plugins.activate(())


def test_what_one_flag_turns_off_for_another_reason_is_accepted():
    base = {"usl_type": "simclr", "temperature": 0.2, "usl_lr": 0.01, "head": "mlp", "policy": "noise", "knn_k": 5}
    assert build({"base": base}, usl_epochs=0).trials, "the random encoder of any file"
    assert build({"base": {**base, "label_free": True, "split_seed": 1}}, probe_labels=False).trials
    assert build({"base": {"denoising": True}}, usl_type="simclr").trials
    assert build({"base": {"schedule": "cosine", "final_lr": 0.1}}, usl_epochs=0).trials
    for value in ({"usl_epochs": 0}, {"layerwise": "none"}):
        assert build({"base": {"encoder": "pixels", **value}}).trials, "its trials have this value"
        assert build({}, encoder="resnet18", **value).trials
    controls = build({"base": {"encoder": "pixels", "embedding_dim": 16}, "baseline": ["pca"]}).trials
    assert controls[0].settings.embedding_dim == 16, "a control reads it"


def test_a_recorded_sweep_may_have_settings_that_no_trial_reads():
    content = {"base": {"head_layers": 2, "split_seed": 1, "val_fraction": 0}}
    refused(content)
    assert space.rebuild(content, "sweep.yaml").trials
    assert build({**content, "made_by": {}}, seed=[0, 1]).trials
    assert "finetune_lr" in refused({**content, "made_by": {}}, finetune_lr=0.1)


@pytest.mark.parametrize("stuck", [{"schedule": "cosine"}, {"usl_type": "byol"}, {"layerwise": "greedy"}], ids=str)
def test_final_states_that_nothing_can_continue_are_refused(stuck):
    (name, value), *_ = stuck.items()
    keeping = {"base": {"keep": "final_state"}}
    words = f"keep: final_state: no longer trial could continue a trial with {name}: {value}; write keep: encoder"
    assert words in refused({"base": {"keep": "final_state", **stuck}})
    assert build(keeping, **stuck).trials, "a flag changes what the file was written for"
    assert words in refused({}, keep="final_state", **stuck)
    assert build(keeping, keep="encoder", **stuck).trials
    assert build({**keeping, "search": [{"seed": [0]}, {name: [value]}]}).trials
    assert build({"base": {"keep": "final_state", "usl_epochs": 0, **stuck}}).trials
    assert build({"base": {"keep": "final_state", **stuck}, "made_by": {}}, seed=[0, 1]).trials


@pytest.mark.parametrize(
    ("settings", "evaluations"),
    [
        ({"usl_epochs": 10, "probe_every": 3}, 4),
        ({"usl_epochs": 10, "probe_every": 5}, 2),
        ({"usl_epochs": 2, "probe_every": 3, "layerwise": "greedy"}, 4),
    ],
    ids=str,
)
def test_a_stop_after_more_evaluations_than_there_are_is_refused(settings, evaluations):
    raw = {"base": settings, "search": {"seed": [0, 1]}}
    assert build(raw, **{"tune.collapse_stop": evaluations}).tune.collapse_stop == evaluations
    message = refused(raw, **{"tune.collapse_stop": evaluations + 1})
    assert f"tune.collapse_stop: {evaluations + 1} could not stop any trial" in message
    assert f"no trial has more than {evaluations} evaluations during pretraining; lower it, or probe_every" in message
    stop = {"tune": {"collapse_stop": evaluations + 1}}
    assert space.rebuild({**raw, **stop}, "sweep.yaml").trials
    assert build({**raw, **stop, "made_by": {}}, seed=[0, 1, 2]).trials, "more seeds of an older sweep"
    assert build({**raw, **stop, "base": {**settings, "usl_epochs": 100}}, usl_epochs=1).trials, "a short test"
    assert build({**raw, **stop, "search": [{"seed": [0]}, {"usl_epochs": [100]}]}).trials
