"""The parts of `benchmarks/gpu.py` that can be tested without a GPU."""

import gc
import multiprocessing
import subprocess
import sys

import pytest
import torch

from tests.support import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import gpu
import measure

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def plan():
    return gpu.plan_of(CPU, quick=True, workers=1)


@pytest.mark.parametrize("task", ["large", "small"])
def test_reference_stacked_networks_train_as_they_would_alone(plan, task):
    assert gpu.check_stack(plan, getattr(plan, task), 3) < 1e-4


def test_each_network_of_a_stack_has_an_alpha_of_its_own(plan):
    settings, states, views = gpu.several(plan, plan.small, 2, "fp32")
    before = gpu.Stack(settings, states).step(views)
    settings[1] = settings[1].model_copy(update={"alpha": 1000.0})
    after = gpu.Stack(settings, states).step(views)
    assert after[0] == before[0]
    assert after[1] > before[1]


def test_the_plain_recipe_trains_until_its_workers_end(plan):
    with gpu.plain(gpu.settings_of(plan, usl_lr=1e-3), plan.small, plan)() as step:
        losses = [step().item() for _ in range(20)]
        assert multiprocessing.active_children()
    assert losses[-1] < losses[0]
    gc.collect()
    assert not multiprocessing.active_children()


def test_a_table_is_printed_and_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    assert gpu.main(["--device", "cpu", "--quick", "--part", "repeats"]) == 0
    output = capsys.readouterr().out
    assert output.count("the same") == 4
    results = measure.load("gpu-cpu-quick")
    assert results["rows"]
    assert results["repeats"]["2 steps twice, fp32"] is True


def test_it_needs_no_ray_and_says_that_there_is_no_gpu():
    program = """
import sys
sys.modules["ray"] = None
sys.path.insert(0, "benchmarks")
import gpu
sys.exit(gpu.main([]))
"""
    process = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 2, process.stderr
    assert process.stdout.count("\n") == 1
    assert "no GPU" in process.stdout
