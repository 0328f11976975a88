"""Checks of the values of a pydantic model, with one-line messages."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError, ValidationInfo

from raysweep.config.description import About
from raysweep.config.values import BOOLS, NUMBERS, TEXTS, read_number, shown, suggest
from raysweep.errors import InputError

ALONE = "alone"
"""A key of the context of `check_model`: only each value is checked, not their combination."""


def check_type(cls: type[BaseModel], value: Any, info: ValidationInfo) -> Any:
    """Refuse mistakes that pydantic accepts: numbers in other notations, true as a number, 1 as true."""
    field = cls.model_fields[str(info.field_name)]
    kind = field.annotation
    if isinstance(value, str) and "\0" in value:
        raise ValueError("must not contain a NUL character")  # no system call takes one
    if isinstance(value, str) and value.strip().lower() in ("none", "null") and type(None) in get_args(kind):
        return None  # the documentation writes none, and YAML null
    if kind in NUMBERS and isinstance(value, bool):
        raise ValueError("expected a number")
    if kind in NUMBERS and isinstance(value, str) and re.search(r"\d", value):
        return read_number(value)
    no_text = kind in TEXTS and value is not None and not isinstance(value, (str, list, dict))
    if no_text and not any(isinstance(item, About) and item.composed for item in field.metadata):
        raise ValueError('must be a string (put it in quotes, such as "12")')
    if kind in BOOLS and not isinstance(value, bool) and (kind is bool or value is not None):
        is_quoted = isinstance(value, str) and value.strip().lower() in ("true", "false")
        raise ValueError("expected true or false" + (" without quotes" if is_quoted else ""))
    return value


Model = TypeVar("Model", bound=BaseModel)


def check_model(
    model: type[Model],
    values: Mapping[str, Any],
    where: str,
    typed: Mapping[str, str] | None = None,
    context: Mapping[str, Any] | None = None,
) -> Model:
    """Build `model` from `values`.

    Args:
        model: The model to build.
        values: Its values by name.
        where: The beginning of messages: the file and the section that the values come from.
        typed: For a value that comes from the command line instead, the beginning of messages about it.
        context: Information for the checks of the model, such as `ALONE`.

    Raises:
        InputError: a key is unknown or a value is wrong; the message is about the first fault.
    """
    unknown = [key for key in values if key not in model.model_fields]
    if unknown:
        raise InputError(f"{where}: unknown key {str(unknown[0])!r}{suggest(unknown[0], model.model_fields)}")
    try:
        return model.model_validate(dict(values), context=context)
    except ValidationError as fault:
        error = fault.errors()[0]
        problem = error["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        problem = re.sub(r"valid (number|integer), (unable|got) .*", r"valid \1", problem)
        problem = re.sub(r"Unable to parse input string as an integer.*", "has too many digits", problem)
        if not error["loc"]:  # the message concerns several settings, and names them
            raise InputError(f"{where}: {problem}") from None
        key = error["loc"][0]
        start = (typed or {}).get(str(key), f"{where}: {key}")
        valid = re.findall(r"'([^']+)'", error["ctx"]["expected"]) if error["type"] == "literal_error" else ()
        hint = suggest(error["input"], valid, "")
        given = "" if problem.startswith("unknown ") else f", not {shown(error['input'])}"  # it names what is unknown
        raise InputError(f"{start}: {problem}{given}{hint}") from None
