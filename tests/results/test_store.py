"""The results directory: atomic writes, names, and checkpoints that survive damage."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from raysweep import space
from raysweep.backends.stopping import StopFlag, watch
from raysweep.config.protocol import protocol
from raysweep.errors import InputError
from raysweep.results.attempts import begin_attempt
from raysweep.results.checkpoints import load_checkpoint, save_checkpoint
from raysweep.results.result import (
    check_settings,
    describe_error,
    make_result,
    protocol_difference,
    read_result,
    write_result,
)
from raysweep.results.store import Store
from raysweep.results.trial_directory import at_work, record_failure
from raysweep.system.files import write_atomically, write_json
from tests.support import forked

SWEEP = space.build({"name": "a", "search": {"alpha": [0.1, 1]}}, {}, "file.yaml")


def result_of(trial, directory, **changes):
    directory.mkdir(parents=True, exist_ok=True)
    options = {"status": "finished", "error": None, "metrics": {}, "wall_s": 1.5, "device": "cpu", "warnings": []}
    return make_result(trial, "digest", directory, **{**options, **changes})


def test_default_names_take_the_next_free_suffix_and_given_ones_must_be_free(tmp_path):
    assert Store.plan(tmp_path, None, "a").root == tmp_path / "a"
    for expected in ("a-2", "a-3"):
        Store.plan(tmp_path, None, "a").create(SWEEP, {})
        assert Store.plan(tmp_path, None, "a").root == tmp_path / expected
    with pytest.raises(InputError, match="exists"):
        Store.plan(tmp_path, "a", "ignored")
    assert Store.plan(tmp_path, "b", "ignored").root == tmp_path / "b"


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "x/y", "..", ".hidden", "", "a b", "x" * 101])
def test_names_that_lead_elsewhere_are_refused(tmp_path, name):
    with pytest.raises(InputError, match="cannot name a directory"):
        Store.plan(tmp_path, name, "a")


def test_output_that_is_a_file_is_refused_and_nothing_is_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="not a directory"):
        Store.plan(tmp_path / "file" / "deeper", None, "a")
    Store.plan(tmp_path / "not" / "yet", None, "a")
    assert not (tmp_path / "not").exists()


def test_sweep_is_read_back(tmp_path):
    Store.plan(tmp_path, None, "a").create(SWEEP, {"command": "x"})
    opened, sweep = Store.open(tmp_path / "a")
    assert sweep.trials == SWEEP.trials
    assert opened.results(sweep) == []
    with pytest.raises(InputError, match="there is no sweep"):
        Store.open(tmp_path)


def test_result_is_read_back_and_a_damaged_one_is_named(tmp_path):
    trial = SWEEP.trials[0]
    result = result_of(trial, tmp_path, metrics={"linear/val_accuracy": 1 / 3})
    write_result(tmp_path, result)
    assert read_result(tmp_path) == result
    (tmp_path / "result.json").write_text('{"trial": ')
    with pytest.raises(InputError, match=r"result\.json: is damaged"):
        read_result(tmp_path)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    with pytest.raises(TypeError):
        write_atomically(tmp_path / "x.json", "text, not bytes")
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_attempts_are_counted_and_a_new_one_clears_the_failure_of_the_last(tmp_path):
    trial = SWEEP.trials[0]
    store = Store(tmp_path / "a").create(SWEEP, {})
    directory = store.trial(trial.name)
    assert begin_attempt(directory, trial.settings) == 1
    (directory / "error.txt").write_text("Traceback\nRuntimeError: no")
    failed = record_failure(store, trial, "digest", "RuntimeError: no")
    assert (failed.status, failed.error, failed.attempts) == ("failed", "RuntimeError: no", 1)
    assert read_result(directory) == failed
    assert begin_attempt(directory, trial.settings) == 2
    assert read_result(directory) is None
    assert not (directory / "error.txt").exists()


def test_trials_leave_by_the_mark_of_their_own_run_only(tmp_path):
    store = Store(tmp_path)
    first, second = StopFlag(store, "first"), StopFlag(store, "second")
    first.place()
    assert not first.is_set()
    first.set()
    assert first.is_set()
    assert not second.is_set()
    second.place()  # the next run of the sweep, after the first was killed
    assert not first.is_set()
    second.set()
    assert watch(second)()
    second.remove(was_set=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "wasteful",
    [lambda: bytearray(2**60), lambda: np.zeros(2**60, np.uint8), lambda: torch.empty(2**60, dtype=torch.uint8)],
    ids=["Python", "NumPy", "PyTorch"],
)
def test_a_lack_of_memory_is_called_that(wasteful):
    with pytest.raises((MemoryError, RuntimeError)) as fault:
        wasteful()
    assert describe_error(fault.value).startswith("out of memory")
    assert not (set(describe_error(fault.value)) & set("\r\n\x1b"))


def test_a_reason_is_one_line_that_names_the_file():
    assert describe_error(ValueError("one\ntwo")) == "ValueError: one"
    assert describe_error(AssertionError()) == "AssertionError"
    with pytest.raises(OSError, match="No such file") as fault:
        Path("/nowhere/x").read_bytes()
    assert describe_error(fault.value) == "FileNotFoundError: No such file or directory: /nowhere/x"


def test_the_newest_whole_checkpoint_is_loaded(tmp_path):
    assert load_checkpoint(tmp_path) is None
    for epoch in (1, 2, 3):
        save_checkpoint(tmp_path, {"epoch": epoch, "weights": torch.full((3,), float(epoch))})
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["00000002.json", "00000002.pt", "00000003.json", "00000003.pt"]
    assert load_checkpoint(tmp_path)["weights"].tolist() == [3, 3, 3]

    def damage(name):
        content = bytearray((tmp_path / "checkpoints" / name).read_bytes())
        content[len(content) // 2] ^= 1
        (tmp_path / "checkpoints" / name).write_bytes(content)

    damage("00000003.pt")
    with pytest.warns(UserWarning, match="00000003.pt is damaged"):
        assert load_checkpoint(tmp_path)["epoch"] == 2

    save_checkpoint(tmp_path, {"epoch": 3})
    (tmp_path / "checkpoints" / "00000003.json").write_text("")  # a damaged manifest is skipped too
    with pytest.warns(UserWarning, match="damaged"):
        assert load_checkpoint(tmp_path)["epoch"] == 2, "a damaged checkpoint must not replace an intact one"

    save_checkpoint(tmp_path, {"epoch": 3})
    (tmp_path / "checkpoints" / "00000003.json").unlink()  # as if the process was killed before it wrote the manifest
    (tmp_path / "checkpoints" / ".00000003.json.x1y2").write_text("")
    assert load_checkpoint(tmp_path)["epoch"] == 2
    save_checkpoint(tmp_path, {"epoch": 3})
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["00000002.json", "00000002.pt", "00000003.json", "00000003.pt"]
    damage("00000003.pt")
    damage("00000002.pt")
    with pytest.warns(UserWarning, match="damaged"):
        assert load_checkpoint(tmp_path) is None


def test_a_second_process_is_refused_and_a_dead_one_leaves_no_lock(tmp_path):
    held = Store(tmp_path)
    hold = "import pathlib, sys; from raysweep.results.store import Store\n"
    hold += f"with Store(pathlib.Path({str(tmp_path)!r})).lock(): "
    with held.lock():
        second = forked.run("-c", hold + "pass", cwd=tmp_path)
        assert "another process is running this sweep" in second.stderr
    died = forked.run("-c", hold + "import os; os._exit(9)", cwd=tmp_path)
    assert died.returncode == 9
    with held.lock():
        pass


def test_what_an_older_version_left_out_has_its_default():
    trial = SWEEP.trials[0]
    old_settings = trial.settings.model_dump()
    del old_settings["le_weight_decay"], old_settings["hinge_m"]
    check_settings(old_settings, trial.settings, "here")
    changed = trial.settings.model_copy(update={"hinge_m": 3.0})
    with pytest.raises(InputError, match=r"here: has hinge_m: 2\.0, but the sweep says 3\.0"):
        check_settings(old_settings, changed, "here")


def test_protocols_are_compared_key_by_key():
    now = protocol(SWEEP.trials[0].settings, "digest")
    older = {key: value for key, value in now.items() if key != "le_weight_decay"}
    assert protocol_difference(now, older) is None
    assert protocol_difference(older, {**now, "le_weight_decay": 0.1}) == ("le_weight_decay", 0.0, 0.1)
    assert protocol_difference(now, {**now, "of_the_future": 1}) == ("of_the_future", None, 1)
    assert protocol_difference(older, {**older, "knn_k": 5}, ignored=["knn_k"]) is None


def test_optional_parts_of_a_result_may_be_missing(tmp_path):
    result = result_of(SWEEP.trials[0], tmp_path, linear_probe="layer=trunk,lr=0.001,weight_decay=0.0")
    write_result(tmp_path, result)
    assert read_result(tmp_path) == result
    content = json.loads((tmp_path / "result.json").read_text())
    del content["linear_probe"]
    (tmp_path / "result.json").write_text(json.dumps(content))
    assert read_result(tmp_path).linear_probe == ""
    del content["metrics"]
    (tmp_path / "result.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="is damaged"):
        read_result(tmp_path)


def test_a_node_that_does_not_see_the_sweep_writes_nothing(tmp_path):
    store, trial = Store(tmp_path / "mount" / "x"), SWEEP.trials[0].name
    with pytest.raises(FileNotFoundError, match="does not see the sweep"), at_work(store, trial):
        pass
    assert not list(tmp_path.iterdir())
    store.create(SWEEP, {})
    with at_work(store, trial):
        pass
