"""The order of the images depends on the seed and the epoch alone."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from raysweep.config import Settings
from raysweep.training.loop import pretrain
from raysweep.training.state import fresh_state

IMAGES = torch.from_numpy((load_digits().images[:60] * 255 / 16).round().astype(np.uint8)[:, None])
EPOCHS = 3
OTHERS = {
    "policy": {"policy": "noise+mask"},
    "no augmentation": {"strength": 0.0},
    "strengths": {"strength": 1.0, "crop_strength": 0.0, "blur": True},
    "one view": {"usl_type": "ae_single"},
    "simclr": {"usl_type": "simclr"},
    "layer by layer": {"layerwise": "greedy", "usl_epochs": 1},
    "random blocks": {"layerwise": "random", "usl_epochs": 1},
    "network": {"embedding_dim": 8, "init": "kaiming"},
}


def orders(**given):
    """Return the order of the images in each of the first epochs of a trial."""
    settings = Settings(**{"precision": "fp32", "usl_epochs": EPOCHS, "batch_size": 20, **given})
    state, seen = fresh_state(settings, 1, 8, torch.device("cpu")), {}
    for _ in pretrain(settings, state, IMAGES, pause=lambda: True):
        if state.order is not None:  # the trial pauses in the middle of an epoch
            assert torch.equal(seen.setdefault(state.epoch, state.order), state.order)
    return [seen[epoch] for epoch in range(EPOCHS)]


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_property_trials_of_one_seed_see_the_same_order_in_every_epoch(other):
    for order, expected in zip(orders(**other), orders(), strict=True):
        assert torch.equal(order, expected)


def test_property_orders_are_permutations_that_differ_between_epochs_and_seeds():
    every = torch.stack(orders(seed=0) + orders(seed=1))
    assert torch.equal(every.sort(dim=1).values, torch.arange(len(IMAGES)).expand_as(every))
    assert len(every.unique(dim=0)) == 2 * EPOCHS
