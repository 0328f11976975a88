"""The batched SimCLR augmentation equals torchvision's functional operations image by image and in distribution."""

from collections.abc import Callable
from dataclasses import fields, replace

import pytest
import torch
import torchvision.transforms.v2.functional as T
from scipy import stats
from torch import Tensor
from torchvision.transforms import v2

from raysweep.augment.operations import blur_kernel_size, crop_and_flip, gaussian_blur, grayscale, to_float
from raysweep.augment.policies import simclr
from raysweep.augment.simclr import CROP_TRIES, SimCLRParameters, apply_simclr, draw_simclr, place_windows
from tests.support.images import SHAPES, pictures, random_images, seeded


def palette(channels: int) -> Tensor:
    """Return (C, 9, 9): all combinations of 0, 0.5 and 1 (black, white, grays, pure colours, ties) and mixed values."""
    levels = torch.tensor([0.0, 0.5, 1.0])
    corners = torch.cartesian_prod(levels, levels, levels)
    mixed = torch.rand(27, 3, generator=seeded())
    nearly_gray = torch.rand(27, 1, generator=seeded(1)) + 1e-3 * torch.rand(27, 3, generator=seeded(2))
    return torch.cat((corners, mixed, nearly_gray.clamp(0, 1))).T.reshape(3, 9, 9)[:channels]


# One operation at a time


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(("channels", "height", "width"), SHAPES)
def test_reference_crop_and_flip_equals_torchvision(channels, height, width, dtype):
    windows = [  # top, left, height, width
        (0, 0, height, width),
        (0, 0, 1, 1),
        (height - 1, width - 1, 1, 1),
        (0, width - 1, height, 1),
        (height - 1, 0, 1, width),
        (0, 0, 3, 5),
        (height - 3, width - 5, 3, 5),
        (1, 2, height - 1, width - 2),
    ]
    generator = seeded()
    for _ in range(40):
        h, w = (int(torch.randint(1, size + 1, (), generator=generator)) for size in (height, width))
        top = int(torch.randint(0, height - h + 1, (), generator=generator))
        left = int(torch.randint(0, width - w + 1, (), generator=generator))
        windows.append((top, left, h, w))
    windows = windows * 2
    flip = torch.arange(len(windows)) < len(windows) // 2
    images = random_images(len(windows), channels, height, width)
    images = images if dtype == torch.uint8 else to_float(images)

    top, left, h, w = torch.tensor(windows).T
    views = crop_and_flip(images, top, left, h, w, flip)

    assert views.dtype == torch.float32
    for image, view, window, mirrored in zip(to_float(images), views, windows, flip, strict=True):
        expected = T.resized_crop(image, *window, size=[height, width], antialias=False)
        expected = T.horizontal_flip(expected) if mirrored else expected
        torch.testing.assert_close(view, expected, rtol=0, atol=1e-5)


POSITIVE = [0.0, 0.2, 0.7, 1.0, 1.3, 1.8, 5.0, *(3 * torch.rand(10, generator=seeded())).tolist()]
TURNS = [*(i / 12 for i in range(-6, 7)), 1e-4, -1e-4, *(torch.rand(30, generator=seeded()) - 0.5).tolist()]


def only(name: str, values: Tensor, height: int, width: int) -> SimCLRParameters:
    """Return parameters for a single colour operation of `apply_simclr`: no crop, all other factors neutral."""
    n = len(values)
    zeros, ones, no = torch.zeros(n), torch.ones(n), torch.zeros(n, dtype=torch.bool)
    neutral = SimCLRParameters(
        top=zeros.long(),
        left=zeros.long(),
        height=torch.full((n,), height),
        width=torch.full((n,), width),
        flip=no,
        jitter=~no,
        brightness=ones,
        contrast=ones,
        saturation=ones,
        hue=zeros,
        order=torch.stack([torch.randperm(4, generator=seeded(i)) for i in range(n)]),
        grayscale=no,
        blur=no,
        sigma=ones,
        solarize=no,
    )
    return replace(neutral, **{name: values})


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("name", "single", "factors"),
    [
        ("brightness", T.adjust_brightness, POSITIVE),
        ("contrast", T.adjust_contrast, POSITIVE),
        ("saturation", T.adjust_saturation, POSITIVE),
        ("hue", T.adjust_hue, TURNS),
    ],
)
def test_reference_colour_operations_equal_torchvision(name, single, factors, channels):
    images = torch.rand(len(factors), channels, 9, 9, generator=seeded())
    images[::2] = palette(channels)
    views = apply_simclr(images.clone(), only(name, torch.tensor(factors), 9, 9))
    for image, view, factor in zip(images, views, factors, strict=True):
        torch.testing.assert_close(view, single(image, factor), rtol=0, atol=1e-5)


