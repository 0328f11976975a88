"""The sentences of a report: each is true of made-up scores whose answer is known."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

import raysweep
from raysweep import parts
from raysweep.cli import main
from raysweep.declarations import Metric
from raysweep.parts import Part
from raysweep.report.building import build_tables, read_several
from raysweep.report.cautions import cautions
from raysweep.report.choosing import Ranking, words_of
from raysweep.report.conclusions import shape_words, winners_sentence
from raysweep.report.final_table import summary_table
from raysweep.report.headings import headings
from raysweep.report.page import page, points_table
from raysweep.report.points import SCORES, estimate
from raysweep.report.seeds import seeds_needed
from raysweep.report.sentences import named, others_sentence
from raysweep.report.statistics import compare_pairs
from raysweep.report.summary import summary_md
from tests.report.test_report import COLUMNS, fill_with

SEEDS = [0, 1, 2, 3]
NOISE = {0: 0.001, 1: -0.002, 2: 0.0015, 3: -0.0005}


def scores_of(effects, seeds=SEEDS, val=None, **more):
    """Return a function from trials to metrics: an effect by point, a large seed effect, and small residuals."""

    def metrics(trial):
        seed = trial.settings.seed
        place = list(effects).index(trial.point)
        residual = NOISE[seed % 4] * (1 if place % 2 else -1) * (1 + place / 7)
        test = effects[trial.point] + 0.1 * (seed % 4) + residual
        return {**dict.fromkeys(COLUMNS, test), "linear/val_accuracy": (val or effects)[trial.point], **more}

    return metrics


def report_of(tmp_path, search, metrics, **raw):
    store, sweep = fill_with(tmp_path, {"name": "s", "search": {"seed": SEEDS, **search}, **raw}, metrics)
    return build_tables(store, sweep)


def test_the_best_point_is_above_every_other_and_beats_the_random_encoder(tmp_path):
    effects = {"random": 0.2, "alpha=0.1": 0.3, "alpha=1.0": 0.5, "alpha=10.0": 0.4}
    report = report_of(tmp_path, {"alpha": [0.1, 1, 10]}, scores_of(effects), baseline=True)
    first, others, shape, *rest = report.in_words(scores=1)
    family = report.groups[0].families["linear/test_accuracy"]
    points = {point.title: point for point in report.points}
    random, closest = (
        family.from_control(points["alpha=1.0"]),
        family.between(points["alpha=1.0"], points["alpha=10.0"]),
    )
    assert first == (
        "alpha=1.0 is best by linear/val_accuracy (0.5000, mean of 4 seeds) and beats the random encoder in "
        f"linear/test_accuracy: {random.mean:+.4f} [{random.low:+.4f}, {random.high:+.4f}]."
    )
    assert others == (
        "In linear/test_accuracy the best point is above every other ranked point; the closest is alpha=10.0, "
        f"{closest.mean:+.4f} [{closest.low:+.4f}, {closest.high:+.4f}]."
    )
    optimum = "has an optimum near 1.0 (both ends are worse)"
    assert shape == (
        f"With alpha: linear/test_accuracy {optimum}; knn/test_accuracy {optimum}; kmeans/accuracy {optimum}."
    )
    assert rest == []


def test_a_score_that_rises_asks_for_larger_values(tmp_path):
    effects = {"alpha=0.1": 0.3, "alpha=1.0": 0.31, "alpha=10.0": 0.4}
    lines = report_of(tmp_path, {"alpha": [0.1, 1, 10]}, scores_of(effects)).in_words(scores=1)
    assert lines[0].endswith("There is no random encoder to compare with; add `--set baseline=true`.")
    assert any(line.startswith("With alpha: linear/test_accuracy rises (Page's trend test, p ") for line in lines)
    assert "Next: alpha = 10.0 is the largest that was tried; try larger values." in lines


@pytest.mark.parametrize(
    ("name", "values", "rises", "words"),
    [
        ("alpha", [0, 0.1, 1], False, None),
        ("alpha", [0.01, 0.1, 1], False, "alpha = 0.01 is the smallest that was tried; try smaller values."),
        ("usl_epochs", [2, 3, 4], False, "usl_epochs = 2 is the smallest that was tried; try smaller values."),
        ("strength", [1, 10, 100], True, None),
        ("strength", [1, 10, 99.5], True, "strength = 99.5 is the largest that was tried; try larger values."),
        ("batch_size", [2, 4, 8], False, None),
        ("temperature", [0.1, 0.2, 1], False, "temperature = 0.1 is the smallest that was tried; try smaller values."),
    ],
)
def test_values_outside_the_range_of_a_setting_are_not_recommended(tmp_path, name, values, rises, words):
    base = {"usl_type": "simclr"} if name != "alpha" else {}

    def metrics(trial):
        place = values.index(getattr(trial.settings, name))
        score = 0.3 + 0.05 * (place if rises else -place) + 0.01 * trial.settings.seed
        return dict.fromkeys(COLUMNS, score + NOISE[trial.settings.seed] * (1 + place) / 9)

    lines = report_of(tmp_path, {name: values}, metrics, base=base).in_words(scores=1)
    assert any(f" {'rises' if rises else 'falls'} (Page's" in line for line in lines)
    steps = [line.removeprefix("Next: ") for line in lines if line.startswith("Next: ")]
    assert steps == ([words] if words else [])


def test_no_trend_is_said_with_the_differences_that_the_intervals_allow(tmp_path):
    scores = {0.1: (0.1, 0.2, 0.3, 0.4), 1: (0.13, 0.18, 0.33, 0.38), 10: (0.1, 0.21, 0.31, 0.4)}

    def metrics(trial):
        score = scores[trial.settings.alpha][trial.settings.seed]
        return dict.fromkeys(COLUMNS, score) | {"linear/val_accuracy": score}

    report = report_of(tmp_path, {"alpha": [0.1, 1, 10]}, metrics)
    family = report.groups[0].families["linear/test_accuracy"]
    shape, _ = family.shapes["alpha"]
    most = max(abs(bound) for pair in shape.pairs.values() for bound in (pair.low, pair.high))
    means = [sum(values) / 4 for values in scores.values()]
    assert most > 2 * (max(means) - min(means)), "it says nothing about the spread of the means"
    assert shape_words("alpha", family) == (
        f"linear/test_accuracy shows no trend (the intervals allow a difference of up to {most:.4f} between two values "
        "of alpha)"
    )
    pairs = {**shape.pairs, (0, 1): replace(shape.pairs[0, 1], low=None, high=None)}
    unknown = replace(family, shapes={"alpha": (replace(shape, pairs=pairs), [0.1, 1, 10])})
    assert shape_words("alpha", unknown) == "linear/test_accuracy shows no trend"


def test_points_without_a_shown_difference_are_named_with_the_seeds_that_would_show_one(tmp_path):
    effects = {"alpha=0.1": 0.3, "alpha=1.0": 0.5, "alpha=10.0": 0.501}
    report = report_of(tmp_path, {"alpha": [0.1, 1, 10]}, scores_of(effects))
    _, others, *rest = report.in_words(scores=1)
    assert "the best point shows no difference from alpha=1.0 (+0.00" in others
    assert others.endswith(", and is above alpha=0.1.")
    family = report.groups[0].families["linear/test_accuracy"]
    points = {point.title: point for point in report.points}
    difference = family.between(points["alpha=10.0"], points["alpha=1.0"])
    assert difference.method == "holm", "the width of the interval, which shrinks with the root of n, gives the number"
    count = math.ceil(difference.n * ((difference.high - difference.low) / 2 / difference.mean) ** 2)
    expected = f"about {count} seeds in all have an even" if count <= 50 else "even 50 seeds would probably not show"
    assert any(expected in line for line in rest)


def test_seeds_that_would_show_a_difference_are_more_than_there_are_where_the_spreads_differ(tmp_path):
    noise, larger = (0.001, -0.002, 0.0015, -0.0005), (0.0025, -0.005, 0.01, -0.0075)
    values = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]

    def metrics(trial):
        seed, alpha = trial.settings.seed, trial.settings.alpha
        place = values.index(alpha)
        residual = noise[(seed + place) % 4] * (1 if place % 2 else -1) * (1 + place / 7)
        if alpha >= 0.5:
            residual = 5 * noise[seed] if alpha == 0.5 else larger[seed]
        effect = {0.5: 0.5, 0.6: 0.515}.get(alpha, 0.2 + alpha / 5)
        return {**dict.fromkeys(COLUMNS, effect + 0.1 * seed + residual), "linear/val_accuracy": effect}

    report = report_of(tmp_path, {"alpha": values}, metrics)
    family = report.groups[0].families["linear/test_accuracy"]
    difference = family.between(*report.groups[0].ranked[:2])
    assert not difference.differs
    assert seeds_needed(difference.mean, family.variance, 6) < len(SEEDS)
    assert (
        "Next: about 6 seeds in all have an even chance to show a difference between alpha=0.6 and alpha=0.5, if the "
        "true difference is +0.0150. Twice as many seeds will probably show it." in report.in_words(scores=1)
    )


@pytest.mark.parametrize(
    ("others", "words"),
    [
        ([0, 1, 2], "0.7400, mean of 5 seeds; other means are adjusted for missing seeds"),
        ([1], "0.7400, mean of 5 seeds; other means are adjusted for missing seeds"),
    ],
)
def test_points_with_different_seeds_show_the_mean_that_ranks_them(tmp_path, others, words):
    """All seeds of alpha=0.1 have a lower mean than the seeds of alpha=1.0, but seed by seed alpha=0.1 is better."""
    val = {0.1: [0.9, 0.9, 0.9, 0.5, 0.5], 1: [0.8] * 5}

    def metrics(trial):
        value = val[trial.settings.alpha][trial.settings.seed]
        return {**dict.fromkeys(COLUMNS, value + NOISE[trial.settings.seed % 4]), "linear/val_accuracy": value}

    search = [{"alpha": [0.1], "seed": [0, 1, 2, 3, 4]}, {"alpha": [1], "seed": others}]
    report = build_tables(*fill_with(tmp_path, {"name": "s", "search": search}, metrics))
    line = next(line for line in report.in_words(scores=1) if line.startswith("alpha=0.1 "))
    assert f" ({words})" in line, line
    same = [{"alpha": [0.1], "seed": [0, 1, 2]}, {"alpha": [1], "seed": [0, 1, 2]}]
    report = build_tables(*fill_with(tmp_path, {"name": "t", "search": same}, metrics))
    assert " (0.9000, mean of 3 seeds)" in report.in_words(scores=1)[0]


def test_the_recommended_seeds_show_a_difference_in_half_of_the_cases_and_twice_as_many_usually_do():
    """The power of the comparison of two points by simulation, for a difference of one standard deviation."""
    points, random, shown = 4, np.random.default_rng(0), []
    count = seeds_needed(1.0, 1.0, points)
    for seeds in (count, 2 * count):
        tables = random.standard_normal((400, points, seeds)) + np.array([1.0, 0, 0.5, 0.5])[:, None]
        residuals = (
            tables - tables.mean(2, keepdims=True) - tables.mean(1, keepdims=True) + tables.mean((1, 2))[:, None, None]
        )
        df = (points - 1) * (seeds - 1)
        error = np.sqrt((residuals**2).sum((1, 2)) / df * 2 / seeds)
        difference = tables[:, 0].mean(1) - tables[:, 1].mean(1)
        shown.append((difference > stats.studentized_range.isf(0.05, points, df) / math.sqrt(2) * error).mean())
    assert 0.35 < shown[0] < 0.65, shown
    assert shown[1] > 0.8, shown


def test_no_point_beats_the_random_encoder(tmp_path):
    effects = {"random": 0.6, "alpha=0.1": 0.3, "alpha=1.0": 0.5}
    lines = report_of(tmp_path, {"alpha": [0.1, 1]}, scores_of(effects), baseline=True).in_words(scores=1)
    assert " and is below the random encoder in linear/test_accuracy: -0.1" in lines[0]
    assert lines[0].endswith("]. No point beats the random encoder in linear/test_accuracy.")


def test_another_point_than_the_best_one_may_beat_the_random_encoder(tmp_path):
    effects = {"random": 0.4, "alpha=0.1": 0.6, "alpha=1.0": 0.3}
    val = {"random": 0.1, "alpha=0.1": 0.2, "alpha=1.0": 0.9}
    lines = report_of(tmp_path, {"alpha": [0.1, 1]}, scores_of(effects, val=val), baseline=True).in_words(scores=1)
    assert lines[0].endswith("]. alpha=0.1 beats the random encoder in linear/test_accuracy.")
    assert lines[1] == "In linear/test_accuracy, however, the best point is below alpha=0.1."


def test_the_verdicts_of_further_scores_name_score_and_control(tmp_path):
    effects = {"random": 0.4, "alpha=0.1": 0.3, "alpha=1.0": 0.6}
    of_kmeans = {"random": 0.6, "alpha=0.1": 0.3, "alpha=1.0": 0.5}

    def metrics(trial):
        return scores_of(effects)(trial) | {"kmeans/accuracy": scores_of(of_kmeans)(trial)["kmeans/accuracy"]}

    report = report_of(tmp_path, {"alpha": [0.1, 1]}, metrics, baseline=True)
    lines = report.in_words()
    families, best = report.groups[0].families, report.groups[0].best[0]
    knn, kmeans = (families[name].from_control(best) for name in ("knn/test_accuracy", "kmeans/accuracy"))
    for line, verb, score, each in zip(
        lines[1:3], ("beats", "is below"), ("knn/test_accuracy", "kmeans/accuracy"), (knn, kmeans), strict=True
    ):
        interval = f"{each.mean:+.4f} [{each.low:+.4f}, {each.high:+.4f}]"
        assert line == f"The best point {verb} the random encoder in {score} ({interval})."
    assert not any(" it " in line for line in lines)


@pytest.fixture
def error_probe():
    """A probe without a switch, as a plugin declares it, with two scores for which less is better."""
    metrics = {
        "mine/test_error": Metric("Error.", better="min", highest=1, uses_test=True),
        "mine/test_loss": Metric("Loss.", better="min", uses_test=True),
    }
    part = Part("probe", "mine", print, "", {}, metrics, dict(parts.probe.traits), "hash of a plugin")
    parts.probe.add(part)
    yield
    parts.probe.remove(part)


def test_a_score_of_a_plugin_has_verdicts_in_its_own_direction(tmp_path, error_probe):
    effects = {"random": 0.2, "alpha=0.1": 0.3, "alpha=1.0": 0.4, "alpha=10.0": 0.5}
    errors = {"random": 0.4, "alpha=0.1": 0.2, "alpha=1.0": 0.45, "alpha=10.0": 0.6}

    def metrics(trial):
        error = scores_of(errors)(trial)["knn/test_accuracy"]
        return scores_of(effects)(trial) | {"mine/test_error": error}

    report = report_of(tmp_path, {"alpha": [0.1, 1, 10]}, metrics, baseline=True)
    text = (report.members[0].store.root / "summary.md").read_text()
    assert "The best point beats the random encoder in knn/test_accuracy (+0.3" in text
    assert "- The best point is above the random encoder in mine/test_error (+0.2" in text
    assert "; less is better)." in text
    assert "\nAll scores except mine/test_error are accuracies between 0 and 1. " in text
    assert "| point | n | linear/val_accuracy | linear/test_accuracy |" in text
    assert "| kmeans/accuracy | mine/test_error |\n" in text
    group = report.groups[0]
    family = group.families["mine/test_error"]
    (worst,) = group.best
    assert worst.title == "alpha=10.0"
    line = others_sentence(group, family, "the best point")
    assert line == "In mine/test_error (less is better), however, the best point is above alpha=1.0 and alpha=0.1."
    assert winners_sentence(group, family) == "alpha=0.1 beats the random encoder in mine/test_error (less is better)."
    saturated = report_of(tmp_path / "s", {"alpha": [0.1]}, lambda trial: {"mine/test_error": 0.99}, baseline=True)
    assert "97 %" not in (saturated.members[0].store.root / "summary.md").read_text()
    saturated = report_of(tmp_path / "t", {"alpha": [0.1]}, lambda trial: dict.fromkeys(COLUMNS, 0.99), baseline=True)
    assert "more than 97 % in linear/test_accuracy" in (saturated.members[0].store.root / "summary.md").read_text()


def test_the_inner_optimum_of_a_score_of_which_less_is_better_is_its_least_value(tmp_path, error_probe):
    errors = {"alpha=0.1": 0.4, "alpha=1.0": 0.2, "alpha=10.0": 0.5}
    report = report_of(
        tmp_path,
        {"alpha": [0.1, 1, 10]},
        lambda trial: {"mine/test_error": scores_of(errors)(trial)["kmeans/accuracy"]},
    )
    shape, values = report.groups[0].families["mine/test_error"].shapes["alpha"]
    assert (shape.kind, values[shape.best]) == ("optimum", 1)


@pytest.mark.parametrize("count", [2, 4])
def test_small_differences_keep_their_digits_in_every_sentence(tmp_path, error_probe, count):
    losses = {"random": 3.1e-5, "alpha=0.1": 3e-5, "alpha=1.0": 3.01e-5, "alpha=10.0": 3e-5, "alpha=20.0": 3.01e-5}
    val = dict(zip(losses, (0.2, 0.5, 0.4, 0.3, 0.2), strict=True))

    def metrics(trial):
        loss = losses[trial.point] + 1e-3 * (scores_of(val)(trial)["knn/test_accuracy"] - val[trial.point])
        return {"mine/test_loss": loss, "linear/val_accuracy": val[trial.point]}

    search = {"alpha": [0.1, 1, 10, 20], "seed": SEEDS[:count]}
    words = " ".join(report_of(tmp_path, search, metrics, baseline=True).in_words())
    assert ("differs by" if count == 2 else "if the true difference is") in words
    assert not re.search(r"\b0\.0000\b", words)
    ranking = Ranking("pretrain/loss", 3, estimate([0.5]), [], 3.1e-5, 1.2e-6)
    assert words_of(ranking, "mine/test_loss")[-2:] == ["0.00003100", "0.000001200"]


@pytest.mark.parametrize(("count", "words"), [(1, "One seed cannot tell"), (2, "Two seeds cannot tell")])
def test_one_or_two_seeds_cannot_tell(tmp_path, count, words):
    effects = {"random": 0.2, "alpha=0.1": 0.3, "alpha=1.0": 0.5}
    report = report_of(tmp_path, {"alpha": [0.1, 1], "seed": SEEDS[:count]}, scores_of(effects), baseline=True)
    best, unknown, controls, following = report.in_words(scores=1)
    mean = "one seed" if count == 1 else "mean of 2 seeds"
    assert best == f"alpha=1.0 has the best linear/val_accuracy (0.5000, {mean})."
    assert unknown == f"{words} which differences are real."
    family = report.groups[0].families["linear/test_accuracy"]
    (point,) = (point for point in report.points if point.title == "alpha=1.0")
    difference = family.from_control(point).mean
    assert controls == f"In linear/test_accuracy the best point differs by {difference:+.4f} from the random encoder."
    assert (
        following == "Next: run at least three seeds. `--resume DIR/NAME --set 'seed=[0,1,2]'` adds them to this sweep."
    )
    assert "[" not in best + controls, "there is no interval"
    assert (report.members[0].store.root / "summary.md").read_text().count(words) == 1


def test_equal_points_are_called_equal(tmp_path):
    def metrics(trial):
        return dict.fromkeys(COLUMNS, 0.5 + trial.settings.seed / 10)

    lines = report_of(tmp_path, {"alpha": [0.1, 1]}, metrics).in_words(scores=1)
    assert lines == [
        "No point is best: alpha=0.1 and alpha=1.0 are equal in linear/val_accuracy and linear/test_accuracy, seed by "
        "seed."
    ]


def test_points_with_the_same_mean_by_which_they_are_ranked_are_named(tmp_path):
    effects = {"alpha=0.1": 0.3, "alpha=1.0": 0.5, "alpha=10.0": 0.4}
    val = {"alpha=0.1": 0.5, "alpha=1.0": 0.5, "alpha=10.0": 0.4}
    lines = report_of(tmp_path, {"alpha": [0.1, 1, 10]}, scores_of(effects, val=val)).in_words(scores=1)
    assert lines[0].startswith("alpha=0.1 and alpha=1.0 are best by linear/val_accuracy (0.5000, mean of 4 seeds).")
    metrics = scores_of({"random": 0.2, **effects}, val={"random": 0, **val})
    controlled = report_of(tmp_path / "c", {"alpha": [0.1, 1, 10]}, metrics, baseline=True)
    assert (
        "(0.5000, mean of 4 seeds). alpha=0.1 beats the random encoder in linear/" in controlled.in_words(scores=1)[0]
    )
    assert lines[1] == "In linear/test_accuracy, however, alpha=0.1 is below alpha=1.0 and alpha=10.0."


def bold_points(report):
    """Return the points whose rows are bold, after a check that the page and the terminal's table agree."""
    table = points_table(report)
    bold = {report.points[number].title for number in table.bold}
    in_terminal = {
        point.title
        for point, row in zip(report.points, summary_table(report, 300)[0].rows, strict=True)
        if row.style == "bold"
    }
    assert bold == in_terminal
    text = page(report, report.members[0].store.root)
    assert text.count('class="best"><td>alpha=') == len(bold)
    assert (" best point is in bold type." in text) == (len(bold) == 1)
    assert (" best points are in bold type." in text) == (len(bold) > 1)
    return bold


