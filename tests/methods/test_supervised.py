"""Training with labels: its loss, its shares in several processes, and what it learns."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from raysweep import space
from raysweep.backends.ray.schedulers import EPOCH, make_scheduler
from raysweep.config import Collapse
from raysweep.data.dataset import Dataset
from raysweep.data.selection import check_data, select_data
from raysweep.data.splits import split_train
from raysweep.errors import InputError
from raysweep.models.building import seeded
from raysweep.randomness import generator
from raysweep.training.distributed import BatchShard
from raysweep.training.loop import pretrain
from raysweep.training.state import fresh_state
from tests.support.networks import make_encoder
from tests.support.trials import DATASETS, TINY, read_encoder, run, trial_of

DATA = DATASETS["digits", 8, None]
CPU = torch.device("cpu")
IMAGES, LABELS = torch.from_numpy(DATA.train_images), torch.from_numpy(DATA.train_labels)


def settings_of(**changed):
    chosen = {"usl_type": "supervised", "strength": 0, "precision": "fp32", "usl_lr": 1e-3}
    return trial_of(**{**chosen, **changed}).settings


def test_reference_training_is_the_textbook_loop():
    """The first loss is torch's cross-entropy on the first batch; Adam determines the following losses."""
    settings = settings_of(usl_epochs=2, batch_size=60)
    state = fresh_state(settings, 1, 8, CPU, classes=10)
    reported = [metrics["pretrain/loss"] for metrics in pretrain(settings, state, IMAGES, labels=LABELS)]

    encoder = make_encoder("conv6", 1, 8, 64, seed=0)
    with seeded(0, "decoder"):
        classifier = torch.nn.Linear(encoder.feature_dim, 10)
    adam = torch.optim.Adam([*encoder.blocks.parameters(), *classifier.parameters()], lr=1e-3)
    for epoch, expected in enumerate(reported):
        losses = []
        order = torch.randperm(200, generator=generator(0, f"order {epoch}"))
        for step in range(3):
            index = order[60 * step : 60 * step + 60]
            loss = F.cross_entropy(classifier(encoder(IMAGES[index] / 255)), LABELS[index])
            adam.zero_grad()
            loss.backward()
            adam.step()
            losses.append(loss.item())
        assert expected == pytest.approx(sum(losses) / 3, rel=1e-4)
    assert torch.equal(state.encoder.head.weight, make_encoder("conv6", 1, 8, 64, seed=0).head.weight)


def test_it_learns_the_training_images():
    settings = settings_of(usl_epochs=25, batch_size=25)
    state = fresh_state(settings, 1, 8, CPU, classes=10)
    losses = [metrics["pretrain/loss"] for metrics in pretrain(settings, state, IMAGES, labels=LABELS)]
    assert losses[-1] < losses[0] / 4
    with torch.no_grad():
        predicted = state.method.classifier(state.encoder(IMAGES / 255)).argmax(1)
    assert (predicted == LABELS).float().mean() > 0.9


def test_the_shares_of_several_processes_add_up_to_the_loss():
    state = fresh_state(settings_of(), 1, 8, CPU, classes=10)
    views, labels = IMAGES[:11] / 255, LABELS[:11]
    whole = state.method(views, views, labels).total
    shares = []
    for start, end in ((0, 5), (5, 11)):
        state.method.shard = BatchShard(11, start, end, 2)
        shares.append(state.method(views[start:end], views[start:end], labels[start:end]).total)
    torch.testing.assert_close(sum(shares), whole)
    torch.testing.assert_close(whole, F.cross_entropy(state.method.classifier(state.encoder(views)), labels))


def noise(change=None):
    """Return pure noise with random labels, in which the pixels of the images at the positions `change` are others."""
    random = np.random.RandomState(0)
    images, others = random.randint(0, 256, (2, 160, 1, 8, 8)).astype(np.uint8)
    labels = random.permutation(np.arange(160) % 2)
    if change is not None:
        images[change] = others[change]
    return Dataset("noise", ("a", "b"), images[:100], labels[:100], images[100:], labels[100:], digest="noise")


