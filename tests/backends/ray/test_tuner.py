"""Ray Tune on a real Ray, with this module's own trainables.

The tests check the evaluations that schedulers receive, and that a worker whose trial is stopped runs the next trial.
They measure that the dataset reaches the workers through shared memory.
"""

import json
import threading
import time
import uuid
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import boto3
import numpy as np
import pytest
from ray.exceptions import RayError
from ray.tune.search import Searcher

from raysweep import space
from raysweep.backends.display import ProgressDisplay
from raysweep.backends.progress import SilentTrials
from raysweep.backends.ray import capacity, tuner
from raysweep.backends.ray.callbacks import SweepStopper, TrialEvents
from raysweep.backends.ray.capacity import CapacityMonitor, alive_nodes
from raysweep.backends.ray.schedulers import EPOCH, make_scheduler
from raysweep.backends.ray.trainable import TrialOptions, attempt
from raysweep.backends.ray.tuner import make_tuner
from raysweep.backends.stopping import Stopping
from raysweep.data.dataset import Dataset
from raysweep.errors import InputError
from raysweep.results.bucket import Bucket
from raysweep.results.store import Store
from raysweep.system.terminal import make_console
from tests.support import PATIENCE, trials
from tests.support.copies import place_in_memory
from tests.support.shared_ray import start_shared_ray

METRIC, NEUTRAL = "online/knn_val_accuracy", "pretrain/embedding_std"
BASE = {"usl_epochs": 8, "probe_every": 2}  # evaluations after epochs 2, 4, 6 and 8
MEBIBYTE = 2**20
IMAGES = 90_000  # 32×32 RGB: 264 MiB


@pytest.fixture(scope="module")
def started():
    start_shared_ray()


def curve(config, folder):
    """A trainable that reports like a trial, with its α as accuracy, and writes down the last epoch it reached."""
    import os

    from ray import tune

    trial = config["trial"]
    note = Path(folder, f"{trial.name}.json")
    tune.report({"fraction": 0.0})  # a report by time, before the first evaluation
    epochs = range(1, trial.settings.usl_epochs + 1)
    for epoch in [*epochs[:3], *epochs]:  # the trial resumes once from an earlier checkpoint
        note.write_text(json.dumps([os.getpid(), epoch]))
        if epoch % 2 == 0:
            tune.report(
                {"fraction": epoch / 9, EPOCH: epoch, METRIC: trial.settings.alpha, NEUTRAL: trial.settings.alpha}
            )
        else:
            tune.report({"fraction": epoch / 9})
    tune.report({"fraction": 0.95})  # while the probes run
    tune.report({"fraction": 1.0})
    note.write_text(json.dumps([os.getpid(), "end"]))


def run(folder, alphas, **settings):
    """Run trials one after another; return where each ended, and why the stopped ones were stopped."""
    raw = {"base": BASE, "search": {"alpha": alphas}, "baseline": True, "tune": {"max_concurrent": 1, **settings}}
    sweep = space.build(raw, {}, "test")
    scheduler = make_scheduler(sweep)
    trainable = tuner.shared(curve, {"folder": str(folder)}, sweep)
    grid = make_tuner(trainable, sweep, sweep.trials, folder / "results", scheduler).fit()
    assert not grid.errors
    notes = {trial.name: json.loads((folder / f"{trial.name}.json").read_text()) for trial in sweep.trials}
    assert len({pid for pid, _ in notes.values()}) == 1, "one worker ran all trials"
    assert notes.pop("random,seed=0")[1] == "end"
    return [epoch for _, epoch in notes.values()], scheduler.reasons


