"""Complete experiments, run in this process on a few real images."""

import contextlib
import io
import json
import math
import random
import subprocess
from functools import partial

import numpy as np
import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from raysweep import parts, plugins, space
from raysweep.augment.operations import to_float
from raysweep.augment.policies import simclr
from raysweep.backends import local
from raysweep.backends.display import ProgressDisplay
from raysweep.backends.progress import SilentTrials
from raysweep.backends.stopping import Stopping
from raysweep.backends.sweep_run import SweepRun
from raysweep.config import METRICS, PROTOCOL_VERSION, Collapse
from raysweep.data.selection import TrialData, check_data
from raysweep.data.splits import split_train
from raysweep.errors import InputError
from raysweep.methods.losses import nt_xent
from raysweep.probes import evaluation
from raysweep.probes.collapse import embedding_std, rankme
from raysweep.probes.grid import ProbeSpec
from raysweep.probes.kmeans import kmeans_scores
from raysweep.probes.knn import knn_accuracy
from raysweep.probes.linear import LinearProbes, train_classifiers
from raysweep.probes.probes import candidate_specs
from raysweep.randomness import fixed_subset, generator
from raysweep.results import attempts
from raysweep.results.attempts import begin_attempt
from raysweep.results.checkpoints import load_checkpoint, save_checkpoint
from raysweep.results.result import read_result
from raysweep.results.store import Store
from raysweep.training.loop import pretrain
from raysweep.training.state import fresh_state
from tests.support import ROOT, forked
from tests.support.networks import conv6_with_head, embed, make_decoder, make_encoder
from tests.support.trials import (
    CLOCK,
    DATASETS,
    TINY,
    Killed,
    few_digits,
    read_encoder,
    run,
    run_on_half,
    trial_of,
    trial_on_half,
)


def without_clock(metrics):
    return {name: value for name, value in metrics.items() if name != CLOCK}


def scalars(directory):
    accumulator = EventAccumulator(str(directory), size_guidance={"scalars": 0}).Reload()
    return {tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}


def visual_steps(directory):
    """Return the steps of each picture and histogram."""
    events = EventAccumulator(str(directory)).Reload()
    pictures = {tag: [event.step for event in events.Images(tag)] for tag in events.Tags()["images"]}
    return pictures | {tag: [event.step for event in events.Tensors(tag)] for tag in events.Tags()["tensors"]}


METHODS = {
    "autoencoder": {"usl_type": "ae_single", "denoising": False},
    "denoising autoencoder": {"usl_type": "ae_single", "denoising": True},
    "parallel autoencoder": {"usl_type": "ae_parallel", "denoising": False},
    "parallel denoising autoencoder": {"usl_type": "ae_parallel", "denoising": True},
    "simclr": {"usl_type": "simclr"},
}
WITHOUT_DECODER = {
    "barlow twins": {"usl_type": "barlow_twins"},
    "vicreg": {"usl_type": "vicreg"},
    "byol": {"usl_type": "byol", "teacher_momentum": 0.9},
    "simsiam": {"usl_type": "simsiam", "head": "mlp"},
}


def test_a_trial_of_every_method_is_tested():
    tested = {method["usl_type"] for method in (METHODS | WITHOUT_DECODER).values()}
    assert tested | {"supervised"} == set(parts.method)


@pytest.mark.parametrize("method", (METHODS | WITHOUT_DECODER).values(), ids=METHODS | WITHOUT_DECODER)
def test_every_method_trains_end_to_end_and_reports_its_metrics(tmp_path, method):
    shares = []
    result = run(
        tmp_path, trial_of(usl_lr=1e-3, per_layer=True, **method), report=lambda at: shares.append(at.fraction)
    )
    assert result.status == "finished"
    absent = {"pretrain/last_fall", "pretrain/lr"}  # need five epochs, and a schedule that is not constant
    of_all_methods = {name for part in parts.method.values() for name in part.metrics}
    absent |= of_all_methods - set(parts.method[method["usl_type"]].metrics)
    absent |= {name for part in parts.probe.values() if part.traits["switch"] for name in part.metrics}
    assert set(result.metrics) == set(METRICS) - absent
    assert all(math.isfinite(value) for value in result.metrics.values())
    assert result.metrics["linear/train_accuracy"] > 0.3, "chance level is 0.1"
    assert shares == sorted(shares)
    assert shares[-1] == 1.0

    curves = scalars(tmp_path)
    losses = [value for _, value in curves["pretrain/loss"]]
    assert losses[-1] < losses[0]
    assert [step for step, _ in curves["pretrain/loss"]] == [1, 2, 3]
    assert [step for step, _ in curves["linear/val_accuracy"]] == [1, 2, 3, 4]
    assert [step for step, _ in curves["linear/test_accuracy"]] == [4]
    assert {tag: points[-1][1] for tag, points in curves.items()} == pytest.approx(result.metrics, rel=1e-6)
    assert EventAccumulator(str(tmp_path)).Reload().Tags()["images"]


