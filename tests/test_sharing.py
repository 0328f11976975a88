"""Trials that share a pretraining give the results of the trials alone, bit for bit."""

import dataclasses
import json
import shutil
from collections import Counter

import pytest
import torch
from ray.exceptions import RayError

from raysweep import parts, plugins, space
from raysweep.backends import local
from raysweep.backends.handout import PretrainingQueue, cut
from raysweep.backends.progress import SilentTrials
from raysweep.backends.ray.callbacks import TrialEvents
from raysweep.backends.ray.handout import Dispenser
from raysweep.backends.ray.tuner import ahead
from raysweep.backends.stopping import Stopping
from raysweep.backends.sweep_run import SweepRun
from raysweep.errors import InputError
from raysweep.results.event_records import split
from raysweep.results.events import read_events
from raysweep.results.handout import FOLDER, Handout, remove_unneeded
from raysweep.results.store import Store
from raysweep.running import pretrainings
from raysweep.space.model import Tune
from raysweep.space.sharing import HandsOut, TakesOver, can_share, online_key, pretrainings_of, taking_over
from raysweep.training.state import fresh_state
from tests.support.commands import alone as run_alone
from tests.support.commands import on_shared_ray
from tests.support.kills import run_killed
from tests.support.trials import CLOCK, TINY, few_digits, read_encoder

pytestmark = pytest.mark.usefixtures("no_figures")

BASE = {
    **TINY,
    "batch_size": 30,
    "le_batch_size": 30,
    "usl_epochs": 3,
    "probe_every": 2,
    "images_every": 2,
    "le_epochs": 2,
}
SEARCH = {"labels_per_class": [1, 2], "probe_layer": ["trunk", "embedding"]}
LAYERS = {"probe_layer": ["trunk", "embedding"]}
"""Two trials that share a pretraining and have other online measures."""
DATASETS = {("digits", 8, None): few_digits(train=60, test=20)}


def sweep_of(search=SEARCH, tune=None, **base):
    raw = {"name": "x", "base": {**BASE, **base}, "search": search, "tune": tune or {}, "baseline": False}
    return space.build(raw, {}, "test")


def sweep_run(folder, sweep, share=True, pending=None, datasets=DATASETS, progress=None):
    """Run a sweep in this process and return its results directory."""
    store = Store(folder)
    if not folder.exists():
        store.create(sweep, {})
    pending = list(sweep.trials) if pending is None else pending
    progress = progress or SilentTrials()
    local.run(SweepRun(sweep, pending, [], store, datasets, progress, Stopping(store), share))
    return store


def make_method(settings):
    return fresh_state(settings, 1, 8, torch.device("cpu"), 10).method


def events_of(directory):
    """Return every event of a trial in its order, without times and what belongs to one trial alone."""
    events = []
    for event in read_events(directory, lambda content: True):
        for value in event.summary.value:
            if value.tag != CLOCK and value.metadata.plugin_data.plugin_name != "hparams":
                events.append((event.step, value.tag, value.SerializeToString(deterministic=True)))
    return events


def content_of(store, trial):
    """Return what a trial has left that must not depend on whether it shares."""
    result = dataclasses.asdict(store.result(trial))
    for name in ("wall_s", "pretrained_by", "attempts"):
        del result[name]
    result["metrics"] = [(name, value) for name, value in result["metrics"].items() if name != CLOCK]
    directory = store.trial(trial)
    lines = [line.split(",") for line in (directory / "curves.csv").read_text().splitlines()]
    clock = lines[0].index(CLOCK)
    curves = [line[:clock] + line[clock + 1 :] for line in lines]
    encoder = (directory / "encoder.safetensors").read_bytes()
    return {"result": result, "curves": curves, "encoder": encoder, "events": events_of(directory)}


def assert_same(one, other, trials):
    for trial in trials:
        mine, its = content_of(one, trial.name), content_of(other, trial.name)
        for name in mine:
            assert mine[name] == its[name], f"{trial.name}: {name}"


WAYS = {
    **{name: {"usl_type": name} for name in parts.method if name != "supervised"},
    "greedy": {"layerwise": "greedy", "usl_epochs": 2, "probe_every": 3},
    "random": {"layerwise": "random", "usl_epochs": 1, "probe_every": 3},
    "supervised": {"usl_type": "supervised", "strength": 0.0},
    "wsd": {"usl_type": "simclr", "schedule": "wsd", "warmup_epochs": 1, "decay_epochs": 2},
    "nothing measured": {"probe_every": 0},
}


