"""The messages between a running trial and its caller: progress, the end, and the request to stop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

ONLINE = "online/knn_val_accuracy"
LOSS = "pretrain/loss"


@dataclass(frozen=True)
class Status:
    """The state of a running trial, for a display. All values are numbers and text on the host."""

    fraction: float
    """The fraction of the whole trial that is done, in [0, 1]."""
    phase: str = ""
    """What the trial does, such as `pretraining` or `linear probe`; empty if unknown."""
    epoch: int = 0
    """Number of finished epochs of the phase."""
    epochs: int = 0
    """Number of epochs of the phase; 0 if the phase has no epochs."""
    loss: float | None = None
    """The newest loss of pretraining."""
    online: float | None = None
    """The newest kNN accuracy during pretraining, in [0, 1]."""


@dataclass(frozen=True)
class ProgressReport:
    """The progress of a trial, after an epoch of pretraining or of a probe."""

    fraction: float
    """The fraction of the whole trial that is done, in [0, 1]."""
    epoch: int
    """Number of finished epochs of pretraining."""
    evaluated: bool
    """Whether the online measures among `metrics` are from this epoch."""
    metrics: dict[str, float]
    """The newest value of each metric."""
    seconds: float
    """The time spent on the trial, over all attempts."""
    phase: str
    """What the trial does next, such as `pretraining` or `linear probe`."""
    phase_epochs: tuple[int, int]
    """Number of finished epochs of this phase, and of all its epochs; (0, 0) if the phase has no epochs."""
    precision: str = ""
    """The precision of pretraining, with `auto` resolved; empty while the trial does not pretrain."""

    def status(self) -> Status:
        """Return what a display shows."""
        loss, online = self.metrics.get(LOSS), self.metrics.get(ONLINE)
        return Status(self.fraction, self.phase, *self.phase_epochs, loss, online)


@dataclass(frozen=True)
class End:
    """How a trial ended by itself."""

    status: Literal["finished", "failed", "stopped"]
    reason: str | None = None


Report = Callable[[ProgressReport], None]
MustStop = Callable[[], bool]
"""Called between two steps. It says whether to save a checkpoint at once and stop. It must be cheap."""
Saved = Callable[[], None]
"""Called after something was written that a resumed trial, or the sweep, reads."""
