"""Sweeps in a bucket on a real S3 server on this machine: synchronisation between a local copy and the bucket."""

import csv
import json
import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
import torch
from moto.core import set_initial_no_auth_action_count
from moto.server import ThreadedMotoServer
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import raysweep
from raysweep import space
from raysweep.backends.progress import SilentTrials
from raysweep.backends.ray.callbacks import TrialEvents
from raysweep.backends.stopping import LOOK_SECONDS_BUCKET
from raysweep.errors import InputError
from raysweep.results import bucket
from raysweep.results import mirror as mirror_module
from raysweep.results.attempts import begin_attempt
from raysweep.results.bucket import Bucket
from raysweep.results.checkpoints import load_checkpoint, save_checkpoint
from raysweep.results.encoders import load_encoder
from raysweep.results.mirror import CLAIM, Mirror
from raysweep.results.store import Store
from raysweep.results.trial_directory import at_work, record_failure
from tests.support import PATIENCE, ROOT, forked, trials
from tests.support.cluster import cluster, wait_for
from tests.support.commands import flags, here, patiently, resume_command
from tests.support.gate import Gate

SWEEP = space.build({"name": "a", "search": {"alpha": [0.1, 1]}}, {}, "file.yaml")
TRIAL = "alpha=1e-05,seed=0,dataset=folder%3Aü"
NOBODY = "http://127.0.0.1:9"


def keys(s3, uri):
    """Return the bucket's keys without the markers of empty directories."""
    objects = s3.list_objects_v2(Bucket=Bucket(uri).name).get("Contents", [])
    return sorted(each["Key"].removeprefix("some prefix/") for each in objects if not each["Key"].endswith("/"))


def versions(s3, uri):
    """Return how many objects were written; versioning must be on."""
    return len(s3.list_object_versions(Bucket=Bucket(uri).name)["Versions"])


