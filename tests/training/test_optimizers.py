"""Every optimiser equals an independent one, and resumes bit for bit under every schedule."""

import subprocess
import sys

import lightly.utils.lars
import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from raysweep import parts
from raysweep.config import Settings, has_effect, make_settings
from raysweep.errors import InputError
from raysweep.training.adam import fused_adam
from raysweep.training.loop import pretrain
from raysweep.training.state import fresh_state
from tests.support import ROOT

IMAGES = torch.from_numpy((load_digits().images[:60] * 255 / 16).round().astype(np.uint8)[:, None])
REFERENCES = {
    "adam": ({}, lambda groups: torch.optim.Adam(groups, lr=0.01, fused=True)),
    "adamw": ({"weight_decay": 0.1}, lambda groups: torch.optim.AdamW(groups, lr=0.01, fused=True)),
    "sgd": ({"weight_decay": 0.1}, lambda groups: torch.optim.SGD(groups, lr=0.01, momentum=0.9)),
    "sgd, nesterov": (
        {"weight_decay": 0.1, "momentum": 0.5, "nesterov": True},
        lambda groups: torch.optim.SGD(groups, lr=0.01, momentum=0.5, nesterov=True),
    ),
    "lars": (
        {"weight_decay": 0.1, "trust_coefficient": 0.02},
        lambda groups: lightly.utils.lars.LARS(groups, lr=0.01, momentum=0.9, trust_coefficient=0.02),
    ),
}


