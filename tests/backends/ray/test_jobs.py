"""`ray job submit` to a real cluster sends the checkout, follows the logs, and reports how the sweep ended."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from benchmarks.chaos import MARK, processes
from tests.support import PATIENCE, ROOT
from tests.support.cluster import TRIES, wait_for
from tests.support.gate import Gate

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

RAY = str(Path(sys.executable).parent / "ray")
TOKEN = "f" * 64
BRIEF = {"usl_type": "ae_single", "usl_epochs": 1, "le_epochs": 1, "probe_every": 0, "images_every": 0}


class Cluster:
    """A head node with a job server, a checkout to send to it, and jobs that run at the same time."""

    def __init__(self, folder):
        self.results = folder / "results"
        self.checkout = folder / "checkout"
        for name in ("raysweep", "search_spaces", "cluster"):
            shutil.copytree(ROOT / name, self.checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("run_sweep.py", ".gitignore"):
            shutil.copy(ROOT / name, self.checkout)
        # The version distinguishes the sent package from the installed one.
        package = self.checkout / "raysweep" / "__init__.py"
        package.write_text(re.sub('__version__ = ".*"', '__version__ = "0.1.0+sent"', package.read_text()))
        self.ports = []
        self.mark = folder.name
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHONPATH"))},
            "RAY_worker_niceness": "0",  # see tests/conftest.py
            # Ray else removes the checkout of a job after ten minutes, and a later job could not have it.
            "RAY_RUNTIME_ENV_TEMPORARY_REFERENCE_EXPIRATION_S": "36000",
            MARK: self.mark,
            "HOME": str(folder),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": TOKEN,
        }
        self.jobs = {}

    def ray(self, *arguments):
        """Start a command of Ray."""
        return subprocess.Popen(
            [RAY, *arguments],
            env={**self.environment, "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{self.ports[1]}"},
            cwd=self.checkout,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def ask(self, path, content=None, token=TOKEN):
        """Send a request to the job server, as Ray's commands do, and return the answer."""
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
        body = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.ports[1]}/api/jobs/{path}", body, headers)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=PATIENCE) as answer:
            return json.loads(answer.read())

    def up(self):
        """Start the head node. It is started again at other ports if another process has taken one in the meantime."""
        for _ in range(TRIES):
            with ExitStack() as held:  # find free ports
                taken = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(4)]
                self.ports = [server.getsockname()[1] for server in taken]
            port, dashboard, agent, client = map(str, self.ports)
            command = f"start --head --port={port} --dashboard-port={dashboard} --dashboard-agent-listen-port={agent}"
            command += f" --ray-client-server-port={client} --num-cpus=2 --include-dashboard=true --disable-usage-stats"
            # The directory's path must be short, because it holds sockets.
            process = self.ray(*command.split(), f"--temp-dir=/tmp/raysweep-jobs-{os.getpid()}")
            shown, _ = process.communicate(timeout=PATIENCE)
            if process.returncode == 0:
                return
            self.kill()
        raise AssertionError(f"no head node after {TRIES} tries: {shown}")

    def kill(self):
        """Kill the cluster's processes."""
        for pid in processes(self.mark):
            if pid != os.getpid():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def submit(self, name, *arguments):
        """Start `ray job submit` for a sweep; it follows the sweep's logs."""
        sent = ["--working-dir", ".", "--runtime-env", "cluster/runtime-env.yaml", "--submission-id", name]
        program = [sys.executable, "run_sweep.py", *arguments, "--output", str(self.results), "--name", name]
        self.jobs[name] = self.ray("job", "submit", *sent, "--", *program)

    def ended(self, name):
        """Wait for `ray job submit`; return its exit status and output."""
        shown, _ = self.jobs[name].communicate(timeout=PATIENCE)
        return self.jobs[name].returncode, shown


@dataclass
class Job:
    """A job of a cluster, with those methods of a process that tell whether it runs and what it printed."""

    cluster: Cluster
    name: str

    def poll(self):
        """Return how the job ended, or None while it waits or runs."""
        status = self.cluster.ask(self.name)["status"]
        return None if status in ("PENDING", "RUNNING") else status

    def communicate(self):
        return self.cluster.ask(f"{self.name}/logs")["logs"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, few):
    folder = tmp_path_factory.mktemp("jobs")
    cluster = Cluster(folder)
    try:
        cluster.up()
        (cluster.checkout / "space.yaml").write_text(yaml.safe_dump({"name": "job", "base": {**few, **BRIEF}}))
        cluster.submit("good", "space.yaml")
        cluster.submit("refused", "space.yaml", "--set", "usl_lrr=1")
        yield cluster
    finally:
        cluster.kill()
        for job in cluster.jobs.values():
            job.communicate()
        shutil.rmtree(f"/tmp/raysweep-jobs-{os.getpid()}", ignore_errors=True)


def test_a_job_runs_the_checkout_that_was_sent_and_its_logs_are_followed(cluster):
    status, shown = cluster.ended("good")
    assert status == 0, shown
    assert "1 trial, 2 at a time on 1 node" in shown
    assert "[1/1] seed=0" in shown
    assert "Job 'good' succeeded" in shown
    made_by = yaml.safe_load((cluster.results / "good" / "sweep.yaml").read_text())["made_by"]
    assert made_by["versions"]["raysweep"] == "0.1.0+sent"


def test_a_wrong_setting_fails_its_job_with_status_2(cluster):
    status, shown = cluster.ended("refused")
    assert status == 1, "Ray's own status for any failed job"
    assert "--set usl_lrr: unknown setting, did you mean 'usl_lr'?" in shown
    assert re.search(r"Job 'refused' failed.*exit code 2\b", shown, re.DOTALL)
    assert not (cluster.results / "refused").exists()


def test_a_job_that_is_stopped_leaves_checkpoints(cluster, tmp_path):
    """This job gets the checkout that `ray job submit` has sent for another one."""
    cluster.ended("good")
    gate, root = Gate(tmp_path, step=5), cluster.results / "long"
    program = [sys.executable, "run_sweep.py", "space.yaml", "--set", "usl_epochs=100000", "--name", "long"]
    sent = cluster.ask("good")["runtime_env"]
    command = shlex.join([*program, "--output", str(cluster.results), *gate.arguments])
    cluster.ask("", {"entrypoint": command, "runtime_env": sent, "submission_id": "long"})
    job = Job(cluster, "long")
    gate.wait(job)
    assert cluster.ask("long/stop", {}) == {"stopped": True}
    gate.open_when_told(root, job)
    wait_for(lambda: job.poll() is not None)
    shown = job.communicate()
    assert job.poll() == "STOPPED", shown
    assert re.search(rf"resume with: \S*python\S* \S*run_sweep.py --resume {root}", shown), shown
    assert json.loads(next(root.glob("seed=0/checkpoints/*.json")).read_text())


def test_who_has_no_token_cannot_submit(cluster):
    for token in ("", "0" * 64):
        with pytest.raises(urllib.error.HTTPError, match=r"HTTP Error 40[13]"):
            cluster.ask("", {"entrypoint": "true"}, token)
        with pytest.raises(urllib.error.HTTPError, match=r"HTTP Error 40[13]"):
            cluster.ask("", token=token)
