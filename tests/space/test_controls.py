"""The entry `baseline`: which controls it adds, and how an existing sweep gets more of them."""

import pickle

import pytest

from raysweep import space
from raysweep.errors import InputError
from raysweep.space.controls import CONTROLS

ALL = list(CONTROLS)


def build(raw, **overrides):
    return space.build(raw, overrides, "file.yaml")


def names(sweep, control=None):
    return [trial.name for trial in sweep.trials if trial.baseline and control in (None, trial.control)]


@pytest.mark.parametrize(
    ("value", "controls"),
    [
        (False, []),
        ([], []),
        (True, ["random"]),
        ("random", ["random"]),
        ("pca", ["pca"]),
        (["supervised", "random"], ["random", "supervised"]),
        (["pixels", "pca", "supervised", "random"], ALL),
    ],
)
def test_controls_come_first_in_a_fixed_order_and_the_file_is_restored(value, controls):
    sweep = build({"search": {"alpha": [0.1, 1], "seed": [0, 1]}, "baseline": value})
    assert names(sweep) == [f"{control},seed={seed}" for control in controls for seed in (0, 1)]
    assert [trial.name for trial in sweep.trials[: 2 * len(controls)]] == names(sweep)
    written = sweep.to_dict()["baseline"]
    assert written == (bool(controls) if controls in ([], ["random"]) else controls)
    restored = build(sweep.to_dict())
    assert (restored.trials, restored.baseline) == (sweep.trials, sweep.baseline)
    assert pickle.loads(pickle.dumps(sweep.trials)) == sweep.trials


def test_the_command_line_replaces_the_file_s_controls():
    raw = {"search": {"alpha": [0.1]}, "baseline": ["pca"]}
    for text, expected in (("[random,pixels]", ["random", "pixels"]), ("true", ["random"]), ("false", [])):
        sweep = build(raw, **space.parse_assignments([f"baseline={text}"]))
        assert names(sweep) == [f"{control},seed=0" for control in expected]


def test_controls_share_seeds_and_evaluation_with_the_points():
    search = {"alpha": [0.1, 1], "embedding_dim": [8, 16], "usl_epochs": [0, 3], "knn_k": [5], "strength": [0.2, 0.4]}
    spaces = [{**search, "usl_epochs": [3]}]
    sweep = build({"base": {"probe_layer": "layer3", "le_lr": 0.1}, "search": spaces, "baseline": ALL})
    assert names(sweep, "random") == ["random,knn_k=5,seed=0"]
    assert names(sweep, "pixels") == ["pixels,knn_k=5,seed=0"]
    assert names(sweep, "pca") == ["pca,embedding_dim=8,knn_k=5,seed=0", "pca,embedding_dim=16,knn_k=5,seed=0"]
    supervised = [trial for trial in sweep.trials if trial.control == "supervised"]
    assert {trial.settings.strength for trial in supervised} == {0}, "a sweep of strength has one supervised control"
    assert [trial.name for trial in supervised] == [
        f"supervised,embedding_dim={dim},usl_epochs=3,knn_k=5,seed=0" for dim in (8, 16)
    ]
    for trial in sweep.trials:
        assert (trial.settings.probe_layer, trial.settings.le_lr, trial.settings.knn_k) == ("layer3", 0.1, 5)


def test_a_point_without_pretraining_has_no_supervised_control():
    sweep = build({"search": {"usl_epochs": [0, 3]}, "baseline": ["pixels", "supervised"]})
    assert names(sweep) == ["pixels,seed=0", "supervised,usl_epochs=3,seed=0"]


def test_encoders_that_are_no_networks_are_searched_beside_networks():
    """Settings of training in `base` hold for the networks, whichever encoder `base` names."""
    search = [{"encoder": ["pixels", "pca"]}, {"encoder": ["conv6"], "strength": [0.2, 0.4]}]
    for encoder in ("conv6", "pixels"):
        base = {"encoder": encoder, "usl_type": "ae_single", "usl_epochs": 3, "layerwise": "greedy"}
        sweep = build({"base": base, "search": search, "baseline": ["random"]})
        assert names(sweep) == ["random,encoder=conv6,seed=0"], "nothing of a network is left to be random"
        trials = {trial.name: trial.settings for trial in sweep.trials}
        training = {name: (settings.usl_epochs, settings.layerwise) for name, settings in trials.items()}
        assert training == {
            "random,encoder=conv6,seed=0": (0, "none"),
            "encoder=pixels,seed=0": (0, "none"),
            "encoder=pca,seed=0": (0, "none"),
            "encoder=conv6,strength=0.2,seed=0": (3, "greedy"),
            "encoder=conv6,strength=0.4,seed=0": (3, "greedy"),
        }
        assert build(sweep.to_dict()).trials == sweep.trials
        assert {space.computed(settings) for settings in trials.values()}.__len__() == 5


