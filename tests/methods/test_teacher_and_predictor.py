"""BYOL and SimSiam: losses, gradients, the teacher's moving average, and what is saved."""

import copy
import math

import pytest
import torch
from lightly.loss import NegativeCosineSimilarity
from lightly.utils.scheduler import cosine_schedule

from raysweep.config import Settings
from raysweep.training.loop import pretrain
from raysweep.training.state import fresh_state
from tests.support.networks import make_encoder, method_of

CPU = torch.device("cpu")
B = 6


def settings_of(usl_type, **given):
    base = {"usl_epochs": 2, "batch_size": 20, "embedding_dim": 16, "predictor_width": 24, "precision": "fp32"}
    return Settings(usl_type=usl_type, **{**base, **given})


def method_in_fp64(usl_type, **given):
    """Return the method with its encoder, and two views of a batch, in float64."""
    settings = settings_of(usl_type, **given)
    encoder = make_encoder("conv6", 1, 8, 16, head=settings.head)
    torch.manual_seed(0)
    return method_of(settings, encoder).double(), torch.rand(2 * B, 1, 8, 8, dtype=torch.float64)


def images(count=60):
    return torch.randint(256, (count, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def by_hand(p, z):
    """Return ‖p/‖p‖ − z/‖z‖‖² for each row, equation 2 of the BYOL paper."""
    return (p / p.norm(dim=1, keepdim=True) - z / z.norm(dim=1, keepdim=True)).square().sum(1)


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_reference_byol_is_the_formula_and_lightly_up_to_scale(head):
    method, views = method_in_fp64("byol", head=head)
    got = method(views, views[:B])
    teacher, student = copy.deepcopy(method.teacher), method.encoder
    x1, x2 = views.chunk(2)
    z1, z2 = teacher.head(teacher(x1)).detach(), teacher.head(teacher(x2)).detach()
    p1, p2 = method.predictor(student.head(student(x1))), method.predictor(student.head(student(x2)))
    torch.testing.assert_close(got.total, (by_hand(p1, z2) + by_hand(p2, z1)).mean())
    lightly = NegativeCosineSimilarity()
    theirs = 4 + 2 * (lightly(p1, z2) + lightly(p2, z1))
    torch.testing.assert_close(got.total, theirs)
    weights = [*method.encoder.parameters(), *method.predictor.parameters()]
    ours, expected = torch.autograd.grad(got.total, weights), torch.autograd.grad(theirs, weights)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_reference_simsiam_equals_lightly_with_the_stop_gradient(head):
    method, views = method_in_fp64("simsiam", head=head)
    got = method(views, views[:B])
    z1, z2 = (method.encoder.head(method.encoder(view)) for view in views.chunk(2))
    p1, p2 = method.predictor(z1), method.predictor(z2)
    lightly = NegativeCosineSimilarity()
    theirs = (lightly(p1, z2.detach()) + lightly(p2, z1.detach())) / 2
    without_stop = (lightly(p1, z2) + lightly(p2, z1)) / 2
    torch.testing.assert_close(got.total, theirs)
    weights = list(method.parameters())
    ours, expected = torch.autograd.grad(got.total, weights), torch.autograd.grad(theirs, weights, retain_graph=True)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-12)
    other = torch.autograd.grad(without_stop, weights)
    assert any(not torch.allclose(a, b, rtol=1e-2) for a, b in zip(ours, other, strict=True)), "the stop must matter"


def test_the_momentum_rises_from_its_base_to_one_as_lightlys_schedule_does():
    method, _ = method_in_fp64("byol", teacher_momentum=0.97)
    assert method.momentum_at(0) == pytest.approx(0.97)
    assert method.momentum_at(1) == pytest.approx(1)
    for step in range(10):
        assert method.momentum_at(step / 9) == pytest.approx(cosine_schedule(step, 10, 0.97, 1.0), abs=1e-12)


def test_the_teacher_moves_by_the_stated_average_and_gets_no_gradient():
    settings = settings_of("byol", teacher_momentum=0.9, usl_lr=1e-2)
    state = fresh_state(settings, 1, 8, CPU)
    method = state.method
    student = [weight.clone() for weight in method.encoder.parameters()]
    expected = [weight.clone() for weight in method.teacher.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(student, expected, strict=True)), "it starts as a copy"
    trained = {id(weight) for group in state.optimizers[0].param_groups for weight in group["params"]}
    steps = 0

    def at_step():
        nonlocal steps, expected
        tau = 1 - 0.1 * (math.cos(math.pi * steps / 6) + 1) / 2  # two epochs of three steps; the paper counts from 0
        steps += 1
        expected = [tau * t + (1 - tau) * w for t, w in zip(expected, method.encoder.parameters(), strict=True)]
        torch.testing.assert_close(list(method.teacher.parameters()), expected, rtol=1e-5, atol=1e-7)
        assert not any(id(weight) in trained or weight.grad is not None for weight in method.teacher.parameters())
        return True

    for metrics in pretrain(settings, state, images(), at_step):
        if metrics is not None:  # the last step of an epoch does not ask whether to pause
            at_step()
    assert steps == 6
    assert all(not torch.equal(a, b) for a, b in zip(student, method.encoder.parameters(), strict=True))


@pytest.mark.parametrize("usl_type", ["byol", "simsiam"])
def test_saved_between_two_steps_training_resumes_bit_for_bit_with_the_teacher(usl_type):
    settings = settings_of(usl_type, head="mlp", head_width=16, head_output_batch_norm=True)
    whole, rest = (fresh_state(settings, 1, 8, CPU) for _ in range(2))
    for metrics in pretrain(settings, whole, images(), lambda: True):
        if metrics is None and (whole.epoch, whole.step) == (1, 1):
            rest.load_state_dict(copy.deepcopy(whole.state_dict()))
    for _ in pretrain(settings, rest, images()):
        pass
    saved, again = (state.state_dict()["method"] for state in (whole, rest))
    assert any(name.startswith("teacher.") for name in saved) == (usl_type == "byol")
    assert all(torch.equal(saved[name], again[name]) for name in saved)


def test_the_batch_normalisation_of_each_view_uses_the_statistics_of_that_view():
    method, views = method_in_fp64("byol", head="mlp")
    views[B:] = 0.3 * views[B:] + 0.5
    z1 = method.embed(views[:B])
    expected = method(views, views[:B]).total
    apart = method_in_fp64("byol", head="mlp")[0]
    assert torch.equal(apart(views, views[:B]).total, expected)
    together = method.embed(views)[:B]
    assert not torch.allclose(z1, together), "otherwise this test would show nothing"