def test_a_trial_that_broke_off_goes_on_bit_for_bit(tmp_path):
    trial = trial_on_half(usl_epochs=6, images_every=2)
    whole = run_on_half(tmp_path / "whole", trial)

    for fatal in (0.3, 0.7):  # the trial breaks off in epoch 3, resumes, and breaks off in epoch 5

        def die(at, fatal=fatal):
            if at.fraction > fatal:
                raise Killed

        with pytest.raises(Killed):
            run_on_half(tmp_path / "broken", trial, checkpoint_seconds=0, report=die)
        assert read_result(tmp_path / "broken") is None
        assert "Killed" in (tmp_path / "broken" / "error.txt").read_text()
    reported = []
    again = run_on_half(
        tmp_path / "broken", trial, checkpoint_seconds=0, report=lambda at: reported.append(at.fraction)
    )
    assert min(reported) > 0.6, "the trial resumed instead of starting again"
    assert again.attempts == 3
    assert without_clock(again.metrics) == without_clock(whole.metrics)
    weights = [read_encoder(tmp_path / name)["encoder"] for name in ("whole", "broken")]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    first, second = scalars(tmp_path / "whole"), scalars(tmp_path / "broken")
    assert without_clock(first) == without_clock(second)
    assert [step for step, _ in second["pretrain/rankme"]] == list(range(7)), "step 0 is the untrained encoder"
    assert visual_steps(tmp_path / "broken") == visual_steps(tmp_path / "whole")
    assert not (tmp_path / "broken" / "checkpoints").exists()
    assert not (tmp_path / "broken" / "error.txt").exists()


CUT = {
    "end to end": {"usl_type": "ae_parallel", "denoising": True, "per_layer": True, "labels_per_class": 5},
    "a bank of probes": {
        "usl_type": "simclr",
        "probe_grid": "{lr: [1e-3, 1e-2], layer: [trunk, layer3]}",
        "probe_every": 2,
    },
    "greedy": {"usl_type": "ae_parallel", "layerwise": "greedy", "usl_epochs": 1},
    "random": {"usl_type": "simclr", "layerwise": "random", "usl_epochs": 1, "per_layer": True},
    "batch norm": {"usl_type": "simclr", "encoder": "normed", "usl_epochs": 2, "le_epochs": 6},
    "dropout": {"usl_type": "simclr", "encoder": "dropping", "usl_epochs": 2, "le_epochs": 6},
    "with labels": {"usl_type": "supervised", "probe_every": 2},
    "with a teacher": {"usl_type": "byol", "head": "mlp", "blur": True, "solarize_probability_second": 0.2},
    "pca": {"encoder": "pca", "usl_epochs": 0, "le_epochs": 30},
    "fine-tuning": {
        "usl_type": "simclr",
        "encoder": "normed",
        "usl_epochs": 1,
        "finetune": True,
        "finetune_epochs": 2,
        "finetune_batch_size": 16,
        "finetune_augment": "crop_mirror",
    },
    "an MLP": {"encoder": "pixels", "mlp_probe": True, "mlp_width": 16, "few_shot": [1], "le_epochs": 12},
    "many probes": {
        "usl_type": "simclr",
        "usl_epochs": 1,
        "logistic": True,
        "few_shot": [1, 2],
        "label_free": True,
        "le_epochs": 9,
    },
}

