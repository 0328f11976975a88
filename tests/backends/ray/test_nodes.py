"""The real command on several Ray nodes, each with its own raylet. One node does not see the others' disk."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import boto3
import pytest
from moto.server import ThreadedMotoServer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.support import PATIENCE, ROOT
from tests.support.cluster import RAY, cluster, descendants, lose, wait_for
from tests.support.commands import result

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
BRIEF = ["--le_epochs", "3", "--probe_every", "0", "--images_every", "0", "--projector_images", "0"]
NO_CUDA = "resources.gpu gives the trial a GPU, but PyTorch sees none: it ran on the CPU"
WAITING = "no node that is up has room for a trial: waiting until one joins\n"
LOST = "its process died (killed, out of memory, or its node was lost)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    directory = tmp_path_factory.mktemp("nodes")
    (directory / "private").mkdir()
    return directory


@pytest.fixture(scope="module")
def server():
    """The address of an S3 server."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it logs a line for every request
    running = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture(scope="module")
def ray(folder, server):
    """A cluster of one node with a logical GPU; tests may join more nodes."""
    credentials = {"AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    environment = {**credentials, "AWS_ENDPOINT_URL": server, "RAYSWEEP_CACHE": str(folder / "private" / "cache")}
    with cluster(folder, "--num-cpus=6", "--num-gpus=1", **environment) as one:
        yield one


@pytest.fixture(scope="module")
def second(ray, folder):
    """A second node like the first, with a different disk at `folder/private`."""
    mount = f'mount -t tmpfs tmpfs "{folder}/private" && exec "$@"'
    within = ["unshare", "--mount", "sh", "-c", mount, "sh"]
    try:
        subprocess.run([*within, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs to mount a file system for a process alone (unshare --mount)")
    return ray.join("--num-cpus=6", "--num-gpus=1", within=within)


def start(ray, *arguments, cwd, **environment):
    """Start the real command on the cluster; its output goes to the files `out` and `err`."""
    program = [sys.executable, str(ROOT / "run_sweep.py"), *BRIEF, "--name", "x", "--address", ray.address, *arguments]
    with open(cwd / "out", "w") as out, open(cwd / "err", "w") as err:
        return subprocess.Popen(program, cwd=cwd, env={**ray.environment, **environment}, stdout=out, stderr=err)


def ended(process, cwd):
    """Wait for the process; return its exit status, stdout and stderr."""
    status = process.wait(timeout=PATIENCE)
    return status, (cwd / "out").read_text(), (cwd / "err").read_text()


def attempt(trial):
    return json.loads((trial / "attempt.json").read_text())


def runs_on(trial, node):
    """Return whether the trial is running on the node."""
    return (trial / "attempt.json").exists() and attempt(trial)["pid"] in descendants(node.pid)


def freeze(trial, process):
    """Suspend a running trial once it has a checkpoint, so that it has not ended when its node dies."""
    wait_for(lambda: list(trial.glob("checkpoints/*.json")), process)
    os.kill(attempt(trial)["pid"], signal.SIGSTOP)


def steps(trial):
    events = EventAccumulator(str(trial), size_guidance={"scalars": 0}).Reload()
    return [event.step for event in events.Scalars("pretrain/loss")]


def test_trials_of_lost_nodes_go_on_from_their_checkpoints_on_nodes_that_join(ray, tmp_path):
    one = ray.join("--num-cpus=1", "--num-gpus=2")
    sweep = ["--usl_epochs", "6", "--set", "seed=[0, 1]", "--set", "resources.gpu=2"]
    sweep += ["--set", "tune.checkpoint_seconds=0"]
    process = start(ray, *sweep, cwd=tmp_path)
    root = tmp_path / "runs" / "x"
    first, waiting = root / "seed=0", root / "seed=1"
    wait_for(lambda: runs_on(first, one), process)
    freeze(first, process)
    assert not waiting.exists()

    other = ray.join("--num-cpus=1", "--num-gpus=2")
    wait_for(lambda: runs_on(waiting, other), process)
    freeze(waiting, process)

    for node in (one, other):
        lose(node)
    wait_for(lambda: WAITING in (tmp_path / "out").read_text(), process)

    last = ray.join("--num-cpus=2", "--num-gpus=4")
    on_last = set()
    while process.poll() is None:
        on_last |= descendants(last.pid).keys()
        time.sleep(0.1)
    status, out, err = ended(process, tmp_path)
    lose(last)
    assert status == 0, err
    assert ": 2 trials, 1 at a time, each with 2 GPUs, on 1 node\n" in out
    for trial in (first, waiting):
        assert f"{trial.name}: attempt 1 broke off; resuming from its last checkpoint ({LOST})" in out
        assert attempt(trial)["pid"] in on_last
        assert steps(trial) == list(range(1, 7))
        trial_result = result(root, trial.name)
        assert (trial_result["attempts"], trial_result["device"], trial_result["warnings"]) == (2, "cpu", [NO_CUDA])
    assert out.count(WAITING) == 1
    assert err == "1 warning(s), listed in runs/x/summary.md\n"


def test_half_of_a_gpu_puts_two_trials_on_each(ray, second, tmp_path):
    sweep = ["--usl_epochs", "100000", "--set", f"seed={list(range(6))}", "--set", "resources.gpu=0.5"]
    process = start(ray, *sweep, cwd=tmp_path)
    root = tmp_path / "runs" / "x"
    try:
        wait_for(lambda: len(list(root.glob("*/attempt.json"))) >= 4, process)
        time.sleep(1)
        begun = [attempt(path.parent) for path in root.glob("*/attempt.json")]
        pids = descendants(second.pid)
    finally:
        process.kill()
    _, out, _ = ended(process, tmp_path)
    assert ": 6 trials, 4 at a time: 2 per GPU on 2 GPUs of 2 nodes\n" in out
    assert Counter((each["pid"] in pids, each["gpus"]) for each in begun) == {(True, "0"): 2, (False, "0"): 2}


def test_each_node_receives_the_dataset_once(ray, second, tmp_path):
    program = [sys.executable, "-m", "tests.support.copies", ray.address, str(tmp_path)]
    environment = {**ray.environment, "RAY_AUTH_MODE": "token"}
    process = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith("4 at a time: 2 per GPU on 2 GPUs of 2 nodes\n")
    notes = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    assert sorted(Counter((node, *gpus) for node, gpus, _ in notes).values()) == [2, 2], (
        "two trials run on each GPU at the same time"
    )
    assert len({(node, place) for node, _, place in notes}) == 2, "the trials of a node read one copy"
    assert len({place for _, _, place in notes}) == 2, "each node has its own copy"


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
    keys = {each["Key"] for each in client.list_objects_v2(Bucket="results", Prefix="runs/x/")["Contents"]}
    for name in ("encoder.safetensors", "result.json", "events.out.tfevents.0001.raysweep"):
        assert {f"runs/x/seed={seed}/{name}" for seed in (0, 1)} <= keys
    assert "runs/x/summary.md" in keys
    seen = {path.parent.name for path in (folder / "private" / "cache").rglob("events.out.*")}
    assert len(seen) == 1, "the other trial ran on the node that does not see this disk"


PLUGIN = """
import os
from pathlib import Path

import raysweep

Path("{notes}", str(os.getpid())).write_text(str(os.path.exists("{file}")))

@raysweep.loss
def gap(z1, z2):
    return (z1 - z2).square().mean()
"""
PART = """
import os
from pathlib import Path

import raysweep

def note():
    Path("{notes}", str(os.getpid())).write_text(str(os.path.exists("{file}")))

@raysweep.loss
def gap(z1, z2):
    note()
    return (z1 - z2).square().mean()
"""
PROGRAM = """
from raysweep import api
from their_losses import gap

base = {"usl_epochs": 1, "le_epochs": 1, "probe_every": 0, "images_every": 0, "emb_loss": "gap"}
content = {"name": "x", "base": base, "search": {"seed": [0, 1]}, "resources": {"gpu": 1}}
outcome = api.run(content, where=api.Where(address=ADDRESS), parts=[gap])
assert {result.status for member in outcome.report.members for result in member.results} == {"finished"}
"""


def notes_of(folder):
    return {path.read_text() for path in folder.iterdir()}


def test_a_node_that_does_not_see_a_plugin_gets_its_text(ray, second, folder, tmp_path):
    (tmp_path / "notes").mkdir()
    file = folder / "private" / "gap.py"
    file.write_text(PLUGIN.format(notes=tmp_path / "notes", file=file))
    sweep = ["--usl_epochs", "1", "--set", "seed=[0, 1]", "--set", "resources.gpu=1", "--emb_loss", "gap"]
    process = start(ray, "--plugin", str(file), *sweep, cwd=tmp_path)
    status, _, err = ended(process, tmp_path)
    assert status == 0, err
    assert notes_of(tmp_path / "notes") == {"True", "False"}, "a worker of each node has run the plugin"


def test_a_part_of_a_module_that_a_node_lacks_is_passed_by_value(ray, second, folder, tmp_path):
    (tmp_path / "notes").mkdir()
    file = folder / "private" / "their_losses.py"
    file.write_text(PART.format(notes=tmp_path / "notes", file=file))
    program = [sys.executable, "-c", PROGRAM.replace("ADDRESS", repr(ray.address))]
    paths = {"PYTHONPATH": f"{ROOT}:{file.parent}"}
    process = subprocess.run(
        program, cwd=tmp_path, env={**ray.environment, **paths}, capture_output=True, text=True, timeout=PATIENCE
    )
    assert process.returncode == 0, process.stderr
    assert notes_of(tmp_path / "notes") == {"True", "False"}, "a worker of each node has called the part"


def test_who_has_not_the_token_is_refused_and_told_where_it_is(ray, folder, tmp_path):
    stranger = {**ray.environment, "HOME": str(tmp_path), "RAY_NUM_REDIS_GET_RETRIES": "1"}
    node = [*RAY, "start", f"--address={ray.address}", "--node-ip-address=127.0.0.99", "--block"]
    joining = subprocess.Popen(node, env=stranger, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    sweeps = {}
    for case, environment in {
        "none": {},
        "wrong": {"RAY_AUTH_TOKEN": "0" * 64},
        "none, asked for": {"RAY_AUTH_MODE": "token"},
    }.items():
        (tmp_path / case).mkdir()
        sweeps[case] = start(ray, cwd=tmp_path / case, HOME=str(tmp_path), **environment)
    for case, process in sweeps.items():
        status, out, err = ended(process, tmp_path / case)
        assert (status, out) == (2, ""), case
        assert err == (
            f"error: the Ray cluster at {ray.address} needs its own token: run `ray get-auth-token` on its head node, "
            f"and write the output to ~/.ray/auth_token on this machine, or into RAY_AUTH_TOKEN\n"
        )
        assert not (tmp_path / case / "runs").exists()
    output, _ = joining.communicate(timeout=PATIENCE)
    assert joining.returncode != 0
    assert "AuthenticationError" in output
    assert os.path.exists(folder / "home" / ".ray" / "auth_token")
