"""Tables, intervals and figures, against SciPy and by hand."""

import csv
import io

import numpy as np
import pytest
from scipy import stats

from raysweep import report, space, store
from raysweep.errors import InputError
from raysweep.store import Store

SWEEP = space.build(
    {
        "name": "demo",
        "search": {"alpha": {"grid": [1e-5, 1e-2, 10]}, "seed": {"grid": [0, 1, 2]}},
        "baseline": True,
    },
    {},
    "demo.yaml",
)
EFFECT = {"random": 0.0, "alpha=1e-05": 0.0, "alpha=0.01": 0.05, "alpha=10.0": -0.2}


def score(trial, metric):
    """A made-up score: an effect of the point, a large one of the seed, a little noise of both and the metric."""
    noise = np.random.default_rng([trial.settings.seed, *map(ord, trial.point + metric)]).normal() * 0.004
    return float(0.5 + EFFECT[trial.point] + 0.1 * trial.settings.seed + noise)


def fill(tmp_path, sweep=SWEEP, leave_out=(), failed=(), digest=lambda trial: "digest"):
    """A store with a result for every trial, as if the sweep had run."""
    made = Store.plan(tmp_path, None, sweep.name)
    made.create(sweep, {})
    for trial in sweep.trials:
        if trial.name in leave_out:
            continue
        directory = made.trial(trial.name)
        store.begin_attempt(directory, trial.settings)
        broken = trial.name in failed
        result = store.make_result(
            trial,
            digest(trial),
            directory,
            error="the loss became nan" if broken else None,
            metrics={} if broken else {name: score(trial, name) for name in report.COLUMNS},
            wall_s=1.0,
            device="cpu",
            warnings=[],
        )
        store.write_result(directory, result)
    return made


def rows(path):
    with open(path) as file:
        return list(csv.DictReader(file))


def test_reference_intervals_equal_scipy(tmp_path):
    values = [0.3, 0.5, 0.45, 0.7]
    of = report.estimate(values)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (of.low, of.high) == pytest.approx((low, high))
    assert (of.n, of.mean, of.std) == pytest.approx((4, np.mean(values), np.std(values, ddof=1)))


def test_one_seed_has_no_interval():
    assert report.estimate([0.5]) == report.Estimate(1, 0.5, None, None, None)
    assert report.estimate([]) is None


def test_summary_has_a_row_per_point_and_pairs_by_seed(tmp_path):
    made = fill(tmp_path)
    report.build(made, SWEEP)
    found = {row["point"]: row for row in rows(made.root / "summary.csv")}
    assert list(found) == ["random", "alpha=1e-05", "alpha=0.01", "alpha=10.0"]
    by_point = {point: [score(t, "linear/test_accuracy") for t in SWEEP.trials if t.point == point] for point in found}
    for point, values in by_point.items():
        assert float(found[point]["linear/test_accuracy mean"]) == pytest.approx(np.mean(values))
        assert found[point]["n"] == "3"
    paired = stats.ttest_rel(by_point["alpha=0.01"], by_point["random"]).confidence_interval(0.95)
    row = found["alpha=0.01"]
    assert float(row["linear/test_accuracy minus random ci95_low"]) == pytest.approx(paired.low)
    assert float(row["linear/test_accuracy minus random ci95_high"]) == pytest.approx(paired.high)
    assert found["random"]["linear/test_accuracy minus random mean"] == ""


def test_pairing_sees_what_the_spread_over_seeds_would_hide(tmp_path):
    made = fill(tmp_path)
    points = {point.name: point for point in report.build(made, SWEEP)}
    verdicts = {
        name: report.verdict(report.estimate(point.differences("linear/test_accuracy")))
        for name, point in points.items()
        if not point.baseline
    }
    assert verdicts == {
        "alpha=1e-05": "no difference shown",
        "alpha=0.01": "above random",
        "alpha=10.0": "below random",
    }
    unpaired = report.estimate(points["alpha=0.01"].values("linear/test_accuracy"))
    assert unpaired.low < report.estimate(points["random"].values("linear/test_accuracy")).mean
    text = (made.root / "summary.md").read_text()
    assert "**alpha=0.01**" in text
    assert report.SATURATED in text


