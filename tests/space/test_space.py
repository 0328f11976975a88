"""Search-space files expand to the right trials, and every bad file is refused in one line that names the fault."""

import itertools
import math
import pickle
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from raysweep import parts, plugins, space
from raysweep.config import SETTINGS, Settings, has_effect, protocol
from raysweep.errors import InputError
from raysweep.probes.probes import candidate_specs
from raysweep.space import expansion, reading

ALPHA = {"name": "alpha", "search": {"alpha": {"grid": [1e-5, 1, 10]}, "seed": {"grid": [0, 1]}}, "baseline": True}


def build(raw, **overrides):
    return space.build(raw, overrides, "file.yaml")


def refused(raw, **overrides):
    """Return the message with which `raw` is refused, and check that it names the source."""
    with pytest.raises(InputError) as fault:
        build(raw, **overrides)
    message = str(fault.value)
    assert message.startswith(("file.yaml: ", "--set "))
    return message


def test_grid_is_expanded_with_baseline_first_and_seeds_side_by_side():
    names = [trial.name for trial in build(ALPHA).trials]
    assert names == [
        "random,seed=0",
        "random,seed=1",
        "alpha=1e-05,seed=0",
        "alpha=1e-05,seed=1",
        "alpha=1.0,seed=0",
        "alpha=1.0,seed=1",
        "alpha=10.0,seed=0",
        "alpha=10.0,seed=1",
    ]


COMBINED = {
    "base and grid": ({"schedule": "cosine", "usl_epochs": 5}, [{"warmup_epochs": [1, 2]}], 2),
    "schedules": ({"usl_epochs": 5}, [{"schedule": ["constant"]}, {"schedule": ["cosine"], "warmup_epochs": [1]}], 2),
    "layer by layer": (
        {"encoder": "resnet18", "usl_type": "simclr"},
        [{"seed": [0]}, {"encoder": ["conv6"], "layerwise": ["none", "greedy"]}],
        3,
    ),
    "layers": ({"encoder": "resnet18"}, [{}, {"encoder": ["conv6"], "probe_layer": ["layer4", "trunk"]}], 3),
    "methods": ({"layerwise": "greedy", "usl_type": "simclr"}, [{}, {"usl_type": ["byol"], "layerwise": ["none"]}], 2),
    "base that no trial has": ({"layerwise": "greedy", "usl_type": "byol"}, [{"usl_type": ["simclr"]}], 1),
}


@pytest.mark.parametrize("case", COMBINED)
def test_searched_values_are_checked_in_their_combination(case):
    base, search, count = COMBINED[case]
    sweep = build({"base": base, "search": search})
    assert len(sweep.trials) == count
    for trial in sweep.trials:
        assert trial.settings == Settings(**trial.settings.model_dump()), "its settings fit together"
    rebuilt = space.rebuild(yaml.safe_load(yaml.safe_dump(sweep.to_dict(), sort_keys=False)), "file.yaml")
    assert rebuilt.trials == sweep.trials
    assert space.extend(sweep, build({"base": base, "search": search}), "file.yaml").trials == sweep.trials


def test_combinations_that_contradict_each_other_are_refused():
    for search in ([{"warmup_epochs": [1, 9]}], [{"schedule": ["cosine"], "seed": [0]}], [{"alpha": [1, 2]}]):
        base = {"schedule": "cosine", "usl_epochs": 5}
        assert "but pretraining has only 5 epochs; raise usl_epochs" in refused({"base": base, "search": search})
    search = [{"encoder": ["resnet18"], "layerwise": ["greedy"]}]
    assert "resnet18 has none; use encoder: conv6" in refused({"search": search})
    assert "search.encoder: must be" in refused({"search": [{"encoder": ["nonsense"], "layerwise": ["greedy"]}]})
    assert "timm/nonsense" in refused({"search": [{"encoder": ["timm/nonsense"], "alpha": [1]}]})


NO_VALIDATION = {"usl_epochs": 0, "val_fraction": 0}


@pytest.mark.parametrize(
    ("base", "search", "needs", "cure"),
    [
        ({"usl_epochs": 0}, {"mlp_width": [64, 256]}, "mlp_probe", {"mlp_probe": True}),
        (NO_VALIDATION, {"split_seed": [0, 1]}, "val_fraction > 0 and probe_labels", {"val_fraction": 0.5}),
        ({"encoder": "pixels"}, {"finetune_epochs": [1, 2]}, "finetune", {"finetune": True}),
        ({"encoder": "pca"}, {"strength": [0, 1]}, "an encoder that is a network", {"encoder": "conv6"}),
        ({"usl_epochs": 0}, {"strength": [0, 1]}, "usl_epochs > 0", {"usl_epochs": 5}),
        ({"usl_epochs": 0}, {"usl_type": ["simclr", "byol"]}, "usl_epochs > 0", {"usl_epochs": 5}),
    ],
)
def test_a_setting_without_effect_is_told_what_it_needs(base, search, needs, cure):
    assert f"it needs {needs}; sweep" in refused({"base": base, "search": search})
    assert len(build({"base": {**base, **cure}, "search": search}).trials) == 2


def test_names_hold_floats_exactly():
    value = 0.1 + 0.2
    trial = build({"search": {"alpha": {"grid": [value]}}}).trials[0]
    assert float(trial.name.split(",")[0].removeprefix("alpha=")) == value


def test_names_are_safe_and_bounded(tmp_path):
    path = tmp_path / ("x" * 200) / "a,b=c"
    trial = build({"search": {"dataset": [f"folder:{path}", "digits"]}}).trials[0]
    assert "/" not in trial.name
    assert len(trial.name) <= expansion.MAX_NAME
    short = build({"search": {"dataset": ["folder:/a,b"]}}).trials[0]
    assert short.name == "dataset=folder%3A%2Fa%2Cb,seed=0"


def test_one_e_minus_five_is_a_number_in_yaml_too():
    raw = yaml.safe_load("base: {usl_lr: 1e-3}\nsearch: {alpha: {grid: [1e-5, 1E+1]}}")
    assert isinstance(raw["base"]["usl_lr"], str), "YAML 1.1 reads it as text"
    sweep = build(raw)
    assert [trial.settings.alpha for trial in sweep.trials] == [1e-5, 10.0]
    assert sweep.trials[0].settings.usl_lr == 1e-3


def test_resolved_sweep_gives_the_same_trials_again():
    raw = {
        "name": "many",
        "base": {"usl_epochs": 3},
        "search": [
            {"usl_type": "ae_parallel", "alpha": {"loguniform": ["1e-5", 10]}, "seed": [0, 1]},
            {"usl_type": "simclr", "temperature": [0.1, 0.5], "seed": [0, 1]},
        ],
        "baseline": True,
        "tune": {"num_samples": 3},
    }
    sweep = build(raw)
    again = space.build(yaml.safe_load(yaml.safe_dump(sweep.to_dict(), sort_keys=False)), {}, "sweep.yaml")
    assert again.trials == sweep.trials
    assert len(sweep.trials) == 2 + 3 * 2 + 2 * 2


