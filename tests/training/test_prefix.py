"""The rule that says when a shorter pretraining is the exact beginning of a longer one agrees with training itself."""

import numpy as np
import pytest
import torch

from raysweep import parts
from raysweep.config import Settings
from raysweep.config.prefix import is_prefix, obstacle
from raysweep.training.loop import pretrain
from raysweep.training.state import fresh_state

IMAGES = torch.from_numpy(np.random.RandomState(0).randint(0, 256, (20, 1, 8, 8)).astype(np.uint8))
LABELS = torch.arange(20) % 3
SHORT, LONG = 2, 4
SCHEDULES = [
    {"schedule": "constant"},
    {"schedule": "wsd", "warmup_epochs": 1, "decay_epochs": 0},
    {"schedule": "wsd", "warmup_epochs": 1, "decay_epochs": 1},
    {"schedule": "cosine", "warmup_epochs": 1},
]
METHODS = [{"usl_type": name} for name in parts.method] + [{"usl_type": "byol", "teacher_momentum": 1.0}]
MODES = [{"usl_type": name, "layerwise": mode} for name in ("ae_parallel", "simclr") for mode in ("greedy", "random")]
SMALL = {"embedding_dim": 4, "batch_size": 10, "usl_lr": 0.01, "precision": "fp32"}


def state_after(epochs, settings):
    """Return everything that pretraining has changed after this number of `usl_epochs`."""
    state = fresh_state(settings, 1, 8, torch.device("cpu"), classes=3)
    labels = LABELS if parts.method[settings.usl_type].traits["reads_labels"] else None
    for _ in pretrain(settings, state, IMAGES, labels=labels):
        if state.epoch == epochs * settings.pretrain_epochs // settings.usl_epochs:
            break
    return state.state_dict()


def equal(one, other):
    """Return whether two states are equal bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


@pytest.mark.parametrize(
    "chosen", [*SCHEDULES, *METHODS, *MODES], ids=lambda chosen: ",".join(map(str, chosen.values()))
)
def test_the_rule_says_whether_training_gives_the_same_state(chosen):
    short, long = (Settings(usl_epochs=epochs, **{"usl_type": "simclr", **SMALL, **chosen}) for epochs in (SHORT, LONG))
    same = equal(state_after(SHORT, short), state_after(SHORT, long))
    assert is_prefix(short, long) == same
    assert (obstacle(long) is None) == same


def test_every_schedule_is_tried():
    assert {chosen["schedule"] for chosen in SCHEDULES} == set(parts.schedule)


def test_settings_must_agree_if_they_have_an_effect():
    short = Settings(usl_epochs=2)
    for name, value, agrees in [
        ("alpha", 0.5, False),
        ("seed", 1, False),
        ("probe_every", 5, False),
        ("labels_per_class", 3, False),
        ("temperature", 0.9, True),
        ("projector_images", 7, True),
        ("data_dir", "elsewhere", True),
    ]:
        assert is_prefix(short, Settings(usl_epochs=4, **{name: value})) == agrees, name
    assert is_prefix(short, Settings(usl_epochs=4, labels_per_class=3), ignored=("labels_per_class",))


def test_a_pretraining_begins_only_longer_ones():
    assert not is_prefix(Settings(usl_epochs=2), Settings(usl_epochs=2))
    assert not is_prefix(Settings(usl_epochs=3), Settings(usl_epochs=2))
    assert not is_prefix(Settings(usl_epochs=0), Settings(usl_epochs=2))
    assert obstacle(Settings(schedule="cosine")) == "schedule: cosine"
    assert obstacle(Settings(usl_type="byol")) == "usl_type: byol"
    assert obstacle(Settings(layerwise="greedy")) == "layerwise: greedy"
