"""Plugins through the real command: the examples, what is stored with the sweep, and faults."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml

import raysweep
from raysweep import api, parts, plugins
from raysweep.errors import InputError
from tests.support import ROOT
from tests.support.commands import here

QUICK = {"le_epochs": 1, "probe_every": 0, "images_every": 0, "projector_images": 0, "precision": "fp32"}
PRETRAINED = {**QUICK, "usl_epochs": 1, "batch_size": 250}
UNTRAINED = {**QUICK, "usl_epochs": 0}
LOSS = """
from typing import Annotated
import raysweep

@raysweep.loss
def gap(z1, z2, *, gap_power: Annotated[float, "Exponent of the difference."] = 1.0):
    '''A power of the difference.'''
    return (z1 - z2).abs().pow(gap_power).mean()
"""
HEAD = "import raysweep, torch\nfrom torch import nn\nfrom typing import Annotated\n"


METRIC = "@raysweep.probe(metrics={'x/y': raysweep.Metric(%s)})\ndef x(evaluation): ..."
PARAMETER = "*, mean: Annotated[bool, 'On.'] = False"
DECLARED = [
    (METRIC % "'X.', better='higher'", ", line 4: Metric: better: 'max', 'min' or None expected, not 'higher'"),
    (METRIC % "'X.', lowest=1.0, highest=0.0", ", line 4: Metric: lowest is 1, which is above highest, 0"),
    (METRIC % "'X.', highest='1'", ", line 4: Metric: highest: a number expected, not '1'"),
    (METRIC % "3", ", line 4: Metric: a description in words expected, not 3"),
    (METRIC % "'X.', is_reported=True", ", line 4: Metric: is_reported: a function of the settings expected, not True"),
    (METRIC % "'X.', uses_test='no'", ", line 4: Metric: uses_test: True or False expected, not 'no'"),
    (
        "@raysweep.probe(metrics={'x/y': 'Accuracy.'})\ndef x(evaluation): ...",
        ", line 4: probe x: metrics: 'x/y': a name and a raysweep.Metric expected, such as 'means/test_accuracy': "
        "raysweep.Metric('Accuracy of the class means.')",
    ),
    (
        "@raysweep.probe(metrics=['x/y'])\ndef x(evaluation): ...",
        ", line 4: probe x: metrics: a dict of names and raysweep.Metric expected, not ['x/y']",
    ),
    *(
        (
            f"@raysweep.probe(metrics={{{name!r}: raysweep.Metric('X.')}})\ndef x(evaluation): ...",
            f", line 4: probe x: metrics: {name!r}: write the name as GROUP/NAME, such as 'means/test_accuracy', "
            "because tables have other columns whose names are single words",
        )
        for name in ("status", "alpha", "silhouette", "/x", "x/")  # a column, a setting, and other names
    ),
    (
        f"@raysweep.probe(switch='means')\ndef x(evaluation, {PARAMETER}): ...",
        ", line 4: probe x: switch: the name of one of its parameters expected, not 'means', did you mean 'mean'?",
    ),
    (
        "@raysweep.dataset(size=(32, 32))\ndef x(request): ...",
        ", line 4: dataset x: size: a whole number of at least 1 expected, not (32, 32)",
    ),
    (
        "@raysweep.dataset(size=32, images='500')\ndef x(request): ...",
        ", line 4: dataset x: images: a whole number of at least 0 expected, not '500'",
    ),
    (
        "@raysweep.encoder(layers='layer1')\ndef x(channels, image_size): ...",
        ", line 4: encoder x: layers: a list of texts expected, not 'layer1'",
    ),
    (
        "@raysweep.method(reads_labels='yes')\ndef x(encoder): ...",
        ", line 4: method x: reads_labels: True or False expected, not 'yes'",
    ),
    (
        "@raysweep.schedule(reads_total=0)\ndef x(step, steps, epoch_steps): ...",
        ", line 4: schedule x: reads_total: True or False expected, or a function of the settings, not 0",
    ),
    (
        "@raysweep.optimizer(check='always')\ndef x(weights, lr): ...",
        ", line 4: optimizer x: check: a function expected, not 'always'",
    ),
    (
        "kappa = Annotated[float, raysweep.parts.Condition('kapa > 0',\n"
        "  lambda settings: settings.kapa > 0), 'K.']\n@raysweep.probe\ndef x(evaluation, *, width: kappa = 1.0): ...",
        ", line 6: probe x: raises AttributeError: 'Settings' object has no attribute 'kapa' (line 5)",
    ),
    (
        METRIC % "'X.', is_reported=lambda settings: settings.kapa > 0",
        ", line 4: probe x: raises AttributeError: 'Settings' object has no attribute 'kapa' (line 4)",
    ),
    (
        "@raysweep.optimizer(check=lambda settings: settings.kapa > 0)\ndef x(weights, lr): ...",
        ", line 4: optimizer x: raises AttributeError: 'Settings' object has no attribute 'kapa' (line 4)",
    ),
    (
        "@raysweep.head(batch_norm=lambda settings: settings.kapa > 0)\ndef x(feature_dim, embedding_dim): ...",
        ", line 4: head x: raises AttributeError: 'Settings' object has no attribute 'kapa' (line 4)",
    ),
]


pytestmark = pytest.mark.usefixtures("no_figures")


def small(settings):
    return [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]


@pytest.fixture
def sweep(tmp_path):
    """A function that runs the real command without Ray in an empty directory."""

    def run(*arguments):
        return here("run_sweep.py", *arguments, cwd=tmp_path)

    run.root = tmp_path
    (tmp_path / "mine.py").write_text(LOSS)
    return run


def space(folder, **content):
    path = folder / "mine.yaml"
    base = {**PRETRAINED, "emb_loss": "gap"}
    path.write_text(json.dumps({"name": "p", "plugins": ["mine.py"], "base": base, **content}))
    return path


def test_a_search_space_names_a_plugin_beside_it_and_the_results_keep_its_text(sweep, tmp_path):
    folder = tmp_path / "spaces"
    folder.mkdir()
    shutil.move(tmp_path / "mine.py", folder / "mine.py")
    process = sweep(space(folder, search={"gap_power": [1.0, 2.0]}), "--local", "--set", "usl_epochs=1")
    assert process.returncode == 0, process.stderr
    root = tmp_path / "runs" / "p"
    written = yaml.safe_load((root / "sweep.yaml").read_text())
    (entry,) = written["plugins"]
    assert entry == {
        "file": "plugins/mine.py",
        "sha256": plugins.Plugin("mine.py", LOSS).digest,
        "from": str(folder / "mine.py"),
    }
    assert written["base"]["emb_loss"] == "gap"
    assert "gap" not in parts.loss, "a later sweep in this process has only its own parts"

    (folder / "mine.py").write_text(LOSS.replace("abs()", "square()"))
    refused = sweep("--resume", root, "--local")
    assert refused.returncode == 2
    assert refused.stderr == (
        f"error: {folder}/mine.py: has changed since the sweep was started: line 8 was "
        "'    return (z1 - z2).abs().pow(gap_power).mean()' and is "
        "'    return (z1 - z2).square().pow(gap_power).mean()'; put it back, or start a new sweep\n"
    )
    shutil.move(folder / "mine.py", tmp_path / "mine.py")
    with pytest.raises(InputError, match=r"/mine\.py: has changed since the sweep was started: line 8 was"):
        api.resume(root, plugins=[tmp_path / "mine.py"])
    plugins.activate(())
    more = sweep("--resume", root, "--local", "--set", "gap_power=[1.0,2.0,3.0]")
    assert more.returncode == 0, more.stderr
    assert "3 trials (1 new), 2 finished before" in more.stdout
    again = here("raysweep", "report", root, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "gap_power" in (root / "summary.csv").read_text()
    reused = sweep(root / "sweep.yaml", "--dry-run")
    assert reused.returncode == 0, reused.stderr
    assert "gap_power=3.0,seed=0" in reused.stdout

    (root / "plugins" / "mine.py").write_text(LOSS + "\n")
    damaged = here("raysweep", "report", root, cwd=tmp_path)
    assert damaged.returncode == 2
    assert "is not the text that the sweep was started with; put it back" in damaged.stderr


def test_help_and_flags_know_the_settings_of_a_plugin(sweep):
    assert "--gap_power X" in sweep("--plugin", "mine.py", "--help").stdout
    assert "--gap_power X" in sweep(space(sweep.root), "--help").stdout
    assert "--gap_power" not in sweep("--help").stdout
    process = sweep("--plugin", "mine.py", "--emb_loss", "gap", "--gap_power", "3", "--dry-run")
    assert "gap_power: 3.0" in process.stdout


@pytest.mark.parametrize("name", ["first_package.losses", "second_package"])
def test_an_installed_module_or_package_is_a_plugin(sweep, monkeypatch, tmp_path, name):
    package, _, module = name.partition(".")
    folder = tmp_path / "site" / package
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "helper.py").write_text("POWER = 2\n")
    text = "from .helper import POWER\n" + LOSS.replace("gap_power)", "POWER)")
    (folder / f"{module or '__init__'}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path / "site")
    process = sweep("--plugin", name, "--emb_loss", "gap", "--dry-run")
    assert process.returncode == 0, process.stderr
    assert f"plugins:\n- {name}\n" in process.stdout


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import raysweep\nx = (", ", line 2: SyntaxError: '(' was never closed"),
        ("x = 1\nraise RuntimeError('no\\nway')", ", line 2: RuntimeError: no"),
        ("import nonexistent_thing", ", line 1: ModuleNotFoundError: No module named 'nonexistent_thing'"),
        ("import sys\nsys.exit(3)", ", line 2: SystemExit: 3"),
        ("x = 1", ": declares no part; decorate a function, for example with @raysweep.loss"),
        (
            LOSS.replace("*, gap_power", "gap_power"),
            ", line 5: loss gap: gap_power: write the parameters of the part after a *, as in "
            "(z1, z2, *, gap_power: …)",
        ),
        (LOSS.replace("z1, z2, *", "z1, *"), ", line 5: loss gap: is called with z1, z2, but takes 1 arguments"),
        (
            "import raysweep\n@raysweep.probe(metrics={'knn/val_accuracy': raysweep.Metric('M')})\ndef x(e): ...",
            ", line 2: probe x: metric knn/val_accuracy: another part declares it differently; give it another name",
        ),
        (
            "import raysweep\n@raysweep.dataset\ndef x(request): ...",
            ", line 2: dataset x: say the side of its images in pixels, as in @raysweep.dataset(size=32)",
        ),
        ("x = '\0'", "null bytes"),
        *((HEAD + text, words) for text, words in DECLARED),
    ],
)
def test_a_faulty_plugin_is_one_line_with_its_place(sweep, text, words):
    (sweep.root / "faulty.py").write_text(text)
    before = [len(table) for table in parts.TABLES.values()]
    process = sweep("--plugin", "faulty.py", "--seed", "1", "--dry-run")
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr.startswith(f"error: {sweep.root}/faulty.py")
    assert process.stderr.endswith(f"{words}\n") or "null bytes" in process.stderr
    assert process.stderr.count("\n") == 1
    assert [len(table) for table in parts.TABLES.values()] == before
    with pytest.raises(InputError, match=r"faulty\.py"):
        api.plan(None, {"seed": 1}, plugins=[sweep.root / "faulty.py"])


RAISING = {
    "loss": (
        "*, mine_power: Annotated[float, raysweep.Condition('kappa > 0', lambda s: s.kappa > 0), 'Power.'] = 2.0",
        "TypeError: '>' not supported between instances of 'NoneType' and 'int' (line 5)",
    ),
    "policy(acts_as=lambda s: None if s.kappa is None else {})": ("", "TypeError: 'NoneType' object is not iterable"),
    "head(batch_norm=lambda s: s.kappa > 0)": ("", "TypeError: '>' not supported between instances of 'NoneType' and"),
    "optimizer(check=lambda s: s.kappa > 0)": ("", "TypeError: '>' not supported between instances of 'NoneType' and"),
    "probe(reads=lambda s: ['trunk'] if s.kappa else 5)": (
        "*, kappa: Annotated[float | None, 'Kappa.'] = 1.0",
        "TypeError: 'int' object is not iterable",
    ),
    "probe(metrics={'x/y': raysweep.Metric('Y.', is_reported=lambda s: s.kappa > 0)})": ("", "TypeError: '>' not"),
    "schedule(reads_total=lambda s: s.kappa > 0)": ("", "TypeError: '>' not supported between"),
}
"""A decorator, and parameters, of a part with a function of the settings that raises if `kappa` is None."""
CALLED = {
    "loss": "z1, z2", "policy": "images, strength, generator, part", "head": "feature_dim, embedding_dim",
    "optimizer": "weights, lr", "probe": "evaluation", "schedule": "step, steps, epoch_steps",
}  # fmt: skip
FLAGS = {"loss": "emb_loss", "policy": "policy", "head": "head", "optimizer": "optimizer", "schedule": "schedule"}


@pytest.mark.parametrize("decorator", RAISING)
def test_a_function_of_the_settings_that_raises_for_some_settings_is_one_line(sweep, decorator):
    parameters, words = RAISING[decorator]
    kind = decorator.partition("(")[0]
    kappa = "@raysweep.loss\ndef x(z1, z2, *, kappa: Annotated[float | None, 'Kappa.'] = 1.0): ...\n"
    text = f"{HEAD}@raysweep.{decorator}\ndef mine({CALLED[kind]}, {parameters}): ...\n{kappa}"
    (sweep.root / "raising.py").write_text(text)
    command = ["--plugin", "raising.py", "--dry-run", "--set", "seed=[0,1]"]
    command += ["--usl_epochs", "0"] if "reads=" in decorator else ["--emb_loss", "x"] if kind != "loss" else []
    command += [f"--{FLAGS[kind]}", "mine"] if kind in FLAGS else []
    command += ["--set", "resources.workers=2", "--set", "resources.gpu=1"] if kind == "head" else []
    command += ["--set", "tune.metric=x/y"] if "metrics" in decorator else []
    command += ["--set", "keep=final_state"] if "reads_total" in decorator else []
    command += ["--kappa", "none"]
    process = sweep(*command)
    assert (process.returncode, process.stdout, process.stderr.count("\n")) == (2, "", 1)
    assert f"{sweep.root}/raising.py, line 4: {kind} mine: raises {words}" in process.stderr


def test_a_plugin_that_decorates_a_function_of_another_module_is_told_so(sweep, monkeypatch, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "other_losses.py").write_text("def far(z1, z2): ...\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    (sweep.root / "faulty.py").write_text("import raysweep\nfrom other_losses import far\nraysweep.loss(far)\n")
    for _ in range(2):  # the other module runs only once in a process
        process = sweep("--plugin", "faulty.py", "--dry-run", "--seed", "1")
        assert process.returncode == 2
        assert process.stderr == (
            f"error: {sweep.root}/faulty.py: declares no part of its own: loss far is defined in other_losses; wrap it "
            "in a function of this file, or name other_losses as the plugin\n"
        )


def test_a_plugin_that_cannot_be_read_is_refused(sweep):
    (sweep.root / "folder.py").mkdir()
    (sweep.root / "bytes.py").write_bytes(b"\xff\xfe")
    (sweep.root / "other").mkdir()
    (sweep.root / "other" / "mine.py").write_text(LOSS + "\n")
    for given, words in (
        ("none.py", "--plugin: none.py: no such file"),
        ("folder.py", "--plugin: folder.py: is a directory; give a Python file"),
        ("bytes.py", "--plugin: bytes.py: is not a text file in UTF-8"),
        ("no_such_module", "--plugin: no_such_module: no module of this name is installed"),
        ("math", "--plugin: math: the module has no Python source"),
        ("./a$b.py", "--plugin: ./a$b.py: the name of a plugin's file is NAME.py, of letters"),
    ):
        process = sweep("--plugin", given, "--dry-run", "--seed", "1")
        assert process.returncode == 2
        assert process.stderr.startswith(f"error: {words}")
        assert process.stderr.count("\n") == 1
    process = sweep("--plugin", "mine.py", "--plugin", "other/mine.py", "--dry-run", "--seed", "1")
    assert "two plugins are called mine.py" in process.stderr
    path = space(sweep.root)
    path.write_text(path.read_text().replace('["mine.py"]', '"mine.py"'))
    assert "mine.yaml: plugins: a list of files or modules expected" in sweep(path, "--dry-run").stderr


WRONG = {
    "encoder": (
        "@raysweep.encoder\ndef bad(channels, image_size):\n    return nn.Identity()",
        {"encoder": "bad"},
        "line 4: encoder bad: features have the shape (8, 1, 8, 8); it must be (8, D)",
    ),
    "no module": (
        "@raysweep.encoder\ndef bad(channels, image_size):\n    return 3",
        {"encoder": "bad"},
        "line 4: encoder bad: returns int; it must return a torch.nn.Module",
    ),
    "raises": (
        "@raysweep.encoder\ndef bad(channels, image_size):\n    return nn.Linear(0.5, 'x')",
        {"encoder": "bad"},
        "line 4: encoder bad: raises TypeError: ",
    ),
    "batch norm": (
        "@raysweep.encoder\ndef bad(channels, image_size):\n"
        "    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(channels * image_size**2))",
        {"encoder": "bad"},
        "encoder bad has batch normalisation: declare it by @encoder(batch_norm=True)",
    ),
    **{
        f"batch norm of its own, {kind}": (
            f"class Norm(nn.BatchNorm1d):\n    def forward(self, h):\n        return super().forward(h).relu()\n{text}",
            {kind: "bad", "resources.workers": 2, "resources.gpu": 1, "baseline": True},
            f"{kind.replace('usl_type', 'method')} bad: Norm is a batch normalisation with "
            "a `forward` of its own, which several workers cannot compute together; set resources.workers to 1",
        )
        for kind, text in (
            (
                "encoder",
                "@raysweep.encoder(batch_norm=True)\ndef bad(channels, image_size):\n"
                "    return nn.Sequential(nn.Flatten(), Norm(channels * image_size**2))",
            ),
            (
                "head",
                "@raysweep.head(batch_norm=True)\ndef bad(feature_dim, embedding_dim):\n"
                "    return nn.Sequential(nn.Linear(feature_dim, embedding_dim), Norm(embedding_dim))",
            ),
            (
                "usl_type",
                "class M(nn.Module):\n    def __init__(self, encoder):\n        super().__init__()\n"
                "        self.encoder, self.norm = encoder, Norm(encoder.head.out_features)\n"
                "    def embed(self, images):\n        return self.norm(self.encoder.head(self.encoder(images)))\n"
                "    def forward(self, views, clean):\n        loss = self.embed(views).square().mean()\n"
                "        return raysweep.Losses(loss, {})\n"
                "@raysweep.method(batch_norm=True)\ndef bad(encoder):\n    return M(encoder)",
            ),
        )
    },
    "head": (
        "@raysweep.head\ndef bad(feature_dim, embedding_dim):\n    return nn.Linear(feature_dim, 3)",
        {"head": "bad"},
        "line 4: head bad: embeddings have the shape (8, 3); it must be (8, 64)",
    ),
    "policy": (
        "@raysweep.policy\ndef bad(images, strength, generator, part):\n"
        "    return raysweep.to_float(images) + strength",
        {"policy": "bad"},
        "line 4: policy bad: views are in [0.5, 1.5]; they must be in [0, 1]",
    ),
    "policy shape": (
        "@raysweep.policy\ndef bad(images, strength, generator, part):\n    return raysweep.to_float(images)[:, :, 1:]",
        {"policy": "bad"},
        "line 4: policy bad: views have the shape (8, 1, 7, 8); it must be (8, 1, 8, 8)",
    ),
    "strength 0": (
        "@raysweep.policy\ndef bad(images, strength, generator, part):\n    return 1 - raysweep.to_float(images)",
        {"policy": "bad"},
        "line 4: policy bad: changes the images at strength 0; it must return them as they are",
    ),
    "part of a batch": (
        "@raysweep.policy\ndef bad(images, strength, generator, part):\n"
        "    factor = torch.rand(len(images), 1, 1, 1, generator=generator)\n"
        "    return raysweep.to_float(images) * (1 - (strength > 0) * factor)",
        {"policy": "bad", "resources.workers": 2},
        "line 4: policy bad: draws other numbers for a part of a batch",
    ),
    "loss": (
        "@raysweep.loss\ndef bad(z1, z2):\n    return z1 - z2",
        {"emb_loss": "bad"},
        "line 4: loss bad: the loss has the shape (8, 64); it must be a scalar",
    ),
    "loss without gradient": (
        "@raysweep.loss\ndef bad(z1, z2):\n    return z1.detach().mean()",
        {"emb_loss": "bad"},
        "line 4: loss bad: the loss has no gradient; compute it from its arguments with torch",
    ),
    "loss that is not zero": (
        "@raysweep.loss(zero_on_equal_views=True)\ndef bad(z1, z2):\n    return (z1 - z2).abs().mean() + 2",
        {"emb_loss": "bad"},
        "line 4: loss bad: declares zero_on_equal_views, but is 2 on equal views",
    ),
    "method": (
        "class M(nn.Module):\n    def __init__(self, encoder):\n        super().__init__()\n"
        "        self.encoder = encoder\n"
        "    def embed(self, images):\n        return self.encoder(images)\n"
        "    def forward(self, views, clean):\n        return self.encoder(views).mean()\n"
        "@raysweep.method\ndef bad(encoder):\n    return M(encoder)",
        {"usl_type": "bad"},
        "line 12: method bad: a call returns Tensor; it must return raysweep.Losses",
    ),
    "dataset": (
        "@raysweep.dataset(size=8)\ndef bad(request):\n    return [1, 2]",
        {"dataset": "bad"},
        "line 4: dataset bad: returns list; it must return a raysweep.Dataset",
    ),
    "dataset of another size": (
        "import numpy as np\n@raysweep.dataset(size=9)\ndef bad(request):\n"
        "    images, labels = np.zeros((10, 8, 8), np.uint8), np.arange(10) % 2\n"
        "    return raysweep.Dataset.from_numpy(images, labels, images, labels)",
        {"dataset": "bad"},
        "line 5: dataset bad: declares size=9, but its images are 1×8×8",
    ),
    **{
        f"labelled dataset, {name}": (
            "import numpy as np\n@raysweep.dataset(size=8)\ndef bad(request):\n"
            "    images, labels = np.zeros((10, 1, 8, 8), np.uint8), np.arange(10) % 2\n"
            f"    return raysweep.Dataset(request.name, ('a', 'b'), images, labels, {given})",
            {"dataset": "bad"},
            f"line 5: dataset bad: has train_labels, but no {words}",
        )
        for name, given, words in (
            ("no test", "None, None", "test_images; give the images and labels of a test split"),
            ("no test labels", "images, None", "test_labels; give the labels of these images"),
            ("no val labels", "images, labels, val_images=images", "val_labels; give the labels of these images"),
        )
    },
    **{
        f"dataset, {name}": (
            "import numpy as np\n@raysweep.dataset(size=8)\ndef bad(request):\n"
            "    images, labels = np.zeros((10, 8, 8), np.uint8), np.arange(10) % 2\n"
            f"    return raysweep.Dataset.from_numpy(images, {given})",
            {"dataset": "bad"},
            f"line 5: dataset bad: class '{absent}' has no training image, and label {label} does not occur; number",
        )
        for name, given, absent, label in (
            ("labels from 1", "labels + 1, images, labels + 1", "0", 0),
            ("a class too many", "labels, images, labels, classes=['a', 'b', 'c']", "c", 2),
            ("a class only of test images", "labels, images, labels + np.arange(10) // 9", "2", 2),
        )
    },
    "probe": (
        "@raysweep.probe\ndef bad(evaluation):\n    yield 'x/y', 1.0",
        {},
        "line 4: probe bad: yields 'x/y', which it does not declare among its metrics",
    ),
    "probe that yields text": (
        "@raysweep.probe(metrics={'x/y': raysweep.Metric('X.')})\ndef bad(evaluation):\n    yield 'x/y', 'much'",
        {},
        "line 4: probe bad: yields ('x/y', 'much'); it must yield pairs of a metric's name and a float",
    ),
}


RANGES = """
@raysweep.probe(metrics={"own/cosine": raysweep.Metric("Negative cosine similarity.", better="min")})
def cosine(evaluation):
    yield "own/cosine", -0.5

