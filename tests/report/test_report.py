"""Tables, intervals and figures, checked against SciPy and computations by hand."""

import csv
import io
import itertools
import json
import math
from collections import namedtuple

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy import stats

from raysweep import space
from raysweep.cli import main
from raysweep.config import fingerprint
from raysweep.errors import InputError
from raysweep.report import building, figures
from raysweep.report.building import build_report, build_tables, read_several
from raysweep.report.comparison import draw_comparison
from raysweep.report.heatmaps import draw_heatmap, heatmap_settings
from raysweep.report.layers import draw_layers
from raysweep.report.marks import scale_axis
from raysweep.report.page import first_values
from raysweep.report.points import COLUMNS, SCORES, Estimate, estimate, gather, mean_of
from raysweep.report.ranking import rank_points
from raysweep.report.sentences import verdict
from raysweep.report.statistics import compare_with_control
from raysweep.report.summary import warnings_of
from raysweep.results.attempts import begin_attempt
from raysweep.results.result import make_result, write_result
from raysweep.results.store import Store

SWEEP = space.build(
    {"name": "demo", "search": {"alpha": {"grid": [1e-5, 1e-2, 10]}, "seed": {"grid": [0, 1, 2]}}, "baseline": True},
    {},
    "demo.yaml",
)
EFFECT = {"random": 0.0, "alpha=1e-05": 0.0, "alpha=0.01": 0.05, "alpha=10.0": -0.2}


def score(trial, metric):
    """Return a made-up score: a point effect, a large seed effect, and small noise from point, seed and metric."""
    noise = np.random.default_rng([trial.settings.seed, *map(ord, trial.point + metric)]).normal() * 0.004
    return float(0.5 + EFFECT[trial.point] + 0.1 * trial.settings.seed + noise)


def fill(tmp_path, sweep=SWEEP, leave_out=(), failed=(), digest=lambda trial: "digest", precision=lambda trial: ""):
    """Create a store with a result for every trial, as if the sweep had run."""
    store = Store.plan(tmp_path, None, sweep.name)
    store.create(sweep, {})
    for trial in sweep.trials:
        if trial.name in leave_out:
            continue
        directory = store.trial(trial.name)
        begin_attempt(directory, trial.settings)
        broken = trial.name in failed
        result = make_result(
            trial,
            digest(trial),
            directory,
            status="failed" if broken else "finished",
            error="the loss became nan" if broken else None,
            metrics={} if broken else {name: score(trial, name) for name in COLUMNS},
            wall_s=1.0,
            device="cpu",
            warnings=[],
            precision=precision(trial),
        )
        write_result(directory, result)
    return store


def rows(path):
    with open(path) as file:
        return list(csv.DictReader(file))


def test_reference_intervals_equal_scipy(tmp_path):
    values = [0.3, 0.5, 0.45, 0.7]
    interval = estimate(values)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (interval.low, interval.high) == pytest.approx((low, high))
    assert (interval.n, interval.mean, interval.std) == pytest.approx((4, np.mean(values), np.std(values, ddof=1)))


def test_one_seed_has_no_interval():
    assert estimate([0.5]) == Estimate(1, 0.5, None, None, None)
    assert estimate([]) is None


def test_summary_has_a_row_per_point_and_pairs_by_seed(tmp_path):
    store = fill(tmp_path)
    build_tables(store, SWEEP)
    summary = {row["point"]: row for row in rows(store.root / "summary.csv")}
    assert list(summary) == ["random", "alpha=1e-05", "alpha=0.01", "alpha=10.0"]
    by_point = {
        point: [score(t, "linear/test_accuracy") for t in SWEEP.trials if t.point == point] for point in summary
    }
    for point, values in by_point.items():
        assert float(summary[point]["linear/test_accuracy mean"]) == pytest.approx(np.mean(values))
        assert summary[point]["n"] == "3"
    paired = stats.ttest_rel(by_point["alpha=0.01"], by_point["random"]).confidence_interval(0.95)
    row, prefix = summary["alpha=0.01"], "linear/test_accuracy minus random"
    assert float(row[f"{prefix} unadjusted95_low"]) == pytest.approx(paired.low)
    assert float(row[f"{prefix} unadjusted95_high"]) == pytest.approx(paired.high)
    table = np.array([by_point["random"], *(by_point[point] for point in list(summary)[1:])])
    adjusted = compare_with_control(table, 0)[2]
    assert float(row[f"{prefix} mean"]) == pytest.approx(np.subtract(table[2], table[0]).mean())
    assert float(row[f"{prefix} adjusted95_low"]) == pytest.approx(adjusted.low)
    assert float(row[f"{prefix} adjusted95_high"]) == pytest.approx(adjusted.high)
    assert summary["random"][f"{prefix} mean"] == ""