@pytest.mark.parametrize("turns", [-0.5, -0.3, 0.0, 0.05, 1 / 3, 0.5])
def test_property_hue_leaves_gray_pixels_bit_for_bit(turns):
    gray = torch.rand(4, 1, 8, 8, generator=seeded()).expand(4, 3, 8, 8)
    assert torch.equal(apply_simclr(gray, only("hue", torch.full((4,), turns), 8, 8)), gray)


@pytest.mark.parametrize("channels", [1, 3])
def test_reference_grayscale_equals_torchvision(channels):
    images = torch.rand(5, channels, 9, 9, generator=seeded())
    torch.testing.assert_close(grayscale(images), T.rgb_to_grayscale(images, channels), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kernel_size", [3, 5, 9])
@pytest.mark.parametrize(("channels", "height", "width"), SHAPES)
def test_reference_gaussian_blur_equals_torchvision(channels, height, width, kernel_size):
    sigma = torch.tensor([0.1, 0.5, 1.0, 2.0])
    images = torch.rand(4, channels, height, width, generator=seeded())
    for image, view, s in zip(images, gaussian_blur(images, sigma, kernel_size), sigma.tolist(), strict=True):
        torch.testing.assert_close(view, T.gaussian_blur(image, kernel_size, s), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("side", "expected"), [(8, 3), (32, 3), (39, 3), (40, 5), (96, 9), (224, 23)])
def test_blur_kernel_is_a_tenth_of_the_shorter_side_and_odd(side, expected):
    assert blur_kernel_size(side, 2 * side) == blur_kernel_size(2 * side, side) == expected


def test_to_float():
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(to_float(images), images / 255)
    floats = torch.rand(2, 3, 4, 4, generator=seeded())
    assert to_float(floats) is floats


# The whole policy


def one_by_one(images: Tensor, p: SimCLRParameters) -> Tensor:
    """Compute the expected result of `apply_simclr` by torchvision's functional operations, one image at a time."""
    height, width = images.shape[2:]
    operations = (
        (T.adjust_brightness, p.brightness),
        (T.adjust_contrast, p.contrast),
        (T.adjust_saturation, p.saturation),
        (T.adjust_hue, p.hue),
    )
    views = []
    for i, view in enumerate(images.float() / 255):
        window = [int(edge[i]) for edge in (p.top, p.left, p.height, p.width)]
        view = T.resized_crop(view, *window, size=[height, width], antialias=False)
        if p.flip[i]:
            view = T.horizontal_flip(view)
        if p.jitter[i]:
            for number in p.order[i].tolist():
                operation, factors = operations[number]
                view = operation(view, float(factors[i]))
        if p.grayscale[i]:
            view = T.rgb_to_grayscale(view, len(view))
        if p.blur[i]:
            view = T.gaussian_blur(view, blur_kernel_size(height, width), float(p.sigma[i]))
        if p.solarize[i]:
            view = T.solarize(view, 0.5)
        views.append(view)
    return torch.stack(views)


@pytest.mark.parametrize("strength", [0.3, 1.0, 2.0])
@pytest.mark.parametrize(("channels", "height", "width"), SHAPES)
def test_reference_views_equal_torchvision_image_by_image(channels, height, width, strength):
    images = random_images(128, channels, height, width)
    p = draw_simclr(128, height, width, strength, True, seeded(1), solarize_probability=0.4)
    everything = replace(p, jitter=torch.ones_like(p.jitter), blur=torch.zeros_like(p.blur))
    nothing = replace(p, jitter=torch.zeros_like(p.jitter), blur=torch.zeros_like(p.blur))
    assert all(0 < mask.sum() < 128 for mask in (p.flip, p.jitter, p.grayscale, p.blur, p.solarize))  # both are tested
    for parameters in (p, everything, nothing):
        views = apply_simclr(images, parameters)
        torch.testing.assert_close(views, one_by_one(images, parameters), rtol=0, atol=5e-5, check_stride=False)
        assert views.min() >= 0
        assert views.max() <= 1
        assert views.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]])
