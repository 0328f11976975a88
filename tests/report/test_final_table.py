"""The table at the end of a sweep loses no name at any width, and names of drawn values are short for people only."""

import csv
import fcntl
import io
import os
import pty
import re
import struct
import termios

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console

from raysweep.report.building import build_tables, read, read_several
from raysweep.report.final_table import summary_table
from raysweep.report.frames import point_frame
from raysweep.report.page import points_table
from tests.report.test_report import COLUMNS, fill_with
from tests.support import forked
from tests.support.commands import alone, here

DRAWN = {"alpha": {"loguniform": [1e-5, 10]}, "strength": {"uniform": [0, 1]}}
SPACES = {
    "grid": {"search": {"alpha": [0.1, 1], "strength": [0.5, 1], "seed": [0, 1, 2]}, "baseline": True},
    "one seed": {"search": {"alpha": [0.1, 1]}},
    "drawn": {"search": {**DRAWN, "seed": [0, 1, 2]}, "baseline": True, "tune": {"num_samples": 4}},
    "long": {
        "search": {**DRAWN, "batch_size": [128, 256], "dataset": ["digits"], "usl_lr": [1e-3], "knn_k": [5]},
        "baseline": True,
    },
    "wide": {"base": {"probe_dataset": "digits"}, "search": {"dataset": ["folder:/data/測試畫像/大きな絵", "digits"]}},
}


def scores(trial):
    rng = np.random.default_rng(list(map(ord, trial.name)))
    return {name: float(rng.uniform(0.4, 0.6)) for name in COLUMNS}


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """A report of each space, and one that compares two sweeps with long names."""
    folder = tmp_path_factory.mktemp("tables")
    stores = {kind: fill_with(folder, {"name": "s", **raw}, scores) for kind, raw in SPACES.items()}
    built = {kind: read(*opened) for kind, opened in stores.items()}
    two = [fill_with(folder, {"name": f"a_rather_long_name_of_sweep_{i}", **SPACES["grid"]}, scores) for i in (1, 2)]
    return {**built, "two": read_several(two)}


def cells_of(text):
    """Return the text of each column: its parts on all lines below the header, without the spaces beside them."""
    lines = [line.split("│")[1:-1] for line in text.splitlines() if line.startswith("│")]
    return ["".join(part.strip() for part in column) for column in zip(*lines, strict=True)]


@pytest.mark.parametrize("kind", [*SPACES, "two"])
def test_the_table_has_every_name_from_60_to_200_columns(reports, kind):
    report = reports[kind]
    shown = []
    for width in range(60, 201):
        output = io.StringIO()
        table, left_out = summary_table(report, width)
        Console(file=output, width=width).print(table)
        text = output.getvalue()
        assert max(map(cell_len, text.splitlines())) <= width
        assert "…" not in text, "nothing is cut"
        names = [[point.sweep, point.short_name] if report.several else [point.short_name] for point in report.points]
        for column, expected in zip(cells_of(text), zip(*names, strict=True), strict=False):
            assert column == "".join(expected)
        shown.append(len(left_out))
    assert shown == sorted(shown, reverse=True), "a wider terminal shows no less"
    assert shown[-1] == 0
    assert "linear/test_accuracy" not in summary_table(report, 80)[1], "the score stays longest"


def test_drawn_values_are_short_for_people_and_exact_in_files(reports, tmp_path):
    store, sweep = fill_with(tmp_path, {"name": "s", **SPACES["drawn"]}, scores)
    report = build_tables(store, sweep)
    for point in (point for point in report.points if not point.baseline):
        short = dict(each.split("=") for each in point.short_name.split(","))
        for name, text in short.items():
            assert float(text) == float(f"{point.varied[name]:.4g}")
            assert len(text.lstrip("0.").replace(".", "").partition("e")[0]) <= 4
        assert (store.root / f"{point.name},seed=0").is_dir(), "directories have the exact name"
    with open(store.root / "results.csv") as file:
        rows = list(csv.DictReader(file))
    with open(store.root / "differences.csv") as file:
        pairs = {row[side] for row in csv.DictReader(file) for side in ("first", "second")}
    exact = {point.name for point in report.points if not point.baseline}
    assert exact < {row["point"] for row in rows}
    assert pairs <= exact
    summary = (store.root / "summary.md").read_text()
    assert all(point.short_name in summary for point in report.points)
    assert not any(name in summary for name in exact)


