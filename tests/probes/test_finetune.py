"""Fine-tuning of the whole encoder, compared with a plain loop over torch's own modules."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn import functional as F

from raysweep import parts, plugins
from raysweep.config import Settings, fingerprint, has_metric, make_settings, metrics_by_name, protocol
from raysweep.data.splits import draw_labels, split_train
from raysweep.errors import InputError
from raysweep.models.building import build_encoder
from raysweep.probes.evaluation import Evaluation
from raysweep.probes.finetune import FineTuning, batches_of, random_crops
from raysweep.randomness import generator, seed_of
from tests.support.trials import DATASETS, read_encoder, run, trial_of

ON = {"finetune": True, "finetune_epochs": 2, "finetune_batch_size": 60}
FAST = {"usl_epochs": 0, "le_epochs": 1, "projector_images": 0}
DIGITS = DATASETS["digits", 8, None]
NORMED = """
import raysweep
from torch import nn

@raysweep.encoder(batch_norm=True)
def normed(channels, image_size):
    '''Two convolutions with batch normalisation.'''
    first, second = nn.Conv2d(channels, 8, 3, bias=False), nn.Conv2d(8, 16, 3, stride=4, bias=False)
    return nn.Sequential(first, nn.BatchNorm2d(8), nn.ReLU(), second, nn.BatchNorm2d(16), nn.Flatten())
