"""Requirements on every backend: the same call gives the same results, bit for bit."""

import json
from dataclasses import replace

import pytest

from raysweep import preparation, space
from raysweep.backends import local
from raysweep.backends.progress import SilentTrials
from raysweep.backends.stopping import Stopping
from raysweep.backends.sweep_run import SweepRun
from raysweep.results.checkpoints import load_checkpoint
from raysweep.results.store import Store
from tests.support import PATIENCE
from tests.support.shared_ray import start_shared_ray

QUICK = {"usl_epochs": 2, "le_epochs": 2, "precision": "fp32", "images_every": 0, "projector_images": 0}


class Noted(SilentTrials):
    """Records the trials that it is told about."""

    def __init__(self):
        self.began, self.ended = [], []

    def begin(self, trial):
        self.began.append(trial.name)

    def end(self, result):
        self.ended.append(result.trial)


@pytest.fixture(scope="module")
def ray_backend():
    """The Ray backend, connected to the Ray that tests share."""
    start_shared_ray()
    from raysweep.backends.ray import tuner

    return tuner


def run(backend, folder, sweep, datasets, stop=False):
    """Run a sweep; return the store, the recorded trials and the backend's return value."""
    store = Store(folder / "runs" / sweep.name).create(sweep, {})
    noted, stopping = Noted(), Stopping(store)
    with store.lock(), stopping.running():
        if stop:
            stopping.request_stop()
            assert stopping.trials_are_told.wait(PATIENCE)
        returned = backend.run(SweepRun(sweep, list(sweep.trials), [], store, datasets, noted, stopping))
    return store, noted, returned


@pytest.fixture(scope="module")
def mixed(few):
    """A sweep and its datasets. The first trial has fewer images than a batch; normally a check would find this."""
    search = [
        {"dataset": ["digits_m"], "probe_dataset": ["digits_m"], "image_size": [16], "batch_size": [100]},
        {"emb_loss": ["barlow"], "alpha": [0.1, 1]},
    ]
    raw = {"name": "x", "base": {**few, **QUICK}, "search": search, "tune": {"max_failures": 0}}
    sweep = space.build(raw, {}, "test")
    datasets = preparation.load_datasets(sweep, {})
    whole = datasets["digits_m", 16, None]
    too_few = {"train_images": whole.train_images[:60], "train_labels": whole.train_labels[:60]}
    return sweep, {**datasets, ("digits_m", 16, None): replace(whole, **too_few)}


@pytest.fixture(scope="module")
def on_local(mixed, tmp_path_factory):
    """The mixed sweep after its run in this process: what `run` returns."""
    return run(local, tmp_path_factory.mktemp("local"), *mixed)


@pytest.fixture(scope="module")
def on_ray(ray_backend, mixed, tmp_path_factory):
    """The mixed sweep after its run on Ray: what `run` returns."""
    return run(ray_backend, tmp_path_factory.mktemp("ray"), *mixed)


@pytest.fixture(params=["on_local", "on_ray"])
def ended(request):
    return request.getfixturevalue(request.param)


def test_every_trial_leaves_its_result_also_after_one_that_raises(ended, mixed):
    store, noted, returned = ended
    sweep, _ = mixed
    assert returned == sweep
    names = [trial.name for trial in sweep.trials]
    assert set(noted.began) == set(noted.ended) == set(names)
    assert len(noted.ended) == len(names) == 3
    failed, *others = (json.loads((store.trial(name) / "result.json").read_text()) for name in names)
    assert failed["status"] == "failed"
    assert "batch_size is checked" in failed["error"]
    assert "AssertionError" in (store.trial(names[0]) / "error.txt").read_text()
    assert [other["status"] for other in others] == ["finished", "finished"]
    assert not list(store.root.glob("*/checkpoints"))


@pytest.mark.parametrize("backend", ["local", "ray"])
def test_a_sweep_that_must_end_runs_nothing_and_leaves_no_result(backend, mixed, ray_backend, tmp_path):
    sweep, datasets = mixed
    store, noted, _ = run(local if backend == "local" else ray_backend, tmp_path, sweep, datasets, stop=True)
    assert store.results(sweep) == []
    assert noted.ended == []
    assert all(load_checkpoint(store.trial(trial.name)) is None for trial in sweep.trials)


def test_all_backends_compute_the_same_bits(on_local, on_ray, mixed):
    sweep, _ = mixed
    metrics = [
        [
            {name: value for name, value in result.metrics.items() if name != "pretrain/images_per_s"}
            for result in store.results(sweep)
        ]
        for store, _, _ in (on_local, on_ray)
    ]
    assert metrics[0] == metrics[1]
    assert [len(scores) > 3 for scores in metrics[0]] == [False, True, True]
