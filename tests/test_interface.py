"""The Python interface, through real sweeps of the digits."""

import json
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager

import numpy as np
import pandas
import pytest
import torch
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import raysweep
import raysweep.interface
from raysweep.errors import InputError
from raysweep.portable import load
from raysweep.results.store import Store
from tests.support import ROOT, forked

BASE = {"usl_type": "simclr", "usl_epochs": 2, "le_epochs": 1, "probe_every": 1, "images_every": 0}
SPACE = {"name": "s", "search": {"strength": [0.25, 1], "seed": [0, 1]}, "baseline": True}
ONE = {"name": "one", "base": {**BASE, "usl_epochs": 1}}
ENDLESS = {}
ENDLESS["base"] = ENDLESS
TRIAL = "strength=0.25,seed=1"

pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("interface")


@pytest.fixture(scope="module")
def space(few):
    return {**SPACE, "base": {**BASE, **few}}


@pytest.fixture(scope="module")
def results(folder, space):
    return raysweep.run(space, output=folder, local=True)


def test_the_import_is_light_and_lists_every_public_name(tmp_path):
    program = """
import sys
import raysweep
assert set(raysweep.__all__) <= set(dir(raysweep))
heavy = {"torch", "ray", "numpy", "pandas", "pydantic", "matplotlib", "yaml"} & set(sys.modules)
sys.exit(f"imported: {heavy}" if heavy else 0)
"""
    process = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    for name in raysweep.__all__:
        public = getattr(raysweep, name)
        assert "Example:" in public.__doc__, name
    with pytest.raises(AttributeError, match="has no attribute 'rum'"):
        raysweep.rum  # noqa: B018


def test_the_frame_has_exact_values_and_dtypes_that_survive_missing_values(results):
    frame = results.frame()
    assert list(frame["trial"]) == results.trials
    assert len(frame) == 6
    chosen = frame[frame["trial"] == TRIAL].iloc[0]
    result = raysweep.sweep_results.Store(results.places[0]).result(TRIAL)
    assert all(chosen[name] == value for name, value in result.metrics.items())
    assert chosen["wall_s"] == result.wall_s
    # A random encoder has no batch size, and still the batch size of the others is a whole number.
    assert frame["batch_size"].dtype == frame["seed"].dtype == frame["attempts"].dtype == "Int64"
    assert frame["batch_size"].isna().sum() == 2
    assert frame["strength"].dtype == frame["linear/test_accuracy"].dtype == "float64"
    assert frame["skip_bad_images"].dtype == "boolean"
    assert set(frame["status"]) == {"finished"}
    assert list(frame["control"].dropna()) == ["random", "random"]


def test_curves_equal_what_tensorboard_reads(results):
    metric = "online/knn_val_accuracy"
    curves = results.curves(metric)
    assert list(curves.columns) == ["trial", "step", "value"]
    for trial in set(curves["trial"]):
        events = EventAccumulator(str(results.directory / trial)).Reload().Scalars(metric)
        mine = curves[curves["trial"] == trial]
        assert [(event.step, event.value) for event in events] == list(zip(mine["step"], mine["value"]))
    assert len(curves) == 4 * 3, "two epochs, and step 0 before them"
    with pytest.raises(InputError, match="no trial has reported 'knn/test_acuracy', did you mean 'knn/test_accuracy'"):
        results.curves("knn/test_acuracy")


def test_the_summary_has_what_summary_csv_has(results):
    written = pandas.read_csv(results.directory / "summary.csv", float_precision="round_trip")
    summary = results.summary()
    assert list(summary.columns) == list(written.columns)
    for name in written.columns:
        assert list(summary[name].dropna()) == list(written[name].dropna()), name
    frame = results.frame()
    score = "linear/test_accuracy"
    means = frame.groupby("point")[score].mean()
    points = summary.set_index("point")
    assert points[f"{score} mean"].to_dict() == pytest.approx(means.to_dict())
    paired = points.loc["strength=0.25", f"{score} minus random mean"]
    assert paired == pytest.approx(means["strength=0.25"] - means["random"])


def test_conclusions_are_the_sentences_of_the_report(results):
    sentences = results.conclusions()
    text = (results.directory / "summary.md").read_text()
    assert sentences
    assert all(sentence in text for sentence in sentences)


