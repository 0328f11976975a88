"""The real command on a real Ray: results, resuming, killed workers, Ctrl-C."""

import csv
import json
import os
import signal

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from tests.support import PATIENCE, ROOT, forked
from tests.support.commands import (
    GRID,
    QUICK,
    STEPS,
    STOPPING,
    TRIALS,
    alone,
    begun,
    here,
    on_shared_ray,
    patiently,
    result,
    resume_command,
    scores,
)
from tests.support.gate import Gate


def attempt_of(trial):
    """Return what a trial has recorded about its last attempt."""
    return json.loads((trial / "attempt.json").read_text())


@pytest.fixture
def without_figures(monkeypatch):
    """Write no figures in this process. They take most of the time of a report."""
    monkeypatch.setattr("raysweep.report.building.figures_of", lambda report: {})


@pytest.fixture(scope="module")
def grid(few_flags):
    """The arguments of a small α sweep."""
    return [*GRID, *few_flags]


@pytest.fixture(scope="module")
def alpha(tmp_path_factory, grid):
    """The completed process and the directory of the α sweep on Ray."""
    folder = tmp_path_factory.mktemp("alpha")
    return forked.run(ROOT / "run_sweep.py", *grid, cwd=folder), folder / "runs" / "alpha"


def test_every_trial_finishes_in_a_directory_of_its_own(alpha):
    process, root = alpha
    assert process.returncode == 0, process.stderr
    for name in TRIALS:
        assert result(root, name)["status"] == "finished"
        assert sorted(path.name for path in (root / name).iterdir()) == [
            "attempt.json",
            "curves.csv",
            "encoder.safetensors",
            "events.out.tfevents.0001.raysweep",
            "projector",
            "projector_config.pbtxt",
            "result.json",
        ]


