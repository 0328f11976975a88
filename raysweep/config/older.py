"""Translation of settings that older versions wrote to their present names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def with_present_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with old names and notations replaced.

    `probe_grid` was called `probe_bank` and written as `lr=0.0001+0.001,layer=trunk`.

    Example:
        `with_present_names({"probe_bank": "lr=0.1+0.2"})` gives `{"probe_grid": "{lr: [0.1, 0.2]}"}`.
    """
    return {
        "probe_grid" if name == "probe_bank" else name: grid_as_yaml(value) if name == "probe_bank" else value
        for name, value in values.items()
    }


def grid_as_yaml(value: Any) -> Any:
    """Return a grid of linear probes in the old notation as YAML text, also inside a list or a distribution."""
    if isinstance(value, list):
        return [grid_as_yaml(item) for item in value]
    if isinstance(value, dict):
        return {key: grid_as_yaml(item) for key, item in value.items()}
    if not isinstance(value, str) or "=" not in value:
        return value
    lists = (entry.partition("=") for entry in value.split(","))
    return "{" + ", ".join(f"{name.strip()}: [{items.replace('+', ', ')}]" for name, _, items in lists) + "}"
