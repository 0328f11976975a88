"""Batches of images for tests of augmentation."""

from __future__ import annotations

import torch
from torch import Tensor

from raysweep.augment import views
from raysweep.config import Settings

SHAPES = [(3, 32, 32), (1, 8, 8), (3, 12, 20)]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_images(n: int, channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (n, channels, height, width), dtype=torch.uint8, generator=seeded(seed))


def pictures(n: int) -> Tensor:
    """Return (n, 3, 32, 32) float32: n copies of a smooth colourful picture that differs from its mirror image."""
    coarse = torch.rand(1, 3, 4, 4, generator=seeded(7))
    coarse[..., :2] *= 0.6
    return torch.nn.functional.interpolate(coarse, (32, 32), mode="bicubic").clamp(0, 1).repeat(n, 1, 1, 1)


def augment(images, policies, strength, blur, generator, part=None):
    """Return the views of a batch that a trial with these settings makes."""
    settings = Settings(policy=list(policies), strength=strength, blur=blur)
    return views.augment(images, settings, generator, part)