@pytest.mark.parametrize("way", WAYS)
def test_shared_is_alone_bit_for_bit(way, tmp_path):
    """Once for each method and each way of layer-wise training."""
    sweep = sweep_of(SEARCH if way == "ae_parallel" else LAYERS, **WAYS[way])
    shared, alone = sweep_run(tmp_path / "shared", sweep), sweep_run(tmp_path / "alone", sweep, share=False)
    leader, *others = sweep.trials
    assert [each.pretrained_by for each in shared.results(sweep)] == ["", *(leader.name for _ in others)]
    assert_same(shared, alone, sweep.trials)
    assert not list(tmp_path.glob(f"*/{FOLDER}/*")), "the state is removed"


def test_other_validation_images_and_another_dataset_share_the_pretraining(tmp_path):
    """The online measures of each trial are of its own validation images."""
    sweep = sweep_of([{"val_fraction": [0.1, 0.3, 0]}, {"knn_k": [3]}])
    shared, alone = sweep_run(tmp_path / "shared", sweep), sweep_run(tmp_path / "alone", sweep, share=False)
    assert sum(not result.pretrained_by for result in shared.results(sweep)) == 1
    assert_same(shared, alone, sweep.trials)


def test_other_validation_images_need_another_pretraining_with_labels(tmp_path):
    """A pretraining with labels must not read the labels of the validation images."""
    search = [{"val_fraction": [0.1, 0.3, 0], "labels_per_class": [1, 2]}, {"split_seed": [1]}]
    sweep = sweep_of(search, usl_type="supervised", strength=0.0)
    shared, alone = sweep_run(tmp_path / "shared", sweep), sweep_run(tmp_path / "alone", sweep, share=False)
    assert sum(not result.pretrained_by for result in shared.results(sweep)) == 4
    assert_same(shared, alone, sweep.trials)
    encoders = {(shared.trial(trial.name) / "encoder.safetensors").read_bytes() for trial in sweep.trials}
    assert len(encoders) == 4


LENGTHS = {
    "constant": (LAYERS, {"usl_type": "ae_parallel"}),
    "random blocks": ({}, {"layerwise": "random"}),
    "no decay": ({}, {"usl_type": "simsiam", "schedule": "wsd", "warmup_epochs": 1, "decay_epochs": 0}),
}


@pytest.mark.parametrize("way", LENGTHS)
def test_a_shorter_pretraining_is_the_beginning_of_a_longer_one(way, tmp_path):
    """Also where the shorter one measures at its end, and the longer one does not at that epoch."""
    search, base = LENGTHS[way]
    sweep = sweep_of({"usl_epochs": [1, 2, 3], **search}, **base)
    shared, alone = sweep_run(tmp_path / "shared", sweep), sweep_run(tmp_path / "alone", sweep, share=False)
    assert sum(not result.pretrained_by for result in shared.results(sweep)) == 1
    assert_same(shared, alone, sweep.trials)


@pytest.mark.parametrize(
    "base",
    [
        {"usl_type": "byol"},
        {"schedule": "cosine", "warmup_epochs": 1},
        {"schedule": "wsd", "warmup_epochs": 0, "decay_epochs": 1},
        {"layerwise": "greedy"},
    ],
)
def test_what_depends_on_the_number_of_epochs_is_not_shared_between_them(base):
    assert not taking_over(sweep_of({"usl_epochs": [1, 3]}, **base))


class StopAfter(SilentTrials):
    """Ends the sweep as a process that dies, at a report of a trial."""

    def __init__(self, holds):
        self.holds, self.seen = holds, []

    def progress(self, trial, status):
        self.seen.append((trial.name, status.phase, status.epoch))
        if self.holds(trial, status):
            raise KeyboardInterrupt


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_pretraining_that_breaks_off_continues_and_the_others_take_it_over(epoch, tmp_path):
    """The checkpoint holds the online measures for the other trials as well."""
    sweep = sweep_of(LAYERS, tune={"checkpoint_seconds": 0})
    with pytest.raises(KeyboardInterrupt):
        sweep_run(tmp_path / "x", sweep, progress=StopAfter(lambda trial, status: status.epoch == epoch))
    shared = sweep_run(tmp_path / "x", sweep)
    assert sum(not result.pretrained_by for result in shared.results(sweep)) == 1
    assert_same(shared, sweep_run(tmp_path / "alone", sweep, share=False), sweep.trials)