def test_overrides_replace_grids_and_make_them():
    sweep = build(ALPHA, alpha=0.5, seed=[3, 4, 5], **{"tune.max_failures": 0, "resources.cpu": 2, "baseline": False})
    assert [trial.name for trial in sweep.trials] == ["seed=3", "seed=4", "seed=5"]
    assert {trial.settings.alpha for trial in sweep.trials} == {0.5}
    assert (sweep.tune.max_failures, sweep.resources.cpu) == (0, 2)


def test_random_draws_are_shared_by_grid_points_and_seeds_and_extended_by_more_samples():
    def draws(samples):
        raw = {
            "search": {"alpha": {"loguniform": [1e-5, 10]}, "strength": [0.25, 0.5], "seed": [0, 1]},
            "tune": {"num_samples": samples},
        }
        alphas = {}
        for trial in build(raw).trials:
            alphas.setdefault((trial.settings.strength, trial.settings.seed), []).append(trial.settings.alpha)
        return alphas

    few, more = draws(2), draws(5)
    assert len({tuple(values) for values in more.values()}) == 1
    assert all(more[key][:2] == few[key] for key in few)
    assert len(set(more[0.25, 0])) == 5


@pytest.mark.parametrize(
    ("distribution", "low", "high", "name"), [("uniform", 0.0, 1.0, "strength"), ("loguniform", 1e-5, 10.0, "alpha")]
)
def test_distributions_fill_their_range(distribution, low, high, name):
    values = [space.draw(name, distribution, [low, high], sample) for sample in range(2000)]
    assert low <= min(values)
    assert max(values) <= high
    position = [math.log(v / low) / math.log(high / low) if distribution == "loguniform" else v for v in values]
    counts = [sum(int(p * 10) == bin for p in position) for bin in range(10)]
    assert min(counts) > 140  # 200 expected, standard deviation 13


def test_randint_excludes_its_upper_bound():
    assert {space.draw("seed", "randint", [0, 3], sample) for sample in range(200)} == {0, 1, 2}


@pytest.mark.parametrize(("name", "most"), [("head_layers", 16), ("image_size", 512), ("seed", 2**31 - 1)])
def test_randint_reaches_the_largest_value_of_a_setting(name, most):
    base = {"head": "mlp"} if name == "head_layers" else {}
    raw = {"base": base, "search": {name: {"randint": [most, most + 1]}}}
    sweep = build(raw)
    assert getattr(sweep.trials[0].settings, name) == most
    assert build(sweep.to_dict()).trials == sweep.trials
    message = refused({"base": base, "search": {name: {"randint": [8, most + 2]}}})
    assert f"search.{name}: must be less than or equal to {most}, not {most + 1}" in message
    for equal in (8, 9):
        message = refused({"base": base, "search": {name: {"randint": [equal, equal]}}})
        assert f"low must be below high, not [{equal}, {equal}]" in message


def test_choice_drawn_twice_is_one_trial():
    raw = {"search": {"alpha": {"choice": [0.1, 1.0]}}, "tune": {"num_samples": 20}}
    assert sorted(trial.settings.alpha for trial in build(raw).trials) == [0.1, 1.0]


def test_baseline_follows_what_varies_in_the_evaluation():
    raw = {"search": {"alpha": [0.1, 1], "le_lr": [0.1, 0.01], "seed": [0]}, "baseline": True}
    names = [trial.name for trial in build(raw).trials if trial.baseline]
    assert names == ["random,le_lr=0.1,seed=0", "random,le_lr=0.01,seed=0"]
    assert all(trial.settings.usl_epochs == 0 for trial in build(raw).trials if trial.baseline)


def test_methods_with_settings_of_their_own_go_into_sub_spaces():
    raw = {
        "search": [{"usl_type": "simclr", "temperature": [0.1, 0.5]}, {"usl_type": "ae_parallel", "alpha": [0.1, 1]}]
    }
    assert [trial.name for trial in build(raw).trials] == [
        "usl_type=simclr,temperature=0.1,seed=0",
        "usl_type=simclr,temperature=0.5,seed=0",
        "usl_type=ae_parallel,alpha=0.1,seed=0",
        "usl_type=ae_parallel,alpha=1.0,seed=0",
    ]


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"serch": {}}, ["unknown key 'serch'", "did you mean 'search'"]),
        ({"alpha": 1}, ["'alpha'", "put it under base or search"]),
        ({"base": {"alhpa": 1}}, ["base", "unknown key 'alhpa'", "did you mean 'alpha'"]),
        ({"search": {"alhpa": {"grid": [1]}}}, ["search.alhpa", "did you mean 'alpha'"]),
        ({"base": {"alpha": "big"}}, ["base: alpha", "number", "'big'"]),
        ({"base": {"alpha": True}}, ["base: alpha", "number"]),
        ({"base": {"usl_epochs": 2.5}}, ["usl_epochs", "2.5"]),
        ({"base": {"usl_epochs": True}}, ["usl_epochs", "number"]),
        ({"base": {"denoising": "maybe"}}, ["denoising", "true or false"]),
        ({"base": {"denoising": 1}}, ["denoising", "true or false"]),
        ({"base": {"dataset": 5}}, ["dataset", "string"]),
        ({"base": {"usl_type": "simclrr"}}, ["usl_type", "'simclr'", "simclrr"]),
        ({"base": {"alpha": -1}}, ["alpha", "greater than or equal to 0", "-1"]),
        ({"base": {"strength": -0.1}}, ["strength", "-0.1"]),
        ({"base": {"strength": 1e300}}, ["base: strength", "less than or equal to 100", "1e+300"]),
        ({"base": {"crop_strength": 101}}, ["base: crop_strength", "less than or equal to 100", "101"]),
        ({"base": {"color_strength": 101}}, ["base: color_strength", "less than or equal to 100", "101"]),
        ({"search": {"strength": {"uniform": [0, 101]}}}, ["search.strength", "less than or equal to 100", "101"]),
        ({"base": {"usl_epochs": -1}}, ["usl_epochs", "-1"]),
        ({"base": {"temperature": 0}}, ["temperature", "greater than 0"]),
        ({"base": {"alpha": float("nan")}}, ["alpha", "finite"]),
        ({"base": {"alpha": float("inf")}}, ["alpha", "finite"]),
        ({"base": {"usl_lr": "1e999"}}, ["usl_lr", "finite"]),
        ({"base": {"alpha": [1, 2]}}, ["base.alpha", "under search"]),
        ({"base": [1]}, ["base", "mapping", "a list"]),
        ({"base": {"usl_type": "simclr"}, "search": {"alpha": [1, 2]}}, ["search.alpha", "no effect", "ae_parallel"]),
        ({"search": {"usl_type": ["simclr", "ae_parallel"], "alpha": [1, 2]}}, ["search.alpha", "no effect"]),
        ({"base": {"usl_epochs": 0}, "search": {"strength": [0, 1]}}, ["search.strength", "no effect", "usl_epochs"]),
        ({"search": {"alpha": {"grid": []}}}, ["search.alpha", "empty"]),
        ({"search": {"alpha": {"grid": [1, "1.0"]}}}, ["search.alpha", "1.0", "twice"]),
        ({"search": {"alpha": {"grd": [1]}}}, ["search.alpha", "did you mean 'grid'"]),
        ({"search": {"alpha": {"grid": 1}}}, ["search.alpha", "expected a list"]),
        ({"search": {"alpha": {"grid": [1], "choice": [1]}}}, ["search.alpha", "one of"]),
        ({"search": {"alpha": {"grid": [-1]}}}, ["search.alpha", "-1"]),
        ({"search": {"alpha": {"uniform": [1]}}}, ["search.alpha", "two bounds"]),
        ({"search": {"alpha": {"uniform": [2, 1]}}}, ["search.alpha", "low must be below high"]),
        ({"search": {"alpha": {"loguniform": [0, 1]}}}, ["search.alpha", "above 0"]),
        ({"search": {"seed": {"uniform": [0, 4]}}}, ["search.seed", "randint"]),
        ({"search": {"usl_type": {"uniform": ["simclr", "ae_single"]}}}, ["search.usl_type", "number"]),
        ({"search": {"data_dir": ["a", "b"]}}, ["search.data_dir", "cannot be swept"]),
        ({"search": []}, ["search", "empty"]),
        ({"search": {"alpha": [1]}, "tune": {"num_samples": 3}}, ["num_samples", "no setting is drawn at random"]),
        ({"tune": {"metric": "linear/test_accuracy"}}, ["tune.metric", "test images must not choose"]),
        ({"tune": {"metric": "few_shot/1_std"}}, ["tune.metric", "test images must not choose"]),
        (
            {"tune": {"metric": "label_free/trunk_alpha_req"}},
            ["tune.metric", "because it is a diagnosis, which only describes"],
        ),
        (
            {"tune": {"metric": "pretrain/last_fall"}},
            ["tune.metric", "because it is a diagnosis, which only describes"],
        ),
        (
            {"tune": {"metric": "linear/val_acuracy"}},
            ["tune.metric", "unknown metric 'linear/val_acuracy'; did you mean linear/val_accuracy?"],
        ),
        ({"base": {"val_fraction": 0}, "tune": {"metric": "knn/val_accuracy"}}, ["tune.metric", "val_fraction"]),
        ({"tune": {"scheduler": "ahsa"}}, ["tune: scheduler", "asha"]),
        ({"tune": {"max_failures": -1}}, ["max_failures", "-1"]),
        ({"resources": {"cpus": 1}}, ["resources", "did you mean 'cpu'"]),
        ({"resources": {"cpu": 0}}, ["resources: cpu", "0"]),
        ({"resources": {"cpu": True}}, ["resources: cpu", "number"]),
        ({"resources": {"gpu": float("inf")}}, ["resources: gpu", "finite"]),
        (
            {"baseline": "yes please"},
            ["baseline: unknown control 'yes please'; valid: random, pixels, pca, supervised"],
        ),
        ({"name": "../elsewhere"}, ["name", "cannot name a directory"]),
        ({"name": ".."}, ["name", "cannot name a directory"]),
        ({"name": 5}, ["name", "5"]),
        ({"search": {"seed": list(range(1000)), "alpha": list(range(1000))}}, ["1000000 trials"]),
    ],
)
def test_bad_spaces_are_refused_naming_the_fault(raw, words):
    message = refused(raw)
    for word in words:
        assert word in message


