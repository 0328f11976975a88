"""The working directory and the environment must not influence the workers. Real commands on a real Ray."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import PATIENCE, ROOT
from tests.support.cluster import descendants, wait_for
from tests.support.commands import result, resume_command, start

pytestmark = pytest.mark.slow

QUICK = ["--usl_type", "simclr", "--usl_epochs", "1", "--le_epochs", "1", "--name", "x"]
NAMES = ["statistics", "html", "numpy", "scipy", "sklearn", "PIL", "rich", "torch", "yaml", "raysweep", "ray"]


def test_files_of_the_user_and_uv_run_do_not_reach_the_workers(tmp_path):
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text("raise ImportError('this file belongs to the user')\n")
    completed = subprocess.run(
        [sys.executable, "-m", "uv", "run", "--offline", "--no-project", sys.executable, ROOT / "run_sweep.py", *QUICK],
        cwd=tmp_path,
        env={**os.environ, "PYTHONSAFEPATH": "1"},  # only for `-m uv`; the workers' safety does not depend on it
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    assert result(tmp_path / "runs" / "x", "seed=0")["status"] == "finished"
    assert completed.stderr == ""


IN_WORKERS = "import sys\nif any('default_worker' in word for word in sys.orig_argv):\n    "


def test_workers_that_never_start_are_reported_with_what_ray_says(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(f"{IN_WORKERS}sys.exit('this worker has no licence')\n")
    process = start(*QUICK, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    printed = []
    while "no worker has started" not in "".join(printed):
        line = process.stdout.readline()
        assert line, process.communicate()
        printed.append(line)
    assert "this worker has no licence" in printed[-1]
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert err.splitlines()[-1] == f"interrupted; resume with: {resume_command('runs/x')}"


def test_an_import_that_fails_in_a_worker_is_reported_as_that(tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "threadpoolctl.py").write_text("raise ImportError('the wrong threadpoolctl')\n")
    (tmp_path / "sitecustomize.py").write_text(f"{IN_WORKERS}sys.path.insert(0, {str(tmp_path / 'bad')!r})\n")
    process = start(*QUICK, "--set", "tune.max_failures=0", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert err.splitlines() == ["failed: seed=0: ImportError: the wrong threadpoolctl"]


def test_the_death_of_rays_head_process_leaves_checkpoints(tmp_path):
    long = ["--usl_type", "simclr", "--usl_epochs", "400", "--batch_size", "2", "--name", "x"]
    process = start(*long, cwd=tmp_path)
    trial = tmp_path / "runs" / "x" / "seed=0"
    wait_for(lambda: (trial / "attempt.json").exists(), process)
    (head,) = [pid for pid, name in descendants(process.pid).items() if name == "gcs_server"]
    os.kill(head, signal.SIGKILL)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert err.splitlines() == [
        "Ray's head process has died: trials are saving checkpoints",
        f"the sweep broke off: Ray's head process has died; resume with: {resume_command('runs/x')}",
    ]
    assert list(trial.glob("checkpoints/*.json"))


def test_a_running_trial_that_ray_ends_for_want_of_memory_costs_that_trial_alone(tmp_path):
    memory = dict(line.split()[:2] for line in Path("/proc/meminfo").read_text().splitlines())
    total, available = int(memory["MemTotal:"]), int(memory["MemAvailable:"])
    process = start(
        *("--usl_type", "simclr", "--usl_epochs", "2", "--le_epochs", "1", "--batch_size", "25", "--name", "x"),
        *("--set", "embedding_dim=[64, 1000000]", "--set", "tune.max_failures=0", "--probe_every", "0"),
        cwd=tmp_path,
        # The wide head takes about 8 GB for its weights, their gradients and Adam's two averages.
        RAY_memory_usage_threshold=str((total - available + 5 * 2**20) / total),
    )
    _, err = process.communicate(timeout=PATIENCE)
    wide = "embedding_dim=1000000,seed=0"
    assert err.splitlines() == [f"failed: {wide}: out of memory: Ray ended its process as its node ran low on memory"]
    assert process.returncode == 1
    assert result(tmp_path / "runs" / "x", "embedding_dim=64,seed=0")["status"] == "finished"