def test_a_trial_that_took_over_and_broke_off_continues(tmp_path):
    sweep = sweep_of(tune={"checkpoint_seconds": 0})
    second = sweep.trials[1]
    with pytest.raises(KeyboardInterrupt):
        sweep_run(
            tmp_path / "x",
            sweep,
            progress=StopAfter(lambda trial, status: trial is second and status.phase == "linear probe"),
        )
    assert (tmp_path / "x" / FOLDER).is_dir()
    done = [trial for trial in sweep.trials if Store(tmp_path / "x").result(trial.name) is not None]
    assert [trial.name for trial in done] == [sweep.trials[0].name]
    shared = sweep_run(tmp_path / "x", sweep, pending=list(sweep.trials[1:]))
    assert {result.pretrained_by for result in shared.results(sweep)} == {"", sweep.trials[0].name}
    assert shared.result(second.name).attempts == 2
    assert_same(shared, sweep_run(tmp_path / "alone", sweep, share=False), sweep.trials)
    assert not list((tmp_path / "x" / FOLDER).glob("*"))


def test_the_last_trial_that_is_left_takes_the_state_over(tmp_path):
    """For example after the sweep was killed when all others had finished."""
    sweep = sweep_of({"labels_per_class": [1, 2]})
    with pytest.raises(KeyboardInterrupt):
        sweep_run(
            tmp_path / "x",
            sweep,
            progress=StopAfter(lambda trial, status: trial is sweep.trials[1] and status.fraction == 0),
        )
    shared = sweep_run(tmp_path / "x", sweep, pending=[sweep.trials[1]])
    assert [result.pretrained_by for result in shared.results(sweep)] == ["", sweep.trials[0].name]
    assert not list((tmp_path / "x" / FOLDER).glob("*"))


def test_a_second_leader_hands_out_for_the_trials_that_the_first_does_not_cover(tmp_path):
    """The first one resumes from a checkpoint of a run that shared nothing, so it measured only for itself."""
    search = {"knn_k": [1, 2], "labels_per_class": [1, 2, 3]}
    sweep = sweep_of(search, tune={"checkpoint_seconds": 0})
    progress = StopAfter(lambda trial, status: status.epoch == 2)
    with pytest.raises(KeyboardInterrupt):
        sweep_run(tmp_path / "x", sweep, share=False, progress=progress)
    shared = sweep_run(tmp_path / "x", sweep)
    assert sum(not result.pretrained_by for result in shared.results(sweep)) == 2
    assert_same(shared, sweep_run(tmp_path / "alone", sweep, share=False), sweep.trials)
    assert not list((tmp_path / "x" / FOLDER).glob("*"))


def test_trials_wait_for_the_state_of_a_second_leader(tmp_path):
    """As on a cluster: the state of the first leader, which does not cover the others, is known when they wait."""
    sweep = sweep_of({"knn_k": [1, 2], "labels_per_class": [1, 2, 3]})
    store = Store(tmp_path / "x")
    store.create(sweep, {})
    queue = PretrainingQueue(sweep.trials, store, share=True)
    first = queue.next()
    handout = Handout(store, first.role.digest)
    handout.write(3, {}, b"", [online_key(first.trial.settings)])
    queue.open[0].looked.clear()
    takers = [queue.next(), queue.next()]
    assert {start.trial.settings.knn_k for start in takers} == {1}
    assert queue.next() is None, "the first leader still runs"
    assert queue.ended(first.trial, failed=False) == []
    second = queue.next()
    assert is_leader(second)
    assert queue.next() is None
    handout.write(3, {}, b"", handout_keys(second))
    queue.open[0].looked.clear()
    takers += [queue.next(), queue.next()]
    assert all(start.role == TakesOver(first.role.digest) for start in takers)
    for start in (second, *takers):
        assert queue.ended(start.trial, failed=False) == []
    assert handout.covered(3) is None


