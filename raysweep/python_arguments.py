"""The arguments of the Python interface: their types, the form that the API takes, and one-line errors."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from raysweep import preparation
from raysweep.config import SETTINGS, plain, suggest
from raysweep.errors import InputError
from raysweep.space import Sweep
from raysweep.system.places import expanded

Space = str | Path | Mapping[str, Any] | Sweep
OPTION = re.compile(r"(?:--(name|output|plugin|set)(?::|(?= ))|command line(?: for .+?)?:(?= ))")
"""What a message about the command line may begin with."""

P = ParamSpec("P")
R = TypeVar("R")


def for_python(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function refuse an unknown keyword with the nearest valid name, and let its errors name its keywords."""
    known = inspect.signature(function).parameters

    @functools.wraps(function)
    def checked(*args: P.args, **keywords: P.kwargs) -> R:
        for name in keywords:
            if name not in known:
                hint = suggest(name, known)
                if name in SETTINGS and "set" in known:
                    hint = f"; it is a setting: give set={{{name!r}: …}}"
                raise InputError(f"{function.__name__}: unknown keyword {name!r}{hint}")
        try:
            return function(*args, **keywords)
        except InputError as fault:
            fault.args = (with_keyword(str(fault)),)
            raise

    return checked


def with_keyword(message: str) -> str:
    """Return a message with the keyword of Python in place of the option, or the command line, with which it begins.

    Example:
        `with_keyword("--name a: exists")` gives `"name: a: exists"`.
    """
    if message.startswith("--local "):
        return message.replace("--local", "local=True", 1)
    option = OPTION.match(message)
    if option is None:
        return message
    keyword = "plugins" if option[1] == "plugin" else option[1] or "set"
    return f"{keyword}:{message[option.end() :]}"


def source_of(space: Space) -> preparation.Space:
    """Return the search space in the form that the API takes; raise InputError if it has another type."""
    if isinstance(space, Sweep):
        return space
    if isinstance(space, Mapping):
        return converted(space, "space")
    if not isinstance(space, (str, Path)):
        raise InputError(f"space: give a file name, a dict or a sweep, not {type(space).__name__}")
    name, shipped = checked_place(space, "space"), preparation.shipped_spaces()
    return shipped[name] if name in shipped and not Path(name).exists() else Path(name)


def overrides_of(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the overrides in the form that the API takes; raise InputError if they are not a mapping of names."""
    if given is not None and not isinstance(given, Mapping):
        raise InputError(f"set: give a dict such as {{'alpha': [0.1, 1]}}, not {type(given).__name__}")
    for name in given or ():
        if not isinstance(name, str):
            raise InputError(f"set: the key {name!r} is not a name")
    return converted(given or {}, "set")


def converted(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return a mapping as a YAML file would give it; raise InputError if no file could."""
    try:
        return dict(plain(given))
    except RecursionError:
        raise InputError(f"{where}: contains itself, or is nested too deeply") from None
    except Exception as fault:  # from a key that is a list, or from the `tolist` of a class
        raise InputError(f"{where}: a key or a value is not plain data ({type(fault).__name__}: {fault})") from None


def checked_place(place: object, where: str = "place", wanted: str = "a results directory or a URI") -> str:
    """Return a path or the place of a sweep as text, with `~` replaced; raise InputError if it is something else."""
    if not isinstance(place, (str, Path)):
        raise InputError(f"{where}: give {wanted}, not {type(place).__name__}")
    if not str(place) or "\0" in str(place):
        raise InputError(f"{where}: {str(place)!r} is not a path")
    return expanded(str(place))


def checked_flag(value: object, where: str) -> None:
    """Raise InputError if a value is neither True nor False."""
    if not isinstance(value, bool):
        raise InputError(f"{where}: give True or False, not {value!r}")