def test_asha_keeps_what_is_best_at_its_rungs(started, tmp_path):
    # At the rungs 2 and 4, a trial continues if it is not below the median of earlier trials. 4.5 passes the first,
    # which 5, 3, 1 and 6 reached, but not the second, which 5 and 6 reached.
    ends, reasons = run(tmp_path, [5, 3, 1, 6, 4.5], scheduler="asha", reduction_factor=2)
    assert ends == ["end", 2, 2, "end", 4]
    assert reasons["alpha=1.0,seed=0"] == "stopped by asha after epoch 2: online/knn_val_accuracy 1.0000"
    assert set(reasons) == {"alpha=3.0,seed=0", "alpha=1.0,seed=0", "alpha=4.5,seed=0"}


def test_less_may_be_better_and_grace_is_given(started, tmp_path):
    ends, _ = run(tmp_path, [5, 6, 1], scheduler="asha", reduction_factor=2, grace_epochs=3, mode="min", metric=NEUTRAL)
    assert ends == ["end", 4, "end"]


def test_the_median_rule_needs_three_others_and_stops_nobody_before(started, tmp_path):
    ends, reasons = run(tmp_path, [1, 2, 3, 1.5, 4, 1.75], scheduler="median", grace_epochs=4)
    assert ends == ["end", "end", "end", 4, "end", 4]
    assert reasons["alpha=1.5,seed=0"] == "stopped by median after epoch 4: online/knn_val_accuracy 1.5000"


def hold(config, folder):
    """A trainable that notes that it runs, and ends after a while."""
    from ray import tune

    note = Path(folder, config["trial"].name)
    note.touch()
    time.sleep(0.2)
    tune.report({"fraction": 1.0})
    note.unlink()


class Listed(Searcher):
    """Gives Tune the trials of a list, and notes how many notes of `hold` there were then."""

    def __init__(self, trials, folder):
        super().__init__()
        self.trials, self.folder, self.held, self.drawn = list(trials), folder, [], []

    def suggest(self, trial_id):
        if not self.trials:
            return Searcher.FINISHED
        self.held.append(len(list(self.folder.iterdir())))
        return {"trial": self.trials.pop(0)}

    def on_trial_complete(self, trial_id, result=None, error=False):
        self.drawn.append(len(self.held))


@pytest.mark.parametrize(("most", "drawn"), [(1, 1), (8, 3)])
def test_a_searcher_is_asked_for_one_trial_in_advance_whatever_the_limit(started, tmp_path, most, drawn):
    """Two trials run at a time on two cores. A searcher that uses results must not choose all points before them."""
    sweep = space.build({"search": {"seed": list(range(6))}, "tune": {"max_concurrent": most}}, {}, "test")
    (tmp_path / "notes").mkdir()
    trainable = tuner.shared(hold, {"folder": str(tmp_path / "notes")}, sweep)
    listed = Listed(sweep.trials, tmp_path / "notes")
    grid = make_tuner(trainable, sweep, sweep.trials, tmp_path / "results", proposer=listed).fit()
    assert not grid.errors
    assert len(grid) == len(listed.drawn) == 6
    assert listed.drawn[0] <= drawn
    assert max(listed.held) <= min(most, 2)


