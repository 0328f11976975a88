"""The real command on several Ray nodes, each with its own raylet. One node does not see the others' disk."""

import inspect
import json
import os
import subprocess
import time
from collections import Counter

import boto3
import pytest

from tests.support import PATIENCE, forked
from tests.support.cluster import RAY, descendants, lose, wait_for
from tests.support.commands import alone, flags, result
from tests.support.copies import place_in_memory
from tests.support.gate import Gate
from tests.support.nodes import BRIEF, LOST, actors, ended, start, steps
from tests.support.racing import race_of

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
LARGE = ["--num-cpus=1", "--num-gpus=2"]  # the only nodes for trials with two GPUs
NO_CUDA = "resources.gpu gives the trial a GPU, but PyTorch sees none: it ran on the CPU"
WAITING = "no running node has room for a trial; waiting for another node\n"


PLUGIN = """
import json
import os
import time
from pathlib import Path

import raysweep

NOTES, FILE = Path({notes!r}), {file!r}

{place_in_memory}

@raysweep.loss
def gap(z1, z2):
    return (z1 - z2).square().mean()


@raysweep.probe(metrics={{"met/trials": raysweep.Metric("The number of trials that run at the same time.")}})
def met(evaluation):
    if "DRIVER" in os.environ:  # the check before the sweep
        yield "met/trials", 0.0
        return
    note = dict(
        time=time.time(),
        pid=os.getpid(),
        gpus=os.environ["CUDA_VISIBLE_DEVICES"],
        sees_file=os.path.exists(FILE),
        place=place_in_memory(evaluation.splits["fit"].images.data_ptr()),
    )
    begun = NOTES / f"begun-{{evaluation.settings.seed}}"
    begun.write_text("")
    while not (NOTES / "open").exists():
        time.sleep(0.05)
    note["running"] = len(list(NOTES.glob("begun-?"))) - len(list(NOTES.glob("*.json")))
    begun.with_suffix(".json").write_text(json.dumps(note))
    yield "met/trials", float(note["running"])
"""


