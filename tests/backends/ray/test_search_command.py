"""The real command with a scheduler and a searcher: stopped trials, proposed points, and what a resume keeps."""

import csv
import json
import shutil
from statistics import mean

import numpy as np
import optuna
import pytest
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2

from tests.support import ROOT
from tests.support.commands import here, on_shared_ray, result

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_figures")]

TUNE = {"scheduler": "asha", "reduction_factor": 2, "searcher": "optuna", "num_samples": 4, "max_concurrent": 1}
SPACE = {
    "name": "search",
    "search": {"alpha": {"loguniform": [1e-3, 10]}, "seed": {"grid": [0, 1]}},
    "baseline": True,
    "tune": {**TUNE, "storage": "sqlite:///studies.db"},
}


@pytest.fixture(scope="module")
def searched(tmp_path_factory, no_figures):
    """A small sweep, one trial at a time: its completed process, its directory, and its trials' results by name."""
    folder = tmp_path_factory.mktemp("search")
    draws = np.random.default_rng(0)
    for number in range(200):  # of noise, so that the classes differ by chance only, and some trials are stopped
        place = folder / "noise" / ("test" if number < 20 else "train") / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draws.integers(0, 256, (8, 8), dtype=np.uint8)).save(place / f"{number}.png")
    base = {"dataset": f"folder:{folder}/noise", "image_size": 8, "batch_size": 60, "usl_epochs": 4, "probe_every": 1}
    base |= {"le_epochs": 2, "usl_lr": 1e-3, "images_every": 0, "projector_images": 0}
    (folder / "space.yaml").write_text(yaml.safe_dump({**SPACE, "base": base}))
    process = on_shared_ray("space.yaml", cwd=folder)
    root = folder / "runs" / "search"
    return process, root, {path.parent.name: result(root, path.parent.name) for path in root.glob("*/result.json")}


def proposals(root):
    return json.loads((root / "proposals.json").read_text())["points"]


def test_every_proposed_point_runs_with_every_seed_and_none_fails(searched):
    process, root, results = searched
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    alphas = [point["values"]["alpha"] for point in proposals(root)]
    assert len(set(alphas)) == 4
    points = [f"alpha={alpha},seed={seed}" for alpha in alphas for seed in (0, 1)]
    assert set(results) == {"random,seed=0", "random,seed=1", *points}
    with open(root / "results.csv") as file:
        assert [row["trial"] for row in csv.DictReader(file)] == ["random,seed=0", "random,seed=1", *points]
    assert "10 trials, 1 at a time" in process.stdout.splitlines()[0]
    assert "[10/10] " in process.stdout


def test_stopped_trials_are_complete_and_in_no_mean(searched):
    process, root, results = searched
    stopped = {name: trial_result for name, trial_result in results.items() if trial_result["status"] == "stopped"}
    assert stopped
    assert {trial_result["status"] for trial_result in results.values()} == {"finished", "stopped"}
    assert all(results[f"random,seed={seed}"]["status"] == "finished" for seed in (0, 1))
    summary = (root / "summary.md").read_text()
    assert f"{10 - len(stopped)} of 10 trials finished, {len(stopped)} stopped early, 0 failed" in summary
    for name, trial_result in stopped.items():
        assert trial_result["error"].startswith("stopped by asha after epoch ")
        assert f"- {name}: {trial_result['error']}" in summary
        assert f"{name}  {trial_result['error']}" in process.stdout
        epoch = int(trial_result["error"].split("epoch ")[1].split(":")[0])
        assert (
            f"online/knn_val_accuracy {trial_result['metrics']['online/knn_val_accuracy']:.4f}" in trial_result["error"]
        )
        assert not [metric for metric in trial_result["metrics"] if "test" in metric]
        assert trial_result["wall_s"] > 0
        assert trial_result["precision"] in ("fp32", "bf16")
        assert not (root / name / "checkpoints").exists()
        events = EventAccumulator(str(root / name), size_guidance={"scalars": 0}).Reload()
        assert [e.step for e in events.Scalars("online/knn_val_accuracy")] == list(range(epoch + 1))
        content = events.summary_metadata["_hparams_/session_end_info"].plugin_data.content
        status = plugin_data_pb2.HParamsPluginData.FromString(content).session_end_info.status
        assert status == api_pb2.Status.Value("STATUS_SUCCESS")
    with open(root / "results.csv") as file:
        assert {row["precision"] for row in csv.DictReader(file) if row["trial"] in stopped} <= {"fp32", "bf16"}
    with open(root / "summary.csv") as file:
        counted = sum(int(row["n"]) for row in csv.DictReader(file))
    assert counted == 10 - len(stopped)