def private_memory():
    """Return this process's private memory in MiB, according to the kernel."""
    fields = dict(line.split()[:2] for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    return (int(fields["Private_Clean:"]) + int(fields["Private_Dirty:"])) / 1024


def set_up_a_trial(config, datasets, folder):
    """A trainable that prepares a trial up to the start of training, and writes down the memory this cost."""
    import os

    from ray import tune

    from raysweep.data.selection import select_data
    from raysweep.trial_run import TrialRun

    trial, directory = config["trial"], Path(folder, config["trial"].name)
    directory.mkdir()
    data = select_data(trial.settings, datasets)
    assert not data.pretrain.flags.writeable
    before = private_memory()
    work = TrialRun(trial, data, directory, attempt=1, gpu=False, caught=[])
    assert all(
        int(images.sum()) > 0 for images in (work.images, work.evaluation.splits["fit"].images)
    )  # every page is read
    grown = private_memory() - before
    place = place_in_memory(work.images.data_ptr())
    (directory / "memory.json").write_text(json.dumps([grown, place, os.getpid()]))
    end = time.monotonic() + PATIENCE
    while len(list(Path(folder).glob("*/memory.json"))) < 2:
        assert time.monotonic() < end, "the two trials do not run at once"
        time.sleep(0.05)
    tune.report({"fraction": 1.0})


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux' smaps_rollup")
def test_workers_map_one_copy_of_the_dataset(started, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, 3, 32, 32), dtype=np.uint8)
    dataset = Dataset("x", ("a", "b"), images, np.arange(IMAGES) % 2, images[:2], np.arange(2), None, "x")
    size = images.nbytes / MEBIBYTE
    sweep = space.build({"base": {"dataset": "cifar10"}, "search": {"seed": [0, 1]}}, {}, "test")
    parameters = {"datasets": {("cifar10", 32, None): dataset}, "folder": str(tmp_path)}
    trainable = tuner.shared(set_up_a_trial, parameters, sweep)
    make_tuner(trainable, sweep, sweep.trials, tmp_path / "results").fit()
    notes = [json.loads((tmp_path / trial.name / "memory.json").read_text()) for trial in sweep.trials]
    grown, places, pids = zip(*notes)
    assert len(set(pids)) == 2, "two workers"
    # Measured: 88 MiB for any dataset size (model, optimiser, PyTorch's start). A copy of the dataset would add `size`.
    assert max(grown) < 0.6 * size, grown
    assert places[0] == places[1] is not None, places  # both trials map the same place in one file, the object store's


@pytest.mark.parametrize(
    ("asked", "words"), [({"cpu": 1000}, "needs 1000 cpu and 0 gpu"), ({"gpu": 64}, "needs 1 cpu and 64 gpu")]
)
def test_a_request_that_no_node_can_meet_is_refused(started, asked, words):
    with pytest.raises(InputError, match=words):
        capacity.plan([node["Resources"] for node in alive_nodes()], space.Resources(**asked))


@pytest.fixture
def ending(tmp_path):
    """A sweep of three trials, with its `Stopping`, its `TrialEvents`, and the `SweepStopper` that ends the run."""
    sweep = space.build({"search": {"seed": [0, 1, 2]}}, {}, "test")
    results = Store(tmp_path / "x").create(sweep, {})
    stopping = Stopping(results)
    stopping.flag.place()
    watch = TrialEvents({}, results, None, {}, ProgressDisplay(sweep, [], make_console()))
    return sweep.trials, stopping, watch, SweepStopper(stopping, watch, CapacityMonitor(sweep.resources))


def test_a_trial_that_begins_before_it_can_be_told_to_leave_is_waited_for(ending):
    (first, second, late), stopping, watch, stop = ending
    watch.running = {first.name: first}
    stopping.since = time.monotonic()  # the sweep must end, and the flag is still being written
    assert not stop.stop_all()
    watch.running[second.name] = second
    stopping.flag.set()
    stopping.trials_are_told.set()
    assert not stop.stop_all()
    watch.running = {second.name: second}
    assert not stop.stop_all(), "the second trial computes until it checks the flag"
    watch.running = {late.name: late}
    assert stop.stop_all(), "the late trial saw the flag when it began"


def test_running_trials_are_waited_for_although_the_flag_is_set_before_tune_asks(ending):
    (first, *_), stopping, watch, stop = ending
    watch.running = {first.name: first}
    assert not stop.stop_all()
    stopping.request_stop()
    assert stopping.trials_are_told.wait(PATIENCE)
    assert not stop.stop_all(), "the trial still has to save its checkpoint"
    watch.running = {}
    assert stop.stop_all()


