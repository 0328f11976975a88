"""Helpers that run the real commands, in this process or as a subprocess, and read what they leave behind."""

from __future__ import annotations

import io
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import urllib.request
import warnings
from contextlib import contextmanager, redirect_stderr, redirect_stdout

import pytest

from raysweep import cli
from raysweep.backends.ray.session import session
from tests.support import PATIENCE, ROOT, forked
from tests.support.cluster import wait_for
from tests.support.shared_ray import end_shared_ray, start_shared_ray

QUICK = ["--usl_epochs", "2", "--le_epochs", "3", "--probe_every", "1", "--images_every", "2"]
CPUS = max(1, (os.cpu_count() or 1) // 2)  # per trial: two or three trials at a time on any machine
GRID = [
    "--set",
    f"resources.cpu={CPUS}",
    "--exp_type",
    "alpha",
    *QUICK,
    "--set",
    "alpha=[1e-05, 1]",
    "--set",
    "seed=[0, 1]",
]
TRIALS = ["random,seed=0", "random,seed=1"] + [f"alpha={a},seed={s}" for a in ("1e-05", "1.0") for s in (0, 1)]
STEPS = ["--le_epochs", "3", "--set", "tune.checkpoint_seconds=0", "--name", "long"]
LONG = ["--usl_epochs", "8", *STEPS]
OWN = {"pretrain/images_per_s"}  # differs from run to run

STOPPING = "stopping: trials are saving checkpoints; press Ctrl-C again to quit without saving"


def here(program, *arguments, cwd, **environment):
    """Run the real command in this process, where torch is already imported; a subprocess takes 4 s of a core for that.

    Use this for a command that runs to its end without Ray. For a command on Ray, use `on_shared_ray` or `on_ray`.
    `program` is `run_sweep.py` or `raysweep`.
    """
    argv, out, err = [str(ROOT / program), *map(str, arguments)], io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(), redirect_stdout(out), redirect_stderr(err):
        for kind in (DeprecationWarning, PendingDeprecationWarning, ResourceWarning, ImportWarning):
            warnings.simplefilter("ignore", kind)  # as in a separate process
        warnings.filterwarnings("error", category=DeprecationWarning, module="raysweep")
        patch.setattr(sys, "argv", argv)
        patch.chdir(cwd)
        for name, value in environment.items():
            patch.setenv(name, value)
        try:
            status = cli.main(["sweep", *argv[1:]] if program == "run_sweep.py" else argv[1:])
        except SystemExit as end:
            status = end.code
        finally:
            urllib.request.install_opener(None)  # the opener would keep this environment's proxies
    return subprocess.CompletedProcess(argv, status, out.getvalue(), err.getvalue())


def flags(settings):
    """Return settings as arguments of a command."""
    return [f"--{name}={value}" for name, value in settings.items()]


@contextmanager
def bounded():
    """Press Ctrl-C twice if the block takes too long, so that a command that hangs fails its test."""
    timers = [threading.Timer(PATIENCE + later, os.kill, (os.getpid(), signal.SIGINT)) for later in (0, 10)]
    for timer in timers:
        timer.daemon = True
        timer.start()
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()


def on_shared_ray(*arguments, cwd, **environment):
    """Run the real command in this process on the Ray that tests share, which has two CPUs.

    Use this for every command whose result does not depend on the start or the end of Ray, on the environment of its
    workers, or on the words of the plan. `environment` reaches only the command, not the workers. A test may kill the
    workers of its trials, but not Ray's own processes.
    """
    start_shared_ray()
    with session(), bounded():
        return here("run_sweep.py", *arguments, cwd=cwd, **environment)


def on_ray(*arguments, cwd, **environment):
    """Run the real command in this process on a Ray that starts and ends with it, which takes 5 s of a core.

    Use this for a command that is refused before Ray starts, that needs an environment for its workers or an address,
    or that must start Ray itself; else use `on_shared_ray`. A subprocess would import everything again, which takes
    another 4 s of a core.
    """
    end_shared_ray()
    with session(), bounded():
        return here("run_sweep.py", *arguments, cwd=cwd, **environment)


def resume_command(place, *options):
    """Return the command that `run_sweep.py`, run as a program, prints for resuming the sweep at `place`."""
    return shlex.join([sys.executable, str(ROOT / "run_sweep.py"), "--resume", str(place), *options])


def command(*arguments, cwd, **environment):
    """Run the real command in a subprocess and return the completed process."""
    return subprocess.run(
        [sys.executable, str(ROOT / "run_sweep.py"), *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def alone(*arguments, cwd):
    """Run the real command without Ray, in this process."""
    return here("run_sweep.py", *arguments, "--local", cwd=cwd)


def start(*arguments, cwd, **environment):
    """Start the real command in a subprocess and return it while it runs."""
    program = [sys.executable, str(ROOT / "run_sweep.py"), *arguments]
    env = {**os.environ, **environment}
    return subprocess.Popen(program, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def patiently(*arguments, cwd, **environment):
    """Start the real command in a fork, with long times for saving and ending, and return it while it runs."""
    return forked.start(ROOT / "tests" / "support" / "patient.py", *arguments, cwd=cwd, **environment)


def interrupt(process, trial, *options):
    """Press Ctrl-C once the trial has a checkpoint. The command must exit with 130 and say how to resume."""
    wait_for(lambda: list(trial.glob("checkpoints/*.json")), process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert err.splitlines() == [STOPPING, f"interrupted; resume with: {resume_command('runs/long', *options)}"]


def result(root, trial):
    return json.loads((root / trial / "result.json").read_text())


def scores(root, trial):
    return {name: value for name, value in result(root, trial)["metrics"].items() if name not in OWN}


def begun(trial, attempt=1):
    """Return whether a trial's attempt has begun."""
    path = trial / "attempt.json"
    return path.exists() and json.loads(path.read_text())["attempt"] == attempt


def checkpoints(trial):
    return sorted(path.name for path in trial.glob("checkpoints/*.json"))
