"""The working directory and the environment must not influence the workers. Real commands on a real Ray."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support import PATIENCE, ROOT, forked
from tests.support.cluster import descendants, wait_for
from tests.support.commands import flags, on_ray, patiently, result, resume_command
from tests.support.gate import Gate

pytestmark = pytest.mark.slow

NAMES = ["statistics", "html", "numpy", "scipy", "sklearn", "PIL", "rich", "torch", "yaml", "raysweep", "ray"]


@pytest.fixture(scope="module")
def quick(few):
    """The settings of a short trial."""
    return {**few, "usl_type": "simclr", "usl_epochs": 1, "le_epochs": 1, "probe_every": 0, "images_every": 0}


def test_files_of_the_user_and_uv_run_do_not_reach_the_workers(tmp_path, quick):
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text("raise ImportError('this file belongs to the user')\n")
    command = [sys.executable, ROOT / "run_sweep.py", *flags(quick), "--name", "x"]
    completed = subprocess.run(
        [sys.executable, "-m", "uv", "run", "--offline", "--no-project", *command],
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
WAITING_FOR_THE_LOG = """
import os, sys, threading, time
from pathlib import Path
from raysweep import cli
from raysweep.backends.ray import cluster, health
from tests.support.patient import be_patient

be_patient()

def wait():
    while not (session := cluster.own_session()) or not any(
        'licence' in path.read_text(errors='replace') for path in session.glob('logs/*.err')
    ):
        time.sleep(0.1)
    health.START_SECONDS = 1.0

health.START_SECONDS = 1e9
threading.Thread(target=wait, daemon=True).start()
sys.exit(cli.main())
"""
"""The command, which says that no worker has started as soon as a worker has failed."""


def test_workers_that_never_start_are_reported_with_what_ray_says(tmp_path, quick):
    (tmp_path / "sitecustomize.py").write_text(f"{IN_WORKERS}sys.exit('this worker has no licence')\n")
    program, path, shown = ["-c", WAITING_FOR_THE_LOG, "sweep", *flags(quick)], f"{tmp_path}:{ROOT}", tmp_path / "out"
    with open(shown, "w") as out:
        process = forked.start(*program, cwd=tmp_path, PYTHONPATH=path, stdout=out)
    wait_for(lambda: "no worker has started for 1 s" in shown.read_text(), process)
    assert "this worker has no licence" in shown.read_text().splitlines()[-1]
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert err.splitlines()[-1].startswith("interrupted; resume with: ")


def test_an_import_that_fails_in_a_worker_is_reported_as_that(tmp_path, quick):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "threadpoolctl.py").write_text("raise ImportError('the wrong threadpoolctl')\n")
    (tmp_path / "sitecustomize.py").write_text(f"{IN_WORKERS}sys.path.insert(0, {str(tmp_path / 'bad')!r})\n")
    completed = on_ray(
        *flags(quick), "--name", "x", "--set", "tune.max_failures=0", cwd=tmp_path, PYTHONPATH=str(tmp_path)
    )
    assert completed.returncode == 1
    assert completed.stderr.splitlines() == ["failed: seed=0: ImportError: the wrong threadpoolctl"]


def sweep_with_a_dead_head(tmp_path, quick, *signals):
    """Kill Ray's head process while a trial runs, and send the signals to the command. Return its status and errors."""
    gate, root = Gate(tmp_path, step=2), tmp_path / "runs" / "x"
    longer = {"RAY_gcs_rpc_server_reconnect_timeout_s": f"{PATIENCE:.0f}"}  # Ray's own library would end the driver
    options = [*flags(quick | {"usl_epochs": 1000}), *gate.arguments, "--name", "x"]
    process = patiently(*options, cwd=tmp_path, **longer)
    gate.wait(process)
    (head,) = [pid for pid, name in descendants(process.pid).items() if name == "gcs_server"]
    os.kill(head, signal.SIGKILL)
    for number in signals:
        os.kill(process.pid, number)
    gate.open_when_told(root, process)
    _, err = process.communicate(timeout=PATIENCE)
    assert list(root.glob("seed=0/checkpoints/*.json"))
    return process.returncode, err.splitlines()


def test_the_death_of_rays_head_process_leaves_checkpoints(tmp_path, quick):
    status, lines = sweep_with_a_dead_head(tmp_path, quick)
    assert status == 1
    assert lines == [
        "Ray's head process has died: trials are saving checkpoints",
        f"the sweep broke off: Ray's head process has died; resume with: {resume_command('runs/x')}",
    ]


def test_a_signal_that_also_ends_rays_head_process_interrupts_the_sweep(tmp_path, quick):
    """A batch system may send SIGTERM to all processes of a job. It may start a job again whose status is 130."""
    status, lines = sweep_with_a_dead_head(tmp_path, quick, signal.SIGTERM)
    assert status == 130
    assert lines[-1] == f"interrupted; resume with: {resume_command('runs/x')}"
    assert not any("head process" in line for line in lines)


HOARDING = """
import time
import raysweep

@raysweep.schedule
def hoarding(step, steps, epoch_steps):
    hoard = []
    while 0 < step < steps - 1 and len(hoard) < 100:
        hoard.append(bytearray(2**27))
        time.sleep(0.05)
    return 1.0
"""


LEAST, MOST = 4 * 2**20, 8 * 2**20
"""The KiB that the trial takes before Ray ends it. Other tests must not take so much in the meantime."""


def test_a_running_trial_that_ray_ends_for_want_of_memory_costs_that_trial_alone(tmp_path, quick):
    """Ray ends the process that began last. Here this is the one that takes the memory, because it is the third."""
    gate, root = Gate(tmp_path, step=2), tmp_path / "runs" / "x"
    (tmp_path / "hoarding.py").write_text(HOARDING)
    space = {
        "name": "x",
        "plugins": [gate.plugin, "hoarding.py"],
        "base": {**quick, "gate": str(gate.file)},
        "search": [{"schedule": "gated", "seed": [0, 1]}, {"schedule": "hoarding", "seed": [2]}],
        "tune": {"max_failures": 0, "max_concurrent": 2},
    }
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(space))
    first, killed, hoarder = "schedule=gated,seed=0", "schedule=gated,seed=1", "schedule=hoarding,seed=2"

    def act():
        gate.wait(trials=2)
        os.kill(json.loads((root / killed / "attempt.json").read_text())["pid"], signal.SIGKILL)
        gate.until((root / hoarder / "result.json").exists)

    memory = dict(line.split()[:2] for line in Path("/proc/meminfo").read_text().splitlines())
    total, available = int(memory["MemTotal:"]), int(memory["MemAvailable:"])
    margin = min(available // 2, MOST)
    if margin < LEAST:
        pytest.skip(f"needs {2 * LEAST / 2**20:.0f} GiB of free memory")
    threshold = (total - available + margin) / total
    with gate.meanwhile(act):
        completed = on_ray("space.yaml", cwd=tmp_path, RAY_memory_usage_threshold=str(threshold))
    assert completed.returncode == 1
    assert completed.stderr.splitlines() == [
        f"failed: {killed}: its process died (killed, out of memory, or its node was lost)",
        f"failed: {hoarder}: out of memory: Ray ended its process as its node ran low on memory",
    ]
    assert result(root, first)["status"] == "finished"
