"""The real command sweeps over a part of each kind that a plugin declares."""

import csv
import json

import pytest

from raysweep import parts
from tests.support.commands import here

TOYS = '''
from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import nn

from raysweep import Dataset, Losses, Metric, dataset, encoder, head, loss, method, policy, probe, to_float


@loss
def toy_loss(z1, z2, *, toy_power: Annotated[float, Field(gt=0), "Exponent of the difference."] = 2.0):
    """A power of the absolute difference."""
    return (z1 - z2).abs().pow(toy_power).mean()


@policy
def toy_shift(images, strength, generator, part=None, *, toy_columns: Annotated[int, Field(ge=0), "Columns."] = 1):
    """Shift all images to the right."""
    views = to_float(images)
    return views.roll(toy_columns, 3) if strength else views


@encoder(batch_norm=True)
def toy_encoder(channels, image_size, *, toy_width: Annotated[int, Field(ge=1), "Number of features."] = 8):
    """A linear map of the pixels, normalised over the batch."""
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * image_size**2, toy_width), nn.BatchNorm1d(toy_width))


@head
def toy_head(feature_dim, embedding_dim, *, toy_bias: Annotated[bool, "Whether the head has a bias."] = True):
    """A linear map, with or without bias."""
    return nn.Linear(feature_dim, embedding_dim, bias=toy_bias)


@dataset(size=8, channels=1, images=80)
def toy_stripes(request, *, toy_noise: Annotated[float, Field(ge=0), "Standard deviation of the noise."] = 10.0):
    """Horizontal and vertical stripes with noise."""
    draws = np.random.RandomState(0)
    labels = np.arange(80) % 2
    stripes = np.indices((8, 8))[:, None] % 2 * 200
    images = np.clip(stripes[labels] + draws.normal(0, toy_noise, (80, 1, 8, 8)), 0, 255).astype(np.uint8)
    return Dataset(request.name, ("a", "b"), images[:60], labels[:60], images[60:], labels[60:])


@probe(metrics={"toy/norm": Metric("Mean norm of the test features.", uses_test=True)})
def toy_norm(evaluation, *, toy_order: Annotated[float, Field(gt=0), "Order of the norm."] = 2.0) -> Iterator[Any]:
    """The mean norm of the features."""
    yield "toy/norm", float(evaluation.features("trunk")["test"].norm(toy_order, dim=1).mean())


class Teacher(nn.Module):
    """The views are drawn to the embedding of a slowly moving copy of the encoder."""

    reads_clean = False

    def __init__(self, encoder, momentum):
        super().__init__()
        import copy

        self.encoder, self.momentum, self.shard, self.calls = encoder, momentum, None, []
        self.teacher = copy.deepcopy(encoder).requires_grad_(False)

    def embed(self, images):
        return self.encoder.head(self.encoder(images))

    def forward(self, views, clean):
        with torch.no_grad():
            target = self.teacher.head(self.teacher(views.roll(len(views) // 2, 0)))
        distance = (self.embed(views) - target).square().mean()
        return Losses(distance, {"toy_loss": distance.detach()})

    def after_step(self, progress):
        assert not self.calls or progress > self.calls[-1]
        self.calls.append(progress)
        for slow, fast in zip(self.teacher.parameters(), self.encoder.parameters()):
            slow.lerp_(fast, 1 - self.momentum)


@method(views=2, metrics={"pretrain/toy_loss": Metric("Distance from the teacher.", better="min")})
def toy_teacher(encoder, *, toy_momentum: Annotated[float, Field(ge=0, le=1), "Momentum of the teacher."] = 0.9):
    """A student that follows a slowly moving teacher."""
    return Teacher(encoder, toy_momentum)
'''

QUICK = {"usl_epochs": 2, "le_epochs": 2, "batch_size": 20, "precision": "fp32", "probe_every": 1, "knn_k": 5}
KINDS = {
    "loss": ({"emb_loss": "toy_loss", "dataset": "toy_stripes"}, "toy_power", [1.0, 3.0]),
    "policy": ({"policy": "toy_shift", "dataset": "toy_stripes"}, "toy_columns", [1, 3]),
    "encoder": ({"encoder": "toy_encoder", "dataset": "toy_stripes"}, "toy_width", [3, 5]),
    "head": ({"head": "toy_head", "dataset": "toy_stripes"}, "toy_bias", [True, False]),
    "dataset": ({"dataset": "toy_stripes"}, "toy_noise", [5.0, 60.0]),
    "probe": ({"dataset": "toy_stripes"}, "toy_order", [1.0, 2.0]),
    "method": ({"usl_type": "toy_teacher", "dataset": "toy_stripes"}, "toy_momentum", [0.5, 0.99]),
}


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """A function that runs the real command with the toy parts as a plugin."""
    folder = tmp_path_factory.mktemp("toys")
    (folder / "toys.py").write_text(TOYS)

    def run(*arguments):
        return here("run_sweep.py", "--plugin", "toys.py", *arguments, cwd=folder)

    run.folder = folder
    return run


def test_there_is_a_toy_of_every_kind():
    assert set(KINDS) == set(parts.TABLES)


@pytest.mark.parametrize("kind", KINDS)
def test_a_parameter_of_a_new_part_is_swept_through_the_real_command(toys, kind):
    base, name, values = KINDS[kind]
    space = toys.folder / f"{kind}.yaml"
    space.write_text(json.dumps({"name": kind, "base": {**QUICK, **base}, "search": {name: values, "seed": [0]}}))
    process = toys(space, "--local")
    assert process.returncode == 0, process.stderr
    root = toys.folder / "runs" / kind
    with open(root / "results.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["finished", "finished"]
    assert [row[name] for row in rows] == [str(value) for value in values]
    results = [json.loads((root / row["trial"] / "result.json").read_text()) for row in rows]
    changing = {"probe": "toy/norm", "encoder": "toy/norm"}.get(kind, "pretrain/loss")
    assert results[0]["metrics"][changing] != results[1]["metrics"][changing], "the parameter must reach the part"
    assert all(float(row["toy/norm"]) > 0 for row in rows), (
        "a metric reaches the table although no list of metrics was extended"
    )
    assert "toy/norm" in (root / "summary.csv").read_text()
    if kind == "method":
        assert all(row["pretrain/toy_loss"] == row["pretrain/loss"] for row in rows)
    fingerprints = {result["fingerprint"] for result in results}
    assert len(fingerprints) == (2 if kind in ("probe", "dataset") else 1), (
        "only parts that change the meaning of a score change the fingerprint"
    )


def test_help_shows_the_parameters_and_faults_are_one_line(toys):
    shown = toys("--help")
    assert all(f"--{name}" in shown.stdout for _, name, _ in KINDS.values())
    for arguments, words in (
        (["--toy_power", "-1"], "toy_power: must be greater than 0"),
        (["--usl_type", "simclr", "--toy_power", "1"], "toy_power: has no effect in any trial"),
        (["--emb_loss", "toy_los"], "emb_loss: must be"),
        (["--encoder", "toy_encoder", "--layerwise", "greedy"], "needs an encoder that is made of blocks"),
        (["--encoder", "toy_encoder", "--set", "resources.workers=2"], "toy_encoder has batch norm"),
        (["--usl_type", "toy_teacher", "--layerwise", "greedy"], "cannot train block by block"),
    ):
        process = toys(*arguments, "--dry-run")
        assert process.returncode == 2, process.stdout
        assert words in process.stderr
        assert process.stderr.count("\n") == 1


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
            "temperature: another part declares it differently",
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