def test_reference_one_order_for_the_whole_batch(order):
    images = random_images(16, 3, 8, 8)
    p = draw_simclr(16, 8, 8, 1.0, False, seeded())
    p = replace(p, order=torch.tensor(order).expand(16, 4), jitter=torch.ones(16, dtype=torch.bool))
    torch.testing.assert_close(apply_simclr(images, p), one_by_one(images, p), rtol=0, atol=5e-5, check_stride=False)


def test_property_batch_of_one_and_layout_and_type_of_the_input_do_not_matter():
    images = random_images(6, 3, 16, 16)
    p = draw_simclr(6, 16, 16, 1.0, True, seeded(3))
    views = apply_simclr(images, p)
    assert torch.equal(apply_simclr(to_float(images), p), views)
    assert torch.equal(apply_simclr(images.contiguous(memory_format=torch.channels_last), p), views)
    for i in range(6):
        alone = SimCLRParameters(*(getattr(p, field.name)[i : i + 1] for field in fields(p)))
        torch.testing.assert_close(apply_simclr(images[i : i + 1], alone)[0], views[i], rtol=0, atol=1e-6)


def test_property_the_input_is_not_changed():
    for images in (random_images(20, 3, 8, 8), torch.rand(20, 3, 8, 8, generator=seeded())):
        before = images.clone()
        simclr(images, 1.0, seeded(), blur=True)
        assert torch.equal(images, before)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_device_is_never_waited_for(channels):
    # Tensors on the meta device have no values. Reading one or combining it with a CPU tensor is an error.
    images = random_images(30, channels, 16, 16).to("meta")
    views = simclr(images, 1.0, seeded(), blur=True)
    assert views.device.type == "meta"
    assert views.shape == images.shape


@pytest.mark.parametrize("channels", [1, 3])
def test_property_strength_zero_is_the_identity_and_draws_nothing(channels):
    generator = seeded()
    state = generator.get_state()
    images = random_images(10, channels, 8, 8)
    for given in (images, to_float(images)):
        views = simclr(given, 0.0, generator, blur=True)
        assert torch.equal(views, images / 255)
        assert views.dtype == torch.float32
        assert views.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(generator.get_state(), state)


def test_property_a_tiny_strength_changes_the_images_hardly():
    images = random_images(200, 3, 32, 32)
    p = draw_simclr(200, 32, 32, 1e-3, False, seeded())
    assert p.flip.sum() + p.jitter.sum() + p.grayscale.sum() <= 3
    p = replace(p, jitter=torch.ones_like(p.jitter), flip=p.flip & False, grayscale=p.grayscale & False)
    difference = (apply_simclr(images, p) - images / 255).abs()
    assert 0 < difference.max() < 5e-3


def test_property_the_views_move_away_from_the_image_as_strength_grows():
    images = pictures(400)
    distances = [
        (simclr(images, s, seeded(), blur=False) - images).abs().mean().item() for s in (0.01, 0.1, 0.3, 0.6, 1.0)
    ]
    assert distances == sorted(distances)
    assert distances[-1] > 10 * distances[0]


