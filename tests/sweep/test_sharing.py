"""The dataset reaches the workers through shared memory: measured, not assumed."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import ray

from raysweep import space
from raysweep.data import Dataset
from raysweep.sweep import cluster, tuner
from tests.sweep.copies import place_in_memory

MEBIBYTE = 2**20
IMAGES = 90_000  # 32×32 RGB: 264 MiB


@pytest.fixture(scope="module")
def started():
    cluster.connect(None, space.Resources())
    yield
    ray.shutdown()


def private_memory():
    """Memory that this process shares with no other, in MiB, from the kernel."""
    fields = dict(line.split()[:2] for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    return (int(fields["Private_Clean:"]) + int(fields["Private_Dirty:"])) / 1024


def set_up_a_trial(config, datasets, folder):
    """A trainable that brings a trial to where it would start training, and notes what that cost this process."""
    from ray import tune

    from raysweep import experiment, inputs

    trial, directory = config["trial"], Path(folder, config["trial"].name)
    directory.mkdir()
    data = inputs.pick(trial.settings, datasets)
    assert not data.pretrain.flags.writeable
    before = private_memory()
    work = experiment.Work(trial, data, directory, attempt=1, gpu=False, caught=[])
    assert all(int(images.sum()) > 0 for images in (work.images, work.splits["fit"].images))  # every page is read
    grown = private_memory() - before
    place = place_in_memory(work.images.data_ptr())
    (directory / "memory.json").write_text(json.dumps([grown, place]))
    end = time.monotonic() + 60
    while len(list(Path(folder).glob("*/memory.json"))) < 2 and time.monotonic() < end:
        time.sleep(0.05)  # so that the two trials run in two workers
    tune.report({"share": 1.0})


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux' smaps_rollup")
def test_workers_map_one_copy_of_the_dataset(started, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, 3, 32, 32), dtype=np.uint8)
    dataset = Dataset("x", ("a", "b"), images, np.arange(IMAGES) % 2, images[:2], np.arange(2), None, "x")
    size = images.nbytes / MEBIBYTE
    sweep = space.build({"base": {"dataset": "cifar10"}, "search": {"seed": [0, 1]}}, {}, "test")
    parameters = {"datasets": {("cifar10", 32, None): dataset}, "folder": str(tmp_path)}
    trainable = tuner.shared(set_up_a_trial, parameters, sweep)
    tuner.make_tuner(trainable, sweep, sweep.trials, tmp_path / "results").fit()
    notes = [json.loads((tmp_path / trial.name / "memory.json").read_text()) for trial in sweep.trials]
    grown, places = zip(*notes)
    # Measured: 88 MiB whatever the size of the dataset (model, optimiser, PyTorch's own start); a copy adds `size`.
    assert max(grown) < 0.6 * size, grown
    assert places[0] == places[1] is not None, places  # both trials read one file at one place: the object store's
