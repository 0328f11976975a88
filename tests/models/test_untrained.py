"""The encoders that need no training, `pixels` and `pca`, compared with scikit-learn and NumPy on the raw arrays."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from raysweep import parts, portable, space
from raysweep.config import Settings, has_effect
from raysweep.data.selection import TrialData, check_data
from raysweep.data.splits import split_train
from raysweep.errors import InputError
from raysweep.models import pca
from raysweep.models.building import build_encoder
from raysweep.probes.features import read_layers
from raysweep.probes.grid import ProbeSpec
from raysweep.probes.linear import LinearProbes, train_classifiers
from tests.support.trials import DATASETS, run, trial_of

DATA = DATASETS["digits", 8, None]
LAYERS = ("trunk", "embedding", "layer1", "layer3")


def raw(images):
    """The pixels in [0, 1], one row for each image."""
    return images.reshape(len(images), -1).astype(np.float64) / 255


def cosine_knn(bank, bank_labels, queries, labels, k, temperature):
    """Compute the accuracy of weighted kNN, one query after the other."""
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (bank, queries)]
    right = 0
    for query, label in zip(unit[1], labels, strict=True):
        similarity = unit[0] @ query
        nearest = np.argsort(-similarity, kind="stable")[:k]
        votes = np.bincount(bank_labels[nearest], np.exp(similarity[nearest] / temperature), minlength=10)
        right += votes.argmax() == label
    return right / len(labels)


def linear_accuracy(features, labels, seed):
    """Train the linear probe on the given features, by split, and return its accuracies by split."""
    scaler = StandardScaler().fit(features["fit"])
    scaled = {split: torch.tensor(scaler.transform(rows), dtype=torch.float32) for split, rows in features.items()}
    probe = LinearProbes([ProbeSpec("trunk", 1e-3, 0.0)], {"trunk": scaled["fit"].shape[1]}, 10, seed, "cpu")
    fit = {"trunk": scaled["fit"]}
    list(train_classifiers(probe, fit, torch.from_numpy(labels["fit"]), epochs=30, batch_size=50))
    return {
        f"linear/{split}_accuracy": probe.accuracy({"trunk": scaled[split]}, torch.from_numpy(labels[split]))[0]
        for split in ("val", "test")
    }


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("encoder", ["pixels", "pca"])
def test_reference_scores_equal_an_independent_computation_on_the_raw_arrays(tmp_path, encoder, layer):
    trial = trial_of(encoder=encoder, usl_epochs=0, embedding_dim=20, le_epochs=30, probe_layer=layer, seed=1)
    got = run(tmp_path, trial).metrics
    fit, val = split_train(DATA.train_labels, 0.1, 0)
    features = {"fit": raw(DATA.train_images[fit]), "val": raw(DATA.train_images[val]), "test": raw(DATA.test_images)}
    labels = {"fit": DATA.train_labels[fit], "val": DATA.train_labels[val], "test": DATA.test_labels}
    if encoder == "pca":
        fitted = PCA(20).fit(raw(DATA.train_images))  # on all pretraining images
        features = {split: fitted.transform(rows) for split, rows in features.items()}
    for split in ("val", "test"):
        expected = cosine_knn(features["fit"], labels["fit"], features[split], labels[split], k=5, temperature=0.07)
        assert got[f"knn/{split}_accuracy"] == pytest.approx(expected, abs=1e-6)
    expected = linear_accuracy(features, labels, seed=1)
    assert expected["linear/test_accuracy"] > 0.5
    if encoder == "pixels":
        assert {name: got[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    else:  # rounding may move an image across a boundary of the classes
        assert {name: got[name] for name in expected} == pytest.approx(expected, abs=0.026)
    assert 0.3 < got["kmeans/accuracy"] <= 1
    assert "pretrain/loss" not in got


def test_reference_pca_equals_scikit_learn():
    encoder = build_encoder(Settings(encoder="pca", usl_epochs=0, embedding_dim=12), 1, 8)
    encoder.fit(torch.from_numpy(DATA.train_images))
    fitted = PCA(12, svd_solver="full").fit(raw(DATA.train_images))
    images = torch.from_numpy(DATA.test_images) / 255
    ours, theirs = encoder(images).double().numpy(), fitted.transform(raw(DATA.test_images))
    signs = np.sign((ours * theirs).sum(0))  # the sign of a component is arbitrary
    np.testing.assert_allclose(ours * signs, theirs, atol=1e-4)
    assert encoder(images).shape == (80, encoder.feature_dim) == (80, 12)


def test_pca_of_many_pixels_is_that_of_the_chosen_images(monkeypatch):
    monkeypatch.setattr(pca, "MOST_VALUES", 150 * 64)
    monkeypatch.setattr(pca, "CHUNK", 40)
    encoder = build_encoder(Settings(encoder="pca", usl_epochs=0, embedding_dim=4), 1, 8)
    encoder.fit(torch.from_numpy(DATA.train_images))
    chosen = pca.choose_images(200, 64, 4)
    fitted = PCA(4, svd_solver="full").fit(raw(DATA.train_images[chosen.numpy()]))
    expected = np.abs(fitted.transform(raw(DATA.test_images)))
    np.testing.assert_allclose(encoder(torch.from_numpy(DATA.test_images) / 255).abs().numpy(), expected, atol=1e-3)


def test_images_for_pca_are_few_only_where_their_pixels_are_many():
    for count, values in ((1437, 64), (60_000, 784), (50_000, 3072), (73_257, 3072), (9_709, 27_648)):
        assert torch.equal(pca.choose_images(count, values, 64), torch.arange(count))
    chosen = pca.choose_images(105_000, 27_648, 64)
    assert len(chosen) == 9_709
    assert torch.equal(chosen, chosen.unique())
    assert 0 <= chosen.min() < 100
    assert 104_900 < chosen.max() < 105_000
    assert torch.equal(chosen, pca.choose_images(105_000, 27_648, 64))
    assert len(pca.choose_images(105_000, 3 * 512**2, 64)) == 640, "ten images for each component"


@pytest.mark.parametrize("channels", [1, 3])
def test_every_layer_is_the_pixels_in_the_order_of_the_array(channels):
    encoder = build_encoder(Settings(encoder="pixels", usl_epochs=0), channels, 8)
    images = torch.rand(5, channels, 8, 8)
    for features in read_layers(encoder, images.contiguous(memory_format=torch.channels_last), LAYERS):
        np.testing.assert_array_equal(features.numpy(), images.numpy().reshape(5, -1))
    assert encoder.feature_dim == channels * 64
    assert not list(encoder.parameters())


def test_no_setting_of_training_has_an_effect_and_training_is_skipped():
    pixels, pca = (Settings(encoder=name, usl_epochs=0, probe_layer="embedding") for name in ("pixels", "pca"))
    assert [has_effect("embedding_dim", settings) for settings in (pixels, pca)] == [False, True]
    assert not any(has_effect(name, pixels) for name in ("head", "usl_epochs", "usl_lr", "init", "per_layer"))
    assert has_effect("head", Settings(usl_epochs=0, probe_layer="embedding"))
    for name in ("pixels", "pca"):
        base = {"encoder": name, "layerwise": "greedy"}
        (trial,) = space.build({"base": base}, {}, "here", recorded=True).trials
        assert (trial.settings.usl_epochs, trial.settings.layerwise) == (0, "none")


@pytest.mark.parametrize(
    ("images", "dim", "words"),
    [
        (DATA.train_images[:50], 51, "pca: embedding_dim 51 is more than the 50 training images"),
        (DATA.train_images, 65, "pca: embedding_dim 65 is more than the 64 pixels of an image"),
    ],
)
def test_more_components_than_images_or_pixels_are_refused(images, dim, words):
    with pytest.raises(InputError) as fault:
        check_data(Settings(encoder="pca", usl_epochs=0, embedding_dim=dim, knn_k=5), TrialData(images, DATA))
    assert words in str(fault.value)


@pytest.mark.parametrize("encoder", ["pixels", "pca"])
def test_the_saved_encoder_gives_the_same_features(tmp_path, encoder):
    run(tmp_path, trial_of(encoder=encoder, usl_epochs=0, embedding_dim=20))
    loaded = portable.load(tmp_path)
    images = torch.from_numpy(DATA.test_images) / 255
    expected = raw(DATA.test_images)
    if encoder == "pca":
        expected = PCA(20, random_state=0).fit(raw(DATA.train_images).astype(np.float32)).transform(expected)
    np.testing.assert_allclose(loaded(images).numpy(), expected, atol=1e-5)
    description = portable.export(tmp_path, tmp_path / "weights.safetensors")
    assert description["architecture"] == encoder
    np.testing.assert_array_equal(portable.load(tmp_path / "weights.safetensors")(images), loaded(images))


def test_a_training_checkpoint_of_pca_gives_its_encoder(tmp_path):
    run(tmp_path, trial_of(encoder="pca", usl_epochs=0, embedding_dim=20), checkpoint_seconds=0, stop=Third())
    loaded = portable.load(max((tmp_path / "checkpoints").glob("*.pt")))
    assert loaded.components.norm(dim=1).tolist() == pytest.approx([1.0] * 20, rel=1e-5)


class Third:
    """Ask a trial to leave when it asks for the third time."""

    def __init__(self):
        self.asked = 0

    def __call__(self):
        self.asked += 1
        return self.asked >= 3


@pytest.mark.parametrize("name", sorted(parts.encoder))
def test_an_encoder_declares_that_it_has_fit(name):
    encoder = build_encoder(Settings(encoder=name, embedding_dim=4, usl_epochs=0), 1, 8)
    assert hasattr(encoder, "fit") == parts.encoder[name].traits["fits"]
