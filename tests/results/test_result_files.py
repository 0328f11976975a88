"""Damaged files in a results directory are named and set aside. They are never trusted and never lost."""

import json
import os
import warnings
from pathlib import Path

import pytest
import torch
import yaml

from raysweep import space
from raysweep.config import PROTOCOL_VERSION, fingerprint
from raysweep.results import attempts, feature_cache
from raysweep.results.attempts import begin_attempt
from raysweep.results.checkpoints import load_checkpoint, remove_checkpoints, save_checkpoint
from raysweep.results.encoders import save_encoder
from raysweep.results.result import note_traceback
from raysweep.results.store import Store
from raysweep.results.trial_directory import at_work, record_failure
from tests.support import ROOT, forked
from tests.support.commands import here
from tests.support.odd_files import METRICS, ODD, SWEEP, make


def content_with(**changes):
    return lambda good: json.dumps({**good, **changes}).encode()


def without(name):
    return lambda good: json.dumps({key: value for key, value in good.items() if key != name}).encode()


def with_metrics(**metrics):
    return lambda good: json.dumps({**good, "metrics": {**good["metrics"], **metrics}}).encode()


def with_settings(**settings):
    return lambda good: json.dumps({**good, "settings": {**good["settings"], **settings}}).encode()


NAN, INFINITY = float("nan"), float("inf")
CONTENTS = {
    "nothing": lambda good: b"",
    "cut off": lambda good: json.dumps(good).encode()[:100],
    "null": lambda good: b"null",
    "a list": lambda good: b"[]",
    "a text": lambda good: b'"finished"',
    "no text": lambda good: b"\xff\xfe\x00",
    "deep lists": lambda good: b"[" * 200_000,
    "deep mappings": lambda good: b'{"metrics":' * 200_000,
    "deep metrics": lambda good: (
        json.dumps(good).encode().replace(b'"metrics": {', b'"metrics": {"x": ' + b"[" * 99_999)
    ),
    "a long number": lambda good: b"1" * 10_000,
    "too long": lambda good: json.dumps({**good, "device": "x" * 2**22}).encode(),
    "metrics null": content_with(metrics=None),
    "metrics a list": content_with(metrics=[1]),
    "metrics text": content_with(metrics="good"),
    "metrics missing": without("metrics"),
    "settings null": content_with(settings=None),
    "settings a list": content_with(settings=[["seed", 0]]),
    "settings nested": with_settings(seed={"grid": [0]}),
    "settings of no experiment": with_settings(usl_lr=-1.0),
    "a setting as text": with_settings(seed="0"),
    "a setting not finite": with_settings(alpha=NAN),
    "protocol null": content_with(protocol=None),
    "varied a list": content_with(varied=[]),
    "wall_s text": content_with(wall_s="x"),
    "wall_s null": content_with(wall_s=None),
    "wall_s true": content_with(wall_s=True),
    "wall_s negative": content_with(wall_s=-1.0),
    "wall_s infinite": content_with(wall_s=INFINITY),
    "wall_s huge": content_with(wall_s=10**400),
    "attempts text": content_with(attempts="1"),
    "attempts negative": content_with(attempts=-1),
    "attempts a fraction": content_with(attempts=1.5),
    "attempts true": content_with(attempts=True),
    "attempts huge": content_with(attempts=10**400),
    "baseline a number": content_with(baseline=1),
    "warnings text": content_with(warnings="one"),
    "warnings numbers": content_with(warnings=[1]),
    "a metric NaN": with_metrics(**{"linear/val_accuracy": NAN}),
    "a metric infinite": with_metrics(**{"pretrain/loss": -INFINITY}),
    "a metric text": with_metrics(**{"linear/val_accuracy": "0.9"}),
    "a metric true": with_metrics(**{"linear/val_accuracy": True}),
    "a metric null": with_metrics(**{"linear/val_accuracy": None}),
    "an accuracy in per cent": with_metrics(**{"linear/val_accuracy": 7.5}),
    "an accuracy below 0": with_metrics(**{"knn/test_accuracy": -0.1}),
    "an NMI above 1": with_metrics(**{"kmeans/nmi": 1.1}),
    "an ARI below -1": with_metrics(**{"kmeans/ari": -1.1}),
    "a deviation below 0": with_metrics(**{"pretrain/embedding_std": -1.0}),
    "an unknown metric NaN": with_metrics(**{"of/the_future": NAN}),
    "an unknown status": content_with(status="done"),
    "status null": content_with(status=None),
    "finished with an error": content_with(error="why"),
    "failed without an error": content_with(status="failed"),
    "another trial": content_with(trial="seed=1"),
    "trial a number": content_with(trial=0),
    "a key twice": lambda good: b'{"status": "finished", "status": "done"}',
}