def test_bad_overrides_are_refused():
    assert "did you mean 'alpha'" in refused({}, alhpa=1)
    assert "did you mean 'max_failures'" in refused({}, **{"tune.max_failure": 1})
    with pytest.raises(InputError, match="expected NAME=VALUE"):
        space.parse_assignments(["alpha"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("base:\n  alpha: [1\nseed: 2\n", "line 3"),
        ("a: 1\na: 2\n", "line 2, column 1: the key 'a' twice"),
        ("a: 2024-99-99\n", "not valid YAML"),
        ("just text", "must be a mapping"),
        ("", "must be a mapping"),
        ("- 1", "must be a mapping"),
        ('base: {data_dir: "a\\0b"}\n', "line 1, column 18: a text must not contain a NUL character"),
        ('base:\n  ? "\\x00"\n  : 1\n', "line 2, column 5: a text must not contain a NUL character"),
        ("search: {policy: [mask, !!str '\\0', \"\\u0000\"]}\n", "line 1, column 37: a text must not contain a NUL"),
    ],
)
def test_bad_yaml_is_refused_with_its_place(tmp_path, text, words):
    path = tmp_path / "space.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as fault:
        space.read(path)
    assert str(fault.value).startswith(f"{path}: ")
    assert words in str(fault.value)


def test_a_nul_character_is_refused_in_every_text():
    for name in ("data_dir", "dataset", "probe_dataset", "encoder", "policy", "usl_type", "knn_grid"):
        assert "NUL character" in refused({"base": {name: "a\0b"}})
        with pytest.raises(InputError, match=rf"^command line: {name}: .*NUL character"):
            build({}, **{name: "a\0b"})
    with pytest.raises(InputError, match=r"^--set dataset: .*a text must not contain a NUL character"):
        space.parse_assignments(['dataset=["a\\0b"]'])
    assert space.parse_assignments(['dataset="a\\0b"']) == {"dataset": '"a\\0b"'}, "the command line escapes nothing"


def test_what_is_no_text_file_is_refused(tmp_path):
    (tmp_path / "binary.yaml").write_bytes(bytes(range(256)))
    for path, words in (
        (tmp_path, "directory"),
        (tmp_path / "none", "no such file"),
        (tmp_path / "binary.yaml", "text"),
    ):
        with pytest.raises(InputError, match=words):
            space.read(path)


@given(st.text(alphabet="abelphsrcgid:[]{},-&*!?'\"\n 01.e", max_size=60))
@settings(max_examples=300)
def test_any_text_gives_a_sweep_or_a_short_message_that_names_the_file(text):
    try:
        raw = reading.parse_yaml(text, "file.yaml")
        if isinstance(raw, dict):
            space.build({key: value for key, value in raw.items() if isinstance(key, str)}, {}, "file.yaml")
    except InputError as fault:
        message = str(fault)
    else:
        return
    assert message.startswith("file.yaml: ")
    assert len(message) <= 500
    assert "Traceback" not in message
    assert "errors.pydantic.dev" not in message


def test_every_setting_says_when_it_has_an_effect_and_has_one_somewhere():
    variants = [Settings(usl_type=usl_type, emb_loss=emb_loss) for usl_type in parts.method for emb_loss in parts.loss]
    variants += [Settings(head=head) for head in parts.head]
    variants += [Settings(policy=policy, blur=True) for policy in parts.policy]
    variants += [Settings(optimizer=optimizer, weight_decay=0.1) for optimizer in parts.optimizer]
    variants += [Settings(schedule=schedule) for schedule in parts.schedule]
    variants += [Settings(knn_grid="1", logistic=True, few_shot="1", mlp_probe=True, finetune=True, label_free=True)]
    for name in SETTINGS:
        assert any(has_effect(name, variant) for variant in variants), name


