"""A sweep that is killed and resumed gives the results of an undisturbed one: a short run of `benchmarks/chaos.py`."""

import json
import time
from pathlib import Path

import pytest

from benchmarks import chaos
from tests.support.commands import alone

pytestmark = pytest.mark.slow


def undisturbed(space, output, scratch):
    """Run the reference without Ray, which gives the same numbers; return the seconds over which kills are spread.

    They are taken from the run, so that both kills come while trials run, however fast the machine is.
    """
    begun = time.monotonic()
    completed = alone(space, "--name", "chaos", "--output", output, cwd=Path.cwd())
    assert completed.returncode == 0, completed.stderr
    return 10.0, time.monotonic() - begun


def test_kills_change_nothing(tmp_path, monkeypatch):
    out, told = tmp_path / "chaos", tmp_path / "chaos.json"
    monkeypatch.setattr(chaos, "undisturbed", undisturbed)
    arguments = ["--kills", "2", "--trials", "3", "--epochs", "4", "--le_epochs", "3", "--seed", "357"]
    status = chaos.main([*arguments, "--out", str(out), "--json", str(told)])
    outcome = json.loads(told.read_text())
    assert status == 0, outcome
    assert outcome["kills"] == {"worker": 1, "raylet": 1}
    assert outcome["resumes"] >= 1


def test_what_differs_is_found(tmp_path):
    """The comparison finds that two sweeps differ in one metric, in one figure and by one extra step."""
    from raysweep.results.events import Events

    for name, accuracy, picture in (("a", "0.5", b"one"), ("b", "0.6", b"two")):
        (tmp_path / name / "figures").mkdir(parents=True)
        (tmp_path / name / "figures" / "alpha.png").write_bytes(picture)
        (tmp_path / name / "differences.csv").write_text("")
        (tmp_path / name / "summary.csv").write_text("point,n\nx,1\n")
        table = f"point,linear/test_accuracy,wall_s\nx,{accuracy},{len(picture)}{accuracy}\n"
        (tmp_path / name / "results.csv").write_text(table)
        trial = tmp_path / name / "seed=0"
        trial.mkdir()
        (trial / "result.json").write_text("{}")
        events = Events(trial, 1, None)
        for step in (1, 2) if name == "a" else (1, 2, 2):
            events.scalars({"pretrain/loss": 0.5}, step)
        events.close()
    differing, duplicates = chaos.compare(tmp_path / "a", tmp_path / "b")
    assert differing == ["results.csv: x: linear/test_accuracy: 0.5 became 0.6", "figures/alpha.png"]
    assert duplicates == ["seed=0: pretrain/loss: step 2"]
    assert chaos.compare(tmp_path / "a", tmp_path / "a") == ([], [])


def test_a_finished_trial_that_is_run_again_is_found(tmp_path):
    trial = tmp_path / "seed=0"
    trial.mkdir()
    (trial / "attempt.json").write_text('{"attempt": 1}')
    (trial / "result.json").write_text('{"status": "finished"}')
    watched = chaos.Watched(tmp_path)
    watched.look()
    watched.look()
    assert not watched.again
    (trial / "attempt.json").write_text('{"attempt": 2}')
    watched.look()
    assert watched.again == {"seed=0"}
