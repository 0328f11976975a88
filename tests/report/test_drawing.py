"""Figures and tables show every name unchanged, and no setting of the user or the machine changes a figure."""

import hashlib
import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image
from rich.console import Console

from raysweep import space
from raysweep.errors import printable
from raysweep.report import building, comparison, drawing, figures
from raysweep.report.building import build_report, read_several
from raysweep.report.comparison import draw_comparison
from raysweep.report.contents import Report
from raysweep.report.final_table import summary_table
from raysweep.report.heatmaps import draw_heatmap
from raysweep.report.points import COLUMNS
from raysweep.results.attempts import begin_attempt
from raysweep.results.result import make_result, write_result
from raysweep.results.store import Store
from tests.support import ROOT
from tests.support.commands import here

ODD = [
    "price_$5_$10",
    "$",
    "\\$x^{2}$",
    "\\frac{a}{$b",
    "_hidden",
    "[old]",
    "[bold red]x[/bold red]",
    "[/]",
    ":smile:",
    "a^b_{c}",
    "two\nlines",
    "escape\x1b[31m\x07\r",
    "c1\x9b31m\x85",
    "turned\u202eround",
    "שלום",
    "日本語",
    "not text \udcff",
    "a, b | c",
    "long " * 40,
]


def fill(place, search, name="odd", baseline=True, **base):
    """Create a finished sweep with made-up metrics; return its store and the sweep."""
    raw = {"name": name, "base": base, "search": {**search, "seed": [0, 1]}, "baseline": baseline}
    sweep = space.build(raw, {}, "test")
    store = Store.plan(place, None, sweep.name)
    store.create(sweep, {})
    for trial in sweep.trials:
        directory = store.trial(trial.name)
        begin_attempt(directory, trial.settings)
        rng = np.random.default_rng([trial.settings.seed, *trial.point.encode()])
        metrics = {metric: float(0.5 + 0.2 * rng.random()) for metric in COLUMNS[:2]}
        kept = {"error": None, "metrics": metrics, "wall_s": 1.0, "device": "cpu", "warnings": []}
        write_result(directory, make_result(trial, "digest", directory, status="finished", **kept))
    return store, sweep


def folders(names):
    return [f"folder:/data/{name}" for name in names]


def drawn_texts(figure):
    """Return every text of a figure as it is saved."""
    assert drawing.save(figure, dpi=20)
    with drawing.own_style():
        texts = [text for text in figure.findobj(Text) if text.get_text()]
    assert not [text for text in texts if text.get_parse_math() or text.get_usetex()]
    return [text.get_text() for text in texts]


def squeezed(texts):
    """Join all texts, without the line breaks and blanks that wrapping adds or removes."""
    return "".join("".join(texts).split())


# Names


def test_every_figure_shows_the_names_in_settings_as_they_are(tmp_path):
    names = [name for name in ODD if len(name) < 100]
    store, sweep = fill(tmp_path, {"dataset": folders(names), "alpha": [1e-5, 10]}, probe_dataset="digits")
    built = building.read(store, sweep)
    by_dataset = figures.draw(sweep, built.points, "dataset")
    rows = draw_comparison("s", built.points, built.metric, built.mode, built.groups)
    heat_map = draw_heatmap(sweep, built.points)
    for figure in (by_dataset, rows, heat_map):
        check_names(names, figure)
    for start in range(0, len(names), 8):  # a legend has at most ten entries
        few = names[start : start + 8]
        store, sweep = fill(
            tmp_path / f"{start}", {"dataset": folders(few), "alpha": [1e-5, 10]}, probe_dataset="digits"
        )
        check_names(few, figures.draw(sweep, building.read(store, sweep).points, "alpha"))


def check_names(names, figure):
    """Check that a figure shows the names of all folders as they are."""
    shown = squeezed(drawn_texts(figure))
    for name in names:
        assert squeezed([drawing.literal(f"folder:/data/{name}")]) in shown


@pytest.mark.parametrize("name", ["price_$5_$10", "$x^{2}$", "_hidden", "[old]", ":smile:", "שלום"])
def test_what_can_be_drawn_is_drawn_as_it_is(name):
    assert drawing.literal(name) == name


@pytest.mark.parametrize(
    ("name", "shown"),
    [("a\nb", "a\\nb"), ("日", "\\u65e5"), ("\udcff", "\\udcff"), ("\x1b[0m", "\\x1b[0m"), ("\u202e", "\\u202e")],
)
def test_what_cannot_be_drawn_is_an_escape_sequence(name, shown):
    assert drawing.literal(name) == shown