def test_shipped_spaces_are_the_experiments_of_the_reference():
    from raysweep.preparation import shipped_spaces

    files = {name: path for name, path in shipped_spaces().items() if not name.startswith("published/")}
    sweeps = {name: space.build(space.read(path), {}, name) for name, path in files.items()}
    assert set(sweeps) == {
        *("quickstart", "alpha", "alpha-digits", "strength", "transfer", "asha"),
        *("denoising", "parallel", "simclr", "methods", "layerwise"),
    }
    trials = {name: [trial.settings for trial in sweep.trials if not trial.baseline] for name, sweep in sweeps.items()}
    for name in ("denoising", "parallel", "simclr", "methods", "layerwise"):
        assert {(config.usl_epochs, config.le_epochs, config.usl_lr, config.le_lr) for config in trials[name]} == {
            (400, 300, 1e-4, 1e-3)
        }
        assert {config.seed for config in trials[name]} == {0, 1, 2}
        assert sum(trial.baseline for trial in sweeps[name].trials) == 3
    assert {(config.usl_type, config.denoising) for config in trials["denoising"]} == {
        ("ae_single", False),
        ("ae_single", True),
    }
    losses = {"mse", "l1", "simclr", "barlow", "hinge"}
    assert {(config.denoising, config.emb_loss) for config in trials["parallel"]} == set(
        itertools.product((False, True), losses)
    )
    alphas = {loss: {config.alpha for config in trials["parallel"] if config.emb_loss == loss} for loss in losses}
    assert {len(values) for values in alphas.values()} == {3}
    assert max(alphas["barlow"]) < max(alphas["simclr"]) < max(alphas["mse"]), "the scales of the losses differ"
    assert len(sweeps["parallel"].trials) == 93
    assert {config.usl_type for config in trials["simclr"]} == {"simclr"}
    five = {(kind, denoising) for kind in ("ae_single", "ae_parallel") for denoising in (False, True)}
    assert {(config.usl_type, config.denoising) for config in trials["methods"]} == five | {("simclr", False)}
    three = itertools.product(("ae_parallel", "simclr"), ("none", "greedy", "random"))
    assert {(config.usl_type, config.layerwise) for config in trials["layerwise"]} == set(three)
    alpha = [trial.settings for trial in sweeps["alpha"].trials if not trial.baseline]
    assert sorted({config.alpha for config in alpha}) == [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1, 10]
    assert {(config.usl_epochs, config.le_epochs, config.usl_lr, config.le_lr) for config in alpha} == {
        (400, 300, 1e-4, 1e-3)
    }
    assert {(config.usl_type, config.denoising) for config in alpha} == {("ae_parallel", False)}
    strength = [trial.settings for trial in sweeps["strength"].trials if not trial.baseline]
    assert sorted({config.strength for config in strength}) == [0, 0.125, 0.25, 0.5, 0.75, 1]
    assert {(config.usl_type, config.denoising) for config in strength} == {("ae_parallel", True)}
    assert {(t.settings.dataset, t.settings.evaluated_dataset) for t in sweeps["transfer"].trials} == {
        ("cifar100", "cifar10")
    }
    assert sorted({config.strength for config in trials["quickstart"]}) == [0, 0.25, 0.5, 1, 2]
    assert {config.usl_type for config in trials["quickstart"]} == {"simclr"}
    assert len(sweeps["quickstart"].trials) == 35
    assert sorted({config.alpha for config in trials["alpha-digits"]}) == [1e-3, 1e-2, 1e-1, 1, 10]
    assert len(sweeps["alpha-digits"].trials) == 30
    assert Path(shipped_spaces()["quickstart"]).is_file()


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"base": {"val_fraction": 0}, "search": {"split_seed": [0, 1]}}, ["search.split_seed", "val_fraction"]),
        ({"search": {"alpha": [0, 1], "emb_loss": ["mse", "l1"]}}, ["search.emb_loss", "no effect", "alpha > 0"]),
        ({"search": {"probe_dataset": [None, "digits"]}}, ["same trial"]),
        ({"search": {"usl_epochs": [0, 5]}, "baseline": True}, ["usl_epochs=0", "baseline: random adds"]),
        ({"search": {"alpha": [0.1, 1]}, "base": {"usl_epochs": 0}}, ["search.alpha", "usl_epochs > 0"]),
        ({"base": {"usl_type": "simclr"}, "tune": {"metric": "pretrain/rec_loss"}}, ["tune.metric", "does not report"]),
        ({"base": {"probe_every": 0}, "tune": {"metric": "online/knn_val_accuracy"}}, ["probe_every: 0"]),
        ({"tune": {"mode": "min"}}, ["tune.mode", "needs a tune.metric"]),
        ({"tune": {"max_failures": True}}, ["max_failures", "number"]),
        ({"resources": {"gpu": 1.5}}, ["resources: gpu", "whole number"]),
        ({"resources": {"workers": 0}}, ["resources: workers", "0"]),
        ({"resources": {"workers": 2, "gpu": 0.5}}, ["resources.gpu", "0.5 for each of 2 workers", "whole GPUs"]),
        ({"resources": {"workers": 2}, "base": {"encoder": "resnet18"}}, ["resources.workers", "resnet18", "gpu: 1"]),
        ({"resources": {"workers": 4}, "base": {"batch_size": 3}}, ["resources.workers", "batch_size 3", "4 workers"]),
        ({"base": {"data_dir": "~nobody-of-that-name/x"}}, ["data_dir", "cannot be resolved"]),
    ],
)
def test_trials_that_would_repeat_or_lack_their_metric_are_refused(raw, words):
    message = refused(raw)
    for word in words:
        assert word in message


def test_baselines_of_sub_spaces_are_one_whatever_the_order_of_their_settings():
    raw = {
        "search": [
            {"usl_type": "simclr", "le_lr": [0.1], "knn_k": [5]},
            {"usl_type": "ae_single", "knn_k": [5], "le_lr": [0.1]},
        ],
        "baseline": True,
    }
    assert [trial.name for trial in build(raw).trials if trial.baseline] == ["random,le_lr=0.1,knn_k=5,seed=0"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("base: {[]: 2}", "file.yaml: not valid YAML at line 1, column 8: a key must be plain text"),
        ("{[a]: 1}: 2", "file.yaml: not valid YAML at line 1, column 1: a key must be plain text"),
        ("a: !!bool maybe", "file.yaml: not valid YAML: 'maybe'"),
        ("a: !!timestamp foo", "file.yaml: not valid YAML at line 1, column 4: 'foo' is not a date"),
        ("a: &b [*b]", "file.yaml: not valid YAML at line 1, column 4: an alias"),
    ],
)
def test_odd_yaml_is_refused_naming_the_file_and_the_fault(text, words):
    with pytest.raises(InputError) as fault:
        reading.parse_yaml(text, "file.yaml")
    assert str(fault.value).startswith(words)


def test_layerwise_and_alpha_are_swept_together_and_all_trials_measure_every_block():
    raw = {"search": {"layerwise": ["none", "greedy"], "alpha": [0.1, 1], "seed": [0, 1]}, "baseline": True}
    sweep = build(raw)
    assert len(sweep.trials) == 2 * 2 * 2 + 2
    assert all(trial.settings.per_layer for trial in sweep.trials)
    assert [trial.name for trial in sweep.trials if trial.baseline] == ["random,seed=0", "random,seed=1"]
    assert build(sweep.to_dict()).trials == sweep.trials
    without = build({**raw, "base": {"per_layer": False}})
    assert not any(trial.settings.per_layer for trial in without.trials)
    assert not build({"search": {"layerwise": ["none"]}}).trials[0].settings.per_layer


