"""The linear probes of a trial: one, or every combination of listed settings."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from raysweep.config.values import Number, suggest
from raysweep.space.reading import parse_yaml


@dataclass(frozen=True)
class ProbeSpec:
    """One linear probe: the layer that it reads, and its learning rate and weight decay."""

    layer: str
    lr: float
    weight_decay: float

    def __str__(self) -> str:
        """Return the probe's name, such as `layer=trunk,lr=0.001,weight_decay=0.0`."""
        return f"layer={self.layer},lr={self.lr},weight_decay={self.weight_decay}"


class ProbeGrid(BaseModel):
    """Linear probes that are trained together: every combination of these values.

    For an empty list, the value of the setting `le_lr`, `le_weight_decay` or `probe_layer` is used.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    lr: tuple[Annotated[Number, Field(gt=0)], ...] = ()
    weight_decay: tuple[Annotated[Number, Field(ge=0)], ...] = ()
    layer: tuple[str, ...] = ()

    @classmethod
    def read(cls, value: Any) -> ProbeGrid:
        """Read a grid from a mapping of lists, or from YAML text of such a mapping.

        Raises:
            ValueError: a key is unknown, a list is empty or has a value twice, or a value is out of range.

        Example:
            `ProbeGrid.read("{lr: [1e-4, 1e-3], layer: [trunk]}").lr` gives `(0.0001, 0.001)`.
        """
        if isinstance(value, str):
            value = parse_yaml(value, "as YAML")
        if not isinstance(value, dict) or not value:
            raise ValueError("expected lists of lr, weight_decay or layer, such as {lr: [1.0e-4, 1.0e-3]}")
        lists: dict[str, Any] = {}
        for name, items in value.items():
            if name not in cls.model_fields:
                raise ValueError(f"unknown key {name!r}{suggest(str(name), cls.model_fields)}")
            lists[name] = items = items if isinstance(items, list) else [items]
            if not items or any(isinstance(item, bool) for item in items):
                raise ValueError(f"{name}: {items!r} is not a list of values")
        try:
            grid = cls(**lists)
        except ValidationError as fault:
            first = fault.errors()[0]
            problem = first["msg"].removeprefix("Value error, ")
            raise ValueError(f"{first['loc'][0]}: {first['input']!r}: {problem}") from None
        for name in cls.model_fields:
            items = getattr(grid, name)
            if len(set(items)) < len(items):
                raise ValueError(f"{name}: a value is listed twice")
        return grid

    def text(self) -> str:
        """Return the grid as one line of YAML for `read`: `{lr: [0.0001, 0.001], layer: [trunk]}`."""
        lists = {name: getattr(self, name) for name in type(self).model_fields}
        entries = [f"{name}: [{', '.join(map(str, items))}]" for name, items in lists.items() if items]
        return "{" + ", ".join(entries) + "}"

    def specs(self, layer: str, lr: float, weight_decay: float) -> tuple[ProbeSpec, ...]:
        """Return all probes. An argument is used where the grid lists nothing."""
        layers, rates, decays = self.layer or (layer,), self.lr or (lr,), self.weight_decay or (weight_decay,)
        return tuple(ProbeSpec(*values) for values in itertools.product(layers, rates, decays))


def probe_specs(probe_grid: str | None, layer: str, lr: float, weight_decay: float) -> tuple[ProbeSpec, ...]:
    """Return the linear probes of a trial: all probes of the grid, or one probe without a grid."""
    grid = ProbeGrid() if probe_grid is None else ProbeGrid.read(probe_grid)
    return grid.specs(layer, lr, weight_decay)
