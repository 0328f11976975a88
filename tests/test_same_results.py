"""The comparison in `benchmarks/same_results.py` finds every difference."""

import csv
import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from benchmarks import same_results
from raysweep.results.events import Events
from tests.support import ROOT

TRIAL = "alpha=0.1,seed=0"
WEIGHT = torch.tensor([[1.0, -0.0], [float("nan"), 3.0]])


@pytest.fixture
def pair(tmp_path):
    """Two equal results directories with one trial each."""
    trial = tmp_path / "old" / "x" / TRIAL
    trial.mkdir(parents=True)
    metrics = {"linear/test_accuracy": 0.5, "kmeans/nmi": float("nan"), "pretrain/images_per_s": 100.0}
    result = {
        "trial": TRIAL,
        "status": "finished",
        "error": None,
        "settings": {"alpha": 0.1, "seed": 0},
        "protocol": {"knn_k": 20},
        "metrics": metrics,
        "wall_s": 1.0,
        "attempts": 1,
    }
    (trial / "result.json").write_text(json.dumps(result))
    torch.save({"encoder": {"head.weight": WEIGHT}}, trial / "encoder.pt")
    write_scalars(trial, metrics, 1)
    tables = {
        "results.csv": [["trial", "alpha", "linear/test_accuracy", "wall_s"], [TRIAL, "0.1", "0.5", "1.0"]],
        "summary.csv": [["point", "knn/test_accuracy mean", "pretrain/images_per_s mean"], ["alpha=0.1", "0.5", "9"]],
        "differences.csv": [["first", "score", "mean"], ["alpha=0.1", "linear/test_accuracy", "0.5"]],
    }
    for name, rows in tables.items():
        write_table(trial.parent / name, rows)
    (trial.parent / "summary.md").write_text("# x\n\n| alpha=0.1 | 0.5 |\n| pretrain/images_per_s | 100 |\n")
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    return tmp_path / "old" / "x", tmp_path / "new" / "x"


def write_scalars(trial, values, step):
    events = Events(trial, 1, None)
    events.scalars(values, step)
    events.close()


def write_table(file, rows):
    with open(file, "w", newline="") as opened:
        csv.writer(opened).writerows(rows)


def change_result(file, change):
    result = json.loads(file.read_text())
    change(result)
    file.write_text(json.dumps(result))


def lines(pair):
    return list(same_results.compare(*pair))


def test_equal_directories_have_no_differences(pair):
    assert lines(pair) == []


def test_a_changed_bit_of_a_weight_is_found(pair):
    weight = WEIGHT.clone()
    weight.view(torch.int32)[1, 1] ^= 1
    torch.save({"encoder": {"head.weight": weight}}, pair[1] / TRIAL / "encoder.pt")
    assert lines(pair) == [f"x/{TRIAL}: weight head.weight differs"]


@pytest.mark.parametrize("changed", [False, True])
def test_the_encoder_file_of_an_older_version_is_compared_with_a_new_one(pair, changed):
    (pair[1] / TRIAL / "encoder.pt").unlink()
    weight = WEIGHT.clone()
    if changed:
        weight[0, 1] = 0.0  # it was -0.0
    save_file({"head.weight": weight}, pair[1] / TRIAL / "encoder.safetensors")
    assert lines(pair) == ([f"x/{TRIAL}: weight head.weight differs"] if changed else [])


def test_another_shape_or_name_of_a_weight_is_found(pair):
    torch.save({"encoder": {"head.weight": WEIGHT.reshape(4), "more": WEIGHT}}, pair[1] / TRIAL / "encoder.pt")
    assert lines(pair) == [
        f"x/{TRIAL}: weight more is in one of the two encoders only",
        f"x/{TRIAL}: weight head.weight: ((2, 2), 'torch.float32') became ((4,), 'torch.float32')",
    ]


def test_a_changed_metric_is_found_and_a_clock_is_not(pair):
    def change(result):
        result |= {"wall_s": 7.0, "attempts": 3}
        result["metrics"] |= {"linear/test_accuracy": 0.5000000000000001, "pretrain/images_per_s": 7.0}

    change_result(pair[1] / TRIAL / "result.json", change)
    assert lines(pair) == [f"x/{TRIAL}: linear/test_accuracy: 0.5 became 0.5000000000000001"]


def test_a_metric_that_one_tree_lacks_is_found(pair):
    change_result(pair[0] / TRIAL / "result.json", lambda result: result["metrics"].pop("kmeans/nmi"))
    assert lines(pair) == [f"x/{TRIAL}: kmeans/nmi: 'no such value' became nan"]


def test_a_missing_trial_is_found(pair):
    shutil.rmtree(pair[1] / TRIAL)
    assert f"x/{TRIAL}: is missing in the working tree's results" in lines(pair)
    assert f"x/{TRIAL}: is in the working tree's results only" in lines(pair[::-1])


