"""Properties of the losses, and comparisons with direct transcriptions of their definitions."""

import math

import pytest
import torch
from lightly.loss import BarlowTwinsLoss, NTXentLoss, VICRegLoss

from raysweep import parts
from raysweep.config import Settings
from raysweep.methods import losses
from raysweep.methods.vicreg import vicreg_losses


def embeddings(b=7, d=5, seed=0):
    draws = torch.Generator().manual_seed(seed)
    return [torch.randn(b, d, generator=draws, dtype=torch.float64, requires_grad=True) for _ in range(2)]


def nt_xent_by_hand(z1, z2, temperature):
    """Compute equation 1 of the SimCLR paper term by term."""
    views = [*z1, *z2]
    b = len(z1)

    def sim(i, j):
        return views[i] @ views[j] / (views[i].norm() * views[j].norm()) / temperature

    total = 0.0
    for i in range(2 * b):
        others = sum(sim(i, k).exp() for k in range(2 * b) if k != i)
        total = total - (sim(i, (i + b) % (2 * b)).exp() / others).log()
    return total / (2 * b)


def barlow_by_hand(z1, z2, weight):
    """Compute algorithm 1 of the Barlow Twins paper element by element, with batch norm's 1e-5 in the variances."""
    b, d = z1.shape
    total = 0.0
    for i in range(d):
        for j in range(d):
            a, c = z1[:, i] - z1[:, i].mean(), z2[:, j] - z2[:, j].mean()
            correlation = (a @ c / b) / ((a @ a / b + 1e-5).sqrt() * (c @ c / b + 1e-5).sqrt())
            total = total + ((1 - correlation) ** 2 if i == j else weight * correlation**2)
    return total


def hinge_by_hand(z1, z2, m, delta):
    """Compute the sum over all pairs of the batch, one pair at a time."""
    total = 0.0
    for i in range(len(z1)):
        for j in range(len(z2)):
            d = sum(abs(x - y) for x, y in zip(z1[i], z2[j]))
            total = total + max(0.0 * d, delta - (1 if i == j else -1) * (m - d))
    return total / len(z1)


def vicreg_by_hand(z1, z2, invariance, variance, covariance):
    """Compute the terms of the VICReg paper element by element, and their sum as in its published code."""
    b, d = z1.shape
    terms = [sum((x - y) ** 2 for x, y in zip(z1.flatten(), z2.flatten())) / (b * d), 0.0, 0.0]
    for z in (z1, z2):
        centred = [[z[n, i] - sum(z[:, i]) / b for n in range(b)] for i in range(d)]
        for i in range(d):
            for j in range(d):
                c = sum(x * y for x, y in zip(centred[i], centred[j])) / (b - 1)
                if i == j:
                    terms[1] = terms[1] + max(0.0 * c, 1 - (c + 1e-4).sqrt()) / d / 2
                else:
                    terms[2] = terms[2] + c**2 / d
    return invariance * terms[0] + variance * terms[1] + covariance * terms[2], terms


VICREG = {"vicreg_invariance": 25.0, "vicreg_variance": 25.0, "vicreg_covariance": 1.0}


