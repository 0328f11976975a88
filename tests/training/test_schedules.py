"""Schedules equal PyTorch's, and the training loop sets the rate for each step."""

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

from raysweep import space
from raysweep.config import METRICS, Settings, choices, has_effect, has_metric
from raysweep.errors import InputError
from raysweep.training.loop import pretrain
from raysweep.training.schedules import factor_of
from raysweep.training.state import fresh_state

RATE = 0.3
IMAGES = torch.from_numpy(np.random.RandomState(0).randint(0, 256, (50, 1, 8, 8)).astype(np.uint8))
STEPS = 5  # of an epoch


def torchs(optimizer, schedule, warmup, decay, final, steps):
    """Return PyTorch's schedulers for the same schedule, with the lengths of its phases in steps."""
    phases = [lr_scheduler.LinearLR(optimizer, 1 / warmup, total_iters=warmup - 1)] if warmup else []
    milestones = [warmup] if warmup else []
    if schedule == "cosine":
        phases.append(lr_scheduler.CosineAnnealingLR(optimizer, steps - warmup, eta_min=final * RATE))
    else:
        phases.append(lr_scheduler.ConstantLR(optimizer, 1.0))
        phases.append(lr_scheduler.LinearLR(optimizer, 1.0, final, total_iters=decay))
        milestones.append(steps - decay)
    return lr_scheduler.SequentialLR(optimizer, phases, milestones)


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
@pytest.mark.parametrize(("warmup", "final"), [(0, 0.0), (2, 0.1), (3, 1.0)])
def test_reference_schedules_are_pytorchs(schedule, warmup, final):
    epochs, decay = 7, 3
    chosen = {"schedule": schedule, "warmup_epochs": warmup, "final_lr": final, "usl_epochs": epochs}
    factor = factor_of(Settings(**chosen, **({"decay_epochs": decay} if schedule == "wsd" else {})))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=RATE)
    reference = torchs(optimizer, schedule, warmup * STEPS, decay * STEPS, final, epochs * STEPS)
    for step in range(epochs * STEPS):
        assert RATE * factor(step, epochs * STEPS, STEPS) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        reference.step()
    assert factor(epochs * STEPS - 1, epochs * STEPS, STEPS) >= final


def rates(**given):
    """Return the rates that each step of a trial had, and the metric `pretrain/lr` of each epoch."""
    settings = Settings(usl_type="simclr", batch_size=10, precision="fp32", usl_lr=RATE, optimizer="sgd", **given)
    state = fresh_state(settings, 1, 8, torch.device("cpu"))
    seen = []
    for optimizer in state.optimizers:
        optimizer.register_step_post_hook(lambda optimizer, *_: seen.append(optimizer.param_groups[0]["lr"]))
    metrics = list(pretrain(settings, state, IMAGES))
    return seen, [epoch.get("pretrain/lr") for epoch in metrics]


@pytest.mark.parametrize("layerwise", ["none", "greedy", "random"])
def test_the_loop_sets_the_rate_of_each_step(layerwise):
    seen, logged = rates(layerwise=layerwise, usl_epochs=2, schedule="cosine", warmup_epochs=1)
    assert logged == seen[STEPS - 1 :: STEPS], "the metric is the rate of the epoch's last step"
    epochs = 10 if layerwise == "random" else 2
    settings = Settings(schedule="cosine", warmup_epochs=1, usl_epochs=epochs)
    once = [RATE * factor_of(settings)(step, epochs * STEPS, STEPS) for step in range(epochs * STEPS)]
    assert seen == once * (5 if layerwise == "greedy" else 1), "each stage of greedy training has its own schedule"


def test_a_constant_rate_is_never_set_and_not_reported():
    assert rates(usl_epochs=1) == ([RATE] * STEPS, [None])
    assert factor_of(Settings()) is None
    assert not has_metric("pretrain/lr", Settings())
    assert has_metric("pretrain/lr", Settings(schedule="wsd"))
    assert "pretrain/lr" in METRICS
    assert "pretrain/lr" not in choices()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"schedule": "cosine", "usl_epochs": 9},
            "schedule=cosine: warmup_epochs=10, but pretraining has only 9 epochs; raise usl_epochs",
        ),
        (
            {"schedule": "wsd", "usl_epochs": 12, "warmup_epochs": 8, "decay_epochs": 5},
            "schedule=wsd: warmup_epochs=8 and decay_epochs=5, but pretraining has only 12 epochs; raise usl_epochs",
        ),
        ({"schedule": "cosine", "final_lr": 1.5}, "final_lr: must be less than or equal to 1"),
        ({"schedule": "cosin"}, "schedule: must be"),
        ({"decay_epochs": 5}, "decay_epochs: has no effect in any trial"),
        ({"schedule": "cosine", "decay_epochs": 5}, "it needs schedule: wsd"),
    ],
)
def test_a_schedule_that_does_not_fit_is_one_line(given, words):
    with pytest.raises(InputError) as fault:
        space.build({"base": given}, {}, "test")
    assert words in str(fault.value)
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize("layerwise", ["none", "random"])
@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
@pytest.mark.parametrize(("warmup", "decay"), [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (0, 2)])
def test_final_lr_has_an_effect_if_it_changes_the_rate_of_a_step(schedule, warmup, decay, layerwise):
    half = 5 if layerwise == "random" else 1  # of the epochs of the schedule; the phases are given in halves
    phases = {"warmup_epochs": warmup * half, **({"decay_epochs": decay * half} if schedule == "wsd" else {})}
    settings = Settings(schedule=schedule, layerwise=layerwise, usl_epochs=2, **phases)
    factors = [factor_of(settings.model_copy(update={"final_lr": final})) for final in (0.0, 0.5)]
    steps = 2 * half * STEPS
    differs = any(factors[0](step, steps, STEPS) != factors[1](step, steps, STEPS) for step in range(steps))
    assert has_effect("final_lr", settings) == differs


def test_a_sweep_of_final_lr_that_no_step_reaches_is_refused():
    base = {"schedule": "wsd", "usl_epochs": 12, "decay_epochs": 0}
    with pytest.raises(InputError, match=r"final_lr: has no effect in .*decay_epochs > 0 \(wsd\)"):
        space.build({"base": base, "search": {"final_lr": [0.0, 0.1]}}, {}, "test")


def test_random_blocks_share_one_schedule_over_the_epochs_of_all_blocks():
    settings = Settings(schedule="cosine", warmup_epochs=10, usl_epochs=2, layerwise="random")
    assert settings.pretrain_epochs == 10
