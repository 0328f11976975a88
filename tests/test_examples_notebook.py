"""The notebook of the examples, executed in a real kernel with its sizes cut."""

import nbformat
import pytest

from tests.support import ROOT, forked
from tests.support.notebooks import client_of

pytestmark = pytest.mark.slow

NOTEBOOK = ROOT / "examples" / "notebook.ipynb"
SIZES = """
EPOCHS, PROBE_EPOCHS, ALPHAS, SEEDS = 1, 2, [0.1, 10], [0, 1]
from tests.support.shared_ray import init_patiently
init_patiently(num_cpus=1)
"""
"""What the test computes: it replaces the cell `sizes`, which has the same variables. Both
sweeps share one Ray, which has one worker."""


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """The cells of code by id, with their outputs."""
    folder = tmp_path_factory.mktemp("examples")
    notebook = nbformat.read(NOTEBOOK, 4)
    by_id = {cell["id"]: cell for cell in notebook.cells if cell["cell_type"] == "code"}
    by_id["sizes"]["source"] = SIZES
    client, environment = client_of(notebook, folder)
    client.execute(env=environment)
    return by_id


def shown(cell, mime):
    return [output["data"][mime] for output in cell["outputs"] if mime in output.get("data", {})]


def printed(cell):
    return "".join(output["text"] for output in cell["outputs"] if output["output_type"] == "stream")


def test_the_notebook_is_stored_without_outputs():
    notebook = nbformat.read(NOTEBOOK, 4)
    nbformat.validate(notebook)
    assert all(not cell["outputs"] for cell in notebook.cells if cell["cell_type"] == "code")
    assert len({cell["id"] for cell in notebook.cells}) == len(notebook.cells)
    assert {"EPOCHS", "PROBE_EPOCHS", "ALPHAS", "SEEDS"} <= set(
        next(cell["source"] for cell in notebook.cells if cell["id"] == "sizes").split()
    )


def test_the_sweep_and_its_tables_are_shown(cells):
    progress, table = shown(cells["run"], "text/html")
    assert "runs/alpha: 6 trials" in progress
    assert "6 of 6 trials finished" in table
    (frame,) = shown(cells["frame"], "text/html")
    assert frame.count("finished") == 6
    (summary,) = shown(cells["summary"], "text/html")
    assert summary.count("<tr") == 1 + 3
    assert "alpha=10.0" in summary
    assert "random encoder" in printed(cells["conclusions"])


def test_figures_are_shown(cells):
    assert len(shown(cells["figure"], "image/png")) == 1
    assert len(shown(cells["curves"], "image/png")) == 1
    assert len(shown(cells["compare"], "image/png")) == 1


def test_an_encoder_maps_images_to_features(cells):
    assert "(5, 1, 8, 8) -> (5, " in printed(cells["encoder"])


def test_a_loss_of_the_notebook_is_compared_with_the_built_in_one(cells):
    (progress,) = shown(cells["loss"], "text/html")
    assert "runs/alpha-spread: 4 trials" in progress, "one α and the random encoder"
    assert "best linear/val_accuracy" in printed(cells["compare"])
    (summary,) = shown(cells["compare-summary"], "text/html")
    assert summary.count("<td>alpha-spread</td>") == 2
    assert summary.count("<td>alpha</td>") == 3


PROGRAM = """
import functools
import raysweep, torch
raysweep.run = functools.partial(raysweep.run, local=True)
EPOCHS, PROBE_EPOCHS, ALPHAS, SEEDS = 1, 1, [0.1, 10], [0]
"""


def test_the_notebook_can_be_executed_again_in_the_same_folder(tmp_path):
    notebook = nbformat.read(NOTEBOOK, 4)
    sweeps = [cell["source"] for cell in notebook.cells if cell["id"] in ("run", "loss")]
    (tmp_path / "cells.py").write_text("\n".join([PROGRAM, *sweeps]))
    for _ in range(2):
        process = forked.run("cells.py", cwd=tmp_path)
        assert process.returncode == 0, process.stderr
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {
        "alpha", "alpha-2", "alpha-spread", "alpha-spread-2",
    }  # fmt: skip
