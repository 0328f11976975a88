"""The decoders of end-to-end and of layer-wise training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raysweep.models.conv6 import BLOCKS, DOWNSAMPLING, Conv6, padded


class Decoder(nn.Module):
    """The simple decoder of end-to-end training: linear, then three doublings, each followed by a 3×3 convolution.

    Nearest-neighbour doubling before a convolution, because transposed convolutions leave checkerboards (Odena et al.
    2016, doi 10.23915/distill.00003). No activation at the end: the target's range is learnt.

    Args:
        channels: C of the images.
        image_size: H = W of the images.
        embedding_dim: width of the embedding that is decoded.
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
    """The decoder of layer-wise training: block k undoes block k of Conv6, from its output to its input.

    Where the encoder's block pools, nearest-neighbour doubling; then a 3×3 convolution back to its input channels. A
    block whose target is the output of a Hardtanh ends with one; the last, which makes the image, ends with its
    convolution.

    Args:
        encoder: what is undone.
    """

    def __init__(self, encoder: Conv6) -> None:
        super().__init__()
        self.image_size = encoder.image_size
        depth = len(encoder.blocks)
        inputs = (encoder.channels, *(outputs for outputs, _ in BLOCKS))
        self.blocks = nn.ModuleList()
        for k, (outputs, pools) in enumerate(BLOCKS[:depth]):
            block = nn.Sequential(nn.Upsample(scale_factor=2)) if pools else nn.Sequential()
            block.append(nn.Conv2d(outputs, inputs[k], 3, padding=1))
            if k > 0 and not BLOCKS[k - 1][1]:
                block.append(nn.Hardtanh())
            self.blocks.append(block)

    def forward(self, h: Tensor) -> Tensor:
        """Feature maps h_k of any block k, (B, C_k, H_k, W_k) -> images (B, C, H, W), through blocks k to 1."""
        for block in reversed(self.blocks[: self.depth_of(h)]):
            h = block(h)
        return crop(h, self.image_size)

    def depth_of(self, h: Tensor) -> int:
        """Which encoder block, counted from 1, feature maps (B, C_k, H_k, W_k) are the output of."""
        side = padded(self.image_size)
        for k, (outputs, pools) in enumerate(BLOCKS[: len(self.blocks)], start=1):
            side = side // 2 if pools else side
            if h.shape[1:] == (outputs, side, side):
                return k
        raise AssertionError(f"no block has outputs of shape {tuple(h.shape[1:])}")


def crop(images: Tensor, size: int) -> Tensor:
    """The central `size` × `size` pixels: what padding added is cut off."""
    before = (images.shape[-1] - size) // 2
    return images[..., before : before + size, before : before + size]
