"""Probes are compared with scikit-learn, brute force and known answers."""

import itertools
import warnings

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from raysweep.augment.operations import to_float
from raysweep.probes.collapse import embedding_std, rankme
from raysweep.probes.features import extract, extract_layers, read_layers, standardize_
from raysweep.probes.grid import ProbeSpec
from raysweep.probes.kmeans import kmeans_scores
from raysweep.probes.knn import knn_accuracy
from raysweep.probes.linear import LinearProbes, train_classifiers
from raysweep.randomness import seed_of
from tests.support.networks import embed, make_encoder


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images[:1200], dtype=torch.float32), torch.tensor(labels[:1200])


def test_features_are_those_of_the_whole_batch_and_leave_the_mode_alone():
    encoder = make_encoder("conv6", 1, 8, 16, seed=0)
    images = torch.randint(0, 256, (1300, 1, 8, 8), dtype=torch.uint8)
    index = torch.randperm(1300)[:1203]
    for layer, direct in (("trunk", encoder), ("embedding", lambda images: embed(encoder, images))):
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
    assert score == 1.0  # the nearest neighbour of every image is the image itself


def train(features, labels, *heads, epochs, batch_size, seed):
    """Yield the probes after each epoch; they read one layer, called trunk."""
    return train_layers({"trunk": features}, labels, heads, epochs=epochs, batch_size=batch_size, seed=seed)


def train_layers(layers, labels, heads, *, epochs, batch_size, seed):
    """Yield the probes after each epoch."""
    read = {head.layer: layers[head.layer].shape[1] for head in heads}
    probes = LinearProbes(heads, read, 10, seed, labels.device)
    for _ in train_classifiers(probes, layers, labels, epochs=epochs, batch_size=batch_size):
        yield probes


def test_linear_probe_learns_what_is_separable_and_no_more(digits):
    features, labels = digits
    draws = torch.Generator().manual_seed(0)
    head = ProbeSpec("trunk", 1e-2, 0.0)
    epochs = [probes.epoch for probes in train(features / 16, labels, head, epochs=40, batch_size=100, seed=0)]
    assert epochs == list(range(1, 41))
    *_, probes = train(features / 16, labels, head, epochs=40, batch_size=100, seed=0)
    assert probes.train_accuracy[0] > 0.97
    assert probes.accuracy({"trunk": features / 16}, labels)[0] > 0.97
    noise = torch.randn(300, 4, generator=draws)
    *_, shuffled = train(noise, torch.arange(300) % 10, head, epochs=5, batch_size=100, seed=0)
    assert shuffled.accuracy({"trunk": torch.randn(1000, 4, generator=draws)}, torch.arange(1000) % 10)[0] < 0.2


