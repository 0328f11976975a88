"""What a setting says about itself: its text, its group, and the condition under which it has an effect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raysweep.config.settings import Settings


@dataclass(frozen=True)
class Condition:
    """When a setting has an effect: in words, for messages and docs, and as a test on the settings."""

    words: str
    holds: Callable[[Settings], bool]


ALWAYS = Condition("always", lambda s: True)


@dataclass(frozen=True)
class About:
    """What a setting is, beside its type and range."""

    text: str
    effect: Condition = ALWAYS
    group: str = "Pretraining"
    composed: bool = False
    """A list or mapping given for it is one value, not several; it is kept as text."""
    protocol: bool = False
    """Part of the evaluation protocol: scores that differ in it are not comparable."""
    search: bool = True
    """May be swept (False: it says where files lie, which are left out, or what is shown)."""
