"""Sweeps that end early because of SIGTERM in the middle of an epoch, a time budget or a collapsed embedding."""

import csv
import json
import signal
import time

import pytest

from raysweep.results.checkpoints import load_checkpoint
from tests.support import PATIENCE
from tests.support.commands import (
    STOPPING,
    alone,
    flags,
    here,
    on_shared_ray,
    patiently,
    result,
    resume_command,
    scores,
)
from tests.support.gate import Gate

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_figures")]

STEPS = 4  # in an epoch


@pytest.fixture(scope="module")
def short(few):
    """The arguments of a trial with 16 steps, 4 per epoch."""
    settings = {**few, "usl_type": "simclr", "usl_epochs": 4, "le_epochs": 3, "probe_every": 0, "images_every": 0}
    return [*flags(settings), "--name", "long"]


def interrupt(process, gate, root, number, *options):
    """Send SIGTERM or SIGINT (Ctrl-C) while a trial is held in the middle of an epoch.

    The trial must save at once, and the command must say how to resume.
    """
    gate.wait(process)
    process.send_signal(number)
    if number == signal.SIGTERM:
        time.sleep(0.1)
        process.send_signal(number)  # a batch script that also received the signal passes it on
    gate.open_when_told(root, process)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert err.splitlines() == [STOPPING, f"interrupted; resume with: {resume_command('runs/long', *options)}"]


def test_signals_save_at_once_and_resume_gives_the_same_bits(short, tmp_path):
    root, resume, gate = tmp_path / "runs" / "long", ["--resume", "runs/long"], Gate(tmp_path, step=5)
    for arguments, options, number, held in (
        ([*short, *gate.arguments], [], signal.SIGTERM, 5),
        (resume, [], signal.SIGINT, 9),
        (resume, ["--local"], signal.SIGTERM, 14),
    ):
        gate.hold(held)
        interrupt(patiently(*arguments, *options, cwd=tmp_path), gate, root, number, *options)
        state = load_checkpoint(root / "seed=0")["state"]
        assert (state["epoch"], state["step"]) == divmod(held + 1, STEPS)
    completed = alone(*resume, cwd=tmp_path)
    assert completed.returncode == 0, completed.stderr
    assert result(root, "seed=0")["attempts"] == 4
    whole = alone(*short, "--output", "undisturbed", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    assert scores(root, "seed=0") == scores(tmp_path / "undisturbed" / "long", "seed=0")


def test_a_second_signal_stops_without_waiting(short, tmp_path):
    gate = Gate(tmp_path, step=1)
    process = patiently(*short, *gate.arguments, "--local", cwd=tmp_path)
    gate.wait(process)
    process.send_signal(signal.SIGSTOP)  # both signals arrive before the process checks again
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert err.splitlines()[-1] == f"interrupted; resume with: {resume_command('runs/long', '--local')}"
    assert not list(tmp_path.glob("runs/long/seed=0/checkpoints/*.json"))


@pytest.mark.parametrize("run", [on_shared_ray, alone])
def test_a_time_budget_ends_the_sweep_and_a_resume_goes_on(short, tmp_path, run):
    gate, root = Gate(tmp_path, step=1), tmp_path / "runs" / "long"

    def open_after_the_budget():
        if run is on_shared_ray:
            gate.open_when_told(root)
        else:  # the process that runs the trial looks at the clock after its next step
            gate.until(lambda: gate.held() or gate.is_over)  # on a busy machine the budget ends before
            time.sleep(1)

    with gate.meanwhile(open_after_the_budget):
        completed = run(*short, *gate.arguments, "--set", "tune.time_budget=1", "--set", "seed=[0,1,2,3]", cwd=tmp_path)
    assert completed.returncode == 1
    first, last = completed.stderr.splitlines()
    assert first == "the time budget of 1 s is used up"
    assert last.startswith("4 of 4 trials have not finished; resume with: ")
    assert last.endswith("run_sweep.py --resume runs/long" + (" --local" if run is alone else ""))
    assert not list(root.glob("*/result.json"))
    assert "Trial" not in completed.stdout, "Tune prints nothing"


def test_collapsed_trials_are_rows_of_their_own_and_not_run_again(few, tmp_path):
    rule = ["--set", "tune.collapse_stop=2", "--set", "tune.collapse_rankme=1000"]
    settings = {**few, "usl_type": "simclr", "usl_epochs": 4, "le_epochs": 2, "probe_every": 1, "images_every": 0}
    completed = alone(*flags(settings), *rule, "--name", "x", "--set", "baseline=true", cwd=tmp_path)
    root = tmp_path / "runs" / "x"
    assert completed.returncode == 0, completed.stderr
    assert "seed=0  the embedding collapsed" in completed.stdout
    with open(root / "results.csv") as file:
        rows = {row["trial"]: row for row in csv.DictReader(file)}
    assert rows["seed=0"]["status"] == "stopped"
    assert rows["seed=0"]["linear/test_accuracy"] == ""
    assert rows["random,seed=0"]["status"] == "finished"
    assert json.loads((root / "seed=0" / "result.json").read_text())["metrics"]["pretrain/loss"] > 0
    assert "1 stopped early" in (root / "summary.md").read_text()
    again = here("run_sweep.py", "--resume", root, cwd=tmp_path)
    assert "all 2 trials have finished" in again.stdout.splitlines()[0]