def test_workers_go_on_after_a_trial_was_stopped(searched):
    _, root, results = searched
    assert {trial_result["attempts"] for trial_result in results.values()} == {1}
    pids = [json.loads((root / name / "attempt.json").read_text())["pid"] for name in results]
    assert len(set(pids)) == 1


def study_of(root):
    """Return the study of the sweep in `root`, as optuna-dashboard reads it."""
    return optuna.load_study(study_name=root.name, storage=f"sqlite:///{root.parent.parent / 'studies.db'}")


def check_study(root):
    """Check that the newest trial of each point in the study agrees with `results.csv`."""
    with open(root / "results.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["alpha"]]
    study = study_of(root)
    assert study.direction.name == "MAXIMIZE"
    newest = {trial.user_attrs["point"]: trial for trial in study.trials}
    assert set(newest) == {row["point"] for row in rows}
    for point, trial in newest.items():
        seeds = [row for row in rows if row["point"] == point]
        assert [trial.params["alpha"]] * 2 == [float(row["alpha"]) for row in seeds]
        if all(row["status"] == "finished" for row in seeds):
            assert trial.value == pytest.approx(mean(float(row["linear/val_accuracy"]) for row in seeds), abs=1e-12)
        else:
            assert trial.state.name == "PRUNED"
    return study.trials


def test_the_study_in_the_database_agrees_with_the_results(searched):
    _, root, _ = searched
    trials = check_study(root)
    assert [trial.params["alpha"] for trial in trials] == [point["values"]["alpha"] for point in proposals(root)]


def test_another_sweep_may_not_take_the_name_of_a_study(searched):
    _, root, _ = searched
    process = on_shared_ray("space.yaml", "--output", "other", cwd=root.parent.parent)
    assert process.returncode == 2
    assert process.stderr.count("\n") == 1
    assert "already has a study 'search' of another sweep; choose another name" in process.stderr
    assert not (root.parent.parent / "other").exists()


def test_a_resume_keeps_finished_stopped_and_proposed_and_goes_on(searched):
    _, root, results = searched
    before = proposals(root)
    last = [f"alpha={before[-1]['values']['alpha']},seed={seed}" for seed in (0, 1)]
    again = f"alpha={before[0]['values']['alpha']},seed=0"  # a proposed trial that has not run
    for name in (*last, again):
        shutil.rmtree(root / name)
    (root / "proposals.json").write_text(json.dumps({"points": before[:-1]}))
    kept = {name: (root / name / "result.json").stat().st_mtime_ns for name in results if name not in (*last, again)}
    report = here("raysweep", "report", root, cwd=ROOT)
    assert report.returncode == 1
    assert "3 of 10 trials have not finished" in report.stderr
    process = on_shared_ray("--resume", root, "--set", "tune.num_samples=5", cwd=root.parent)
    assert process.returncode == 0, process.stderr
    assert "12 trials (2 new), 7 finished before" in process.stdout
    assert {name: (root / name / "result.json").stat().st_mtime_ns for name in kept} == kept
    assert proposals(root)[:-1] == before, "with so few points, Optuna draws each at random from its number"
    check_study(root)
    new = [f"alpha={proposals(root)[-1]['values']['alpha']},seed={seed}" for seed in (0, 1)]
    assert {path.parent.name for path in root.glob("*/result.json")} == {*results, *new}

    def local(*arguments):
        return here("run_sweep.py", "--resume", root, *arguments, cwd=root.parent)

    assert local().stdout.splitlines()[0] == f"{root}: all 12 trials have finished"
    refused = local("--set", "tune.searcher=none", "--set", "tune.max_concurrent=none")
    assert refused.returncode == 2
    assert "tune.searcher: cannot change in a sweep with a searcher" in refused.stderr
