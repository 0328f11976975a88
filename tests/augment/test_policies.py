"""Properties of all policies but SimCLR's, and of lists of policies, and comparisons with references per image."""

import math
from dataclasses import fields, replace
from itertools import pairwise, permutations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as T
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats

from raysweep import parts
from raysweep.augment.affine import AffineParameters, apply_affine, draw_affine
from raysweep.augment.mask import MaskParameters, apply_mask, draw_mask, mask_patch_size
from raysweep.augment.noise import NoiseParameters, apply_noise, draw_noise
from raysweep.augment.operations import BatchPart, to_float
from raysweep.augment.policies import affine, mask, noise, simclr
from raysweep.augment.simclr import draw_simclr
from raysweep.augment.views import augment as views_of
from raysweep.config import Settings
from raysweep.space.expansion import acting_values
from tests.support.images import SHAPES, augment, pictures, random_images, seeded

NAMES = tuple(parts.policy)
LISTS = [*((name,) for name in NAMES), ("simclr", "noise"), ("mask", "affine"), NAMES, NAMES[::-1]]


# Lists of policies


@pytest.mark.parametrize("policies", [*((name,) for name in NAMES), ("simclr", "mask"), ("affine", "simclr", "noise")])
@given(
    strength=st.sampled_from([0.3, 1, 1.2, 2, 5, 7]),
    crop=st.sampled_from([None, 0, 0.4, 1, 3]),
    color=st.sampled_from([None, 0, 0.4, 2]),
    flip=st.booleans(),
    blur=st.booleans(),
)
@settings(max_examples=25)
def test_property_the_acting_values_draw_the_same_views(policies, strength, crop, color, flip, blur):
    """Trials whose acting values are equal count as the same trial, so their views must be equal bit for bit."""
    given_values = {"strength": strength, "crop_strength": crop, "color_strength": color, "flip": flip, "blur": blur}
    one = Settings(usl_type="simclr", policy="+".join(policies), **given_values)
    other = one.model_copy(update=acting_values(one))
    images = random_images(12, 3, 8, 8)
    views = [views_of(images, values, generator=seeded()) for values in (one, other)]
    assert torch.equal(*views)


def test_reference_limits_of_the_strength():
    def acting(policy, **values):
        return acting_values(Settings(usl_type="simclr", policy=policy, **values))

    assert [acting(name, strength=9)["strength"] for name in ("affine", "mask", "noise")] == [5, 1.5, 9]
    assert acting("simclr", strength=9) == {"strength": 1, "crop_strength": 1, "color_strength": 9}
    assert acting("simclr+mask", strength=9)["strength"] == 1.5
    assert acting("simclr+noise", strength=9)["strength"] == 9
    crop_only = {"crop_strength": 0.5, "color_strength": 0, "flip": False}
    assert acting("simclr", strength=0.1, **crop_only) == acting("simclr", strength=1, **crop_only)
    assert acting("simclr+noise", strength=0.1, **crop_only) != acting("simclr+noise", strength=1, **crop_only)
    assert acting("simclr", strength=0) == acting("simclr", usl_epochs=0) == {}


@pytest.mark.parametrize(("channels", "height", "width"), SHAPES)
def test_reference_one_policy_is_its_function(channels, height, width):
    images = random_images(20, channels, height, width)
    for blur in (False, True):
        ours, theirs = seeded(), seeded()
        assert torch.equal(augment(images, ("simclr",), 0.7, blur, ours), simclr(images, 0.7, theirs, blur=blur))
        assert torch.equal(ours.get_state(), theirs.get_state())
    for name, function in (("affine", affine), ("noise", noise), ("mask", mask)):
        views = augment(images, (name,), 0.7, False, seeded())
        assert torch.equal(views, function(images, 0.7, seeded()))


