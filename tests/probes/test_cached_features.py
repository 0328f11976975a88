"""Features that an evaluation keeps on disk: one extraction for all protocols, and the same scores."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import raysweep
from raysweep import plugins
from raysweep.config import make_settings
from raysweep.models.building import build_encoder
from raysweep.probes import cached_features
from raysweep.probes import features as features_module
from raysweep.probes.cached_features import CachedFeatures, machine
from raysweep.probes.features import extract_layers
from raysweep.results.feature_cache import FeatureCache
from tests.support.commands import here
from tests.support.trials import DATASETS

QUICK = {"usl_type": "simclr", "usl_epochs": 1, "le_epochs": 2, "probe_every": 0, "images_every": 0}
PROTOCOLS = ("--set", "labels_per_class=[1,2]", "--set", "knn_k=[1,3]")
"""Four protocols that read the same layers."""


pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory, few):
    """A finished sweep with one trial and two controls."""
    space = {"base": {**few, **QUICK}, "baseline": ["random", "pixels"]}
    return raysweep.run(space, output=tmp_path_factory.mktemp("cached"), name="s", local=True)


@pytest.fixture
def copied(sweep, tmp_path, monkeypatch):
    """Copy the finished sweep, and give the test a cache of its own."""
    monkeypatch.setenv("RAYSWEEP_CACHE", str(tmp_path / "cache"))
    shutil.copytree(sweep.directory, tmp_path / "s")
    return tmp_path / "s"


@pytest.fixture
def passes(monkeypatch):
    """The number of images in each pass of an encoder over a split."""
    numbers = []
    compute = features_module.compute
    monkeypatch.setattr(features_module, "compute", lambda *given: (numbers.append(len(given[2])), compute(*given))[1])
    return numbers


def evaluate(*words, cwd):
    process = here("raysweep", "evaluate", "s", *words, "--local", cwd=cwd)
    assert process.returncode == 0, process.stderr
    return process


def results_of(root, name):
    """Return the metrics and the warnings of each trial of an evaluation."""
    files = sorted((root / "evaluations" / name).glob("*/result.json"))
    results = {file.parent.name: json.loads(file.read_text()) for file in files}
    return {trial: result["metrics"] for trial, result in results.items()}, [
        text for result in results.values() for text in result["warnings"]
    ]


def test_all_protocols_read_one_extraction_per_encoder_and_a_second_evaluation_none(copied, tmp_path, passes):
    process = evaluate(*PROTOCOLS, "--name", "first", "--set", "baseline=random", cwd=tmp_path)
    assert "8 trials of 3 trained encoders" in process.stdout
    networks = 2  # the trained and the random encoder
    assert len(passes) == networks * 3, "one pass over each of the fit, validation and test split"
    assert "\nfeatures cache: " in process.stdout
    assert f" of at most 10 GB in {tmp_path}/cache/features (may be deleted)\n" in process.stdout
    assert len(list((tmp_path / "cache" / "features").iterdir())) == networks * 3

    passes.clear()
    evaluate(*PROTOCOLS, "--name", "second", "--set", "baseline=random", cwd=tmp_path)
    assert passes == []
    evaluate(*PROTOCOLS, "--name", "without", "--set", "baseline=random", "--set", "cache_gb=0", cwd=tmp_path)
    assert len(passes) == 8 * 3
    first, second, without = (results_of(copied, name) for name in ("first", "second", "without"))
    assert first == second == without
    assert len(first[0]) == 8


def test_unchanged_settings_give_the_scores_of_the_sweep_from_the_cache(copied, tmp_path, passes):
    for name in ("first", "second"):
        passes.clear()
        evaluate("--name", name, cwd=tmp_path)
        for trial, metrics in results_of(copied, name)[0].items():
            expected = json.loads((copied / trial / "result.json").read_text())["metrics"]
            assert metrics == {metric: expected[metric] for metric in metrics}
    assert len(passes) == 3, "the pixels are not kept, because they are as large as the images"


@pytest.mark.parametrize("folders", [("train", "val", "test"), ("train", "test")], ids=" ".join)
def test_splits_with_equally_many_images_are_not_confused(tmp_path, monkeypatch, folders):
    monkeypatch.setenv("RAYSWEEP_CACHE", str(tmp_path / "cache"))
    draws = np.random.default_rng(0)
    for folder in folders:
        for name in ("a", "b"):
            (tmp_path / "images" / folder / name).mkdir(parents=True)
            for number in range(4):
                pixels = draws.integers(0, 256, (8, 8), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "images" / folder / name / f"{number}.png")
    base = {**QUICK, "dataset": f"folder:{tmp_path}/images", "batch_size": 4, "knn_k": 1, "projector_images": 0}
    base["val_fraction"] = 0.0  # the training images are all in the fit split
    trained = raysweep.run({"base": base, "baseline": ["random"]}, output=tmp_path, name="s", local=True)
    evaluate(cwd=tmp_path)
    metrics, _ = results_of(tmp_path / "s", "evaluation")
    for trial, scores in metrics.items():
        expected = json.loads((trained.directory / trial / "result.json").read_text())["metrics"]
        assert scores == {metric: expected[metric] for metric in scores}


def test_damaged_files_are_extracted_again(copied, tmp_path, passes):
    evaluate("--name", "first", cwd=tmp_path)
    for number, path in enumerate(sorted((tmp_path / "cache" / "features").iterdir())):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2] if number % 2 else content[:-1] + bytes([content[-1] ^ 255]))
    passes.clear()
    evaluate("--name", "second", cwd=tmp_path)
    assert len(passes) == 3 * 3
    (first, none), (second, notes) = (results_of(copied, name) for name in ("first", "second"))
    assert first == second
    assert none == []
    assert len(notes) == 3 * 2
    assert all("was damaged, so its features were extracted again" in note for note in notes)
    passes.clear()
    shutil.rmtree(tmp_path / "cache")
    evaluate("--name", "third", cwd=tmp_path)
    assert results_of(copied, "third") == (first, [])
    assert len(passes) == 3 * 3


def test_another_layer_is_extracted_alone_and_a_bound_is_kept(copied, tmp_path, passes):
    words = ["--set", "baseline=false", "--set", "cache_gb=0.0003"]
    evaluate(*words, "--set", "probe_layer=[trunk,layer3]", "--name", "layers", cwd=tmp_path)
    assert len(passes) == 2 * 3
    assert 0 < sum(path.stat().st_size for path in (tmp_path / "cache" / "features").iterdir()) <= 300_000


def test_a_sweep_keeps_no_features(few, tmp_path, monkeypatch):
    monkeypatch.setenv("RAYSWEEP_CACHE", str(tmp_path / "cache"))
    raysweep.run({"base": {**few, **QUICK, "usl_epochs": 0}}, output=tmp_path, name="s", local=True)
    assert not (tmp_path / "cache").exists()


# ---- the key ---------------------------------------------------------------------------------------------------------

IMAGES = torch.from_numpy(DATASETS["digits", 8, None].train_images)
FIFTY = torch.arange(50)
OFFSET = """
import torch
import raysweep
from torch import nn

