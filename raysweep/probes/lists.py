"""Lists of numbers as values of settings. A setting keeps its list as text, such as `[1, 5, 10]`."""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from typing import Any

from raysweep.config.values import is_plain_number


def number_list(value: Any, allowed: Collection[int] = ()) -> str | None:
    """Return a list of numbers as text for `numbers_in`. None stays None, and a number is a list of one number.

    Args:
        value: a number, a list of numbers, or YAML text of one of them.
        allowed: the valid numbers. If it is empty, every number above 0 is valid, and the numbers become floats.

    Raises:
        ValueError: the list is empty, has a number twice, or has a number that is not valid.

    Example:
        `number_list([1, 5], allowed=(1, 5, 10))` gives `"[1, 5]"`, and `number_list("[1, 10]")` gives `"[1.0, 10.0]"`.
    """
    if isinstance(value, str):
        value = read_yaml(value)
    if value is None:
        return None
    numbers = value if isinstance(value, list) else [value]
    for number in numbers:
        if not is_plain_number(number):
            raise ValueError("expected a list of numbers, such as [1, 5]")
        if allowed and number not in allowed:
            raise ValueError(f"each number must be one of {', '.join(map(str, allowed))}")
        if not 0 < number < float("inf"):
            raise ValueError("each number must be greater than 0")
    if not numbers or len(set(numbers)) < len(numbers):
        raise ValueError("give at least one number, and none twice")
    return f"[{', '.join(str(int(number) if allowed else float(number)) for number in numbers)}]"


def numbers_in(text: str | None) -> tuple[Any, ...]:
    """Return the numbers of a list that `number_list` wrote; empty for None."""
    return tuple(read_yaml(text)) if text is not None else ()


@lru_cache(maxsize=256)
def read_yaml(text: str) -> Any:
    """Return the content of YAML text. Callers must not change it.

    All trials of a sweep have the same few texts, and reading a text takes 0.4 ms.
    """
    from raysweep.space.reading import parse_yaml  # reads the table of settings, which this module helps to make

    return parse_yaml(text, "as YAML")
