"""Numbers from text, and values in messages."""

from __future__ import annotations

import datetime
import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeGuard

from pydantic import BeforeValidator

from raysweep.errors import shortened_value

MAX_DIGITS = 300
"""Whole numbers with more digits become floats. The greatest float has 309 digits."""
WHOLE_NUMBER = re.compile(r"[+-]?[0-9]+")
NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")


def read_number(text: str) -> int | float:
    """Return the number that `text` writes in decimal, the only notation. `010` is ten, as in the output of `seq -w`.

    Raises:
        ValueError: `text` is something else, such as `0x10`, `1_000`, `1:30` or digits of another script.
    """
    text = text.strip()
    if not NUMBER.fullmatch(text):
        raise ValueError("must be a number in decimal, such as 16, 0.5 or 1e-3")
    if WHOLE_NUMBER.fullmatch(text) and len(text) <= MAX_DIGITS:
        return int(text)
    return float(text) + 0.0  # -0.0 becomes 0.0, so that one trial does not get two names


Number = Annotated[float, BeforeValidator(lambda value: read_number(value) if isinstance(value, str) else value)]
NUMBERS = (int, float, int | None, float | None)
BOOLS = (bool, bool | None)
TEXTS = (str, str | None)


def is_plain_number(value: object) -> TypeGuard[int | float]:
    """Return whether a value is a number. True and False are not numbers."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def suggest(given: object, valid: Iterable[str], otherwise: str | None = None) -> str:
    """Return `, did you mean X?` if a valid name is close to the given one.

    If none is close, return `otherwise`, or a list of the valid names for None.
    """
    valid = list(valid)
    close = difflib.get_close_matches(str(given), valid, n=1, cutoff=0.6)
    if close:
        return f", did you mean {close[0]!r}?"
    return f"; valid: {', '.join(valid)}" if otherwise is None else otherwise


def shown(value: object) -> str:
    """Return a value for a message: as Python writes it, but a date as YAML writes it. A long one is shortened."""
    return shortened_value(str(value) if isinstance(value, datetime.date) else repr(value))


def plain(value: Any) -> Any:
    """A value of a Python program as a YAML file would give it: NumPy arrays, tuples and ranges become lists.

    Example:
        `plain({"alpha": numpy.logspace(-1, 0, 2), "seed": range(2)})` gives `{"alpha": [0.1, 1.0], "seed": [0, 1]}`.
    """
    if isinstance(value, Mapping):
        return {plain(name): plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple, range)):
        return [plain(each) for each in value]
    if hasattr(value, "tolist"):  # a NumPy array or scalar, also a tensor
        return value.tolist()
    return str(value) if isinstance(value, Path) else value
