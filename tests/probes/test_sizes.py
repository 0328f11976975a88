"""Scores of features of any magnitude, and kNN scores at any temperature, are compared with float64 references."""

import json
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from raysweep.config import fingerprint, make_settings, protocol
from raysweep.errors import Diverged
from raysweep.probes.features import LARGEST, extract, standardize_
from raysweep.probes.kmeans import kmeans_scores
from raysweep.probes.knn import knn_accuracy
from raysweep.results.result import protocol_difference
from tests.support.networks import make_encoder

MANY = settings(max_examples=60)


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)


def reference(bank, bank_labels, queries, labels, *, classes, k, temperature):
    """Compute kNN in float64 by its definition, with each vote divided by the nearest neighbour's vote."""
    bank, queries = (part.double().numpy() for part in (bank, queries))
    bank = bank / np.linalg.norm(bank, axis=1, keepdims=True)
    queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    similarity = queries @ bank.T
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    s = np.take_along_axis(similarity, nearest, axis=1)
    with np.errstate(over="ignore"):
        weights = np.exp((s - s[:, :1]) / temperature)
    votes = np.zeros((len(queries), classes))
    np.add.at(votes, (np.arange(len(queries))[:, None], bank_labels.numpy()[nearest]), weights)
    return float((votes.argmax(1) == labels.numpy()).mean())


def both(features, labels, k, temperature, fit=900):
    """Return the accuracy and the reference's accuracy."""
    parts = features[:fit], labels[:fit], features[fit:], labels[fit:]
    options = {"classes": 10, "k": k, "temperature": temperature}
    return knn_accuracy(*parts, **options), reference(*parts, **options)


@pytest.mark.parametrize("k", [1, 5, 20, 200])
@pytest.mark.parametrize("temperature", [1e-300, 1e-46, 1e-6, 1e-4, 1e-3, 0.005, 0.01, 0.02, 0.07, 0.5, 1.0])
def test_reference_knn_at_any_temperature(digits, k, temperature):
    ours, expected = both(*digits, k, temperature)
    assert ours == pytest.approx(expected, abs=1.5 / 897)  # rounding may decide one tied query
    assert ours > 0.8


@given(st.floats(5e-324, 1e300), st.integers(1, 60), st.integers(0, 1000))
@MANY
def test_reference_knn_of_noise_at_any_temperature(temperature, k, seed):
    draws = torch.Generator().manual_seed(seed)
    features, labels = torch.randn(160, 8, generator=draws), torch.randint(10, (160,), generator=draws)
    ours, expected = both(features, labels, k, temperature, fit=60)
    # Beyond 1e5 the votes of classes with equally many neighbours differ by less than float32's rounding.
    assert ours == expected or (temperature > 1e5 and abs(ours - expected) < 0.5)


def test_a_temperature_near_zero_is_the_nearest_neighbour(digits):
    nearest, _ = both(*digits, 1, 1.0)
    for temperature in (5e-324, 1e-100, 1e-12):
        assert both(*digits, 20, temperature)[0] == nearest


def test_a_huge_temperature_counts_neighbours(digits):
    features, labels = digits
    ours, _ = both(features, labels, 20, 1e300)
    similarity = torch.nn.functional.normalize(features[900:]) @ torch.nn.functional.normalize(features[:900]).T
    votes = torch.nn.functional.one_hot(labels[:900][similarity.topk(20).indices], 10).sum(1)
    assert ours == pytest.approx((votes.argmax(1) == labels[900:]).double().mean().item(), abs=1e-9)


def test_of_equally_many_votes_the_lowest_class_counts():
    bank, labels = torch.eye(4), torch.tensor([3, 1, 2, 1])
    query = torch.tensor([[1.0, 0, 1, 0]])  # equally near to classes 2 and 3
    for temperature in (1e-6, 0.07, 1e6):
        options = {"classes": 4, "k": 2, "temperature": temperature}
        assert knn_accuracy(bank, labels, query, torch.tensor([2]), **options) == 1
    assert knn_accuracy(bank, labels, query, torch.tensor([1]), classes=4, k=4, temperature=1e30) == 1


@pytest.mark.parametrize("power", [-140, -120, -100, -83, -60, -40, -20, 0, 20, 40, 49])
def test_knn_does_not_depend_on_the_size_of_the_features(digits, power):
    """Scaling by powers of two changes no digit, but 2**-140 leaves only a few bits of each feature."""
    features, labels = digits
    plain, _ = both(features, labels, 20, 0.07)
    assert both(features * 2.0**power, labels, 20, 0.07)[0] == pytest.approx(plain, abs=0.003 if power < -130 else 0)
    mixed = features * 2.0 ** (power * (torch.arange(len(features)) % 2))[:, None]  # scales every other image
    assert both(mixed, labels, 20, 0.07)[0] == pytest.approx(plain, abs=0.003 if power < -130 else 0)


@pytest.mark.parametrize("bad", [1e20, 1e30, 3e38, float("inf"), float("nan")])
@pytest.mark.parametrize("where", ["bank", "queries"])
def test_knn_refuses_features_whose_squares_overflow(digits, bad, where):
    features, labels = digits[0].clone(), digits[1]
    features[3 if where == "bank" else -3, 20] = bad
    with pytest.raises(Diverged, match="so large that their squares overflow"):
        both(features, labels, 20, 0.07)