def test_pairing_sees_what_the_spread_over_seeds_would_hide(tmp_path):
    store = fill(tmp_path)
    report = build_tables(store, SWEEP)
    points = {point.name: point for point in report.points}
    family = report.groups[0].families["linear/test_accuracy"]
    verdicts = {
        name: verdict(family.from_control(point), "random") for name, point in points.items() if not point.baseline
    }
    assert verdicts == {
        "alpha=1e-05": "no difference shown",
        "alpha=0.01": "above random",
        "alpha=10.0": "below random",
    }
    unpaired = estimate(points["alpha=0.01"].values("linear/test_accuracy"))
    assert unpaired.low < estimate(points["random"].values("linear/test_accuracy")).mean
    text = (store.root / "summary.md").read_text()
    assert "- alpha=0.01 is best by linear/val_accuracy" in text


def test_unfinished_and_failed_trials_are_rows_but_not_in_the_means(tmp_path):
    store = fill(tmp_path, leave_out=["alpha=0.01,seed=1"], failed=["alpha=10.0,seed=2"])
    points = {point.name: point for point in build_tables(store, SWEEP).points}
    status = {row["trial"]: row["status"] for row in rows(store.root / "results.csv")}
    assert list(status) == [trial.name for trial in SWEEP.trials]
    assert status["alpha=0.01,seed=1"] == "waiting"
    assert status["alpha=10.0,seed=2"] == "failed"
    assert len(points["alpha=0.01"].by_seed) == 2
    assert len(points["alpha=10.0"].differences("linear/test_accuracy")) == 2
    assert "- alpha=10.0,seed=2: the loss became nan" in (store.root / "summary.md").read_text()


def test_what_auto_came_to_is_in_the_table_and_noted_where_it_differs(tmp_path):
    alike = fill(tmp_path / "alike", precision=lambda trial: "" if trial.baseline else "bf16")
    build_tables(alike, SWEEP)
    assert "precision: auto" not in (alike.root / "summary.md").read_text()
    mixed = fill(tmp_path / "mixed", precision=lambda trial: "bf16" if trial.settings.seed else "fp32")
    build_tables(mixed, SWEEP)
    assert "`precision: auto` resolved to bf16 on some machines" in (mixed.root / "summary.md").read_text()
    table = {row["trial"]: row["precision"] for row in rows(mixed.root / "results.csv")}
    assert (table["alpha=0.01,seed=0"], table["alpha=0.01,seed=1"]) == ("fp32", "bf16")


def test_results_that_were_not_evaluated_alike_are_refused(tmp_path):
    store = fill(tmp_path, digest=lambda trial: "other" if trial.name == "alpha=10.0,seed=2" else "digest")
    with pytest.raises(InputError, match=r"random,seed=0 and alpha=10\.0,seed=2 .* probe_data is 'digest'"):
        build_tables(store, SWEEP)


def test_what_the_sweep_itself_varies_may_differ(tmp_path):
    raw = {"name": "k", "search": {"knn_k": [5, 20], "seed": [0, 1]}, "baseline": True}
    sweep = space.build(raw, {}, "k.yaml")
    names = [point.name for point in gather(sweep, [])]
    assert names == []
    store = Store.plan(tmp_path, None, "k")
    store.create(sweep, {})
    for trial in sweep.trials:
        begin_attempt(store.trial(trial.name), trial.settings)
        metrics = dict.fromkeys(COLUMNS, 0.5 + trial.settings.knn_k / 100)
        result = make_result(
            trial,
            "d",
            store.trial(trial.name),
            status="finished",
            error=None,
            metrics=metrics,
            wall_s=1.0,
            device="cpu",
            warnings=[],
        )
        write_result(store.trial(trial.name), result)
    points = {point.name: point for point in build_tables(store, sweep).points}
    assert list(points) == ["random,knn_k=5", "random,knn_k=20", "knn_k=5", "knn_k=20"]
    assert points["knn_k=5"].differences("knn/test_accuracy") == [0, 0], (
        "each point is paired with the baseline of the same k"
    )


def test_settings_without_effect_stay_empty(tmp_path):
    store = fill(tmp_path)
    build_tables(store, SWEEP)
    first = rows(store.root / "results.csv")[0]
    assert (first["trial"], first["alpha"], first["usl_epochs"], first["knn_k"]) == ("random,seed=0", "", "0", "20")
    assert {row["probe_dataset"] for row in rows(store.root / "results.csv")} == {"digits"}
    assert list(first)[:6] == ["trial", "point", "status", "alpha", "seed", "linear/val_accuracy"], (
        "what varies is first"
    )


def test_figure_shows_every_seed_the_intervals_and_the_baseline(tmp_path):
    store = fill(tmp_path)
    points = build_tables(store, SWEEP).points
    figure = figures.draw(SWEEP, points, "alpha")
    axes = figure.axes[0]
    assert axes.get_xscale() == "log"
    dots = [line for line in axes.lines if line.get_gid() == "seeds"]
    shown = sorted((x, y) for line in dots for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True))
    expected = [(t.settings.alpha, score(t, "linear/test_accuracy")) for t in SWEEP.trials if not t.baseline]
    np.testing.assert_allclose(shown, sorted(expected))
    assert len(axes.containers) == 3, "an error bar for every point"
    low, high = axes.patches[0].get_y(), axes.patches[0].get_y() + axes.patches[0].get_height()
    random = estimate(points[0].values("linear/test_accuracy"))
    assert (low, high) == pytest.approx((random.low, random.high))
    buffer = io.BytesIO()
    figure.savefig(buffer)
    assert buffer.tell() > 10_000