def test_a_long_text_is_wrapped_and_what_is_too_long_keeps_its_ends():
    assert drawing.wrapped("a=1,b=2", 40) == "a=1,b=2"
    assert drawing.wrapped("a=1,b=2", 4) == "a=1,\nb=2"
    lines = drawing.wrapped("begin" + "x" * 5000 + "end", 40).split("\n")
    assert len(lines) <= drawing.MOST_WRAPPED
    assert lines[0].startswith("begin")
    assert lines[-1].endswith("end")
    assert max(map(len, lines)) <= drawing.LONGEST


def test_a_figure_with_very_long_names_keeps_its_size(tmp_path):
    long = ["folder:/" + "/".join([letter * 200] * 15) for letter in "ab"]
    store, sweep = fill(tmp_path, {"dataset": long, "alpha": [1e-5, 10]}, probe_dataset="digits")
    assert not build_report(store, sweep).not_drawn
    for path in (store.root / "figures").iterdir():
        picture = np.asarray(Image.open(path).convert("L"))
        assert max(picture.shape) < 4000
        assert picture.min() < 100, "the figure is not blank"


def test_a_comparison_shows_the_directories_names_as_they_are(tmp_path):
    names = ["_a", "price_$5_$10", "[old]", ":smile:", "x\x1b[31m\ny", "not text \udcff"]
    directories = []
    for number, name in enumerate(names):
        store, _ = fill(tmp_path, {"alpha": [0.1 + number]}, name=f"s{number}")
        directories.append(store.root.rename(tmp_path / name))
    process = here("raysweep", "report", *directories, "-o", tmp_path / "both", cwd=tmp_path)
    assert (process.returncode, process.stderr) == (0, "")
    assert all(line.isprintable() for line in process.stdout.split("\n"))
    text = (tmp_path / "both" / "summary.md").read_text()
    assert all(line.isprintable() for line in text.split("\n"))
    table = squeezed([line for line in process.stdout.split("\n") if "│" in line]).replace("│", "")
    for name in names:
        assert f"| {printable(name)} |" in text
        assert "".join(printable(name).split()) in table
    assert (tmp_path / "both" / "figures" / "comparison.png").stat().st_size > 10_000

    comparison = read_several([Store.open(directory) for directory in directories])
    texts = drawn_texts(draw_comparison(comparison.name, comparison.points, comparison.metric, comparison.mode))
    assert {drawing.literal(name) for name in names} <= set(texts)


def test_tables_hold_every_name_and_no_control_character_reaches_the_terminal(tmp_path, monkeypatch):
    store, _ = fill(tmp_path, {"dataset": folders(ODD)}, probe_dataset="digits")
    process = here("raysweep", "report", store.root, cwd=tmp_path)
    assert (process.returncode, process.stderr) == (0, "")
    assert all(line.isprintable() for line in process.stdout.split("\n"))
    assert "\\udcff" in (store.root / "results.csv").read_text()
    store.root.rename(tmp_path / "\x1b[31m[old]\u202e")
    monkeypatch.setattr(building, "figures_of", lambda report: {})  # the first report has drawn them
    process = here("raysweep", "report", tmp_path / "\x1b[31m[old]\u202e", cwd=tmp_path)
    assert process.returncode == 0
    assert "\\x1b[31m[old]\\u202e/summary.md" in process.stdout
    assert all(line.isprintable() for line in process.stdout.split("\n"))


def test_a_table_is_literal_on_any_console(tmp_path):
    store, sweep = fill(tmp_path, {"dataset": folders(["a", "b"])}, probe_dataset="digits")
    built = building.read(store, sweep)
    odd = Report("[red]:smile:", built.members, built.points, built.metric, built.mode)
    output = io.StringIO()
    Console(file=output, width=200).print(summary_table(odd, 200)[0])
    assert "[red]:smile:: mean over seeds" in output.getvalue()


def test_errors_and_warnings_reach_the_terminal_and_the_summary_in_one_printable_line(tmp_path):
    store, sweep = fill(tmp_path, {"alpha": [0.1, 1]})
    first, second = (trial for trial in sweep.trials if trial.point == "alpha=0.1")
    words = "cannot read \x1b]0;title\x07 [old]\nof :smile: \u202e \udcff"
    common = {"metrics": {}, "wall_s": 1.0, "device": "cpu"}
    for trial, status, error, warnings in ((first, "failed", words, []), (second, "finished", None, [words])):
        result = make_result(
            trial, "digest", store.trial(trial.name), status=status, error=error, warnings=warnings, **common
        )
        write_result(store.trial(trial.name), result)
    process = here("raysweep", "report", store.root, cwd=tmp_path)
    assert process.returncode == 1
    assert f"failed: {first.name}: {printable(words)}" in process.stderr.splitlines()
    assert all(line.isprintable() for line in (process.stdout + process.stderr).split("\n"))
    lines = (store.root / "summary.md").read_text().split("\n")
    assert f"- {first.name}: {printable(words)}" in lines
    assert f"- {printable(words)} ({second.name})" in lines


