"""The probes that are off by default, compared with scikit-learn and NumPy on the pixels of digits."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, normalize

from raysweep import parts
from raysweep.config import Settings, fingerprint, has_effect, has_metric, make_settings, metrics_by_name, protocol
from raysweep.data.splits import draw_labels, split_train
from raysweep.errors import InputError
from raysweep.probes.features import standard_scale
from raysweep.probes.few_shot import few_shot_accuracies
from raysweep.probes.knn import knn_accuracies, knn_accuracy
from raysweep.probes.linear import train_classifiers
from raysweep.probes.logistic import logistic_scores
from raysweep.probes.mlp import MLP
from raysweep.randomness import seed_of
from raysweep.results.checkpoints import load_checkpoint
from tests.support.trials import DATASETS, run, trial_of

ON = {
    "logistic": True,
    "logistic_c": [0.001, 0.1, 10],
    "knn_grid": [1, 5, 20, 100],
    "few_shot": [1, 5],
    "few_shot_draws": 4,
    "mlp_probe": True,
    "mlp_width": 32,
}
"""Settings that turn all these probes on."""


@pytest.fixture(scope="module")
def splits():
    """The pixels (N, D) in [0, 1] and the labels of each split of the digits, as a trial with the seed 0 has them."""
    dataset = DATASETS["digits", 8, None]
    fit, val = split_train(dataset.train_labels, 0.1, 0)
    images = {"fit": dataset.train_images[fit], "val": dataset.train_images[val], "test": dataset.test_images}
    labels = {"fit": dataset.train_labels[fit], "val": dataset.train_labels[val], "test": dataset.test_labels}
    return {split: each.reshape(len(each), -1) / np.float32(255) for split, each in images.items()}, labels


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    """The metrics of a trial whose features are the pixels, with all probes on."""
    return run(tmp_path_factory.mktemp("pixels"), trial_of(encoder="pixels", le_epochs=1, **ON)).metrics


def logistic_reference(features, labels, strengths):
    """Return the validation and test accuracy of scikit-learn's pipeline with the best strength, and that strength."""
    models = {}
    for strength in strengths:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=5000, tol=1e-6))
        models[strength] = model.fit(features["fit"], labels["fit"])
    val = {strength: model.score(features["val"], labels["val"]) for strength, model in models.items()}
    best = max(strengths, key=lambda strength: val[strength])
    return val[best], models[best].score(features["test"], labels["test"]), best


def test_logistic_regression_equals_scikit_learn_with_the_best_strength(scores, splits):
    val, test, best = logistic_reference(*splits, ON["logistic_c"])
    assert scores["logistic/c"] == best
    assert scores["logistic/val_accuracy"] == val
    assert scores["logistic/test_accuracy"] == pytest.approx(test, abs=1.01 / 80), "one image may lie on the boundary"


def test_logistic_regression_reads_the_labels_that_the_linear_probe_reads(tmp_path, splits):
    trial = trial_of(encoder="pixels", le_epochs=1, seed=3, labels_per_class=2, standardize=False, **ON)
    got = run(tmp_path, trial).metrics
    features, labels = splits
    index = draw_labels(labels["fit"], 2, 3)
    drawn = {**features, "fit": features["fit"][index]}, {**labels, "fit": labels["fit"][index]}
    expected = logistic_scores(*drawn, ON["logistic_c"])
    assert {name: got[name] for name in expected} == expected
    assert got["logistic/test_accuracy"] < logistic_scores(*splits, [1.0])["logistic/test_accuracy"]


def test_the_best_strength_is_chosen_by_validation_alone_and_the_first_of_equals_counts():
    draws = np.random.default_rng(0)
    labels = {split: np.arange(40) % 2 for split in ("fit", "val", "test")}
    features = {split: (each * 4 - 2 + draws.normal(size=40) * 0.1)[:, None] for split, each in labels.items()}
    assert logistic_scores(features, labels, [0.3, 0.1, 1.0])["logistic/c"] == 0.3
    labels["test"] = 1 - labels["test"]
    assert logistic_scores(features, labels, [0.3]) == {
        "logistic/val_accuracy": 1.0,
        "logistic/test_accuracy": 0.0,
        "logistic/c": 0.3,
    }


