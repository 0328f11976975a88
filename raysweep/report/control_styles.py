"""How figures show the controls of a sweep: their order, their labels, and their lines."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from raysweep.report.points import Point
from raysweep.space import CONTROLS, RANDOM

DASHES: dict[str, Any] = {"random": "--", "pixels": ":", "pca": "-.", "supervised": (0, (8, 2))}
"""The line style of each control."""
TINTS = {"random": "#666666", "pixels": "#8c6d31", "pca": "#7b4173", "supervised": "#4f6b2a"}
"""The colour of each control: muted, because controls are the background of the points."""
DASH_LENGTHS = {"random": 4.0, "pixels": 1.5, "pca": 8.0, "supervised": 14.0}
"""The length of a dash in line widths, in the comparison of several sweeps. Dashes of different sweeps alternate."""
BAR_DASHES: dict[str, Any] = {"random": "-", "pixels": ":", "pca": (0, (3, 1)), "supervised": (0, (1, 1, 3, 1))}
"""The line style of each control on a colour bar, which is narrow."""
BAR_WORDS = {"random": "line on the bar", "pixels": "dotted", "pca": "dashed", "supervised": "dash-dotted"}
"""The line style on a colour bar in words."""


def in_order(controls: Iterable[Point]) -> list[Point]:
    """Return the controls in the order of `CONTROLS`."""
    names = list(CONTROLS)
    return sorted(controls, key=lambda point: names.index(point.control))


def label_of(control: str, name: str = "") -> str:
    """Return the label of a control in a figure, such as `random encoder` or `pixels`; `name` is its point's name."""
    return f"{name or control} encoder" if control == RANDOM else name or control
