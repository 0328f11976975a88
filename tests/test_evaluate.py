"""Evaluations of trained encoders, through the real command and through Python."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import raysweep
from raysweep.backends.ray.session import session
from raysweep.evaluations import plan_evaluation
from raysweep.report import building
from raysweep.report.figure_words import is_drawn
from raysweep.results.encoders import save_encoder
from raysweep.results.store import Store
from tests.support import ROOT
from tests.support.commands import here
from tests.support.kills import run_killed
from tests.support.networks import make_encoder
from tests.support.shared_ray import start_shared_ray

QUIET = {"le_epochs": 2, "probe_every": 0, "images_every": 0, "projector_images": 0}
BASE = {"usl_type": "simclr", "usl_epochs": 1, **QUIET}
SPACE = {
    "name": "s",
    "search": [
        {"strength": [0.25, 1], "seed": [0, 1]},
        {"usl_type": ["byol"], "seed": [0]},
        {"usl_type": ["ae_parallel"], "layerwise": ["greedy"], "seed": [0]},
    ],
    "baseline": ["random", "pca"],
}
POINT, OTHER = "strength=0.25,seed=0", "strength=0.25,seed=1"


pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluate")


@pytest.fixture(scope="module")
def base(few):
    """The settings that all trials share."""
    return {**BASE, **few}


@pytest.fixture(scope="module")
def sweep(folder, base):
    return raysweep.run({**SPACE, "base": base}, output=folder, local=True)


@pytest.fixture
def copied(sweep, tmp_path):
    """Copy the finished sweep."""
    return shutil.copytree(sweep.directory, tmp_path / "s")


@pytest.fixture
def seeds(copied):
    """Copy three trained encoders of the finished sweep and the controls."""
    for name in ("usl_type=byol,seed=0", "usl_type=ae_parallel,layerwise=greedy,seed=0", OTHER):
        shutil.rmtree(copied / name)
    return copied


@pytest.fixture
def part(seeds):
    """Copy two trained encoders of the finished sweep and two controls, all with the seed 0."""
    for name in ("strength=1.0", "random", "pca"):
        shutil.rmtree(seeds / f"{name},seed=1")
    return seeds


def evaluate(*arguments, cwd):
    return here("raysweep", "evaluate", *arguments, "--local", cwd=cwd)


def digests(root):
    """Return a digest of every file of a sweep outside of its evaluations."""
    files = [path for path in root.rglob("*") if path.is_file() and "evaluations" not in path.parts]
    return {path.relative_to(root): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def scores(frame):
    """Return the scores of the evaluation, with the protocol and the trial, one row per trial."""
    kept = [name for name in frame if name.split("/")[0] in ("linear", "knn", "kmeans")]
    return frame[["trial", "point", "control", "seed", *kept, "fingerprint"]]


def test_unchanged_settings_give_the_scores_of_the_sweep_bit_for_bit(sweep, copied):
    before = digests(copied)
    same = raysweep.evaluate(copied, name="same", local=True)
    assert same.directory == copied / "evaluations" / "same"
    assert digests(copied) == before
    assert isinstance(same, raysweep.Results)
    ours, theirs = (scores(results.frame()).sort_values("trial", ignore_index=True) for results in (same, sweep))
    assert list(ours["trial"]) == sorted(sweep.trials)
    assert ours.equals(theirs)
    assert ours["linear/layer1/test_accuracy"].notna().any()
    for metric in ("linear/val_accuracy", "knn/test_accuracy"):
        curves = [results.curves(metric).sort_values(["trial", "step"]) for results in (same, sweep)]
        assert curves[0].reset_index(drop=True).equals(curves[1].reset_index(drop=True))
    assert same.summary()["linear/test_accuracy minus random mean"].equals(
        sweep.summary()["linear/test_accuracy minus random mean"]
    )
    images = torch.rand(3, 3, 8, 8)
    assert torch.equal(same.encoder(POINT)(images), sweep.encoder(POINT)(images))
    assert not (same.directory / POINT / "encoder.safetensors").exists()


def test_a_grid_gives_the_scores_of_sweeps_with_these_settings(seeds, base, tmp_path):
    grid = {"labels_per_class": [2, None], "probe_layer": ["layer3", "trunk"]}
    process = evaluate(seeds, *settings({**grid, "baseline": "random"}), "--name", "grid", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert "20 trials of 7 trained encoders, one at a time" in process.stdout
    results = raysweep.open(seeds / "evaluations" / "grid")
    frame = results.frame().set_index("trial")
    assert "strength=0.25,labels_per_class=2,probe_layer=layer3,seed=0" in frame.index
    assert "random,labels_per_class=None,probe_layer=trunk,seed=1" in frame.index
    assert results.figure("labels_per_class").axes
    by_protocol = results.frame().groupby(["labels_per_class", "probe_layer"], dropna=False)["fingerprint"].nunique()
    assert set(by_protocol) == {1}
    assert results.frame()["fingerprint"].nunique() == 4

    other = {"labels_per_class": 2, "probe_layer": "layer3", "strength": 0.25, "seed": 0, "per_layer": True}
    alone = raysweep.run({"base": {**base, **other}, "baseline": True}, output=tmp_path, name="alone", local=True)
    expected = scores(alone.frame()).set_index("trial").loc["seed=0"].drop("point")
    shown = scores(results.frame()).set_index("trial").loc["strength=0.25,labels_per_class=2,probe_layer=layer3,seed=0"]
    assert expected.equals(shown[expected.index])
    paired = results.summary().set_index("point")["linear/test_accuracy minus random mean"]
    accuracy, protocol = frame["linear/test_accuracy"], "labels_per_class=2,probe_layer=trunk"
    point, control = (
        [accuracy[f"{name},{protocol},seed={seed}"] for seed in (0, 1)] for name in ("strength=1.0", "random")
    )
    difference = (np.array(point) - control).mean()
    assert paired["strength=1.0,labels_per_class=2,probe_layer=trunk"] == pytest.approx(difference)


def settings(values):
    """Return the arguments that set evaluation settings."""
    return [word for name, value in values.items() for word in ("--set", f"{name}={json.dumps(value)}")]


def test_a_killed_evaluation_resumes_with_the_same_results(part, tmp_path):
    words = ["--set", "le_epochs=3", "--set", "tune.checkpoint_seconds=0", "--set", "baseline=false", "--local"]
    moment = "trial == 'strength=1.0,seed=0' and phase == 'linear probe' and epoch == 2"
    run_killed(moment, "evaluate", part, *words, "--name", "killed", cwd=tmp_path)
    place = part / "evaluations" / "killed"
    assert list(place.glob("strength=1.0,seed=0/checkpoints/*.json"))
    process = here("run_sweep.py", "--resume", place, "--local", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert process.stdout.count(" finished before") == 1
    whole = raysweep.evaluate(part, set={"le_epochs": 3, "baseline": False}, name="whole", local=True)
    assert scores(raysweep.open(place).frame()).equals(scores(whole.frame()))
    assert raysweep.open(place).frame().set_index("trial").loc["strength=1.0,seed=0", "attempts"] == 2
    process = here("run_sweep.py", "--resume", place, "--set", "knn_k=3", "--local", cwd=tmp_path)
    assert (process.returncode, process.stderr.count("\n")) == (2, 1)
    assert "an evaluation takes no new settings" in process.stderr


@pytest.mark.parametrize(("value", "inherited"), [({"val_fraction": 0.2}, True), ({"val_fraction": 0}, False)])
def test_the_metric_of_the_sweep_is_inherited_if_the_evaluation_reports_it(part, value, inherited):
    file = part / "sweep.yaml"
    content = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump({**content, "tune": {**content["tune"], "metric": "linear/val_accuracy"}}))
    planned = plan_evaluation(str(part), None, value, ())
    assert planned.sweep.tune.metric == ("linear/val_accuracy" if inherited else None)


@pytest.mark.slow
def test_ray_gives_the_same_results_and_keeps_the_features(part, tmp_path):
    def files():
        return {path: path.stat().st_ino for path in Path(os.environ["RAYSWEEP_CACHE"], "features").glob("*")}

    values = {"knn_k": [3, 20], "baseline": "random", "val_fraction": 0.3}  # no other test has this split
    before = files()
    start_shared_ray()
    with session():
        words = [*settings(values), "--set", "tune.max_concurrent=1"]
        process = here("raysweep", "evaluate", part, *words, "--name", "ray", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    on_ray = scores(raysweep.open(part / "evaluations" / "ray").frame())
    after = files()
    assert len(after) > len(before)
    for name, more in (("cached", {}), ("extracted", {"cache_gb": 0})):
        local = raysweep.evaluate(part, set={**values, **more}, name=name, local=True)
        assert on_ray.equals(scores(local.frame()))
    assert files() == after, "a process with as many threads reads these files"


def test_a_sweep_is_evaluated_as_far_as_it_is(copied):
    for name in (POINT, "random,seed=1"):
        shutil.rmtree(copied / name)
    results = raysweep.evaluate(copied, set={"knn_k": 3}, local=True)
    frame = results.frame().set_index("trial")
    assert POINT not in frame.index
    assert {"strength=0.25,seed=1", "random,seed=1"} <= set(frame.index)  # the control is built from its seed
    with pytest.raises(raysweep.RaysweepError, match="built from its seed"):
        results.encoder("random,seed=1")
    assert results.encoder("random,seed=0").feature_dim > 0


def test_one_trial_of_a_sweep_is_evaluated_alone(sweep, tmp_path):
    process = evaluate(
        sweep.directory / POINT, "--set", "seed=[0,1]", "--output", tmp_path, "--name", "one", cwd=tmp_path
    )
    assert process.returncode == 0, process.stderr
    results = raysweep.open(tmp_path / "one")
    assert results.trials == ["random,seed=0", "random,seed=1", POINT, POINT.replace("seed=0", "seed=1")]
    expected = sweep.frame().set_index("trial").loc[POINT, "linear/test_accuracy"]
    assert results.frame().set_index("trial").loc[POINT, "linear/test_accuracy"] == expected
    assert (tmp_path / "one" / "encoder.safetensors").read_bytes() == (
        sweep.directory / POINT / "encoder.safetensors"
    ).read_bytes()
    assert results.encoder(POINT).feature_dim > 0


def test_the_intervals_of_one_encoder_are_not_said_to_cover_pretraining(copied, tmp_path):
    remark = "All seeds evaluate the same encoder. So the intervals cover differences between its evaluations, "
    one = raysweep.evaluate(copied / POINT, set={"seed": [0, 1]}, output=tmp_path, name="one", local=True)
    assert any("--set 'seed=[0,1,2]'` evaluates the encoder with three seeds." in line for line in one.conclusions())
    assert not any("an evaluation has the seeds of its encoders" in line for line in one.conclusions())
    assert remark not in (one.directory / "summary.md").read_text(), "two seeds have no interval"
    three = raysweep.evaluate(copied / POINT, set={"seed": [0, 1, 2]}, output=tmp_path, name="t", local=True)
    text = (three.directory / "summary.md").read_text()
    assert f"\n- {remark}" in text
    assert "So the intervals cover differences between evaluations of one encoder, and not the" in text
    whole = raysweep.evaluate(copied, name="whole", local=True)
    text = (whole.directory / "summary.md").read_text()
    assert remark not in text
    assert "So the intervals cover differences between runs, and not the" in text
    # One encoder with two seeds is not the same experiment as two encoders with these seeds.
    points = building.read_several([Store.open(three.directory), Store.open(whole.directory)]).points
    same = [point for point in points if point.name == POINT.removesuffix(",seed=0")]
    assert [len(point.by_seed) for point in same] == [3, 2]
    assert same[0].experiment != same[1].experiment


def test_an_encoder_file_alone_needs_a_dataset_and_takes_any(sweep, tmp_path):
    shutil.copy(sweep.directory / POINT / "encoder.safetensors", tmp_path / "mine.safetensors")
    process = evaluate("mine.safetensors", cwd=tmp_path)
    assert (process.returncode, process.stderr) == (
        2, "error: mine.safetensors: the file does not say on which images to evaluate it; set probe_dataset\n",
    )  # fmt: skip
    images_folder(tmp_path / "birds")  # coloured images of 12×12, for an encoder of gray images of 8×8
    values = {"probe_dataset": f"folder:{tmp_path}/birds", "knn_k": 2, "le_epochs": 1, "projector_images": 0}
    results = raysweep.evaluate(tmp_path / "mine.safetensors", set=values, output=tmp_path, name="mine", local=True)
    assert results.trials == ["random,seed=0", "seed=0"]
    assert not results.failed
    assert results.frame()["linear/test_accuracy"].notna().all()


def test_two_encoders_of_unknown_training_are_two_points(sweep, tmp_path):
    values = {"probe_dataset": "digits", "le_epochs": 1, "projector_images": 0}
    means = {}
    for name, trial in (("one", POINT), ("two", POINT.replace("0.25", "1.0"))):
        shutil.copy(sweep.directory / trial / "encoder.safetensors", tmp_path / f"{name}.safetensors")
        results = raysweep.evaluate(
            tmp_path / f"{name}.safetensors", set=values, output=tmp_path, name=name, local=True
        )
        means[name] = results.frame().set_index("trial").loc["seed=0", "knn/test_accuracy"]
    assert means["one"] != means["two"]
    both = raysweep.open([tmp_path / "one", tmp_path / "two"]).summary().set_index(["sweep", "point"])
    for name, mean in means.items():
        row = both.loc[(name, "default")]
        assert row["knn/test_accuracy mean"] == mean
        random = both.loc[(name, "random"), "knn/test_accuracy mean"]
        assert row["knn/test_accuracy minus random mean"] == pytest.approx(mean - random)


def test_a_training_checkpoint_of_a_trial_is_evaluated_with_the_settings_of_the_trial(copied, tmp_path):
    (copied / POINT / "checkpoints").mkdir()
    checkpoint = copied / POINT / "checkpoints" / "encoder.safetensors"
    shutil.copy(copied / POINT / "encoder.safetensors", checkpoint)
    results = raysweep.evaluate(checkpoint, set={"knn_k": 3}, output=tmp_path, name="one", local=True)
    assert results.trials == ["random,seed=0", POINT]
    assert results.frame().set_index("trial").loc[POINT, "strength"] == 0.25


def test_an_encoder_that_changed_since_is_not_evaluated(part):
    results = raysweep.evaluate(part, set={"baseline": False}, name="before", local=True)
    before = results.frame().set_index("trial")
    shutil.rmtree(results.directory / POINT)
    shutil.copy(part / "strength=1.0,seed=0" / "encoder.safetensors", part / POINT / "encoder.safetensors")
    after = raysweep.resume(results.directory, local=True)
    assert after.failed.keys() == {POINT}
    assert "has changed since this evaluation was planned; start another evaluation" in after.failed[POINT]
    kept = before.drop(POINT)["linear/test_accuracy"]
    assert after.frame().set_index("trial")["linear/test_accuracy"].drop(POINT, errors="ignore").equals(kept)


def test_drawn_values_keep_their_short_names_and_figures(base, tmp_path):
    space = {"base": base, "search": {"strength": {"uniform": [0, 1]}, "seed": [0]}, "tune": {"num_samples": 3}}
    sweep = raysweep.run(space, output=tmp_path, name="drawn", local=True)
    results = raysweep.evaluate(sweep.directory, set={"knn_k": 3}, local=True)
    report = building.read(*Store.open(results.directory))
    drawn = [point.short_name.removeprefix("strength=") for point in report.points if not point.baseline]
    assert len(drawn) == 3
    assert all(len(value) <= 6 for value in drawn), "four significant digits"
    assert is_drawn(report.members[0].sweep), "the figures are the figures of a search"


def images_folder(root, bright=0):
    """Write a dataset of two classes with 12 training and 4 test images each."""
    draws = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for number, name in enumerate(("dark", "light")):
            (root / split / name).mkdir(parents=True, exist_ok=True)
            for index in range(count):
                pixels = draws.integers(0, 100, (12, 12, 3)) + 100 * number + bright
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / name / f"{index}.png")


def test_images_that_changed_are_refused(tmp_path):
    images_folder(tmp_path / "birds")
    data = {"dataset": f"folder:{tmp_path}/birds", "image_size": 8, "batch_size": 8, "knn_k": 2}
    raysweep.run({"base": {**BASE, **data}}, output=tmp_path, name="s", local=True)
    images_folder(tmp_path / "birds", bright=20)
    for place in ("s", "s/seed=0", "s/seed=0/encoder.safetensors"):
        process = evaluate(place, cwd=tmp_path)
        refused(process, "its images or labels changed after the sweep was started", tmp_path / "s")
    assert not (tmp_path / "runs").exists()
    for place in ("s", "s/seed=0"):
        process = evaluate(place, "--set", "probe_dataset=digits", cwd=tmp_path)  # the changed images are not read
        assert process.returncode == 0, process.stderr


def test_a_sweep_that_cannot_be_written_to_is_refused_and_its_single_encoders_are_not(seeds, tmp_path):
    (seeds / "evaluations").symlink_to("/proc")  # nobody can create a file there
    process = evaluate(seeds, cwd=tmp_path)
    assert process.returncode == 2
    assert process.stderr == (
        f"error: {seeds}: cannot write to {seeds}/evaluations: No such file or directory; the evaluation is written "
        "to evaluations/ in the sweep, so evaluate a copy of the sweep's directory, or single encoders with --output\n"
    )
    process = evaluate(seeds / POINT, "--output", "others", "--set", "baseline=false", cwd=tmp_path)
    assert process.returncode == 0, process.stderr


def test_the_encoder_of_a_plugin_is_built_from_the_stored_text(base, tmp_path):
    plugin = tmp_path / "my_encoder.py"
    shutil.copy(ROOT / "examples" / plugin.name, plugin)
    space = {"base": {**base, "encoder": "mlp", "width": 32}, "plugins": [str(plugin)]}
    sweep = raysweep.run(space, output=tmp_path, name="s", local=True)
    plugin.unlink()
    process = evaluate("s", "--set", "knn_k=[3,5]", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    results = raysweep.open(tmp_path / "s" / "evaluations" / "evaluation")
    ours, theirs = (each.frame().set_index("trial")["linear/test_accuracy"] for each in (results, sweep))
    assert ours["knn_k=5,seed=0"] == theirs["seed=0"]
    assert (results.directory / "plugins" / "my_encoder.py").is_file()


def refused(process, message, root):
    """Check that a command refused its input in one line and left nothing behind."""
    assert process.returncode == 2, process.stderr
    assert process.stderr.startswith("error: ")
    assert process.stderr.count("\n") == 1
    assert message in process.stderr
    assert not list(root.rglob("evaluations/*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "alpha=1"], "--set alpha: is a setting of pretraining, and the encoders are trained already"),
        (["--set", "image_size=16"], "--set image_size: is a setting of pretraining"),
        (["--set", "seed=[0,1]"], "--set seed: an encoder is evaluated with the seed of its trial"),
        (["--set", f"seed={list(range(100))}"], "--set seed: an encoder is evaluated with the seed of its trial"),
        (["--output", f"{'x' * 300}.yaml"], "the evaluation of a sweep is written to evaluations/ in the sweep"),
        (["--set", "knn_q=1"], "--set knn_q: unknown setting, did you mean 'knn_k'?"),
        (["--set", "knn_k=5000"], "knn_k: 5000 is more than the"),
        (["--set", "labels_per_class=1000"], "labels_per_class"),
        (["--set", "probe_layer=layer9"], "probe_layer"),
        (["--set", "finetune_epochs=10"], "finetune_epochs: has no effect in any trial (finetune: False); it"),
        (["mlp.yaml"], "mlp.yaml: mlp_width: has no effect in any trial (mlp_probe: False)"),
        (["mlp.yaml", "--set", "knn_k=3"], "mlp.yaml: mlp_width: has no effect in any trial"),
        (["--set", "val_fraction=0", "--set", "split_seed=1"], "split_seed: has no effect in any trial (val_fraction"),
        (["--set", "mlp_width=[64,256]"], "(mlp_probe: False); it needs mlp_probe; sweep"),
        (["--set", "tune.scheduler=asha"], "tune.scheduler: has no effect on an evaluation"),
        (["--set", "tune.metric=pretrain/loss"], "tune.metric: pretrain/loss is a metric of pretraining"),
        (["--set", "resources.workers=2"], "resources.workers: an evaluation runs in one process"),
        (["--set", "baseline=[supervised]"], "baseline: supervised: no trained encoder is this control"),
        (["--set", "probe_dataset=folder:nowhere"], "nowhere"),
        (["--output", "x"], "--output x: the evaluation of a sweep is written to evaluations/ in the sweep"),
        (["space.yaml"], "space.yaml: strength: is a setting of pretraining"),
        (["drawn.yaml"], "search.knn_temperature: an evaluation runs every combination; write {grid: [...]}"),
    ],
)
def test_bad_input_is_refused_in_one_line(sweep, tmp_path, words, message):
    (tmp_path / "space.yaml").write_text("search: {strength: [0, 1]}")
    (tmp_path / "mlp.yaml").write_text("base: {mlp_width: 64}")
    (tmp_path / "drawn.yaml").write_text("search: {knn_temperature: {uniform: [0.05, 0.2]}}")
    refused(evaluate(sweep.directory, *words, cwd=tmp_path), message, sweep.directory)


def test_a_flag_that_turns_a_probe_off_drops_the_settings_of_the_probe(sweep, tmp_path):
    (tmp_path / "mlp.yaml").write_text("base: {mlp_probe: true, mlp_width: 64, knn_k: 3}")
    for words, kept in (([], True), (["--set", "mlp_probe=false"], False)):
        process = evaluate(sweep.directory, "mlp.yaml", *words, "--dry-run", cwd=tmp_path)
        assert process.returncode == 0, process.stderr
        assert ("mlp_width: 64" in process.stdout) == kept
        assert "knn_k: 3" in process.stdout
    words = ["--set", "mlp_probe=false", "--set", "mlp_width=32"]
    refused(evaluate(sweep.directory, "mlp.yaml", *words, cwd=tmp_path), "mlp_width: has no effect", sweep.directory)


@pytest.fixture(scope="module")
def trained_with_labels(folder, base):
    """A sweep with a control that was trained with labels."""
    space = {"name": "labels", "base": {**base, "val_fraction": 0.2}, "baseline": ["supervised"]}
    return raysweep.run(space, output=folder, local=True).directory


@pytest.fixture
def with_labels(trained_with_labels, tmp_path):
    """A copy of this sweep."""
    return shutil.copytree(trained_with_labels, tmp_path / "labels")


def test_the_controls_of_a_sweep_are_valid_controls_of_its_evaluation(with_labels, tmp_path):
    process = evaluate(with_labels, "--set", "baseline=pca", cwd=tmp_path)
    refused(process, "no trained encoder is this control; valid: random, pixels, supervised", with_labels)


@pytest.mark.parametrize("word", ["val_fraction=0.4", "split_seed=1"])
def test_images_with_whose_labels_an_encoder_was_trained_do_not_validate_it(with_labels, tmp_path, word):
    process = evaluate(with_labels, "--set", word, cwd=tmp_path)
    message = (
        "validation images: set val_fraction: 0, or keep val_fraction: 0.2 and split_seed: 0, or leave supervised out"
    )
    refused(process, message, with_labels)


@pytest.mark.parametrize("changed", [{"val_fraction": 0.0}, {"val_fraction": 0.1}, {"knn_k": 3}])
def test_other_images_validate_an_encoder_that_was_trained_with_labels(with_labels, changed):
    results = raysweep.evaluate(with_labels, local=True, set=changed)
    assert list(results.frame()["status"]) == ["finished", "finished"]


def other_name(kind, few, where):
    """Return the dataset of the sweeps under another name: a link to its folder, or a copy of it."""
    folder = few["dataset"].removeprefix("folder:")
    if kind == "copy":
        shutil.copytree(folder, where)
    else:
        where.symlink_to(folder)
    return f"folder:{where}"


@pytest.mark.parametrize("kind", ["link", "copy"])
@pytest.mark.parametrize("is_single", [False, True])
def test_the_same_images_under_another_name_do_not_validate_it_either(with_labels, few, tmp_path, kind, is_single):
    other = {"probe_dataset": other_name(kind, few, tmp_path / "images")}
    trial = with_labels / "supervised,seed=0" if is_single else with_labels
    where = {"local": True, **({"output": tmp_path} if is_single else {})}
    with pytest.raises(raysweep.RaysweepError, match=r"labels of [0-9]+ of the [0-9]+ validation images: set val_"):
        raysweep.evaluate(trial, set={**other, "split_seed": 1}, name=kind, **where)
    for number, allowed in enumerate(({}, {"val_fraction": 0.0})):
        results = raysweep.evaluate(trial, set={**other, **allowed}, name=f"{kind}{number}", **where)
        assert set(results.frame()["status"]) == {"finished"}


@pytest.fixture(scope="module")
def under_other_name(folder, base, few):
    """A sweep with training with labels that is evaluated on the same images under another name."""
    settings = {**base, "usl_type": "supervised", "val_fraction": 0.2}
    space = {"name": "other", "base": {**settings, "probe_dataset": other_name("link", few, folder / "link")}}
    return raysweep.run(space, output=folder, local=True)


def test_a_sweep_that_is_validated_on_the_same_images_leaves_out_their_labels(under_other_name, few):
    results = raysweep.evaluate(under_other_name.directory, local=True, set={"probe_dataset": few["dataset"]})
    assert set(results.frame()["status"]) == {"finished"}, "the division is the same as in the sweep"
    planned = plan_evaluation(under_other_name.directory, None, {}, ()).sweep
    recorded = Store.open(results.directory)[1]
    assert [each.source for each in recorded.encoders] == [each.source for each in planned.encoders]
    assert recorded.encoders[0].source.labels_of
    assert recorded.encoders[0].source.leaves_out
    words = r"set val_fraction: 0, or keep val_fraction: 0\.2 and split_seed: 0$"
    with pytest.raises(raysweep.RaysweepError, match=words):
        raysweep.evaluate(
            under_other_name.directory, local=True, set={"probe_dataset": few["dataset"], "split_seed": 1}
        )


def of_older_version(directory, copy, forget):
    """Copy a sweep, without its evaluations, and make it one of an older version."""
    shutil.copytree(directory, copy, ignore=shutil.ignore_patterns("evaluations"))
    content = yaml.safe_load((copy / "sweep.yaml").read_text())
    content["made_by"]["protocol"] = 3
    for name in forget:
        del content["made_by"][name]
    (copy / "sweep.yaml").write_text(yaml.safe_dump(content))
    return copy


@pytest.mark.parametrize("forget", [[], ["protocol"], ["protocol", "datasets"]])
def test_encoders_of_versions_that_trained_with_all_labels(with_labels, few, tmp_path, forget):
    older = of_older_version(with_labels, tmp_path / "older", forget)
    process = evaluate(older, "--set", "knn_k=3", cwd=tmp_path)
    words = "labels of 16 of the 16 validation images: set val_fraction: 0, or leave supervised out of baseline"
    refused(process, words, older)
    for number, allowed in enumerate([{"val_fraction": 0.0}, {"baseline": False}, {"probe_dataset": "digits"}]):
        results = raysweep.evaluate(older, local=True, set=allowed, name=f"same{number}")
        assert set(results.frame()["status"]) == {"finished"}


def test_bad_encoders_and_names_are_refused_in_one_line(part, tmp_path):
    (tmp_path / "empty").mkdir()
    shutil.copy(part / "sweep.yaml", tmp_path / "empty")
    refused(evaluate("empty", cwd=tmp_path), "empty: no trial has kept an encoder", tmp_path)
    refused(evaluate("nowhere", cwd=tmp_path), "nowhere: does not exist", tmp_path)

    encoder = make_encoder("resnet18", 1, 8, 16)
    sizes = {"channels": 1, "image_size": 8, "embedding_dim": 16, "trunk_dim": 512}
    save_encoder(tmp_path, encoder.state_dict(), {"architecture": "resnet18", **sizes})
    words = ["--set", "probe_dataset=digits", "--set", "probe_layer=layer3"]
    process = evaluate("encoder.safetensors", *words, cwd=tmp_path)
    refused(process, "probe_layer: resnet18 has no layer 'layer3'", tmp_path)

    evaluate(part, "--name", "once", "--set", "baseline=false", cwd=tmp_path)
    process = evaluate(part, "--name", "once", cwd=tmp_path)
    assert process.returncode == 2
    assert "evaluations/once exists; choose another name" in process.stderr
    process = evaluate(part / "evaluations" / "once", cwd=tmp_path)
    assert (process.returncode, process.stderr.count("\n")) == (2, 1)
    assert "is an evaluation itself" in process.stderr
    process = here("run_sweep.py", part / "evaluations" / "once" / "sweep.yaml", cwd=tmp_path)
    assert (process.returncode, process.stderr.count("\n")) == (2, 1)
    shutil.rmtree(part / "evaluations")

    file = part / POINT / "encoder.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    refused(
        evaluate(part, cwd=tmp_path), f"{POINT}/encoder.safetensors: is not a safetensors file, or is damaged", part
    )