def test_a_score_that_some_seeds_lack_has_its_own_count_of_seeds(tmp_path):
    def some(trial):
        lacks = trial.point == "alpha=0.1" and trial.settings.seed < 2
        return {name: value for name, value in scores(trial).items() if not (lacks and name == "kmeans/accuracy")}

    raw = {"name": "s", "search": {"alpha": [0.1, 1], "seed": [0, 1, 2, 3, 4]}, "baseline": True}
    store, sweep = fill_with(tmp_path, raw, some)
    report = build_tables(store, sweep)
    console = Console(file=io.StringIO(), width=200)
    console.print(summary_table(report, console.width)[0])
    summary, page = (store.root / "summary.md").read_text(), points_table(report)
    first, *differences = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in summary.splitlines()
        if line.startswith("| alpha=0.1 |")
    ]
    of_page = next(row for row in page.rows if row[0] == "alpha=0.1")
    assert first[1] == of_page[1] == "5"
    assert [cell for cell in first if "(n = " in cell] == [first[-1]] == [of_page[first.index(first[-1])]]
    assert re.fullmatch(r"0\.\d{4} ± 0\.\d{4} \(n = 3\)", first[-1])
    assert console.file.getvalue().count("(n = 3)") == 1
    assert len(differences) == 2
    for row in differences:
        assert row[1] == "5"
        assert [row.index(cell) for cell in row if cell.endswith("] (n = 3)")] == [len(row) - 2]
    assert "n is the number of seeds that both have." in summary, "a point lacks seeds in a score"
    rows = {row["point"]: row for row in csv.DictReader(io.StringIO((store.root / "summary.csv").read_text()))}
    numbers = {column: value for column, value in rows["alpha=0.1"].items() if column.split(" ")[-1] == "n"}
    assert {column: value for column, value in numbers.items() if value != "5"} == {
        "kmeans/accuracy n": "3",
        "kmeans/accuracy minus random n": "3",
    }
    assert {str(kind) for name, kind in point_frame(report).dtypes.items() if name in numbers} == {"Int64"}


def test_values_that_rounding_would_make_equal_stay_exact(tmp_path):
    raw = {"name": "s", "search": {"alpha": {"uniform": [0.50000, 0.50002]}}, "tune": {"num_samples": 3}}
    report = read(*fill_with(tmp_path, raw, scores))
    assert [point.short_name for point in report.points] == [point.name for point in report.points]


def test_a_single_experiment_prints_its_scores_and_compares_nothing(few, tmp_path):
    arguments = [word for name, value in few.items() for word in (f"--{name}", str(value))]
    process = alone("--usl_type", "simclr", "--usl_epochs", "1", "--le_epochs", "2", *arguments, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    lines = process.stdout.splitlines()
    sentence = next(line for line in lines if line.startswith("linear/val_accuracy 0."))
    assert all(f"{name} 0." in sentence for name in COLUMNS)
    (counts,) = [line for line in lines if line.startswith("trials      1 finished in ")]
    assert " s; the trials took " in counts
    summary = (tmp_path / "runs" / "simclr" / "summary.md").read_text()
    for text in (process.stdout, summary):
        assert not any(word in text for word in ("best", "differ", "seeds cannot", "One seed", "┃", "Tukey"))


def test_a_terminal_of_60_columns(tmp_path):
    """The sentences come first, their lines break at spaces, and the table says what it leaves out."""
    store, sweep = fill_with(tmp_path, {"name": "s", **SPACES["drawn"]}, scores)
    host, guest = pty.openpty()
    fcntl.ioctl(guest, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 60, 0, 0))
    environment = {**os.environ, "TERM": "xterm", "NO_COLOR": "1"}
    environment.pop("COLUMNS", None)
    program = ["-m", "raysweep", "report", store.root.name]
    process = forked.start(*program, cwd=tmp_path, environment=environment, stdout=guest)
    os.close(guest)
    shown = b""
    while part := read_some(host):
        shown += part
    assert process.wait() == 0
    text = re.sub(r"\x1b\[[0-9;]*m|\r", "", shown.decode())
    first, _, rest = text.partition("s: mean over seeds")
    words = " ".join(read(store, sweep).in_words(scores=1)[:1])
    assert " ".join(first.split()).startswith(words), "no word is broken"
    assert max(map(cell_len, text.partition("trials  ")[0].splitlines())) <= 60
    assert "… in summary.md: " in rest
    assert "trials      15 finished; the trials took 15 s in all" in rest


def read_some(descriptor):
    """Read from a pseudo-terminal; empty at its end, which Linux reports as an error."""
    try:
        return os.read(descriptor, 4096)
    except OSError:
        return b""


def test_counts_of_all_kinds_of_ends(tmp_path):
    store, _ = fill_with(tmp_path, {"name": "s", "search": {"seed": [0, 1, 2]}}, scores)
    (store.root / "seed=1" / "result.json").unlink()
    process = here("raysweep", "report", "s", cwd=tmp_path)
    assert "trials      2 finished, 1 not finished; the trials took 2 s in all" in process.stdout