def test_reference_policies_follow_each_other():
    images = random_images(30, 3, 16, 16)
    views = augment(images, ("mask", "simclr", "noise"), 0.8, True, seeded())
    draws = seeded()
    expected = noise(simclr(mask(images, 0.8, draws), 0.8, draws, blur=True), 0.8, draws)
    assert torch.equal(views, expected)
    assert not torch.equal(views, augment(images, ("noise", "simclr", "mask"), 0.8, True, seeded()))


@pytest.mark.parametrize("policies", LISTS, ids="+".join)
@pytest.mark.parametrize("channels", [1, 3])
def test_property_strength_zero_is_the_identity_and_draws_nothing(channels, policies):
    generator = seeded()
    state = generator.get_state()
    images = random_images(10, channels, 9, 8)
    for given_images in (images, to_float(images)):
        views = augment(given_images, policies, 0.0, True, generator)
        assert torch.equal(views, images / 255)
        assert views.dtype == torch.float32
        assert views.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(generator.get_state(), state)


@given(
    policies=st.sampled_from([list_ for n in (1, 2, 3, 4) for list_ in permutations(NAMES, n)]),
    strength=st.one_of(st.floats(1e-6, 3.0), st.sampled_from([0.5, 1.0, 50.0])),
    channels=st.sampled_from([1, 3]),
    height=st.integers(8, 20),
    width=st.integers(8, 20),
    count=st.integers(1, 8),
    seed=st.integers(0, 2**31 - 1),
    as_floats=st.booleans(),
)
@settings(max_examples=40)
def test_property_views_are_images(policies, strength, channels, height, width, count, seed, as_floats):
    images = random_images(count, channels, height, width, seed)
    images = to_float(images) if as_floats else images
    before = images.clone()
    views = augment(images, policies, strength, True, seeded(seed))
    assert views.shape == images.shape
    assert views.dtype == torch.float32
    assert views.is_contiguous(memory_format=torch.channels_last)
    assert bool(torch.isfinite(views).all())
    assert views.min() >= 0
    assert views.max() <= 1
    assert torch.equal(images, before)
    assert torch.equal(augment(images, policies, strength, True, seeded(seed)), views)


@pytest.mark.parametrize("policies", LISTS, ids="+".join)
@pytest.mark.parametrize("channels", [1, 3])
def test_views_of_a_part_are_those_of_the_whole_batch(channels, policies):
    images, generator = random_images(12, channels, 16, 16), seeded()
    whole = augment(images, policies, 0.8, True, generator)
    index = torch.tensor([7, 0, 11, 3])
    for_part = seeded()
    views = augment(images[index], policies, 0.8, True, for_part, BatchPart(12, index))
    # A different memory layout changes the rounding of sums.
    torch.testing.assert_close(views, whole[index], rtol=0, atol=1e-6)
    assert torch.equal(for_part.get_state(), generator.get_state())


@pytest.mark.parametrize("policies", LISTS, ids="+".join)
@pytest.mark.parametrize("channels", [1, 3])
def test_property_every_image_has_a_view_of_its_own(channels, policies):
    generator = seeded()
    same = random_images(1, channels, 32, 32).expand(60, -1, -1, -1)
    views = augment(same, policies, 1.0, False, generator)
    distinct = len(views.reshape(60, -1).unique(dim=0))
    # Affine leaves half of the images undeformed.
    assert distinct >= (25 if policies == ("affine",) and channels == 1 else 59)
    assert not torch.equal(views, augment(same, policies, 1.0, False, generator))


@pytest.mark.parametrize("policy", NAMES)
def test_property_views_move_away_from_the_image_as_strength_grows(policy):
    images = pictures(400)
    distances = [
        (augment(images, (policy,), s, False, seeded()) - images).abs().mean().item()
        for s in (0.001, 0.1, 0.3, 0.6, 1.0)
    ]
    assert distances == sorted(distances)
    assert distances[0] < 1e-3
    assert distances[-1] > 0.05


