"""The source of parts that a program or a notebook passes by value, which a resume compares."""

import linecache
import sys
from types import ModuleType

import pytest

from raysweep.part_sources import lines_of, source_of

CELL = """
from functools import cache, partial

SCALE = 3

def double(x):
    return 2 * x

def second(x):
    return double(x)

@cache
def table():
    return (1, 2)

def not_used(x):
    return 4 * x

def by_default(x):
    return 8 * x

def by_keyword(x):
    return 9 * x

def power(x, exponent):
    return x ** exponent

square = partial(power, exponent=2)

class Network:
    def run(self, x):
        return 6 * x

NETWORK = Network()

class Base:
    def base(self):
        return "base"

class Layer(Base):
    size = 5

    @staticmethod
    def inside(x):
        return [second(each) for each in x]

    @property
    def name(self):
        return "layer"

def build(weight, kind=Layer):
    class Part(Base):
        rate = 6

        def run(self, x, first=by_default, *, last=by_keyword):
            return kind().inside(x), weight, x in {"a", "b"}, first, last, square(NETWORK.run(x))

    return Part

def loss_of(weight):
    def part(x):
        return [Layer().inside(each) for each in (x, weight, table(), square(NETWORK.run(x)))]

    return part

CLASS, FUNCTION = build(7), loss_of(8)
"""
"""A cell of a notebook with a part that is a class, and a part that is a function."""
USED = {"2 * x": "3 * x", "return double(x)": "return x", '"base"': "1", '"layer"': "1", "second(each)": "each",
        "(1, 2)": "(1, 3)", "(7)": "(9)", "(8)": "(9)", "size = 5": "size = 6",
        "8 * x": "x", "9 * x": "x", "6 * x": "x", "x ** exponent": "x"}  # fmt: skip
"""Texts of the cell that the function or the class depends on, and another text in place of each."""


@pytest.fixture
def cell(monkeypatch):
    """A function that executes a cell as another kernel does, under another name of its file."""
    number = 0

    def execute(text, has_source=True):
        nonlocal number
        number += 1
        module, file = ModuleType("notebook_of_a_test"), f"/tmp/ipykernel_{number}/cell.py"
        monkeypatch.setitem(sys.modules, module.__name__, module)
        if has_source:
            monkeypatch.setitem(linecache.cache, file, (len(text), None, text.splitlines(keepends=True), file))
        exec(compile(text if has_source else "\n" * number + text, file, "exec"), vars(module))
        return module

    return execute


@pytest.mark.parametrize("has_source", [True, False])
@pytest.mark.parametrize("name", ["CLASS", "FUNCTION"])
def test_unchanged_code_has_the_same_source_in_another_kernel(cell, name, has_source):
    text = source_of(vars(cell(CELL, has_source))[name])
    assert source_of(vars(cell(CELL, has_source))[name]) == text
    assert source_of(vars(cell(CELL.replace("4 * x", "5 * x"), has_source))[name]) == text, "no part uses it"


@pytest.mark.parametrize("has_source", [True, False])
@pytest.mark.parametrize("used", USED)
def test_code_that_a_part_uses_belongs_to_its_source(cell, used, has_source):
    assert CELL.count(used) == 1
    before, after = cell(CELL, has_source), cell(CELL.replace(used, USED[used]), has_source)
    parts = ("CLASS", "FUNCTION")
    assert [source_of(vars(before)[name]) for name in parts] != [source_of(vars(after)[name]) for name in parts]


def test_the_source_begins_with_the_part_itself(cell):
    module = cell(CELL)
    for part in (module.CLASS, module.FUNCTION):
        assert source_of(part).startswith(lines_of(part) + "\n")
    assert lines_of(module.FUNCTION).startswith("    def part(x):\n")
    assert "rate = 6\n" in lines_of(module.CLASS)
    assert "weight = 7" in source_of(module.CLASS).splitlines()
