"""The source of a part that a program passes by value. A resume compares it with the recorded source."""

from __future__ import annotations

import dis
import hashlib
import inspect
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from types import CodeType, FunctionType
from typing import Any

from raysweep.part_functions import functions_in


def source_of(part: Any) -> str:
    """Return the source of a part, and then everything in the same module that it uses.

    This is the source of each function and class that the code names, and the plain values of an enclosing function.
    Functions that these functions use count too. Other modules are not read.
    """
    texts = [lines_of(part)]
    used = [part]
    for value in used:  # the list grows in the loop
        for function in functions_in(value):
            texts += [f"{name} = {other!r}" for name, other in enclosing_values(function) if is_plain(other)]
        for other in reached(value):
            if other.__module__ == part.__module__ and not any(other is known for known in used):
                used.append(other)
                texts.append(lines_of(other))
    return "\n".join(texts)


def lines_of(value: Any) -> str:
    """Return the source of a function or a class. Python has no source of a class in a notebook, but of its methods."""
    try:
        return inspect.getsource(value)
    except (OSError, TypeError):
        attributes = vars(value).items() if inspect.isclass(value) else ()
        plain = [f"{name} = {each!r}" for name, each in attributes if not name.startswith("__") and is_plain(each)]
        return "\n".join([*plain, *(lines_of_code(function.__code__) for function in functions_in(value))])


def lines_of_code(code: CodeType) -> str:
    """Return the source of compiled code, or a hash of the code if there is no source, as at a prompt."""
    try:
        return inspect.getsource(code)
    except (OSError, TypeError):
        return hashlib.sha256(repr(content_of(code)).encode()).hexdigest()


def content_of(code: CodeType) -> tuple[object, ...]:
    """Return what compiled code computes, without its file and its lines, which differ between processes."""
    constants: list[object] = []
    for each in code.co_consts:
        is_set = isinstance(each, frozenset)  # its order differs between processes
        plain = sorted(map(repr, each)) if is_set else each
        constants.append(content_of(each) if isinstance(each, CodeType) else plain)
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    return code.co_code, code.co_argcount, code.co_kwonlyargcount, names, constants


def reached(value: Any) -> Iterator[Any]:
    """Yield the functions and classes that a function or a class uses by name or as a default, and a class's bases."""
    if inspect.isclass(value):
        yield from value.__mro__[1:]
    for function in functions_in(value):
        named = (function.__globals__.get(name) for name in global_names(function.__code__))
        defaults = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
        yield from map(code_of, (*named, *defaults, *(each for _, each in enclosing_values(function))))


def code_of(value: Any) -> Any:
    """Return a function or a class itself, the function in a cache or a `partial`, or the class of another value."""
    while isinstance(value, partial):
        value = value.func
    inner = inspect.getattr_static(value, "__wrapped__", value)
    return inner if inspect.isfunction(inner) or inspect.isclass(inner) else type(value)


def global_names(code: CodeType) -> Iterator[str]:
    """Yield the names of global variables that code reads, also in functions and classes inside."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from global_names(constant)


def enclosing_values(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield the variables of an enclosing function that a function reads, with their values."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # the variable has no value
            yield name, cell.cell_contents


def is_plain(value: Any) -> bool:
    """Return whether a value is a number, a text, a truth value or None, or a tuple of such values."""
    if isinstance(value, tuple):
        return all(is_plain(each) for each in value)
    return value is None or isinstance(value, int | float | str)