@pytest.mark.parametrize("name", ["strength", "pretrain/loss"])
def test_a_figure_is_an_open_matplotlib_figure_and_can_be_shown(results, tmp_path, name):
    figure = results.figure(name)
    assert isinstance(figure, Figure)
    assert figure.axes
    figure.savefig(tmp_path / "figure.pdf")
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_a_figure_that_does_not_exist_is_refused(results):
    with pytest.raises(InputError, match="unknown name 'strenght', did you mean 'strength'"):
        results.figure("strenght")
    with pytest.raises(InputError, match="'layers': there is nothing to draw; it needs results of linear probes on bl"):
        results.figure("layers")


def test_the_encoder_gives_the_features_of_the_trial(results):
    encoder = results.encoder(TRIAL)
    images = torch.rand(3, 3, 8, 8)
    assert not encoder.training
    with torch.inference_mode():
        features = encoder(images)
        assert torch.equal(features, load(results.directory / TRIAL / "encoder.safetensors")(images))
        assert not torch.equal(features, results.encoder("random,seed=1")(images))
    assert features.shape == (3, encoder.feature_dim)
    with pytest.raises(InputError, match=r"strength=0.25,seed=7: no such trial, did you mean"):
        results.encoder("strength=0.25,seed=7")


def test_how_results_show_themselves(results):
    assert repr(results).endswith("/s: 6 of 6 trials finished>")
    html = results._repr_html_()
    assert html.count("<tr") == 1 + 3
    assert "linear/test_accuracy mean" in html
    assert results.failed == {}


@contextmanager
def at_reports(act):
    """Call `act(trial, status)` whenever a trial of a sweep in this process reports its state."""

    class Acting(raysweep.interface.WarningsOnly):
        def trials(self, sweep, kept):
            trials = super().trials(sweep, kept)
            trials.progress = act
            return trials

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(raysweep.interface, "WarningsOnly", Acting)
        yield


def test_several_sweeps_are_compared_like_by_the_command(results, folder, few, space):
    given = {"strength": (0.5,), "seed": range(2), "usl_epochs": 1}
    other = raysweep.run(space, output=folder, name="t", set=given, local=True)
    assert list(other.frame()["strength"].dropna()) == [0.5, 0.5]
    both = raysweep.open([results.directory, other.directory])
    assert len(both.frame()) == len(both.trials) == 6 + 4
    assert list(both.summary()["sweep"].unique()) == ["s", "t"]
    assert set(both.curves("pretrain/loss")["sweep"]) == {"s", "t"}
    assert both.figure("comparison").axes
    with torch.inference_mode():
        image = torch.rand(1, 3, 8, 8)
        assert torch.equal(both.encoder(f"s/{TRIAL}")(image), results.encoder(TRIAL)(image))
    with pytest.raises(InputError, match="`places` has the directory of each"):
        _ = both.directory
    with pytest.raises(InputError, match="is given twice"):
        raysweep.open([results.directory, results.directory])
    evaluated_otherwise = raysweep.run(ONE, output=folder, set={**few, "knn_k": 3, "usl_epochs": 0}, local=True)
    with pytest.raises(InputError, match="knn_k"):
        raysweep.open([results.directory, evaluated_otherwise.directory])


def test_a_running_sweep_can_be_read_by_another_process_which_writes_nothing(few, tmp_path):
    program = """
import sys
import raysweep
results = raysweep.open(sys.argv[1])
frame = results.frame()
assert frame.set_index("trial").loc["seed=0", "status"] == "unfinished", frame
assert len(results.curves("pretrain/loss")) >= 2
assert results.conclusions() == [] and len(results.summary()) == 0 and results._repr_html_()
"""
    seen = []

    def read(trial, status):
        if not seen and len(list((tmp_path / "one").glob("*/events*"))) and status.fraction > 0.5:
            before = snapshot(tmp_path)
            seen.append(forked.run("-c", program, tmp_path / "one", cwd=ROOT))
            assert snapshot(tmp_path) == before

    with at_reports(read):
        raysweep.run(ONE, output=tmp_path, set={**few, "usl_epochs": 4}, local=True)
    assert seen
    assert seen[0].returncode == 0, seen[0].stderr


def snapshot(folder):
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


