"""Evaluations on images without labels, through the real command: the measures, the choice, and what is refused."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

import raysweep
from raysweep import space
from raysweep.backends.ray.open_trainable import load_data, read_config
from raysweep.backends.ray.session import session
from raysweep.config import Settings, fingerprint, protocol
from raysweep.data.loading import load
from raysweep.errors import InputError
from raysweep.estimate import count_views
from raysweep.evaluations import agreement_in
from raysweep.portable import load as load_encoder
from raysweep.preparation import build_sweep
from raysweep.probes.evaluation import Evaluation
from raysweep.probes.label_free import label_free_scores
from raysweep.results.encoders import load_encoder as read_saved
from raysweep.results.events import read_scalars
from raysweep.results.store import Store
from tests.report.test_choosing import counted_tau
from tests.support.commands import here
from tests.support.shared_ray import start_shared_ray

STRENGTHS, SEEDS = ("0.25", "0.5", "1.0"), (0, 1, 2)
TRAINED = [f"strength={strength},seed={seed}" for strength in STRENGTHS for seed in SEEDS]
MEASURES = {
    f"label_free/{layer}_{name}" for layer in ("embedding", "trunk") for name in ("rankme", "alpha_req", "lidar")
}
RANKME = "label_free/embedding_rankme"
LABELLED = ("linear/", "knn/", "kmeans/", "online/", "logistic/", "few_shot/", "mlp/", "finetune/")
"""The beginnings of the names of all metrics that need labels."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("unlabelled")


@pytest.fixture(scope="module")
def images(folder):
    """Sixty digits without class folders, of which none is in the sweep. The name of the dataset is returned."""
    (folder / "images").mkdir()
    for number, pixels in enumerate(load_digits().images[200:260]):
        Image.fromarray((pixels * 15).astype(np.uint8)).save(folder / "images" / f"{number}.png")
    return f"folder:{folder / 'images'}"


@pytest.fixture(scope="module")
def sweep(folder, few):
    """The directory of a sweep on labelled images that also reports measures without labels."""
    base = {**few, "usl_type": "simclr", "usl_epochs": 1, "le_epochs": 2, "probe_every": 0, "images_every": 0,
            "projector_images": 0, "label_free": True}  # fmt: skip
    search = {"strength": [0.25, 0.5, 1], "seed": list(SEEDS)}
    space = {"name": "s", "base": base, "search": search, "baseline": ["random", "pixels"]}
    (folder / "space.yaml").write_text(json.dumps(space))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raysweep.report.building.figures_of", lambda report: {})
        assert here("run_sweep.py", folder / "space.yaml", "--local", cwd=folder).returncode == 0
    return folder / "runs" / "s"


@pytest.fixture(scope="module")
def evaluated(sweep, images):
    """The finished command that evaluates the sweep on the images without labels, and its results directory."""
    process = here("raysweep", "evaluate", sweep, "--local", "--name", "mine", *asked(images), cwd=sweep)
    assert process.returncode == 0, process.stderr
    return process, sweep / "evaluations" / "mine"


def asked(images, *settings):
    """Return the arguments that ask for measures on the images."""
    return [word for text in (f"probe_dataset={images}", "label_free=true", *settings) for word in ("--set", text)]


def metrics(root, trial):
    return json.loads((root / trial / "result.json").read_text())["metrics"]


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def means(root, measure):
    """Return the mean of a measure for each trained point, from the results of its trials."""
    values = [[metrics(root, f"strength={strength},seed={seed}")[measure] for seed in SEEDS] for strength in STRENGTHS]
    return dict(zip(STRENGTHS, np.mean(values, 1), strict=True))


def test_each_encoder_gets_the_measures_that_a_direct_computation_gives(sweep, images, evaluated):
    dataset = load(images, data_dir=sweep, image_size=8, channels=3)
    assert len(dataset.train_images) == 60
    pixels = torch.from_numpy(dataset.train_images)
    for trial in (TRAINED[0], TRAINED[-1]):
        encoder, saved = load_encoder(sweep / trial), read_saved(sweep / trial / "encoder.safetensors")
        settings = Settings(strength=float(trial.split(",")[0][9:]), seed=int(trial[-1]), probe_labels=False)
        evaluation = Evaluation(settings, encoder, dataset, (dataset.train_images, pixels), torch.device("cpu"))
        expected = dict(label_free_scores(evaluation))
        assert saved.image_size == 8
        assert metrics(evaluated[1], trial) == pytest.approx(expected, rel=1e-4)
        with torch.inference_mode():
            embedding = encoder.head(encoder(pixels / 255)).double().numpy()
        shares = np.linalg.svd(embedding, compute_uv=False)
        shares /= shares.sum()
        assert metrics(evaluated[1], trial)[RANKME] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-3)


