"""A race of seeds keeps the familywise error over all its looks, and gives seeds only to points that need them."""

import math
import sys
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
from scipy import stats

from raysweep import plugins, space
from raysweep.data.selection import data_of
from raysweep.report import building, racing, statistics, verdicts
from raysweep.report.points import confidence, estimate, percent
from raysweep.report.race_words import race_sentences
from raysweep.report.shapes import compare_shape
from raysweep.report.statistics import compare_pairs, compare_with_control
from raysweep.results.attempts import begin_attempt
from raysweep.results.result import make_result, write_result
from raysweep.results.store import Store
from raysweep.results.sweep_file import write_race
from raysweep.space import Race
from tests.report.simulation import Simulation
from tests.report.test_report import COLUMNS, fill_with
from tests.support import ROOT

POINTS, TABLES = 7, 2000
LONG = Race(most=10)
MARGIN = 2.6 * math.sqrt(0.05 * 0.95 / TABLES)
"""A binomial share of 5 % exceeds 5 % by more than this in 0.5 % of cases."""


@pytest.fixture(scope="module")
def simulator():
    """The module `benchmarks/racing.py`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield import_module("racing")
        sys.modules.pop("racing", None)


def false_differences(spread):
    """Return, for tables of equal points, whether any look shows a pair that differs, or a point and its control.

    Equal points leave a race only after a false difference. So every table is complete until its first error.
    """
    random = np.random.default_rng(16)
    tables = random.standard_normal((TABLES, 1, LONG.most))  # the seeds
    tables = tables + np.asarray(spread)[:, None] * random.standard_normal((TABLES, POINTS + 1, LONG.most))
    pairs, controls = np.zeros(TABLES, bool), np.zeros(TABLES, bool)
    for seeds in range(LONG.least, LONG.most + 1):
        pairs |= Simulation(tables[:, 1:, :seeds], LONG.looks * 2).pairs.any(0)
        controls |= Simulation(tables[:, :, :seeds], LONG.looks * 2).from_control(0).any(0)
    return pairs, controls


def test_equal_points_show_a_false_difference_at_any_look_in_at_most_5_percent_of_races():
    pairs, controls = false_differences(np.ones(POINTS + 1))
    assert (pairs | controls).mean() <= 0.05 + MARGIN
    assert (pairs | controls).mean() > 0.01, "the correction is not far too strict"


def test_without_the_correction_looks_show_more_false_differences():
    random = np.random.default_rng(3)
    tables = random.standard_normal((TABLES, POINTS, LONG.most))
    looks = range(LONG.least, LONG.most + 1)
    uncorrected = np.any([Simulation(tables[:, :, :seeds]).pairs.any(0) for seeds in looks], 0)
    assert uncorrected.mean() > 0.05 + MARGIN


def test_a_race_with_a_true_effect_needs_fewer_trials_than_all_seeds(simulator):
    outcomes = simulator.simulate(LONG, [-3.0, 6.0] + [0.0] * 6, races=12)
    assert np.mean([each.trials for each in outcomes]) < 0.5 * POINTS * LONG.most
    assert all(each.separated and each.best == 0 for each in outcomes)


@pytest.mark.parametrize("divisor", [1, 8])
def test_every_interval_and_test_has_its_part_of_the_error(divisor):
    alpha, points, seeds = 0.05 / divisor, 5, 6
    values = np.random.default_rng(0).standard_normal((points, seeds)) + np.arange(points)[:, None] / 2
    fit = statistics.fit_blocks(values)
    pair = compare_pairs(values, divisor=divisor)[0, 1]
    error = math.sqrt(2 * fit.variance / seeds)
    critical = stats.studentized_range.isf(alpha, points, fit.df) / math.sqrt(2)
    if (statistics.spread_test(values) or 1) >= statistics.DOUBT_LEVEL:
        assert (pair.high - pair.low) / 2 == pytest.approx(critical * error, rel=1e-3)
    critical = statistics._quadrature_critical("tukey", points, fit.df, alpha)
    assert critical == pytest.approx(stats.studentized_range.isf(alpha, points, fit.df) / math.sqrt(2), abs=1e-3)
    expected = stats.dunnett(*values[1:], control=values[0], random_state=0).confidence_interval(1 - alpha)
    assert np.isfinite(expected.low).all()
    assert compare_shape(values, divisor=divisor).p_rises == pytest.approx(
        min(1, 3 * divisor * stats.page_trend_test(values.T).pvalue)
    )
    interval = stats.t.interval(1 - alpha, seeds - 1, values[0].mean(), stats.sem(values[0]))
    assert (estimate(values[0], divisor).low, estimate(values[0], divisor).high) == pytest.approx(interval)
    assert confidence(divisor) == pytest.approx(1 - alpha)
    assert compare_with_control(values, 0, divisor)[1].low <= compare_with_control(values, 0)[1].low


def scores_of_race(race, names, truth, state):
    """Return a table of scores and one of the metric that ranks: by name and seed."""
    random = np.random.default_rng(state)
    noise = random.standard_normal((2, len(names), race.most)) * 0.02
    seeds = random.standard_normal(race.most) * 0.05
    scores = 0.5 + np.asarray(truth)[:, None] + seeds + noise[0]
    return scores, scores + 0.5 * noise[1]


@pytest.mark.parametrize(
    ("truth", "state"), [([-0.2, 0, 0.02, 0.2], 0), ([0, 0, 0, 0.01], 1), ([-0.3, 0.3, 0.3, 0], 2)]
)
def test_the_simulated_rule_is_the_rule_of_the_report(truth, state, simulator, tmp_path):
    raw = {"name": "r", "search": {"alpha": [0.1, 1, 10]}, "seeds": {"most": 6}, "baseline": True}
    names = ["random", "alpha=0.1", "alpha=1.0", "alpha=10.0"]
    race = Race(most=6)
    scores, metric = scores_of_race(race, names, truth, state)

    def metrics(trial):
        place = names.index(trial.point), trial.settings.seed
        return {**dict.fromkeys(COLUMNS, scores[place]), "linear/val_accuracy": metric[place]}

    store, sweep = fill_with(tmp_path, raw, metrics)
    report = race_to_the_end(store, sweep, metrics)
    simulated = simulator.run(race, scores, metric, np.asarray(truth, dtype=float))
    ended = report.members[0].sweep
    assert sum(not trial.baseline for trial in ended.trials) == simulated.trials
    assert (ended.race_end == "settled") == simulated.separated
    assert report.ranked[0][0].name == names[1 + simulated.best]
    again = Store.open(store.root)[1]
    assert (again.trials, again.rounds, again.race_end) == (ended.trials, ended.rounds, ended.race_end)


def race_to_the_end(store, sweep, metrics):
    """Run the rounds of a race whose trials have made-up metrics; returns the report at its end."""
    while True:
        sweep = racing.decide(building.read(store, sweep))
        write_race(store.root, sweep)
        if sweep.race_end:
            return building.read(store, sweep)
        for trial in sweep.trials:
            if store.result(trial.name) is None:
                finish(store, trial, metrics(trial))


def finish(store, trial, metrics, digest="d"):
    """Write the result of a trial."""
    directory = store.trial(trial.name)
    begin_attempt(directory, trial.settings)
    options = {"error": None, "metrics": metrics, "wall_s": 1.0, "device": "cpu", "warnings": [], "status": "finished"}
    write_result(directory, make_result(trial, digest, directory, **options))


def test_only_points_that_are_not_separated_get_more_seeds_and_the_summary_says_so(tmp_path):
    raw = {"name": "r", "search": {"alpha": [0.1, 1, 10]}, "seeds": {"most": 5}, "baseline": True}
    effects = {"random": 0.1, "alpha=0.1": 0.5, "alpha=1.0": 0.5, "alpha=10.0": 0.3}

    def metrics(trial):
        seed = trial.settings.seed
        place = list(effects).index(trial.point)
        value = effects[trial.point] + 0.05 * seed + 0.004 * math.sin(7 * place + 3 * seed)
        return dict.fromkeys([*COLUMNS, "linear/val_accuracy"], value)

    store, sweep = fill_with(tmp_path, raw, metrics)
    report = race_to_the_end(store, sweep, metrics)
    building.build_report(*Store.open(store.root))
    counts = {point.name: len(point.by_seed) for point in report.points}
    assert counts == {"random": 3, "alpha=0.1": 5, "alpha=1.0": 5, "alpha=10.0": 3}
    assert report.in_words()[-1] == (
        "Every point started with 3 seeds; more seeds went to the best point, alpha=1.0 (5), and to alpha=0.1 (5), "
        "whose comparison with the best point was open. The race ended because the points that are not separated have "
        "all their seeds (16 of at most 20 trials)."
    )
    summary = (store.root / "summary.md").read_text()
    assert "divide the error of 5 % into 6 equal parts (Bonferroni). So every interval is at 99.167 %" in summary
    assert percent(report.points) == "99.167 %"
    assert "95 %" not in summary, "every interval has the level of the race"
    assert "95 %" not in (store.root / "report.html").read_text().partition("<script")[0]
    for name in ("summary.csv", "differences.csv"):
        header = (store.root / name).read_text().splitlines()[0]
        assert "99.167_low" in header
        assert "95" not in header


def test_a_round_that_is_not_complete_changes_no_verdict(tmp_path):
    raw = {"name": "r", "search": {"alpha": [0.1, 1]}, "seeds": {"most": 4}}
    store, sweep = fill_with(tmp_path, raw, lambda trial: dict.fromkeys(COLUMNS, 0.5 + trial.settings.seed / 10))
    before = building.build_report(store, sweep).in_words()
    grown = space.add_round(sweep, space.Round(4, ("alpha=0.1", "alpha=1.0")))
    finish(store, grown.trials[-1], dict.fromkeys(COLUMNS, 0.9))
    report = building.read(store, grown)
    assert [len(point.by_seed) for point in report.points] == [3, 3]
    assert [line for line in report.in_words() if "seeds" not in line] == [x for x in before if "seeds" not in x]


def test_the_control_of_a_round_that_is_not_complete_changes_no_difference(tmp_path):
    def metrics(trial):
        return dict.fromkeys(COLUMNS, (len(trial.point) % 7 + trial.settings.seed * (2 if trial.baseline else 1)) / 50)

    raw = {"name": "r", "search": {"alpha": [0.1, 1]}, "seeds": {"most": 6}, "baseline": True}
    store, sweep = fill_with(tmp_path, raw, metrics)
    grown = space.add_round(sweep, space.Round(4, ("alpha=0.1", "alpha=1.0")))
    for trial in grown.trials[-1], next(trial for trial in grown.trials if trial.name == "alpha=0.1,seed=3"):
        finish(store, trial, metrics(trial))
    before = building.build_report(store, grown)
    written = (store.root / "differences.csv").read_text(), before.in_words()
    grown = space.add_round(grown, space.Round(5, ("alpha=0.1", "random")))
    late = [trial for trial in grown.trials if store.result(trial.name) is None]
    assert [trial.name for trial in late] == ["random,seed=3", "random,seed=4", "alpha=0.1,seed=4"]
    for trial in late[:2]:
        finish(store, trial, dict.fromkeys(COLUMNS, 0.9))
        report = building.build_report(store, grown)
        assert (store.root / "differences.csv").read_text() == written[0]
        assert [line for line in report.in_words() if "seeds" not in line] == [
            line for line in written[1] if "seeds" not in line
        ]
        point = next(point for point in report.points if point.name == "alpha=0.1")
        assert sorted(point.controls["random"]) == [0, 1, 2]
    finish(store, late[2], metrics(late[2]))
    point = next(point for point in building.read(store, grown).points if point.name == "alpha=0.1")
    assert sorted(point.controls["random"]) == [0, 1, 2, 3, 4]


def test_a_race_that_cannot_compare_anything_ends(tmp_path):
    raw = {"name": "r", "search": {"alpha": [0.1, 1]}, "seeds": {"most": 4}}
    store, sweep = fill_with(tmp_path, raw, lambda trial: {})
    assert racing.decide(building.read(store, sweep)).race_end == "incomparable"
    equal = fill_with(tmp_path, {**raw, "name": "e"}, lambda trial: dict.fromkeys(COLUMNS, trial.settings.seed / 10))
    ended = racing.decide(building.read(*equal))
    assert ended.race_end == "settled", "equal scores stay equal with more seeds"
    write_race(equal[0].root, ended)
    first, *_, last = building.read(*Store.open(equal[0].root)).in_words()
    assert first.startswith("No point is best: alpha=0.1 and alpha=1.0 are equal in ")
    assert last == (
        "Every point started with 3 seeds, and none got more. The race ended because more seeds could not settle any "
        "further comparison (6 of at most 8 trials)."
    )
    assert racing.round_words(ended) == "the race has ended: more seeds could not settle any further comparison"
    assert racing.decide(building.read(equal[0], replace(equal[1], race_end="budget"))).race_end == "settled"


STRIPES = """\
from typing import Annotated

