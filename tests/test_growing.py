"""A trial that continues the final state of a shorter one ends bit for bit as the same trial alone."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from raysweep.report.building import read
from raysweep.results.events import SESSION, read_events
from raysweep.results.final_state import continued_state
from raysweep.results.store import Store
from tests.support.commands import alone, result, scores
from tests.support.trials import CLOCK, Killed, run_on_half, trial_of

SHORT, LONG = 1, 3
EVERY = {"probe_every": 2, "images_every": 2, "precision": "fp32", "embedding_dim": 8, "le_epochs": 2, "usl_lr": 0.003}
CASES = [
    {"usl_type": "ae_parallel"},
    {"usl_type": "ae_parallel", "probe_every": 1, "images_every": 1},
    {"usl_type": "simclr", "optimizer": "sgd", "schedule": "wsd", "warmup_epochs": 1, "decay_epochs": 0},
    {"usl_type": "byol", "teacher_momentum": 1.0},
    {"usl_type": "ae_parallel", "layerwise": "random"},
]
pytestmark = pytest.mark.usefixtures("no_figures")

INEXACT = [
    {"usl_type": "byol"},
    {"usl_type": "simclr", "layerwise": "greedy"},
    {"usl_type": "simclr", "schedule": "cosine", "warmup_epochs": 1},
]


def trial(epochs, **settings):
    chosen = {**EVERY, "batch_size": 25, "le_batch_size": 25, "keep": "final_state", **settings, "usl_epochs": epochs}
    return replace(trial_of(**chosen), name=f"usl_epochs={epochs}")


def points(directory):
    """Return every point that TensorBoard has of a trial, but for the clock: scalars, pictures and histograms."""
    events = [event for event in read_events(directory, lambda content: True) if event.summary.value]
    values = [(event.step, value) for event in events for value in event.summary.value]
    return [
        (step, value.tag, value.SerializeToString()) for step, value in values if value.tag not in (CLOCK, *SESSION)
    ]


def assert_equal(one, other):
    """Check that two trials have the same metrics, encoder, TensorBoard points, warnings and final state."""
    results = [json.loads((directory / "result.json").read_text()) for directory in (one, other)]
    metrics = [{name: value for name, value in result["metrics"].items() if name != CLOCK} for result in results]
    assert metrics[0] == metrics[1]
    assert results[0]["warnings"] == results[1]["warnings"]
    assert (one / "encoder.safetensors").read_bytes() == (other / "encoder.safetensors").read_bytes()
    assert points(one) == points(other)
    assert len(points(one)) > 20
    states = [torch.load(directory / "final_state.pt", weights_only=True)["state"] for directory in (one, other)]
    for name in ("method", "heads", "decoder"):
        weights, others = (state.get(name) or {} for state in states)
        assert weights.keys() == others.keys()
        assert all(torch.equal(weight, others[key]) for key, weight in weights.items())


@pytest.mark.parametrize("settings", CASES, ids=lambda settings: "-".join(map(str, settings.values())))
def test_a_continued_trial_equals_the_same_trial_alone(tmp_path, settings):
    run_on_half(tmp_path / "short", trial(SHORT, **settings))
    before = {path: path.read_bytes() for path in (tmp_path / "short").rglob("*") if path.is_file()}
    epochs = []
    longer = trial(LONG, **settings)
    result = run_on_half(
        tmp_path / "long", longer, shorter=tmp_path / "short", report=lambda at: epochs.append(at.epoch)
    )
    run_on_half(tmp_path / "alone", longer)
    assert_equal(tmp_path / "long", tmp_path / "alone")
    assert result.continues == "short"
    blocks = longer.settings.pretrain_epochs // LONG
    assert epochs[0] == SHORT * blocks
    assert {path: path.read_bytes() for path in (tmp_path / "short").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("settings", INEXACT, ids=lambda settings: "-".join(map(str, settings.values())))
def test_a_trial_that_depends_on_all_its_epochs_starts_from_the_beginning(tmp_path, settings):
    run_on_half(tmp_path / "short", trial(1, **settings))
    result = run_on_half(tmp_path / "long", trial(2, **settings), shorter=tmp_path / "short")
    assert result.continues == ""
    assert (
        result.metrics["pretrain/loss"]
        == run_on_half(tmp_path / "alone", trial(2, **settings)).metrics["pretrain/loss"]
    )
    (line,) = [line for line in result.warnings if "final state" in line]
    assert line.endswith("differs in more than usl_epochs; the trial pretrained from the beginning")


def rewrite(directory, **changes):
    """Change the manifest of a final state."""
    path = directory / "final_state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def cut(directory):
    path = directory / "final_state.pt"
    path.write_bytes(path.read_bytes()[:-100])


FAULTS = {
    "is missing": lambda directory: (directory / "final_state.pt").unlink(),
    "is damaged": cut,
    "is damaged ": lambda directory: (directory / "final_state.json").write_text("{"),
    "was kept by another version of raysweep, whose numbers differ": lambda at: rewrite(at, protocol=1),
    "was kept with other plugins": lambda at: rewrite(at, plugins=["0" * 64]),
    "was kept with other images or labels": lambda at: rewrite(at, data="y"),
    "belongs to no experiment": lambda at: rewrite(at, settings={"usl_epochs": -1}),
    "belongs to a pretraining that differs in more than usl_epochs": lambda at: rewrite(at, settings={"seed": 3}),
}
FAST = {"usl_type": "simclr", "probe_every": 0, "images_every": 0, "le_epochs": 1}


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """The directory of a short trial that has kept its final state, and the result of the longer trial alone."""
    root = tmp_path_factory.mktemp("kept")
    run_on_half(root / "short", trial(1, **FAST))
    return root / "short", run_on_half(root / "alone", trial(2, **FAST))


@pytest.mark.parametrize("why", FAULTS)
def test_a_faulty_final_state_is_left_and_the_trial_starts_from_the_beginning(tmp_path, kept, why):
    shutil.copytree(kept[0], tmp_path / "short")
    FAULTS[why](tmp_path / "short")
    result = run_on_half(tmp_path / "long", trial(2, **FAST), shorter=tmp_path / "short")
    assert result.continues == ""
    line = f"the final state of short {why.strip()}; the trial pretrained from the beginning"
    assert result.warnings == [*kept[1].warnings, line] or result.warnings == [line, *kept[1].warnings]
    assert result.metrics["pretrain/loss"] == kept[1].metrics["pretrain/loss"]


@pytest.mark.parametrize("every", [0, 1e9], ids=["with checkpoints", "without a checkpoint"])
def test_a_continued_trial_that_is_killed_resumes(tmp_path, every):
    longer = trial(LONG, **CASES[0])
    shorter = run_on_half(tmp_path / "short", trial(SHORT, **CASES[0]))

    def report(moment):
        if moment.epoch == SHORT + 1:
            raise Killed

    with pytest.raises(Killed):
        run_on_half(tmp_path / "long", longer, shorter=tmp_path / "short", report=report, checkpoint_seconds=every)
    result = run_on_half(tmp_path / "long", longer, shorter=tmp_path / "short")
    run_on_half(tmp_path / "alone", longer)
    assert_equal(tmp_path / "long", tmp_path / "alone")
    assert (result.continues, result.attempts) == ("short", 2)
    assert 0 < result.continued_s < shorter.wall_s


def test_a_trial_keeps_no_final_state_unless_it_is_asked_to(tmp_path):
    run_on_half(tmp_path / "short", trial(1, **FAST, keep="encoder"))
    assert not list(tmp_path.rglob("final_state*"))


@pytest.fixture(scope="module")
def space_file(tmp_path_factory, few):
    """A function that writes a search space with the given settings."""
    folder = tmp_path_factory.mktemp("spaces")

    def write(search, **base):
        chosen = {**few, "usl_type": "simclr", "le_epochs": 1, "probe_every": 1, "images_every": 0, **base}
        path = folder / "space.yaml"
        path.write_text(json.dumps({"name": "x", "base": chosen, "search": search, "baseline": True}))
        return path

    return write


def test_a_larger_number_of_epochs_in_the_file_continues_the_finished_trials(tmp_path, space_file):
    search = {"temperature": [0.2, 0.5]}
    alone(space_file(search, usl_epochs=1, keep="final_state"), cwd=tmp_path)
    root = tmp_path / "runs" / "x"
    names = [f"temperature={temperature},seed=0" for temperature in (0.2, 0.5)]
    before = {path: path.read_bytes() for name in names for path in (root / name).rglob("*") if path.is_file()}
    file = space_file(search, usl_epochs=3, keep="final_state")
    plan = alone(file, "--resume", root, "--dry-run", cwd=tmp_path).stdout.splitlines()
    assert plan[-5:] == [
        "random,seed=0",
        *(f"{name.replace(',', ',usl_epochs=3,')}  # new, continues {name}" for name in names),
        *names,
    ]
    told = alone(file, "--resume", root, cwd=tmp_path)
    line = f"{root}: 5 trials (2 new), 2 continue from shorter ones, 3 finished before, one at a time in this process"
    assert line in (told.stdout + told.stderr).splitlines()
    assert {path: path.read_bytes() for path in before} == before
    alone(space_file({**search, "usl_epochs": [3]}), "--name", "alone", cwd=tmp_path)
    for name in names:
        longer = name.replace(",", ",usl_epochs=3,")
        assert result(root, longer)["continues"] == name
        assert scores(root, longer) == scores(tmp_path / "runs" / "alone", longer)
        assert points(root / longer) == points(tmp_path / "runs" / "alone" / longer)
    again = alone(file, "--resume", root, cwd=tmp_path)
    assert f"{root}: all 5 trials have finished" in (again.stdout + again.stderr).splitlines()
    assert "usl_epochs=3,seed=0" in (root / "results.csv").read_text()


def test_the_time_of_a_continued_pretraining_counts_once(tmp_path, space_file):
    """A chain of three trials takes as long as the shortest one and what the two others have added to it."""
    root = tmp_path / "runs" / "x"
    alone(space_file({"temperature": [0.5]}, usl_epochs=1, keep="final_state"), cwd=tmp_path)
    for epochs in (2, 3):
        file = space_file({"temperature": [0.5]}, usl_epochs=epochs, keep="final_state")
        alone(file, "--resume", root, cwd=tmp_path)
    names = [f"temperature=0.5,{middle}seed=0" for middle in ("", "usl_epochs=2,", "usl_epochs=3,")]
    results = [result(root, name) for name in ("random,seed=0", *names)]
    assert [each["continues"] for each in results] == ["", "", *names[:2]]
    store, sweep = Store.open(root)
    spent = read(store, sweep).seconds()
    _, _, middle, longest = results
    assert 0 < middle["continued_s"] < longest["continued_s"] < middle["wall_s"]
    assert spent == pytest.approx(sum(each["wall_s"] - each["continued_s"] for each in results))
    assert spent < sum(each["wall_s"] for each in results)


ONE_PRETRAINING = "# Plan: 2 trials that share 1 pretraining, 1 epoch each.\n"
TWO_PRETRAININGS = "# Plan: 2 trials with pretraining, 1 epoch each, 2 in all.\n"


@pytest.mark.parametrize(
    ("search", "flags", "words", "continuing", "pretraining"),
    [
        ({"labels_per_class": [1, 5]}, [], "1 continues from shorter ones, 1 pretraining", 1, ONE_PRETRAINING),
        ({"labels_per_class": [1, 5]}, ["--no-share"], "2 continue from shorter ones", 2, TWO_PRETRAININGS),
        ({"probe_layer": ["trunk", "embedding"]}, [], "2 continue from shorter ones", 2, TWO_PRETRAININGS),
    ],
    ids=str,
)
def test_the_plan_counts_a_trial_that_takes_over_a_pretraining_as_none_that_continues(
    tmp_path, space_file, search, flags, words, continuing, pretraining
):
    """The online kNN of a continued trial covers only trials that read the same layer. The others continue too."""
    root, before = tmp_path / "runs" / "x", {**search, "usl_epochs": [1]}
    alone(space_file(before, keep="final_state", knn_k=1), cwd=tmp_path)
    file = space_file({**search, "usl_epochs": [1, 2]}, keep="final_state", knn_k=1)
    plan = alone(file, "--resume", root, "--dry-run", *flags, cwd=tmp_path).stdout
    told = alone(file, "--resume", root, *flags, cwd=tmp_path)
    assert f"{root}: 6 trials (2 new), {words}, 4 finished before" in told.stdout + told.stderr
    store, sweep = Store.open(root)
    assert sum(bool(each.continues) for each in store.results(sweep)) == continuing
    assert sum("# new, continues" in line for line in plan.splitlines()) == continuing
    assert pretraining in plan
    assert "# 4 trials have ended and will not run again.\n" in plan


def test_a_longer_list_of_epochs_continues_the_longest_shorter_trial(tmp_path, space_file):
    alone(space_file({"usl_epochs": [1, 2]}, keep="final_state"), cwd=tmp_path)
    root = tmp_path / "runs" / "x"
    alone(space_file({"usl_epochs": [1, 2, 4]}), "--resume", root, cwd=tmp_path)
    assert result(root, "usl_epochs=4,seed=0")["continues"] == "usl_epochs=2,seed=0"
    assert result(root, "usl_epochs=2,seed=0")["continues"] == ""


FAILS_LATER = """
import inspect
import raysweep


