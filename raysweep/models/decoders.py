"""The decoders of end-to-end and of layerwise training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from raysweep.models.conv6 import DOWNSAMPLING, padded


class Decoder(nn.Module):
    """The simple decoder of end-to-end training: linear, then three doublings, each followed by a 3×3 convolution.

    It doubles by nearest neighbours before a convolution, because transposed convolutions produce checkerboard
    artefacts (Odena et al. 2016, doi 10.23915/distill.00003). It ends without an activation, so that it learns the
    target's range.

    Args:
        channels: C of the images.
        image_size: H = W of the images.
        embedding_dim: Width of the embedding to decode.
    """

    def __init__(self, channels: int, image_size: int, embedding_dim: int) -> None:
        super().__init__()
        self.image_size, self.start = image_size, padded(image_size) // DOWNSAMPLING
        self.linear = nn.Linear(embedding_dim, 64 * self.start**2)
        self.convolutions = nn.Sequential(
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(64, 32, 3, padding=1),
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(32, channels, 3, padding=1),
        )

    def forward(self, z: Tensor) -> Tensor:
        """Embeddings (B, embedding_dim) -> images (B, C, H, W)."""
        h = self.linear(z).unflatten(1, (64, self.start, self.start))
        image: Tensor = self.convolutions(h.contiguous(memory_format=torch.channels_last))
        return crop(image, self.image_size)


class SymmetricDecoder(nn.Module):
    """The decoder of layerwise training. Its block k inverts block k of the encoder, from output to input.

    Args:
        encoder: An encoder with `blocks` and `inverse_block`.
    """

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.image_size: int = encoder.image_size
        self.blocks = nn.ModuleList(encoder.inverse_block(block) for block in range(len(encoder.blocks)))

    def forward(self, h: Tensor, blocks: int) -> Tensor:
        """The output (B, C_k, H_k, W_k) of the first k = `blocks` blocks of the encoder -> images (B, C, H, W)."""
        for block in reversed(self.blocks[:blocks]):
            h = block(h)
        return crop(h, self.image_size)


def crop(images: Tensor, size: int) -> Tensor:
    """Return the central `size` × `size` pixels, which removes the padding."""
    before = (images.shape[-1] - size) // 2
    return images[..., before : before + size, before : before + size]
