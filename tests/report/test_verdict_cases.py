"""Verdicts about points that are hard to compare, from made-up results of sweeps."""

from collections import defaultdict

import pytest

from raysweep.report import building
from raysweep.report.building import read_several
from raysweep.report.figures import draw
from tests.report.test_report import fill_with, made_up

RAW = {"name": "s", "baseline": True}


def test_a_setting_that_decides_whether_another_one_acts_makes_two_protocols(tmp_path):
    search = {"probe_grid": [None, {"lr": [1e-4, 1e-3]}], "seed": [0, 1, 2]}
    raw = {**RAW, "base": {"le_lr": 5e-4}, "search": search}
    report = building.read(*fill_with(tmp_path, raw, made_up(defaultdict(lambda: 0.5), spread=0.01)))
    assert len(report.groups) == 2


def test_the_metric_that_chooses_is_not_taken_for_a_test_score(tmp_path):
    raw = {**RAW, "search": {"usl_lr": [1e-4, 1e-3], "seed": [0, 1, 2]}, "tune": {"metric": "pretrain/loss"}}
    effects = {"usl_lr=0.0001": 0.5, "usl_lr=0.001": 0.7, "random": 0.4}

    def metrics_of(trial):
        loss = {} if trial.baseline else {"pretrain/loss": 0.3 if trial.settings.usl_lr == 1e-3 else 0.5}
        return {**made_up(effects)(trial), **loss}

    report = building.read(*fill_with(tmp_path, raw, metrics_of))
    assert report.scores[0] == "linear/test_accuracy"
    sentences = " ".join(report.in_words(scores=1))
    assert "usl_lr=0.001 is best by pretrain/loss" in sentences
    assert "beats the random encoder in linear/test_accuracy" in sentences
    assert "In linear/test_accuracy it is above usl_lr=0.0001" in sentences


def test_a_value_none_that_controls_lack_is_drawn(tmp_path):
    raw = {**RAW, "search": {"crop_strength": [None, 0.25], "seed": [0, 1, 2]}}
    store, sweep = fill_with(tmp_path, raw, made_up(defaultdict(lambda: 0.5), spread=0.01))
    assert draw(sweep, building.read(store, sweep).points, "crop_strength") is not None


def test_an_experiment_of_two_sweeps_has_the_seeds_of_both(tmp_path):
    effects = {"alpha=1.0": 0.5, "alpha=10.0": 0.7}
    searches = {"a": {"alpha": [1], "seed": [0, 1, 2]}, "b": {"alpha": [1, 10], "seed": [3, 4, 5, 6]}}
    opened = [
        fill_with(tmp_path, {"name": name, "search": search}, made_up(effects, seeds=tuple(range(7))))
        for name, search in searches.items()
    ]
    comparison = read_several(opened)
    family = comparison.groups[0].families["linear/test_accuracy"]
    first, second, third = comparison.points
    for twin in (first, second):
        difference = family.between(third, twin)
        assert difference.n == 4
        assert difference.mean == pytest.approx(0.2, abs=0.01)


def test_points_without_a_shared_seed_are_not_said_to_show_no_difference(tmp_path):
    effects = {"alpha=0.1": 0.5, "alpha=1.0": 0.7}
    opened = [
        fill_with(
            tmp_path, {"name": name, "search": {"alpha": [alpha], "seed": seeds}}, made_up(effects, seeds=range(6))
        )
        for name, alpha, seeds in (("a", 0.1, [0, 1, 2]), ("b", 1, [3, 4, 5]))
    ]
    sentences = " ".join(read_several(opened).in_words(scores=1))
    assert "shows no difference from a/alpha=0.1" not in sentences
    assert "nothing is shown about a/alpha=0.1, because no interval can be computed." in sentences
