"""Controls that several points, sub-spaces or sweeps share: which results a point is compared with."""

import shutil
from functools import cache

import pytest
import torch

import raysweep
from raysweep.errors import InputError
from raysweep.report.building import build_tables, read_several
from raysweep.report.choosing import differing_objective
from raysweep.report.summary import overview
from raysweep.results.opening import open_sweeps
from raysweep.results.store import Store
from raysweep.space.controls import CONTROLS
from tests.report.test_report import COLUMNS, fill_with

ALL = list(CONTROLS)
SEEDS = [0, 1, 2]


def metrics(trial):
    """Return a score that tells trials apart, so that a wrong partner would be noticed."""
    return dict.fromkeys(COLUMNS, (sum(map(ord, trial.name)) % 997) / 1000 + trial.settings.seed / 10_000)


def several(tmp_path, *raws):
    return read_several(
        [fill_with(tmp_path, {"name": name, **raw}, metrics) for name, raw in zip("abc", raws, strict=False)]
    )


def partners(points, sweep):
    """Return the names of the control trials of each point of a sweep, by control."""
    return {
        point.name: {
            control: [found.trial for found in by_seed.values()] for control, by_seed in point.controls.items()
        }
        for point in points
        if point.sweep == sweep and not point.baseline
    }


def test_points_of_one_evaluation_share_a_control_and_others_have_their_own(tmp_path):
    search = [
        {"alpha": [0.1, 1], "knn_k": [5, 20], "seed": SEEDS},
        {"usl_type": ["simclr"], "temperature": [0.1, 0.5], "knn_k": [5], "seed": SEEDS},
    ]
    store, sweep = fill_with(tmp_path, {"name": "s", "search": search, "baseline": ALL}, metrics)
    found = partners(build_tables(store, sweep).points, "")
    assert len(found) == 6
    for point, controls in found.items():
        k = 20 if "knn_k=20" in point else 5
        assert controls == {control: [f"{control},knn_k={k},seed={seed}" for seed in SEEDS] for control in ALL}


def test_every_control_is_lent_to_a_sweep_without_controls(tmp_path):
    report = several(
        tmp_path,
        {"search": {"alpha": [0.1, 1], "seed": SEEDS}, "baseline": ALL},
        {"search": {"alpha": [10], "strength": [0.2], "seed": SEEDS}},
    )
    lent = {control: [f"{control},seed={seed}" for seed in SEEDS] for control in ALL}
    assert partners(report.points, "a") == {"alpha=0.1": lent, "alpha=1.0": lent}
    assert partners(report.points, "b") == {"alpha=10.0,strength=0.2": lent}
    (point,) = (point for point in report.points if point.name.startswith("alpha=10.0"))
    for control in ALL:
        scores = {seed: metrics_of(f"{control},seed={seed}", seed) for seed in SEEDS}
        assert point.control_scores(control, COLUMNS[0]) == pytest.approx(scores)
        family = report.groups[0].families[COLUMNS[1]]
        expected = sum(metrics_of(point.name + f",seed={seed}", seed) - scores[seed] for seed in SEEDS) / 3
        assert family.from_control(point, control).mean == pytest.approx(expected)
    words = "\n".join(overview(report))
    assert "b is compared with the random encoder, raw pixels, PCA and supervised training of another sweep." in words
    assert "a is compared with" not in words


def metrics_of(name, seed):
    return (sum(map(ord, name)) % 997) / 1000 + seed / 10_000


@pytest.mark.parametrize(
    ("base", "lent"),
    [
        ({"strength": 0.1}, ALL),
        ({"usl_lr": 0.01}, ["random", "pixels", "pca"]),
        ({"embedding_dim": 16}, ["random", "pixels"]),
        ({"encoder": "resnet18"}, ["pixels", "pca"]),
    ],
    ids=str,
)
def test_a_control_is_lent_only_if_it_computes_the_same(tmp_path, base, lent):
    """`usl_lr` decides the supervised control alone, and `embedding_dim` the number of components of `pca` too."""
    raws = [
        {"search": {"alpha": [0.1, 1], "seed": SEEDS}, "baseline": ALL},
        {"base": base, "search": {"alpha": [10], "seed": SEEDS}},
    ]
    report = several(tmp_path, *raws)
    (controls,) = partners(report.points, "b").values()
    assert list(controls) == lent


