"""`ray job submit` to a real cluster sends the checkout, follows the logs, and reports how the sweep ended."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from benchmarks.chaos import MARK, processes
from tests.support import PATIENCE, ROOT

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

RAY = str(Path(sys.executable).parent / "ray")
SPACE = """
name: job
base: {usl_type: ae_single, usl_epochs: 2, le_epochs: 2}
search: {usl_lr: {grid: GRID}}
resources: {cpu: 2}
"""
LONG = {"--usl_type": "simclr", "--usl_epochs": "500", "--batch_size": "16"}


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
        (self.checkout / "raysweep" / "__init__.py").write_text('__version__ = "0.1.0+sent"\n')
        with ExitStack() as held:  # find free ports
            taken = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(4)]
            self.ports = [server.getsockname()[1] for server in taken]
        self.mark = folder.name
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHONPATH"))},
            "RAY_worker_niceness": "0",  # see tests/conftest.py
            MARK: self.mark,
            "HOME": str(folder),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": "f" * 64,
        }
        self.jobs = {}

    def ray(self, *arguments, start=False, **changes):
        environment = {**self.environment, "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{self.ports[1]}", **changes}
        run = subprocess.Popen if start else subprocess.run
        return run(
            [RAY, *arguments],
            env=environment,
            cwd=self.checkout,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def up(self):
        port, dashboard, agent, client = map(str, self.ports)
        command = f"start --head --port={port} --dashboard-port={dashboard} --dashboard-agent-listen-port={agent}"
        command += f" --ray-client-server-port={client} --num-cpus=2 --include-dashboard=true --disable-usage-stats"
        # The directory's path must be short, because it holds sockets.
        process = self.ray(*command.split(), f"--temp-dir=/tmp/raysweep-jobs-{os.getpid()}")
        assert process.returncode == 0, process.stdout

    def submit(self, name, *arguments):
        """Start `ray job submit` for a sweep; it follows the sweep's logs."""
        sent = ["--working-dir", ".", "--runtime-env", "cluster/runtime-env.yaml", "--submission-id", name]
        program = [sys.executable, "run_sweep.py", *arguments, "--output", str(self.results), "--name", name]
        self.jobs[name] = self.ray("job", "submit", *sent, "--", *program, start=True)

    def ended(self, name):
        """Wait for `ray job submit`; return its exit status and output."""
        job = self.jobs[name]
        shown, _ = job.communicate(timeout=PATIENCE)
        return job.returncode, shown


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    folder = tmp_path_factory.mktemp("jobs")
    cluster = Cluster(folder)
    try:
        cluster.up()
        for name, grid in (("good", "[1.0e-3]"), ("diverging", "[1.0e+30, 1.0e-3]")):
            (cluster.checkout / f"{name}.yaml").write_text(SPACE.replace("GRID", grid))
            cluster.submit(name, f"{name}.yaml")
        cluster.submit("refused", "good.yaml", "--set", "usl_lrr=1")
        yield cluster
    finally:
        for pid in processes(cluster.mark):
            if pid != os.getpid():
                os.kill(pid, signal.SIGKILL)
        for job in cluster.jobs.values():
            job.communicate()
        shutil.rmtree(f"/tmp/raysweep-jobs-{os.getpid()}", ignore_errors=True)


def test_a_job_runs_the_checkout_that_was_sent_and_its_logs_are_followed(cluster):
    status, shown = cluster.ended("good")
    assert status == 0, shown
    assert "1 trial, 1 at a time on 1 node" in shown
    assert "[1/1] usl_lr=" in shown
    assert "Job 'good' succeeded" in shown
    made_by = yaml.safe_load((cluster.results / "good" / "sweep.yaml").read_text())["made_by"]
    assert made_by["versions"]["raysweep"] == "0.1.0+sent"


def test_a_sweep_with_a_failed_trial_fails_its_job_with_status_1(cluster):
    status, shown = cluster.ended("diverging")
    assert status == 1, shown
    assert "failed: usl_lr=1e+30,seed=0: " in shown
    assert re.search(r"Job 'diverging' failed.*exit code 1\b", shown, re.DOTALL)
    assert (cluster.results / "diverging" / "usl_lr=0.001,seed=0" / "result.json").exists()


def test_a_wrong_setting_fails_its_job_with_status_2(cluster):
    status, shown = cluster.ended("refused")
    assert status == 1, "Ray's own status for any failed job"
    assert "--set usl_lrr: unknown setting, did you mean 'usl_lr'?" in shown
    assert re.search(r"Job 'refused' failed.*exit code 2\b", shown, re.DOTALL)
    assert not (cluster.results / "refused").exists()


def test_a_job_that_is_stopped_leaves_checkpoints(cluster):
    for name in ("good", "diverging"):
        cluster.ended(name)
    cluster.submit("long", *[word for flag in LONG.items() for word in flag])
    trial = cluster.results / "long" / "seed=0"
    end = time.monotonic() + PATIENCE
    while not (trial / "attempt.json").exists():
        assert time.monotonic() < end, cluster.ended("long")
        time.sleep(0.1)
    time.sleep(1)
    stopped = cluster.ray("job", "stop", "long")
    assert stopped.returncode == 0, stopped.stdout
    _, shown = cluster.ended("long")
    assert re.search(rf"resume with: \S*python\S* \S*run_sweep.py --resume {cluster.results}/long", shown), shown
    assert json.loads(next(trial.glob("checkpoints/*.json")).read_text())


def test_who_has_no_token_cannot_submit(cluster):
    stranger = cluster.ray("job", "list", RAY_AUTH_MODE="disabled", RAY_AUTH_TOKEN="")
    assert stranger.returncode != 0
    assert "refused" not in stranger.stdout
