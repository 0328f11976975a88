"""The ranking of points by measures without labels: τ against counted pairs, the chosen point, and what is left out."""

import itertools

import numpy as np
import pytest

from raysweep.report.building import read, read_several
from raysweep.report.choosing import agreement, rankings
from raysweep.report.points import COLUMNS
from raysweep.report.summary import summary_md
from tests.report.test_report import fill_with

SEARCH = {"usl_lr": [1e-4, 1e-3, 1e-2, 1e-1], "seed": [0, 1, 2]}


def counted_tau(x, y):
    """Return Kendall's τ-b: concordant minus discordant pairs, over the root of the untied pairs of x times of y."""
    pairs = list(itertools.combinations(range(len(x)), 2))
    signs_x, signs_y = ([np.sign(values[i] - values[j]) for i, j in pairs] for values in (x, y))
    return np.dot(signs_x, signs_y) / np.sqrt(np.count_nonzero(signs_x) * np.count_nonzero(signs_y))


def test_the_counted_tau_allows_for_ties():
    assert counted_tau([1, 2, 3, 4], [1, 2, 4, 3]) == pytest.approx(4 / 6)
    assert counted_tau([1, 2, 3], [1, 1, 2]) == pytest.approx(2 / np.sqrt(3 * 2)), "two pairs agree, and one is tied"


def noisy(trial):
    """Return a test score that grows with the learning rate, and measures that follow it more or less closely."""
    rng = np.random.default_rng([trial.settings.seed, *trial.point.encode()])
    score = 0.5 + np.log10(trial.settings.usl_lr) / 20
    return dict.fromkeys(COLUMNS, score + 0.02 * rng.normal()) | {
        "label_free/trunk_lidar": 10 + 20 * score + 0.5 * rng.normal(),
        "label_free/trunk_alpha_req": 1 + 0.5 * (0.5 - score),
        "pretrain/rankme": 100 * rng.random(),
        "pretrain/loss": score,
    }


def test_agreement_choice_and_loss_of_each_measure(tmp_path):
    store, sweep = fill_with(tmp_path, {"name": "r", "search": SEARCH}, noisy)
    report = read(store, sweep)
    [group] = report.groups
    found = {each.measure: each for each in rankings(group, COLUMNS[1])}
    assert list(found) == ["label_free/trunk_lidar", "label_free/trunk_alpha_req", "pretrain/rankme", "pretrain/loss"]
    for measure, sign in (("label_free/trunk_lidar", 1), ("pretrain/rankme", 1), ("pretrain/loss", -1)):
        taus = [
            counted_tau(
                [sign * point.scores(measure)[seed] for point in report.points],
                [point.scores(COLUMNS[1])[seed] for point in report.points],
            )
            for seed in (0, 1, 2)
        ]
        assert found[measure].agreement.mean == pytest.approx(np.mean(taus))
        assert found[measure].agreement.std == pytest.approx(np.std(taus, ddof=1))
    means = {point.name: np.mean(point.values(COLUMNS[1])) for point in report.points}
    assert found["label_free/trunk_alpha_req"].chosen[0].name == "usl_lr=0.1", "its α is nearest to 1"
    assert found["pretrain/loss"].chosen[0].name == "usl_lr=0.0001", "the smallest loss"
    assert found["pretrain/loss"].loss == pytest.approx(max(means.values()) - means["usl_lr=0.0001"])


def test_the_loss_of_a_choice_counts_a_best_point_without_the_measure(tmp_path):
    def best_lacks_lidar(trial):
        values = noisy(trial)
        if trial.settings.usl_lr == 1e-1:
            del values["label_free/trunk_lidar"]
            values |= dict.fromkeys(COLUMNS, 0.9)
        return values

    store, sweep = fill_with(tmp_path, {"name": "r", "search": SEARCH}, best_lacks_lidar)
    [group] = read(store, sweep).groups
    ranking = rankings(group, COLUMNS[1])[0]
    assert (ranking.measure, ranking.count) == ("label_free/trunk_lidar", 3)
    assert ranking.loss == pytest.approx(0.9 - ranking.score)
    assert ranking.loss > 0.3