@pytest.mark.parametrize("policy", NAMES)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_device_is_never_waited_for(channels, policy):
    # Tensors on the meta device have no values. Reading one or combining it with a CPU tensor is an error.
    images = random_images(30, channels, 12, 20).to("meta")
    views = augment(images, (policy,), 1.0, True, seeded())
    assert views.device.type == "meta"
    assert views.shape == images.shape


def drawn(policy, strength, generator, n=200, shape=(3, 12, 20)):
    """Return the parameters that a policy draws for `n` images of `shape`."""
    if policy == "simclr":
        return draw_simclr(n, *shape[1:], strength, True, generator)
    if policy == "affine":
        return draw_affine(n, strength, generator)
    if policy == "noise":
        return draw_noise((n, *shape), strength, generator)
    return draw_mask(n, *shape[1:], strength, generator)


@pytest.mark.parametrize("policy", NAMES)
def test_property_how_much_is_drawn_does_not_depend_on_strength(policy):
    states = []
    for strength in (0.01, 0.5, 1.0, 3.0):
        generator = seeded()
        drawn(policy, strength, generator)
        states.append(generator.get_state())
    assert all(torch.equal(states[0], state) for state in states)


@pytest.mark.parametrize(("policy", "apply"), [("affine", apply_affine), ("noise", apply_noise), ("mask", apply_mask)])
def test_property_a_batch_of_one_and_the_layout_of_the_input_do_not_matter(policy, apply):
    images = random_images(12, 3, 12, 20)
    p = drawn(policy, 1.0, seeded(1), 12)
    views = apply(images, p)
    assert torch.equal(apply(to_float(images), p), views)
    assert torch.equal(apply(images.contiguous(memory_format=torch.channels_last), p), views)
    for i in range(12):
        alone = type(p)(*(getattr(p, field.name)[i : i + 1] for field in fields(p)))
        torch.testing.assert_close(apply(images[i : i + 1], alone)[0], views[i], rtol=0, atol=1e-6)


# affine


def deformed(image, theta):
    """Deform one image by torch's functional operations."""
    grid = F.affine_grid(theta[None], [1, *image.shape], align_corners=False)
    return F.grid_sample(image[None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)[0]


def neutral(n):
    """Return parameters of `affine` that change nothing."""
    no = torch.zeros(n, dtype=torch.bool)
    return AffineParameters(no, torch.eye(2, 3).repeat(n, 1, 1), no, torch.ones(n), torch.zeros(n))


@pytest.mark.parametrize("strength", [0.3, 1.0, 2.0, 6.0])
@pytest.mark.parametrize(("channels", "height", "width"), SHAPES)
def test_reference_affine_image_by_image(channels, height, width, strength):
    images = random_images(120, channels, height, width)
    p = draw_affine(120, strength, seeded(1))
    assert all(0 < chosen.sum() < 120 for chosen in (p.deform, p.flip))  # both cases are tested
    for image, view, parameters in zip(images / 255, apply_affine(images, p), zip(*vars(p).values())):
        deform, theta, flip, saturation, hue = parameters
        if deform:
            image = deformed(image, theta)
        if flip:
            image = T.horizontal_flip(image)
        image = T.adjust_saturation(image, float(saturation))
        image = T.adjust_hue(image, float(hue))
        torch.testing.assert_close(view, image, rtol=0, atol=1e-4, check_stride=False)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (12, 20)])
