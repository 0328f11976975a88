"""The table of learning-rate schedules of pretraining. To add a schedule, add a function here.

A schedule is a pure function of a step. It returns the factor by which `usl_lr` is multiplied for this step. Steps
count from 0. In greedy layerwise training the schedule starts again with each block. In random layerwise training the
steps of all blocks count together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from raysweep import parts
from raysweep.parts import Condition, Metric, schedule

if TYPE_CHECKING:
    from raysweep.config import Settings

RATE = {
    "pretrain/lr": Metric(
        "Learning rate of the epoch's last step, reported if the schedule is not constant.",
        lowest=0.0,
        is_diagnosis=True,
    )
}

WarmupEpochs = Annotated[int, Field(ge=0), "Epochs at the start in which the learning rate rises linearly to `usl_lr`."]


def scheduled_epochs(settings: Settings) -> int:
    """Return the number of epochs of one schedule: `usl_epochs`, or the epochs of all blocks if `layerwise: random`."""
    return settings.pretrain_epochs if settings.layerwise == "random" else settings.usl_epochs


def reaches_final_lr(settings: Any) -> bool:
    """Return whether a step of a schedule depends on `final_lr`."""
    if settings.schedule == "wsd":
        return bool(settings.decay_epochs > 0)
    return settings.schedule != "cosine" or bool(settings.warmup_epochs < scheduled_epochs(settings))


FinalLr = Annotated[
    float,
    Field(ge=0, le=1),
    "The factor by which `usl_lr` is multiplied at the end of the schedule.",
    Condition("`warmup_epochs` < `usl_epochs` (`cosine`) or `decay_epochs` > 0 (`wsd`)", reaches_final_lr),
]


def factor_of(settings: Settings) -> Callable[[int, int, int], float] | None:
    """Return the function that gives the factor of the learning rate; None if the rate never changes.

    The function is called with the step, the number of steps of the schedule, and the number of steps of an epoch.
    """
    part = parts.schedule[settings.schedule]
    return None if part.traits["constant"] else partial(part.function, **part.arguments(settings))


def check_epochs(settings: Settings) -> None:
    """Raise ValueError if the schedule's phases are longer than pretraining."""
    read = parts.schedule[settings.schedule].parameters
    phases = {name: getattr(settings, name) for name in ("warmup_epochs", "decay_epochs") if name in read}
    epochs = scheduled_epochs(settings)
    if sum(phases.values()) > epochs:
        words = " and ".join(f"{name}={length}" for name, length in phases.items())
        raise ValueError(
            f"schedule={settings.schedule}: {words}, but pretraining has only {epochs} epochs; raise usl_epochs"
        )


@schedule(constant=True)
def constant(step: int, steps: int, epoch_steps: int) -> float:
    """The same learning rate in every step."""
    return 1.0


@schedule(metrics=RATE, check=check_epochs)
def cosine(
    step: int, steps: int, epoch_steps: int, *, warmup_epochs: WarmupEpochs = 10, final_lr: FinalLr = 0.0
) -> float:
    """A linear warm-up, then half a period of a cosine (Loshchilov & Hutter 2017, arXiv 1608.03983).

    The factor is (t + 1) / W in warm-up and f + (1 − f) · (1 + cos(π (t − W) / (T − W))) / 2 afterwards, for step t of
    T, W warm-up steps and f = `final_lr`.
    """
    warmup = warmup_epochs * epoch_steps
    if step < warmup:
        return (step + 1) / warmup
    return final_lr + (1 - final_lr) * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


@schedule(metrics=RATE, check=check_epochs, reads_total=lambda s: s.decay_epochs > 0)
def wsd(
    step: int,
    steps: int,
    epoch_steps: int,
    *,
    warmup_epochs: WarmupEpochs = 10,
    decay_epochs: Annotated[
        int, Field(ge=0), "Epochs at the end in which the learning rate falls linearly to `final_lr` times `usl_lr`."
    ] = 10,
    final_lr: FinalLr = 0.0,
) -> float:
    """Warm-up, stable phase and decay, both slopes linear (Hägele et al. 2024, arXiv 2405.18392).

    The factor is (t + 1) / W in warm-up and 1 in the stable phase. In the decay it is f + (1 − f) · (T − t) / D, for
    step t of T, W warm-up steps, D decay steps and f = `final_lr`.
    """
    warmup, decay = warmup_epochs * epoch_steps, decay_epochs * epoch_steps
    if step < warmup:
        return (step + 1) / warmup
    if step < steps - decay:
        return 1.0
    return final_lr + (1 - final_lr) * (steps - step) / decay
