"""The real command resumes a sweep: with more points, after damage, or with other data."""

import csv
import itertools
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from raysweep.results.store import Store
from tests.support import forked
from tests.support.commands import alone, flags, result, scores
from tests.support.gate import Gate

pytestmark = pytest.mark.usefixtures("no_figures")

QUICK = {"usl_epochs": 1, "le_epochs": 1, "probe_every": 0, "images_every": 0, "projector_images": 0}
SEVEN = [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0]
NINE = [1e-6, *SEVEN, 100.0]
STEPS = {"usl_epochs": 6, "le_epochs": 3, "probe_every": 2, "images_every": 0, "projector_images": 0}


@pytest.fixture(scope="module")
def write_space(few):
    """A function that writes a search space and returns its path."""

    def write(path, base=(), **search):
        path.write_text(yaml.safe_dump({"name": "a", "base": {**few, **QUICK, **dict(base)}, "search": search}))
        return path

    return write


def rows(root):
    with open(root / "results.csv") as file:
        return [row["trial"] for row in csv.DictReader(file)]


def refused(*arguments, cwd):
    """Return the one line with which the command refuses."""
    completed = alone(*arguments, cwd=cwd)
    assert completed.returncode == 2, completed
    assert completed.stderr.count("\n") == 1
    return completed.stderr


@pytest.fixture(scope="module")
def seven(tmp_path_factory, write_space, no_figures):
    """The directory of a finished sweep over seven values."""
    folder = tmp_path_factory.mktemp("seven")
    completed = alone(write_space(folder / "seven.yaml", alpha=SEVEN), cwd=folder)
    assert completed.returncode == 0, completed.stderr
    return folder / "runs" / "a"


def test_a_longer_grid_runs_its_new_points_only_and_keeps_the_old(seven, tmp_path, write_space):
    root = shutil.copytree(seven, tmp_path / "a")
    begun = yaml.safe_load((root / "sweep.yaml").read_text())
    before = {path: path.stat().st_mtime_ns for path in root.glob("*/result.json")}
    nine = write_space(tmp_path / "nine.yaml", alpha=NINE)

    planned = alone(nine, "--resume", "a", "--dry-run", cwd=tmp_path)
    new = [line for line in planned.stdout.splitlines() if line.endswith("# new")]
    assert new == ["alpha=1e-06,seed=0  # new", "alpha=100.0,seed=0  # new"]
    assert {path: path.stat().st_mtime_ns for path in root.glob("*/result.json")} == before

    completed = alone(nine, "--resume", "a", cwd=tmp_path)
    assert completed.returncode == 0, completed.stderr
    assert "9 trials (2 new), 7 finished before" in completed.stdout
    assert rows(root) == [f"alpha={alpha},seed=0" for alpha in NINE]
    after = {path: path.stat().st_mtime_ns for path in root.glob("*/result.json")}
    assert {path: after[path] for path in before} == before
    assert len(after) == 9

    # Points that the file no longer names stay in the tables and in sweep.yaml, which again gives the whole sweep.
    one = write_space(tmp_path / "one.yaml", alpha=[0.1])
    completed = alone(one, "--resume", "a", cwd=tmp_path)
    assert completed.returncode == 0, completed.stderr
    assert completed.stdout.startswith(f"{root}: all 9 trials have finished")
    assert sorted(rows(root)) == sorted(f"alpha={alpha},seed=0" for alpha in NINE)
    assert rows(root)[0] == "alpha=0.1,seed=0"
    written = yaml.safe_load((root / "sweep.yaml").read_text())
    assert written["made_by"] == begun["made_by"]
    assert [entry["command"].split()[1] for entry in written["changed_by"]] == [str(nine), str(one)]
    assert alone("--resume", "a", "--dry-run", cwd=tmp_path).stdout.count("alpha=") == 9


def test_what_would_make_it_another_sweep_is_refused_and_nothing_changes(seven, tmp_path, write_space):
    root = shutil.copytree(seven, tmp_path / "a")
    before = (root / "sweep.yaml").read_bytes()
    changed = write_space(tmp_path / "lr.yaml", base={"usl_lr": 0.01}, alpha=SEVEN)
    assert "usl_lr: is 0.01, but the sweep was started with 0.0001" in refused(changed, "--resume", "a", cwd=tmp_path)
    moved = ["--set", "strength=[0.5, 1]", "--resume", "a"]
    assert "strength: is under search now" in refused(*moved, cwd=tmp_path)
    with Store(root).lock():
        assert "another process is running this sweep" in refused("--seed", "1", "--resume", "a", cwd=tmp_path)
    assert (root / "sweep.yaml").read_bytes() == before


def test_damaged_and_missing_files_are_survived(seven, tmp_path):
    root = shutil.copytree(seven, tmp_path / "a")
    before = {alpha: scores(root, f"alpha={alpha},seed=0") for alpha in SEVEN}
    lost, damaged = root / f"alpha={SEVEN[0]},seed=0", root / f"alpha={SEVEN[1]},seed=0"
    (lost / "result.json").unlink()
    (lost / "attempt.json").write_text("{")
    cut = (damaged / "result.json").read_bytes()[:100]
    (damaged / "result.json").write_bytes(cut)
    (root / "results.csv").unlink()
    (root / ".ray").mkdir()
    (root / ".ray" / "tuner.pkl").write_bytes(b"cut off")
    completed = alone("--resume", "a", cwd=tmp_path)
    assert completed.returncode == 0, completed.stderr
    # Two readers, in one process here, print the first line.
    assert list(dict.fromkeys(completed.stderr.splitlines())) == [
        f"warning: {lost / 'attempt.json'} is damaged; counting attempts by the event files",
        f"warning: {damaged / 'result.json'} was damaged and is now result.json.damaged-1; the trial runs again",
    ]
    assert "5 finished before" in completed.stdout
    assert {alpha: scores(root, f"alpha={alpha},seed=0") for alpha in SEVEN} == before
    assert (damaged / "result.json.damaged-1").read_bytes() == cut
    assert result(root, lost.name)["attempts"] == 2
    assert len(rows(root)) == 7


