"""Computation of the features of a frozen encoder."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raysweep.augment.operations import to_float
from raysweep.errors import Diverged

LARGEST = 1e15
"""The greatest allowed feature. The sum of the squares over a whole split then stays in float32, whose maximum is 3e38.

Beyond 1e17 k-means gives wrong results without an error, and beyond 1e19 so does kNN.
"""
BATCH = 500  # images of 32×32: a larger batch is no faster on a CPU; activations take less than 150 MB


def batch_of(image_size: int) -> int:
    """Return the number of images to compute at a time; fewer if they are larger, so that activations fit in memory."""
    return max(1, min(BATCH, BATCH * 32**2 // image_size**2))


def extract(encoder: Any, images: Tensor, index: Tensor, layer: str) -> Tensor:
    """Compute features of chosen images, without augmentation, with the encoder in evaluation mode.

    Args:
        encoder: on the device of the images. Its training mode is restored afterwards.
        images: (N, C, H, W) uint8.
        index: (M,) int64, the positions of the chosen images. They are read batch by batch, without a copy.
        layer: `trunk` (the flattened output of the encoder), `embedding` (the head's output), or `layer1` …; see
            `read_layers`.

    Returns:
        Features (M, D), float32, on the same device.

    Raises:
        Diverged: a feature is NaN, or greater than `LARGEST`.
    """
    return extract_layers(encoder, images, index, (layer,))[layer]


def extract_layers(encoder: Any, images: Tensor, index: Tensor, layers: tuple[str, ...]) -> dict[str, Tensor]:
    """Compute the features of several layers in one pass over the images; see `extract`."""
    features = compute(encoder, images, index, lambda batch: read_layers(encoder, batch, layers))
    return dict(zip(layers, features, strict=True))


def read_layers(encoder: Any, images: Tensor, layers: tuple[str, ...]) -> list[Tensor]:
    """Compute the features (B, D) of images (B, C, H, W) in [0, 1] in each of the layers.

    `trunk` is the output of the encoder, and `embedding` is the output of its head. Other names are keys of the
    encoder's `layer_outputs`. Feature maps are flattened. If a layer is wider than the trunk, it is first
    average-pooled by 2×2 until it is not wider; the last windows of an odd side are smaller. So no probe reads more
    numbers per image than the trunk has, unless the layer has more channels than that; such a layer is pooled to 1×1.
    """
    outputs = encoder.layer_outputs(images) if hasattr(encoder, "layer_outputs") else {"trunk": encoder(images)}
    features = []
    for layer in layers:
        if layer == "embedding":
            features.append(encoder.head(outputs["trunk"]))
            continue
        h = outputs[layer]
        while h.ndim == 4 and max(h.shape[2:]) > 1 and math.prod(h.shape[1:]) > encoder.feature_dim:
            h = F.avg_pool2d(h, 2, ceil_mode=True, count_include_pad=False)
        features.append(h.flatten(1))
    return features


def compute(encoder: nn.Module, images: Tensor, index: Tensor, read: Callable[[Tensor], list[Tensor]]) -> list[Tensor]:
    """Apply `read` to chosen images as floats (B, C, H, W), batch by batch, in evaluation mode; see `extract`."""
    was_training = encoder.training
    encoder.eval()
    outputs: list[Tensor] = []
    with torch.no_grad():  # tensors made in inference_mode cannot be standardised in place
        start = 0
        for part in index.split(batch_of(images.shape[-1])):
            batch = to_float(images.index_select(0, part))
            features = read(batch.contiguous(memory_format=torch.channels_last))
            if not outputs:
                outputs = [torch.empty(len(index), layer.shape[1], device=images.device) for layer in features]
            for output, layer in zip(outputs, features, strict=True):
                output[start : start + len(part)] = layer
            start += len(part)
    encoder.train(was_training)
    for output in outputs:
        largest = torch.linalg.vector_norm(output, math.inf).item() if output.numel() else 0.0
        if not math.isfinite(largest):
            raise Diverged("the encoder's features are not finite")
        if largest > LARGEST:
            raise Diverged(
                f"the encoder's features reach {largest:.3g}; above {LARGEST:g} the sums of their squares overflow"
            )
    return outputs


def standard_scale(fit: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the scale (D,) of features (N, D): (features − mean) · scale has standard deviation 1.

    A dimension that is constant over `fit` has the scale 1, because a division by zero would turn the rounding of the
    other splits into huge values.
    """
    mean, std = fit.mean(0), fit.std(0, correction=0)
    if not (std > 1e-6).any():
        warnings.warn("the features are the same for all images (they vary by less than 1e-6)", stacklevel=2)
    return mean, torch.where(std > 1e-6, 1 / std.clamp_min(1e-6), torch.ones_like(std))


def standardize_(fit: Tensor, *others: Tensor) -> None:
    """Scale features (N, D) in place to mean 0 and standard deviation 1 per dimension over `fit`.

    A dimension that is constant over `fit` is only centred. The features of 50,000 images of 32×32 are 1.6 GB, so they
    are changed in place.
    """
    mean, scale = standard_scale(fit)
    for features in (fit, *others):
        features.sub_(mean).mul_(scale)
