"""RankMe, α-ReQ and LiDAR against independent computations, and through a real sweep and its evaluation."""

import json
import pickle
import shutil

import numpy as np
import pytest
import scipy.linalg
import torch

import raysweep
from raysweep import space
from raysweep.config import Settings, has_effect
from raysweep.data.dataset import Dataset
from raysweep.models.building import build_encoder
from raysweep.probes.collapse import rankme
from raysweep.probes.evaluation import Evaluation
from raysweep.probes.label_free import DELTA, IMAGES, LIDAR_VIEWS, alpha_req, features_of_views, lidar
from raysweep.randomness import fixed_subset
from raysweep.results.feature_cache import FeatureCache
from tests.support.commands import here
from tests.support.trials import TINY, few_digits, run, trial_of


def published_lidar(views):
    """Return LiDAR by the paper's equations, with covariances summed in loops and a generalised eigenproblem."""
    images, count, width = views.shape
    grand = views.mean((0, 1))
    between, within = np.zeros((width, width)), DELTA * np.eye(width)
    for image in views:
        mean = image.mean(0)
        between += np.outer(mean - grand, mean - grand) / images
        for view in image:
            within += np.outer(view - mean, view - mean) / (images * count)
    values = scipy.linalg.eigh(between, within, eigvals_only=True).clip(0)
    shares = values / values.sum()
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


@pytest.mark.parametrize(("images", "count", "width"), [(40, 5, 6), (8, 3, 20), (30, 10, 30)])
def test_lidar_agrees_with_the_published_equations(images, count, width):
    rng = np.random.default_rng(images)
    views = (
        rng.normal(size=(images, 1, width)) * np.linspace(0.1, 2, width) + rng.normal(size=(images, count, width)) / 3
    )
    tensor = torch.from_numpy(views)
    assert lidar(tensor) == pytest.approx(published_lidar(views), rel=1e-6)
    assert torch.equal(tensor, torch.from_numpy(views.copy())), "the features stay as they are"


def test_lidar_counts_the_directions_that_tell_images_apart():
    rng = np.random.default_rng(0)
    views = rng.normal(size=(500, 10, 12)) * 0.01
    views[:, :, :3] += rng.normal(size=(500, 1, 3))
    assert lidar(torch.from_numpy(views)) == pytest.approx(3, abs=0.1)
    assert lidar(torch.ones(5, 4, 3)) == 0, "all images have one mean"


def test_lidar_is_left_out_where_rounding_hides_its_regularisation():
    views = torch.randn(20, 10, 512, generator=torch.Generator().manual_seed(0))
    assert lidar(views) is not None
    assert lidar(views * 1e6) is None


@pytest.mark.parametrize("decay", [0.5, 1.0, 2.0])
def test_alpha_req_finds_the_decay_of_a_power_law(decay):
    width = 120
    basis, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(400, width)))
    basis -= basis.mean(0)
    basis, _ = np.linalg.qr(basis)
    features = basis * np.arange(1, width + 1) ** (-decay / 2)
    assert alpha_req(torch.from_numpy(features)) == pytest.approx(decay, rel=1e-6)


def test_alpha_req_agrees_with_a_weighted_fit_by_numpy():
    features = np.random.default_rng(1).normal(size=(300, 50)) @ np.diag(np.linspace(0.1, 3, 50))
    values = np.sort(np.linalg.eigvalsh(np.cov(features.T)))[::-1]
    ranks = np.arange(4, 51)
    slope, _ = np.polyfit(np.log(ranks), np.log(values[3:]), 1, w=ranks**-0.5)  # polyfit squares the weights
    assert alpha_req(torch.from_numpy(features)) == pytest.approx(-slope, rel=1e-6)


def test_too_few_eigenvalues_have_no_decay():
    assert alpha_req(torch.randn(100, 4)) is None
    assert alpha_req(torch.ones(100, 50)) is None, "a collapsed embedding"


