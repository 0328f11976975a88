"""The real command gives trials of two worker processes on two nodes the results of trials in one process."""

import json
import os
import signal

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.support import PATIENCE
from tests.support.cluster import cluster, wait_for
from tests.support.commands import alone, begun, result, scores, start

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

METHOD = [
    "--usl_type",
    "ae_parallel",
    "--emb_loss",
    "barlow",
    "--alpha",
    "0.01",
    "--precision",
    "fp32",
    "--usl_epochs",
    "3",
]
BRIEF = ["--le_epochs", "1", "--probe_every", "1", "--images_every", "0"]
# The second trial hardly learns, so its loss is larger and it is stopped after one epoch.
STOPPED = ["scheduler=asha", "metric=pretrain/loss", "mode=min", "grace_epochs=1", "reduction_factor=2"]
TUNE = [*STOPPED, "max_concurrent=1", "checkpoint_seconds=0"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A cluster of two nodes, each with one core."""
    with cluster(tmp_path_factory.mktemp("pair"), "--num-cpus=1") as ray:
        ray.join("--num-cpus=1")
        yield ray


def steps(trial):
    """Return the steps of every metric in TensorBoard, as a new reader sees them."""
    read = EventAccumulator(str(trial), size_guidance={"scalars": 0}).Reload()
    return {tag: [point.step for point in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def test_one_on_two_nodes_survives_its_worker_and_another_is_stopped(pair, tmp_path):
    tune = [part for one in TUNE for part in ("--set", f"tune.{one}")]
    many = [*tune, "--set", "resources.workers=2", "--set", "usl_lr=[1e-4,1e-8]", "--address", pair.address]
    running = start(*METHOD, *BRIEF, *many, "--name", "both", cwd=tmp_path, **pair.environment)
    root = tmp_path / "runs" / "both"
    trial = root / "usl_lr=0.0001,seed=0"
    wait_for(lambda: begun(trial) and list(trial.glob("checkpoints/*.json")), running)
    os.kill(json.loads((trial / "attempt.json").read_text())["pid"], signal.SIGKILL)
    out, err = running.communicate(timeout=PATIENCE)
    assert running.returncode == 0, err
    assert ": 2 trials, 1 at a time, each 2 workers with 1 core, on 2 nodes" in out
    assert "attempt 1 broke off; resuming from its last checkpoint (its process died" in out
    assert result(root, "usl_lr=1e-08,seed=0")["status"] == "stopped"
    whole = result(root, "usl_lr=0.0001,seed=0")
    assert (whole["status"], whole["attempts"], whole["warnings"]) == ("finished", 2, [])

    plain = alone(*METHOD, *BRIEF, "--name", "plain", cwd=tmp_path)
    assert plain.returncode == 0, plain.stderr
    # Sums over two half batches are rounded differently, which changes the last digits or the result for one image.
    expected = scores(tmp_path / "runs" / "plain", "seed=0")
    assert scores(root, "usl_lr=0.0001,seed=0") == pytest.approx(expected, rel=0.01, abs=0.015)
    assert whole["metrics"]["pretrain/loss"] == pytest.approx(expected["pretrain/loss"], rel=1e-4)
    assert steps(trial) == steps(tmp_path / "runs" / "plain" / "seed=0")
