"""The controls of a sweep: trials that show what a score is worth, and the entry `baseline` that lists them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from raysweep.config import shown, suggest
from raysweep.errors import InputError

RANDOM, SUPERVISED = "random", "supervised"
CONTROLS: Mapping[str, Mapping[str, Any]] = {
    RANDOM: {"usl_epochs": 0},
    "pixels": {"usl_epochs": 0, "encoder": "pixels"},
    "pca": {"usl_epochs": 0, "encoder": "pca"},
    SUPERVISED: {"usl_type": "supervised", "layerwise": "none", "strength": 0.0},
}
"""For each control, in the order of tables and figures, the settings that differ from a point's settings."""


def read_controls(value: Any, where: str) -> tuple[str, ...]:
    """Return the controls that the entry `baseline` lists, in the order of `CONTROLS`.

    Args:
        value: True (the random encoder), False or `none` (no control), a name, or a list of names.
        where: The start of every message.

    Raises:
        InputError: The value is something else, or a name is unknown or listed twice.
    """
    if isinstance(value, bool):
        return (RANDOM,) if value else ()
    if value == "none":
        return ()
    if isinstance(value, str) and "," in value:
        raise InputError(f"{where}: baseline: several controls are a list: baseline=[{value}]")
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)):
        raise InputError(
            f"{where}: baseline: must be true, false, or names from {', '.join(CONTROLS)}, not {shown(value)}"
        )
    for name in names:
        if not isinstance(name, str) or name not in CONTROLS:
            raise InputError(f"{where}: baseline: unknown control {shown(name)}{suggest(name, CONTROLS)}")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{where}: baseline: {twice!r} is listed twice")
    return ordered(names)


def ordered(names: Iterable[str]) -> tuple[str, ...]:
    """Return the controls, each once, in the order of `CONTROLS`."""
    wanted = set(names)
    return tuple(name for name in CONTROLS if name in wanted)


def written(names: tuple[str, ...]) -> bool | list[str]:
    """Return the entry `baseline` for these controls, as older versions wrote it where they had a word for it."""
    return list(names) if set(names) - {RANDOM} else bool(names)
