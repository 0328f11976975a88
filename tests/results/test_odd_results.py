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
from raysweep.system.files import lies
from tests.support import ROOT, forked
from tests.support.commands import QUICK, alone, here
from tests.support.odd_files import ODD, SWEEP, make

EVENTS = "events.out.tfevents.0001.raysweep"


@pytest.fixture(scope="module")
def finished(few, no_figures, tmp_path_factory):
    """The folder of a finished sweep of two small trials."""
    folder = tmp_path_factory.mktemp("finished")
    data = [word for name, value in few.items() for word in (f"--{name}", str(value))]
    process = alone(*QUICK, "--usl_type", "simclr", "--set", "seed=[0, 1]", "--name", "s", *data, cwd=folder)
    assert process.returncode == 0, process.stderr
    return folder / "runs" / "s"


@pytest.fixture
def sweep(finished, tmp_path):
    """A copy of the finished sweep, as `s` in `tmp_path`."""
    shutil.copytree(finished, tmp_path / "s", symlinks=True)
    return tmp_path / "s"


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


@pytest.mark.parametrize("name", ["of/the_future", "knn/k7_test_accuracy", "", "trial", "seed", "status"])
def test_a_metric_of_another_version_has_no_column_and_ends_no_command(sweep, tmp_path, name):
    columns = header(sweep)
    for seed in (0, 1):
        change(sweep / f"seed={seed}" / "result.json", lambda content: content["metrics"].update({name: 0.25}))
    for process in commands(tmp_path):
        assert process.returncode == 0, process.stderr
        assert header(sweep) == columns
        with open(sweep / "results.csv") as file:
            assert [row["trial"] for row in csv.DictReader(file)] == ["seed=0", "seed=1"]
    assert list(raysweep.open(str(sweep)).frame()["seed"]) == [0, 1]


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("has_curves", [True, False])
def test_what_is_no_event_file_costs_only_its_own_curves(sweep, tmp_path, kind, has_curves):
    trial = sweep / "seed=0"
    (trial / EVENTS).unlink()
    ODD[kind](trial / EVENTS)
    if not has_curves:
        (trial / "curves.csv").unlink()
    for name in ("report.html", "summary.md"):
        (sweep / name).unlink()
    # A separate process can be killed if it hangs on the pipe.
    process = forked.run("-m", "raysweep", "report", "s", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert f"seed=0/{EVENTS}" in process.stderr
    assert "report.html could not" not in process.stderr
    assert (sweep / "report.html").is_file()
    assert (sweep / "summary.md").is_file()
    assert (trial / "curves.csv").is_file() == has_curves
    assert lies(trial / EVENTS), "it is not removed"
    resumed = forked.run(ROOT / "run_sweep.py", "--resume", "s", "--local", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr


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


CURVES = {
    "no text": lambda good: bytes(range(256)) * 100,
    "another separator": lambda good: good.replace(b",", b";"),
    "Latin-1": lambda good: good.replace(b"step", "stép".encode("latin1")),
    "nothing to count": lambda good: good.replace(b"\n1,", b"\nx,"),
}


@pytest.mark.parametrize("kind", [*CURVES, *ODD])
def test_damaged_curves_of_a_trial_are_left_out_with_a_warning(sweep, tmp_path, kind):
    path = sweep / "seed=0" / "curves.csv"
    if kind in CURVES:
        path.write_bytes(CURVES[kind](path.read_bytes()))
    else:
        path.unlink()
        ODD[kind](path)
    (sweep / "report.html").unlink()
    process = forked.run("-m", "raysweep", "report", "s", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert str(path) in process.stderr
    assert "InputError" not in process.stderr
    page = (sweep / "report.html").read_text()
    assert f"{path}: is damaged" in page
    assert "pretrain/loss" in page


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
