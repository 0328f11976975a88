"""The page `report.html`: its content, its safety, and its behaviour in a real browser."""

import csv
import json
import math
import re
import shutil
import subprocess
import webbrowser
from base64 import b64encode
from dataclasses import replace
from hashlib import sha256
from html.parser import HTMLParser

import pytest

from raysweep import space
from raysweep.report import page_curves
from raysweep.report.building import build_comparison, build_tables, read_several, with_page
from raysweep.report.page_curves import MOST_STEPS, compact, rounded, script_data, spread, styles_of
from raysweep.report.points import SCORES
from raysweep.results.result import write_result
from tests.report.test_report import SWEEP, fill
from tests.support.commands import here

EVIL = "</script><img src=x onerror=alert(1)>"
TINY = ["--usl_type", "ae_parallel", "--image_size", "8", "--batch_size", "20", "--knn_k", "5"]
CHROMIUM = (".google.com", ".googleapis.com", ".gstatic.com")
"""The hosts that Chromium itself asks for updates, whatever page it shows."""
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page(HTMLParser):
    """What a browser would see in a page: its tags, the text of its scripts, and the text of its table rows."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self.titles, self.rows, self.words = [], [], [], {}, []
        self.inside, self.table, self.hidden = [], "", False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.append((tag, values))
        self.inside.append(tag)
        if tag == "script":
            self.scripts.append("")
        elif tag == "table":
            self.table = values.get("id", "")
        elif tag == "tr":
            self.rows.setdefault(self.table, []).append([])
            self.hidden = "hidden" in values
            if self.hidden:
                self.rows[self.table].pop()
        elif tag in ("td", "th") and not self.hidden:
            self.rows[self.table][-1].append("")
        elif tag in ("h2", "h3"):
            self.titles.append("")

    def handle_endtag(self, tag):
        while self.inside and self.inside.pop() != tag:
            pass
        self.hidden = self.hidden and tag != "tr"

    def handle_data(self, text):
        if self.inside[-1:] == ["script"]:
            self.scripts[-1] += text
            return
        self.words.append(text)
        if {"td", "th"} & set(self.inside) and not self.hidden:
            self.rows[self.table][-1][-1] += text
        if {"h2"} & set(self.inside) and "span" not in self.inside:
            self.titles[-1] += text.strip()

    def attributes(self, tag):
        return [values for name, values in self.tags if name == tag]

    @property
    def data(self):
        return json.loads(self.scripts[0])


def read_page(root):
    return Page((root / "report.html").read_text())


@pytest.fixture(scope="module")
def root(few, tmp_path_factory):
    """The results directory of a real sweep on a dataset whose name would be a script in a careless page."""
    folder = tmp_path_factory.mktemp("page")
    dataset = folder / EVIL
    dataset.parent.mkdir()
    dataset.symlink_to(few["dataset"].removeprefix("folder:"))
    grid = [
        "--set",
        "alpha=[0.1, 0.15]",
        "--set",
        "seed=[0, 1]",
        "--set",
        "baseline=true",
        "--usl_epochs",
        "3",
        "--le_epochs",
        "2",
    ]
    watched = ["--probe_every", "1", "--images_every", "2", "--local", "--name", "evil"]
    process = here("run_sweep.py", "--dataset", f"folder:{dataset}", *TINY, *grid, *watched, cwd=folder)
    assert process.returncode == 0, process.stderr
    assert "\npage        runs/evil/report.html\n" in process.stdout
    return folder / "runs" / "evil"


def test_page_has_sentences_tables_figures_curves_pictures_and_settings(root):
    page = read_page(root)
    text = " ".join(" ".join(page.words).split())
    for line in (root / "summary.md").read_text().split("##")[0].splitlines():
        if line.startswith("- "):
            assert line.removeprefix("- ") in text
    order = ["Points", "Trials", "Figures", "Curves", "Pictures", "Settings"]
    assert [title for title in page.titles if title in order] == order
    with open(root / "results.csv") as file:
        results = list(csv.DictReader(file))
    header, *rows = page.rows["trials"]
    column = header.index("linear/test_accuracy")
    assert [row[0] for row in rows] == [result["trial"] for result in results]
    expected = [float(result["linear/test_accuracy"]) for result in results]
    assert [float(row[column]) for row in rows] == pytest.approx(expected, rel=1e-5)
    assert [row[0] for row in page.rows["points"]] == ["point", "random", "alpha=0.1", "alpha=0.15"]
    pictures = [values["src"] for values in page.attributes("img")]
    figures = [b64encode(path.read_bytes()).decode() for path in sorted((root / "figures").glob("*.png"))]
    assert [uri.removeprefix("data:image/png;base64,") for uri in pictures[: len(figures)]] == figures
    alternatives = {values["alt"] for values in page.attributes("img")[: len(figures)]}
    assert "Figure: the scores against alpha: the mean over seeds. The tables have the numbers." in alternatives
    assert all(len(text) > 30 for text in alternatives)
    (plot,) = (values for values in page.attributes("div") if values.get("id") == "plot")
    assert plot["aria-label"]
    trial_pictures = len(pictures) - len(figures)
    assert trial_pictures == 2 * 3, "of two points: views after epochs 2 and 3, and the confusion matrix"
    record = (root / "sweep.yaml").read_text()
    for name in ("commit", "started"):
        assert re.search(rf"  {name}: '?([^\n']*)", record)[1].replace("null", "none") in text
    assert "--dataset 'folder:" in text


def test_every_column_of_a_table_has_its_own_title(root):
    page = read_page(root)
    for table in ("points", "trials"):
        header = page.rows[table][0]
        assert "" not in header
        assert len(set(header)) == len(header), "a click on a title sorts by every column with this title"
    verdicts = [name for name in page.rows["points"][0] if name.endswith(" against random")]
    assert verdicts == [f"{score} against random" for score in SCORES]
    rows = [line.split(" | ") for line in (root / "summary.md").read_text().splitlines() if line.startswith("| point")]
    assert all(name.strip("| ") for header in rows for name in header), "the verdicts have a title in summary.md too"


def test_curves_have_the_values_of_every_trial(root):
    data = read_page(root).data
    assert data["first"] == "pretrain/loss"
    trained = [name for name in data["names"] if not name.startswith("random")]
    assert len(trained) == len(data["metrics"]["pretrain/loss"]) == 4
    for trial, steps, values in data["metrics"]["online/knn_val_accuracy"]:
        with open(root / data["names"][trial] / "curves.csv") as file:
            rows = {row["step"]: row["online/knn_val_accuracy"] for row in csv.DictReader(file)}
        expected = {int(step): float(value) for step, value in rows.items() if value}
        assert dict(zip(data["steps"][steps], values, strict=True)) == pytest.approx(expected, rel=1e-4)


def test_nothing_from_the_user_becomes_a_tag_and_only_our_scripts_may_run(root):
    page = read_page(root)
    assert EVIL in "".join(page.words), "the name is shown as text"
    assert not [values for _, values in page.tags if any(name.startswith("on") for name in values)]
    assert not [values for _, values in page.tags if "href" in values]
    assert all(values["src"].startswith("data:image/") for _, values in page.tags if "src" in values)
    (policy,) = (values["content"] for values in page.attributes("meta") if "http-equiv" in values)
    _, *scripts = page.scripts
    hashes = [f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'" for script in scripts]
    assert f"default-src 'none'; script-src {' '.join(hashes)}; " in policy
    assert "connect-src" not in policy
    assert "http" not in policy


def test_errors_and_warnings_are_escaped_in_a_comparison_too(tmp_path):
    stores = [fill(tmp_path / name, failed=("alpha=10.0,seed=2",)) for name in ("one", "two")]
    for store in stores:
        result = store.result("alpha=10.0,seed=2")
        (store.trial(result.trial) / "result.json").unlink()
        write_result(store.trial(result.trial), replace(result, error=EVIL, warnings=[EVIL]))
    report, directory = build_comparison(read_several([(store, SWEEP) for store in stores]), [tmp_path / "both"])
    page = read_page(directory)
    assert not report.not_drawn
    assert "".join(page.words).count(EVIL) >= 5, "in the table and among the failures of both, and as a warning"
    assert all(values["src"].startswith("data:image/") for _, values in page.tags if "src" in values)
    assert {row[0] for row in page.rows["trials"][1:]} == {member.label for member in report.members}


def test_page_of_one_trial_without_curves_is_small(few, run_sweep, tmp_path):
    process = run_sweep("--dataset", few["dataset"], *TINY, "--usl_epochs", "0", "--le_epochs", "1", "--local")
    assert process.returncode == 0, process.stderr
    root = tmp_path / "runs" / "ae_parallel"
    page = read_page(root)
    assert "No trial measured a metric at two epochs or more." in "".join(page.words)
    assert len(page.rows["trials"]) == 2
    assert (root / "report.html").stat().st_size < 100_000


def test_a_page_that_cannot_be_written_costs_a_warning_and_no_table(tmp_path):
    store = fill(tmp_path)
    report = build_tables(store, SWEEP)
    with open(store.root / "sweep.yaml", "a") as file:
        file.write("changed_by: 5\n")
    (line,) = with_page(report, store.root).not_drawn
    assert line.startswith("report.html could not be written: ")
    assert line.endswith("sweep.yaml: changed_by: expected a list, not 5")
    files = {path.name for path in store.root.iterdir() if path.is_file()}
    assert files == {"results.csv", "summary.csv", "differences.csv", "summary.md", "sweep.yaml"}


@pytest.mark.parametrize("damage", ["step,pretrain/loss\n1,x\n", "no table\n1\n", "step\n1,2\n"])
def test_damaged_curves_of_a_trial_are_left_out_with_a_warning(tmp_path, damage):
    store = fill(tmp_path)
    report = build_tables(store, SWEEP)
    (store.trial("alpha=0.01,seed=0") / "curves.csv").write_text(damage)
    why = "alpha=0.01,seed=0/curves.csv: is damaged; remove it, and raysweep report writes it again"
    with pytest.warns(UserWarning, match=re.escape(why)):
        assert not with_page(report, store.root).not_drawn
    assert why in (store.root / "report.html").read_text()


def test_points_have_different_lines_until_every_colour_has_every_dash():
    search = {"alpha": [(number + 1) / 100 for number in range(22)], "seed": [0, 1]}
    sweep = space.build({"name": "many", "search": search, "baseline": True}, {}, "test")
    styles = {}
    for trial, style in zip(sweep.trials, styles_of([("", trial) for trial in sweep.trials]), strict=True):
        styles.setdefault(trial.point, set()).add(style)
    assert {len(each) for each in styles.values()} == {1}, "the trials of a point look alike"
    lines = [style for each in styles.values() for style in each]
    assert len(lines) == 23
    assert len(set(lines[:-1])) == 22, "21 points and the control"
    assert lines[-1] == lines[1]
    data = script_data([("", trial) for trial in sweep.trials], {"pretrain/loss": [(0, {1: 1.0, 2: 0.5})]}, {})
    assert data["most_named"] == 21
    assert set(data["dashes"]) == {"solid", "dashed", "dotted"}


def test_long_curves_are_thinned():
    long = {step: math.sin(step) for step in range(1, 10_001)}
    data = compact({"a": [(0, long), (1, {1: 0.123456789, 2: math.nan, 9: math.inf})]})
    steps, (first, second) = data["steps"], data["metrics"]["a"]
    assert len(first[2]) == MOST_STEPS
    assert (steps[first[1]][0], steps[first[1]][-1]) == (1, 10_000)
    assert dict(zip(steps[first[1]], first[2], strict=True)) == {s: rounded(long[s]) for s in steps[first[1]]}
    assert second[2] == [0.12346, None, None]
    assert [spread(range(10), most) for most in (1, 2, 4, 10)] == [[9], [0, 9], [0, 3, 6, 9], list(range(10))]


def test_curves_together_are_limited_so_that_a_thousand_trials_stay_below_fifteen_megabytes(monkeypatch):
    monkeypatch.setattr(page_curves, "MOST_VALUES", 10_000)
    values = {step: math.sin(step) * 1e-3 for step in range(1, 401)}
    data = compact({f"metric {number}": [(trial, values) for trial in range(100)] for number in range(12)})
    count = sum(len(line[2]) for lines in data["metrics"].values() for line in lines)
    assert 9_000 < count <= 10_000
    assert len(json.dumps(data, separators=(",", ":"))) < 14 * count


@pytest.mark.parametrize("opens", [True, False])
def test_report_opens_the_page(opens, root, monkeypatch):
    opened = []
    monkeypatch.setattr(webbrowser, "open", lambda address: opened.append(address) or opens)
    process = here("raysweep", "report", root, "--open", cwd=root.parent)
    assert process.returncode == 0
    assert opened == [(root / "report.html").as_uri()]
    said = "" if opens else "there is no browser on this machine; the page is evil/report.html\n"
    assert process.stderr == said


def browse(root, state, folder):
    """Open the page of the sweep in `root` in headless Chromium, with the state that its address keeps."""
    quiet = ["--disable-background-networking", "--disable-component-update", "--no-first-run", "--disable-sync"]
    return subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", *quiet, f"--user-data-dir={folder / 'profile'}",
         f"--log-net-log={folder / 'net.json'}", "--enable-logging=stderr", "--virtual-time-budget=20000",
         "--dump-dom", f"{(root / 'report.html').as_uri()}#{state}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_page_sorts_and_filters_in_a_browser_without_the_network(root, tmp_path):
    process = browse(root, "filter=alpha=0.1&sort=-linear/test_accuracy&metric=pretrain/rec_loss", tmp_path)
    page = Page(process.stdout)
    header, *rows = page.rows["trials"]  # alpha=0.15 contains the text alpha=0.1, and is another value
    scores = [float(row[header.index("linear/test_accuracy")]) for row in rows]
    assert {row[0] for row in rows} == {"alpha=0.1,seed=0", "alpha=0.1,seed=1"}
    assert scores == sorted(scores, reverse=True)
    assert [row[0] for row in page.rows["points"]] == ["point", "alpha=0.1"]
    text = "".join(page.words)
    assert "2 of 4 shown" in text, "the plot has the curves of two trials"
    assert 'class="bk-' in process.stdout, "Bokeh has drawn"
    assert "--dash: solid" in process.stdout, "the legend"
    console = [line for line in process.stderr.splitlines() if "CONSOLE" in line and '"[bokeh ' not in line]
    assert not console
    requests = set(re.findall(r'"url":"(\w+)://([^/"]*)', (tmp_path / "net.json").read_text()))
    hosts = {host for scheme, host in requests if scheme in ("http", "https", "ws", "wss")}
    assert not [host for host in hosts if not host.endswith(CHROMIUM)]


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_a_chosen_point_and_a_filter_of_trials_agree_in_both_tables(root, tmp_path):
    page = Page(browse(root, "point=alpha=0.15", tmp_path).stdout)
    assert {row[0] for row in page.rows["trials"][1:]} == {"alpha=0.15,seed=0", "alpha=0.15,seed=1"}
    assert [row[0] for row in page.rows["points"]] == ["point", "alpha=0.15"]
    page = Page(browse(root, "filter=random", tmp_path).stdout)
    assert [row[0] for row in page.rows["points"]] == ["point", "random"], "verdicts name the random encoder too"
    column = "knn/test_accuracy against random"
    page = Page(browse(root, f"sort={column}", tmp_path).stdout)
    assert [name.get("aria-sort") for name in page.attributes("th")].count("ascending") == 1
    place = page.rows["points"][0].index(column)
    verdicts = [row[place] for row in page.rows["points"][1:]]
    assert verdicts == sorted(verdicts, key=lambda text: (text == "–", text))
    page = Page(browse(root, "filter=seed=1+finished", tmp_path).stdout)
    assert [row[0] for row in page.rows["points"]] == ["point", "random", "alpha=0.1", "alpha=0.15"]
    assert {row[0] for row in page.rows["trials"][1:]} == {"random,seed=1", "alpha=0.1,seed=1", "alpha=0.15,seed=1"}
