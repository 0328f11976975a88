"""Find where each process that reads the dataset has it in memory. Workers import only a small part of this module."""

import json
import sys
import time
from pathlib import Path

COPIES = 4
SECONDS = 120.0


def place_in_memory(address):
    """Return device, inode and offset of the file mapped at `address`, or None for the process's private memory."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, offset, device, inode = line.split()[:5]
        start, end = (int(number, 16) for number in span.split("-"))
        if start <= address < end:
            return f"{device} {inode} {int(offset, 16) + address - start}" if inode != "0" else None
    raise AssertionError(f"nothing is mapped at {address:#x}")


def note_copy(config, datasets, folder):
    """A trainable that writes down its node, its GPU and the dataset's place in memory, then waits for all `COPIES`."""
    import ray
    from ray import tune

    from raysweep.data.selection import select_data

    trial = config["trial"]
    images = select_data(trial.settings, datasets).pretrain
    assert int(images.sum()) > 0, "it is read"
    where = [ray.get_runtime_context().get_node_id(), ray.get_gpu_ids(), place_in_memory(images.ctypes.data)]
    Path(folder, trial.name).write_text(json.dumps(where))
    Path(folder, trial.name).rename(Path(folder, f"{trial.name}.json"))
    end = time.monotonic() + SECONDS
    while len(list(Path(folder).glob("*.json"))) < COPIES:
        assert time.monotonic() < end, "they do not run at the same time"
        time.sleep(0.05)
    tune.report({"share": 1.0})


def main(address, folder):
    """Run `note_copy` in `COPIES` trials on the cluster, each with half a GPU; print the plan."""
    import numpy as np

    from raysweep import space
    from raysweep.backends.ray import cluster, tuner
    from raysweep.backends.ray.tuner import make_tuner
    from raysweep.data.dataset import Dataset

    images = np.random.default_rng(0).integers(0, 256, (5000, 3, 32, 32), dtype=np.uint8)
    dataset = Dataset("x", ("a", "b"), images, np.arange(5000) % 2, images[:2], np.arange(2), None, "x")
    asked = {"base": {"dataset": "cifar10"}, "search": {"seed": list(range(COPIES))}, "resources": {"gpu": 0.5}}
    sweep = space.build(asked, {}, "test")
    print(cluster.connect(address, sweep.resources))
    trainable = tuner.shared(note_copy, {"datasets": {("cifar10", 32, None): dataset}, "folder": folder}, sweep)
    make_tuner(trainable, sweep, sweep.trials, Path(folder, "results")).fit()


if __name__ == "__main__":
    from tests.support import copies  # workers then import the trainable rather than getting a copy of this program

    copies.main(*sys.argv[1:])