def content(folder):
    """Return every file below a directory with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def checkpoint(folder, epoch):
    """Save a checkpoint as a trial does: write events first, then record their size in the checkpoint."""
    events = folder / "events.out.tfevents.0001.raysweep"
    with open(events, "ab") as file:
        file.write(b"x" * 100)
    save_checkpoint(folder, {"epoch": epoch, "events": {events.name: events.stat().st_size}})


def begin(mirror, checkpoints=1):
    """Begin a trial in a local copy, save some checkpoints, and push it to the bucket."""
    mirror.pull()
    begin_attempt(mirror.local, SWEEP.trials[0].settings)
    for epoch in range(1, checkpoints + 1):
        checkpoint(mirror.local, epoch)
    mirror.push()
    return mirror


def test_what_one_machine_pushes_another_pulls(s3, uri, tmp_path):
    one = Mirror(Bucket(uri) / TRIAL, tmp_path / "one")
    begin(one, checkpoints=3)
    (one.local / "large").write_bytes(os.urandom(12_000_000))  # uploaded in several parts
    (one.local / ".hidden").touch()
    one.push()
    other = Mirror(Bucket(uri) / TRIAL, tmp_path / "other")
    other.pull()
    assert content(other.local) == {name: data for name, data in content(one.local).items() if name != ".hidden"}
    assert set(keys(s3, uri)) == {f"{TRIAL}/{name}" for name in content(other.local)}


def test_what_was_removed_or_cut_back_is_so_in_the_bucket_and_the_rest_stays(s3, uri, tmp_path):
    mirror = begin(Mirror(Bucket(uri), tmp_path / "copy"))
    (mirror.local / "error.txt").write_text("no")
    mirror.push()
    s3.put_object(Bucket=Bucket(uri).name, Key="some prefix/notes.txt", Body=b"the user's own")
    (mirror.local / "error.txt").unlink()
    os.truncate(mirror.local / "events.out.tfevents.0001.raysweep", 10)
    mirror.push()
    assert "error.txt" not in keys(s3, uri)
    assert "notes.txt" in keys(s3, uri)
    assert len(Bucket(uri).read("events.out.tfevents.0001.raysweep")) == 10


def test_only_what_changed_travels(s3, uri, tmp_path):
    s3.put_bucket_versioning(Bucket=Bucket(uri).name, VersioningConfiguration={"Status": "Enabled"})
    mirror = begin(Mirror(Bucket(uri), tmp_path / "copy"))
    before = versions(s3, uri)
    mirror.push()
    assert versions(s3, uri) == before
    (mirror.local / "attempt.json").write_bytes((mirror.local / "attempt.json").read_bytes())  # same size, new time
    mirror.push()
    assert versions(s3, uri) == before + 1
    times = {path: path.stat().st_ctime_ns for path in mirror.local.rglob("*.*") if path.name != CLAIM}
    Mirror(Bucket(uri), mirror.local).pull()  # as after a restart on the same machine
    assert {path: path.stat().st_ctime_ns for path in times} == times


def test_a_stale_copy_never_wins(uri, tmp_path):
    one = begin(Mirror(Bucket(uri), tmp_path / "one"))
    other = Mirror(Bucket(uri), tmp_path / "other")
    other.pull()
    for epoch in (2, 3):
        checkpoint(other.local, epoch)
    other.push()
    checkpoint(one.local, 9)  # never pushed: its process was cut off
    (one.local / "result.json").write_text("{}")
    returned = Mirror(Bucket(uri), one.local)
    returned.pull()
    assert content(one.local) == content(other.local)
    assert load_checkpoint(one.local)["epoch"] == 3


def test_one_that_was_replaced_writes_no_more(s3, uri, tmp_path):
    one = begin(Mirror(Bucket(uri), tmp_path / "one"))
    begin(Mirror(Bucket(uri), tmp_path / "other"), checkpoints=2)
    before = keys(s3, uri)
    checkpoint(one.local, 7)
    with pytest.raises(OSError, match="another process has taken over this directory"):
        one.push()
    assert keys(s3, uri) == before
    with pytest.raises(OSError, match="another process has taken over this directory"):
        one.push(lambda name: one.bucket.remove(CLAIM) is None)  # the claim is removed after the listing


def test_a_push_cut_off_at_any_request_leaves_a_whole_trial(uri, tmp_path, monkeypatch):
    """Drop one request at a time: a fresh machine then pulls a trial that can be resumed or is finished."""
    requests = 0

    def cut_off(method):
        def limited(self, *arguments):
            nonlocal requests
            requests += 1
            if requests > allowed:
                raise KeyboardInterrupt
            return method(self, *arguments)

        return limited

    outcomes = []
    for allowed in range(100):
        place = Bucket(uri) / str(allowed)
        mirror = begin(Mirror(place, tmp_path / f"{allowed}"), checkpoints=2)
        checkpoint(mirror.local, 3)
        (mirror.local / "encoder.safetensors").write_bytes(b"weights")
        (mirror.local / "result.json").write_text("{}")
        with monkeypatch.context() as patch:
            requests = 0
            patch.setattr(Bucket, "write", cut_off(Bucket.write))
            patch.setattr(Bucket, "remove", cut_off(Bucket.remove))
            try:
                mirror.push()
                completed = True
            except KeyboardInterrupt:
                completed = False
        fresh = Mirror(place, tmp_path / f"fresh-{allowed}")
        fresh.pull()
        saved = load_checkpoint(fresh.local)
        for name, size in saved["events"].items():
            assert (fresh.local / name).stat().st_size >= size
        finished = (fresh.local / "result.json").exists()
        assert not finished or (saved["epoch"] == 3 and (fresh.local / "encoder.safetensors").exists())
        outcomes.append((saved["epoch"], finished))
        if completed:
            break
    assert outcomes[0] == (2, False)
    assert outcomes[-1] == (3, True)
    assert (3, False) in outcomes


def test_a_store_that_comes_back_in_time_costs_nothing_and_one_that_does_not_is_said(
    uri, server, tmp_path, monkeypatch
):
    mirror = begin(Mirror(Bucket(uri), tmp_path / "copy"))
    host, port = server.get_host_and_port()
    checkpoint(mirror.local, 2)
    server.stop()
    again = ThreadedMotoServer(host, port, verbose=False)
    keeper = socket.socket()  # keeps the port from other processes, but does not listen, so connections are refused
    keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    keeper.bind((host, port))
    try:
        monkeypatch.setattr(bucket, "PATIENCE", 2.0)
        with pytest.raises(OSError, match="onnect to server") as fault:
            mirror.push()
        assert fault.value.filename == uri
        assert load_checkpoint(mirror.local)["epoch"] == 2
        monkeypatch.setattr(bucket, "PATIENCE", PATIENCE)
        threading.Timer(1.0, again.start).start()
        mirror.push()
    finally:
        again.stop()
        server.__init__(host, port, verbose=False)
        server.start()
        keeper.close()
    assert "checkpoints/00000002.json" in Bucket(uri).files()


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("s4://bucket/x", "unknown kind of bucket 's4'; valid: s3, gs"),
        ("file:///tmp/x", "unknown kind of bucket 'file'"),
        ("s3:///x", "is not a place in a bucket"),
        ("s3://bucket/x/../../y", "is not a place in a bucket"),
        ("s3://bucket/x//y", "is not a place in a bucket"),
        ("s3://key:secret@bucket/x", "a URI must not contain credentials"),
        ("s3://bucket/x?regoin=eu", "did you mean 'region'"),
    ],
)
def test_what_is_no_bucket_is_refused_without_asking(place, words, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", NOBODY)
    with pytest.raises(InputError) as fault:
        Store.plan(place, None, "a")
    assert words in str(fault.value)
    assert "secret" not in str(fault.value)


def test_a_bucket_that_is_not_there_is_refused(s3, uri):
    with pytest.raises(InputError, match="there is no bucket 'b-none'"):
        Store.plan("s3://b-none/x", None, "a")
    with pytest.raises(InputError, match="there is no sweep"):
        Store.open(f"{uri}/none")


def test_wrong_credentials_are_refused(s3, uri):
    host = os.environ["AWS_ENDPOINT_URL"]
    with pytest.raises(InputError) as fault:
        set_initial_no_auth_action_count(0)(Store.plan)(uri, None, "a")
    assert f"asked at {host} (AWS_ENDPOINT_URL); are the address and the credentials right?" in str(fault.value)


def test_a_service_that_never_answers_is_refused(tmp_path):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        settings = {"AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
        arguments = ["sweep", "--usl_type", "simclr", "--output", "s3://bucket/x"]
        process = forked.run("-m", "raysweep", *arguments, cwd=tmp_path, **settings)
    assert process.returncode == 2
    assert process.stderr.startswith("error: s3://bucket/x: ")
    assert len(process.stderr.splitlines()) == 1


def test_names_are_free_or_refused_as_in_a_directory(s3, uri):
    assert Store.plan(uri, None, "a").place == f"{uri}/a"
    Store.plan(uri, None, "a").create(SWEEP, {"command": "x"})
    assert keys(s3, uri) == ["a/sweep.yaml"]
    late = Store.plan(uri, None, "a")
    assert late.place == f"{uri}/a-2"
    assert late.create(SWEEP, {}).place == f"{uri}/a-2"
    assert late.create(SWEEP, {}).place == f"{uri}/a-3", "another process could have created a-2 in the meantime"
    with pytest.raises(InputError, match="another process has just created it"):
        Store(late.place).create(SWEEP, {})
    with pytest.raises(InputError, match="exists; choose another name"):
        Store.plan(uri, "a", "ignored")
    assert Store.plan(f"{uri}?region=us-east-1", "b", "ignored").place == f"{uri}/b?region=us-east-1"
    opened, sweep = Store.open(f"{uri}/a")
    assert sweep.trials == SWEEP.trials
    assert opened.results(sweep) == []


def test_new_sweeps_that_begin_at_once_take_names_of_their_own(s3, uri):
    planned = [Store.plan(uri, None, "a") for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        stores = list(pool.map(lambda store: store.create(SWEEP, {}), planned))
    assert len({store.place for store in stores}) == 3
    for each in stores:
        with each.lock():
            assert "sweep.yaml" in each.bucket.names()


def test_a_new_sweep_takes_nothing_from_the_copy_of_one_that_was_deleted(s3, uri):
    store = Store.plan(uri, "a", "a")
    (store.root / "figures").mkdir(parents=True)
    (store.root / "figures" / "old.png").touch()
    (store.root / "alpha=0.1,seed=0").mkdir()
    (store.root / "alpha=0.1,seed=0" / "result.json").write_text("old")
    store.create(SWEEP, {})
    with store.lock():
        assert store.results(SWEEP) == []
        store.push()
    assert keys(s3, uri) == ["a/sweep.yaml"]


def test_the_driver_sees_how_trials_on_other_machines_stand(uri, monkeypatch, tmp_path):
    driver = Store.plan(uri, "a", "a")
    driver.create(SWEEP, {})
    trial = SWEEP.trials[0]
    with driver.lock():
        monkeypatch.setenv("RAYSWEEP_CACHE", str(tmp_path / "node"))
        node = Store(driver.place)
        directory = node.trial(trial.name)
        assert directory.is_relative_to(tmp_path / "node")
        with suppress(RuntimeError), at_work(node, trial.name) as push:
            begin_attempt(directory, trial.settings)
            push()
            (directory / "error.txt").write_text("Traceback\nRuntimeError: no")
            raise RuntimeError
        driver.pull(trial.name)
        assert record_failure(driver, trial, "digest", "RuntimeError: no").error == "RuntimeError: no"
    monkeypatch.setenv("RAYSWEEP_CACHE", str(tmp_path / "third"))
    opened, sweep = Store.open(driver.place)
    with opened.lock():
        assert [(result.trial, result.attempts) for result in opened.results(sweep)] == [(trial.name, 1)]


def test_a_result_that_does_not_reach_the_bucket_does_not_count(uri, few, no_figures, monkeypatch):
    """The trial has failed then, also in the tables, and a resume finishes it."""
    base = {**few, "usl_epochs": 1, "le_epochs": 1, "seed": 0}
    search = {"labels_per_class": [1, 2]}
    put = bucket.put

    def lose_the_first(file_system, path, content):
        if path.endswith("labels_per_class=1,seed=0/result.json") and b'"finished"' in content:
            raise OSError("no route to host")
        put(file_system, path, content)

    def statuses():
        here = Bucket(f"{uri}/x")
        return [json.loads(here.read(name))["status"] for name in here.files() if name.endswith("/result.json")]

    with monkeypatch.context() as patch:
        patch.setattr(bucket, "PATIENCE", 0.0)
        patch.setattr(bucket, "put", lose_the_first)
        raysweep.run({"base": base, "search": search, "baseline": False}, output=uri, name="x", local=True)
    assert sorted(statuses()) == ["failed", "finished"]
    table = list(csv.DictReader(Bucket(f"{uri}/x").read("results.csv").decode().splitlines()))
    assert sorted(row["status"] for row in table) == ["failed", "finished"]
    raysweep.resume(f"{uri}/x", local=True)
    assert statuses() == ["finished"] * 2
    left = "labels_per_class=1,seed=0/checkpoints/00000001.pt"  # by a process that was killed at the end
    Bucket(f"{uri}/x").write(left, b"state")
    raysweep.resume(f"{uri}/x", local=True)
    assert left not in Bucket(f"{uri}/x").files()


def test_the_end_of_a_stopped_trial_is_in_the_bucket_before_its_checkpoints_are_removed(s3, uri, monkeypatch):
    """Without either of them, a resume would run the trial from the beginning."""
    store = Store(f"{uri}/a")
    store.create(SWEEP, {})
    trial = SWEEP.trials[0]
    begin(Mirror(store.bucket / trial.name, store.trial(trial.name)))
    prefix = f"a/{trial.name}/"
    before = keys(s3, uri)
    assert f"{prefix}checkpoints/00000001.pt" in before
    watch = TrialEvents(trials.DATASETS, store, None, {}, SilentTrials())
    put = bucket.put

    def refuse(file_system, path, content):
        if path.endswith("result.json"):
            raise OSError("no route to host")
        put(file_system, path, content)

    with monkeypatch.context() as patch:
        patch.setattr(bucket, "PATIENCE", 0.0)
        patch.setattr(bucket, "put", refuse)
        with pytest.warns(UserWarning, match="the end of the trial cannot be recorded"):
            watch._record_stop(trial, "weak", {"seconds": 1.0})
    assert set(before) <= set(keys(s3, uri))
    assert watch._record_stop(trial, "weak", {"seconds": 1.0}).status == "stopped"
    assert f"{prefix}result.json" in keys(s3, uri)
    assert not [key for key in keys(s3, uri) if "checkpoints" in key]


HOLD = "import sys; from raysweep.results.store import Store\nwith Store(sys.argv[1]).lock(): "


def holding(place, then="pass", **environment):
    """Start a process that takes the lock."""
    return forked.start("-c", HOLD + then, place, cwd=ROOT, **environment)


def test_the_lock_holds_across_machines_and_ends_with_its_holder(s3, uri, tmp_path):
    store = Store.plan(uri, "a", "a")
    store.create(SWEEP, {})
    with store.lock():
        for cache in ("cache", "elsewhere"):
            _, err = holding(store.place, RAYSWEEP_CACHE=str(tmp_path / cache)).communicate()
            assert "is running this sweep" in err
        assert f"({os.getpid()} on {socket.gethostname()})" in err
        assert "if that process has ended, try again in " in err
    with store.lock():
        pass
    assert holding(store.place, "import os; os._exit(9)").wait() == 9
    with store.lock():  # on the same machine, the holder is known to be dead
        pass
    assert keys(s3, uri) == ["a/sweep.yaml"]


def locks(s3, uri):
    """Return the time of the last change of each lock, by its key without the prefix."""
    listed = s3.list_objects_v2(Bucket=Bucket(uri).name).get("Contents", [])
    return {each["Key"]: each["LastModified"] for each in listed if ".lock/" in each["Key"] and each["Size"]}


def test_a_dead_lock_of_another_machine_is_taken_over_after_a_while_and_a_live_one_is_not(
    s3, uri, tmp_path, monkeypatch
):
    monkeypatch.setattr(mirror_module, "BEAT", 0.3)
    monkeypatch.setattr(mirror_module, "STALE", 3600.0)
    store = Store.plan(uri, "a", "a")
    store.create(SWEEP, {})
    assert holding(store.place, "import os; os._exit(9)", RAYSWEEP_CACHE=str(tmp_path / "elsewhere")).wait() == 9
    with pytest.raises(InputError, match=r"try again in 3\d\d\d s"), store.lock():
        pass
    monkeypatch.setattr(mirror_module, "STALE", 0.0)
    with store.lock():
        monkeypatch.setattr(mirror_module, "STALE", 3600.0)
        seen = set()
        wait_for(lambda: seen.update(locks(s3, uri).items()) or len(seen) == 3)
        assert len({key for key, _ in seen}) == 1, "the live lock is renewed, so a beat has set its time"
        monkeypatch.setenv("RAYSWEEP_CACHE", str(tmp_path / "elsewhere"))
        with pytest.raises(InputError, match="is running this sweep"), Store(store.place).lock():
            pass
    assert keys(s3, uri) == ["a/sweep.yaml"]


def test_one_that_lost_its_lock_leaves(s3, uri):
    store = Store.plan(uri, "a", "a")
    store.create(SWEEP, {})
    program = "from raysweep.results import mirror; mirror.BEAT = 0.5\n" + HOLD
    program += "print(flush=True); import time; time.sleep(600)"
    slow = forked.start("-c", program, store.place, cwd=ROOT)
    slow.stdout.readline()
    (lock,) = locks(s3, uri)
    while slow.poll() is None:  # it may write its lock again if it has looked for it just before
        s3.delete_object(Bucket=Bucket(uri).name, Key=lock)
        time.sleep(0.1)
    _, err = slow.communicate()
    assert "another process has taken this sweep over" in err
    assert "KeyboardInterrupt" in err


def test_a_lock_that_was_taken_over_is_removed_again_if_its_process_writes_it_once_more(s3, uri, tmp_path, monkeypatch):
    """The process was between a look and a write when its lock was removed, for example because its network failed."""
    monkeypatch.setattr(mirror_module, "BEAT", 0.3)
    monkeypatch.setattr(mirror_module, "STALE", 0.0)
    store = Store.plan(uri, "a", "a")
    store.create(SWEEP, {})
    assert holding(store.place, "import os; os._exit(9)", RAYSWEEP_CACHE=str(tmp_path / "elsewhere")).wait() == 9
    (old,) = locks(s3, uri)
    with store.lock():
        (own,) = locks(s3, uri)
        assert own != old
        s3.put_object(Bucket=Bucket(uri).name, Key=old, Body=b"{}")
        wait_for(lambda: old not in locks(s3, uri))
        assert own in locks(s3, uri)


EPOCHS = 10
LONG = ["--usl_type", "simclr", "--usl_epochs", str(EPOCHS), "--le_epochs", "3", "--probe_every", "0"]
LONG += ["--images_every", str(EPOCHS), "--set", "tune.checkpoint_seconds=0", "--name", "long"]
SELDOM = ["--set", "tune.checkpoint_seconds=60"]  # a checkpoint after each step would only take time
TWO_SEEDS = ["--set", "seed=[0, 1]"]
OWN = {"wall_s", "attempts", "pretrain/images_per_s", "data_dir"}  # differ from run to run


@pytest.fixture(scope="module")
def gate(tmp_path_factory):
    """A gate that holds trials in their fourth epoch while a test lets it; it is open at first."""
    gate = Gate(tmp_path_factory.mktemp("gate"), step=14)
    gate.open()
    return gate


@pytest.fixture(scope="module")
def long(few, gate):
    """The arguments of a sweep that can be interrupted."""
    return [*LONG, *flags(few), *gate.arguments]


def completed(*arguments, cwd, **environment):
    """Run the command in this process without Ray, and return its exit status, stdout and stderr."""
    process = here("raysweep", *arguments, cwd=cwd, **environment)
    return process.returncode, process.stdout, process.stderr


def is_saved(place):
    """Return whether the bucket holds a checkpoint of a trial."""
    return any("/checkpoints/" in name and name.endswith(".json") for name in Bucket(place).files())


def rows(text):
    """Return the rows of a results.csv without the columns that differ from run to run."""
    return [
        {name: value for name, value in row.items() if name not in OWN} for row in csv.DictReader(text.splitlines())
    ]


def check_equal(place, undisturbed, tmp_path, names):
    """Check that the trials in the bucket have the undisturbed sweep's results, and each step exactly once."""
    copy = Mirror(Bucket(place), tmp_path / "there")
    copy.pull()
    assert {path.parent.name for path in copy.local.glob("*/result.json")} == set(names)
    expected = [row for row in rows((undisturbed / "results.csv").read_text()) if row["trial"] in names]
    assert rows((copy.local / "results.csv").read_text()) == expected
    assert len(expected) == len(names)
    for name in names:
        one, other = (load_encoder(folder / name).weights for folder in (copy.local, undisturbed))
        assert all(torch.equal(one[weight], other[weight]) for weight in other)
        events = EventAccumulator(f"{place}/{name}", size_guidance={"scalars": 0}).Reload()
        assert [event.step for event in events.Scalars("pretrain/loss")] == list(range(1, EPOCHS + 1))
        assert not (copy.local / name / "checkpoints").exists()
    attempts = [json.loads((copy.local / name / "result.json").read_text())["attempts"] for name in names]
    assert max(attempts) == 2, "a trial resumed once, from a checkpoint"


