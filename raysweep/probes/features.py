"""Features of a frozen encoder, computed once."""

from __future__ import annotations

import torch
from torch import Tensor

from raysweep.augment import to_float
from raysweep.errors import Diverged
from raysweep.models import Conv6

BATCH = 500  # 32×32 images: larger is no faster on a CPU, and activations stay below 100 MB


def extract(encoder: Conv6, images: Tensor, index: Tensor, layer: str) -> Tensor:
    """Features of chosen images, without augmentation, the encoder in evaluation mode.

    Args:
        encoder: on the images' device; its training mode is put back afterwards.
        images: (N, C, H, W) uint8.
        index: (M,) int64, which of them; chosen batch by batch, so that no copy of the images is made.
        layer: `trunk` (the flattened last block) or `embedding` (the head's output).

    Returns:
        (M, D) float32 on the same device.

    Raises:
        Diverged: a feature is NaN or infinite.
    """
    was_training = encoder.training
    encoder.eval()
    read, width = (encoder.trunk, encoder.feature_dim) if layer == "trunk" else (encoder, encoder.head.out_features)
    features = torch.empty(len(index), width, device=images.device)
    with torch.inference_mode():
        for out, part in zip(features.split(BATCH), index.split(BATCH), strict=True):
            batch = to_float(images.index_select(0, part))
            out.copy_(read(batch.contiguous(memory_format=torch.channels_last)))
    encoder.train(was_training)
    if not bool(features.isfinite().all()):
        raise Diverged(f"the encoder's features ({layer}) are not finite")
    return features


def standardize_(fit: Tensor, *others: Tensor) -> None:
    """Scale features (N, D) in place to mean 0 and standard deviation 1 per dimension over `fit`.

    A dimension that is constant over `fit` is only centred: dividing by its zero would turn the others' rounding into
    huge values. In place, because the features of 50,000 images of 32×32 are 1.6 GB.
    """
    mean, std = fit.mean(0), fit.std(0, correction=0)
    scale = torch.where(std > 1e-6, 1 / std.clamp_min(1e-6), torch.ones_like(std))
    for features in (fit, *others):
        features.sub_(mean).mul_(scale)
