"""The comparison of `benchmarks/same_results.py` finds what differs."""

import csv
import json
import shutil

import pytest
import torch

from benchmarks import same_results
from raysweep.results.events import Events


@pytest.fixture
def pair(tmp_path):
    """Two equal results directories of one trial."""
    trial = tmp_path / "old" / "x" / "seed=0"
    trial.mkdir(parents=True)
    metrics = {"linear/test_accuracy": 0.5, "pretrain/images_per_s": 100.0}
    result = {"status": "finished", "error": None, "protocol": {"knn_k": 20}, "linear_probe": "", "metrics": metrics}
    (trial / "result.json").write_text(json.dumps(result))
    torch.save({"encoder": {"head.weight": torch.ones(2, 2)}}, trial / "encoder.pt")
    events = Events(trial, 1, None)
    events.scalars({"linear/test_accuracy": 0.5}, 1)
    events.close()
    for table in ("results.csv", "summary.csv", "differences.csv"):
        with open(trial.parent / table, "w", newline="") as file:
            csv.writer(file).writerows([["trial", "linear/test_accuracy", "wall_s"], ["seed=0", "0.5", "1.0"]])
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    return tmp_path / "old" / "x", tmp_path / "new" / "x"


def lines(pair):
    return list(same_results.compare(*pair))


def test_equal_directories_have_no_differences(pair):
    assert lines(pair) == []


def test_a_changed_bit_of_a_weight_is_found(pair):
    weight = torch.ones(2, 2)
    weight.view(torch.int32)[1, 1] ^= 1
    torch.save({"encoder": {"head.weight": weight}}, pair[1] / "seed=0" / "encoder.pt")
    assert lines(pair) == ["x/seed=0: weight head.weight differs"]


def test_a_changed_metric_is_found_and_a_clock_is_not(pair):
    file = pair[1] / "seed=0" / "result.json"
    result = json.loads(file.read_text())
    result["metrics"] = {"linear/test_accuracy": 0.5000000000000001, "pretrain/images_per_s": 7.0}
    file.write_text(json.dumps(result))
    assert lines(pair) == ["x/seed=0: linear/test_accuracy: 0.5 became 0.5000000000000001"]


def test_a_missing_trial_a_cell_and_a_scalar_are_found(pair):
    for name in ("results.csv",):
        text = (pair[1] / name).read_text()
        (pair[1] / name).write_text(text.replace("0.5", "0.6"))
    events = Events(pair[1] / "seed=0", 2, None)
    events.scalars({"linear/test_accuracy": 0.6}, 2)
    events.close()
    assert lines(pair) == [
        "x/seed=0: TensorBoard's scalars differ",
        "x/results.csv: row 0: linear/test_accuracy: '0.5' became '0.6'",
    ]
    shutil.rmtree(pair[1] / "seed=0")
    assert "x: trials ['seed=0'] are in one of the two only" in lines(pair)