@pytest.fixture(scope="module")
def halves(ray, own_disk, server, folder, tmp_path_factory):
    """A sweep whose trials take half a GPU each, on both nodes; its results go to a bucket.

    Returns:
        The output of the command, the client of the bucket, and what each trial noted, in the order of their start.
    """
    directory = tmp_path_factory.mktemp("halves")
    notes, file = directory / "notes", folder / "private" / "gap.py"
    notes.mkdir()
    source = inspect.getsource(place_in_memory)
    file.write_text(PLUGIN.format(notes=str(notes), file=str(file), place_in_memory=source))
    keys = {name.lower(): ray.environment[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    client = boto3.client("s3", endpoint_url=server, region_name=ray.environment["AWS_DEFAULT_REGION"], **keys)
    client.create_bucket(Bucket="results")
    # The images of all digits take more than 100 KiB, so Ray passes them through shared memory.
    settings = {**BRIEF, "probe_every": 0, "usl_epochs": 1, "emb_loss": "gap"}
    sweep = [*flags(settings), "--plugin", str(file), "--output", "s3://results/runs"]
    sweep += ["--set", f"seed={list(range(5))}", "--set", "resources.gpu=0.5"]
    process = start(ray, *sweep, cwd=directory, DRIVER="1", RAYSWEEP_CACHE=str(directory / "driver"))
    wait_for(lambda: actors("ImplicitFunc"), process)
    first = time.monotonic()
    wait_for(lambda: len(list(notes.glob("begun-?"))) >= 4, process)
    time.sleep(time.monotonic() - first)  # a trial too many would begin now, because it needs as long as the others
    (notes / "open").touch()
    status, out, err = ended(process, directory)
    assert status == 0, err
    by_seed = {int(path.stem.split("-")[1]): json.loads(path.read_text()) for path in notes.glob("*.json")}
    return out, client, dict(sorted(by_seed.items(), key=lambda item: item[1]["time"]))


def test_half_of_a_gpu_puts_two_trials_on_each(halves):
    out, client, notes = halves
    assert ": 5 trials, 4 at a time: 2 per GPU on 2 GPUs of 2 nodes\n" in out
    assert max(note["running"] for note in notes.values()) == 4
    first = list(notes.items())[:4]
    assert Counter((note["sees_file"], note["gpus"]) for _, note in first) == {(True, "0"): 2, (False, "0"): 2}
    for seed, note in notes.items():
        recorded = client.get_object(Bucket="results", Key=f"runs/x/seed={seed}/attempt.json")["Body"].read()
        assert {name: json.loads(recorded)[name] for name in ("pid", "gpus")} == {"pid": note["pid"], "gpus": "0"}


def test_each_node_receives_the_dataset_once(halves):
    *_, notes = halves
    assert all(note["place"] for note in notes.values()), "the images are mapped, not copied"
    assert len({(note["sees_file"], note["place"]) for note in notes.values()}) == 2, "a node's trials read one copy"
    assert len({note["place"] for note in notes.values()}) == 2, "each node has its own copy"


def test_nodes_that_share_only_a_bucket_bring_results_together(halves, folder):
    _, client, notes = halves
    keys = {each["Key"] for each in client.list_objects_v2(Bucket="results", Prefix="runs/x/")["Contents"]}
    for name in ("encoder.safetensors", "result.json", "events.out.tfevents.0001.raysweep"):
        assert {f"runs/x/seed={seed}/{name}" for seed in range(5)} <= keys
    assert "runs/x/summary.md" in keys
    seen = {path.parent.name for path in (folder / "private" / "cache").rglob("events.out.*")}
    on_first = {f"seed={seed}" for seed, note in notes.items() if note["sees_file"]}
    assert seen & {f"seed={seed}" for seed in notes} == on_first, "the other node does not see this disk"


def test_a_node_that_does_not_see_a_plugin_gets_its_text(halves):
    *_, notes = halves
    assert {note["sees_file"] for note in notes.values()} == {True, False}, "a worker of each node has run the plugin"


def test_a_race_on_nodes_that_share_only_a_bucket_makes_the_decisions_of_one_process(
    ray, own_disk, server, folder, few, tmp_path
):
    keys = {name.lower(): ray.environment[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    client = boto3.client("s3", endpoint_url=server, region_name=ray.environment["AWS_DEFAULT_REGION"], **keys)
    client.create_bucket(Bucket="races")
    (tmp_path / "race.yaml").write_text(json.dumps(race_of(few, most=4)))
    race = ["race.yaml", "--set", "resources.gpu=1", "--output", "s3://races/runs"]
    process = start(ray, *race, cwd=tmp_path, RAYSWEEP_CACHE=str(tmp_path / "driver"))
    here = alone("race.yaml", "--name", "here", cwd=tmp_path)
    assert here.returncode == 0, here.stderr
    root = tmp_path / "runs" / "here"
    status, out, err = ended(process, tmp_path)
    assert status == 0, err
    assert "2 at a time: 1 per GPU on 2 GPUs of 2 nodes" in out
    rounds = json.loads((root / "race.json").read_text())["rounds"]
    assert out.count("which are not separated yet") == len(rounds) > 0
    for name in ("race.json", "differences.csv"):
        written = client.get_object(Bucket="races", Key=f"runs/x/{name}")["Body"].read().decode()
        assert written == (root / name).read_text(), name
    trials = {path.parent.name for path in root.glob("*/result.json")}
    seen = {path.parent.name for path in (folder / "private" / "cache").rglob("events.out.*")} & trials
    assert 0 < len(seen) < len(trials), "the other trials ran on the node that does not see this disk"


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
import sys

sys.path.insert(0, PRIVATE)

from raysweep import api
from raysweep.errors import InputError
from their_losses import gap

content = {"name": "x", "base": BASE, "search": {"seed": [0, 1]}, "resources": {"gpu": 1}}
try:
    api.run(content, output=PRIVATE, options=api.RunOptions(address=ADDRESS), parts=[gap])
except InputError as fault:
    print(fault)
outcome = api.run(content, parts=[gap])
assert {result.status for member in outcome.report.members for result in member.results} == {"finished"}
"""


@pytest.fixture(scope="module")
def program(ray, own_disk, folder, few, tmp_path_factory):
    """A program that runs sweeps on both nodes: its completed process, and the notes of its part."""
    directory = tmp_path_factory.mktemp("program")
    (directory / "notes").mkdir()
    file = folder / "private" / "their_losses.py"
    file.write_text(PART.format(notes=directory / "notes", file=file))
    base = {**few, **BRIEF, "probe_every": 0, "usl_epochs": 1, "emb_loss": "gap"}
    program = PROGRAM
    for name, value in {"ADDRESS": ray.address, "BASE": base, "PRIVATE": str(file.parent)}.items():
        program = program.replace(name, repr(value))
    process = forked.run("-c", program, cwd=directory, environment=ray.environment)
    return process, {path.read_text() for path in (directory / "notes").iterdir()}


def test_a_directory_that_a_node_does_not_see_is_refused_before_anything_starts(program, folder):
    process, _ = program
    assert len(process.stdout.splitlines()) == 1
    assert (
        "does not see it; give a directory that all nodes share, such as an NFS mount, or a bucket (s3://…)"
    ) in process.stdout
    assert not list((folder / "private").rglob("sweep.yaml"))


def test_a_part_of_a_module_that_a_node_lacks_is_passed_by_value(program):
    process, notes = program
    assert process.returncode == 0, process.stderr
    assert notes == {"True", "False"}, "a worker of each node has called the part"


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
        sweeps[case] = start(ray, "--usl_epochs", "0", cwd=tmp_path / case, HOME=str(tmp_path), **environment)
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


def test_trials_of_lost_nodes_go_on_from_their_checkpoints_on_a_node_that_joins(ray, few, tmp_path):
    """A trial that waits starts on a second node as soon as this joins. Then both nodes are lost."""
    one, gate = ray.join(*LARGE), Gate(tmp_path, step=10)
    sweep = [*flags({**few, **BRIEF, "probe_every": 0, "usl_epochs": 6}), *gate.arguments]
    sweep += ["--set", "seed=[0, 1]", "--set", "resources.gpu=2", "--set", "tune.checkpoint_seconds=0"]
    process = start(ray, *sweep, cwd=tmp_path)
    root = tmp_path / "runs" / "x"
    first = set(gate.wait(process))
    assert first <= descendants(one.pid).keys()
    assert not (root / "seed=1").exists()
    other = ray.join(*LARGE)
    both = set(gate.wait(process, trials=2))
    assert both - first <= descendants(other.pid).keys()
    lose(one)
    lose(other)
    wait_for(lambda: WAITING in (tmp_path / "out").read_text(), process)

    last = ray.join(*LARGE)
    assert set(gate.wait(process)) <= descendants(last.pid).keys()
    gate.open()
    status, out, err = ended(process, tmp_path)
    lose(last)
    assert status == 0, err
    assert ": 2 trials, 1 at a time, each with 2 GPUs, on 1 node\n" in out
    for trial in ("seed=0", "seed=1"):
        assert f"{trial}: attempt 1 broke off; resuming from its last checkpoint ({LOST})" in out
        assert steps(root / trial)["pretrain/loss"] == list(range(1, 7))
        trial_result = result(root, trial)
        expected = (2, "cpu", [NO_CUDA])
        assert (trial_result["attempts"], trial_result["device"], trial_result["warnings"]) == expected
    assert out.count(WAITING) == 1
    assert err == "1 warning(s), listed in runs/x/summary.md\n"
