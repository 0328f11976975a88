"""The rule that says when a shorter pretraining is the exact beginning of a longer one."""

from __future__ import annotations

from collections.abc import Collection

from raysweep import parts
from raysweep.config.settings import SETTINGS, Settings, about, has_effect
from raysweep.part_functions import trait_of

SHOWN = ("probe_every", "images_every")
"""Settings that change no score, but change which points TensorBoard has of pretraining."""


def reads_total(part: parts.Part, settings: Settings) -> bool:
    """Return whether a schedule or a method depends on the number of all epochs, by its trait `reads_total`.

    A part that does not declare the trait counts as one that depends on it. A schedule that is `constant` never does.
    """
    return not part.traits.get("constant") and trait_of(part, "reads_total", settings, bool)


def obstacle(settings: Settings) -> str | None:
    """Return why the first epochs of a pretraining differ from a pretraining with fewer `usl_epochs`.

    Returns:
        The setting that is the reason, with its value; None if the first epochs are exactly the same as in a
        pretraining that has fewer `usl_epochs` and otherwise equal settings.

    Example:
        `obstacle(Settings(schedule="cosine"))` gives `"schedule: cosine"`, and `obstacle(Settings())` gives None.
    """
    if settings.layerwise == "greedy":  # each block starts from the last epoch of the block below it
        return "layerwise: greedy"
    if reads_total(parts.schedule[settings.schedule], settings):
        return f"schedule: {settings.schedule}"
    if reads_total(parts.method[settings.usl_type], settings):
        return f"usl_type: {settings.usl_type}"
    return None


def is_prefix(shorter: Settings, longer: Settings, ignored: Collection[str] = ()) -> bool:
    """Return whether one pretraining is the exact beginning of another one.

    The two differ only in `usl_epochs`, and nothing in them depends on the number of all epochs. Then the state after
    the last epoch of the shorter one is, bit for bit, the state of the longer one after as many epochs. Settings that
    change neither a score nor a point of pretraining in TensorBoard, and settings without effect, may differ.

    Args:
        shorter: The settings of the trial with fewer epochs, at least one.
        longer: The settings of the trial with more epochs.
        ignored: The names of other settings that may differ, such as settings that only the evaluation reads.

    Example:
        `is_prefix(Settings(usl_epochs=3), Settings(usl_epochs=6))` gives True. It gives False if both settings have
        `schedule="cosine"`.
    """
    if not 0 < shorter.usl_epochs < longer.usl_epochs or obstacle(longer) is not None:
        return False
    compared = (name for name in SETTINGS if about(name).changes_scores or name in SHOWN)
    return not any(
        getattr(shorter, name) != getattr(longer, name) and (has_effect(name, shorter) or has_effect(name, longer))
        for name in compared
        if name != "usl_epochs" and name not in ignored
    )
