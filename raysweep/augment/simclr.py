"""The simclr policy: crop, flip, colour jitter, grayscale, blur and solarization."""

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
    solarize,
    to_device,
    turn_hue,
)

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # the numbers in torchvision's ColorJitter
CROP_TRIES = 10  # as in torchvision's RandomResizedCrop


@dataclass(frozen=True)
class SimCLRParameters:
    """Parameters drawn by `draw_simclr` for a batch of B images: CPU tensors, (B,) except for `order`.

    Everything is drawn for every image. `jitter` and `blur` tell for which images the colour factors and `sigma` are
    used.
    """

    top: Tensor  # int64; crop window in pixels (top, left, height, width), as in RandomResizedCrop.get_params
    left: Tensor
    height: Tensor
    width: Tensor
    flip: Tensor  # bool; whether to mirror left to right, after the crop
    jitter: Tensor  # bool; whether to apply the four colour operations
    brightness: Tensor  # float32; 0 gives black, 1 the image
    contrast: Tensor  # float32; 0 gives the image's mean gray, 1 the image
    saturation: Tensor  # float32; 0 gives the gray version of the image, 1 the image
    hue: Tensor  # float32 in [-0.5, 0.5]; turns of the colour circle
    order: Tensor  # int64 (B, 4); a permutation of BRIGHTNESS, CONTRAST, SATURATION, HUE for each image
    grayscale: Tensor  # bool; whether to turn the image gray
    blur: Tensor  # bool; whether to blur the image
    sigma: Tensor  # float32; standard deviation of the blur in pixels
    solarize: Tensor  # bool; whether to solarize the image


def draw_simclr(
    n: int,
    height: int,
    width: int,
    strength: float,
    blur: bool,
    generator: torch.Generator,
    *,
    flip: bool = True,
    crop_strength: float | None = None,
    color_strength: float | None = None,
    blur_probability: float | Tensor = 0.5,
    solarize_probability: float | Tensor = 0.0,
) -> SimCLRParameters:
    """Draw the parameters for views of `n` images of `height` × `width` pixels.

    Here s = `strength` > 0, u = min(s, 1), and c and k are the strengths of crop and colours (s if they are None):

    - crop: area U(1 − 0.92v, 1) of the image, aspect ratio log-uniform in [(3/4)^v, (4/3)^v], v = min(c, 1); the window
      is found and placed as in torchvision's RandomResizedCrop. With c = 0 it is the whole image;
    - flip with probability u/2, or never without `flip`;
    - jitter with probability 0.8u: brightness, contrast and saturation factors U(max(0, 1 − 0.8k), 1 + 0.8k), hue
      U(−h, h) with h = min(0.2k, 0.5), each image with its own order of the four operations;
    - grayscale with probability 0.2u;
    - neither jitter nor grayscale with k = 0;
    - blur with probability u times `blur_probability`, or never without `blur`; sigma U(0.1, 2) pixels;
    - solarization with probability u times `solarize_probability`.

    `blur_probability` and `solarize_probability` are numbers, or tensors (n,) with a number for each image.

    All probabilities follow s, and c and k change only the crop and the colours. In the paper too, half the colour
    distortion halves only the ranges.

    The number of draws from `generator` (a CPU generator) depends only on `n`, so runs that differ in any of the other
    arguments use the same random numbers.
    """
    assert strength > 0
    crop = strength if crop_strength is None else crop_strength
    color = strength if color_strength is None else color_strength

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(shape, generator=generator).mul_(high - low).add_(low)

    u, v = min(strength, 1.0), min(crop, 1.0)
    log_ratio = v * math.log(4 / 3)
    area = uniform(1 - 0.92 * v, 1, CROP_TRIES, n).mul_(height * width)
    ratio = uniform(-log_ratio, log_ratio, CROP_TRIES, n).exp_()
    # float64, because in float32 a product with a number below 1 can round up to the other factor.
    corner = torch.rand(2, n, dtype=torch.float64, generator=generator)
    if crop == 0:  # the windows of `place_windows` are square at aspect ratio 1
        top, left, window_height, window_width = (torch.full((n,), size) for size in (0, 0, height, width))
    else:
        top, left, window_height, window_width = place_windows(area, ratio, corner, height, width, math.exp(log_ratio))

    colored = u if color > 0 else 0.0
    chances = uniform(0, 1, 4, n)
    limits = torch.tensor([[u / 2 if flip else 0.0], [0.8 * colored], [0.2 * colored]])
    flipped, jitter, grayscale = chances[:3] < limits
    blurred = chances[3] < torch.as_tensor(u * blur_probability if blur else 0.0)
    # The low bits of a draw are a second draw that does not depend on the high bits (torch.rand draws 24 bits). A
    # separate draw would change all later draws.
    solarized = (chances[3] * 2**12).frac_() < torch.as_tensor(u * solarize_probability)
    brightness, contrast, saturation = uniform(max(0.0, 1 - 0.8 * color), 1 + 0.8 * color, 3, n)
    max_hue = min(0.2 * color, 0.5)
    return SimCLRParameters(
        top=top,
        left=left,
        height=window_height,
        width=window_width,
        flip=flipped,
        jitter=jitter,
        brightness=brightness,
        contrast=contrast,
        saturation=saturation,
        hue=uniform(-max_hue, max_hue, n),
        order=uniform(0, 1, n, 4).argsort(dim=1),
        grayscale=grayscale,
        blur=blurred,
        sigma=uniform(0.1, 2.0, n),
        solarize=solarized,
    )