def test_reference_affine_by_scipy(height, width):
    """Apply the same map in pixel coordinates: SciPy interpolates, and pixels outside the image are black."""
    images = random_images(40, 1, height, width) / 255
    p = replace(neutral(40), deform=torch.ones(40, dtype=torch.bool), theta=draw_affine(40, 1.0, seeded()).theta)
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    places = np.stack([(2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1, np.ones((height, width))])
    for image, view, theta in zip(images, apply_affine(images, p), p.theta.double().numpy()):
        x, y = np.einsum("ij,jhw->ihw", theta, places)
        pixels = [((y + 1) * height - 1) / 2, ((x + 1) * width - 1) / 2]
        expected = ndimage.map_coordinates(image[0].double().numpy(), pixels, order=1, mode="grid-constant")
        np.testing.assert_allclose(view[0], expected, rtol=0, atol=1e-3)


def test_reference_a_shift_of_a_half_is_a_quarter_of_the_side():
    images = random_images(1, 3, 32, 16)
    theta = torch.tensor([[[1.0, 0, 0.5], [0, 1, -0.25]]])  # the view shows pixels 4 to the right and 4 above
    view = apply_affine(images, replace(neutral(1), deform=torch.tensor([True]), theta=theta))[0]
    expected = T.affine(images[0] / 255, angle=0.0, translate=[-4, 4], scale=1.0, shear=[0.0, 0.0])
    torch.testing.assert_close(view, expected, rtol=0, atol=1e-3, check_stride=False)
    assert bool((view[:, :4] == 0).all())
    assert bool((view[:, :, 12:] == 0).all())


@pytest.mark.parametrize("channels", [1, 3])
def test_property_images_without_a_map_keep_their_pixels(channels):
    images = random_images(50, channels, 16, 16)
    p = draw_affine(50, 1.0, seeded())
    p = replace(p, saturation=torch.ones(50), hue=torch.zeros(50))
    views = apply_affine(images, p)
    expected = torch.where(p.flip[:, None, None, None], images.flip(3), images) / 255
    difference = (views - expected).abs().amax(dim=(1, 2, 3))
    assert bool((difference[~p.deform] <= (0 if channels == 1 else 1e-6)).all())
    assert bool((difference[p.deform] > 0.1).all())


def uniform_p_value(values, low, high):
    assert values.min() >= low - 1e-5
    assert values.max() <= high + 1e-5
    return stats.kstest(values.flatten().numpy(), stats.uniform(low, high - low).cdf).pvalue


@pytest.mark.parametrize("strength", [0.25, 1.0, 1.5, 8.0])
def test_property_distribution_of_affine(strength):
    n = 4000
    u, v = min(strength, 1), min(strength, 2)
    p = draw_affine(n, strength, seeded(3))
    entries = p.theta - torch.eye(2, 3)
    for row in range(2):
        for column in range(2):
            assert uniform_p_value(entries[:, row, column], -0.25 * v, 0.25 * v) > 1e-3
        assert uniform_p_value(entries[:, row, 2], -0.5 * v, 0.5 * v) > 1e-3
    assert uniform_p_value(p.saturation.log2(), -min(2 * strength, 8), min(2 * strength, 8)) > 1e-3
    assert uniform_p_value(p.hue, -min(0.1 * strength, 0.5), min(0.1 * strength, 0.5)) > 1e-3
    for chosen in (p.deform, p.flip):
        assert stats.binomtest(int(chosen.sum()), n, u / 2).pvalue > 1e-3
    assert stats.binomtest(int((p.deform & p.flip).sum()), n, (u / 2) ** 2).pvalue > 1e-3
    numbers = torch.cat((entries.flatten(1), p.saturation.log2()[:, None], p.hue[:, None]), dim=1)
    correlations = torch.corrcoef(numbers.T) - torch.eye(8)
    assert correlations.abs().max() < 0.08  # no two parameters share random numbers


# noise


@pytest.mark.parametrize(("channels", "height", "width"), SHAPES)
def test_reference_noise_image_by_image(channels, height, width):
    images = random_images(30, channels, height, width)
    p = draw_noise(images.shape, 2.0, seeded())
    for image, view, sigma, added in zip(images.numpy(), apply_noise(images, p), p.sigma.numpy(), p.noise.numpy()):
        np.testing.assert_allclose(view, np.clip(image / 255 + float(sigma) * added, 0, 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("strength", [0.3, 1.0, 3.0])
def test_property_distribution_of_noise(strength):
    p = draw_noise((2000, 1, 8, 8), strength, seeded(1))
    assert uniform_p_value(p.sigma, 0, 0.2 * strength) > 1e-3
    assert stats.kstest(p.noise.flatten().numpy(), stats.norm.cdf).pvalue > 1e-3
    gray = torch.full((2000, 3, 8, 8), 0.5)
    views = noise(gray, 0.5, seeded())
    spread = views.std(dim=(1, 2, 3))
    assert uniform_p_value(draw_noise(gray.shape, 0.5, seeded()).sigma, 0, 0.1) > 1e-3
    torch.testing.assert_close(spread, draw_noise(gray.shape, 0.5, seeded()).sigma, rtol=0.3, atol=1e-6)
    assert abs(views.mean() - 0.5) < 1e-3
    assert bool((views[:, 0] != views[:, 1]).any(dim=0).all())  # each channel has its own noise


def test_noise_is_clamped():
    p = NoiseParameters(torch.ones(1), torch.tensor([-2.0, 0, 2]).view(1, 1, 1, 3))
    assert apply_noise(torch.full((1, 1, 1, 3), 0.5), p).flatten().tolist() == [0, 0.5, 1]


# mask


@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 9), (12, 20), (28, 28), (33, 31), (96, 96)])
@pytest.mark.parametrize("channels", [1, 3])
def test_reference_mask_pixel_by_pixel(channels, height, width):
    images = random_images(6, channels, height, width)
    patch = mask_patch_size(height, width)
    p = draw_mask(6, height, width, 1.0, seeded())
    assert p.masked.shape == (6, math.ceil(height / patch), math.ceil(width / patch))
    views = apply_mask(images, p)
    for i in range(6):
        for row in range(height):
            for column in range(width):
                hidden = p.masked[i, row // patch, column // patch]
                expected = [0.5] * channels if hidden else (images[i, :, row, column] / 255).tolist()
                assert views[i, :, row, column].tolist() == expected


@pytest.mark.parametrize(("side", "patch"), [(8, 2), (16, 2), (28, 3), (32, 4), (96, 12)])
def test_patches_are_an_eighth_of_the_side(side, patch):
    assert mask_patch_size(side, side) == mask_patch_size(2 * side, side) == patch


@pytest.mark.parametrize("strength", [0.01, 0.3, 1.0, 1.5, 40.0])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (12, 20), (32, 32)])
def test_property_distribution_of_masks(height, width, strength):
    n = 3000
    masked = draw_mask(n, height, width, strength, seeded(2)).masked
    patches = masked[0].numel()
    expected = min(0.5 * strength, 0.75) * patches
    counts = masked.sum(dim=(1, 2))
    assert counts.min() >= math.floor(expected)
    assert counts.max() <= math.ceil(expected)
    rounded_up = int((counts > math.floor(expected)).sum())
    assert stats.binomtest(rounded_up, n, expected - math.floor(expected)).pvalue > 1e-3
    share = expected / patches
    z = (masked.sum(dim=0) - n * share) / (n * share * (1 - share)) ** 0.5
    assert z.abs().max() < 5  # every patch is equally likely
    if strength >= 0.3:
        assert len(masked.flatten(1).unique(dim=0)) > 200


def test_property_a_stronger_mask_hides_what_a_weaker_one_does():
    hidden = [draw_mask(100, 32, 32, strength, seeded()).masked for strength in (0.01, 0.2, 0.5, 1.0, 1.5)]
    for weaker, stronger in pairwise(hidden):
        assert bool((weaker <= stronger).all())
        assert weaker.sum() < stronger.sum()


def test_hidden_patches_say_nothing_of_the_image():
    masked = MaskParameters(torch.ones(1, 4, 4, dtype=torch.bool))
    for image in (torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8)):
        assert torch.equal(apply_mask(image, masked), torch.full((1, 3, 8, 8), 0.5))