def test_a_point_that_lacks_a_seed_is_neither_chosen_nor_the_best(tmp_path):
    def scored(trial):
        lacks = trial.settings.usl_lr == 1e-1
        return noisy(trial) | (dict.fromkeys(COLUMNS, 0.9) | {"label_free/trunk_lidar": 90.0} if lacks else {})

    store, sweep = fill_with(tmp_path, {"name": "r", "search": SEARCH}, scored)
    (store.trial("usl_lr=0.1,seed=2") / "result.json").unlink()
    report = read(store, sweep)
    [group] = report.groups
    for ranking in rankings(group, COLUMNS[1]):
        assert ranking.count == 3, ranking.measure
        assert [point.name for point in ranking.chosen] != ["usl_lr=0.1"]
        assert ranking.score + ranking.loss < 0.9
    known = agreement(report, "label_free/trunk_lidar")
    assert (known.points, known.unfinished) == (3, 1)
    assert "Points that lack linear/test_accuracy in a planned seed are left out." in summary_md(report)
    (store.trial("usl_lr=0.01,seed=0") / "result.json").unlink()
    report = read(store, sweep)
    assert "Choosing without labels" not in summary_md(report)
    assert agreement(report, "label_free/trunk_lidar") == (
        "fewer than 3 of its points have label_free/trunk_lidar and linear/test_accuracy in all their planned seeds"
    )


@pytest.mark.parametrize("seeds", [[0], [0, 1, 2]])
@pytest.mark.parametrize("lacked", ["linear/val_accuracy", "linear/test_accuracy"])
def test_only_points_that_lack_the_score_are_left_out_and_the_summary_says_so(tmp_path, lacked, seeds):
    def scored(trial):
        lacks = trial.settings.usl_lr == 1e-1 and trial.settings.seed in seeds
        return {name: value for name, value in noisy(trial).items() if not (lacks and name == lacked)}

    report = read(*fill_with(tmp_path, {"name": "r", "search": SEARCH}, scored))
    is_left_out = lacked == "linear/test_accuracy"
    assert {ranking.count for ranking in rankings(report.groups[0], COLUMNS[1])} == {3 if is_left_out else 4}
    text = summary_md(report)
    assert ("Points that lack linear/test_accuracy in a planned seed are left out." in text) == is_left_out


def test_the_sweep_says_that_too_few_points_have_the_measure(tmp_path):
    def scored(trial):
        lacks = trial.settings.usl_lr > 1e-3 and trial.settings.seed == 0
        return {name: value for name, value in noisy(trial).items() if not (lacks and name.endswith("lidar"))}

    report = read(*fill_with(tmp_path, {"name": "r", "search": SEARCH}, scored))
    assert agreement(report, "label_free/trunk_lidar") == (
        "fewer than 3 of its points have label_free/trunk_lidar and linear/test_accuracy in all their planned seeds"
    )


def test_a_point_that_lacks_a_measure_in_a_seed_is_not_chosen_by_it(tmp_path):
    def scored(trial):
        values = noisy(trial)
        if trial.settings.usl_lr == 1e-1:
            values["label_free/trunk_lidar"] = 90.0
            if trial.settings.seed == 2:
                del values["label_free/trunk_lidar"]
        return values

    [group] = read(*fill_with(tmp_path, {"name": "r", "search": SEARCH}, scored)).groups
    counts = {ranking.measure: ranking.count for ranking in rankings(group, COLUMNS[1])}
    assert counts.pop("label_free/trunk_lidar") == 3
    assert set(counts.values()) == {4}
    first = rankings(group, COLUMNS[1])[0]
    assert first.measure == "label_free/trunk_lidar"
    assert [point.name for point in first.chosen] != ["usl_lr=0.1"]


def test_the_summary_has_the_table_and_says_how_to_read_it(tmp_path):
    store, sweep = fill_with(tmp_path, {"name": "r", "search": SEARCH}, noisy)
    text = summary_md(read(store, sweep))
    section = text.partition("## Choosing without labels")[2].partition("\n## ")[0]
    assert (
        "| measure | points | Kendall's τ (95 %) | chosen point | linear/test_accuracy | below the best by |" in section
    )
    assert "| label_free/trunk_lidar | 4 | +" in section
    assert "none of the measures replaces labels" in section