def one_line(process):
    assert process.returncode == 2, process.stderr
    assert len(process.stderr.splitlines()) == 1, process.stderr
    return process.stderr


@pytest.mark.parametrize("name", CONTENTS)
def test_a_damaged_result_is_named_and_set_aside_as_it_is(tmp_path, name):
    store = make(tmp_path)
    path = store.trial("seed=0") / "result.json"
    path.write_bytes(CONTENTS[name](json.loads(path.read_text())))
    damaged = path.read_bytes()
    message = one_line(here("raysweep", "report", "a", cwd=tmp_path))
    assert str(path) in message
    assert "damaged" in message
    assert path.read_bytes() == damaged, "a report changes nothing"
    with pytest.warns(UserWarning, match=r"was damaged and is now result\.json\.damaged-1; the trial runs again"):
        store.set_damaged_aside(SWEEP)
    assert [result.trial for result in store.results(SWEEP)] == ["seed=1"]
    assert path.with_name("result.json.damaged-1").read_bytes() == damaged
    assert not path.exists()


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"of_the_future": [1, {"x": None}]},
        {"metrics": {**METRICS, "of/the_future": -1e300, "linear/val_accuracy": 1}},
        {"wall_s": 0},
        {"device": "Gerät \udc80"},  # a path need not be valid text, nor a string that quotes it
        {"status": "failed", "error": "x" * 100_000, "metrics": {}},
        {"status": "stopped", "error": "", "attempts": 0},
    ],
)
def test_what_this_or_another_version_writes_is_read(tmp_path, change):
    store = make(tmp_path)
    path = store.trial("seed=0") / "result.json"
    good = {**json.loads(path.read_text()), **change}
    for left_out in ("linear_probe", "precision", "warnings"):
        path.write_text(json.dumps(good))
        result = store.result("seed=0")
        assert all(getattr(result, key) == value for key, value in good.items() if key != "of_the_future")
        del good[left_out]
    del good["settings"]["le_weight_decay"], good["protocol"]["le_weight_decay"]
    good["fingerprint"] = fingerprint(good["protocol"])
    good["settings"]["of_the_future"] = "x"
    path.write_text(json.dumps(good))
    store.set_damaged_aside(SWEEP)
    assert len(store.results(SWEEP)) == 2


def what(path):
    """Return the mode and link target of the path itself; links are not followed."""
    return path.lstat().st_mode, path.is_symlink() and os.readlink(path)


@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_file_is_set_aside_wherever_a_trial_needs_one(tmp_path, kind):
    store, trial = make(tmp_path), SWEEP.trials[0]
    directory = store.trial(trial.name)
    save_checkpoint(directory, {"epoch": 1})
    save_checkpoint(directory, {"epoch": 2})
    names = [
        "result.json",
        "attempt.json",
        "error.txt",
        "encoder.safetensors",
        "events.out.tfevents.0001.raysweep",
        ".lock",
        "checkpoints/00000002.pt",
    ]
    lie = {}
    for name in names:
        (directory / name).unlink(missing_ok=True)
        ODD[kind](directory / name)
        lie[name] = what(directory / name)
    assert "result.json: is damaged" in one_line(here("raysweep", "report", "a", cwd=tmp_path))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        store.check_settings_of_attempts(SWEEP)
        store.set_damaged_aside(SWEEP)
        assert store.results(SWEEP)[0].trial == "seed=1"
        with at_work(store, trial.name) as push:
            assert begin_attempt(directory, trial.settings) == 1
            push()
            assert load_checkpoint(directory) == {"epoch": 1}
            save_checkpoint(directory, {"epoch": 3})
            save_encoder(directory, {}, {})
    messages = [str(warning.message) for warning in caught]
    assert any("result.json was damaged" in text for text in messages)
    assert any("attempt.json is damaged" in text for text in messages)
    assert any("00000002.pt is damaged" in text for text in messages)
    for name, before in lie.items():
        aside = f"set-aside.{name}" if name.startswith("events") else name
        assert what(directory / f"{aside}.damaged-1") == before, name
    assert load_checkpoint(directory) == {"epoch": 3}
    assert attempts.attempts(directory) == 1
    remove_checkpoints(directory)
    assert what(directory / "checkpoints" / "00000002.pt.damaged-1") == lie["checkpoints/00000002.pt"]


