"""Parameters of the user's own parts: names that mean something else, types, defaults, and exceptions at import."""

import argparse

import pytest

from raysweep import api, cli, parts, plugins
from raysweep.arguments import Parser
from raysweep.config import METRICS, SETTINGS, check_parameter
from raysweep.config.parameters import COLUMNS, FIGURES, OPTIONS, OTHERS
from raysweep.report.frames import COUNTS, TEXTS, curve_frame, frame
from raysweep.report.tables import trial_rows
from raysweep.results.store import Store
from tests.support.commands import here

HEADER = "from typing import Annotated, Literal\nfrom pydantic import Field\nimport raysweep, torch\n"
LOSS = """@raysweep.loss
def mine(z1, z2, *, {name}: Annotated[{kind}, "A parameter."] = {default}):
    return (z1 - z2).square().mean()
"""


@pytest.fixture
def plan(tmp_path):
    """A function that plans a sweep with the given text as a plugin."""

    def run(text, *arguments):
        (tmp_path / "mine.py").write_text(HEADER + text)
        return here("run_sweep.py", "--plugin", "mine.py", "--emb_loss", "mine", "--dry-run", *arguments, cwd=tmp_path)

    yield run
    plugins.activate(())


def loss(name="sharpness", kind="float", default="1.0"):
    return LOSS.format(name=name, kind=kind, default=default)


def names_of_arguments():
    """Return the names of the arguments of every command that are not settings."""
    names = {"version"}  # the option of the program itself
    for _, add_arguments, _, _ in cli.COMMANDS.values():
        parser = Parser(prog="raysweep")
        parser.set_defaults(function=None)
        add_arguments(parser)
        for action in parser._actions:
            names.add(action.dest)
            names |= {flag[2:].replace("-", "_") for flag in action.option_strings if flag.startswith("--")}
            action.required = False
            if not action.option_strings:
                action.nargs = "?"
        names |= set(vars(parser.parse_all([], parser)))
    assert argparse.SUPPRESS not in names
    return names - set(SETTINGS)


def test_the_names_of_all_arguments_are_known():
    assert names_of_arguments() == OPTIONS


def test_the_names_of_all_columns_are_known(tmp_path):
    sweep = api.plan(None, {"seed": [0, 1]})
    header, _ = trial_rows(Store(str(tmp_path)), sweep, [])
    assert {*header, *TEXTS, *COUNTS} - {*SETTINGS, *METRICS} == COLUMNS


@pytest.mark.parametrize("name", sorted(OPTIONS | COLUMNS | OTHERS | {"_x", "views", "policies", "model_dump"}))
def test_a_parameter_with_a_name_of_raysweep_is_refused(plan, tmp_path, name):
    process = plan(loss(name))
    assert (process.returncode, process.stdout) == (2, "")
    why = "raysweep uses this name for something else"
    place = f"{tmp_path}/mine.py, line 4"
    assert process.stderr == f"error: {place}: loss mine: {name}: {why}; give the parameter another name\n"


@pytest.mark.parametrize("name", sorted(FIGURES))
def test_a_parameter_with_the_name_of_a_figure_may_be_set_but_not_searched(plan, name):
    given = ("--usl_type", "ae_parallel")
    process = plan(loss(name), *given, "--set", f"{name}=[1, 2]")
    assert process.returncode == 2
    assert f"search.{name}: the figure of a searched parameter has its name, but" in process.stderr
    assert plan(loss(name), *given, "--set", f"{name}=2").returncode == 0


WRONG = [
    *((kind, default, "the type must be int, float, bool, str, or Literal with texts") for kind, default in (
        ("list", "[]"), ("list[int]", "[1]"), ("dict", "{}"), ("set", "set()"), ("tuple", "()"), ("bytes", "b''"),
        ("complex", "1j"), ("object", "1"), ("None", "None"), ("int | str", "1"), ("int | float | None", "1"),
        ("Literal[1, 2]", "1"), ("Literal['a', None]", "'a'"), ("torch.Tensor", "None"), ("'int'", "1"),
        ("type", "int"), ("'torch.nn.Module'", "None"),
    )),
    ("float", "'x'", "the default must be a number, not 'x'"),
    ("float", "'1.5'", "the default must be a number, not '1.5'"),
    ("float", "True", "the default must be a number, not True"),
    ("float", "None", "the default must be a number, not None"),
    ("float", "torch.tensor(1.0)", "the default must be a number, not tensor(1.)"),
    ("float", "float('nan')", "default: must be a finite number, not nan"),
    ("float | None", "float('inf')", "default: must be a finite number, not inf"),
    ("float, Field(gt=0)", "-1.0", "default: must be greater than 0, not -1.0"),
    ("float | None, Field(le=1)", "2.0", "default: must be less than or equal to 1, not 2.0"),
    ("int", "True", "the default must be a whole number, not True"),
    ("int", "1.0", "the default must be a whole number, not 1.0"),
    ("int | None", "1.5", "the default must be a whole number or None, not 1.5"),
    ("int, Field(gt='a')", "1", "its type and its range do not fit together (SchemaError)"),
    ("bool", "1", "the default must be True or False, not 1"),
    ("str", "5", "the default must be a text, not 5"),
    ("str", "'a\\0b'", "default: must not contain a NUL character, not 'a\\x00b'"),
    ("Literal['a', 'b']", "'c'", "default: must be 'a' or 'b', not 'c'"),
    ("Literal['a'] | None", "5", "the default must be one of the texts or None, not 5"),
    ("str, raysweep.Chooses('loss')", "'mze'", "unknown default 'mze', did you mean 'mse'?"),
    ("str, raysweep.Chooses('los')", "'mse'", "there is no kind 'los' of parts; valid: encoder, "),
    ("str, raysweep.FeatureLayer()", "'trank'", "unknown default 'trank', did you mean 'trunk'?"),
    ("int, raysweep.FeatureLayer()", "1", "names a part or a layer, so its type must be str"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "default", "words"), WRONG)