def test_the_summary_names_the_point_with_the_greatest_rank_and_warns(sweep, images, evaluated):
    process, root = evaluated
    by_rank = means(root, RANKME)
    best = max(by_rank, key=by_rank.get)
    words = f"{RANKME} chooses strength={best} ({by_rank[best]:.4f}, mean of 3 seeds)."
    assert process.stdout.count(words) == 1
    summary = (root / "summary.md").read_text()
    assert (
        summary.index(words)
        < summary.index("nothing could check this choice, and it can be wrong")
        < summary.index("|")
    )
    assert "nothing could check this choice" in process.stdout
    assert words in (root / "report.html").read_text()
    for measure in ("label_free/embedding_lidar", "label_free/trunk_rankme"):
        by_measure = means(root, measure)
        other = max(by_measure, key=by_measure.get)
        [line] = [line for line in summary.splitlines() if measure in line and " choose" in line]
        [part] = [part for part in line.removesuffix(".").split("; ") if measure in part]
        assert part.endswith(" the same point" if other == best else f" strength={other}")
    assert raysweep.open(root).conclusions()[0] == words


def test_the_summary_says_how_well_the_measure_ranked_the_points_of_the_sweep(sweep, evaluated):
    score = "linear/test_accuracy"
    taus = []
    for seed in SEEDS:
        columns = [[metrics(sweep, f"strength={s},seed={seed}")[name] for s in STRENGTHS] for name in (RANKME, score)]
        if len(set(columns[1])) > 1:  # a seed whose points have equal scores has no τ
            taus.append(counted_tau(*columns))
    _, evaluation = Store.open(evaluated[1])
    known = evaluation.agreement
    assert (known.measure, known.score, known.points) == (RANKME, score, 3)
    assert known.seeds == len(taus) > 0
    assert known.tau == pytest.approx(np.mean(taus))
    summary = (evaluated[1] / "summary.md").read_text()
    assert f"Kendall's τ between {RANKME} and {score} is {known.tau:+.2f}" in summary
    assert known.dataset.startswith("folder:")


def test_nothing_that_needs_labels_appears_anywhere(sweep, evaluated):
    process, root = evaluated
    trials = sorted(path.parent.name for path in root.glob("*/result.json"))
    assert len(trials) == len(TRAINED) + 6, "the controls too"
    for trial in trials:
        # The points differ in their augmentation, so there is none with which LiDAR of the controls could be measured.
        measured = MEASURES if trial in TRAINED else {name for name in MEASURES if not name.endswith("lidar")}
        assert metrics(root, trial).keys() == measured
        tags = {name for values in read_scalars(root / trial).values() for name in values}
        assert tags == measured
        assert not (root / trial / "projector").exists()
    tables = [(root / name).read_text().splitlines()[0] for name in ("results.csv", "summary.csv", "differences.csv")]
    texts = [*tables, (root / "summary.md").read_text().replace("linear/test_accuracy is", ""), process.stdout]
    for name in LABELLED:
        assert not any(f",{name}" in text or f"| {name}" in text for text in texts), name
    assert "accurac" not in (root / "summary.md").read_text().replace("linear/test_accuracy is", "")
    assert [path.name for path in (root / "figures").iterdir()] == ["strength.png"]
    rows = rows_of(root / "results.csv")
    assert {row["fingerprint"] for row in rows} != {row["fingerprint"] for row in rows_of(sweep / "results.csv")}
    assert len({row["fingerprint"] for row in rows}) == 1
    assert {row["knn_k"] for row in rows} == {""}, "it has no effect"


