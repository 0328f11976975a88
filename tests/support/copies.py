"""Where the dataset lies in the memory of the processes that read it. Workers import little of it."""

import json
import sys
import time
from pathlib import Path

COPIES = 4
SECONDS = 120.0


def place_in_memory(address):
    """Device and inode of the file that is mapped where `address` lies, and where in it; None: memory of its own."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, offset, device, inode = line.split()[:5]
        start, end = (int(number, 16) for number in span.split("-"))
        if start <= address < end:
            return f"{device} {inode} {int(offset, 16) + address - start}" if inode != "0" else None
    raise AssertionError(f"nothing is mapped at {address:#x}")


def note_copy(config, datasets, folder):
    """A trainable that notes its node and GPU, and where the dataset lies, while as many others do so as are to."""
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
    """Run it in `COPIES` trials, each with half of a GPU, on the cluster; prints the plan."""
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
    from tests.support import copies  # so that workers import the trainable, and get no copy of this program

    copies.main(*sys.argv[1:])