@pytest.mark.parametrize("name", ["00000003.pt", "00000003.events", "00000003.json"])
def test_a_damaged_state_is_not_taken_over(name, tmp_path):
    """The next trial then pretrains. Without the file that names the hashes, the first trial hands it out again."""
    sweep = sweep_of({"labels_per_class": [1, 2]})
    with pytest.raises(KeyboardInterrupt):
        sweep_run(tmp_path / "x", sweep, progress=StopAfter(lambda trial, status: status.phase == "linear probe"))
    (file,) = (tmp_path / "x" / FOLDER).glob(f"*/{name}")
    file.write_bytes(file.read_bytes()[:-5])
    shared = sweep_run(tmp_path / "x", sweep)
    again = sweep.trials[0].name if name.endswith(".json") else ""
    assert [result.pretrained_by for result in shared.results(sweep)] == ["", again]
    assert_same(shared, sweep_run(tmp_path / "alone", sweep, share=False), sweep.trials)


def test_what_decides_a_pretraining():
    """Seeds and settings of pretraining do, settings of the evaluation do not."""
    grid = {"alpha": [0.1, 1], "labels_per_class": [1, 2], "probe_layer": ["trunk", "embedding"], "seed": [0, 1]}
    sweep = sweep_of(grid)
    groups = pretrainings_of(sweep.trials)
    assert [len(group.trials) for group in groups] == [4] * 4
    assert len({group.digest for group in groups}) == 4
    for group in groups:
        assert len({(trial.settings.alpha, trial.settings.seed) for trial in group.trials}) == 1
    assert len(taking_over(sweep)) == 12
    assert pretrainings(sweep, share=True) == ", 4 pretrainings"
    assert pretrainings(sweep, share=False) == ""


def test_the_digest_does_not_depend_on_the_working_directory(tmp_path, monkeypatch):
    before = pretrainings_of(sweep_of().trials)
    monkeypatch.chdir(tmp_path)
    assert [each.digest for each in pretrainings_of(sweep_of().trials)] == [each.digest for each in before]


@pytest.mark.parametrize("tune", [{"scheduler": "asha"}, {"scheduler": "median"}, {"searcher": "optuna"}])
def test_with_a_scheduler_or_a_searcher_nothing_is_shared(tune):
    sweep = dataclasses.replace(sweep_of(), tune=Tune(**tune))
    assert not can_share(sweep)
    assert not taking_over(sweep)


def test_trials_wait_for_a_running_pretraining_and_no_other_trial_waits(tmp_path):
    """As on a cluster with three workers."""
    sweep = sweep_of({"alpha": [0.1, 1], "labels_per_class": [1, 2]})
    store = Store(tmp_path / "x")
    store.create(sweep, {})
    queue = PretrainingQueue(sweep.trials, store, share=True, ahead=2)
    first, second = queue.next(), queue.next()
    assert (first.trial.settings.alpha, second.trial.settings.alpha) == (0.1, 1.0)
    assert isinstance(first.role, HandsOut)
    assert queue.next() is None, "both others wait"
    assert not queue.is_empty()
    handout = Handout(store, second.role.digest)
    handout.write(3, {}, b"", [*handout_keys(second)])
    queue.open[1].looked.clear()
    third = queue.next()
    assert third.trial.settings.alpha == 1.0
    assert third.role == TakesOver(second.role.digest)
    assert queue.ended(third.trial, failed=False) == []
    assert handout.covered(3) is not None, "the trial that pretrained still runs"
    assert queue.ended(second.trial, failed=False) == []
    assert handout.covered(3) is None, "all trials have ended"
    assert [trial.settings.labels_per_class for trial in queue.ended(first.trial, failed=True)] == [2]
    assert queue.is_empty()