def weights_of(directory):
    return read_encoder(directory)["encoder"]


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_on_noise_the_validation_accuracy_is_no_training_accuracy(tmp_path):
    settings = {"usl_type": "supervised", "strength": 0, "usl_epochs": 60, "usl_lr": 1e-3, "batch_size": 35}
    trial = trial_of(**settings, val_fraction=0.3, le_epochs=20, probe_every=0)
    metrics = run(tmp_path, trial, {("digits", 8, None): noise()}).metrics
    assert metrics["linear/train_accuracy"] > 0.95, "the labels of the fit split are learnt"
    assert metrics["linear/val_accuracy"] < 0.75
    assert metrics["linear/test_accuracy"] < 0.75


@pytest.mark.parametrize(
    ("settings", "reads"),
    [
        ({"val_fraction": 0.3}, False),
        ({"val_fraction": 0.3, "split_seed": 1}, False),
        ({"val_fraction": 0}, True),
        ({"val_fraction": 0.3, "probe_dataset": "digits_m"}, True),
        ({"val_fraction": 0.3, "probe_labels": False, "label_free": True}, True),
        ({"val_fraction": 0.3, "usl_type": "simclr"}, True),
    ],
)
def test_only_a_pretraining_with_labels_leaves_out_the_validation_images_of_its_dataset(tmp_path, settings, reads):
    """Other pixels of the validation images change no weight if pretraining does not read these images."""
    trial = trial_of(**{"usl_type": "supervised", "strength": 0, "batch_size": 20, "le_batch_size": 20, **settings})
    _, val = split_train(noise().train_labels, 0.3, settings.get("split_seed", 0))
    digits_m = {("digits_m", 8, 1): DATASETS["digits", 8, None]}
    weights = []
    for number, data in enumerate((noise(), noise(change=val))):
        run(tmp_path / str(number), trial, {("digits", 8, None): data, **digits_m})
        weights.append(weights_of(tmp_path / str(number)))
    assert same(*weights) != reads


def test_a_dataset_with_validation_images_of_its_own_is_trained_on_as_a_whole(tmp_path):
    data = noise()
    settings = trial_of(usl_type="supervised", strength=0, val_fraction=0.3).settings
    assert select_data(settings, {("digits", 8, None): data}).count == 70
    divided = replace(data, val_images=data.test_images, val_labels=data.test_labels)
    assert select_data(settings, {("digits", 8, None): divided}).count == 100


def test_the_same_images_under_another_name_are_left_out_too():
    datasets = {("digits", 8, None): noise(), ("mnist", 8, 1): noise()}
    settings = trial_of(usl_type="supervised", strength=0, val_fraction=0.3, probe_dataset="mnist").settings
    assert select_data(settings, datasets).count == 70


def test_a_batch_must_fit_into_the_images_that_are_left():
    settings = trial_of(usl_type="supervised", strength=0, val_fraction=0.3, batch_size=71).settings
    data = select_data(settings, {("digits", 8, None): noise()})
    with pytest.raises(
        InputError, match="batch_size: 71 is more than the 70 training images of digits that are not kept"
    ):
        check_data(settings, data)
    check_data(settings.model_copy(update={"usl_type": "simclr"}), replace(data, chosen=None, labels=None))


def test_the_control_is_stopped_by_no_rule(tmp_path):
    tune = {"scheduler": "asha", "grace_epochs": 1, "reduction_factor": 2}
    sweep = space.build({"base": TINY, "search": {"alpha": [0.1, 1]}, "tune": tune, "baseline": "supervised"}, {}, "x")
    control, *points = sweep.trials
    never = Collapse(1, rankme=1e9, std=1e9)
    assert run(tmp_path / "point", points[0], collapse=never).status == "stopped"
    assert run(tmp_path / "control", control, collapse=never).status == "finished"
    scheduler = make_scheduler(sweep)

    def decision(trial, score):
        report = {EPOCH: 1, sweep.stop_metric: score}
        return scheduler.on_trial_result(None, SimpleNamespace(config={"trial": trial}), report)

    assert [decision(point, score) for point, score in zip(points, (0.9, 0.1), strict=True)] == ["CONTINUE", "STOP"]
    assert decision(control, 0.0) == "CONTINUE"
    assert control.name not in scheduler.newest