def test_lists_that_are_one_value():
    raw = {"base": {"policy": ["simclr", "noise"], "probe_grid": {"lr": ["1e-4", 0.001], "layer": ["trunk", "layer2"]}}}
    (trial,) = build(raw).trials
    assert trial.settings.policy == "simclr+noise"
    assert trial.settings.policies == ("simclr", "noise")
    assert trial.settings.probe_grid == "{lr: [0.0001, 0.001], layer: [trunk, layer2]}"
    assert [str(head) for head in candidate_specs(trial.settings)] == [
        f"layer={layer},lr={lr},weight_decay=0.0" for layer in ("trunk", "layer2") for lr in (0.0001, 0.001)
    ]
    assert build({"base": {"probe_grid": "{lr: [1e-4, 1e-3], layer: [trunk, layer2]}"}}).trials[0].settings == (
        trial.settings.model_copy(update={"policy": "simclr"})
    )
    grid = build({"search": {"policy": ["simclr", ["simclr", "mask"], "noise+affine"]}})
    assert [trial.name for trial in grid.trials] == [
        "policy=simclr,seed=0",
        "policy=simclr+mask,seed=0",
        "policy=noise+affine,seed=0",
    ]
    banks = build({"search": {"probe_grid": [None, {"lr": [0.1, 0.2]}]}})
    assert [len(candidate_specs(trial.settings)) for trial in banks.trials] == [1, 2]


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"base": {"encoder": "resnet18", "layerwise": "greedy"}}, ["layerwise: greedy", "blocks", "resnet18"]),
        ({"search": {"encoder": ["conv6", "resnet18"], "layerwise": ["greedy"]}}, ["layerwise: greedy", "resnet18"]),
        ({"base": {"encoder": "resnet18"}, "search": {"layerwise": ["none", "random"]}}, ["layerwise", "resnet18"]),
        ({"base": {"encoder": "resnet18", "probe_layer": "layer2"}}, ["probe_layer", "resnet18 has no layer 'layer2'"]),
        ({"base": {"usl_type": "simclr", "emb_loss": "l1"}}, ["emb_loss", "no effect", "usl_type: simclr"]),
        ({"base": {"usl_type": "simclr", "alpha": 5}}, ["alpha", "no effect", "usl_type: ae_parallel"]),
        (
            {"base": {"probe_grid": "{lr: [1, 2]}"}, "search": {"le_lr": [1, 2]}},
            ["search.le_lr", "no lr in probe_grid"],
        ),
        ({"search": {"per_layer": [True, False]}}, ["per_layer cannot be swept"]),
        ({"tune": {"metric": "linear/layer3/val_accuracy"}}, ["tune.metric", "per_layer: False"]),
        ({"base": {"usl_type": "ae_single", "hinge_m": 3}}, ["hinge_m", "no effect", "emb_loss: hinge"]),
        ({"search": {"usl_type": ["simclr"], "emb_loss": ["mse", "l1"]}}, ["search.emb_loss", "no effect"]),
        ({"base": {"policy": "simclr+nois"}}, ["base: policy: unknown policy 'nois', did you mean 'noise'?$"]),
        ({"base": {"policy": "none"}}, ["base: policy: write strength: 0 for no augmentation, not 'none'$"]),
        ({"base": {"policy": ["None"]}}, ["base: policy: write strength: 0 for no augmentation, not ['None']$"]),
        ({"base": {"policy": "xyz"}}, ["policy: unknown policy 'xyz'; valid: simclr, affine, noise, mask$"]),
        (
            {"base": {"policy": ["noise", "noise"]}},
            ["give at least one policy, and none twice, not ['noise', 'noise']$"],
        ),
        ({"base": {"policy": []}}, ["policy: give at least one policy, and none twice, not []$"]),
        ({"base": {"policy": "noise", "blur": True}, "search": {"blur": [True, False]}}, ["search.blur", "no effect"]),
        ({"base": {"probe_grid": {"lrs": [1]}}}, ["probe_grid: unknown key 'lrs', did you mean 'lr'?$"]),
        ({"base": {"probe_grid": {"lr": [-1]}}}, ["probe_grid", "lr", "greater than 0"]),
        ({"base": {"probe_grid": {"lr": []}}}, ["probe_grid", "lr", "not a list"]),
        ({"base": {"probe_grid": {"lr": [1, 1]}}}, ["probe_grid", "lr", "twice"]),
        ({"base": {"probe_grid": "lr"}}, ["probe_grid", "lr", "expected lists"]),
        ({"base": {"probe_grid": "{lr: [1"}}, ["probe_grid", "not valid YAML"]),
        ({"base": {"probe_grid": 3}}, ["probe_grid", "expected lists"]),
        ({"base": {"probe_grid": {"layer": ["layer9"]}}}, ["probe_grid", "layer", "layer9"]),
        ({"base": {"probe_grid": {"lr": [1, 2]}, "val_fraction": 0}}, ["probe_grid", "val_fraction"]),
        ({"base": {"hinge_m": 0, "emb_loss": "hinge"}}, ["hinge_m", "greater than 0"]),
        ({"base": {"alpha": [1, 2]}}, ["base.alpha", "one value"]),
    ],
)
def test_bad_input_of_methods_policies_and_probes_is_refused_naming_the_fault(raw, words):
    message = f"{refused(raw)}$"  # some of the words are the end of the message
    for word in words:
        assert word in message


def test_what_is_given_on_the_command_line_must_mean_something():
    with pytest.raises(InputError, match="emb_loss: has no effect in any trial"):
        space.build({}, {"usl_type": "simclr", "emb_loss": "mse"}, "command line")
    # A default in a file may have no effect.
    space.build({"base": {"emb_loss": "mse"}}, {"usl_type": "simclr"}, "command line")
    with pytest.raises(InputError, match=r"^command line: alpha: must be a valid number, not 'abc'$"):
        space.build({}, {"alpha": "abc"}, "command line")


def test_none_is_no_value_where_that_is_valid_in_files_and_on_the_command_line():
    optional = {"probe_dataset": "none", "image_size": "none", "labels_per_class": "None", "probe_grid": "none"}
    (trial,) = build({"base": optional, "tune": {"metric": "none"}}).trials
    assert trial.settings == Settings()
    flags = {name: space.parse_value(name, text, name) for name, text in optional.items()}
    assert space.build({}, flags, "command line").trials[0].settings == Settings()
    layerwise = {"layerwise": space.parse_value("layerwise", "none", "--layerwise")}
    assert space.build({"base": {"layerwise": "greedy"}}, layerwise, "f").trials[0].settings.layerwise == "none"


@pytest.mark.parametrize(
    ("base", "search", "words"),
    [
        ({"color_strength": 0.5}, {"strength": [0.5, 1, 2]}, "strength=2.0,seed=0 is the same trial as strength=1.0"),
        ({"color_strength": 0, "crop_strength": 1, "flip": False}, {"strength": [0.5, 1]}, "is the same trial as"),
        ({}, {"crop_strength": [1, 2]}, "crop_strength=2.0,seed=0 is the same trial as crop_strength=1.0,seed=0"),
        ({"strength": 0.5}, {"crop_strength": [None, 0.5]}, "policy simclr draws the same views in both"),
        ({"policy": "mask"}, {"strength": [1.5, 2]}, "policy mask draws the same views in both"),
        ({"policy": "noise", "flip": False}, {}, "flip: has no effect in any trial (policy: noise, strength: 0.5)"),
        ({"policy": "noise"}, {"flip": [True, False]}, "search.flip: has no effect in flip=True,seed=0"),
        ({"strength": 0}, {"color_strength": [0, 1]}, "search.color_strength: has no effect in color_strength=0.0"),
    ],
)
def test_strengths_that_change_no_view_are_refused(base, search, words):
    with pytest.raises(InputError) as fault:
        build({"base": {"usl_type": "simclr", **base}, "search": search})
    assert words in str(fault.value)
    assert "\n" not in str(fault.value)