def two_networks():
    """Return two equal networks with biases and a normalisation layer."""
    torch.manual_seed(0)
    networks = [nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    return networks


def optimizer_of(settings, weights):
    part = parts.optimizer[settings.optimizer]
    return part.function(list(weights), settings.usl_lr, **part.arguments(settings))


def check_equal_steps(networks, optimizers, tmp_path, exact=True):
    """Train both networks. Each optimiser continues from the other's saved state."""
    x, target = torch.randn(20, 5), torch.randn(20, 3)
    for step in range(6):
        for network, optimizer in zip(networks, optimizers, strict=True):
            optimizer.zero_grad()
            F.mse_loss(network(x), target).backward()
            optimizer.step()
        if step == 2 and exact:
            torch.save([optimizer.state_dict() for optimizer in optimizers], tmp_path / "saved.pt")
            saved = torch.load(tmp_path / "saved.pt", weights_only=True)
            for optimizer, other in zip(optimizers, reversed(saved), strict=True):
                optimizer.load_state_dict(other)
    for one, other in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        if exact:
            assert torch.equal(one, other)
        else:
            torch.testing.assert_close(one, other)
        assert one.requires_grad


@pytest.mark.parametrize("decays_all", [True, False])
@pytest.mark.parametrize("case", REFERENCES)
def test_reference_each_optimizer_is_another_librarys(tmp_path, case, decays_all):
    given, reference = REFERENCES[case]
    name = case.partition(",")[0]
    flag = {"lars": "adapt_norms_and_biases", "adam": None}.get(name, "decay_norms_and_biases")
    networks = two_networks()
    settings = Settings(optimizer=name, usl_lr=0.01, **given, **({flag: decays_all} if flag else {}))
    weights, vectors = ([w for w in networks[1].parameters() if (w.ndim > 1) == is_matrix] for is_matrix in (1, 0))
    decay = given.get("weight_decay", 0.0)
    if decays_all or name == "adam":
        groups = [{"params": list(networks[1].parameters()), "weight_decay": decay}]
    else:
        groups = [{"params": weights, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizers = (optimizer_of(settings, networks[0].parameters()), reference(groups))
    check_equal_steps(networks, optimizers, tmp_path, exact=name != "lars")


def test_reference_groups_with_their_own_settings(tmp_path):
    networks = two_networks()
    groups = [
        [{"params": network[0].parameters(), "weight_decay": 0.1, "lr": 0.1}, {"params": network[2].parameters()}]
        for network in networks
    ]
    check_equal_steps(networks, (fused_adam(groups[0], 0.01), torch.optim.Adam(groups[1], 0.01, fused=True)), tmp_path)


@pytest.mark.parametrize("clip_trust", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_reference_lars_is_the_papers(clip_trust, weight_decay):
    """You et al. 2017, algorithm 1: λ = η |w| / (|g| + β |w|), v ← m v + γ λ (g + β w), w ← w − v.

    LARC replaces γ λ by min(λ, γ).
    """
    momentum, eta, rate = 0.9, 0.5, 0.3
    settings = Settings(
        optimizer="lars", usl_lr=rate, weight_decay=weight_decay, trust_coefficient=eta, clip_trust=clip_trust
    )
    matrix, bias = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(3))
    w, b, v, v_of_bias = matrix.detach().clone(), bias.detach().clone(), torch.zeros(3, 4), torch.zeros(3)
    optimizer = optimizer_of(settings, [matrix, bias])
    for _ in range(4):
        g, g_of_bias = torch.randn(3, 4), torch.randn(3)
        matrix.grad, bias.grad = g.clone(), g_of_bias.clone()
        optimizer.step()
        ratio = eta * w.norm() / (g.norm() + weight_decay * w.norm())
        v = momentum * v + (min(ratio, rate) if clip_trust else rate * ratio) * (g + weight_decay * w)
        v_of_bias = momentum * v_of_bias + rate * g_of_bias
        w, b = w - v, b - v_of_bias
        torch.testing.assert_close(matrix.detach(), w)
        torch.testing.assert_close(bias.detach(), b)


def test_no_optimizer_imports_the_compiler():
    """The compiler would cost 1.35 s of every process. timm imports it, so LARS is left out."""
    program = """
import sys, torch
from raysweep import parts
for name in ("adam", "adamw", "sgd"):
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = parts.optimizer[name].function([weight], 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        weight.sum().backward()
        optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())
    assert weight.max() < 1
assert "torch._dynamo" not in sys.modules
"""
    process = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr


SCHEDULES = {"constant": {}, "cosine": {"warmup_epochs": 1}, "wsd": {"warmup_epochs": 1, "decay_epochs": 1}}
RESUMED = [
    *({"optimizer": name, "schedule": schedule} for name in parts.optimizer for schedule in parts.schedule),
    {"optimizer": "sgd", "schedule": "cosine", "layerwise": "greedy"},
    {"optimizer": "adamw", "schedule": "wsd", "layerwise": "random"},
]


@pytest.mark.parametrize("given", RESUMED, ids=lambda given: ",".join(given.values()))
def test_property_training_resumes_bit_for_bit_in_the_middle_of_an_epoch(tmp_path, given):
    settings = Settings(
        usl_type="simclr", usl_epochs=2, batch_size=20, usl_lr=1e-3, precision="fp32",
        **given, **SCHEDULES[given["schedule"]],
    )  # fmt: skip
    settings = settings.model_copy(update={"weight_decay": 1e-2})
    whole, broken = (fresh_state(settings, 1, 8, torch.device("cpu")) for _ in range(2))
    expected = list(pretrain(settings, whole, IMAGES))
    epochs = pretrain(settings, broken, IMAGES, pause=lambda: True)
    for _ in range(4):  # two pauses in the first epoch, its end, and a pause in the second epoch
        next(epochs)
    assert (broken.epoch, broken.step) == (1, 1)
    torch.save(broken.state_dict(), tmp_path / "state.pt")
    resumed = fresh_state(settings, 1, 8, torch.device("cpu"))
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    metrics = list(pretrain(settings, resumed, IMAGES))
    for one, other in zip(metrics, expected[1:], strict=True):
        assert one.keys() == other.keys()
        assert all(one[name] == other[name] for name in one if name != "pretrain/images_per_s")
    for one, other in zip(resumed.encoder.parameters(), whole.encoder.parameters(), strict=True):
        assert torch.equal(one, other)


def test_conditions_say_which_optimizer_reads_a_setting():
    assert not any(has_effect(name, Settings()) for name in ("weight_decay", "momentum", "trust_coefficient"))
    sgd = Settings(optimizer="sgd", momentum=0.0)
    assert has_effect("weight_decay", sgd)
    assert not has_effect("decay_norms_and_biases", sgd)
    assert not has_effect("nesterov", sgd)
    assert not has_effect("optimizer", Settings(usl_epochs=0))
    assert not has_effect("momentum", Settings(usl_epochs=0, optimizer="sgd"))


def test_lars_without_timm_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError) as fault:
        make_settings({"optimizer": "lars"}, "space.yaml")
    assert str(fault.value) == (
        "space.yaml: optimizer: lars: needs the package timm; install it with pip install 'raysweep[timm]'"
    )
