"""Solarization, and augmentation that differs between the first and the second view."""

import pytest
import torch
import torchvision.transforms.v2.functional as T
from scipy import stats

from raysweep.augment.operations import BatchPart, all_views, by_view, only_view, solarize
from raysweep.augment.policies import simclr
from raysweep.augment.simclr import apply_simclr, draw_simclr
from raysweep.config import Settings, has_effect
from tests.support.images import random_images, seeded

BYOL = {
    "blur": True,
    "blur_probability": 1.0,
    "blur_probability_second": 0.1,
    "solarize_probability": 0.0,
    "solarize_probability_second": 0.2,
}


@pytest.mark.parametrize("channels", [1, 3])
def test_reference_solarize_equals_torchvision(channels):
    images = random_images(20, channels, 16, 16)
    floats = images.float() / 255
    assert torch.equal(solarize(floats), T.solarize(floats, 0.5))
    # Of the 256 values of uint8 images, it inverts the same ones as the usual threshold of 128.
    torch.testing.assert_close(solarize(floats), T.solarize(images, 128).float() / 255, rtol=0, atol=1e-6)


@pytest.mark.parametrize("strength", [0.5, 1.0, 3.0])
def test_property_probabilities_of_blur_and_solarization(strength):
    n, u = 20_000, min(strength, 1)
    p = draw_simclr(n, 8, 8, strength, True, seeded(1), blur_probability=0.3, solarize_probability=0.2)
    for mask, expected in ((p.blur, 0.3 * u), (p.solarize, 0.2 * u), (p.blur & p.solarize, 0.06 * u * u)):
        assert stats.binomtest(int(mask.sum()), n, expected).pvalue > 1e-3
    for other in (p.flip, p.jitter, p.grayscale):
        table = [[int((a & b).sum()) for b in (p.solarize, ~p.solarize)] for a in (other, ~other)]
        assert stats.chi2_contingency(table).pvalue > 1e-3, "solarization depends on no other choice"
    assert stats.ks_2samp(p.sigma[p.solarize].numpy(), p.sigma[~p.solarize].numpy()).pvalue > 1e-3


def test_property_solarization_changes_no_other_random_number():
    generators = [seeded(), seeded()]
    without, with_it = (
        draw_simclr(200, 8, 8, 1.0, True, each, solarize_probability=probability)
        for each, probability in zip(generators, (0.0, 0.7), strict=True)
    )
    assert torch.equal(generators[0].get_state(), generators[1].get_state())
    assert not without.solarize.any()
    assert 0 < with_it.solarize.sum() < 200
    for name in ("top", "width", "flip", "jitter", "hue", "order", "grayscale", "blur", "sigma"):
        assert torch.equal(getattr(without, name), getattr(with_it, name))


def test_the_recipe_of_byol_blurs_every_first_view_and_solarizes_second_views_only():
    count = 2000
    part = all_views(2, count)
    chances = (by_view(1.0, 0.1, part), by_view(0.0, 0.2, part))
    p = draw_simclr(2 * count, 8, 8, 1.0, True, seeded(), blur_probability=chances[0], solarize_probability=chances[1])
    assert p.blur[:count].all()
    assert stats.binomtest(int(p.blur[count:].sum()), count, 0.1).pvalue > 1e-3
    assert not p.solarize[:count].any()
    assert stats.binomtest(int(p.solarize[count:].sum()), count, 0.2).pvalue > 1e-3
    images = random_images(count, 1, 8, 8).repeat(2, 1, 1, 1)
    assert torch.equal(simclr(images, 1.0, seeded(), part, **BYOL), apply_simclr(images, p))


def test_views_of_a_part_of_the_batch_are_those_of_the_whole_batch():
    images = random_images(12, 3, 16, 16)
    whole = all_views(2, 6)
    index = torch.tensor([7, 0, 11, 3])
    views = simclr(images[index], 1.0, seeded(), BatchPart(12, index, whole.first), **BYOL)
    torch.testing.assert_close(views, simclr(images, 1.0, seeded(), whole, **BYOL)[index], rtol=0, atol=1e-6)


def test_without_values_for_the_second_view_both_views_are_drawn_alike():
    images = random_images(12, 3, 16, 16)
    same = {"blur": True, "blur_probability": 0.5, "solarize_probability": 0.0}
    views = [simclr(images, 1.0, seeded(), part, **same) for part in (None, all_views(2, 6), only_view(1, 12))]
    assert torch.equal(views[0], simclr(images, 1.0, seeded(), blur=True))
    assert torch.equal(views[0], views[1])
    assert torch.equal(views[0], views[2])


def test_a_value_for_the_second_view_needs_two_views():
    for method, expected in (("ae_single", False), ("byol", True)):
        assert has_effect("solarize_probability_second", Settings(usl_type=method)) == expected
    assert not has_effect("blur_probability", Settings())