@pytest.mark.parametrize(("count", "verb"), [(1, "have the best"), (2, "have the best"), (3, "are best by")])
def test_all_points_that_share_the_best_mean_are_called_best(tmp_path, count, verb):
    effects = {"alpha=0.1": 0.3, "alpha=1.0": 0.5, "alpha=10.0": 0.4}
    val = {"alpha=0.1": 0.4, "alpha=1.0": 0.5, "alpha=10.0": 0.5}
    search = {"alpha": [0.1, 1, 10], "seed": SEEDS[:count]}
    report = report_of(tmp_path, search, scores_of(effects, val=val))
    mean = "one seed" if count == 1 else f"mean of {count} seeds"
    best = f"alpha=1.0 and alpha=10.0 {verb} linear/val_accuracy (0.5000, {mean})."
    assert report.in_words()[0].startswith(best)
    assert bold_points(report) == {"alpha=1.0", "alpha=10.0"}
    assert "\nEach point minus alpha=1.0:\n" in (report.members[0].store.root / "summary.md").read_text()


def test_means_that_differ_only_in_rounding_are_equal(tmp_path):
    val = {"alpha=0.1": (0.1, 0.2, 0.3), "alpha=1.0": (0.2, 0.2, 0.2), "alpha=10.0": (0.1, 0.1, 0.1)}

    def metrics(trial):
        return dict.fromkeys(COLUMNS, 0.5) | {"linear/val_accuracy": val[trial.point][trial.settings.seed]}

    report = report_of(tmp_path, {"alpha": [0.1, 1, 10], "seed": [0, 1, 2]}, metrics)
    assert bold_points(report) == {"alpha=0.1", "alpha=1.0"}


