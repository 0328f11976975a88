"""SimCLR's augmentation: crop, flip, colour jitter, grayscale and blur."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from raysweep.augment.operations import (
    blur_kernel_size,
    crop_and_flip,
    gaussian_blur,
    grayscale,
    hue_weights,
    luminance,
    to_device,
    turn_hue,
)

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # as torchvision's ColorJitter numbers its operations
CROP_TRIES = 10  # as torchvision's RandomResizedCrop


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
    top, left, window_height, window_width = place_windows(area, ratio, corner, height, width, math.exp(log_ratio))

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


def place_windows(
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
    return [numbers, *hue_weights(p.hue[jittered])] if has_hue else [numbers]


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
            turn_hue(part, weights[start:end], shares[start:end], out=part)
        start = end
        if turn < 3:
            factor, is_saturation, is_contrast = numbers[turn]
            gray = luminance(x)
            mean = gray.mean(dim=(2, 3), keepdim=True)
            towards = (gray * is_saturation).add_(mean * is_contrast)  # black for brightness
            torch.lerp(towards, x, factor, out=x).clamp_(0, 1)