def test_an_interrupt_saves_the_trials_and_returns_the_results_so_far(few, tmp_path):
    def press(trial, status):
        if trial.settings.seed == 1 and status.epoch == 1:
            signal.raise_signal(signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    space = {"name": "one", "base": {**few, "usl_epochs": 3, "le_epochs": 1}, "search": {"seed": [0, 1]}}
    with at_reports(press), pytest.warns(UserWarning, match="interrupted") as caught:
        results = raysweep.run(space, output=tmp_path, local=True)
    line = f"interrupted; resume with: raysweep.resume('{tmp_path}/one', local=True)"
    assert line in [str(warning.message) for warning in caught]
    assert signal.getsignal(signal.SIGINT) is handler
    statuses = results.frame().set_index("trial")["status"]
    assert statuses.to_dict() == {"seed=0": "finished", "seed=1": "unfinished"}
    assert list(tmp_path.glob("one/seed=1/checkpoints/*.json"))
    shutil.copytree(tmp_path / "one" / "seed=1" / "checkpoints", tmp_path / "one" / "seed=0" / "checkpoints")
    resumed = raysweep.resume(tmp_path / "one", local=True)
    assert set(resumed.frame()["status"]) == {"finished"}
    assert not list(tmp_path.glob("one/*/checkpoints")), "also the checkpoints that a killed process left at the end"


@pytest.mark.parametrize("given", [{}, {"local": True}, {"address": "h:1"}, {"local": True, "share": False}])
def test_the_call_that_resumes_has_the_keywords_of_the_run(given, monkeypatch):
    options = raysweep.interface.run_options(**{"local": False, "address": None, "parts": ()} | given)
    monkeypatch.setattr(raysweep, "resume", lambda place, **keywords: (place, keywords))
    assert eval(options.resume_command(Store("/x"))) == ("/x", given)


def test_sigterm_saves_the_trials_and_then_ends_the_process_as_before(few, tmp_path):
    program = """
import json, signal, sys
import raysweep
from raysweep.backends.progress import SilentTrials

def terminate(self, trial, status):
    if status.epoch == 1:
        signal.raise_signal(signal.SIGTERM)

SilentTrials.progress = terminate
space = {"name": "one", "base": {"usl_epochs": 9, "le_epochs": 1, **json.loads(sys.argv[2])}}
raysweep.run(space, output=sys.argv[1], local=True)
print("continues")
"""
    process = forked.run("-c", program, tmp_path, json.dumps(few), cwd=ROOT)
    assert (process.returncode, process.stdout) == (-15, ""), process.stderr
    assert list(tmp_path.glob("one/seed=0/checkpoints/*.json"))


def test_a_sweep_runs_outside_of_the_main_thread_and_restores_the_threads_of_torch(few, tmp_path):
    returned = []
    before = torch.get_num_threads()
    thread = threading.Thread(target=lambda: returned.append(raysweep.run(ONE, output=tmp_path, set=few, local=True)))
    thread.start()
    thread.join()
    assert len(returned[0].frame()) == 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: raysweep.run(ONE, ouput="x"), "run: unknown keyword 'ouput', did you mean 'output'?"),
        (lambda: raysweep.run(ONE, alpha=1), "run: unknown keyword 'alpha'; it is a setting: give set={'alpha': …}"),
        (lambda: raysweep.run(ONE, set={"alpah": 1}), "alpah: unknown setting, did you mean 'alpha'"),
        (lambda: raysweep.run(ONE, set=["alpha=1"]), "set: give a dict such as"),
        (lambda: raysweep.run("none.yaml"), "none.yaml: no such file"),
        (lambda: raysweep.run(3), "space: give a file name, a dict or a sweep, not int"),
        (lambda: raysweep.run(ONE, local=True, address="h:1"), "local=True runs without Ray"),
        (lambda: raysweep.run(ONE, progress="yes"), "progress: give True, False or 'auto', not 'yes'"),
        (lambda: raysweep.resume("none"), "none: there is no sweep"),
        (lambda: raysweep.resume("none", spcae=ONE), "resume: unknown keyword 'spcae', did you mean 'space'?"),
        (lambda: raysweep.open("none"), "none: there is no sweep (no sweep.yaml)"),
        (lambda: raysweep.open([]), "the list of results directories is empty"),
        (lambda: raysweep.open(None), "place: give a results directory"),
        (lambda: raysweep.evaluate("nowhere"), "does not exist"),
        (lambda: raysweep.open(""), "place: '' is not a path"),
        (lambda: raysweep.open("a\0b"), "place: 'a\\x00b' is not a path"),
        (lambda: raysweep.run("a\0b", local=True), "space: 'a\\x00b' is not a path"),
        (lambda: raysweep.resume("none", "a\0b", local=True), "space: 'a\\x00b' is not a path"),
        (lambda: raysweep.run(ONE, output="a\0b", local=True), "output: 'a\\x00b' is not a path"),
        (lambda: raysweep.evaluate("none", output="a\0b", local=True), "output: 'a\\x00b' is not a path"),
        (lambda: raysweep.run(ONE, output=5, local=True), "output: give a directory or a URI, not int"),
        (
            lambda: raysweep.run(ONE, plugins=["a\0/b.py"], local=True),
            "plugins: a\\x00/b.py: the name of a plugin's file",
        ),
        (lambda: raysweep.run(ONE, set={"data_dir": "a\0b"}), "set: data_dir: must not contain a NUL character"),
        (lambda: raysweep.run({"base": {"dataset": "folder:\0"}}), "dataset: must not contain a NUL character"),
        (lambda: raysweep.run(ONE, set={1: 2}, local=True), "set: the key 1 is not a name"),
        (lambda: raysweep.evaluate("none", set={(1,): 2}), "set: the key (1,) is not a name"),
        (lambda: raysweep.run({(1,): 2}, local=True), "space: a key or a value is not plain data (TypeError: "),
        (lambda: raysweep.run(ENDLESS, local=True), "space: contains itself, or is nested too deeply"),
        (lambda: raysweep.run(ONE, set=ENDLESS, local=True), "set: contains itself, or is nested too deeply"),
        (lambda: raysweep.run(ONE, plugins="my.py", local=True), "plugins: a list of files or modules expected"),
        (lambda: raysweep.run(ONE, name=5, local=True), "name: must be text, not a number (5)"),
        (lambda: raysweep.run(ONE, name="a/b", local=True), "name: 'a/b' cannot name a directory"),
        (
            lambda: raysweep.run({"tune": {"scheduler": "asha"}}, local=True),
            "local=True runs trials one after the other",
        ),
        (lambda: raysweep.run(ONE, set={"alpha": "x"}, local=True), "set: alpha: must be a valid number, not 'x'"),
        (lambda: raysweep.run(ONE, set={"tune.num_samples": "x"}, local=True), "set: tune.num_samples: must be"),
        (lambda: raysweep.run(ONE, local="no"), "local: give True or False, not 'no'"),
        (lambda: raysweep.run(ONE, local=True, share=None), "share: give True or False, not None"),
        (lambda: raysweep.run(ONE, address=5), "address: give the text HOST:PORT, not int"),
        (lambda: raysweep.run(ONE, address="ray://h:1"), "ray://h:1: a sweep cannot run through Ray's client"),
        (lambda: raysweep.resume("none", address="me:word@h:1"), "an address must not contain credentials"),
        (
            lambda: raysweep.run(ONE, progress=np.zeros(2), local=True),
            "progress: give True, False or 'auto', not array",
        ),
    ],
)
def test_a_fault_of_the_user_is_one_line(call, message):
    with pytest.raises(raysweep.RaysweepError) as caught:
        call()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    start = str(caught.value).partition(":")[0]
    assert not start.startswith(("--", "command line")), "no message in Python begins with a part of the command line"