def place_windows(
    area: Tensor, ratio: Tensor, corner: Tensor, height: int, width: int, max_ratio: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return top, left, height and width of crop windows, as in torchvision's RandomResizedCrop.get_params.

    `area` (pixels) and `ratio` (width / height) are (CROP_TRIES, n). The first try whose window fits into the image is
    used, and `corner`, (2, n) in [0, 1), places it. If no try fits, the window is the largest central one with a ratio
    in [1 / max_ratio, max_ratio].
    """
    image = torch.tensor([height, width]).view(2, 1, 1)
    tries = torch.stack((area / ratio, area * ratio)).sqrt_().round_().long()  # (2, CROP_TRIES, n): heights, widths
    fits = ((tries > 0) & (tries <= image)).all(dim=0)
    has_fit, first = fits.max(dim=0)  # for equal values, `max` returns the first index
    size = tries.gather(1, first.expand(2, 1, -1))[:, 0]
    start = (corner * (image[:, 0] - size + 1)).long()

    fallback = torch.tensor([min(height, round(width * max_ratio)), min(width, round(height * max_ratio))]).view(2, 1)
    size = torch.where(has_fit, size, fallback)
    start = torch.where(has_fit, start, (image[:, 0] - fallback) // 2)
    return start[0], start[1], size[0], size[1]


def apply_simclr(images: Tensor, parameters: SimCLRParameters) -> Tensor:
    """Crop and flip every image, then jitter, turn gray, blur and solarize the images chosen for it.

    Args:
        images: (B, C, H, W), uint8 or float32 in [0, 1], C = 1 or 3, on any device.
        parameters: The parameters from `draw_simclr` for B images of H × W pixels.

    Returns:
        (B, C, H, W) float32 in [0, 1] on the images' device, channels last in memory. With C = 1, hue, saturation and
        grayscale have no effect, as in torchvision.
    """
    p, device = parameters, images.device
    count, channels, height, width = images.shape
    assert channels in (1, 3)
    assert p.flip.shape == (count,)

    # Images are sorted by the turn in which their hue is adjusted (4: no jitter), so that `_jitter_` works on slices.
    # Copying sub-batches out and back would take 1.3 µs more.
    hue_turn = torch.where(p.jitter, (p.order == HUE).max(dim=1).indices, 4)
    sorting = hue_turn.argsort()
    ends = hue_turn.bincount(minlength=5).cumsum(0)[:4].tolist()
    blurred = p.blur.nonzero()[:, 0]
    solarized = p.solarize.nonzero()[:, 0]
    to_sorted, from_sorted, window, gray, soft, sigma, inverted, *colours = to_device(
        device,
        sorting,
        sorting.argsort(),
        torch.stack((p.top, p.left, p.height, p.width, p.flip))[:, sorting],
        p.grayscale.nonzero()[:, 0],
        blurred,
        p.sigma[blurred],
        solarized,
        *_colours(p, sorting[: ends[3]], has_hue=channels == 3),
    )
    x = crop_and_flip(images.index_select(0, to_sorted), *window)
    _jitter_(x, ends, *colours)
    x = x.index_select(0, from_sorted)

    if channels == 3:
        x.index_copy_(0, gray, grayscale(x.index_select(0, gray)))
    if len(blurred):
        x.index_copy_(0, soft, gaussian_blur(x.index_select(0, soft), sigma, blur_kernel_size(height, width)))
    if len(solarized):
        x.index_copy_(0, inverted, solarize(x.index_select(0, inverted)))
    # Rounding errors of interpolation and blur can leave [0, 1]. `stack` changes the memory format in 0.9 µs,
    # `contiguous` in 1.2 µs.
    return torch.stack(x.unbind(1), dim=-1).clamp_(0, 1).permute(0, 3, 1, 2)


def _colours(parameters: SimCLRParameters, jittered: Tensor, has_hue: bool) -> list[Tensor]:
    """Return the inputs of `_jitter_` for the J images with the indices `jittered`: numbers, weights and shares.

    The numbers have the shape (3 blends, 3, J, 1, 1, 1). For each blend there are three: its factor, whether it changes
    saturation, and whether it changes contrast. Weights and shares are returned only if `has_hue` is set.
    """
    p = parameters
    order = p.order[jittered]
    blends = order[order != HUE].view(len(jittered), 3)
    factors = torch.stack((p.brightness, p.contrast, p.saturation), dim=1)[jittered].gather(1, blends)
    numbers = torch.stack((factors, blends == SATURATION, blends == CONTRAST)).permute(2, 0, 1)[..., None, None, None]
    return [numbers, *hue_weights(p.hue[jittered])] if has_hue else [numbers]


def _jitter_(images: Tensor, ends: list[int], numbers: Tensor, *hue: Tensor) -> None:
    """Jitter the colours of a batch in place, each image in its own order.

    Apart from hue, an image has three operations, and all three are blends with a gray. One pass does the next blend of
    every image, whichever it is. Before each pass, hue is adjusted in the images whose turn it is. These are 7 steps
    for a batch; one group of images per order would need 96.

    Args:
        images: (B, C, H, W) float32, sorted by the turn of hue, with the images without jitter last.
        ends: For each turn of hue, 0 to 3, the end index of its images.
        numbers: The numbers from `_colours` of the images before `ends[3]`.
        hue: The weights and shares from `_colours`.
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
            towards = (gray * is_saturation).add_(mean * is_contrast)  # brightness blends with black
            torch.lerp(towards, x, factor, out=x).clamp_(0, 1)
