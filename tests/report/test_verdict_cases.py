"""Verdicts about points that are hard to compare, from made-up results of sweeps."""

import csv
import io
import math
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from raysweep.report import building
from raysweep.report.figures import draw
from raysweep.report.shapes import average, compare_shape
from raysweep.report.summary import summary_md
from raysweep.report.tables import differences_csv
from raysweep.report.verdicts import shape_of
from tests.report.test_report import COLUMNS, fill_with, made_up

RAW = {"name": "s", "baseline": True}
SCORE = "linear/test_accuracy"


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
    assert "In linear/test_accuracy the best point is above usl_lr=0.0001" in sentences


def test_a_value_none_that_controls_lack_is_drawn(tmp_path):
    raw = {**RAW, "search": {"crop_strength": [None, 0.25], "seed": [0, 1, 2]}}
    store, sweep = fill_with(tmp_path, raw, made_up(defaultdict(lambda: 0.5), spread=0.01))
    assert draw(sweep, building.read(store, sweep).points, "crop_strength") is not None


@pytest.mark.parametrize("wide", [False, True])
def test_a_difference_accounts_for_missing_seeds_and_its_unadjusted_interval_has_the_shared_ones(tmp_path, wide):
    """The mean is a least-squares difference, or the mean of the pairs if one point has a far greater spread."""
    alphas, some = [0.1, 1, 10, 100, 1000], [0, 2, 3, 5, 7]
    search = [{"alpha": alphas[:4], "seed": list(range(8))}, {"alpha": alphas[4:], "seed": some}]
    table = np.random.default_rng(5).normal(size=(5, 8)) * np.array([[0.001]] * 3 + [[0.03 if wide else 0.001]] * 2)
    table += 0.4 + np.arange(5)[:, None] / 100 + np.arange(8) / 50

    def metrics(trial):
        return dict.fromkeys(COLUMNS, float(table[alphas.index(trial.settings.alpha), trial.settings.seed]))

    report = building.read(*fill_with(tmp_path, {"name": "s", "search": search}, metrics))
    table[4, [seed for seed in range(8) if seed not in some]] = np.nan
    point, seed = np.nonzero(~np.isnan(table))
    design = np.hstack([np.eye(5)[point], np.eye(8)[seed]])
    effects = np.linalg.lstsq(design, table[point, seed], rcond=None)[0]
    rows = [row for row in csv.DictReader(io.StringIO(differences_csv(report))) if row["score"] == SCORE]
    assert len(rows) == 10
    for row in rows:
        first, second = (alphas.index(float(row[name].removeprefix("alpha="))) for name in ("first", "second"))
        paired = table[first] - table[second]
        paired = paired[~np.isnan(paired)]
        assert int(row["n"]) == len(paired)
        expected = paired.mean() if wide else effects[first] - effects[second]
        assert float(row["mean"]) == pytest.approx(expected)
        bounds = [float(row[f"unadjusted95_{end}"]) for end in ("low", "high")]
        assert bounds == pytest.approx(list(stats.ttest_1samp(paired, 0).confidence_interval(0.95)))
    text = summary_md(report)
    assert "A difference is between two means that are adjusted for the seeds that a point lacks, and n is the" in text
    assert "A difference is a mean over the n seeds that both have" not in text


def grid(tmp_path, seeds, metrics):
    """The report of a sweep over three α and three durations."""
    search = {"alpha": [0.1, 1, 10], "usl_epochs": [1, 2, 3], "seed": seeds}
    return building.read(*fill_with(tmp_path, {**RAW, "base": {"usl_type": "ae_parallel"}, "search": search}, metrics))


def scored(points, table):
    """The points with the scores of a table of shape (points, seeds)."""
    return [
        replace(
            point,
            by_seed={
                seed: replace(result, metrics={SCORE: float(score)})
                for (seed, result), score in zip(point.by_seed.items(), row, strict=True)
            },
        )
        for point, row in zip(points, table, strict=True)
    ]


def test_trials_that_resemble_each_other_do_not_make_a_trend(tmp_path):
    report = grid(tmp_path, [0, 1, 2], made_up(defaultdict(lambda: 0.5)))
    points = [point for point in report.points if not point.baseline]
    place = [[0.1, 1, 10].index(point.varied["alpha"]) for point in points]
    epochs = np.array([point.varied["usl_epochs"] for point in points])
    random, claims, tables = np.random.default_rng(0), 0, 200
    for _ in range(tables):
        # The trials of one seed and one α differ little between durations, and α has no effect.
        table = random.normal(size=3) + random.normal(size=(3, 3))[place] + 0.3 * random.normal(size=(9, 3))
        shape, values = shape_of("alpha", SCORE, scored(points, table + epochs[:, None]))
        assert values == [0.1, 1, 10]
        claims += shape.kind in ("rises", "falls", "optimum")
    assert claims / tables <= 0.05 + 2.6 * math.sqrt(0.05 * 0.95 / tables), claims / tables