@pytest.mark.parametrize("count", [1, 2, 4])
def test_no_point_is_best_where_all_share_the_mean(tmp_path, count):
    effects = {"random": 0.4, "alpha=0.1": 0.3, "alpha=1.0": 0.5, "alpha=10.0": 0.6}
    search = {"alpha": [0.1, 1, 10], "seed": SEEDS[:count]}
    report = report_of(tmp_path, search, scores_of(effects, val=dict.fromkeys(effects, 0.5)), baseline=True)
    lines = report.in_words(scores=1)
    mean = "one seed" if count == 1 else f"mean of {count} seeds"
    assert lines[0] == (
        f"No point is best: alpha=0.1, alpha=1.0 and alpha=10.0 have the same linear/val_accuracy (0.5000, {mean}). "
        "`differences.csv` compares the points in linear/test_accuracy."
    )
    following = "alpha=1.0 and alpha=10.0 beat the random encoder in linear/test_accuracy."
    assert lines[1].startswith(following if count > 2 else "Next: run at least three seeds.")
    assert bold_points(report) == set()
    assert "## Difference from the best point" not in (report.members[0].store.root / "summary.md").read_text()


def test_one_seed_with_equal_scores_has_no_best_point(tmp_path):
    report = report_of(tmp_path, {"alpha": [0.1, 1], "seed": [0]}, lambda trial: dict.fromkeys(COLUMNS, 0.5))
    assert report.in_words()[0] == (
        "No point is best: alpha=0.1 and alpha=1.0 are equal in linear/val_accuracy and linear/test_accuracy, seed by "
        "seed."
    )
    assert bold_points(report) == set()