def test_unfinished_and_failed_trials_are_rows_but_not_in_the_means(tmp_path):
    made = fill(tmp_path, leave_out=["alpha=0.01,seed=1"], failed=["alpha=10.0,seed=2"])
    points = {point.name: point for point in report.build(made, SWEEP)}
    status = {row["trial"]: row["status"] for row in rows(made.root / "results.csv")}
    assert list(status) == [trial.name for trial in SWEEP.trials]
    assert status["alpha=0.01,seed=1"] == "waiting"
    assert status["alpha=10.0,seed=2"] == "failed"
    assert len(points["alpha=0.01"].by_seed) == 2
    assert len(points["alpha=10.0"].differences("linear/test_accuracy")) == 2
    assert "- alpha=10.0,seed=2: the loss became nan" in (made.root / "summary.md").read_text()


def test_results_that_were_not_evaluated_alike_are_refused(tmp_path):
    made = fill(tmp_path, digest=lambda trial: "other" if trial.name == "alpha=10.0,seed=2" else "digest")
    with pytest.raises(InputError, match=r"random,seed=0 and alpha=10\.0,seed=2 .* probe_data is 'digest'"):
        report.build(made, SWEEP)


def test_what_the_sweep_itself_varies_may_differ(tmp_path):
    raw = {"name": "k", "search": {"knn_k": [5, 20], "seed": [0, 1]}, "baseline": True}
    sweep = space.build(raw, {}, "k.yaml")
    names = [point.name for point in report.gather(sweep, [])]
    assert names == []
    made = Store.plan(tmp_path, None, "k")
    made.create(sweep, {})
    for trial in sweep.trials:
        store.begin_attempt(made.trial(trial.name), trial.settings)
        metrics = dict.fromkeys(report.COLUMNS, 0.5 + trial.settings.knn_k / 100)
        result = store.make_result(
            trial, "d", made.trial(trial.name), error=None, metrics=metrics, wall_s=1.0, device="cpu", warnings=[]
        )
        store.write_result(made.trial(trial.name), result)
    points = {point.name: point for point in report.build(made, sweep)}
    assert list(points) == ["random,knn_k=5", "random,knn_k=20", "knn_k=5", "knn_k=20"]
    assert points["knn_k=5"].differences("knn/test_accuracy") == [0, 0], "paired with the baseline of its own k"


def test_settings_without_effect_stay_empty(tmp_path):
    made = fill(tmp_path)
    report.build(made, SWEEP)
    first = rows(made.root / "results.csv")[0]
    assert (first["trial"], first["alpha"], first["usl_epochs"], first["knn_k"]) == ("random,seed=0", "", "0", "20")
    assert {row["probe_dataset"] for row in rows(made.root / "results.csv")} == {"digits"}


def test_figure_shows_every_seed_the_intervals_and_the_baseline(tmp_path):
    made = fill(tmp_path)
    points = report.build(made, SWEEP)
    figure = report.draw(SWEEP, points, "alpha")
    axes = figure.axes[0]
    assert axes.get_xscale() == "log"
    dots = [line for line in axes.lines if line.get_gid() == "seeds"]
    shown = sorted((x, y) for line in dots for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True))
    expected = [(t.settings.alpha, score(t, "linear/test_accuracy")) for t in SWEEP.trials if not t.baseline]
    np.testing.assert_allclose(shown, sorted(expected))
    assert len(axes.containers) == 3, "an error bar for every point"
    low, high = axes.patches[0].get_y(), axes.patches[0].get_y() + axes.patches[0].get_height()
    random = report.estimate(points[0].values("linear/test_accuracy"))
    assert (low, high) == pytest.approx((random.low, random.high))
    buffer = io.BytesIO()
    figure.savefig(buffer)
    assert buffer.tell() > 10_000


