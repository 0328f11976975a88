"""After a results directory is removed, renamed or replaced while trials run, nothing more is written there."""

import os
import shutil

import pytest

from raysweep import space
from raysweep.backends.stopping import LOOK_SECONDS, StopFlag, Stopping
from raysweep.results.attempts import begin_attempt
from raysweep.results.checkpoints import load_checkpoint, save_checkpoint
from raysweep.results.encoders import save_encoder
from raysweep.results.result import note_traceback
from raysweep.results.store import Store
from raysweep.results.trial_directory import at_work, record_failure
from raysweep.system.files import write_json
from tests.support import ROOT, forked
from tests.support.cluster import wait_for

SWEEP = space.build({"name": "a", "search": {"seed": [0, 1]}}, {}, "s.yaml")
LONG = ["--usl_type", "simclr", "--usl_epochs", "100000", "--probe_every", "0", "--images_every", "0", "--local"]
LONG += ["--set", "seed=[0,1]", "--set", "tune.checkpoint_seconds=0", "--name", "x"]


def listing(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def begin(folder, few):
    """Start the real command with long trials, and return it once the first trial has saved a checkpoint."""
    data = [word for name, value in few.items() for word in (f"--{name}", str(value))]
    process = forked.start(ROOT / "run_sweep.py", *LONG, *data, cwd=folder)
    wait_for(lambda: list(folder.glob("runs/x/*/checkpoints/*.json")), process)
    return process


def ended(process):
    out, err = process.communicate()
    assert process.returncode == 1, err
    assert "Traceback" not in out + err
    (line,) = err.splitlines()
    assert line.startswith("runs/x: the results directory was removed, renamed or replaced while its trials ran")
    assert "--resume" in line


def test_a_removed_directory_is_not_made_again(tmp_path, few):
    process = begin(tmp_path, few)
    (tmp_path / "runs").rename(tmp_path / "trash")  # a rename is atomic; rmtree while files are being written is not
    shutil.rmtree(tmp_path / "trash")
    ended(process)
    assert not list(tmp_path.iterdir())


def test_a_renamed_directory_can_be_gone_on_with_and_one_in_its_place_is_left_alone(tmp_path, few):
    process = begin(tmp_path, few)
    (tmp_path / "runs" / "x").rename(tmp_path / "runs" / "kept")
    other = Store(tmp_path / "runs" / "x").create(SWEEP, {})
    checkpoints = other.trial("seed=0") / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "00000001.pt").write_text("another sweep's")
    before = listing(other.root)
    ended(process)
    assert listing(other.root) == before
    kept, sweep = Store.open(tmp_path / "runs" / "kept")
    with kept.lock():
        kept.check_settings_of_attempts(sweep)
        assert load_checkpoint(kept.trial("seed=0")) is not None


def lost(root):
    root.rename(root.with_name("renamed"))


def replaced(root):
    root.rename(root.with_name("renamed"))
    ignored = shutil.ignore_patterns(".leave-*")  # the mark belongs to this run alone
    shutil.copytree(root.with_name("renamed"), root, ignore=ignored)
    (root / "seed=0").mkdir(exist_ok=True)


def unmounted(root):
    root.rename(root.with_name("renamed"))
    root.mkdir()


WAYS = [lost, replaced, unmounted]


@pytest.mark.parametrize("way", WAYS)
def test_a_trial_writes_nothing_there(tmp_path, way):
    store = Store(tmp_path / "a").create(SWEEP, {})
    directory, trial = store.trial("seed=0"), SWEEP.trials[0]
    with at_work(store, "seed=0") as push:
        begin_attempt(directory, trial.settings)
        push()
        way(store.root)
        before = listing(tmp_path)
        for write in (
            push,
            lambda: begin_attempt(directory, trial.settings),
            lambda: save_checkpoint(directory, {}),
            lambda: save_encoder(directory, {}, {}),
            lambda: write_json(directory / "result.json", {}),
        ):
            with pytest.raises(FileNotFoundError):
                write()
        note_traceback(directory)
        assert listing(tmp_path) == before


def test_a_trial_that_breaks_off_says_that_the_sweep_is_not_there(tmp_path):
    store = Store(tmp_path / "a").create(SWEEP, {})

    def work():
        with at_work(store, "seed=0"):
            lost(store.root)
            (store.trial("seed=0") / "x").touch()

    with pytest.raises(FileNotFoundError, match=r"does not see the sweep's sweep\.yaml"):
        work()


@pytest.mark.parametrize("way", WAYS)
def test_the_driver_writes_nothing_there(tmp_path, way):
    store = Store(tmp_path / "a").create(SWEEP, {})
    with store.lock():
        stopping = Stopping(store)
        stopping.flag.place()
        assert store.present()
        assert not stopping.must_stop()
        way(store.root)
        before = listing(tmp_path)
        assert not store.present()
        record_failure(store, SWEEP.trials[0], "digest", "why")
        with pytest.raises(FileNotFoundError):
            store.record_proposals([])
        with pytest.raises(FileNotFoundError):
            stopping.flag.set()
        stopping.looked -= LOOK_SECONDS
        assert stopping.must_stop()
        assert listing(tmp_path) == before


def test_a_worker_that_does_not_hold_the_sweep_sees_that_it_is_gone(tmp_path):
    store = Store(tmp_path / "a").create(SWEEP, {})
    worker = Store(store.place)
    assert worker.present()
    lost(store.root)
    assert not worker.present()
    with pytest.raises(FileNotFoundError, match=r"does not see the sweep's sweep\.yaml"), at_work(worker, "seed=0"):
        pass
    assert os.listdir(tmp_path) == ["renamed"]


def test_a_lock_is_taken_from_nobody(tmp_path):
    store = Store(tmp_path / "a").create(SWEEP, {})
    with at_work(store, "seed=0"):
        replaced(store.root)
        (store.trial("seed=0") / ".lock").write_text("another process's")
    assert (store.trial("seed=0") / ".lock").read_text() == "another process's"


def test_the_mark_is_set_where_it_was_placed(tmp_path):
    mark = StopFlag(Store(tmp_path / "a").create(SWEEP, {}), "token")
    mark.place()
    mark.set()
    assert mark.is_set()