def test_figure_of_one_seed_has_no_intervals(tmp_path):
    sweep = space.build({"name": "one", "search": {"alpha": [1e-5, 10]}, "baseline": True}, {}, "one.yaml")
    store = fill(tmp_path, sweep)
    axes = figures.draw(sweep, build_tables(store, sweep).points, "alpha").axes[0]
    assert not axes.containers
    assert not axes.patches


def test_zero_stays_on_a_logarithmic_axis():
    figure = Figure()
    axes = figure.subplots()
    scale_axis(axes, "alpha", [0, 1e-3, 10], True)
    assert axes.get_xscale() == "symlog"
    axes = figure.subplots()
    scale_axis(axes, "strength", [0, 0.125, 1], True)
    assert axes.get_xscale() == "linear"


def fill_with(tmp_path, raw, metrics_of, datasets=None):
    """Create a store of the sweep `raw` in which each trial has the metrics that `metrics_of(trial)` returns.

    `datasets` are the recorded digests of the datasets, by name; an older sweep has none.
    """
    sweep = space.build(raw, {}, "raw.yaml")
    store = Store.plan(tmp_path, None, sweep.name)
    store.create(sweep, {} if datasets is None else {"datasets": datasets})
    for trial in sweep.trials:
        begin_attempt(store.trial(trial.name), trial.settings)
        options = {"error": None, "metrics": metrics_of(trial), "wall_s": 1.0, "device": "cpu", "warnings": []}
        options["status"] = "finished"
        result = make_result(trial, "d", store.trial(trial.name), **options)
        write_result(store.trial(trial.name), result)
    return store, sweep


def test_points_without_a_validation_score_do_not_stop_the_report(tmp_path):
    raw = {"name": "v", "search": {"val_fraction": [0, 0.1], "seed": [0, 1]}, "baseline": True}

    def metrics(trial):
        scores = dict.fromkeys(SCORES, 0.5)
        return scores | ({"linear/val_accuracy": 0.6} if trial.settings.val_fraction else {})

    store, sweep = fill_with(tmp_path, raw, metrics)
    points = {point.name: point for point in build_tables(store, sweep).points}
    assert points["val_fraction=0.0"].differences("linear/val_accuracy") == []
    assert points["val_fraction=0.1"].differences("linear/val_accuracy") == [0, 0]


def test_a_sweep_may_vary_the_size_of_its_images(tmp_path):
    raw = {"name": "sizes", "search": {"image_size": [8, 12], "seed": [0, 1]}}
    store, sweep = fill_with(tmp_path, raw, lambda trial: dict.fromkeys(COLUMNS, 0.5))
    points = build_tables(store, sweep).points
    assert [point.name for point in points] == ["image_size=8", "image_size=12"]
    assert len(rank_points(points, sweep.metric, sweep.mode)) == 2, "their scores are not comparable"


def test_a_sweep_that_varies_the_protocol_has_a_best_point_for_each(tmp_path):
    raw = {"name": "l", "search": {"labels_per_class": [None, 10], "alpha": [0.1, 1]}, "baseline": True}

    def metrics(trial):
        score = 0.9 if trial.settings.labels_per_class is None else 0.5
        return dict.fromkeys(COLUMNS, score + 0.01 * (trial.settings.alpha == 1))

    store, sweep = fill_with(tmp_path, raw, metrics)
    points = build_tables(store, sweep).points
    best = [ranked[0].name for ranked in rank_points(points, sweep.metric, sweep.mode)]
    assert best == ["labels_per_class=None,alpha=1.0", "labels_per_class=10,alpha=1.0"]
    assert "not comparable" in (store.root / "summary.md").read_text()

    by_alpha = figures.draw(sweep, points, "alpha").axes[0]
    colours = {line.get_label(): line.get_color() for line in by_alpha.lines if line.get_gid() != "seeds"}
    assert colours["random,labels_per_class=10 encoder"] == colours["labels_per_class = 10"]
    assert colours["random,labels_per_class=None encoder"] == colours["labels_per_class = None"]

    by_labels = figures.draw(sweep, points, "labels_per_class").axes[0]
    random = next(line for line in by_labels.lines if line.get_label() == "random encoder")
    assert list(random.get_ydata()) == [0.5, 0.9], "each baseline is drawn at its own position"


def test_a_changed_sweep_file_is_noticed(tmp_path):
    store = fill(tmp_path)
    changed = space.build({**SWEEP.to_dict(), "base": {"le_lr": 0.5}}, {}, "demo.yaml")
    with pytest.raises(InputError, match=r"le_lr: 0\.001, but the sweep says 0\.5"):
        build_tables(store, changed)


