"""What several tests need."""

import io
import os
import shlex
import subprocess
import sys
import urllib.request
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch

from raysweep import cli

ROOT = Path(__file__).parents[1]

# Workers that Ray starts ahead, which trials do not use: 0.7 s of a core for each sweep.
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")

# The models are tiny; with more threads than free cores they wait for each other.
torch.set_num_threads(1)


def here(program, *arguments, cwd, **environment):
    """The real command, run in this process, where torch is imported already: that takes 4 s of a core otherwise.

    For whatever is neither killed nor on Ray. `program` is `run_sweep.py` or `raysweep`.
    """
    argv, out, err = [str(ROOT / program), *map(str, arguments)], io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(), redirect_stdout(out), redirect_stderr(err):
        for kind in (DeprecationWarning, PendingDeprecationWarning, ResourceWarning, ImportWarning):
            warnings.simplefilter("ignore", kind)  # as in a process of its own
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
            urllib.request.install_opener(None)  # it would keep the proxies of this environment
    return subprocess.CompletedProcess(argv, status, out.getvalue(), err.getvalue())


def resume_command(place, *options):
    """The command that `run_sweep.py`, run as a program of its own, prints for resuming the sweep at `place`."""
    return shlex.join([sys.executable, str(ROOT / "run_sweep.py"), "--resume", str(place), *options])


STOPPING = "stopping: trials are saving checkpoints; press Ctrl-C again to quit without saving"


@pytest.fixture
def run_sweep(tmp_path):
    """The real command, in an empty directory and without Ray; returns the completed process."""

    def run(*arguments, **environment):
        return here("run_sweep.py", *arguments, cwd=tmp_path, **environment)

    return run
