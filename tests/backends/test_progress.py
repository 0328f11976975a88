"""A sweep's progress in the live view."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from raysweep import space
from raysweep.backends.display import ProgressDisplay
from raysweep.results.result import make_result

SWEEP = space.build(
    {"name": "a", "base": {"usl_epochs": 4}, "search": {"seed": [0, 1, 2, 3, 4]}, "baseline": True}, {}, "test"
)


def result(trial, status="finished"):
    error = None if status == "finished" else "why"
    metrics = {"linear/val_accuracy": 0.5}
    return make_result(
        trial, "x", Path(), status=status, error=error, metrics=metrics, wall_s=1.0, device="cpu", warnings=[]
    )


def test_progress_is_the_sum_over_the_trials_weights():
    kept, stopped, finished, running, _ = (trial for trial in SWEEP.trials if not trial.baseline)
    output = io.StringIO()
    with ProgressDisplay(SWEEP, [result(kept)], Console(file=output, width=200)) as view:
        for trial in (stopped, finished, running):
            view.begin(trial)
        view.progress(stopped, 0.2)
        view.end(result(stopped, "stopped"))
        view.progress(running, 0.5)
        view.end(result(finished))
        tally = view.tally
        assert tally.done == pytest.approx(sum(tally.weights[name] for name in tally.shares))
        assert tally.whole == pytest.approx(sum(tally.weights.values()))
        # A trial weighs five and a baseline one: one trial stopped at a fifth, one finished, one is half finished.
        assert tally.done - tally.kept + tally.under_way() == pytest.approx(1 + 5 + 2.5)
        assert tally.whole - tally.kept == pytest.approx(4 * 5 + 5 * 1 - 4)
    assert "[3/10]" in output.getvalue()


def test_a_trial_that_a_searcher_proposes_adds_its_weight():
    proposing = space.build(
        {
            "name": "a",
            "base": {"usl_epochs": 4},
            "search": {"alpha": {"uniform": [0.1, 1.0]}},
            "tune": {"searcher": "optuna", "num_samples": 2},
        },
        {},
        "test",
    )
    (trial,) = space.build({"base": {"usl_epochs": 4, "alpha": 0.5}}, {}, "test").trials
    with ProgressDisplay(proposing, [], Console(file=io.StringIO())) as view:
        for _ in range(2):  # the second time after the trial's worker died
            view.begin(trial)
        assert view.tally.whole == 5.0
        assert view.tally.whole + view.tally.rest() == 10.0