def test_a_trend_of_three_values_can_be_shown_with_three_seeds_and_is_called_an_average(tmp_path):
    def metrics(trial):
        if trial.baseline:
            return made_up(defaultdict(lambda: 0.4))(trial)
        effect = {0.1: 0.5, 1: 0.52, 10: 0.6}[trial.settings.alpha] + 0.1 * trial.settings.usl_epochs
        return made_up(defaultdict(lambda: effect))(trial)

    report = grid(tmp_path, [0, 1, 2], metrics)
    shape, _ = report.groups[0].families[SCORE].shapes["alpha"]
    assert shape.p_rises == pytest.approx(3 / 6**3)  # every seed has the one order of six that rises
    means = {
        value: np.mean([point.values(SCORE) for point in report.points if point.varied.get("alpha") == value])
        for value in (0.1, 10)
    }
    assert shape.pairs[0, 2].mean == pytest.approx(means[0.1] - means[10])
    lines = report.in_words(scores=1)
    assert any(
        line.startswith(f"With alpha, averaged over the other settings: {SCORE} rises (Page's trend test, p = 0.014)")
        for line in lines
    )


@pytest.mark.parametrize(
    ("strengths", "words"),
    [
        ([0.5], "With alpha (usl_type=ae_parallel): "),
        ([0.5, 1], "With alpha (usl_type=ae_parallel), averaged over the other settings: "),
    ],
)
def test_a_setting_of_one_sub_space_is_not_said_to_be_averaged_over_the_others(tmp_path, strengths, words):
    spaces = [
        {"usl_type": ["simclr"], "temperature": [0.1, 0.2, 0.5], "strength": strengths, "seed": [0, 1, 2]},
        {"usl_type": ["ae_parallel"], "alpha": [0.01, 0.1, 1], "strength": strengths, "seed": [0, 1, 2]},
    ]

    def metrics(trial):
        settings = trial.settings
        score = 0.3 + 0.05 * (settings.alpha + settings.temperature) + 0.1 * settings.seed
        noise = 0.0005 * math.sin(17 * settings.alpha + 5 * settings.seed + 3 * settings.strength)
        return dict.fromkeys(COLUMNS, score + noise)

    report = building.read(*fill_with(tmp_path, {"name": "s", "search": spaces}, metrics))
    (line,) = (line for line in report.in_words(scores=1) if line.startswith("With alpha"))
    assert line.startswith(words)
    (line,) = (line for line in report.in_words(scores=1) if line.startswith("With temperature"))
    assert line.startswith(words.replace("alpha", "temperature").replace("ae_parallel", "simclr"))


def test_a_missing_trial_does_not_distort_the_averages(tmp_path):
    seeds = [0, 1, 2, 3]
    points = [point for point in grid(tmp_path, seeds, made_up(defaultdict(lambda: 0.5))).points if not point.baseline]
    table = np.random.default_rng(1).normal(size=(9, 4)) * 0.001
    table += np.array([point.varied["usl_epochs"] for point in points])[:, None]  # a large effect of the other setting
    full = scored(points, table)
    incomplete = [
        replace(point, by_seed={seed: result for seed, result in point.by_seed.items() if seed})
        if point.varied == {"alpha": 10, "usl_epochs": 3}
        else point
        for point in full
    ]
    # The duration that lacks a trial is left out in all seeds, as if it had not been tried.
    shorter = [point for point in full if point.varied["usl_epochs"] < 3]
    assert shape_of("alpha", SCORE, incomplete) == shape_of("alpha", SCORE, shorter)
    # The missing trial stays missing where no other setting varies.
    alone = [point for point in incomplete if point.varied["usl_epochs"] == 3]
    scores = np.array([[point.scores(SCORE).get(seed, np.nan) for seed in seeds] for point in alone])
    assert shape_of("alpha", SCORE, alone)[0] == compare_shape(scores)


def test_settings_that_vary_only_together_have_no_shape(tmp_path):
    points = [point for point in grid(tmp_path, [0, 1, 2], made_up(defaultdict(lambda: 0.5))).points if point.varied]
    diagonal = [point for point in points if point.varied.get("alpha") == 10 ** (point.varied["usl_epochs"] - 2)]
    assert len(diagonal) == 3
    assert shape_of("alpha", SCORE, diagonal) is None


def test_without_a_complete_combination_only_cells_that_all_combinations_have_are_averaged():
    scores = np.random.default_rng(2).normal(size=(3, 4, 6))
    scores[0, 1, 0] = scores[1, 2, 1] = scores[2, :, 2] = np.nan
    missing = np.isnan(scores).any(0)
    averaged = average(scores)
    assert (np.isnan(averaged) == missing).all()
    assert averaged[~missing] == pytest.approx(np.mean(list(scores), axis=0)[~missing])
    # A combination that is complete in every seed is used alone, and so are seeds that no combination completes.
    scores[0] = 0.5
    scores[:, 3, 5] = np.nan
    assert np.array_equal(average(scores), scores[0], equal_nan=True)