@pytest.fixture(scope="module")
def broken(tmp_path_factory, few, no_figures):
    """A copy of a sweep's directory in the fifth epoch, as a kill would leave it, and the scores at its end."""
    folder = tmp_path_factory.mktemp("broken")
    gate, root = Gate(folder, step=18), folder / "runs" / "x"

    def copy():
        gate.wait()
        shutil.copytree(root, folder / "killed")

    arguments = [*flags({**few, **STEPS}), *gate.arguments, "--name", "x", "--set", "tune.checkpoint_seconds=0"]
    with gate.meanwhile(copy):
        undisturbed = alone(*arguments, cwd=folder)
    assert undisturbed.returncode == 0, undisturbed.stderr
    return folder / "killed", scores(root, "seed=0")


@pytest.mark.parametrize("suffix", [".pt", ".json"])
def test_a_damaged_checkpoint_costs_the_epochs_since_the_one_before(broken, tmp_path, suffix):
    killed, expected = broken
    trial = shutil.copytree(killed, tmp_path / "x") / "seed=0"
    newest = max(trial.glob("checkpoints/*.json")).with_suffix(suffix)
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    (trial / "attempt.json").write_text("")
    completed = alone("--resume", "x", cwd=tmp_path)
    assert completed.returncode == 0, completed.stderr
    ended = result(tmp_path / "x", "seed=0")
    assert scores(tmp_path / "x", "seed=0") == expected
    assert ended["warnings"] == [
        f"checkpoint {newest.with_suffix('.pt')} is damaged; resuming from the one before it, if there is one"
    ]
    assert ended["attempts"] == 2
    events = EventAccumulator(str(trial), size_guidance={"scalars": 0}).Reload()
    steps = {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert steps["pretrain/loss"] == list(range(1, 7))
    assert steps["online/knn_val_accuracy"] == [0, 2, 4, 6]
    assert all(len(set(numbers)) == len(numbers) for numbers in steps.values())


def test_without_any_checkpoint_or_event_file_it_starts_anew(broken, tmp_path):
    killed, expected = broken
    trial = shutil.copytree(killed, tmp_path / "x") / "seed=0"
    for path in (*trial.glob("checkpoints/*"), *trial.glob("events*"), trial / "attempt.json"):
        path.unlink()
    completed = alone("--resume", "x", cwd=tmp_path)
    assert completed.returncode == 0, completed.stderr
    assert scores(tmp_path / "x", "seed=0") == expected


def test_other_data_is_refused_though_no_trial_has_finished(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("pretraining", "probe"):
        for number in range(24):
            folder = tmp_path / name / ("train" if number % 2 else "test") / "ab"[number // 2 % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    datasets = ["--dataset", f"folder:{tmp_path / 'pretraining'}", "--probe_dataset", f"folder:{tmp_path / 'probe'}"]
    sizes = ["--batch_size", "4", "--knn_k", "2", "--image_size", "8", "--usl_epochs", "1", "--le_epochs", "1"]
    completed = alone(*datasets, *sizes, "--name", "x", cwd=tmp_path)
    assert completed.returncode == 0, completed.stderr
    (tmp_path / "runs" / "x" / "seed=0" / "result.json").unlink()
    for changed in (tmp_path / "pretraining", tmp_path / "probe"):
        image = changed / "train" / "a" / "1.png"
        content = image.read_bytes()
        Image.new("RGB", (8, 8)).save(image)
        message = refused("--resume", "runs/x", cwd=tmp_path)
        assert f"dataset 'folder:{changed} " in message
        assert "changed after the sweep was started" in message
        image.write_bytes(content)
        changed.rename(tmp_path / "elsewhere")
        assert f"there is no folder '{changed}'" in refused("--resume", "runs/x", cwd=tmp_path)
        (tmp_path / "elsewhere").rename(changed)
    completed = alone("--resume", "runs/x", cwd=tmp_path)
    assert completed.returncode == 0, completed.stderr


HOLD = """
import sys, time
from pathlib import Path
from raysweep.results.attempts import hold_directory

print("ready", flush=True)
sys.stdin.readline()
with hold_directory(Path(sys.argv[1])):
    print(time.monotonic(), flush=True)
    time.sleep(0.3)
    print(time.monotonic())
"""
"""A program that holds a directory once it is told to, and shows from when to when."""


def test_a_trial_that_another_process_still_runs_is_waited_for(tmp_path):
    pipe = forked.subprocess.PIPE
    several = [forked.start("-c", HOLD, tmp_path, cwd=tmp_path, stdin=pipe) for _ in range(3)]
    for process in several:
        assert process.stdout.readline() == "ready\n"
    for process in several:
        process.stdin.write("go\n")
        process.stdin.flush()
    spans = sorted([float(line) for line in process.communicate()[0].split()] for process in several)
    assert [len(span) for span in spans] == [2] * 3
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))
    assert not list(tmp_path.iterdir())
