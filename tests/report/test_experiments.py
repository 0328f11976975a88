"""Experiments of several sweeps: they count once, with the seeds of all sweeps, and missing seeds do not mislead."""

import csv
import io
import math

import numpy as np
import pytest
from scipy import stats

from raysweep.report.building import read_several
from raysweep.report.ranking import adjusted_means, connected
from raysweep.report.summary import overview, summary_md
from raysweep.report.tables import differences_csv, summary_csv
from tests.report.test_report import COLUMNS, fill_with, made_up

SCORE = "linear/test_accuracy"


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
        fill_with(tmp_path, {"baseline": True, "name": name, "search": {"alpha": list(alphas), "seed": each}}, metrics)
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
    assert "A difference is a mean over the n seeds that both have." in text, "no seed is missing"
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


def compared(tmp_path, *sweeps, **raw):
    """Compare sweeps, each from its values of α, its seeds and a shift of all its validation accuracies."""
    opened = []
    for name, (alphas, seeds, shift) in zip("abc", sweeps, strict=False):

        def metrics(trial, shift=shift):
            effect = 0.1 if trial.baseline else {0.1: 0.5, 1: 0.53, 10: 0.3}[trial.settings.alpha]
            noise = 0.001 * math.sin(7 * trial.settings.seed + 100 * effect)
            return dict.fromkeys(COLUMNS, effect + noise + shift)

        search = {"alpha": alphas, "seed": seeds}
        opened.append(fill_with(tmp_path, {"name": name, "search": search, **raw}, metrics))
    return read_several(opened)


def test_a_point_that_is_worse_in_every_shared_seed_is_not_best(tmp_path):
    """Sweep b has only the worse α, with seeds whose scores happen to be higher."""
    report = compared(tmp_path, ([0.1, 1], [0, 1, 2], 0), ([0.1], [3, 4, 5], 0.2))
    assert report.best == {"a/alpha=1.0"}
    one, best, other = (point.scores(COLUMNS[0]) for point in report.points)
    assert all(best[seed] > one[seed] for seed in best)
    assert np.mean(list(best.values())) < np.mean([*one.values(), *other.values()])
    mean = np.mean([*one.values(), *other.values()]) + np.mean([best[seed] - one[seed] for seed in best])
    assert report.in_words()[0].startswith(
        f"a/alpha=1.0 is best by linear/val_accuracy ({mean:.4f}, mean of 3 seeds, adjusted for missing seeds)"
    )


def test_a_shared_seed_does_not_rank_sweeps_of_many_seeds_alone(tmp_path):
    """Only seed 0 has all points, and there the order is the reverse one by accident."""
    ranks = {"a/alpha=0.1": 0, "a/alpha=1.0": 1, "b/strength=0.2": 2}
    tables, opened = [], []
    for name, search in (("a", {"alpha": [0.1, 1], "seed": list(range(6))}), ("b", {"strength": [0.2], "seed": [0]})):

        def metrics(trial, name=name):
            place, seed = ranks[f"{name}/{trial.point}"], trial.settings.seed
            tables.append((place, seed, 0.5 + 0.02 * (place if seed else -place) + 0.01 * seed))
            return dict.fromkeys(COLUMNS, tables[-1][2])

        opened.append(fill_with(tmp_path, {"name": name, "search": search}, metrics))
    report = read_several(opened)
    cells = np.array(tables)
    design = np.hstack([np.eye(3)[cells[:, 0].astype(int)], np.eye(6)[cells[:, 1].astype(int)]])
    effects = np.linalg.lstsq(design, cells[:, 2], rcond=None)[0][:3]
    assert [ranks[point.title] for point in report.ranked[0]] == np.argsort(-effects).tolist()
    assert report.best == {"a/alpha=1.0"}


def test_adjusted_means_are_the_least_squares_effects_of_points_and_seeds():
    random = np.random.default_rng(3)
    for _ in range(20):
        table = random.normal(size=(4, 6)) + random.normal(size=(4, 1)) + 3 * random.normal(size=6)
        table[1:, :5][random.random((3, 5)) < 0.4] = np.nan  # the first point has all seeds, and all have the last one
        point, seed = np.nonzero(~np.isnan(table))
        design = np.hstack([np.eye(4)[point], np.eye(6)[seed]])
        effects = np.linalg.lstsq(design, table[point, seed], rcond=None)[0]
        scores = [{n: float(x) for n, x in enumerate(row) if not np.isnan(x)} for row in table]
        assert adjusted_means(scores) == pytest.approx((effects[:4] + effects[4:].mean()).tolist())
        assert adjusted_means(scores)[0] == pytest.approx(table[0].mean()), "a point with all seeds has its plain mean"
    assert adjusted_means([{0: 0.1, 1: 0.3}, {1: 0.5, 0: 0.7}]) == pytest.approx([0.2, 0.6])


