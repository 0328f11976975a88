"""Ray clusters for tests: several nodes on this machine, started by `ray start`."""

import os
import re
import signal
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import contextmanager, suppress
from pathlib import Path

from raysweep.backends.ray.authentication import make_token
from tests.support import PATIENCE, ROOT

RAY = [sys.executable, "-m", "ray.scripts.scripts"]
STARTED = "will now block"  # the end of what a node that has started prints
TRIES = 4
USERS_OWN = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS")


class Cluster:
    """A Ray cluster.

    Args:
        folder: the home directory of the cluster's user, who never used Ray before, is made here.
        environment: environment variables that every node gets in addition.
    """

    def __init__(self, folder, **environment):
        home = folder / "home"
        home.mkdir()
        self.environment = {name: value for name, value in os.environ.items() if name not in USERS_OWN}
        self.environment |= {"HOME": str(home), "PYTHONPATH": str(ROOT), **environment}
        self.environment["RAY_health_check_period_ms"] = "500"  # a lost node is noticed soon
        make_token(home / ".ray" / "auth_token")  # `ray get-auth-token --generate` takes 2 s of a core
        self.environment["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = f"{PATIENCE:.0f}"  # else 60 s
        self.nodes, self.folder, self.address = [], folder, None

    def _start(self, *options, within=(), **environment):
        log = self._log()
        # Without the mode, a node that joins sends no token.
        environ = {**self.environment, "PYTHONUNBUFFERED": "1", "RAY_AUTH_MODE": "token", **environment}
        if any(option.startswith("--num-gpus") for option in options):
            environ.pop("CUDA_VISIBLE_DEVICES", None)  # an empty one hides all GPUs, and Ray then refuses to count any
        with open(log, "w") as out:
            node = subprocess.Popen(
                [*within, *RAY, "start", *options, "--include-log-monitor=false", "--block"],
                env=environ,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        node.log = log
        self.nodes.append(node)
        return node

    def lead(self, *options):
        """Start the head node at a free port and return it once it answers."""
        without = ("--include-dashboard=false", "--no-monitor")  # processes that no test needs
        node = self._bring_up("--head", "--node-ip-address=127.0.0.1", "--port=0", *without, *options)
        self.address = re.search(r"--address='(\S+)'", node.log.read_text())[1]
        return node

    def join(self, *options, **process_options):
        """Start another node, as if on a separate machine, and return it once it has joined.

        `process_options` are the program `within` that runs the node, and changes to the node's environment.
        """
        ip = f"127.0.0.{len(self.nodes) + 1}"
        return self._bring_up(f"--address={self.address}", f"--node-ip-address={ip}", *options, **process_options)

    def _bring_up(self, *options, **process_options):
        """Start a node and return it once it is up.

        Ray gives a node 30 s to start and then ends it. On a busy machine that is too short, so it is started again.
        """
        for _ in range(TRIES):
            node = self._start(*options, **process_options)
            end = time.monotonic() + PATIENCE
            while not (is_up := STARTED in node.log.read_text()) and node.poll() is None and time.monotonic() < end:
                time.sleep(0.05)
            if is_up:
                return node
            self.nodes.remove(node)
            node.kill()
            node.wait(60)
        raise AssertionError(f"no node after {TRIES} tries: {self._log().read_text()}")

    def _log(self):
        """Return the file for the output of the next node."""
        return self.folder / f"node-{len(self.nodes)}"

    def end(self):
        """Kill all nodes, the head last. An orderly shutdown takes Ray 15 s per node."""
        for node in reversed(self.nodes):
            lose(node)
            node.kill()
            node.wait(60)


@contextmanager
def cluster(folder, *options, **environment):
    """Run a `Cluster` whose head node has these options; end it on exit."""
    cluster = Cluster(folder, **environment)
    try:
        cluster.lead(*options)
        yield cluster
    finally:
        cluster.end()


def wait_for(what, process=None, seconds=PATIENCE):
    """Wait until `what()` returns a true value, and return it. Fail if the process, if any, ends first."""
    end = time.monotonic() + seconds
    while not (value := what()):
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)
    return value


def descendants(pid):
    """Return all descendants of a process as a mapping from pid to name."""
    children, names = defaultdict(list), {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with suppress(FileNotFoundError, ProcessLookupError):
            before, _, fields = Path("/proc", entry, "stat").read_text(errors="replace").rpartition(")")
            names[int(entry)] = before.partition("(")[2]
            children[int(fields.split()[1])].append(int(entry))
    below, left = {}, [pid]
    while left:
        for child in children[left.pop()]:
            below[child] = names[child]
            left.append(child)
    return below


def raylets(pid):
    """Return the pids of the raylets among the descendants of a process."""
    return [child for child, name in descendants(pid).items() if name == "raylet"]


def lose(node):
    """Kill a node's raylet and all its workers, as a machine failure would."""
    for pid in [*raylets(node.pid), *descendants(node.pid)]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