@pytest.mark.parametrize("has_result", [False, True])
def test_the_state_stays_while_a_trial_that_needs_it_has_no_result(has_result, tmp_path):
    """A worker that has just started leaves without a checkpoint if the sweep ends early."""
    sweep = sweep_of({"labels_per_class": [1, 2]})
    store = Store(tmp_path / "x")
    store.create(sweep, {})
    leader, taker = sweep.trials
    handout = Handout(store, pretrainings_of(sweep.trials)[0].digest)
    handout.write(3, {}, b"", [online_key(leader.settings)])  # the leader has ended in an earlier run
    done = set()
    dispenser = Dispenser(PretrainingQueue([taker, leader], store, True), Stopping(store), done, {}, lambda *_: None)
    for number in ("1", "2"):
        trial = dispenser.suggest(number)["trial"]
        if has_result or trial is leader:
            done.add(trial.name)
        dispenser.on_trial_complete(number)
    assert dispenser.suggest("3") == "FINISHED"
    assert (handout.covered(3) is None) == has_result


def test_a_leader_that_fails_as_the_run_of_tune_ends_fails_its_dependents(tmp_path):
    """For example because Ray's memory monitor has ended it. The others would repeat the pretraining that failed."""
    sweep = sweep_of({"labels_per_class": [1, 2, 3]})
    store = Store(tmp_path / "x").create(sweep, {})
    watch = TrialEvents(dict(DATASETS), store, None, {}, SilentTrials())
    queue = PretrainingQueue(sweep.trials, store, share=True)
    dispenser = Dispenser(queue, Stopping(store), watch.done, watch.failed, watch.fail)
    watch.fail_dependents = dispenser.fail_dependents
    leader, *others = sweep.trials
    assert dispenser.suggest("1")["trial"] is leader
    watch.running[leader.name] = leader
    watch.break_off(RayError("low on memory"), Counter(), max_failures=0)
    assert watch.done == {trial.name for trial in sweep.trials}
    for trial in others:
        assert f"it shares with {leader.name} failed: " in store.result(trial.name).error


def test_no_worker_idles_while_the_last_pretraining_runs(tmp_path):
    """Six pretrainings on two workers, each of 48 s, and 102 trials of 0.75 s that take over."""
    grid = {"alpha": [0.01, 0.1, 1], "seed": [0, 1], "labels_per_class": [1, 10, 20], "probe_layer": ["trunk"]}
    sweep = sweep_of({**grid, "usl_epochs": [1, 2, 3], "knn_k": [1, 2]})
    store = Store(tmp_path / "x")
    store.create(sweep, {})
    pretraining, evaluation, workers = 48.0, 0.75, 2
    taking = len(taking_over(sweep))
    assert len(sweep.trials) - taking == 6
    lower_bound = (6 * pretraining + taking * evaluation) / workers
    longest = last_end(sweep, store, workers, lambda start: pretraining if is_leader(start) else evaluation)
    assert longest < 1.02 * lower_bound


def test_few_pretrainings_are_unfinished_where_few_trials_run_or_the_time_is_limited():
    sweep = sweep_of()
    assert ahead(sweep, 16) == 32
    assert ahead(dataclasses.replace(sweep, tune=Tune(max_concurrent=2)), 16) == 4
    assert ahead(dataclasses.replace(sweep, tune=Tune(time_budget=60.0)), 16) == 16


def is_leader(start):
    return isinstance(start.role, HandsOut)


def last_end(sweep, store, workers, seconds):
    """Simulate workers that run the trials of a queue, and return when the last trial ends.

    Like Tune, the simulation asks for a trial before a worker has room for it.
    """
    queue = PretrainingQueue(sweep.trials, store, share=True, ahead=ahead(sweep, workers))
    running, asked, now = [], None, 0.0
    while True:
        for group in queue.open:
            group.looked.clear()  # time passes only in the simulation
        if asked is None:
            asked = queue.next()
        if asked is not None and len(running) < workers:
            running.append((now + seconds(asked), asked))
            asked = None
            continue
        if not running:
            assert queue.is_empty()
            return now
        now, ended = min(running, key=lambda each: each[0])
        running.remove((now, ended))
        if is_leader(ended):
            for epoch in ended.role.epochs:
                Handout(store, ended.role.digest).write(epoch, {}, b"", handout_keys(ended))
        assert queue.ended(ended.trial, failed=False) == []


def handout_keys(start):
    return [online_key(start.trial.settings), *(online_key(other.settings) for other in start.role.variants)]


