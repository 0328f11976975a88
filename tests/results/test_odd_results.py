"""Reports and resumes of a finished sweep whose files were damaged or came from elsewhere."""

import csv
import json
import os
import shutil

import pytest
import yaml

import raysweep
from raysweep.config import fingerprint
from raysweep.results.store import Store
from raysweep.system.files import is_occupied
from tests.report.test_page import read_page
from tests.support import ROOT, forked
from tests.support.commands import QUICK, alone, here
from tests.support.odd_files import ODD, SWEEP, make

EVENTS = "events.out.tfevents.0001.raysweep"


CURVES = {
    "no text": lambda good: bytes(range(256)) * 100,
    "another separator": lambda good: good.replace(b",", b";"),
    "Latin-1": lambda good: good.replace(b"step", "stép".encode("latin1")),
    "nothing to count": lambda good: good.replace(b"\n1,", b"\nx,"),
}


def run(folder, few, grid):
    """Run a sweep of small trials without Ray, and return its results directory."""
    data = [word for name, value in few.items() for word in (f"--{name}", str(value))]
    process = alone(*QUICK, "--usl_type", "simclr", "--set", grid, "--name", "s", *data, cwd=folder)
    assert process.returncode == 0, process.stderr
    return folder / "runs" / "s"


@pytest.fixture(scope="module")
def finished(few, no_figures, tmp_path_factory):
    """A finished sweep of two small trials."""
    return run(tmp_path_factory.mktemp("finished"), few, "seed=[0, 1]")


@pytest.fixture(scope="module")
def finished_many(few, no_figures, tmp_path_factory):
    """A finished sweep with a small trial for each kind of damage, and one more; each is a point of its own."""
    strengths = [(number + 1) / 20 for number in range(len(ODD) + len(CURVES) + 1)]
    return run(tmp_path_factory.mktemp("many"), few, f"strength={strengths}")


@pytest.fixture
def sweep(finished, tmp_path):
    """A copy of the finished sweep, as `s` in `tmp_path`."""
    return shutil.copytree(finished, tmp_path / "s", symlinks=True)


@pytest.fixture
def many(finished_many, tmp_path):
    """A copy of the finished sweep of many trials, as `s` in `tmp_path`."""
    return shutil.copytree(finished_many, tmp_path / "s", symlinks=True)


def change(path, edit):
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def header(sweep):
    with open(sweep / "results.csv") as file:
        return next(csv.reader(file))


def commands(folder):
    """Run the report and the resume of the sweep `s`."""
    yield here("raysweep", "report", "s", cwd=folder)
    yield here("run_sweep.py", "--resume", "s", "--local", cwd=folder)


def test_metrics_of_another_version_have_no_column_and_end_no_command(sweep, tmp_path):
    columns = header(sweep)
    names = ["of/the_future", "knn/k7_test_accuracy", "", "trial", "seed", "status"]
    for seed in (0, 1):
        change(
            sweep / f"seed={seed}" / "result.json",
            lambda content: content["metrics"].update(dict.fromkeys(names, 0.25)),
        )
    for process in commands(tmp_path):
        assert process.returncode == 0, process.stderr
        assert header(sweep) == columns
        with open(sweep / "results.csv") as file:
            assert [row["trial"] for row in csv.DictReader(file)] == ["seed=0", "seed=1"]
    assert list(raysweep.open(str(sweep)).frame()["seed"]) == [0, 1]


def trials_of(sweep):
    """Return the directories of all trials."""
    return [path.parent for path in sorted(sweep.glob("*/result.json"))]


def trials_with_curves(sweep):
    """Return the trials whose losses are among the curves of the page."""
    data = read_page(sweep).data
    return {data["names"][number] for number, _, _ in data["metrics"]["pretrain/loss"]}


