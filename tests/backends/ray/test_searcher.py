"""The points that Optuna proposes, the results that it uses, and the record that outlives the driver."""

import math
import random
import statistics

import pytest

from raysweep import space
from raysweep.backends.ray.searcher import Queue, ask
from raysweep.errors import InputError
from raysweep.results.result import make_result
from raysweep.results.store import Store
from raysweep.results.sweep_file import with_proposals

ALPHA = {"alpha": {"loguniform": [1e-5, 10]}, "seed": [0, 1]}


def build(search, points, **settings):
    tune = {"searcher": "optuna", "num_samples": points, **settings}
    return space.build({"search": search, "tune": tune}, {}, "test")


def result_of(trial, folder, score, status="finished"):
    """Return a result whose selection metric has this score."""
    return make_result(
        trial,
        "digest",
        folder,
        status=status,
        error=None if status == "finished" else "why",
        metrics={"linear/val_accuracy": score, "pretrain/embedding_std": score},
        wall_s=0.0,
        device="cpu",
        warnings=[],
    )


def run(sweep, folder, score, most=10**6, results=None):
    """Run at most `most` trials of a sweep one after another; each trial's score is `score(trial)`."""
    results = {} if results is None else results
    kept, empty = Store(folder), sweep
    sweep = with_proposals(kept.root, empty)
    queue = Queue(sweep, [trial for trial in sweep.trials if trial.name not in results], results, kept)
    for _ in range(most):
        trial = queue.next()
        if trial is None:
            break
        assert trial in with_proposals(kept.root, empty).trials, "a proposal is recorded before its trial runs"
        results[trial.name] = result_of(trial, folder, score(trial))
    return with_proposals(kept.root, empty), results


def near(trial):
    """Return a score that is best at α = 0.01 and slightly worse for the second seed."""
    return 1 - abs(math.log10(trial.settings.alpha) + 2) / 10 - 0.01 * trial.settings.seed


def test_what_it_proposes_is_better_than_chance(tmp_path):
    sweep, _ = run(build(ALPHA, 40), tmp_path, near)
    assert len(sweep.trials) == 80
    late = [near(trial) for trial in sweep.trials[40:]]
    draws = [1e-5 * 1e6 ** random.Random(i).random() for i in range(1000)]
    chance = statistics.mean(1 - abs(math.log10(alpha) + 2) / 10 - 0.005 for alpha in draws)
    assert statistics.mean(late) > chance + 0.05  # measured: 0.11 above chance
    assert all(1e-5 <= trial.settings.alpha <= 10 for trial in sweep.trials)


def test_a_resumed_search_goes_on_as_the_uninterrupted_one(tmp_path):
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole, _ = run(build(ALPHA, 14), tmp_path / "whole", near)
    results = {}
    for most in (3, 1, 20, 100):  # the first part ends in the middle of a point
        parts, results = run(build(ALPHA, 14), tmp_path / "parts", near, most, results)
    assert parts.trials == whole.trials
    assert set(results) == {trial.name for trial in whole.trials}
    more, _ = run(build(ALPHA, 16), tmp_path / "parts", near, results=results)
    assert more.trials[:28] == whole.trials
    assert len(more.trials) == 32


def test_a_point_counts_by_its_mean_and_one_that_did_not_finish_ranks_last(tmp_path):
    sweep = build(ALPHA, 6)
    scores = [(0.2, 0.6), (0.7, 0.1), (0.9, None), (0.9, "stopped"), (0.9, "failed"), (0.9, "no metric")]
    results, points = {}, []
    for alpha, point_scores in zip((0.1, 0.2, 0.3, 0.4, 0.5, 0.6), scores):
        points.append(space.Proposal(0, {"alpha": alpha}))
        sweep = space.propose(sweep, points[-1])
        for trial, score in zip(sweep.trials[-2:], point_scores):
            if score is not None:
                status = score if score in ("stopped", "failed") else "finished"
                value = 0.99 if isinstance(score, str) else score
                results[trial.name] = result_of(trial, tmp_path, value, status)
                if score == "no metric":
                    del results[trial.name].metrics["linear/val_accuracy"]
    kept = Store(tmp_path)
    kept.record_proposals(points)
    known = Queue(sweep, [], results, kept)._known()
    assert [(trial.state.name, trial.value) for trial in known] == [
        ("COMPLETE", pytest.approx(0.4)),
        ("COMPLETE", pytest.approx(0.4)),
        ("RUNNING", None),
        ("PRUNED", None),
        ("PRUNED", None),
        ("PRUNED", None),
    ]
    assert [trial.params for trial in known] == [{"alpha": alpha} for alpha in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)]


def test_few_points_are_all_proposed_once(tmp_path):
    search = {"policy": {"choice": ["simclr", "noise", "mask"]}, "batch_size": {"randint": [100, 102]}}
    sweep, _ = run(build(search, 6), tmp_path, lambda trial: float(trial.settings.batch_size == 100))
    points = {(trial.settings.policy, trial.settings.batch_size) for trial in sweep.trials}
    assert points == {(policy, size) for policy in ("simclr", "noise", "mask") for size in (100, 101)}
    assert len(sweep.trials) == 6


def test_sub_spaces_have_their_own_settings_and_less_may_be_better(tmp_path):
    search = [
        {"usl_type": "simclr", "temperature": {"uniform": [0.1, 1]}},
        {"usl_type": "ae_parallel", "alpha": {"loguniform": [1e-3, 1]}, "emb_loss": {"choice": ["mse", "l1"]}},
    ]
    sweep = build(search, 40, mode="min", metric="pretrain/embedding_std")
    sweep, _ = run(sweep, tmp_path, lambda trial: float(trial.settings.usl_type == "simclr"))
    kinds = [trial.settings.usl_type for trial in sweep.trials]
    assert {"simclr", "ae_parallel"} == set(kinds[:10])
    assert kinds[20:].count("ae_parallel") > 13  # of 20
    assert {trial.name.split("=")[1].split(",")[0] for trial in sweep.trials} == {"simclr", "ae_parallel"}


def test_the_same_question_has_the_same_answer():
    sweep = build(ALPHA, 2)
    assert ask(sweep, [], 7) == ask(sweep, [], 7) != ask(sweep, [], 8)


def test_what_is_no_proposal_of_the_sweep_is_refused(tmp_path):
    kept, sweep = Store(tmp_path), build(ALPHA, 3)
    for text, words in (
        ("{", "is damaged"),
        ('{"points": [{"space": 0, "values": {"alhpa": 1.0}}]}', "point 0 does not belong to this sweep"),
        ('{"points": [{"space": 3, "values": {"alpha": 1.0}}]}', "point 0 does not belong to this sweep"),
        ('{"points": [{"space": 0, "values": {"alpha": -1.0}}]}', "point 0 does not belong to this sweep"),
        ('{"points": [{"space": 0, "values": {"alpha": "x"}}]}', "point 0 does not belong to this sweep"),
    ):
        (tmp_path / "proposals.json").write_text(text)
        with pytest.raises(InputError, match=words):
            with_proposals(kept.root, sweep)