NORMED = """
import raysweep
import torch
from torch import nn

@raysweep.encoder(batch_norm=True)
def normed(channels, image_size):
    '''Two convolutions with batch normalisation.'''
    blocks = (nn.Conv2d(channels, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16))
    return nn.Sequential(*blocks, nn.Flatten())

@raysweep.encoder
def dropping(channels, image_size):
    '''A convolution with dropout.'''
    return nn.Sequential(nn.Conv2d(channels, 16, 3), nn.Dropout(0.3), nn.ReLU(), nn.Flatten())

@raysweep.encoder
class Fitted(nn.Module):
    '''A linear map of images minus their mean, with weights that depend on all images.'''

    fits = 0

    def __init__(self, channels, image_size):
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels, image_size, image_size))
        self.linear = nn.Linear(channels * image_size**2, 16)

    def fit(self, images):
        Fitted.fits += 1
        self.mean.copy_(images.float().mean(0) / 255)
        nn.init.normal_(self.linear.weight, std=float(self.mean.mean()))

    def forward(self, images):
        return self.linear((images - self.mean).flatten(1))
"""


@pytest.fixture
def _normed():
    """Make the encoders `normed`, `dropping` and `Fitted` known. A step with ResNet-18 takes ten times longer."""
    plugins.activate([plugins.Plugin("normed.py", NORMED)])
    yield
    plugins.activate(())


class Leg:
    """A run of a trial. It leaves when it asks for the `last`-th time whether to; if `last` is odd, it dies before."""

    def __init__(self, last):
        self.last, self.asked = last, 0

    def leave(self):
        self.asked += 1
        return self.asked >= self.last

    def die(self, at):
        if self.asked >= self.last - 1 and self.last % 2:
            raise Killed


@pytest.mark.usefixtures("_normed")
@pytest.mark.parametrize("settings", CUT.values(), ids=CUT)
def test_property_a_trial_that_leaves_anywhere_goes_on_bit_for_bit(tmp_path, settings):
    """The trial leaves or dies again and again, at random pretraining steps and random probe epochs."""
    trial = trial_on_half(images_every=2, **settings)
    whole = run_on_half(tmp_path / "whole", trial)
    draws = random.Random(0)
    result, legs = None, 0
    while result is None:
        legs += 1
        assert legs < 60, "the trial makes no progress"
        leg = Leg(draws.randint(2, 9))
        often = 0 if leg.last % 3 else 1e9
        with contextlib.suppress(Killed):
            result = run_on_half(tmp_path / "cut", trial, checkpoint_seconds=often, report=leg.die, stop=leg.leave)
    assert legs > 3
    assert result.attempts == legs
    assert without_clock(result.metrics) == without_clock(whole.metrics)
    assert (result.linear_probe, result.warnings) == (whole.linear_probe, whole.warnings)
    weights = [read_encoder(tmp_path / name)["encoder"] for name in ("whole", "cut")]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert without_clock(scalars(tmp_path / "whole")) == without_clock(scalars(tmp_path / "cut"))
    for name in ("tensors.tsv", "metadata.tsv", "sprite.png"):
        assert (
            len({(tmp_path / name_of_run / "projector" / name).read_bytes() for name_of_run in ("whole", "cut")}) == 1
        )


@pytest.mark.parametrize("switch", ["mlp_probe", "finetune"])
def test_a_trial_that_leaves_at_any_moment_of_its_evaluation_writes_no_score_twice(tmp_path, switch):
    few = {"mlp_width": 4} if switch == "mlp_probe" else {"finetune_epochs": 1, "finetune_batch_size": 50}
    trial, asked = trial_on_half(usl_epochs=1, le_epochs=1, **{switch: True}, **few), []
    whole = run_on_half(tmp_path / "whole", trial, stop=lambda: asked.append(1) is not None)
    for last in range(4, len(asked) + 1):
        leg, place = Leg(last), tmp_path / str(last)
        assert run_on_half(place, trial, stop=leg.leave) is None
        resumed = run_on_half(place, trial)
        assert without_clock(resumed.metrics) == without_clock(whole.metrics)
        assert without_clock(scalars(place)) == without_clock(scalars(tmp_path / "whole"))


def test_a_trial_that_leaves_between_probes_without_training_keeps_the_scores_it_has(tmp_path):
    trial, phases = trial_on_half(usl_epochs=1, logistic=True), []
    leave = {"stop": lambda: "kmeans, knn, logistic" in phases, "report": lambda at: phases.append(at.phase)}
    assert run_on_half(tmp_path / "cut", trial, **leave) is None
    saved = load_checkpoint(tmp_path / "cut")
    assert list(saved["evaluation"]["probes_done"]) == ["kmeans"]
    assert "kmeans/nmi" in saved["metrics"]
    assert "knn/test_accuracy" not in saved["metrics"]
    resumed, whole = run_on_half(tmp_path / "cut", trial), run_on_half(tmp_path / "whole", trial)
    assert without_clock(resumed.metrics) == without_clock(whole.metrics)


