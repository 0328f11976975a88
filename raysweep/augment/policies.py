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

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    pass
from raysweep.augment.affine import affine
from raysweep.augment.mask import mask
from raysweep.augment.noise import noise
from raysweep.augment.operations import BatchPart
from raysweep.augment.simclr import simclr


def augment(
    images: Tensor,
    policies: Sequence[str],
    strength: float,
    blur: bool,
    generator: torch.Generator,
    part: BatchPart | None = None,
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


Policy = Callable[[Tensor, float, bool, torch.Generator, BatchPart | None], Tensor]
"""(images, strength, blur, generator, part) -> views, as `augment`."""
POLICIES: dict[str, Policy] = {
    "simclr": simclr,
    "affine": lambda images, strength, _, generator, part: affine(images, strength, generator, part),
    "noise": lambda images, strength, _, generator, part: noise(images, strength, generator, part),
    "mask": lambda images, strength, _, generator, part: mask(images, strength, generator, part),
}
