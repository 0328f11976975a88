"""The order of the images and the draws of modules depend on the seed, the epoch and the step alone."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from raysweep.augment.operations import to_float
from raysweep.config import Settings
from raysweep.randomness import seed_of, seeded_step
from raysweep.training.distributed import DistributedContext
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


def test_the_rate_of_an_epoch_leaves_out_what_a_pause_takes(monkeypatch):
    clock = [0.0]

    def ticking():
        clock[0] += 1
        return clock[0]

    monkeypatch.setattr("raysweep.training.loop.time.perf_counter", ticking)
    settings = Settings(precision="fp32", usl_epochs=1, batch_size=20)
    for metrics in pretrain(settings, fresh_state(settings, 1, 8, torch.device("cpu")), IMAGES, pause=lambda: True):
        if metrics is None:
            clock[0] += 1000  # a checkpoint is written
        else:
            assert len(IMAGES) / metrics["pretrain/images_per_s"] < 100


def test_property_orders_are_permutations_that_differ_between_epochs_and_seeds():
    every = torch.stack(orders(seed=0) + orders(seed=1))
    assert torch.equal(every.sort(dim=1).values, torch.arange(len(IMAGES)).expand_as(every))
    assert len(every.unique(dim=0)) == 2 * EPOCHS


def dropped(before, rank=0, seed=0, **given):
    """Pretrain with dropout in the head, from a state of PyTorch's generator.

    Returns:
        The masks of all steps, the draws after each step, and the weights at the end.
    """
    settings = Settings(**{"precision": "fp32", "usl_epochs": 2, "batch_size": 20, "seed": seed, **given})
    state = fresh_state(settings, 1, 8, torch.device("cpu"))
    masks, draws, drop = [], [], nn.Dropout(0.5)
    drop.register_forward_hook(lambda module, given, output: masks.append(output.detach() == 0))
    heads = [state.encoder.head] if state.heads is None else state.heads
    for head in heads:
        head.register_forward_hook(lambda module, given, output: drop(output) if module.training else output)
    state.method.after_step = lambda progress: draws.append(torch.rand(()))
    torch.manual_seed(before)
    kept = torch.get_rng_state()
    for _ in pretrain(settings, state, IMAGES, pause=lambda: True, context=DistributedContext(rank=rank)):
        assert torch.equal(torch.get_rng_state(), kept), "the generator of the process stays as it was"
        torch.rand(before)  # other work in this process
        kept = torch.get_rng_state()
    return masks, torch.stack(draws), torch.cat([weight.flatten() for weight in state.encoder.parameters()])


@pytest.mark.parametrize("given", [{"usl_type": "simclr"}, {"layerwise": "random", "usl_epochs": 1}], ids=str)
def test_property_dropout_depends_on_the_seed_and_the_step_alone(given):
    masks, draws, weights = dropped(1, **given)
    again, drawn_again, same = dropped(2, **given)
    assert all(map(torch.equal, masks, again))
    assert torch.equal(draws, drawn_again)
    assert torch.equal(weights, same)


def test_property_dropout_differs_between_steps_seeds_and_processes():
    every, draws, _ = zip(*(dropped(1, rank, seed, usl_type="simclr") for rank, seed in ((0, 0), (1, 0), (0, 1))))
    masks = torch.stack([mask for masks in every for mask in masks]).flatten(1)
    assert len(masks.unique(dim=0)) == 3 * 6
    assert torch.equal(draws[0], draws[1]), "all processes change the weights in the same way"
    assert len(torch.cat(draws[1:]).unique()) == 2 * 6


def test_reference_the_draws_of_a_step_are_those_of_a_seeded_pytorch():
    with seeded_step(5, "x", torch.device("cpu")):
        drawn = torch.rand(10)
    torch.manual_seed(seed_of(5, "x"))
    assert torch.equal(drawn, torch.rand(10))


def test_property_measures_and_pictures_draw_nothing_and_leave_the_method_as_it_is():
    settings = Settings(usl_type="ae_single", precision="fp32")
    state = fresh_state(settings, 1, 8, torch.device("cpu"))
    method, frozen = state.method, nn.Dropout(0.5).eval()
    layers = (nn.BatchNorm2d(1), nn.Dropout(0.5), frozen)
    method.decoder = nn.Sequential(method.decoder, *layers)
    method.embed = nn.Sequential(method.encoder, method.encoder.head, nn.Dropout(0.5))
    before = {name: value.clone() for name, value in method.state_dict().items()}
    images, modes = to_float(IMAGES), [module.training for module in method.modules()]
    for read in (state.embed, state.reconstruct):
        first = read(settings, images)
        torch.rand(1)
        assert torch.equal(read(settings, images), first)
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())
    assert [module.training for module in method.modules()] == modes
    assert not frozen.training
