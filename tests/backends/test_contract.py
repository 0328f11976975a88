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
def ray_backend(tmp_path_factory):
    """The Ray backend, connected to a Ray that all tests in this module share."""
    import ray

    from raysweep.backends.ray import tuner

    store = Store(tmp_path_factory.mktemp("prepared") / "x")
    assert " trial" in tuner.prepare(sweep_of(), store, None) or ray.is_initialized()
    yield tuner
    ray.shutdown()


@pytest.fixture(params=["local", "ray"])
def backend(request):
    return local if request.param == "local" else request.getfixturevalue("ray_backend")


def run(backend, folder, sweep, datasets=None, stop=False):
    """Run a sweep; return the store, the recorded trials and the backend's return value."""
    datasets = preparation.load_datasets(sweep, {}) if datasets is None else datasets
    store = Store(folder / "runs" / sweep.name).create(sweep, {})
    noted, stopping = Noted(), Stopping(store)
    with store.lock(), stopping.running():
        if stop:
            stopping.ask()
            assert stopping.told.wait(10)
        returned = backend.run(SweepRun(sweep, list(sweep.trials), [], store, datasets, noted, stopping))
    return store, noted, returned


def sweep_of(**search):
    raw = {"name": "x", "base": QUICK, "search": {"seed": [0], **search}, "tune": {"max_failures": 0}}
    return space.build(raw, {}, "test")


def test_every_trial_leaves_its_result(backend, tmp_path):
    sweep = sweep_of(alpha=[0.1, 1])
    store, noted, returned = run(backend, tmp_path, sweep)
    assert returned == sweep
    assert [result.status for result in store.results(sweep)] == ["finished", "finished"]
    names = {trial.name for trial in sweep.trials}
    assert set(noted.began) == set(noted.ended) == names
    assert not list(store.root.glob("*/checkpoints"))


def test_a_trial_that_raises_is_a_failed_result_and_the_next_one_runs(backend, tmp_path):
    sweep = space.build(
        {
            "name": "x",
            "base": QUICK,
            "search": [{"dataset": ["digits_m"], "probe_dataset": ["digits_m"]}, {"dataset": ["digits"]}],
            "tune": {"max_failures": 0},
        },
        {},
        "test",
    )
    datasets = preparation.load_datasets(sweep, {})
    whole = datasets["digits_m", 16, None]
    few = replace(whole, train_images=whole.train_images[:60], train_labels=whole.train_labels[:60])
    datasets["digits_m", 16, None] = few  # fewer images than a batch; normally a check before the sweep finds this
    store, noted, _ = run(backend, tmp_path, sweep, datasets)
    failed, finished = (json.loads((store.trial(t.name) / "result.json").read_text()) for t in sweep.trials)
    assert (failed["status"], finished["status"]) == ("failed", "finished")
    assert "batch_size is checked" in failed["error"]
    assert "AssertionError" in (store.trial(sweep.trials[0].name) / "error.txt").read_text()
    assert len(noted.ended) == 2


def test_a_sweep_that_must_end_runs_nothing_and_leaves_no_result(backend, tmp_path):
    sweep = sweep_of(alpha=[0.1, 1])
    store, noted, _ = run(backend, tmp_path, sweep, stop=True)
    assert store.results(sweep) == []
    assert noted.ended == []
    assert all(load_checkpoint(store.trial(trial.name)) is None for trial in sweep.trials)


def test_all_backends_compute_the_same_bits(ray_backend, tmp_path):
    sweep, metrics = sweep_of(emb_loss=["barlow"]), []
    for backend in (local, ray_backend):
        store, _, _ = run(backend, tmp_path / backend.__name__, sweep)
        (result,) = store.results(sweep)
        metrics.append({name: value for name, value in result.metrics.items() if name != "pretrain/images_per_s"})
    assert metrics[0] == metrics[1]