@pytest.mark.usefixtures("_normed")
def test_a_method_copies_an_encoder_that_is_fitted_once(tmp_path):
    trial = trial_on_half(usl_type="byol", encoder="Fitted", usl_epochs=2, teacher_momentum=1.0)
    encoder, images = parts.encoder["Fitted"].function, few_digits(train=100).pretrain_images
    whole = run_on_half(tmp_path / "whole", trial)
    torch.manual_seed(5)
    asked = []
    assert run_on_half(tmp_path / "cut", trial, stop=lambda: len(asked) > 1 or asked.append(1)) is None
    state = load_checkpoint(tmp_path / "cut")["state"]["method"]
    mean = torch.from_numpy(images).float().mean(0) / 255
    for network in ("encoder", "teacher"):
        torch.testing.assert_close(state[f"{network}.mean"], mean)
    # A teacher with momentum 1 keeps the initial weights.
    assert state["teacher.linear.weight"].std().item() == pytest.approx(float(mean.mean()), rel=0.1)
    fits = encoder.fits
    resumed = run_on_half(tmp_path / "cut", trial)
    assert encoder.fits == fits, "the saved state holds what fit computed"
    assert without_clock(resumed.metrics) == without_clock(whole.metrics)


def test_a_checkpoint_of_an_older_version_is_refused(tmp_path):
    """Its other epochs would draw other numbers, so the trial would be of neither version."""
    trial, reports = trial_of(), []
    run(tmp_path, trial, report=reports.append, stop=lambda: len(reports) == 1)
    old = load_checkpoint(tmp_path)
    assert old.pop("version") == PROTOCOL_VERSION
    save_checkpoint(tmp_path, old)
    with pytest.raises(InputError, match="written by another version of raysweep, whose numbers differ; start a new"):
        run(tmp_path, trial)
    assert load_checkpoint(tmp_path)["state"]["epoch"] == 1, "the checkpoint stays"


def test_a_resume_in_another_precision_says_which_epochs_used_which(tmp_path):
    trial, reports = trial_of(precision="fp32"), []
    run(tmp_path, trial, report=reports.append, stop=lambda: len(reports) == 1)
    save_checkpoint(tmp_path, {**load_checkpoint(tmp_path), "precision": "bf16"})
    words = "the pretraining used bf16 until epoch 1 and fp32 afterwards, because the trial resumed on another machine"
    assert words in run(tmp_path, trial).warnings


def test_a_result_stands_whatever_breaks_after_it(tmp_path):
    sweep = space.build({"base": TINY}, {}, "test")
    store = Store(tmp_path / "x")
    store.create(sweep, {})
    (store.trial("seed=0") / "checkpoints" / "no file").mkdir(parents=True)  # prevents the removal of the checkpoints
    stopping = Stopping(store)
    with ProgressDisplay(sweep, [], Console(file=io.StringIO())) as view:
        local.run(SweepRun(sweep, list(sweep.trials), [], store, DATASETS, view, stopping))
    assert store.result("seed=0").status == "finished"


def test_an_attempt_that_cannot_begin_replaces_the_failure_of_an_earlier_run(tmp_path, monkeypatch):
    """Here a process of the earlier run still holds the directory."""
    sweep = space.build({"base": TINY}, {}, "test")
    store = Store(tmp_path / "x").create(sweep, {})
    (trial,) = sweep.trials
    sweep_run = SweepRun(sweep, [trial], [], store, DATASETS, SilentTrials(), Stopping(store))
    begin_attempt(store.trial(trial.name), trial.settings)
    local.fail(sweep_run, trial, "the old reason")
    program = "import pathlib, sys; from raysweep.results.attempts import hold_directory\n"
    program += f"directory = pathlib.Path({str(store.trial(trial.name))!r})\n"
    program += "with hold_directory(directory): print(flush=True); sys.stdin.read()"
    monkeypatch.setattr(attempts, "HOLD_SECONDS", 0.0)
    holder = forked.start("-c", program, cwd=ROOT, stdin=subprocess.PIPE)
    holder.stdout.readline()
    result = local.run_one(sweep_run, trial)
    holder.communicate()
    assert "another process still runs the trial" in result.error
    assert store.result(trial.name).error == result.error