def test_only_the_seeds_that_are_missing_are_lent(tmp_path):
    report = several(
        tmp_path,
        {"search": {"alpha": [0.1], "seed": SEEDS}, "baseline": ["pixels", "pca"]},
        {"search": {"alpha": [1], "seed": [1, 2, 3]}, "baseline": ["pca"]},
    )
    assert partners(report.points, "b") == {
        "alpha=1.0": {"pixels": ["pixels,seed=1", "pixels,seed=2"], "pca": ["pca,seed=1", "pca,seed=2", "pca,seed=3"]}
    }
    own = [point for point in report.points if point.sweep == "b" and point.control == "pca"]
    (point,) = (point for point in report.points if point.name == "alpha=1.0")
    assert all(point.controls["pca"][seed] is own[0].by_seed[seed] for seed in (1, 2, 3)), "its own come first"
    assert partners(report.points, "a")["alpha=0.1"]["pca"] == [f"pca,seed={seed}" for seed in SEEDS]
    assert "b is compared with raw pixels of another sweep." in "\n".join(overview(report))


def test_encoders_that_are_no_networks_borrow_no_random_encoder(tmp_path):
    report = several(
        tmp_path,
        {"search": {"alpha": [0.1], "seed": SEEDS}, "baseline": ALL},
        {"search": {"encoder": ["pixels"], "seed": SEEDS}},
    )
    assert list(partners(report.points, "b")["encoder=pixels"]) == ["pixels", "pca"]
    store = report.members[1].store
    words = build_tables(store, report.members[1].sweep).in_words()[0]
    assert words.endswith("There is no random encoder to compare with, because encoder pixels is not a network.")


def pretrained_on(tmp_path, *digests):
    """Read sweeps of the same points whose pretraining images had these digests; None where no digest is recorded.

    Only the first sweep has controls. Each sweep has other seeds.
    """
    opened = []
    for number, digest in enumerate(digests):
        raw = {"base": {"probe_dataset": "digits", "dataset": "digits_m", "image_size": 8}, "name": f"s{number}"}
        raw |= {"search": {"alpha": [0.1, 1], "seed": SEEDS}, "baseline": [] if number else ALL}
        recorded = {"digits 8×8, 3 channels": "same", **({} if digest is None else {"digits_m 8×8": digest})}
        opened.append(fill_with(tmp_path, raw, metrics, recorded))
    return read_several(opened)


@pytest.mark.parametrize("digests", [("x", "x"), ("x", None), (None, None), (None, "x")], ids=str)
def test_points_with_the_same_pretraining_images_are_the_same_experiment(tmp_path, digests):
    report = pretrained_on(tmp_path, *digests)
    assert report.groups[0].families[COLUMNS[1]].points == 2
    assert list(partners(report.points, "s1")["alpha=0.1"]) == ALL
    assert "pretraining images" not in "\n".join(overview(report))


@pytest.mark.parametrize("digests", [("x", "y"), ("x", "y", None)], ids=str)
def test_points_with_other_pretraining_images_are_another_experiment(tmp_path, digests):
    report = pretrained_on(tmp_path, *digests)
    family = report.groups[0].families[COLUMNS[1]]
    assert family.points == 2 * len(digests)
    for sweep in [f"s{number}" for number in range(1, len(digests))]:
        lent = partners(report.points, sweep)["alpha=0.1"]
        assert list(lent) == ["random", "pixels"], "the others were trained or fitted on the images"
    assert list(partners(report.points, "s0")["alpha=0.1"]) == ALL
    assert "The pretraining images of dataset digits_m are not the same ones" in "\n".join(overview(report))


def test_each_sweep_is_compared_with_the_control_that_was_fitted_on_its_images(tmp_path):
    opened = []
    for name, shift in (("a", 0), ("b", 0.2)):
        raw = {"name": name, "base": {"probe_dataset": "digits"}, "baseline": ["random", "pca"]}
        raw |= {"search": {"alpha": [0.1, 1], "seed": SEEDS}}

        def shifted(trial, shift=shift):
            return dict.fromkeys(COLUMNS, metrics(trial)[COLUMNS[0]] / 2 + (shift if trial.control == "pca" else 0))

        opened.append(fill_with(tmp_path, raw, shifted, {"digits 8×8": name}))
    report = read_several(opened)
    family = report.groups[0].families[COLUMNS[1]]
    for point in (point for point in report.points if not point.baseline):
        expected = sum(point.differences(COLUMNS[1], "pca")) / 3
        assert family.from_control(point, "pca").mean == pytest.approx(expected)


