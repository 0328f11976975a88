"""The description of a setting: its text, its group, and the condition under which it has an effect."""

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
    """Whether one value of the setting may be a list or a mapping. Such a value is kept as text."""
    protocol: bool = False
    """Whether the setting belongs to the evaluation protocol. Scores with different values cannot be compared."""
    objective: bool = False
    """Whether the setting changes the objective of pretraining. Losses with different values cannot be compared."""
    search: bool = True
    """Whether the setting may be swept. A setting that only names a place, or what is shown, may not."""
    may_be_unused: bool = False
    """Whether it may be given to a sweep in which no trial reads it."""

    @property
    def changes_scores(self) -> bool:
        """Whether scores may depend on the setting. Then it keeps its value in a sweep, unless it is swept."""
        return self.search or self.protocol
