"""The examples, one plugin of each kind, through the real command: their parameters are settings like any other."""

import csv
import json
import re
import runpy
import shlex

import pytest
import torch

from raysweep import parts
from raysweep.config import Settings
from raysweep.models.building import build_encoder
from raysweep.training.distributed import BatchShard
from tests.support import ROOT
from tests.support.commands import here

pytestmark = pytest.mark.usefixtures("no_figures")

EXAMPLES = {path.stem.removeprefix("my_"): path for path in sorted((ROOT / "examples").glob("my_*.py"))}
ALL = [word for path in EXAMPLES.values() for word in ("--plugin", path)]
QUICK = {"usl_epochs": 2, "le_epochs": 1, "batch_size": 200, "precision": "fp32", "probe_every": 0, "images_every": 0}
CHANGES = {"schedule": "pretrain/lr", "probe": "means/test_accuracy", "dataset": "means/test_accuracy"}
"""The metric that the parameter of an example must change, if it is not the loss."""


def words_of(example):
    """Return the words of the command in the header of an example, after `raysweep sweep`, with one seed."""
    header = example.read_text().split('"""')[1]
    words = shlex.split(re.search(r"^ +raysweep sweep (.*)$", header, re.MULTILINE)[1])
    assert words[:2] == ["--plugin", f"examples/{example.name}"]
    seeds = [number for number, word in enumerate(words) if word.startswith("seed=")]
    for number in seeds:
        del words[number - 1 : number + 1]
    return words[2:]


def test_there_is_an_example_of_every_kind():
    assert set(EXAMPLES) == set(parts.TABLES)


