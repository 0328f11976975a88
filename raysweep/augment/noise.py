"""The noise policy: Gaussian noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raysweep.augment.operations import per_image, to_device, to_float


@dataclass(frozen=True)
class NoiseParameters:
    """Parameters drawn by `draw_noise` for a batch of B images: CPU tensors."""

    sigma: Tensor  # float32 (B,); standard deviation of the noise
    noise: Tensor  # float32 (B, C, H, W); standard normal noise


def draw_noise(shape: Sequence[int], strength: float, generator: torch.Generator) -> NoiseParameters:
    """Draw the noise for images of `shape` (B, C, H, W).

    The standard deviation of each image is drawn from U(0, 0.2 `strength`), where pixels are in [0, 1]. So the encoder
    sees clean and noisy images. The number of draws from `generator` (a CPU generator) depends only on `shape`.
    """
    assert strength > 0
    sigma = torch.rand(shape[0], generator=generator).mul_(0.2 * strength)
    return NoiseParameters(sigma, torch.randn(tuple(shape), generator=generator))


def apply_noise(images: Tensor, parameters: NoiseParameters) -> Tensor:
    """Add `sigma` times `noise` to every image, and clamp to [0, 1].

    Images (B, C, H, W), uint8 or float32 in [0, 1], on any device -> float32 on that device, channels last in memory.
    """
    p, device = parameters, images.device
    assert p.noise.shape == images.shape
    sigma, added = to_device(device, per_image(p.sigma), p.noise)
    return torch.addcmul(to_float(images), sigma, added).clamp_(0, 1).contiguous(memory_format=torch.channels_last)