def test_a_dry_run_prints_yaml_without_control_characters_that_reads_the_same(run_sweep, tmp_path):
    import yaml

    folder = tmp_path / "é\u202e\x9b" / "train" / "a"
    folder.mkdir(parents=True)
    Image.new("L", (8, 8)).save(folder / "1.png")
    dataset = f"folder:{folder.parents[1]}"
    process = run_sweep("--dataset", dataset, "--probe_dataset", "digits", "--dry-run")
    assert process.returncode == 0, process.stderr
    assert all(line.isprintable() for line in process.stdout.split("\n"))
    assert yaml.safe_load(process.stdout.partition("\n# ")[0])["base"]["dataset"] == dataset


# Axes


def test_powers_of_ten_are_labelled_as_such(tmp_path):
    store, sweep = fill(tmp_path, {"alpha": [0.0, 1e-5, 1e-3, 1.0, 10.0]})
    figure = figures.draw(sweep, building.read(store, sweep).points, "alpha")
    assert figure.axes[0].get_xscale() == "symlog"
    assert {"0", "10⁻⁵", "10⁻³", "10⁰", "10¹"} <= set(drawn_texts(figure))
    assert drawing.power_of_ten(10.0**23) == "10²³"
    assert drawing.power_of_ten(0.03) == "0.03"


# Figures that fail


def test_a_figure_that_fails_costs_itself_alone_and_one_warning(tmp_path, monkeypatch):
    store, _ = fill(tmp_path, {"alpha": [0.1, 10], "strength": [0.5, 1]})
    draw = figures.draw

    def fail(sweep, points, name):
        if name == "alpha":
            raise ValueError("no such thing\nand more")
        return draw(sweep, points, name)

    monkeypatch.setattr(figures, "draw", fail)
    process = here("raysweep", "report", store.root, cwd=tmp_path)
    assert process.returncode == 0
    assert process.stderr == "warning: the figure alpha.png could not be drawn: ValueError: no such thing\n"
    pictures = sorted(path.name for path in (store.root / "figures").iterdir())
    assert pictures == ["alpha_x_strength.png", "strength.png"]
    tables = ("results.csv", "summary.csv", "differences.csv", "summary.md")
    assert all((store.root / name).stat().st_size > 100 for name in tables)


def test_a_comparison_that_cannot_be_drawn_leaves_the_tables(tmp_path, monkeypatch):
    both = [fill(tmp_path, {"alpha": [alpha]}, name=f"s{alpha}")[0].root for alpha in (1, 2)]

    def fail(*arguments):
        raise MemoryError

    monkeypatch.setattr(comparison, "draw_comparison", fail)
    process = here("raysweep", "report", *both, "-o", tmp_path / "both", cwd=tmp_path)
    assert process.returncode == 0
    assert process.stderr == "warning: the figure comparison.png could not be drawn: out of memory\n"
    assert all((tmp_path / "both" / name).stat().st_size > 100 for name in ("summary.csv", "summary.md"))


def test_a_picture_that_cannot_be_drawn_is_one_line(tmp_path, monkeypatch):
    file, output = tmp_path / "s.yaml", tmp_path / "p.png"
    file.write_text(json.dumps({"name": "s", "base": {"usl_epochs": 1, "policy": "noise"}}))

    def fail(*arguments):
        raise ValueError("the picture is too large")

    monkeypatch.setattr(drawing, "save", fail)
    process = here("raysweep", "preview", file, "-o", output, cwd=tmp_path)
    assert process.returncode == 2
    assert process.stderr == f"error: {output}: the picture cannot be drawn: ValueError: the picture is too large\n"
    assert not output.exists()


# The environment

PROGRAM = """
import contextlib, hashlib, importlib, io, json, os, sys
from pathlib import Path
import numpy, PIL.Image, scipy.stats, yaml, pydantic, pyarrow, rich.console, rich.table
import raysweep.cli, raysweep.report.building

raysweep.report.building.with_page = lambda report, directory: report  # the page contains the figures as they are
assert "matplotlib" not in sys.modules

def case(place, settings):
    for name, value in settings.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    os.chdir(place)
    before = dict(os.environ)
    status = raysweep.cli.main(["report", sys.argv[1]])
    assert before == dict(os.environ), "the environment"
    assert os.path.samefile(os.getcwd(), place), "the working directory"
    assert "matplotlib.pyplot" not in sys.modules
    import matplotlib
    backend = matplotlib.get_backend(auto_select=False)
    return {"status": status, "size": matplotlib.rcParams["font.size"], "backend": backend}

answers = {}
for name, (place, settings) in json.loads(sys.argv[2]).items():
    read, write = os.pipe()
    if os.fork() == 0:  # Matplotlib reads the environment once in a process
        os.dup2(os.open(f"{sys.argv[3]}/{name}.err", os.O_WRONLY | os.O_CREAT), 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.write(write, json.dumps(case(place, settings)).encode())
        sys.stderr.flush()
        os._exit(0)  # the interpreter would free every object of the parent
    os.close(write)
    with open(read) as file:
        answer = json.loads(file.read() or "{}")
    os.wait()
    answer["stderr"] = Path(sys.argv[3], f"{name}.err").read_text()
    drawn = sorted(Path(sys.argv[1], "figures").iterdir())
    answer["pictures"] = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in drawn}
    for path in drawn:
        path.unlink()
    answers[name] = answer
print(json.dumps(answers))
"""


