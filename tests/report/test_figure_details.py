"""Details of the figures that a reader would stumble over: lines between categories, hidden points, wide intervals."""

import pytest

from raysweep.report.figures import draw
from raysweep.report.heatmaps import draw_heatmap
from raysweep.report.points import COLUMNS, gather
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


def test_points_of_several_lines_at_one_value_stand_beside_each_other(tmp_path):
    search = [{"encoder": ["pixels", "pca"]}, {"encoder": ["conv6"], "strength": [0.2, 0.4]}]
    lines = lines_of(drawn(tmp_path, search, "encoder"))
    assert list(lines) == ["only encoder", "strength = 0.2", "strength = 0.4"]
    places = [lines[label].get_xdata()[0] for label in list(lines)[1:]]
    assert places[0] == pytest.approx(2, abs=0.1)
    assert places[1] - places[0] > 0.01