@raysweep.probe(metrics={"fails/x": raysweep.Metric("Nothing.")})
def fails(evaluation):
    '''Fails in trials of more than one epoch that read the trunk, but not in the check before the sweep.'''
    settings, is_trial = evaluation.settings, any(frame.function == "run_trial" for frame in inspect.stack())
    if is_trial and settings.usl_epochs > 1 and settings.probe_layer == "trunk":
        raise RuntimeError("this probe fails")
    yield "fails/x", 1.0
"""


def test_a_trial_whose_pretraining_was_not_the_fault_runs_although_its_leader_failed(tmp_path, space_file):
    """The leader continues a final state, which covers its own online evaluation only, and then its probe fails."""
    (tmp_path / "fails.py").write_text(FAILS_LATER)
    search, plugin = {"probe_layer": ["trunk", "embedding"]}, ("--plugin", tmp_path / "fails.py")
    alone(space_file(search, usl_epochs=1, keep="final_state"), *plugin, cwd=tmp_path)
    root = tmp_path / "runs" / "x"
    process = alone(space_file(search, usl_epochs=3, keep="final_state"), "--resume", root, cwd=tmp_path)
    assert process.returncode == 1
    names = [f"probe_layer={layer},usl_epochs=3,seed=0" for layer in search["probe_layer"]]
    trunk, embedding = (result(root, name) for name in names)
    assert (trunk["status"], trunk["error"]) == ("failed", "RuntimeError: this probe fails")
    assert embedding["status"] == "finished"


def test_the_plan_says_why_a_trial_starts_from_the_beginning(tmp_path, space_file):
    search = [
        {"schedule": ["cosine"]},
        {"usl_type": ["byol"]},
        {"layerwise": ["greedy"]},
        {"temperature": [0.1, 0.2, 0.3]},
    ]
    alone(space_file(search, usl_epochs=1, warmup_epochs=0, keep="final_state"), cwd=tmp_path)
    root = tmp_path / "runs" / "x"
    (root / "temperature=0.1,seed=0" / "final_state.json").unlink()
    (root / "temperature=0.2,seed=0" / "final_state.pt").unlink()
    told = alone(space_file(search, usl_epochs=2, warmup_epochs=0, probe_every=2), "--resume", root, cwd=tmp_path)
    reasons = (
        "schedule: cosine",
        "usl_type: byol",
        "layerwise: greedy",
        "the final state of temperature=0.1,seed=0 is missing",
        "the final state of temperature=0.2,seed=0 is missing",
        "the final state of temperature=0.3,seed=0 belongs to a pretraining that differs in more than usl_epochs",
    )
    words = ", ".join(f"1 from the beginning ({reason})" for reason in reasons)
    (line,) = [line for line in (told.stdout + told.stderr).splitlines() if "from the beginning" in line]
    assert line.startswith(f"{root}: ")
    assert f" trials (6 new), {words}, " in line
    assert line.endswith(" finished before, one at a time in this process")
    longer = [json.loads(path.read_text()) for path in root.glob("*usl_epochs=2*/result.json")]
    assert [result["continues"] for result in longer] == [""] * 6


def test_fewer_epochs_in_the_file_are_refused(tmp_path, space_file):
    alone(space_file({}, usl_epochs=2), cwd=tmp_path)
    told = alone(space_file({}, usl_epochs=1), "--resume", tmp_path / "runs" / "x", cwd=tmp_path)
    assert told.returncode == 2
    assert "usl_epochs: is 1, but the sweep was started with 2" in told.stderr


def test_a_final_state_in_another_precision_is_left(tmp_path, kept):
    longer = trial(2, **FAST)
    assert continued_state(kept[0], longer, "x", "fp32").trial == "short"
    with pytest.warns(
        UserWarning, match="was computed in fp32, but this machine computes in bf16; the trial pretrained"
    ):
        assert continued_state(kept[0], longer, "x", "bf16") is None
