"""Trials of two worker processes, on two nodes, by the real command: the results of one process."""

import json
import os
import signal

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.sweep.nodes import cluster, wait_for
from tests.sweep.test_command import command, result, scores, start

pytestmark = pytest.mark.cluster

METHOD = ["--usl_type", "ae_parallel", "--emb_loss", "barlow", "--alpha", "0.01", "--precision", "fp32"]
BRIEF = ["--le_epochs", "3", "--probe_every", "2", "--images_every", "0"]
STEPS = [*METHOD, *BRIEF, "--usl_epochs", "10", "--set", "tune.checkpoint_seconds=0"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two nodes, each with one core: what addresses them, and in which environment."""
    with cluster(tmp_path_factory.mktemp("pair"), "--num-cpus=1") as made:
        made.join("--num-cpus=1")
        yield made


def steps(trial):
    """Of every metric in TensorBoard the steps, as a fresh reader sees them."""
    read = EventAccumulator(str(trial), size_guidance={"scalars": 0}).Reload()
    return {tag: [point.step for point in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def attempt(trial):
    path = trial / "attempt.json"
    return json.loads(path.read_text()) if path.exists() else {"attempt": 0}


def test_a_trial_on_two_nodes_survives_its_worker_and_goes_on_with_one(pair, tmp_path):
    plain = command(*STEPS, "--local", "--name", "plain", cwd=tmp_path)
    assert plain.returncode == 0, plain.stderr
    on_both = [*STEPS, "--set", "resources.workers=2", "--name", "both", "--address", pair.address]
    running = start(*on_both, cwd=tmp_path, **pair.environment)
    root = tmp_path / "runs" / "both"
    trial = root / "seed=0"

    saved = wait_for(lambda: list(trial.glob("checkpoints/*.json")), running)
    os.kill(attempt(trial)["pid"], signal.SIGKILL)
    wait_for(lambda: attempt(trial)["attempt"] == 2 and set(trial.glob("checkpoints/*.json")) - set(saved), running)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=120)
    assert running.returncode == 130, err
    assert "each 2 workers with 1 core, on 2 nodes" in out
    assert "its process died" in out
    assert list(trial.glob("checkpoints/*.json"))

    done = command("--resume", root, "--set", "resources.workers=1", "--local", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "other resources than before" in done.stderr
    assert result(root, "seed=0")["attempts"] == 3
    assert result(root, "seed=0")["warnings"] == []
    # Sums over two halves of a batch are rounded otherwise: the last digits of numbers, or one image.
    expected = scores(tmp_path / "runs" / "plain", "seed=0")
    assert scores(root, "seed=0") == pytest.approx(expected, rel=0.01, abs=0.015)
    assert scores(root, "seed=0")["pretrain/loss"] == pytest.approx(expected["pretrain/loss"], rel=1e-4)
    assert steps(trial) == steps(tmp_path / "runs" / "plain" / "seed=0")


def test_a_scheduler_stops_trials_of_two_workers(pair, tmp_path):
    space = [*METHOD[:4], "--set", "alpha=[0.001,1000000]", "--le_epochs", "1", "--images_every", "0"]
    asha = ["tune.scheduler=asha", "tune.grace_epochs=1", "tune.reduction_factor=2", "tune.max_concurrent=1"]
    asha += ["tune.metric=pretrain/loss", "tune.mode=min"]  # the second one's is much larger
    more = [part for one in (*asha, "resources.workers=2") for part in ("--set", one)]
    done = command(
        *space,
        *("--usl_epochs", "4", "--probe_every", "1", "--address", pair.address, "--name", "asha"),
        *more,
        cwd=tmp_path,
        **pair.environment,
    )
    assert done.returncode == 0, done.stderr
    results = [json.loads(path.read_text()) for path in (tmp_path / "runs" / "asha").glob("*/result.json")]
    assert sorted(one["status"] for one in results) == ["finished", "stopped"]