def test_property_every_image_has_parameters_of_its_own():
    n = 1000
    p = draw_simclr(n, 32, 32, 1.0, True, seeded(), solarize_probability=0.2)
    for field in fields(p):
        values = getattr(p, field.name)
        distinct = len(values.unique(dim=0))
        expected = {torch.bool: 2, torch.int64: 20, torch.float32: 0.99 * n}[values.dtype]
        assert distinct >= expected, field.name
    assert len(p.order.unique(dim=0)) == 24
    assert torch.equal(p.order.sort(dim=1).values, torch.arange(4).expand(n, 4))
    # No parameter is a copy of another.
    for a, b in ((p.brightness, p.contrast), (p.contrast, p.saturation), (p.saturation, p.hue), (p.hue, p.sigma)):
        assert abs(torch.corrcoef(torch.stack((a, b)))[0, 1]) < 0.15

    views = simclr(pictures(50), 1.0, seeded(), blur=False)
    assert len(views.reshape(50, -1).unique(dim=0)) == 50


@pytest.mark.parametrize("blur", [False, True])
def test_property_the_same_generator_state_gives_the_same_bits(blur):
    images = random_images(40, 3, 16, 16)
    generator = seeded(5)
    first, second = simclr(images, 0.7, generator, blur=blur), simclr(images, 0.7, generator, blur=blur)
    assert torch.equal(first, simclr(images, 0.7, seeded(5), blur=blur))
    assert not torch.equal(first, second)


def test_property_strengths_share_the_random_numbers():
    draws, states = [], []
    for strength, blur in ((0.1, False), (0.5, True), (1.0, False), (3.0, True)):
        generator = seeded()
        draws.append(draw_simclr(100, 32, 32, strength, blur, generator))
        states.append(generator.get_state())
    assert all(torch.equal(states[0], state) for state in states)
    assert all(torch.equal(draws[0].order, p.order) for p in draws)
    assert bool((draws[0].flip <= draws[1].flip).all())
    torch.testing.assert_close(draws[0].hue * 5, draws[1].hue)


# Distributions. All seeds are fixed, so a test that passes once always passes. The thresholds say how rarely a correct
# implementation would fail with another seed.


@pytest.mark.parametrize("strength", [0.5, 1.0, 3.0])
def test_property_probabilities(strength):
    n = 20_000
    u = min(strength, 1)
    p = draw_simclr(n, 8, 8, strength, True, seeded(1))
    for mask, expected in ((p.flip, u / 2), (p.jitter, 0.8 * u), (p.grayscale, 0.2 * u), (p.blur, u / 2)):
        assert stats.binomtest(int(mask.sum()), n, expected).pvalue > 1e-3
    together = (p.flip & p.jitter & p.grayscale & p.blur).sum()  # the four are independent of each other
    assert stats.binomtest(int(together), n, (u / 2) ** 2 * 0.8 * u * 0.2 * u).pvalue > 1e-3
    counts = p.order.mul(torch.tensor([64, 16, 4, 1])).sum(dim=1).unique(return_counts=True)[1]
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3
    assert not draw_simclr(n, 8, 8, strength, False, seeded(1)).blur.any()


@pytest.mark.parametrize("strength", [0.25, 1.0, 3.0])
def test_property_factors_are_uniform(strength):
    p = draw_simclr(5000, 8, 8, strength, True, seeded(2))
    low, high = max(0.0, 1 - 0.8 * strength), 1 + 0.8 * strength
    hue = min(0.2 * strength, 0.5)
    ranges = [(p.brightness, low, high), (p.contrast, low, high), (p.saturation, low, high), (p.hue, -hue, hue)]
    for values, start, end in [*ranges, (p.sigma, 0.1, 2.0)]:
        assert values.min() >= start - 1e-6
        assert values.max() <= end + 1e-6
        assert stats.kstest(values.numpy(), stats.uniform(start, end - start).cdf).pvalue > 1e-3


def test_property_strengths_above_one_stay_valid():
    images = random_images(200, 3, 16, 16)
    for strength in (1.5, 4.0, 100.0):
        p = draw_simclr(200, 16, 16, strength, True, seeded())
        assert min(factor.min() for factor in (p.brightness, p.contrast, p.saturation)) >= 0
        assert p.hue.abs().max() <= 0.5
        views = apply_simclr(images, p)
        assert bool(torch.isfinite(views).all())
        assert views.min() >= 0
        assert views.max() <= 1