@pytest.fixture(scope="module")
def undisturbed(long, tmp_path_factory):
    """The sweep, run without interruption on a local path."""
    folder = tmp_path_factory.mktemp("undisturbed")
    status, _, err = completed("sweep", *long, *TWO_SEEDS, "--local", cwd=folder)
    assert status == 0, err
    return folder / "runs" / "long"


def test_a_sweep_killed_on_one_machine_goes_on_on_another(s3, uri, long, gate, undisturbed, tmp_path):
    place = f"{uri}/long"
    gate.hold(14)
    process = forked.start("-m", "raysweep", "sweep", *long, *TWO_SEEDS, "--local", "--output", uri, cwd=tmp_path)
    gate.wait(process)
    gate.until(lambda: is_saved(place), process)
    process.kill()
    process.communicate()
    gate.open()

    resume = ["sweep", "--resume", place, "--local", *SELDOM]
    status, _, err = completed(*resume, cwd=tmp_path, RAYSWEEP_CACHE=str(tmp_path / "fresh"))
    assert status == 2
    assert "if that process has ended, try again in " in err
    for key in keys(s3, uri):
        if ".lock" in key:  # the lock would count as dead a minute later
            s3.delete_object(Bucket=Bucket(uri).name, Key=f"some prefix/{key}")
    status, out, err = completed(*resume, cwd=tmp_path, RAYSWEEP_CACHE=str(tmp_path / "fresh"))
    assert status == 0, err
    assert out.startswith(f"{place}: 2 trials, ")
    assert f"TensorBoard tensorboard --logdir '{place}'" in out
    check_equal(place, undisturbed, tmp_path, ["seed=0", "seed=1"])
    assert {"long/results.csv", "long/summary.md", "long/summary.csv"} < set(keys(s3, uri))

    opened = raysweep.open(place)
    assert list(opened.frame()["status"]) == ["finished"] * 2
    assert len(opened.curves("pretrain/loss")) == 2 * opened.frame()["usl_epochs"].max()
    assert opened.encoder("seed=0")(torch.rand(1, 3, 8, 8)).shape[0] == 1

    tables = content(tmp_path / "there")
    s3.delete_object(Bucket=Bucket(uri).name, Key="some prefix/long/results.csv")
    status, out, err = completed("report", place, cwd=tmp_path, RAYSWEEP_CACHE=str(tmp_path / "reader"))
    assert status == 0, err
    assert Bucket(place).read("results.csv") == tables["results.csv"]

    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "black.png")
    status, out, err = completed("embed", f"{place}/seed=0", "images", "-o", "features.npz", cwd=tmp_path)
    assert status == 0, err
    status, out, err = completed("embed", f"{place}/seed=7", "images", "-o", "other.npz", cwd=tmp_path)
    assert status == 2
    assert "has no encoder.safetensors" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "cache", "features.npz", "fresh", "images", "reader", "there"
    ]  # fmt: skip


