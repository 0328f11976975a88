"""Calls of functions that parts declare, and messages about the exceptions that the user's own parts raise."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import TYPE_CHECKING, Any, TypeVar

from raysweep.declarations import Parameter
from raysweep.errors import InputError

if TYPE_CHECKING:
    from raysweep.config.settings import Settings
    from raysweep.parts import Part

T = TypeVar("T")


class PartFault(InputError):
    """A fault of the user's own part, whose message names the part already."""


def trait_of(part: Part, name: str, settings: Settings, kind: Callable[[Any], T]) -> T:
    """Return a trait that may be a function of the settings, converted by `kind`.

    Raises:
        InputError: The function of a plugin raises, or its value cannot be converted.
    """
    trait = part.traits.get(name, False)
    with explained(part):
        return kind(trait(settings) if callable(trait) else trait)


def is_in_effect(part: Part, parameter: Parameter, settings: Settings) -> bool:
    """Return whether a parameter has an effect while its part is in use; raises InputError if its condition raises."""
    if parameter.condition is None:
        return True
    if not part.plugin:  # a search space asks this a million times
        return parameter.condition.holds(settings)
    with explained(part):
        return bool(parameter.condition.holds(settings))


@contextmanager
def explained(part: Part, during: str = "") -> Iterator[None]:
    """Turn an exception inside the block into an InputError that names the plugin's part, its file and the line.

    An exception of a built-in part is not changed. `during` tells the user more about what raised it.
    """
    if not part.plugin:
        yield
        return
    try:
        yield
    except PartFault:
        raise
    except InputError as fault:
        raise PartFault(f"{place_of(part)}: {fault}") from None
    except (KeyboardInterrupt, SystemExit):  # from a signal
        raise
    except BaseException as fault:
        line = last_line(fault, part.file)
        where = f" (line {line})" if line is not None else ""
        raise PartFault(f"{place_of(part)}: raises {describe(fault)}{where}{during}") from None


def place_of(part: Part) -> str:
    """Return the file and the line of a plugin's part, with its kind and name, for messages."""
    name, line = f"{part.kind} {part.name}", line_of(part)
    where = part.file if line is None else f"{part.file}, line {line}"
    return f"{where}: {name}" if part.file else name


def line_of(part: Part) -> int | None:
    """Return the line at which a part is defined; None if it is unknown."""
    return min((function.__code__.co_firstlineno for function in functions_in(part.function)), default=None)


def functions_in(value: Any) -> list[FunctionType]:
    """Return a function as a list, or the functions in the body of a class, also its static methods and properties."""
    members = list(vars(value).values()) if inspect.isclass(value) else [value]
    members += [getattr(member, name, None) for member in members for name in ("__func__", "fget", "fset")]
    return [member for member in members if inspect.isfunction(member)]


def last_line(fault: BaseException, file: str) -> int | None:
    """Return the line in a file that an exception passed last; None if it passed none."""
    line, trace = None, fault.__traceback__
    while trace is not None:
        line = trace.tb_lineno if trace.tb_frame.f_code.co_filename == file else line
        trace = trace.tb_next
    return line


def describe(fault: BaseException) -> str:
    """Describe an exception in one line."""
    text = (str(fault.msg) if isinstance(fault, SyntaxError) else str(fault)).strip().partition("\n")[0]
    return f"{type(fault).__name__}: {text}" if text else type(fault).__name__