def test_strengths_that_change_views_are_swept():
    for base, search in (
        ({}, {"strength": [0.5, 1, 2]}),
        ({"color_strength": 0.5, "crop_strength": 1}, {"strength": [0, 0.5, 1]}),
        ({"color_strength": 0, "crop_strength": 1, "flip": False}, {"strength": [0, 1]}),
        ({"policy": "simclr+noise", "color_strength": 0.5}, {"strength": [1, 2]}),
        ({"blur": True}, {"policy": ["noise", "simclr"]}),
    ):
        assert len(build({"base": {"usl_type": "simclr", **base}, "search": search}).trials) > 1


def test_an_optional_number_is_swept_with_none_and_with_a_range():
    sweep = build({"base": {"color_strength": "None"}, "search": {"crop_strength": ["none", 0, "1e0"]}})
    assert [trial.name for trial in sweep.trials] == [
        "crop_strength=None,seed=0",
        "crop_strength=0.0,seed=0",
        "crop_strength=1.0,seed=0",
    ]
    assert [trial.settings.crop_strength for trial in build(sweep.to_dict()).trials] == [None, 0.0, 1.0]
    drawn = build({"search": {"color_strength": {"uniform": [0, 1]}}, "tune": {"num_samples": 3}})
    assert all(0 < trial.settings.color_strength < 1 for trial in drawn.trials)
    flags = {"crop_strength": space.parse_value("crop_strength", "0.5", "--crop_strength"), "color_strength": "none"}
    assert space.build({}, flags, "command line").trials[0].settings.crop_strength == 0.5
    for value, words in ((-1, "greater than or equal to 0"), (True, "number"), ("x", "valid number")):
        with pytest.raises(InputError, match=words):
            build({"base": {"crop_strength": value}})
    with pytest.raises(InputError, match=r"crop_strength: has no effect .* needs policy with simclr, and strength > 0"):
        build({"base": {"policy": "mask"}, "search": {"crop_strength": [0, 1]}})
    with pytest.raises(InputError, match=r"color_strength: has no effect in strength=0\.0,color_strength=1.0"):
        build({"search": {"strength": [0, 1], "color_strength": [1, 2]}})


LOSS = {"metric": "pretrain/loss"}


@pytest.mark.parametrize(
    ("search", "name"),
    [
        ({"alpha": [0.1, 1]}, "alpha"),
        ({"usl_lr": [1e-3, 1e-4], "emb_loss": ["mse", "l1"]}, "emb_loss"),
        ({"emb_loss": ["hinge"], "hinge_m": {"uniform": [1, 2]}}, "hinge_m"),
        ({"usl_type": ["simclr"], "temperature": [0.1, 0.5]}, "temperature"),
        ({"denoising": [False, True]}, "denoising"),
        ({"batch_size": [100, 250]}, "batch_size"),
        ({"layerwise": ["none", "random"]}, "layerwise"),
        ({"dataset": ["cifar10", "svhn"]}, "dataset"),
        ({"image_size": [8, 16]}, "image_size"),
        ({"strength": [0.5, 1]}, "strength"),
        ({"crop_strength": [None, 1]}, "crop_strength"),
        ([{"usl_type": ["simclr"]}, {"usl_type": ["ae_parallel"]}], "usl_type"),
        ([{"seed": [0]}, {"alpha": [1], "seed": [0]}], "alpha"),
    ],
    ids=str,
)
def test_points_with_other_objectives_are_not_compared_by_their_loss(search, name):
    words = f"tune.metric: pretrain/loss cannot be compared between points that differ in {name}; choose by online/knn"
    assert words in refused({"search": search, "tune": LOSS})
    for tune in ({"scheduler": "asha"}, {"metric": "linear/val_accuracy"}, {"metric": "pretrain/rankme"}):
        if "scheduler" not in tune or name not in ("layerwise", "dataset", "image_size"):  # it refuses them anyway
            build({"search": search, "base": {"probe_every": 1}, "tune": tune})


def test_points_with_one_objective_may_be_compared_by_its_losses():
    search = {"usl_lr": {"loguniform": [1e-5, 1e-3]}, "usl_epochs": [20, 30], "alpha": [3], "encoder": ["conv6"]}
    for metric in ("pretrain/loss", "pretrain/emb_loss", "pretrain/rec_loss"):
        build({"search": search, "tune": {"metric": metric}})
        assert f"{metric} cannot be compared" in refused({"search": {"alpha": [1, 2]}, "tune": {"metric": metric}})


DATASET = """\
from typing import Annotated

import raysweep


@raysweep.dataset(size=8, channels=1)
def stripes(request, *, stripe_noise: Annotated[float, 'How noisy.'] = 0.1):
    '''Stripes with noise.'''
"""


@pytest.mark.parametrize("tune", [LOSS, {"metric": "pretrain/rec_loss"}], ids=str)
def test_losses_on_other_versions_of_a_plugin_dataset_are_not_compared(tune):
    try:
        plugins.activate([plugins.Plugin("stripes.py", DATASET)])
        search = {"stripe_noise": [0.1, 0.3]}
        words = "cannot be compared between points that differ in stripe_noise"
        for probe in (None, "digits"):
            base = {"dataset": "stripes", "probe_dataset": probe}
            assert words in refused({"base": base, "search": search, "tune": tune})
        build({"base": {"probe_dataset": "stripes"}, "search": search, "tune": tune})
        build({"base": {"dataset": "stripes"}, "search": search, "tune": {"metric": "linear/val_accuracy"}})
        build({"search": {"probe_dataset": ["digits", "digits_m"]}, "tune": tune})
    finally:
        plugins.activate(())


def test_alpha_of_a_loss_that_is_zero_for_equal_views_needs_augmentation():
    still = {"strength": 0}
    for loss in ("mse", "l1"):
        message = refused({"base": {**still, "emb_loss": loss}, "search": {"alpha": [0.1, 1]}})
        for words in ("search.alpha: has no effect", "strength > 0 (at 0 both views are equal)", "not zero for equal"):
            assert words in message
        build({"base": {"emb_loss": loss, "strength": 0.1}, "search": {"alpha": [0.1, 1]}})
        assert not has_effect("alpha", Settings(strength=0, emb_loss=loss))
    for loss in ("simclr", "barlow", "hinge"):
        build({"base": {**still, "emb_loss": loss}, "search": {"alpha": [0.1, 1]}})
        assert has_effect("alpha", Settings(strength=0, emb_loss=loss))
    # Dropout in a model of timm makes the embeddings of equal views differ.
    trials = build({"base": {**still, "encoder": "timm/rexnet_100"}, "search": {"alpha": [0.1, 1]}}).trials
    assert len({space.expansion.computed(trial.settings) for trial in trials}) == 2
    assert "search.alpha: has no effect in strength=0.0," in refused({"search": {"strength": [0, 1], "alpha": [1, 2]}})
    with pytest.raises(InputError, match="alpha: has no effect in any trial"):
        space.build({}, {"strength": 0, "alpha": 1}, "command line")


