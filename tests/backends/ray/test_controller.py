"""A data-parallel trial whose Ray processes are killed resumes, or fails and says why, and frees its cores."""

import os
import signal
from contextlib import suppress

import pytest

from tests.support import PATIENCE
from tests.support.cluster import descendants, wait_for
from tests.support.commands import begun, result, start

CORES = len(os.sched_getaffinity(0)) // 2  # per worker: two workers take all cores, so other trials wait for them
BRIEF = ["--usl_type", "simclr", "--usl_epochs", "4", "--le_epochs", "1", "--probe_every", "0", "--images_every", "0"]

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CORES == 0, reason="needs a core for each of two workers")]


def processes(command, name):
    """Return the command's processes of an actor class. The kernel keeps 15 characters of a process name."""
    return [pid for pid, comm in descendants(command.pid).items() if comm == f"ray::{name}"[:15]]


def kill(command, name):
    """Kill the processes of an actor class as soon as there are any."""
    for pid in wait_for(lambda: processes(command, name), command):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_the_cores_of_a_trial_are_freed_when_the_processes_that_lead_it_are_killed(tmp_path):
    """Kill the first trial's controller, then the second trial's own process before it has workers."""
    tune = ["--set", "tune.max_failures=1", "--set", "tune.checkpoint_seconds=0"]
    many = ["--set", "resources.workers=2", "--set", f"resources.cpu={CORES}", "--set", "seed=[0,1]"]
    running = start(*BRIEF, *tune, *many, "--name", "x", cwd=tmp_path)
    root = tmp_path / "runs" / "x"
    wait_for(lambda: begun(root / "seed=0", 1), running)
    kill(running, "TrainController")
    wait_for(lambda: (root / "seed=0" / "result.json").exists(), running)
    wait_for(lambda: processes(running, "TrainController"), running)
    kill(running, "ImplicitFunc")  # Tune's name for a trial that is a function
    out, err = running.communicate(timeout=PATIENCE)
    assert running.returncode == 0, err
    why = "Ray Train's controller died (killed, out of memory, or its node was lost)"
    assert f"seed=0: attempt 1 broke off; resuming from its last checkpoint ({why})" in out
    first, second = (result(root, f"seed={seed}") for seed in (0, 1))
    assert (first["status"], first["error"], first["attempts"]) == ("finished", None, 2)
    assert (second["status"], second["error"], second["attempts"]) == ("finished", None, 1)