def test_a_checkpoint_in_the_middle_of_an_epoch_is_of_that_step(tmp_path):
    trial, steps = trial_of(usl_epochs=1), []
    # The trial leaves after the first of four steps.
    assert run(tmp_path, trial, stop=lambda: bool(steps) or steps.append(1)) is None
    saved = load_checkpoint(tmp_path)["state"]
    assert (saved["epoch"], saved["step"], len(saved["order"])) == (0, 2, 200)
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize("phase", ["pretraining", "linear probe"])
@pytest.mark.parametrize(("before", "after"), [(1, 0), (0, 1), (1, 2)])
def test_a_resume_may_change_the_online_measures(tmp_path, phase, before, after):
    """The final measures equal the measures of an uninterrupted trial: of the last epoch, or none."""
    seen = []
    cut, wanted = trial_on_half(probe_every=before), trial_on_half(probe_every=after)
    leaving = {"stop": lambda: phase in seen, "report": lambda at: seen.append(at.phase)}
    assert run_on_half(tmp_path / "cut", cut, **leaving) is None
    resumed, whole = run_on_half(tmp_path / "cut", wanted), run_on_half(tmp_path / "whole", wanted)
    assert without_clock(resumed.metrics) == without_clock(whole.metrics)
    assert ("online/knn_val_accuracy" in resumed.metrics) == (after > 0)
    if after:
        assert scalars(tmp_path / "cut")["pretrain/rankme"][-1] == scalars(tmp_path / "whole")["pretrain/rankme"][-1]


def test_a_report_says_in_which_phase_the_trial_is(tmp_path):
    trial, states = trial_of(usl_epochs=2, le_epochs=3, probe_every=1), []
    result = run(tmp_path, trial, report=lambda at: states.append(at.status()))
    assert [(state.phase, state.epoch, state.epochs) for state in states[:2]] == [
        ("pretraining", 1, 2),
        ("kmeans, knn", 0, 0),
    ]
    assert [(state.phase, state.epoch, state.epochs) for state in states[2:5]] == [
        ("linear probe", epoch, 3) for epoch in (1, 2, 3)
    ]
    assert states[1].loss == result.metrics["pretrain/loss"] != states[0].loss
    assert states[1].online == result.metrics["online/knn_val_accuracy"]


def test_a_trial_whose_embedding_collapses_is_stopped_and_says_so(tmp_path):
    trial, rule = trial_on_half(usl_epochs=6), Collapse(evaluations=3, rankme=1e9, std=0.0)
    reported = []
    assert run_on_half(tmp_path, trial, report=reported.append, stop=lambda: len(reported) == 2, collapse=rule) is None
    result = run_on_half(tmp_path, trial, report=reported.append, collapse=rule)
    assert [at.epoch for at in reported] == [1, 2], "the evaluations before the interruption count"
    assert result.status == "stopped"
    assert "collapsed" in result.error
    assert "pretraining epoch 3" in result.error
    assert "linear/test_accuracy" not in result.metrics
    assert run_on_half(tmp_path, trial, report=lambda at: pytest.fail("ran")) == result, "the trial is not run again"
    assert not (tmp_path / "checkpoints").exists()
    assert run_on_half(tmp_path / "sound", trial, collapse=Collapse(1, rankme=1.0, std=0.0)).status == "finished"


def test_a_finished_trial_is_not_run_again(tmp_path):
    trial = trial_of()
    first = run(tmp_path, trial)
    assert run(tmp_path, trial, report=lambda at: pytest.fail("ran")) == first


def test_same_seed_same_bits_other_seed_other_numbers(tmp_path):
    results = [run_on_half(tmp_path / str(n), trial_on_half(seed=seed)) for n, seed in enumerate((0, 0, 1))]
    first, same, other = [without_clock(result.metrics) for result in results]
    assert first == same
    assert first["pretrain/loss"] != other["pretrain/loss"]


def test_a_loss_that_overflows_is_a_failed_result_with_its_epoch(tmp_path):
    result = run(tmp_path, trial_of(usl_lr=1e18, usl_epochs=5))
    assert result.status == "failed"
    assert "in pretraining epoch" in result.error
    assert json.loads((tmp_path / "result.json").read_text())["status"] == "failed"