def test_knn_of_zeros_is_one_class(digits):
    zeros, labels = torch.zeros_like(digits[0]), digits[1]
    options = {"classes": 10, "k": 20, "temperature": 0.07}
    score = knn_accuracy(zeros[:900], labels[:900], zeros[900:], labels[900:], **options)
    assert score in [(labels[900:] == number).sum().item() / 897 for number in range(10)]


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-25, 1e-20, 1e-11, 1e4, 1e10, LARGEST])
def test_kmeans_does_not_depend_on_the_size_of_the_features(digits, scale):
    features, labels = digits[0][900:].numpy(), digits[1][900:].numpy()
    plain = kmeans_scores(features, labels, 10, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scaled = kmeans_scores(features * np.float32(scale), labels, 10, seed=0)
    assert scaled == pytest.approx(plain, abs=0.02)


def encoder_of(scale):
    """Return an encoder whose embedding is the random encoder's times `scale`."""
    encoder = make_encoder("conv6", 1, 8, 16, seed=0)
    with torch.no_grad():
        for parameter in list(encoder.head.parameters())[-2:]:
            parameter.mul_(scale)
    return encoder


def test_features_that_are_too_large_are_refused():
    images, index = torch.randint(0, 256, (20, 1, 8, 8), dtype=torch.uint8), torch.arange(20)
    largest = extract(encoder_of(1), images, index, "embedding").abs().max().item()
    fits = extract(encoder_of(0.9 * LARGEST / largest), images, index, "embedding")
    assert fits.abs().max() == pytest.approx(0.9 * LARGEST, rel=1e-3)
    for scale in (1.1 * LARGEST / largest, 1e19, 1e25):
        with pytest.raises(Diverged, match=r"the encoder's features reach [0-9.]+e\+[0-9]+; above 1e\+15"):
            extract(encoder_of(scale), images, index, "embedding")
    for scale in (float("inf"), float("nan")):
        with pytest.raises(Diverged, match="the encoder's features are not finite"):
            extract(encoder_of(scale), images, index, "embedding")


@pytest.mark.parametrize("scale", [0, 1e-25, 1e-9])
def test_features_that_hardly_vary_are_said_to(digits, scale):
    fit = digits[0] * scale
    with pytest.warns(UserWarning, match="the features are the same for all images"):
        standardize_(fit)


@pytest.mark.parametrize("temperature", [1e-6, 0.019, 0.02, 0.07, 0.5])
def test_scores_of_older_versions_are_never_compared_with_present_ones(temperature):
    present = protocol(make_settings({"knn_temperature": temperature}, "here"), "digest")
    for version in (1, 2, 3):  # version 2 changed small temperatures
        assert fingerprint({**present, "version": version}) != fingerprint(present)
        assert protocol_difference({**present, "version": version}, present) == ("version", version, 4)


@pytest.mark.parametrize(
    ("images", "version"),
    [
        ({"dataset": "cifar10"}, 4),
        ({"dataset": "folder:images", "image_size": 64}, 4),
        ({"dataset": "mnist"}, 5),
        ({"dataset": "mnist", "image_size": 32}, 4),
        ({"dataset": "cifar10", "image_size": 224}, 5),
        ({"dataset": "cifar10", "probe_dataset": "stl10"}, 4),
    ],
)
def test_scores_on_odd_feature_maps_are_never_compared_with_scores_of_older_versions(images, version):
    """The maps of images whose side is a power of two have even sides."""
    for reads in ({}, {"per_layer": True}, {"probe_layer": "layer1"}):
        present = protocol(make_settings({**images, **reads}, "here"), "digest")
        differs = protocol_difference({**present, "version": 4}, present)
        assert differs == (None if version == 4 else ("version", 4, 5))


def test_a_trial_whose_features_are_too_large_fails_and_says_so(tmp_path, run_sweep):
    # One step at this learning rate makes the weights huge; the loss was computed before it.
    step = ["--usl_type", "simclr", "--usl_epochs", "1", "--batch_size", "1437", "--usl_lr", "1e8"]
    process = run_sweep(
        *step, "--precision", "fp32", "--le_epochs", "1", "--images_every", "0", "--name", "x", "--local"
    )
    assert process.returncode == 1
    assert "failed: seed=0: the encoder's features reach " in process.stderr
    result = json.loads((tmp_path / "runs" / "x" / "seed=0" / "result.json").read_text())
    assert result["status"] == "failed"
    assert not any("knn" in name or "kmeans" in name for name in result["metrics"])


def test_a_trial_at_a_temperature_near_zero_scores_its_nearest_neighbours(tmp_path, run_sweep):
    flags = ["--usl_epochs", "0", "--le_epochs", "1", "--projector_images", "0", "--local"]
    process = run_sweep(*flags, "--knn_temperature", "1e-6", "--name", "x")
    assert process.returncode == 0, process.stderr
    metrics = json.loads((tmp_path / "runs" / "x" / "seed=0" / "result.json").read_text())["metrics"]
    assert metrics["knn/test_accuracy"] > 0.9
    assert metrics["knn/val_accuracy"] > 0.9