def test_a_report_and_a_resume_find_everything_done(evaluated, tmp_path):
    process, root = evaluated
    before = (root / "summary.md").read_text()
    again = here("raysweep", "report", root, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert (root / "summary.md").read_text() == before
    assert [line for line in again.stdout.splitlines() if "chooses" in line] == [
        line for line in process.stdout.splitlines() if "chooses" in line
    ]
    resumed = here("raysweep", "sweep", "--resume", root, "--local", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert "all 15 trials have finished" in resumed.stdout


def test_the_evaluation_on_ray_is_the_same(sweep, images, evaluated, tmp_path):
    shutil.copytree(sweep, tmp_path / "s", ignore=shutil.ignore_patterns("evaluations"))
    start_shared_ray()
    with session():
        process = here(
            "raysweep",
            "evaluate",
            tmp_path / "s",
            *asked(images, "tune.max_concurrent=1", "baseline=false"),
            cwd=tmp_path,
        )
    assert process.returncode == 0, process.stderr
    root = tmp_path / "s" / "evaluations" / "evaluation"
    for trial in TRAINED:
        assert metrics(root, trial) == metrics(evaluated[1], trial)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["label_free=false"], "has no classes to evaluate on"),
        (["logistic=true"], "command line: logistic: needs labels, and the evaluation reads none; leave it out"),
        (["few_shot=[1, 5]"], "few_shot: needs labels"),
        (["mlp_probe=true"], "mlp_probe: needs labels"),
        (["finetune=true"], "finetune: needs labels"),
        (["labels_per_class=5"], "labels_per_class: needs labels"),
        (["labels_per_class=[1, 5]"], "labels_per_class: needs labels"),
        (["knn_k=[1, 5]"], "knn_k: needs labels"),
        (["tune.metric=linear/val_accuracy"], "not reported without labels; choose from: label_free/embedding_rankme"),
    ],
)
def test_what_needs_labels_is_refused_in_one_line(sweep, images, settings, words, tmp_path):
    given = [f"probe_dataset={images}", *(["label_free=true"] if settings != ["label_free=false"] else []), *settings]
    arguments = [word for text in given for word in ("--set", text)]
    process = here("raysweep", "evaluate", sweep, "--local", "--name", "refused", *arguments, cwd=tmp_path)
    assert (process.returncode, process.stdout) == (2, ""), process
    assert words in process.stderr
    assert process.stderr.count("\n") == 1
    assert ("set label_free=true" in process.stderr) == (settings == ["label_free=false"])
    assert not (sweep / "evaluations" / "refused").exists()


def test_labelled_and_unlabelled_images_are_evaluated_separately(sweep, images, tmp_path):
    grid = f"probe_dataset=[digits, '{images}']"
    process = here("raysweep", "evaluate", sweep, "--local", "--set", grid, "--set", "label_free=true", cwd=tmp_path)
    assert process.returncode == 2
    words = f"probe_dataset: {images} has no labels, and digits has; evaluate them separately"
    assert process.stderr == f"error: command line: {words}\n"


