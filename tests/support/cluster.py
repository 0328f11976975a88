"""Ray clusters of several nodes on this machine, made by `ray start`, for tests."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support import ROOT

RAY = [sys.executable, "-m", "ray.scripts.scripts"]
USERS_OWN = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS")


class Cluster:
    """A Ray cluster.

    Args:
        folder: where its user, who never used Ray before, has a home.
        environment: what all of it has besides, in its environment.
    """

    def __init__(self, folder, **environment):
        home = folder / "home"
        home.mkdir()
        self.environment = {name: of for name, of in os.environ.items() if name not in USERS_OWN}
        self.environment |= {"HOME": str(home), "PYTHONPATH": str(ROOT), **environment}
        self.environment["RAY_health_check_period_ms"] = "500"  # a lost node is soon missed
        subprocess.run([*RAY, "get-auth-token", "--generate"], env=self.environment, check=True, capture_output=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self.nodes, self.folder = [], folder

    def _start(self, *options, within=(), **environment):
        said = self.folder / f"node-{len(self.nodes)}"
        with open(said, "w") as out:
            node = subprocess.Popen(
                [*within, *RAY, "start", *options, "--block"],
                # Without the mode one that joins sends no token.
                env={**self.environment, "PYTHONUNBUFFERED": "1", "RAY_AUTH_MODE": "token", **environment},
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        node.is_up = lambda: "Ray runtime started" in said.read_text()
        self.nodes.append(node)
        return node

    def lead(self, *options):
        """The head node, once it answers."""
        own = ("--node-ip-address=127.0.0.1", f"--port={self.port}", "--include-dashboard=false")
        head = self._start("--head", *own, *options)
        wait_for(head.is_up, head)
        return head

    def join(self, *options, **how):
        """Another node, as on a machine of its own, once it has joined.

        It is run by the program `within`, with these changes to its environment.
        """
        ip = f"127.0.0.{len(self.nodes) + 1}"
        node = self._start(f"--address={self.address}", f"--node-ip-address={ip}", *options, **how)
        wait_for(node.is_up, node)
        return node

    def end(self):
        """End all nodes, the head last. At once: in good order Ray takes 15 s for each."""
        for node in reversed(self.nodes):
            lose(node)
            node.kill()
            node.wait(60)


@contextmanager
def cluster(folder, *options, **environment):
    """A `Cluster` with a head node, of these options, for as long as it is used."""
    made = Cluster(folder, **environment)
    try:
        made.lead(*options)
        yield made
    finally:
        made.end()


def wait_for(what, process, seconds=120):
    """Wait until `what()` is true while the process runs; gives what it gave."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def descendants(pid):
    """The processes that a process has started, and those that these have: pid and name."""
    found = {}
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):
            for child in map(int, children.read_text().split()):
                found[child] = Path(f"/proc/{child}/comm").read_text().strip()
                found |= descendants(child)
    return found


def raylets(pid):
    """Of these the raylets."""
    return [child for child, name in descendants(pid).items() if name == "raylet"]


def lose(node):
    """Kill a node as a machine that fails does: its raylet, and all of its workers."""
    for pid in [*raylets(node.pid), *descendants(node.pid)]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