@pytest.mark.parametrize(
    ("seeds", "expected"),
    [
        ([{0, 1}, {1, 2}, {2, 3}], [True, True, True]),
        ([{0, 1}, {2, 3}, {1, 2}], [True, True, True]),
        ([{0, 1}, {2, 3}, {3}], [True, False, False]),
        ([{0}], [True]),
    ],
)
def test_points_are_connected_by_shared_seeds_also_through_other_points(seeds, expected):
    assert connected([dict.fromkeys(each, 0.5) for each in seeds]) == expected


def test_no_point_is_best_where_no_shared_seeds_connect_the_points(tmp_path):
    report = compared(tmp_path, ([0.1], [0, 1, 2], 0), ([1], [3, 4, 5], 0.2), baseline=True)
    assert report.best == set()
    assert report.in_words(scores=1) == [
        "No point is best: no shared seeds connect b/alpha=1.0 with a/alpha=0.1, so their means cannot be compared.",
        "a/alpha=0.1 and b/alpha=1.0 beat the random encoder in linear/test_accuracy.",
    ]
    assert "Difference from the best point" not in summary_md(report)


def test_points_that_only_other_points_connect_are_not_said_to_show_no_difference(tmp_path):
    report = compared(tmp_path, ([0.1], [0, 1, 2], 0), ([1], [3, 4, 5], 0), ([10], list(range(6)), 0))
    sentences = " ".join(report.in_words(scores=1))
    assert "b/alpha=1.0 is best by" in sentences
    assert "shows no difference from a/alpha=0.1" not in sentences
    assert "Nothing is shown about a/alpha=0.1, because no interval can be computed." in sentences


def test_no_measure_chooses_where_no_shared_seeds_connect_the_points(tmp_path):
    measures = ("label_free/embedding_rankme", "label_free/trunk_lidar")

    def metrics(trial):
        tests = {} if trial.settings.probe_labels is False else dict.fromkeys(COLUMNS, 0.5 + trial.settings.alpha / 100)
        return tests | dict.fromkeys(measures, 5 + trial.settings.alpha + trial.settings.seed)

    for labels in (True, False):
        opened = [
            fill_with(
                tmp_path / str(labels),
                {"name": name, "base": {"label_free": True, "probe_labels": labels}, "search": search},
                metrics,
            )
            for name, search in (
                ("a", {"alpha": [0.1, 0.5, 1], "seed": [0, 1, 2]}),
                ("b", {"alpha": [2], "seed": [3, 4, 5]}),
            )
        ]
        report = read_several(opened)
        if labels:
            (row,) = (line for line in summary_md(report).splitlines() if line.startswith("| label_free/trunk_lidar |"))
            assert row == "| label_free/trunk_lidar | 4 | +1.00 [+1.00, +1.00] | – | – | – |"
        else:
            sentences = " ".join(report.in_words())
            assert sentences.startswith(
                f"{measures[0]} chooses no point: no shared seeds connect b/alpha=2.0 with a/alpha=1.0, a/alpha=0.5 "
                "and a/alpha=0.1, so their means cannot be compared."
            )
            assert "trunk_lidar choose" not in sentences


@pytest.mark.parametrize(
    ("searches", "expected"),
    [
        (
            [{"alpha": [0.1, 1], "seed": [0, 1, 2]}, {"alpha": [1, 0.1], "seed": [3, 4]}],
            ["| seed | 0, 1 and 2 | 3 and 4 |"],
        ),
        (
            [{"alpha": [0.1, 1], "strength": [0.5], "seed": [0]}, {"alpha": [0.1, 10], "strength": [1], "seed": [0]}],
            ["| alpha | 0.1 and 1.0 | 0.1 and 10.0 |", "| strength | 0.5 | 1.0 |"],
        ),
        (
            [{"alpha": [0.1, 1], "seed": list(range(9))}, {"usl_type": ["simclr"], "seed": list(range(9))}],
            ["| usl_type | ae_parallel | simclr |", "| alpha | 0.1 and 1.0 | – |"],
        ),
        ([{"alpha": [0.1, 1], "seed": [0, 1]}, {"alpha": [1, 0.1], "seed": [1, 0]}], []),
    ],
)
def test_the_table_of_settings_has_exactly_the_settings_that_differ_between_sweeps(tmp_path, searches, expected):
    opened = [
        fill_with(tmp_path, {"name": name, "search": search}, lambda trial: dict.fromkeys(COLUMNS, 0.5))
        for name, search in zip("ab", searches, strict=True)
    ]
    text = "\n".join(overview(read_several(opened)))
    assert ("Where the sweeps' settings differ:" in text) == bool(expected)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    known = [row for row in rows if row.split()[1] in ("seed", "alpha", "strength", "usl_type")]
    assert sorted(known) == sorted(expected), text
    assert not [row for row in rows[2:] if len(set(row.split(" | ")[1:])) == 1]