def test_another_measure_can_choose(sweep, images, evaluated, tmp_path):
    measure = "label_free/trunk_lidar"
    arguments = asked(images, f"tune.metric={measure}", "baseline=false")
    process = here("raysweep", "evaluate", sweep, "--local", "--name", "lidar", *arguments, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    by_lidar = means(evaluated[1], measure)
    assert f"{measure} chooses strength={max(by_lidar, key=by_lidar.get)} (" in process.stdout


def test_a_sweep_on_images_without_labels_resumes_and_is_evaluated_on_labelled_ones(images, few, tmp_path, no_figures):
    options = {**few, "dataset": images, "usl_type": "simclr", "usl_epochs": 1, "probe_every": 1, "label_free": "true"}
    flags = [f"--{name}={value}" for name, value in options.items() if name != "knn_k"] + ["--local", "--name", "u"]
    first = here("run_sweep.py", *flags, "--set", "strength=[0.25,1]", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    root = tmp_path / "runs" / "u"
    assert f"{RANKME} chooses strength=" in first.stdout
    assert "One seed cannot tell which differences are real." in first.stdout
    names = metrics(root, "strength=1.0,seed=0").keys()
    assert not any(name.startswith(LABELLED) for name in names)
    assert {"pretrain/loss", "pretrain/rankme"} | MEASURES <= names

    flags = [flag for flag in flags if flag not in ("--name", "u")]
    grown = here("run_sweep.py", *flags, "--set", "strength=[0.25,0.5,1]", "--resume", "runs/u", cwd=tmp_path)
    assert grown.returncode == 0, grown.stderr
    assert "3 trials (1 new)" in grown.stdout
    settings = ["--set", f"probe_dataset={few['dataset']}", "--set", "knn_k=5", "--set", "le_epochs=1"]
    labelled = here("raysweep", "evaluate", "runs/u", "--local", "--name", "l", *settings, cwd=tmp_path)
    assert labelled.returncode == 0, labelled.stderr
    values = metrics(root / "evaluations" / "l", "strength=1.0,seed=0")
    assert {"linear/test_accuracy", "knn/test_accuracy", "kmeans/accuracy"} | MEASURES <= values.keys()
    settings += ["--set", "logistic=true", "--set", "labels_per_class=[1, 2]", "--dry-run"]
    more = here("raysweep", "evaluate", "runs/u", "--local", *settings, cwd=tmp_path)
    assert more.returncode == 0, more.stderr
    assert "# 8 trials:" in more.stdout, "three points and the random encoder, each with both numbers of labels"


def test_what_only_an_evaluation_with_labels_reads_does_not_tell_trials_apart(few, images, tmp_path, no_figures):
    options = {**few, "usl_type": "simclr", "usl_epochs": 1, "le_epochs": 1, "probe_every": 0, "label_free": "true"}
    flags = [f"--{name}={value}" for name, value in options.items()] + ["--local", "--name", "v"]
    grid = ["--set", "labels_per_class=[1, 2]", "--set", "usl_lr=[0.001, 0.01]"]
    assert here("run_sweep.py", *flags, *grid, cwd=tmp_path).returncode == 0
    process = here("raysweep", "evaluate", "runs/v", "--local", *asked(images, "baseline=false"), cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert f"{images}: evaluated without labels, so there are measures and no accuracies." in process.stdout
    root = tmp_path / "runs" / "v" / "evaluations" / "evaluation"
    trials = sorted(path.parent.name for path in root.glob("*/result.json"))
    assert trials == ["usl_lr=0.001,seed=0", "usl_lr=0.01,seed=0"]
    reasons = "its points were evaluated in different ways, whose scores cannot be compared"
    assert Store.open(root)[1].agreement == reasons
    again = here("raysweep", "sweep", "--resume", root, "--local", cwd=tmp_path)
    assert "all 2 trials have finished" in again.stdout, again.stderr


def test_a_sweep_keeps_reading_labels_or_reading_none(sweep, images, few, tmp_path):
    before = (sweep / "sweep.yaml").read_text()
    process = here("run_sweep.py", "--resume", sweep, "--set", "probe_labels=false", "--local", cwd=tmp_path)
    assert process.returncode == 2
    assert "probe_labels: is False, but the sweep was started with True" in process.stderr
    assert (sweep / "sweep.yaml").read_text() == before
    raw = {"base": {"dataset": images, "label_free": True}}
    unlabelled = build_sweep(raw, {})
    assert not unlabelled.base["probe_labels"]
    labelled = space.build(raw, {}, "x")  # as if the folder had class folders now
    with pytest.raises(InputError, match=r"is True, but .* with False; .* set probe_labels=false to go on"):
        space.extend(unlabelled, labelled, "x")
    with pytest.raises(InputError, match=r"cannot be swept .scores with different values"):
        build_sweep(raw, {"probe_labels": [True, False]})


def test_a_folder_near_one_with_classes_is_not_taken_for_images_without_labels(few, tmp_path):
    root = few["dataset"].removeprefix("folder:")
    flags = ["--usl_epochs=1", "--label_free=true", "--local", "--dry-run"]
    wrong = here("run_sweep.py", "--dataset", f"folder:{root}/train", *flags, cwd=tmp_path)
    assert wrong.returncode == 2
    assert f"did you mean folder:{root}?" in wrong.stderr
    assert "set label_free=true and probe_labels=false" in wrong.stderr
    meant = here("run_sweep.py", "--dataset", f"folder:{root}/train", *flags, "--probe_labels=false", cwd=tmp_path)
    assert meant.returncode == 0, meant.stderr
    assert f"# folder:{root}/train: evaluated without labels" in meant.stdout


def test_a_searcher_chooses_by_rankme_without_a_validation_split(images):
    tune = {"searcher": "optuna", "num_samples": 3}
    base = {"dataset": images, "label_free": True, "val_fraction": 0}
    built = build_sweep({"base": base, "search": {"alpha": {"uniform": [0, 1]}}, "tune": tune}, {})
    assert built.metric == RANKME


def test_lidar_counts_in_the_estimate():
    assert count_views(Settings(label_free=True), 60) == 600
    assert count_views(Settings(label_free=True, probe_labels=False), 10**6) == 10_000
    assert count_views(Settings(label_free=True, strength=0), 60) == count_views(Settings(), 60) == 0


def test_the_agreement_with_a_sweep_that_was_not_evaluated_alike_is_unknown(sweep, tmp_path):
    shutil.copytree(sweep, tmp_path / "s", ignore=shutil.ignore_patterns("evaluations"))
    path = tmp_path / "s" / TRAINED[0] / "result.json"
    content = json.loads(path.read_text())
    other = content["protocol"] | {"probe_data": "other"}
    path.write_text(json.dumps(content | {"protocol": other, "fingerprint": fingerprint(other)}))
    store, opened = Store.open(tmp_path / "s")
    assert agreement_in(store, opened, RANKME) == "its results were not evaluated alike"
    path.unlink()
    reason = f"fewer than 3 of its points have {RANKME} and linear/test_accuracy in all their planned seeds"
    assert agreement_in(store, opened, RANKME) == reason


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "has no classes to evaluate on"),
        (
            ["--label_free=true", "--set", "seeds.most=5", "--set", "alpha=[0.1, 1]"],
            "a race compares scores, which need",
        ),
        (
            ["--label_free=true", "--val_fraction=0", "--set", "seeds.most=5", "--set", "alpha=[0.1, 1]"],
            "a race compares",
        ),
        (
            ["--label_free=true", "--set", "split_seed=[0, 1]"],
            "split_seed: needs labels, and the evaluation reads none",
        ),
        (["--label_free=true", "--set", "val_fraction=[0, 0.1]"], "val_fraction: needs labels"),
        (["--label_free=true", "--probe_labels=true"], "has no labels; leave it out, or set it to false"),
        (["--probe_labels=false"], "probe_labels: false: nothing would be evaluated in seed=0; set label_free=true"),
        (
            ["--label_free=true", "--set", "tune.metric=label_free/trunk_lidar", "--set", "strength=[0, 1]"],
            "strength=0.0,seed=0 does not report 'label_free/trunk_lidar' (",
        ),
        (
            ["--label_free=true", "--set", "tune.metric=pretrain/rankme", "--probe_every=0"],
            "does not report 'pretrain/rankme' (",
        ),
        (["--label_free=true", "--set", "tune.scheduler=asha", "--probe_every=1"], "tune.metric: pretrain/rankme"),
        (["--label_free=true", "--logistic=true"], "logistic: needs labels"),
    ],
)
def test_a_sweep_refuses_what_needs_labels(images, arguments, words, refused):
    line = refused("--dataset", images, "--usl_epochs=3", "--batch_size=20", "--local", *arguments)
    assert words in line