def test_a_wrong_type_or_default_is_one_line_with_its_place(plan, tmp_path, kind, default, words):
    process = plan(loss(kind=kind, default=default))
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr.startswith(f"error: {tmp_path}/mine.py, line 4: loss mine: sharpness: {words}")
    assert process.stderr.count("\n") == 1


TYPES = {  # a default, another value as a word of the command line, and this value in YAML
    "int": ("1", "2", "2"),
    "float": ("1", "2", "2.0"),
    "bool": ("False", "true", "true"),
    "str": ("'a'", "b", "b"),
    "Literal['a', 'b']": ("'a'", "b", "b"),
}


@pytest.mark.parametrize("optional", [False, True])
@pytest.mark.parametrize("kind", TYPES)
def test_every_type_takes_its_values_and_none(plan, kind, optional):
    default, word, value = TYPES[kind]
    text = loss(kind=f"{kind} | None" if optional else kind, default=default)
    process = plan(text, "--sharpness", word)
    assert (process.returncode, process.stderr) == (0, "")
    assert f"  sharpness: {value}\n" in process.stdout
    process = plan(text, "--sharpness", "none")
    if optional:
        assert (process.returncode, process.stderr) == (0, "")
        assert "  sharpness: null\n" in process.stdout
    elif kind != "str":
        assert (process.returncode, process.stderr.count("\n")) == (2, 1)


def test_the_parameters_of_the_built_in_parts_pass_the_same_checks():
    declared = [parameter for table in parts.TABLES.values() for part in table.values() for parameter in
                part.parameters.values()]  # fmt: skip
    assert len(declared) > 50
    for parameter in declared:
        check_parameter(parameter)


def test_a_default_may_name_a_part_that_the_plugin_declares_later(plan):
    first = loss("inner", "str, raysweep.Chooses('loss')", "'later'")
    process = plan(first + "\n@raysweep.loss\ndef later(z1, z2):\n    return (z1 - z2).abs().mean()\n")
    assert (process.returncode, process.stderr) == (0, "")


def test_a_part_of_any_kind_may_choose_other_parts(plan):
    mixed = loss("inner", "str, raysweep.Chooses('loss')", "'mse'")
    process = plan(mixed, "--inner", "barlow", "--set", "barlow_lambda=[0.001,0.01]")
    assert (process.returncode, process.stderr) == (0, "")
    process = plan(mixed, "--inner", "mse", "--set", "barlow_lambda=[0.001,0.01]")
    assert "barlow_lambda: has no effect" in process.stderr
    process = plan(mixed, "--inner", "mine")
    assert process.stderr == "error: command line: inner: mine: the loss mine would use itself\n"


def test_the_columns_of_a_table_keep_their_types_if_a_parameter_has_the_name_of_a_column(plan):
    names = (loss("value", "str", "'a'"), loss("step").replace("mine", "other"))
    plugins.activate([plugins.Plugin("mine.py", HEADER + "\n".join(names))])
    assert list(frame(["step"], [{"step": 0.5}])["step"]) == [0.5]
    curve = curve_frame([{"trial": "seed=0", "step": 1, "value": 0.5}], several=False)
    assert [str(dtype) for dtype in curve.dtypes] == ["string", "int64", "float64"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("class Stop(BaseException): ...\nraise Stop('no')", "line 5: Stop: no"),
        ("raise GeneratorExit", "line 4: GeneratorExit"),
        ("raise BaseExceptionGroup('all', [GeneratorExit()])", "line 4: BaseExceptionGroup: all (1 sub-exception)"),
    ],
)
def test_any_exception_at_import_is_one_line(plan, tmp_path, text, words):
    process = plan(text)
    assert (process.returncode, process.stderr) == (2, f"error: {tmp_path}/mine.py, {words}\n")


def test_an_interrupt_at_import_still_interrupts(plan):
    with pytest.raises(KeyboardInterrupt):
        plan("raise KeyboardInterrupt")
