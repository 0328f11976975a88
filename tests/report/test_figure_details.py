"""Details of the figures that a reader would stumble over: lines between categories, hidden points, wide intervals."""

import itertools

import numpy as np
import pytest

from raysweep.report import drawing
from raysweep.report.comparison import draw_comparison
from raysweep.report.figures import draw
from raysweep.report.heatmaps import draw_heatmap
from raysweep.report.layers import draw_layers
from raysweep.report.points import COLUMNS, block_scores, gather
from tests.report.test_report import fill_with


def metrics(trial):
    """Return scores that differ between trials."""
    return dict.fromkeys(COLUMNS, (sum(map(ord, trial.name)) % 97) / 100)


def drawn(tmp_path, search, name, **raw):
    """Return the figure of a setting over made-up scores."""
    store, sweep = fill_with(tmp_path, {"name": "s", "search": search, **raw}, metrics)
    return draw(sweep, gather(sweep, store.results(sweep)), name)


def lines_of(figure):
    """Return the labelled lines of the first panel, by label."""
    return {line.get_label(): line for line in figure.axes[0].get_lines() if not line.get_label().startswith("_")}


def test_numbers_are_joined_and_categories_are_not(tmp_path):
    search = {"alpha": [0.1, 1], "policy": ["simclr", "noise"], "seed": [0, 1, 2]}
    assert {line.get_linestyle() for line in lines_of(drawn(tmp_path / "a", search, "alpha")).values()} == {"-"}
    assert {line.get_linestyle() for line in lines_of(drawn(tmp_path / "b", search, "policy")).values()} == {"None"}


@pytest.mark.parametrize(("seeds", "intervals"), [(1, 0), (2, 0), (3, 2)])
def test_intervals_and_bands_need_three_seeds_as_in_the_tables(tmp_path, seeds, intervals):
    search = {"alpha": [0.1, 1], "seed": list(range(seeds))}
    figure = drawn(tmp_path, search, "alpha", baseline=True)
    assert len(figure.axes[0].containers) == intervals
    assert len(figure.axes[0].patches) == (seeds > 2), "the band of the random encoder"
    assert ("bars and bands" in figure.get_suptitle()) == (seeds > 2)


@pytest.mark.parametrize(("seeds", "lines"), [(2, 1), (3, 2)])
def test_cells_of_a_heat_map_have_an_interval_from_three_seeds_on(tmp_path, seeds, lines):
    search = {"alpha": [0.1, 1], "strength": [0.2, 0.4], "seed": list(range(seeds))}
    store, sweep = fill_with(tmp_path, {"name": "s", "search": search}, metrics)
    figure = draw_heatmap(sweep, gather(sweep, store.results(sweep)))
    assert {len(text.get_text().split("\n")) for text in figure.axes[0].texts} == {lines}


def scored_by_labels(trial):
    """Return scores that grow with the number of labels, and are lower without pretraining."""
    labels, seed = trial.settings.labels_per_class or 1000, trial.settings.seed
    return dict.fromkeys(COLUMNS, 0.1 * len(str(labels)) + 0.01 * seed + (0 if trial.baseline else 0.05))


def drawn_by_labels(tmp_path, search, name):
    raw = {"name": "s", "search": {**search, "seed": [0, 1, 2]}, "baseline": True}
    store, sweep = fill_with(tmp_path, raw, scored_by_labels)
    return draw(sweep, gather(sweep, store.results(sweep)), name)


@pytest.mark.parametrize("labels", [[1, 10], [1, 10, 100], [1, 2, 10, 20, 100]])
def test_a_control_that_varies_along_the_axis_is_in_the_legend_and_has_its_intervals(tmp_path, labels):
    figure = drawn_by_labels(tmp_path, {"labels_per_class": labels, "alpha": [0.1, 1]}, "labels_per_class")
    entries = [text.get_text() for text in figure.legends[0].get_texts()]
    assert entries == ["alpha = 0.1", "alpha = 1", "random encoder"]
    axes = figure.axes[0]
    line = lines_of(figure)["random encoder"]
    assert list(line.get_ydata()) == pytest.approx([0.1 * len(str(each)) + 0.01 for each in labels])
    assert len(axes.containers) == 3 * len(labels), "a bar for each value of each line"
    dots = [each for each in axes.lines if each.get_gid() == "seeds"]
    grey = [each for each in dots if each.get_markeredgecolor() == line.get_color()]
    assert sum(len(each.get_xdata()) for each in grey) == 3 * len(labels)


def test_controls_of_several_lines_along_the_axis_have_the_colours_of_their_lines(tmp_path):
    search = {"le_epochs": [20, 200], "labels_per_class": [1, 10]}
    figure = drawn_by_labels(tmp_path / "two", search, "le_epochs")
    lines = lines_of(figure)
    for labels, value in ((1, 0.11), (10, 0.21)):
        control = lines[f"random,labels_per_class={labels} encoder"]
        assert control.get_color() == lines[f"labels_per_class = {labels}"].get_color()
        assert list(control.get_ydata()) == pytest.approx([value, value])
    search["labels_per_class"] = [1, 2, 10, 100]
    figure = drawn_by_labels(tmp_path / "four", search, "le_epochs")
    assert figure.legends[0].get_texts()[-1].get_text() == "random encoder (colour: the line of its points)"
    colours = [line.get_color() for line in figure.axes[0].lines if line.get_label().startswith("random encoder")]
    points = [line.get_color() for label, line in lines_of(figure).items() if label.startswith("labels_per_class")]
    assert colours == points
    assert len(set(colours)) == 4
    assert figure.legends[0].get_lines()[-1].get_color() not in colours


