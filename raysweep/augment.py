"""Augmentation policies, for a whole batch at once and with parameters of its own for every image.

The images stay where they are (uint8, usually on the training device) and leave as float32 in [0, 1]. The parameters
are drawn on the CPU: a seed gives the same parameters on every device, and which images need an operation is known
without waiting for the device. Every operation equals torch's or torchvision's functional operation applied image by
image.

To add a policy, write a function that returns the images bit for bit at strength 0 and draws nothing there, give it an
entry in `POLICIES` at the end of this file, and name it in `config.POLICIES`.

The times in the comments are microseconds per 32×32 RGB image, batch 250, strength 1, one thread of an AMD EPYC of
2024, and for comparison with each other: `benchmarks/augmentation.py` measures what a view takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # as torchvision's ColorJitter numbers its operations
LUMINANCE = (0.2989, 0.587, 0.114)  # ITU-R 601, rounded as torchvision rounds it
CROP_TRIES = 10  # as torchvision's RandomResizedCrop
MASK_VALUE = 0.5  # black would look like the background of digits, and hide nothing there


@dataclass(frozen=True)
class Part:
    """Which images of a larger batch are here, the others being elsewhere: what is drawn is drawn for all of them."""

    of: int
    """Images of the whole batch."""
    index: Tensor
    """int64, on the CPU: which of them."""


def augment(
    images: Tensor,
    policies: Sequence[str],
    strength: float,
    blur: bool,
    generator: torch.Generator,
    part: Part | None = None,
) -> Tensor:
    """Random views of a batch under several policies: each reads what the one before it made.

    Args:
        images: (B, C, H, W), uint8 or float32 in [0, 1], C = 1 or 3, on any device.
        policies: names in `POLICIES`, in the order in which they are applied.
        strength: scales all of them alike; 0 is the identity.
        blur: read by `simclr` only.
        generator: a CPU generator, whatever the images' device.
        part: which images of a larger batch these are; they become what they would in it. None: they are all.

    Returns:
        (B, C, H, W) float32 in [0, 1] on the images' device, channels last in memory. With strength 0 these are the
        images bit for bit (possibly the same memory), and nothing is drawn from `generator`.
    """
    assert policies
    for name in policies:
        images = POLICIES[name](images, strength, blur, generator, part)
    return images


Parameters = TypeVar("Parameters", "SimCLRParameters", "AffineParameters", "NoiseParameters", "MaskParameters")


def count_of(images: Tensor, part: Part | None) -> int:
    """Images of the whole batch that these are a part of."""
    return len(images) if part is None else part.of


def of_part(parameters: Parameters, part: Part | None) -> Parameters:
    """Of what was drawn for a whole batch that of a part of it."""
    if part is None:
        return parameters
    return replace(parameters, **{each.name: getattr(parameters, each.name)[part.index] for each in fields(parameters)})


# ---- simclr ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SimCLRParameters:
    """What `draw_simclr` drew for a batch of B images: CPU tensors, (B,) except for `order`.

    Everything is drawn for every image; `jitter` and `blur` say where the colour factors and `sigma` are used.
    """

    top: Tensor  # int64; the crop window in pixels, as from torchvision's RandomResizedCrop.get_params
    left: Tensor
    height: Tensor
    width: Tensor
    flip: Tensor  # bool; mirror left to right, after the crop
    jitter: Tensor  # bool; apply the four colour operations
    brightness: Tensor  # float32; 0 gives black, 1 the image
    contrast: Tensor  # float32; 0 gives the image's mean gray, 1 the image
    saturation: Tensor  # float32; 0 gives the gray version of the image, 1 the image
    hue: Tensor  # float32 in [-0.5, 0.5]; turns of the colour circle
    order: Tensor  # int64 (B, 4); a permutation of BRIGHTNESS, CONTRAST, SATURATION, HUE for each image
    grayscale: Tensor  # bool
    blur: Tensor  # bool
    sigma: Tensor  # float32; the blur's standard deviation in pixels


def simclr(images: Tensor, strength: float, blur: bool, generator: torch.Generator, part: Part | None = None) -> Tensor:
    """Random views of a batch: SimCLR's augmentation (Chen et al. 2020, arXiv 2002.05709, Appendix A), scaled.

    Args:
        images: (B, C, H, W), uint8 or float32 in [0, 1], C = 1 or 3, on any device.
        strength: 1 is the published policy, 0 the identity; `draw_simclr` says what lies between and beyond.
        blur: as published for ImageNet; off is the published policy for CIFAR-10.
        generator: a CPU generator, whatever the images' device.
        part: as for `augment`.

    Returns:
        (B, C, H, W) float32 in [0, 1] on the images' device, channels last in memory. With strength 0 these are the
        images bit for bit (possibly the same memory), and nothing is drawn from `generator`.
    """
    if strength == 0:
        return to_float(images).contiguous(memory_format=torch.channels_last)
    height, width = images.shape[2:]
    parameters = draw_simclr(count_of(images, part), height, width, strength, blur, generator)
    return apply_simclr(images, of_part(parameters, part))


def draw_simclr(
    n: int, height: int, width: int, strength: float, blur: bool, generator: torch.Generator
) -> SimCLRParameters:
    """Draw the parameters for views of `n` images of `height` × `width` pixels.

    With s = `strength` > 0 and u = min(s, 1):

    - crop: area U(1 − 0.92u, 1) of the image, aspect ratio log-uniform in [(3/4)^u, (4/3)^u], the window found and
      placed as torchvision's RandomResizedCrop does;
    - flip with probability u/2;
    - jitter with probability 0.8u: brightness, contrast and saturation factors U(max(0, 1 − 0.8s), 1 + 0.8s), hue
      U(−h, h) with h = min(0.2s, 0.5), in an order of its own for every image;
    - grayscale with probability 0.2u;
    - blur with probability u/2, or never without `blur`; sigma U(0.1, 2) pixels.

    How much is drawn from `generator` (a CPU generator) depends on `n` only: runs that differ in strength or blur use
    the same random numbers.
    """
    assert strength > 0

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(shape, generator=generator).mul_(high - low).add_(low)

    u = min(strength, 1.0)
    log_ratio = u * math.log(4 / 3)
    area = uniform(1 - 0.92 * u, 1, CROP_TRIES, n).mul_(height * width)
    ratio = uniform(-log_ratio, log_ratio, CROP_TRIES, n).exp_()
    # float64, because in float32 a product with a number below 1 can be rounded up to the other factor.
    corner = torch.rand(2, n, dtype=torch.float64, generator=generator)
    top, left, window_height, window_width = _place_windows(area, ratio, corner, height, width, math.exp(log_ratio))

    probabilities = torch.tensor([[u / 2], [0.8 * u], [0.2 * u], [u / 2 if blur else 0.0]])
    flip, jitter, grayscale, blurred = uniform(0, 1, 4, n) < probabilities
    brightness, contrast, saturation = uniform(max(0.0, 1 - 0.8 * strength), 1 + 0.8 * strength, 3, n)
    max_hue = min(0.2 * strength, 0.5)
    return SimCLRParameters(
        top=top,
        left=left,
        height=window_height,
        width=window_width,
        flip=flip,
        jitter=jitter,
        brightness=brightness,
        contrast=contrast,
        saturation=saturation,
        hue=uniform(-max_hue, max_hue, n),
        order=uniform(0, 1, n, 4).argsort(dim=1),
        grayscale=grayscale,
        blur=blurred,
        sigma=uniform(0.1, 2.0, n),
    )


def _place_windows(
    area: Tensor, ratio: Tensor, corner: Tensor, height: int, width: int, max_ratio: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Top, left, height and width of crop windows, as torchvision's RandomResizedCrop.get_params finds them.

    `area` (pixels) and `ratio` (width / height) are (CROP_TRIES, n); the first try whose window fits into the image
    counts, and `corner`, (2, n) in [0, 1), places it. Where none fits, the window is the largest central one whose
    ratio lies in [1 / max_ratio, max_ratio].
    """
    image = torch.tensor([height, width]).view(2, 1, 1)
    tries = torch.stack((area / ratio, area * ratio)).sqrt_().round_().long()  # (2, CROP_TRIES, n): heights, widths
    fits = ((tries > 0) & (tries <= image)).all(dim=0)
    found, first = fits.max(dim=0)  # of equal values the first
    size = tries.gather(1, first.expand(2, 1, -1))[:, 0]
    start = (corner * (image[:, 0] - size + 1)).long()

    fallback = torch.tensor([min(height, round(width * max_ratio)), min(width, round(height * max_ratio))]).view(2, 1)
    size = torch.where(found, size, fallback)
    start = torch.where(found, start, (image[:, 0] - fallback) // 2)
    return start[0], start[1], size[0], size[1]


def apply_simclr(images: Tensor, parameters: SimCLRParameters) -> Tensor:
    """Crop and flip every image, then jitter, turn gray and blur those for which that was drawn.

    Args:
        images: (B, C, H, W), uint8 or float32 in [0, 1], C = 1 or 3, on any device.
        parameters: from `draw_simclr` for B images of H × W pixels.

    Returns:
        (B, C, H, W) float32 in [0, 1] on the images' device, channels last in memory. With C = 1, hue, saturation and
        grayscale have no effect, as in torchvision.
    """
    p, device = parameters, images.device
    count, channels, height, width = images.shape
    assert channels in (1, 3)
    assert p.flip.shape == (count,)

    # Sorted by the turn in which an image's hue is adjusted (4: no jitter), so that `_jitter_` works on slices. To copy
    # sub-batches out and back takes 1.3 µs more.
    hue_turn = torch.where(p.jitter, (p.order == HUE).max(dim=1).indices, 4)
    sorting = hue_turn.argsort()
    ends = hue_turn.bincount(minlength=5).cumsum(0)[:4].tolist()
    blurred = p.blur.nonzero()[:, 0]
    there, back, window, gray, soft, sigma, *colours = to_device(
        device,
        sorting,
        sorting.argsort(),
        torch.stack((p.top, p.left, p.height, p.width, p.flip))[:, sorting],
        p.grayscale.nonzero()[:, 0],
        blurred,
        p.sigma[blurred],
        *_colours(p, sorting[: ends[3]], has_hue=channels == 3),
    )
    x = crop_and_flip(images.index_select(0, there), *window)
    _jitter_(x, ends, *colours)
    x = x.index_select(0, back)

    if channels == 3:
        x.index_copy_(0, gray, grayscale(x.index_select(0, gray)))
    if len(blurred):
        x.index_copy_(0, soft, gaussian_blur(x.index_select(0, soft), sigma, blur_kernel_size(height, width)))
    # Interpolation and blur can leave [0, 1] by a rounding error. `stack` changes the memory format in 0.9 µs,
    # `contiguous` in 1.2.
    return torch.stack(x.unbind(1), dim=-1).clamp_(0, 1).permute(0, 3, 1, 2)


def _colours(parameters: SimCLRParameters, jittered: Tensor, has_hue: bool) -> list[Tensor]:
    """What `_jitter_` reads, for the J images number `jittered`: numbers and, with hue, weights and shares.

    The numbers, (3 blends, 3, J, 1, 1, 1), are the factor of each blend and whether it is of saturation or contrast.
    """
    p = parameters
    order = p.order[jittered]
    blends = order[order != HUE].view(len(jittered), 3)
    factors = torch.stack((p.brightness, p.contrast, p.saturation), dim=1)[jittered].gather(1, blends)
    numbers = torch.stack((factors, blends == SATURATION, blends == CONTRAST)).permute(2, 0, 1)[..., None, None, None]
    return [numbers, *_hue_weights(p.hue[jittered])] if has_hue else [numbers]


def _jitter_(images: Tensor, ends: list[int], numbers: Tensor, *hue: Tensor) -> None:
    """Jitter the colours of a batch in place, each image in its own order.

    Besides hue, an image has three operations, and all three are blends with a gray: one pass does the next blend of
    every image, whichever it is, and before it the hue of those images whose turn that is. These are 7 steps for a
    batch; one group of images per order would make 96.

    Args:
        images: (B, C, H, W) float32, sorted by the turn of hue, those without jitter last.
        ends: for each turn of hue, 0 to 3, the end of its images.
        numbers: of the images up to `ends[3]`, from `_colours`.
        hue: weights and shares, from `_colours`.
    """
    x = images[: ends[3]]
    if len(x) == 0:
        return
    start = 0
    for turn, end in enumerate(ends):
        if hue and start < end:
            part = x[start:end]
            weights, shares = hue
            _turn_hue(part, weights[start:end], shares[start:end], out=part)
        start = end
        if turn < 3:
            factor, is_saturation, is_contrast = numbers[turn]
            gray = _luminance(x)
            mean = gray.mean(dim=(2, 3), keepdim=True)
            towards = (gray * is_saturation).add_(mean * is_contrast)  # black for brightness
            torch.lerp(towards, x, factor, out=x).clamp_(0, 1)


# ---- affine ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AffineParameters:
    """What `draw_affine` drew for a batch of B images: CPU tensors, (B,) except for `theta`."""

    deform: Tensor  # bool; apply `theta`
    theta: Tensor  # float32 (B, 2, 3); the map from places in the view to places in the image, as affine_grid takes it
    flip: Tensor  # bool; mirror left to right, after the map
    saturation: Tensor  # float32; 0 gives the gray version of the image, 1 the image
    hue: Tensor  # float32 in [-0.5, 0.5]; turns of the colour circle


def affine(images: Tensor, strength: float, generator: torch.Generator, part: Part | None = None) -> Tensor:
    """Random views of a batch: the deformations of Tang, Yang & Amit 2022 (doi 10.3389/fncom.2022.789253), scaled.

    Half of the images are deformed by an affine map, and all change their colours. Arguments and result as for
    `augment`; 1 is the published policy, `draw_affine` says what lies between and beyond.
    """
    if strength == 0:
        return to_float(images).contiguous(memory_format=torch.channels_last)
    return apply_affine(images, of_part(draw_affine(count_of(images, part), strength, generator), part))


def draw_affine(n: int, strength: float, generator: torch.Generator) -> AffineParameters:
    """Draw the parameters for views of `n` images.

    With s = `strength` > 0, u = min(s, 1) and v = min(s, 2):

    - with probability u/2 (a random half of the batch at s = 1) an affine map, otherwise none: each of the four
      entries of its linear part is that of the identity plus U(−0.25v, 0.25v), and each of the two shifts is
      U(−0.5v, 0.5v), in the coordinates of `torch.nn.functional.affine_grid`, in which the image spans [−1, 1]: 0.5 is
      a quarter of its side. At more than twice the published range, many views would show nothing of the image;
    - flip with probability u/2;
    - saturation factor 2^U(−2s, 2s), from s = 4 on 2^U(−8, 8), where colours are as good as pure or gray;
    - hue U(−h, h) with h = min(0.1s, 0.5).

    How much is drawn from `generator` (a CPU generator) depends on `n` only: runs that differ in strength use the same
    random numbers.
    """
    assert strength > 0

    def symmetric(most: float, *shape: int) -> Tensor:
        return torch.rand(shape, generator=generator).mul_(2 * most).sub_(most)

    chosen = torch.rand(2, n, generator=generator) < min(strength, 1.0) / 2
    reach = min(strength, 2.0)
    theta = torch.eye(2, 3) + symmetric(reach, n, 2, 3) * torch.tensor([0.25, 0.25, 0.5])
    return AffineParameters(
        deform=chosen[0],
        theta=theta,
        flip=chosen[1],
        saturation=symmetric(min(2 * strength, 8.0), n).exp2_(),
        hue=symmetric(min(0.1 * strength, 0.5), n),
    )


def apply_affine(images: Tensor, parameters: AffineParameters) -> Tensor:
    """Deform and flip those images for which that was drawn, then change saturation and hue of all.

    Bilinear, black where the view shows what lies outside the image: `affine_grid` and `grid_sample` of
    torch.nn.functional, `align_corners=False`.

    Args:
        images: (B, C, H, W), uint8 or float32 in [0, 1], C = 1 or 3, on any device.
        parameters: from `draw_affine` for B images.

    Returns:
        (B, C, H, W) float32 in [0, 1] on the images' device, channels last in memory. With C = 1, saturation and hue
        have no effect.
    """
    p, device = parameters, images.device
    assert images.shape[1] in (1, 3)
    assert p.flip.shape == (len(images),)
    x = to_float(images)
    deformed = p.deform.nonzero()[:, 0]
    colours = [_per_image(p.saturation), *_hue_weights(p.hue)] if x.shape[1] == 3 else []
    chosen, theta, flip, *colours = to_device(device, deformed, p.theta[deformed], _per_image(p.flip), *colours)
    if len(chosen):
        grid = F.affine_grid(theta, [len(chosen), *x.shape[1:]], align_corners=False)
        views = F.grid_sample(x.index_select(0, chosen), grid, align_corners=False)
        x = x.index_copy(0, chosen, views.clamp_(0, 1))  # interpolation can leave [0, 1] by a rounding error
    x = torch.where(flip, x.flip(3), x)
    if colours:
        saturation, weights, shares = colours
        x = torch.lerp(grayscale(x), x, saturation).clamp_(0, 1)
        x = _turn_hue(x, weights, shares)
    return x.contiguous(memory_format=torch.channels_last)


# ---- noise -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NoiseParameters:
    """What `draw_noise` drew for a batch of B images: CPU tensors."""

    sigma: Tensor  # float32 (B,); the noise's standard deviation
    noise: Tensor  # float32 (B, C, H, W); standard normal


def noise(images: Tensor, strength: float, generator: torch.Generator, part: Part | None = None) -> Tensor:
    """Views of a batch with Gaussian noise: `draw_noise` says how much. Arguments and result as for `augment`."""
    if strength == 0:
        return to_float(images).contiguous(memory_format=torch.channels_last)
    shape = (count_of(images, part), *images.shape[1:])
    return apply_noise(images, of_part(draw_noise(shape, strength, generator), part))


def draw_noise(shape: Sequence[int], strength: float, generator: torch.Generator) -> NoiseParameters:
    """Draw the noise for images of `shape` (B, C, H, W).

    Its standard deviation is U(0, 0.2 `strength`) for each image, images spanning [0, 1], so that an encoder meets
    clean and noisy ones. How much is drawn from `generator` (a CPU generator) depends on `shape` only.
    """
    assert strength > 0
    sigma = torch.rand(shape[0], generator=generator).mul_(0.2 * strength)
    return NoiseParameters(sigma, torch.randn(tuple(shape), generator=generator))


def apply_noise(images: Tensor, parameters: NoiseParameters) -> Tensor:
    """Add `sigma` times `noise` to every image, and clamp to [0, 1].

    (B, C, H, W), uint8 or float32 in [0, 1], on any device -> float32 on the same device, channels last in memory.
    """
    p, device = parameters, images.device
    assert p.noise.shape == images.shape
    sigma, added = to_device(device, _per_image(p.sigma), p.noise)
    return torch.addcmul(to_float(images), sigma, added).clamp_(0, 1).contiguous(memory_format=torch.channels_last)


# ---- mask ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MaskParameters:
    """What `draw_mask` drew for a batch of B images: a CPU tensor."""

    masked: Tensor  # bool (B, rows, columns); which patches of the grid are hidden


def mask(images: Tensor, strength: float, generator: torch.Generator, part: Part | None = None) -> Tensor:
    """Views of a batch with random patches hidden, as for masked autoencoders (He et al. 2022, arXiv 2111.06377).

    `draw_mask` says how many. Arguments and result as for `augment`.
    """
    if strength == 0:
        return to_float(images).contiguous(memory_format=torch.channels_last)
    height, width = images.shape[2:]
    return apply_mask(images, of_part(draw_mask(count_of(images, part), height, width, strength, generator), part))


def mask_patch_size(height: int, width: int) -> int:
    """Side of the square patches in pixels: an eighth of the shorter side, at least 2."""
    return max(2, min(height, width) // 8)


def draw_mask(n: int, height: int, width: int, strength: float, generator: torch.Generator) -> MaskParameters:
    """Draw the patches to hide in `n` images of `height` × `width` pixels.

    A grid of squares of `mask_patch_size` starts in the upper left corner; the last row and column are cut off where
    they do not fit. Of its P patches, the share min(0.5 `strength`, 0.75) is hidden, any as likely as any other, drawn
    for each image. Where that is no whole number, it is rounded up or down at random, so that its mean is exact: weak
    masks on a small grid do not vanish. 0.75 is the share of He et al.

    How much is drawn from `generator` (a CPU generator) depends on the sizes only, and what is hidden at one strength
    is hidden at a greater one.
    """
    assert strength > 0
    patch = mask_patch_size(height, width)
    rows, columns = math.ceil(height / patch), math.ceil(width / patch)
    rank = torch.rand(n, rows * columns, generator=generator).argsort(dim=1).argsort(dim=1)
    count = (min(0.5 * strength, 0.75) * rows * columns + torch.rand(n, 1, generator=generator)).floor()
    return MaskParameters((rank < count).view(n, rows, columns))


def apply_mask(images: Tensor, parameters: MaskParameters) -> Tensor:
    """Set the hidden patches of every image to `MASK_VALUE` in all channels.

    (B, C, H, W), uint8 or float32 in [0, 1], on any device -> float32 on the same device, channels last in memory.
    """
    count, _, height, width = images.shape
    patch = mask_patch_size(height, width)
    (masked,) = to_device(images.device, parameters.masked)
    assert len(masked) == count
    pixels = masked.repeat_interleave(patch, dim=1).repeat_interleave(patch, dim=2)[:, None, :height, :width]
    return to_float(images).masked_fill(pixels, MASK_VALUE).contiguous(memory_format=torch.channels_last)


# ---- Operations ------------------------------------------------------------------------------------------------------


def to_device(device: torch.device, *tensors: Tensor) -> list[Tensor]:
    """CPU tensors on `device`, all of them in one transfer, for which nothing waits; on the CPU they themselves.

    By way of page-locked memory: from any other, CUDA waits for the work before it and only then begins to copy.
    """
    if device.type == "cpu":
        return list(tensors)
    buffer, places = packed(tensors, page_locked=device.type == "cuda")
    return unpacked(buffer.to(device, non_blocking=True), tensors, places)


def packed(tensors: Sequence[Tensor], page_locked: bool) -> tuple[Tensor, list[int]]:
    """The bytes of CPU tensors, one after the other, as (bytes,) uint8, and where each begins, a multiple of 16."""
    places = [0]
    for tensor in tensors:
        places.append(-(-(places[-1] + tensor.nbytes) // 16) * 16)
    buffer = torch.empty(places.pop(), dtype=torch.uint8, pin_memory=page_locked)
    for tensor, own in zip(tensors, unpacked(buffer, tensors, places), strict=True):
        own.copy_(tensor)
    return buffer, places


def unpacked(buffer: Tensor, like: Sequence[Tensor], places: Sequence[int]) -> list[Tensor]:
    """The tensors in what `packed` gave, of the types and shapes of those in `like`; they share its memory."""
    return [
        buffer[place : place + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        for tensor, place in zip(like, places, strict=True)
    ]


def to_float(images: Tensor) -> Tensor:
    """Images as float32 in [0, 1]: uint8 is divided by 255, float32 passes through as it is."""
    if images.dtype == torch.uint8:
        return images.to(torch.float32).div_(255)
    assert images.dtype == torch.float32
    return images


def crop_and_flip(images: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor, flip: Tensor) -> Tensor:
    """Cut a window out of each image, resize it to the image's size and mirror it where `flip` says so.

    Bilinear without antialiasing, sampling clamped to the window: torchvision's `resized_crop(..., antialias=False)`,
    then `horizontal_flip`.

    Args:
        images: (B, C, H, W), uint8 or float32 in [0, 1].
        top: (B,) integers, as the next three: a window inside the image, in pixels.
        left: see `top`.
        height: see `top`.
        width: see `top`.
        flip: (B,) bool, or 0 and 1.

    Returns:
        (B, C, H, W) float32.
    """
    # First along the width, with columns as rows, then along the height: 4.6 µs, and 37 at 96×96. One `grid_sample`
    # takes 7.2 and 68, two batched products with interpolation matrices 7.2 and 177.
    rows = torch.arange(images.shape[2], device=images.device) + 0.5
    columns = torch.arange(images.shape[3], device=images.device) + 0.5
    columns = torch.where(flip.bool()[:, None], columns.flip(0), columns)
    x = _interpolate_rows(to_float(images.transpose(2, 3).contiguous()), columns, left, width)
    return _interpolate_rows(x.transpose(2, 3).contiguous(), rows, top, height)


def _interpolate_rows(images: Tensor, centers: Tensor, start: Tensor, length: Tensor) -> Tensor:
    """Interpolate R new rows between the `length` rows from `start` on, for each of the images (B, C, R, L).

    `centers`, (R,) or (B, R), says where the new rows lie, on a scale on which the old ones span [0, R]. Each is a
    weighted sum of two old rows, which is what an embedding bag is.
    """
    count, channels, rows, row_length = images.shape
    length = length[:, None]
    position = (centers * (length / rows) - 0.5).clamp_(min=0).minimum(length - 1)
    low = position.floor()
    position -= low
    low = low.int().add_(start[:, None])  # as int64 the indices cost 0.4 µs more
    # The row after a window's last one has weight 0; only beyond the image it must not be touched.
    index = torch.stack((low, (low + 1).clamp_(max=rows - 1)), dim=-1)
    weight = torch.stack((1 - position, position), dim=-1)
    first_rows = torch.arange(0, count * channels * rows, rows, dtype=torch.int32, device=images.device)
    return F.embedding_bag(
        (index[:, None] + first_rows.view(count, channels, 1, 1)).view(-1, 2),
        images.view(-1, row_length),
        per_sample_weights=weight[:, None].expand(-1, channels, -1, -1).reshape(-1, 2),
        mode="sum",
    ).view(count, channels, rows, row_length)


def _hue_weights(turns: Tensor) -> tuple[Tensor, Tensor]:
    """For `_turn_hue`: weights (B, 3, 3, 1, 1), new channel by old channel, and shares (B, 1, 1, 1), from turns (B,).

    A turn of the HSV hue keeps a pixel's smallest and largest channel value; in between, each channel is a trapezoid
    over the colour circle, linear in each sixth of it. Hence, without hue, division or a case for gray pixels,

        new_i = clamp(sum_j weight_ij old_j + share (smallest + largest), smallest, largest)

    where the weights, too, are a trapezoid: of the distance on the circle between where the turn brings channel j
    (red, green and blue start at 0, 1/3 and 2/3) and channel i. The share is what keeps gray pixels as they are.
    2.6 µs; by way of HSV and back it is 11.
    """
    place = torch.arange(3, device=turns.device) / 3
    distance = turns[:, None, None] + place - place[:, None]
    distance -= distance.round()
    weights = (3 - 12 * distance.abs_()).clamp_(-1, 1)
    return weights[..., None, None], _per_image((1 - weights[:, 0].sum(dim=1)) / 2)


def _turn_hue(images: Tensor, weights: Tensor, shares: Tensor, out: Tensor | None = None) -> Tensor:
    smallest, largest = images.amin(dim=1, keepdim=True), images.amax(dim=1, keepdim=True)  # `aminmax`: 12 µs more
    red, green, blue = images.chunk(3, dim=1)
    from_red, from_green, from_blue = weights.unbind(2)
    x = torch.addcmul((smallest + largest).mul_(shares), red, from_red)
    x.addcmul_(green, from_green).addcmul_(blue, from_blue)
    return torch.clamp(x, smallest, largest, out=out)


def grayscale(images: Tensor) -> Tensor:
    """The luminance in every channel, (B, C, H, W) as the images; equals torchvision's `rgb_to_grayscale`."""
    return _luminance(images).expand_as(images)


def blur_kernel_size(height: int, width: int) -> int:
    """Kernel size of the blur: odd, about 10 % of the shorter side as in SimCLR, at least 3."""
    return max(3, int(0.1 * min(height, width)) // 2 * 2 + 1)


def gaussian_blur(images: Tensor, sigma: Tensor, kernel_size: int) -> Tensor:
    """Blur the images with a Gaussian cut off at `kernel_size` pixels, reflecting at the border.

    (B, C, H, W) float32, `sigma` (B,) in pixels, `kernel_size` odd and less than twice H and W. Equals torchvision's
    `gaussian_blur`.
    """
    reach = kernel_size // 2
    offsets = torch.arange(-reach, reach + 1, device=images.device)
    kernel = (-0.5 * (offsets / sigma[:, None]) ** 2).softmax(dim=1)
    x: Tensor = F.pad(images, (reach, reach, reach, reach), mode="reflect")
    for dim in (2, 3):
        size = images.shape[dim]
        blurred = x.narrow(dim, 0, size) * _per_image(kernel[:, 0])
        for i in range(1, kernel_size):
            blurred.addcmul_(x.narrow(dim, i, size), _per_image(kernel[:, i]))
        x = blurred
    return x


def _luminance(images: Tensor) -> Tensor:
    """The luminance of (B, C, H, W) images as (B, 1, H, W); for C = 1 the images themselves."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.chunk(3, dim=1)
    return (red * LUMINANCE[0]).add_(green, alpha=LUMINANCE[1]).add_(blue, alpha=LUMINANCE[2])


def _per_image(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


Policy = Callable[[Tensor, float, bool, torch.Generator, Part | None], Tensor]
"""(images, strength, blur, generator, part) -> views, as `augment`."""

POLICIES: dict[str, Policy] = {
    "simclr": simclr,
    "affine": lambda images, strength, _, generator, part: affine(images, strength, generator, part),
    "noise": lambda images, strength, _, generator, part: noise(images, strength, generator, part),
    "mask": lambda images, strength, _, generator, part: mask(images, strength, generator, part),
}