def test_without_a_metric_that_chooses_no_point_is_bold(tmp_path):
    base = {"val_fraction": 0}
    report = report_of(tmp_path, {"alpha": [0.1, 1]}, lambda trial: dict.fromkeys(SCORES, 0.5), base=base)
    assert bold_points(report) == set()


def test_equal_test_scores_of_points_that_the_metric_ranks(tmp_path):
    effects = {"alpha=0.1": 0.3, "alpha=1.0": 0.5}

    def metrics(trial):
        return {**dict.fromkeys(COLUMNS, 0.5 + trial.settings.seed / 10), "linear/val_accuracy": effects[trial.point]}

    lines = report_of(tmp_path, {"alpha": [0.1, 1]}, metrics).in_words(scores=1)
    assert lines[0].startswith("alpha=1.0 is best by linear/val_accuracy")
    assert lines[1] == "But alpha=1.0 and alpha=0.1 are equal in linear/test_accuracy, seed by seed."


def test_of_two_points_the_other_one_is_named_once(tmp_path):
    effects = {"alpha=0.1": 0.3, "alpha=1.0": 0.5}
    line = report_of(tmp_path, {"alpha": [0.1, 1]}, scores_of(effects)).in_words(scores=1)[1]
    assert line.startswith("In linear/test_accuracy the best point is above alpha=0.1: +0.2")


