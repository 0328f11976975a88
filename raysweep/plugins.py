"""The user's own parts: plugin files and installed modules, and parts that a program passes by value.

A plugin is Python source that declares parts with the decorators of `raysweep.parts`. Its text travels with the sweep:
the results directory keeps it, and every worker loads that text. `activate` decides which plugins the tables of parts
hold. It must run before settings are checked, because the settings are derived from the tables.
"""

from __future__ import annotations

import hashlib
import linecache
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path
from types import ModuleType
from typing import Any

from raysweep import parts
from raysweep.config import check_choices, check_declaration, try_functions
from raysweep.errors import InputError
from raysweep.part_functions import describe, explained, last_line, line_of
from raysweep.part_sources import lines_of, source_of
from raysweep.parts import Part
from raysweep.system.files import read_text
from raysweep.system.places import expanded

LONGEST = 2**20
"""The largest number of characters in a plugin."""
MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
FILE = re.compile(r"\w[\w. -]*\.py")


@dataclass(frozen=True, eq=False)
class Plugin:
    """Source that declares parts, or one part that a program passes by value."""

    name: str
    """The name of its file in the results directory, such as `my_loss.py`; or kind and name, such as `loss my_loss`."""
    text: str
    origin: str = ""
    """The absolute path of the file, or the name of the installed module; empty for a part by value."""
    part: Part | None = None
    """The part, if it is passed by value."""
    lines: str | None = None
    """The source of this part alone. Older versions recorded only this, not the code that the part uses."""

    @property
    def digest(self) -> str:
        """The SHA-256 of the text, in hexadecimal."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def equals(self, other: Plugin) -> bool:
        """Return whether both declare the same parts from the same text."""
        same_function = self.part is other.part or (
            self.part is not None and other.part is not None and self.part.function is other.part.function
        )
        return (self.name, self.text) == (other.name, other.text) and same_function


_active: list[tuple[Plugin, list[Part]]] = []
"""The plugins whose parts are in the tables, each with its parts."""


def active() -> tuple[Plugin, ...]:
    """Return the plugins whose parts are in the tables."""
    return tuple(plugin for plugin, _ in _active)


def activate(plugins: Iterable[Plugin]) -> None:
    """Make the tables hold the built-in parts and the parts of these plugins, and no other parts.

    Raises:
        InputError: A plugin is faulty; the message names its file and the line.
    """
    wanted = list(plugins)
    for entry in list(_active):
        if not any(entry[0].equals(plugin) for plugin in wanted):
            _active.remove(entry)
            _take_out(entry[1])
    new: list[tuple[Plugin, list[Part]]] = []
    for plugin in wanted:
        if not any(plugin.equals(other) for other in active()):
            new.append((plugin, _load(plugin)))
            _active.append(new[-1])
    try:
        for part in (part for _, taken in new for part in taken):  # it may read settings of a plugin that comes later
            with explained(part):
                try_functions(part)
    except InputError:
        for entry in new:
            _active.remove(entry)
            _take_out(entry[1])
        raise


def given(plugins: Sequence[str | Path], values: Sequence[Callable[..., Any]] = ()) -> tuple[Plugin, ...]:
    """Return the plugins that a caller names, and the parts that it passes by value.

    Args:
        plugins: Paths, relative to the working directory, or names of installed modules.
        values: Functions or classes that a decorator of `raysweep` declared as parts.

    Raises:
        InputError: A plugin cannot be read, or a value is not a part.
    """
    if not isinstance(values, Sequence):
        raise InputError(f"parts: a list of decorated functions or classes expected, not {type(values).__name__}")
    return merged(find(plugins, Path.cwd(), "--plugin"), map(by_value, values))


def merged(*groups: Iterable[Plugin]) -> tuple[Plugin, ...]:
    """Return all plugins, each once; raises InputError if two different ones have the same name."""
    plugins: dict[str, Plugin] = {}
    for plugin in (plugin for group in groups for plugin in group):
        first = plugins.setdefault(plugin.name, plugin)
        if not first.equals(plugin):
            raise InputError(
                f"two plugins are called {plugin.name}: {first.origin or 'one'} and {plugin.origin or 'another'}; "
                "rename one of them"
            )
    return tuple(plugins.values())


def with_existing(existing: Sequence[Plugin], plugins: Iterable[Plugin]) -> tuple[Plugin, ...]:
    """Return the plugins of an existing sweep, followed by the new plugins, each once.

    Raises:
        InputError: A plugin differs from the text that the sweep was started with, or two new ones have the same name.
    """
    plugins = tuple(plugins)
    known = {plugin.name: plugin for plugin in existing}
    for plugin in plugins:
        if plugin.name in known:
            check_same(known[plugin.name], plugin)
    return (*existing, *merged(plugin for plugin in plugins if plugin.name not in known))


def check_same(started_with: Plugin, now: Plugin) -> None:
    """Raise InputError if a plugin is no longer what the sweep was started with."""
    if started_with.text not in (now.text, now.lines):
        raise InputError(
            f"{now.origin or now.name}: has changed since the sweep was started: "
            f"{first_difference(started_with.text, now.text)}; put it back, or start a new sweep"
        )


def first_difference(was: str, now: str) -> str:
    """Describe the first line in which two texts differ."""
    for number, (before, after) in enumerate(zip_longest(was.splitlines(), now.splitlines()), 1):
        if before != after:
            if after is None:
                return f"line {number} was {before!r} and is missing"
            if before is None:
                return f"line {number} is new, {after!r}"
            return f"line {number} was {before!r} and is {after!r}"
    return "one of the two texts has no newline at its end"


def check_origin(plugin: Plugin) -> None:
    """Raise InputError if the file or module that a stored plugin came from has changed; it may be gone."""
    if not plugin.origin:
        return
    try:
        path = Path(plugin.origin) if "/" in plugin.origin else module_file(plugin.origin, "plugins")
    except InputError:  # the module is not installed here
        return
    if path.is_file():
        check_same(plugin, replace(plugin, text=read_source(path, plugin.origin)))


def find(entries: Iterable[object], folder: Path, where: str) -> tuple[Plugin, ...]:
    """Read the plugins that a list names.

    Args:
        entries: Paths relative to `folder`, names of installed modules, or mappings as `sweep.yaml` has them, with the
            keys `file`, `sha256` and `from`.
        folder: The folder of the search-space file.
        where: The start of every message.

    Raises:
        InputError: An entry is of another type, names nothing, cannot be read, or has another hash than recorded.
    """
    if isinstance(entries, str | Mapping) or not isinstance(entries, Iterable):
        raise InputError(f"{where}: a list of files or modules expected, as in [my_parts.py], not {entries!r}")
    return merged([_find_one(entry, folder, where) for entry in entries])


def _find_one(entry: object, folder: Path, where: str) -> Plugin:
    """Read the plugin that one entry of the list names; see `find`."""
    if isinstance(entry, Mapping):
        values = [entry.get(key) for key in ("file", "sha256", "from")]
        if len(entry) != 3 or not all(isinstance(value, str) for value in values):
            raise InputError(f"{where}: the keys file, sha256 and from expected, not {dict(entry)!r}")
        path = folder / str(values[0])
        plugin = Plugin(path.name, read_source(path, f"{where}: {path}"), str(values[2]))
        if plugin.digest != values[1]:
            raise InputError(f"{where}: {path}: is not the text that the sweep was started with; put it back")
        return plugin
    if not isinstance(entry, str | Path) or not str(entry):
        raise InputError(f"{where}: a file or a module expected, such as my_parts.py, not {entry!r}")
    text = str(entry)
    if text.endswith(".py") or "/" in text:
        path = Path(os.path.abspath(folder / expanded(text)))
        if not FILE.fullmatch(path.name) or "\0" in text:
            raise InputError(
                f"{where}: {text}: the name of a plugin's file is NAME.py, of letters, digits, '-', '_' and '.'"
            )
        return Plugin(path.name, read_source(path, f"{where}: {text}"), str(path))
    return Plugin(f"{text}.py", read_source(module_file(text, where), f"{where}: {text}"), text)


def module_file(name: str, where: str) -> Path:
    """Return the source file of an installed module; raises InputError if there is none."""
    spec = spec_of(name)
    if spec is None:
        raise InputError(f"{where}: {name}: no module of this name is installed (the name of a file ends in .py)")
    if spec.origin is None or not spec.origin.endswith(".py"):
        raise InputError(f"{where}: {name}: the module has no Python source")
    return Path(spec.origin)


def spec_of(name: str) -> ModuleSpec | None:
    """Return how Python would import a module; None if no module of this name is installed."""
    try:
        return find_spec(name) if MODULE.fullmatch(name) else None
    except Exception:  # Python imports the package around the module, and this may raise anything
        return None


def read_source(path: Path, where: str) -> str:
    """Read Python source; raises InputError if it cannot be read. Messages start with `where`."""
    return read_text(path, LONGEST, where, "a Python file")


def by_value(function: Callable[..., Any]) -> Plugin:
    """Return the plugin of a part that a program passes by value; raise InputError if no decorator declared it."""
    part = next((part for part in reversed(parts.declared) if part.function is function), None)
    if part is None:
        name = getattr(function, "__name__", repr(function))
        raise InputError(f"parts: {name}: is not a part; decorate it, for example with @raysweep.loss")
    return Plugin(f"{part.kind} {part.name}", source_of(function), part=part, lines=lines_of(function))


def known_by_value(name: str, plugins: Iterable[Plugin]) -> list[Plugin]:
    """Return the parts with the name `KIND NAME` that `plugins` pass by value or that this process has declared.

    A function that such a part uses may have changed. So the source of a part that this process has declared is read
    again.
    """
    declared = [part.function for part in reversed(parts.declared) if f"{part.kind} {part.name}" == name]
    others = [each for each in plugins if each.name == name and each.part and each.part.function not in declared]
    return others + [by_value(function) for function in declared]


def with_recorded_source(recorded: Plugin, plugins: Sequence[Plugin], only_read: bool) -> Plugin:
    """Return the part by value with a recorded source. A notebook may have declared the part several times.

    Args:
        recorded: A plugin with the recorded source.
        plugins: Parts of this name, at least one.
        only_read: Whether no trial will run. Then the functions that the part uses may have changed.

    Raises:
        InputError: No part has the recorded source.
    """
    fitting = [plugin for plugin in plugins if recorded.text in (plugin.text, plugin.lines)]
    if only_read:
        fitting += [plugin for plugin in plugins if plugin.lines and recorded.text.startswith(plugin.lines)]
    if not fitting:
        check_same(recorded, plugins[0])
    return replace(fitting[0], text=recorded.text)  # the recorded scores have the hash of this text


def _load(plugin: Plugin) -> list[Part]:
    """Run a plugin and add its parts to the tables. If it is faulty, none of its parts stay there."""
    for table in parts.TABLES.values():
        len(table)  # the built-in parts come first
    new = [plugin.part] if plugin.part is not None else _run(plugin)
    if not new:
        raise InputError(f"{place(plugin)}: declares no part; decorate a function, for example with @raysweep.loss")
    taken: list[Part] = []
    part = new[0]
    try:
        for part in new:
            check_declaration(part)
            recorded = replace(part, plugin=plugin.digest, file="" if plugin.part else place(plugin))
            parts.TABLES[part.kind].add(recorded)
            taken.append(recorded)
        for part in taken:  # a default may name a part that the plugin declares later
            check_choices(part)
    except Exception as fault:
        _take_out(taken)
        problem = str(fault) if isinstance(fault, InputError) else f"{part.kind} {part.name}: {describe(fault)}"
        raise InputError(problem if plugin.part else f"{place(plugin, line_of(part))}: {problem}") from None
    return taken


def _run(plugin: Plugin) -> list[Part]:
    """Run the text of a plugin as a module and return the parts that it declared."""
    module = ModuleType(f"raysweep_plugin_{plugin.name.removesuffix('.py')}")
    if "/" in plugin.origin:
        module.__file__ = plugin.origin
    else:  # so that it may import other modules of its package
        spec = spec_of(plugin.origin)
        is_package = spec is not None and spec.submodule_search_locations is not None
        module.__package__ = plugin.origin if is_package else plugin.origin.rpartition(".")[0]
    file = place(plugin)
    sys.modules[module.__name__] = module  # the decorators look up the names in annotations there
    linecache.cache[file] = (len(plugin.text), None, plugin.text.splitlines(keepends=True), file)  # for tracebacks
    start = len(parts.declared)
    try:
        exec(compile(plugin.text, file, "exec", dont_inherit=True), vars(module))
        # Parts of modules that it imports do not count: such a module runs only once in a process.
        others = [part for part in parts.declared[start:] if part.function.__module__ != module.__name__]
        if others and len(parts.declared) == start + len(others):
            what, source = f"{others[0].kind} {others[0].name}", others[0].function.__module__
            raise InputError(
                f"declares no part of its own: {what} is defined in {source}; wrap it in a function of this file, or "
                f"name {source} as the plugin"
            )
        return [part for part in parts.declared[start:] if part not in others]
    except KeyboardInterrupt:
        raise
    except BaseException as fault:  # also SystemExit, and exceptions that the plugin derives from BaseException
        line = fault.lineno if isinstance(fault, SyntaxError) and fault.filename == file else last_line(fault, file)
        problem = str(fault) if isinstance(fault, InputError) else describe(fault)
        raise InputError(f"{place(plugin, line)}: {problem}") from None
    finally:
        parts.declared[:] = [part for part in parts.declared if part.function.__module__ != module.__name__]


def _take_out(taken: Iterable[Part]) -> None:
    """Remove parts from the tables."""
    for part in taken:
        parts.TABLES[part.kind].remove(part)


def place(plugin: Plugin, line: int | None = None) -> str:
    """Return the file of a plugin, and a line in it, for messages."""
    file = plugin.origin if "/" in plugin.origin else plugin.name
    return file if line is None or plugin.part is not None else f"{file}, line {line}"
