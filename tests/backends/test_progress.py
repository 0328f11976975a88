"""A sweep's progress in the live view."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from raysweep import space
from raysweep.backends.display import ProgressDisplay
from raysweep.backends.live_table import LiveTable
from raysweep.backends.tally import Tally
from raysweep.results.result import make_result
from raysweep.space import EncoderSource, Round, add_round
from raysweep.trial_progress import Status

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
        view.progress(stopped, Status(0.2))
        view.end(result(stopped, "stopped"))
        view.progress(running, Status(0.5))
        view.end(result(finished))
        tally = view.tally
        assert tally.done == pytest.approx(sum(tally.weights[name] for name in tally.fractions))
        assert tally.whole == pytest.approx(sum(tally.weights.values()))
        # A trial weighs five and a baseline one: one trial stopped at a fifth, one finished, one is half finished.
        assert tally.done - tally.kept + tally.under_way() == pytest.approx(1 + 5 + 2.5)
        assert tally.whole - tally.kept == pytest.approx(4 * 5 + 5 * 1 - 4)
    assert "[3/10]" in output.getvalue()


def test_trials_may_end_while_another_thread_looks_for_the_best_point():
    sweep = space.build({"search": {"alpha": [0.1, 0.2, 0.3]}}, {}, "test")
    first, second, third = (result(trial) for trial in sweep.trials)
    tally = Tally(sweep, [first, second])

    class Meanwhile:
        """A mean. When its value is read, a trial ends, as if another thread came in between."""

        count = 1

        @property
        def value(self):
            tally.end(third)
            return 0.6

    tally.means[first.point] = Meanwhile()
    assert tally.best() == ("alpha=0.1", "linear/val_accuracy 0.6000 (1 seed)")
    assert len(tally.means) == 3


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


LONG = "alpha=0.001,strength=0.123456789,temperature=0.1,usl_lr=0.001,seed="


def lines_of(renderable, width):
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize(
    ("width", "titles"),
    [
        (40, []),
        (60, ["phase", "epoch"]),
        (80, ["phase", "epoch", "loss", "kNN", "left"]),
        (120, ["phase", "epoch", "loss", "kNN", "elapsed", "left"]),
        (160, ["phase", "epoch", "loss", "kNN", "elapsed", "left"]),
    ],
)
def test_a_row_fits_the_terminal_and_keeps_both_ends_of_the_name(width, titles):
    table = LiveTable()
    for seed in (3, 4):
        table.begin(f"{LONG}{seed}", Status(0.0, "starting"))
    table.update(f"{LONG}3", Status(0.5, "pretraining", 100, 200, 0.69314718, 0.4321))
    title, first, second = lines_of(table.render(width), width)
    assert title.split() == ["trial", *titles]
    assert max(map(len, (title, first, second))) <= width
    assert [row.split()[0][:6] for row in (first, second)] == ["alpha="] * 2
    assert first.split()[0].endswith("seed=3")
    assert second.split()[0].endswith("seed=4")
    shown = {"phase": "pretraining", "epoch": "100/200", "loss": "0.6931", "kNN": "0.4321"}
    assert all((value in first) == (name in titles) for name, value in shown.items())


def test_many_running_trials_are_counted_and_ended_ones_leave():
    table = LiveTable()
    for seed in range(10):
        table.begin(f"seed={seed}", Status(0.0))
    table.leave("seed=0")
    rows = lines_of(table.render(80), 80)
    assert [row.split()[0] for row in rows[1:-1]] == [f"seed={seed}" for seed in range(1, 9)]
    assert rows[-1].strip() == "and 1 more"


def test_the_time_left_follows_from_the_seconds_and_weights_of_ended_trials():
    tally = Tally(SWEEP, [])
    assert tally.seconds_left() is None
    random, *_ = (trial for trial in SWEEP.trials if trial.baseline)
    first, second, *_ = (trial for trial in SWEEP.trials if not trial.baseline)
    for trial, seconds in ((random, 2.0), (first, 10.0)):
        tally.begin(trial)
        tally.end(replace(result(trial), wall_s=seconds))
    # Ended trials weigh 1 + 5 and took 12 s. The others weigh 4 baselines and 4 trials: 4 + 4 · 5.
    assert tally.seconds_left() == pytest.approx(24 * 12 / 6)
    tally.begin(second)
    tally.begin(random)  # from now on two trials run at a time
    tally.progress(second, Status(0.0))
    assert tally.seconds_left() == pytest.approx(24 * 12 / 6 / 2)


def test_a_trial_of_an_evaluation_weighs_one_whatever_its_encoder_took():
    source = EncoderSource("encoder.safetensors", 1, 8)
    trials = tuple(replace(trial, source=source) for trial in SWEEP.trials)
    tally = Tally(replace(SWEEP, trials=trials), [])
    tally.begin(trials[0])
    tally.end(replace(result(trials[0]), wall_s=3.0))
    assert tally.seconds_left() == pytest.approx(3 * (len(trials) - 1))


def test_the_best_point_stands_beside_the_random_encoder():
    sweep = space.build({"base": {"usl_epochs": 4}, "search": {"alpha": [0.1, 1]}, "baseline": True}, {}, "test")
    tally = Tally(sweep, [])
    for trial in sweep.trials:
        metrics = {"linear/val_accuracy": 0.25 if trial.baseline else 0.5 + trial.settings.alpha / 4}
        tally.begin(trial)
        tally.end(replace(result(trial), metrics=metrics))
    assert tally.best() == ("alpha=1.0", "linear/val_accuracy 0.7500 (1 seed), random encoder 0.2500")


RACE = {"base": {"usl_epochs": 4}, "search": {"alpha": [0.1, 1]}, "seeds": {"most": 5, "until": "separated"}}
POINTS = ("alpha=0.1", "alpha=1.0")


def scored(trial, status="finished"):
    """Return a result whose score grows with alpha, and falls with the seed."""
    score = 0.5 + trial.settings.alpha / 4 - trial.settings.seed / 16
    return replace(result(trial, status), metrics={"linear/val_accuracy": score})


def of_seeds(sweep, *seeds):
    return [trial for trial in sweep.trials if trial.settings.seed in seeds]


def test_the_mean_of_a_race_belongs_to_the_seeds_that_are_said():
    first = space.build(RACE, {}, "test")
    tally = Tally(first, [])
    best = ("alpha=1.0", "linear/val_accuracy 0.6875 (3 seeds)")
    for trial in first.trials:
        tally.end(scored(trial))
    second = add_round(first, Round(5, POINTS))
    tally.extend(second)
    assert tally.best() == best
    for trial in of_seeds(second, 3):
        tally.end(scored(trial))
        assert tally.best() == best
    for trial in of_seeds(second, 4):
        tally.end(scored(trial))
    assert tally.best() == ("alpha=1.0", "linear/val_accuracy 0.6250 (5 seeds)")


def test_a_resumed_race_shows_the_best_point_of_the_earlier_round():
    first = space.build(RACE, {}, "test")
    second = add_round(first, Round(4, POINTS))
    third = add_round(second, Round(5, ("alpha=1.0",)))
    best = {3: "linear/val_accuracy 0.6875 (3 seeds)", 4: "linear/val_accuracy 0.6562 (4 seeds)"}
    worse = of_seeds(second, 3)[0]
    for sweep, kept, count in (
        (second, of_seeds(second, 0, 1, 2), 3),
        (second, [worse, *of_seeds(second, 0, 1, 2)], 3),
        (second, of_seeds(second, 3, 2, 1, 0), 4),
        (third, of_seeds(third, 0, 1, 2, 3), 4),
    ):
        tally = Tally(sweep, [scored(trial) for trial in kept])
        assert tally.best() == ("alpha=1.0", best[count])
    tally.end(scored(of_seeds(third, 4)[0]))
    assert tally.best() == ("alpha=1.0", "linear/val_accuracy 0.6250 (5 seeds)")


def test_a_point_whose_first_round_is_not_complete_has_no_mean_after_a_resume():
    first = space.build(RACE, {}, "test")
    second = add_round(first, Round(4, POINTS))
    lost, *kept = (trial for trial in second.trials if trial.point == "alpha=1.0")
    others = [trial for trial in second.trials if trial.point == "alpha=0.1"]
    tally = Tally(second, [scored(trial) for trial in (*others, *kept)])
    assert tally.best()[0] == "alpha=0.1"
    tally.end(scored(lost))
    assert tally.best() == ("alpha=1.0", "linear/val_accuracy 0.6562 (4 seeds)")


def test_plain_output_has_one_line_for_each_ended_trial():
    output = io.StringIO()
    with ProgressDisplay(SWEEP, [], Console(file=output, width=100)) as view:
        for trial in SWEEP.trials:
            view.begin(trial)
            for epoch in range(4):
                view.progress(trial, Status(epoch / 5, "pretraining", epoch, 4, 1.0, 0.5))
            view.end(result(trial))
    lines = output.getvalue().splitlines()
    assert [line.split()[:2] for line in lines] == [
        [f"[{number}/10]", trial.name] for number, trial in enumerate(SWEEP.trials, 1)
    ]