def test_a_point_with_failed_seeds_does_not_compete_and_is_named(tmp_path):
    """Seeds shift the scores by 0.1 each. The worst point has only its best seed left, and must not be called best."""
    effects = {"random": 0.2, "alpha=0.1": 0.4, "alpha=1.0": 0.35}

    def metrics(trial):
        if trial.point == "alpha=1.0" and trial.settings.seed != 3:
            return {}
        return {**scores_of(effects)(trial), "linear/val_accuracy": effects[trial.point] + 0.1 * trial.settings.seed}

    raw = {"name": "s", "search": {"seed": SEEDS, "alpha": [0.1, 1]}, "baseline": True}
    store, sweep = fill_with(tmp_path, raw, metrics)
    sweep_trials = [trial for trial in sweep.trials if trial.point == "alpha=1.0" and trial.settings.seed != 3]
    for trial in sweep_trials:
        (store.trial(trial.name) / "result.json").unlink()
    report = build_tables(store, sweep)
    assert "alpha=0.1 is the only point that can be ranked" in report.in_words(scores=1)[0]
    assert report.doubts()[0] == "alpha=1.0 is not ranked: 3 of its 4 seeds did not finish."
    assert "not ranked" in (store.root / "summary.md").read_text()


@pytest.mark.parametrize(
    ("lacking", "words"),
    [
        (SEEDS, "no seed has linear/val_accuracy"),
        ([2], "1 of its 4 seeds has no linear/val_accuracy"),
        ([0, 1, 2], "3 of its 4 seeds have no linear/val_accuracy"),
    ],
)
def test_a_point_that_lacks_the_metric_is_not_ranked_and_the_report_says_so(tmp_path, lacking, words):
    """The point would be best by the seeds that have the metric."""
    effects = {"random": 0.2, "alpha=0.1": 0.6, "alpha=1.0": 0.4, "alpha=10.0": 0.3}

    def metrics(trial):
        values = scores_of(effects)(trial)
        lacks = trial.baseline or (trial.point == "alpha=0.1" and trial.settings.seed in lacking)
        return {name: value for name, value in values.items() if not (lacks and name == "linear/val_accuracy")}

    report = report_of(tmp_path, {"alpha": [0.1, 1, 10]}, metrics, baseline=True)
    assert report.in_words()[0].startswith("alpha=1.0 is best by linear/val_accuracy (")
    assert report.doubts() == [f"alpha=0.1 is not ranked: {words}."]
    marked = [row[0] for row in points_table(report).rows if "incomplete" in row[0]]
    assert marked == ([] if lacking == SEEDS else ["alpha=0.1 (incomplete)"])


@pytest.mark.parametrize("others", [[0.5], [0.5, 1]])
def test_a_point_that_lacks_planned_seeds_beats_nothing_and_is_marked(tmp_path, others):
    """Two seeds of alpha=10.0 are gone. They may have worse scores, so its verdicts are no conclusions."""
    effects = {"random": 0.4, "alpha=0.1": 0.3, "alpha=1.0": 0.35, "alpha=10.0": 0.6}

    def metrics(trial):
        name = "random" if trial.baseline else f"alpha={trial.settings.alpha}"
        score = effects[name] + 0.05 * trial.settings.seed + NOISE[trial.settings.seed % 4] * (1 + len(trial.point) / 9)
        return dict.fromkeys(COLUMNS, score) | {"linear/val_accuracy": effects[name]}

    search = {"alpha": [0.1, 1, 10], "strength": others, "seed": [0, 1, 2, 3, 4]}
    store, sweep = fill_with(tmp_path, {"name": "s", "search": search, "baseline": True}, metrics)
    complete = build_tables(store, sweep)
    (gone,) = (point.title for point in complete.points if point.title.startswith("alpha=10.0,strength=0.5"))
    trend = next(line for line in complete.in_words() if line.startswith("With alpha"))
    assert " rises (Page's trend test, " in trend
    assert "planned seeds" not in trend
    assert "(incomplete)" not in (store.root / "summary.md").read_text()
    for trial in sweep.trials:
        if trial.point == gone and trial.settings.seed > 2:
            (store.trial(trial.name) / "result.json").unlink()
    report = build_tables(store, sweep)
    lines, text = report.in_words(scores=1), (store.root / "summary.md").read_text()
    assert not any("beats" in line and gone in line for line in lines)
    if len(others) == 1:
        score = "linear/test_accuracy"
        none = f"No point that has {score} in all its planned seeds beats the random encoder in {score}."
        assert lines[0].endswith(f"]. {none}")
    trend = next(line for line in report.in_words() if line.startswith("With alpha"))
    remark = f". {gone} lacks planned seeds, and the missing seeds may have worse scores."
    assert trend.endswith(remark) == (len(others) == 1), "the combination with strength=1.0 is complete, and used alone"
    for heading in ("## Difference from the random encoder", "## Difference from the best point"):
        table = text.split(f"{heading}\n")[1].split("\n## ")[0]
        marked = [row.split(" | ")[0] for row in table.splitlines() if "(incomplete)" in row]
        assert marked == [f"| {gone} (incomplete)"]
    assert [row[0] for row in points_table(report).rows if "incomplete" in row[0]] == [f"{gone} (incomplete)"]
    assert (
        "\n- Points that lack planned seeds, or lack the metric in some seeds, are marked as incomplete in the " in text
    )


