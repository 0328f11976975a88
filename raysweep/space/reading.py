"""Reading of search-space files and command-line values as strict YAML."""

from __future__ import annotations

import datetime
import itertools
import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml

from raysweep.config import BOOLS, NUMBER, SETTINGS, WHOLE_NUMBER, Settings, about, is_number, read_number
from raysweep.errors import InputError
from raysweep.space.hints import grid_instead, values_in
from raysweep.system.files import read_text

MAX_TEXT = 2**22  # characters of a search-space file, with aliases expanded; a list of 100,000 seeds has 10**6
LONGEST_WRITTEN = 2**27
"""The largest number of characters of the `sweep.yaml` of a results directory.

The entry of one encoder of an evaluation has about 340 characters, so 100,000 encoders have 34 million.
"""


def read(path: Path, longest: int = MAX_TEXT) -> dict[str, Any]:
    """Read the search-space file at `path`, of at most `longest` characters, as plain data.

    Raises:
        InputError: It is not a text file, not YAML, or too long.
    """
    text = read_text(path, longest, str(path), "a search-space file (YAML)")
    raw = parse_yaml(text, str(path))
    if not isinstance(raw, dict):
        raise InputError(f"{path}: must be a mapping such as 'base: ...' and 'search: ...', not {kind(raw)}")
    return raw


WHOLE_TAG, REAL_TAG = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
NUMBER_TAGS = (
    (WHOLE_TAG, re.compile(rf"(?:{WHOLE_NUMBER.pattern})\Z"), "+-0123456789"),
    (REAL_TAG, re.compile(rf"(?:{NUMBER.pattern}|[+-]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"), "+-.0123456789"),
)
"""For whole and real numbers: the YAML tag, the pattern, and the characters that a number can begin with."""


class Strict(yaml.constructor.SafeConstructor, yaml.resolver.Resolver):
    """Rules that make PyYAML's safe loader stricter.

    It rejects duplicate keys (PyYAML takes the last one) and aliases that would fill the memory. Numbers are decimal.
    PyYAML follows YAML 1.1, and reads `010` as 8, `1:30` as 90 and `1e-5` as text.
    """

    longest = MAX_TEXT
    """The largest number of characters of a text, with every alias expanded."""

    def construct_document(self, node: yaml.Node) -> Any:
        """Return the document; rejects it if it is endless or too long with every alias expanded, or has a NUL."""
        written_out(node, {}, 2 * self.longest)
        return super().construct_document(node)

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        """Return a number; rejects one that is tagged as a number (`!!int 0x10`) but is not decimal."""
        text = str(self.construct_scalar(node))
        if text.lower().lstrip("+-") in (".inf", ".nan"):
            return float(text.replace(".", ""))
        try:
            return read_number(text)
        except ValueError as fault:
            raise yaml.constructor.ConstructorError(None, None, f"{text!r} {fault}", node.start_mark) from None

    def construct_yaml_timestamp(self, node: yaml.ScalarNode) -> datetime.date:
        """Return a date or time; rejects an impossible one, such as 2024-02-30, with its position."""
        try:
            date: datetime.date = super().construct_yaml_timestamp(node)
        except (ValueError, AttributeError) as fault:  # PyYAML fails with the second for `!!timestamp foo`
            reason = f" ({fault})" if isinstance(fault, ValueError) else ""
            problem = f"{node.value!r} is not a date{reason}; put it in quotes if it is text"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None
        return date

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Return the mapping of `node`; a duplicate key is an error."""
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be plain text", key.start_mark)
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class Loader(Strict, yaml.SafeLoader):
    """The loader of search-space files, with the messages of PyYAML's parser in Python."""


class LongLoader(Strict, yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader):  # type: ignore[misc]
    """The loader of longer files, with the parser in C if it is installed. It takes 28 % of the time."""

    longest = LONGEST_WRITTEN


class Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, which also quotes text that only `Loader` would read as a number, such as `009`."""


Strict.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (WHOLE_TAG, REAL_TAG)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for tag, pattern, first in NUMBER_TAGS:
    Strict.add_implicit_resolver(tag, pattern, list(first))
    Dumper.add_implicit_resolver(tag, pattern, list(first))
Strict.yaml_constructors = {
    **Strict.yaml_constructors,
    WHOLE_TAG: Strict.construct_number,
    REAL_TAG: Strict.construct_number,
    "tag:yaml.org,2002:timestamp": Strict.construct_yaml_timestamp,
}


def to_yaml(content: Mapping[str, Any], ascii_only: bool = False) -> str:
    """Write plain data as YAML that `read` restores exactly; `ascii_only` escapes other characters."""
    text: str = yaml.dump(content, Dumper=Dumper, sort_keys=False, allow_unicode=not ascii_only)
    return text


def written_out(node: yaml.Node, lengths: dict[int, int], most: int) -> int:
    """Count the characters and nodes of `node` with every alias expanded; raises if they are more than `most`.

    `lengths` caches the counts, so that a node is counted once for all its aliases. It holds 0 while a node is counted.
    """
    if lengths.get(id(node)) == 0:
        raise yaml.constructor.ConstructorError(None, None, "an alias refers to itself", node.start_mark)
    if id(node) not in lengths:
        lengths[id(node)] = 0
        if isinstance(node, yaml.ScalarNode):
            if "\0" in node.value:  # no system call takes such a text
                problem = "a text must not contain a NUL character"
                raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
            total = 1 + len(node.value)
        else:
            pairs = isinstance(node, yaml.MappingNode)
            parts = itertools.chain.from_iterable(node.value) if pairs else node.value
            total = 1 + sum(written_out(part, lengths, most) for part in parts)
        if total > most:
            raise yaml.constructor.ConstructorError(None, None, "the aliases expand to too much", node.start_mark)
        lengths[id(node)] = total
    return lengths[id(node)]


def parse_yaml(text: str, where: str) -> Any:
    """Parse `text` as YAML; raises InputError with line and column."""
    try:
        return yaml.load(text, Loader if len(text) <= MAX_TEXT else LongLoader)
    except yaml.MarkedYAMLError as fault:
        mark = fault.problem_mark
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise InputError(f"{where}: not valid YAML{place}: {fault.problem}") from None
    except Exception as fault:  # PyYAML's constructors raise all kinds of exceptions, for example for `!!bool maybe`
        reason = (str(fault).splitlines() or [type(fault).__name__])[0]
        raise InputError(f"{where}: not valid YAML: {reason}") from None


def parse_assignments(assignments: list[str]) -> dict[str, Any]:
    """Turn `["alpha=0.1", "seed=[0,1]"]` into `{"alpha": 0.1, "seed": [0, 1]}`."""
    texts: dict[str, str] = {}
    for assignment in assignments:
        name, sign, text = assignment.partition("=")
        name = name.strip()
        if not sign or not name:
            raise InputError(f"--set {assignment}: expected NAME=VALUE, such as alpha=0.1 or seed=[0,1,2]")
        if name in texts:
            raise InputError(f"--set {name} is given twice, as {texts[name]!r} and {text!r}; give it once")
        texts[name] = text
    return {name: parse_value(name, text, f"--set {name}") for name, text in texts.items()}


def parse_value(name: str, text: str, where: str) -> Any:
    """Parse a setting's value from the command line: YAML, or the text itself if the setting expects text.

    As YAML, `folder:/a #1` would be a mapping or lose its comment. Empty text, as from an unset shell variable, would
    count as None, so it raises InputError.
    """
    if not text.strip():
        raise InputError(f"{where}: the value is empty")
    values = values_in(name, text)
    if values:
        raise InputError(f"{where}: {grid_instead(name, values)}")
    expects_text = name in SETTINGS and not is_number(name) and Settings.model_fields[name].annotation not in BOOLS
    is_yaml = text.lstrip().startswith(("[", "{") if name in SETTINGS and about(name).composed else "[")
    return parse_yaml(text, where) if is_yaml or not expects_text else text


def mapping(value: Any, where: str) -> dict[str, Any]:
    """Check that `value` is a mapping with string keys; None becomes an empty mapping."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InputError(f"{where}: must be a mapping 'name: value', not {kind(value)}")
    for key in value:
        if not isinstance(key, str):
            raise InputError(f"{where}: the key {key!r} is not a name")
    return dict(value)


def kind(value: object) -> str:
    """Return the YAML word for the type of `value`."""
    words = {dict: "a mapping", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    words |= {datetime.date: "a date", datetime.datetime: "a time"}
    return "nothing" if value is None else words.get(type(value), type(value).__name__)
