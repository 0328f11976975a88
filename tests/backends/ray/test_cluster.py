"""The plan says how many trials a cluster holds and where. Requests that it can never meet are refused.

So is the address of a cluster that does not answer, and an address for Ray's client.
"""

import socket
import subprocess
import sys

import pytest

from raysweep.backends.ray.capacity import plan, room
from raysweep.errors import InputError
from raysweep.space import Resources
from tests.support import PATIENCE
from tests.support.cluster import cluster
from tests.support.commands import on_ray


def node(cpu, gpu=0.0):
    return {"CPU": float(cpu), "memory": 1e9, **({"GPU": float(gpu)} if gpu else {})}


def resources(cpu=1, gpu=0.0, workers=1):
    return Resources.model_construct(cpu=cpu, gpu=gpu, workers=workers)


@pytest.mark.parametrize(
    ("nodes", "request_", "most", "words"),
    [
        ([node(2)], {}, None, "2 at a time on 1 node"),
        ([node(2)], {}, 1, "1 at a time on 1 node"),
        (
            [node(4, 2), node(4)],
            {},
            None,
            "8 at a time on 2 nodes; 2 GPUs are not used (--set resources.gpu=1 gives one to each trial)",
        ),
        (
            [node(2, 1)],
            {"workers": 2},
            None,
            "1 at a time, each 2 workers with 1 core, on 1 node; 1 GPU is not used (--set resources.gpu=1 gives one to "
            "each trial)",
        ),
        ([node(3), node(3)], {"cpu": 2}, None, "2 at a time on 2 nodes"),  # 6 cores, but no node holds two trials
        ([node(0), node(4), node(1)], {"cpu": 2}, 9, "2 at a time on 1 node"),
        ([node(16, 2)], {"gpu": 0.25}, None, "8 at a time: 4 per GPU on 2 GPUs"),
        ([node(16, 2)], {"gpu": 0.3}, None, "6 at a time: 3 per GPU on 2 GPUs"),
        ([node(16, 1), node(16, 1)], {"gpu": 0.4}, None, "4 at a time: 2 per GPU on 2 GPUs of 2 nodes"),
        ([node(16, 2)], {"gpu": 0.25}, 5, "5 at a time: at most 4 per GPU on 2 GPUs"),
        ([node(16, 2)], {"gpu": 0.25}, 2, "2 at a time: at most 2 per GPU on 2 GPUs"),
        ([node(3, 2)], {"gpu": 0.25}, None, "3 at a time: at most 3 per GPU on 2 GPUs (the cores hold no more)"),
        ([node(0, 2), node(16, 1)], {"gpu": 1}, None, "1 at a time: 1 per GPU on 1 GPU (the cores hold no more)"),
        ([node(16, 4)], {"gpu": 1}, None, "4 at a time: 1 per GPU on 4 GPUs"),
        ([node(16, 3), node(16, 3)], {"gpu": 2}, None, "2 at a time, each with 2 GPUs, on 2 nodes"),
        ([node(16, 8)], {"gpu": 1, "workers": 4}, None, "2 at a time, each 4 workers with 1 GPU, on 1 node"),
        ([node(16, 2)] * 3, {"gpu": 1, "workers": 4}, None, "1 at a time, each 4 workers with 1 GPU, on 3 nodes"),
        ([node(4), node(4)], {"cpu": 2, "workers": 2}, None, "2 at a time, each 2 workers with 2 cores, on 2 nodes"),
    ],
)
def test_the_plan_says_how_many_trials_run_where(nodes, request_, most, words):
    assert plan(nodes, resources(**request_), most) == words


@pytest.mark.parametrize(
    ("gpu", "on_one"), [(1 / 3, 3), (0.3333, 3), (0.3334, 3), (0.334, 2), (0.2501, 3), (0.1667, 6), (0.1, 10), (0.7, 1)]
)
def test_a_part_of_a_gpu_is_counted_as_ray_counts_it(gpu, on_one):
    """The expected counts are measured: how many placement groups of this size Ray 2.60 fits on one GPU."""
    assert room([node(99, 1)], resources(gpu=gpu)) == on_one


@pytest.mark.parametrize(
    ("nodes", "request_", "words"),
    [
        (
            [node(4)],
            {"cpu": 8},
            "needs 8 cpu and 0 gpu on one node, but the cluster has 1 node with 4 cpu and 0 gpu up",
        ),
        ([node(4), node(4)], {"gpu": 0.5}, "needs 1 cpu and 0.5 gpu on one node, but the cluster has 2 nodes with 4"),
        ([node(0, 4)], {"gpu": 1}, "1 node with 0 cpu and 4 gpu"),
        ([node(4, 1), node(4, 1)], {"gpu": 2}, "2 gpu on one node, but the cluster has 2 nodes with 4 cpu and 1 gpu"),
        ([node(8, 1), node(8, 2)], {"gpu": 1, "workers": 4}, "needs 4 workers of 1 cpu and 1 gpu, but the cluster has"),
        ([node(n) for n in range(1, 9)], {"cpu": 99}, " and 4 others up"),
        ([], {}, "has no node up"),
    ],
)
def test_what_can_never_run_is_refused_with_what_there_is(nodes, request_, words):
    with pytest.raises(InputError, match="resources: a trial needs ") as refused:
        plan(nodes, resources(**request_))
    assert words in str(refused.value)


def test_an_address_where_no_cluster_answers_is_refused(tmp_path):
    process = on_ray("--usl_type", "simclr", "--address", "127.0.0.1:9", cwd=tmp_path)
    assert process.returncode == 2
    assert "127.0.0.1:9" in process.stderr
    assert len(process.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("given", [{"arguments": ["--address", "ray://h:1"]}, {"RAY_ADDRESS": "ray://h:1"}])
def test_an_address_for_the_client_of_ray_is_refused(refused, given):
    arguments = given.get("arguments", [])
    environment = {name: value for name, value in given.items() if name == "RAY_ADDRESS"}
    for option in ([], ["--dry-run"]):
        line = refused("--usl_type", "simclr", *arguments, *option, **environment)
        assert "ray://h:1: a sweep cannot run through Ray's client" in line
        assert "ray job submit" in line


def test_an_address_on_the_command_line_counts_more_than_the_environment(refused):
    line = refused("--usl_type", "simclr", "--address", "127.0.0.1:9", RAY_ADDRESS="ray://h:1")
    assert "127.0.0.1:9" in line
    assert "ray://" not in line


THROUGH_A_CLIENT = """
import sys
import ray, raysweep
while not ray.is_initialized():
    try:
        ray.init(sys.argv[1], logging_level="ERROR")
    except ConnectionError as fault:  # on a busy machine, the 30 s that Ray gives its server are too short
        print(fault, file=sys.stderr)
try:
    raysweep.run({"base": {"usl_type": "simclr"}}, output="runs")
except raysweep.RaysweepError as fault:
    print(fault)
"""


@pytest.mark.slow
def test_a_process_that_is_a_client_of_ray_is_refused(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with cluster(tmp_path, "--num-cpus=1", f"--ray-client-server-port={port}") as one:
        process = subprocess.run(
            [sys.executable, "-c", THROUGH_A_CLIENT, f"ray://127.0.0.1:{port}"],
            cwd=tmp_path,
            env={**one.environment, "RAY_AUTH_MODE": "token"},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    assert process.stdout.startswith("Ray is initialised in this process as a client"), process.stderr
    assert not (tmp_path / "runs").exists()
