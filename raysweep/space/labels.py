"""Short names of points for people. Directories and CSV files keep the exact names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from raysweep.space.expansion import point_name, shorten
from raysweep.space.model import Sweep, Trial

DIGITS = 4
"""Significant digits of a drawn value in a short name."""


def short_names(sweep: Sweep) -> dict[str, str]:
    """Return a short name for each point in which a real number was drawn: `alpha=2.59` for `alpha=2.5903055690815227`.

    Drawn values have four significant digits. If two points would then have the same name, both keep their exact names.
    The values of a grid are never rounded.
    """
    drawn = {name for name, kind in sweep.distributions if kind in ("uniform", "loguniform")}
    points = {trial.point: trial for trial in (*sweep.missing_trials, *sweep.trials)}
    names = {point: short_name(trial, drawn) for point, trial in points.items()}
    counts = Counter(names.values())
    return {point: name for point, name in names.items() if name != point and counts[name] == 1}


def short_name(trial: Trial, drawn: set[str]) -> str:
    """Return the name of a trial's point with its drawn values rounded."""
    varied: Mapping[str, Any] = {
        name: float(f"{value:.{DIGITS}g}") if name in drawn and isinstance(value, float) else value
        for name, value in trial.varied.items()
        if name != "seed"
    }
    if not trial.control:
        return point_name(varied)
    return shorten(",".join([trial.control, *([point_name(varied)] if varied else [])]))
