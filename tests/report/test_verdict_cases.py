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
from raysweep.report.building import read_several
from raysweep.report.figures import draw
from raysweep.report.shapes import average, compare_shape
from raysweep.report.summary import summary_md
from raysweep.report.tables import differences_csv, summary_csv
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


ALPHAS = {"alpha=0.1": 0.5, "alpha=1.0": 0.501, "alpha=10.0": 0.5005, "random": 0.4}


def noisy(trial, run=0):
    """Metrics with a seed effect and much noise; `run` tells two runs of the same trial apart."""
    noise = np.random.default_rng([run, trial.settings.seed, *map(ord, trial.point)]).normal(size=4) * 0.02
    return dict(zip(COLUMNS, (ALPHAS[trial.point] + trial.settings.seed / 20 + noise).tolist(), strict=True))


def replicated(tmp_path, *seeds, metrics=noisy, alphas=(0.1, 1, 10)):
    """Create sweeps a, b and so on, which have the same points and controls with these seeds."""
    return [
        fill_with(tmp_path, {**RAW, "name": name, "search": {"alpha": list(alphas), "seed": each}}, metrics)
        for name, each in zip("abc", seeds, strict=False)
    ]


def read_csv(text):
    return list(csv.DictReader(io.StringIO(text)))


def interval_of(row, prefix, kind="unadjusted95"):
    return [float(row[f"{prefix}{kind}_{end}"]) for end in ("low", "high")]


def test_both_intervals_of_an_experiment_of_two_sweeps_are_from_the_seeds_of_both(tmp_path):
    """SciPy's paired intervals of all six seeds, against what both tables say."""
    opened = replicated(tmp_path, [0, 1, 2], [3, 4, 5])
    report = read_several(opened)
    scores = {trial.name: noisy(trial)[SCORE] for _, sweep in opened for trial in sweep.trials}

    def paired(first, second):
        values = ([scores[f"{point},seed={seed}"] for seed in range(6)] for point in (first, second))
        return pytest.approx(list(stats.ttest_rel(*values).confidence_interval(0.95)))

    differences = {(row["first"], row["second"], row["score"]): row for row in read_csv(differences_csv(report))}
    assert len(differences) == 3 * len(report.compared), "each pair of experiments has one row for each score"
    for first, second in (("alpha=0.1", "alpha=1.0"), ("alpha=0.1", "alpha=10.0"), ("alpha=1.0", "alpha=10.0")):
        row = differences[f"a/{first}", f"a/{second}", SCORE]
        assert row["n"] == "6"
        assert interval_of(row, "") == paired(first, second)
    rows = [row for row in read_csv(summary_csv(report)) if row["point"] != "random"]
    assert [row["n"] for row in rows] == ["3"] * 6, "the scores are those of each sweep alone"
    for row in rows:
        assert interval_of(row, f"{SCORE} minus random ") == paired(row["point"], "random")


def test_the_unadjusted_interval_lies_around_the_difference_where_two_runs_of_a_trial_differ(tmp_path):
    """Without deterministic kernels, a seed that two sweeps have differs between them."""
    (store, sweep), _ = replicated(tmp_path, [0, 1, 2], [2, 3, 4])
    again = fill_with(tmp_path / "b", sweep.to_dict() | {"name": "b"}, lambda trial: noisy(trial, run=1))
    report = read_several([(store, sweep), again])
    rows = read_csv(differences_csv(report))
    assert {row["n"] for row in rows} == {"3"}
    for row in rows:
        assert np.mean(interval_of(row, "")) == pytest.approx(float(row["mean"]))
    for row in read_csv(summary_csv(report)):
        if row["point"] != "random":
            mean = float(row[f"{SCORE} minus random mean"])
            assert np.mean(interval_of(row, f"{SCORE} minus random ")) == pytest.approx(mean)


def test_each_experiment_of_two_sweeps_is_named_once(tmp_path):
    report = read_several(replicated(tmp_path, [0, 1, 2], [3, 4, 5]))
    sentences = " ".join(report.in_words())
    assert "b/" not in sentences, sentences
    (group,) = report.groups
    assert [point.title for point in group.points] == ["a/alpha=0.1", "a/alpha=1.0", "a/alpha=10.0"]
    text = summary_md(report)
    assert (
        "- Some experiments are in several sweeps. In sentences, in differences and in the order of the points each of "
        "them counts once, with the seeds of all its sweeps: b/alpha=0.1 counts as a/alpha=0.1, b/alpha=1.0 counts as "
        "a/alpha=1.0 and b/alpha=10.0 counts as a/alpha=10.0. Means of scores are for each sweep alone."
    ) in text
    sections = text.split("## ")
    scores, *differences = (part for part in sections if part.startswith(("Scores", "Difference")))
    assert scores.count("| b | alpha=") == 3
    assert [part.count("| b | alpha=") for part in differences] == [0, 0]
    assert [part.count("| a | alpha=") for part in differences] == [3, 2]


def test_an_experiment_has_the_planned_seeds_of_all_its_sweeps(tmp_path):
    """A seed that did not finish counts as missing, unless another sweep has it."""
    opened = replicated(tmp_path, [0, 1, 2], [2, 3])
    for name in ("alpha=0.1,seed=2", "alpha=10.0,seed=3"):
        (opened[1][0].trial(name) / "result.json").unlink()
    report = read_several(opened)
    assert [(point.title, point.missing) for point in report.groups[0].points if point.missing] == [
        ("a/alpha=10.0", [3])
    ]
    assert {point.title for point in report.ranked[0]} == {"a/alpha=0.1", "a/alpha=1.0"}
    assert "a/alpha=10.0 is not ranked: 1 of its 4 seeds did not finish." in report.doubts()


def test_an_experiment_has_the_metrics_of_all_its_sweeps(tmp_path):
    """The first sweep did not measure LiDAR, and the second one did so for the same seeds."""
    first = replicated(tmp_path, [0, 1, 2])
    measure = "label_free/trunk_lidar"
    second = replicated(tmp_path / "again", [0, 1, 2], metrics=lambda trial: {**noisy(trial), measure: 3.0})
    (group,) = read_several([*first, *second]).groups
    assert [point.values(measure) for point in group.points] == [[3.0] * 3] * 3
    assert [len(point.values(SCORE)) for point in group.points] == [3] * 3


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