@pytest.mark.parametrize("name", ["temperature", "batch_size"])
def test_losses_that_measure_different_things_are_left_out(tmp_path, name):
    values = {"temperature": [0.1, 0.2, 0.5], "batch_size": [10, 20, 40]}[name]
    raw = {"name": "r", "base": {"usl_type": "simclr"}, "search": {name: values, "seed": [0, 1, 2]}}
    store, sweep = fill_with(tmp_path, raw, noisy)
    [group] = read(store, sweep).groups
    assert "pretrain/loss" not in [each.measure for each in rankings(group, COLUMNS[1])]


OTHER_OBJECTIVES = [
    ({"usl_type": "simclr"}, {"usl_type": "vicreg"}, "usl_type"),
    ({"alpha": 1}, {"alpha": 2}, "alpha"),
    ({"emb_loss": "mse"}, {"emb_loss": "l1"}, "emb_loss"),
    ({"dataset": "cifar10", "probe_dataset": "stl10"}, {"dataset": "svhn", "probe_dataset": "stl10"}, "dataset"),
]


def two_sweeps(root, first, second, **tune):
    """Return two sweeps of the learning rate whose other settings are `first` and `second`."""

    def metrics(trial):
        values = noisy(trial)
        return values | {"pretrain/emb_loss": values["pretrain/loss"]}

    return [
        fill_with(root, {"name": name, "base": base, "search": {**SEARCH, "usl_lr": rates}, "tune": tune}, metrics)
        for name, base, rates in (("a", first, [1e-4, 1e-3]), ("b", second, [1e-2, 1e-1]))
    ]


@pytest.mark.parametrize(("first", "second", "name"), OTHER_OBJECTIVES, ids=str)
def test_losses_of_sweeps_with_other_objectives_are_left_out(tmp_path, first, second, name):
    comparison = read_several(two_sweeps(tmp_path / "chosen", first, second))
    assert "| label_free/trunk_lidar | 4 |" in summary_md(comparison)
    assert "| pretrain/loss |" not in summary_md(comparison)
    for metric in ("pretrain/loss", "pretrain/emb_loss") if name != "usl_type" else ("pretrain/loss",):
        comparison = read_several(two_sweeps(tmp_path / metric, first, second, metric=metric))
        assert (comparison.metric, comparison.ranked) == (None, [])
        words = f"No point is called best: {metric} cannot be compared between points that differ in {name}."
        assert comparison.in_words() == [words]


def test_losses_of_sweeps_with_one_objective_are_compared(tmp_path):
    """An encoder does not change what a loss measures. Without a value of its own, cropping has the strength 1 too."""
    first = {"strength": 1, "encoder": "conv6", "image_size": 8}
    second = {"strength": 1, "crop_strength": 1, "encoder": "resnet18"}  # the side of the digits is 8
    comparison = read_several(two_sweeps(tmp_path / "chosen", first, second))
    assert "| pretrain/loss | 4 |" in summary_md(comparison)
    comparison = read_several(two_sweeps(tmp_path / "loss", first, second, metric="pretrain/loss"))
    assert comparison.metric == "pretrain/loss"
    assert comparison.in_words()[0].startswith("a/usl_lr=0.0001 is best by pretrain/loss")


def test_losses_on_changed_images_are_not_compared(tmp_path):
    """The images of one name may have changed between two sweeps. Their losses are then not comparable."""
    opened = []
    for name, rates in (("a", [1e-4, 1e-3]), ("b", [1e-2, 1e-1])):
        raw = {"name": name, "search": {**SEARCH, "usl_lr": rates}, "tune": {"metric": "pretrain/loss"}}
        opened.append(fill_with(tmp_path, raw, noisy, {"digits 8×8": name}))
    words = "pretrain/loss cannot be compared between points that differ in the pretraining images."
    assert read_several(opened).in_words() == [f"No point is called best: {words}"]


def test_without_measures_or_with_two_points_there_is_no_section(tmp_path):
    def plain(trial):
        return {name: value for name, value in noisy(trial).items() if not name.startswith("label_free")}

    store, sweep = fill_with(tmp_path / "plain", {"name": "p", "search": SEARCH}, plain)
    assert "Choosing without labels" not in summary_md(read(store, sweep))
    two = {**SEARCH, "usl_lr": [1e-3, 1e-2]}
    store, sweep = fill_with(tmp_path / "two", {"name": "t", "search": two}, noisy)
    assert "Choosing without labels" not in summary_md(read(store, sweep))