def test_no_setting_of_the_user_or_the_machine_changes_a_figure(tmp_path):
    store, sweep = fill(tmp_path / "runs", {"alpha": [1e-5, 1.0]}, baseline=False)
    build_report(store, sweep)
    expected = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (store.root / "figures").iterdir()}
    contents = {
        "styled": b"text.usetex: True\nfont.size: 30\naxes.facecolor: red\nsavefig.format: svg\nsavefig.bbox: tight\n",
        "not_text": b"\xff\xfe",
        "nonsense": b"no.such.key: 1\nnonsense\nfont.size: x\n",
        "locale": b"axes.formatter.use_locale: True\n",
        "empty": None,
    }
    for name, content in contents.items():
        (tmp_path / name / "matplotlib").mkdir(parents=True)
        if content is not None:
            for place in (tmp_path / name, tmp_path / name / "matplotlib"):
                (place / "matplotlibrc").write_bytes(content)
    empty, not_text, styled = (str(tmp_path / name) for name in ("empty", "not_text", "styled"))
    nowhere = "/proc/nowhere"
    cases = {
        "backend of a notebook": (empty, {"MPLBACKEND": "module://no_such_module.backend_inline"}),
        "unknown backend": (empty, {"MPLBACKEND": "nonsense"}),
        "backend with windows": (empty, {"MPLBACKEND": "svg"}),
        "style here": (styled, {}),
        "no text here": (not_text, {}),
        "nonsense here": (str(tmp_path / "nonsense"), {}),
        "unknown locale": (str(tmp_path / "locale"), {"LC_ALL": "xx_XX"}),
        "MATPLOTLIBRC, a file": (empty, {"MATPLOTLIBRC": f"{styled}/matplotlibrc"}),
        "MATPLOTLIBRC, a directory": (empty, {"MATPLOTLIBRC": not_text}),
        "XDG_CONFIG_HOME": (empty, {"XDG_CONFIG_HOME": styled}),
        "MPLCONFIGDIR, a file": (empty, {"MPLCONFIGDIR": f"{styled}/matplotlibrc"}),
        "no home": (empty, {"HOME": nowhere, "XDG_CONFIG_HOME": None, "XDG_CACHE_HOME": None}),
        "all at once": (not_text, {"MPLBACKEND": "nonsense", "MPLCONFIGDIR": nowhere, "MATPLOTLIBRC": not_text}),
    }
    arguments = [str(store.root), json.dumps(cases), str(tmp_path)]
    environment = {name: value for name, value in os.environ.items() if name not in drawing.STEERING}
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        env={**environment, "PYTHONPATH": str(ROOT)},
        cwd=empty,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    answers = json.loads(process.stdout)
    assert answers.keys() == cases.keys()
    for name, answer in answers.items():
        assert answer["stderr"] == "", name
        assert answer["status"] == 0, name
        assert answer["pictures"] == expected, name
    # The user's Matplotlib settings apply to the rest of the program.
    for name in ("style here", "MATPLOTLIBRC, a file", "XDG_CONFIG_HOME"):
        assert answers[name]["size"] == 30
    assert answers["backend with windows"]["backend"] == "svg"


def test_drawing_leaves_the_user_s_style_alone(tmp_path):
    import matplotlib

    store, sweep = fill(tmp_path, {"alpha": [1e-5, 0.1]})
    plain = build_report(store, sweep)
    picture = (store.root / "figures" / "alpha.png").read_bytes()
    with matplotlib.rc_context(
        {"font.size": 30, "text.parse_math": True, "text.usetex": True, "savefig.bbox": "tight"}
    ):
        before = dict(matplotlib.rcParams)
        build_report(store, sweep)
        figure = figures.draw(sweep, plain.points, "alpha")
        canvas, dpi = figure.canvas, figure.dpi
        drawing.save(figure)
        assert (figure.canvas, figure.dpi) == (canvas, dpi)
        assert dict(matplotlib.rcParams) == before
    assert (store.root / "figures" / "alpha.png").read_bytes() == picture


def test_one_module_imports_matplotlib():
    modules = [path.name for path in (ROOT / "raysweep").rglob("*.py") if "\nfrom matplotlib" in path.read_text()]
    assert modules == ["drawing.py"]
