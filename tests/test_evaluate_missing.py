"""Evaluations of sweeps in which some trials have no encoder: which points are not ranked, and what the report says."""

import json
import shutil

import pytest

import raysweep
from raysweep import space
from raysweep.evaluations import missing_encoders
from raysweep.report import building
from raysweep.results.store import Store
from raysweep.space import EncoderSource, Round, add_round
from tests.report.test_report import fill_with
from tests.support.commands import here, result

pytestmark = pytest.mark.usefixtures("no_figures")
POINTS, SEEDS = ("temperature=0.1", "temperature=0.5"), (0, 1, 2)
WHY = "had no encoder when the evaluation started"


@pytest.fixture(scope="module")
def raw(few):
    """A search space of two points with three seeds."""
    base = {**few, "usl_type": "simclr", "usl_epochs": 1, "le_epochs": 2, "images_every": 0, "projector_images": 0,
            "probe_every": 1}  # fmt: skip
    search = {"temperature": [0.1, 0.5], "seed": list(SEEDS)}
    return {"name": "whole", "base": base, "search": search, "baseline": True}


@pytest.fixture(scope="module")
def whole(raw, tmp_path_factory):
    """The directory of the finished sweep."""
    return raysweep.run(raw, output=tmp_path_factory.mktemp("missing"), local=True).directory


@pytest.fixture(scope="module")
def stopped(raw, whole, tmp_path_factory):
    """The directory of a sweep in which the trial with the lowest RankMe was stopped, and the point of this trial."""
    ranks = {
        point: [result(whole, f"{point},seed={seed}")["metrics"]["pretrain/rankme"] for seed in SEEDS]
        for point in POINTS
    }
    lowest, second = sorted(rank for values in ranks.values() for rank in values)[:2]
    tune = {"collapse_stop": 1, "collapse_rankme": (lowest + second) / 2}
    sweep = raysweep.run({**raw, "name": "stopped", "tune": tune}, output=tmp_path_factory.mktemp("s"), local=True)
    assert list(sweep.frame()["status"]).count("stopped") == 1
    return sweep.directory, min(ranks, key=lambda point: min(ranks[point]))


def evaluate(root, *words):
    process = here("raysweep", "evaluate", root, *words, "--local", cwd=root)
    assert process.returncode == 0, process.stderr
    return process.stdout


def doubts(root):
    return [line for line in building.read(*Store.open(root)).doubts() if "not ranked" in line]


def test_a_point_with_a_stopped_seed_is_not_ranked_in_an_evaluation_either(stopped):
    root, point = stopped
    other = next(each for each in POINTS if each != point)
    assert doubts(root) == [f"{point} is not ranked: 1 of its 3 seeds did not finish."]
    printed = evaluate(root, "--name", "same")
    assert "1 trial of the sweep has no encoder, because the trial failed, was stopped or has not finished" in printed
    assert f"best so far: {other} " in printed
    assert f"{other} is the only point that can be ranked" in printed
    assert f"Note: {point} is not ranked: 1 of its 3 seeds {WHY}." in printed
    place = root / "evaluations" / "same"
    assert f"{point} is not ranked: 1 of its 3 seeds {WHY}." in (place / "summary.md").read_text()
    again = here("run_sweep.py", "--resume", place, "--local", cwd=root)
    assert f"{point} is not ranked: 1 of its 3 seeds {WHY}." in again.stdout
    assert raysweep.open(place).conclusions()[0].startswith(f"{other} is the only point that can be ranked")


def test_every_point_of_the_evaluation_lacks_the_seed(stopped):
    root, point = stopped
    evaluate(root, "--name", "grid", "--set", "knn_k=[3,5]")
    points = f"{point},knn_k=3 and {point},knn_k=5"
    assert doubts(root / "evaluations" / "grid") == [f"{points} are not ranked: 1 of the 3 seeds of each point {WHY}."]


def test_a_measure_without_labels_chooses_no_point_that_lacks_a_seed(stopped):
    root, point = stopped
    printed = evaluate(root, "--name", "measures", "--set", "probe_labels=false", "--set", "label_free=true")
    other = next(each for each in POINTS if each != point)
    assert f"{other} is the only point that can be ranked (label_free/embedding_rankme" in printed
    assert doubts(root / "evaluations" / "measures") == [f"{point} is not ranked: 1 of its 3 seeds {WHY}."]


def test_a_point_of_which_no_encoder_is_there_is_named(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "s")
    for seed in SEEDS:
        (tmp_path / "s" / f"{POINTS[0]},seed={seed}" / "encoder.safetensors").unlink()
    words = "3 trials of the sweep have no encoder, because the trial failed"
    assert words in evaluate(tmp_path / "s", "--dry-run")
    printed = evaluate(tmp_path / "s", "--name", "half")
    assert f"Note: {POINTS[0]} is not ranked: no seed had an encoder when the evaluation started." in printed
    place = tmp_path / "s" / "evaluations" / "half"
    shutil.rmtree(place / f"{POINTS[1]},seed=1")
    assert doubts(place) == [
        f"{POINTS[0]} is not ranked: no seed had an encoder when the evaluation started.",
        f"{POINTS[1]} is not ranked: 1 of its 3 seeds did not finish.",
    ]