class Shifted(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, images):
        return (images * self.weight[:, None, None] + OFFSET).flatten(1)

@raysweep.encoder
def shifted(channels, image_size):
    '''The pixels, times a weight.'''
    return Shifted(channels)
"""


def test_whatever_changes_the_features_changes_the_key(tmp_path):
    cache = FeatureCache(tmp_path, 10**9)

    def count(change=lambda encoder: None, index=FIFTY, data="d", layers=("trunk",), split="fit", **settings):
        """Extract features through the cache and return the number of its files."""
        chosen = make_settings({"usl_epochs": 0, **settings}, "x")
        encoder = build_encoder(chosen, 1, 8)
        change(encoder)
        got = CachedFeatures(cache, chosen, data).extract(split, encoder, IMAGES, index, layers)
        expected = extract_layers(encoder, IMAGES, index, layers)
        assert list(got) == list(layers)
        assert all(torch.equal(got[layer], expected[layer]) for layer in layers)
        return len(list(tmp_path.iterdir()))

    def nudge(encoder):
        with torch.no_grad():
            encoder.blocks[2][0].weight[0, 0, 0, 0] += 1e-3

    assert count() == 1
    assert count(strength=1.0, val_fraction=0.3, le_epochs=7) == 1, "settings that change no feature"
    assert count(seed=1) == 2
    assert count(change=nudge) == 3
    assert count(index=FIFTY.flip(0)) == 4
    assert count(index=torch.arange(49)) == 5
    assert count(data="e") == 6
    assert count(layers=("layer2", "trunk", "embedding")) == 8, "the trunk is read"
    assert count(init="kaiming") == 9
    assert count(split="val") == 10, "another split can have equally many other images"
    assert count(data="") == 10, "a dataset without a digest is not known by its content"
    assert count(index=torch.arange(0)) == 10
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert count() == 11, "with other threads the last bits may differ"
    finally:
        torch.set_num_threads(threads)
    assert count() == 11


def test_features_of_another_processor_are_not_read(tmp_path, monkeypatch):
    cache, settings, original = FeatureCache(tmp_path, 10**9), make_settings({"usl_epochs": 0}, "x"), machine(IMAGES)
    encoder = build_encoder(settings, 1, 8)

    def count():
        """Extract features through the cache and return the number of its files."""
        CachedFeatures(cache, settings, "d").extract("fit", encoder, IMAGES, FIFTY, ("trunk",))
        return len(list(tmp_path.iterdir()))

    assert count() == 1
    with monkeypatch.context() as patch:
        patch.setattr(cached_features, "processor", lambda: "another model")
        assert machine(IMAGES) != original
        assert count() == 2
        patch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "other instructions")
        assert count() == 3
    assert count() == 3


def test_features_of_another_device_are_not_read(monkeypatch):
    names = {"cuda:0": "one model", "cuda:1": "another model", "cuda:2": "one model"}
    monkeypatch.setattr(torch.cuda, "get_device_name", names.__getitem__)
    first, second, third = (machine(SimpleNamespace(is_cuda=True, device=device)) for device in names)
    assert first == third, "two GPUs of one model compute the same features"
    assert first != second
    assert machine(IMAGES) not in (first, second)


def test_another_text_of_a_plugin_is_another_key(tmp_path):
    cache, means = FeatureCache(tmp_path, 10**9), []
    try:
        for offset in ("0.0", "1.0", "0.0"):
            plugins.activate([plugins.Plugin("shifted.py", OFFSET.replace("OFFSET", offset))])
            settings = make_settings({"usl_epochs": 0, "encoder": "shifted"}, "x")
            cached = CachedFeatures(cache, settings, "d")
            read = cached.extract("fit", build_encoder(settings, 1, 8), IMAGES, torch.arange(9), ("trunk",))
            means.append(float(read["trunk"].mean()))
    finally:
        plugins.activate(())
    assert means[1] == pytest.approx(means[0] + 1)
    assert means[2] == means[0]
    assert len(list(tmp_path.iterdir())) == 2
