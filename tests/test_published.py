"""The published recipes have the published settings, pass `--dry-run`, and train on files in CIFAR's format."""

import json
from pathlib import Path

import pytest
import yaml

from raysweep.preparation import shipped_spaces
from tests.data.test_data import cifar_files, expect_cifar
from tests.support.commands import alone, here

pytestmark = pytest.mark.usefixtures("no_figures")

RECIPES = {name: path for name, path in shipped_spaces().items() if name.startswith("published/")}
SHORT = [
    *("--image_size", "8", "--usl_epochs", "1", "--batch_size", "25", "--le_epochs", "1"),
    *(
        "--precision",
        "fp32",
        "--probe_every",
        "0",
        "--images_every",
        "0",
        "--projector_images",
        "0",
        "--knn_k",
        "5",
        "--name",
        "short",
    ),
]
SOLO = {
    "simclr": ("lars", 0.4, 1e-4, 2048, 256),
    "byol": ("lars", 1.0, 1e-5, 4096, 256),
    "barlow_twins": ("lars", 0.3, 1e-4, 2048, 2048),
    "vicreg": ("lars", 0.3, 1e-4, 2048, 2048),
    "simsiam": ("sgd", 0.5, 1e-5, 2048, 2048),
}
"""Optimiser, rate for a batch of 256, weight decay, head width and embedding width in solo-learn's scripts."""


def test_all_recipes_are_here():
    solo = {"published/solo-" + method.replace("_", "-") for method in SOLO}
    assert set(RECIPES) == {*solo, "published/lightly-simclr", "published/conv6-simclr"}


@pytest.mark.parametrize("method", sorted(SOLO))
def test_the_settings_are_those_of_solo_learn(method):
    base = yaml.safe_load(RECIPES["published/solo-" + method.replace("_", "-")].read_text(encoding="utf-8"))["base"]
    names = ("usl_type", "optimizer", "usl_lr", "weight_decay", "head_width", "embedding_dim")
    assert tuple(base[name] for name in names) == (method, *SOLO[method])
    assert (base["usl_epochs"], base["batch_size"], base["schedule"], base["warmup_epochs"]) == (
        1000,
        256,
        "cosine",
        10,
    )
    if method == "vicreg":  # solo-learn weighs the sum of the variance terms of both views with 25, raysweep their mean
        weights = ("vicreg_invariance", "vicreg_variance", "vicreg_covariance")
        assert [base[name] for name in weights] == [25, 2 * 25, 1]
    if base["optimizer"] == "lars":
        assert (base["momentum"], base["trust_coefficient"], base["clip_trust"]) == (0.9, 0.02, True)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_header_says_what_to_compare(name):
    header = RECIPES[name].read_text(encoding="utf-8").split("\nname:")[0]
    for words in ("# Source: ", "https://", "# Published", " %", "# Not run here.", "# Remaining differences:\n"):
        assert words in header, words
    assert f"--exp_type {name} " in header


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_dry_run(name, tmp_path):
    process = here("run_sweep.py", "--exp_type", name, "--dry-run", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    count = 4 if name == "published/conv6-simclr" else 1
    assert f"\n# {count} trial" in process.stdout
    assert list(tmp_path.iterdir()) == [], "no dataset is downloaded"


@pytest.mark.parametrize("name", sorted(name for name in RECIPES if name.startswith("published/solo-")))
def test_dry_run_on_cifar100(name, tmp_path):
    process = here("run_sweep.py", "--exp_type", name, "--dry-run", "--dataset", "cifar100", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert "  dataset: cifar100\n" in process.stdout


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_short_run(name, tmp_path, monkeypatch):
    if "optimizer: lars" in RECIPES[name].read_text(encoding="utf-8"):
        pytest.importorskip("timm")
    for dataset, count in (("cifar10", 10), ("cifar100", 100)):  # one test image of each class
        files, _ = cifar_files(dataset, count)
        folder = tmp_path / "data" / expect_cifar(dataset, files, monkeypatch)
        folder.mkdir(parents=True)
        for file, content in files.items():
            (folder / file).write_bytes(content)
    schedule = [] if name == "published/conv6-simclr" else ["--warmup_epochs", "0"]
    process = alone("--exp_type", name, *SHORT, *schedule, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    results = [json.loads(path.read_text()) for path in Path(tmp_path, "runs", "short").glob("*/result.json")]
    assert len(results) == (4 if name == "published/conv6-simclr" else 1)
    assert all(result["status"] == "finished" for result in results)
    assert all(0 <= result["metrics"]["linear/test_accuracy"] <= 1 for result in results)
