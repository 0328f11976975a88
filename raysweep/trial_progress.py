"""What a trial tells while it runs, and what it is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Progress:
    """The progress of a trial, after an epoch of pretraining or of a probe."""

    share: float
    """The fraction of the whole trial that is done, in [0, 1]."""
    epoch: int
    """Number of finished epochs of pretraining."""
    evaluated: bool
    """Whether the online measures among `metrics` are from this epoch."""
    metrics: dict[str, float]
    """The newest value of each metric."""
    seconds: float
    """The time spent on the trial, over all attempts."""


@dataclass(frozen=True)
class End:
    """How a trial ended by itself."""

    status: Literal["finished", "failed", "stopped"]
    reason: str | None = None


Report = Callable[[Progress], None]
Stop = Callable[[], bool]
"""Called between two steps. It says whether to save a checkpoint at once and stop. It must be cheap."""
Saved = Callable[[], None]
"""Called after something was written that a resumed trial, or the sweep, reads."""
