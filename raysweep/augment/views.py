"""Augmented views of a batch, computed with the policies of an experiment.

The images stay on their device (uint8, usually the training device) and become float32 in [0, 1]. The parameters of an
augmentation are drawn on the CPU. So a seed gives the same parameters on every device, and the CPU never waits for the
device to learn which images need an operation. Every operation equals torch's or torchvision's operation applied image
by image.

The times in the comments of this folder are microseconds per RGB image of 32×32, at batch 250 and strength 1, on one
thread of an AMD EPYC of 2024. They compare two ways to compute the same; `benchmarks/augmentation.py` measures the time
for a view.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raysweep import parts

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from raysweep.augment.operations import BatchPart
    from raysweep.config import Settings


def augment(
    images: Tensor,
    settings: Settings,
    generator: torch.Generator,
    part: BatchPart | None = None,
    strength: float | None = None,
) -> Tensor:
    """Return random views of a batch. Each policy reads the output of the policy before it.

    Args:
        images: (B, C, H, W), uint8 or float32 in [0, 1], C = 1 or 3, on any device.
        settings: The experiment; its `policy`, `strength`, and the parameters of the policies are read.
        generator: A CPU generator, whatever the device of the images.
        part: The positions of these images in a larger batch, which make them the same views as in the whole batch.
            None means that they are the whole batch.
        strength: The augmentation strength; None takes it from the settings.

    Returns:
        (B, C, H, W) float32 in [0, 1] on the images' device, channels last in memory. With strength 0 these are the
        images bit for bit (possibly the same memory), and nothing is drawn from `generator`.
    """
    strength = settings.strength if strength is None else strength
    for name in settings.policies:
        policy = parts.policy[name]
        images = policy.function(images, strength, generator, part, **policy.arguments(settings))
    return images