@pytest.mark.parametrize("lacked", ["linear/val_accuracy", "linear/test_accuracy"])
def test_only_points_that_have_the_score_in_all_planned_seeds_may_beat_the_random_encoder(tmp_path, lacked):
    effects = {"random": 0.4, "alpha=0.1": 0.3, "alpha=1.0": 0.35, "alpha=10.0": 0.6}

    def metrics(trial):
        values = scores_of(effects, val={**effects, "alpha=10.0": 0.1})(trial)
        lacks = trial.point == "alpha=10.0" and trial.settings.seed == 3
        return {name: value for name, value in values.items() if not (lacks and name == lacked)}

    line = report_of(tmp_path, {"alpha": [0.1, 1, 10]}, metrics, baseline=True).in_words(scores=1)[0]
    score = "linear/test_accuracy"
    none = f"No point that has {score} in all its planned seeds"
    winner = none if lacked == score else "alpha=10.0"
    assert line.endswith(f"]. {winner} beats the random encoder in {score}.")


def test_all_seeds_of_a_point_failed(tmp_path):
    effects = {"alpha=0.1": 0.4, "alpha=1.0": 0.35}
    store, sweep = fill_with(tmp_path, {"name": "s", "search": {"seed": SEEDS, "alpha": [0.1, 1]}}, scores_of(effects))
    for trial in sweep.trials:
        if trial.point == "alpha=1.0":
            (store.trial(trial.name) / "result.json").unlink()
    assert "alpha=0.1 is the only point that can be ranked" in build_tables(store, sweep).in_words(scores=1)[0]


def fail(store, sweep, trials):
    """Give the trials results that failed."""
    for trial in sweep.trials:
        if trials(trial):
            path = store.trial(trial.name) / "result.json"
            result = {**json.loads(path.read_text()), "status": "failed", "error": "the loss became nan", "metrics": {}}
            path.write_text(json.dumps(result))


def test_a_point_whose_seeds_all_failed_is_named_in_one_sentence(tmp_path):
    effects = {"alpha=0.1": 0.4, "alpha=1.0": 0.35, "alpha=10.0": 0.3}
    store, sweep = fill_with(
        tmp_path, {"name": "s", "search": {"seed": SEEDS, "alpha": [0.1, 1, 10]}}, scores_of(effects)
    )
    fail(store, sweep, lambda trial: trial.point == "alpha=1.0")
    report = build_tables(store, sweep)
    assert report.doubts() == ["alpha=1.0 is not ranked: no seed finished."]
    assert "- alpha=1.0 is not ranked: no seed finished.\n" in (store.root / "summary.md").read_text()
    fail(store, sweep, lambda trial: True)
    report = build_tables(store, sweep)
    assert report.in_words() == ["No point is called best: no trial of any point finished."]
    assert report.doubts() == ["alpha=0.1, alpha=1.0 and alpha=10.0 are not ranked: no seed finished."]