def test_pretraining_on_one_dataset_and_evaluation_on_another(tmp_path):
    colour = few_digits(3)
    datasets = {("cifar10", 8, None): colour, ("digits", 8, 3): colour}
    result = run(tmp_path, trial_of(dataset="cifar10", probe_dataset="digits", image_size=8), datasets)
    assert result.status == "finished"
    assert result.protocol["probe_dataset"] == "digits"
    assert read_encoder(tmp_path)["channels"] == 3


def test_without_validation_split_nothing_is_validated(tmp_path):
    result = run(tmp_path, trial_of(val_fraction=0))
    assert result.status == "finished"
    assert not [name for name in result.metrics if "val" in name]


def test_few_labels_train_the_probe_on_few(tmp_path):
    few = run(tmp_path / "few", trial_of(labels_per_class=1, le_epochs=30, le_lr=0.01, usl_epochs=0))
    full = run(tmp_path / "all", trial_of(le_epochs=30, le_lr=0.01, usl_epochs=0))
    assert few.metrics["linear/train_accuracy"] == 1.0
    assert few.metrics["linear/test_accuracy"] < full.metrics["linear/test_accuracy"]
    assert few.metrics["knn/test_accuracy"] == full.metrics["knn/test_accuracy"]
    assert few.fingerprint != full.fingerprint


def test_the_saved_encoder_gives_the_features_that_were_evaluated(tmp_path):
    run(tmp_path, trial_of())
    saved = read_encoder(tmp_path)
    encoder = conv6_with_head(saved["channels"], saved["image_size"], saved["embedding_dim"])
    encoder.load_state_dict(saved["encoder"])
    images = DATASETS["digits", 8, None].test_images
    with torch.no_grad():
        z = embed(encoder, to_float(torch.from_numpy(images)))
    assert z.shape == (80, 64)
    fresh = run(tmp_path / "random", trial_of(usl_epochs=0))
    assert fresh.status == "finished"
    untrained = read_encoder(tmp_path / "random")["encoder"]
    assert not torch.equal(untrained["head.weight"], saved["encoder"]["head.weight"])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"batch_size": 201}, "batch_size: 201 is more than the 200 training images"),
        ({"knn_k": 181}, "knn_k: 181 is more than the 180 images"),
        ({"labels_per_class": 100}, "labels_per_class: 100"),
    ],
)
def test_more_than_the_data_holds_is_refused(settings, words):
    dataset = DATASETS["digits", 8, None]
    with pytest.raises(InputError, match=words):
        check_data(trial_of(**settings).settings, TrialData(dataset.train_images, dataset))