@pytest.mark.parametrize("usl_type", ["ae_single", "simclr"])
def test_second_views_are_drawn_only_for_a_method_that_has_them(usl_type):
    """The encoder here gives the pixels, and solarize turns all that is brighter than one half."""
    digits, views = few_digits(train=20, test=10), []
    for second in (0.0, 1.0):
        settings = Settings(usl_type=usl_type, encoder="pixels", solarize_probability_second=second)
        assert has_effect("solarize_probability_second", settings.model_copy(update={"encoder": "conv6"})) == (
            usl_type == "simclr"
        )
        images = torch.from_numpy(digits.train_images)
        places = digits.train_images, images
        evaluation = Evaluation(settings, build_encoder(settings, 1, 8), digits, places, torch.device("cpu"))
        views.append(features_of_views(evaluation, ("trunk",))["trunk"])
    assert torch.equal(views[0][:, ::2], views[1][:, ::2])
    assert torch.equal(views[0][:, 1::2], views[1][:, 1::2]) == (usl_type == "ae_single")


def seen_by(encoder):
    """Return a list to which every later call of the encoder appends its number of images."""
    seen = []
    encoder.blocks[0].register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    return seen


def scores_without_training(evaluation):
    """Run the probes without training, and return their scores."""
    metrics = {}
    for scores in evaluation.run(0):
        metrics |= scores.metrics
        if scores.is_projected:
            return metrics
    raise AssertionError("the last probe without training has scores")


@pytest.mark.parametrize("labelled", [False, True])
def test_only_the_images_that_are_read_pass_through_the_encoder(tmp_path, labelled):
    """The measures equal the measures of the same rows of all features, bit for bit."""
    pixels = np.random.default_rng(0).integers(0, 256, (3000, 1, 8, 8), dtype=np.uint8)
    labels = np.arange(3000) % 2
    dataset = Dataset("d", ("a", "b"), pixels, labels, pixels[:100], labels[:100], digest="0" * 16)
    settings = Settings(label_free=True, probe_labels=labelled, strength=0, usl_epochs=0)
    encoder, tensor = build_encoder(settings, 1, 8), torch.from_numpy(pixels)
    cache = FeatureCache(tmp_path, 10**9)
    evaluation = Evaluation(settings, encoder, dataset, (pixels, tensor), torch.device("cpu"), cache)
    seen = seen_by(encoder)
    scores = scores_without_training(evaluation)
    assert sum(seen) == IMAGES + 3100 * labelled, "with labels, other probes read the trunk of all images"
    fit = evaluation.splits["fit"].index
    for layer in ("embedding", "trunk"):
        features = evaluation.features(layer)["fit"][fixed_subset(len(fit), IMAGES)]
        assert scores[f"label_free/{layer}_rankme"] == rankme(features)
        assert scores[f"label_free/{layer}_alpha_req"] == alpha_req(features)
    seen.clear()
    again = Evaluation(settings, encoder, dataset, (pixels, tensor), torch.device("cpu"), cache)
    assert scores_without_training(again) == scores
    assert not seen, "all features are in the cache"


VIEWS = {"strength": 1.0, "policy": "simclr+noise", "crop_strength": 0.25}
LIDAR = {"label_free/embedding_lidar", "label_free/trunk_lidar"}


def control_of(name, recorded=False, **content):
    """Return a control of a sweep, as a worker gets it."""
    sweep = space.build({"baseline": [name], **content}, {}, "test", recorded=recorded)
    return pickle.loads(pickle.dumps(next(trial for trial in sweep.trials if trial.control == name)))


@pytest.mark.parametrize("name", ["random", "pixels"])
def test_lidar_of_a_control_is_measured_with_the_augmentation_of_the_points(tmp_path, name):
    """Another trial without pretraining keeps the augmentation in its settings, so it is the reference."""
    base = {**TINY, "label_free": True}
    encoder = {} if name == "random" else {"encoder": name}
    control = control_of(name, base={**base, **VIEWS})
    expected = run(tmp_path / "reference", trial_of(label_free=True, **VIEWS, **{"usl_epochs": 0, **encoder}))
    metrics = run(tmp_path / "control", control).metrics
    assert metrics == expected.metrics
    default = control_of(name, base=base)
    assert (control, control.settings) == (default, default.settings), "older results fit"
    other = run(tmp_path / "default", default).metrics
    assert {each for each in metrics if metrics[each] != other[each]} == LIDAR