def test_a_pretraining_is_never_cut_into_two_parts():
    sweep = sweep_of({"labels_per_class": [1, 2], "alpha": [0.1, 0.5, 1]})
    cuts = list(cut(sweep.trials, 3, share=True))
    assert [[trial.settings.alpha for trial in part] for part in cuts] == [[0.1, 0.1], [0.5, 0.5], [1, 1]]
    assert [len(part) for part in cut(sweep.trials, 4, share=False)] == [4, 2]


def test_records_are_split_where_they_end():
    assert list(split(b"")) == []
    record = (3).to_bytes(8, "little") + b"abcd" + b"xyz" + b"efgh"
    assert list(split(record + record + record[:-1])) == [record, record]


def arguments(few, folder, *more):
    """Return the arguments of a small sweep whose trials share three pretrainings, one of which diverges."""
    file = folder / "space.yaml"
    base = {**BASE, **few, "usl_epochs": 2}
    shared = {"labels_per_class": [1, 2], "probe_layer": ["trunk", "embedding"]}
    search = [{**shared, "alpha": [0.1, 1]}, {**shared, "usl_lr": [1e30]}]
    file.write_text(json.dumps({"name": "x", "base": base, "search": search}))
    return [str(file), *more]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The directory of these sweeps. Their settings have absolute paths, which are equal in one directory."""
    return tmp_path_factory.mktemp("sharing")


@pytest.fixture(scope="module")
def shared(few, folder):
    """The sweep without Ray, through the real command: its completed process and its directory."""
    return run_alone(*arguments(few, folder), cwd=folder), Store(folder / "runs" / "x")


@pytest.fixture(scope="module")
def alone(few, folder):
    """The same without sharing."""
    process = run_alone(*arguments(few, folder, "--no-share", "--name", "alone"), cwd=folder)
    return process, Store(folder / "runs" / "alone")


def assert_as_alone(store, alone):
    """Check that finished trials are as they are alone, and that a pretraining that diverges fails all its trials."""
    sweep = Store.open(store.root)[1]
    sound = [trial for trial in sweep.trials if trial.settings.usl_lr < 1]
    assert len(sound) == 8
    assert sum(not store.result(trial.name).pretrained_by for trial in sound) == 2
    assert_same(store, alone, sound)
    failed = [result for result in store.results(sweep) if result.settings["usl_lr"] == 1e30]
    assert [result.status for result in failed] == ["failed"] * 4
    (first,) = (result for result in failed if "shares" not in result.error)
    assert "pretraining epoch 1" in first.error
    for result in failed:
        if result is not first:
            assert result.error == f"the pretraining that it shares with {first.trial} failed: {first.error}"
    assert not (store.root / FOLDER).exists()


def test_the_command_says_how_many_pretrainings_there_are_and_no_share_turns_sharing_off(shared, alone):
    (process, store), (other, others) = shared, alone
    assert (process.returncode, other.returncode) == (1, 1)
    assert "12 trials, 3 pretrainings, one at a time" in process.stdout + process.stderr
    assert "12 trials, one at a time" in other.stdout + other.stderr
    sweep = Store.open(others.root)[1]
    assert not any(result.pretrained_by for result in others.results(sweep))
    assert_as_alone(store, others)
    assert read_encoder(store.trial(sweep.trials[0].name))["architecture"] == "conv6"


def test_on_ray_the_results_are_the_same(few, folder, alone):
    process = on_shared_ray(*arguments(few, folder, "--name", "ray"), cwd=folder)
    assert process.returncode == 1
    assert "12 trials, 3 pretrainings, " in process.stdout + process.stderr
    assert_as_alone(Store(folder / "runs" / "ray"), alone[1])


@pytest.mark.slow
def test_a_killed_sweep_resumes_with_the_same_results(few, folder, alone):
    """Killed in the middle of the shared pretraining, and again after its state is there."""
    words = arguments(few, folder, "--local", "--set", "tune.checkpoint_seconds=0", "--name", "killed")
    store = Store(folder / "runs" / "killed")
    first = f"trial == {Store.open(alone[1].root)[1].trials[0].name!r}"
    run_killed(f"{first} and phase == 'pretraining' and epoch == 1", "sweep", *words, cwd=folder)
    assert list(store.root.glob("*/checkpoints/*.json"))
    run_killed(f"{first} and phase == 'linear probe'", "sweep", "--resume", store.root, "--local", cwd=folder)
    assert list(store.root.glob(f"{FOLDER}/*/*.json"))
    assert run_alone("--resume", str(store.root), cwd=folder).returncode == 1
    assert store.result(Store.open(store.root)[1].trials[0].name).attempts == 3
    assert_as_alone(store, alone[1])


def test_states_that_no_unfinished_trial_needs_are_removed(shared, tmp_path):
    """For example after a process died between the last result and the removal."""
    shutil.copytree(shared[1].root, tmp_path / "x")
    store, sweep = Store.open(tmp_path / "x")
    digest = pretrainings_of(sweep.trials)[0].digest
    Handout(store, digest).write(2, {}, b"", [])
    (store.root / FOLDER / "notes").mkdir()
    remove_unneeded(store, sweep)
    assert [path.name for path in (store.root / FOLDER).iterdir()] == ["notes"]
    (store.root / FOLDER / "notes").rmdir()
    Handout(store, digest).write(2, {}, b"", [])
    assert run_alone("--resume", str(store.root), cwd=tmp_path).returncode == 1
    assert not (store.root / FOLDER).exists()


NOISE = """\
from typing import Annotated

