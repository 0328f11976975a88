"""Plugins and parts by value in the Python interface: several sweeps in one process, interrupts and faults."""

import inspect
import json
import signal
import sys
from typing import Annotated

import pytest
import yaml

import raysweep
from raysweep import parts, plugins
from tests.support import ROOT
from tests.support.commands import here
from tests.support.trials import CLOCK

QUICK = {"le_epochs": 1, "probe_every": 0, "images_every": 0, "projector_images": 0, "precision": "fp32"}
BASE = {**QUICK, "usl_epochs": 1}
SPACE = {"name": "s", "base": BASE}
LOSS = (ROOT / "examples" / "my_loss.py").read_text()


pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.fixture
def space(few):
    """A sweep of one trial on few images."""
    return {**SPACE, "base": {**BASE, **few}}


@pytest.fixture(autouse=True)
def _only_built_in_parts():
    yield
    plugins.activate(())


def declare(power):
    """Declare one of two losses with the same name, as a cell of a notebook does that is edited and executed again."""
    if power == 1:

        @raysweep.loss
        def gap(z1, z2, *, gap_weight: Annotated[float, "Weight of the difference."] = 1.0):
            return gap_weight * (z1 - z2).abs().mean()

        return gap

    @raysweep.loss
    def gap(z1, z2, *, gap_weight: Annotated[float, "Weight of the difference."] = 1.0):
        return gap_weight * (z1 - z2).square().mean()

    return gap


def readable(results):
    """Read everything that results offer."""
    trial = results.trials[0]
    assert list(results.frame()["status"]) == ["finished"] * len(results.trials)
    assert len(results.curves("pretrain/loss")) == len(results.trials)
    assert len(results.summary()) == 1
    assert isinstance(results.conclusions(), list)
    assert results.encoder(trial).feature_dim > 0
    return results.frame()


def test_sweeps_with_other_parts_follow_one_another_in_one_process(space, tmp_path):
    (tmp_path / "mine.py").write_text(LOSS)
    where = {"output": tmp_path, "local": True}
    cosine = {"emb_loss": "cosine", "sharpness": 2}
    from_file = raysweep.run(space, name="file", plugins=[tmp_path / "mine.py"], set=cosine, **where)
    plain = raysweep.run(space, name="plain", **where)
    assert "cosine" not in parts.loss, "the second sweep has only its own parts"
    with pytest.raises(raysweep.RaysweepError, match="sharpness: unknown setting"):
        raysweep.run(space, set={"sharpness": 2}, **where)
    first = raysweep.run(space, name="first", parts=[declare(1)], set={"emb_loss": "gap"}, **where)
    edited = declare(2)
    second = raysweep.run(space, name="second", parts=[edited], set={"emb_loss": "gap"}, **where)

    (tmp_path / "mine.py").unlink()
    losses = {}
    for results in (from_file, plain, first, second, from_file):
        losses[results.directory.name] = readable(results)["pretrain/loss"][0]
    assert losses["first"] != losses["second"]
    assert readable(raysweep.open(from_file.directory))["sharpness"][0] == 2
    both = raysweep.open([first.directory, second.directory, from_file.directory])
    assert list(both.frame()["pretrain/loss"]) == [losses[name] for name in ("first", "second", "file")]
    assert both.encoder("first/seed=0").feature_dim > 0

    with pytest.raises(raysweep.RaysweepError, match="loss gap: has changed since the sweep was started: line "):
        raysweep.resume(first.directory, set={"seed": [0, 1]}, parts=[edited], local=True)
    more = raysweep.resume(first.directory, set={"seed": [0, 1]}, local=True)
    assert len(more.trials) == 2, "the process still has the part as it was"


def weight_of(difference):
    return difference.abs().mean()


@raysweep.loss
def weighted(z1, z2):
    """A loss whose values another function computes."""
    return weight_of(z1 - z2)


def test_a_resume_compares_the_functions_that_a_part_uses(space, tmp_path, monkeypatch):
    results = raysweep.run(space, output=tmp_path, parts=[weighted], set={"emb_loss": "weighted"}, local=True)
    more = {"set": {"seed": [0, 1]}, "local": True}
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules[__name__], "weight_of", declare)
        for given in ({}, {"parts": [weighted]}):
            with pytest.raises(raysweep.RaysweepError, match="loss weighted: has changed since the sweep was started"):
                raysweep.resume(results.directory, **more, **given)
        readable(raysweep.open(results.directory))
        plugins.activate(())
        readable(raysweep.open(results.directory))  # as in another process, which declared the part again
    file = results.directory / "sweep.yaml"
    content = yaml.safe_load(file.read_text())
    (entry,) = content["parts"]
    entry["source"] = older = inspect.getsource(weighted)  # older versions recorded no other function
    file.write_text(yaml.safe_dump(content))
    assert len(raysweep.resume(results.directory, **more, parts=[weighted]).trials) == 2
    (entry,) = yaml.safe_load(file.read_text())["parts"]
    assert entry["source"] == older, "the hash of a part stays in its scores"


@raysweep.loss
def pressing(z1, z2):
    """The mean squared difference. In training, it presses Ctrl-C."""
    if len(z1) > 8:  # the check of the part before the sweep has eight images
        signal.raise_signal(signal.SIGINT)
    return (z1 - z2).square().mean()