@pytest.mark.parametrize(
    "raw",
    [
        {"search": {"alpha": [0.1, 1]}, "tune": LOSS},
        {"search": {"strength": [0, 1], "alpha": [0.1, 1]}},
        {"base": {"strength": 0, "alpha": 1}, "search": {"seed": [0, 1]}},
    ],
    ids=str,
)
def test_a_recorded_sweep_is_read_though_it_would_be_refused_now(raw):
    refused(raw)
    sweep = space.build({"baseline": True, **raw}, {}, "sweep.yaml", recorded=True)
    expected = math.prod(map(len, raw["search"].values()))
    assert sum(not trial.baseline for trial in sweep.trials) == expected
    assert space.build(sweep.to_dict(), {}, "sweep.yaml", recorded=True).trials == sweep.trials
    with pytest.raises(InputError, match="unknown setting"):
        space.build({"search": {"alhpa": [1]}}, {}, "sweep.yaml", recorded=True)


def test_a_bank_that_reads_the_embedding_makes_its_width_the_random_encoders_too():
    bank = {"probe_grid": "{layer: [trunk, embedding]}", "embedding_dim": 128}
    random, trained = build({"base": bank, "baseline": True}).trials
    assert random.settings.embedding_dim == trained.settings.embedding_dim == 128
    width = {
        "search": {"embedding_dim": [16, 128]},
        "base": {"probe_grid": "{layer: [trunk, embedding]}"},
        "baseline": True,
    }
    assert [trial.settings.embedding_dim for trial in build(width).trials] == [16, 128, 16, 128]


def test_settings_without_effect_do_not_make_evaluations_incomparable():
    def protocol_of(**settings):
        return protocol(Settings(**settings), "data")

    assert protocol_of(val_fraction=0, split_seed=1) == protocol_of(val_fraction=0)
    assert protocol_of(split_seed=1) != protocol_of()
    assert protocol_of(probe_grid="{lr: [0.1, 0.2]}", le_lr=5) == protocol_of(probe_grid="{lr: [0.1, 0.2]}")
    assert protocol_of(le_lr=5) != protocol_of()


def names(sweep):
    return [trial.name for trial in sweep.trials]


def test_a_trial_that_two_sub_spaces_name_counts_once():
    assert names(build({"search": [{"alpha": [0.1, 1]}, {"alpha": [1, 10]}]})) == [
        "alpha=0.1,seed=0",
        "alpha=1.0,seed=0",
        "alpha=10.0,seed=0",
    ]


def extended(begun, asked):
    """Extend one file's sweep by another file, and return the result as it is read back."""
    sweep = space.extend(build(begun), build(asked), "new.yaml")
    again = build(sweep.to_dict())
    assert (again.trials, again.to_dict()) == (sweep.trials, sweep.to_dict())
    return again


axes = st.fixed_dictionaries(
    {
        "alpha": st.one_of(
            st.builds(
                lambda values: {"grid": values}, st.lists(st.sampled_from([0.1, 1, 10, 100]), min_size=1, unique=True)
            ),
            st.sampled_from([{"loguniform": [0.1, 10]}, {"loguniform": [0.1, 100]}]),
        )
    },
    optional={"seed": st.lists(st.integers(0, 4), min_size=1, unique=True).map(lambda values: {"grid": values})},
)


@given(axes, axes, st.integers(1, 4), st.integers(1, 4), st.booleans(), st.booleans(), st.integers(0, 2))
@settings(max_examples=50)
def test_an_extended_sweep_has_the_trials_of_both_files_the_new_ones_first(one, two, n, m, first, second, seed):
    def file(search, samples, baseline, **base):
        drawn = "loguniform" in search["alpha"]
        return {"search": search, "tune": {"num_samples": samples if drawn else 1}, "baseline": baseline, "base": base}

    begun, asked = file(one, n, first), file(two, m, second, seed=seed)
    sweep = extended(begun, asked)
    old, new = build(begun), build(asked)
    plain = [trial for trial in sweep.trials if not trial.baseline]
    wanted = dict.fromkeys(trial for part in (new, old) for trial in part.trials if not trial.baseline)
    assert plain == list(wanted)
    assert {trial for trial in (*old.trials, *new.trials) if trial.baseline} <= set(sweep.trials)
    assert extended(sweep.to_dict(), asked).trials == sweep.trials


@pytest.mark.parametrize(
    ("begun", "asked", "words"),
    [
        ({}, {"base": {"usl_lr": 0.01}}, "usl_lr: is 0.01, but the sweep was started with 0.0001"),
        ({"base": {"dataset": "mnist"}}, {}, "dataset: is 'digits', but the sweep was started with 'mnist'"),
        ({"search": {"alpha": [1]}}, {"base": {"alpha": 1}}, "alpha: is no longer under search"),
        ({"base": {"strength": 1}}, {"search": {"strength": [0.5]}}, "strength: is under search now"),
        (
            {"search": {"alpha": [1], "strength": [1]}},
            {"search": {"strength": [1], "alpha": [1]}},
            "alpha=1.0,strength=1.0,seed=0 is the same trial as strength=1.0,alpha=1.0,seed=0",
        ),
    ],
)
def test_what_would_be_another_sweep_is_refused(begun, asked, words):
    with pytest.raises(InputError, match=r"^new\.yaml: ") as fault:
        extended(begun, asked)
    assert words in str(fault.value)


def test_what_changes_no_score_may_change_and_sub_spaces_may_be_added():
    begun = {"base": {"probe_every": 1}, "search": {"alpha": [1]}}
    asked = {
        "base": {"data_dir": "/elsewhere", "probe_every": 5},
        "search": [{"alpha": [1]}, {"usl_type": ["simclr"], "temperature": [0.1]}],
        "tune": {"max_failures": 1},
        "resources": {"cpu": 2},
    }
    sweep = extended(begun, asked)
    assert names(sweep) == ["alpha=1.0,seed=0", "usl_type=simclr,temperature=0.1,seed=0"]
    assert {(trial.settings.data_dir, trial.settings.probe_every) for trial in sweep.trials} == {("/elsewhere", 5)}
    assert (sweep.tune.max_failures, sweep.resources.cpu) == (1, 2)


