"""The real command on several Ray nodes, each a raylet of its own, one of which does not see the others' disk."""

import json
import logging
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import boto3
import numpy as np
import pytest
from moto.server import ThreadedMotoServer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import ROOT
from tests.sweep.nodes import RAY, cluster, descendants, lose, wait_for
from tests.sweep.test_command import result
from tests.sweep.test_sharing import place_in_memory

pytestmark = pytest.mark.cluster
BRIEF = ["--le_epochs", "3", "--probe_every", "0", "--images_every", "0", "--projector_images", "0"]
NO_CUDA = "resources.gpu gives the trial a GPU, but PyTorch sees none: it ran on the CPU"
LOST = "its process died (killed, out of memory, or its node was lost)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("nodes")
    (made / "private").mkdir()
    return made


@pytest.fixture(scope="module")
def server():
    """The address of an S3 server."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for every request
    running = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture(scope="module")
def ray(folder, server):
    """A cluster of one node with a logical GPU, to which others may be joined."""
    credentials = {"AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    own = {**credentials, "AWS_ENDPOINT_URL": server, "RAYSWEEP_CACHE": str(folder / "private" / "cache")}
    with cluster(folder, "--num-cpus=6", "--num-gpus=1", **own) as one:
        yield one


@pytest.fixture(scope="module")
def second(ray, folder):
    """A second node like the first, which has another disk at `folder/private`."""
    mount = f'mount -t tmpfs tmpfs "{folder}/private" && exec "$@"'
    within = ["unshare", "--mount", "sh", "-c", mount, "sh"]
    try:
        subprocess.run([*within, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs to mount a file system for a process alone (unshare --mount)")
    return ray.join("--num-cpus=6", "--num-gpus=1", within=within)


def start(ray, *arguments, cwd, **environment):
    """The real command on the cluster, running; what it says goes to the files `out` and `err`."""
    program = [sys.executable, str(ROOT / "run_sweep.py"), *BRIEF, "--name", "x", "--address", ray.address, *arguments]
    with open(cwd / "out", "w") as out, open(cwd / "err", "w") as err:
        return subprocess.Popen(program, cwd=cwd, env={**ray.environment, **environment}, stdout=out, stderr=err)


def ended(process, cwd):
    """Its exit status once it has ended, and what it said."""
    status = process.wait(timeout=240)
    return status, (cwd / "out").read_text(), (cwd / "err").read_text()


def attempt(trial):
    return json.loads((trial / "attempt.json").read_text())


def at_work(trial, node):
    """Whether the trial is at work on the node, and has a checkpoint."""
    return list(trial.glob("checkpoints/*.json")) and attempt(trial)["pid"] in descendants(node.pid)


def steps(trial):
    events = EventAccumulator(str(trial), size_guidance={"scalars": 0}).Reload()
    return [event.step for event in events.Scalars("pretrain/loss")]


def test_trials_of_lost_nodes_go_on_from_their_checkpoints_on_nodes_that_join(ray, tmp_path):
    one = ray.join("--num-cpus=1", "--num-gpus=2")
    sweep = ["--usl_epochs", "60", "--set", "seed=[0, 1]", "--set", "resources.gpu=2"]
    sweep += ["--set", "tune.checkpoint_seconds=0"]
    process = start(ray, *sweep, cwd=tmp_path, TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S="2")
    trials = [tmp_path / "runs" / "x" / f"seed={seed}" for seed in (0, 1)]
    wait_for(lambda: at_work(trials[0], one), process)
    assert not trials[1].exists()

    other = ray.join("--num-cpus=1", "--num-gpus=2")
    wait_for(lambda: at_work(trials[1], other), process)
    assert at_work(trials[0], one)

    for node in (one, other):
        lose(node)
    wait_for(lambda: "warning: no trial runs: none of the nodes" in (tmp_path / "err").read_text(), process)

    last = ray.join("--num-cpus=2", "--num-gpus=4")
    wait_for(lambda: all(at_work(trial, last) and attempt(trial)["attempt"] == 2 for trial in trials), process)
    status, out, err = ended(process, tmp_path)
    lose(last)
    assert status == 0, err
    assert ": 2 trials, 1 at a time, each with 2 GPUs, on 1 node\n" in out
    for trial in trials:
        assert f"{trial.name}: attempt 1 broke off; going on from its last checkpoint ({LOST})" in out
        assert result(trial.parent, trial.name)["attempts"] == 2
        assert steps(trial) == list(range(1, 61))


def test_trials_spread_over_nodes_and_gpus_into_one_directory(ray, second, tmp_path):
    sweep = ["--usl_epochs", "1", "--set", f"seed={list(range(12))}", "--set", "resources.gpu=0.25"]
    process = start(ray, *sweep, cwd=tmp_path)
    root, others = tmp_path / "runs" / "x", set()
    while process.poll() is None:
        others |= descendants(second.pid).keys()
        time.sleep(0.2)
    status, out, err = ended(process, tmp_path)
    assert status == 0, err
    assert ": 12 trials, 8 at a time: 4 per GPU on 2 GPUs of 2 nodes\n" in out
    assert err == "1 warning(s), listed in runs/x/summary.md\n"

    changes = []
    for seed in range(12):
        ended_as, begun = result(root, f"seed={seed}"), attempt(root / f"seed={seed}")
        assert (ended_as["status"], ended_as["device"], ended_as["warnings"]) == ("finished", "cpu", [NO_CUDA])
        assert begun["gpus"] == "0", "each node has one"
        node = "second" if begun["pid"] in others else "first"
        changes += [(begun["started"], 1, node), ((root / f"seed={seed}" / "result.json").stat().st_mtime, -1, node)]
    most, now = Counter(), Counter()
    for _, change, node in sorted(changes):
        now[node] += change
        most[node] = max(most[node], now[node])
    assert set(most) == {"first", "second"}
    assert max(most.values()) <= 4
    assert (root / "results.csv").read_text().count(",cpu") == 12


COPIES = 8


def note_copy(config, datasets, folder):
    """A trainable that notes where it runs and where the dataset lies in its memory, while the others do so too."""
    import ray
    from ray import tune

    from raysweep import inputs

    trial = config["trial"]
    images = inputs.pick(trial.settings, datasets).pretrain
    assert int(images.sum()) > 0, "it is read"
    where = [ray.get_runtime_context().get_node_id(), ray.get_gpu_ids(), place_in_memory(images.ctypes.data)]
    Path(folder, f"{trial.name}.json.new").write_text(json.dumps(where))
    Path(folder, f"{trial.name}.json.new").rename(Path(folder, f"{trial.name}.json"))
    end = time.monotonic() + 60
    while len(list(Path(folder).glob("*.json"))) < COPIES and time.monotonic() < end:
        time.sleep(0.05)
    tune.report({"share": 1.0})


def note_copies(address, folder):
    """Run as many trials of it as four on each of two GPUs; the driver of the test below."""
    from raysweep import space
    from raysweep.data import Dataset
    from raysweep.sweep import cluster, tuner

    images = np.random.default_rng(0).integers(0, 256, (5000, 3, 32, 32), dtype=np.uint8)
    dataset = Dataset("x", ("a", "b"), images, np.arange(5000) % 2, images[:2], np.arange(2), None, "x")
    asked = {"base": {"dataset": "cifar10"}, "search": {"seed": list(range(COPIES))}, "resources": {"gpu": 0.25}}
    sweep = space.build(asked, {}, "test")
    print(cluster.connect(address, sweep.resources))
    trainable = tuner.shared(note_copy, {"datasets": {("cifar10", 32, None): dataset}, "folder": folder}, sweep)
    tuner.make_tuner(trainable, sweep, sweep.trials, Path(folder, "results")).fit()


def test_each_node_receives_the_dataset_once(ray, second, tmp_path):
    driver = f"from tests.sweep import test_nodes; test_nodes.note_copies({ray.address!r}, {str(tmp_path)!r})"
    environment = {**ray.environment, "RAY_AUTH_MODE": "token"}
    done = subprocess.run(
        [sys.executable, "-c", driver], env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "8 at a time: 4 per GPU on 2 GPUs of 2 nodes\n" in done.stdout
    notes = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    assert sorted(Counter((node, tuple(gpus)) for node, gpus, _ in notes).values()) == [4, 4], "at the same time"
    assert sorted(Counter(place for _, _, place in notes).values()) == [4, 4]
    assert len({(node, place) for node, _, place in notes}) == 2, "the trials of a node read one copy"


def test_a_directory_that_a_node_does_not_see_is_refused_before_anything_starts(ray, second, folder, tmp_path):
    process = start(ray, "--output", str(folder / "private"), cwd=tmp_path)
    status, out, err = ended(process, tmp_path)
    assert (status, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert "does not see it; give a directory that all nodes share, such as an NFS mount, or a bucket (s3://…)" in err
    assert not list((folder / "private").rglob("sweep.yaml"))


def test_nodes_that_share_only_a_bucket_bring_results_together(ray, second, server, folder, tmp_path, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, ray.environment[name])
    client = boto3.client("s3", endpoint_url=server)
    client.create_bucket(Bucket="results")
    sweep = ["--usl_epochs", "2", "--set", "seed=[0, 1]", "--set", "resources.gpu=1", "--output", "s3://results/runs"]
    process = start(ray, *sweep, cwd=tmp_path, RAYSWEEP_CACHE=str(tmp_path / "driver"))
    status, out, err = ended(process, tmp_path)
    assert status == 0, err
    assert "2 at a time: 1 per GPU on 2 GPUs of 2 nodes" in out
    there = {each["Key"] for each in client.list_objects_v2(Bucket="results", Prefix="runs/x/")["Contents"]}
    for name in ("encoder.pt", "result.json", "events.out.tfevents.0001.raysweep"):
        assert {f"runs/x/seed={seed}/{name}" for seed in (0, 1)} <= there
    assert "runs/x/summary.md" in there
    seen = {path.parent.name for path in (folder / "private" / "cache").rglob("events.out.*")}
    assert len(seen) == 1, "the other trial ran where this disk is not seen"


def test_who_has_not_the_token_is_refused_and_told_where_it_is(ray, folder, tmp_path):
    stranger = {**ray.environment, "HOME": str(tmp_path), "RAY_NUM_REDIS_GET_RETRIES": "1"}
    node = [*RAY, "start", f"--address={ray.address}", "--node-ip-address=127.0.0.99", "--block"]
    joining = subprocess.Popen(node, env=stranger, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    sweeps = {}
    for case, own in {
        "none": {},
        "wrong": {"RAY_AUTH_TOKEN": "0" * 64},
        "none, asked for": {"RAY_AUTH_MODE": "token"},
    }.items():
        (tmp_path / case).mkdir()
        sweeps[case] = start(ray, cwd=tmp_path / case, HOME=str(tmp_path), **own)
    for case, process in sweeps.items():
        status, out, err = ended(process, tmp_path / case)
        assert (status, out) == (2, ""), case
        assert err == (
            f"error: the Ray cluster at {ray.address} wants its own token: write what `ray get-auth-token` prints on "
            f"its head node to ~/.ray/auth_token here, or set RAY_AUTH_TOKEN to it\n"
        )
        assert not (tmp_path / case / "runs").exists()
    said, _ = joining.communicate(timeout=60)
    assert joining.returncode != 0
    assert "AuthenticationError" in said
    assert os.path.exists(folder / "home" / ".ray" / "auth_token")