def test_cuda_is_used_where_it_is_visible_and_gives_finite_metrics(tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("no GPU is visible")
    result = run(tmp_path, trial_of())
    assert result.device == "cuda"
    assert all(math.isfinite(value) for value in result.metrics.values())


@pytest.mark.parametrize("layer", ["trunk", "embedding"])
@pytest.mark.parametrize("standardized", [True, False])
def test_final_metrics_are_those_of_the_saved_encoder_on_the_right_splits(tmp_path, layer, standardized):
    """Recompute every final metric from the saved weights, with the splits written out."""
    trial = trial_of(seed=1, split_seed=3, probe_layer=layer, standardize=standardized)
    got = run(tmp_path, trial).metrics
    dataset = DATASETS["digits", 8, None]
    saved = read_encoder(tmp_path)
    encoder = conv6_with_head(saved["channels"], saved["image_size"], saved["embedding_dim"])
    encoder.load_state_dict(saved["encoder"])
    fit, val = split_train(dataset.train_labels, 0.1, 3)
    images = {"fit": dataset.train_images[fit], "val": dataset.train_images[val], "test": dataset.test_images}
    labels = {"fit": dataset.train_labels[fit], "val": dataset.train_labels[val], "test": dataset.test_labels}
    labels = {split: torch.from_numpy(array) for split, array in labels.items()}
    with torch.no_grad():
        read = encoder if layer == "trunk" else partial(embed, encoder)
        features = {split: read(torch.from_numpy(array) / 255) for split, array in images.items()}
        z = embed(encoder, torch.from_numpy(dataset.train_images) / 255)
    expected = {}
    for split in ("val", "test"):
        expected[f"knn/{split}_accuracy"] = knn_accuracy(
            features["fit"], labels["fit"], features[split], labels[split], classes=10, k=5, temperature=0.07
        )
    expected["online/knn_val_accuracy"] = expected["knn/val_accuracy"]  # the online subsets include all images
    expected |= kmeans_scores(features["test"].numpy(), labels["test"].numpy(), 10, seed=1)
    expected |= {"pretrain/embedding_std": embedding_std(z), "pretrain/rankme": rankme(z)}
    if standardized:
        mean, std = features["fit"].mean(0), features["fit"].std(0, correction=0)
        features = {split: (array - mean) / std for split, array in features.items()}
    head = ProbeSpec(layer, 1e-3, 0.0)
    probe = LinearProbes([head], {layer: features["fit"].shape[1]}, 10, 1, torch.device("cpu"))
    list(train_classifiers(probe, {layer: features["fit"]}, labels["fit"], epochs=4, batch_size=50))
    expected["linear/train_accuracy"] = probe.train_accuracy[0]
    for split in ("val", "test"):
        expected[f"linear/{split}_accuracy"] = probe.accuracy({layer: features[split]}, labels[split])[0]
    assert {name: got[name] for name in expected} == pytest.approx(expected, rel=1e-4, abs=1e-9)


def test_the_last_online_accuracy_is_that_of_its_own_images(tmp_path, monkeypatch):
    """All features exist by then, and the last evaluation uses only the features of the fixed subsets."""
    monkeypatch.setattr(evaluation, "ONLINE_BANK", 40)
    monkeypatch.setattr(evaluation, "ONLINE_QUERIES", 15)
    trial = trial_of(seed=1)
    got = run(tmp_path, trial).metrics["online/knn_val_accuracy"]
    dataset, saved = DATASETS["digits", 8, None], read_encoder(tmp_path)
    encoder = conv6_with_head(saved["channels"], saved["image_size"], saved["embedding_dim"])
    encoder.load_state_dict(saved["encoder"])
    labels = torch.from_numpy(dataset.train_labels)
    splits = [torch.from_numpy(index) for index in split_train(dataset.train_labels, 0.1, 0)]
    with torch.no_grad():
        features = encoder(torch.from_numpy(dataset.train_images) / 255)

    def accuracy(bank, queries):
        return knn_accuracy(
            features[bank], labels[bank], features[queries], labels[queries], classes=10, k=5, temperature=0.07
        )

    chosen = [index[fixed_subset(len(index), n)] for index, n in zip(splits, (40, 15), strict=True)]
    first = [index[:n] for index, n in zip(splits, (40, 15), strict=True)]
    assert got == accuracy(*chosen)
    assert got != accuracy(*first), "otherwise this test would show nothing"


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_pretraining_is_the_textbook_loop_on_augmented_pairs(method):
    """Compare two epochs with a written-out loop: order, pairs of views, targets, losses, Adam."""
    if method["usl_type"] == "ae_parallel":
        method = {**method, "alpha": 0.7}
    settings = trial_of(usl_lr=1e-3, usl_epochs=2, strength=0.8, batch_size=60, precision="fp32", **method).settings
    images = torch.from_numpy(DATASETS["digits", 8, None].train_images)
    state = fresh_state(settings, 1, 8, torch.device("cpu"))
    reported = [metrics["pretrain/loss"] for metrics in pretrain(settings, state, images)]

    encoder, decoder = make_encoder("conv6", 1, 8, 64, seed=0), make_decoder(1, 8, 64, seed=0)
    adam = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-3)
    draws = generator(0, "pretrain")
    mse = torch.nn.functional.mse_loss
    for epoch, expected in enumerate(reported):
        losses = []
        order = torch.randperm(200, generator=generator(0, f"order {epoch}"))
        for step in range(3):  # 200 images make three batches of 60; 20 are left out
            clean = images[order[60 * step : 60 * step + 60]] / 255
            if method["usl_type"] == "ae_single":
                view = simclr(clean, 0.8, draws)
                loss = mse(decoder(embed(encoder, view)), clean if method["denoising"] else view)
            else:
                first, second = simclr(torch.cat((clean, clean)), 0.8, draws).split(60)
                z1, z2 = embed(encoder, first), embed(encoder, second)
                if method["usl_type"] == "simclr":
                    loss = nt_xent(z1, z2, temperature=0.5)
                else:
                    targets = (clean, clean) if method["denoising"] else (first, second)
                    loss = mse(decoder(z1), targets[0]) + mse(decoder(z2), targets[1]) + 0.7 * mse(z1, z2)
            adam.zero_grad()
            loss.backward()
            adam.step()
            losses.append(loss.item())
        assert expected == pytest.approx(np.mean(losses), rel=1e-4)
    torch.testing.assert_close(state.encoder.head.weight, encoder.head.weight, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"usl_lr": 1e30, "batch_size": 200}, "pretraining epoch 1"),
        ({"usl_lr": 1e10, "batch_size": 200}, "pretraining epoch"),
        ({"le_lr": 1e38}, "the linear probe's loss became"),
    ],
)
def test_what_diverges_outside_the_loss_is_a_failed_result_too(tmp_path, settings, words):
    result = run(tmp_path, trial_of(**settings))
    assert result.status == "failed"
    assert words in result.error


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    def stop(at):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, trial_of(), checkpoint_seconds=0, report=stop)
    with pytest.raises(InputError, match=r"usl_lr: 0\.0001, but the sweep says 1e-09"):
        run(tmp_path, trial_of(usl_lr=1e-9))