@pytest.mark.parametrize("kind", EXAMPLES)
def test_the_command_of_an_example_sweeps_its_parameter(tmp_path, kind):
    words = words_of(EXAMPLES[kind])
    settings = {**QUICK, "usl_epochs": 0} if kind == "probe" else QUICK
    if kind == "dataset":  # its images must suffice for the default of the batch size, as in its header
        settings = {name: value for name, value in QUICK.items() if name != "batch_size"}
    quick = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    data = [] if kind == "dataset" else ["--dataset", "stripes", "--noise", "250"]  # the smallest
    beside = [EXAMPLES[name] for name in dict.fromkeys((kind, "dataset", "probe"))]
    given = [word for path in beside for word in ("--plugin", path)]
    process = here("run_sweep.py", *given, *words, *data, *quick, "--local", "--name", "x", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    root = tmp_path / "runs" / "x"
    name, values = next(word for word in words if re.fullmatch(r"\w+=\[.*\]", word)).split("=")
    with open(root / "results.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["finished"] * len(rows)
    assert [float(row[name]) for row in rows] == json.loads(values)
    results = [json.loads((root / row["trial"] / "result.json").read_text()) for row in rows]
    changed = CHANGES.get(kind, "pretrain/loss")
    assert results[0]["metrics"][changed] != results[1]["metrics"][changed], "the parameter must reach the part"
    assert all(0 < float(row["means/test_accuracy"]) <= 1 for row in rows), (
        "a metric reaches the table although no list of metrics was extended"
    )
    for file in ("summary.csv", "summary.md"):
        assert "means/test_accuracy" in (root / file).read_text(), "a probe from a plugin needs no switch"
    if kind == "method":
        assert all(row["pretrain/prediction_loss"] == row["pretrain/loss"] for row in rows)
    fingerprints = {result["fingerprint"] for result in results}
    assert len(fingerprints) == (len(rows) if kind in ("probe", "dataset") else 1), (
        "only parts that change the meaning of a score change the fingerprint"
    )
    assert {path.name for path in (root / "plugins").iterdir()} == {path.name for path in beside}


def test_help_shows_the_parameters_and_faults_are_one_line(tmp_path):
    shown = here("run_sweep.py", *ALL, "--help", cwd=tmp_path).stdout
    names = [word.split("=")[0] for path in EXAMPLES.values() for word in words_of(path) if "=[" in word]
    assert len(names) == len(EXAMPLES)
    assert all(f"--{name} X" in shown for name in names)
    for arguments, words in (
        (["--sharpness", "-1"], "sharpness: must be greater than 0"),
        (["--usl_type", "simclr", "--sharpness", "2"], "sharpness: has no effect in any trial"),
        (["--emb_loss", "cosin"], "emb_loss: must be"),
        (["--encoder", "mlp", "--layerwise", "greedy"], "needs an encoder that is made of blocks"),
        (["--usl_type", "teacher", "--layerwise", "greedy"], "cannot train block by block"),
    ):
        process = here("run_sweep.py", *ALL, *arguments, "--dry-run", cwd=tmp_path)
        assert process.returncode == 2, process.stdout
        assert words in process.stderr
        assert process.stderr.count("\n") == 1


def test_an_encoder_with_batch_norm_is_refused_for_several_processes(tmp_path):
    text = EXAMPLES["encoder"].read_text().replace("@raysweep.encoder", "@raysweep.encoder(batch_norm=True)")
    (tmp_path / "normed.py").write_text(text)
    arguments = ["--plugin", "normed.py", "--encoder", "mlp", "--set", "resources.workers=2", "--dry-run"]
    process = here("run_sweep.py", *arguments, cwd=tmp_path)
    assert process.returncode == 2
    assert "mlp has batch norm, which PyTorch synchronises only between GPUs" in process.stderr


@pytest.mark.parametrize(
    ("declaration", "words"),
    [
        ("@loss\ndef bad(z1, z2, *, x=1.0): pass", "loss bad: x: needs a type and a description"),
        ("@loss\ndef bad(z1, z2, *, x: Annotated[float, Field(gt=0)] = 1.0): pass", "loss bad: x: needs a description"),
        ("@loss\ndef bad(z1, z2, *, x: Annotated[float, 'X.']): pass", "loss bad: x: needs a default"),
        ("@loss\ndef mse(z1, z2): pass", "loss mse: there is one of that name already"),
        ("@loss(colour=1)\ndef bad(z1, z2): pass", "loss bad: unknown trait 'colour'"),
        (
            "@loss\ndef bad(z1, z2, *, temperature: Annotated[float, 'Another one.'] = 1.0): pass",
            "loss bad: temperature: method simclr declares it differently; give one of them another name",
        ),
        ("@loss\ndef bad(z1, z2, *, seed: Annotated[int, 'Another one.'] = 1): pass", "seed: is a setting already"),
    ],
)
def test_a_faulty_declaration_says_what_is_wrong(tmp_path, declaration, words):
    (tmp_path / "faulty.py").write_text(
        f"from typing import Annotated\nfrom pydantic import Field\nfrom raysweep import loss\n{declaration}\n"
    )
    process = here("run_sweep.py", "--plugin", "faulty.py", "--dry-run", "--seed", "0", cwd=tmp_path)
    assert process.returncode == 2
    assert process.stderr.startswith(f"error: {tmp_path}/faulty.py, line 4: ")
    assert words in process.stderr
    assert process.stderr.count("\n") == 1


def test_the_shares_of_several_workers_add_up_to_the_loss_of_the_example():
    encoder = build_encoder(Settings(), 1, 8)
    method = runpy.run_path(str(EXAMPLES["method"]))["Teacher"](encoder, 0.9)
    views, clean = torch.rand(2 * 11, 1, 8, 8), torch.rand(11, 1, 8, 8)
    whole = method(views, clean).total
    shares = []
    for start, end in ((0, 5), (5, 11)):
        method.shard = BatchShard(11, start, end, processes=2)
        shares.append(method(views[method.shard.views(2).index], clean[start:end]).total)
    assert float(sum(shares)) == pytest.approx(float(whole), rel=1e-5)
