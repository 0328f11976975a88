"""Sweeps in a real kernel of a notebook."""

import json
import os
import threading
import time

import nbformat
import pytest

from tests.support.notebooks import client_of

pytestmark = pytest.mark.slow

SWEEP = """
space = {"name": "s", "base": {"usl_type": "simclr", "usl_epochs": 1, "le_epochs": 1, FEW}}
"""
CELLS = {
    "first": SWEEP + "import raysweep\nfirst = raysweep.run(space)\nfirst",
    "figure": "import ray\nprint(ray.is_initialized())\nfirst.figure('pretrain/loss')",
    "own": "from tests.support.shared_ray import init_patiently\ninit_patiently(num_cpus=1)\n"
    "try:\n    raysweep.run(space, set={'resources.cpu': 2}, progress=False)\n"
    "except raysweep.RaysweepError as fault:\n    print(fault)\n"
    "second = raysweep.run(space)\nprint(ray.is_initialized())\nray.shutdown()",
    "interrupted": "import warnings\nwith warnings.catch_warnings(record=True) as caught:\n"
    "    long = raysweep.run(space, set={'usl_epochs': 100000, 'probe_every': 0}, name='long', local=True)\n"
    "print(caught[0].message)\nlong.frame()['status'].tolist()",
}


@pytest.fixture(scope="module")
def cells(tmp_path_factory, few):
    """The outputs of each cell, in one kernel."""
    folder = tmp_path_factory.mktemp("notebook")
    sources = [source.replace("FEW", json.dumps(few)[1:-1]) for source in CELLS.values()]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    client, environment = client_of(notebook, folder)
    thread = threading.Thread(target=interrupt, args=(client, folder), daemon=True)
    with client.setup_kernel(env=environment):
        thread.start()
        for index, cell in enumerate(notebook.cells):
            client.execute_cell(cell, index)
    return {name: cell["outputs"] for name, cell in zip(CELLS, notebook.cells)}


def interrupt(client, folder):
    """Interrupt the cell of the long sweep once its trial trains, as the button of a notebook does."""
    while not list(folder.glob("runs/long/*/events*")):
        time.sleep(0.1)
    os.kill(client.km.provisioner.process.pid, 2)


def text(outputs):
    return "".join(output.get("text", "") for output in outputs if output["output_type"] == "stream")


def shown(outputs, mime):
    return [output["data"][mime] for output in outputs if mime in output.get("data", {})]


def test_two_sweeps_run_in_one_kernel_and_progress_is_one_display(cells):
    progress, table = shown(cells["first"], "text/html")
    assert "runs/s: 1 trial" in progress
    assert "[1/1] 0 running, 0 waiting" in progress
    assert "1 of 1 trials finished" in table
    assert len(shown(cells["own"], "text/html")) == 1


def test_a_figure_is_shown_and_ray_has_ended_with_the_sweep(cells):
    assert text(cells["figure"]) == "False\n"
    assert len(shown(cells["figure"], "image/png")) == 1


def test_a_ray_of_the_user_is_used_and_stays(cells):
    assert text(cells["own"]).endswith("True\n")
    (progress,) = shown(cells["own"], "text/html")
    assert "resources: a trial needs 2 " in text(cells["own"]), "this Ray has one CPU"
    assert "of the Ray that is already initialised in this process" in progress


def test_an_interrupted_cell_returns_the_results_so_far(cells):
    assert "interrupted; resume with: raysweep.resume(" in text(cells["interrupted"])
    assert shown(cells["interrupted"], "text/plain")[-1] == "['unfinished']"
