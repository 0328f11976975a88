"""Requirements on a sweep's results that hold both in a local directory and in a bucket."""

import json

import pytest

from raysweep import space
from raysweep.errors import InputError
from raysweep.results.attempts import begin_attempt
from raysweep.results.checkpoints import load_checkpoint, save_checkpoint
from raysweep.results.result import attempts, make_result, write_result
from raysweep.results.store import Store
from raysweep.results.sweep_file import history, read_proposals, with_proposals
from raysweep.results.trial_directory import at_work, record_failure
from tests.support import forked

SWEEP = space.build({"name": "a", "base": {"usl_epochs": 0}, "search": {"seed": [0, 1]}}, {}, "a.yaml")
SEARCHED = space.build(
    {
        "name": "a",
        "search": {"alpha": {"uniform": [0.1, 1]}, "seed": [0]},
        "tune": {"searcher": "optuna", "num_samples": 3},
    },
    {},
    "a.yaml",
)
FIRST = SWEEP.trials[0]


@pytest.fixture(params=["local", "bucket"])
def output(request, tmp_path):
    """The place where results directories are created: a local path or a bucket."""
    return str(tmp_path / "runs") if request.param == "local" else request.getfixturevalue("uri")


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A function that makes this process act as another machine, which has no copy of the bucket."""
    return lambda: monkeypatch.setenv("RAYSWEEP_CACHE", str(tmp_path / "elsewhere"))


def created(output, sweep=SWEEP):
    store = Store.plan(output, None, "a")
    return store.create(sweep, {"command": "test"})


def finish(directory, trial):
    begin_attempt(directory, trial.settings)
    result = make_result(
        trial,
        "digest",
        directory,
        status="finished",
        error=None,
        metrics={"linear/test_accuracy": 0.5},
        wall_s=1.0,
        device="cpu",
        warnings=[],
    )
    write_result(directory, result)
    return result


def test_names_are_taken_once(output):
    assert [created(output).place.rpartition("/")[2] for _ in range(3)] == ["a", "a-2", "a-3"]
    with pytest.raises(InputError, match="exists; choose another name"):
        Store.plan(output, "a", "a")


def test_a_sweep_is_opened_as_it_was_created_and_extended(output, elsewhere):
    store = created(output)
    longer = space.build({**SWEEP.to_dict(), "search": {"seed": [0, 1, 2]}}, {}, "a.yaml")
    store.extend(longer, {"command": "again"})
    elsewhere()
    opened, sweep = Store.open(store.place)
    assert sweep.trials == longer.trials
    assert [entry["command"] for entry in history(opened.root)] == ["test", "again"]
    with pytest.raises(InputError, match="there is no sweep"):
        Store.open(f"{output}/none")


def test_a_second_process_is_refused(output, tmp_path):
    store = created(output)
    program = "import sys; from raysweep.results.store import Store\nwith Store(sys.argv[1]).lock(): pass"
    with store.lock():
        second = forked.run("-c", program, store.place, cwd=tmp_path)
    assert second.returncode != 0
    assert "another process is running this sweep" in second.stderr


def test_a_trial_resumes_elsewhere_from_its_newest_checkpoint(output, elsewhere):
    store = created(output)
    with at_work(store, FIRST.name) as push:
        for epoch in (1, 2):
            begin_attempt(store.trial(FIRST.name), FIRST.settings)
            save_checkpoint(store.trial(FIRST.name), {"epoch": epoch, "events": {}})
            push()
    elsewhere()
    other, sweep = Store.open(store.place)
    with at_work(other, FIRST.name):
        assert load_checkpoint(other.trial(FIRST.name))["epoch"] == 2
        assert attempts(other.trial(FIRST.name)) == 2
    assert other.results(sweep) == []


def test_results_and_failures_are_seen_by_all(output, elsewhere):
    store = created(output)
    first, second = SWEEP.trials
    with at_work(store, first.name):
        finished = finish(store.trial(first.name), first)
    record_failure(store, second, "digest", "RuntimeError: no")
    elsewhere()
    other, sweep = Store.open(store.place)
    other.pull()
    results = other.results(sweep)
    assert results[0] == finished
    assert (results[1].status, results[1].error) == ("failed", "RuntimeError: no")


def test_a_damaged_result_is_set_aside(output, elsewhere):
    store = created(output)
    with at_work(store, FIRST.name):
        finish(store.trial(FIRST.name), FIRST)
        (store.trial(FIRST.name) / "result.json").write_text("{")
    elsewhere()
    other, sweep = Store.open(store.place)
    other.pull()
    with pytest.warns(UserWarning, match=r"result\.json"):
        other.set_damaged_aside(sweep)
    assert other.results(sweep) == []
    assert len(list(other.trial(FIRST.name).glob("result.json.damaged*"))) == 1


def test_proposals_are_recorded_before_their_trials_run(output, elsewhere):
    store = created(output, SEARCHED)
    points = [space.Proposal(0, {"alpha": alpha}) for alpha in (0.25, 0.5)]
    store.record_proposals(points)
    elsewhere()
    other, sweep = Store.open(store.place)
    assert read_proposals(other.root) == points
    assert [trial.settings.alpha for trial in sweep.trials] == [0.25, 0.5]
    assert with_proposals(other.root, SEARCHED).trials == sweep.trials
    assert json.loads((other.root / "proposals.json").read_text())["points"][0]["values"] == {"alpha": 0.25}
