"""What schedulers of Ray Tune are told, and that a worker whose trial they stop takes up the next: on a real Ray."""

import json
from pathlib import Path

import pytest
import ray

from raysweep import space
from raysweep.sweep import cluster, tuner
from raysweep.sweep.schedulers import EPOCH, make_scheduler

METRIC = "online/knn_val_accuracy"
BASE = {"usl_epochs": 8, "probe_every": 2}  # evaluations after 2, 4, 6 and 8


@pytest.fixture(scope="module")
def started():
    cluster.connect(None, space.Resources())
    yield
    ray.shutdown()


def curve(config, folder):
    """A trainable that reports as a trial does, its accuracy being its α, and notes the epoch that it came to."""
    import os

    from ray import tune

    trial = config["trial"]
    note = Path(folder, f"{trial.name}.json")
    tune.report({"share": 0.0})  # by time, before the first evaluation
    epochs = range(1, trial.settings.usl_epochs + 1)
    for epoch in [*epochs[:3], *epochs]:  # it goes on from an earlier checkpoint once
        note.write_text(json.dumps([os.getpid(), epoch]))
        if epoch % 2 == 0:
            tune.report({"share": epoch / 9, EPOCH: epoch, METRIC: trial.settings.alpha})
        else:
            tune.report({"share": epoch / 9})
    tune.report({"share": 0.95})  # while it is probed
    tune.report({"share": 1.0})
    note.write_text(json.dumps([os.getpid(), "end"]))


def run(folder, alphas, **settings):
    """Where each trial ended, one after the other, and why those were stopped that were."""
    raw = {"base": BASE, "search": {"alpha": alphas}, "baseline": True, "tune": {"max_concurrent": 1, **settings}}
    sweep = space.build(raw, {}, "test")
    scheduler = make_scheduler(sweep)
    trainable = tuner.shared(curve, {"folder": str(folder)}, sweep)
    grid = tuner.make_tuner(trainable, sweep, sweep.trials, folder / "results", scheduler).fit()
    assert not grid.errors
    notes = {trial.name: json.loads((folder / f"{trial.name}.json").read_text()) for trial in sweep.trials}
    assert len({pid for pid, _ in notes.values()}) == 1, "one worker ran all"
    assert notes.pop("random,seed=0")[1] == "end"
    return [epoch for _, epoch in notes.values()], scheduler.reasons


def test_asha_keeps_what_is_best_at_its_rungs(started, tmp_path):
    # Rungs at 2 and 4; at each a trial goes on that is not below the median of those before it. 4.5 passes the first,
    # where 5, 3, 1 and 6 were, and not the second, where 5 and 6 were.
    ends, reasons = run(tmp_path, [5, 3, 1, 6, 4.5], scheduler="asha", reduction_factor=2)
    assert ends == ["end", 2, 2, "end", 4]
    assert reasons["alpha=1.0,seed=0"] == "stopped by asha after epoch 2: online/knn_val_accuracy 1.0000"
    assert set(reasons) == {"alpha=3.0,seed=0", "alpha=1.0,seed=0", "alpha=4.5,seed=0"}


def test_less_may_be_better_and_grace_is_given(started, tmp_path):
    ends, _ = run(tmp_path, [5, 6, 1], scheduler="asha", reduction_factor=2, grace_epochs=3, mode="min", metric=METRIC)
    assert ends == ["end", 4, "end"]


def test_the_median_rule_needs_three_others_and_stops_nobody_before(started, tmp_path):
    ends, reasons = run(tmp_path, [1, 2, 3, 1.5, 4, 1.75], scheduler="median", grace_epochs=4)
    assert ends == ["end", "end", "end", 4, "end", 4]
    assert reasons["alpha=1.5,seed=0"] == "stopped by median after epoch 4: online/knn_val_accuracy 1.5000"