@pytest.mark.parametrize("kind", [kind for kind in ODD if kind != "a link to a directory" and kind != "a directory"])
def test_what_is_no_directory_is_set_aside(tmp_path, kind):
    store, trial = make(tmp_path), SWEEP.trials[0]
    store.trial(trial.name).rename(tmp_path / "elsewhere")
    ODD[kind](store.trial(trial.name))
    with pytest.warns(UserWarning, match=r"was not a directory; it was renamed to seed=0\.damaged-1"):
        store.set_damaged_aside(SWEEP)
    directory = store.trial(trial.name)
    assert begin_attempt(directory, trial.settings) == 1
    ODD[kind](directory / "checkpoints")
    assert begin_attempt(directory, trial.settings) == 2
    save_checkpoint(directory, {"epoch": 1})
    assert load_checkpoint(directory) == {"epoch": 1}
    assert os.path.lexists(directory / "checkpoints.damaged-1")


def test_an_earlier_damaged_file_is_never_replaced(tmp_path):
    store = make(tmp_path)
    path = store.trial("seed=0") / "result.json"
    path.with_name("result.json.damaged-2").write_text("an earlier one, of which the first was removed")
    for number in (1, 3):
        path.write_text(f"damage {number}")
        with pytest.warns(UserWarning, match=f"damaged-{number}"):
            store.set_damaged_aside(SWEEP)
        assert path.with_name(f"result.json.damaged-{number}").read_text() == f"damage {number}"
    assert path.with_name("result.json.damaged-2").read_text().startswith("an earlier one")


def test_a_failure_is_not_recorded_over_a_damaged_result(tmp_path):
    store = make(tmp_path)
    path = store.trial("seed=0") / "result.json"
    path.write_text("damaged while the sweep ran")
    with pytest.warns(UserWarning, match="damaged-1"):
        record_failure(store, SWEEP.trials[0], "digest", "why")
    assert store.result("seed=0").error == "why"
    assert path.with_name("result.json.damaged-1").read_text() == "damaged while the sweep ran"


@pytest.mark.parametrize(
    "attempt", ["x", -1, 10**400, True, 1.5, None, [1], {"n": 1}], ids=lambda value: str(value)[:5]
)
def test_a_damaged_attempt_counts_by_the_event_files(tmp_path, attempt):
    store, trial = make(tmp_path), SWEEP.trials[0]
    directory = store.trial(trial.name)
    for number in ("0003", "²", "9" * 50):  # this program never writes the last two
        (directory / f"events.out.tfevents.{number}.raysweep").touch()
    good = json.loads((directory / "attempt.json").read_text())
    (directory / "attempt.json").write_text(json.dumps({**good, "attempt": attempt}))
    with pytest.warns(UserWarning, match=r"attempt\.json is damaged; counting attempts by the event files"):
        assert attempts.attempts(directory) == 3
    with pytest.warns(UserWarning, match="is damaged"):
        store.check_settings_of_attempts(SWEEP)
    with pytest.warns(UserWarning, match="is damaged"):
        assert begin_attempt(directory, trial.settings) == 4


@pytest.mark.parametrize("settings", [None, [], "x", {"seed": "0"}, {"seed": [0]}, {"usl_lr": -1.0}], ids=str)
def test_damaged_settings_of_an_attempt_stop_no_resume(tmp_path, settings):
    store = make(tmp_path)
    path = store.trial("seed=0") / "attempt.json"
    path.write_text(json.dumps({"attempt": 1, "settings": settings}))
    with pytest.warns(UserWarning, match="is damaged"):
        store.check_settings_of_attempts(SWEEP)


def test_only_files_of_ours_are_removed(tmp_path):
    store, trial = make(tmp_path), SWEEP.trials[0]
    directory = store.trial(trial.name)
    left = directory / ".result.json.raysweep-ab12cd34"
    left.touch()
    mine = [directory / "._result.json", directory / ".a.b" / "c", directory / "checkpoints" / "notes.txt"]
    mine += [directory / "checkpoints" / "best.json"]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    begin_attempt(directory, trial.settings)
    assert not left.exists()
    for epoch in range(4):
        save_checkpoint(directory, {"epoch": epoch})
    assert load_checkpoint(directory) == {"epoch": 3}
    remove_checkpoints(directory)
    assert all(path.read_text() == "mine" for path in mine)
    assert sorted(path.name for path in (directory / "checkpoints").iterdir()) == ["best.json", "notes.txt"]