def test_figure_of_one_seed_has_no_intervals(tmp_path):
    sweep = space.build({"name": "one", "search": {"alpha": [1e-5, 10]}, "baseline": True}, {}, "one.yaml")
    made = fill(tmp_path, sweep)
    axes = report.draw(sweep, report.build(made, sweep), "alpha").axes[0]
    assert not axes.containers
    assert not axes.patches


def test_zero_stays_on_a_logarithmic_axis():
    figure = report.Figure()
    axes = figure.subplots()
    report.scale_axis(axes, "alpha", [0, 1e-3, 10], True)
    assert axes.get_xscale() == "symlog"
    axes = figure.subplots()
    report.scale_axis(axes, "strength", [0, 0.125, 1], True)
    assert axes.get_xscale() == "linear"


def fill_with(tmp_path, raw, metrics_of):
    """A store of the sweep `raw` in which every trial has the metrics that `metrics_of(trial)` gives."""
    sweep = space.build(raw, {}, "raw.yaml")
    made = Store.plan(tmp_path, None, sweep.name)
    made.create(sweep, {})
    for trial in sweep.trials:
        store.begin_attempt(made.trial(trial.name), trial.settings)
        options = {"error": None, "metrics": metrics_of(trial), "wall_s": 1.0, "device": "cpu", "warnings": []}
        result = store.make_result(trial, "d", made.trial(trial.name), **options)
        store.write_result(made.trial(trial.name), result)
    return made, sweep


def test_points_without_a_validation_score_do_not_stop_the_report(tmp_path):
    raw = {"name": "v", "search": {"val_fraction": [0, 0.1], "seed": [0, 1]}, "baseline": True}

    def metrics(trial):
        scores = dict.fromkeys(report.SCORES, 0.5)
        return scores | ({"linear/val_accuracy": 0.6} if trial.settings.val_fraction else {})

    made, sweep = fill_with(tmp_path, raw, metrics)
    points = {point.name: point for point in report.build(made, sweep)}
    assert points["val_fraction=0.0"].differences("linear/val_accuracy") == []
    assert points["val_fraction=0.1"].differences("linear/val_accuracy") == [0, 0]


def test_a_sweep_that_varies_the_protocol_has_a_best_point_for_each(tmp_path):
    raw = {"name": "l", "search": {"labels_per_class": [None, 10], "alpha": [0.1, 1]}, "baseline": True}

    def metrics(trial):
        score = 0.9 if trial.settings.labels_per_class is None else 0.5
        return dict.fromkeys(report.COLUMNS, score + 0.01 * (trial.settings.alpha == 1))

    made, sweep = fill_with(tmp_path, raw, metrics)
    points = report.build(made, sweep)
    best = [point.name for point in report.best_points(sweep, points)]
    assert best == ["labels_per_class=None,alpha=1.0", "labels_per_class=10,alpha=1.0"]
    assert "not comparable" in (made.root / "summary.md").read_text()

    by_alpha = report.draw(sweep, points, "alpha").axes[0]
    colours = {line.get_label(): line.get_color() for line in by_alpha.lines if line.get_gid() != "seeds"}
    assert colours["random,labels_per_class=10 encoder"] == colours["labels_per_class = 10"]
    assert colours["random,labels_per_class=None encoder"] == colours["labels_per_class = None"]

    by_labels = report.draw(sweep, points, "labels_per_class").axes[0]
    random = next(line for line in by_labels.lines if line.get_label() == "random encoder")
    assert list(random.get_ydata()) == [0.9, 0.5], "each baseline at its own place"


def test_a_changed_sweep_file_is_noticed(tmp_path):
    made = fill(tmp_path)
    changed = space.build({**SWEEP.to_dict(), "base": {"le_lr": 0.5}}, {}, "demo.yaml")
    with pytest.raises(InputError, match=r"le_lr: 0\.001, but the sweep says 0\.5"):
        report.build(made, changed)