"""


@pytest.fixture(autouse=True)
def _normed():
    """Make the encoder `normed` known, which has batch normalisation."""
    plugins.activate([plugins.Plugin("normed.py", NORMED)])
    yield
    plugins.activate(())


def evaluation_of(settings):
    """Return the evaluation of an untrained encoder on the digits."""
    encoder = build_encoder(settings, 1, 8)
    images = torch.from_numpy(DIGITS.train_images)
    return Evaluation(settings, encoder, DIGITS, (DIGITS.train_images, images), torch.device("cpu"))


def plain_fine_tuning(encoder, settings, lr, weight_decay):
    """Fine-tune by the definition, in a plain loop over all training images of the digits.

    Returns:
        A function that turns images (N, 1, 8, 8) of uint8 into logits, and the labelled images.
    """
    fit, _ = split_train(DIGITS.train_labels, 0.1, 0)
    images, labels = torch.from_numpy(DIGITS.train_images[fit]).float() / 255, DIGITS.train_labels[fit]
    encoder.eval()
    with torch.no_grad():
        scaler = StandardScaler().fit(encoder(images).double().numpy())
    mean, scale = (torch.tensor(values).float() for values in (scaler.mean_, scaler.scale_))
    if settings.labels_per_class is not None:
        drawn = draw_labels(labels, settings.labels_per_class, settings.seed)
        images, labels = images[drawn], labels[drawn]
    labels = torch.from_numpy(labels)
    torch.manual_seed(seed_of(settings.seed, "finetune"))
    classifier = nn.Linear(len(mean), 10)
    weights = [weight for name, weight in encoder.named_parameters() if not name.startswith("head.")]
    adamw = torch.optim.AdamW([*weights, *classifier.parameters()], lr=lr, weight_decay=weight_decay)
    encoder.train()
    draws = generator(settings.seed, "finetune order")
    for _ in range(settings.finetune_epochs):
        order = torch.randperm(len(images), generator=draws)
        for start in range(0, len(order), settings.finetune_batch_size):
            batch = order[start : start + settings.finetune_batch_size]
            logits = classifier((encoder(images[batch]) - mean) / scale)
            adamw.zero_grad()
            F.cross_entropy(logits, labels[batch]).backward()
            adamw.step()
    encoder.eval()

    @torch.no_grad()
    def logits_of(pixels):
        return classifier((encoder(torch.from_numpy(pixels).float() / 255) - mean) / scale)

    return logits_of


@pytest.mark.parametrize(
    "settings",
    [
        {"seed": 1},
        {"finetune_weight_decay": 0.5, "labels_per_class": 3, "finetune_batch_size": 7},
        {"encoder": "normed", "finetune_lr": 3e-3},
    ],
    ids=["Conv6", "few labels", "batch normalisation"],
)
def test_fine_tuning_is_adamw_on_cross_entropy_of_the_whole_network(settings):
    settings = trial_of(**FAST, **{**ON, **settings}).settings
    evaluation = evaluation_of(settings)
    reference = build_encoder(settings, 1, 8)
    with torch.random.fork_rng():
        expected = plain_fine_tuning(reference, settings, settings.finetune_lr, settings.finetune_weight_decay)
    probe = parts.probe["finetune"].function(evaluation, **parts.probe["finetune"].arguments(settings))
    scores = {}
    for metrics in probe.run():
        scores.update(metrics)
    _, val = split_train(DIGITS.train_labels, 0.1, 0)
    splits = {
        "val": (DIGITS.train_images[val], DIGITS.train_labels[val]),
        "test": (DIGITS.test_images, DIGITS.test_labels),
    }
    assert probe.network.training is False
    with torch.no_grad():
        tuned = probe.network(torch.from_numpy(DIGITS.test_images).float() / 255)
    torch.testing.assert_close(tuned, expected(DIGITS.test_images), atol=0.02, rtol=0.02)
    for split, (images, labels) in splits.items():
        accuracy = float(np.mean(expected(images).argmax(1).numpy() == labels))
        assert scores[f"finetune/{split}_accuracy"] == pytest.approx(accuracy, abs=1.01 / len(labels))


@pytest.mark.parametrize("layer", ["trunk", "layer3"])
def test_fine_tuning_extracts_only_the_fit_split_and_does_not_keep_it(layer):
    settings = trial_of(**FAST, **ON, probe_layer=layer).settings
    evaluation, seen = evaluation_of(settings), []
    evaluation.encoder.blocks[0].register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    images = {name: len(split.index) for name, split in evaluation.splits.items()}
    next(parts.probe["finetune"].function(evaluation, **parts.probe["finetune"].arguments(settings)).run())
    assert sum(seen) == images["fit"]
    evaluation.extract()
    assert sum(seen) == images["fit"] + sum(images.values()), "nothing was kept"
    next(parts.probe["finetune"].function(evaluation, **parts.probe["finetune"].arguments(settings)).run())
    again = images["fit"] if layer == "layer3" else 0
    assert sum(seen) == images["fit"] + sum(images.values()) + again, "the trunk is read where it is present"


def test_the_evaluated_encoder_keeps_its_weights_statistics_and_mode():
    evaluation = evaluation_of(make_settings({**FAST, **ON, "encoder": "normed", "finetune_lr": 0.1}, "x"))
    before = {name: value.clone() for name, value in evaluation.encoder.state_dict().items()}
    evaluation.encoder.train()
    probe = parts.probe["finetune"].function(evaluation, **parts.probe["finetune"].arguments(evaluation.settings))
    list(probe.run())
    assert evaluation.encoder.training
    after = evaluation.encoder.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    moved = probe.network.encoder.state_dict()
    assert all(not torch.equal(before[name], moved[name]) for name in moved), "every weight and statistic is tuned"


def test_fine_tuning_changes_nothing_else_of_a_trial(tmp_path):
    settings = {"usl_type": "ae_parallel", "layerwise": "greedy", "usl_epochs": 1, "le_epochs": 2, "per_layer": True}
    plain, tuned = (trial_of(**settings, **more) for more in ({}, {**ON, "finetune_augment": "crop_mirror"}))
    results = [run(tmp_path / name, trial) for name, trial in (("plain", plain), ("tuned", tuned))]
    clock = {"pretrain/images_per_s"}
    others = [
        {name: value for name, value in result.metrics.items() if name not in clock and "finetune" not in name}
        for result in results
    ]
    assert others[0] == others[1]
    assert results[1].metrics.keys() - results[0].metrics.keys() == {"finetune/val_accuracy", "finetune/test_accuracy"}
    weights = [read_encoder(tmp_path / name)["encoder"] for name in ("plain", "tuned")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert results[1].metrics["finetune/test_accuracy"] > 0.3, "chance level is 0.1"
    assert results[0].fingerprint != results[1].fingerprint, "finetune_augment belongs to the protocol"


def test_fine_tuning_reads_the_trunk_whatever_layer_the_other_probes_read(tmp_path):
    layers = [
        run(tmp_path / layer, trial_of(**FAST, **ON, probe_layer=layer)).metrics["finetune/test_accuracy"]
        for layer in ("trunk", "layer3", "embedding")
    ]
    assert layers[0] == layers[1] == layers[2]


@pytest.mark.parametrize("encoder", ["pixels", "pca", "conv6"])
@pytest.mark.parametrize("val_fraction", [0, 0.1])
def test_exactly_the_metrics_that_are_reported_are_expected(tmp_path, encoder, val_fraction):
    trial = trial_of(**{**FAST, **ON, "finetune_epochs": 1}, encoder=encoder, val_fraction=val_fraction)
    metrics = run(tmp_path, trial).metrics
    assert {name for name in metrics_by_name() if has_metric(name, trial.settings)} == set(metrics)
    assert ("finetune/test_accuracy" in metrics) == (encoder == "conv6")


def test_controls_without_weights_have_the_fingerprint_of_the_points():
    values = {**ON, "finetune_lr": 0.5, "finetune_augment": "crop"}
    fingerprints = {
        fingerprint(protocol(make_settings({**values, **more}, "x"), "x"))
        for more in ({}, {"encoder": "pixels", "usl_epochs": 0}, {"encoder": "pca", "usl_epochs": 0})
    }
    assert len(fingerprints) == 1
    assert fingerprint(protocol(make_settings({"finetune": True}, "x"), "x")) == fingerprint(protocol(Settings(), "x"))


@pytest.mark.parametrize("encoder", ["conv6", "normed"])
def test_fine_tuning_that_diverges_fails_the_trial_in_one_line(tmp_path, encoder):
    result = run(tmp_path, trial_of(**FAST, **{**ON, "finetune_lr": 1e38}, encoder=encoder))
    assert result.status == "failed"
    assert "fine-tuning" in result.error
    assert "\n" not in result.error
    assert not math.isnan(sum(result.metrics.values()))


@pytest.mark.parametrize(("count", "sizes"), [(10, [4, 4, 2]), (9, [4, 5]), (4, [4]), (5, [5]), (1, [1]), (3, [3])])
def test_no_batch_has_a_single_image(count, sizes):
    batches = batches_of(torch.arange(count), 4)
    assert [len(batch) for batch in batches] == sizes
    assert torch.equal(torch.cat(batches), torch.arange(count))


@pytest.mark.parametrize("is_mirrored", [False, True])
def test_a_crop_is_a_window_of_the_padded_image_mirrored_for_half_of_the_images(is_mirrored):
    images = torch.arange(1, 200 * 2 * 64 + 1).view(200, 2, 8, 8)
    crops = random_crops(images, torch.Generator().manual_seed(0), is_mirrored)
    padded, seen = F.pad(images, (1, 1, 1, 1)).numpy(), []
    for number, crop in enumerate(crops.numpy()):
        matches = [
            (top, left, mirrored)
            for top in range(3)
            for left in range(3)
            for mirrored in (False, True)
            if (crop[..., ::-1] if mirrored else crop).tolist()
            == padded[number, :, top : top + 8, left : left + 8].tolist()
        ]
        assert len(matches) == 1
        seen += matches
    assert {match[:2] for match in seen} == {(top, left) for top in range(3) for left in range(3)}
    mirrored = np.mean([match[2] for match in seen])
    assert 0.3 < mirrored < 0.7 if is_mirrored else mirrored == 0


@pytest.mark.parametrize("settings", [{"finetune_batch_size": 1}, {"finetune_lr": 0}, {"finetune_augment": "mirror"}])
def test_settings_that_do_not_fit_are_refused(settings):
    with pytest.raises(InputError, match=next(iter(settings))):
        make_settings(settings, "x")


def test_an_encoder_with_dropout_gives_the_same_numbers_again():
    evaluation = evaluation_of(make_settings({**FAST, **ON, "encoder": "normed"}, "x"))
    scores = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        probe = parts.probe["finetune"].function(evaluation, **parts.probe["finetune"].arguments(evaluation.settings))
        assert isinstance(probe, FineTuning)
        probe.network.encoder.layers.append(nn.Dropout(0.5))
        scores.append([dict(metrics) for metrics in probe.run()])
    assert scores[0] == scores[1]


def test_the_estimate_counts_fine_tuning():
    from raysweep.data.selection import TrialData
    from raysweep.estimate import time_steps

    trial = trial_of(**FAST, **ON)
    costs = time_steps(trial, TrialData(DIGITS.train_images, DIGITS), gpu=False)
    assert costs.finetune_epoch > 0
    without = dataclasses.replace(costs, finetune_epoch=0.0)
    assert costs.seconds(trial.settings) == pytest.approx(without.seconds(trial.settings) + 2 * costs.finetune_epoch)
