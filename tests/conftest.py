"""Settings and fixtures that several tests need."""

import os

import pytest
import torch

from tests.support.commands import here

# Keep Ray from starting workers ahead. Trials do not use them, and they cost 0.7 s of a core per sweep.
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")

# Ray gives its workers a low priority (niceness 15). Beside other tests that compute, a trial would then get 3 % of a
# core, and a test that waits for the trial would run out of time.
os.environ.setdefault("RAY_worker_niceness", "0")

# The models are tiny. With more threads than free cores, the threads wait for each other.
torch.set_num_threads(1)


@pytest.fixture
def run_sweep(tmp_path):
    """A function that runs the real command in an empty directory without Ray, and returns the completed process."""

    def run(*arguments, **environment):
        return here("run_sweep.py", *arguments, cwd=tmp_path, **environment)

    return run
