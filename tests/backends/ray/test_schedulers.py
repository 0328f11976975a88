"""After a resume, schedulers know the evaluations of earlier runs. They compare only evaluations of equal epochs."""

import json
import random
import signal
from types import SimpleNamespace

import pytest
from ray.tune.schedulers import TrialScheduler

import raysweep
from raysweep import space
from raysweep.backends.ray.schedulers import EPOCH, make_scheduler, recall_evaluations
from raysweep.results.events import Events, read_scalar
from raysweep.results.store import Store
from tests.support.commands import on_shared_ray, result
from tests.support.gate import Gate
from tests.support.shared_ray import start_shared_ray
from tests.support.trials import run, trial_of

METRIC, NEUTRAL = "online/knn_val_accuracy", "pretrain/embedding_std"
TUNES = [
    {"scheduler": "asha", "reduction_factor": 2},
    {"scheduler": "asha", "reduction_factor": 3, "grace_epochs": 3, "mode": "min", "metric": NEUTRAL},
    {"scheduler": "median"},
    {"scheduler": "median", "grace_epochs": 5, "mode": "min", "metric": NEUTRAL},
]


def sweep_of(epochs, every, seeds, **tune):
    raw = {"base": {"probe_every": every}, "search": {"usl_epochs": epochs, "seed": seeds}, "tune": tune}
    return space.build(raw, {}, "test")


def decide(scheduler, trial, epoch, value):
    """Report a trial's evaluation to the scheduler through Tune's interface, and return its decision."""
    tune_trial = SimpleNamespace(config={"trial": trial}, trial_id="another in each run")
    return scheduler.on_trial_result(None, tune_trial, {"fraction": 0.5, EPOCH: epoch, METRIC: value, NEUTRAL: value})


def evaluated(trial):
    """Return the epochs after which a trial is evaluated: the multiples of `probe_every`, and the last epoch."""
    last = trial.settings.pretrain_epochs
    return [epoch for epoch in range(1, last + 1) if epoch % trial.settings.probe_every == 0 or epoch == last]


def histories(sweep, draws):
    """Return all evaluations in order, with several trials running at a time, as (trial, epoch, value)."""
    left = {trial: evaluated(trial) for trial in sweep.trials}
    quality = {trial: draws.random() for trial in left}
    running, waiting, history = [], list(left), []
    while running or waiting:
        while waiting and len(running) < 3:
            running.append(waiting.pop(0))
        trial = draws.choice(running)
        epoch = left[trial].pop(0)
        history.append((trial, epoch, round(quality[trial] + draws.gauss(0, 0.2), 1)))  # rounding produces ties
        if not left[trial]:
            running.remove(trial)
    return history


@pytest.mark.parametrize("tune", TUNES, ids=lambda tune: f"{tune['scheduler']} {tune.get('mode', 'max')}")
def test_property_an_interrupted_sweep_decides_as_the_uninterrupted_one(tune):
    draws, stops = random.Random(0), 0
    for _ in range(30):
        sweep = sweep_of([7, 12, 20], draws.choice([1, 2, 3]), list(range(5)), **tune)
        whole, parts = make_scheduler(sweep), make_scheduler(sweep)
        history = histories(sweep, draws)
        breaks = set(draws.sample(range(len(history)), 3))
        stopped, recorded = set(), {trial: {} for trial in sweep.trials}
        for number, (trial, epoch, value) in enumerate(history):
            if number in breaks:
                parts = make_scheduler(sweep)
                for earlier, evaluations in recorded.items():
                    parts.recall(earlier, evaluations)
                for earlier, evaluations in recorded.items():  # the trial resumes from an older checkpoint
                    for again in [*evaluations][-draws.randint(0, 2) :] if earlier not in stopped else []:
                        assert decide(parts, earlier, again, evaluations[again]) == TrialScheduler.CONTINUE
            if trial in stopped:
                continue
            decision = decide(whole, trial, epoch, value)
            assert decide(parts, trial, epoch, value) == decision
            recorded[trial][epoch] = value
            if decision == TrialScheduler.STOP:
                stopped.add(trial)
                assert parts.reasons[trial.name] == whole.reasons[trial.name]
        stops += len(stopped)
    assert stops > 30, "the comparison must include decisions to stop"


def asha(sweep):
    """Return ASHA with rungs after 1, 2, 4, 8, 16 and 32 epochs, and the sweep's trials."""
    return make_scheduler(sweep), sweep.trials


def test_a_trial_that_goes_on_is_in_the_rungs_with_its_early_evaluations():
    scheduler, (late, equal, worse) = asha(sweep_of(40, 1, [0, 1, 2], **TUNES[0]))
    scheduler.recall(late, {epoch: epoch / 100 for epoch in range(1, 31)})
    assert decide(scheduler, late, 31, 0.31) == TrialScheduler.CONTINUE
    for epoch in range(1, 31):
        assert decide(scheduler, equal, epoch, epoch / 100) == TrialScheduler.CONTINUE, "0.31 belongs to another epoch"
    assert decide(scheduler, worse, 1, 0.009) == TrialScheduler.STOP
    assert scheduler.reasons == {worse.name: f"stopped by asha after epoch 1: {METRIC} 0.0090"}