@pytest.mark.parametrize(
    ("loss", "by_hand"),
    [
        (lambda a, b: losses.mse(a, b), lambda a, b: sum((x - y) ** 2 for x, y in zip(a.flatten(), b.flatten())) / 35),
        (lambda a, b: losses.l1(a, b), lambda a, b: sum(abs(x - y) for x, y in zip(a.flatten(), b.flatten())) / 35),
        (lambda a, b: losses.nt_xent(a, b, temperature=0.5), lambda a, b: nt_xent_by_hand(a, b, 0.5)),
        (lambda a, b: losses.nt_xent(a, b, temperature=0.05), lambda a, b: nt_xent_by_hand(a, b, 0.05)),
        (lambda a, b: losses.barlow_twins(a, b, barlow_lambda=0.005), lambda a, b: barlow_by_hand(a, b, 0.005)),
        (lambda a, b: losses.barlow_twins(a, b, barlow_lambda=1.0), lambda a, b: barlow_by_hand(a, b, 1.0)),
        (lambda a, b: losses.hinge(a, b, hinge_m=2.0, hinge_delta=1.0), lambda a, b: hinge_by_hand(a, b, 2.0, 1.0)),
        (lambda a, b: losses.hinge(a, b, hinge_m=5.0, hinge_delta=0.5), lambda a, b: hinge_by_hand(a, b, 5.0, 0.5)),
        (lambda a, b: losses.vicreg(a, b, **VICREG), lambda a, b: vicreg_by_hand(a, b, 25, 25, 1)[0]),
    ],
    ids=["mse", "l1", "nt_xent", "nt_xent cold", "barlow", "barlow strong", "hinge", "hinge wide", "vicreg"],
)
def test_reference_value_and_gradient(loss, by_hand):
    z1, z2 = embeddings()
    ours = loss(z1, z2)
    gradients = torch.autograd.grad(ours, (z1, z2))
    direct = by_hand(z1, z2)
    assert ours.item() == pytest.approx(direct.item(), rel=1e-9)
    for ours_grad, direct_grad in zip(gradients, torch.autograd.grad(direct, (z1, z2)), strict=True):
        torch.testing.assert_close(ours_grad, direct_grad, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("loss", [losses.mse, losses.l1], ids=["mse", "l1"])
def test_property_zero_at_agreement_and_symmetric(loss):
    z1, z2 = embeddings()
    assert loss(z1, z1).item() == 0
    assert loss(z1, z2).item() == loss(z2, z1).item() > 0


def test_property_nt_xent_is_symmetric_scale_free_and_blind_to_order():
    z1, z2 = embeddings()
    value = losses.nt_xent(z1, z2, temperature=0.5).item()
    order = torch.tensor([3, 1, 0, 2, 6, 5, 4])
    assert losses.nt_xent(z2, z1, temperature=0.5).item() == pytest.approx(value)
    assert losses.nt_xent(z1[order], z2[order], temperature=0.5).item() == pytest.approx(value)
    assert losses.nt_xent(z1 * 7, z2 * 0.1, temperature=0.5).item() == pytest.approx(value)


def test_property_nt_xent_of_a_collapsed_embedding_is_that_of_guessing():
    z = torch.ones(7, 5)
    assert losses.nt_xent(z, z, temperature=0.5).item() == pytest.approx(math.log(13))


def test_property_barlow_is_blind_to_shift_and_scale_and_near_zero_for_agreeing_independent_dimensions():
    z1, z2 = embeddings(b=4000)
    value = losses.barlow_twins(z1, z2, barlow_lambda=0.005).item()
    assert losses.barlow_twins(z1 * 100 + 3, z2 * 50 - 1, barlow_lambda=0.005).item() == pytest.approx(value, rel=1e-4)
    assert losses.barlow_twins(z1, z1, barlow_lambda=0.005).item() < 1e-4
    assert value > 4


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_reference_nt_xent_equals_lightly(temperature):
    z1, z2 = embeddings(b=33, d=16)
    compare(losses.nt_xent(z1, z2, temperature=temperature), NTXentLoss(temperature=temperature)(z1, z2), z1, z2)


@pytest.mark.parametrize("weight", [0.005, 0.5])
def test_reference_barlow_twins_equals_lightly(weight):
    z1, z2 = embeddings(b=33, d=16)
    compare(losses.barlow_twins(z1, z2, barlow_lambda=weight), BarlowTwinsLoss(lambda_param=weight)(z1, z2), z1, z2)


@pytest.mark.parametrize("weights", [(25.0, 25.0, 1.0), (1.0, 10.0, 4.0)])
def test_reference_vicreg_equals_lightly(weights):
    z1, z2 = embeddings(b=33, d=16)
    ours = losses.vicreg(z1, z2, **dict(zip(VICREG, weights, strict=True)))
    compare(ours, VICRegLoss(*weights)(z1, z2), z1, z2)


def test_reference_each_term_of_vicreg():
    z1, z2 = embeddings()
    parts_of_loss = vicreg_losses(z1, 0.3 * z2, **VICREG).parts
    assert list(parts_of_loss) == ["invariance_loss", "variance_loss", "covariance_loss"]
    torch.testing.assert_close(list(parts_of_loss.values()), vicreg_by_hand(z1, 0.3 * z2, 25, 25, 1)[1])


def test_property_vicreg_has_a_finite_gradient_and_its_largest_variance_term_for_a_collapsed_embedding():
    z = torch.ones(7, 5, requires_grad=True)
    value = losses.vicreg(z, z, **VICREG)
    assert value.item() == pytest.approx(25 * (1 - 0.01))
    assert torch.autograd.grad(value, z)[0].isfinite().all()
    spread = 10 * torch.eye(6, dtype=torch.float64).repeat(200, 1)
    assert vicreg_losses(spread, spread, **VICREG).parts["variance_loss"] == 0


def compare(ours, theirs, z1, z2):
    """Check that value and gradients are the same to 1e-6."""
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)
    mine, other = torch.autograd.grad(ours, (z1, z2)), torch.autograd.grad(theirs, (z1, z2))
    torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-9)


def test_property_hinge_is_zero_where_pairs_are_near_and_others_far_and_only_there():
    z = 10 * torch.eye(6, dtype=torch.float64)
    assert losses.hinge(z, z, hinge_m=2.0, hinge_delta=1.0) == 0
    assert losses.hinge(z, z + 0.1, hinge_m=2.0, hinge_delta=1.0) == 0  # ‖·‖₁ = 0.6 < m − δ
    assert losses.hinge(z, z + 0.2, hinge_m=2.0, hinge_delta=1.0) == pytest.approx(0.2)  # for each, 1.2 is 0.2 too far
    collapsed = torch.zeros(6, 6, dtype=torch.float64)
    # Each of the 5 others adds δ + m.
    assert losses.hinge(collapsed, collapsed, hinge_m=2.0, hinge_delta=1.0) == pytest.approx(5 * 3.0)


def test_property_hinge_is_symmetric_blind_to_order_and_shift_but_not_to_scale():
    z1, z2 = embeddings()
    value, order = losses.hinge(z1, z2, hinge_m=2.0, hinge_delta=1.0), torch.randperm(len(z1))
    torch.testing.assert_close(losses.hinge(z2, z1, hinge_m=2.0, hinge_delta=1.0), value)
    torch.testing.assert_close(losses.hinge(z1[order], z2[order], hinge_m=2.0, hinge_delta=1.0), value)
    torch.testing.assert_close(losses.hinge(z1 + 3, z2 + 3, hinge_m=2.0, hinge_delta=1.0), value)
    torch.testing.assert_close(losses.hinge(4 * z1, 4 * z2, hinge_m=8.0, hinge_delta=4.0), 4 * value)
    assert losses.hinge(4 * z1, 4 * z2, hinge_m=2.0, hinge_delta=1.0) != value


@pytest.mark.parametrize("name", parts.loss)
def test_property_a_loss_says_whether_it_trains_on_equal_views(name):
    part = parts.loss[name]
    z = 0.1 * torch.randn(16, 8, generator=torch.Generator().manual_seed(0))  # near enough for the hinge to act
    z.requires_grad_()
    value = part.function(z, z.clone(), **part.arguments(Settings()))
    (gradient,) = torch.autograd.grad(value, z)
    acts = bool(value != 0) or bool(gradient.any())
    assert acts != part.traits["zero_on_equal_views"]
