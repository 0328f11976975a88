"""Sweeps that end early because of SIGTERM in the middle of an epoch, a time budget or a collapsed embedding."""

import csv
import json
import signal
import time

import pytest

from tests.support import PATIENCE
from tests.support.cluster import wait_for
from tests.support.commands import STOPPING, alone, begun, here, on_ray, result, resume_command, scores, start

pytestmark = pytest.mark.slow

# 1,438 steps, 719 per epoch. A step takes at least 2 ms, and a trial looks for the mark every second. So a trial sees
# a mark that is set when it begins before it can finish, and it saves in the middle of an epoch.
SLOW = ["--usl_type", "simclr", "--usl_epochs", "2", "--batch_size", "2", "--le_epochs", "3", "--name", "long"]


def interrupt(process, number, *options):
    """Send SIGTERM, SIGHUP or SIGINT (Ctrl-C) in the middle of an epoch; the command must say how to resume."""
    process.send_signal(number)
    if number == signal.SIGTERM:
        time.sleep(0.1)
        process.send_signal(number)  # a batch script that also received the signal passes it on
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert err.splitlines() == [STOPPING, f"interrupted; resume with: {resume_command('runs/long', *options)}"]


def test_signals_save_at_once_and_resume_gives_the_same_bits(tmp_path):
    root = tmp_path / "runs" / "long"
    trial = root / "seed=0"
    for attempt, arguments, number in ((1, SLOW, signal.SIGTERM), (2, ["--resume", "runs/long"], signal.SIGINT)):
        process = start(*arguments, cwd=tmp_path)
        wait_for(lambda attempt=attempt: begun(trial, attempt), process)
        interrupt(process, number)
        assert list(trial.glob("checkpoints/*.json"))
    completed = alone("--resume", "runs/long", cwd=tmp_path)
    assert completed.returncode == 0, completed.stderr
    assert result(root, "seed=0")["attempts"] == 3
    whole = alone(*SLOW, "--output", "undisturbed", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    assert scores(root, "seed=0") == scores(tmp_path / "undisturbed" / "long", "seed=0")


def test_sigterm_without_ray_does_the_same(tmp_path):
    process = start(*SLOW, "--local", cwd=tmp_path)
    trial = tmp_path / "runs" / "long" / "seed=0"
    wait_for(lambda: begun(trial), process)
    interrupt(process, signal.SIGTERM, "--local")
    assert list(trial.glob("checkpoints/*.json"))
    completed = alone("--resume", "runs/long", cwd=tmp_path)
    assert completed.returncode == 0, completed.stderr
    assert result(trial.parent, "seed=0")["attempts"] == 2


def test_a_second_signal_stops_without_waiting(tmp_path):
    process = start(*SLOW, "--local", cwd=tmp_path)
    trial = tmp_path / "runs" / "long" / "seed=0"
    wait_for(lambda: (trial / "attempt.json").exists(), process)
    process.send_signal(signal.SIGSTOP)  # both signals arrive before the process checks again
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert err.splitlines()[-1] == f"interrupted; resume with: {resume_command('runs/long', '--local')}"
    assert not list(trial.glob("checkpoints/*.json"))


@pytest.mark.parametrize("run", [on_ray, alone])
def test_a_time_budget_ends_the_sweep_and_a_resume_goes_on(tmp_path, run):
    completed = run(*SLOW, "--set", "tune.time_budget=1", "--set", "seed=[0,1,2,3]", cwd=tmp_path)
    assert completed.returncode == 1
    first, last = completed.stderr.splitlines()
    assert first == "the time budget of 1 s is used up"
    assert last.startswith("4 of 4 trials have not finished; resume with: ")
    assert last.endswith("run_sweep.py --resume runs/long")
    assert not list((tmp_path / "runs" / "long").glob("*/result.json"))
    assert "Trial" not in completed.stdout, "Tune prints nothing"


def test_collapsed_trials_are_rows_of_their_own_and_not_run_again(tmp_path):
    rule = ["--set", "tune.collapse_stop=2", "--set", "tune.collapse_rankme=1000", "--probe_every", "1"]
    settings = [
        "--usl_type",
        "simclr",
        "--usl_epochs",
        "5",
        "--le_epochs",
        "2",
        "--name",
        "x",
        "--set",
        "baseline=true",
    ]
    completed = alone(*settings, *rule, cwd=tmp_path)
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