@pytest.mark.parametrize("tune", [TUNES[0], TUNES[2]])
def test_a_trial_whose_early_evaluations_are_lost_is_not_compared(tune):
    sweep = sweep_of(40, 1, list(range(9)), **tune)
    scheduler = make_scheduler(sweep)
    *lost, last = sweep.trials
    for trial in lost:
        for epoch in range(20, 40):
            assert decide(scheduler, trial, epoch, 0.9 if epoch > 20 else 0.1) == TrialScheduler.CONTINUE
    for epoch in range(1, 40):
        assert decide(scheduler, last, epoch, 0.01) == TrialScheduler.CONTINUE
    assert scheduler.reasons == {}


def test_a_last_evaluation_between_two_regular_ones_is_compared_with_none():
    """Rungs are at 3, 9 and 27 epochs. The rung at 9 compares trials after 12 epochs; the short trial has only 10."""
    sweep = sweep_of([10, 40], 4, [0], scheduler="asha", reduction_factor=3, grace_epochs=3)
    scheduler, (short, long) = make_scheduler(sweep), sweep.trials
    for epoch, value in ((4, 0.1), (8, 0.1), (10, 0.9)):
        assert decide(scheduler, short, epoch, value) == TrialScheduler.CONTINUE
    for epoch in (4, 8, 12):
        assert decide(scheduler, long, epoch, 0.5) == TrialScheduler.CONTINUE


def test_evaluations_are_read_from_event_files_of_all_attempts_up_to_damage(tmp_path):
    sweep = sweep_of(40, 2, [0, 1], **TUNES[0])
    store = Store(tmp_path / "x")
    store.create(sweep, {})
    directory = store.trial(sweep.trials[0].name)
    directory.mkdir()
    events = Events(directory, 1, None)
    for epoch in range(1, 13):
        events.scalars({METRIC: epoch / 100, "pretrain/loss": 1.0}, epoch)
    events.close()
    second = Events(directory, 2, events.positions())
    for epoch in range(13, 21):
        second.scalars({METRIC: epoch / 100}, epoch)
    second.close()
    assert read_scalar(directory, METRIC, 2) == pytest.approx({epoch: epoch / 100 for epoch in range(2, 21, 2)})
    assert set(read_scalar(directory, "pretrain/loss", 1).values()) == {1.0}

    scheduler = make_scheduler(sweep)
    recall_evaluations(scheduler, sweep, store)
    assert scheduler.newest == {sweep.trials[0].name: 20}

    file = max(directory.glob("events*"))
    content = file.read_bytes()
    for size in range(len(content)):  # as if the process was killed or the disk was full
        file.write_bytes(content[:size])
        known = read_scalar(directory, METRIC, 1)
        assert list(known) == list(range(1, len(known) + 1))
        assert len(known) < 20
        changed = bytearray(content)
        changed[size] ^= 255
        file.write_bytes(changed)
        known = read_scalar(directory, METRIC, 1)
        assert known == pytest.approx({epoch: epoch / 100 for epoch in known}), "a damaged value is never used"


def test_every_evaluation_is_reported_wherever_a_trial_leaves(tmp_path):
    """Otherwise a scheduler would miss an evaluation made just before the checkpoint that the trial resumes from."""
    trial, number, legs = trial_of(usl_epochs=5, probe_every=1), 0, []
    while not legs or legs[-1] != "finished":
        number, told, asked = number + 1, [], iter(range(100))
        ended = run(
            tmp_path / "trial",
            trial,
            checkpoint_seconds=0,
            report=lambda at, told=told: told.append(at.epoch) if at.evaluated else None,
            stop=lambda asked=asked, last=number % 7 + 3: next(asked) >= last,
        )
        legs += [*told, "left" if ended is None else "finished"]
        assert number < 60
    assert legs.count("left") > 1
    assert [leg for leg in legs if isinstance(leg, int)] == [1, 2, 3, 4, 5], "each evaluation is reported once"


@pytest.mark.slow
def test_a_resumed_asha_sweep_stops_what_the_uninterrupted_one_stops(tmp_path, few, no_figures):
    """On Ray. A smaller rate leaves a larger loss, so all trials but the first are stopped."""
    gate, root = Gate(tmp_path, step=9), tmp_path / "x"
    base = {**few, "usl_type": "ae_single", "usl_epochs": 4, "le_epochs": 1, "probe_every": 1, "images_every": 0}
    tune = {"scheduler": "asha", "metric": "pretrain/loss", "mode": "min", "reduction_factor": 2, "max_concurrent": 1}
    space_of = {
        "name": "x",
        "base": {**base, "schedule": "gated", "gate": str(gate.file)},
        "search": {"usl_lr": [0.001, 1e-5, 1e-6]},
        "tune": tune,
    }

    def interrupt():
        """Press Ctrl-C in the third epoch of the first trial."""
        gate.wait()
        signal.raise_signal(signal.SIGINT)  # the main thread handles it
        gate.open_when_told(root)

    start_shared_ray()
    with gate.meanwhile(interrupt):
        raysweep.run(space_of, output=tmp_path, plugins=[gate.plugin])
    first, *others = (f"usl_lr={rate},seed=0" for rate in ("0.001", "1e-05", "1e-06"))
    assert len(read_scalar(root / first, "pretrain/loss", 1)) == 2
    assert not list(root.glob("*/result.json"))
    resumed = on_shared_ray("--resume", root, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads((root / first / "attempt.json").read_text())["attempt"] == 2
    assert result(root, first)["status"] == "finished"
    assert [result(root, name)["error"].split(":")[0] for name in others] == ["stopped by asha after epoch 1"] * 2