import numpy as np
import raysweep
import torch
from torch import nn

Level = Annotated[float, "How noisy."]


@raysweep.dataset(size=8, channels=1)
def stripes(request, *, level: Level = 0.1):
    '''Stripes with noise.'''
    images, labels = np.random.default_rng(0).random((40, 1, 8, 8)) * level, np.arange(40) % 2
    return raysweep.Dataset.from_numpy(images[:30], labels[:30], images[30:], labels[30:])


PART
"""
SHARING = {
    "policy": """\
@raysweep.policy
def grain(images, strength, generator, part, *, level: Level = 0.1):
    '''Noise.'''
    noise = torch.randn(images.shape, generator=generator, device=images.device)
    return (images + level * strength * noise).clamp(0, 1)
""",
    "loss": """\
@raysweep.loss
def gap(z1, z2, *, level: Level = 0.1):
    '''A loss with a weight.'''
    return level * (z1 - z2).square().mean()
""",
    "encoder": """\
@raysweep.encoder
def scaled(channels, image_size, *, level: Level = 0.1):
    '''A linear encoder whose weights have a scale.'''
    layer = nn.Linear(channels * image_size**2, 8)
    with torch.no_grad():
        layer.weight.mul_(level)
    return nn.Sequential(nn.Flatten(), layer)
""",
}
USING = {"policy": {"policy": "grain"}, "loss": {"emb_loss": "gap"}, "encoder": {"encoder": "scaled"}}


@pytest.fixture
def shared_level(request):
    """A plugin whose dataset shares a parameter with a part of another kind; the settings that use both."""
    plugins.activate([plugins.Plugin("noise.py", NOISE.replace("PART", SHARING[request.param]))])
    yield {"probe_dataset": "stripes", **USING[request.param]}
    plugins.activate(())


@pytest.mark.parametrize("shared_level", SHARING, indirect=True)
def test_a_parameter_that_a_dataset_shares_with_a_part_of_pretraining_belongs_to_pretraining(shared_level):
    sweep = sweep_of({"level": [0.1, 0.5], "knn_k": [3, 5]}, **shared_level)
    assert [len(each.trials) for each in pretrainings_of(sweep.trials)] == [2, 2]
    assert len(taking_over(sweep)) == 2
    encoders = [
        dataclasses.replace(trial, source=space.EncoderSource(f"{trial.name}.safetensors", 1, 8, ""))
        for trial in sweep.trials
    ]
    with pytest.raises(InputError, match="level: is a setting of pretraining"):
        space.build_evaluation({}, {"level": 0.3}, "evaluation", encoders)
    evaluation = space.build_evaluation({}, {"knn_k": 7}, "evaluation", encoders)
    assert {trial.settings.level for trial in evaluation.trials} == {0.1, 0.5}


def test_a_parameter_of_the_evaluated_dataset_alone_shares_the_pretraining():
    try:
        plugins.activate([plugins.Plugin("noise.py", NOISE.replace("PART", ""))])
        sweep = sweep_of({"level": [0.1, 0.5]}, probe_dataset="stripes")
        assert len(pretrainings_of(sweep.trials)) == 1
    finally:
        plugins.activate(())