WRITE = """
import sys
from pathlib import Path
import numpy as np
import torch
from raysweep.results.checkpoints import save_checkpoint
from raysweep.results.encoders import save_encoder
from raysweep.results.events import end_stopped
from raysweep.results.feature_cache import FeatureCache
from tests.support.odd_files import make

def show(event, given):
    if event == "os.rename":
        print(given[0])

root = Path(sys.argv[1])
sys.addaudithook(show)
trial = make(root).trial("seed=0")
end_stopped(trial, 1)
save_checkpoint(trial, {"epoch": 1})
save_encoder(trial, {"weight": torch.zeros(1)}, {})
FeatureCache(root / "features", 10**6).write("0" * 64, np.zeros((2, 3), np.float32))
"""
"""A program that writes files of a sweep and shows the temporary name of each."""
USERS = [
    *(".notes", ".notes.txt", ".result.json", ".notes.20240131", ".result.json.20240131", ".result.json.ab12cd34"),
    *("._result.json", ".result.json.swp", ".attempt.json.deadbeef", ".lock", ".gitignore", "result.json.ab12cd34"),
    *("result.json.raysweep-ab12cd34", ".result.json.raysweep-ab12cd3", ".result.json.raysweep-ab12cd345"),
    *(
        ".raysweep-ab12cd34",
        ".result.json.raysweep-AB12CD34",
        ".result.json.raysweep-ab12cd34.bak",
        ".a.raysweep-notes",
    ),
    *(".result.json.my-raysweep-ab12cd34", ".raysweep.ab12cd34", ".features.ab12cd34", ".nfs00000000ab12cd34"),
]
"""Names that a user, an editor or a file system could give to files beside the files of a trial."""


def test_only_names_that_raysweep_gives_to_temporary_files_count_as_such(tmp_path):
    process = forked.run("-c", WRITE, tmp_path, cwd=ROOT)
    assert process.returncode == 0, process.stderr
    written = [Path(line) for line in process.stdout.splitlines()]
    ends = ("attempt.json", "result.json", "encoder.safetensors", ".stopped", ".pt", "sweep.yaml", ".features")
    for end in ends:
        assert any(f"{end}." in path.name for path in written), end
    for path in written:
        assert attempts.TEMPORARY.fullmatch(path.name), path
        assert (path.parent.name == "features") == bool(feature_cache.TEMPORARY.fullmatch(path.name)), path
    directory = tmp_path / "a" / "seed=0"
    names = {path.name for path in written if path.parent == directory}
    for name in (*names, *USERS):
        (directory / name).write_text("mine")
    begin_attempt(directory, SWEEP.trials[0].settings)
    after = {path.name for path in directory.iterdir()}
    assert not names & after, "what a killed process was writing is removed"
    assert set(USERS) <= after
    assert not [name for name in USERS if attempts.TEMPORARY.fullmatch(name) or feature_cache.TEMPORARY.fullmatch(name)]


@pytest.mark.parametrize("manifest", ["", "[" * 100_000, "0" * 2**20, "null"])
def test_a_damaged_manifest_costs_its_checkpoint(tmp_path, manifest):
    for epoch in (1, 2):
        save_checkpoint(tmp_path, {"epoch": torch.tensor(epoch)})
    (tmp_path / "checkpoints" / "00000002.json").write_text(manifest)
    with pytest.warns(UserWarning, match=r"00000002\.pt is damaged"):
        assert load_checkpoint(tmp_path) == {"epoch": torch.tensor(1)}