@pytest.fixture
def uri(server, monkeypatch, tmp_path):
    """The URI of a new bucket."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("RAYSWEEP_CACHE", str(tmp_path / "cache"))
    name = uuid.uuid4().hex
    boto3.client("s3").create_bucket(Bucket=name)
    return f"s3://{name}/runs"


KILLED = """1 worker(s) were killed due to the node running low on memory.
Memory on the node (IP: {}, ID: 0c13) was 15.30GB used / 16.00GB limit (0.956)
Ray killed 1 worker(s) based on the killing policy: [
(pid={}, actual memory used=8.10GB, worker ID=5e)]
Considered workers: [(pid=999, actual memory used=0.10GB, worker ID=6e)]
"""


@pytest.mark.parametrize(("pid", "hit"), [(70, [0]), (71, [2]), (80, [3]), (90, [0, 1, 2, 3]), (99, [0, 1, 2, 3])])
def test_a_process_that_ray_ends_costs_its_trial_alone_on_several_nodes_with_a_bucket(started, uri, pid, hit):
    """If no trial is known to run in the process, the failure counts for every running trial."""
    (node,) = alive_nodes()
    address, host = node["NodeManagerAddress"], node["NodeManagerHostname"]
    sweep = space.build({"search": {"seed": [0, 1, 2, 3]}}, {}, "test")
    results = Store(f"{uri}/x").create(sweep, {})
    watch = TrialEvents({}, results, None, {}, SilentTrials())
    attempts = [(70, host), (70, "elsewhere"), (71, host), (90, host)]  # written on the nodes of the trials
    for trial, (process, where) in zip(sweep.trials, attempts, strict=True):
        settings = trial.settings.model_dump()
        content = {"attempt": 1, "pid": process, "host": where, "settings": settings}
        Bucket(f"{results.place}/{trial.name}").write("attempt.json", json.dumps(content).encode())
        watch.running[trial.name] = trial
    parallel = SimpleNamespace(config={"trial": sweep.trials[3]})  # a trial in several processes
    watch.on_trial_result(1, [], parallel, {"fraction": 0.1, "node_ip": address, "pid": 80})
    broken = Counter()
    watch.break_off(RayError(KILLED.format(address, pid)), broken, max_failures=1)
    assert broken == {sweep.trials[number].name: 1 for number in hit}


def test_a_trial_waits_for_a_results_directory_that_its_node_mounts_late(tmp_path):
    trial = trials.trial_of(usl_epochs=0, le_epochs=1)
    results = Store(tmp_path / "x").create(space.build({}, {}, "test"), {})
    (tmp_path / "x").rename(tmp_path / "not mounted")
    mounting = threading.Timer(1.0, lambda: (tmp_path / "not mounted").rename(tmp_path / "x"))
    mounting.start()
    options = TrialOptions(results.place, 1, False, None, None, False, "token")
    attempt(trial, trials.DATASETS, options, lambda report: None)
    assert Store(tmp_path / "x").result(trial.name).status == "finished"


def without_a_mount(config, place):
    """A trainable on a node that does not see the results directory."""
    from raysweep.results.store import Store
    from raysweep.results.trial_directory import at_work

    with at_work(Store(place), config["trial"].name):
        raise AssertionError("the node sees the directory")


def test_a_trial_is_run_again_if_its_node_does_not_see_the_results(started, tmp_path):
    """Otherwise a node without the mount would fail one waiting trial after the other, as its slots are free."""
    sweep = space.build({"tune": {"max_failures": 1}}, {}, "test")
    (trial,) = sweep.trials
    results = Store(tmp_path / "x").create(sweep, {})
    trainable = tuner.shared(without_a_mount, {"place": str(tmp_path / "elsewhere")}, sweep)
    watch = TrialEvents(trials.DATASETS, results, None, {}, SilentTrials(), max_failures=1)
    for state, is_last in ("first", False), ("second", True):
        watch.must_run_again = False
        make_tuner(trainable, sweep, sweep.trials, tmp_path / state, callbacks=[watch]).fit()
        assert watch.must_run_again != is_last
        assert (results.result(trial.name) is not None) == is_last
    assert "does not see the sweep's sweep.yaml" in results.result(trial.name).error
