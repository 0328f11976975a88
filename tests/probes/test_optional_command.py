"""The probes that are off by default, through the real command."""

import json

import pytest
import yaml

from raysweep.probes import features as features_module
from tests.support.commands import here

QUICK = {"usl_type": "simclr", "usl_epochs": 1, "le_epochs": 2, "probe_every": 0, "images_every": 0}
ON = {"logistic": True, "knn_grid": [1, 20], "few_shot": [1, 2], "mlp_probe": True}


def words_of(few, **settings):
    """Return the words of a command that runs a tiny sweep with these settings."""
    given = {**few, **QUICK, **settings}
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in given.items()}
    return [*(word for name, text in texts.items() for word in ("--set", f"{name}={text}")), "--local"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"knn_grid": [1, 100]}, "knn_grid: 100 is more than the"),
        ({"knn_grid": [3]}, "knn_grid: each number must be one of 1, 2, 5, 10, 20, 50, 100, 200, not [3]"),
        ({"few_shot": [1, 50]}, "few_shot: 50, but class '0' has only 5 images in the fit split"),
        ({"few_shot": [1, 3]}, "few_shot: each number must be one of 1, 2, 4, 5, 8, 10, 16, 20, 25, 50, 100, not"),
        ({"logistic": [True, False]}, "logistic cannot be swept (it changes no score); put it under base"),
        ({"logistic": True, "val_fraction": 0}, "logistic_c: the best C is chosen on validation images"),
    ],
)
def test_what_the_data_lacks_is_refused(refused, few, settings, words):
    assert words in refused(*words_of(few, **settings))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"image_size": 64}, "at most 8,192 features, but the trunk of conv6 has 32,768 for images of 64×64"),
        (
            {"encoder": "pixels", "usl_epochs": 0, "image_size": 96},
            "the trunk of pixels has 27,648 for images of 96×96 pixels",
        ),
        ({"tune.metric": "label_free/embedding_lidar", "embedding_dim": 8200}, "needs at most 8,192 features"),
    ],
)
def test_a_sweep_does_not_choose_by_a_measure_that_is_left_out(refused, few, settings, words):
    given = {"label_free": True, "tune.metric": "label_free/trunk_lidar", **settings}
    message = refused(*words_of(few, **given))
    assert words in message
    assert f"choose by {given['tune.metric'].replace('lidar', 'rankme')}" in message


def test_a_sweep_and_its_evaluation_give_the_same_scores_from_one_extraction(run_sweep, tmp_path, few, monkeypatch):
    passes = []
    compute = features_module.compute
    monkeypatch.setattr(features_module, "compute", lambda *given: (passes.append(len(given[2])), compute(*given))[1])
    (tmp_path / "space.yaml").write_text(yaml.safe_dump({"name": "s", "base": {**few, **QUICK, **ON}}))
    process = run_sweep("space.yaml", "--local")
    assert process.returncode == 0, process.stderr
    root = tmp_path / "runs" / "s"
    scores = json.loads((root / "seed=0" / "result.json").read_text())["metrics"]
    assert len(passes) == 3, "one pass over each of the fit, validation and test split"
    for name in ("logistic/test_accuracy", "knn/k20_val_accuracy", "few_shot/2_test_accuracy", "mlp/val_accuracy"):
        assert 0 < scores[name] <= 1
    header = next(line for line in (root / "summary.md").read_text().splitlines() if line.startswith("| point |"))
    columns = [name.strip() for name in header.split("|")[3:-1]]
    usual = ["linear/val_accuracy", "linear/test_accuracy", "knn/test_accuracy", "kmeans/accuracy"]
    further = ["knn/k1", "knn/k20", "logistic/", "few_shot/1", "few_shot/2", "mlp/"]
    assert columns == [*usual, *(f"{name}_test_accuracy".replace("/_", "/") for name in further)]
    for table in ("results.csv", "summary.csv"):
        assert "few_shot/1_std" in (root / table).read_text().splitlines()[0]

    words = [word for name, value in ON.items() for word in ("--set", f"{name}={json.dumps(value)}")]
    process = here("raysweep", "evaluate", "runs/s", *words, "--local", "--name", "again", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    again = json.loads((root / "evaluations" / "again" / "seed=0" / "result.json").read_text())["metrics"]
    assert again == {name: scores[name] for name in again}
    assert again.keys() == {name for name in scores if not name.startswith(("pretrain/", "online/"))}


def test_fine_tuning_in_a_sweep_and_its_evaluation_leaves_out_what_has_no_weights(run_sweep, tmp_path, few):
    settings = {"finetune": True, "finetune_epochs": 1, "finetune_batch_size": 20, "finetune_augment": "crop"}
    base = {**few, **QUICK, **settings}
    controls = ["random", "pixels", "pca"]
    (tmp_path / "space.yaml").write_text(yaml.safe_dump({"name": "s", "base": base, "baseline": controls}))
    process = run_sweep("space.yaml", "--local")
    assert process.returncode == 0, process.stderr
    root = tmp_path / "runs" / "s"
    files = {path.parent.name: json.loads(path.read_text()) for path in root.glob("*/result.json")}
    tuned = {name: result["metrics"].get("finetune/test_accuracy") for name, result in files.items()}
    assert {name for name, score in tuned.items() if score is not None} == {"seed=0", "random,seed=0"}
    assert len({result["fingerprint"] for result in files.values()}) == 1
    summary = (root / "summary.md").read_text()
    assert "| no seed has both |" in summary, "the pixels have no accuracy of fine-tuning"
    assert "share no seed" not in summary
    assert "every block" not in summary, "no probe reads single blocks"
    assert not (root / "figures" / "layers.png").exists()

    words = ["--set", "finetune=true", "--set", "finetune_epochs=[1,2]", "--set", "baseline=[random,pixels]"]
    process = here("raysweep", "evaluate", "runs/s", *words, "--local", "--name", "again", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    again = {
        path.parent.name: json.loads(path.read_text())["metrics"].get("finetune/test_accuracy")
        for path in (root / "evaluations" / "again").glob("*/result.json")
    }
    assert again["finetune_epochs=1,seed=0"] == tuned["seed=0"]
    assert again["random,finetune_epochs=1,seed=0"] == tuned["random,seed=0"]
    assert again["pixels,finetune_epochs=2,seed=0"] is None


def test_a_control_has_the_score_of_the_sweep_if_a_probe_reads_another_head(run_sweep, tmp_path, few):
    given = {"embedding_dim": 8, "init": "kaiming", "usl_epochs": 1}
    assert run_sweep(*words_of(few, **given), "--name", "s", "--set", "baseline=true").returncode == 0
    resumed = run_sweep("--resume", "runs/s", "--set", "label_free=true", "--local")
    assert resumed.returncode == 2
    assert "random,seed=0: was run with embedding_dim: 64, which had no effect" in resumed.stderr
    assert "use them with raysweep evaluate" in resumed.stderr
    again = here("raysweep", "evaluate", "runs/s", "--set", "label_free=true", "--local", "--name", "a", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    sweep, evaluation = (
        json.loads((tmp_path / "runs" / "s" / place / "random,seed=0" / "result.json").read_text())["metrics"]
        for place in (".", "evaluations/a")
    )
    for name in ("linear/test_accuracy", "knn/test_accuracy", "kmeans/accuracy"):
        assert sweep[name] == evaluation[name]
    assert "label_free/embedding_lidar" in evaluation