def torchvision_windows(n: int, height: int, width: int, u: float) -> Tensor:
    image = torch.empty(3, height, width)
    crop = v2.RandomResizedCrop((height, width), (1 - 0.92 * u, 1), ((3 / 4) ** u, (4 / 3) ** u))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        drawn = [crop.make_params([image]) for _ in range(n)]
    return torch.tensor([[d["top"], d["left"], d["height"], d["width"]] for d in drawn]).T


def our_windows(n: int, height: int, width: int, u: float, seed: int = 0) -> Tensor:
    p = draw_simclr(n, height, width, u, False, seeded(seed))
    return torch.stack((p.top, p.left, p.height, p.width))


def least_p_value(ours: Tensor, theirs: Tensor) -> float:
    """Return the least p-value of two-sample Kolmogorov-Smirnov tests per row, times the rows (Bonferroni)."""
    return min(stats.ks_2samp(a.numpy(), b.numpy()).pvalue for a, b in zip(ours, theirs, strict=True)) * len(ours)


def with_area_and_ratio(windows: Tensor) -> Tensor:
    return torch.cat((windows, windows[2:3] * windows[3:4], windows[2:3] / windows[3:4]))


@pytest.mark.parametrize(
    ("height", "width", "u"), [(32, 32, 1.0), (32, 32, 0.5), (8, 8, 1.0), (24, 48, 1.0), (64, 10, 1.0), (64, 10, 0.8)]
)
def test_reference_windows_are_distributed_as_torchvisions(height, width, u):
    # At 64 × 10 most tries do not fit, so the tenth try and the fallback matter.
    theirs = with_area_and_ratio(torchvision_windows(3000, height, width, u))
    assert least_p_value(with_area_and_ratio(our_windows(3000, height, width, u)), theirs) > 1e-3
    assert least_p_value(with_area_and_ratio(our_windows(3000, height, width, 0.9 * u)), theirs) < 1e-6


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (5, 1), (64, 10), (10, 64), (33, 32)])
@pytest.mark.parametrize("strength", [1e-3, 0.5, 1.0])
def test_property_windows_lie_inside_the_image(height, width, strength):
    top, left, h, w = our_windows(2000, height, width, strength)
    assert min(top.min(), left.min()) >= 0
    assert min(h.min(), w.min()) >= 1
    assert (top + h).max() <= height
    assert (left + w).max() <= width


@pytest.mark.parametrize(("height", "width"), [(32, 32), (40, 10), (10, 40), (30, 32), (32, 30)])
def test_reference_fallback_window_is_torchvisions(height, width):
    ratio = 4 / 3
    crop = v2.RandomResizedCrop((height, width), (5, 5), (1 / ratio, ratio))  # five times the image's area never fits
    expected = crop.make_params([torch.empty(3, height, width)])
    area = torch.full((CROP_TRIES, 2), 5.0 * height * width)
    window = place_windows(area, torch.ones_like(area), torch.rand(2, 2), height, width, ratio)
    for edge, name in zip(window, ("top", "left", "height", "width"), strict=True):
        assert edge.tolist() == [expected[name]] * 2


def statistics(views: Tensor) -> Tensor:
    """Return (statistics, B): each statistic responds to a different part of the policy."""
    red, green, blue = views.mean(dim=(2, 3)).T
    chroma = views.amax(dim=1) - views.amin(dim=1)
    gray = views.mean(dim=1)
    brightness = gray.mean(dim=(1, 2)) + 1e-3
    return torch.stack(
        (
            brightness,
            red,
            red - green,
            torch.atan2(3**0.5 * (green - blue), 2 * red - green - blue),
            (views[:, 0] - views[:, 1]).std(dim=(1, 2)),
            gray.std(dim=(1, 2)),
            gray.std(dim=(1, 2)) / brightness,
            chroma.mean(dim=(1, 2)),
            chroma.mean(dim=(1, 2)) / brightness,
            (gray[..., :16] - gray[..., 16:]).mean(dim=(1, 2)),
            gray.diff(dim=2).abs().mean(dim=(1, 2)),
            (views == 0).float().mean(dim=(1, 2, 3)),
            (views == 1).float().mean(dim=(1, 2, 3)),
        )
    )