def test_both_reasons_are_told_and_evaluations_of_older_versions_have_one(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "s")
    (tmp_path / "s" / f"{POINTS[0]},seed=0" / "encoder.safetensors").unlink()
    evaluate(tmp_path / "s", "--name", "e")
    place = tmp_path / "s" / "evaluations" / "e"
    shutil.rmtree(place / f"{POINTS[0]},seed=1")
    assert doubts(place) == [f"{POINTS[0]} is not ranked: 1 of its 3 seeds did not finish, and 1 {WHY}."]
    content = space.read(place / "sweep.yaml")
    [entry] = content["encoders"].pop("missing")
    assert entry["seeds"] == [0]
    (place / "sweep.yaml").write_text(space.to_yaml(content))
    assert doubts(place) == [f"{POINTS[0]} is not ranked: 1 of its 2 seeds did not finish."]
    content["encoders"]["missing"] = [{**entry, "seeds": "0"}]
    (place / "sweep.yaml").write_text(space.to_yaml(content))
    with pytest.raises(raysweep.RaysweepError, match="encoders: missing: seeds: expected a list of seeds, not '0'"):
        raysweep.open(place)


def planned(raw, lacks, evaluation):
    """Return the evaluation of a sweep in which the trials have no encoder of which `lacks` is true."""
    trials = [trial for trial in space.build(raw, {}, "raw").trials if not trial.baseline]
    source = EncoderSource("../../encoder.safetensors", 1, 8, "digest")
    encoders = [space.Trial(t.name, t.point, t.settings, t.varied, "", source) for t in trials if not lacks(t)]
    missing = [trial for trial in trials if lacks(trial)]
    return space.build_evaluation(evaluation, {}, "evaluation", encoders, missing=missing)


def test_missing_trials_survive_the_file_also_with_names_that_are_hashed():
    search = {"usl_lr": [0.0012345678901234567, 0.0023456789012345678], "weight_decay": [0.00012345678901234567],
              "temperature": [0.12345678901234567], "strength": [0.12345678901234567],
              "crop_strength": [0.12345678901234567], "color_strength": [0.12345678901234567],
              "seed": [0, 1, 2]}  # fmt: skip
    raw = {"base": {"usl_type": "simclr", "usl_epochs": 1, "optimizer": "adamw"}, "search": search}
    evaluation = planned(raw, lambda trial: trial.settings.seed == 1, {"search": {"knn_k": [3, 5]}})
    assert not any("seed=" in trial.name for trial in evaluation.missing_trials), "the end of the name is a hash"
    assert {trial.point for trial in evaluation.missing_trials} == {trial.point for trial in evaluation.trials}
    assert len(evaluation.missing_trials) == 4
    again = space.rebuild(json.loads(json.dumps(evaluation.to_dict())), "sweep.yaml")
    assert again.missing_trials == evaluation.missing_trials
    assert again.missing_encoders == evaluation.missing_encoders


def test_another_encoder_of_the_same_pretraining_stands_in():
    raw = {"search": {"knn_k": [3, 5], "seed": [0, 1]}}
    evaluation = planned(raw, lambda trial: trial.name == "knn_k=3,seed=1", {"base": {"knn_k": 4}})
    assert {trial.name for trial in evaluation.trials} == {"seed=0", "seed=1"}
    assert not evaluation.missing_trials
    evaluation = planned(raw, lambda trial: trial.settings.seed == 1, {"base": {"knn_k": 4}})
    assert [trial.name for trial in evaluation.missing_trials] == ["seed=1"]


def test_a_race_lacks_no_encoder_of_a_round_that_still_runs(tmp_path):
    raw = {"name": "race", "search": {"alpha": [0.1, 1]}, "seeds": {"least": 3, "most": 5, "until": "separated"}}
    store, sweep = fill_with(tmp_path, {**raw, "baseline": True}, lambda trial: {})
    grown = add_round(sweep, Round(4, ("alpha=0.1", "alpha=1.0")))
    names = {trial.name for trial in grown.trials if not trial.baseline}
    assert len(names) == 8
    fourth = {"alpha=0.1,seed=3", "alpha=1.0,seed=3"}
    assert missing_encoders(store, grown, names - fourth) == []
    (missing,) = missing_encoders(store, grown, names - fourth - {"alpha=1.0,seed=0"})
    assert missing.name == "alpha=1.0,seed=0"