@raysweep.probe(metrics={"own/images": raysweep.Metric("Number of images.", lowest=0.0, highest=300.0)})
def images(evaluation, *, images_factor: Annotated[int, "Factor."] = 1):
    yield "own/images", float(len(evaluation.labels("fit")) * images_factor)

class Negative(nn.Module):
    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder
    def embed(self, images):
        return self.encoder(images)
    def forward(self, views, clean):
        loss = -1 - self.encoder(views).square().mean()
        return raysweep.Losses(loss, {"part": loss.detach()})

@raysweep.method(metrics={"pretrain/part": raysweep.Metric("A part of the loss.", better="min")})
def negative(encoder):
    return Negative(encoder)
"""


def test_a_metric_may_be_negative_and_a_value_outside_of_its_declared_range_fails_the_trial(sweep):
    (sweep.root / "ranges.py").write_text(HEAD + RANGES)
    settings = {**PRETRAINED, "usl_type": "negative", "usl_lr": 1e-6, "images_factor": "[0, 1]"}
    process = sweep("--plugin", "ranges.py", "--name", "r", "--local", *small(settings))
    assert process.returncode == 1, process.stderr
    words = "own/images is 1292, outside of its declared range [0, 300] after pretraining epoch 1"
    assert words in process.stdout + process.stderr
    assert "damaged" not in process.stdout + process.stderr
    table = raysweep.open(sweep.root / "runs" / "r").frame().set_index("images_factor")
    assert list(table["status"]) == ["finished", "failed"]
    assert table.loc[0, "own/cosine"] == -0.5
    assert table.loc[0, "pretrain/part"] == table.loc[0, "pretrain/loss"] <= -1


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("lowest=0.0", "own/cosine is -0.5, outside of its declared range [0, inf]"),
        ("highest=-0.9", "own/cosine is -0.5, outside of its declared range [-inf, -0.9]"),
    ],
)
def test_a_wrong_range_is_refused_before_anything_starts(sweep, metric, words):
    (sweep.root / "ranges.py").write_text(HEAD + RANGES.replace('better="min")})\ndef c', f"{metric})}})\ndef c"))
    process = sweep("--plugin", "ranges.py", "--local", *small(UNTRAINED))
    assert process.returncode == 2
    assert f"probe cosine: {words}; declare its lowest and highest value" in process.stderr
    assert process.stderr.count("\n") == 1
    assert not (sweep.root / "runs").exists()


@pytest.mark.parametrize("case", WRONG)
def test_a_part_that_returns_something_wrong_is_refused_before_anything_starts(sweep, case):
    text, settings, words = WRONG[case]
    (sweep.root / "wrong.py").write_text(HEAD + text + "\n")
    local = () if "resources.workers" in settings else ("--local",)
    process = sweep("--plugin", "wrong.py", *local, *small({**PRETRAINED, **settings}))
    assert process.returncode == 2, process.stdout
    assert process.stderr.startswith(f"error: {sweep.root}/wrong.py, line")
    assert words in process.stderr
    assert process.stderr.count("\n") == 1
    assert not (sweep.root / "runs").exists()


def test_a_search_over_the_division_is_refused_for_a_dataset_with_its_own_validation_split(sweep):
    (sweep.root / "divided.py").write_text(
        HEAD + "import numpy as np\n@raysweep.dataset(size=8)\ndef divided(request):\n"
        "    images, labels = np.zeros((300, 1, 8, 8), np.uint8), np.arange(300) % 2\n"
        "    splits = images, labels, images, labels\n"
        "    return raysweep.Dataset(request.name, ('a', 'b'), *splits, val_images=images, val_labels=labels)\n"
    )
    process = sweep(
        "--plugin", "divided.py", "--local", *small({**PRETRAINED, "dataset": "divided"}), "--set", "split_seed=[0, 1]"
    )
    assert process.returncode == 2
    assert "split_seed: 0 and 1 would give the same results, because divided has its own" in process.stderr
    assert not (sweep.root / "runs").exists()


NEEDY = """
import numpy, sys
@raysweep.dataset(size=8, labelled=False)
def plain(request):
    images = numpy.random.RandomState(0).randint(0, 256, (600, 1, 8, 8)).astype('uint8')
    return raysweep.Dataset(request.name, (), images, None, None, None)