def test_a_changed_cell_is_found_and_a_clock_is_not(pair):
    for name in same_results.TABLES:
        text = (pair[1] / name).read_text()
        (pair[1] / name).write_text(text.replace("0.5", "0.6").replace(",1.0", ",2.0").replace(",9", ",8"))
    assert lines(pair) == [
        "x/results.csv: row 1: linear/test_accuracy: '0.5' became '0.6'",
        "x/summary.csv: row 1: knn/test_accuracy mean: '0.5' became '0.6'",
        "x/differences.csv: row 1: mean: '0.5' became '0.6'",
    ]


def test_missing_tables_columns_and_rows_are_found(pair):
    (pair[1] / "summary.csv").unlink()
    (pair[1] / "summary.md").unlink()
    write_table(pair[1] / "results.csv", [["trial", "linear/test_accuracy", "more"]])
    assert lines(pair) == [
        "x/results.csv: column alpha is in one of the two tables only",
        "x/results.csv: column more is in one of the two tables only",
        "x/results.csv: column wall_s is in one of the two tables only",
        "x/results.csv: 1 rows became 0",
        "x/summary.csv: is in one of the two directories only",
        "x/summary.md: is in one of the two directories only",
    ]


def test_a_changed_row_of_the_summary_is_found_and_a_clock_is_not(pair):
    (pair[1] / "summary.md").write_text("# x\n\n| alpha=0.1 | 0.6 |\n| pretrain/images_per_s | 7 |\n")
    assert lines(pair) == ["x/summary.md: table row 1: '| alpha=0.1 | 0.5 |' became '| alpha=0.1 | 0.6 |'"]


@pytest.mark.parametrize(("value", "step"), [(0.50000006, 1), (0.5, 2)])
def test_another_point_in_tensorboard_is_found_and_a_clock_is_not(pair, value, step):
    for events in (pair[1] / TRIAL).glob("events.*"):
        events.unlink()
    scalars = {"linear/test_accuracy": value, "kmeans/nmi": float("nan"), "pretrain/images_per_s": 7.0}
    write_scalars(pair[1] / TRIAL, scalars, step)
    (first, *others) = lines(pair)[::-1]
    assert first.startswith(
        f"x/{TRIAL}: TensorBoard's linear/test_accuracy: (step, value) (1, 0.5) became ({step}, 0.5"
    )
    assert len(others) == step - 1  # the step of the other tag differs too


def test_a_setting_that_only_the_working_tree_has_is_no_difference(pair):
    change_result(pair[1] / TRIAL / "result.json", lambda result: result["settings"].update(head="linear"))
    header = ["trial", "alpha", "head", "linear/test_accuracy", "wall_s"]
    write_table(pair[1] / "results.csv", [header, [TRIAL, "0.1", "linear", "0.5", "1.0"]])
    assert lines(pair) == []
    assert same_results.added_settings(*pair) == {"head"}
    change_result(pair[1] / TRIAL / "result.json", lambda result: result["protocol"].update(head="linear"))
    assert lines(pair) == [f"x/{TRIAL}: protocol: head: 'no such value' became 'linear'"]


def test_nothing_is_no_proof(pair):
    for root in pair:
        (root / TRIAL / "encoder.pt").unlink()
        for events in (root / TRIAL).glob("events.*"):
            events.unlink()
    assert lines(pair) == [
        f"x/{TRIAL}: neither directory has the weights of its encoder",
        f"x/{TRIAL}: neither directory has a TensorBoard scalar",
    ]
    for root in pair:
        shutil.rmtree(root / TRIAL)
    assert lines(pair) == ["x: neither directory has a trial"]


def test_a_renamed_setting_is_compared_under_its_new_name(pair, monkeypatch):
    new = pair[1]
    (new / TRIAL).rename(new / "weight=0.1,seed=0")

    def change(result):
        result |= {"trial": "weight=0.1,seed=0", "settings": {"weight": 0.1, "seed": 0}}

    change_result(new / "weight=0.1,seed=0" / "result.json", change)
    for name in (*same_results.TABLES, "summary.md"):
        (new / name).write_text((new / name).read_text().replace("alpha", "weight"))
    assert lines(pair) != []
    monkeypatch.setattr(same_results, "RENAMED", {"weight": "alpha"})
    assert lines(pair) == []
    assert same_results.with_old_names({"weight": 1, "seed": 0}, same_results.RENAMED) == {"alpha": 1, "seed": 0}


def test_a_tree_is_not_compared_with_itself(tmp_path):
    same_results.check_imports(ROOT)
    (tmp_path / "raysweep").mkdir()
    (tmp_path / "raysweep" / "__init__.py").write_text(f"__file__ = {str(ROOT / 'raysweep' / '__init__.py')!r}\n")
    with pytest.raises(SystemExit, match="cannot be run: Python imports"):
        same_results.check_imports(tmp_path)
