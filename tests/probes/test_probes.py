"""Probes against scikit-learn, brute force and known answers."""

import itertools

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from raysweep.augment import to_float
from raysweep.models import make_encoder
from raysweep.probes.collapse import embedding_std, rankme
from raysweep.probes.features import extract, standardize_
from raysweep.probes.kmeans import kmeans_scores
from raysweep.probes.knn import knn_accuracy
from raysweep.probes.linear import accuracy, train_linear
from raysweep.randomness import seed_of


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images[:1200], dtype=torch.float32), torch.tensor(labels[:1200])


def test_features_are_those_of_the_whole_batch_and_leave_the_mode_alone():
    encoder = make_encoder(1, 8, 16, seed=0)
    images = torch.randint(0, 256, (1300, 1, 8, 8), dtype=torch.uint8)
    index = torch.randperm(1300)[:1203]
    for layer, direct in (("trunk", encoder.trunk), ("embedding", encoder)):
        with torch.no_grad():
            torch.testing.assert_close(extract(encoder, images, index, layer), direct(to_float(images[index])))
    assert encoder.training
    assert extract(encoder, images, index[:0], "trunk").shape == (0, encoder.feature_dim)


def test_reference_standardize_equals_scikit_learn(digits):
    fit, rest = digits[0][:800].clone(), digits[0][800:].clone()
    scaler = StandardScaler().fit(fit.double())
    constant = scaler.var_ == 0
    expected = [scaler.transform(part.double()) for part in (fit, rest)]
    standardize_(fit, rest)
    np.testing.assert_allclose(fit, expected[0], atol=1e-4)
    np.testing.assert_allclose(rest[:, ~constant], expected[1][:, ~constant], atol=1e-4)
    assert constant.any(), "digits has pixels that are always zero"


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (20, 0.07), (20, 0.5)])
def test_reference_knn_equals_scikit_learn(digits, k, temperature):
    features, labels = digits
    bank, queries = slice(0, 900), slice(900, None)
    ours = knn_accuracy(
        features[bank], labels[bank], features[queries], labels[queries], classes=10, k=k, temperature=temperature
    )
    reference = KNeighborsClassifier(k, metric="cosine", weights=lambda distance: np.exp((1 - distance) / temperature))
    reference.fit(features[bank].double().numpy(), labels[bank].numpy())
    assert ours == pytest.approx(
        reference.score(features[queries].double().numpy(), labels[queries].numpy()), abs=0.004
    )


def test_knn_survives_a_small_temperature(digits):
    features, labels = digits
    score = knn_accuracy(features, labels, features, labels, classes=10, k=5, temperature=1e-3)
    assert score == 1.0  # every image finds itself


def test_linear_probe_learns_what_is_separable_and_no_more(digits):
    features, labels = digits
    draws = torch.Generator().manual_seed(0)
    probes = list(train_linear(features / 16, labels, 10, epochs=40, lr=1e-2, batch_size=100, seed=0))
    assert probes[-1].epoch == len(probes) == 40
    assert probes[-1].train_accuracy > 0.97
    assert accuracy(probes[-1].classifier, features / 16, labels) > 0.97
    noise = torch.randn(300, 4, generator=draws)
    shuffled = list(train_linear(noise, torch.arange(300) % 10, 10, epochs=5, lr=1e-2, batch_size=100, seed=0))[-1]
    assert accuracy(shuffled.classifier, torch.randn(1000, 4, generator=draws), torch.arange(1000) % 10) < 0.2


def test_linear_probe_is_that_of_its_seed_alone(digits):
    features, labels = digits

    def weights(seed):
        return list(train_linear(features, labels, 10, epochs=2, lr=1e-3, batch_size=256, seed=seed))[
            -1
        ].classifier.weight

    first = weights(0)
    torch.manual_seed(99)
    assert torch.equal(first, weights(0))
    assert not torch.equal(first, weights(1))


def test_reference_linear_probe_is_adam_on_cross_entropy_step_by_step(digits):
    features, labels = digits[0][:64] / 16, digits[1][:64]  # one full batch an epoch: the order does not matter
    probes = train_linear(features, labels, 10, epochs=6, lr=0.01, batch_size=64, seed=3)
    after_one = next(probes).classifier
    with torch.random.fork_rng():
        torch.manual_seed(seed_of(3, "linear"))
        reference = torch.nn.Linear(64, 10)
    adam = torch.optim.Adam(reference.parameters(), lr=0.01)
    for step in range(6):
        adam.zero_grad()
        torch.nn.functional.cross_entropy(reference(features), labels).backward()
        adam.step()
        if step == 0:
            torch.testing.assert_close(after_one.weight, reference.weight, rtol=1e-4, atol=1e-5)
    last = list(probes)[-1]
    torch.testing.assert_close(last.classifier.weight, reference.weight, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(last.classifier.bias, reference.bias, rtol=1e-3, atol=1e-4)


def test_reference_kmeans_accuracy_is_the_best_of_all_assignments():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 200)
    features = (np.eye(4)[labels] * 2 + rng.normal(size=(200, 4))).astype(np.float32)
    scores = kmeans_scores(features, labels, 4, seed=0)
    from sklearn.cluster import KMeans

    clusters = KMeans(4, n_init=10, random_state=0).fit_predict(features)
    best = max(np.mean(np.array(to)[clusters] == labels) for to in itertools.permutations(range(4)))
    assert scores["kmeans/accuracy"] == best
    assert 0 < scores["kmeans/nmi"] < 1


def test_kmeans_of_separate_blobs_is_perfect_whatever_the_names():
    labels = np.repeat([2, 0, 1], 30)
    features = (np.eye(3)[labels] * 100 + np.random.default_rng(0).normal(size=(90, 3))).astype(np.float32)
    assert kmeans_scores(features, labels, 3, seed=0) == {"kmeans/accuracy": 1.0, "kmeans/nmi": 1.0, "kmeans/ari": 1.0}


def test_rankme_of_known_spectra():
    q = torch.linalg.qr(torch.randn(50, 8, generator=torch.Generator().manual_seed(0)))[0]
    assert rankme(q) == pytest.approx(8, rel=1e-4)
    assert rankme(q * torch.tensor([1.0, 1, 1, 0, 0, 0, 0, 0])) == pytest.approx(3, rel=1e-4)
    assert rankme(torch.ones(50, 8)) == pytest.approx(1, rel=1e-4)
    assert rankme(torch.zeros(50, 8)) == 0
    p = torch.tensor([3.0, 1.0]) / 4
    assert rankme(q[:, :2] * torch.tensor([3.0, 1.0])) == pytest.approx((-(p * p.log()).sum()).exp().item(), rel=1e-4)


def test_embedding_std_is_zero_at_collapse():
    z = torch.randn(100, 6, generator=torch.Generator().manual_seed(0))
    assert embedding_std(z) == pytest.approx(np.std(z.numpy(), axis=0).mean(), rel=1e-5)
    assert embedding_std(torch.ones(100, 6)) == 0