@raysweep.probe(metrics={'%s/score': raysweep.Metric('Score.')}, needs_labels=%s)
def %s(evaluation):
    print(len(evaluation.features('trunk')['fit']), file=sys.stderr)
    yield '%s/score', %s
"""


@pytest.mark.parametrize(
    ("value", "needs_labels", "settings", "images"),
    [
        ("1.0", False, {"dataset": "plain"}, [256, 600]),
        ("1.0", True, {}, [220, 1292]),
        ("float(len(evaluation.drawn(100)))", True, {"labels_per_class": 100}, [1020, 1292]),
        ("evaluation.features('trunk')['fit'][:, 0].topk(500).values.mean().item()", True, {}, [220, 1292, 1292]),
    ],
)
def test_a_probe_is_checked_on_few_images_unless_it_needs_more(sweep, value, needs_labels, settings, images):
    name = "counting"
    (sweep.root / "mine.py").write_text(HEAD + NEEDY % (name, needs_labels, name, name, value))
    process = sweep("--plugin", "mine.py", "--local", *small({**UNTRAINED, **settings}))
    assert process.returncode == 0, process.stderr
    assert [int(line) for line in process.stderr.splitlines() if line.isdigit()] == images


def test_a_probe_that_needs_more_images_than_the_check_has_is_told_so(sweep):
    value = "evaluation.features('trunk')['fit'][:, 0].topk(5000).values.mean().item()"
    (sweep.root / "mine.py").write_text(HEAD + NEEDY % ("hungry", True, "hungry", "hungry", value))
    process = sweep("--plugin", "mine.py", "--local", *small(UNTRAINED))
    assert process.returncode == 2
    words = "probe hungry: raises RuntimeError: selected index k out of range (line 13), in a check on 4,096 images\n"
    assert process.stderr.endswith(words)


def test_an_encoder_may_have_more_features_than_an_image_has_pixels(sweep):
    text = """
