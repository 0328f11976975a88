"""The tables of a report, among which a race of seeds divides its error."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from raysweep.config import SETTINGS, about, fingerprint, protocol
from raysweep.config.images import evaluated_images

if TYPE_CHECKING:
    from raysweep.space.model import Trial


def count_tables(trials: Iterable[Trial]) -> int:
    """Return the number of tables that a report has for each score of some trials.

    For each evaluation protocol, and for each set of evaluated images, there is a table of the pairs of points and one
    for each experiment of a control.
    """
    controls: dict[Any, set[Any]] = {}
    for trial in trials:
        source, images = trial.source, evaluated_images(trial.settings)
        if source is not None:  # the images have the size and the channels of the encoder
            images = (images[0], source.image_size, source.channels)
        group = controls.setdefault((fingerprint(protocol(trial.settings, "")), images), set())
        if trial.control:
            decides = (name for name in SETTINGS if about(name).changes_scores and name != "seed")
            group.add((trial.control, *(getattr(trial.settings, name) for name in decides)))
    return sum(1 + len(group) for group in controls.values())
