"""The `curves.csv` of a trial has what TensorBoard shows, and is rebuilt from the event files."""

import csv
import shutil

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from raysweep.config import METRICS
from tests.support.commands import QUICK, alone, here

SMALL = [*QUICK, "--usl_type", "simclr", "--set", "seed=[0, 1]", "--name", "x"]


@pytest.fixture(scope="module")
def finished(few, no_figures, tmp_path_factory):
    """The folder in which a sweep of two small trials has run."""
    folder = tmp_path_factory.mktemp("curves")
    data = [word for name, value in few.items() for word in (f"--{name}", str(value))]
    process = alone(*SMALL, *data, cwd=folder)
    assert process.returncode == 0, process.stderr
    return folder


@pytest.fixture
def sweep(finished, tmp_path):
    """A copy of the folder."""
    return shutil.copytree(finished, tmp_path / "copy")


def test_the_table_has_every_value_that_tensorboard_reads(sweep):
    for name in ("seed=0", "seed=1"):
        trial = sweep / "runs" / "x" / name
        with open(trial / "curves.csv") as file:
            rows = list(csv.DictReader(file))
        events = EventAccumulator(str(trial), size_guidance={"scalars": 0}).Reload()
        columns = list(rows[0])
        assert columns[0] == "step"
        assert set(columns[1:]) == set(events.Tags()["scalars"])
        assert columns[1:] == [metric for metric in METRICS if metric in columns], "the order of all tables"
        steps = [int(row["step"]) for row in rows]
        assert steps == sorted(set(steps))
        for metric in columns[1:]:
            table = {int(row["step"]): np.float32(row[metric]) for row in rows if row[metric]}
            assert table == {event.step: np.float32(event.value) for event in events.Scalars(metric)}


def test_a_report_writes_the_table_again_where_it_is_missing(sweep):
    one, two = (sweep / "runs" / "x" / name / "curves.csv" for name in ("seed=0", "seed=1"))
    before = one.read_bytes()
    one.unlink()
    two.write_text("mine")
    assert here("raysweep", "report", "runs/x", cwd=sweep).returncode == 0
    assert one.read_bytes() == before
    assert two.read_text() == "mine"


def test_a_trial_that_runs_again_has_no_table_of_its_earlier_attempt(sweep):
    trial = sweep / "runs" / "x" / "seed=1"
    (trial / "curves.csv").write_text("stale")
    (trial / "result.json").unlink()
    process = alone("--resume", "runs/x", cwd=sweep)
    assert process.returncode == 0, process.stderr
    assert (trial / "curves.csv").read_text().startswith("step,pretrain/loss")