@pytest.fixture
def node(s3, tmp_path, monkeypatch):
    """The address of a Ray cluster whose node keeps a separate copy, as another machine would."""
    with cluster(tmp_path, "--num-cpus=2", RAYSWEEP_CACHE=str(tmp_path / "node")) as one:
        monkeypatch.setenv("HOME", one.environment["HOME"])
        yield one.address


@pytest.mark.slow
def test_on_ray_the_bucket_is_all_that_driver_and_workers_share(node, uri, long, gate, undisturbed, tmp_path):
    place = f"{uri}/long"
    nowhere = f"{uri}-none/x".replace("b-", "c-")
    status, _, err = completed("sweep", *long, "--address", node, "--output", nowhere, cwd=tmp_path)
    assert status == 2
    assert "there is no bucket" in err
    gate.hold(14)
    process = patiently(*long, "--address", node, "--output", uri, cwd=tmp_path)
    gate.wait(process)
    gate.until(lambda: is_saved(place), process)
    process.send_signal(signal.SIGINT)
    gate.open_when_told(Store(place).root, process, LOOK_SECONDS_BUCKET)
    _, err = process.communicate()
    assert process.returncode == 130, err
    assert err.splitlines()[-1] == f"interrupted; resume with: {resume_command(place, '--address', node)}"
    resume = ["--resume", place, "--address", node, *SELDOM]
    process = patiently(*resume, cwd=tmp_path, RAYSWEEP_CACHE=str(tmp_path / "fresh"))
    _, err = process.communicate()
    assert process.returncode == 0, err
    check_equal(place, undisturbed, tmp_path, ["seed=0"])
    assert list((tmp_path / "node").rglob("events.out.*"))
    for driver in ("cache", "fresh"):
        events_of_trials = [file for file in (tmp_path / driver).rglob("events.out.*") if file.parent.name != "long"]
        assert not events_of_trials, "the driver must see the results only through the bucket"