# The sentences of the report


def made_up(effects, seeds=(0, 1, 2), spread=0.001, metric="linear/val_accuracy", **extra):
    """Return a function from trials to metrics: a point effect, a large seed effect, and small noise from both."""

    def metrics(trial):
        noise = np.random.default_rng([trial.settings.seed, *map(ord, trial.point)]).normal(size=3) * spread
        score = effects[trial.point] + 0.02 * trial.settings.seed
        tests = {name: float(score + noise[i]) for i, name in enumerate(SCORES)}
        return {metric: effects[trial.point], **tests, **extra}

    return metrics


def by_hand(first, second, comparisons):
    """Return the mean and corrected interval of paired differences, computed by the textbook formula."""
    d = np.subtract(first, second)
    half = stats.t.ppf(1 - 0.05 / comparisons / 2, len(d) - 1) * d.std(ddof=1) / math.sqrt(len(d))
    return d.mean(), d.mean() - half, d.mean() + half


def words(tmp_path, raw, metrics):
    """Return the full sentences of a sweep's report."""
    store, sweep = fill_with(tmp_path, raw, metrics)
    return build_tables(store, sweep).in_words(scores=1)


def test_the_test_score_of_the_chosen_metric_comes_first(tmp_path):
    raw = {"name": "a", "search": {"alpha": [0.1, 1]}, "tune": {"metric": "knn/val_accuracy"}}
    store, sweep = fill_with(tmp_path, raw, made_up({"alpha=0.1": 0.5, "alpha=1.0": 0.4}, metric="knn/val_accuracy"))
    assert build_tables(store, sweep).scores == ["knn/test_accuracy", "linear/test_accuracy", "kmeans/accuracy"]


def test_nothing_is_called_best_without_validation_or_results(tmp_path):
    raw = {"name": "a", "base": {"val_fraction": 0}, "search": {"alpha": [1, 0.1]}}
    sentences = words(tmp_path, raw, lambda trial: dict.fromkeys(SCORES, 0.5))
    assert sentences == ["No point is called best: there is no validation split to choose by."]
    store = fill(tmp_path, failed=[trial.name for trial in SWEEP.trials])
    assert main(["report", str(store.root)]) == 1
    assert "0 of 12 trials finished, 12 failed" in (store.root / "summary.md").read_text()


def test_points_that_lack_a_validation_split_are_not_said_to_be_all_points(tmp_path):
    raw = {"name": "a", "search": {"val_fraction": [0, 0.1], "seed": [0, 1, 2]}}
    sentences = words(tmp_path, raw, lambda trial: dict.fromkeys(SCORES, 0.5))
    assert sentences == ["No point is called best: only some of the points have a validation split to choose by."]


def test_numbers_of_others_agree_with_their_noun(tmp_path):
    assert first_values([str(n) for n in range(13)]) == ", ".join(map(str, range(13)))
    assert first_values([str(n) for n in range(14)]).endswith(", 11, and 2 others")
    results = [("", Warned(f"trial {number}", [f"warning {number}"])) for number in range(21)]
    assert warnings_of(results)[-1] == "and 1 other warning, which the trials' results list"
    assert warnings_of([*results, ("", Warned("x", ["y"]))])[-1].startswith("and 2 other warnings, ")


Warned = namedtuple("Warned", ["trial", "warnings"])


def test_points_of_different_protocols_are_never_compared(tmp_path):
    raw = {"name": "p", "search": {"labels_per_class": [None, 10], "alpha": [0.1, 1], "seed": [0, 1, 2]}}
    effects = {f"labels_per_class={n},alpha={a}": a / 10 for n in (None, 10) for a in (0.1, 1.0)}
    store, sweep = fill_with(tmp_path, raw, made_up(effects))
    report = build_tables(store, sweep)
    best = [line for line in report.in_words() if " is best by " in line]
    assert len(best) == 2
    assert all(("=None" in line) != ("=10" in line) for line in best)
    for row in rows(store.root / "differences.csv"):
        assert row["first"].split(",")[0] == row["second"].split(",")[0]
    assert draw_heatmap(sweep, report.points) is None


def test_reference_differences_between_all_points_that_share_seeds(tmp_path):
    store = fill(tmp_path, leave_out=["alpha=0.01,seed=1", "alpha=10.0,seed=0", "alpha=10.0,seed=1"])
    build_tables(store, SWEEP)
    differences = {
        (row["first"], row["second"]): row
        for row in rows(store.root / "differences.csv")
        if row["score"] == "linear/test_accuracy"
    }
    assert set(differences) == set(itertools.combinations(["alpha=1e-05", "alpha=0.01", "alpha=10.0"], 2))
    accuracies = {(t.point, t.settings.seed): score(t, "linear/test_accuracy") for t in SWEEP.trials}
    row = differences["alpha=1e-05", "alpha=0.01"]
    expected = by_hand(*([accuracies[point, seed] for seed in (0, 2)] for point in ("alpha=1e-05", "alpha=0.01")), 1)
    assert [float(row[f"unadjusted95_{end}"]) for end in ("low", "high")] == pytest.approx(expected[1:])
    assert (row["n"], row["adjusted95_low"], row["verdict"]) == ("2", "", "two seeds cannot tell")
    row = differences["alpha=0.01", "alpha=10.0"]
    assert (row["n"], row["unadjusted95_low"], row["adjusted95_low"]) == ("1", "", ""), "one seed has no interval"


