"""The scale on which the values of a setting are shown: linear, logarithmic, or logarithmic with zero."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from raysweep.space import Sweep

Scale = Literal["linear", "log", "symlog"]
WIDE = 100
"""Values that span this factor or more have a logarithmic scale, unless they were drawn evenly."""


def scale_of(sweep: Sweep, name: str, values: Sequence[float]) -> Scale:
    """Return the scale of a setting's values: the scale of its distribution, or else a scale that suits the values."""
    if name in sweep.evenly_drawn:
        return "linear"
    return suitable(values, {kind for key, kind in sweep.distributions if key == name} == {"loguniform"})


def suitable(values: Sequence[float], is_log: bool = False) -> Scale:
    """Return the scale that suits values. `is_log` says that they were drawn evenly on a logarithmic scale.

    With zero among the values, the scale is linear up to the smallest positive value.
    """
    positive = [value for value in values if value > 0]
    if min(values) < 0 or not positive or (max(positive) / min(positive) < WIDE and not is_log):
        return "linear"
    return "log" if len(positive) == len(values) else "symlog"


def places_of(values: Sequence[float], scale: Scale) -> list[float]:
    """Return the places of values on their scale, in [0, 1]; 0.5 if all are equal."""
    least = smallest(values, scale)
    places = [forward(value, least, scale) for value in values]
    low, high = min(places), max(places)
    return [(place - low) / (high - low) if high > low else 0.5 for place in places]


def values_at(shares: Sequence[float], values: Sequence[float], scale: Scale) -> list[float]:
    """Return the values at these places in [0, 1] of the scale of `values`; see `places_of`."""
    least = smallest(values, scale)
    low, high = (forward(end(values), least, scale) for end in (min, max))
    return [backward(low + share * (high - low), least, scale) for share in shares]


def smallest(values: Sequence[float], scale: Scale) -> float:
    """Return the smallest positive value; 1 for a linear scale, which does not need it."""
    return min(value for value in values if value > 0) if scale != "linear" else 1.0


def forward(value: float, least: float, scale: Scale) -> float:
    """Return the place of a value in decades above the smallest positive value. Zero is one decade below it."""
    if scale == "linear":
        return float(value)
    return math.log10(value / least) if value >= least else value / least - 1


def backward(place: float, least: float, scale: Scale) -> float:
    """Return the value at a place; the inverse of `forward`."""
    if scale == "linear":
        return float(place)
    return float(least * 10**place) if place >= 0 else (place + 1) * least
