"""Training with labels: its loss, its shares in several processes, and what it learns."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from raysweep import space
from raysweep.backends.ray.schedulers import EPOCH, make_scheduler
from raysweep.config import Collapse
from raysweep.models.building import seeded
from raysweep.randomness import generator
from raysweep.training.distributed import BatchShard
from raysweep.training.loop import pretrain
from raysweep.training.state import fresh_state
from tests.support.networks import make_encoder
from tests.support.trials import DATASETS, TINY, run, trial_of

DATA = DATASETS["digits", 8, None]
CPU = torch.device("cpu")
IMAGES, LABELS = torch.from_numpy(DATA.train_images), torch.from_numpy(DATA.train_labels)


def settings_of(**changed):
    chosen = {"usl_type": "supervised", "strength": 0, "precision": "fp32", "usl_lr": 1e-3}
    return trial_of(**{**chosen, **changed}).settings


def test_reference_training_is_the_textbook_loop():
    """The first loss is torch's cross-entropy on the first batch; the following ones are those of Adam."""
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