def test_one_seed_has_no_interval_anywhere(tmp_path, capsys):
    raw = {"name": "one", "search": {"alpha": [0.1, 1], "strength": [0.5, 1]}, "baseline": True}
    effects = {f"alpha={a},strength={s}": (a + s) / 4 for a in (0.1, 1.0) for s in (0.5, 1.0)} | {"random": 0.5}
    store, sweep = fill_with(tmp_path, raw, made_up(effects))
    assert main(["report", str(store.root)]) == 0
    text = (store.root / "summary.md").read_text() + capsys.readouterr().out
    tables = [line for line in text.splitlines() if line.startswith(("| ", "│")) and "mean" not in line]
    assert tables
    assert not [line for line in tables if "±" in line or "[" in line]
    points = building.read(store, sweep).points
    drawn = [*(figures.draw(sweep, points, name) for name in sweep.searched), draw_heatmap(sweep, points)]
    assert {path.name for path in (store.root / "figures").iterdir()} == {
        "alpha.png", "strength.png", "alpha_x_strength.png"
    }  # fmt: skip
    assert not [axes.containers for figure in drawn for axes in figure.axes if axes.containers]


# Figures


def two_settings(tmp_path, leave_out=(), **search):
    raw = {
        "name": "both",
        "search": search or {"strength": [1, 0.25], "alpha": [10, 1e-5, 0.1], "seed": [0, 1]},
        "baseline": True,
    }

    def metrics(trial):
        score = 0.5 if trial.baseline else 0.3 + 0.1 * trial.settings.strength + 0.01 * trial.settings.alpha
        return {} if trial.point in leave_out else dict.fromkeys(COLUMNS, score + trial.settings.seed / 100)

    return fill_with(tmp_path, raw, metrics)


