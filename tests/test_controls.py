"""Sweeps with every control through the real command: tables, figures, more controls later, and refusals."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from raysweep import space
from raysweep.report import building
from raysweep.report.comparison import draw_comparison
from raysweep.report.figures import draw
from raysweep.report.heatmaps import draw_heatmap
from raysweep.report.layers import draw_layers
from raysweep.results.store import Store
from raysweep.space.controls import CONTROLS
from tests.support.commands import alone, here, on_shared_ray, result, scores

SPACE = """
name: four
base:
  {usl_type: simclr, usl_epochs: 1, le_epochs: 2, probe_every: 1, images_every: 2, embedding_dim: 16, per_layer: true,
   probe_layer: layer3, precision: fp32, projector_images: 0, FEW}
search: {strength: [0.2, 0.8], temperature: [0.1, 0.5], seed: [0, 1]}
baseline: [supervised, random, pca, pixels]
tune: {collapse_stop: 1, collapse_rankme: 1}
"""
NAMES = [f"{control},seed={seed}" for control in CONTROLS for seed in (0, 1)]


@pytest.fixture(scope="module")
def four(tmp_path_factory, few):
    """A sweep with every control: its completed process and its directory."""
    folder = tmp_path_factory.mktemp("controls")
    (folder / "space.yaml").write_text(SPACE.replace("FEW", json.dumps(few)[1:-1]))
    return alone("space.yaml", cwd=folder), folder / "runs" / "four"


@pytest.fixture(scope="module")
def report(four):
    """The report of this sweep."""
    return building.read(*Store.open(four[1]))


def rows_of(path):
    with open(path) as file:
        return list(csv.DictReader(file))


def test_every_control_is_a_trial_and_stands_in_the_tables(four):
    process, root = four
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    rows = rows_of(root / "results.csv")
    assert [row["trial"] for row in rows][:8] == NAMES
    assert {row["status"] for row in rows} == {"finished"}
    assert len({row["fingerprint"] for row in rows}) == 1, "all trials are evaluated alike"
    by_point = {row["point"]: row for row in rows}
    assert [by_point[control]["encoder"] for control in CONTROLS] == ["conv6", "pixels", "pca", "conv6"]
    assert [by_point[control]["usl_epochs"] for control in CONTROLS] == ["0", "", "", "1"]
    assert [by_point[control]["usl_type"] for control in CONTROLS] == ["", "", "", "supervised"]
    assert float(by_point["supervised"]["pretrain/loss"]) > 0
    assert all(row["linear/test_accuracy"] and row["knn/test_accuracy"] for row in rows)
    summary = (root / "summary.md").read_text()
    assert all(f"\n| {control} | 2 |" in summary for control in CONTROLS)
    assert [row["point"] for row in rows_of(root / "summary.csv")][:4] == list(CONTROLS)
    conclusion = next(line for line in summary.splitlines() if line.startswith("- "))
    assert conclusion.startswith("- No point is best: strength="), "all points have the same score after one epoch"
    assert not any(control in conclusion for control in CONTROLS), "no control competes"
    assert result(root, "pca,seed=0")["baseline"] is True
    assert result(root, "pixels,seed=0")["metrics"]["knn/test_accuracy"] > 0.9


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_every_control_is_drawn_with_its_own_label_and_line(four, report):
    _, root = four
    sweep = report.members[0].sweep
    labels = ["random encoder", "pixels", "pca", "supervised"]
    figure = draw(sweep, report.points, "strength")
    assert [label for label in legend(figure) if label in labels] == labels
    lines = [line for line in figure.axes[0].get_lines() if line.get_label() in labels]
    assert len({(line.get_linestyle(), line._dash_pattern[1] and tuple(line._dash_pattern[1])) for line in lines}) == 4
    assert len({line.get_color() for line in lines}) == 4
    heading = draw_heatmap(sweep, report.points).axes[0].get_title()
    positions = [heading.index(f"\n{label} (") for label in labels]
    assert positions == sorted(positions)
    blocks = draw_layers(sweep, report.points)
    assert legend(blocks) == ["random encoder", "supervised", "the point"]
    side = draw_comparison("x", report.points, "linear/val_accuracy", "max")
    drawn = [line.get_gid() for line in side.axes[0].get_lines() if line.get_gid() in CONTROLS]
    assert drawn == list(CONTROLS)
    assert [text.get_text() for text in side.axes[0].get_yticklabels()][:4] == ["random", "pixels", "pca", "supervised"]
    assert (root / "figures" / "strength.png").stat().st_size > 0


def test_a_point_knows_the_results_of_its_controls(report):
    points = report.points
    trained = [point for point in points if not point.control]
    for point in trained:
        assert list(point.controls) == list(CONTROLS)
        for control, by_seed in point.controls.items():
            assert {seed: found.trial for seed, found in by_seed.items()} == {n: f"{control},seed={n}" for n in (0, 1)}
        assert point.random_by_seed == point.controls["random"]
        expected = [
            point.by_seed[seed].metrics["knn/test_accuracy"] - found.metrics["knn/test_accuracy"]
            for seed, found in point.controls["pca"].items()
        ]
        assert point.differences("knn/test_accuracy", "pca") == expected
    assert all(not point.controls for point in points if point.control)


def test_an_encoder_file_of_pca_is_embedded_and_exported_by_the_commands(four, tmp_path):
    _, root = four
    for number in range(3):
        Image.fromarray(np.full((8, 8), 80 * number, np.uint8)).save(tmp_path / f"{number}.png")
    trial = root / "pca,seed=0"
    for layer in ("trunk", "embedding"):
        process = here("raysweep", "embed", trial, tmp_path, "--layer", layer, "-o", f"{layer}.npz", cwd=tmp_path)
        assert process.returncode == 0, process.stderr
    arrays = [np.load(tmp_path / f"{layer}.npz")["features"] for layer in ("trunk", "embedding")]
    assert arrays[0].shape == (3, 16)
    assert np.array_equal(*arrays)
    process = here("raysweep", "export", trial, "-o", "weights.safetensors", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "weights.safetensors").read_bytes() == (trial / "encoder.safetensors").read_bytes()
    process = here("raysweep", "embed", root / "pixels,seed=0", tmp_path, "-o", "pixels.npz", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    expected = np.repeat(np.arange(3)[:, None] * 80 / 255, 3 * 64, 1)
    np.testing.assert_allclose(np.load(tmp_path / "pixels.npz")["features"], expected, atol=1e-6)


def test_a_resume_adds_controls_to_a_sweep(few, tmp_path):
    brief = {**few, "usl_epochs": 1, "le_epochs": 1, "probe_every": 0, "projector_images": 0, "name": "x"}
    words = [word for name, value in brief.items() for word in (f"--{name}", str(value))]
    assert alone(*words, "--set", "baseline=true", cwd=tmp_path).returncode == 0
    root = tmp_path / "runs" / "x"
    before = result(root, "random,seed=0")
    process = alone("--resume", "runs/x", "--set", "baseline=[random,pixels]", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert "3 trials (1 new), 2 finished before" in process.stdout
    assert [row["trial"] for row in rows_of(root / "results.csv")] == ["random,seed=0", "pixels,seed=0", "seed=0"]
    assert result(root, "random,seed=0") == before
    assert "baseline:\n- random\n- pixels\n" in (root / "sweep.yaml").read_text()


@pytest.mark.slow
def test_on_ray_controls_have_the_same_scores(four):
    """For controls in several processes, see `tests/training/test_distributed.py`."""
    _, root = four
    chosen = ("strength=0.2", "temperature=0.1", "seed=0", "tune.max_concurrent=1")
    words = [word for each in chosen for word in ("--set", each)]
    process = on_shared_ray("space.yaml", *words, "--name", "ray", cwd=root.parents[1])
    assert process.returncode == 0, process.stderr
    other = root.parent / "ray"
    for trial in (f"{control},seed=0" for control in CONTROLS):
        for name in ("status", "warnings", "fingerprint"):
            assert result(other, trial)[name] == result(root, trial)[name]
        assert scores(other, trial) == scores(root, trial)


MIXED = """
name: mixed
base: {usl_type: simclr, usl_epochs: 1, le_epochs: 1, probe_every: 0, projector_images: 0, embedding_dim: 8, FEW}
search: [{encoder: [pixels, pca]}, {encoder: [conv6], strength: [0, 0.5]}]
baseline: [random, supervised]
"""


def test_encoders_without_training_are_points_beside_networks(few, tmp_path):
    (tmp_path / "space.yaml").write_text(MIXED.replace("FEW", json.dumps(few)[1:-1]))
    names = [
        "random,encoder=conv6,seed=0",
        "supervised,encoder=conv6,seed=0",
        *(f"encoder={name},seed=0" for name in ("pixels", "pca", "conv6,strength=0.0", "conv6,strength=0.5")),
    ]
    planned = alone("space.yaml", "--dry-run", cwd=tmp_path)
    assert planned.stdout.split("# 6 trials:\n")[1].split() == names
    process = alone("space.yaml", cwd=tmp_path)
    assert (process.returncode, process.stderr) == (0, "")
    root = tmp_path / "runs" / "mixed"
    assert [row["trial"] for row in rows_of(root / "results.csv")] == names
    for name in ("pixels", "pca"):
        assert "pretrain/loss" not in result(root, f"encoder={name},seed=0")["metrics"]
        (alone_trial,) = space.build({"base": {"encoder": name}}, {}, "x").trials
        assert alone_trial.settings.usl_epochs == 0
    assert "pretrain/loss" in result(root, "encoder=conv6,strength=0.5,seed=0")["metrics"]
    assert building.read(*Store.open(root)).in_words()


def make_unlabelled(root):
    (root / "images").mkdir()
    for number in range(8):
        Image.fromarray(np.full((8, 8, 3), 30 * number, np.uint8)).save(root / "images" / f"{number}.png")
    return root / "images"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "baseline=[foo]"], "baseline: unknown control 'foo'; valid: random, pixels, pca, supervised"),
        (["--set", "baseline=[pca,pca]"], "baseline: 'pca' is listed twice"),
        (
            ["--set", "baseline=3"],
            "baseline: must be true, false, or names from random, pixels, pca, supervised, not 3",
        ),
        (["--set", "baseline={}"], "supervised, not {}"),
        (
            ["--set", "baseline=pca", "--embedding_dim", "5000"],
            "pca: embedding_dim 5000 is more than the 1,437 training",
        ),
        (["--set", "baseline=pca", "--embedding_dim", "65"], "pca: embedding_dim 65 is more than the 64 pixels"),
        (["--set", "baseline=supervised", "--usl_epochs", "0"], "baseline: supervised needs training"),
        (["--encoder", "pixels", "--set", "usl_epochs=[0, 2]"], "search.usl_epochs: has no effect in usl_epochs=0"),
        (
            ["--encoder", "pixels", "--set", "usl_lr=[0.1, 1]"],
            "(encoder: pixels); it needs an encoder that is a network",
        ),
        (["--encoder", "pixels", "--set", "baseline=true"], "baseline: random needs a network, and encoder: pixels is"),
        (
            ["--usl_type", "supervised", "--dataset", "stl10"],
            "usl_type: supervised: dataset stl10 also pretrains on images without labels",
        ),
        (
            ["--set", "tune.metric=pretrain/loss", "--set", "tune.mode=max"],
            "tune.mode: max contradicts tune.metric: less pretrain/loss is better",
        ),
        (
            ["--encoder", "pixels", "--usl_epochs", "0", "--set", "baseline=pixels"],
            "seed=0 is the trial that baseline: pixels adds",
        ),
        (
            ["--set", "usl_type=[simclr,supervised]", "--strength", "0", "--set", "baseline=supervised"],
            "usl_type=supervised,seed=0 is the trial that baseline: supervised adds",
        ),
        (
            ["--set", "baseline=supervised", "--dataset", "stl10"],
            "baseline: supervised: dataset stl10 also pretrains on",
        ),
        (
            ["--set", "baseline=supervised", "--dataset", "folder:images", "--probe_dataset", "digits"],
            "baseline: supervised: dataset folder:",
        ),
        (
            ["--usl_type", "supervised", "--dataset", "folder:images", "--probe_dataset", "digits"],
            "usl_type: supervised: dataset folder:",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_controls_are_refused_before_anything_starts(run_sweep, tmp_path, arguments, words):
    make_unlabelled(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    process = run_sweep(*arguments, "--local")
    assert (process.returncode, process.stdout) == (2, ""), process
    assert words in process.stderr
    assert process.stderr.startswith("error: ")
    assert process.stderr.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_with_bad_controls_is_refused(run_sweep, tmp_path):
    for entry in ("[foo]", "[pca, pca]", "3", "{}"):
        (tmp_path / "space.yaml").write_text(f"baseline: {entry}\n")
        process = run_sweep("space.yaml", "--local")
        assert process.returncode == 2
        assert process.stderr.startswith("error: space.yaml: baseline: ")
        assert process.stderr.count("\n") == 1