@pytest.mark.parametrize("has_curves", [True, False])
def test_what_is_no_event_file_costs_only_its_own_curves(many, tmp_path, has_curves):
    everything = trials_of(many)
    trials = dict(zip(ODD, everything, strict=False))
    unharmed = everything if has_curves else everything[len(trials) :]
    for kind, trial in trials.items():
        (trial / EVENTS).unlink()
        ODD[kind](trial / EVENTS)
        if not has_curves:
            (trial / "curves.csv").unlink()
    for name in ("report.html", "summary.md"):
        (many / name).unlink()
    # A separate process can be killed if it hangs on the pipe.
    process = forked.run("-m", "raysweep", "report", "s", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert "report.html could not" not in process.stderr
    assert (many / "summary.md").is_file()
    assert trials_with_curves(many) == {trial.name for trial in unharmed}
    for kind, trial in trials.items():
        assert f"{trial.name}/{EVENTS}" in process.stderr, kind
        assert (trial / "curves.csv").is_file() == has_curves, kind
        assert is_occupied(trial / EVENTS), f"{kind} is not removed"
    results = {path: path.read_bytes() for path in many.glob("*/result.json")}
    resumed = forked.run(ROOT / "run_sweep.py", "--resume", "s", "--local", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert {path: path.read_bytes() for path in many.glob("*/result.json")} == results, "no trial runs again"


@pytest.mark.parametrize("seconds", [1e308, 3.2e9])
@pytest.mark.parametrize("name", ["wall_s", "continued_s"])
def test_a_time_of_more_than_a_century_is_damage(tmp_path, name, seconds):
    store = make(tmp_path)
    path = store.trial("seed=0") / "result.json"
    change(path, lambda content: content.update({name: seconds}))
    refused = here("raysweep", "report", "a", cwd=tmp_path)
    assert refused.returncode == 2
    assert str(path) in refused.stderr
    change(path, lambda content: content.update({name: 3.0e9}))
    assert here("raysweep", "report", "a", cwd=tmp_path).returncode == 0


def test_damaged_curves_of_trials_are_left_out_with_a_warning(many, tmp_path):
    *damaged, good = trials_of(many)
    paths = {kind: trial / "curves.csv" for kind, trial in zip([*CURVES, *ODD], damaged, strict=True)}
    for kind, path in paths.items():
        if kind in CURVES:
            before = path.read_bytes()
            path.write_bytes(CURVES[kind](before))
            assert path.read_bytes() != before, kind
        else:
            path.unlink()
            ODD[kind](path)
    (many / "report.html").unlink()
    process = forked.run("-m", "raysweep", "report", "s", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert "InputError" not in process.stderr
    page = (many / "report.html").read_text()
    for kind, path in paths.items():
        assert str(path) in process.stderr, kind
        assert f"{path}: is damaged" in page, kind
    assert trials_with_curves(many) == {good.name}


CHANGES = {
    "no protocol": lambda content: content.update(protocol={}),
    "an empty protocol with its fingerprint": lambda content: content.update(protocol={}, fingerprint=fingerprint({})),
    "another value": lambda content: content["protocol"].update(knn_k=content["protocol"]["knn_k"] + 1),
    "other data": lambda content: content["protocol"].update(probe_data="another"),
    "another fingerprint": lambda content: content.update(fingerprint="0" * 12),
    "no settings": lambda content: content.update(settings={}),
    "no seed": lambda content: content["settings"].pop("seed"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_result_that_contradicts_itself_is_damage(sweep, tmp_path, kind):
    path = sweep / "seed=1" / "result.json"
    before = json.loads(path.read_text())["metrics"]
    change(path, CHANGES[kind])
    refused, resumed = commands(tmp_path)
    assert refused.returncode == 2
    assert f"{path}: is damaged" in refused.stderr
    assert resumed.returncode == 0, resumed.stderr
    assert f"{path} was damaged and is now result.json.damaged-1; the trial runs again" in resumed.stderr
    after = json.loads(path.read_text())["metrics"]
    for content in (before, after):
        content.pop("pretrain/images_per_s")
    assert after == before


def test_the_point_of_a_trial_comes_from_the_sweep(tmp_path):
    store = make(tmp_path)
    expected = store.results(SWEEP)
    change(
        store.trial("seed=0") / "result.json",
        lambda content: content.update(point="alpha=7", varied={"alpha": 7.0}, baseline=True),
    )
    assert store.results(SWEEP) == expected


def test_a_copied_evaluation_is_refused_before_anything_starts(sweep, tmp_path):
    process = here("raysweep", "evaluate", "s", "--local", "--name", "e", "--set", "knn_k=3", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    copy = tmp_path / "alone"
    shutil.copytree(sweep / "evaluations" / "e", copy)
    assert here("run_sweep.py", "--resume", "alone", "--local", cwd=tmp_path).returncode == 0, "nothing is left to run"
    for path in copy.glob("*/result.json"):
        path.unlink()
    before = sorted(path for path in copy.rglob("*"))
    for more in ([], ["--dry-run"]):
        refused = here("run_sweep.py", "--resume", "alone", "--local", *more, cwd=tmp_path)
        assert (refused.returncode, refused.stdout) == (2, "")
        (line,) = refused.stderr.splitlines()
        assert "alone: the evaluation reads encoders of its sweep" in line
        assert "must lie in evaluations/ of its sweep" in line
    assert sorted(path for path in copy.rglob("*")) == before
    (sweep / "evaluations" / "e").rename(tmp_path / "before")
    copy.rename(sweep / "evaluations" / "e")
    resumed = here("run_sweep.py", "--resume", "s/evaluations/e", "--local", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr


@pytest.mark.parametrize(
    "records",
    [
        {"made_by": {"protocol": 3, "versions": 5}},
        {"made_by": {"protocol": 3, "versions": [1]}},
        {"made_by": {"protocol": "3"}},
        {"made_by": {"protocol": True}},
        {"made_by": {"protocol": 3, "command": 5}},
        {"changed_by": [{"versions": 5}]},
    ],
    ids=str,
)
def test_damaged_records_are_refused_before_the_sweep_is_rewritten(tmp_path, records):
    root = Store(tmp_path / "a").create(SWEEP, {}).root
    content = yaml.safe_load((root / "sweep.yaml").read_text())
    (root / "sweep.yaml").write_text(yaml.safe_dump({**content, **records}))
    before = (root / "sweep.yaml").read_bytes()
    for arguments in (["--set", "seed=[0, 1, 2]"], []):
        refused = here("run_sweep.py", "--resume", "a", "--local", *arguments, cwd=tmp_path)
        assert refused.returncode == 2
        (line,) = refused.stderr.splitlines()
        assert "sweep.yaml: " in line
        assert "expected" in line or "must be" in line
        assert (root / "sweep.yaml").read_bytes() == before


def test_a_long_wrong_name_is_not_repeated_whole(tmp_path):
    root = Store(tmp_path / "a").create(SWEEP, {}).root
    content = yaml.safe_load((root / "sweep.yaml").read_text())
    (root / "sweep.yaml").write_text(yaml.safe_dump({**content, "name": "x/" * 50_000}))
    refused = here("raysweep", "report", "a", cwd=tmp_path)
    assert refused.returncode == 2
    assert "cannot name a directory" in refused.stderr
    assert len(refused.stderr) < 400 + len(os.fspath(tmp_path))