import numpy as np
import raysweep


@raysweep.dataset(size=8, channels=1)
def stripes(request, *, stripe_noise: Annotated[float, 'How noisy.'] = 0.1):
    '''Vertical and horizontal stripes with noise.'''
    random = np.random.default_rng(0)
    labels = np.arange(40) % 2
    images = np.zeros((40, 1, 8, 8))
    images[labels == 0, :, ::2] = images[labels == 1, :, :, ::2] = 0.5
    images += stripe_noise * random.random(images.shape)
    return raysweep.Dataset.from_numpy(images[:30], labels[:30], images[30:], labels[30:])
"""
SEVERAL = {"alpha": [0.1, 1]}
SPACES = {
    "two sizes": {"search": {"image_size": [8, 16], **SEVERAL}},
    "the size of the data set": {"search": {"dataset": ["digits", "digits_m"], **SEVERAL}},
    "two pretraining sets of other sizes": {
        "base": {"probe_dataset": "digits"}, "search": {"dataset": ["digits", "digits_m"], **SEVERAL},
    },
    "two pretraining sets of other channels": {
        "base": {"probe_dataset": "digits", "image_size": 8}, "search": {"dataset": ["digits", "digits_m"], **SEVERAL},
    },
    "an evaluated plugin": {
        "base": {"probe_dataset": "stripes"}, "search": {"stripe_noise": [0.1, 0.3], **SEVERAL},
    },
    "a plugin of pretraining": {
        "base": {"dataset": "stripes", "probe_dataset": "digits"}, "search": {"stripe_noise": [0.1, 0.3], **SEVERAL},
    },
    "few labels": {"search": {"labels_per_class": [1, 5], **SEVERAL}},
    "two encoders": {"search": {"encoder": ["conv6", "resnet18"], "image_size": [8, 16], **SEVERAL}},
    "a method": {"search": [{"usl_type": ["simclr"], "temperature": [0.1, 1]}, {"alpha": [1]}]},
}  # fmt: skip


@pytest.fixture
def _stripes():
    plugins.activate([plugins.Plugin("stripes.py", STRIPES)])
    yield
    plugins.activate(())


def count_tables_of(report, monkeypatch):
    """Return how many tables a report compares for one score: pairs of points, and points with a control."""
    judged = []

    def counted(compare):
        return lambda *arguments: judged.append(compare) or compare(*arguments)

    for compare in (compare_pairs, compare_with_control):
        monkeypatch.setattr(verdicts, compare.__name__, counted(compare))
    verdicts.judge(report.points, report.ranked, COLUMNS[:1], [])
    return len(judged)


@pytest.mark.usefixtures("_stripes")
@pytest.mark.parametrize("controls", [[], ["random", "pixels", "pca"]], ids=len)
@pytest.mark.parametrize("name", SPACES)
def test_the_error_is_divided_among_as_many_tables_as_the_report_has(name, controls, tmp_path, monkeypatch):
    raw = {"name": "r", "seeds": {"most": 10}, "baseline": controls, **SPACES[name]}
    sweep, datasets = space.build(raw, {}, "raw.yaml"), {}

    def digest(trial):
        return data_of(trial, datasets, load=True).probe.digest

    store = Store.plan(tmp_path, None, sweep.name)
    store.create(sweep, {})
    for trial in sweep.trials:
        finish(store, trial, dict.fromkeys(COLUMNS, len(trial.name) / 100), digest(trial))
    tables = count_tables_of(building.read(store, sweep), monkeypatch)
    if name == "a plugin of pretraining":  # its images may have other channels than it declares
        assert sweep.divisor >= sweep.race.looks * tables
    else:
        assert sweep.divisor == sweep.race.looks * tables


def test_a_comparison_divides_the_error_among_the_controls_of_all_sweeps(tmp_path, monkeypatch):
    raws = [
        {"name": "a", "search": SEVERAL, "seeds": {"most": 6}, "baseline": ["random"]},
        {"name": "b", "search": {"alpha": [10]}, "seeds": {"most": 10}, "baseline": ["pixels", "pca"]},
        {"name": "c", "base": {"encoder": "resnet18"}, "search": {"alpha": [1], "seed": [0, 1]}, "baseline": True},
    ]
    several = [fill_with(tmp_path, raw, lambda trial: dict.fromkeys(COLUMNS, 0.5)) for raw in raws]
    report = building.read_several(several)
    tables = count_tables_of(report, monkeypatch)
    assert tables == 5, "the pairs, the random encoders of two architectures, the pixels and their components"
    assert {point.divisor for point in report.points} == {8 * tables}


def test_the_names_of_a_race_are_shortened_and_its_advice_is_possible(tmp_path):
    search = {"alpha": [0.1, 1, 2, 3, 4, 5, 6, 10]}
    raw = {"name": "r", "search": search, "seeds": {"least": 2, "most": 4}}
    scores = {value: 0.5 + 0.01 * place for place, value in enumerate(search["alpha"])}

    def metrics(trial):
        return dict.fromkeys(COLUMNS, scores[trial.settings.alpha] + 0.1 * trial.settings.seed)

    store, sweep = fill_with(tmp_path, raw, metrics)
    words = building.read(store, replace(sweep, race_end="budget")).in_words()
    assert "Next: resume the race; a verdict needs three seeds." in words
    assert not any("--set" in line for line in words if line.startswith("Next"))
    names = [f"alpha={float(value)}" for value in search["alpha"]]
    grown = space.add_round(sweep, space.Round(3, tuple(names)))
    best, *others = (f"{name} (3)" for name in reversed(names))
    text = " ".join(race_sentences(grown, 5, ["alpha=10.0"]))
    behind = f"{', '.join(list(reversed(others))[:5])} and 2 others"
    assert f"more seeds went to the best point, {best}, and to {behind}, whose comparison with" in text
    seven = space.add_round(sweep, space.Round(3, tuple(names[1:])))
    assert " and 1 others" not in " ".join(race_sentences(seven, 5, ["alpha=10.0"]))
    assert "more seeds went to alpha=0.1 (3)" in " ".join(race_sentences(grown, 9, []))
    assert " (3), whose comparisons were open." in " ".join(race_sentences(grown, 9, []))