def test_the_records_of_real_sweeps_and_evaluations_tell_changed_images_apart(few, tmp_path):
    folder = tmp_path / "images"
    shutil.copytree(few["dataset"].removeprefix("folder:"), folder)
    base = {**few, "dataset": f"folder:{folder}", "probe_dataset": "digits", "usl_epochs": 1, "le_epochs": 1,
            "probe_every": 0, "images_every": 0, "projector_images": 0, "usl_type": "simclr"}  # fmt: skip
    roots = []
    for name in ("before", "same", "after"):
        if name == "after":
            first = next(folder.rglob("*.png"))
            shutil.copy(first, first.with_name("another.png"))
        raw = {"name": name, "base": base, "search": {"strength": [0.5, 1]}}
        roots.append(raysweep.run(raw, output=tmp_path / "sweeps", local=True).directory)
    for opened in ([Store.open(root) for root in roots], [evaluated(root) for root in roots]):
        for pair, count in (([0, 1], 2), ([0, 2], 4)):
            report = read_several([opened[place] for place in pair])
            assert report.groups[0].families[COLUMNS[1]].points == count


def evaluated(root):
    """Evaluate the encoders of a sweep with other neighbours, and open the evaluation."""
    return Store.open(raysweep.evaluate(root, set={"knn_k": 3}, name=f"e-{root.name}", local=True).directory)


PLUGIN = """
from typing import Annotated
import raysweep
from torch import nn

@raysweep.loss
def gap(z1, z2{parameter}):
    '''The distance of the embeddings.'''
    return (z1 - z2).abs().pow({power}).mean()

@raysweep.encoder
def scaled(channels, image_size):
    '''The pixels, scaled.'''
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * image_size**2, 4), nn.{activation}())
"""
PARAMETER = ", *, gap_power: Annotated[float, 'Exponent of the distance.'] = 2.0"
VERSIONS = {
    **dict.fromkeys(("first", "same"), PLUGIN.format(parameter="", power="2.0", activation="ReLU")),
    "loss": PLUGIN.format(parameter=PARAMETER, power="gap_power", activation="ReLU"),
    "encoder": PLUGIN.format(parameter="", power="2.0", activation="Sigmoid"),
    "renamed": PLUGIN.format(parameter="", power="2.0", activation="ReLU").replace("gap", "distance"),
}


@pytest.fixture(scope="module")
def run_with_version(few, tmp_path_factory):
    """Return a function that runs a sweep of one point with a version of a plugin, and returns its directory."""
    root = tmp_path_factory.mktemp("versions")
    base = {**few, "usl_epochs": 1, "le_epochs": 1, "probe_every": 0, "images_every": 0, "projector_images": 0}

    @cache
    def run(version, *baseline, **settings):
        (root / "mine.py").write_text(VERSIONS[version])
        loss = "distance" if version == "renamed" else "gap"
        raw = {"name": version, "base": {**base, "emb_loss": loss, **settings}, "baseline": list(baseline)}
        return raysweep.run(raw, output=root, local=True, plugins=[root / "mine.py"]).directory

    return run


def in_both_orders(*roots):
    """Return the two orders of the directories of two sweeps, as the places that a user gives."""
    return [list(map(str, roots)), list(map(str, reversed(roots)))]


@pytest.mark.parametrize(("version", "count"), [("same", 1), ("loss", 2)])
def test_points_with_changed_code_are_another_experiment(run_with_version, version, count):
    first, other = run_with_version("first", "random"), run_with_version(version)
    for places in in_both_orders(first, other):
        report = read_several(open_sweeps(places))
        assert report.groups[0].families[COLUMNS[1]].points == count
        assert list(partners(report.points, version)["default"]) == ["random"], "no part of the plugin is in it"
        assert ("The plugin of loss gap is not the same in all sweeps" in "\n".join(overview(report))) == (count > 1)
        assert differing_objective("pretrain/loss", report.points) == ("the plugin of loss gap" if count > 1 else "")
        if version == "loss":
            assert {point.settings.gap_power for point in report.points} == {2.0}, "the older version lacks it"


def test_controls_and_encoders_have_the_code_of_their_sweep(run_with_version):
    first = run_with_version("first", "random", "pixels", encoder="scaled")
    other = run_with_version("encoder", encoder="scaled")
    images = torch.full((1, 3, 8, 8), 0.5)
    for places in in_both_orders(first, other):
        assert list(partners(read_several(open_sweeps(places)).points, other.name)["default"]) == ["pixels"]
        for root in (first, other):
            expected = raysweep.open(root).encoder("seed=0")(images)
            assert torch.equal(raysweep.open(places).encoder(f"{root.name}/seed=0")(images), expected)


def test_sweeps_whose_settings_fit_no_version_of_a_plugin_are_refused(run_with_version):
    for places in in_both_orders(run_with_version("first", "random"), run_with_version("renamed")):
        with pytest.raises(InputError, match=r"mine\.py: changed between the sweeps, and no version .* emb_loss: must"):
            raysweep.open(places).conclusions()
