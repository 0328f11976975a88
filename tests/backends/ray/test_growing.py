"""On Ray a longer trial continues the final state of a shorter one, also after kills."""

import json
import os
import signal

import pytest
import yaml

from tests.support.cluster import wait_for
from tests.support.commands import alone, begun, checkpoints, on_ray, result, scores, start
from tests.test_growing import points

SHORT, LONG = 2, 30
SHORTER = "seed=0"


def write_space(path, few, epochs):
    base = {**few, "usl_type": "simclr", "usl_epochs": epochs, "le_epochs": 3, "probe_every": 4, "keep": "final_state"}
    path.write_text(yaml.safe_dump({"name": "x", "base": {**base, "images_every": 0}, "search": {"seed": [0]}}))
    return path


def assert_as_alone(root, longer, file, tmp_path):
    """Check that the longer trial has the scores and the points of the same trial alone."""
    alone(file, "--name", "alone", cwd=tmp_path)
    assert result(root, longer)["continues"] == SHORTER
    assert scores(root, longer) == scores(tmp_path / "runs" / "alone", SHORTER)
    assert points(root / longer) == points(tmp_path / "runs" / "alone" / SHORTER)


@pytest.mark.slow
def test_a_continued_trial_that_is_killed_twice_ends_as_the_same_trial_alone(tmp_path, few):
    alone(write_space(tmp_path / "short.yaml", few, SHORT), cwd=tmp_path)
    root, file = tmp_path / "runs" / "x", write_space(tmp_path / "long.yaml", few, LONG)
    resume = [str(file), "--resume", str(root)]
    process = start(*resume, "--set", "tune.checkpoint_seconds=0", cwd=tmp_path)
    trial = root / f"usl_epochs={LONG},seed=0"
    wait_for(lambda: checkpoints(trial), process)
    os.kill(json.loads((trial / "attempt.json").read_text())["pid"], signal.SIGKILL)
    wait_for(lambda: begun(trial, attempt=2), process)
    process.kill()
    process.communicate()
    assert not (trial / "result.json").exists()
    completed = on_ray(*resume, cwd=tmp_path)
    assert completed.returncode == 0, completed.stderr
    assert result(root, trial.name)["attempts"] == 3
    assert_as_alone(root, trial.name, file, tmp_path)


def test_a_longer_trial_continues_on_ray(tmp_path, few):
    alone(write_space(tmp_path / "short.yaml", few, SHORT), cwd=tmp_path)
    root, file = tmp_path / "runs" / "x", write_space(tmp_path / "long.yaml", few, SHORT + 2)
    completed = on_ray(file, "--resume", root, cwd=tmp_path)
    assert completed.returncode == 0, completed.stderr
    assert f"{root}: 2 trials (1 new), 1 continues from shorter ones, 1 finished before" in completed.stdout
    assert_as_alone(root, f"usl_epochs={SHORT + 2},seed=0", file, tmp_path)
