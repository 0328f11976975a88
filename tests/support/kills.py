"""Real commands without Ray whose processes are killed at exact moments."""

import signal

from tests.support import forked

PROGRAM = """
import os, signal, sys
from raysweep import cli
from raysweep.backends.display import ProgressDisplay

moment, *arguments = sys.argv[1:]
show = ProgressDisplay.progress

def progress(self, trial, status):
    show(self, trial, status)
    if eval(moment, {"trial": trial.name, "phase": status.phase, "epoch": status.epoch}):
        os.kill(os.getpid(), signal.SIGKILL)

ProgressDisplay.progress = progress
sys.exit(cli.main(arguments))
"""


def run_killed(moment, *arguments, cwd):
    """Run a real command in a process that SIGKILL ends at a moment.

    Args:
        moment: A Python expression of the trial's name `trial`, the `phase` that it reports, and the number `epoch` of
            finished epochs of this phase. The process is killed when it is true.
        arguments: The arguments of `raysweep`.
        cwd: The directory in which the command runs.
    """
    process = forked.run("-c", PROGRAM, moment, *arguments, cwd=cwd)
    assert process.returncode == -signal.SIGKILL, process