def test_points_that_are_not_ranked_for_the_same_reason_share_a_sentence(tmp_path):
    values = [0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    effects = {f"alpha={value}": value for value in values}
    raw = {"name": "s", "search": {"seed": SEEDS, "alpha": values}}
    store, sweep = fill_with(tmp_path, raw, scores_of(effects))
    fail(store, sweep, lambda trial: trial.settings.alpha < 0.5 and trial.settings.seed == 3)
    fail(store, sweep, lambda trial: trial.settings.alpha == 0.5 and trial.settings.seed > 1)
    assert build_tables(store, sweep).doubts() == [
        "alpha=0.05, alpha=0.1, alpha=0.2 and 2 others are not ranked: 1 of the 4 seeds of each point did not finish.",
        "alpha=0.5 is not ranked: 2 of its 4 seeds did not finish.",
    ]


def test_why_there_is_no_random_encoder_is_said(tmp_path):
    raw = {"name": "s", "search": {"seed": [0, 1, 2], "alpha": [0.1, 1]}, "baseline": True}
    store, sweep = fill_with(tmp_path, raw, scores_of({"random": 0.2, "alpha=0.1": 0.4, "alpha=1.0": 0.35}))
    start = "There is no random encoder to compare with"

    def words():
        line = build_tables(store, sweep).in_words(scores=1)[0]
        return line[line.index(start) :]

    fail(store, sweep, lambda trial: trial.baseline)
    assert words() == f"{start}, because all 3 of its trials failed."
    for trial in sweep.trials:
        if trial.baseline and trial.settings.seed != 1:
            (store.trial(trial.name) / "result.json").unlink()
    assert words() == f"{start}, because none of its 3 trials has finished yet (1 failed)."
    (store.trial("random,seed=1") / "result.json").unlink()
    assert words() == f"{start}, because none of its 3 trials has finished yet."
    other = {"name": "b", "search": {"seed": [0, 1, 2], "alpha": [10]}}
    opened = [(store, sweep), fill_with(tmp_path, other, scores_of({"alpha=10.0": 0.3}))]
    assert read_several(opened).in_words(scores=1)[0].endswith(f"{start}.")


@pytest.mark.parametrize(("point", "name"), [("random", "The random encoder"), ("alpha=1.0", "alpha=1.0")])
def test_a_score_that_the_random_encoder_or_the_best_point_lacks_is_named(tmp_path, point, name):
    def metrics(trial):
        values = scores_of({"random": 0.2, "alpha=0.1": 0.3, "alpha=1.0": 0.4})(trial)
        return {key: value for key, value in values.items() if trial.point != point or key != "linear/test_accuracy"}

    report = report_of(tmp_path, {"alpha": [0.1, 1]}, metrics, baseline=True)
    value = "(0.4000, mean of 4 seeds)"
    line = f"alpha=1.0 is best by linear/val_accuracy {value}. {name} has no linear/test_accuracy."
    assert report.in_words(scores=1)[0] == line


@pytest.mark.parametrize("lacks_metric", [False, True])
def test_nothing_is_ranked_where_every_point_lacks_a_seed(tmp_path, lacks_metric):
    def metrics(trial):
        values = scores_of({"alpha=0.1": 0.4, "alpha=1.0": 0.35})(trial)
        return {name: value for name, value in values.items() if trial.settings.seed != 2 or "val" not in name}

    store, sweep = fill_with(tmp_path, {"name": "s", "search": {"seed": SEEDS, "alpha": [0.1, 1]}}, metrics)
    for trial in sweep.trials:
        if trial.settings.seed == 2 and not lacks_metric:
            (store.trial(trial.name) / "result.json").unlink()
    lines = build_tables(store, sweep).in_words()
    which = "has linear/val_accuracy in" if lacks_metric else "has"
    assert lines == [f"No point is called best: none of alpha=0.1 and alpha=1.0 {which} all its planned seeds."]


@pytest.mark.parametrize(
    ("metric", "value", "words", "width"),
    [
        ("pretrain/embedding_std", 1e-6, ["The embedding has collapsed in alpha=0.1."], 64),
        ("pretrain/rankme", 1.2, ["RankMe, the effective rank of the embedding, is low in alpha=0.1."], 64),
        ("pretrain/rankme", 50.0, ["RankMe, the effective rank of the embedding, is low in alpha=0.1."], 8192),
        ("pretrain/rankme", 60.0, [], 8192),  # it is at most 1,024, the number of images
        ("pretrain/last_fall", 0.3, ["The loss had not levelled off in alpha=0.1."], 64),
    ],
)
def test_what_makes_scores_doubtful_is_named(tmp_path, metric, value, words, width):
    healthy = {"pretrain/embedding_std": 0.5, "pretrain/rankme": 300.0, "pretrain/last_fall": 0.01}

    def metrics(trial):
        sick = trial.point == "alpha=0.1"
        return {
            **scores_of({"alpha=0.1": 0.3, "alpha=1.0": 0.5})(trial),
            **healthy,
            **({metric: value} if sick else {}),
        }

    report = report_of(tmp_path, {"alpha": [0.1, 1]}, metrics, base={"embedding_dim": width})
    assert cautions(report.groups) == words


def test_the_verdicts_of_a_page_agree(tmp_path):
    """A pair has one verdict: the sentence, the table of the best point and `differences.csv` say the same."""
    effects = {"random": 0.2, "alpha=0.1": 0.3, "alpha=1.0": 0.5, "alpha=10.0": 0.499}
    report = report_of(tmp_path, {"alpha": [0.1, 1, 10]}, scores_of(effects), baseline=True)
    text = (report.members[0].store.root / "summary.md").read_text()
    pair = (report.members[0].store.root / "differences.csv").read_text().splitlines()
    line = next(row for row in pair if row.startswith("alpha=1.0,alpha=10.0,linear/test_accuracy"))
    assert line.endswith("no difference shown")
    assert "the best point shows no difference from alpha=10.0" in text
    table = text.split("## Difference from the best point")[1]
    row = next(row for row in table.splitlines() if row.startswith("| alpha=10.0 |"))
    assert row.split("|")[4].strip() == "no difference shown"


def protocols_of(tmp_path, search, val, seeds=SEEDS, tests=None, **more):
    """Return the report of a sweep over `labels_per_class` and a search, with scores by name of the point."""

    def metrics(trial):
        name = trial.point
        test = (tests or val)[name] + 0.1 * trial.settings.seed + NOISE[trial.settings.seed] * (1 + len(name) / 9)
        return {**dict.fromkeys(COLUMNS, test), "linear/val_accuracy": val[name], **more}

    return report_of(tmp_path, {"labels_per_class": [1, 10], **search, "seed": seeds}, metrics)


def test_each_protocol_has_a_heading_and_what_all_share_is_said_once(tmp_path):
    val = {f"labels_per_class={n},alpha={a}": v for n, base in ((1, 0.2), (10, 0.5)) for a, v in
           ((0.1, base), (1.0, base + 0.1))}  # fmt: skip
    report = protocols_of(tmp_path, {"alpha": [0.1, 1]}, val, [0], **{"pretrain/rankme": 1.2})
    assert [heading for heading, _ in report.sections()] == [
        "With labels_per_class=1",
        "With labels_per_class=10",
        "For every protocol",
    ]
    assert report.in_words() == [
        "With labels_per_class=1:",
        "labels_per_class=1,alpha=1.0 has the best linear/val_accuracy (0.3000, one seed).",
        "With labels_per_class=10:",
        "labels_per_class=10,alpha=1.0 has the best linear/val_accuracy (0.6000, one seed).",
        "For every protocol:",
        "One seed cannot tell which differences are real.",
        "Next: run at least three seeds. `--resume DIR/NAME --set 'seed=[0,1,2]'` adds them to this sweep.",
    ]
    named_points = ", ".join(list(val)[:3])
    assert report.doubts() == [
        f"RankMe, the effective rank of the embedding, is low in {named_points} and {list(val)[3]}."
    ]
    text = (report.members[0].store.root / "summary.md").read_text()
    assert "\n\nWith labels_per_class=10:\n\n- labels_per_class=10,alpha=1.0 has the best" in text
    assert "`differences.csv` has all pairs of points of the same protocol." in text
    assert "so the points of each protocol are ranked separately." in text
    html = page(report, report.members[0].store.root)
    assert "<p>With labels_per_class=10:</p>\n<ul>\n<li>labels_per_class=10,alpha=1.0 has" in html


def sentences_in(text):
    """The headings and sentences before the first table of a `summary.md`."""
    lines = text.split("\n## ")[0].splitlines()
    kept = [line.removeprefix("- ") for line in lines[1:] if line.startswith("- ") or line.endswith(":")]
    return [line for line in kept if line]


@pytest.mark.parametrize("labels", [[1], [1, 10]])
def test_python_and_the_terminal_have_the_sentences_and_notes_of_the_summary(tmp_path, capsys, labels):
    def metrics(trial):
        score = 0.99 if trial.baseline else 0.5 + trial.settings.alpha / 100 + NOISE[trial.settings.seed]
        return dict.fromkeys(COLUMNS, score)

    search = {"labels_per_class": labels, "alpha": [0.1, 1], "seed": SEEDS}
    store, _ = fill_with(tmp_path, {"name": "s", "search": search, "baseline": True}, metrics)
    (store.root / f"labels_per_class=1,alpha=0.1,seed={SEEDS[-1]}" / "result.json").unlink()
    assert main(["report", str(store.root)]) == 1
    expected = sentences_in((store.root / "summary.md").read_text())
    saturated = next(line for line in expected if line.startswith("The random encoder already reaches more than 97 %"))
    sentences = raysweep.open(store.root).conclusions()
    assert sentences == [line for line in expected if line != "Note:" or len(labels) > 1]
    assert f"Note: {saturated}\n" in capsys.readouterr().out


def test_each_score_of_each_protocol_is_adjusted_alone(tmp_path):
    val = {f"labels_per_class={n},alpha={a}": a / 100 + n / 50 for n in (1, 10) for a in (0.1, 1.0, 10.0)}
    report = protocols_of(tmp_path, {"alpha": [0.1, 1, 10]}, val)
    assert len(report.groups) == 2
    for group in report.groups:
        for score in SCORES:
            alone = compare_pairs(np.array([point.values(score) for point in group.points]))
            titles = [point.title for point in group.points]
            expected = {(titles[first], titles[second]): difference for (first, second), difference in alone.items()}
            assert group.families[score].pairs == expected
    text = (report.members[0].store.root / "summary.md").read_text()
    assert "all comparisons of a table" not in text
    assert "Each score, each evaluation protocol and each control (such as the random encoder of one " in text


def test_a_point_that_is_alone_in_its_protocol_is_not_called_the_only_one(tmp_path):
    val = {"labels_per_class=1": 0.2, "labels_per_class=10": 0.5}
    lines = protocols_of(tmp_path, {}, val).in_words(scores=1)
    assert lines[1].startswith(
        "labels_per_class=1 is the only point of this protocol that can be ranked (linear/val_accuracy 0.2000, mean"
    )
    assert lines[3].startswith("labels_per_class=10 is the only point of this protocol that can be ranked (")


def test_protocols_that_no_single_setting_tells_apart_are_headed_by_their_points(tmp_path):
    search = {"probe_grid": [None, {"lr": [1e-4, 1e-3]}], "seed": SEEDS}
    report = report_of(tmp_path, search, lambda trial: dict.fromkeys(COLUMNS, 0.5), base={"le_lr": 5e-4})
    first, second = report.groups
    assert first.heading == "With probe_grid=None"
    assert second.heading.startswith("With probe_grid=")
    a, b = first.points[0], second.points[0]
    assert headings([[a, b], [b]]) == [f"Points {a.title} and {b.title}", f"Point {b.title}"]
    assert headings([[a, b]]) == [""]


def test_many_points_are_counted():
    class Titled:
        def __init__(self, title):
            self.title = title

    assert named([Titled("a")]) == "a"
    assert named([Titled("a"), Titled("b")]) == "a and b"
    assert named([Titled(name) for name in "abcd"]) == "a, b, c and d"
    assert named([Titled(name) for name in "abcdef"]) == "a, b, c and 3 others"


def test_a_sweep_of_many_points_compares_pairs_with_the_best_only(tmp_path):
    values = [round(0.1 + step / 100, 2) for step in range(60)]
    effects = {f"alpha={value}": 0.3 + value / 10 for value in values}
    report = report_of(tmp_path, {"alpha": values, "seed": [0, 1, 2]}, scores_of(effects))
    family = report.groups[0].families["linear/test_accuracy"]
    assert len(family.pairs) == 59
    assert all(values and f"alpha={values[-1]}" in pair for pair in family.pairs)


@pytest.mark.parametrize("metric", ["pretrain/loss", "knn/val_accuracy", "linear/val_accuracy"])
def test_the_metric_that_chooses_is_in_every_table(tmp_path, metric):
    losses = {"usl_lr=0.001": 0.00012, "usl_lr=0.01": 0.00008}

    def metrics(trial):
        value = losses[trial.point] if metric == "pretrain/loss" else 0.5 + 1000 * losses[trial.point]
        return dict.fromkeys(COLUMNS, 0.5) | {metric: value * (1 + trial.settings.seed / 10)}

    tune = {"metric": metric, "mode": "min" if metric == "pretrain/loss" else "max"}
    report = report_of(tmp_path, {"usl_lr": [0.001, 0.01]}, metrics, tune=tune)
    assert report.columns.count(metric) == 1
    header = metric.replace("_", " ").replace("/", "\n")
    assert header in [column.header for column in summary_table(report, 300)[0].columns]
    table = points_table(report)
    shown = [row[table.header.index(metric)] for row in table.rows]
    text = summary_md(report)
    assert all(f" {each} |" in text for each in shown)
    if metric == "pretrain/loss":
        assert [each.split(" ")[0] for each in shown] == ["0.0001380", "0.00009200"], "not 0.0001 for both"
        assert "usl_lr=0.01 is best by pretrain/loss (0.00009200, mean of 4 seeds)" in text
        assert "All scores except pretrain/loss are accuracies" in text
    else:
        assert all(re.fullmatch(r"0\.\d{4} ± 0\.\d{4}", each) for each in shown), "four decimals"