def test_tables_and_figure_are_written(alpha):
    _, root = alpha
    with open(root / "results.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["trial"] for row in rows] == TRIALS
    assert [row["alpha"] for row in rows] == ["", "", "1e-05", "1e-05", "1.0", "1.0"]
    for row in rows:
        assert row["status"] == "finished"
        assert float(row["linear/test_accuracy"]) == result(root, row["trial"])["metrics"]["linear/test_accuracy"]
    assert len({row["fingerprint"] for row in rows}) == 1
    with open(root / "summary.csv") as file:
        points = list(csv.DictReader(file))
    assert [(row["point"], row["n"]) for row in points] == [("random", "2"), ("alpha=1e-05", "2"), ("alpha=1.0", "2")]
    assert "Difference from the random encoder" in (root / "summary.md").read_text()
    assert Image.open(root / "figures" / "alpha.png").size[0] > 500


def test_what_is_shown_is_progress_and_results_and_no_chatter(alpha):
    process, _ = alpha
    assert process.stderr == ""
    lines = process.stdout.splitlines()
    assert "6 trials, " in lines[0]
    last = next(line for line in lines if line.startswith("[6/6] "))
    assert "(0 running, 0 waiting; best so far: alpha=" in last
    assert "TensorBoard tensorboard --logdir runs/alpha" in lines
    assert not [line for line in lines if "(pid=" in line or "WARNING" in line or "INFO" in line]


def test_workers_are_reused(alpha):
    _, root = alpha
    pids = [attempt_of(root / name)["pid"] for name in TRIALS]
    assert len(set(pids)) <= 3 < len(pids)


def test_tensorboard_reads_curves_images_and_hyperparameters(alpha):
    _, root = alpha
    for name in TRIALS[2:]:
        events = EventAccumulator(str(root / name), size_guidance={"scalars": 0}).Reload()
        assert [e.step for e in events.Scalars("pretrain/loss")] == [1, 2]
        assert [e.step for e in events.Scalars("online/knn_val_accuracy")] == [0, 1, 2]
        assert [e.step for e in events.Scalars("linear/val_accuracy")] == [1, 2, 3]
        assert not [tag for tag in events.Tags()["scalars"] if tag.startswith("ray/")]
        assert [e.step for e in events.Images("visual/original_view_reconstruction")] == [2]
        content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
        values = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
        settings = result(root, name)["settings"]
        assert values["alpha"].number_value == settings["alpha"]
        assert values["seed"].number_value == settings["seed"]


def test_local_gives_the_same_bits_as_ray(alpha, grid, without_figures, tmp_path):
    _, root = alpha
    process = alone(*grid, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    for name in TRIALS:
        assert scores(tmp_path / "runs" / "alpha", name) == scores(root, name)


def test_report_rebuilds_what_was_deleted(alpha):
    _, root = alpha
    outputs = [root / "results.csv", root / "summary.csv", root / "summary.md", root / "figures" / "alpha.png"]
    before = [path.read_bytes() for path in outputs]
    for path in outputs:
        path.unlink()
    process = here("raysweep", "report", root, cwd=ROOT)
    assert process.returncode == 0, process.stderr
    assert [path.read_bytes() for path in outputs] == before


def test_resume_keeps_what_is_finished_and_runs_the_rest_in_parts(alpha, without_figures, monkeypatch):
    from raysweep.backends.ray import tuner

    monkeypatch.setattr(tuner, "PART", 2)
    monkeypatch.setattr(tuner, "slots", lambda sweep: 0)
    _, root = alpha
    before = {name: scores(root, name) for name in TRIALS}
    lost = TRIALS[3:]
    for name in lost:
        (root / name / "result.json").unlink()
    kept = {name: (root / name / "result.json").stat().st_mtime_ns for name in TRIALS if name not in lost}
    process = on_shared_ray("--resume", root, "--set", "tune.max_concurrent=1", cwd=root.parent)
    assert process.returncode == 0, process.stderr
    assert "3 finished before" in process.stdout
    assert process.stderr == ""
    assert {name: (root / name / "result.json").stat().st_mtime_ns for name in kept} == kept
    assert {name: scores(root, name) for name in TRIALS} == before
    for name in lost:
        events = EventAccumulator(str(root / name), size_guidance={"scalars": 0}).Reload()
        assert [e.step for e in events.Scalars("pretrain/loss")] == [1, 2]
        assert result(root, name)["attempts"] == 2, "each trial runs once more"
    pids = [attempt_of(root / name)["pid"] for name in lost]
    assert pids[0] == pids[1] != pids[2], "each part starts new workers"


def test_resume_of_a_finished_sweep_runs_nothing(alpha, without_figures):
    _, root = alpha
    process = here("run_sweep.py", "--resume", root, cwd=root.parent)
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines()[0] == f"{root}: all 6 trials have finished"


@pytest.mark.slow
def test_killed_workers_and_a_diverging_trial_among_others(few_flags, without_figures, tmp_path):
    """In one sweep, seed 0 is killed once, seed 1 is killed once too often, and a third trial diverges."""
    epochs = [*few_flags, *STEPS, "--usl_epochs", "6"]
    undisturbed = alone(*epochs, "--output", "undisturbed", cwd=tmp_path)
    assert undisturbed.returncode == 0, undisturbed.stderr
    (tmp_path / "space.yaml").write_text(
        "search: [{usl_type: simclr, usl_lr: 1e18, seed: 0}, {usl_type: ae_parallel, seed: [0, 1]}]\n"
    )
    root, gate = tmp_path / "runs" / "long", Gate(tmp_path, step=10)
    killed, often, diverged = (
        "usl_type=ae_parallel,seed=0",
        "usl_type=ae_parallel,seed=1",
        "usl_type=simclr,usl_lr=1e+18,seed=0",
    )

    def kill():
        for trial, attempt in ((often, 1), (often, 2), (killed, 1)):
            os.kill(held(gate, root / trial, attempt), signal.SIGKILL)

    with gate.meanwhile(kill):
        process = on_shared_ray("space.yaml", *epochs, *gate.arguments, "--set", "tune.max_failures=1", cwd=tmp_path)
    assert process.returncode == 1, process.stderr

    assert f"{killed}: attempt 1 broke off; resuming from its last checkpoint" in process.stdout
    assert (result(root, killed)["status"], result(root, killed)["attempts"]) == ("finished", 2)
    assert scores(root, killed) == scores(tmp_path / "undisturbed" / "long", "seed=0")
    events = EventAccumulator(str(root / killed), size_guidance={"scalars": 0}).Reload()
    assert [e.step for e in events.Scalars("pretrain/loss")] == list(range(1, 7))

    failed = result(root, diverged)
    assert (failed["status"], failed["attempts"]) == ("failed", 1), "a second attempt would diverge again"
    assert "in pretraining epoch" in failed["error"]
    assert failed["error"] in (root / "summary.md").read_text()
    assert process.stderr.splitlines() == [
        f"failed: {diverged}: {failed['error']}",
        f"failed: {often}: its process died (killed, out of memory, or its node was lost)",
    ]


def held(gate, trial, attempt):
    """Wait until the gate holds this attempt of a trial, and return the id of its process."""
    return gate.until(lambda: begun(trial, attempt) and {attempt_of(trial)["pid"]}.intersection(gate.wait())).pop()


def test_ctrl_c_without_ray_saves_and_a_resume_finishes(few_flags, without_figures, tmp_path):
    gate = Gate(tmp_path, step=10)
    options = [*few_flags, *gate.arguments, *STEPS, "--usl_epochs", "6", "--local"]
    process = patiently(*options, cwd=tmp_path)
    gate.wait(process)
    process.send_signal(signal.SIGINT)
    gate.open()
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert err.splitlines() == [STOPPING, f"interrupted; resume with: {resume_command('runs/long', '--local')}"]
    text = (tmp_path / "runs" / "long" / "sweep.yaml").read_text()
    (tmp_path / "runs" / "long" / "sweep.yaml").write_text(text.replace("usl_lr: 0.0001", "usl_lr: 0.5"))
    changed = alone("--resume", "runs/long", cwd=tmp_path)
    assert changed.returncode == 2
    assert "usl_lr: 0.0001, but the sweep says 0.5" in changed.stderr
    (tmp_path / "runs" / "long" / "sweep.yaml").write_text(text)
    completed = alone("--resume", "runs/long", cwd=tmp_path)
    assert completed.returncode == 0, completed.stderr


def test_a_request_that_no_node_can_meet_is_refused(tmp_path):
    process = on_shared_ray(*QUICK, "--usl_type", "simclr", "--set", "resources.cpu=1000", cwd=tmp_path)
    assert process.returncode == 2
    assert "needs 1000 cpu" in process.stderr
    assert len(process.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())
