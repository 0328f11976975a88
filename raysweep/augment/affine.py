"""The affine policy: affine deformations with changes of saturation and hue."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from raysweep.augment.operations import grayscale, hue_weights, per_image, to_device, to_float, turn_hue


@dataclass(frozen=True)
class AffineParameters:
    """Parameters drawn by `draw_affine` for a batch of B images: CPU tensors, (B,) except for `theta`."""

    deform: Tensor  # bool; whether to apply `theta`
    theta: Tensor  # float32 (B, 2, 3); map from positions in the view to positions in the image, as for affine_grid
    flip: Tensor  # bool; whether to mirror left to right, after the map
    saturation: Tensor  # float32; 0 gives the gray version of the image, 1 the image
    hue: Tensor  # float32 in [-0.5, 0.5]; turns of the colour circle


def draw_affine(n: int, strength: float, generator: torch.Generator) -> AffineParameters:
    """Draw the parameters for views of `n` images.

    With s = `strength` > 0, u = min(s, 1) and v = min(s, 2):

    - an affine map with probability u/2 (a random half of the batch at s = 1): each of the four entries of its linear
      part is the identity's entry plus U(−0.25v, 0.25v), and each of the two shifts is U(−0.5v, 0.5v). Coordinates
      are as in `torch.nn.functional.affine_grid`: the image spans [−1, 1], so 0.5 is a quarter of its side. The range
      grows to at most twice the published range, because many views of a larger range would miss the image;
    - flip with probability u/2;
    - saturation factor 2^U(−2s, 2s), and 2^U(−8, 8) from s = 4 on, where colours are practically pure or gray;
    - hue U(−h, h) with h = min(0.1s, 0.5).

    The number of draws from `generator` (a CPU generator) depends only on `n`, so runs that differ in strength use the
    same random numbers.
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
    """Deform and flip the chosen images, then change saturation and hue of all images.

    Interpolation is bilinear. Parts of the view outside the image are black. These are `affine_grid` and `grid_sample`
    of torch.nn.functional with `align_corners=False`.

    Args:
        images: (B, C, H, W), uint8 or float32 in [0, 1], C = 1 or 3, on any device.
        parameters: The parameters from `draw_affine` for B images.

    Returns:
        (B, C, H, W) float32 in [0, 1] on the images' device, channels last in memory. With C = 1, saturation and hue
        have no effect.
    """
    p, device = parameters, images.device
    assert images.shape[1] in (1, 3)
    assert p.flip.shape == (len(images),)
    x = to_float(images)
    deformed = p.deform.nonzero()[:, 0]
    colours = [per_image(p.saturation), *hue_weights(p.hue)] if x.shape[1] == 3 else []
    chosen, theta, flip, *colours = to_device(device, deformed, p.theta[deformed], per_image(p.flip), *colours)
    if len(chosen):
        grid = F.affine_grid(theta, [len(chosen), *x.shape[1:]], align_corners=False)
        views = F.grid_sample(x.index_select(0, chosen), grid, align_corners=False)
        x = x.index_copy(0, chosen, views.clamp_(0, 1))  # rounding errors of the interpolation can leave [0, 1]
    x = torch.where(flip, x.flip(3), x)
    if colours:
        saturation, weights, shares = colours
        x = torch.lerp(grayscale(x), x, saturation).clamp_(0, 1)
        x = turn_hue(x, weights, shares)
    return x.contiguous(memory_format=torch.channels_last)