def test_one_encoder_is_evaluated_without_labels(sweep, images, evaluated, tmp_path):
    process = here("raysweep", "evaluate", sweep / TRAINED[0], "--local", *asked(images), cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    [root] = (tmp_path / "runs").iterdir()
    assert metrics(root, TRAINED[0]) == metrics(evaluated[1], TRAINED[0])
    assert "is the only point that can be ranked" in process.stdout


def test_the_trainable_for_another_tuner_takes_images_without_labels(images):
    settings, _ = read_config({"dataset": images, "batch_size": 20, "label_free": True})
    assert not settings.probe_labels
    assert not load_data(settings).probe.labelled
    with pytest.raises(InputError, match="trainable: logistic: needs labels"):
        read_config({"dataset": images, "label_free": True, "logistic": True})
    with pytest.raises(InputError, match="set label_free=true"):
        load_data(read_config({"dataset": images, "batch_size": 20})[0])


def test_the_protocol_of_labelled_images_stays_as_it_was():
    assert "probe_labels" not in protocol(Settings(), "d")
    assert fingerprint(protocol(Settings(probe_labels=False), "d")) != fingerprint(protocol(Settings(), "d"))


def test_labels_can_be_left_unread(few, tmp_path, no_figures):
    flags = [f"--{name}={value}" for name, value in {**few, "usl_epochs": 1, "label_free": "true"}.items()]
    process = here("run_sweep.py", *flags, "--probe_labels=false", "--local", "--name", "n", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    values = metrics(tmp_path / "runs" / "n", "seed=0")
    assert values.keys() >= MEASURES
    assert not any(name.startswith(LABELLED) for name in values)


def test_a_dataset_of_a_plugin_without_labels(tmp_path, no_figures):
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "import raysweep\n\n\n"
        "@raysweep.dataset(size=8, channels=1, labelled=False)\n"
        "def noise(request):\n"
        '    """Noise."""\n'
        "    images = np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8), dtype=np.uint8)\n"
        "    return raysweep.Dataset(request.name, (), images, None, None, None)\n"
    )
    flags = ["--plugin", "mine.py", "--dataset=noise", "--usl_epochs=1", "--batch_size=20", "--local", "--name=p"]
    assert "set label_free=true" in here("run_sweep.py", *flags, cwd=tmp_path).stderr
    process = here("run_sweep.py", *flags, "--label_free=true", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert metrics(tmp_path / "runs" / "p", "seed=0").keys() >= MEASURES
