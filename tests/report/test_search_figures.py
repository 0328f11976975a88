"""Figures of searches whose points form no grid, and the choice of figures by what a sweep varies."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.text import Text

import raysweep
from raysweep import space
from raysweep.config.parameters import FIGURES
from raysweep.errors import InputError
from raysweep.report import drawing
from raysweep.report.building import drawings_of, read, write_figures
from raysweep.report.colours import COLOURS
from raysweep.report.figure_words import figure_words
from raysweep.report.figures import draw
from raysweep.report.page_pictures import figures_in
from raysweep.report.points import COLUMNS
from raysweep.report.scales import places_of, scale_of, values_at
from raysweep.report.search_figures import draw_importance, draw_parallel, draw_scatter, importances, seed_share
from tests.report.test_report import fill_with

DRAWN = {
    "name": "drawn",
    "search": {
        "usl_lr": {"loguniform": [1e-5, 1e-1]},
        "strength": {"uniform": [0, 1]},
        "policy": {"choice": ["simclr", "noise"]},
        "seed": {"grid": [0, 1]},
    },
    "tune": {"num_samples": 40},
    "baseline": True,
}


def by_learning_rate(trial):
    """Return scores that depend on the learning rate alone, and a little on the seed."""
    value = 0.5 if trial.baseline else 0.7 - 0.05 * abs(math.log10(trial.settings.usl_lr) + 3)
    return dict.fromkeys(COLUMNS, value + 0.01 * trial.settings.seed)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    store, sweep = fill_with(tmp_path_factory.mktemp("drawn"), DRAWN, by_learning_rate)
    return store, sweep, read(store, sweep)


def texts(figure):
    """Return every text of a figure as it is saved."""
    assert drawing.save(figure, dpi=20)
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


@pytest.mark.parametrize("seeds", [[0, 1], [0, 1, 2]])
@pytest.mark.parametrize("strength", [{"uniform": [0.1, 1]}, {"grid": [0.25, 0.5, 1]}])
def test_the_text_in_place_of_a_figure_names_intervals_where_points_have_some(tmp_path, strength, seeds):
    raw = {"name": "s", "search": {"strength": strength, "usl_lr": {"grid": [1e-4, 1e-3]}, "seed": {"grid": seeds}}}
    raw["tune"] = {"num_samples": 3 if "uniform" in strength else 1}
    report = read(*fill_with(tmp_path, raw, by_learning_rate))
    figure = drawings_of(report)["strength"]()
    words = figure_words(report)["strength"]
    assert ("interval" in words) == any(axes.containers for axes in figure.axes)
    dots = [line for axes in figure.axes for line in axes.lines if line.get_gid() == "point"]
    assert ("a dot for each point" in words) == bool(dots)


def test_what_a_sweep_varies_chooses_its_figures(tmp_path, drawn):
    def names(search, **raw):
        sweep = space.build({"name": "s", "search": search, **raw}, {}, "test")
        store, sweep = fill_with(tmp_path / str(len(list(tmp_path.iterdir()))), sweep.to_dict(), by_learning_rate)
        return list(drawings_of(read(store, sweep)))

    seeds = {"seed": [0, 1, 2]}
    assert names({"alpha": [0.1, 1], **seeds}) == ["alpha", "alpha_minus_random", "layers"]
    assert names({"policy": ["simclr", "noise"], **seeds}) == ["comparison", "layers"]
    assert names({"denoising": [True, False]}, base={"usl_type": "ae_single"}) == ["comparison", "layers"]
    assert names({"labels_per_class": [None, 1, 10]}) == ["labels_per_class", "labels_per_class_minus_random", "layers"]
    _, _, report = drawn
    assert list(drawings_of(report)) == [
        "comparison", "usl_lr", "strength", "policy", "parallel_coordinates", "importance", "layers",
    ]  # fmt: skip
    assert set(drawings_of(report)) - set(DRAWN["search"]) == FIGURES, "no parameter may have the name of such a figure"


def test_every_figure_of_a_search_is_written(drawn, monkeypatch, tmp_path):
    _, _, report = drawn
    monkeypatch.setattr(drawing.save, "__defaults__", ("png", 20))  # dots per inch
    assert not write_figures(report, tmp_path)
    names = {path.stem for path in tmp_path.iterdir()}
    assert names == {"comparison", "usl_lr", "strength", "policy", "parallel_coordinates", "importance"}


@pytest.mark.parametrize("fails", [False, True])
def test_figures_of_an_earlier_report_are_removed_and_other_pictures_stay(tmp_path, monkeypatch, fails):
    monkeypatch.setattr(drawing.save, "__defaults__", ("png", 20))  # dots per inch
    folder = tmp_path / "figures"
    folder.mkdir()
    (folder / "mine.png").write_bytes(b"a picture of the user")
    search = {"alpha": [0.1, 1], "strength": [0.5, 1]}
    assert not write_figures(
        read(*fill_with(tmp_path / "a", {"name": "s", "search": search}, by_learning_rate)), folder
    )
    pictures = {"alpha", "alpha_x_strength", "mine", "strength"}
    assert {path.stem for path in folder.iterdir()} == pictures
    grown = {"name": "s", "search": {**search, "usl_epochs": [1, 2]}}
    report = read(*fill_with(tmp_path / "b", grown, by_learning_rate))
    if fails:
        monkeypatch.setattr(drawing, "save", None)
    assert len(write_figures(report, folder)) == (3 if fails else 0)
    left = {path.stem for path in folder.iterdir()}
    assert left == ({"mine"} if fails else {"alpha", "mine", "strength", "usl_epochs"})
    assert {picture.caption for picture in figures_in(tmp_path, report)} == left


def test_a_control_that_only_some_points_share_has_marks_where_these_points_stand(tmp_path):
    def by_encoder(trial):
        height = {"conv6": 0.3, "resnet18": 0.6}[trial.settings.encoder]
        return dict.fromkeys(COLUMNS, height if trial.baseline else 0.8)

    search = {"usl_lr": {"loguniform": [1e-5, 0.1]}, "encoder": {"grid": ["conv6", "resnet18"]}}
    raw = {"name": "s", "search": search, "baseline": True, "tune": {"num_samples": 3}}
    store, sweep = fill_with(tmp_path, raw, by_encoder)
    points = read(store, sweep).points
    for name in search:
        figure = draw_scatter(sweep, points, name)
        marks = [line for line in figure.axes[0].lines if line.get_label() == "random encoder"]
        places = {tuple(sorted(line.get_xdata())): set(line.get_ydata()) for line in marks}
        of_encoder = {
            encoder: tuple(
                sorted(p.varied["usl_lr"] for p in points if p.varied["encoder"] == encoder and p.control == "")
            )
            for encoder in ("conv6", "resnet18")
        }
        expected = of_encoder if name == "usl_lr" else {"conv6": (0,), "resnet18": (1,)}
        assert places == {expected["conv6"]: {0.3}, expected["resnet18"]: {0.6}}
        assert all(line.get_linestyle() == "None" for line in marks)
        assert [text.get_text() for text in figure.legends[0].get_texts()] == ["random encoder"]


def test_labels_of_parallel_coordinates_do_not_overlap(tmp_path):
    search = {"alpha": {"choice": [1, 1.01, 1.02, 1.5, 2]}, "strength": {"uniform": [0.1, 1]}}
    raw = {"name": "s", "search": search, "tune": {"num_samples": 40}}
    store, sweep = fill_with(tmp_path, raw, by_learning_rate)
    figure = draw_parallel(sweep, read(store, sweep).points)
    drawing.save(figure)
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    for first, second in itertools.combinations(boxes, 2):
        assert not first.overlaps(second)
    assert len([text for text in figure.axes[0].texts if text.get_position()[0] == 0]) == 3


def test_a_scatter_plot_has_a_dot_for_each_point_and_a_colour_for_the_setting_that_matters_most(drawn):
    _, sweep, report = drawn
    figure = draw_scatter(sweep, report.points, "strength")
    dots = [line for line in figure.axes[0].lines if line.get_gid() == "point"]
    points = {(p.varied["strength"], np.mean(p.values(COLUMNS[1]))) for p in report.points if not p.baseline}
    assert {(line.get_xdata()[0], line.get_ydata()[0]) for line in dots} == points
    assert figure.axes[-1].get_ylabel() == "usl_lr", "the colour bar"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["random encoder"]
    by_policy = draw_scatter(sweep, report.points, "policy").axes[0]
    policies = list(dict.fromkeys(point.varied["policy"] for point in report.points if not point.baseline))
    assert len(policies) == 2
    assert [text.get_text() for text in by_policy.get_xticklabels()] == policies, "in the order of the points"


def test_values_that_were_drawn_evenly_have_a_linear_scale(drawn):
    _, sweep, report = drawn
    assert sweep.evenly_drawn == {"strength"}
    first, *others = report.points
    assert first.control == "random"
    smallest = replace(others[0], varied={**others[0].varied, "strength": 1e-6})
    points = [first, smallest, *others[1:]]
    scales = {name: draw_scatter(sweep, points, name).axes[0].get_xscale() for name in ("strength", "usl_lr")}
    assert scales == {"strength": "linear", "usl_lr": "log"}
    words = [text.get_text().strip() for text in draw_parallel(sweep, points).axes[0].texts]
    assert any(0.4 < float(word) < 0.6 for word in words[5:10]), "the middle of the axis of the strengths"


def contrast_on_white(colour):
    """Return the contrast ratio of a colour on white, as WCAG 2 defines it."""
    linear = [v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in to_rgb(colour)]
    return 1.05 / (np.dot([0.2126, 0.7152, 0.0722], linear) + 0.05)


def test_the_best_point_of_a_search_is_not_paler_than_the_colours_of_points(drawn):
    _, sweep, report = drawn
    palest = min(map(contrast_on_white, COLOURS))
    lines = [line for line in draw_parallel(sweep, report.points).axes[0].lines if len(line.get_xdata()) == 4]
    assert len({line.get_color() for line in lines}) > 10
    assert min(contrast_on_white(line.get_color()) for line in lines) >= palest
    assert all(line.get_alpha() is None for line in lines)
    dots = draw_scatter(sweep, report.points, "strength").axes[0].lines
    assert min(contrast_on_white(line.get_markeredgecolor()) for line in dots) >= palest


def test_parallel_coordinates_have_a_line_for_each_point_that_has_all_settings(tmp_path, drawn):
    _, sweep, report = drawn
    axes = draw_parallel(sweep, report.points).axes[0]
    assert len([line for line in axes.lines if len(line.get_xdata()) == 4]) == 40
    assert [text.get_text() for text in axes.get_xticklabels()] == [
        "usl_lr", "strength", "policy", "linear test accuracy",
    ]  # fmt: skip
    two = [{**DRAWN["search"], "usl_type": ["simclr"]}, {"seed": [0, 1], "strength": {"uniform": [0, 1]}}]
    store, sweep = fill_with(tmp_path, {**DRAWN, "search": two}, by_learning_rate)
    assert "40 of 80 points lack a setting" in draw_parallel(sweep, read(store, sweep).points).get_suptitle()


def test_importance_finds_the_setting_that_decides_and_names_the_share_of_the_seeds(drawn):
    _, sweep, report = drawn
    points = [point for point in report.points if not point.baseline]
    shares = importances(sweep, points, ["usl_lr", "strength", "policy"], COLUMNS[1])
    assert shares["usl_lr"] > 0.8
    assert sum(shares.values()) < 1
    words = texts(draw_importance(sweep, report.points))
    assert any("about 0 % of the variance between points\ncomes from the seeds" in text for text in words), (
        "all points share the effect of the seed"
    )


@pytest.mark.parametrize("spread", [0.0, 0.02])
def test_the_share_of_the_seeds_is_that_of_an_analysis_of_variance(tmp_path, spread):
    rng = np.random.default_rng(0)
    effects, noise = rng.normal(0, spread, 40), rng.normal(0, 0.01, (40, 2))
    table = iter((0.5 + effects[:, None] + [0, 0.2] + noise).ravel())

    def metrics(trial):
        return dict.fromkeys(COLUMNS, 0.3 if trial.baseline else float(next(table)))

    store, sweep = fill_with(tmp_path, DRAWN, metrics)
    points = [point for point in read(store, sweep).points if not point.baseline]
    given = np.array([point.values(COLUMNS[1]) for point in points])
    rows, columns = given.mean(1, keepdims=True), given.mean(0, keepdims=True)
    residual = ((given - rows - columns + given.mean()) ** 2).sum() / 39
    between = 2 * ((rows - given.mean()) ** 2).sum() / 39
    assert seed_share(points, COLUMNS[1]) == pytest.approx(min(1, residual / between))
    if spread == 0:
        assert seed_share(points, COLUMNS[1]) > 0.7, "all points are equal"
    else:
        assert seed_share(points, COLUMNS[1]) < 0.3, "the truth is 0.11"


def test_a_scale_is_that_of_the_distribution_also_with_zero(tmp_path):
    search = {
        "usl_lr": {"loguniform": [1e-3, 2e-2]},
        "alpha": {"choice": [0, 1e-4, 1e-3, 1e-2, 1]},
        "strength": {"uniform": [0, 1]},
    }
    raw = {"name": "s", "search": search, "tune": {"num_samples": 40}}
    store, sweep = fill_with(tmp_path, raw, lambda trial: dict.fromkeys(COLUMNS, trial.settings.strength / 2))
    points = read(store, sweep).points
    names = list(search)
    axes = {name: draw_scatter(sweep, points, name).axes[0] for name in names}
    assert [each.get_xscale() for each in axes.values()] == ["log", "symlog", "linear"]
    drawing.save(axes["usl_lr"].figure, dpi=20)
    assert {"0.002", "0.005", "0.01"} <= {text.get_text() for text in axes["usl_lr"].get_xticklabels()}
    lines = [line for line in draw_parallel(sweep, points).axes[0].lines if len(line.get_xdata()) == 4]
    heights = {round(float(line.get_ydata()[1]), 9) for line in lines}
    assert heights == {0, 0.2, 0.4, 0.6, 1}, "zero is one decade below the smallest positive value"
    for name in names:
        values = [point.varied[name] for point in points]
        scale = scale_of(sweep, name, values)
        places = places_of(values, scale)
        assert values_at(places, values, scale) == pytest.approx(values)
        span = axes[name].xaxis.get_transform().transform(np.array(values, dtype=float))
        if scale != "symlog":  # Matplotlib gives the linear part 1.11 decades
            assert places == pytest.approx(list((span - span.min()) / np.ptp(span)))


def test_importance_is_the_share_of_the_variance_that_a_setting_explains_alone(tmp_path):
    def with_simclr(trial):
        x = (math.log10(trial.settings.usl_lr) + 5) / 4  # uniform in [0, 1]
        return dict.fromkeys(COLUMNS, 0.5 + (0.4 * x if trial.settings.policy == "simclr" else 0))

    store, sweep = fill_with(tmp_path, {**DRAWN, "tune": {"num_samples": 100}}, with_simclr)
    points = [point for point in read(store, sweep).points if not point.baseline]
    shares = importances(sweep, points, ["usl_lr", "strength", "policy"], COLUMNS[1])
    # Var(f) = 5/48 for f = x with one policy and 0 with the other. The mean over x has the variance 1/16, the mean over
    # the policies 1/48. What remains is the effect of both together.
    assert shares == pytest.approx({"policy": 3 / 5, "usl_lr": 1 / 5, "strength": 0}, abs=0.06)


def test_few_points_have_no_importance(tmp_path):
    store, sweep = fill_with(tmp_path, {**DRAWN, "tune": {"num_samples": 7}}, by_learning_rate)
    assert draw_importance(sweep, read(store, sweep).points) is None
    with pytest.raises(InputError, match="two settings that vary, and results of 8 points that have both settings"):
        raysweep.open(store.root).figure("importance")


def test_a_legend_has_at_most_ten_entries_and_the_best_lines_are_kept(tmp_path):
    search = {"alpha": [0.1, 1, 10], "strength": [(n + 1) / 20 for n in range(20)]}

    def score(trial):
        return dict.fromkeys(COLUMNS, 0.5 if trial.baseline else 0.3 + trial.settings.strength / 10)

    store, sweep = fill_with(tmp_path, {"name": "many", "search": search, "baseline": True}, score)
    figure = draw(sweep, read(store, sweep).points, "alpha")
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == [f"strength = {n / 20:.4g}" for n in range(12, 21)] + ["random encoder"]
    assert "the 9 of 20 lines with the best points by linear/val_accuracy" in figure.get_suptitle()
    [picture] = [figure.canvas.get_renderer()] if hasattr(figure.canvas, "get_renderer") else [None]
    box, page = figure.legends[0].get_window_extent(picture), figure.bbox
    assert page.x0 <= box.x0
    assert box.x1 <= page.x1


def test_bars_of_several_lines_do_not_touch(tmp_path):
    search = {"alpha": [1e-5, 1e-3, 0.1], "strength": [0.1, 0.2, 0.3, 0.4], "seed": [0, 1, 2]}

    def score(trial):
        return dict.fromkeys(COLUMNS, 0.5 + trial.settings.seed / 50)

    store, sweep = fill_with(tmp_path, {"name": "bars", "search": search}, score)
    figure = draw(sweep, read(store, sweep).points, "alpha")
    drawing.save(figure)
    axes = figure.axes[0]
    lines = [line for line in axes.lines if line.get_label().startswith("strength")]
    starts = sorted(axes.transData.transform((line.get_xdata()[0], 0.5))[0] for line in lines)
    cap = 2 * 3 * figure.dpi / 72  # a cap is 3 points wide on each side
    assert min(np.diff(starts)) > 0.8 * cap