def test_every_block_is_probed_and_the_bank_picks_by_val(tmp_path):
    bank = {"lr": [1e-5, 3e-2], "weight_decay": [0, 0.01], "layer": ["trunk", "layer1"]}
    trial = trial_of(layerwise="greedy", usl_epochs=1, le_epochs=8, probe_grid=bank, labels_per_class=8)
    result = run(tmp_path, trial)
    events = scalars(tmp_path)
    heads = [str(head) for head in candidate_specs(trial.settings)]
    last = {head: events[f"bank/{head}/val_accuracy"][-1][1] for head in heads}
    assert len(last) == 8
    assert "lr=0.03" in result.linear_probe
    assert last[result.linear_probe] == max(last.values())
    assert result.metrics["linear/val_accuracy"] == pytest.approx(max(last.values()))
    picked = next(head for head in candidate_specs(trial.settings) if str(head) == result.linear_probe)
    alone = trial_of(
        layerwise="greedy",
        usl_epochs=1,
        le_epochs=8,
        labels_per_class=8,
        per_layer=False,
        le_lr=picked.lr,
        le_weight_decay=picked.weight_decay,
        probe_layer=picked.layer,
    )
    single = run(tmp_path / "alone", alone)
    for split in ("val", "test"):
        assert single.metrics[f"linear/{split}_accuracy"] == pytest.approx(result.metrics[f"linear/{split}_accuracy"])
    assert single.linear_probe == ""
    assert result.fingerprint != single.fingerprint
    for k in range(1, 6):
        assert [step for step, _ in events[f"linear/layer{k}/val_accuracy"]] == list(range(1, 9))
        assert [step for step, _ in events[f"linear/layer{k}/test_accuracy"]] == [8]
        assert 0 <= result.metrics[f"linear/layer{k}/test_accuracy"] <= 1


@pytest.mark.parametrize("layerwise", ["greedy", "random"])
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_every_method_trains_layer_by_layer(tmp_path, method, layerwise):
    settings = {"usl_epochs": 1, "images_every": 2, "usl_lr": 1e-3}
    result = run_on_half(tmp_path, trial_on_half(layerwise=layerwise, **settings, **method))
    assert result.status == "finished"
    assert [step for step, _ in scalars(tmp_path)["pretrain/loss"]] == [1, 2, 3, 4, 5]
    assert "linear/layer3/val_accuracy" in result.metrics


@pytest.mark.usefixtures("_normed")
def test_online_measures_change_no_weight(tmp_path):
    weights = []
    for every in (0, 1):
        settings = {"usl_type": "simclr", "encoder": "normed", "usl_epochs": 2, "le_epochs": 1, "probe_every": every}
        run_on_half(tmp_path / str(every), trial_on_half(**settings))
        weights.append(read_encoder(tmp_path / str(every))["encoder"])
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_resnet18_trains_and_is_saved(tmp_path):
    method = {"usl_type": "ae_parallel", "denoising": True}
    trial = trial_on_half(encoder="resnet18", usl_epochs=1, le_epochs=1, usl_lr=1e-3, **method)
    result = run_on_half(tmp_path, trial)
    assert result.status == "finished"
    saved = read_encoder(tmp_path)
    assert (saved["architecture"], saved["channels"], saved["image_size"]) == ("resnet18", 1, 8)
    encoder = make_encoder("resnet18", 1, 8, 64, seed=0)
    encoder.load_state_dict(saved["encoder"])
    assert int(encoder.body.bn1.num_batches_tracked) == 4  # four training batches, and none while probing
