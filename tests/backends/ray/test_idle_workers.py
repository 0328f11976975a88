"""Workers that die while they wait for their next trial."""

import json
import os
import signal

from raysweep import space
from raysweep.backends.progress import SilentTrials
from raysweep.backends.ray import tuner
from raysweep.backends.stopping import Stopping
from raysweep.backends.sweep_run import SweepRun
from raysweep.results.store import Store
from tests.support.shared_ray import start_shared_ray
from tests.support.trials import TINY, few_digits

DATASETS = {("digits", 8, None): few_digits(train=60, test=20)}
BASE = {**TINY, "usl_epochs": 1, "le_epochs": 1, "images_every": 0}


class KillsAfterTheFirst(SilentTrials):
    """Kills the worker of the first trial that has ended, before Tune gives it another one."""

    def __init__(self, root):
        self.root, self.ended, self.retried = root, [], []

    def retry(self, trial, attempt, reason):
        self.retried.append(trial.name)

    def end(self, result):
        if not self.ended:
            os.kill(json.loads((self.root / result.trial / "attempt.json").read_text())["pid"], signal.SIGKILL)
        self.ended.append((result.trial, result.status))


def test_the_next_trial_of_a_worker_that_died_while_it_was_idle_runs(tmp_path):
    """Here this trial pretrains for another one."""
    start_shared_ray()
    search = {"alpha": [0.1, 1], "labels_per_class": [1, 2]}
    tune = {"max_concurrent": 1, "max_failures": 1}
    sweep = space.build({"base": BASE, "search": search, "tune": tune, "baseline": False}, {}, "test")
    store = Store(tmp_path / "x").create(sweep, {})
    view = KillsAfterTheFirst(store.root)
    tuner.run(SweepRun(sweep, list(sweep.trials), [], store, dict(DATASETS), view, Stopping(store)))
    assert len(view.retried) == 1
    assert sorted(view.ended) == sorted((trial.name, "finished") for trial in sweep.trials)
    assert {result.attempts for result in store.results(sweep)} == {1}