VIEWS = 3000


@pytest.fixture(scope="module")
def torchvision_statistics() -> Tensor:
    pipeline = v2.Compose(
        [
            v2.RandomResizedCrop(32, scale=(0.08, 1), antialias=False),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], 0.8),
            v2.RandomGrayscale(0.2),
        ]
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return statistics(torch.stack([pipeline(image) for image in pictures(VIEWS)]))


def test_reference_strength_one_is_distributed_as_torchvisions_simclr(torchvision_statistics):
    views = simclr(pictures(VIEWS), 1.0, seeded(1), blur=False)
    assert least_p_value(statistics(views), torchvision_statistics) > 1e-3


CHANGES: dict[str, Callable[[SimCLRParameters], SimCLRParameters]] = {
    "whole image": lambda p: replace(
        p, top=p.top * 0, left=p.left * 0, height=p.height * 0 + 32, width=p.width * 0 + 32
    ),
    "no flip": lambda p: replace(p, flip=p.flip & False),
    "always jitter": lambda p: replace(p, jitter=p.jitter | True),
    "half the brightness": lambda p: replace(p, brightness=(p.brightness + 1) / 2),
    "half the contrast": lambda p: replace(p, contrast=(p.contrast + 1) / 2),
    "half the saturation": lambda p: replace(p, saturation=(p.saturation + 1) / 2),
    "half the hue": lambda p: replace(p, hue=p.hue / 2),
    "brightness last": lambda p: replace(p, order=torch.tensor([1, 2, 3, 0]).expand_as(p.order)),
    "no grayscale": lambda p: replace(p, grayscale=p.grayscale & False),
}


@pytest.mark.parametrize("change", CHANGES)
def test_reference_comparison_notices_another_policy(torchvision_statistics, change):
    p = CHANGES[change](draw_simclr(VIEWS, 32, 32, 1.0, False, seeded(1)))
    assert least_p_value(statistics(apply_simclr(pictures(VIEWS), p)), torchvision_statistics) < 1e-3


@pytest.mark.parametrize("strength", [0.5, 0.8, 1.25])
def test_reference_comparison_notices_another_strength(torchvision_statistics, strength):
    views = simclr(pictures(VIEWS), strength, seeded(1), blur=False)
    assert least_p_value(statistics(views), torchvision_statistics) < 1e-6


# Components with strengths of their own

COLOURS = ("brightness", "contrast", "saturation", "hue")
GEOMETRY = ("top", "left", "height", "width")
CHOICES = ("flip", "jitter", "grayscale", "blur", "sigma", "order")


def draw(strength=1.0, *, height=32, width=32, blur=True, generator=None, **own):
    return draw_simclr(500, height, width, strength, blur, generator or seeded(4), **own)


def agree(one: SimCLRParameters, other: SimCLRParameters, names: tuple[str, ...]) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)


@pytest.mark.parametrize("strength", [0.1, 0.5, 1.0, 3.0])
def test_property_component_strengths_equal_to_the_joint_strength_give_the_same_bits(strength):
    assert agree(
        draw(strength, crop_strength=strength, color_strength=strength),
        draw(strength),
        tuple(field.name for field in fields(SimCLRParameters)),
    )
    images, own = random_images(40, 3, 16, 16), {"crop_strength": strength, "color_strength": strength}
    assert torch.equal(simclr(images, strength, seeded(), **own), simclr(images, strength, seeded()))


