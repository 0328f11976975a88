"""The linear probes of a trial: one, or every combination of listed settings."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from raysweep.config.values import Number, suggest


@dataclass(frozen=True)
class ProbeSpec:
    """One linear probe: the layer that it reads, and how it is trained."""

    layer: str
    lr: float
    weight_decay: float

    def __str__(self) -> str:
        """`layer=trunk,lr=0.001,weight_decay=0.0`."""
        return f"layer={self.layer},lr={self.lr},weight_decay={self.weight_decay}"


class ProbeGrid(BaseModel):
    """Linear probes that are trained together: every combination of these values.

    An empty list stands for the value of the one setting (`le_lr`, `le_weight_decay`, `probe_layer`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    lr: tuple[Annotated[Number, Field(gt=0)], ...] = ()
    weight_decay: tuple[Annotated[Number, Field(ge=0)], ...] = ()
    layer: tuple[str, ...] = ()

    @classmethod
    def read(cls, value: Any) -> ProbeGrid:
        """A grid from a mapping of lists, or from `lr=1e-4+1e-3,layer=trunk`; raises ValueError."""
        if isinstance(value, str):
            entries = [entry.partition("=") for entry in value.split(",")]
            value = {name.strip(): items.split("+") for name, _, items in entries}
        if not isinstance(value, dict) or not value:
            raise ValueError("expected lists of lr, weight_decay, layer, such as {lr: [1.0e-4, 1.0e-3]}")
        given: dict[str, Any] = {}
        for name, items in value.items():
            if name not in cls.model_fields:
                raise ValueError(f"unknown key {name!r}{suggest(str(name), cls.model_fields)}")
            given[name] = items = items if isinstance(items, list) else [items]
            if not items or any(isinstance(item, bool) for item in items):
                raise ValueError(f"{name}: {items!r} is no list of values")
        try:
            grid = cls(**given)
        except ValidationError as fault:
            first = fault.errors()[0]
            problem = first["msg"].removeprefix("Value error, ")
            raise ValueError(f"{first['loc'][0]}: {first['input']!r}: {problem}") from None
        for name in cls.model_fields:
            items = getattr(grid, name)
            if len(set(items)) < len(items):
                raise ValueError(f"{name}: a value stands there twice")
        return grid

    def text(self) -> str:
        """The grid as text, which `read` understands."""
        lists = {name: getattr(self, name) for name in type(self).model_fields}
        return ",".join(f"{name}={'+'.join(map(str, items))}" for name, items in lists.items() if items)

    def specs(self, layer: str, lr: float, weight_decay: float) -> tuple[ProbeSpec, ...]:
        """The probes; the arguments stand where the grid lists nothing."""
        return tuple(
            ProbeSpec(*values)
            for values in itertools.product(
                self.layer or (layer,), self.lr or (lr,), self.weight_decay or (weight_decay,)
            )
        )


def probe_specs(probe_bank: str | None, layer: str, lr: float, weight_decay: float) -> tuple[ProbeSpec, ...]:
    """The linear probes among which the best one on the validation images counts; one probe without a grid."""
    grid = ProbeGrid() if probe_bank is None else ProbeGrid.read(probe_bank)
    return grid.specs(layer, lr, weight_decay)
