"""The mask policy: random hidden patches."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from raysweep.augment.operations import to_device, to_float

MASK_VALUE = 0.5  # black would look like the background of digits, so it would hide nothing there


@dataclass(frozen=True)
class MaskParameters:
    """Parameters drawn by `draw_mask` for a batch of B images: a CPU tensor."""

    masked: Tensor  # bool (B, rows, columns); whether each patch of the grid is hidden


def mask_patch_size(height: int, width: int) -> int:
    """Return the side of the square patches in pixels: an eighth of the shorter side, at least 2."""
    return max(2, min(height, width) // 8)


def draw_mask(n: int, height: int, width: int, strength: float, generator: torch.Generator) -> MaskParameters:
    """Draw the patches to hide in `n` images of `height` × `width` pixels.

    The image is divided into squares of `mask_patch_size` from the upper left corner; the last row and column may be
    cut off. In each image the fraction min(0.5 `strength`, 0.75) of the patches is hidden, chosen uniformly. If the
    number of patches is not whole, it is rounded up or down at random, so that its mean is exact. Otherwise a weak mask
    on few patches would hide nothing. 0.75 is the fraction of He et al.

    The number of draws from `generator` (a CPU generator) depends only on the sizes. A patch that is hidden at one
    strength is also hidden at every greater strength.
    """
    assert strength > 0
    patch = mask_patch_size(height, width)
    rows, columns = math.ceil(height / patch), math.ceil(width / patch)
    rank = torch.rand(n, rows * columns, generator=generator).argsort(dim=1).argsort(dim=1)
    count = (min(0.5 * strength, 0.75) * rows * columns + torch.rand(n, 1, generator=generator)).floor()
    return MaskParameters((rank < count).view(n, rows, columns))


def apply_mask(images: Tensor, parameters: MaskParameters) -> Tensor:
    """Set the hidden patches of every image to `MASK_VALUE` in all channels.

    Images (B, C, H, W), uint8 or float32 in [0, 1], on any device -> float32 on that device, channels last in memory.
    """
    count, _, height, width = images.shape
    patch = mask_patch_size(height, width)
    (masked,) = to_device(images.device, parameters.masked)
    assert len(masked) == count
    pixels = masked.repeat_interleave(patch, dim=1).repeat_interleave(patch, dim=2)[:, None, :height, :width]
    return to_float(images).masked_fill(pixels, MASK_VALUE).contiguous(memory_format=torch.channels_last)