def test_points_stand_near_their_value_which_has_a_tick(tmp_path):
    search = {"usl_epochs": [15, 30, 60], "strength": [n / 10 for n in range(1, 11)]}
    figure = drawn(tmp_path / "a", search, "usl_epochs")
    lines = [line for label, line in lines_of(figure).items() if label.startswith("strength")]
    assert len(lines) == 10
    places = np.array([line.get_xdata() for line in lines])
    assert np.abs(places - [15, 30, 60]).max() < 0.05 * (60 - 15)
    assert np.diff(places, axis=0).min() > 0.005 * (60 - 15), "the lines are moved in their order"
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["15", "30", "60"]
    assert list(figure.axes[0].get_xticks()) == [15, 30, 60]
    assert figure.get_suptitle().endswith("points at the same value stand side by side")
    alone = drawn(tmp_path / "b", [{"usl_epochs": [15], "strength": [0.1]}, {"usl_epochs": [30], "strength": [0.2]}],
                  "usl_epochs")  # fmt: skip
    assert [list(line.get_xdata()) for line in lines_of(alone).values()] == [[15], [30]]
    assert "side by side" not in alone.get_suptitle()


def test_labels_of_ticks_do_not_overlap(tmp_path):
    values = [1e-4, 1.5e-4, 2e-4, 1e-3, 0.01, 0.0105, 1]
    axes = drawn(tmp_path, {"alpha": values}, "alpha").axes[0]
    assert list(axes.get_xticks()) == pytest.approx(values)
    drawing.save(axes.figure)
    boxes = [text.get_window_extent() for text in axes.get_xticklabels() if text.get_text()]
    assert len(boxes) >= 4
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


def test_points_of_several_lines_at_one_value_stand_beside_each_other(tmp_path):
    search = [{"encoder": ["pixels", "pca"]}, {"encoder": ["conv6"], "strength": [0.2, 0.4]}]
    lines = lines_of(drawn(tmp_path, search, "encoder"))
    assert list(lines) == ["only encoder", "strength = 0.2", "strength = 0.4"]
    places = [lines[label].get_xdata()[0] for label in list(lines)[1:]]
    assert places[0] == pytest.approx(2, abs=0.1)
    assert places[1] - places[0] > 0.01


def test_the_mean_of_a_control_goes_through_the_rows_of_its_own_points(tmp_path):
    def by_encoder(trial):
        return dict.fromkeys(
            COLUMNS, {"conv6": 0.3, "resnet18": 0.6}[trial.settings.encoder] + (not trial.baseline) / 9
        )

    search = {"encoder": ["conv6", "resnet18"], "strength": [0.2, 0.4]}
    store, sweep = fill_with(tmp_path, {"name": "s", "search": search, "baseline": True}, by_encoder)
    axes = draw_comparison("s", gather(sweep, store.results(sweep)), sweep.metric, sweep.mode).axes[0]
    rows = [text.get_text() for text in axes.get_yticklabels()]
    for line in (line for line in axes.lines if line.get_gid() == "random"):
        encoder = "conv6" if line.get_xdata()[0] == 0.3 else "resnet18"
        for place in (row for row in range(len(rows)) if min(line.get_ydata()) < row < max(line.get_ydata())):
            assert encoder in rows[place]
            rows[place] = rows[place].replace(encoder, "")
    assert not [row for row in rows if "conv6" in row or "resnet18" in row], "every row has its control"


def test_a_panel_of_the_blocks_has_the_control_of_its_own_encoder(tmp_path):
    heights = {"conv6": 0.3, "resnet18": 0.6}

    def by_encoder(trial):
        score = heights[trial.settings.encoder] + (not trial.baseline) / 9
        return dict.fromkeys((*COLUMNS, *block_scores()[:2]), score)

    search = {"encoder": list(heights), "strength": [0.2, 0.4]}
    store, sweep = fill_with(tmp_path, {"name": "s", "search": search, "baseline": True}, by_encoder)
    panels = draw_layers(sweep, gather(sweep, store.results(sweep))).axes
    assert len(panels) == 4
    for axes in panels:
        height = next(height for encoder, height in heights.items() if encoder in axes.get_title())
        controls = [list(line.get_ydata()) for line in axes.lines if line.get_label() == "random encoder"]
        assert controls == [[height, height]]


def test_numbers_are_in_the_order_of_their_size_and_none_comes_last(tmp_path):
    figure = drawn_by_labels(tmp_path, {"labels_per_class": [100, None, 1]}, "labels_per_class")
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["1", "100", "None"]
    lines = lines_of(figure)
    assert len(lines) == 2
    for label, line in lines.items():
        first = 0.11 if label == "random encoder" else 0.16
        assert list(line.get_ydata()) == pytest.approx([first, first + 0.2, first + 0.3])
        assert line.get_linestyle() == "None", "values that are not all numbers are not joined"


def test_a_heading_promises_only_what_the_figure_has(tmp_path):
    search = {"alpha": [0.1, 1], "seed": [0, 1, 2]}
    assert ", bars: 95 %" in drawn(tmp_path / "a", search, "alpha").get_suptitle()
    assert ", bars and bands: 95 %" in drawn(tmp_path / "b", search, "alpha", baseline=True).get_suptitle()
    store, sweep = fill_with(
        tmp_path / "c", {"name": "s", "search": {"policy": ["simclr", "noise"], **search}}, metrics
    )
    figure = draw_comparison("s", gather(sweep, store.results(sweep)), sweep.metric, sweep.mode)
    assert ", bars: 95 %" in figure.get_suptitle()
