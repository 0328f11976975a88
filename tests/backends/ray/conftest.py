"""Fixtures of the tests of sweeps on Ray."""

import logging
import subprocess

import pytest
from moto.server import ThreadedMotoServer

from tests.support.cluster import cluster
from tests.support.commands import flags
from tests.support.nodes import NODE


@pytest.fixture(scope="session")
def few_flags(few):
    """The arguments for a sweep on few images."""
    return flags(few)


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
    """A cluster of one node with three cores and a logical GPU; tests may join more nodes."""
    credentials = {"AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    environment = {**credentials, "AWS_ENDPOINT_URL": server, "RAYSWEEP_CACHE": str(folder / "private" / "cache")}
    with cluster(folder, *NODE, **environment) as one:
        yield one


@pytest.fixture(scope="module")
def second(ray, folder):
    """A second node like the first, with a different disk at `folder/private` if this machine allows it."""
    mount = f'mount -t tmpfs tmpfs "{folder}/private" && exec "$@"'
    within = ["unshare", "--mount", "sh", "-c", mount, "sh"]
    try:
        subprocess.run([*within, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        within = []
    node = ray.join(*NODE, within=within)
    node.has_own_disk = bool(within)
    return node


@pytest.fixture(scope="module")
def own_disk(second):
    """Skip a test if the second node has the disk of the first."""
    if not second.has_own_disk:
        pytest.skip("needs to mount a file system for a process alone (unshare --mount)")
