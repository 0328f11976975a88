"""What several tests need."""

import os

import pytest
import torch

from tests.support.commands import here

# Workers that Ray starts ahead, which trials do not use: 0.7 s of a core for each sweep.
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")

# The models are tiny; with more threads than free cores they wait for each other.
torch.set_num_threads(1)


@pytest.fixture
def run_sweep(tmp_path):
    """The real command, in an empty directory and without Ray; returns the completed process."""

    def run(*arguments, **environment):
        return here("run_sweep.py", *arguments, cwd=tmp_path, **environment)

    return run