def test_the_words_of_an_interrupt_name_the_parts(space, tmp_path):
    with pytest.warns(UserWarning, match="interrupted") as caught:
        results = raysweep.run(space, output=tmp_path, parts=[pressing], set={"emb_loss": "pressing"}, local=True)
    words = f"interrupted; resume with: raysweep.resume('{tmp_path}/s', local=True, parts=[pressing])"
    assert words in [str(warning.message) for warning in caught]
    assert list(results.frame()["status"]) == ["unfinished"]


@raysweep.probe(metrics={f"width/{name}": raysweep.Metric("The number of features.") for name in ("first", "second")})
def width(evaluation, *, width_of: Annotated[str, "The metrics.", parts.Remark(searchable=False)] = "first"):
    """The number of features, under a name that a resume may change."""
    yield f"width/{width_of}", float(evaluation.features("trunk")["fit"].shape[1])


@raysweep.probe(metrics={"height/mean": raysweep.Metric("The mean of the features.")})
def height(evaluation):
    """The mean of the features."""
    yield "height/mean", float(evaluation.features("trunk")["fit"].mean())


class Patience:
    """A probe in training that presses Ctrl-C the first time."""

    progress, step, is_interrupted = 0.0, 0, False

    def run(self):
        while self.step < 3:
            self.step += 1
            if self.step == 2 and not Patience.is_interrupted:  # the check of the part reads one step
                Patience.is_interrupted = True
                signal.raise_signal(signal.SIGINT)
            yield {"patience/step": float(self.step)}

    def state_dict(self):
        return {"step": self.step}

    def load_state_dict(self, state):
        self.step = state["step"]


@raysweep.probe(trains=True, keeps_features=True, metrics={"patience/step": raysweep.Metric("The number of steps.")})
def patience(evaluation):
    """A probe that is interrupted."""
    return Patience()


def test_a_resume_may_add_and_change_probes_of_plugins(space, tmp_path):
    probes, where = [width, patience], {"output": tmp_path, "local": True}
    with pytest.warns(UserWarning, match="interrupted"):
        raysweep.run(space, name="cut", parts=probes, **where)
    assert list((tmp_path / "cut").glob("seed=0/checkpoints/*.pt")), "it stopped inside the probe"
    resumed = raysweep.resume(tmp_path / "cut", parts=[*probes, height], set={"width_of": "second"}, local=True)
    whole = raysweep.run(space, name="whole", parts=[*probes, height], set={"width_of": "second"}, **where)
    files = (results.directory / "seed=0" / "result.json" for results in (resumed, whole))
    ours, others = (json.loads(file.read_text())["metrics"] for file in files)
    assert ours == {**others, CLOCK: ours[CLOCK]}
    assert {"width/second", "height/mean", "patience/step"} < ours.keys()


@raysweep.loss
def mse(z1, z2):
    """A loss with the name of a built-in one."""
    return (z1 - z2).square().mean()


FAULTS = {
    "no such file": ({"plugins": ["none.py"]}, "none.py: no such file"),
    "no such module": ({"plugins": ["no_such_module"]}, "no_such_module: no module of this name is installed"),
    "syntax": ("x = (", "faulty.py, line 1: SyntaxError: '(' was never closed"),
    "import": ("import raysweep\n1 / 0", "faulty.py, line 2: ZeroDivisionError: division by zero"),
    "nothing": ("x = 1", "faulty.py: declares no part"),
    "taken": ("import raysweep\n@raysweep.loss\ndef mse(z1, z2): ...", "loss mse: there is one of that name already"),
    "unannotated": (
        "import raysweep\n@raysweep.loss\ndef bad(z1, z2, *, x=1.0): ...",
        "loss bad: x: needs a type and a description",
    ),
    "clash": (
        "import raysweep\nfrom typing import Annotated\n"
        "@raysweep.loss\ndef bad(z1, z2, *, temperature: Annotated[float, 'Mine.'] = 1.0): ...",
        "loss bad: temperature: method simclr declares it differently",
    ),
    "shape": (
        "import raysweep\n@raysweep.loss\ndef bad(z1, z2):\n    return z1 - z2",
        "loss bad: the loss has the shape (8, 64); it must be a scalar",
    ),
    "no list of plugins": ({"plugins": "mine.py"}, "a list of files or modules expected"),
    "no list of parts": ({"parts": pressing}, "parts: a list of decorated functions or classes expected, not function"),
    "taken by value": ({"parts": [mse]}, "loss mse: there is one of that name already"),
    "no part": ({"parts": [len]}, "parts: len: is not a part; decorate it"),
    "timm": ({"set": {"encoder": "timm/nonsense"}}, "timm/nonsense"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_of_a_part_is_one_line_in_python(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    given, words = FAULTS[case]
    if isinstance(given, str):
        (tmp_path / "faulty.py").write_text(given + "\n")
        given = {"plugins": ["faulty.py"], "set": {"emb_loss": "bad"}}
    with pytest.raises(raysweep.RaysweepError) as caught:
        raysweep.run(SPACE, local=True, **given)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_an_unknown_model_of_timm_is_one_line_of_the_command(tmp_path):
    process = here("run_sweep.py", "--encoder", "timm/nonsense", "--local", cwd=tmp_path)
    assert (process.returncode, process.stderr.count("\n")) == (2, 1)
    assert "timm/nonsense" in process.stderr


def test_sweep_yaml_has_the_source_of_a_part_by_value(space, tmp_path):
    results = raysweep.run(
        space, output=tmp_path, parts=[declare(1)], set={"emb_loss": "gap", "usl_epochs": 1}, local=True
    )
    (entry,) = yaml.safe_load((results.directory / "sweep.yaml").read_text())["parts"]
    assert "gap_weight * (z1 - z2).abs().mean()" in entry["source"]