def test_layerwise_points_have_a_control_that_trains_end_to_end():
    sweep = build({"search": {"layerwise": ["greedy", "random"]}, "baseline": ALL})
    assert names(sweep) == [f"{control},seed=0" for control in ALL]
    assert sweep.trials[3].settings.layerwise == "none"
    assert sweep.trials[3].settings.per_layer, "blocks are probed as in the points"


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"baseline": ["foo"]}, "baseline: unknown control 'foo'; valid: random, pixels, pca, supervised"),
        ({"baseline": "pixel"}, "baseline: unknown control 'pixel', did you mean 'pixels'?"),
        ({"baseline": [1]}, "baseline: unknown control 1"),
        ({"baseline": ["pca", "pca"]}, "baseline: 'pca' is listed twice"),
        ({"baseline": 3}, "baseline: must be true, false, or names from random, pixels, pca, supervised, not 3"),
        ({"baseline": {}}, "baseline: must be true, false, or names from random, pixels, pca, supervised, not {}"),
        ({"baseline": None}, "not None"),
        ({"base": {"usl_epochs": 0}, "baseline": "supervised"}, "baseline: supervised needs training"),
        (
            {"base": {"usl_type": "supervised", "strength": 0}, "baseline": "supervised"},
            "search: seed=0 is the trial that baseline: supervised adds",
        ),
        (
            {"base": {"encoder": "pixels", "usl_epochs": 0}, "baseline": "pixels"},
            "is the trial that baseline: pixels adds",
        ),
        ({"base": {"encoder": "pca"}, "baseline": True}, "random needs a network, and encoder: pca is none"),
        ({"base": {"encoder": "pca"}, "search": {"usl_epochs": [0, 1]}}, "search.usl_epochs: has no effect"),
        ({"base": {"usl_type": "supervised", "layerwise": "greedy"}}, "supervised cannot train block by block"),
    ],
)
def test_bad_controls_are_refused(raw, words):
    with pytest.raises(InputError) as fault:
        build(raw)
    assert words in str(fault.value)
    assert "\n" not in str(fault.value)


def test_an_existing_sweep_gets_more_controls_and_keeps_its_own():
    raw = {"search": {"alpha": [0.1, 1], "seed": [0, 1]}, "baseline": True}
    before = build(raw)
    after = space.extend(before, build(before.to_dict(), baseline=["pixels"]), "here")
    assert names(after) == ["random,seed=0", "random,seed=1", "pixels,seed=0", "pixels,seed=1"]
    assert set(before.trials) < set(after.trials)
    assert space.extend(after, build({**raw, "baseline": False}), "here") == after
    more = space.extend(after, build({"search": {"alpha": [10], "seed": [0, 1, 2]}}), "here")
    assert names(more, "pixels") == ["pixels,seed=0", "pixels,seed=1", "pixels,seed=2"]


def test_a_searcher_knows_the_controls_that_all_points_share():
    search = {"usl_lr": {"loguniform": [1e-4, 1e-2]}, "seed": [0, 1]}
    sweep = build({"search": search, "tune": {"searcher": "optuna", "num_samples": 3}, "baseline": ALL})
    assert names(sweep) == [f"{control},seed={seed}" for control in ("random", "pixels", "pca") for seed in (0, 1)]
    proposed = space.propose(sweep, space.Proposal(0, {"usl_lr": 0.001}))
    assert names(proposed, "supervised") == ["supervised,usl_lr=0.001,seed=0", "supervised,usl_lr=0.001,seed=1"]
    assert proposed.proposed == ("usl_lr=0.001",)


def test_a_scheduler_needs_points_that_pretrain():
    with pytest.raises(InputError, match="set usl_epochs above 0"):
        build({"base": {"usl_epochs": 0}, "tune": {"scheduler": "asha"}, "baseline": ["pixels"]})