def test_logistic_regression_that_does_not_converge_is_noted(splits, monkeypatch):
    monkeypatch.setattr("raysweep.probes.logistic.ITERATIONS", 2)
    with pytest.warns(UserWarning, match=r"^logistic regression with C = 100 did not converge in 2 iterations$"):
        logistic_scores(*splits, [100.0])


def test_knn_for_several_k_equals_scikit_learn_and_knn_k_itself(scores, splits):
    features, labels = splits
    for k in ON["knn_grid"]:
        reference = KNeighborsClassifier(k, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
        reference.fit(features["fit"].astype(float), labels["fit"])
        for split in ("val", "test"):
            expected = reference.score(features[split].astype(float), labels[split])
            assert scores[f"knn/k{k}_{split}_accuracy"] == pytest.approx(expected)
    assert scores["knn/k5_test_accuracy"] == scores["knn/test_accuracy"], "TINY has knn_k: 5"


def test_knn_with_equal_similarities_is_that_of_each_k_alone():
    features = torch.randint(0, 2, (200, 3), generator=torch.Generator().manual_seed(0)).float()
    arguments = (features, torch.arange(200) % 10, features, torch.arange(200) % 10)
    ks = (1, 2, 5, 50)
    alone = [knn_accuracy(*arguments, classes=10, k=k, temperature=0.07) for k in ks]
    assert knn_accuracies(*arguments, classes=10, ks=ks, temperature=0.07) == alone


def centroid_accuracy(features, labels, index):
    """Return the test accuracy of the nearest mean of images of the fit split, after CL2N, one distance at a time."""
    center = features["fit"].astype(float).mean(0)
    fit, test = (normalize(each - center) for each in (features["fit"][index], features["test"]))
    means = [fit[labels["fit"][index] == label].mean(0) for label in range(10)]
    nearest = [np.argmin([np.linalg.norm(query - mean) for mean in means]) for query in test]
    return np.mean(nearest == labels["test"])


def test_few_shot_scores_equal_the_nearest_class_mean_in_numpy(scores, splits):
    features, labels = splits
    for count in ON["few_shot"]:
        draws = [draw_labels(labels["fit"], count, 0, draw=draw) for draw in range(4)]
        assert len({tuple(index) for index in draws}) == 4, "the draws differ"
        assert all((np.bincount(labels["fit"][index]) == count).all() for index in draws)
        expected = [centroid_accuracy(features, labels, index) for index in draws]
        assert scores[f"few_shot/{count}_test_accuracy"] == pytest.approx(np.mean(expected))
        assert scores[f"few_shot/{count}_std"] == pytest.approx(np.std(expected, ddof=1))
    assert scores["few_shot/5_test_accuracy"] > scores["few_shot/1_test_accuracy"] > 0.3, "chance level is 0.1"


def test_a_class_without_images_in_a_draw_is_never_chosen():
    features = torch.eye(3).repeat(2, 1)
    labels = torch.tensor([0, 1, 2]).repeat(2)
    arguments = (features, labels, features, labels)
    some, all_classes = torch.tensor([0, 2]), torch.tensor([0, 1, 2])
    accuracies = few_shot_accuracies(*arguments, classes=3, draws=[some, all_classes])
    assert accuracies == [pytest.approx(2 / 3), 1.0]


def test_one_draw_has_no_spread():
    settings = make_settings({"few_shot": 5, "few_shot_draws": 1}, "x")
    assert has_metric("few_shot/5_test_accuracy", settings)
    assert not has_metric("few_shot/5_std", settings)
    assert metrics_by_name()["few_shot/5_std"].is_diagnosis


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_the_mlp_is_adam_on_cross_entropy_step_by_step(splits, weight_decay):
    features, labels = splits[0]["fit"], torch.from_numpy(splits[1]["fit"])
    scaled = torch.tensor(StandardScaler().fit_transform(features.astype(float)), dtype=torch.float32)
    with torch.random.fork_rng():
        torch.manual_seed(seed_of(3, "mlp"))
        reference = torch.nn.Sequential(torch.nn.Linear(64, 16), torch.nn.ReLU(), torch.nn.Linear(16, 10))
    adam = torch.optim.Adam(reference.parameters(), lr=0.01, weight_decay=weight_decay)
    fit = torch.from_numpy(features)
    mlp = MLP(standard_scale(fit), width=16, classes=10, lr=0.01, weight_decay=weight_decay, seed=3)
    for _ in train_classifiers(mlp, {"trunk": fit}, labels, epochs=6, batch_size=len(fit)):  # one batch in each epoch
        adam.zero_grad()
        torch.nn.functional.cross_entropy(reference(scaled), labels).backward()
        adam.step()
        torch.testing.assert_close(mlp.logits(fit), reference(scaled), atol=1e-3, rtol=1e-3)
        assert mlp.accuracy(fit, labels) == np.mean((reference(scaled).argmax(1) == labels).numpy())


def test_the_scores_of_the_mlp_are_those_of_the_right_splits(scores, splits):
    features, labels = ({split: torch.from_numpy(each) for split, each in values.items()} for values in splits)
    mlp = MLP(standard_scale(features["fit"]), width=32, classes=10, lr=1e-3, weight_decay=0.0, seed=0)
    list(train_classifiers(mlp, {"trunk": features["fit"]}, labels["fit"], epochs=1, batch_size=50))
    for split in ("val", "test"):
        assert scores[f"mlp/{split}_accuracy"] == mlp.accuracy(features[split], labels[split])


def test_an_mlp_that_diverges_fails_the_trial_with_a_reason(tmp_path):
    result = run(tmp_path, trial_of(encoder="pixels", le_epochs=3, mlp_probe=True, le_lr=1e38))
    assert result.status == "failed"
    assert "the MLP probe's loss became" in result.error


SMALL = {"encoder": "conv6", "usl_epochs": 0, "le_epochs": 3}
LAYERS = {"per_layer": True}
CHANGES = {
    "the mlp is turned on in the linear probe": ({}, {"mlp_probe": True}, 1),
    "probes without training are turned on": ({}, {"logistic": True, "label_free": True}, 1),
    "other numbers": ({"knn_grid": [1, 5], "few_shot": [1, 2]}, {"knn_grid": [5, 20], "few_shot": 4}, 1),
    "probes without training are turned off": ({"few_shot": 1, "knn_grid": 5, "label_free": True}, {}, 1),
    "the mlp is turned off in its training": ({"mlp_probe": True}, {}, 1),
    "the mlp is turned off after its training": ({"mlp_probe": True}, {}, 5),
    "fine-tuning is turned off in its training": ({"finetune": True}, {"mlp_probe": True}, 1),
    "blocks are turned on in the first epochs": ({}, LAYERS, 1),
    "blocks are turned on in the last epoch": ({}, LAYERS, 2),
    "blocks are turned on after the linear probe": ({}, LAYERS, 3),
    "blocks are turned off": (LAYERS, {}, 6),
    "nothing changes": ({"mlp_probe": True, **LAYERS}, {"mlp_probe": True, **LAYERS}, 12),
}
"""The settings before a resume and after it, and the number of pauses of trained probes before the one that stops."""


@pytest.mark.parametrize(("before", "after", "stops"), CHANGES.values(), ids=CHANGES)
def test_a_resume_in_a_trained_probe_follows_the_new_settings(tmp_path, before, after, stops):
    switches = {"finetune_epochs": 1, "finetune_batch_size": 100, "logistic_c": 1}
    plain, wanted = (trial_of(**{**SMALL, **switches, **each}) for each in (before, after))
    asked, untrained = [], [part for part in parts.probes_in_use(plain.settings) if not part.traits["trains"]]
    stops += len(untrained)  # there is a pause after each of them
    assert run(tmp_path / "cut", plain, stop=lambda: asked.append(1) or len(asked) > stops) is None
    assert load_checkpoint(tmp_path / "cut")["evaluation"]["probe"], "the trial stopped in a trained probe"
    resumed, whole = run(tmp_path / "cut", wanted), run(tmp_path / "whole", wanted)
    assert resumed.metrics == whole.metrics
    assert resumed.linear_probe == whole.linear_probe


def test_a_stop_before_the_resumed_probe_keeps_what_it_has_trained(tmp_path):
    """A resume turns on a probe without training, and stops after it, before the linear probe goes on."""
    plain, wanted = (trial_of(**SMALL, logistic_c=1, logistic=is_on) for is_on in (False, True))
    count = sum(not part.traits["trains"] for part in parts.probes_in_use(plain.settings)) + 2
    for trial, pauses in ((plain, count), (wanted, 1)):
        asked = []
        assert run(tmp_path, trial, stop=lambda asked=asked, most=pauses: asked.append(1) or len(asked) >= most) is None
        assert load_checkpoint(tmp_path)["evaluation"]["probe"][2]["probes"]["epoch"] == 2
    resumed = run(tmp_path, wanted)
    assert resumed.metrics == run(tmp_path / "whole", wanted).metrics


def test_a_resume_runs_each_probe_without_training_only_once(tmp_path, monkeypatch):
    """A probe that has run with the same settings keeps its scores, however often the trial resumes."""
    calls = []
    accuracies = knn_accuracy
    monkeypatch.setattr(
        "raysweep.probes.knn.knn_accuracy", lambda *each, **more: calls.append(1) or accuracies(*each, **more)
    )
    for few_shot in (None, 1, 2):
        asked = []
        trial = trial_of(encoder="pixels", le_epochs=9, few_shot=few_shot)
        assert run(tmp_path, trial, stop=lambda asked=asked: asked.append(1) or len(asked) > 1) is None
    assert len(calls) == 2, "the accuracy on validation and on test images"


# ---- what all of them share ------------------------------------------------------------------------------------------


def test_the_probes_change_nothing_of_a_trial_without_them(tmp_path, scores):
    plain = run(tmp_path, trial_of(encoder="pixels", le_epochs=1))
    assert {name: scores[name] for name in plain.metrics} == plain.metrics
    optional = [name for part in parts.probe.values() if part.traits["switch"] for name in part.metrics]
    assert plain.metrics.keys().isdisjoint(optional)
    assert scores.keys() - plain.metrics.keys() <= set(optional)


def test_exactly_the_metrics_that_settings_turn_on_are_expected(scores):
    settings = trial_of(encoder="pixels", le_epochs=1, **ON).settings
    assert {name for name in metrics_by_name() if has_metric(name, settings)} == set(scores)


def test_settings_at_their_defaults_leave_the_fingerprint_alone():
    plain = protocol(Settings(), "x")
    assert fingerprint(plain) == "e8a339a5ff07", "results of the present version stay comparable"
    changed = {"logistic_c": "[0.001, 0.1, 10.0]", "few_shot_draws": 4, "mlp_width": 32}
    switched = make_settings({name: value for name, value in ON.items() if name not in changed}, "x")
    assert protocol(switched, "x") == plain
    without = make_settings(changed, "x")
    assert not any(has_effect(name, without) for name in changed)
    assert protocol(without, "x") == plain
    assert protocol(make_settings(ON, "x"), "x") == {**plain, **changed}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"logistic": True, "val_fraction": 0}, "logistic_c: the best C is chosen on validation images"),
        ({"logistic_c": [1, 0]}, "logistic_c: each number must be greater than 0, not"),
        ({"logistic_c": [1, 1.0]}, "logistic_c: give at least one number, and none twice, not"),
        ({"logistic_c": []}, "logistic_c: give at least one number, and none twice, not"),
        ({"logistic_c": "big"}, "logistic_c: expected a list of numbers, such as [1, 5], not 'big'"),
        ({"knn_grid": [3]}, "knn_grid: each number must be one of 1, 2, 5, 10, 20, 50, 100, 200, not [3]"),
        ({"knn_grid": [5, 5]}, "knn_grid: give at least one number, and none twice, not [5, 5]"),
        ({"few_shot": "[1, 3]"}, "few_shot: each number must be one of 1, 2, 4, 5, 8, 10, 16, 20, 25, 50, 100, not"),
        ({"few_shot": [1], "few_shot_draws": 0}, "few_shot_draws"),
        ({"mlp_width": 0}, "mlp_width"),
        ({"logistic_c": [True]}, "logistic_c: expected a list of numbers"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, words):
    with pytest.raises(InputError) as fault:
        make_settings(settings, "x")
    assert words in str(fault.value)


def test_one_strength_needs_no_validation_images():
    assert make_settings({"logistic": True, "logistic_c": 1, "val_fraction": 0}, "x").logistic_c == "[1.0]"
