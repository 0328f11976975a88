"""The labels that pretraining reads. It must not read the labels of the validation images."""

from __future__ import annotations

from typing import Any

from raysweep import parts
from raysweep.config import Settings


def reads_labels(settings: Settings) -> bool:
    """Return whether pretraining reads labels."""
    return settings.usl_epochs > 0 and bool(parts.method[settings.usl_type].traits["reads_labels"])


def held_out(settings: Settings) -> tuple[Any, ...]:
    """Return what decides which images a pretraining with labels leaves out for validation; empty if none.

    Two folders can hold the same images. So the name of the evaluated dataset counts even if it is another one than the
    dataset of pretraining.
    """
    if not reads_labels(settings) or not settings.probe_labels or not settings.val_fraction:
        return ()
    return settings.evaluated_dataset, settings.val_fraction, settings.split_seed
