"""What several tests need."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]

# The models are tiny; with more threads than free cores they wait for each other.
torch.set_num_threads(1)


@pytest.fixture
def run_sweep(tmp_path):
    """The real command in a process of its own, in an empty directory; returns the completed process."""

    def run(*arguments, timeout=240, **environment):
        return subprocess.run(
            [sys.executable, str(ROOT / "run_sweep.py"), *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run