SHORT = {"usl_epochs": 8, "probe_every": 2}
DRAWN = {"alpha": {"loguniform": [1e-3, 10]}, "seed": [0, 1]}
OPTUNA = {"searcher": "optuna", "num_samples": 4}


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"base": {"probe_every": 0}, "tune": {"scheduler": "asha"}}, ["scheduler: asha", "set probe_every above 0"]),
        (
            {"base": {"val_fraction": 0}, "tune": {"scheduler": "median"}},
            ["online/knn_val_accuracy", "val_fraction: 0"],
        ),
        ({"base": {"usl_epochs": 0}, "tune": {"scheduler": "asha"}}, ["scheduler: asha", "set usl_epochs above 0"]),
        (
            {"tune": {"scheduler": "asha", "metric": "linear/val_accuracy"}},
            ["'linear/val_accuracy'", "during pretraining", "online/knn_val_accuracy"],
        ),
        ({"base": {"usl_epochs": 10}, "tune": {"scheduler": "asha"}}, ["could not stop any trial", "epoch 10 of 10"]),
        ({"base": SHORT, "tune": {"scheduler": "asha", "grace_epochs": 7}}, ["grace_epochs: 7", "epoch 8 of 8"]),
        ({"tune": {"scheduler": "asha", "grace_epochs": 0}}, ["grace_epochs", "greater than or equal to 1"]),
        ({"tune": {"scheduler": "asha", "reduction_factor": 1}}, ["reduction_factor", "greater than 1"]),
        ({"tune": {"scheduler": "median", "reduction_factor": 3}}, ["reduction_factor", "no effect", "asha"]),
        ({"tune": {"grace_epochs": 3}}, ["grace_epochs", "no effect", "asha or median"]),
        ({"search": {"layerwise": ["none", "greedy"]}, "tune": {"scheduler": "asha"}}, ["layerwise"]),
        (
            {"base": {"layerwise": "greedy"}, "search": {"usl_epochs": [20, 40]}, "tune": {"scheduler": "asha"}},
            ["with greedy one value of usl_epochs"],
        ),
        ({"search": {"knn_k": [5, 20]}, "tune": {"scheduler": "asha"}}, ["search.knn_k", "not comparable"]),
        ({"tune": {"max_concurrent": 0}}, ["max_concurrent", "0"]),
        ({"search": DRAWN, "tune": {"searcher": "optuna"}}, ["searcher: optuna", "num_samples"]),
        ({"tune": {"storage": "sqlite:///a.db"}}, ["tune.storage", "it needs tune.searcher: optuna"]),
        ({"search": DRAWN, "tune": {**OPTUNA, "storage": "a.db"}}, ["tune.storage", "sqlite:///FILE.db", "'a.db'"]),
        ({"search": DRAWN, "tune": {**OPTUNA, "storage": "sqlite://"}}, ["tune.storage", "must name a file"]),
        ({"search": {"alpha": [0.1, 1]}, "tune": OPTUNA}, ["search.alpha", "{choice: [0.1, 1.0]}"]),
        (
            {"search": {"alpha": {"choice": [0.1, 1]}}, "tune": OPTUNA},
            ["4 points (tune.num_samples)", "only 2 exist", "grid"],
        ),
        ({"tune": OPTUNA}, ["4 points (tune.num_samples)", "only 1 exist"]),
        ({"search": DRAWN | {"seed": {"randint": [0, 9]}}, "tune": OPTUNA}, ["one grid of seeds"]),
        (
            {"search": [DRAWN, {"usl_type": "simclr", "usl_lr": {"uniform": [0.1, 1]}}], "tune": OPTUNA},
            ["one grid of seeds"],
        ),
        ({"search": DRAWN | {"le_lr": {"choice": [0.1, 1]}}, "tune": OPTUNA}, ["search.le_lr", "not comparable"]),
        ({"search": DRAWN, "base": {"val_fraction": 0}, "tune": OPTUNA}, ["optuna", "val_fraction is 0"]),
        ({"search": DRAWN, "base": {"usl_type": "simclr"}, "tune": OPTUNA}, ["search.alpha", "no effect"]),
        ({"search": DRAWN, "tune": OPTUNA | {"metric": "pretrain/rec_los"}}, ["tune.metric", "did you mean"]),
        ({"search": DRAWN, "tune": OPTUNA | {"num_samples": 60_000}}, ["120000 trials"]),
    ],
)
def test_schedulers_and_searchers_that_could_not_work_are_refused(raw, words):
    message = refused(raw)
    for word in words:
        assert word in message


def test_settings_of_a_stop_that_is_off_are_refused():
    for name, value in (("collapse_rankme", 2.0), ("collapse_std", 0.1)):
        assert f"tune.{name}: has no effect" in refused({"tune": {name: value}})
        tune = {"collapse_stop": 2, name: value}
        assert getattr(build({"tune": tune}).tune, name) == value
        off = build({"tune": tune}, **{"tune.collapse_stop": None})
        assert off.tune == build({}).tune
        assert f"tune.{name}: has no effect" in refused({}, **{f"tune.{name}": value})
        assert space.rebuild({"tune": {name: value}}, "file.yaml").tune.collapse_stop is None


def test_what_a_scheduler_goes_by():
    sweep = build({"search": {"usl_epochs": [20, 40], "seed": [0, 1]}, "tune": {"scheduler": "asha"}, "baseline": True})
    assert (sweep.stop_metric, sweep.metric) == ("online/knn_val_accuracy", "linear/val_accuracy")
    assert (sweep.grace_epochs, sweep.longest) == (10, 40)
    loss = {"scheduler": "median", "metric": "pretrain/loss", "mode": "min", "grace_epochs": 4}
    sweep = build({"base": SHORT | {"val_fraction": 0, "layerwise": "greedy"}, "tune": loss})
    assert (sweep.stop_metric, sweep.grace_epochs, sweep.longest) == ("pretrain/loss", 4, 40)


def test_a_sweep_with_a_searcher_grows_point_by_point_and_is_the_same_when_read_again():
    sweep = build({"search": DRAWN, "tune": OPTUNA, "baseline": True})
    assert [trial.name for trial in sweep.trials] == ["random,seed=0", "random,seed=1"]
    assert (sweep.total, sweep.seeds, sweep.metric) == (2 + 4 * 2, (0, 1), "linear/val_accuracy")
    grown = space.propose(sweep, space.Proposal(0, {"alpha": 0.5}))
    assert [trial.name for trial in grown.trials[2:]] == ["alpha=0.5,seed=0", "alpha=0.5,seed=1"]
    assert grown.total == sweep.total
    assert space.propose(grown, space.Proposal(0, {"alpha": 0.5})) is None
    assert space.propose(build(sweep.to_dict()), space.Proposal(0, {"alpha": 0.5})).trials == grown.trials


def test_the_random_encoders_of_a_searched_encoder_come_with_its_points():
    search = {"encoder": {"choice": ["conv6", "resnet18"]}, "usl_lr": {"uniform": [0.1, 1]}, "seed": [3]}
    sweep = build({"search": search, "tune": OPTUNA, "baseline": True})
    assert sweep.trials == ()
    for encoder in ("resnet18", "conv6", "resnet18"):
        sweep = space.propose(sweep, space.Proposal(0, {"encoder": encoder, "usl_lr": 0.1 + 0.1 * len(sweep.trials)}))
    assert [trial.point for trial in sweep.trials if trial.baseline] == [
        "random,encoder=resnet18",
        "random,encoder=conv6",
    ]
    assert sweep.total == 2 + 4


def test_a_trial_is_short_when_pickled_and_the_same_again():
    raw = {
        "base": {"usl_epochs": 3, "probe_grid": {"lr": [0.1, 0.2]}},
        "search": {"alpha": [0.1, 1e-300], "dataset": ["folder:a", "digits"], "seed": [0, 1]},
        "baseline": True,
    }
    for trial in build(raw).trials:
        content = pickle.dumps(trial)
        assert pickle.loads(content) == trial
        assert hash(pickle.loads(content)) == hash(trial)
        assert len(content) < 600