def test_a_name_that_is_no_text_is_refused_by_the_results(results):
    for ask in (results.curves, results.figure, results.encoder):
        for name in (None, 3, ["seed"], b"seed"):
            with pytest.raises(
                raysweep.RaysweepError, match=rf"^{ask.__name__}: give the name of a .*, not "
            ) as caught:
                ask(name)
            assert str(caught.value).endswith(f", not {name!r}")


def test_a_fault_of_an_evaluation_names_the_keyword(folder):
    with pytest.raises(raysweep.RaysweepError, match=r"^set: usl_epochs: is a setting of pretraining"):
        raysweep.evaluate(folder / "s", set={"usl_epochs": 3}, local=True)


def test_a_fault_of_a_resume_names_what_was_given(results):
    for space, given in ((None, {"batch_size": 7}), ({**SPACE, "base": {**BASE, "batch_size": 7}}, None)):
        with pytest.raises(raysweep.RaysweepError) as caught:
            raysweep.resume(results.places[0], space, set=given, local=True)
        start = "search space for" if given is None else "set:"
        assert str(caught.value).startswith(start)
        assert "batch_size: is 7" in str(caught.value)
        assert "command line" not in str(caught.value)


def test_no_output_means_the_default_directory(few, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results = raysweep.run(ONE, output=None, set={**few, "usl_epochs": 0}, local=True)
    assert results.directory.resolve().parent == tmp_path / "runs"
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_a_path_may_begin_with_the_home_directory(few, tmp_path, monkeypatch):
    home, folder = tmp_path / "home", tmp_path / "folder"
    home.mkdir()
    folder.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(folder)
    base = {**few, "usl_epochs": 0, "le_epochs": 1}
    (home / "one.yaml").write_text(json.dumps({"name": "one", "base": base}))
    results = raysweep.run("~/one.yaml", output="~/runs", local=True)
    assert results.places == [str(home / "runs" / "one")]
    assert raysweep.open("~/runs/one").trials == raysweep.open(["~/runs/one"]).trials == ["seed=0"]
    assert raysweep.resume("~/runs/one", set={"seed": [0, 1]}, local=True).trials == ["seed=0", "seed=1"]
    evaluation = raysweep.evaluate("~/runs/one/seed=0", set={"labels_per_class": [1]}, output="~/runs", local=True)
    assert evaluation.places == [str(home / "runs" / "evaluation")]
    assert list(folder.iterdir()) == []


def test_an_existing_name_is_refused(results, folder):
    with pytest.raises(raysweep.RaysweepError, match=r"exists; choose another name"):
        raysweep.run(ONE, output=folder, name="s", local=True)


def test_values_of_numpy_are_plain_values(few, tmp_path):
    given = {**few, "strength": np.float32(0.5), "seed": np.arange(2), "usl_epochs": np.int64(0)}
    results = raysweep.run(ONE, output=tmp_path, set=given, local=True)
    assert list(results.frame()["seed"]) == [0, 1]


def test_a_script_that_uses_the_interface_and_the_examples_pass_mypy(tmp_path):
    (tmp_path / "script.py").write_text(
        "import raysweep\n"
        "from raysweep import RaysweepError, Results\n"
        "\n"
        "def main() -> float:\n"
        "    try:\n"
        "        results: Results = raysweep.run('a.yaml', set={'alpha': [0.1, 1]}, local=True, progress=False)\n"
        "    except RaysweepError as fault:\n"
        "        raise SystemExit(str(fault)) from fault\n"
        "    results = raysweep.open(['runs/a', 'runs/b'])\n"
        "    sentences: list[str] = results.conclusions()\n"
        "    print(*sentences, results.frame(), results.curves('pretrain/loss'), results.summary())\n"
        "    results.figure('alpha').savefig('alpha.pdf')\n"
        "    results.encoder('alpha=0.1,seed=0').eval()\n"
        "    print(raysweep.trainable, raysweep.resume('runs/a').failed)\n"
        "    return 0.0\n"
    )
    (tmp_path / "faulty.py").write_text("import raysweep\n\nraysweep.run('a.yaml', ouput='x')\nraysweep.nothing\n")
    libraries = ",".join(f"{name}.*" for name in ("torch", "numpy", "pydantic", "pandas", "ray", "matplotlib", "rich"))
    (tmp_path / "mypy.ini").write_text(
        f"[mypy]\nstrict = True\nmypy_path = {ROOT}\nfollow_imports = silent\n"
        f"[mypy-{libraries}]\nignore_missing_imports = True\nfollow_imports = skip\n"  # they take most of the time
    )
    command = [sys.executable, "-m", "mypy", "script.py", "faulty.py"]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    *faults, total = process.stdout.splitlines()
    assert all(line.startswith(("faulty.py:3: ", "faulty.py:4: ")) for line in faults), process.stdout
    assert "in 1 file (checked 2 source files)" in total
    assert 'Unexpected keyword argument "ouput" for "run"' in process.stdout
    assert 'Module has no attribute "nothing"' in process.stdout
