"""Conv6, the encoder of five convolutions, which can be trained block by block."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BLOCKS = ((32, False), (32, True), (64, False), (64, True), (512, True))
"""Conv6's blocks: output channels, and whether they pool (else Hardtanh)."""
DOWNSAMPLING = 8  # three 2×2 poolings


def padded(size: int) -> int:
    """The next multiple of eight: the side that Conv6 works on for images of side `size`."""
    return -(-size // DOWNSAMPLING) * DOWNSAMPLING


def flattened(h: Tensor) -> Tensor:
    """Feature maps (B, C, H, W) as (B, C·H·W); their gradient has their own memory format.

    That of `flatten` alone is contiguous, also where the maps are channels last, and costs 2 to 4 % of a step at 32×32
    (`benchmarks/means.py`).
    """
    if h.requires_grad and not h.is_contiguous():
        h.register_hook(lambda gradient: gradient.contiguous(memory_format=torch.channels_last))
    return h.flatten(1)


class Conv6(nn.Module):
    """Five 3×3 convolutions and a linear head, without biases or normalisation.

    Tang, Yang & Amit, "Biologically Plausible Training Mechanisms for Self-Supervised Learning in Deep Networks",
    Front. Comput. Neurosci. 2022, doi 10.3389/fncom.2022.789253. C→32 Hardtanh; 32→32 MaxPool; 32→64 Hardtanh; 64→64
    MaxPool; 64→512 MaxPool; flatten; Linear. 360,288 convolution weights for C = 3.

    Args:
        channels: C of the images.
        image_size: H = W of the images; padded with zeros to a multiple of eight.
        embedding_dim: width of the embedding.
        depth: how many of the five blocks there are.
    """

    def __init__(self, channels: int, image_size: int, embedding_dim: int, depth: int = len(BLOCKS)) -> None:
        super().__init__()
        self.channels, self.image_size = channels, image_size
        inputs = (channels, *(outputs for outputs, _ in BLOCKS))
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, outputs, 3, padding=1, bias=False), nn.MaxPool2d(2) if pools else nn.Hardtanh()
            )
            for before, (outputs, pools) in zip(inputs[:depth], BLOCKS[:depth], strict=True)
        )
        self.feature_dim = self.width(depth - 1)
        self.head = nn.Linear(self.feature_dim, embedding_dim, bias=False)

    def width(self, block: int) -> int:
        """Elements of the output of block `block`, counted from 0."""
        side = padded(self.image_size) >> sum(pools for _, pools in BLOCKS[: block + 1])
        return BLOCKS[block][0] * side * side

    def pad(self, images: Tensor) -> Tensor:
        """h_0, what the first block reads: images (B, C, H, W) with zeros around them up to a multiple of eight."""
        missing = padded(self.image_size) - self.image_size
        return images if not missing else F.pad(images, (missing // 2, missing - missing // 2) * 2)

    def up_to(self, images: Tensor, blocks: int) -> Tensor:
        """h_blocks: images (B, C, H, W) in [0, 1] -> the output of the first `blocks` blocks, as feature maps."""
        h = self.pad(images)
        for block in self.blocks[:blocks]:
            h = block(h)
        return h

    def trunk(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] -> features (B, 512·⌈H/8⌉·⌈W/8⌉)."""
        return flattened(self.up_to(images, len(self.blocks)))

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] -> embeddings (B, embedding_dim)."""
        z: Tensor = self.head(self.trunk(images))
        return z
