"""The real command on a Ray cluster of several nodes, each with its own raylet."""

import os

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.support import PATIENCE, ROOT, forked
from tests.support.cluster import descendants

NODE = ["--num-cpus=3", "--num-gpus=1"]  # cores for three trials, so that half a GPU decides that two run
BRIEF = {"le_epochs": 1, "images_every": 0, "projector_images": 0}
LOST = "its process died (killed, out of memory, or its node was lost)"


def start(ray, *arguments, cwd, **environment):
    """Start the real command on the cluster; its output goes to the files `out` and `err`."""
    program = [ROOT / "run_sweep.py", "--name", "x", "--address", ray.address, *arguments]
    with open(cwd / "out", "w") as out, open(cwd / "err", "w") as err:
        return forked.start(*program, cwd=cwd, environment={**ray.environment, **environment}, stdout=out, stderr=err)


def ended(process, cwd):
    """Wait for the process; return its exit status, stdout and stderr."""
    status = process.wait(timeout=PATIENCE)
    return status, (cwd / "out").read_text(), (cwd / "err").read_text()


def steps(trial):
    """Return the steps of every metric in TensorBoard, as a new reader sees them."""
    read = EventAccumulator(str(trial), size_guidance={"scalars": 0}).Reload()
    return {tag: [point.step for point in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def actors(name):
    """Return the processes of an actor class on all nodes. `ImplicitFunc` is Tune's name for a trial.

    The kernel keeps 15 characters of a process name.
    """
    return {pid for pid, comm in descendants(os.getpid()).items() if comm == f"ray::{name}"[:15]}
