"""The benchmarks' peer does equal work, targets are judged by measurements, and the page has a place for each table."""

import ast
import json
from importlib import import_module

import pytest
import torch

from tests.support import ROOT
from tests.support.networks import embed, make_decoder, make_encoder


@pytest.fixture
def module_of(monkeypatch):
    """A function that imports a module of `benchmarks/` by name, as the benchmarks' own scripts do."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "peers"))
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return import_module


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").rglob("*.py")), ids=lambda path: path.stem)
def test_the_benchmarks_import_names_that_exist(path):
    """No other test runs most benchmarks, so a renamed function would break them without notice."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("raysweep", "tests")):
            module = import_module(node.module)
            for name in node.names:
                assert hasattr(module, name.name) or import_module(f"{node.module}.{name.name}"), name.name


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 32)])
def test_the_plain_script_trains_the_same_network(module_of, channels, size):
    pytest.importorskip("ray")
    plain = module_of("plain_tune")
    encoder, decoder = make_encoder("conv6", channels, size, 64, 0), make_decoder(channels, size, 64, 0)
    triples = [
        (plain.Encoder(channels, size), encoder, lambda images: embed(encoder, images)),
        (plain.make_decoder(channels, size), decoder, decoder),
    ]
    inputs = [torch.rand(2, channels, size, size), torch.rand(2, 64)]
    for (theirs, ours, run_ours), x in zip(triples, inputs):
        assert [w.shape for w in theirs.parameters()] == [w.shape for w in ours.parameters()]
        with torch.no_grad():
            for mine, other in zip(ours.parameters(), theirs.parameters()):
                mine.copy_(other)
            torch.testing.assert_close(theirs(x), run_ours(x))


def test_targets_are_judged_by_what_was_measured(module_of, monkeypatch, tmp_path, capsys):
    check, measure = module_of("check"), module_of("measure")
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    assert check.main() == 1  # nothing was measured
    assert "not measured" in capsys.readouterr().out

    def write(times: float, quick: bool) -> None:
        faster = {"raysweep, fp32 (default)": {"median": times}, "raysweep, bf16": {"median": 9.0}}
        content = {"quick": quick, "default": "raysweep, fp32 (default)", "times faster than the plain script": faster}
        (tmp_path / "sweep-digits.json").write_text(json.dumps(content))

    target = check.TARGETS[0]
    write(3.1, quick=False)
    assert check.verdict(target) == ("3.1", "met")
    write(2.9, quick=False)
    assert check.verdict(target) == ("2.9", "missed")
    write(3.1, quick=True)  # a quick run does not count as a measurement
    assert check.verdict(target) == ("–", "not measured")
    monkeypatch.setattr(check, "TARGETS", (target,))
    write(3.1, quick=False)
    assert check.main() == 0


def test_work_is_measured_in_turns(module_of):
    measure = module_of("measure")
    calls = []
    seconds = measure.alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2)
    assert calls == ["a", "b"] * 3  # the first turn is not counted
    assert [len(times) for times in seconds.values()] == [2, 2]
    assert measure.ratio([4.0, 9.0, 1.0], [2.0, 3.0, 1.0])["median"] == 2.0


def test_the_page_has_a_place_for_every_table(module_of):
    document = module_of("document")
    text = document.PAGE.read_text(encoding="utf-8")
    for name in document.TABLES:
        assert text.count(f"<!-- {name} -->\n") == text.count(f"<!-- /{name} -->") == 1