SEVERAL = [{"strength": [0.5, 1]}, [{"alpha": [0.1, 1]}, {"strength": [1]}]]
COMMON = [{"alpha": [0.1, 1]}, {"usl_type": ["simclr", "ae_single"]}, {"encoder": ["conv6", "pixels"]}]


@pytest.mark.parametrize("search", COMMON)
def test_points_that_differ_elsewhere_have_a_common_augmentation(search):
    base = {"label_free": True, "blur_probability": 0.3, **VIEWS}
    control = control_of("pca", recorded=True, base=base, search=search)
    assert control.views == VIEWS, "no point reads the probability of the blur"


@pytest.mark.parametrize("search", SEVERAL)
def test_a_control_of_points_with_several_augmentations_has_no_lidar(tmp_path, search):
    control = control_of("random", base={**TINY, "label_free": True}, search=search)
    metrics = run(tmp_path / "control", control).metrics
    whole = run(tmp_path / "whole", control_of("random", base={**TINY, "label_free": True})).metrics
    assert metrics == {name: value for name, value in whole.items() if name not in LIDAR}


def test_training_with_labels_draws_no_views(tmp_path):
    """The control `supervised` has an augmentation of its own: none."""
    control = control_of("supervised", base={**TINY, "label_free": True, **VIEWS})
    metrics = run(tmp_path, control).metrics
    assert "label_free/trunk_rankme" in metrics
    assert LIDAR.isdisjoint(metrics)


def test_an_evaluation_measures_lidar_as_its_sweep(tmp_path, few):
    base = {**few, "usl_epochs": 1, "le_epochs": 1, "probe_every": 0, **VIEWS}
    results = raysweep.run({"base": {**base, "label_free": True}, "baseline": True}, output=tmp_path, local=True)
    later = raysweep.evaluate(results.directory, local=True, set={"label_free": True, "knn_k": 3})

    def lidar_of(each):
        return each.frame().set_index("trial")[sorted(LIDAR)].to_dict("index")

    assert lidar_of(later) == lidar_of(results)
    shutil.copy(results.directory / "seed=0" / "encoder.safetensors", tmp_path / "alone.safetensors")
    data = {"probe_dataset": few["dataset"], "knn_k": few["knn_k"], "label_free": True}
    alone = raysweep.evaluate(tmp_path / "alone.safetensors", local=True, output=tmp_path, name="alone", set=data)
    assert "label_free/trunk_rankme" in alone.frame()
    assert LIDAR.isdisjoint(alone.frame()), "nobody knows the augmentation of its pretraining"


def test_a_sweep_reports_them_and_an_evaluation_gives_the_same_numbers(tmp_path, few, no_figures):
    arguments = [f"--{name}={value}" for name, value in few.items()]
    arguments += ["--usl_type", "simclr", "--usl_epochs", "1", "--le_epochs", "1", "--local", "--set", "baseline=true"]
    with_measures = here("run_sweep.py", *arguments, "--label_free", "true", "--name", "with", cwd=tmp_path)
    without = here("run_sweep.py", *arguments, "--name", "without", cwd=tmp_path)
    assert with_measures.returncode == without.returncode == 0, with_measures.stderr + without.stderr

    def metrics(*place):
        return json.loads((tmp_path / "runs").joinpath(*place, "result.json").read_text())["metrics"]

    measured, plain = metrics("with", "seed=0"), metrics("without", "seed=0")
    names = {
        f"label_free/{layer}_{name}" for layer in ("embedding", "trunk") for name in ("rankme", "lidar", "alpha_req")
    }
    assert measured.keys() - plain.keys() == names
    own = {"pretrain/images_per_s"}  # differs from run to run
    assert {name: plain[name] for name in plain.keys() - own} == {name: measured[name] for name in plain.keys() - own}
    assert names <= metrics("with", "random,seed=0").keys()

    again = here(
        "raysweep", "evaluate", "runs/without", "--set", "label_free=true", "--name", "later", "--local", cwd=tmp_path
    )
    assert again.returncode == 0, again.stderr
    later = metrics("without", "evaluations", "later", "seed=0")
    assert {name: later[name] for name in names} == {name: measured[name] for name in names}
    assert LIDAR_VIEWS == 10, "the settings' text says so"
