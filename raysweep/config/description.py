"""What a setting says about itself: its text, its group, and the condition under which it has an effect."""

from __future__ import annotations

from dataclasses import dataclass

from raysweep.parts import Condition

ALWAYS = Condition("always", lambda settings: True)


@dataclass(frozen=True)
class About:
    """The description of a setting, besides its type and range."""

    text: str
    effect: Condition = ALWAYS
    group: str = "Pretraining"
    composed: bool = False
    """Whether a list or a mapping is one value of the setting; such a value is kept as text."""
    protocol: bool = False
    """Whether it belongs to the evaluation protocol: scores that differ in it cannot be compared."""
    objective: bool = False
    """Whether it belongs to the objective of pretraining: losses that differ in it cannot be compared."""
    search: bool = True
    """Whether it may be swept. A setting that only names a place, or says what is shown, may not."""
    must_be_used: bool = False
    """Whether it is a mistake to give it to a sweep in which no trial reads it."""