def test_property_a_component_is_that_of_its_own_strength_and_leaves_the_others_alone():
    joint, weak = draw(1.0), draw(0.4)
    crop, color = draw(1.0, crop_strength=0.4), draw(1.0, color_strength=0.4)
    assert agree(crop, weak, GEOMETRY)
    assert agree(crop, joint, (*COLOURS, *CHOICES))
    assert agree(color, weak, COLOURS)
    assert agree(color, joint, (*GEOMETRY, *CHOICES))
    assert not agree(joint, weak, GEOMETRY)
    assert not agree(joint, weak, COLOURS)


def test_property_without_flip_no_image_is_mirrored_and_nothing_else_changes():
    for strength in (0.3, 1.0, 3.0):
        never = draw(strength, flip=False)
        assert not never.flip.any()
        names = tuple(field.name for field in fields(SimCLRParameters) if field.name != "flip")
        assert agree(never, draw(strength), names)
    images = pictures(200)
    views = simclr(images, 1.0, seeded(), flip=False, crop_strength=0, color_strength=0)
    assert torch.equal(views, images)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (8, 8), (12, 20), (20, 7)])
@pytest.mark.parametrize("as_floats", [False, True])
def test_property_components_at_strength_zero_are_the_identity(channels, height, width, as_floats):
    images = random_images(60, channels, height, width)
    images = to_float(images) if as_floats else images
    views = simclr(images, 1.0, seeded(), flip=False, crop_strength=0, color_strength=0)
    assert torch.equal(views, to_float(images))
    assert views.is_contiguous(memory_format=torch.channels_last)
    mirrored = simclr(images, 1.0, seeded(), crop_strength=0, color_strength=0)
    flip = draw_simclr(60, height, width, 1.0, False, seeded()).flip
    assert 0 < flip.sum() < 60
    assert torch.equal(mirrored, torch.where(flip.view(-1, 1, 1, 1), to_float(images).flip(3), to_float(images)))


def test_reference_without_crop_the_views_are_torchvisions_colours_and_without_colours_its_crops():
    images = random_images(100, 3, 12, 20)
    for own in ({"crop_strength": 0}, {"color_strength": 0}):
        p = draw_simclr(100, 12, 20, 1.0, True, seeded(2), **own)
        views = apply_simclr(images, p)
        torch.testing.assert_close(views, one_by_one(images, p), rtol=0, atol=5e-5, check_stride=False)
    alone = simclr(images, 1.0, seeded(2), color_strength=0)
    windows = draw_simclr(100, 12, 20, 1.0, False, seeded(2))
    cropped = crop_and_flip(images, windows.top, windows.left, windows.height, windows.width, windows.flip)
    assert torch.equal(alone, cropped.clamp(0, 1))


def test_property_the_same_random_numbers_whichever_component_is_set():
    states = []
    for own in ({}, {"flip": False}, {"crop_strength": 0}, {"color_strength": 0.0}, {"crop_strength": 2}):
        for height, width in ((32, 32), (12, 20)):
            generator = seeded()
            draw(0.5, height=height, width=width, generator=generator, **own)
            states.append(generator.get_state())
    assert all(torch.equal(states[0], state) for state in states)


def test_property_at_strength_zero_no_component_acts_and_nothing_is_drawn():
    images, generator = random_images(10, 3, 8, 8), seeded()
    state = generator.get_state()
    assert torch.equal(simclr(images, 0.0, generator, crop_strength=1, color_strength=1, blur=True), images / 255)
    assert torch.equal(generator.get_state(), state)


def test_reference_simclrs_recipe_for_cifar10_is_torchvisions():
    """SimCLR, Appendix B.9: the whole crop, half of the colour distortion, and no blur."""
    pipeline = v2.Compose(
        [
            v2.RandomResizedCrop(32, scale=(0.08, 1), antialias=False),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8),
            v2.RandomGrayscale(0.2),
        ]
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = statistics(torch.stack([pipeline(image) for image in pictures(VIEWS)]))
    views = simclr(pictures(VIEWS), 1.0, seeded(1), crop_strength=1, color_strength=0.5)
    assert least_p_value(statistics(views), theirs) > 1e-3
    assert least_p_value(statistics(simclr(pictures(VIEWS), 1.0, seeded(1))), theirs) < 1e-6