def test_heat_map_has_a_cell_for_each_pair_of_values_in_order(tmp_path):
    store, sweep = two_settings(tmp_path, leave_out=["strength=0.25,alpha=0.1"])
    report = build_tables(store, sweep)
    assert len(building.figures_of(report)["strength_x_alpha"]()) > 10_000
    figure = draw_heatmap(sweep, report.points)
    panels = [axes for axes in figure.axes if axes.images]
    assert len(panels) == 3
    axes = panels[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.25", "1"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["1e-05", "0.1", "10"]
    cells = np.ma.filled(axes.images[0].get_array(), np.nan)
    expected = [[0.3 + 0.1 * s + 0.01 * a + 0.005 for s in (0.25, 1)] for a in (1e-5, 0.1, 10)]
    expected[1][0] = np.nan
    np.testing.assert_allclose(cells, expected)
    written = {text.get_position(): text.get_text().split("\n")[0] for text in axes.texts}
    assert written == {(x, y): f"{expected[y][x]:.3f}" for x in range(2) for y in range(3) if (x, y) != (0, 1)}
    assert "0.5050" in axes.get_title()
    marks = [line for axes in figure.axes for line in axes.lines if line.get_gid() == "random"]
    assert [line.get_ydata()[0] for line in marks] == pytest.approx([0.505] * 3)


@pytest.mark.parametrize(
    ("search", "expected"),
    [
        ({"alpha": [0.1, 1], "strength": [0.5, 1]}, ("alpha", "strength")),
        ({"alpha": [0.1, 1], "blur": [False], "strength": [0.5, 1]}, ("alpha", "strength")),
        ({"alpha": [0.1, 1], "strength": [0.5]}, None),
        ({"alpha": [0.1, 1], "strength": [0.5, 1], "blur": [False, True]}, None),
        ({"alpha": {"loguniform": [0.1, 1]}, "strength": {"uniform": [0.5, 1]}}, None),
        ({"alpha": {"grid": [0.1, 1]}, "strength": {"uniform": [0.5, 1]}}, ("alpha", "strength")),
        ([{"alpha": [0.1, 1]}, {"strength": [0.25, 1]}], None),
    ],
)
def test_heat_maps_are_of_two_settings_that_fill_a_grid(search, expected):
    drawn = "uniform" in str(search)
    sweep = space.build({"name": "h", "search": search, "tune": {"num_samples": 4 if drawn else 1}}, {}, "h.yaml")
    assert heatmap_settings(sweep) == expected


def blocks(trial):
    """Return metrics with a score for each block."""
    config = trial.settings
    score = 0.5 if trial.baseline else 0.4 + config.alpha / 1000
    per_block = {f"linear/layer{b}/{split}_accuracy": score + b / 50 + config.seed / 100 for b in range(1, 6)
                 for split in ("val", "test")}  # fmt: skip
    return dict.fromkeys(COLUMNS, score) | per_block


def test_blocks_have_a_line_for_each_point_and_a_table(tmp_path):
    search = {"alpha": [1, 10], "seed": [0, 1, 2]}
    raw = {"name": "blocks", "base": {"per_layer": True}, "search": search, "baseline": True}
    store, sweep = fill_with(tmp_path, raw, blocks)
    points = build_report(store, sweep).points
    assert (store.root / "figures" / "layers.png").stat().st_size > 10_000
    figure = draw_layers(sweep, points)
    assert [axes.get_title() for axes in figure.axes] == ["alpha=1.0", "alpha=10.0"], "a panel for each point"
    axes = figure.axes[1]
    lines = {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
    assert list(lines) == ["random encoder", "the point"]
    assert lines["random encoder"].get_linestyle() == "--"
    np.testing.assert_allclose(lines["the point"].get_ydata(), [0.41 + b / 50 + 0.01 for b in range(1, 6)])
    assert list(lines["the point"].get_xdata()) == [1, 2, 3, 4, 5]
    assert len(axes.containers) == 5, "an interval for every block of the point"
    text = (store.root / "summary.md").read_text()
    assert "| point | n | block 1 | block 2 | block 3 | block 4 | block 5 |" in text
    assert "| alpha=10.0 | 3 | 0.4400 ± 0.0248 |" in text

    two, sweep = fill_with(tmp_path / "two", {**raw, "search": {**search, "seed": [0, 1]}}, blocks)
    axes = draw_layers(sweep, gather(sweep, two.results(sweep))).axes[0]
    assert not axes.containers, "two seeds have no interval, as in the tables"
    assert sum(line.get_gid() == "seeds" for line in axes.lines) == 5


def test_of_many_points_the_best_ones_are_drawn_and_it_says_so(tmp_path):
    raw = {"name": "many", "base": {"per_layer": True}, "search": {"alpha": list(range(1, 15))}}
    store, sweep = fill_with(tmp_path, raw, blocks)
    figure = draw_layers(sweep, build_tables(store, sweep).points)
    assert figure.get_suptitle().endswith("the 12 best of 14 points by mean linear/val_accuracy")
    assert [axes.get_title() for axes in figure.axes] == [f"alpha={a}.0" for a in range(3, 15)]


def test_no_blocks_no_figure_of_them(tmp_path):
    store = fill(tmp_path)
    report = build_tables(store, SWEEP)
    assert draw_layers(SWEEP, report.points) is None
    assert building.figures_of(report)["layers"]() is None
    assert "block" not in (store.root / "summary.md").read_text()


# Several sweeps


def files(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def alpha_and_strength(tmp_path, **base):
    """Create two sweeps that share a point name; the second has no baseline."""

    def metrics(trial):
        config = trial.settings
        noise = np.random.default_rng([config.seed, *map(ord, trial.point)]).normal() * 0.001
        score = 0.5 if trial.baseline else 0.5 + config.alpha / 100 + config.strength / 10
        return dict.fromkeys(COLUMNS, float(score + noise + config.seed / 50))

    first = {"name": "alpha", "search": {"alpha": [0.1, 1], "seed": [0, 1, 2]}, "baseline": True}
    second = {"name": "strength", "base": {"strength": 1, **base}, "search": {"alpha": [0.1, 10], "seed": [0, 1, 2]}}
    return fill_with(tmp_path, first, metrics), fill_with(tmp_path, second, metrics), metrics


def test_several_sweeps_are_set_side_by_side(tmp_path, capsys, monkeypatch):
    (first, sweep), (second, other), metrics = alpha_and_strength(tmp_path)
    before = files(tmp_path)
    assert main(["report", str(first.root), str(second.root)]) == 0
    directory = tmp_path / "alpha+strength"
    new = {str(path) for path in files(directory)}
    assert new == {"summary.md", "summary.csv", "differences.csv", "report.html", "figures/comparison.png"}
    assert {path: files(tmp_path)[path] for path in before} == before, "the sweeps themselves are unchanged"

    summary = rows(directory / "summary.csv")
    assert [(row["sweep"], row["point"], row["strength"]) for row in summary] == [
        ("alpha", "random", ""),
        ("alpha", "alpha=0.1", "0.5"),
        ("alpha", "alpha=1.0", "0.5"),
        ("strength", "alpha=0.1", "1.0"),
        ("strength", "alpha=10.0", "1.0"),
    ]
    random = [metrics(t)["linear/test_accuracy"] for t in sweep.trials if t.baseline]
    accuracies = [metrics(t)["linear/test_accuracy"] for t in other.trials if t.point == "alpha=10.0"]
    expected = by_hand(accuracies, random, 1)
    names = [f"linear/test_accuracy minus random {part}" for part in ("mean", "unadjusted95_low", "unadjusted95_high")]
    assert [float(summary[-1][name]) for name in names] == pytest.approx(expected), "the other sweep lends its baseline"

    printed = capsys.readouterr().out
    assert "strength/alpha=10.0 is best by linear/val_accuracy" in printed
    assert " and beats the random encoder in linear/test_accuracy: " in printed
    text = (directory / "summary.md").read_text()
    assert "| strength | 0.5 | 1.0 |" in text
    assert "strength is compared with the random encoder of another sweep" in text

    monkeypatch.setattr(building, "figures_of", lambda report: {})  # the first comparison has shown them
    assert main(["report", str(first.root), str(second.root)]) == 0
    assert (tmp_path / "alpha+strength-2" / "summary.md").read_text() == text, "nothing is overwritten"
    assert main(["report", str(first.root), str(second.root), "-o", str(tmp_path / "own" / "place")]) == 0
    assert (tmp_path / "own" / "place" / "summary.md").read_text() == text


def test_comparison_figure_has_a_row_for_each_point_in_its_sweeps_colour(tmp_path):
    (first, sweep), (second, other), _ = alpha_and_strength(tmp_path)
    comparison = read_several([(first, sweep), (second, other)])
    figure = draw_comparison(comparison.name, comparison.points, comparison.metric, comparison.mode)
    axes = figure.axes[0]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["random", "alpha=0.1", "alpha=1.0", "alpha=0.1", "alpha=10.0"]
    assert len(axes.containers) == 5
    colours = [axes.containers[place].lines[0].get_color() for place in range(5)]
    assert colours[0] == colours[1] == colours[2] != colours[3] == colours[4]
    means = [mean_of(point, "linear/test_accuracy") for point in comparison.points]
    assert [axes.containers[place].lines[0].get_xdata()[0] for place in range(5)] == pytest.approx(means)


def test_a_random_encoder_of_other_settings_is_not_lent(tmp_path):
    opened = alpha_and_strength(tmp_path, encoder="resnet18")[:2]
    comparison = read_several(opened)
    assert all(
        bool(point.random_by_seed) == (point.sweep == "alpha") for point in comparison.points if not point.baseline
    )


def test_the_same_experiment_in_two_sweeps_is_not_its_own_second(tmp_path):
    effects = {"alpha=0.1": 0.5, "alpha=1.0": 0.6, "alpha=10.0": 0.3}
    opened = [
        fill_with(tmp_path, {"name": name, "search": {"alpha": alpha, "seed": [0, 1, 2]}}, made_up(effects))
        for name, alpha in (("a", [0.1, 1]), ("b", [1, 10]))
    ]
    comparison = read_several(opened)
    sentences = comparison.in_words(scores=1)
    assert sentences[0].startswith("a/alpha=1.0 is best by ")
    assert sentences[1].startswith("In linear/test_accuracy the best point is above every other ranked point; ")
    assert comparison.best == {"a/alpha=1.0", "b/alpha=1.0"}
    assert "the closest is a/alpha=0.1," in sentences[1]
    family = comparison.groups[0].families["linear/test_accuracy"]
    assert family.points == 3, "three experiments, not four"
    twins = [point for point in comparison.points if point.name == "alpha=1.0"]
    third = next(point for point in comparison.points if point.name == "alpha=10.0")
    assert family.between(twins[0], third) == family.between(twins[1], third)


def test_measuring_every_block_makes_no_other_experiment(tmp_path):
    ends = {"search": {"usl_type": ["ae_parallel", "simclr"], "seed": [0, 1, 2]}, "baseline": True}
    blocks = {"search": {"layerwise": ["none", "greedy"], "seed": [0, 1, 2]}}
    best = {"usl_type=ae_parallel": 0.9, "layerwise=none": 0.9, "usl_type=simclr": 0.8, "layerwise=greedy": 0.7}
    metrics = made_up({**best, "random": 0.5})
    opened = [fill_with(tmp_path, {"name": name, **raw}, metrics) for name, raw in (("a", ends), ("b", blocks))]
    assert opened[1][1].trials[0].settings.per_layer
    comparison = read_several(opened)
    assert "the closest is a/usl_type=simclr," in comparison.in_words(scores=1)[1]
    assert all(len(point.random_by_seed) == 3 for point in comparison.points if not point.baseline), (
        "sweep a lends b its baseline"
    )


def refused(arguments, tmp_path, capsys):
    """Return the one line with which the command refuses, and check that it wrote nothing."""
    before = files(tmp_path)
    assert main(["report", *map(str, arguments)]) == 2
    assert files(tmp_path) == before
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_sweeps_that_were_not_evaluated_alike_are_refused(tmp_path, capsys):
    (first, _), (second, _), _ = alpha_and_strength(tmp_path, le_lr=0.01)
    line = refused([first.root, second.root], tmp_path, capsys)
    assert "alpha/random,seed=0 and strength/alpha=0.1,seed=0 were not evaluated alike" in line
    assert "le_lr is 0.001 in one, 0.01 in the other" in line


def test_a_sweep_that_varies_its_evaluation_is_refused_among_several(tmp_path, capsys):
    (first, _), _, metrics = alpha_and_strength(tmp_path)
    varies, _ = fill_with(tmp_path, {"name": "varies", "search": {"knn_k": [20, 5]}}, metrics)
    line = refused([first.root, varies.root], tmp_path, capsys)
    assert "alpha/random,seed=0 and varies/knn_k=5,seed=0 were not evaluated alike" in line
    assert "knn_k is 20 in one, 5 in the other" in line


def test_what_cannot_be_compared_is_refused(tmp_path, capsys):
    (first, _), (second, _), _ = alpha_and_strength(tmp_path)
    (tmp_path / "link").symlink_to(first.root)
    assert "given twice" in refused([first.root, second.root, tmp_path / "link"], tmp_path, capsys)
    (tmp_path / "there").mkdir()
    assert "exists" in refused([first.root, second.root, "-o", tmp_path / "there"], tmp_path, capsys)
    assert "several sweeps" in refused([first.root, "-o", tmp_path / "new"], tmp_path, capsys)
    assert "there is no sweep" in refused([first.root, tmp_path / "there"], tmp_path, capsys)
    empty = Store.plan(tmp_path, None, "empty")
    empty.create(SWEEP, {})
    assert "no trial has finished" in refused([first.root, empty.root], tmp_path, capsys)


def test_sweeps_of_the_same_name_are_told_apart_by_their_directories(tmp_path):
    opened = []
    for place in ("here", "there"):
        opened.append(fill_with(tmp_path / place, {"name": "a", "search": {"alpha": [0.1]}}, lambda trial: {}))
    comparison = read_several(opened)
    assert [point.title for point in comparison.points] == ["here/a/alpha=0.1", "there/a/alpha=0.1"]
    assert comparison.name == "here-a+there-a"


def test_no_best_among_sweeps_that_choose_differently(tmp_path):
    (first, sweep), _, metrics = alpha_and_strength(tmp_path)
    raw = {"name": "k", "search": {"alpha": [3]}, "tune": {"metric": "knn/val_accuracy"}}
    comparison = read_several([(first, sweep), fill_with(tmp_path, raw, metrics)])
    assert comparison.in_words() == ["No point is called best: the sweeps do not choose by the same metric."]
    without = {"name": "w", "base": {"val_fraction": 0}, "search": {"alpha": [3]}}
    raw = {**without, "name": "l", "tune": {"metric": "pretrain/loss"}}
    comparison = read_several([fill_with(tmp_path, each, metrics) for each in (without, raw)])
    assert comparison.in_words() == ["No point is called best: w has no metric to choose by."]


# Results of older versions


def change(path, edit):
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def test_results_without_newer_settings_count_as_having_their_defaults(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(building, "figures_of", lambda report: {})
    store = fill(tmp_path)
    for number, trial in enumerate(SWEEP.trials):
        if number % 2:  # the older version ran half of the trials

            def age(content):
                del content["settings"]["le_weight_decay"], content["protocol"]["le_weight_decay"]
                del content["linear_probe"]
                content["fingerprint"] = fingerprint(content["protocol"])

            change(store.trial(trial.name) / "result.json", age)
    assert main(["report", str(store.root)]) == 0
    capsys.readouterr()
    assert len(building.read(store, SWEEP).ranked) == 1, "one protocol"
    assert {row["linear_probe"] for row in rows(store.root / "results.csv")} == {""}

    def decay(content):
        content["protocol"]["le_weight_decay"] = 0.5
        content["fingerprint"] = fingerprint(content["protocol"])

    change(store.trial("random,seed=0") / "result.json", decay)
    before = files(store.root)
    assert main(["report", str(store.root)]) == 2
    assert "le_weight_decay is 0.5 in one, 0.0 in the other" in capsys.readouterr().err
    assert files(store.root) == before


def test_the_linear_probe_that_counted_is_a_column(tmp_path):
    store = fill(tmp_path)
    path = store.trial("alpha=0.01,seed=1") / "result.json"
    change(path, lambda content: content.update(linear_probe="layer=trunk,lr=0.001,weight_decay=0.0"))
    build_tables(store, SWEEP)
    probes = {row["trial"]: row["linear_probe"] for row in rows(store.root / "results.csv")}
    assert probes.pop("alpha=0.01,seed=1") == "layer=trunk,lr=0.001,weight_decay=0.0"
    assert set(probes.values()) == {""}


def test_a_file_where_the_figures_go_is_set_aside(tmp_path):
    raw = {"name": "one", "search": {"alpha": [0.1, 1]}}
    store, _ = fill_with(tmp_path, raw, made_up({"alpha=0.1": 0.1, "alpha=1.0": 0.2}))
    (store.root / "figures").write_text("of the user")
    assert main(["report", str(store.root)]) == 0
    assert (store.root / "figures").is_dir()
    assert (store.root / "figures.damaged-1").read_text() == "of the user"
