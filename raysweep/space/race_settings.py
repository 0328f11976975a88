"""The entry `seeds` of a search space, which lets seeds race, and the rounds of a race."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from raysweep.config import About, check_type

RaceEnd = Literal["", "settled", "most", "budget", "incomparable"]
"""Why a race ended; empty if it has not ended.

- `settled`: more seeds could not settle any further comparison.
- `most`: the points with open comparisons have all their seeds.
- `budget`: the time budget is used up.
- `incomparable`: no two points can be compared.
"""


class Race(BaseModel):
    """The seeds of a sweep as a race: the entry `seeds` of a search space."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    _types = field_validator("*", mode="before")(check_type)

    most: Annotated[int, Field(ge=3), About("The largest number of seeds of a point. A verdict needs three seeds.")]
    least: Annotated[int, Field(ge=2), About("Seeds with which every point starts: 0, 1, 2, …")] = 3
    until: Annotated[
        Literal["separated"],
        About(
            "What ends the race: the best point is separated from every other point and from its controls, or these "
            "points have all their seeds."
        ),
    ] = "separated"

    @property
    def looks(self) -> int:
        """The largest number of looks at the results. A look at fewer than three seeds tests nothing."""
        return self.most - max(self.least, 3) + 1


@dataclass(frozen=True)
class Round:
    """One round of a race, after the first one."""

    seeds: int
    """The number of seeds that its points have after the round."""
    points: tuple[str, ...]
    """The names of the points and controls that get more seeds."""
