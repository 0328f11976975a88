"""The figure of the linear probes on every block of the encoder: a small panel for each point."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from raysweep import parts
from raysweep.report.control_styles import DASHES, TINTS, in_order, label_of
from raysweep.report.drawing import Figure, add_legend, own_style, wrapped
from raysweep.report.figures import has_line
from raysweep.report.heatmaps import headed
from raysweep.report.marks import BELOW, COLOURS, add_seeds, at_most, clip, legend_columns, seeds_and_bars
from raysweep.report.points import LINEAR, Point, block_scores, has_block_scores
from raysweep.space import Sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_PANELS = 12
COLUMNS = 4
"""Most panels beside one another."""


@own_style()
def draw_layers(sweep: Sweep, points: Sequence[Point]) -> Figure | None:
    """Draw the accuracy of a linear probe on every block of the encoder.

    There is a panel for each point, with the controls that have its settings and were evaluated in the same way. If
    there are more than `MOST_PANELS` points, only the best ones by the sweep's metric are drawn. The figure says so.

    Returns:
        The figure; None if no point has such accuracies.
    """
    points = [point for point in points if has_block_scores(point)]
    if not points:
        return None
    controls = in_order(point for point in points if point.baseline)
    shown, words = at_most(sweep, [point for point in points if not point.baseline], MOST_PANELS)
    shown = shown or controls
    columns = min(COLUMNS, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(max(4.2, 2.9 * columns), 1.2 + 2.5 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for axes in panels.flat[len(shown) :]:
        axes.set_visible(False)
    for axes, point in zip(panels.flat, shown, strict=False):
        for control in controls:
            is_alike = control.protocol == point.protocol and has_line(control, [[point]], "")
            if control is not point and is_alike:
                tint = TINTS[control.control]
                draw_blocks(axes, control, tint, "", DASHES[control.control], label_of(control.control))
        draw_blocks(axes, point, COLOURS[0], "o", "-", "the point")
        axes.set_title(wrapped(point.title, 32), fontsize=8)
        axes.grid(alpha=0.25)
    clip(panels[0, 0], LINEAR)  # after all panels are drawn, because they share this axis
    for axes in panels.flat[max(0, len(shown) - columns) : len(shown)]:  # the lowest panel of each column
        axes.set_xlabel("block")
        axes.tick_params(labelbottom=True)
    for axes in panels[:, 0]:
        axes.set_ylabel("accuracy")
    panels[0, 0].set_xticks(range(1, 1 + most_blocks(points)))
    heading = f"linear probe on every block, test accuracy\n{seeds_and_bars(points, 'bars')}"
    figure.suptitle(headed(sweep.name, f"{heading}\n{words}" if words else heading), fontsize=11)
    entries = {label: handle for axes in panels.flat
               for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}  # fmt: skip
    if len(entries) > 1:
        add_legend(figure, entries, ncols=legend_columns(entries, max(4.2, 2.9 * columns)), **BELOW)
    return figure


def most_blocks(points: Sequence[Point]) -> int:
    """Return the number of blocks of the deepest encoder among the points."""
    return max(int(parts.encoder[point.settings.encoder].traits["blocks"]) for point in points)


def draw_blocks(axes: Axes, point: Point, colour: str, marker: str, dashes: Any, label: str) -> None:
    """Draw one point's accuracy by block: the mean over seeds, and with a marker also interval and seeds."""
    scores = [(block, point.values(score)) for block, score in enumerate(block_scores(), 1) if point.values(score)]
    means = [float(np.mean(values)) for _, values in scores]
    axes.plot([x for x, _ in scores], means, linestyle=dashes, color=colour, marker=marker, markersize=4, label=label)
    for x, values in scores if marker else ():
        add_seeds(axes, x, values, colour, point.divisor)