@raysweep.encoder(takes_dim=True)
def wide(channels, image_size, dim):
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * image_size**2, dim))
"""
    (sweep.root / "wide.py").write_text(HEAD + text)
    settings = {**UNTRAINED, "encoder": "wide", "embedding_dim": 128}
    process = sweep("--plugin", "wide.py", "--name", "w", "--local", *small(settings))
    assert process.returncode == 0, process.stderr
    encoder = raysweep.open(sweep.root / "runs" / "w").encoder("seed=0")
    assert encoder(torch.zeros(2, 1, 8, 8)).shape == (2, 128)


def test_of_several_sweeps_each_encoder_has_the_code_of_its_own_sweep(sweep):
    text = (ROOT / "examples" / "my_encoder.py").read_text()
    for name, layer in (("a", "nn.ReLU"), ("b", "nn.GELU")):
        (sweep.root / "mine.py").write_text(text.replace("nn.ReLU", layer))
        settings = small({**UNTRAINED, "encoder": "mlp"})
        process = sweep("--plugin", "mine.py", "--local", "--name", name, *settings)
        assert process.returncode == 0, process.stderr
    places = [sweep.root / "runs" / name for name in ("a", "b")]
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    alone = [raysweep.open(place).encoder("seed=0")(images) for place in places]
    assert not torch.equal(*alone), "both have the same weights"
    both = raysweep.open(places)
    for place, expected in zip(places, alone):
        assert torch.equal(both.encoder(f"{place.name}/seed=0")(images), expected)


def test_a_loss_may_be_nan_on_equal_views(sweep):
    text = "@raysweep.loss\ndef root(z1, z2):\n    return (z1 - z2).square().sum().sqrt() / (z1 - z2).abs().sum()"
    (sweep.root / "nan.py").write_text(HEAD + text + "\n")
    process = sweep("--plugin", "nan.py", "--local", *small({**PRETRAINED, "emb_loss": "root"}))
    assert process.returncode == 0, process.stderr


def test_embed_and_export_find_the_encoder_of_a_plugin(sweep, tmp_path):
    from PIL import Image

    (tmp_path / "images").mkdir()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "images" / "a.png")
    settings = {**UNTRAINED, "encoder": "mlp", "width": 5}
    process = sweep("--plugin", ROOT / "examples" / "my_encoder.py", "--local", "--name", "x", *small(settings))
    assert process.returncode == 0, process.stderr
    trial = tmp_path / "runs" / "x" / "seed=0"
    process = here("raysweep", "embed", trial, tmp_path / "images", "-o", "features.npz", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert np.load(tmp_path / "features.npz")["features"].shape == (1, 5)
    process = here("raysweep", "export", trial, "-o", "weights.pt", cwd=tmp_path)
    assert "mlp for images of 1×8×8; trunk 5" in process.stdout
    (tmp_path / "copy").mkdir()
    shutil.copy(trial / "encoder.safetensors", tmp_path / "copy")
    process = here("raysweep", "export", tmp_path / "copy", "-o", "other.pt", cwd=tmp_path)
    assert "unknown architecture 'mlp'" in process.stderr
    assert "--plugin gives others" in process.stderr
    embed = ["embed", tmp_path / "copy", tmp_path / "images", "-o", "same.npz"]
    process = here("raysweep", *embed, "--plugin", ROOT / "examples" / "my_encoder.py", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert np.array_equal(np.load(tmp_path / "same.npz")["features"], np.load(tmp_path / "features.npz")["features"])


def test_preview_and_comparison_know_plugins(sweep, tmp_path):
    base = {**QUICK, "usl_epochs": 1, "policy": "brightness", "batch_size": 250}
    path = tmp_path / "b.yaml"
    path.write_text(json.dumps({"base": base, "search": {"largest": [0.1]}}))
    example = ROOT / "examples" / "my_policy.py"
    process = here("raysweep", "preview", path, "-o", "views.png", "--plugin", example, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "views.png").exists()
    (tmp_path / "bad.py").write_text(example.read_text().replace(".clamp(0, 1)", ""))
    process = here("raysweep", "preview", path, "-o", "bad.png", "--plugin", "bad.py", cwd=tmp_path)
    assert process.returncode == 2
    assert "policy brightness: views are in [" in process.stderr
    for name, text in (("one", LOSS), ("two", LOSS.replace("abs()", "square()"))):
        (tmp_path / "mine.py").write_text(text)
        process = sweep("--plugin", "mine.py", "--local", "--name", name, *small(UNTRAINED))
        assert process.returncode == 0, process.stderr
    process = here("raysweep", "report", "runs/one", "runs/two", cwd=tmp_path)
    assert process.returncode == 0, process.stderr


@raysweep.loss
def by_value(z1, z2):
    """The mean squared difference."""
    return (z1 - z2).square().mean()


def test_a_part_is_passed_by_value_and_needed_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = {"name": "v", "base": {**PRETRAINED, "emb_loss": "by_value"}}
    outcome = api.run(content, {}, options=api.RunOptions(local=True), parts=[by_value])
    assert [point.name for point in outcome.report.points] == ["default"]
    (entry,) = yaml.safe_load((tmp_path / "runs" / "v" / "sweep.yaml").read_text())["parts"]
    assert entry["part"] == "loss by_value"
    assert "The mean squared difference." in entry["source"]
    plugins.activate(())
    assert raysweep.open("runs/v").trials == ["seed=0"], "the process that declared the part finds it again"
    plugins.activate(())
    with monkeypatch.context() as patch:  # as in another process, which did not declare the part
        patch.setattr(parts, "declared", [])
        words = r"part that no file has, loss by_value; open it in Python .*, or give the part, as parts=\[by_value\]"
        with pytest.raises(InputError, match=words):
            api.resume("runs/v", options=api.RunOptions(local=True))
    outcome = api.resume("runs/v", None, {"seed": [0, 1]}, options=api.RunOptions(local=True), parts=[by_value])
    assert outcome.sweep.total == 2

    def plain(z1, z2):
        return z1

    with pytest.raises(InputError, match="parts: plain: is not a part; decorate it"):
        api.plan(content, {}, parts=[plain])
    plugins.activate(())


def test_importing_the_package_imports_nothing_heavy():
    program = "import raysweep, sys; raysweep.loss; dir(raysweep); print({'torch', 'ray', 'numpy'} & set(sys.modules))"
    process = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert process.stdout == "set()\n"
    for name in raysweep.__all__:
        assert getattr(raysweep, name) is not None