def test_linear_probe_is_that_of_its_seed_alone(digits):
    def weights(seed):
        *_, probes = train(*digits, ProbeSpec("trunk", 1e-3, 0.0), epochs=2, batch_size=256, seed=seed)
        return probes.weights["trunk"]

    first = weights(0)
    torch.manual_seed(99)
    assert torch.equal(first, weights(0))
    assert not torch.equal(first, weights(1))


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_reference_linear_probe_is_adam_on_cross_entropy_step_by_step(digits, weight_decay):
    features, labels = digits[0][:64] / 16, digits[1][:64]  # one full batch per epoch, so the order does not matter
    steps = train(features, labels, ProbeSpec("trunk", 0.01, weight_decay), epochs=6, batch_size=64, seed=3)
    with torch.random.fork_rng():
        torch.manual_seed(seed_of(3, "linear"))
        reference = torch.nn.Linear(64, 10)
    adam = torch.optim.Adam(reference.parameters(), lr=0.01, weight_decay=weight_decay)
    for probes in steps:
        adam.zero_grad()
        torch.nn.functional.cross_entropy(reference(features), labels).backward()
        adam.step()
        torch.testing.assert_close(probes.weights["trunk"], reference.weight, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(probes.biases["trunk"], reference.bias, rtol=1e-3, atol=1e-4)


def test_reference_every_head_of_a_bank_equals_the_head_trained_alone(digits):
    features, labels = digits
    layers = {"trunk": features / 16, "embedding": (features[:, :7] / 16).contiguous()}
    heads = [ProbeSpec(layer, lr, decay) for layer in layers for lr in (1e-3, 3e-2) for decay in (0.0, 0.1)]
    arguments = {"epochs": 3, "batch_size": 500, "seed": 4}  # the last batch is incomplete
    *_, together = train_layers(layers, labels, heads, **arguments)
    scores = together.accuracy(layers, labels)
    assert len(set(scores)) > 4, "the heads must differ"
    for layer in layers:
        for i, (rows, _, _) in zip(together.members_by_layer[layer], together.rows[layer]):
            *_, alone = train_layers(layers, labels, [heads[i]], **arguments)
            torch.testing.assert_close(together.weights[layer][rows], alone.weights[layer], rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(together.biases[layer][rows], alone.biases[layer], rtol=1e-4, atol=1e-6)
            assert together.train_accuracy[i] == pytest.approx(alone.train_accuracy[0], abs=2e-3)
            assert scores[i] == pytest.approx(alone.accuracy(layers, labels)[0], abs=2e-3)


def means_of_windows(h):
    """Return the mean of each 2×2 window of maps (B, C, H, W); the last windows of an odd side are smaller."""
    rows = [
        [h[..., y : y + 2, x : x + 2].mean((2, 3)) for x in range(0, h.shape[3], 2)] for y in range(0, h.shape[2], 2)
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


class Maps(torch.nn.Module):
    """An encoder whose layer is the images themselves, wider than its trunk."""

    feature_dim = 6

    def layer_outputs(self, images):
        return {"layer1": images, "trunk": images.flatten(1)[:, :6]}


@pytest.mark.parametrize("shape", [(3, 3), (5, 5), (6, 6), (7, 7), (12, 12), (28, 28), (5, 9), (9, 1), (1, 9)])
def test_a_probe_on_a_block_reads_every_position(shape):
    images = torch.rand(2, 2, *shape, generator=torch.Generator().manual_seed(0), requires_grad=True)
    (features,) = read_layers(Maps(), images, ("layer1",))
    expected = images
    while expected[0].numel() > 6:
        expected = means_of_windows(expected)
    torch.testing.assert_close(features, expected.flatten(1))
    features.sum().backward()
    assert (images.grad > 0).all()


@pytest.mark.parametrize("size", [20, 32])
def test_a_probe_on_a_stage_of_a_resnet_reads_the_whole_map(size):
    encoder = make_encoder("timm/resnet10t", 1, size, 4).eval()
    images = torch.rand(3, 1, size, size, generator=torch.Generator().manual_seed(0))
    names = ("layer1", "layer2", "layer3", "layer4")
    with torch.no_grad():
        outputs = encoder.layer_outputs(images)
        for name, features in zip(names, read_layers(encoder, images, names), strict=True):
            expected = plain = outputs[name]
            while expected[0].numel() > encoder.feature_dim:
                expected = means_of_windows(expected)
                plain = torch.nn.functional.avg_pool2d(plain, 2, ceil_mode=size != 32)
            torch.testing.assert_close(features, expected.flatten(1))
            assert size != 32 or torch.equal(features, plain.flatten(1)), "even sides give the same bits as ever"


def test_features_of_a_block_are_its_output_pooled_until_no_wider_than_the_trunk():
    encoder = make_encoder("conv6", 3, 12, 16, seed=0)
    images = torch.randint(0, 256, (7, 3, 12, 12), dtype=torch.uint8)
    names = tuple(f"layer{k}" for k in range(1, 6))
    got = extract_layers(encoder, images, torch.arange(7), (*names, "trunk", "embedding"))
    h = torch.nn.functional.pad(to_float(images), (2, 2, 2, 2))
    with torch.no_grad():
        for block, name in zip(encoder.blocks, names, strict=True):
            h = block(h)
            pooled = h if h[0].numel() <= 2048 else means_of_windows(h)
            torch.testing.assert_close(got[name], pooled.flatten(1))
        assert torch.equal(got["layer5"], got["trunk"])
        torch.testing.assert_close(got["embedding"], embed(encoder, to_float(images)))


def test_batch_norm_stays_in_evaluation_mode_while_probing():
    encoder = make_encoder("resnet18", 3, 16, 8, seed=0)
    with torch.no_grad():  # statistics that differ from the statistics of every batch below
        for module in encoder.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.fill_(0.1)
                module.running_var.fill_(2.0)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    images = torch.randint(0, 256, (9, 3, 16, 16), dtype=torch.uint8)
    together = extract(encoder.train(), images, torch.arange(9), "trunk")
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    alone = torch.cat([extract(encoder, images, torch.tensor([i]), "trunk") for i in range(9)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)  # no image affects the others in its batch
    assert encoder.training
    with torch.no_grad():
        in_training = encoder(to_float(images))
    assert not torch.allclose(together, in_training, rtol=0.1), "training mode would give other features"


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


@pytest.mark.parametrize(("values", "expected"), [([0], 0), ([0, 1], 1)])
def test_kmeans_warns_of_equal_features_only_where_they_are_not_all_equal(values, expected):
    features = np.resize(np.array(values, dtype=np.float32), (30, 1))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kmeans_scores(features, np.arange(30) % 3, 3, seed=0)
    assert len(caught) == expected
    assert all("Number of distinct clusters (2)" in str(warning.message) for warning in caught)


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