SEARCHED = {"name": "a", "search": {"seed": [0], "alpha": {"loguniform": [0.001, 1.0]}}}
POINT = {"space": 0, "values": {"alpha": 0.5}}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "[" * 200_000,
        '{"points": null}',
        '{"points": {}}',
        '{"points": [null]}',
        '{"points": [{"space": "0", "values": {"alpha": 0.5}}]}',
        '{"points": [{"space": -1, "values": {"alpha": 0.5}}]}',
        '{"points": [{"space": true, "values": {"alpha": 0.5}}]}',
        '{"points": [{"space": 0, "values": [["alpha", 0.5]]}]}',
        '{"points": [{"space": 0, "values": {"alpha": NaN}}]}',
        '{"points": [{"space": 0, "values": {"alpha": [0.5]}}]}',
        '{"points": [{"space": 0, "values": {"alpha": true}}]}',
        '{"points": [{"space": 0}]}',
    ],
    ids=lambda text: text[:60],
)
def test_damaged_proposals_are_refused_in_one_line(tmp_path, text):
    tune = {"searcher": "optuna", "num_samples": 2}
    store = Store(tmp_path / "a").create(space.build({**SEARCHED, "tune": tune}, {}, "s.yaml"), {})
    store.record_proposals([space.Proposal(**POINT)])
    assert len(Store.open(tmp_path / "a")[1].trials) == 1
    (tmp_path / "a" / "proposals.json").write_text(text)
    assert "proposals.json: " in one_line(here("run_sweep.py", "--resume", "a", cwd=tmp_path))
    assert (tmp_path / "a" / "proposals.json").read_text() == text


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("name", ["proposals.json", "sweep.yaml"])
def test_what_is_no_file_where_the_sweep_has_its_own_is_named(tmp_path, name, kind):
    tune = {"searcher": "optuna", "num_samples": 2}
    Store(tmp_path / "a").create(space.build({**SEARCHED, "tune": tune}, {}, "s.yaml"), {})
    (tmp_path / "a" / name).unlink(missing_ok=True)
    ODD[kind](tmp_path / "a" / name)
    before = what(tmp_path / "a" / name)
    for program, arguments in (("run_sweep.py", ["--resume", "a"]), ("raysweep", ["report", "a"])):
        assert name in one_line(here(program, *arguments, cwd=tmp_path))
    assert what(tmp_path / "a" / name) == before


@pytest.mark.parametrize(
    "records",
    [
        {"made_by": [1]},
        {"made_by": {"protocol": PROTOCOL_VERSION, "datasets": [1]}},
        {"made_by": {"protocol": PROTOCOL_VERSION, "datasets": {"digits 8×8": 5}}},
        {"made_by": {"protocol": PROTOCOL_VERSION, "datasets": {"digits 8×8": None}}},
        {"changed_by": {"datasets": {}}},
        {"changed_by": ["x"]},
    ],
    ids=str,
)
def test_damaged_records_of_a_sweep_are_refused_in_one_line(tmp_path, records):
    store = Store(tmp_path / "a").create(SWEEP, {})
    content = yaml.safe_load((store.root / "sweep.yaml").read_text())
    (store.root / "sweep.yaml").write_text(yaml.safe_dump({**content, **records}))
    message = one_line(here("run_sweep.py", "--resume", "a", "--local", cwd=tmp_path))
    assert "sweep.yaml: " in message


def test_the_command_sets_them_aside_and_runs_the_trials_again(tmp_path):
    store = make(tmp_path)
    directory, nan = store.trial("seed=0"), store.trial("seed=1") / "result.json"
    for name in ("result.json", "attempt.json"):
        (directory / name).unlink()
    os.mkfifo(directory / "result.json")
    (directory / "attempt.json").mkdir()
    damaged = json.dumps({**json.loads(nan.read_text()), "metrics": {"linear/val_accuracy": NAN}})
    nan.write_text(damaged)
    # A separate process can be killed if it hangs on the pipe.
    process = forked.run(ROOT / "run_sweep.py", "--resume", "a", "--local", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert "2 trials, 0 finished before" in process.stdout
    for path in (directory / "result.json", nan):
        assert f"{path} was damaged and is now result.json.damaged-1; the trial runs again" in process.stderr
    assert nan.with_name("result.json.damaged-1").read_text() == damaged
    assert (directory / "result.json.damaged-1").is_fifo()
    assert (directory / "attempt.json.damaged-1").is_dir()
    assert [result.attempts for result in Store(store.root).results(SWEEP)] == [1, 2]


def test_the_traceback_of_an_error_that_is_no_valid_text_is_written(tmp_path):
    try:
        raise RuntimeError("cannot open /data/caf\udce9.bin")
    except RuntimeError:
        note_traceback(tmp_path)
    assert "caf\\udce9.bin" in (tmp_path / "error.txt").read_text()
